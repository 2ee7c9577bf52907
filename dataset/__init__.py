"""Data sets: where pictures are and what class they are, and the loaders that make batches of them."""
import os

from dataset.base import DatasetError, ImageSet, NoTrainingSet, is_picture, passed_over, shown, usable_cores
from dataset.birds import SyntheticBirdsMetric
from dataset.cache import open_pictures
from dataset.cars196 import Cars196Metric
from dataset.crops import CROPS, FixedCrops, RandomCrops
from dataset.cub200 import CUB2011Metric
from dataset.decoding import RESIZES, BrokenPicturesError, load_resized
from dataset.folder import FolderMetric
from dataset.inshop import InShopMetric
from dataset.loader import EvaluationLoader, TrainLoader, default_workers, resized_size
from dataset.picturelist import ListMetric
from dataset.pictures import TRUNCATED
from dataset.sop import StanfordOnlineProductsMetric
from dataset.unlabelled import UnlabelledPictures, shared_files
from dataset.workers import STOP_SIGNALS, LoadingError, end_loading, workers_that_fit

__all__ = ["CROPS", "DATASETS", "RESIZES", "TRUNCATED", "DatasetError", "BrokenPicturesError", "FixedCrops", "ImageSet",
           "CUB2011Metric", "Cars196Metric", "StanfordOnlineProductsMetric", "InShopMetric", "FolderMetric",
           "ListMetric", "RandomCrops", "SyntheticBirdsMetric", "UnlabelledPictures", "STOP_SIGNALS", "LoadingError",
           "EvaluationLoader", "TrainLoader", "default_workers", "end_loading", "load_resized", "resized_size",
           "open_pictures", "load_all", "load_splits", "passed_over", "shared_files", "shown", "usable_cores",
           "workers_that_fit"]

# The command line's name of each data set: class(root, train), an ImageSet with ``summary`` and ``can_download``.
DATASETS = {"cub200": CUB2011Metric, "cars196": Cars196Metric, "stanford": StanfordOnlineProductsMetric,
            "inshop": InShopMetric, "folder": FolderMetric, "list": ListMetric, "synthetic": SyntheticBirdsMetric}


def load_splits(name, root, download=False, test_alone=False, unlabelled=None):
    """Return {"train": training set, "test": test set} of the data set called ``name`` on the command line; and, if its
    test pictures are queries that search in others, "gallery": these others.

    Args:
        name: see ``DATASETS``.
        download: fetch the pictures if they are not there; ignored by data sets that can't be downloaded.
        test_alone: where there is no training set, return the test set alone.
        unlabelled: a folder of pictures, which are the training set instead of that of the data set; None for none.

    Raises:
        DatasetError: the pictures are missing or incomplete; the download fails; ``root`` is a file.
    """
    data_set = DATASETS[name]
    if os.path.isfile(root) and not data_set.is_a_list:
        raise DatasetError("{}: this is a file, and --dataset {} takes a directory; for a list of pictures give "
                           "--dataset list".format(shown(root), name))
    options = {"download": True} if download and data_set.can_download else {}
    splits = {}
    if unlabelled is None:
        try:
            splits["train"] = data_set(root, train=True, **options)
        except NoTrainingSet:
            if not test_alone:
                raise
        splits["test"] = data_set(root, train=False)
    else:
        splits = {"train": UnlabelledPictures(unlabelled), "test": data_set(root, train=False, **options)}
    if splits["test"].gallery is not None:
        splits["gallery"] = splits["test"].gallery
    return splits


def load_all(name, root, download=False):
    """Return {split: ``ImageSet``} of all pictures of a data set, as ``load_splits`` does; of a folder that is none,
    {"all": every picture in it and below it, without labels}.

    Such a folder holds pictures itself, or no class folders that ``load_splits`` can take.

    Raises:
        DatasetError: as ``load_splits``; no picture there.
    """
    if name != "folder" or not os.path.isdir(root):
        return load_splits(name, root, download, test_alone=True)
    why = "it holds pictures itself"
    if not any(is_picture(entry.name) and entry.is_file() for entry in os.scandir(root)):
        try:
            return load_splits(name, root, test_alone=True)
        except DatasetError as error:
            why = str(error)
    images = UnlabelledPictures(root)
    images.layout = "{}: all pictures in it and below it, without labels ({})".format(root, why)
    return {"all": images}
