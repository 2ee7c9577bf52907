"""Recall@K: the N x N matrix, exact search with faiss where it is installed, ours.

Sizes of CUB-200-2011's test set and of Stanford Online Products': embeddings of 512 dimensions on the unit sphere, in
classes of about as many pictures.
"""
import torch

from common import installed, main, parser

import textbook
from metric.utils import recall

SIZES = {"CUB-200": (5924, 100, [1, 2, 4, 8]), "SOP": (60502, 11316, [1, 10, 100, 1000])}


def embeddings(n, classes, device):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) * classes // n
    centres = torch.randn(classes, 512, generator=generator)
    spread = torch.randn(n, 512, generator=generator).mul_(3)
    return torch.nn.functional.normalize(centres[labels] + spread).to(device), labels.to(device)


def with_faiss(e, labels, ks):
    import faiss
    index = faiss.IndexFlatL2(e.shape[1])
    index.add(e.cpu().numpy())
    _, found = index.search(e.cpu().numpy(), max(ks) + 1)
    found = torch.from_numpy(found)
    labels = labels.cpu()
    others = found != torch.arange(len(e)).unsqueeze(1)
    hits = (labels[found] == labels.unsqueeze(1)) & others
    place = others.cumsum(1)
    return [(hits & (place <= k)).any(1).float().mean().item() for k in ks]


def cases(device):
    result = {}
    for name, (n, classes, ks) in SIZES.items():
        def job(function, n=n, classes=classes, ks=ks):
            def work(e, labels):
                print([round(value, 6) for value in function(e, labels, ks)])
            return {"prepare": lambda: embeddings(n, classes, device), "work": work, "count": 1, "warm_up": n < 10000}
        ways = result["Recall@{}, {} x 512 ({})".format(",".join(map(str, ks)), n, name)] = {}
        if n < 10000:
            ways["textbook"] = job(textbook.recall)
        if installed("faiss"):
            ways["faiss-cpu, exact"] = job(with_faiss)
        ways["ours"] = job(recall)
    return result


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    main(arguments, cases(arguments.device), None)
