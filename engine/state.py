"""All that a training run needs to go on as if nothing had happened, and the file that it lies in."""
import collections
import json
import math
import random

import numpy as np
import torch

from model import WeightsError, check_finite, read_tensors

__all__ = ["Training", "Progress", "read_state", "VERSION"]

VERSION = 2
# What changes in a schedule, and in a group of an optimiser, while a run goes on; the rest follows from the options.
SCHEDULE = ("last_epoch", "base_lrs", "_last_lr", "_step_count")
GROUP = ("lr", "initial_lr")


class Progress:
    """How far a run has come: ``batch`` batches of epoch ``epoch`` are done. Epoch 0 is the untrained measurement.

    Attributes:
        sums: the sum of the loss and of each term over these batches, on the device; None before the first.
        terms: names of the terms.
        pictures, seconds, waited: pictures seen, seconds spent, and spent waiting for pictures, in these batches.
        lr: the learning rate of this epoch.
    """

    def __init__(self, epoch=0):
        self.epoch = epoch
        self.batch = 0
        self.sums = None
        self.terms = []
        self.pictures = 0
        self.seconds = self.waited = 0.0
        self.lr = 0.0

    def capture(self):
        return dict(vars(self), sums=None if self.sums is None else self.sums.cpu())

    def restore(self, values, device):
        vars(self).update({name: values[name] for name in vars(self)})
        self.sums = None if self.sums is None else self.sums.to(device)


class Training:
    """What a training step changes: the network, its optimiser, the schedule, the scaler, every random source.

    Args:
        network, optimizer, schedule: as torch has them.
        precision: the ``Precision`` that the step runs in.
        device: where the network is.
    """

    def __init__(self, network, optimizer, schedule, precision, device):
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.device = device

    def weights(self):
        """Return the bare state dict of the network, on the CPU, in the usual memory layout."""
        return collections.OrderedDict((name, value.detach().cpu().contiguous())
                                       for name, value in self.network.state_dict().items())

    def capture(self):
        """Return everything but the network's weights as tensors on the CPU in plain containers."""
        scaler = self.precision.scaler
        schedule = {name: self.schedule.state_dict()[name] for name in SCHEDULE}
        return {"optimizer": _on_cpu(self.optimizer.state_dict()), "schedule": schedule,
                "scaler": None if scaler is None else scaler.state_dict(), "precision": self.precision.name,
                "random": _random_state(self.device)}

    def restore(self, path, weights, state, has_stepped):
        """Take over what ``weights`` and ``capture`` once gave.

        Args:
            has_stepped: whether the optimiser has made a step by then.

        Raises:
            WeightsError: they are of another network, or incomplete; names ``path``.
        """
        try:
            self.network.load_state_dict(weights)
            self._restore_optimizer(state["optimizer"], has_stepped)
            self.schedule.load_state_dict(_taken(state["schedule"], self.schedule.state_dict(), SCHEDULE))
            if self.precision.scaler is not None and state["scaler"] is not None:
                fresh = self.precision.scaler.state_dict()
                self.precision.scaler.load_state_dict(_taken(state["scaler"], fresh, fresh))
            _restore_random(state["random"], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise WeightsError("{} does not fit this run: {}".format(
                path, (str(error) or type(error).__name__).strip().splitlines()[0])) from None

    def _restore_optimizer(self, state, has_stepped):
        """Take over the moments and the learning rate; all else in an optimiser follows from the options."""
        fresh = self.optimizer.state_dict()
        for ours, theirs in zip(fresh["param_groups"], state["param_groups"]):
            if theirs["params"] != ours["params"]:
                raise ValueError("the optimiser is of other weights")
            ours.update(_taken(theirs, ours, GROUP))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        trained = {number for number, parameter in enumerate(parameters) if parameter.requires_grad}
        # A scaler leaves out steps, perhaps all of them so far.
        if set(state["state"]) != trained and (state["state"] or has_stepped and self.precision.scaler is None):
            raise ValueError("the optimiser's moments are incomplete")
        for number, moments in state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameters[number].shape:
                    raise ValueError("{} of weight {} does not fit".format(name, number))
            if not float(moments["step"]) >= 1:
                raise ValueError("the step of weight {} does not fit".format(number))
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": fresh["param_groups"]})


def _taken(saved, fresh, names):
    """Return {name: value} of ``names`` in ``saved``; each must be there, and of the type that it has in ``fresh``."""
    for name in names:
        if not _alike(fresh[name], saved[name]):
            raise ValueError("{} can't be {!r}".format(name, saved[name]))
    return {name: saved[name] for name in names}


def _alike(one, other):
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_alike, one, other))
    if _is_number(one):
        return _is_number(other)
    return type(one) is type(other)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_dict(value, key, entry):
    return isinstance(value, dict) and all(key(name) and entry(item) for name, item in value.items())


def _is_text(value):
    return isinstance(value, str)


def _is_list_of(kind):
    return lambda value: isinstance(value, list) and all(type(entry) is kind for entry in value)


def _is_count(value):
    return type(value) is int and value >= 0


def _is_option(value):
    values = value if isinstance(value, list) else [value]
    return all(entry is None or type(entry) in (bool, int, float, str) for entry in values)


# What there is in a state, and what it looks like.
_PARTS = {
    "version": _is_count, "script": _is_text, "options": lambda value: _is_dict(value, _is_text, _is_option),
    "inputs": lambda value: _is_dict(value, _is_text, _is_text),
    "data": lambda value: _is_dict(value, _is_text, lambda entry: (
        isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and _is_text(entry[1]))),
    "progress": lambda value: isinstance(value, dict), "record": lambda value: isinstance(value, dict),
    "log": lambda value: _is_list_of(str)(value) and all(map(_is_line, value)),
    "speed": lambda value: _is_list_of(str)(value) and all(map(_is_line, value)),
    "training": lambda value: isinstance(value, dict) and set(value) == TRAINING and _is_text(value["precision"]),
    "network": lambda value: _is_dict(value, _is_text, lambda entry: isinstance(entry, torch.Tensor))}
TRAINING = {"optimizer", "schedule", "scaler", "precision", "random"}
_PROGRESS = {
    "epoch": _is_count, "batch": _is_count, "pictures": _is_count, "seconds": _is_number, "waited": _is_number,
    "lr": _is_number, "terms": _is_list_of(str), "sums": lambda value: value is None or isinstance(value, torch.Tensor)}
_RECORD = {
    "best": lambda value: _is_dict(value, _is_text, _is_number),
    "final": lambda value: _is_dict(value, _is_text, _is_number),
    "best_epoch": _is_count, "untrained": lambda value: value is None or _is_number(value)}


def _is_line(text):
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(line, dict) and "epoch" in line and "\n" not in text


def _fits(values, parts):
    return isinstance(values, dict) and all(name in values and check(values[name]) for name, check in parts.items())


def read_state(path):
    """Return the content of a run's ``checkpoint.pth``: a dict.

    Raises:
        WeightsError: no such file, damaged, none of ours, or with weights that are not finite.
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or set(_PARTS) - set(state):
        raise WeightsError("{} is not the state of a run; what a run leaves to go on from is called checkpoint.pth"
                           .format(path))
    if state["version"] != VERSION:
        raise WeightsError("{} was written by another version of this project (format {}, here {})".format(
            path, state["version"], VERSION))
    for name, check in _PARTS.items():
        if not check(state[name]):
            raise WeightsError("{} is damaged: its {} is not what a run writes".format(path, name))
    progress, record = state["progress"], state["record"]
    sums = progress.get("sums")
    if not _fits(progress, _PROGRESS) or (sums is None) != (progress["batch"] == 0) or (
            sums is not None and sums.shape != (1 + len(progress["terms"]),)):
        raise WeightsError("{} does not say how far its run has come".format(path))
    # One line an epoch, from the untrained one on; their figures are there once that is measured.
    if not _fits(record, _RECORD) or len(state["log"]) != progress["epoch"] or len(state["speed"]) != max(
            0, progress["epoch"] - 1) or progress["epoch"] > 0 and (
                record["untrained"] is None or not {"test"} <= set(record["best"]) & set(record["final"])):
        raise WeightsError("{} does not say what its run has reached".format(path))
    check_finite(path, state["network"])
    return state


def _on_cpu(value):
    """Copy nested dicts and lists with their tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()  # in its own memory layout
    if isinstance(value, dict):
        return {name: _on_cpu(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_cpu(entry) for entry in value]
    return value


def _random_state(device):
    version, numbers, spare = random.getstate()
    kind, keys, position, has_spare, other_spare = np.random.get_state()
    return {"python": [version, torch.tensor(numbers), spare],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_spare, other_spare],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def _restore_random(state, device):
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers.tolist()), spare))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
