"""Where the networks run, and every random source."""
import random

import numpy as np
import torch

from dataset import usable_cores
from engine import ranks
from engine.errors import UsageError
from model.compat import compile_network, keep_freed_memory, require_float32_products

__all__ = ["resolve_device", "prepare_device", "place", "compiled", "seed_everything"]


def resolve_device(name):
    """Return (torch.device, why) for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` takes the first accelerator that can add two numbers, else the CPU. From then on products of float32 are
    computed in float32.

    Raises:
        UsageError: no such device, or it doesn't work.
    """
    require_float32_products()
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UsageError("--device {}: give auto, cpu, cuda, cuda:N or mps".format(name)) from None
        device = _of_this_rank(device)
        reason = _failure(device)
        if reason:
            raise UsageError("--device {} doesn't work here ({}); try --device cpu".format(name, reason))
        return device, "as asked"
    reasons = []
    for candidate in ("cuda", "mps"):
        reason = "none"
        if _is_present(candidate):
            device = _of_this_rank(torch.device(candidate))
            reason = _failure(device)
        if reason is None:
            return device, "the first accelerator that works"
        reasons.append("{}: {}".format(candidate, reason))
    return torch.device("cpu"), "no accelerator that works; " + ", ".join(reasons)


def prepare_device(device):
    """Set what makes the device fast and changes no figure beyond rounding."""
    if device.type == "cpu":
        keep_freed_memory()
        if ranks.count() > 1:
            torch.set_num_threads(max(1, usable_cores() // ranks.local()[1]))
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # pictures are all of one size


def place(network, device):
    """Return ``network`` on ``device``, its convolutions in the memory format in which the pictures come."""
    return network.to(device, memory_format=torch.channels_last)


def compiled(network):
    """Let torch.compile make the forward pass of ``network``, in place.

    Raises:
        UsageError: there is no compiler, or it doesn't work here.
    """
    try:
        compile_network(network)
    except Exception as error:  # the compiler's own, of many types
        raise UsageError("--compile doesn't work here ({}); leave it out".format(
            (str(error) or type(error).__name__).strip().splitlines()[0])) from None


def seed_everything(seed):
    """Seed Python, NumPy and torch (all its devices)."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def _of_this_rank(device):
    """Return the device of this rank: each process on a machine has an accelerator of its own."""
    if ranks.count() == 1 or device.type == "cpu":
        return device
    number, count = ranks.local()
    if device.type != "cuda" or device.index is not None:
        raise UsageError("--device {} is one device for {} processes; give cuda, cpu or auto".format(
            device, ranks.count()))
    if count > torch.cuda.device_count():
        raise UsageError("{} processes on a machine with {} accelerators; let torchrun start as many as there are, or "
                         "give --device cpu".format(count, torch.cuda.device_count()))
    return torch.device("cuda", number)


def _is_present(kind):
    if kind == "cuda":
        return torch.cuda.is_available()
    backend = getattr(torch.backends, kind, None)
    return backend is not None and backend.is_available()


def _failure(device):
    """Return None if the device can add two numbers, else the reason in one line."""
    try:
        torch.ones(1, device=device).add_(1).cpu()
        return None
    except Exception as error:  # a driver's failure comes as RuntimeError, AssertionError, NotImplementedError ...
        return (str(error) or type(error).__name__).strip().splitlines()[0]
