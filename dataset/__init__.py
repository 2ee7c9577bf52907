"""Data sets: where pictures are and what class they are, and the loaders that make batches of them."""
from dataset.base import DatasetError, ImageSet, usable_cores
from dataset.birds import SyntheticBirdsMetric
from dataset.cache import BrokenPicturesError, load_resized, open_pictures
from dataset.cub200 import CUB2011Metric
from dataset.folder import FolderMetric
from dataset.loader import LOADING_PATIENCE, EvaluationLoader, TrainLoader, default_workers, resized_size

__all__ = ["DATASETS", "DatasetError", "BrokenPicturesError", "ImageSet", "CUB2011Metric", "FolderMetric",
           "SyntheticBirdsMetric", "LOADING_PATIENCE", "EvaluationLoader", "TrainLoader", "default_workers",
           "load_resized", "resized_size", "open_pictures", "load_splits", "usable_cores"]

# The command line's name of each data set: class(root, train), an ImageSet with ``summary`` and ``can_download``.
DATASETS = {"cub200": CUB2011Metric, "folder": FolderMetric, "synthetic": SyntheticBirdsMetric}


def load_splits(name, root, download=False):
    """Return (training set, test set) of the data set called ``name`` on the command line (see ``DATASETS``).

    Args:
        download: fetch the pictures if they are not there; ignored by data sets that can't be downloaded.

    Raises:
        DatasetError: the pictures are missing or incomplete; the download fails.
    """
    data_set = DATASETS[name]
    options = {"download": True} if download and data_set.can_download else {}
    return data_set(root, train=True, **options), data_set(root, train=False)
