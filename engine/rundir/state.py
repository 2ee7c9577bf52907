"""The state of a run, ``checkpoint.pth``: all that it needs to go on as if nothing had happened."""
import json
import zipfile

from engine.errors import first_line
from engine.training import Progress
from model import WeightsError, check_finite, read_tensors

VERSION = 3
TRAINING = ("optimizer", "schedule", "scaler", "random")  # the parts of ``Training.capture``
PARTS = ("version", "script", "options", "inputs", "data", "progress", "record", "log", "speed", "precision",
         "network") + TRAINING


def damaged(path, part, error):
    """Return the error that says that a part of the state at ``path`` can't be used."""
    return WeightsError("{} is damaged: its {} can't be used ({}); put back a copy, or start again with --overwrite "
                        "instead of --resume".format(path, part, first_line(error)))


def read_state(path):
    """Return the content of a run's ``checkpoint.pth``: {part: value}.

    Raises:
        WeightsError: no such file, damaged, none of ours, or with weights that are not finite.
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or not {"version", "script", "network"} <= set(state):
        raise WeightsError("{} is not the state of a run; what a run leaves to go on from is called checkpoint.pth"
                           .format(path))
    if state["version"] != VERSION:
        raise WeightsError("{} was written by another version of this project (format {}, here {})".format(
            path, state["version"], VERSION))
    part = "content"
    try:
        with zipfile.ZipFile(path) as archive:  # torch doesn't look at its check sums
            if archive.testzip():
                raise ValueError("a check sum is wrong")
        for part in PARTS:
            state[part]
        for part in ("options", "inputs", "data", "record", "network"):
            state[part].items()
        part = "progress"
        Progress.restored(state["progress"], "cpu")
        for part in ("log", "speed"):
            epochs = [json.loads(line)["epoch"] for line in state[part]]
            if epochs != list(range(part == "speed", state["progress"]["epoch"])):
                raise ValueError("it does not have one line an epoch")
    except Exception as error:  # whatever it is, the file is not what a run writes
        raise damaged(path, part, error) from None
    check_finite(path, state["network"])
    return state


def restore(path, state, training):
    """Put ``training`` into the state that ``read_state`` gave, and return its ``Progress``.

    Raises:
        WeightsError: the state doesn't fit; names the part.
    """
    try:
        for part in ("network",) + TRAINING:
            training.restore(part, state[part])
    except Exception as error:  # torch raises many types for a value that it can't use
        raise damaged(path, part, error) from None
    return Progress.restored(state["progress"], training.device)
