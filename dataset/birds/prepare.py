"""Drawing the data set and putting its folder in place, whole or not at all.

The same version and seed give the same bytes, however many processes draw.
"""
import itertools
import multiprocessing
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset.base import find_folder, usable_cores
from dataset.birds.scenery import draw_bird
from dataset.birds.species import CLASSES, invent_species
from dataset.files import locked

__all__ = ["prepare_birds", "PICTURES_PER_CLASS", "SIZE"]

VERSION = 1  # raise this when other bytes are drawn
PICTURES_PER_CLASS = 24
SIZE = 128
QUALITY = 90


class _Birds(NamedTuple):
    """Which birds: all that their bytes depend on, beside VERSION and QUALITY."""
    seed: int
    classes: int
    pictures: int
    size: int

    def folder_name(self):
        """Return a name that no other set has; the default sizes are left out of it."""
        name = "synthetic_birds_v{}_s{}".format(VERSION, self.seed)
        if (self.classes, self.pictures, self.size) != (CLASSES, PICTURES_PER_CLASS, SIZE):
            name += "_c{}_p{}_x{}".format(self.classes, self.pictures, self.size)
        return name


def prepare_birds(root, seed=0, processes=None, progress=True, classes=CLASSES, pictures=PICTURES_PER_CLASS, size=SIZE):
    """Return the folder ``images`` of the birds below ``root``; draw them if they aren't there (20 s on two cores).

    The set's folder appears whole or not at all: it is drawn under another name and renamed. A folder that isn't whole
    is replaced. Of processes that start at the same time one draws, and the others wait; on a file system without locks
    each draws, the first one's folder stays, and all use it.

    Args:
        root: directory that holds (or will hold) the set's own folder; made if it is not there.
        seed: which species, and which pictures of them; 0 or more.
        processes: how many draw; None for as many as there are cores. The bytes don't depend on it.
        progress: show a bar on stderr, if that is a terminal.
        classes, pictures, size: another set, in a folder of another name: 1 to 80 classes, pictures in each, pixels.

    Raises:
        OSError: ``root`` can't be written to.
        ValueError: a number out of its range.
    """
    processes = usable_cores() if processes is None else processes
    if seed < 0 or not 1 <= classes <= CLASSES or pictures < 1 or size < 32 or processes < 1:
        raise ValueError("no such birds: seed {}, {} classes (1 to {}), {} pictures (1 or more), size {} (32 or more), "
                         "{} processes".format(seed, classes, CLASSES, pictures, size, processes))
    birds = _Birds(seed, classes, pictures, size)
    folder = os.path.join(root, birds.folder_name())
    elsewhere = os.path.dirname(os.path.realpath(find_folder(root, birds.folder_name(), "images") or ""))
    if not os.path.lexists(os.path.join(folder, "images")) and os.path.basename(elsewhere) == birds.folder_name():
        root, folder = os.path.dirname(elsewhere), elsewhere
    # Before _is_whole: a folder that another process puts there in between is whole, and must not be removed.
    was_there = os.path.lexists(folder)
    if not _is_whole(folder):
        try:
            os.makedirs(root, exist_ok=True)
            with locked(folder + ".lock"):
                if not _is_whole(folder):
                    if was_there:
                        _remove_broken(folder)
                    _draw_into_place(root, folder, birds, processes, progress)
        except OSError as error:
            reason = "the birds can't be drawn ({})".format(error.strerror or error)
            raise OSError(error.errno, reason, folder) from error
    return os.path.join(folder, "images")


def _is_whole(folder):
    """Whether every picture that contents.txt lists is there in its full length; contents.txt is written last."""
    try:
        with open(os.path.join(folder, "contents.txt"), encoding="utf-8") as file:
            entries = [line.rstrip("\n").split(" ", 1) for line in file]
        return bool(entries) and all(os.path.getsize(os.path.join(folder, path)) == int(size) for size, path in entries)
    except (OSError, ValueError):
        return False


def _remove_broken(folder):
    """Remove a folder that isn't whole. It is renamed first, so that no other process sees half of it."""
    aside = "{}.{}.broken".format(folder, uuid.uuid4().hex)
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _draw_into_place(root, folder, birds, processes, progress):
    """Draw the set beside ``folder``, then rename it; if another process was first, keep that one's."""
    beside = os.path.join(root, ".{}.{}".format(birds.folder_name(), uuid.uuid4().hex))
    try:
        os.mkdir(beside)
        _draw_all(beside, birds, processes, progress)
        try:
            os.rename(beside, folder)
        except OSError:
            if not _is_whole(folder):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _draw_all(folder, birds, processes, progress):
    """Draw every class into ``folder``, then list the pictures and their sizes in contents.txt (see ``_is_whole``)."""
    contents = [None] * birds.classes
    with tqdm(total=birds.classes * birds.pictures, desc="Drawing birds", unit="picture",
              disable=None if progress else True) as bar:  # None: only on a terminal
        for index, lines in _class_by_class(folder, birds, processes):
            contents[index] = lines
            bar.update(birds.pictures)
    with open(os.path.join(folder, "contents.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(itertools.chain.from_iterable(contents)) + "\n")


def _class_by_class(folder, birds, processes):
    """Yield (index, lines of contents.txt) of each class as it is drawn."""
    # A daemon, such as a worker of a data loader, may not have children.
    if processes == 1 or multiprocessing.current_process().daemon:
        for index in range(birds.classes):
            yield index, _draw_class(folder, birds, index)
        return
    with ProcessPoolExecutor(min(processes, birds.classes)) as pool:
        futures = {pool.submit(_draw_class, folder, birds, index): index for index in range(birds.classes)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _draw_class(folder, birds, index):
    """Draw one class into ``folder``/images and return "BYTES PATH" of each picture."""
    species, lines = invent_species(birds.seed)[index], []
    class_name = "{:03d}.{}".format(index + 1, species.name)
    os.makedirs(os.path.join(folder, "images", class_name))
    for number in range(1, birds.pictures + 1):
        # Each picture has a generator of its own, so that it doesn't depend on who draws the others.
        rng = np.random.default_rng([birds.seed, index + 1, number])
        size = int(birds.size * rng.uniform(0.95, 1.15)), int(birds.size * rng.uniform(0.85, 1.05))
        path = "/".join(["images", class_name, "{}_{:04d}.jpg".format(species.name, number)])
        draw_bird(species, rng, size).save(os.path.join(folder, path), quality=QUALITY)
        lines.append("{} {}".format(os.path.getsize(os.path.join(folder, path)), path))
    return lines
