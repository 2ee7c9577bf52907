"""Recall@K: its definition, and a way to the same numbers that is fast enough for 60,000 embeddings.

To understand the measure, read `recall_by_definition`; `recall` gives the same numbers faster, without sorting: a query
is a hit at K when fewer than K negatives are at least as close as its nearest positive. So distances are only compared
and counted, in three steps:

1. `_nearest_positive`: the distance of each query to its nearest positive.
2. `_count_closer`: how many negatives are at least as close. Distances are computed in square blocks that fit the
   cache, and each block is used twice: for its rows and, transposed, for its columns.
3. `_exact_counts`: distances are rounded, so steps 1 and 2 work with a lower and an upper bound of each. The queries
   for which the bounds leave a hit open are counted again, and pairs that the bounds leave open get their distances
   from differences in float64. These are few, unless the network has collapsed to a few points: then most distances
   are equal, or equal but for the rounding. So, where many are open, equal embeddings are taken together, and bounds
   are in float64 and of distances that are measured from an embedding nearby, which leaves almost no pair open.
"""

import math
import operator

import torch

from metric.contracts import check_embeddings, check_labels, full_precision

__all__ = ["recall", "recall_by_definition"]

# Side of a block. On a CPU its distances and the mask beside them then take 32 MiB, which fit the last-level cache.
BLOCK_SIDE = {"cpu": 2048}
BLOCK_SIDE_DEFAULT = 8192
# Step 3 takes as many queries at a time as have this many distances to all others: 32 MiB in float64.
EXACT_DISTANCES = 2 ** 22
# It takes the differences of this many numbers (pairs times dimensions) at a time: 1 MiB in float64.
EXACT_ENTRIES = 2 ** 17
# It calls a query crowded if steps 1 and 2 leave open more than this share of its pairs.
CROWD = 1 / 32


def recall_by_definition(embeddings, labels, K=(1,)):
    """Recall@K by its definition, for at most a few hundred embeddings. Arguments and result are those of `recall`."""
    rows, labels = _scaled(embeddings.double()).tolist(), labels.tolist()
    hits = [0] * len(K)
    for query in range(len(rows)):
        others = [index for index in range(len(rows)) if index != query]
        # Nearest first; of equally near ones, those of another label first. Squared distances, since equal ones stay
        # equal (math.dist of Python 3.8 and 3.9 rounds them apart).
        ranking = sorted((math.fsum(gap * gap for gap in map(operator.sub, rows[query], rows[index])),
                          labels[index] == labels[query]) for index in others)
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

    Bounds, because distances come from matrix products, which are fast but rounded.

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
        self.origin = self.exact_rows[offset.pow_(2).sum(1).argmin()]
        self.rows = torch.sub(self.exact_rows, self.origin, out=offset)
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


class _ExactGallery:
    """The gallery of step 3: labels in order, and points at which one or more equal embeddings lie.

    On the CPU, since not every accelerator has float64.

    Args:
        rows: N x d. labels: N, sorted. merge: look for equal rows; otherwise each row is a point of its own.
    """

    def __init__(self, rows, labels, merge):
        self.rows, self.labels = rows.cpu(), labels.cpu()
        self.points, self.point_of = self.rows, torch.arange(len(rows))
        if merge:
            # By their 64-bit hashes. -0.0 + 0.0 is 0.0, which it equals.
            content = [hash((row + 0.0).tobytes()) for row in self.rows.numpy()]
            self.point_of = torch.tensor(content).unique(return_inverse=True)[1]
            row_at = torch.empty(int(self.point_of.max()) + 1, dtype=torch.int64)
            row_at[self.point_of] = torch.arange(len(rows))
            self.points = self.rows[row_at]
            if not torch.equal(self.points[self.point_of], self.rows):  # two rows with one hash
                self.points, self.point_of = self.rows, torch.arange(len(rows))
        self.population = self.point_of.bincount().double()

    def exact(self, queries, points):
        """Squared distances of pairs, from differences in float64. Equal rows are exactly as far from any point."""
        distance = torch.empty(len(queries), dtype=torch.float64)
        step = max(1, EXACT_ENTRIES // self.rows.shape[1])
        for start in range(0, len(queries), step):
            pairs = slice(start, start + step)
            difference = self.rows[queries[pairs]].double().sub_(self.points[points[pairs]])
            distance[pairs] = difference.pow_(2).sum(1)
        return distance

    def distances(self, queries, origin):
        """Squared distances of Q queries to all M points, by matrix products in the precision of `origin`.

        Args:
            queries: their indices. origin: d numbers, taken off all rows before.

        Returns:
            the distances, Q x M in float64, and two parts, Q x 1 and M, of what each may be off. They are twice those
            in `_Gallery`, since distances that are compared to these, from `exact`, are rounded, too.
        """
        number, terms = torch.finfo(origin.dtype), 2 * (len(origin) + 16)
        rows = self.rows[queries].to(origin.dtype) - origin
        squares = rows.pow(2).sum(1, keepdim=True)
        distance = torch.empty(len(rows), len(self.points), dtype=torch.float64)
        margin = torch.empty(len(self.points), dtype=torch.float64)
        for start in range(0, len(self.points), BLOCK_SIDE["cpu"]):
            columns = slice(start, start + BLOCK_SIDE["cpu"])
            points = self.points[columns].to(origin.dtype) - origin
            lengths = points.pow(2).sum(1)
            distance[:, columns] = torch.addmm(lengths, rows, points.t(), alpha=-2).add_(squares)
            margin[columns] = (lengths * number.eps + number.tiny) * terms
        return distance, (squares.double() * number.eps + number.tiny) * terms, margin


def _exact_counts(gallery, queries, origin, highest, crowded):
    """For some queries: how many negatives are at least as close as the nearest positive, decided in float64.

    Args:
        gallery: an `_ExactGallery`. queries: Q indices. origin: d numbers amid the embeddings.
        highest: for each query an upper bound of the squared distance to its nearest positive.
        crowded: for each query whether many others are at about that distance. Then it pays to measure distances in
            float64, from a query nearby: one that is hardly farther away than the nearest positive.
    """
    counts = torch.empty_like(queries)

    def settle(which, origin):
        step = max(1, EXACT_DISTANCES // len(gallery.rows))
        for start in range(0, len(which), step):
            batch = which[start:start + step]
            counts[batch] = _counts_from(gallery, queries[batch], origin)

    settle((~crowded).nonzero().flatten(), origin)
    waiting = crowded.nonzero().flatten()
    while len(waiting):
        centre = queries[waiting[0]]
        offset = gallery.exact(queries[waiting], gallery.point_of[centre].expand(len(waiting)))
        near = offset <= 4 * highest[waiting]
        near[0] = True  # so that this ends even where a device's products are coarser than we think
        settle(waiting[near], gallery.rows[centre].double())
        waiting = waiting[~near]
    return counts


def _counts_from(gallery, queries, origin):
    """`_exact_counts` of a few queries, distances being measured from `origin` and in its precision."""
    distance, query_margin, point_margin = gallery.distances(queries, origin)

    def make_exact(which):
        query, point = which.nonzero().unbind(1)
        distance[query, point] = gallery.exact(queries[query], point)

    # Column j: the j-th embedding with the query's label, itself included. Smaller classes end before the last column.
    own = gallery.labels[queries]
    first, end = (torch.searchsorted(gallery.labels, own, right=right).unsqueeze(1) for right in (False, True))
    index = first + torch.arange(int((end - first).max()))
    same_label = index < end
    positive = same_label & (index != queries.unsqueeze(1))
    points = gallery.point_of[index.clamp_(max=len(gallery.rows) - 1)]

    def to_positives(sign):
        bound = distance.gather(1, points) + sign * (point_margin[points] + query_margin)
        return bound.masked_fill_(~positive, math.inf)

    # The nearest positive is among those whose lower bound is not above the lowest upper bound.
    query, column = (to_positives(-1) <= to_positives(1).min(1, keepdim=True)[0]).nonzero().unbind(1)
    candidates = torch.zeros_like(distance, dtype=torch.bool)
    candidates[query, points[query, column]] = True
    make_exact(candidates)
    nearest = to_positives(0).min(1, keepdim=True)[0]

    make_exact((distance - nearest).abs_().sub_(point_margin) <= query_margin)
    closer = distance <= nearest
    return (closer.double().mv(gallery.population) - (closer.gather(1, points) & same_label).sum(1)).long()


@torch.no_grad()
@full_precision
def recall(embeddings, labels, K=(1,), block_size=None):
    """Recall@K: the fraction of queries with at least one same-label item among their K nearest others (Euclidean).

    Every embedding is a query, and all others are its gallery; the query itself is excluded by index, so duplicate
    images do no harm. The numbers are those of `recall_by_definition`, in float64, whatever the precision of the
    embeddings (but for distances that only the last digit of float64 tells apart); the top of this file says how. On an
    accelerator matrix products must not be rounded to TF32, or the bounds of the rounding do not hold.

    Args:
        embeddings: N x d, floating point; half and bfloat16 are taken as float32.
        labels: N integers on the same device.
        K: list of integers, each in 1 .. N - 1. A long list costs no more than a short one.
        block_size: side of a block of distances. Default: what suits the device. Memory: two copies of the embeddings
            (a third one in step 3, of a network that has collapsed), about 8 bytes for each entry of a block, and about
            200 MB in step 3; never an N x N matrix.

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
    queries = undecided.nonzero().flatten()
    if len(queries):
        crowded = (perhaps_closer - surely_closer)[queries].cpu() > CROWD * n
        exact_gallery = _ExactGallery(gallery.exact_rows, gallery.labels, merge=len(queries) > CROWD * n)
        counts[queries] = _exact_counts(exact_gallery, queries.cpu(), gallery.origin.cpu(), highest[queries].cpu(),
                                        crowded).to(counts.device)
    thresholds = torch.tensor(ks, dtype=torch.int64, device=counts.device)
    hits = (counts.unsqueeze(1) < thresholds.unsqueeze(0)).sum(0)
    return [hit / n for hit in hits.tolist()]
