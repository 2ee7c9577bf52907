"""The objects that change in training, and how they are saved to and restored from ``checkpoint.pth``."""
import dataclasses
import random
from typing import List, Optional

import numpy as np
import torch

from model.compat import accelerator_rng_state, set_accelerator_rng_state

WAYS = ("fused", "foreach")  # how a step of the optimiser is computed


@dataclasses.dataclass
class Progress:
    """How far a run has come. Epoch 0 is the untrained measurement."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    sums: Optional[torch.Tensor] = None  # of the loss and of each term over these batches, on the device
    terms: List[str] = dataclasses.field(default_factory=list)  # their names
    pictures: int = 0  # in these batches
    seconds: float = 0.0  # of training, in these batches
    waited: float = 0.0  # the part of them spent waiting for pictures
    waited_for_ranks: float = 0.0  # the part spent waiting for other processes
    lr: float = 0.0  # of this epoch

    def add(self, loss, terms):
        """Count a batch: its loss and {name: term}, scalars on the device."""
        values = torch.stack([loss] + list(terms.values()))
        self.terms = list(terms)
        self.sums = values if self.sums is None else self.sums + values
        self.batch += 1

    def capture(self):
        return {name: on_cpu(value) for name, value in vars(self).items()}

    @classmethod
    def restored(cls, values, device):
        """Return what ``capture`` gave; any other value raises an exception, of whatever type."""
        progress = cls(**values)
        if progress.epoch < 1 or (progress.sums is None) != (progress.batch == 0):
            raise ValueError("epoch {}, batch {}".format(progress.epoch, progress.batch))
        if progress.sums is not None:
            progress.sums = progress.sums.to(device).view(1 + len(progress.terms))
        return progress


class Training:
    """The network, its optimiser, the schedule, the scaler of its loss, and every random source.

    Args:
        network, optimizer: as torch has them. schedule: the ``Schedule``, which follows from the options.
        precision: the ``Precision`` that a step runs in. device: where the network is.
        criteria: {name: module}, trained beside the network. kept: {file that lies beside best.pth: name of one}.
    """

    def __init__(self, network, optimizer, schedule, precision, device, criteria=(), kept=()):
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.device = device
        self.criteria = torch.nn.ModuleDict(criteria)
        self._kept = dict(kept)

    def weights(self):
        """Return the bare state dict of the network, on the CPU, in the usual memory layout."""
        weights = self.network.state_dict()
        for name in weights:  # in place: what the network notes of itself beside its tensors stays
            weights[name] = weights[name].detach().cpu().contiguous()
        return weights

    def beside_weights(self):
        """Return {file: state dict} of what lies beside best.pth."""
        return {file: on_cpu(dict(self.criteria[name].state_dict())) for file, name in self._kept.items()}

    def capture(self):
        """Return {part: tensors on the CPU in plain containers} of everything but the network."""
        scaler = self.precision.scaler
        return {"optimizer": on_cpu(self.optimizer.state_dict()), "random": _random_state(self.device),
                "criteria": on_cpu(dict(self.criteria.state_dict())),
                "scaler": None if scaler is None else scaler.state_dict()}

    def restore(self, part, saved):
        """Take over "network" or a part of what ``capture`` gave; any other value raises some exception."""
        if part == "network":
            self.network.load_state_dict(saved)
        elif part == "criteria":
            self.criteria.load_state_dict(saved)
        elif part == "optimizer":
            _restore_optimizer(self.optimizer, saved)
        elif part == "scaler" and self.precision.scaler is not None and saved is not None:
            self.precision.scaler.load_state_dict(saved)
        elif part == "random":
            _restore_random(saved, self.device)


def _restore_optimizer(optimizer, saved):
    """Take over a saved state. How a step is computed stays as it is here, whatever it was where that was saved."""
    groups = list(saved["param_groups"])
    for number, group in enumerate(optimizer.param_groups[:len(groups)]):
        groups[number] = dict(groups[number], **{name: group[name] for name in WAYS if name in group})
    optimizer.load_state_dict(dict(saved, param_groups=groups))
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name != "step" and isinstance(value, torch.Tensor):
                # On a CPU a fused step goes through memory from end to end and doesn't look at strides: all must have
                # those of the weights.
                state[name] = torch.empty_like(parameter).copy_(value)


def on_cpu(value):
    """Copy nested dicts and lists with their tensors on the CPU, each in its own memory layout."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {name: on_cpu(entry) for name, entry in value.items()}
    return [on_cpu(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _random_state(device):
    version, numbers, spare = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {"python": [version, torch.tensor(numbers), spare],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(), "accelerator": accelerator_rng_state(device)}


def _restore_random(state, device):
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers.tolist()), spare))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["accelerator"] is not None:
        set_accelerator_rng_state(state["accelerator"], device)
