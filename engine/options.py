"""Command-line options that both scripts share, and the checks that need no picture."""
import argparse
import math

from dataset import DATASETS, default_workers, usable_cores
from engine import ranks
from engine.errors import EXIT_USAGE, UsageError
from engine.precision import PRECISIONS
from model import BACKBONES

__all__ = ["new_parser", "add_data_options", "add_network_options", "add_pretrained_options", "add_batch_options",
           "add_training_options", "add_run_options", "positive_float", "not_negative_float", "parse", "accepts",
           "refuse_idle", "check_shared", "check_download", "check_batches", "SAMPLER_HELP", "SMALLEST_IMAGE",
           "LARGEST_IMAGE"]

PLANNED_DATASETS = ("cars196", "stanford", "inshop")
PLANNED_BACKBONES = ("googlenet", "inception_v1bn")
SAMPLER_HELP = ("which negatives: any at random, the nearest, all, semi-hard ones, or by distance as the published "
                "networks were trained (distance) or as the sampling paper means it (distance_eligible)")
DEFAULT_SEED = 0
SMALLEST_IMAGE = 32  # a ResNet halves the side five times
# Beyond these an option is a slip of the finger: the machine would run out of memory before the first step.
LARGEST_IMAGE = 4096
MOST_DIMENSIONS = 65536


def positive_int(text):
    return _number(int, text, lambda value: value >= 1, "a whole number of at least 1")


def dimensions(text):
    return _number(int, text, lambda value: 1 <= value <= MOST_DIMENSIONS,
                   "a whole number from 1 to {}".format(MOST_DIMENSIONS))


def processes(text):
    most = max(64, 8 * usable_cores())
    return _number(int, text, lambda value: 0 <= value <= most, "a whole number from 0 to {}".format(most))


def not_negative_int(text):
    return _number(int, text, lambda value: 0 <= value < 2 ** 63, "a whole number of at least 0")


def image_side(text):
    return _number(int, text, lambda value: SMALLEST_IMAGE <= value <= LARGEST_IMAGE,
                   "a whole number from {} to {}".format(SMALLEST_IMAGE, LARGEST_IMAGE))


def positive_float(text):
    return _number(float, text, lambda value: math.isfinite(value) and value > 0, "a number above 0")


def not_negative_float(text):
    return _number(float, text, lambda value: math.isfinite(value) and value >= 0, "a number of at least 0")


def true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError("{!r} is neither true nor false".format(text))
    return text.lower() == "true"


def _number(kind, text, accept, description):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError("{!r} is not {}".format(text, description))
    return value


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description and shows defaults where there are any to show."""

    def _fill_text(self, text, width, indent):
        return "\n".join(indent + line for line in text.splitlines())

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool) and action.nargs == 0:
            return action.help
        if isinstance(action.default, (list, tuple)):
            return action.help + " (default: {})".format(" ".join(map(str, action.default)))
        if isinstance(action.default, bool):
            return action.help + " (default: {})".format(str(action.default).lower())
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option with one line, without the whole usage before it; of several processes, the first does."""

    def _print_message(self, message, file=None):
        try:
            is_first = ranks.is_first()
        except UsageError:  # it has no number; what is wrong with it is said later
            is_first = True
        if is_first:
            super()._print_message(message, file)

    def error(self, message):
        self.exit(EXIT_USAGE, "{}: error: {} (--help lists the options)\n".format(self.prog, " ".join(message.split())))


def new_parser(program, description):
    return _Parser(prog=program, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def add_data_options(parser):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=tuple(DATASETS) + PLANNED_DATASETS, default="cub200",
                       help="cub200: CUB-200-2011; folder: class folders of your own; synthetic: birds drawn on first "
                            "use; the others are not here yet")
    group.add_argument("--data", metavar="DIR", default="data",
                       help="where data sets are kept; with --dataset folder, the directory of class folders: "
                            "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* (the first half of the sorted "
                            "classes trains, the rest tests)")
    group.add_argument("--download", action="store_true", help="fetch the data set if it is not there (cub200)")
    group.add_argument("--image_size", type=image_side, default=224, metavar="PIXELS",
                       help="side of the crop that the network sees; pictures are resized to 8/7 of it first")
    group.add_argument("--workers", type=processes, default=default_workers(), metavar="N",
                       help="loading processes; 0 loads in the main one; the default fits this machine")
    group.add_argument("--skip_broken", action="store_true",
                       help="go on without the pictures that can't be read, and list them in skipped.txt")
    group.add_argument("--cache", default="auto", metavar="auto|off|DIR",
                       help="keep the decoded and resized pictures on disk, 196 kB each at --image_size 224, so that "
                            "each is decoded once; auto: in a hidden folder of --data, if it can be written")


def add_network_options(parser, title, prefix=""):
    group = parser.add_argument_group(title)
    group.add_argument("--{}base".format(prefix), choices=PLANNED_BACKBONES + tuple(BACKBONES), default="resnet50",
                       help="backbone; googlenet and inception_v1bn are not here yet")
    group.add_argument("--{}embedding_size".format(prefix), type=dimensions, default=128, metavar="D",
                       help="dimensions of the embedding")
    group.add_argument("--{}l2normalize".format(prefix), type=true_or_false, default=True, metavar="true|false",
                       help="project embeddings to the unit sphere")
    return group


def add_pretrained_options(group):
    group.add_argument("--pretrained", default="imagenet", metavar="imagenet|none|FILE",
                       help="weights to start from: torchvision's IMAGENET1K_V1 (fetched once), random, or a file of "
                            "torchvision's names, with or without classifier")
    group.add_argument("--zero_init_residual", action="store_true",
                       help="with --pretrained none: every residual block starts as the identity; a ResNet50 then "
                            "trains from random weights")


def add_batch_options(parser):
    group = parser.add_argument_group("batches")
    group.add_argument("--batch", type=positive_int, default=64, metavar="N", help="pictures in a batch")
    group.add_argument("--num_image_per_class", type=positive_int, default=5, metavar="N",
                       help="pictures of each class in a training batch")
    group.add_argument("--iter_per_epoch", type=positive_int, default=100, metavar="N", help="batches in an epoch")
    return group


def add_training_options(parser, lr, lr_decay_epochs, lr_decay_gamma, epochs):
    group = parser.add_argument_group("optimisation (Adam, weight decay 1e-5)")
    group.add_argument("--epochs", type=positive_int, default=epochs, metavar="N", help="epochs")
    group.add_argument("--eval_every", type=positive_int, default=1, metavar="N",
                       help="measure after every N-th epoch, and after the last")
    group.add_argument("--lr", type=positive_float, default=lr, help="learning rate")
    group.add_argument("--lr_decay_epochs", type=positive_int, nargs="+", default=lr_decay_epochs, metavar="EPOCH",
                       help="after these epochs the rate is multiplied by --lr_decay_gamma")
    group.add_argument("--lr_decay_gamma", type=positive_float, default=lr_decay_gamma, metavar="FACTOR",
                       help="see --lr_decay_epochs")


def add_run_options(parser):
    group = parser.add_argument_group("run")
    group.add_argument("--recall", type=positive_int, nargs="+", default=[1], metavar="K",
                       help="Recall@K is printed for each K; the first one selects best.pth")
    group.add_argument("--no_train_recall", action="store_true", help="measure the test set only")
    group.add_argument("--seed", type=not_negative_int, default=DEFAULT_SEED, help="of every random source")
    group.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps", help="where networks run")
    group.add_argument("--precision", choices=PRECISIONS, default="auto",
                       help="arithmetic of the networks in training; auto: bf16 where the device has it in hardware, "
                            "else fp32. Losses are float32, and so is every measurement unless --mode eval is told "
                            "otherwise")
    group.add_argument("--sync_bn", action="store_true",
                       help="under torchrun: BatchNorm over the whole batch instead of each process's share of it")
    group.add_argument("--compile", action="store_true", help="let torch.compile make the networks (torch 2.0 and up)")
    group.add_argument("--save_dir", metavar="DIR",
                       help="keep best.pth, last.pth, config.json, log.jsonl, speed.jsonl, result.txt and "
                            "checkpoint.pth there; without it nothing is kept")
    group.add_argument("--resume", action="store_true",
                       help="go on with the run in --save_dir from its checkpoint.pth; options that you don't state "
                            "are the run's own. Where there is none yet, begin")
    group.add_argument("--checkpoint_every", type=positive_int, metavar="N",
                       help="write checkpoint.pth after every N-th batch of an epoch, too, not only after each epoch")
    group.add_argument("--overwrite", action="store_true", help="replace the run that --save_dir holds")


def parse(parser, argv):
    """Return (options, names of the options that the command line states)."""
    args = parser.parse_args(argv)
    args.recall = list(dict.fromkeys(args.recall))
    unset = object()
    marked = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    return args, {name for name, value in vars(marked).items() if value is not unset}


def accepts(parser, name, value):
    """Whether ``value``, of any type, is one that the option ``name`` can have."""
    action, = [action for action in parser._actions if action.dest == name]
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return isinstance(value, bool)
    if action.nargs is not None:
        return isinstance(value, list) and bool(value) and all(_accepts_one(action, entry) for entry in value)
    return _accepts_one(action, value)


def _accepts_one(action, value):
    if action.type is None and not isinstance(value, str):
        return False
    try:
        known = value if action.type is None else action.type(str(value))
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return known == value and isinstance(value, bool) == isinstance(known, bool) and (
        action.choices is None or value in action.choices)


def refuse_idle(stated, names, reason):
    """Refuse options that the command states although they do nothing.

    Raises:
        UsageError: one of ``names`` is in ``stated``.
    """
    idle = sorted(set(names) & set(stated))
    if idle:
        raise UsageError("{} does nothing {}; leave it out".format(", ".join("--" + name for name in idle), reason))


def check_shared(args, stated):
    """Refuse what can be seen to be wrong from the options alone.

    Raises:
        UsageError
    """
    if args.dataset in PLANNED_DATASETS:
        raise UsageError("--dataset {} is not here yet; there are {}".format(args.dataset, ", ".join(DATASETS)))
    for name in ("base", "teacher_base"):
        if getattr(args, name, None) in PLANNED_BACKBONES:
            raise UsageError("--{} {} is not here yet; there are {}".format(
                name, getattr(args, name), ", ".join(BACKBONES)))
    if args.load:
        refuse_idle(stated, ("pretrained", "zero_init_residual"), "with --load, which gives all weights")
    if args.zero_init_residual and args.pretrained != "none":
        raise UsageError("--zero_init_residual is for random weights: add --pretrained none")
    if args.save_dir is None and getattr(args, "mode", "train") == "train":
        refuse_idle(stated, ("overwrite", "checkpoint_every"), "without --save_dir")


def check_download(args):
    """Refuse ``--download`` where there is nothing to fetch; the data set must be known by now.

    Raises:
        UsageError
    """
    if args.download and args.dataset != "cub200":
        raise UsageError("--download does nothing with --dataset {}; leave it out".format(args.dataset))


def check_batches(args, pairs_needed):
    """Refuse training batches that hold only one class or, where the loss needs pairs of one class, none.

    Raises:
        UsageError
    """
    if pairs_needed and args.num_image_per_class < 2:
        raise UsageError("--num_image_per_class 1 leaves no two pictures of one class in a batch, and the loss needs "
                         "such pairs; take at least 2")
    if args.batch <= args.num_image_per_class:
        raise UsageError("--batch {} with --num_image_per_class {} is smaller than 2 classes; take a batch of at least "
                         "{}".format(args.batch, args.num_image_per_class, 2 * args.num_image_per_class))
