"""Pictures that are decoded and resized once, into an array on disk that is mapped into memory.

The array is raw uint8, N x side x side x 3. Its name is a digest of what it was made from (the files' names, sizes,
times and inodes, the side, the version of Pillow), so that after a change a new one is made. A file of JSON beside it
says what it holds. Both are written to temporary files under a lock and renamed when whole, the array last: all runs,
ranks and loading processes of a machine can use it. ``dataset/caches.py`` lists and removes caches.
"""
import hashlib
import json
import os
import shutil
import threading

import numpy as np
import PIL

from dataset.decoding import BrokenPicturesError, DecodedPictures, Pictures, for_each, list_of
from dataset.files import locked, remove_remains, replaced_file
from dataset.pictures import DatasetError, UnreadablePicture, checksum_of, shown

__all__ = ["CachedPictures", "open_pictures", "read_contents", "users_cache", "gigabytes", "lack_of_room"]

FOLDER = ".rkd-cache"
SUFFIX, CONTENTS = ".uint8", ".json"
VERSION = 3  # raise this when decoding, resizing or the contents change
# Bytes that an automatic cache leaves free on its disk, for weights and logs.
LEFT_FREE = 2 ** 30


class CachedPictures(Pictures):
    """Resized pictures from a cache, read-only. A pickle of it holds the cache's path, not the pictures.

    Args:
        path: of the cache. side: of its pictures. contents: what ``read_contents`` gives.

    Attributes:
        path: as given. folder: where the pictures' files are.
    """

    def __init__(self, path, side, contents):
        super().__init__(len(contents["checksums"]), contents["broken"])
        self.path = path
        self.folder = contents["folder"]
        self.shape = (self.count, side, side, 3)
        self._checksums = contents["checksums"]
        self._array = None

    def __getitem__(self, index):
        if self._array is None:
            try:
                self._array = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
            except (OSError, ValueError) as error:
                raise DatasetError("{}: the cache of the pictures is gone or no longer whole ({}); the same "
                                   "command makes it again".format(shown(self.path), error)) from None
        return np.asarray(self._array[self._kept[index]])

    def checksums(self, description="pictures"):
        """Return ``checksum_of`` each picture, as it was decoded."""
        return [self._checksums[index] for index in self._kept]

    def beside(self, digest):
        """Return the path of a small JSON file of what ``digest``, 32 hexadecimal digits, stands for. It is removed
        together with the cache."""
        return "{}.{}{}".format(self.path, digest, CONTENTS)

    def __getstate__(self):
        return dict(self.__dict__, _array=None)


def open_pictures(paths, side, where="auto", beside=None, description="pictures", skip_broken=False,
                  truncated="refuse", resize="square"):
    """Return the resized pictures of ``paths``: from their cache, which is made on first use, or decoded each time.

    Args:
        paths: the files. side: height and width of the resized pictures.
        where: "off", a directory for the cache, or "auto": ``beside``/.rkd-cache, or the user's own cache directory
            where that can't be written.
        beside: a directory in which a folder more does no harm; None if there is none.
        description: what these pictures are, for the bar and the printed line.
        skip_broken: leave out pictures that can't be read; attribute ``skipped`` of the result says which.
        truncated, resize: as in ``load_resized``.

    Raises:
        BrokenPicturesError: there is a cache, and pictures that can't be read; names all of them.
        DatasetError: the directory ``where`` can't be written; the machine is short of file descriptors or of memory.
        MemoryError: it is short of memory.
    """
    decoded = DecodedPictures(paths, side, truncated, resize)
    if where == "off":
        return _decoded(decoded, description, skip_broken)
    name, needed = _name(decoded), len(paths) * side * side * 3
    automatic = where == "auto"
    folders = ([os.path.join(beside, FOLDER)] if beside else []) + [users_cache()] if automatic else [where]
    for folder in folders:
        contents = _contents_of(os.path.join(folder, name), needed, decoded)
        if contents is not None:
            return _cached(os.path.join(folder, name), side, contents, skip_broken)
    reason = "no folder that can be written"
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with locked(path + ".lock"):
                contents = _contents_of(path, needed, decoded)
                if contents is None:
                    lack = lack_of_room(folder, needed, automatic)
                    if lack:
                        reason = lack
                        continue
                    contents = _make(decoded, path, description, skip_broken)
                    print("Cache: {}, decoded once: {} in {}{}".format(
                        description, gigabytes(needed), folder, _advice_on_older(folder, name)), flush=True)
            return _cached(path, side, contents, skip_broken)
        except OSError as error:
            reason = "{}: {}".format(folder, error.strerror or error)
            if not automatic and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
                raise DatasetError("--cache {}: can't be written to ({})".format(
                    shown(folder), error.strerror)) from None
    print("Cache: none for the {} ({}); they are decoded each time; --cache DIR takes another disk".format(
        description, reason), flush=True)
    return _decoded(decoded, description, skip_broken)


def _decoded(decoded, description, skip_broken):
    if not skip_broken:
        return decoded
    return decoded.without(for_each(range(decoded.count), decoded.__getitem__, "Looking through the " + description))


def _cached(path, side, contents, skip_broken):
    if contents["broken"] and not skip_broken:
        raise BrokenPicturesError(list_of(contents["broken"], len(contents["checksums"])))
    return CachedPictures(path, side, contents)


def users_cache():
    """Return the directory in the user's home for caches that have no other place."""
    named = os.environ.get("XDG_CACHE_HOME", "")  # a relative one does not count, says its specification
    return os.path.join(named if os.path.isabs(named) else os.path.join(os.path.expanduser("~"), ".cache"), "rkd")


def gigabytes(count):
    return "{:.2f} GB".format(count / 1e9)


def lack_of_room(folder, needed, automatic):
    """Return in words that a folder's disk has less than ``needed`` bytes free, beside a reserve if the place is chosen
    by itself (``automatic``); None if it has them."""
    free = shutil.disk_usage(folder).free - (LEFT_FREE if automatic else 0)
    if free >= needed:
        return None
    return "{} needed in {}, {} free{}".format(
        gigabytes(needed), folder, gigabytes(max(free, 0)),
        " beside a reserve of {}".format(gigabytes(LEFT_FREE)) if automatic else "")


def _name(decoded):
    """Return the name of the cache of these pictures. Its first half depends on their paths and how they are resized
    only."""
    which = hashlib.sha256("{} {}".format(decoded.side, decoded.count).encode())
    if decoded.resize != "square":  # caches of earlier versions, which knew no other way, keep their names
        which.update(" {}\n".format(decoded.resize).encode())
    state = hashlib.sha256("{} {} {}".format(VERSION, decoded.truncated, PIL.__version__).encode())
    for path in decoded.paths:
        which.update((os.path.abspath(path) + "\n").encode("utf-8", "surrogateescape"))
        try:
            # A file may be replaced by another one of the same size and time: mv, cp -p, a link that leads elsewhere.
            # That changes the inode or, where the file system gives the same number again, the time of the change.
            status = os.stat(path)
            numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        except OSError:
            numbers = "missing"
        state.update("{}\n".format(numbers).encode())
    return which.hexdigest()[:16] + state.hexdigest()[:16] + SUFFIX


def _advice_on_older(folder, name):
    """Return what to say of other caches of the pictures of the cache ``name``: they changed, or other options hold."""
    older = [other for other in os.listdir(folder) if other.startswith(name[:16]) and other.endswith(SUFFIX)
             and other != name]
    if not older:
        return ""
    size = sum(os.path.getsize(os.path.join(folder, other)) for other in older)
    return "; {} older of these pictures ({}) there: python3 -m dataset.caches lists and removes caches".format(
        len(older), gigabytes(size))


def _contents_of(path, size, decoded):
    """Return what ``read_contents`` gives for the cache ``path`` of these pictures; None if there is no whole cache of
    ``size`` bytes, or if a picture that it lacks because it couldn't be read can be read now."""
    if not os.path.isfile(path) or os.path.getsize(path) != size:
        return None
    contents = read_contents(path)
    if contents is None or len(contents["checksums"]) != decoded.count or any(
            _is_readable(decoded, index) for index in contents["broken"]):
        return None
    contents["broken"] = {index: shown(decoded.paths[index]) + why for index, why in contents["broken"].items()}
    return contents


def _is_readable(decoded, index):
    try:
        decoded[index]
        return True
    except UnreadablePicture:
        return False


def read_contents(path):
    """Return what is in the cache ``path``; None if nothing says so, or not everything. A dict:

    folder: where the pictures are. side: their height and width.
    checksums: [CRC-32 of each picture's file]. broken: {index: why, to follow the path} of the pictures that could not
    be read.
    """
    try:
        with open(path + CONTENTS, encoding="utf-8") as file:
            contents = json.load(file)
        contents["broken"] = {int(index): why for index, why in contents["broken"].items()}
        count = len(contents["checksums"])
        fits = all(0 <= index < count and isinstance(why, str) for index, why in contents["broken"].items()) and all(
            type(number) is int for number in contents["checksums"] + [contents["side"]])
        return contents if fits and isinstance(contents["folder"], str) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # half of one, or none of ours
        return None


def _make(decoded, path, description, skip_broken):
    """Decode all pictures into the file ``path``; the place of a picture that is left out stays blank.

    Returns:
        its contents; see ``read_contents``.
    """
    size, writing = decoded.side * decoded.side * 3, threading.Lock()
    contents = {"folder": os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in decoded.paths]),
                "side": decoded.side, "checksums": [-1] * decoded.count}
    remove_remains(path)
    remove_remains(path + CONTENTS)

    def read(index):
        return decoded[index], checksum_of(decoded.paths[index])

    def write(index, found):
        picture, contents["checksums"][index] = found
        # Not through a memory map: there a full disk kills the process instead of raising an error.
        with writing:
            file.seek(index * size)
            file.write(picture.tobytes())

    def describe():
        with replaced_file(path + CONTENTS) as beside:
            # Without the path: another run may give it in another way.
            broken = {index: why[len(shown(decoded.paths[index])):] for index, why in contents["broken"].items()}
            beside.write(json.dumps(dict(contents, broken=broken)).encode("utf-8", "surrogateescape"))

    with replaced_file(path, before=describe) as file:
        contents["broken"] = for_each(range(decoded.count), read, "Decoding " + description, write)
        if contents["broken"] and not skip_broken:
            raise BrokenPicturesError(list_of(contents["broken"], decoded.count))
        file.truncate(decoded.count * size)  # to the full size if the last ones are blank
    return contents
