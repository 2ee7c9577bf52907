"""The nearest of a gallery, and the pairs of it that lie close together: exact, in blocks.

A gallery is a matrix, or anything with a length whose slices are matrices: a file that is read block by block. Of a
distance that comes from a matrix product it is known how much it may be off (see `metric.retrieval`). Whatever that
leaves open is settled by differences in float64, so that the size of the blocks and the order of a sum change nothing.
Products are on the device of the queries, of a gallery alone on its own, and must not be rounded to TF32 there.
Differences are on the CPU, since not every accelerator has float64.
"""

import collections
import math

import torch

from metric.contracts import check_embeddings, full_precision
from metric.exact import exact

__all__ = ["close_pairs", "nearest"]

BLOCK_NUMBERS = 2 ** 19  # of a gallery, taken at a time: 2 MiB
DISTANCES = 2 ** 22  # from a block to queries, taken at a time: 16 MiB
SIDE = 2048  # of a square block of distances within a gallery
LONGEST = 1e150  # embedding whose square is a number in float64

_View = collections.namedtuple("_View", "origin scale")
_View.__doc__ = """How products see embeddings: times ``scale``, a power of two, which rounds nothing, so that squares
neither overflow nor vanish, and then from ``origin``, one of them, so that most digits are kept."""

_Points = collections.namedtuple("_Points", "given seen low high")
_Points.__doc__ = """Embeddings as they are, N x d, on the CPU; as a ``_View`` shows them, N x d; and of each N its
squared length there, less and plus what its part of a squared distance may be off."""


def _view(rows, queries):
    """Return a ``_View`` of embeddings like these; its origin is the one of ``rows`` that is nearest to their mean."""
    largest = max(max(side.max().item(), -side.min().item()) for side in (rows, queries))
    scale = 2.0 ** -max(-120, min(120, math.frexp(largest)[1]))
    rows = rows * scale
    return _View(rows[(rows - rows.mean(0)).pow_(2).sum(1).argmin()], scale)


def _points(rows, view):
    """Return the ``_Points`` of a slice of a gallery, or of queries."""
    seen = torch.add(-view.origin, rows, alpha=view.scale)
    squares = torch.linalg.vector_norm(seen, dim=1).pow_(2)  # without a copy of `seen`
    number, longest = torch.finfo(rows.dtype), LONGEST * view.scale
    if not bool((squares < min(number.max / 16, longest * longest)).all()):
        raise ValueError("embeddings must be finite, shorter than {:.0e}, and not {:.0e} times as long as "
                         "others".format(LONGEST, math.sqrt(number.max) / 4))
    margin = (squares * number.eps + number.tiny) * 2 * (rows.shape[1] + 16)  # twice that of `metric.retrieval`
    return _Points(rows.cpu(), seen, squares - margin, squares + margin)


def _slice(gallery, start, stop, like):
    return gallery[start:min(stop, len(gallery))].to(like)


@torch.no_grad()
@full_precision
def nearest(queries, gallery, k, own=None):
    """The k of a gallery that are nearest to each query, nearest first; of equally near ones the first come first.

    Args:
        queries: N x d, floating point; half and bfloat16 are taken as float32.
        gallery: M x d, or anything with a length of M whose slices of rows are such matrices; it is read once. None:
            the queries, each of which searches all others.
        k: from 1 to M; where a row is left out to M - 1.
        own: N rows of the gallery, where each query itself is: that one is left out. None: none is.

    Returns:
        Euclidean distances in float64 and rows of the gallery in int64, both N x k, on the CPU.

    Corner cases: where many of a gallery are at one distance, and not at 0, their differences take most of the time.

    Raises:
        ValueError: k is out of range, dimensions disagree, an embedding is not finite or longer than 1e150, or some are
            1e18 times as long as others.
    """
    check_embeddings(queries, "queries")
    if gallery is None:
        gallery, own = queries, torch.arange(len(queries))
    size = len(gallery) if own is None else len(gallery) - 1
    if not 1 <= k <= size:
        raise ValueError("k must be from 1 to {}, the number of embeddings that a query searches, got {}".format(
            size, k))
    step = max(1, BLOCK_NUMBERS // queries.shape[1])
    rows = _slice(gallery, 0, step, queries)
    if rows.shape[1] != queries.shape[1]:
        raise ValueError("queries have {} dimensions, the gallery {}".format(queries.shape[1], rows.shape[1]))
    view = _view(rows, queries)
    own = torch.full((len(queries),), -1) if own is None else own.cpu()
    taken = max(1, DISTANCES // step)  # queries at a time
    parts = [(_points(some, view), left_out) for some, left_out in zip(queries.split(taken), own.split(taken))]
    found = [(torch.empty(len(left_out), 0, dtype=torch.float64), torch.empty(len(left_out), 0, dtype=torch.int64))
             for _, left_out in parts]
    for start in range(0, len(gallery), step):
        block = _points(_slice(gallery, start, start + step, queries) if start else rows, view)
        found = [_with_block(*part, known, block, start, k, view.scale) for part, known in zip(parts, found)]
    return torch.cat([distances for distances, _ in found]).sqrt(), torch.cat([rows for _, rows in found])


def _with_block(queries, own, known, block, start, k, scale):
    """Return ``known``, squared distances and rows of the nearest so far, with those of a block that are nearer."""
    # Lower bounds of the squared distances, less the queries' own part of them.
    lower = torch.addmm(block.low, queries.seen, block.seen.t(), alpha=-2)
    itself = ((own >= start) & (own < start + len(block.low))).nonzero().flatten()
    lower[itself, own[itself] - start] = math.inf
    if known[0].shape[1] == k:
        last = known[0][:, -1]
        # Nothing is nearer than 0. Rounded; what may be off by that is within the bounds.
        limit = (last * scale ** 2).masked_fill_(last == 0, -math.inf).to(lower)
    elif len(block.low) >= k:  # the k lowest of them are an upper bound of the k-th distance
        values, column = lower.topk(k, largest=False, sorted=False)
        limit = (values + (block.high - block.low)[column]).max(1)[0] + queries.high
    else:
        limit = torch.full_like(queries.low, math.inf)
    query, column = (lower <= (limit - queries.low).unsqueeze(1)).nonzero().cpu().unbind(1)
    other = column + start != own[query]
    query, column = query[other], column[other]
    if not len(query):
        return known
    counts = query.bincount(minlength=len(lower))
    place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
    distances = torch.full((len(lower), int(counts.max())), math.inf, dtype=torch.float64)
    distances[query, place] = exact(queries.given, query, block.given, column)
    rows = torch.zeros(distances.shape, dtype=torch.int64)
    rows[query, place] = column + start
    distances, order = torch.cat([known[0], distances], 1).sort(dim=1, stable=True)  # equal ones stay in their order
    return distances[:, :k], torch.cat([known[1], rows], 1).gather(1, order[:, :k])


@torch.no_grad()
@full_precision
def close_pairs(gallery, distance, most=5000):
    """The pairs of a gallery that are at most ``distance`` apart, nearest first, and how many there are.

    Takes M^2 / 2 distances, and reads the gallery M / 4096 times.

    Args:
        gallery: M x d, or anything with a length of M whose slices of rows are such matrices.
        most: of more pairs the nearest ones are returned; which of equally near ones is not said.

    Returns:
        Euclidean distances in float64, P; rows in int64, P x 2, the lower one first; the number of all pairs, >= P.
    """
    if not len(gallery):
        return torch.empty(0, dtype=torch.float64), torch.empty(0, 2, dtype=torch.int64), 0
    count, limit = 0, distance * distance
    found = torch.empty(0, dtype=torch.float64), torch.empty(0, 2, dtype=torch.int64)
    first = gallery[:SIDE]
    view = _view(first, first)
    for top in range(0, len(gallery), SIDE):
        rows = _points(_slice(gallery, top, top + SIDE, first), view)
        for left in range(top, len(gallery), SIDE):
            columns = rows if left == top else _points(_slice(gallery, left, left + SIDE, first), view)
            worst = found[0][-1].item() if len(found[0]) == most else math.inf
            surely, distances, pairs = _close(rows, columns, limit, worst, left == top, view.scale)
            count += surely + len(pairs)
            distances, order = torch.cat([found[0], distances]).sort(stable=True)
            pairs = torch.cat([found[1], pairs + torch.tensor([top, left])])
            found = distances[:most], pairs[order[:most]]
    order = (found[1] * torch.tensor([len(gallery), 1])).sum(1).argsort()
    distances, nearest_first = found[0][order].sort(stable=True)
    return distances.sqrt(), found[1][order][nearest_first], count


def _close(rows, columns, limit, worst, is_one, scale):
    """Of a block of pairs: how many surely are within ``limit``, a squared distance, and no nearer than ``worst``;
    squared distances and pairs of all others within ``limit``. is_one: rows and columns are the same ones. scale: of
    the view."""
    most = torch.finfo(rows.low.dtype).max
    limit_seen, worst_seen = (min(square * scale ** 2, most) for square in (limit, worst))
    lower = torch.addmm(columns.low, rows.seen, columns.seen.t(), alpha=-2).add_(rows.low.unsqueeze(1)).clamp_(min=0)
    row, column = (lower <= limit_seen).nonzero().unbind(1)
    if is_one:
        row, column = row[row < column], column[row < column]
    lower = lower[row, column]
    upper = lower + (rows.high - rows.low)[row] + (columns.high - columns.low)[column]
    is_open = (upper > limit_seen) | (lower < worst_seen)
    surely = len(row) - int(is_open.sum())
    row, column = row[is_open].cpu(), column[is_open].cpu()
    distances = exact(rows.given, row, columns.given, column)
    within = distances <= limit
    return surely, distances[within], torch.stack([row[within], column[within]], 1)
