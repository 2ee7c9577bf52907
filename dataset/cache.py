"""Pictures, decoded and resized: from their files each time, or once, into an array on disk that is mapped into memory.

The array is raw uint8, N x side x side x 3. Its name is a digest of what it was made from (the files' names, sizes and
times, the side, the version of Pillow), so that after a change a new one is made. It is written to a temporary file
under a lock and renamed when whole: all runs, ranks and loading processes of a machine can use it.
"""
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from dataset.base import DatasetError, UnreadablePicture, open_image, shown, usable_cores
from dataset.files import locked, remove_remains, replaced_file

__all__ = ["BrokenPicturesError", "DecodedPictures", "CachedPictures", "load_resized", "open_pictures"]

FOLDER = ".rkd-cache"
SUFFIX, PROBLEMS = ".uint8", ".broken"
VERSION = 2  # raise this when decoding or resizing changes
# Bytes that an automatic cache leaves free on its disk, for weights and logs.
LEFT_FREE = 2 ** 30
CHUNK = 32  # pictures that a thread decodes at a time


class BrokenPicturesError(DatasetError):
    """All pictures that can't be read: one line each."""


def load_resized(path, side):
    """Return the picture at ``path`` as uint8, side x side x 3: bilinear, antialiased, aspect ratio not kept."""
    return np.asarray(open_image(path).resize((side, side), Image.BILINEAR))


class DecodedPictures:
    """Resized pictures, decoded each time: ``[index]`` gives side x side x 3, uint8.

    Attributes:
        skipped: {index among all pictures: why it was left out}; ``[]`` counts the others.
    """

    def __init__(self, paths, side, skipped=None):
        self.skipped = skipped or {}
        self.paths = [path for index, path in enumerate(paths) if index not in self.skipped]
        self.side = side

    def __getitem__(self, index):
        return load_resized(self.paths[index], self.side)


class CachedPictures:
    """Resized pictures from a cache: ``[index]`` gives side x side x 3, uint8, read-only.

    A pickle of it holds the file's name, not the pictures. ``skipped`` as in ``DecodedPictures``.
    """

    def __init__(self, path, count, side, skipped=None):
        self.path = path
        self.shape = (count, side, side, 3)
        self.skipped = skipped or {}
        self._rows = [index for index in range(count) if index not in self.skipped] if self.skipped else range(count)
        self._array = None

    def __getitem__(self, index):
        if self._array is None:
            try:
                self._array = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
            except (OSError, ValueError) as error:
                raise DatasetError("{}: the cache of the pictures is gone or no longer whole ({}); the same "
                                   "command makes it again".format(shown(self.path), error)) from None
        return np.asarray(self._array[self._rows[index]])

    def __getstate__(self):
        return dict(self.__dict__, _array=None)


def open_pictures(paths, side, where="auto", beside=".", description="pictures", skip_broken=False):
    """Return the resized pictures of ``paths``: from their cache, which is made on first use, or decoded each time.

    Args:
        paths: the files. side: height and width of the resized pictures.
        where: "off", a directory for the cache, or "auto": ``beside``/.rkd-cache, or the user's own cache directory
            where that can't be written.
        beside: the directory of the data set.
        description: what these pictures are, for the bar and the printed line.
        skip_broken: leave out pictures that can't be read; attribute ``skipped`` of the result says which.

    Raises:
        BrokenPicturesError: there is a cache, and pictures that can't be read; names all of them.
        DatasetError: the directory ``where`` can't be written; the machine is short of file descriptors or of memory.
        MemoryError: it is short of memory.
    """
    if where == "off":
        return _decoded(paths, side, description, skip_broken)
    name, needed = _digest(paths, side) + SUFFIX, len(paths) * side * side * 3
    automatic = where == "auto"
    folders = [os.path.join(beside, FOLDER), _users_cache()] if automatic else [where]
    for folder in folders:
        path = os.path.join(folder, name)
        problems = _problems_of(path, needed, paths)
        if problems is not None:
            return _cached(path, paths, side, problems, skip_broken)
    reason = "no folder that can be written"
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with locked(path + ".lock"):
                problems = _problems_of(path, needed, paths)
                if problems is None:
                    free = shutil.disk_usage(folder).free - (LEFT_FREE if automatic else 0)
                    if free < needed:
                        reason = "{} needed in {}, {} free{}".format(
                            _gigabytes(needed), folder, _gigabytes(max(free, 0)),
                            " beside a reserve of {}".format(_gigabytes(LEFT_FREE)) if automatic else "")
                        continue
                    problems = _make(paths, side, path, description, skip_broken)
                    print("Cache: {}, decoded once: {} in {}".format(description, _gigabytes(needed), folder),
                          flush=True)
            return _cached(path, paths, side, problems, skip_broken)
        except OSError as error:
            reason = "{}: {}".format(folder, error.strerror or error)
            if not automatic and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
                raise DatasetError("--cache {}: can't be written to ({})".format(
                    shown(folder), error.strerror)) from None
    print("Cache: none for the {} ({}); they are decoded each time; --cache DIR takes another disk".format(
        description, reason), flush=True)
    return _decoded(paths, side, description, skip_broken)


def _decoded(paths, side, description, skip_broken):
    decoded = DecodedPictures(paths, side)
    if skip_broken:
        decoded = DecodedPictures(paths, side, _each_decoded(decoded, "Looking through the " + description))
    return decoded


def _cached(path, paths, side, problems, skip_broken):
    if problems and not skip_broken:
        raise BrokenPicturesError(_list_of(problems, len(paths)))
    return CachedPictures(path, len(paths), side, problems)


def _users_cache():
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "rkd")


def _gigabytes(count):
    return "{:.2f} GB".format(count / 1e9)


def _digest(paths, side):
    digest = hashlib.sha256("{} {} {} {}".format(VERSION, side, len(paths), PIL.__version__).encode())
    for path in paths:
        try:
            status = os.stat(path)
            state = "{}\0{}".format(status.st_size, status.st_mtime_ns)
        except OSError:
            state = "missing"
        digest.update("{}\0{}\n".format(os.path.abspath(path), state).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _problems_of(path, size, paths):
    """Return {index: why} of the pictures that the cache ``path`` lacks because they can't be read; None if there is no
    whole cache, or if one of these pictures can be read now."""
    if not os.path.isfile(path) or os.path.getsize(path) != size:
        return None
    problems = _read_problems(path, len(paths))
    return None if problems is None or any(_is_readable(paths[index]) for index in problems) else problems


def _is_readable(path):
    try:
        open_image(path)
        return True
    except UnreadablePicture:
        return False


def _read_problems(path, count):
    """Return {index: why} of those of ``count`` pictures that could not be read when the cache ``path`` was made; None
    if the list of them is damaged."""
    try:
        with open(path + PROBLEMS, encoding="utf-8") as file:
            problems = {int(index): why for index, why in json.load(file).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):  # AttributeError: not a dictionary
        return None
    fits = all(0 <= index < count and isinstance(why, str) for index, why in problems.items())
    return problems if fits else None


def _each_decoded(decoded, description, use=None):
    """Decode all pictures, with one thread for each core (Pillow releases Python's global lock).

    Args:
        use: called with each (index, picture).

    Returns:
        {index: why} of those that can't be read.

    Raises:
        DatasetError, MemoryError: the machine is short of something.
    """
    count = len(decoded.paths)
    problems, stopped = {}, threading.Event()

    def convert(start):
        for index in range(start, min(start + CHUNK, count)):
            if stopped.is_set():
                return
            try:
                picture = decoded[index]
            except UnreadablePicture as error:
                problems[index] = str(error)
                continue
            if use is not None:
                use(index, picture)

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


def _make(paths, side, path, description, skip_broken):
    """Decode all pictures into the file ``path``; the place of a picture that is left out stays blank.

    Returns:
        {index: why} of those that are left out.
    """
    size = side * side * 3
    remove_remains(path)
    remove_remains(path + PROBLEMS)

    def write(index, picture):
        # Not through a memory map: there a full disk kills the process instead of raising an error.
        if os.pwrite(file.fileno(), picture.tobytes(), index * size) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with replaced_file(path, before=lambda: _write_problems(path, problems)) as file:
        problems = _each_decoded(DecodedPictures(paths, side), "Decoding " + description, write)
        if problems and not skip_broken:
            raise BrokenPicturesError(_list_of(problems, len(paths)))
        file.truncate(len(paths) * size)  # to the full size if the last ones are blank
    return problems


def _write_problems(path, problems):
    if problems:
        with replaced_file(path + PROBLEMS) as file:
            file.write(json.dumps(problems).encode("utf-8"))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + PROBLEMS)


def _list_of(problems, count):
    lines = [problems[index] for index in sorted(problems)]
    if len(lines) == 1:
        return lines[0]
    return "\n".join(["{} of {} pictures can't be read; mend or remove them, or leave them out with --skip_broken:"
                      .format(len(lines), count)] + lines)
