"""Batches of uint8 pictures: resize, crop and flip here; scaling and normalisation belong to the networks.

A batch depends only on the seed, the epoch and its number in the epoch. The number of worker processes changes only the
speed.
"""
import functools

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import DatasetError, usable_cores
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
    the indices in the span (start, stop).

    Random crops are drawn for the pictures before the span, too, so that ranks stay in step: each crops a picture as a
    single process would. Pictures are channels last in memory, as they were decoded and as the networks take them.
    """

    def __init__(self, samples, image_size, pictures):
        side = resized_size(image_size)
        self.pictures = DecodedPictures([path for path, _ in samples], side) if pictures is None else pictures
        self.labels = np.array([label for _, label in samples], dtype=np.int64)
        self.image_size = image_size
        self.side = side

    def __getitem__(self, key):
        indices, seed, (start, stop) = key
        size, side = self.image_size, self.side
        batch = np.empty((stop - start, size, size, 3), dtype=np.uint8)
        rng = None if seed is None else np.random.default_rng(seed)
        images = torch.from_numpy(batch)
        top = left = int(round((side - size) / 2))
        flip = False
        for row, index in enumerate(indices[:stop], -start):
            if rng is not None:
                top, left = rng.integers(0, side - size + 1, size=2)
                flip = rng.random() < 0.5
            if row < 0:
                continue
            try:
                picture = self.pictures[index]
            except DatasetError as error:
                return error  # a worker's exception would reach the main process as a traceback; _checked raises it
            batch[row] = picture[top:top + size, left:left + size]
            if flip:
                images[row] = images[row].flip(1)  # torch's is ten times as fast as NumPy's here
        try:
            images, labels = in_shared_memory([images, torch.from_numpy(self.labels[list(indices[start:stop])])])
        except LoadingError as error:
            return error
        return images.permute(0, 3, 1, 2), labels


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


def _data_loader(samples, image_size, pictures, keys, workers, pin_memory, keep_workers):
    # A generator of its own: a DataLoader draws a number each time it starts, and from torch's global generator that
    # would change what the rest of the run draws.
    return DataLoader(_Batches(samples, image_size, pictures), sampler=keys, batch_size=None, num_workers=workers,
                      pin_memory=pin_memory, persistent_workers=keep_workers and workers > 0,
                      generator=torch.Generator(), worker_init_fn=leave_signals_to_the_main_process)


# Plain functions, not methods: a method would make a reference cycle, and the workers would not end with the loader.
def _training_key(batch_sampler, seed, span, epoch, batch):
    return batch_sampler.draw(epoch, batch), (seed, epoch, batch, CROP_STREAM), span


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
    """Training batches, epoch by epoch: random crop, horizontal flip with probability 0.5.

    Args:
        dataset: an ``ImageSet``.
        batch_sampler: ``draw(epoch, number)`` gives the picture indices of a batch; its length: batches per epoch.
        image_size: side of the crop.
        seed: of crops and flips.
        workers: number of loading processes; 0 loads in this one.
        pin_memory: put batches into page-locked memory, for a faster copy to an accelerator.
        pictures: the resized pictures of ``dataset``, from ``open_pictures``; None decodes them each time.
        span: (start, stop) of the pictures of each batch that this process takes; None for all. They are cropped as in
            a process that takes all.

    Attributes:
        batch_size: pictures in a whole batch, of all processes together.
        span: as given; (0, batch_size) for None.
    """

    def __init__(self, dataset, batch_sampler, image_size, seed=0, workers=0, pin_memory=False, pictures=None,
                 span=None):
        self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size
        self.seed = seed
        self.span = (0, self.batch_size) if span is None else span
        self.keys = _Keys(len(batch_sampler))
        self.loader = _data_loader(dataset.samples, image_size, pictures, self.keys, workers, pin_memory,
                                   keep_workers=True)

    def __len__(self):
        return len(self.batch_sampler)

    def epoch(self, number, first=0, while_waiting=lambda seconds: None):
        """Yield (pictures, labels) of epoch ``number``, from its batch ``first`` on.

        Args:
            while_waiting: called every second while no batch comes from a loading process, with the seconds so far;
                what it raises is raised.

        Raises:
            DatasetError: a picture can't be read. LoadingError: no batch comes.
        """
        self.keys.first = first
        self.keys.draw = functools.partial(_training_key, self.batch_sampler, self.seed, self.span, number)
        return _checked(self.loader, while_waiting)


class EvaluationLoader:
    """Every picture of ``dataset`` once, in order, centre crop: an iterable of (pictures, labels).

    Args: as in ``TrainLoader``, but span: (start, stop) of the pictures of ``dataset`` that this process takes.

    Attributes:
        count: pictures in the span. total: pictures in ``dataset``. batch_size: as given.
        span: as given; (0, total) for None.
    """

    def __init__(self, dataset, batch_size, image_size, workers=0, pin_memory=False, pictures=None, span=None):
        self.total = len(dataset)
        self.span = (0, self.total) if span is None else span
        self.count = self.span[1] - self.span[0]
        self.batch_size = batch_size
        self.keys = _Keys(-(-self.count // batch_size), functools.partial(_evaluation_key, self.span, batch_size))
        self.loader = _data_loader(dataset.samples, image_size, pictures, self.keys, workers, pin_memory,
                                   keep_workers=False)

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
