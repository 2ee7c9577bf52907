"""Which ranks the positives have among the R nearest of each query, R being how many positives it has.

MAP@R and R-precision follow from them: the j-th nearest positive has the rank c + j, c being how many negatives are
at least as close, and it is among the R nearest if that is at most R. As exact as `metric.retrieval.recall`, in two
steps:

1. `_nearest` takes, from matrix products, all that may be among the R nearest of some queries: what their rounding can
   have put there or have left out, too.
2. `_Searches.settle` compares them in float64: those that may have changed places with one of the other kind (positive,
   negative) get their distances from differences.

A query for which these would be very many waits until the others are done. Then equal embeddings are taken together and
products are in float64; if that leaves very many, too, distances are measured from an embedding nearby.
"""

import math

import torch

from metric.exact import CROWD, EXACT_DISTANCES, ExactGallery, exact, neighbourhoods

__all__ = ["among_the_r_nearest", "count_positives"]

# As many queries are taken at a time as have this many distances to the whole gallery.
DISTANCES = {"cpu": 2 ** 23}
DISTANCES_DEFAULT = 2 ** 26
# As many as have this many embeddings near them are compared at a time: 8 MiB for each of some 20 matrices.
COMPARED = 2 ** 20


def count_positives(labels, gallery_labels, paired):
    """R of each query: how many of the gallery, itself excluded if `paired`, have its label; gallery_labels: sorted."""
    first, end = (torch.searchsorted(gallery_labels, labels, right=right) for right in (False, True))
    return end - first - int(paired)


def among_the_r_nearest(queries, gallery, paired):
    """How many of the R nearest of each query are positives, and the sum of the precisions at these.

    Args:
        queries, gallery, paired: see `metric.retrieval.prepared`.

    Returns:
        two vectors of N numbers in float64, on the CPU, in the order of `queries`.
    """
    searches = _Searches(queries, gallery, paired)
    step = max(1, DISTANCES.get(queries.rows.device.type, DISTANCES_DEFAULT) // len(gallery))
    waiting = []
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        which = torch.arange(rows.start, rows.stop)
        k = searches.most_positives(which)
        if k > CROWD * len(gallery):  # so many distances lie too close together for the products
            waiting.append(which)
            continue
        near = _nearest(queries.upper_bounds(rows, gallery, slice(None)), queries.margin[rows].unsqueeze(1),
                        gallery.margin, k)
        waiting.append(searches.settle(which, near, CROWD))
    waiting = torch.cat(waiting)
    if len(waiting):
        searches.gallery = ExactGallery(gallery.exact_rows, gallery.labels, merge=True)
        origin = gallery.origin.cpu().double()
        waiting = searches.settle_from(waiting, origin, CROWD)
        for which, origin in neighbourhoods(searches.rows, waiting, searches.reach):
            searches.settle_from(which, origin, math.inf)
    return searches.hits, searches.precisions


def _nearest(upper, row_margin, column_margin, k):
    """Of each row of distances, Q x P, the C smallest: all that may be among the k smallest (or what is as small).

    Args:
        upper: upper bounds of the distances; overwritten. row_margin, column_margin: Q x 1 and P; a distance may be off
            by the sum of the two.

    Returns:
        lower bounds, smallest first, their columns, and by how much these distances may be off: each Q x C, on the CPU.
    """
    farthest = upper.topk(min(k, upper.shape[1]), largest=False, sorted=False)[0].max(1, keepdim=True)[0]
    lower = upper.sub_(column_margin, alpha=2).sub_(row_margin, alpha=2)
    count = int((lower <= farthest).sum(1).max())
    lower, column = lower.topk(count, largest=False)
    return lower.cpu().double(), column.cpu(), (column_margin[column] + row_margin).cpu().double()


def _overlapping(lower, upper, these, others):
    """Which of `these` bounds overlap one of the `others`; all Q x C, sorted by `lower`. None overlaps itself."""
    outside = lower.new_full((len(lower), 1), math.inf)
    before = torch.cat([-outside, upper.masked_fill(~others, -math.inf).cummax(1)[0][:, :-1]], 1)
    after = torch.cat([lower.masked_fill(~others, math.inf)[:, 1:], outside], 1).flip(1).cummin(1)[0].flip(1)
    return these & ((before >= lower) | (after <= upper))


class _Searches:
    """The queries, on the CPU, since not every accelerator has float64, and what is found of each.

    r: how many positives there are. hits: how many of them are among the r nearest. precisions: the sum of the
    precisions at these. reach: an upper bound of the squared distance to the nearest of those that had to wait.
    """

    def __init__(self, queries, gallery, paired):
        self.gallery = ExactGallery(gallery.exact_rows, gallery.labels, merge=False)
        self.rows, self.labels = queries.exact_rows.cpu(), queries.labels.cpu()
        self.own = torch.arange(len(queries)) if paired else None
        self.r = count_positives(self.labels, self.gallery.labels, paired).double()
        self.hits, self.precisions, self.reach = (torch.zeros_like(self.r) for _ in range(3))
        # 1/1 + ... + 1/n
        self.harmonic = torch.cat([self.r.new_zeros(1), (
            1 / torch.arange(1, len(gallery) + 1, dtype=torch.float64)).cumsum(0)])

    def most_positives(self, which):
        """How many of the nearest are needed of the queries `which`: as many as are positives, and a query itself."""
        return int(self.r[which].max()) + 1

    def settle_from(self, which, origin, crowd):
        """`settle` by distances from `origin`, in its precision."""
        waiting = []
        for batch in which.split(max(1, EXACT_DISTANCES // len(self.gallery.rows))):
            distance, row_margin, column_margin = self.gallery.distances(self.rows[batch], origin)
            near = _nearest(distance.add_(column_margin).add_(row_margin), row_margin, column_margin,
                            self.most_positives(batch))
            waiting.append(self.settle(batch, near, crowd))
        return torch.cat(waiting)

    def settle(self, which, near, crowd):
        """Fill in what is found of the queries `which`, and return those that wait.

        Args:
            near: see `_nearest`.
            crowd: a query waits if more than this share of its distances would have to be taken from differences.
        """
        step = max(1, COMPARED // near[0].shape[1])
        parts = (matrix.split(step) for matrix in near)
        return torch.cat([self._settle(*part, crowd) for part in zip(which.split(step), *parts)])

    def _settle(self, which, lower, point, margin, crowd):
        # How many positives and negatives lie at each point: 0 or 1, unless equal embeddings are taken together.
        positives = self.gallery.members(point, self.labels[which])
        negatives = self.gallery.population[point] - positives
        if self.own is not None:
            positives -= (point == self.gallery.point_of[self.own[which]].unsqueeze(1)).double()
        upper = lower + 2 * margin
        is_positive, is_negative = positives > 0, negatives > 0
        open_ = (_overlapping(lower, upper, is_positive, is_negative) |
                 _overlapping(lower, upper, is_negative, is_positive))
        waits = open_.sum(1).double() > crowd * len(self.gallery.points)
        self.reach[which] = upper.masked_fill_(~open_, math.inf).min(1)[0]
        query, column = (open_ & ~waits.unsqueeze(1)).nonzero().unbind(1)
        distance = lower.add_(margin)
        distance[query, column] = exact(self.rows, which[query], self.gallery.points, point[query, column])
        self._count(which, distance, positives, negatives)
        return which[waits]

    def _count(self, which, distance, positives, negatives):
        distance, order = distance.sort(1)
        positives = positives.gather(1, order)
        # Negatives that are at least as close, and positives that come before.
        last = torch.searchsorted(distance, distance, right=True).sub_(1)
        closer = negatives.gather(1, order).cumsum(1).gather(1, last)
        before = positives.cumsum(1) - positives
        # As many of the point's positives as are among the r nearest: the j-th positive has the rank closer + j.
        hits = torch.min(positives, (self.r[which].unsqueeze(1) - closer - before).clamp_(min=0))
        self.hits[which] = hits.sum(1)
        # The precision at the j-th positive is j / (closer + j) = 1 - closer / (closer + j).
        ranks = (closer + before).long()
        inverse = self.harmonic[ranks + hits.long()] - self.harmonic[ranks]  # 1 / (closer + j), summed over them
        self.precisions[which] = (hits - closer * inverse).sum(1)
