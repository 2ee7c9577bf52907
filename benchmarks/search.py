"""The nearest of a gallery of 1,000,000 x 64: ours, and exact search with faiss where it is installed.

One query alone, and 256 at once, each for its 10 nearest. The gallery is in memory: random embeddings on the unit
sphere as float32, or as int8 with a scale for each, as ``--mode embed --store int8`` keeps them. Ours takes the gallery
as it is in each call; faiss has made its index, a copy in float32, before it is timed.
"""
import functools

import torch

from common import installed, main, parser

from metric.nearest import nearest

K = 10
QUERIES = (1, 256)


def unit(count, d, seed):
    return torch.nn.functional.normalize(torch.randn(count, d, generator=torch.Generator().manual_seed(seed)))


class Int8:
    """Embeddings as int8, each with a scale; slices of them are float32."""

    def __init__(self, embeddings):
        self.scales = embeddings.abs().max(1, keepdim=True)[0] / 127
        self.rows = (embeddings / self.scales).round_().to(torch.int8)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.rows[rows].float() * self.scales[rows]


def ours(queries, gallery):
    print(nearest(queries, gallery, K)[1].sum().item())


def prepare(kind, size, d, count):
    return unit(count, d, 1), kind(unit(size, d, 0))


def faiss_index(embeddings):
    import faiss
    index = faiss.IndexFlatL2(embeddings.shape[1])
    index.add(embeddings.numpy())
    return index


def with_faiss(queries, index):
    print(index.search(queries.numpy(), K)[1].sum())


def cases(size, d):
    result = {}
    for count in QUERIES:
        ways = {"faiss-cpu, IndexFlatL2": (faiss_index, with_faiss)} if installed("faiss") else {}
        ways.update({"ours, float32": (torch.Tensor.contiguous, ours), "ours, int8": (Int8, ours)})
        result["{} quer{} in {} x {}".format(count, "y" if count == 1 else "ies at once,", size, d)] = {
            way: {"prepare": functools.partial(prepare, kind, size, d, count), "work": work, "count": count}
            for way, (kind, work) in ways.items()}
    return result


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=1000000, help="embeddings in the gallery")
    options.add_argument("--dimensions", type=int, default=64)
    arguments = options.parse_args()
    main(arguments, cases(arguments.size, arguments.dimensions), "queries")
