"""pdist and recall under the reference's import path, and the other measures."""

from metric.distances import pdist
from metric.measures import MEASURES, measures, queries_without_match
from metric.retrieval import recall

__all__ = ["pdist", "recall", "MEASURES", "measures", "queries_without_match"]
