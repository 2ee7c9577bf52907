"""What a set of embeddings finds: nearest neighbours, misses, confused classes, recall by class. Numbers only.

``embedded`` is everywhere an object with ``embeddings`` (N x d), ``labels`` (N) on the same device, ``images`` (an
``ImageSet`` of these N) and ``gallery`` (another such object that these search in; None: each searches all others).
"""
import collections

import torch

import metric.nearest
from metric.measures import ranks_of_first_positives

PAIRS = 1024  # whose distances are taken at a time
SPARE = 8  # neighbours beyond k, some of which may be as near as the k-th and of another class

Neighbours = collections.namedtuple("Neighbours", "indices distances right")
Neighbours.__doc__ = """The k nearest of Q queries, nearest first, each Q x k on the CPU: their indices in the gallery,
their Euclidean distances, and whether they are of the query's class. At equal distances those of other classes come
first, as recall counts them."""

Confusion = collections.namedtuple("Confusion", "labels count total query neighbour distance")
Confusion.__doc__ = """How many (count) of the queries of two labels (there are total) have a nearest neighbour of the
other label; and of these the nearest pair: the index of the query, that of its neighbour in the gallery, and their
distance."""


def nearest(embedded, k, which=None):
    """Return the ``Neighbours`` of the queries ``which`` (indices; None: all). There may be fewer than k others."""
    gallery, alone = embedded.gallery or embedded, embedded.gallery is None
    which = torch.arange(len(embedded.labels)) if which is None else torch.as_tensor(which)
    size = len(gallery.labels) - alone
    distances, rows = metric.nearest.nearest(embedded.embeddings[which], gallery.embeddings, min(k + SPARE, size),
                                             own=which if alone else None)
    right = gallery.labels.cpu()[rows] == embedded.labels.cpu()[which].unsqueeze(1)
    found = [rows, distances, right.to(torch.uint8)]
    for key in (2, 1):  # by distance; at equal ones, other classes first
        order = found[key].sort(dim=1, stable=True)[1]
        found = [part.gather(1, order) for part in found]
    rows, distances, right = (part[:, :min(k, size)] for part in found)
    return Neighbours(rows, distances, right.bool())


def first_right(embedded):
    """Return the rank of the nearest right picture of each query, N integers on the CPU; 0 where there is none."""
    gallery = embedded.gallery or embedded
    return ranks_of_first_positives(embedded.embeddings, embedded.labels, *(
        () if embedded.gallery is None else (gallery.embeddings, gallery.labels))).cpu()


def worst(ranks, labels, count):
    """Return the queries whose nearest right picture comes last, the worst first, of different classes if possible."""
    order = ranks.sort(descending=True, stable=True)[1]
    return of_different_classes(order[ranks[order] > 1], labels, count)


def best(found, labels, count):
    """Return the queries with the most right pictures among their neighbours, and of those the ones with the nearest,
    of different classes if possible."""
    order = found.distances.mean(1).sort(stable=True)[1]
    order = order[found.right.sum(1)[order].sort(descending=True, stable=True)[1]]
    return of_different_classes(order[found.right[order, 0]], labels, count)


def drawn(labels, count, seed):
    """Return ``count`` queries that ``seed`` draws, of different classes if possible."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return of_different_classes(order, labels, count)


def of_different_classes(order, labels, count):
    """Return the first ``count`` of these indices, in their order, that are of different classes; where there are too
    few classes, the first of the others, too."""
    seen, first, others = set(), [], []
    for index, label in zip(order.tolist(), labels[order].tolist()):
        (others if label in seen else first).append(index)
        seen.add(label)
    return (first + others)[:count]


def confusions(embedded, found, count):
    """Return the ``Confusion``s of the ``count`` pairs of classes that are confused most often, in whatever direction,
    by the nearest neighbour of each query.

    Args:
        found: the ``Neighbours`` of all queries.
    """
    labels = embedded.labels.cpu()
    theirs = (embedded.gallery or embedded).labels.cpu()[found.indices[:, 0]]
    wrong = (~found.right[:, 0]).nonzero().flatten()
    wrong = wrong[found.distances[wrong, 0].sort(stable=True)[1]]  # nearest first
    pairs = [tuple(sorted(pair)) for pair in zip(labels[wrong].tolist(), theirs[wrong].tolist())]
    nearest_of = dict(reversed(list(zip(pairs, wrong.tolist()))))
    totals, confused = collections.Counter(labels.tolist()), []
    for pair, times in collections.Counter(pairs).most_common(count):
        query = nearest_of[pair]
        shown = (int(labels[query]), int(theirs[query]))  # the query's own class first, as the pictures
        confused.append(Confusion(shown, times, sum(totals[label] for label in pair), query,
                                  int(found.indices[query, 0]), float(found.distances[query, 0])))
    return confused


def recall_by_class(ranks, labels, k=1):
    """Return [(label, queries that have a right picture among the k nearest, queries)], the worst class first."""
    hits = collections.Counter(labels[(ranks > 0) & (ranks <= k)].tolist())
    totals = collections.Counter(labels.tolist())
    rows = [(label, hits[label], total) for label, total in totals.items()]
    return sorted(rows, key=lambda row: (row[1] / row[2], -row[2], row[0]))


@torch.no_grad()
def sampled_distances(embedded, count, seed):
    """Return the distances of about ``count`` pairs of one class, and of as many of different ones, drawn by ``seed``:
    two vectors on the CPU, empty where there are no such pairs."""
    draw = torch.Generator().manual_seed(seed)
    gallery = embedded.gallery or embedded
    labels, theirs = embedded.labels.cpu(), gallery.labels.cpu()
    order = theirs.sort(stable=True)[1]
    begins, ends = (torch.searchsorted(theirs[order], labels, right=right) for right in (False, True))
    query = torch.randint(len(labels), (2, count), generator=draw)
    sizes = (ends - begins)[query[0]]
    same = order[(begins[query[0]] + (torch.rand(count, generator=draw) * sizes).long()).clamp_(max=len(order) - 1)]
    other = torch.randint(len(theirs), (count,), generator=draw)
    distances = []
    for rows, columns, wanted in ((query[0], same, True), (query[1], other, False)):
        keep = (labels[rows] == theirs[columns]) == wanted
        if embedded.gallery is None:
            keep &= rows != columns
        rows, columns = (side[keep].to(embedded.embeddings.device) for side in (rows, columns))
        parts = [(embedded.embeddings[a] - gallery.embeddings[b]).norm(dim=1).cpu()
                 for a, b in zip(rows.split(PAIRS), columns.split(PAIRS))]
        distances.append(torch.cat(parts))
    return distances
