"""Data sets: where pictures are and what class they are, and the loaders that make batches of them."""
from dataset.base import DatasetError, ImageSet, usable_cores
from dataset.cache import BrokenPicturesError, load_resized, open_pictures
from dataset.cub200 import CUB2011Metric
from dataset.download import fetch_file
from dataset.folder import FolderMetric, SyntheticBirdsMetric
from dataset.files import locked
from dataset.loader import EvaluationLoader, TrainLoader, default_workers, resized_size

__all__ = ["DATASETS", "DatasetError", "BrokenPicturesError", "ImageSet", "CUB2011Metric", "FolderMetric",
           "SyntheticBirdsMetric", "EvaluationLoader", "TrainLoader", "default_workers", "load_resized", "resized_size",
           "open_pictures", "load_splits", "fetch_file", "locked", "usable_cores"]

DATASETS = {"cub200": CUB2011Metric, "folder": FolderMetric, "synthetic": SyntheticBirdsMetric}


def load_splits(name, root, download=False):
    """Return (training set, test set) of the data set called ``name`` on the command line (see ``DATASETS``).

    Raises:
        DatasetError: the pictures are missing or incomplete.
    """
    options = {"download": True} if download else {}
    train = DATASETS[name](root, train=True, **options)
    return train, DATASETS[name](root, train=False)
