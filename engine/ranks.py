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
import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from engine import interruption
from engine.errors import LostCompanions, UsageError
from model.compat import load_tensors

__all__ = ["OF_A_MACHINE", "count", "number", "is_first", "local", "joined", "begin", "use_device", "shares", "share",
           "gathered", "summed", "from_first", "agree", "machine_by_machine", "wait_for_all", "parallel",
           "synchronised_by_library", "spread_buffers", "describe"]

# For the others to write a checkpoint, sort out a recall. A process that ends is noticed at once.
PATIENCE = datetime.timedelta(minutes=15)
# For another machine to fetch and decode the pictures.
PATIENCE_FOR_PICTURES = datetime.timedelta(days=1)
# What may differ between the machines of one run.
OF_A_MACHINE = {"workers", "cache", "device", "data", "download"}
# What the errors of gloo and NCCL say, of no class of their own, when another process is gone.
LOST = ("connection closed", "connection reset", "closed by peer", "broken pipe", "timed out waiting",
        "wait timeout", "communicator was aborted", "remote process exited", "watchdog caught collective")

# Tensors of an accelerator travel in a group of its own library; None stands for the group of all that comes before.
_tensors = None
_for_pictures = None
_preparing = False


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
def joined(options=None):
    """Wait for the other ranks and act as one of them within the block. Only the first rank's output is shown.

    Args:
        options: {name: value} of the command line, which must be that of the other ranks.

    Raises:
        UsageError: they can't be reached, or have other options.
        LostCompanions: one of them has gone.
    """
    global _tensors, _for_pictures, _preparing
    if count() == 1:
        yield
        return
    # So that a survivor in the middle of an exchange of NCCL's ends; newer versions have it from the start.
    os.environ.setdefault("NCCL_ASYNC_ERROR_HANDLING", "1")
    try:
        with interruption.default_interruptions():  # it waits in C++, where a handler of ours would not be called
            dist.init_process_group("gloo", timeout=PATIENCE)
            _for_pictures = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_PICTURES)
    except (RuntimeError, ValueError) as error:
        raise UsageError("the {} processes of this run can't meet ({}); torchrun sets MASTER_ADDR, MASTER_PORT, RANK "
                         "and WORLD_SIZE".format(count(), str(error).splitlines()[0])) from None
    output, errors = sys.stdout, sys.stderr
    try:
        interruption.agree_with(_largest, number(), count())
        _preparing = True
        if not is_first():
            sys.stdout, sys.stderr = open(os.devnull, "w"), _NoTerminal(errors)
        if options is not None:
            agree({"--" + name: value for name, value in options.items() if name not in OF_A_MACHINE})
        yield
        wait_for_all()
        dist.destroy_process_group()
    except Exception as error:
        if _is_lost(error):
            raise LostCompanions(str(error)) from None
        if _preparing and not isinstance(error, interruption.ToldElsewhere) and not hasattr(error, "is_told_by"):
            with contextlib.suppress(RuntimeError):  # they have gone
                interruption.stop_if_interrupted(error)
        raise
    finally:
        if dist.is_initialized() and _tensors is None:  # NCCL would wait for those that are lost
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        _tensors, _for_pictures, _preparing = None, None, False
        interruption.agree_with(None)
        if sys.stdout is not output:
            sys.stdout.close()
            sys.stdout, sys.stderr = output, errors


def _is_lost(error):
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "dataloader" not in text and any(words in text for words in LOST)


def begin():
    """To be called by all ranks when the preparations are over.

    Until then every exchange between them begins with the question whether one has failed, which a rank that fails
    takes part in as its last.
    """
    global _preparing
    if count() > 1:
        interruption.stop_if_interrupted()
    _preparing = False


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
    agree({"kind of --device": device.type})
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
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_for_pictures if _preparing else None)
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
    """Call ``make()`` on the first rank and return its value, tensors in plain containers, on every rank.

    Raises:
        ToldElsewhere: on the others, where the first rank raises an exception of its own.
    """
    if count() == 1:
        return make()
    interruption.stop_if_interrupted()
    content, size = None, torch.full((1,), -1)
    if is_first():
        try:
            value, file = make(), io.BytesIO()
        except Exception as error:
            error.is_told_by = "this process"
            dist.broadcast(size, 0)
            raise
        torch.save(value, file)
        content = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
        size[0] = len(content)
    dist.broadcast(size, 0)
    if int(size) < 0:
        raise interruption.ToldElsewhere
    if content is None:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return value if is_first() else load_tensors(io.BytesIO(content.numpy().tobytes()))


def agree(values):
    """See that all ranks hold the same {name: value}, of what JSON can hold.

    Raises:
        UsageError: on the ranks whose values differ from the first one's; names them.
        ToldElsewhere: on the others.
    """
    if count() == 1:
        return
    first, ours = json.loads(from_first(lambda: json.dumps(values))), json.loads(json.dumps(values))
    differing = ["{} {} in the first process, {} in this one".format(name, first.get(name), ours.get(name))
                 for name in sorted(set(first) | set(ours)) if first.get(name) != ours.get(name)]
    interruption.stop_if_interrupted(UsageError("the processes of this run must be alike: {}".format(
        ", ".join(differing))) if differing else None)


def machine_by_machine(make):
    """Return ``make()``, which the first rank of each machine calls before the others do.

    Raises:
        ToldElsewhere: another rank's call has raised an exception.
    """
    if count() == 1:
        return make()
    interruption.stop_if_interrupted()
    value = None
    for first in (True, False):
        failure = None
        if first == (local()[0] == 0):
            try:
                value = make()
            except Exception as error:
                failure = error
        interruption.stop_if_interrupted(failure)
    return value


def wait_for_all():
    """Wait until every rank has come here."""
    if count() > 1:
        dist.barrier()


def parallel(network, device):
    """Return ``network`` for training steps: its gradients become the mean over the ranks."""
    if count() == 1:
        return network
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1 x 1 convolutions
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None,
                                   process_group=_tensors)


def synchronised_by_library(network):
    """Return ``network`` with PyTorch's SyncBatchNorm in place of its BatchNorm; it is for accelerators."""
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network, _tensors)


def spread_buffers(network):
    """Give all ranks the first one's buffers (running means of BatchNorm), as their next training step would."""
    if count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0, group=_tensors)
