"""Files of a run: each is written aside, flushed to disk and renamed, so that a reader never meets half of one."""
import contextlib
import io
import json
import os
import re

import torch

from dataset import locked
from engine.errors import TrainingError, UsageError

__all__ = ["replaced_file", "write_text", "write_json", "write_tensors", "held_directory"]

ASIDE = "{}.{}.tmp"
LOCK = ".lock"
REMAINS = re.compile(r".+\.\d+\.tmp")


@contextlib.contextmanager
def replaced_file(path):
    """Open a file aside of ``path`` for writing bytes; at the end of the block it takes the place of ``path``.

    Raises:
        TrainingError: the disk refuses; ``path`` is as it was before.
    """
    aside = ASIDE.format(path, os.getpid())
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _flush_folder(os.path.dirname(path))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(aside)
        if isinstance(error, OSError):
            raise TrainingError("{} can't be written ({}); {}".format(
                path, error.strerror or error, "the one that is there stays as it was" if os.path.exists(path)
                else "make room")) from None
        raise


def _flush_folder(path):
    """Put the names in a folder on the disk, too; not every system and file system can."""
    with contextlib.suppress(OSError):
        number = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_text(path, text):
    with replaced_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_tensors(path, value):
    """Write tensors, on the CPU, in plain containers."""
    # By way of memory: a disk that fills up under torch.save's own writer ends the process with torch 1.10.
    content = io.BytesIO()
    torch.save(value, content)
    with replaced_file(path) as file:
        file.write(content.getbuffer())


@contextlib.contextmanager
def held_directory(path):
    """Make the directory ``path`` if need be and keep other runs out of it; what a killed run left half written goes.

    If it is still empty at the end, it goes again. None stands for no directory.

    Raises:
        UsageError: it can't be written to, or another run holds it.
    """
    if path is None:
        yield
        return
    made = _folders_to_make(path)
    try:
        os.makedirs(path, exist_ok=True)
        with open(ASIDE.format(os.path.join(path, "probe"), os.getpid()), "wb"):
            pass
    except OSError as error:
        _remove_empty(made)
        raise UsageError("--save_dir {}: can't be written to ({})".format(path, error.strerror)) from None
    try:
        with locked(os.path.join(path, LOCK), wait=False):
            for name in os.listdir(path):
                if REMAINS.fullmatch(name):
                    os.remove(os.path.join(path, name))
            yield
    except BlockingIOError:
        raise UsageError("--save_dir {}: another run is writing to it; wait for its end, or give this one a directory "
                         "of its own".format(path)) from None
    finally:
        _remove_empty(made)


def _folders_to_make(path):
    missing = []
    path = os.path.abspath(path)
    while not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _remove_empty(folders):
    with contextlib.suppress(OSError):  # not empty any more
        for folder in folders:
            os.rmdir(folder)

