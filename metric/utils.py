"""pdist and recall under the reference's import path."""

from metric.distances import pdist
from metric.retrieval import recall

__all__ = ["pdist", "recall"]
