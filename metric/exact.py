"""Step 3 of `metric.retrieval`: how many negatives are at least as close as a query's nearest positive, in float64."""

import math

import torch

__all__ = ["CROWD", "ExactGallery", "exact_counts"]

# As many queries are taken at a time as have this many distances to the whole gallery: 32 MiB in float64.
EXACT_DISTANCES = 2 ** 22
# The differences of this many numbers (pairs times dimensions) are taken at a time: 1 MiB in float64.
EXACT_ENTRIES = 2 ** 17
# Points of the gallery in one matrix product.
POINTS = 2048
# A query is called crowded if steps 1 and 2 leave open more than this share of its pairs.
CROWD = 1 / 32


class ExactGallery:
    """What queries search in: embeddings in the order of their labels, and points at which one or more equal ones lie.

    On the CPU, since not every accelerator has float64.

    Args:
        rows: M x d. labels: M, sorted. merge: look for equal rows; otherwise each row is a point of its own.
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
            # None are equal, or two that differ have one hash.
            if len(self.points) == len(rows) or not torch.equal(self.points[self.point_of], self.rows):
                self.points, self.point_of = self.rows, torch.arange(len(rows))
        self.population = self.point_of.bincount().double()

    def members(self, points, labels):
        """How many embeddings of the labels (Q) lie at the points (Q x C, indices): Q x C, in float64."""
        if self.points is self.rows:
            return (self.labels[points] == labels.unsqueeze(1)).double()
        # Each pair of a label and a point is one number; those that there are, and how many embeddings each has.
        kinds, kind = self.labels.unique_consecutive(return_inverse=True)
        pairs, counts = (kind * len(self.points) + self.point_of).unique(return_counts=True)
        kind = torch.searchsorted(kinds, labels).clamp_(max=len(kinds) - 1)
        kind[kinds[kind] != labels] = -1  # no such label
        wanted = kind.unsqueeze(1) * len(self.points) + points
        place = torch.searchsorted(pairs, wanted).clamp_(max=len(pairs) - 1)
        return counts[place].double().masked_fill_(pairs[place] != wanted, 0)

    def distances(self, rows, origin):
        """Squared distances of Q queries to all P points, by matrix products in the precision of `origin`.

        Args:
            rows: the queries, Q x d. origin: d numbers, taken off all rows before.

        Returns:
            the distances, Q x P in float64, and two parts, Q x 1 and P, of what each may be off. They are twice those
            in `metric.retrieval`, since distances that are compared to these, from `exact`, are rounded, too.
        """
        number, terms = torch.finfo(origin.dtype), 2 * (len(origin) + 16)
        rows = rows.to(origin.dtype) - origin
        squares = rows.pow(2).sum(1, keepdim=True)
        distance = torch.empty(len(rows), len(self.points), dtype=torch.float64)
        margin = torch.empty(len(self.points), dtype=torch.float64)
        for start in range(0, len(self.points), POINTS):
            columns = slice(start, start + POINTS)
            points = self.points[columns].to(origin.dtype) - origin
            lengths = points.pow(2).sum(1)
            distance[:, columns] = torch.addmm(lengths, rows, points.t(), alpha=-2).add_(squares)
            margin[columns] = (lengths * number.eps + number.tiny) * terms
        return distance, (squares.double() * number.eps + number.tiny) * terms, margin


def exact(rows, queries, others, points):
    """Squared distances of pairs, rows[queries] to others[points], from differences in float64. Equal rows are exactly
    as far from any other."""
    distance = torch.empty(len(queries), dtype=torch.float64)
    step = max(1, EXACT_ENTRIES // rows.shape[1])
    for start in range(0, len(queries), step):
        pairs = slice(start, start + step)
        difference = rows[queries[pairs]].double().sub_(others[points[pairs]])
        distance[pairs] = difference.pow_(2).sum(1)
    return distance


def exact_counts(gallery, rows, labels, own, origin, highest, crowded):
    """For Q queries: how many negatives are at least as close as the nearest positive, decided in float64.

    Args:
        gallery: an `ExactGallery` in which each query has a positive.
        rows, labels: the queries, Q x d and Q, on the CPU.
        own: Q, where each query itself is in the gallery; -1 where it isn't.
        origin: d numbers amid the embeddings.
        highest: for each query an upper bound of the squared distance to its nearest positive.
        crowded: for each query whether many others are at about that distance. Then it pays to measure distances in
            float64, from a query nearby: one that is hardly farther away than the nearest positive.
    """
    counts = torch.empty(len(rows), dtype=torch.int64)

    def settle(which, origin):
        step = max(1, EXACT_DISTANCES // len(gallery.rows))
        for start in range(0, len(which), step):
            batch = which[start:start + step]
            counts[batch] = _counts_from(gallery, rows[batch], labels[batch], own[batch], origin)

    settle((~crowded).nonzero().flatten(), origin)
    for which, centre in neighbourhoods(rows, crowded.nonzero().flatten(), highest):
        settle(which, centre)
    return counts


def neighbourhoods(rows, waiting, reach):
    """Yield the queries `waiting` (indices) in groups, each with an origin: a query, in float64, that is hardly farther
    from each of the group than the squared distance `reach`, of which there is one for each query."""
    while len(waiting):
        centre = waiting[0]
        offset = exact(rows, waiting, rows, centre.expand(len(waiting)))
        near = offset <= 4 * reach[waiting]
        near[0] = True  # so that this ends even where a device's products are coarser than we think
        yield waiting[near], rows[centre].double()
        waiting = waiting[~near]


def _counts_from(gallery, rows, labels, own, origin):
    """`exact_counts` of a few queries, distances being measured from `origin` and in its precision."""
    distance, query_margin, point_margin = gallery.distances(rows, origin)

    def make_exact(which):
        query, point = which.nonzero().unbind(1)
        distance[query, point] = exact(rows, query, gallery.points, point)

    # Column j: the j-th embedding with the query's label, itself included. Smaller classes end before the last column.
    first, end = (torch.searchsorted(gallery.labels, labels, right=right).unsqueeze(1) for right in (False, True))
    index = first + torch.arange(int((end - first).max()))
    same_label = index < end
    positive = same_label & (index != own.unsqueeze(1))
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
