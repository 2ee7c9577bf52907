"""Several processes that train one network together, on one machine or on many: torchrun starts them.

Each of them, a rank, embeds its share of the global batch. Embeddings and labels are gathered, with their gradients, so
that every rank computes the loss of the whole batch, and R ranks give what one process gives.

How gradients add up: every rank holds the same loss L. What flows back through a gathering or a sum over ranks is
summed over the ranks, which gives the gradient of R L, and DistributedDataParallel's mean over the ranks takes the R
out again.

Without torchrun all of this is there and does nothing.
"""
import contextlib
import datetime
import io
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from engine import interruption
from engine.errors import UsageError
from model.compat import load_tensors

__all__ = ["count", "number", "is_first", "local", "joined", "shares", "share", "gathered", "summed", "from_first",
           "parallel", "spread_buffers", "describe"]

# For the others to write a checkpoint, decode pictures, sort out a recall. A process that ends is noticed at once.
PATIENCE = datetime.timedelta(minutes=15)

# Tensors of an accelerator travel in a group of its own library; None stands for the group of all that comes before.
_tensors = None


def _from_environment(name, default):
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise UsageError("the environment gives {} the value {!r}; torchrun sets it to a number".format(
            name, os.environ[name])) from None


def count():
    """Return how many ranks there are, also before they have joined."""
    return _from_environment("WORLD_SIZE", 1)


def number():
    """Return the number of this rank, from 0."""
    return _from_environment("RANK", 0)


def is_first():
    """Whether this rank is the one that prints and writes."""
    return number() == 0


def local():
    """Return (number of this rank on its machine, ranks on this machine)."""
    return _from_environment("LOCAL_RANK", 0), _from_environment("LOCAL_WORLD_SIZE", 1)


@contextlib.contextmanager
def joined():
    """Wait for the other ranks and act as one of them within the block. Only the first rank's output is shown.

    Raises:
        UsageError: they can't be reached.
    """
    if count() == 1:
        yield
        return
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UsageError("the {} processes of this run can't meet ({}); torchrun sets MASTER_ADDR, MASTER_PORT, RANK "
                         "and WORLD_SIZE".format(count(), str(error).splitlines()[0])) from None
    output, errors = sys.stdout, sys.stderr
    try:
        interruption.agree_with(_largest)
        if not is_first():
            sys.stdout, sys.stderr = open(os.devnull, "w"), _NoTerminal(errors)
        yield
        dist.barrier()
        dist.destroy_process_group()
    finally:
        interruption.agree_with(None)
        if sys.stdout is not output:
            sys.stdout.close()
            sys.stdout, sys.stderr = output, errors


class _NoTerminal:
    """A stream for errors, on which no bar is drawn."""

    def __init__(self, stream):
        self._stream = stream

    def isatty(self):
        return False

    def __getattr__(self, name):
        return getattr(self._stream, name)


def use_device(device):
    """Let tensors travel by the library of ``device``, too."""
    global _tensors
    if count() > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
        _tensors = dist.new_group(backend="nccl", timeout=PATIENCE)


def describe(device):
    """Return in words how many processes there are and how they talk."""
    if count() == 1:
        return "1"
    return "{}, {} on this machine ({})".format(count(), local()[1], "nccl" if device.type == "cuda" else "gloo")


def _largest(value):
    """Return the largest of the ranks' integers."""
    value = torch.tensor(value)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def shares(total):
    """Return [(start, stop)] of the ranks' shares of ``total`` things: consecutive, and of sizes that differ by 1 at
    most."""
    bounds = [total * rank // count() for rank in range(count() + 1)]
    return list(zip(bounds, bounds[1:]))


def share(total):
    """Return (start, stop) of this rank's share of ``total`` things."""
    return shares(total)[number()]


def gathered(tensor, total):
    """Return all ranks' shares as one tensor, in order, on every rank; gradients flow back.

    Args:
        tensor: the share of this rank, as ``share(total)`` says, by rows. total: rows of all shares together.
    """
    if count() == 1:
        return tensor
    return _Gathered.apply(tensor, total)


def summed(tensor):
    """Return the sum of the ranks' tensors of one shape, on every rank; gradients flow back."""
    return tensor if count() == 1 else _Summed.apply(tensor)


def _sum_in_place(tensor):
    dist.all_reduce(tensor, group=_tensors)
    return tensor


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, total):
        ctx.total = total
        # Every rank sends as many rows as the largest share has.
        most = max(stop - start for start, stop in shares(total))
        sent = tensor.new_zeros((most,) + tuple(tensor.shape[1:]))
        sent[:len(tensor)] = tensor
        parts = [torch.empty_like(sent) for _ in range(count())]
        dist.all_gather(parts, sent, group=_tensors)
        return torch.cat([part[:stop - start] for part, (start, stop) in zip(parts, shares(total))])

    @staticmethod
    def backward(ctx, gradient):
        start, stop = share(ctx.total)
        return _sum_in_place(gradient.clone(memory_format=torch.contiguous_format))[start:stop], None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return _sum_in_place(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx, gradient):
        return _sum_in_place(gradient.clone(memory_format=torch.contiguous_format))


def from_first(make):
    """Call ``make()`` on the first rank and return its value, tensors in plain containers, on every rank."""
    if count() == 1:
        return make()
    content, size = None, torch.zeros(1, dtype=torch.int64)
    if is_first():
        value, file = make(), io.BytesIO()
        torch.save(value, file)
        content = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
        size[0] = len(content)
    dist.broadcast(size, 0)
    if content is None:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return value if is_first() else load_tensors(io.BytesIO(content.numpy().tobytes()))


def parallel(network, device):
    """Return ``network`` for training steps: its gradients become the mean over the ranks."""
    if count() == 1:
        return network
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1 x 1 convolutions
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None,
                                   process_group=_tensors)


def spread_buffers(network):
    """Give all ranks the first one's buffers (running means of BatchNorm), as their next training step would."""
    if count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0, group=_tensors)
