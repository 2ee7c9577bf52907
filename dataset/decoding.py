"""Pictures, decoded and resized each time that they are asked for, and work on many pictures at once."""
import concurrent.futures
import copy
import threading

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.base import usable_cores
from dataset.pictures import DatasetError, UnreadablePicture, checksum_of, open_image

__all__ = ["BrokenPicturesError", "Pictures", "DecodedPictures", "RESIZES", "load_resized", "for_each", "list_of"]

CHUNK = 32  # pictures that a thread takes at a time


class BrokenPicturesError(DatasetError):
    """All pictures that can't be read: one line each."""


def _whole(width, height, side):
    return 0, 0, width, height


def _middle_square(width, height, side):
    """Return the box that is seen when the short side becomes ``side`` and then the middle square is cut out; rounded
    as by torchvision's Resize and CenterCrop, of whole pixels of the resized picture."""
    def kept(length):
        resized = int(side * length / min(width, height))
        start = round((resized - side) / 2)
        return start * length / resized, (start + side) * length / resized

    (left, right), (top, bottom) = kept(width), kept(height)
    return left, top, right, bottom


# The values of --resize: which box of a picture becomes the resized one, (width, height, side) -> box.
RESIZES = {"square": _whole, "short": _middle_square}


def load_resized(path, side, truncated="refuse", resize="square"):
    """Return the picture at ``path`` as uint8, side x side x 3: bilinear, antialiased.

    Args:
        truncated: as in ``open_image``.
        resize: "square" squeezes the whole picture into the square. "short" keeps the aspect ratio: the short side
            becomes ``side``, and of the long one the middle is kept.
    """
    image = open_image(path, truncated)
    return np.asarray(image.resize((side, side), Image.BILINEAR, RESIZES[resize](*image.size, side)))


class Pictures:
    """Resized pictures: ``[index]`` gives side x side x 3, uint8, and counts those that are not skipped.

    Attributes:
        skipped: {index among all pictures: why it is left out}.
        path: of the cache that they come from; None for none.
    """

    path = None

    def __init__(self, count, skipped):
        self.count = count
        self._skip(skipped)

    def _skip(self, skipped):
        self.skipped = skipped
        self._kept = [index for index in range(self.count) if index not in skipped] if skipped else range(self.count)

    def without(self, skipped):
        """Return these pictures without some more, {index among all pictures: why}."""
        fewer = copy.copy(self)
        fewer._skip({**self.skipped, **skipped})
        return fewer

    def only(self, indices, why):
        """Return those of these pictures that ``[]`` gives for ``indices``; ``why`` the others are left out."""
        chosen = {self._kept[index] for index in indices}
        return self.without({index: why for index in self._kept if index not in chosen})


class DecodedPictures(Pictures):
    """Resized pictures, decoded each time.

    Args:
        paths, side, truncated, resize: as in ``load_resized``.
    """

    def __init__(self, paths, side, truncated="refuse", resize="square"):
        super().__init__(len(paths), {})
        self.paths = paths
        self.side = side
        self.truncated = truncated
        self.resize = resize

    def __getitem__(self, index):
        return load_resized(self.paths[self._kept[index]], self.side, self.truncated, self.resize)

    def checksums(self, description="pictures"):
        """Return ``checksum_of`` each picture."""
        found = {}
        problems = for_each([self.paths[index] for index in self._kept], checksum_of, "Reading the " + description,
                            found.__setitem__)
        if problems:
            raise BrokenPicturesError(list_of(problems, len(self._kept)))
        return [found[index] for index in range(len(self._kept))]


def for_each(items, work, description, use=None):
    """Call ``work`` with each item, with one thread for each core (Pillow releases Python's global lock).

    Args:
        use: called with each (index, what ``work`` returned).

    Returns:
        {index: why} of those for which it raises ``UnreadablePicture``.

    Raises:
        DatasetError, MemoryError: the machine is short of something.
    """
    count = len(items)
    problems, stopped = {}, threading.Event()

    def convert(start):
        for index in range(start, min(start + CHUNK, count)):
            if stopped.is_set():
                return
            try:
                result = work(items[index])
            except UnreadablePicture as error:
                problems[index] = str(error)
                continue
            if use is not None:
                use(index, result)

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        try:
            jobs = [pool.submit(convert, start) for start in range(0, count, CHUNK)]
            with tqdm(total=count, desc=description, leave=False, disable=None) as bar:
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
                    bar.update(min(CHUNK, count - bar.n))
        finally:
            stopped.set()
    return problems


def list_of(problems, count):
    lines = [problems[index] for index in sorted(problems)]
    if len(lines) == 1:
        return lines[0]
    return "\n".join(["{} of {} pictures can't be read; mend or remove them, or leave them out with --skip_broken:"
                      .format(len(lines), count)] + lines)
