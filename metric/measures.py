"""Measures of a retrieval: Recall@K, MAP@R, R-precision and MRR, together.

To understand them, read `measures_by_definition`; `measures` gives the same numbers faster: recall and MRR from
`metric.retrieval` (how many negatives are at least as close as the nearest positive), MAP@R and R-precision from
`metric.rnearest` (which ranks the positives have among the R nearest).
"""

import collections
import functools
import math

import torch

from metric.contracts import full_precision
from metric.rnearest import among_the_r_nearest, count_positives
from metric.retrieval import (check_searched, checked_ks, hits_at, prepared, rankings_by_definition,
                              recall_by_definition, settled_counts)

__all__ = ["MEASURES", "measures", "measures_by_definition", "queries_without_match", "ranks_of_first_positives"]


def map_at_r(ranking):
    r = sum(ranking)
    return sum(sum(ranking[:rank]) / rank for rank in range(1, r + 1) if ranking[rank - 1]) / r


def r_precision(ranking):
    r = sum(ranking)
    return sum(ranking[:r]) / r


def reciprocal_rank(ranking):
    return 1 / (1 + ranking.index(True))


class _Search:
    """What the measures of N queries are made of; each part is computed when it is first asked for."""

    def __init__(self, queries, gallery, paired):
        self._searched = queries, gallery, paired
        self.r = count_positives(queries.labels, gallery.labels, paired).cpu().double()

    @functools.cached_property
    def closer(self):
        """How many negatives are at least as close as the nearest positive."""
        return settled_counts(*self._searched)

    def closer_as_far_as(self, ks):
        return self.closer if "closer" in vars(self) else settled_counts(*self._searched, ks)

    @functools.cached_property
    def among_r(self):
        """How many of the R nearest are positives, and the sum of the precisions at these."""
        return among_the_r_nearest(*self._searched)


Mean = collections.namedtuple("Mean", "of_ranking of_search")
Mean.__doc__ = """A measure that is the mean of a value of each query that has a positive.

of_ranking: by its definition, from which of those that a query searches are positives, nearest first, a list of bool.
of_search: that of all queries at once, N numbers, from a `_Search`.
"""

MEANS = {
    "map@r": Mean(map_at_r, lambda search: search.among_r[1] / search.r),
    "r-precision": Mean(r_precision, lambda search: search.among_r[0] / search.r),
    "mrr": Mean(reciprocal_rank, lambda search: 1 / (1 + search.closer.cpu().double())),
}
MEASURES = ("recall",) + tuple(MEANS)


def measures_by_definition(embeddings, labels, names=MEASURES, K=(1,), gallery=None, gallery_labels=None, paired=False):
    """The measures by their definitions, for at most a few hundred embeddings. Arguments, result: see `measures`."""
    rankings = [ranking for ranking in rankings_by_definition(embeddings, labels, gallery, gallery_labels, paired)
                if any(ranking)]
    found = {name: sum(map(mean.of_ranking, rankings)) / len(rankings) if rankings else math.nan
             for name, mean in MEANS.items()}
    if "recall" in names:
        found["recall"] = dict(zip(K, recall_by_definition(embeddings, labels, K, gallery, gallery_labels, paired)))
    return {name: found[name] for name in names}


@torch.no_grad()
@full_precision
def measures(embeddings, labels, names=("recall",), K=(1,), gallery=None, gallery_labels=None, paired=False):
    """The measures in `names`, any of `MEASURES`, as {name: value}.

        recall         {K: share of the queries with a positive among their K nearest}
        r-precision    share of positives among the R nearest of a query
        map@r          1 / R times the sum of the precisions at the positives among the R nearest of a query, the
                       precision at rank k being the share of positives among the k nearest
        mrr            1 / rank of the nearest positive

    A positive is one of the query's label, and R is how many of them there are. The last three are means over the
    queries that have a positive. As for recall, distances are Euclidean, each query is excluded by index from what it
    searches unless there is a gallery of others, and at equal distances negatives come first: see
    `metric.retrieval.recall`. The numbers are those of `measures_by_definition`, in float64 (but for distances that
    only the last digit of float64 tells apart).

    Args:
        embeddings: N x d, floating point; half and bfloat16 are taken as float32.
        labels: N integers on the same device.
        names: any of `MEASURES`. map@r and r-precision are computed together, and so are recall and mrr.
        K: list of integers for recall; without it not looked at.
        gallery, gallery_labels, paired: as `recall` has them.

    Memory: two copies of the embeddings (a third one of a network that has collapsed) and, on a CPU, at most about
    500 MB; never an N x N matrix, however large the classes are.

    Corner cases: a query without a positive is a miss in recall and left out of the others (`queries_without_match`
    counts these); they are nan if no query is left. A network that has collapsed to one point has the lowest values
    that there are, not the highest. If all embeddings are of one label, all measures are 1.

    Raises:
        TypeError, ValueError: as `recall`; ValueError for a name that is not among `MEASURES`.

    Source: Musgrave, Belongie, Lim, A Metric Learning Reality Check, ECCV 2020 (MAP@R, R-precision).
    """
    for name in names:
        if name not in MEASURES:
            raise ValueError("unknown measure {!r}; there are {}".format(name, ", ".join(MEASURES)))
    check_searched(embeddings, labels, gallery, gallery_labels, paired)
    ks = checked_ks(K, embeddings, gallery, paired) if "recall" in names else []
    search = _Search(*prepared(embeddings, labels, gallery, gallery_labels, paired))
    found = {name: MEANS[name].of_search(search)[search.r > 0].mean().item() for name in names if name in MEANS}
    if "recall" in names:
        found["recall"] = dict(zip(ks, hits_at(ks, search.closer_as_far_as(ks))))
    return {name: found[name] for name in names}


def queries_without_match(labels, gallery_labels=None):
    """How many queries have nothing of their label to find: misses in recall, left out of the other measures.

    Args:
        labels: those of the queries, N integers. gallery_labels: those of the gallery; None (or paired, in `measures`):
            a query searches all others of the N.
    """
    paired = gallery_labels is None
    searched = (labels if paired else gallery_labels).long().sort()[0]
    return int((count_positives(labels.long(), searched, paired) == 0).sum())


@torch.no_grad()
@full_precision
def ranks_of_first_positives(embeddings, labels, gallery=None, gallery_labels=None):
    """The rank of the nearest positive of each query, N integers; 0 for a query without a positive.

    At equal distances negatives come first, so a query is a hit of Recall@K if its rank is from 1 to K. Arguments,
    memory and errors: see `measures`.
    """
    check_searched(embeddings, labels, gallery, gallery_labels, paired=False)
    searched = prepared(embeddings, labels, gallery, gallery_labels, paired=False)
    found = (settled_counts(*searched) + 1) * (count_positives(searched[0].labels, searched[1].labels, searched[2]) > 0)
    ranks = torch.empty_like(found)
    ranks[labels.long().sort(stable=True)[1]] = found  # they are in the order of their labels
    return ranks
