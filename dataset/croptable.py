"""Numbers that belong to fixed crops of pictures, such as a teacher's embeddings, kept beside the decoded pictures.

The file holds float32, crops x pictures x dimensions. Its name is a digest of what the numbers were made from. A file
of JSON beside it says what it holds. As a cache of pictures, it is written aside and renamed when whole.
``dataset/caches.py`` lists and removes such files.
"""
import hashlib
import json
import os

import numpy as np

from dataset.files import remove_remains, replaced_file
from dataset.pictures import DatasetError, shown

__all__ = ["TABLE_SUFFIX", "CropTable", "open_table", "read_table_contents", "table_path", "write_table"]

TABLE_SUFFIX, TABLE_CONTENTS = ".crops", ".json"
VERSION = 1  # raise this when what is kept changes, or how fixed crops are drawn


class CropTable:
    """Numbers of each fixed crop of each picture: in memory, or in a file, of which a pickle holds only the path.

    Args:
        array: crops x pictures x d, float32; None if they are in the file ``path``, with this ``shape``.
    """

    def __init__(self, array=None, path=None, shape=None):
        self._array = array
        self.path = path
        self.shape = shape if array is None else array.shape

    def rows(self, views, indices):
        """Return the numbers of these crops of these pictures, B x d.

        Raises:
            DatasetError: the file has gone.
        """
        if self._array is None:
            try:
                self._array = np.memmap(self.path, dtype=np.float32, mode="r", shape=self.shape)
            except (OSError, ValueError) as error:
                raise DatasetError("{}: what was kept of the pictures' crops is gone or no longer whole ({}); the same "
                                   "command makes it again".format(shown(self.path), error)) from None
        return np.asarray(self._array[views, indices])

    def __getstate__(self):
        return self.__dict__ if self.path is None else dict(self.__dict__, _array=None)


def table_path(pictures, facts):
    """Return where the numbers of crops of these ``Pictures`` are kept; None for pictures without a cache.

    Args:
        facts: what else the numbers depend on, to be written as JSON.
    """
    if pictures.path is None:
        return None
    folder, name = os.path.split(pictures.path)
    digest = hashlib.sha256(json.dumps([VERSION, name, sorted(pictures.skipped), facts], sort_keys=True).encode())
    return os.path.join(folder, name[:16] + digest.hexdigest()[:16] + TABLE_SUFFIX)


def open_table(path):
    """Return the ``CropTable`` in the file ``path``; None if there is no whole one, or ``path`` is None."""
    contents = None if path is None else read_table_contents(path)
    if contents is None or not os.path.isfile(path) or os.path.getsize(path) != 4 * int(np.prod(contents["shape"])):
        return None
    return CropTable(path=path, shape=tuple(contents["shape"]))


def read_table_contents(path):
    """Return what is in the file ``path`` of a table; None if nothing says so. A dict:

    folder: where the pictures are. shape: crops, pictures, dimensions. what: the numbers in words.
    """
    try:
        with open(path + TABLE_CONTENTS, encoding="utf-8") as file:
            contents = json.load(file)
        fits = len(contents["shape"]) == 3 and all(type(size) is int and size > 0 for size in contents["shape"])
        return contents if fits and all(isinstance(contents[name], str) for name in ("folder", "what")) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # half of one, or none of ours
        return None


def write_table(path, array, folder, what):
    """Put ``array``, crops x pictures x d of float32, into the file ``path``; OSError if that can't be done.

    Args:
        folder, what: see ``read_table_contents``.
    """
    remove_remains(path)
    remove_remains(path + TABLE_CONTENTS)

    def describe():
        with replaced_file(path + TABLE_CONTENTS) as beside:
            beside.write(json.dumps({"folder": folder, "shape": array.shape, "what": what}).encode())

    with replaced_file(path, before=describe) as file:
        for rows in array:
            file.write(rows.tobytes())
