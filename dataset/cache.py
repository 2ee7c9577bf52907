"""Pictures, decoded and resized: each time from its file, or once, into one array on disk that is mapped into memory.

The array is raw uint8, N x side x side x 3. Its name is a digest of what it was made from (the files' names, sizes and
times, the side, the version of Pillow), so that a change makes another one. It is written aside under a lock and
renamed when whole: runs, ranks and loading processes on one machine share it.
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
VERSION = 2  # of what pixels are made of a file
# What an automatic cache leaves free on its disk, for weights and logs.
LEFT_FREE = 2 ** 30
CHUNK = 32


class BrokenPicturesError(DatasetError):
    """Pictures that can't be read, all of them: one line a picture."""


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
    """Resized pictures out of a whole file of them: ``[index]`` gives side x side x 3, uint8, not to be written to.

    Pickled, it takes the name of its file along, not the pictures. ``skipped`` as in ``DecodedPictures``.
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
                raise DatasetError("{}: the cache of the pictures has gone or is not whole any more ({}); start again, "
                                   "and it is made anew".format(shown(self.path), error)) from None
        return np.asarray(self._array[self._rows[index]])

    def __getstate__(self):
        return dict(self.__dict__, _array=None)


def open_pictures(paths, side, where="auto", beside=".", description="pictures", skip_broken=False):
    """Return the resized pictures of ``paths``: from their cache, which is made if need be, or decoded each time.

    Args:
        paths: the files. side: both sides of the resized pictures.
        where: "off", a directory for the cache, or "auto": ``beside``/.rkd-cache, or the user's own cache directory
            where that can't be written.
        beside: the directory of the data set.
        description: what these pictures are, for the bar and the printed line.
        skip_broken: leave out pictures that can't be read; ``skipped`` of what is returned tells which.

    Raises:
        BrokenPicturesError: while the cache is made; names all pictures that can't be read.
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
    """Return {index: why} of the pictures that can't be read, by the cache ``path``; None where it is not there, not
    whole, or pictures can be read now."""
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
    where the list of them is not whole."""
    try:
        with open(path + PROBLEMS, encoding="utf-8") as file:
            problems = {int(index): why for index, why in json.load(file).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):  # AttributeError: it is no dictionary
        return None
    fits = all(0 <= index < count and isinstance(why, str) for index, why in problems.items())
    return problems if fits else None


def _each_decoded(decoded, description, use=None):
    """Decode all pictures with a thread a core (Pillow lets go of Python's lock).

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
    """Decode all pictures into the file ``path``; a picture that is left out leaves its place blank.

    Returns:
        {index: why} of those that are left out.
    """
    size = side * side * 3
    remove_remains(path)
    remove_remains(path + PROBLEMS)

    def write(index, picture):
        # Written and not mapped: a full disk is then an error, and not the end of the process.
        if os.pwrite(file.fileno(), picture.tobytes(), index * size) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with replaced_file(path, before=lambda: _write_problems(path, problems)) as file:
        problems = _each_decoded(DecodedPictures(paths, side), "Decoding " + description, write)
        if problems and not skip_broken:
            raise BrokenPicturesError(_list_of(problems, len(paths)))
        file.truncate(len(paths) * size)  # where the last ones are blank
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
