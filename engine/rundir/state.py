"""The state of a run, ``checkpoint.pth``: all that it needs to go on as if nothing had happened."""
import os
import zipfile

from engine.errors import first_line
from engine.rundir.paths import found_again
from engine.training import Progress
from model import WeightsError, check_finite, read_tensors

VERSION = 5
ADVICE = "put back a copy, or start again with --overwrite instead of --resume"
TRAINING = ("criteria", "optimizer", "scaler", "random")  # the parts of ``Training.capture``
PARTS = ("version", "script", "options", "inputs", "data", "progress", "record", "log", "speed", "precision",
         "network") + TRAINING
KINDS = dict(dict.fromkeys(("options", "inputs", "data", "progress", "record", "network"), dict), log=list, speed=list)


def damaged(path, part, error):
    """Return the error that says that a part of the state at ``path`` can't be used."""
    return WeightsError("{} is damaged: its {} can't be used ({}); {}".format(
        path, part, first_line(error), ADVICE))


def read_state(path):
    """Return the content of a run's ``checkpoint.pth``: {part: value}; paths among its options as they hold today.

    Raises:
        WeightsError: no such file, damaged, none of ours, or with weights that are not finite.
    """
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise WeightsError("{}; {}".format(error, ADVICE)) from None
    if not isinstance(state, dict) or not {"version", "script", "network"} <= set(state):
        raise WeightsError("{} is not the state of a run; what a run leaves to go on from is called checkpoint.pth"
                           .format(path))
    if state["version"] != VERSION:
        raise WeightsError("{} was written by another version of this project (format {}, here {}), so the run can't "
                           "go on; the weights beside it still load with --load".format(
                               path, state["version"], VERSION))
    state.setdefault("criteria", {})  # a run of an earlier version has none
    part = "content"
    try:
        with zipfile.ZipFile(path) as archive:  # torch doesn't look at its check sums
            if archive.testzip():
                raise ValueError("a check sum is wrong")
        for part in PARTS:
            if not isinstance(state[part], KINDS.get(part, object)):
                raise ValueError("it is a {}".format(type(state[part]).__name__))
        part = "progress"
        if not all(type(state[part].get(name)) is int for name in ("epoch", "batch")):
            raise ValueError("no epoch or batch")
    except Exception as error:  # zipfile raises many types
        raise damaged(path, part, error) from None
    check_finite(path, state["network"])
    return dict(state, options=found_again(state["options"], os.path.dirname(path)))


def restore(path, state, training):
    """Put ``training`` into the state that ``read_state`` gave, and return its ``Progress``.

    Raises:
        WeightsError: the state doesn't fit; names the part.
    """
    try:
        for part in ("network",) + TRAINING:
            training.restore(part, state[part])
        part = "progress"
        return Progress.restored(state["progress"], training.device)
    except Exception as error:  # torch raises many types for a value that it can't use
        raise damaged(path, part, error) from None
