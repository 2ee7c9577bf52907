"""The measures of a ranking beside Recall@K: MAP@R, R-precision, MRR."""

import math

from metric.retrieval import rankings_by_definition, recall_by_definition

__all__ = ["MEASURES", "measures", "measures_by_definition", "queries_without_match"]

MEASURES = ("recall", "map@r", "r-precision", "mrr")


def measures_by_definition(embeddings, labels, names=MEASURES, K=(1,), gallery=None, gallery_labels=None, paired=False):
    """The measures by their definitions, for at most a few hundred embeddings. Arguments, result: see `measures`."""
    of_queries = {name: [] for name in MEASURES[1:]}
    for ranking in rankings_by_definition(embeddings, labels, gallery, gallery_labels, paired):
        r = sum(ranking)
        if not r:
            continue
        precisions = [sum(ranking[:rank]) / rank for rank in range(1, r + 1)]
        of_queries["map@r"].append(sum(p for p, same_label in zip(precisions, ranking) if same_label) / r)
        of_queries["r-precision"].append(precisions[-1])
        of_queries["mrr"].append(1 / (1 + ranking.index(True)))
    found = {name: sum(values) / len(values) if values else math.nan for name, values in of_queries.items()}
    if "recall" in names:
        found["recall"] = dict(zip(K, recall_by_definition(embeddings, labels, K, gallery, gallery_labels, paired)))
    return {name: found[name] for name in names}


def measures(embeddings, labels, names=("recall",), K=(1,), gallery=None, gallery_labels=None, paired=False):
    """{name: value} of the measures in `names`; see `MEASURES`. (The fast way is still to come.)"""
    return measures_by_definition(embeddings, labels, names, K, gallery, gallery_labels, paired)


def queries_without_match(labels, gallery_labels=None):
    """How many queries have nothing of their label to find: misses in recall, left out of the other measures.

    Args:
        labels: those of the queries, N integers. gallery_labels: those of the gallery; None: a query searches all
            others of the N, as in `measures` (and as in a paired gallery).
    """
    if gallery_labels is None:
        return int((labels.unique(return_counts=True)[1] == 1).sum())
    kinds, counts = labels.unique(return_counts=True)
    there = set(gallery_labels.tolist())
    return sum(count for kind, count in zip(kinds.tolist(), counts.tolist()) if kind not in there)
