"""Files of a run: each is written aside, flushed to disk and renamed, so that a reader never meets half of one."""
import collections
import contextlib
import json
import os

import torch

from engine.errors import UsageError

__all__ = ["replaced_file", "write_text", "write_json", "append_line", "save_weights", "prepare_directory"]


@contextlib.contextmanager
def replaced_file(path):
    """Open a file aside of ``path`` for writing bytes; at the end of the block it takes the place of ``path``."""
    aside = "{}.{}.tmp".format(path, os.getpid())
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)
        raise


def write_text(path, text):
    with replaced_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def append_line(path, line):
    """Append one whole line, for a log."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def save_weights(path, network):
    """Write the bare state dict of ``network``, its tensors on the CPU."""
    weights = collections.OrderedDict((name, value.detach().cpu().contiguous())
                                      for name, value in network.state_dict().items())
    with replaced_file(path) as file:
        torch.save(weights, file)


def prepare_directory(path):
    """Make the directory ``path`` if need be, and see that files can be written there.

    Raises:
        UsageError: they can't.
    """
    try:
        os.makedirs(path, exist_ok=True)
        probe = os.path.join(path, ".writable.{}".format(os.getpid()))
        with open(probe, "w"):
            pass
        os.remove(probe)
    except OSError as error:
        raise UsageError("--save_dir {}: can't be written to ({})".format(path, error.strerror)) from None
