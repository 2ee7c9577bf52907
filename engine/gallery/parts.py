"""All pictures of a data set, split by split, in the order in which they are embedded."""
import collections
import hashlib
import os

import numpy as np

from dataset import load_all, shown
from engine.data import NAMES, opened, tell_skipped
from engine.errors import UsageError

Part = collections.namedtuple("Part", "name all images pictures kept")
Part.__doc__ = """A split. name: as it is written. all: its ``ImageSet``; images: without pictures that are left out.
pictures: those, resized. kept: where these are among the pictures of all splits, sorted."""


def open_parts(args):
    """Return [Part] of all pictures, opened, and what to say of those that are left out, a line for each.

    Raises:
        DatasetError: pictures are missing or can't be read. UsageError: --cache would lie among class folders.
    """
    splits = load_all(args.dataset, args.data, args.download)
    print("Pictures: {}".format(shown(next(iter(splits.values())).layout)), flush=True)
    pictures = opened(splits, args)
    lines = tell_skipped({split: pictures[split].skipped for split in splits}, splits)
    parts, first = [], 0
    for split, images in splits.items():
        skipped = pictures[split].skipped
        kept = np.array([first + index for index in range(len(images)) if index not in skipped], dtype=np.int64)
        parts.append(Part("query" if split == "test" and "gallery" in splits else split, images,
                          images.without(skipped) if skipped else images, pictures[split], kept))
        first += len(images)
        print("Number of images in the {}: {}".format(NAMES[split], len(kept)), flush=True)
    if not any(len(part.kept) for part in parts):
        raise UsageError("no picture can be read, of {}".format(first))
    return parts, lines


class Prefix:
    """Digests of the first pictures of all: their splits, labels, paths below ``folder``, sizes and times."""

    def __init__(self, parts, folder):
        self.all = [(part.name, part.all) for part in parts]
        self.folder = folder
        self.begin()

    def begin(self):
        self.digest, self.count = hashlib.sha256(), 0

    def __call__(self, count):
        """Return that of the first ``count`` pictures; None where there are fewer. Counts that grow cost nothing."""
        if count > sum(len(images) for _, images in self.all):
            return None
        if count < self.count:
            self.begin()
        first = 0
        for name, images in self.all:
            for path, label in images.samples[max(0, self.count - first):count - first if count > first else 0]:
                try:
                    status = os.stat(path)
                    state = status.st_size, status.st_mtime_ns
                except OSError:
                    state = "missing"
                self.digest.update("{}\0{}\0{}\0{}\n".format(name, label, _below(path, self.folder), state).encode(
                    "utf-8", "surrogateescape"))
            first += len(images)
        self.count = count
        return self.digest.hexdigest()


def _below(path, folder):
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on another drive of Windows
        return os.path.abspath(path)


def texts_of(parts, folder):
    texts = {"paths": [], "labels": [], "splits": []}
    for part in parts:
        names = {label: name for name, label in part.images.class_to_idx.items()}
        texts["paths"] += [_below(path, folder) for path, _ in part.images.samples]
        texts["labels"] += [names.get(label, "") for label in part.images.targets]
        texts["splits"] += [part.name] * len(part.kept)
    return texts
