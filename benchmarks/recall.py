"""Recall@K: the N x N matrix, exact search with faiss where it is installed, ours.

Sizes of CUB-200-2011's test set and of Stanford Online Products': embeddings of 512 dimensions on the unit sphere, in
classes of about as many pictures. With --collapsed: ours alone, for embeddings that are equal or nearly so, as ratios
to the time of random ones (in one process, the two in turn).
"""
import statistics
import time

import torch

from common import installed, main, parser

import textbook
from metric.utils import recall

COLLAPSED_SIZES = [(3000, 64, pictures, ks) for pictures in (5, 60, 600) for ks in ([1], [1, 10, 100, 1000])] + [
    (12000, 512, 60, [1, 10, 100, 1000])]
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


def collapsed_kinds(n, d):
    """Yield (kind, N x d embeddings); the first kind is that of a usual network."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def one_of(count):
        return points[torch.randint(0, count, (n,), generator=generator)]

    usual, points = (torch.nn.functional.normalize(normal(rows, d)) for rows in (n, 10))
    yield "random", usual
    yield "one point", one_of(1)
    yield "two points", one_of(2)
    yield "ten points", one_of(10)
    yield "half of them one point", torch.where((torch.arange(n) % 2 == 0).unsqueeze(1), points[:1], usual)
    yield "one point, noise of 1e-7", one_of(1) + 1e-7 * normal(n, d)
    yield "two points, noise of 1e-7", one_of(2) + 1e-7 * normal(n, d)
    yield "ten points, noise of 1e-7", one_of(10) + 1e-7 * normal(n, d)
    yield "integers, -1 to 1", torch.randint(-1, 2, (n, d), generator=generator).float()
    yield "one of d axes", torch.eye(d)[torch.randint(0, d, (n,), generator=generator)]
    yield "random, rounded to bf16", usual.bfloat16()
    yield "random, rounded to fp16", usual.half()


def seconds(e, labels, ks):
    started = time.perf_counter()
    recall(e, labels, ks)
    if e.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_collapsed(device, repeats):
    table = {}
    for n, d, pictures, ks in COLLAPSED_SIZES:
        labels = torch.arange(n, device=device) % (n // pictures)
        kinds = collapsed_kinds(n, d)
        usual = next(kinds)[1].to(device)
        seconds(usual, labels, ks)
        for kind, e in kinds:
            e = e.to(device)
            ratios = [seconds(e, labels, ks) / seconds(usual, labels, ks) for _ in range(repeats)]
            table.setdefault(kind, []).append(statistics.median(ratios))
    columns = ["{} x {}, classes of {}, K to {}".format(*size[:3], size[3][-1]) for size in COLLAPSED_SIZES]
    print("| times the usual time | {} |\n|{}".format(" | ".join(columns), "---|" * (len(columns) + 1)))
    for kind, ratios in table.items():
        print("| {} | {} |".format(kind, " | ".join("{:.1f}".format(ratio) for ratio in ratios)))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--collapsed", action="store_true")
    arguments = options.parse_args()
    if arguments.collapsed:
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        print_collapsed(arguments.device, arguments.repeats)
    else:
        main(arguments, cases(arguments.device), None)
