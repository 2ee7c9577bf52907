"""Batches of uint8 pictures: resize, crop and flip here; scaling and normalisation belong to the networks.

A batch depends only on the seed, the epoch and its number in the epoch. The number of worker processes changes only the
speed. Which crop a row shows is drawn in ``crops.py``.
"""
import functools

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import DatasetError, usable_cores
from dataset.crops import CentreCrops, RandomCrops, cut
from dataset.decoding import DecodedPictures
from dataset.workers import (LoadingError, batches_of, in_shared_memory, leave_signals_to_the_main_process,
                             processes_here)

__all__ = ["TrainLoader", "EvaluationLoader", "resized_size", "default_workers"]

# Last part of the seed of a batch's crops, so that they don't depend on what the batch sampler draws.
CROP_STREAM = 1


def resized_size(image_size):
    """Return the side that pictures are resized to before a crop of ``image_size``: 8/7 of it (256 for 224)."""
    return int(round(image_size * 8 / 7))


def default_workers():
    """Return a number of loading processes that suits this machine: one per core, less one for training, at most 8.

    The ranks of one machine divide its cores among them.
    """
    return max(1, min(8, usable_cores() // processes_here() - 1))


class _Batches(Dataset):
    """Turns a key (picture indices, seed of the crops or None, span) into (pictures B x 3 x S x S uint8, labels B) of
    the indices in the span (start, stop); if the crops have a table, with the numbers of each, B x d, as a third part.

    Pictures are channels last in memory, as they were decoded and as the networks take them.

    Args:
        crops: what draws them, see ``crops.py``.
    """

    def __init__(self, samples, image_size, pictures, crops):
        side = resized_size(image_size)
        self.pictures = DecodedPictures([path for path, _ in samples], side) if pictures is None else pictures
        self.labels = np.array([label for _, label in samples], dtype=np.int64)
        self.image_size = image_size
        self.side = side
        self.crops = crops

    def __getitem__(self, key):
        indices, seed, span = key
        crops = self.crops(indices, seed, span, self.side, self.image_size)
        indices = list(indices[slice(*span)])
        try:
            parts = [self._cut(indices, crops), torch.from_numpy(self.labels[indices])]
            if self.crops.table is not None:
                parts.append(torch.from_numpy(self.crops.table.rows([crop.view for crop in crops], indices)))
            images, *others = in_shared_memory(parts)
        except (DatasetError, LoadingError) as error:
            return error  # a worker's exception would reach the main process as a traceback; _checked raises it
        return (images.permute(0, 3, 1, 2), *others)

    def _cut(self, indices, crops):
        images = torch.empty(len(indices), self.image_size, self.image_size, 3, dtype=torch.uint8)
        before = None
        for row, index, crop in zip(images, indices, crops):
            if index != before:  # the rows of one picture follow one another
                picture, before = self.pictures[index], index
            cut(picture, crop, row)
        return images


class _Keys:
    """The DataLoader's sampler: yields the key ``draw(number)`` of each batch from ``first`` up to ``count``."""

    def __init__(self, count, draw=None):
        self.count = count
        self.draw = draw
        self.first = 0

    def __iter__(self):
        return map(self.draw, range(self.first, self.count))

    def __len__(self):
        return self.count - self.first


def _data_loader(batches, keys, workers, pin_memory, keep_workers):
    # A generator of its own: a DataLoader draws a number each time it starts, and from torch's global generator that
    # would change what the rest of the run draws.
    return DataLoader(batches, sampler=keys, batch_size=None, num_workers=workers, pin_memory=pin_memory,
                      persistent_workers=keep_workers and workers > 0, generator=torch.Generator(),
                      worker_init_fn=leave_signals_to_the_main_process)


# Plain functions, not methods: a method would make a reference cycle, and the workers would not end with the loader.
def _training_key(batch_sampler, views, seed, span, epoch, batch):
    rows = [index for index in batch_sampler.draw(epoch, batch) for _ in range(views)]
    return rows, (seed, epoch, batch, CROP_STREAM), span


def _evaluation_key(span, batch_size, batch):
    first = span[0] + batch * batch_size
    indices = range(first, min(first + batch_size, span[1]))
    return indices, None, (0, len(indices))


def _checked(loader, while_waiting):
    for batch in batches_of(loader, while_waiting):
        if isinstance(batch, Exception):
            raise batch
        yield batch


class TrainLoader:
    """Training batches, epoch by epoch: random crops, mirrored with probability 0.5.

    Args:
        dataset: an ``ImageSet``.
        batch_sampler: ``draw(epoch, number)`` gives the picture indices of a batch; its length: batches per epoch.
        image_size: side of the crop.
        seed: of crops and flips.
        workers: number of loading processes; 0 loads in this one.
        pin_memory: put batches into page-locked memory, for a faster copy to an accelerator.
        pictures: the resized pictures of ``dataset``, from ``open_pictures``; None decodes them each time.
        span: (start, stop) of the rows of each batch that this process takes; None for all. They are cropped as in a
            process that takes all.
        crops: ``RandomCrops`` or ``FixedCrops``; None for random crops of the kind "fixed", one of each picture.

    Attributes:
        batch_size: rows of a whole batch, of all processes together: pictures times crops of each.
        labels: those of its classes, sorted.
        pictures: what the crops are cut from.
        span: as given; (0, batch_size) for None.
    """

    def __init__(self, dataset, batch_sampler, image_size, seed=0, workers=0, pin_memory=False, pictures=None,
                 span=None, crops=None):
        self.batch_sampler = batch_sampler
        self.batches = _Batches(dataset.samples, image_size, pictures, crops or RandomCrops())
        self.batch_size = batch_sampler.batch_size * self.batches.crops.views
        self.labels = sorted({label for _, label in dataset.samples})
        self.pictures = self.batches.pictures
        self.seed = seed
        self.span = (0, self.batch_size) if span is None else span
        self.keys = _Keys(len(batch_sampler))
        self.loader = _data_loader(self.batches, self.keys, workers, pin_memory, keep_workers=True)

    def draw_from(self, crops):
        """From the first epoch on take these ``FixedCrops``. To be called before it: loading processes have copies."""
        self.batches.crops = crops

    def __len__(self):
        return len(self.batch_sampler)

    def epoch(self, number, first=0, while_waiting=lambda seconds: None):
        """Yield (pictures, labels) of epoch ``number``, from its batch ``first`` on; with a table's rows as a third
        part if the crops have one.

        Args:
            while_waiting: called every second while no batch comes from a loading process, with the seconds so far;
                what it raises is raised.

        Raises:
            DatasetError: a picture can't be read. LoadingError: no batch comes.
        """
        self.keys.first = first
        self.keys.draw = functools.partial(_training_key, self.batch_sampler, self.batches.crops.views, self.seed,
                                           self.span, number)
        return _checked(self.loader, while_waiting)


class EvaluationLoader:
    """Every picture of ``dataset`` once, in order: an iterable of (pictures, labels).

    Args: as in ``TrainLoader``, but
        span: (start, stop) of the pictures of ``dataset`` that this process takes.
        crops: None for the centre.
        gallery: the ``EvaluationLoader`` of the pictures that these, as queries, search in; None: each searches all
            others of ``dataset``.

    Attributes:
        count: pictures in the span. total: pictures in ``dataset``. batch_size: as given.
        span: as given; (0, total) for None. gallery: as given. images: ``dataset``.
    """

    def __init__(self, dataset, batch_size, image_size, workers=0, pin_memory=False, pictures=None, span=None,
                 crops=None, gallery=None):
        self.gallery = gallery
        self.images = dataset
        self.total = len(dataset)
        self.span = (0, self.total) if span is None else span
        self.count = self.span[1] - self.span[0]
        self.batch_size = batch_size
        self.keys = _Keys(-(-self.count // batch_size), functools.partial(_evaluation_key, self.span, batch_size))
        self.loader = _data_loader(_Batches(dataset.samples, image_size, pictures, crops or CentreCrops()), self.keys,
                                   workers, pin_memory, keep_workers=False)

    @property
    def pictures(self):
        """The resized pictures: ``CachedPictures`` or ``DecodedPictures``."""
        return self.loader.dataset.pictures

    @property
    def labels(self):
        """Their labels, a NumPy array."""
        return self.loader.dataset.labels

    def __len__(self):
        return len(self.keys)

    def __iter__(self):
        return self.batches()

    def batches(self, while_waiting=lambda seconds: None):
        """Yield (pictures, labels); ``while_waiting`` and what is raised as in ``TrainLoader.epoch``."""
        return _checked(self.loader, while_waiting)
