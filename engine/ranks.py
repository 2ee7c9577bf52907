"""Several processes that train one network together, on one machine or on many: torchrun starts them.

Each of them, a rank, embeds its part of the global batch. Embeddings and labels are gathered, with their gradients, so
that every rank computes the loss of the whole batch, and R ranks give what one process gives.

How gradients add up: every rank holds the same loss L. What flows back through a gathering or a sum over ranks is
summed over the R ranks, so each gets R times its part of the gradient of L, and DistributedDataParallel's mean over the
ranks divides by R.

A rank that fails prints why and ends; the launcher ends the others, or they lose its connection and end (`LostRank`).

With one process every function here is a no-op.
"""
import contextlib
import datetime
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from engine.errors import LostRank, UsageError, first_line
from engine.interruption import agree_with, default_interruptions

# How long a rank waits for another one that is alive; one that ends is noticed at once.
PATIENCE = datetime.timedelta(minutes=15)
PATIENCE_FOR_PICTURES = datetime.timedelta(days=1)  # a machine may have to fetch and decode them
# Options that may differ between the ranks of one run.
MAY_DIFFER = {"workers", "threads", "cache", "device", "data", "unlabelled", "download"}
# Texts of the errors of gloo and NCCL (they have no class of their own) when another rank is gone.
LOST = ("connection closed", "connection reset", "closed by peer", "broken pipe", "timed out waiting",
        "wait timeout", "communicator was aborted", "remote process exited", "watchdog caught collective")

# Groups of torch.distributed; None is the default one (gloo).
_tensors = None  # for the tensors of a GPU: NCCL
_pictures = None  # gloo with the longer patience


def _from_environment(name, default):
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise UsageError("the environment gives {} the value {!r}; torchrun sets it to a number".format(
            name, os.environ[name])) from None


def count():
    """Return how many ranks there are, also before they have joined."""
    return _from_environment("WORLD_SIZE", 1)


def refuse_several(what):
    """Refuse (UsageError) what one process does alone."""
    if count() > 1:
        raise UsageError("{} is done by one process; start it without torchrun".format(what))


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
        LostRank: one of them has gone.
    """
    global _tensors, _pictures
    if count() == 1:
        yield
        return
    # A survivor in the middle of an exchange of NCCL's must end; newer versions set this themselves.
    os.environ.setdefault("NCCL_ASYNC_ERROR_HANDLING", "1")
    try:
        with default_interruptions():
            dist.init_process_group("gloo", timeout=PATIENCE)
            _pictures = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_PICTURES)
    except (RuntimeError, ValueError) as error:
        raise UsageError("the {} processes of this run can't meet ({}); torchrun sets MASTER_ADDR, MASTER_PORT, RANK "
                         "and WORLD_SIZE".format(count(), first_line(error))) from None
    output = sys.stdout
    try:
        agree_with(_largest)
        if not is_first():
            sys.stdout = open(os.devnull, "w", errors="backslashreplace")
        if options is not None:
            agree({"--" + name: value for name, value in options.items() if name not in MAY_DIFFER})
        yield
        wait_for_all()
        dist.destroy_process_group()
    except RuntimeError as error:
        if _is_lost(error):
            raise LostRank(first_line(error)) from None
        raise
    finally:
        if dist.is_initialized() and _tensors is None:  # NCCL would wait for those that are lost
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        _tensors, _pictures = None, None
        agree_with(None)
        if sys.stdout is not output:
            sys.stdout.close()
            sys.stdout = output


def _is_lost(error):
    text = str(error).lower()
    return "dataloader" not in text and any(words in text for words in LOST)


def use_device(device):
    """Let tensors travel by the library of ``device``, too."""
    global _tensors
    agree({"kind of --device": device.type})
    if count() > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
        _tensors = dist.new_group(backend="nccl", timeout=PATIENCE)


def _largest(value):
    value = torch.tensor(value)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def any_of(flag):
    """Return on every rank whether ``flag`` is true on any."""
    return bool(flag if count() == 1 else _largest(int(flag)))


def spans(total):
    """Return [(start, stop)] of the ranks' parts of ``total`` things: consecutive, their sizes differ by 1 at most."""
    bounds = [total * rank // count() for rank in range(count() + 1)]
    return list(zip(bounds, bounds[1:]))


def span(total):
    """Return (start, stop) of this rank's part of ``total`` things."""
    return spans(total)[number()]


def gathered(rows, total):
    """Return all ranks' rows as one tensor, in order, on every rank; gradients flow back.

    Args:
        rows: those of this rank, as ``span(total)`` says. total: rows of all ranks together.
    """
    if count() == 1:
        return rows
    return _Gathered.apply(rows, total)


def summed(tensor):
    """Return the sum of the ranks' tensors of one shape, on every rank; gradients flow back."""
    return tensor if count() == 1 else _Summed.apply(tensor)


def _sum(tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(tensor, group=_tensors)
    return tensor


class _Summed(torch.autograd.Function):
    forward = staticmethod(lambda ctx, tensor: _sum(tensor))
    backward = staticmethod(lambda ctx, gradient: _sum(gradient))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, total):
        ctx.total = total
        # all_gather needs equal shapes: every rank sends as many rows as the longest span has.
        most = max(stop - start for start, stop in spans(total))
        sent = rows.new_zeros((most,) + tuple(rows.shape[1:]))
        sent[:len(rows)] = rows
        parts = [torch.empty_like(sent) for _ in range(count())]
        dist.all_gather(parts, sent, group=_tensors)
        return torch.cat([part[:stop - start] for part, (start, stop) in zip(parts, spans(total))])

    @staticmethod
    def backward(ctx, gradient):
        start, stop = span(ctx.total)
        return _sum(gradient)[start:stop], None


def from_first(make):
    """Call ``make()`` on the first rank and return its value on every rank."""
    if count() == 1:
        return make()
    value = [make() if is_first() else None]
    dist.broadcast_object_list(value, src=0)
    return value[0]


def agree(values):
    """See that all ranks hold the same {name: value}.

    Raises:
        UsageError: they don't; names what differs, on all of them.
    """
    if count() == 1:
        return
    found = [None] * count()
    dist.all_gather_object(found, values)
    differing = ["{} is {} in process 0, {} in process {}".format(name, found[0].get(name), other.get(name), rank)
                 for rank, other in enumerate(found) for name in sorted(set(found[0]) | set(other))
                 if other.get(name) != found[0].get(name)]
    if differing:
        raise UsageError("the processes of this run must be alike: {}".format(", ".join(differing)))


def machine_by_machine(make):
    """Return ``make()``, which the first rank of each machine calls before the others; each waits for all."""
    if count() == 1:
        return make()
    for turn in (True, False):
        if turn == (local()[0] == 0):
            value = make()
        with default_interruptions():
            dist.barrier(group=_pictures)
    return value


def wait_for_all():
    if count() > 1:
        dist.barrier()


def parallel(network, device):
    """Return ``network`` for training steps: its gradients become the mean over the ranks."""
    if count() == 1:
        return network
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1 x 1 convolutions
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None,
                                   process_group=_tensors)


def average_gradients(module):
    """Make the gradients of a module that is not ``parallel`` the mean over the ranks, as those of one that is."""
    if count() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = _sum(parameter.grad) / count()


def synchronised_by_library(network):
    """Return ``network`` with PyTorch's SyncBatchNorm in place of its BatchNorm; it is for accelerators."""
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network, _tensors)


def spread_buffers(network):
    """Give all ranks the first one's buffers (running means of BatchNorm), as their next training step would."""
    if count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0, group=_tensors)
