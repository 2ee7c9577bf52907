"""Batches of uint8 pictures: resize, crop and flip here; scaling and normalisation belong to the networks.

A batch depends on nothing but the seed, the epoch and its number in the epoch: the number of worker processes changes
the speed alone.
"""
import functools
import multiprocessing
import os
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import DatasetError, usable_cores
from dataset.cache import DecodedPictures

__all__ = ["TrainLoader", "EvaluationLoader", "resized_size", "default_workers"]


# Last part of the seed of a batch's crops, so that they are independent of the draws of the batch sampler.
CROP_STREAM = 1


def resized_size(image_size):
    """Return the side that pictures are resized to before a crop of ``image_size``: 8/7 of it (256 for 224)."""
    return int(round(image_size * 8 / 7))


def default_workers():
    """Return a number of loading processes that fits this machine: one a core, less one for training, at most 8.

    The processes that torchrun starts on one machine share its cores. What it does not set to a number from 1 on is
    taken for 1 here; ``engine.ranks`` refuses it.
    """
    try:
        processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except ValueError:
        processes = 1
    return max(1, min(8, usable_cores() // processes - 1))


class _Batches(Dataset):
    """Turns a key (picture indices, seed of the crops or None, (start, stop)) into (pictures B x 3 x S x S uint8,
    labels B) of the indices from start to stop. The crops of the others are drawn, too, and not used.

    The pictures lie in memory as they were decoded, channels last: that is how the networks take them.
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
                return error  # an exception that crosses a process boundary comes out as a traceback; a value doesn't
            batch[row] = picture[top:top + size, left:left + size]
            if flip:
                images[row] = images[row].flip(1)  # torch's is ten times as fast as NumPy's here
        return images.permute(0, 3, 1, 2), torch.from_numpy(self.labels[list(indices[start:stop])])


class _Keys:
    """The sampler that the DataLoader draws keys from: ``count`` of them, each ``draw(number)``, from ``first`` on."""

    def __init__(self, count, draw=None):
        self.count = count
        self.draw = draw
        self.first = 0

    def __iter__(self):
        return map(self.draw, range(self.first, self.count))

    def __len__(self):
        return self.count - self.first


def _data_loader(samples, image_size, pictures, keys, workers, pin_memory, keep_workers):
    # A generator of its own: a DataLoader draws a number each time it starts, and must not take it from the generator
    # of the samplers, or the number of workers would change a run.
    return DataLoader(_Batches(samples, image_size, pictures), sampler=keys, batch_size=None, num_workers=workers,
                      pin_memory=pin_memory, persistent_workers=keep_workers and workers > 0,
                      generator=torch.Generator(), worker_init_fn=_leave_signals_to_the_main_process)


def _leave_signals_to_the_main_process(worker):
    """Ctrl-C reaches every process of a terminal, a scheduler's signals every process of a job; a worker that dies of
    one would look to the main process like a crash. SIGTERM ends it if it comes from there. It starts with all of them
    blocked; see ``_started``."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; there SIGTERM ends a worker, whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_on_sigterm_from, args=(multiprocessing.parent_process().pid,),
                         daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_on_sigterm_from(process):
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != process:
        pass
    os._exit(0)


# Functions and not methods: a loader that refers to itself would live on, and its processes with it.
def _training_key(batch_sampler, seed, share, epoch, batch):
    return batch_sampler.draw(epoch, batch), (seed, epoch, batch, CROP_STREAM), share


def _evaluation_key(share, batch_size, batch):
    first = share[0] + batch * batch_size
    indices = range(first, min(first + batch_size, share[1]))
    return indices, None, (0, len(indices))


def _started(loader):
    """Return an iterator over ``loader``, whose processes begin with their signals blocked until they know what to do
    with them."""
    if loader.num_workers == 0 or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    signals = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1")}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _checked(loader):
    for batch in _started(loader):
        if isinstance(batch, DatasetError):
            raise batch
        yield batch


class TrainLoader:
    """Training batches of one epoch after the other: random crop, horizontal flip with probability 0.5.

    Args:
        dataset: an ``ImageSet``.
        batch_sampler: ``draw(epoch, number)`` gives the picture indices of a batch; its length is batches an epoch.
        image_size: side of the crop.
        seed: of crops and flips.
        workers: loading processes; 0 loads in this one.
        pin_memory: put batches into page-locked memory, for a faster copy to an accelerator.
        pictures: the resized pictures of ``dataset``, as ``open_pictures`` gives them; None decodes each time.
        share: (start, stop) of the pictures of each batch that this process takes; None for all. They are the same
            pictures, cropped in the same way, as a process that takes all of them has there.

    Attributes:
        batch_size: pictures in a batch, all shares together.
    """

    def __init__(self, dataset, batch_sampler, image_size, seed=0, workers=0, pin_memory=False, pictures=None,
                 share=None):
        self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size
        self.seed = seed
        self.share = (0, self.batch_size) if share is None else share
        self.keys = _Keys(len(batch_sampler))
        self.loader = _data_loader(dataset.samples, image_size, pictures, self.keys, workers, pin_memory,
                                   keep_workers=True)

    def __len__(self):
        return len(self.batch_sampler)

    def epoch(self, number, first=0):
        """Yield (pictures, labels) of epoch ``number``, from its batch ``first`` on.

        Raises:
            DatasetError: a picture can't be read.
        """
        self.keys.first = first
        self.keys.draw = functools.partial(_training_key, self.batch_sampler, self.seed, self.share, number)
        return _checked(self.loader)


class EvaluationLoader:
    """Every picture of ``dataset`` once, in order, centre crop: an iterable of (pictures, labels).

    Args: as in ``TrainLoader``; share: (start, stop) of the pictures that this process takes.

    Attributes:
        count: pictures that come. total: pictures in ``dataset``. batch_size: as given.
    """

    def __init__(self, dataset, batch_size, image_size, workers=0, pin_memory=False, pictures=None, share=None):
        start, stop = (0, len(dataset)) if share is None else share
        self.count = stop - start
        self.total = len(dataset)
        self.batch_size = batch_size
        self.keys = _Keys(-(-self.count // batch_size), functools.partial(_evaluation_key, (start, stop), batch_size))
        self.loader = _data_loader(dataset.samples, image_size, pictures, self.keys, workers, pin_memory,
                                   keep_workers=False)

    def __len__(self):
        return len(self.keys)

    def __iter__(self):
        """Yield (pictures, labels).

        Raises:
            DatasetError: a picture can't be read.
        """
        return _checked(self.loader)
