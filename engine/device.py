"""Where the networks run, with how many threads, and every random source."""
import os
import random
import sys
import time

import numpy as np
import torch

from dataset import usable_cores
from engine import ranks
from engine.errors import UsageError, first_line
from engine.precision import train_depthwise_in_float32
from metric.utils import pdist
from model.compat import compile_network, keep_freed_memory, require_float32_products

SECONDS_TO_WATCH = 0.2  # how busy the cores are
BUSY_CORES = 0.7  # so many of those that the threads need; less is noise


def resolve_device(name):
    """Return (torch.device, why) for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, made ready.

    ``auto`` takes the first accelerator that can train, else the CPU. From then on float32 products and convolutions
    are computed in float32, not in TF32.

    Raises:
        UsageError: no such device, or it doesn't work.
    """
    require_float32_products()
    device, why = _first_that_works() if name == "auto" else (_as_asked(name), "as asked")
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # pictures are all of one size
    return device, why


def _as_asked(name):
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError("--device {}: give auto, cpu, cuda, cuda:N or mps".format(name)) from None
    device = _of_this_rank(device)
    reason = _why_it_fails(device)
    if reason:
        raise UsageError("--device {} doesn't work here ({}); try --device cpu".format(name, reason))
    return device


def _first_that_works():
    reasons = []
    for kind in ("cuda", "mps"):
        reason = "not there"
        if _is_present(kind):
            device = _of_this_rank(torch.device(kind))
            reason = _why_it_fails(device)
            if reason is None:
                return device, "the first accelerator that works"
        reasons.append("{}: {}".format(kind, reason))
    return torch.device("cpu"), "no accelerator that works; " + ", ".join(reasons)


def _is_present(kind):
    if kind == "cuda":
        return torch.cuda.is_available()
    backend = getattr(torch.backends, kind, None)
    return backend is not None and backend.is_available()


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


def _why_it_fails(device):
    """Return None if the device can compute distances and their gradient (mps can't in most versions of torch), else
    the reason in one line."""
    try:
        points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], device=device, requires_grad=True)
        pdist(points).sum().backward()
        points.grad.cpu()
        return None
    except Exception as error:  # a driver's failure comes as RuntimeError, AssertionError, NotImplementedError ...
        return first_line(error)


def use_threads(wanted, device):
    """Let torch compute with ``wanted`` threads on the CPU; return what to print of it.

    None: as many as torch takes by itself (all cores, or OMP_NUM_THREADS); ranks that train on the CPU divide the cores
    of their machine.
    """
    if wanted is None and ranks.count() > 1 and device.type == "cpu":
        wanted = max(1, usable_cores() // ranks.local()[1])
    if wanted is not None:
        torch.set_num_threads(wanted)
    threads = torch.get_num_threads()
    free = _free_cores() if threads > 1 and ranks.count() == 1 and device.type == "cpu" else None
    if free is None or free > threads - BUSY_CORES:
        return str(threads)
    return ("{}; this machine is busy, {:.1f} of {} cores are free; --threads 1 may be several times faster: threads "
            "that share a core wait for each other".format(threads, free, usable_cores()))


def _free_cores():
    """Return how many of the cores that this process may use are idle now, or None where Linux doesn't tell."""
    def ticks():
        """{core: (idle, all)} since the machine was started."""
        with open("/proc/stat") as file:
            rows = [line.split() for line in file if line[:3] == "cpu" and line[3].isdigit()]
        return {int(row[0][3:]): (int(row[4]) + int(row[5]), sum(map(int, row[1:9]))) for row in rows}

    try:
        before = ticks()
        time.sleep(SECONDS_TO_WATCH)
        after = ticks()
        return sum((after[core][0] - before[core][0]) / max(1, after[core][1] - before[core][1])
                   for core in os.sched_getaffinity(0))
    except (OSError, AttributeError, LookupError, ValueError):
        return None


def peak_memory(device):
    """Return the most bytes that this process has held so far: of a CUDA device's memory in tensors, else of the
    machine's; None where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def place(network, device):
    """Return ``network`` on ``device``, its convolutions in the memory format in which the pictures come."""
    if device.type == "cpu":
        train_depthwise_in_float32(network)
    return network.to(device, memory_format=torch.channels_last)


def compiled(network):
    """Let torch.compile make the forward pass of ``network``, in place.

    Raises:
        UsageError: there is no compiler, or it doesn't work here.
    """
    try:
        compile_network(network)
    except Exception as error:  # the compiler's own, of many types
        raise UsageError("--compile doesn't work here ({}); leave it out".format(first_line(error))) from None


def seed_everything(seed):
    """Seed Python, NumPy and torch (all its devices)."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
