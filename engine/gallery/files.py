"""A gallery on disk: embeddings of many pictures, and which pictures these are; ``--mode embed`` writes it.

One file, GALLERY.npz, whose arrays ``np.load`` reads (nothing in it is a pickle):

    embeddings  N x d, float32, float16 or int8
    scales      N, float32; with int8 only: an embedding is its row times its scale
    paths       N texts, as UTF-8 bytes: below the folder that ``about`` names
    labels      N texts: names of classes; empty where nobody knows them
    splits      N texts: train, test, query, gallery; or all, for a folder without classes
    about       a text in JSON: format, network (a digest), options (of the network), folder, store, skipped ...

Or three: GALLERY.npy, the embeddings; GALLERY.csv, a line for each (path,label,split and with int8 scale);
GALLERY.json, what is in ``about``.

Embeddings are read when they are asked for, a slice at a time, so that a gallery may be larger than the memory.
"""
import contextlib
import csv
import io
import itertools
import json
import os
import zipfile

import numpy as np
import torch

from dataset import RESIZES
from dataset.files import replaced_file
from engine.errors import UsageError, first_line
from engine.gallery.arrays import Array, Stored, member_of, write_array

ENDINGS = (".npz", ".npy")
STORES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
TEXTS = ("paths", "labels", "splits")
CSV_COLUMNS = ("path", "label", "split")
FORMAT = 1
LINES = 2 ** 14  # of texts, written at a time
# What must be there, and of which type.
ABOUT = {"format": int, "network": str, "options": dict, "folder": str}
OPTIONS = {"base": str, "embedding_size": int, "image_size": int, "resize": str}


def beside(path, ending):
    """Return the path of a file of a gallery of three files."""
    return os.path.splitext(path)[0] + ending


def as_stored(embeddings, store):
    """Return {name of an array: rows} of float32 embeddings, N x d.

    int8: each row is divided by a scale of its own, its largest absolute value / 127, and rounded.
    """
    if store != "int8":
        return {"embeddings": embeddings.astype(STORES[store])}
    scales = np.abs(embeddings).max(1) / np.float32(127)
    rows = np.rint(embeddings / np.where(scales > 0, scales, 1)[:, None])
    return {"embeddings": rows.astype(np.int8), "scales": scales}


def write_gallery(path, about, arrays, texts):
    """Write a gallery; what was at ``path`` is replaced when the new one is whole.

    Args:
        about: see the top of this file. arrays: {"embeddings": Array, with int8 "scales": Array}.
        texts: {"paths", "labels", "splits": list of N texts}.

    Raises:
        OSError: the disk refuses.
    """
    about = json.dumps(dict(about, format=FORMAT), sort_keys=True)
    if path.endswith(".npz"):
        everything = dict(arrays, **{name: _texts(lines) for name, lines in texts.items()})
        everything["about"] = Array(np.dtype("S{}".format(len(about))), (), [np.array(about.encode())])
        with replaced_file(path) as file, zipfile.ZipFile(file, "w") as archive:  # nothing is packed: slices are read
            for name, array in everything.items():
                with archive.open(name + ".npy", "w", force_zip64=True) as member:
                    write_array(member, array)
        return
    scales = arrays["scales"].blocks if "scales" in arrays else ()
    scales = [[repr(float(scale))] for block in scales for scale in block]
    with contextlib.ExitStack() as whole:  # none replaces what was there before all are written
        files = rows, table, note = [whole.enter_context(replaced_file(beside(path, ending)))
                                     for ending in (".npy", ".csv", ".json")]
        note.write(about.encode() + b"\n")
        text = io.TextIOWrapper(table, "utf-8", "surrogateescape", newline="", write_through=True)
        lines = csv.writer(text)
        lines.writerow(CSV_COLUMNS + ("scale",) * bool(scales))
        lines.writerows(list(line) + scale for line, scale in zip(
            zip(*(texts[name] for name in TEXTS)), scales or itertools.repeat([])))
        text.detach()
        write_array(rows, arrays["embeddings"])
        for file in files:
            file.flush()


def _texts(lines):
    """Return the ``Array`` of texts."""
    kind = np.dtype("S{}".format(max((len(_bytes(line)) for line in lines), default=0) or 1))
    return Array(kind, (len(lines),), (np.array([_bytes(line) for line in lines[start:start + LINES]], kind)
                                       for start in range(0, len(lines), LINES)))


def _bytes(text):
    return text.encode("utf-8", "surrogateescape")


class Gallery:
    """A gallery, opened. Its length is the number of its pictures; a slice of it their embeddings, in float32.

    Args:
        path: GALLERY.npz, or GALLERY.npy with its two files beside it.

    Attributes:
        path: as given. width: dimensions, d.
        about: what the gallery says of itself. folder: where its pictures lie, or lay.

    Raises:
        UsageError: no such file, damaged, or no gallery.
    """

    def __init__(self, path):
        if not os.path.isfile(path):
            raise UsageError("--gallery {}: {}".format(path, "this is no file" if os.path.exists(path) else
                                                       "no such file; run.py --mode embed makes one"))
        self.path = path
        try:
            self._open()
        except MemoryError:
            raise
        except FileNotFoundError as error:
            raise UsageError("--gallery {}: {}, which belongs to it, is not there".format(
                path, error.filename)) from None
        except Exception as error:  # NumPy, zipfile and json raise a dozen types for a file that is damaged or other
            raise UsageError("--gallery {}: this is no gallery of run.py --mode embed, or it is damaged ({})".format(
                path, first_line(error))) from None
        self.folder = self.about["folder"]

    def _open(self):
        is_archive = zipfile.is_zipfile(self.path)
        if self.path.endswith(".npz") and not is_archive:
            raise ValueError("it is cut short, or no archive of arrays")
        if is_archive:
            with zipfile.ZipFile(self.path) as archive:
                self.about = json.loads(member_of(archive, self.path, "about")[()].item())
                self._rows = member_of(archive, self.path, "embeddings")
                self._texts = {name: member_of(archive, self.path, name)[:] for name in TEXTS}
                scales = member_of(archive, self.path, "scales")[:] if self._rows.type == np.int8 else None
        else:
            self._rows = Stored(self.path, 0, os.path.getsize(self.path))
            with open(beside(self.path, ".json"), encoding="utf-8") as file:
                self.about = json.load(file)
            with open(beside(self.path, ".csv"), encoding="utf-8", errors="surrogateescape", newline="") as file:
                lines = list(csv.reader(file))
            self._texts = dict(zip(TEXTS, zip(*(line[:3] for line in lines[1:])))) if lines[1:] else dict.fromkeys(
                TEXTS, ())
            scales = np.array([line[3] for line in lines[1:]], np.float32) if self._rows.type == np.int8 else None
        options = self.about.get("options", {})
        if any(type(part.get(name)) is not kind for part, kinds in ((self.about, ABOUT), (options, OPTIONS))
               for name, kind in kinds.items()) or options["resize"] not in RESIZES:
            raise ValueError("what it says of itself is incomplete")
        if self.about["format"] != FORMAT:
            raise ValueError("its format is {}, here {}".format(self.about["format"], FORMAT))
        if len(self._rows.shape) != 2 or self._rows.type not in STORES.values():
            raise ValueError("its embeddings are {} of {}".format(self._rows.shape, self._rows.type))
        if any(len(column) != len(self) for column in list(self._texts.values()) + [scales] * (scales is not None)):
            raise ValueError("its parts have different lengths")
        self.width = self._rows.shape[1]
        self._scales = scales

    def __len__(self):
        return self._rows.shape[0]

    def __getitem__(self, rows):
        found = torch.from_numpy(self._rows[rows]).float()
        return found if self._scales is None else found * torch.from_numpy(self._scales[rows]).unsqueeze(1)

    def entry(self, row):
        """Return (path below the folder, label, split) of a picture."""
        found = (self._texts[name][row] for name in TEXTS)
        return tuple(text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text for text in found)
