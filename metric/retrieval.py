"""Recall@K: its definition, and a way to the same numbers that is fast enough for 60,000 embeddings.

To understand the measure, read `recall_by_definition`; `recall` gives the same numbers faster, without sorting: a query
is a hit at K when fewer than K negatives are at least as close as its nearest positive. So distances are only compared
and counted, in three steps:

1. `_nearest_positive`: the distance of each query to its nearest positive.
2. `_count_closer`: how many negatives are at least as close. Distances are computed in square blocks that fit the
   cache. Where all embeddings are queries and gallery at once, each block is used twice: for its rows and, transposed,
   for its columns.
3. `exact_counts` in `metric.exact`: distances are rounded, so steps 1 and 2 work with a lower and an upper bound of
   each. The queries for which the bounds leave a hit open are counted again, and pairs that the bounds leave open get
   their distances from differences in float64. These are few, unless the network has collapsed to a few points: then
   most distances are equal, or equal but for the rounding. So, where many are open, equal embeddings are taken
   together, and bounds are in float64 and of distances that are measured from an embedding nearby, which leaves almost
   no pair open.
"""

import math
import operator

import torch

from metric.contracts import check_embeddings, check_labels, check_same_device, full_precision
from metric.exact import CROWD, ExactGallery, exact_counts

__all__ = ["recall", "recall_by_definition"]

# Side of a block. On a CPU its distances and the mask beside them then take 32 MiB, which fit the last-level cache.
BLOCK_SIDE = {"cpu": 2048}
BLOCK_SIDE_DEFAULT = 8192


def rankings_by_definition(embeddings, labels, gallery=None, gallery_labels=None, paired=False):
    """Yield for each query which of those that it searches have its label, nearest first. Arguments: see `recall`."""
    if gallery is None:
        rows = others = _scaled(embeddings.double())[0].tolist()
        gallery_labels = labels
    else:
        rows, others = (matrix.tolist() for matrix in _scaled(embeddings.double(), gallery.double()))
    labels, gallery_labels = labels.tolist(), gallery_labels.tolist()
    for query in range(len(rows)):
        searched = [index for index in range(len(others)) if index != query or not (paired or others is rows)]
        # Nearest first; of equally near ones, those of another label first. Squared distances, since equal ones stay
        # equal (math.dist of Python 3.8 and 3.9 rounds them apart).
        ranking = sorted((math.fsum(gap * gap for gap in map(operator.sub, rows[query], others[index])),
                          gallery_labels[index] == labels[query]) for index in searched)
        yield [same_label for _, same_label in ranking]


def recall_by_definition(embeddings, labels, K=(1,), gallery=None, gallery_labels=None, paired=False):
    """Recall@K by its definition, for at most a few hundred embeddings. Arguments and result are those of `recall`."""
    hits = [0] * len(K)
    for ranking in rankings_by_definition(embeddings, labels, gallery, gallery_labels, paired):
        for i, k in enumerate(K):
            hits[i] += any(ranking[:k])
    return [count / len(embeddings) for count in hits]


def checked_ks(K, embeddings, gallery, paired):
    """K as a list of integers, each in 1 .. the number of others that a query searches."""
    if isinstance(K, int):
        raise TypeError("K must be a list of integers, got {!r}".format(K))
    ks = [operator.index(k) for k in K]
    n = len(embeddings)
    size, what = (n - 1, "all others of {} embeddings".format(n)) if gallery is None else (
        len(gallery) - bool(paired), "that of the {} queries".format(n))
    for k in ks:
        if not 1 <= k <= size:
            raise ValueError("Recall@{} needs 1 <= K <= {}, the gallery size ({})".format(k, size, what))
    return ks


def check_searched(embeddings, labels, gallery, gallery_labels, paired):
    """TypeError or ValueError unless the queries `embeddings` can search in `gallery`, or in each other if None."""
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    if gallery is None:
        return
    check_embeddings(gallery, "gallery")
    check_labels(gallery_labels, gallery)
    check_same_device(embeddings, gallery, "embeddings", "the gallery")
    if embeddings.dtype != gallery.dtype or embeddings.shape[1] != gallery.shape[1]:
        raise ValueError("the gallery must be of the dimension and type of the queries: {} of {}, {} of {}".format(
            tuple(gallery.shape), gallery.dtype, tuple(embeddings.shape), embeddings.dtype))
    if paired and not torch.equal(labels.long(), gallery_labels.long()):
        raise ValueError("with paired the gallery holds the queries' own items, so its labels must be those of the "
                         "queries")


def _scaled(*matrices):
    """[Each times one power of two] (which rounds nothing), so that their squares don't overflow or vanish."""
    for matrix in matrices:
        bad = (~torch.isfinite(matrix)).any(1).nonzero().flatten()
        if len(bad):
            raise ValueError("{} of {} embeddings are not finite, the first is row {}".format(
                len(bad), len(matrix), bad[0].item()))
    largest = max(matrix.abs().max().item() for matrix in matrices)
    limit = 1000 if matrices[0].dtype == torch.float64 else 120  # 2 ** limit must be a number of that type
    return [matrix * 2.0 ** -max(-limit, min(limit, math.frexp(largest)[1])) for matrix in matrices]


class _Embeddings:
    """Embeddings in the order of their labels, and lower and upper bounds of their squared distances to others.

    Bounds, because distances come from matrix products, which are fast but rounded.

    Args:
        embeddings: N x d, as `_scaled` gives them. labels: N, int64.
        origin: that of the others; None to find one.
    """

    def __init__(self, embeddings, labels, origin=None):
        order = labels.sort(stable=True)[1]  # stable: paired embeddings come in one order
        self.labels = labels[order]
        self.exact_rows = embeddings[order]
        if origin is None:
            # Amid the embeddings: distances stay the same, and products keep most digits. It is the embedding nearest
            # to the mean; the mean itself could lie far from all because of a single far embedding.
            offset = self.exact_rows - embeddings.mean(0, keepdim=True)
            origin = self.exact_rows[offset.pow_(2).sum(1).argmin()]
            del offset
        self.origin = origin
        self.rows = self.exact_rows - origin
        squares = self.rows.pow(2).sum(1)
        # A squared distance |q|^2 + |g|^2 - 2 q . g has three sums of d products, each of which is off by at most d u
        # times the lengths (u: half a unit in the last place). 16 u more are for the new origin, the additions and the
        # lengths themselves. In all that is at most (d + 16) u (|q| + |g|)^2 <= 2 (d + 16) u (|q|^2 + |g|^2), a sum of
        # one part for each of the two. `eps` is 2 u. Numbers below `tiny` have fewer digits, or are taken as 0.
        number, terms = torch.finfo(embeddings.dtype), embeddings.shape[1] + 16
        self.margin = (squares * number.eps + number.tiny) * terms
        self.squares = squares + self.margin

    def __len__(self):
        return len(self.rows)

    def upper_bounds(self, rows, gallery, columns, out=None):
        """Upper bounds of the squared distances of `rows` of these to `columns` of `gallery` (both are slices)."""
        distance = torch.addmm(gallery.squares[columns].unsqueeze(0), self.rows[rows], gallery.rows[columns].t(),
                               alpha=-2, **({} if out is None else {"out": out}))
        return distance.add_(self.squares[rows].unsqueeze(1))

    def lower_bounds_(self, upper_bounds, rows, gallery, columns):
        """Turn upper bounds into lower bounds, in place."""
        upper_bounds.sub_(gallery.margin[columns].unsqueeze(0), alpha=2)
        return upper_bounds.sub_(self.margin[rows].unsqueeze(1), alpha=2)

    def same_label(self, rows, gallery, columns):
        """Which of `columns` of `gallery` have the label of each of `rows` (where both are one, itself included)."""
        return self.labels[rows].unsqueeze(1) == gallery.labels[columns].unsqueeze(0)


def _nearest_positive(queries, gallery, side, paired):
    """Lower and upper bound of the squared distance of each query to its nearest positive; infinite without one."""
    lowest, highest = (torch.full_like(queries.squares, math.inf) for _ in range(2))
    # Both are sorted by label: all positives of a block of queries are in the range from the first embedding of the
    # block's first label to the last embedding of its last label.
    begins, ends = (torch.searchsorted(gallery.labels, queries.labels, right=right).cpu() for right in (False, True))
    for start in range(0, len(queries), side):
        rows = slice(start, min(start + side, len(queries)))
        end = ends[rows.stop - 1].item()
        for left in range(begins[start].item(), end, side):
            columns = slice(left, min(left + side, end))
            distance = queries.upper_bounds(rows, gallery, columns)
            distance.masked_fill_(~queries.same_label(rows, gallery, columns), math.inf)
            if paired:
                distance.diagonal(rows.start - columns.start).fill_(math.inf)  # the query itself
            highest[rows] = torch.minimum(highest[rows], distance.min(1)[0])
            queries.lower_bounds_(distance, rows, gallery, columns)
            lowest[rows] = torch.minimum(lowest[rows], distance.min(1)[0])
    return lowest, highest


def _count_closer(queries, gallery, lowest, highest, side):
    """How many negatives are at least as close as each query's nearest positive: certainly, and possibly."""
    n, is_square = len(queries), queries is gallery
    surely, perhaps = (torch.zeros(n, dtype=torch.int64, device=queries.rows.device) for _ in range(2))
    space = torch.empty(2, side * side, dtype=queries.rows.dtype, device=queries.rows.device)
    for top in range(0, n, side):
        rows = slice(top, min(top + side, n))
        for left in range(top if is_square else 0, len(gallery), side):
            columns = slice(left, min(left + side, len(gallery)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            distance, closer = (part[:shape[0] * shape[1]].view(shape) for part in space)
            queries.upper_bounds(rows, gallery, columns, out=distance)
            # Both are sorted, so otherwise no label is in both.
            if queries.labels[rows.stop - 1] >= gallery.labels[left] and (
                    queries.labels[top] <= gallery.labels[columns.stop - 1]):
                # NaN compares as False: not counted.
                distance.masked_fill_(queries.same_label(rows, gallery, columns), math.nan)
            for compare, threshold, count in ((torch.lt, lowest, surely), (torch.le, highest, perhaps)):
                # `closer` holds 0 and 1 as floating point numbers: adding them up is ten times as fast as booleans.
                compare(distance, threshold[rows].unsqueeze(1), out=closer)
                count[rows] += closer.sum(1).long()
                if is_square and left > top:
                    compare(distance, threshold[columns].unsqueeze(0), out=closer)
                    count[columns] += closer.sum(0).long()
                if count is surely:
                    queries.lower_bounds_(distance, rows, gallery, columns)
    return surely, perhaps


def settled_counts(queries, gallery, paired, ks=None, block_size=None):
    """How many negatives are at least as close as each query's nearest positive: N integers, in the order of `queries`.

    Args:
        queries, gallery, paired: see `prepared`.
        ks: the counts are right as far as these ask for it, as lower or not; None: all of them are right.
        block_size: side of a block; None: what suits the device.
    """
    if block_size is None:
        block_size = BLOCK_SIDE.get(queries.rows.device.type, BLOCK_SIDE_DEFAULT)
    side = min(block_size, max(len(queries), len(gallery)))
    # A query without a positive has infinite bounds: all negatives are closer, which is a miss at every K allowed.
    lowest, highest = _nearest_positive(queries, gallery, side, paired)
    counts, perhaps_closer = _count_closer(queries, gallery, lowest, highest, side)
    undecided = counts != perhaps_closer if ks is None else torch.zeros_like(counts, dtype=torch.bool)
    for k in ks or ():
        undecided |= (counts < k) & (perhaps_closer >= k)
    which = undecided.nonzero().flatten()
    if len(which):
        open_pairs = (perhaps_closer - counts)[which].cpu()
        exact_gallery = ExactGallery(gallery.exact_rows, gallery.labels, merge=len(which) > CROWD * len(queries))
        own = which.cpu() if paired else torch.full_like(which, -1).cpu()
        counts[which] = exact_counts(
            exact_gallery, queries.exact_rows[which].cpu(), queries.labels[which].cpu(), own, gallery.origin.cpu(),
            highest[which].cpu(), open_pairs > CROWD * len(gallery)).to(counts.device)
    return counts


def prepared(embeddings, labels, gallery, gallery_labels, paired):
    """(queries, gallery, paired): both `_Embeddings`, in the order of their labels, and whether they are in one order,
    query i being item i of the gallery. They are one object where the embeddings search in each other."""
    if gallery is None:
        queries = _Embeddings(_scaled(embeddings)[0], labels.long())
        return queries, queries, True
    rows, others = _scaled(embeddings, gallery)
    searched = _Embeddings(others, gallery_labels.long())
    return _Embeddings(rows, labels.long(), searched.origin), searched, paired


def hits_at(ks, counts):
    """Recall@K for each of `ks`; counts: for each query the negatives at least as close as its nearest positive."""
    thresholds = torch.tensor(ks, dtype=torch.int64, device=counts.device)
    return [hits / len(counts) for hits in (counts.unsqueeze(1) < thresholds.unsqueeze(0)).sum(0).tolist()]


@torch.no_grad()
@full_precision
def recall(embeddings, labels, K=(1,), block_size=None, gallery=None, gallery_labels=None, paired=False):
    """Recall@K: the fraction of queries with at least one same-label item among their K nearest others (Euclidean).

    Without `gallery` every embedding is a query, and all others are its gallery; the query itself is excluded by index,
    so duplicate images do no harm. With it the embeddings are queries only, each searches all of the gallery, and
    nothing is excluded; `paired` says that row i of the gallery is query i itself, embedded by another network, and
    excludes that one. The numbers are those of `recall_by_definition`, in float64, whatever the precision of the
    embeddings (but for distances that only the last digit of float64 tells apart); the top of this file says how. On an
    accelerator matrix products must not be rounded to TF32, or the bounds of the rounding do not hold.

    Args:
        embeddings: N x d, floating point; half and bfloat16 are taken as float32.
        labels: N integers on the same device.
        K: list of integers, each in 1 .. N - 1, or 1 .. M with a gallery that is not paired. A long list costs no more
            than a short one.
        block_size: side of a block of distances. Default: what suits the device. Memory: two copies of the embeddings
            (a third one in step 3, of a network that has collapsed), about 8 bytes for each entry of a block, and about
            200 MB in step 3; never an N x N matrix.
        gallery, gallery_labels: M x d of the type of the embeddings, and M integers, both on the same device.
        paired: the gallery holds the queries' own items, in the same order: M = N, and the labels are equal.

    Returns:
        list of floats, one fraction per K, in the order of K.

    Corner cases: a negative at exactly the distance of the nearest positive counts as closer (ties go against the
    query), so a collapsed network, all embeddings equal, scores 0 and not 1. Exact duplicates in the gallery are
    exactly equally far from a query. A query without any positive is a miss. Embeddings of any finite size are ranked
    without overflow, and a large offset that they share costs no digits.

    Raises:
        TypeError: wrong types of tensors, or K is not a list of integers.
        ValueError: shapes or devices disagree, an embedding is not finite, a K is larger than the gallery or below 1.
    """
    if block_size is not None and block_size < 1:
        raise ValueError("block_size must be at least 1, got {}".format(block_size))
    check_searched(embeddings, labels, gallery, gallery_labels, paired)
    ks = checked_ks(K, embeddings, gallery, paired)
    if not ks:
        return []
    searched = prepared(embeddings, labels, gallery, gallery_labels, paired)
    return hits_at(ks, settled_counts(*searched, ks, block_size))
