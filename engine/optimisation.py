"""How the weights change: the optimiser, the learning rate of each epoch, and what is trained in it.

All of it follows from the options and the number of the epoch. So a run that goes on needs nothing of it but the
optimiser's own state.
"""
import collections
import math

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from engine import ranks
from engine.errors import UsageError
from model.compat import fused_option

MOMENTUM = 0.9  # of SGD

Group = collections.namedtuple("Group", "parameters factor")
Group.__doc__ = """Parameters with one learning rate: a list, and what the rate of the epoch is multiplied by."""

Trained = collections.namedtuple("Trained", "module factor")
Trained.__doc__ = """A criterion that is trained beside the network: a module on its device, and what the rate of the
epoch is multiplied by for its parameters, if it has any."""


def _adam(groups, args, kind=torch.optim.Adam):
    return kind(groups, lr=args.lr, weight_decay=args.weight_decay, **fused_option(kind, groups[0]["params"][0].device))


def _adamw(groups, args):
    return _adam(groups, args, torch.optim.AdamW)


def _sgd(groups, args):
    return torch.optim.SGD(groups, lr=args.lr, weight_decay=args.weight_decay, momentum=MOMENTUM)


def _step_rate(args, epoch):
    rate = args.lr
    for last, times in sorted(collections.Counter(args.lr_decay_epochs).items()):
        if last < epoch:
            rate *= args.lr_decay_gamma ** times
    return rate


def _cosine_rate(args, epoch):
    done = max(0, epoch - 1 - args.warmup_epochs) / (args.epochs - args.warmup_epochs)
    return args.lr * (1 + math.cos(math.pi * done)) / 2


# One more optimiser: (torch's groups, options) -> optimiser. One more schedule: (options, epoch from 1) -> rate.
OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}
SCHEDULES = {"step": _step_rate, "cosine": _cosine_rate}


def rate_of(args, epoch):
    """Return the learning rate of an epoch, from 1: that of --schedule, times e / (W + 1) in epoch e of W
    --warmup_epochs.

    With E --epochs and --lr r: ``step`` gives r times --lr_decay_gamma for each of --lr_decay_epochs that is over;
    ``cosine`` gives r (1 + cos(pi (e - 1 - W) / (E - W))) / 2 from epoch W + 1 on (Loshchilov and Hutter, ICLR 2017,
    arXiv:1608.03983, without restarts), and r before.
    """
    return min(1, epoch / (args.warmup_epochs + 1)) * SCHEDULES[args.schedule](args, epoch)


def parameter_groups(network, args, criteria=()):
    """Return the ``Group``s of an embedding network, one, or with --head_lr two, the backbone and the head; then those
    of ``criteria``, what is ``Trained`` beside it.

    Raises:
        UsageError: an option is for a part that the network does not have, or that is not trained.
    """
    head, beside = _head(network), [Group(list(module.parameters()), factor) for module, factor in criteria]
    beside = [group for group in beside if group.parameters]
    # What is trained beside the network at the head's rate is part of it: a projection, FitNet's convolution.
    new = head + [parameter for group in beside if group.factor == args.head_lr for parameter in group.parameters]
    if (args.head_epochs or args.head_lr != 1) and not any(parameter.requires_grad for parameter in new):
        raise UsageError("--{} does nothing here: the network has no head that is trained; leave it out".format(
            "head_epochs" if args.head_epochs else "head_lr"))
    if args.freeze_bn and not _batchnorms(network):
        raise UsageError("--freeze_bn does nothing here: the network has no BatchNorm; leave it out")
    if args.head_lr == 1:
        return [Group(list(network.parameters()), 1)] + beside
    return [Group(_backbone(network), 1), Group(head, args.head_lr)] + beside


def make_optimizer(groups, args):
    """Return torch's optimiser of some ``Group``s."""
    return OPTIMIZERS[args.optimizer]([{"params": group.parameters} for group in groups], args)


class Schedule:
    """What changes from epoch to epoch, and what is done to gradients before a step.

    In the first --head_epochs only the head is trained: the backbone is in evaluation mode, and neither its weights nor
    its BatchNorm statistics nor the optimiser's moments of it change. With --freeze_bn every BatchNorm stays in
    evaluation mode; its scale and shift are trained.

    Args:
        network: an embedding network. optimizer, groups: its optimiser, and the ``Group``s that this was made of.
        args: the options.
    """

    def __init__(self, network, optimizer, groups, args):
        self.network = network
        self.optimizer = optimizer
        self.groups = groups
        self.args = args
        self._head_alone = False

    def begin(self, epoch):
        """Make ready for the training steps of an epoch, from 1."""
        for group, ours in zip(self.optimizer.param_groups, self.groups):
            group["lr"] = ours.factor * rate_of(self.args, epoch)
        self._head_alone = epoch <= self.args.head_epochs
        self.network.train()
        if self._head_alone:
            self.network.base.eval()
        if self.args.freeze_bn:
            for layer in _batchnorms(self.network):
                layer.eval()
        if self.args.head_epochs and ranks.count() == 1:
            # This saves time only. DistributedDataParallel waits for every gradient that it knew at the start.
            for parameter in _backbone(self.network):
                parameter.requires_grad_(not self._head_alone)

    def adjust_gradients(self, scaler=None):
        """Drop the gradients of what is not trained in this epoch, and clip the others' norm to --clip_grad.

        Args:
            scaler: a GradScaler whose scale they still have, or None.
        """
        if self._head_alone:
            for parameter in _backbone(self.network):
                parameter.grad = None
        if self.args.clip_grad is None:
            return
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        clip_grad_norm_([parameter for group in self.groups for parameter in group.parameters], self.args.clip_grad)


def _head(network):
    """Return what is new in an embedding network: the parameters of its linear layer and its pooling."""
    return [parameter for name, parameter in network.named_parameters() if _is_new(name)]


def _backbone(network):
    """Return the other parameters, which may have begun from pretrained weights."""
    return [parameter for name, parameter in network.named_parameters() if not _is_new(name)]


def _is_new(name):
    return not name.startswith("base.") or name.startswith("base.pool.")


def _batchnorms(network):
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
