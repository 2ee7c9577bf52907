"""The loss of run.py: its options, and how it is made."""
import argparse

import torch

from engine import arguments
from metric.loss import LOSSES, PREFIX, LossError, find_loss
from metric.pairsampler import SAMPLER_HELP, SAMPLERS

# Which option is for something that a loss may need.
OPTION_FOR = {"sampler": "sample", "margin": "margin", "classes": "proxy_lr"}


def _loss_name(text):
    if not text.startswith(PREFIX):  # a package is not imported before it is needed
        try:
            find_loss(text)
        except LossError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_loss_options(parser):
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", type=_loss_name, default="l2_triplet", metavar="NAME", help="; ".join(
        ["{}: {}".format(name, loss.help) for name, loss in LOSSES.items()] + [
            "{}NAME: one of the package pytorch-metric-learning with its defaults, as {}CircleLoss".format(
                PREFIX, PREFIX)]))
    group.add_argument("--sample", choices=tuple(SAMPLERS), default="all",
                       help="{}; for {}".format(SAMPLER_HELP, _needing("sampler")))
    group.add_argument("--margin", type=arguments.positive_float, default=0.2,
                       help="margin of the loss; for {}".format(_needing("margin")))
    for name, loss in LOSSES.items():
        for option, setting in loss.settings.items():
            group.add_argument("--" + option, type=arguments.not_negative_float if setting.may_be_0 else
                               arguments.positive_float, default=setting.default, help="{}: {}".format(
                                   name, setting.help))
    group.add_argument("--proxy_lr", type=arguments.positive_float, default=100, metavar="FACTOR",
                       help="what the loss learns for each class, as its proxies, has FACTOR times the rate --lr; for "
                            "{} and those of {}NAME that take num_classes".format(_needing("classes"), PREFIX))
    return group


def _needing(what):
    return ", ".join(name for name, loss in LOSSES.items() if what in loss.needs)


# The names of these options.
LOSS_OPTIONS = tuple(action.dest for action in add_loss_options(argparse.ArgumentParser())._group_actions)


def check_loss(args, given):
    """Refuse (UsageError, LossError) a loss that can't be used, and options of others; return whether it needs two
    pictures of a class."""
    loss = find_loss(args.loss)
    used = {"loss"} | {OPTION_FOR.get(need) for need in loss.needs} | set(loss.settings)
    arguments.refuse_idle(given, set(LOSS_OPTIONS) - used, "with --loss {}".format(args.loss))
    return "classes" not in loss.needs


def build_loss(args, classes, embedding_size):
    """Return the loss that the options ask for: (embeddings, labels from 0 to ``classes`` - 1) -> scalar."""
    loss = find_loss(args.loss)
    there = {"margin": args.margin, "sampler": SAMPLERS[args.sample](), "classes": classes,
             "embedding_size": embedding_size}
    return loss.build(**{need: there[need] for need in loss.needs},
                      **{setting.argument: getattr(args, option) for option, setting in loss.settings.items()})


def numbers_of(labels, device):
    """Return a tensor that gives, indexed with labels, their places in the sorted list ``labels``: 0, 1, 2 ..."""
    numbers = torch.zeros(labels[-1] + 1, dtype=torch.int64)
    numbers[labels] = torch.arange(len(labels))
    return numbers.to(device)
