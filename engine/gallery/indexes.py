"""What finds the nearest of a gallery, by ``--index``; one more is one row. Packages are imported when asked for."""
import collections
import importlib

import numpy as np
import torch

from engine.errors import UsageError, first_line
from metric.nearest import nearest

BLOCK = 2 ** 14  # rows of a gallery that an index takes at a time

Index = collections.namedtuple("Index", "help module package search")
Index.__doc__ = """help: in words, for --help. module, package: what is imported, and what pip calls it; None for ours.
search: (module, queries N x d, a ``Gallery``, k) -> distances and rows of the gallery, both N x k, nearest first."""


def _ours(module, queries, gallery, k):
    return nearest(queries, gallery, k)


def _faiss(faiss, queries, gallery, k):
    index = faiss.IndexFlatL2(queries.shape[1])
    for _, block in _blocks(gallery):
        index.add(block)
    squares, rows = index.search(queries.numpy(), k)
    return torch.from_numpy(squares).clamp_(min=0).sqrt(), torch.from_numpy(rows)


def _usearch(usearch, queries, gallery, k):
    index = usearch.Index(ndim=queries.shape[1], metric="l2sq", dtype="f32")
    for start, block in _blocks(gallery):
        index.add(np.arange(start, start + len(block)), block)
    found = index.search(queries.numpy(), k)
    shape = len(queries), -1
    count = int(np.min(found.counts if len(queries) > 1 else len(found)))
    if count < k:  # what lies beyond is no answer
        raise ValueError("usearch found only {} of {}; take --index exact".format(count, k))
    return (torch.from_numpy(np.asarray(found.distances).reshape(shape)).clamp_(min=0).sqrt(),
            torch.from_numpy(np.asarray(found.keys).astype(np.int64).reshape(shape)))


def _blocks(gallery):
    for start in range(0, len(gallery), BLOCK):
        yield start, np.ascontiguousarray(gallery[start:min(start + BLOCK, len(gallery))].numpy())


INDEXES = {
    "exact": Index("our own, exact", None, None, _ours),
    "faiss": Index("exact up to float32's rounding (IndexFlatL2)", "faiss", "faiss-cpu", _faiss),
    "usearch": Index("approximate (HNSW): it may miss some. Its graph is built anew by each command, which pays for "
                     "thousands of queries", "usearch.index", "usearch", _usearch),
}


def open_index(name):
    """Return (queries, gallery, k) -> (distances, rows), the search that ``--index`` names.

    Raises:
        UsageError: its package is missing, or can't be imported.
    """
    index, module = INDEXES[name], None
    if index.module is not None:
        try:
            module = importlib.import_module(index.module)
        except Exception as error:  # a package that doesn't fit the installed NumPy raises other types, too
            why = "" if isinstance(error, ModuleNotFoundError) else ", which can't be imported here ({})".format(
                first_line(error))
            raise UsageError("--index {} needs the package {}{}: pip install {}".format(
                name, index.package, why, index.package)) from None
    return lambda queries, gallery, k: index.search(module, queries, gallery, k)
