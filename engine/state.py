"""All that a training run needs to go on as if nothing had happened, and the file that it lies in."""
import collections
import random

import numpy as np
import torch

from model import WeightsError, check_finite, read_tensors

__all__ = ["Training", "Progress", "read_state", "VERSION"]

VERSION = 1
# What MultiStepLR keeps of its options is taken from the options; the rest of its state is numbers.
SCHEDULE_OPTIONS = ("milestones",)
PARTS = {"version": int, "script": str, "options": dict, "inputs": dict, "data": dict, "progress": dict, "record": dict,
         "log": list, "speed": list, "training": dict, "network": dict}


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
        schedule = {name: value for name, value in self.schedule.state_dict().items() if name not in SCHEDULE_OPTIONS}
        return {"optimizer": _on_cpu(self.optimizer.state_dict()), "schedule": schedule,
                "scaler": None if scaler is None else scaler.state_dict(), "precision": self.precision.name,
                "random": _random_state(self.device)}

    def restore(self, path, weights, state):
        """Take over what ``weights`` and ``capture`` once gave.

        Raises:
            WeightsError: they are of another network; names ``path``.
        """
        try:
            self.network.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.precision.scaler is not None and state["scaler"] is not None:
                self.precision.scaler.load_state_dict(state["scaler"])
            _restore_random(state["random"], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise WeightsError("{} does not fit this run: {}".format(
                path, (str(error) or type(error).__name__).strip().splitlines()[0])) from None


def read_state(path):
    """Return the content of a run's ``checkpoint.pth``: a dict of ``PARTS``.

    Raises:
        WeightsError: no such file, damaged, none of ours, or with weights that are not finite.
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in PARTS.items()):
        raise WeightsError("{} is not the state of a run; what a run leaves to go on from is called checkpoint.pth"
                           .format(path))
    if state["version"] != VERSION:
        raise WeightsError("{} was written by another version of this project (format {}, here {})".format(
            path, state["version"], VERSION))
    if not all(isinstance(value, torch.Tensor) for value in state["network"].values()):
        raise WeightsError("{} holds no state dict (names and tensors)".format(path))
    expected = vars(Progress())
    if set(state["progress"]) != set(expected) or any(
            not isinstance(state["progress"][name], int) for name in ("epoch", "batch", "pictures")):
        raise WeightsError("{} does not say how far its run has come".format(path))
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
