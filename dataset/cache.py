"""Pictures, decoded and resized: each time from its file, or once, into one array on disk that is mapped into memory.

The array is raw uint8, N x side x side x 3. Its name is a digest of what it was made from (the files' names, sizes and
times, the side, the version of Pillow), so that a change makes another one. It is written aside under a lock and
renamed when whole: runs, ranks and loading processes on one machine share it.
"""
import concurrent.futures
import contextlib
import errno
import hashlib
import os
import shutil
import threading

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from dataset.base import DatasetError, open_image, usable_cores

try:
    import fcntl
except ImportError:  # not on Windows; two runs that start together then each write an array of their own
    fcntl = None

__all__ = ["BrokenPicturesError", "DecodedPictures", "CachedPictures", "load_resized", "open_pictures"]

FOLDER = ".rkd-cache"
SUFFIX, ASIDE = ".uint8", ".tmp"
# What an automatic cache leaves free on its disk, for weights and logs.
LEFT_FREE = 2 ** 30
CHUNK = 32


class BrokenPicturesError(DatasetError):
    """Pictures that can't be read, all of them: one line a picture."""


def load_resized(path, side):
    """Return the picture at ``path`` as uint8, side x side x 3: bilinear, antialiased, aspect ratio not kept."""
    return np.asarray(open_image(path).resize((side, side), Image.BILINEAR))


class DecodedPictures:
    """Resized pictures, decoded each time: ``[index]`` gives side x side x 3, uint8."""

    def __init__(self, paths, side):
        self.paths = paths
        self.side = side

    def __getitem__(self, index):
        return load_resized(self.paths[index], self.side)


class CachedPictures:
    """Resized pictures out of a whole file of them: ``[index]`` gives side x side x 3, uint8, not to be written to.

    Pickled, it takes the name of its file along, not the pictures.
    """

    def __init__(self, path, count, side):
        self.path = path
        self.shape = (count, side, side, 3)
        self._array = None

    def __getitem__(self, index):
        if self._array is None:
            self._array = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
        return np.asarray(self._array[index])

    def __getstate__(self):
        return dict(self.__dict__, _array=None)


def open_pictures(paths, side, where="auto", beside=".", description="pictures"):
    """Return the resized pictures of ``paths``: from their cache, which is made if need be, or decoded each time.

    Args:
        paths: the files. side: both sides of the resized pictures.
        where: "off", a directory for the cache, or "auto": ``beside``/.rkd-cache, or the user's own cache directory
            where that can't be written.
        beside: the directory of the data set.
        description: what these pictures are, for the bar and the printed line.

    Raises:
        BrokenPicturesError: while the cache is made; names all pictures that can't be read.
        DatasetError: a picture is missing; the directory ``where`` can't be written.
    """
    decoded = DecodedPictures(paths, side)
    if where == "off":
        return decoded
    name, needed = _digest(paths, side) + SUFFIX, len(paths) * side * side * 3
    automatic = where == "auto"
    folders = [os.path.join(beside, FOLDER), _users_cache()] if automatic else [where]
    for folder in folders:
        path = os.path.join(folder, name)
        if _is_whole(path, needed):
            return CachedPictures(path, len(paths), side)
    reason = "no folder that can be written"
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with _lock(path):
                if not _is_whole(path, needed):
                    free = shutil.disk_usage(folder).free - (LEFT_FREE if automatic else 0)
                    if free < needed:
                        reason = "{} needed in {}, {} free{}".format(
                            _gigabytes(needed), folder, _gigabytes(max(free, 0)),
                            " beside a reserve of {}".format(_gigabytes(LEFT_FREE)) if automatic else "")
                        continue
                    _make(decoded, path, description)
                    print("Cache: {}, decoded once: {} in {}".format(description, _gigabytes(needed), folder),
                          flush=True)
            return CachedPictures(path, len(paths), side)
        except OSError as error:
            reason = "{}: {}".format(folder, error.strerror or error)
            if not automatic and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
                raise DatasetError("--cache {}: can't be written to ({})".format(folder, error.strerror)) from None
    print("Cache: none for the {} ({}); they are decoded each time; --cache DIR takes another disk".format(
        description, reason), flush=True)
    return decoded


def _users_cache():
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "rkd")


def _gigabytes(count):
    return "{:.2f} GB".format(count / 1e9)


def _digest(paths, side):
    digest = hashlib.sha256("{} {} {}".format(side, len(paths), PIL.__version__).encode())
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DatasetError("{}: a picture that can't be read ({}); mend or remove it".format(
                path, error.strerror)) from None
        digest.update("{}\0{}\0{}\n".format(os.path.abspath(path), status.st_size, status.st_mtime_ns).encode(
            "utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _is_whole(path, size):
    return os.path.isfile(path) and os.path.getsize(path) == size


@contextlib.contextmanager
def _lock(path):
    """Let one process at a time make the file ``path``; where the disk knows no locks, all of them."""
    with open(path + ".lock", "w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file, or the end of the process, gives the lock back


def _make(decoded, path, description):
    """Decode all pictures with a thread a core (Pillow lets go of Python's lock) into the file ``path``."""
    count, side = len(decoded.paths), decoded.side
    size = side * side * 3
    aside = "{}.{}{}".format(path, os.getpid(), ASIDE)
    _remove_remains(path)
    problems, stopped = {}, threading.Event()

    def convert(start):
        for index in range(start, min(start + CHUNK, count)):
            if stopped.is_set():
                return
            try:
                picture = decoded[index]
            except DatasetError as error:
                problems[index] = str(error)
                continue
            # Written and not mapped: a full disk is then an error, and not the end of the process.
            if os.pwrite(file.fileno(), picture.tobytes(), index * size) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        with open(aside, "wb") as file, concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
            try:
                jobs = [pool.submit(convert, start) for start in range(0, count, CHUNK)]
                with tqdm(total=count, desc="Decoding " + description, leave=False, disable=None) as bar:
                    for job in concurrent.futures.as_completed(jobs):
                        job.result()
                        bar.update(min(CHUNK, count - bar.n))
            finally:
                stopped.set()
            if not problems:
                file.flush()
                os.fsync(file.fileno())
        if problems:
            raise BrokenPicturesError(_list_of(problems, count))
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)
        raise


def _list_of(problems, count):
    lines = [problems[index] for index in sorted(problems)]
    if len(lines) == 1:
        return lines[0]
    return "\n".join(["{} of {} pictures can't be read; mend or remove them:".format(len(lines), count)] + lines)


def _remove_remains(path):
    """Remove what a killed process left of this very file; its maker holds the lock."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder):
        if other.startswith(name + ".") and other.endswith(ASIDE):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, other))
