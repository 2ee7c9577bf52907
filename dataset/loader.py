"""Batches of uint8 pictures: resize, crop and flip here; scaling and normalisation belong to the networks.

A batch depends only on the seed, the epoch and its number in the epoch. The number of worker processes changes only the
speed.
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

__all__ = ["LOADING_PATIENCE", "TrainLoader", "EvaluationLoader", "resized_size", "default_workers"]

# A run ends when a batch has not come for so many seconds: a loading process that finds no shared memory for its batch
# never delivers it.
LOADING_PATIENCE = 300
# Between two looks of a loading process whether its parent is still there.
SECONDS_TO_LOOK = 5

# Last part of the seed of a batch's crops, so that they don't depend on what the batch sampler draws.
CROP_STREAM = 1


def resized_size(image_size):
    """Return the side that pictures are resized to before a crop of ``image_size``: 8/7 of it (256 for 224)."""
    return int(round(image_size * 8 / 7))


def default_workers():
    """Return a number of loading processes that suits this machine: one per core, less one for training, at most 8.

    The ranks of one machine divide its cores among them. A LOCAL_WORLD_SIZE that is not a number from 1 on counts as 1
    here; ``engine.ranks`` refuses it.
    """
    try:
        processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except ValueError:
        processes = 1
    return max(1, min(8, usable_cores() // processes - 1))


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
        return images.permute(0, 3, 1, 2), torch.from_numpy(self.labels[list(indices[start:stop])])


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
                      timeout=LOADING_PATIENCE if workers > 0 else 0, generator=torch.Generator(),
                      worker_init_fn=_leave_signals_to_the_main_process)


def _leave_signals_to_the_main_process(worker):
    """Make a worker ignore signals, except a SIGTERM from the main process.

    Ctrl-C reaches every process of a terminal, and a scheduler's signals every process of a job. If one of them ended a
    worker, the main process would take it for a crash. A worker starts with these signals blocked; see ``_started``.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS: there a SIGTERM from anywhere ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_on_sigterm_from, args=(multiprocessing.parent_process().pid,),
                         daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_on_sigterm_from(process):
    """End when that process asks for it or has gone; torch's own watch misses one that is killed while this starts."""
    while True:
        asked = signal.sigtimedwait([signal.SIGTERM], SECONDS_TO_LOOK)
        if asked is None and not _is_running(process) or asked is not None and asked.si_pid == process:
            os._exit(0)


def _is_running(process):
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, or a security module forbids to ask
        return True


# Plain functions, not methods: a method would make a reference cycle, and the workers would not end with the loader.
def _training_key(batch_sampler, seed, span, epoch, batch):
    return batch_sampler.draw(epoch, batch), (seed, epoch, batch, CROP_STREAM), span


def _evaluation_key(span, batch_size, batch):
    first = span[0] + batch * batch_size
    indices = range(first, min(first + batch_size, span[1]))
    return indices, None, (0, len(indices))


def _started(loader):
    """Return an iterator over ``loader``, whose workers start with signals blocked: until they have run
    ``_leave_signals_to_the_main_process``, a signal would end them."""
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

    def epoch(self, number, first=0):
        """Yield (pictures, labels) of epoch ``number``, from its batch ``first`` on.

        Raises:
            DatasetError: a picture can't be read.
        """
        self.keys.first = first
        self.keys.draw = functools.partial(_training_key, self.batch_sampler, self.seed, self.span, number)
        return _checked(self.loader)


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

    def __len__(self):
        return len(self.keys)

    def __iter__(self):
        """Yield (pictures, labels).

        Raises:
            DatasetError: a picture can't be read.
        """
        return _checked(self.loader)
