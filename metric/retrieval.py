"""Recall@K: its definition, and a way to the same numbers that is fast enough for 60,000 embeddings.

To understand the measure, read `recall_by_definition`; `recall` gives the same numbers faster, without sorting: a query
is a hit at K when fewer than K negatives are at least as close as its nearest positive. So distances are only compared
and counted, in three steps:

1. `_nearest_positive`: the distance of each query to its nearest positive.
2. `_count_closer`: how many negatives are at least as close. Distances are computed in square blocks that fit the
   cache, and each block is used twice: for its rows and, transposed, for its columns.
3. `_exact_counts`: distances are rounded, so steps 1 and 2 work with a lower and an upper bound of each. The few
   queries for which the bounds leave a hit open are counted again with distances in float64.
"""

import math
import operator

import torch

from metric.contracts import check_embeddings, check_labels, full_precision

__all__ = ["recall", "recall_by_definition"]

# Side of a block. On a CPU its distances and the mask beside them then take 32 MiB, which fit the last-level cache.
BLOCK_SIDE = {"cpu": 2048}
BLOCK_SIDE_DEFAULT = 8192
# Step 3 takes this many queries at a time, first against this many columns, then against twice as many, and so on.
UNDECIDED_QUERIES = 512
FIRST_COLUMNS = 64
# Step 3 compares at most this many numbers (pairs times dimensions) at a time in float64: 64 MiB.
EXACT_ENTRIES = 2 ** 23


def recall_by_definition(embeddings, labels, K=(1,)):
    """Recall@K by its definition, for at most a few hundred embeddings. Arguments and result are those of `recall`."""
    rows, labels = embeddings.double().tolist(), labels.tolist()
    hits = [0] * len(K)
    for query in range(len(rows)):
        others = [index for index in range(len(rows)) if index != query]
        # Nearest first; of equally near ones, those of another label first.
        ranking = sorted((math.dist(rows[query], rows[index]), labels[index] == labels[query]) for index in others)
        for i, k in enumerate(K):
            hits[i] += any(same_label for _, same_label in ranking[:k])
    return [count / len(rows) for count in hits]


def _checked_ks(K, gallery_size):
    if isinstance(K, int):
        raise TypeError("K must be a list of integers, got {!r}".format(K))
    ks = [operator.index(k) for k in K]
    for k in ks:
        if not 1 <= k <= gallery_size:
            raise ValueError("Recall@{} needs 1 <= K <= {}, the gallery size (all others of {} embeddings)".format(
                k, gallery_size, gallery_size + 1))
    return ks


def _scaled(embeddings):
    """The embeddings times a power of two (which rounds nothing), so that their squares don't overflow or vanish."""
    largest = embeddings.abs().max().item()
    if not math.isfinite(largest):
        bad = (~torch.isfinite(embeddings)).any(1).nonzero().flatten()
        raise ValueError("{} of {} embeddings are not finite, the first is row {}".format(
            len(bad), len(embeddings), bad[0].item()))
    limit = 1000 if embeddings.dtype == torch.float64 else 120  # 2 ** limit must be a number of that type
    return embeddings * 2.0 ** -max(-limit, min(limit, math.frexp(largest)[1]))


class _Gallery:
    """All embeddings in the order of their labels, and lower and upper bounds of their squared distances.

    Bounds, because distances come from matrix products, which are fast but rounded; `exact` is slow but not rounded.

    Args:
        embeddings: N x d, as `_scaled` gives them. labels: N.
    """

    def __init__(self, embeddings, labels):
        order = labels.argsort()
        self.labels = labels[order]
        self.exact_rows = embeddings[order]
        # Move the origin amid the embeddings: distances stay the same, and products keep most digits. The new origin is
        # the embedding nearest to the mean; the mean itself could lie far from all because of a single far embedding.
        offset = self.exact_rows - embeddings.mean(0, keepdim=True)
        centre = self.exact_rows[offset.pow_(2).sum(1).argmin()]
        self.rows = torch.sub(self.exact_rows, centre, out=offset)
        squares = self.rows.pow(2).sum(1)
        # A squared distance |q|^2 + |g|^2 - 2 q . g has three sums of d products, each of which is off by at most d u
        # times the lengths (u: half a unit in the last place). 16 u more are for the new origin, the additions and the
        # lengths themselves. In all that is at most (d + 16) u (|q| + |g|)^2 <= 2 (d + 16) u (|q|^2 + |g|^2), a sum of
        # one part for each of the two. `eps` is 2 u.
        self.margin = squares * ((embeddings.shape[1] + 16) * torch.finfo(embeddings.dtype).eps)
        self.squares = squares + self.margin

    def __len__(self):
        return len(self.rows)

    def upper_bounds(self, queries, columns, out=None):
        """Upper bounds of the squared distances of `queries` (a slice or indices) to `columns` (a slice)."""
        rows, others = self.rows[queries], self.rows[columns]
        distance = torch.addmm(self.squares[columns].unsqueeze(0), rows, others.t(), alpha=-2,
                               **({} if out is None else {"out": out}))
        return distance.add_(self.squares[queries].unsqueeze(1))

    def lower_bounds_(self, upper_bounds, queries, columns):
        """Turn upper bounds into lower bounds, in place."""
        upper_bounds.sub_(self.margin[columns].unsqueeze(0), alpha=2)
        return upper_bounds.sub_(self.margin[queries].unsqueeze(1), alpha=2)

    def same_label(self, queries, columns):
        """Which of `columns` have the label of each of `queries` (itself included)."""
        return self.labels[queries].unsqueeze(1) == self.labels[columns].unsqueeze(0)

    def exact(self, queries, others):
        """Squared distances of pairs, from differences in float64. Equal rows are exactly as far from any other.

        Computed on the CPU, since not every accelerator has float64, and the pairs are few.
        """
        parts = []
        step = max(1, EXACT_ENTRIES // self.rows.shape[1])
        for start in range(0, len(queries), step):
            first, second = (self.exact_rows[index[start:start + step]].cpu().double() for index in (queries, others))
            parts.append((first - second).pow(2).sum(1))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _nearest_positive(gallery, side):
    """Lower and upper bound of the squared distance of each query to its nearest positive; infinite without one."""
    n = len(gallery)
    lowest, highest = (torch.full_like(gallery.squares, math.inf) for _ in range(2))
    # The gallery is sorted by label: all positives of a block of queries are in the range from the first embedding of
    # the block's first label to the last embedding of its last label.
    change = torch.ones(n, dtype=torch.bool, device=gallery.labels.device)
    change[1:] = gallery.labels[1:] != gallery.labels[:-1]
    class_of = (change.cumsum(0) - 1).cpu()
    first = change.nonzero().flatten().cpu()
    last = torch.cat([first[1:], torch.tensor([n])])
    for start in range(0, n, side):
        rows = slice(start, min(start + side, n))
        begin, end = first[class_of[rows.start]].item(), last[class_of[rows.stop - 1]].item()
        for left in range(begin, end, side):
            columns = slice(left, min(left + side, end))
            distance = gallery.upper_bounds(rows, columns)
            distance.masked_fill_(~gallery.same_label(rows, columns), math.inf)
            distance.diagonal(rows.start - columns.start).fill_(math.inf)  # the query itself
            highest[rows] = torch.minimum(highest[rows], distance.min(1)[0])
            gallery.lower_bounds_(distance, rows, columns)
            lowest[rows] = torch.minimum(lowest[rows], distance.min(1)[0])
    return lowest, highest


def _count_closer(gallery, lowest, highest, side):
    """How many negatives are at least as close as each query's nearest positive: certainly, and possibly."""
    n = len(gallery)
    surely, perhaps = (torch.zeros(n, dtype=torch.int64, device=gallery.rows.device) for _ in range(2))
    space = torch.empty(2, side * side, dtype=gallery.rows.dtype, device=gallery.rows.device)
    for top in range(0, n, side):
        rows = slice(top, min(top + side, n))
        for left in range(top, n, side):
            columns = slice(left, min(left + side, n))
            shape = rows.stop - rows.start, columns.stop - columns.start
            distance, closer = (part[:shape[0] * shape[1]].view(shape) for part in space)
            gallery.upper_bounds(rows, columns, out=distance)
            if gallery.labels[rows.stop - 1] >= gallery.labels[left]:  # sorted, so otherwise no label is in both
                distance.masked_fill_(gallery.same_label(rows, columns), math.nan)  # compares as False: not counted
            for compare, threshold, count in ((torch.lt, lowest, surely), (torch.le, highest, perhaps)):
                # `closer` holds 0 and 1 as floating point numbers: adding them up is ten times as fast as booleans.
                compare(distance, threshold[rows].unsqueeze(1), out=closer)
                count[rows] += closer.sum(1).long()
                if left > top:
                    compare(distance, threshold[columns].unsqueeze(0), out=closer)
                    count[columns] += closer.sum(0).long()
                if count is surely:
                    gallery.lower_bounds_(distance, rows, columns)
    return surely, perhaps


def _exact_counts(gallery, queries, lowest, highest, closer, enough, side):
    """For some queries: how many negatives are at least as close as the nearest positive, counted in float64.

    Args:
        queries: their indices. lowest, highest, closer: for each of them, the bounds of its nearest positive and the
            number of negatives that are certainly closer.
        enough: a query is not counted any further once it has this many.

    Returns:
        the counts; those below `enough` are exact.
    """
    n = len(gallery)
    nearest = torch.full((len(queries),), math.inf, dtype=torch.float64)
    for left in range(0, n, side):
        columns = slice(left, min(left + side, n))
        positive = gallery.same_label(queries, columns)
        if not positive.any():
            continue
        distance = gallery.lower_bounds_(gallery.upper_bounds(queries, columns), queries, columns)
        positive &= distance <= highest.unsqueeze(1)
        row, column = positive.nonzero().unbind(1)
        other = column + left
        row, other = row[other != queries[row]], other[other != queries[row]]
        distance, row = gallery.exact(queries[row], other), row.cpu()
        # A query may have several: the smallest is written last, so that it stays.
        order = distance.argsort(descending=True)
        smallest = torch.full_like(nearest, math.inf)
        for query, value in zip(row[order].tolist(), distance[order].tolist()):
            smallest[query] = value
        nearest = torch.minimum(nearest, smallest)

    counts = closer.clone()
    open_rows = torch.arange(len(queries), device=queries.device)
    left, width = 0, FIRST_COLUMNS
    while left < n and len(open_rows):
        columns = slice(left, min(left + width, n))
        index = queries[open_rows]
        distance = gallery.upper_bounds(index, columns)
        unclear = ~gallery.same_label(index, columns) & (distance >= lowest[open_rows].unsqueeze(1))
        unclear &= gallery.lower_bounds_(distance, index, columns) <= highest[open_rows].unsqueeze(1)
        row, column = unclear.nonzero().unbind(1)
        closer_still = gallery.exact(index[row], column + left) <= nearest[open_rows[row].cpu()]
        counts.index_add_(0, open_rows[row], closer_still.to(counts.device).long())
        open_rows = open_rows[counts[open_rows] < enough]
        left, width = columns.stop, min(2 * width, side)
    return counts


@torch.no_grad()
@full_precision
def recall(embeddings, labels, K=(1,), block_size=None):
    """Recall@K: the fraction of queries with at least one same-label item among their K nearest others (Euclidean).

    Every embedding is a query, and all others are its gallery; the query itself is excluded by index, so duplicate
    images do no harm. The numbers are those of `recall_by_definition`, in float64, whatever the precision of the
    embeddings; the top of this file says how. On an accelerator matrix products must not be rounded to TF32, or the
    bounds of the rounding do not hold.

    Args:
        embeddings: N x d, floating point; half and bfloat16 are taken as float32.
        labels: N integers on the same device.
        K: list of integers, each in 1 .. N - 1. A long list costs no more than a short one.
        block_size: side of a block of distances. Default: what suits the device. Memory: two copies of the embeddings
            and about 8 bytes for each entry of a block, never an N x N matrix.

    Returns:
        list of floats, one fraction per K, in the order of K.

    Corner cases: a negative at exactly the distance of the nearest positive counts as closer (ties go against the
    query), so a collapsed network, all embeddings equal, scores 0 and not 1. Exact duplicates in the gallery are
    exactly equally far from a query. A query without any positive is a miss. Embeddings of any finite size are ranked
    without overflow, and a large offset that they share costs no digits.

    Raises:
        TypeError: wrong types of tensors, or K is not a list of integers.
        ValueError: shapes or devices disagree, an embedding is not finite, a K is not in 1 .. N - 1.
    """
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    n = len(embeddings)
    ks = _checked_ks(K, n - 1)
    if block_size is None:
        block_size = BLOCK_SIDE.get(embeddings.device.type, BLOCK_SIDE_DEFAULT)
    elif block_size < 1:
        raise ValueError("block_size must be at least 1, got {}".format(block_size))
    if not ks:
        return []
    side = min(block_size, n)

    gallery = _Gallery(_scaled(embeddings), labels)
    # A query without a positive has infinite bounds: all n - 1 others are closer, which is a miss at every K allowed.
    lowest, highest = _nearest_positive(gallery, side)
    surely_closer, perhaps_closer = _count_closer(gallery, lowest, highest, side)

    undecided = torch.zeros_like(surely_closer, dtype=torch.bool)
    for k in ks:
        undecided |= (surely_closer < k) & (perhaps_closer >= k)
    counts = surely_closer
    for queries in undecided.nonzero().flatten().split(UNDECIDED_QUERIES):
        counts[queries] = _exact_counts(gallery, queries, lowest[queries], highest[queries], surely_closer[queries],
                                        max(ks), side)
    thresholds = torch.tensor(ks, dtype=torch.int64, device=counts.device)
    hits = (counts.unsqueeze(1) < thresholds.unsqueeze(0)).sum(0)
    return [hit / n for hit in hits.tolist()]
