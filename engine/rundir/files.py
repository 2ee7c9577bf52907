"""Files of a run: each is written to a temporary file, flushed, then renamed, so that nobody reads half of one."""
import contextlib
import io
import json
import os

import torch

from dataset.files import locked, remove_remains, replaced_file
from engine.errors import TrainingError, UsageError
from engine.rundir.paths import found_again
from model import WeightsError

BEST, LAST, CONFIG, CHECKPOINT = "best.pth", "last.pth", "config.json", "checkpoint.pth"
LOG, SPEED, RESULT, SKIPPED = "log.jsonl", "speed.jsonl", "result.txt", "skipped.txt"
PROJECTION = "projection.pth"  # a linear map from a student's space to its teacher's; it belongs to best.pth
DIAGNOSIS = "diagnose.json"  # what --diagnose found before the run, which begins beside it and keeps it
CARD = "README.md"  # a user may have one of his own there, so it doesn't show that a directory holds a run
PICTURES = ("curves.png", "gallery.png")  # that report/ leaves at the end of a run
# A directory with one of these holds a run.
CONTENT = (BEST, LAST, CHECKPOINT, LOG, SPEED, RESULT, SKIPPED, PROJECTION) + PICTURES
LOCK = ".lock"


def write_bytes(path, content):
    """Put bytes at ``path``; TrainingError where the disk refuses, and ``path`` is as it was before."""
    try:
        with replaced_file(path) as file:
            file.write(content)
    except OSError as error:
        raise TrainingError("{} can't be written ({}); {}".format(
            path, error.strerror or error, "the one that is there stays as it was" if os.path.exists(path)
            else "make room")) from None


def write_text(path, text):
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path):
    """Return what the JSON file at ``path`` holds; None if it can't be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if os.path.isfile(path):
            with open(path, encoding="utf-8-sig") as file:
                return json.load(file)
    return None


def read_config(directory):
    """Return the config.json in ``directory``: a dict with a dict of ``options``, their paths as they hold today; None
    if there is none.

    Raises:
        WeightsError: it is none of ours.
    """
    path = os.path.join(directory, CONFIG)
    if not os.path.lexists(path):
        return None
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise WeightsError("{} is not a config.json of this project; mend or remove it, and give the options".format(
            path))
    return dict(config, options=found_again(config["options"], directory))


def write_tensors(path, value):
    """Write tensors, on the CPU, in plain containers."""
    # By way of memory: a disk that fills up under torch.save's own writer ends the process with torch 1.10.
    content = io.BytesIO()
    torch.save(value, content)
    write_bytes(path, content.getbuffer())


@contextlib.contextmanager
def held_directory(path, option="--save_dir"):
    """Within the block no other run can write to the directory ``path``, which ``option`` gives and which is made if
    need be; None: no-op.

    Temporary files of killed runs are deleted. A directory that was made here and is empty at the end is deleted.

    Raises:
        UsageError: it can't be written to, or another run holds it.
    """
    if path is None:
        yield
        return
    was_there = os.path.exists(path)
    try:
        with contextlib.ExitStack() as held:
            try:
                os.makedirs(path, exist_ok=True)
                held.enter_context(locked(os.path.join(path, LOCK), wait=False))
                for name in CONTENT + (CONFIG, DIAGNOSIS, CARD):
                    remove_remains(os.path.join(path, name))
            except BlockingIOError:
                raise UsageError("{} {}: another run is writing to it; wait for its end, or give this one a "
                                 "directory of its own".format(option, path)) from None
            except FileExistsError:
                raise UsageError("{} {}: this is a file; give a directory".format(option, path)) from None
            except OSError as error:
                raise UsageError("{} {}: can't be written to ({})".format(option, path, error.strerror)) from None
            yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty, or was never made
                os.rmdir(path)
