"""Command-line options that both scripts share, and the checks that need no picture."""
import argparse
import collections
import re

from dataset import CROPS, DATASETS, RESIZES, TRUNCATED, default_workers, usable_cores
from engine.arguments import (backbone_name, not_negative_float, not_negative_int, path, positive_float, positive_int,
                              refuse_idle, true_or_false, whole)
from engine.errors import UsageError
from engine.optimisation import MOMENTUM, OPTIMIZERS, SCHEDULES
from engine.precision import PRECISIONS
from engine.tracking import TRACKERS
from metric.utils import MEASURES
from model import BACKBONES, POOLS

DEFAULT_SEED = 0
SMALLEST_IMAGE = 32  # a ResNet halves the side five times
# Beyond these an option is a typing error: the machine would run out of memory before the first step.
LARGEST_IMAGE = 4096
MOST_DIMENSIONS = 65536
MOST_PROCESSES = max(64, 8 * usable_cores())  # and threads


def add_data_options(parser):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=tuple(DATASETS), default="cub200",
                       help="; ".join("{}: {}".format(name, kind.summary) for name, kind in DATASETS.items()))
    group.add_argument("--data", type=path, metavar="DIR|FILE", default="data",
                       help="where data sets are kept; with --dataset folder, the directory of class folders: "
                            "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* (the first half of the sorted "
                            "classes trains, the rest tests); for --mode eval DIR/test/CLASS/* is enough, for --mode "
                            "embed any folder of pictures. In place of DIR/test there may be DIR/query and "
                            "DIR/gallery. With --dataset list, the .csv with the columns path (relative to the file), "
                            "label and split (train, test; or train, query, gallery; without this column the first "
                            "half of the sorted labels trains). With --mode search: where the gallery's pictures are "
                            "now, if they have moved")
    group.add_argument("--download", action="store_true", help="fetch the data set if it is not there ({})".format(
        ", ".join(name for name, kind in DATASETS.items() if kind.can_download)))
    group.add_argument("--image_size", type=whole(SMALLEST_IMAGE, LARGEST_IMAGE), default=224, metavar="PIXELS",
                       help="side of the crop that the network sees; pictures are resized to 8/7 of it first")
    group.add_argument("--resize", choices=tuple(RESIZES), default="square",
                       help="square: the whole picture is squeezed into a square, as in RKD's code; short: the short "
                            "side becomes 8/7 of --image_size and the middle square is kept, as in most other papers "
                            "on metric learning")
    group.add_argument("--val_classes", type=not_negative_int, default=0, metavar="N",
                       help="hold the last N training classes, in the order of their labels, out of training and "
                            "measure them like the test set, as the split val; see --select")
    group.add_argument("--crop", choices=tuple(CROPS), default="fixed",
                       help="training crops. fixed: a window of --image_size, as in the paper; resized: a window of 16 "
                            "to 100 %% of the area with sides of 3:4 to 4:3, resized to --image_size, as in Kim et "
                            "al., Embedding Transfer with Label Relaxation, CVPR 2021")
    group.add_argument("--workers", type=whole(0, MOST_PROCESSES), default=default_workers(), metavar="N",
                       help="loading processes; 0 loads in the main one; the default fits this machine")
    group.add_argument("--skip_broken", action="store_true",
                       help="go on without the pictures that can't be read, and list them, in skipped.txt or, with "
                            "--mode embed, in the gallery")
    group.add_argument("--truncated", choices=TRUNCATED, default="refuse",
                       help="a JPEG whose end is missing: refuse it as broken, or take it as viewers do, with what is "
                            "missing in grey")
    group.add_argument("--skip_single", action="store_true",
                       help="leave out classes of one picture, in both sets, and list them in skipped.txt")
    group.add_argument("--cache", type=path, default="auto", metavar="auto|off|DIR",
                       help="keep the decoded and resized pictures on disk, 196 kB each at --image_size 224, so that "
                            "each is decoded once; auto: in a hidden folder of --data or, if class folders lie there "
                            "or it can't be written, in the user's cache directory, as for a list. python3 -m "
                            "dataset.caches lists and removes them. With --mode embed the default is off: pictures are "
                            "decoded as they are needed")
    return group


def families():
    """Return in words how the names of all backbones begin: "alexnet, convnext_*, ..."."""
    begins = collections.OrderedDict()
    for name in sorted(BACKBONES):
        if "/" not in name:
            begins.setdefault(re.match("[a-z]+", name).group(), []).append(name)
    return ", ".join(names[0] if len(names) == 1 else begin + "*" for begin, names in begins.items())


class _ListBackbones(argparse.Action):
    """Prints all backbones and ends, as --help does."""

    def __init__(self, option_strings, dest, **words):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **words)

    def __call__(self, parser, *_):
        print("{:24}{:>8}{:>24}".format("name", "width", "million parameters"))
        for name, kind in sorted(BACKBONES.items()):
            print("{:24}{:>8}{:>24}".format(name, kind.output_size, kind.millions or "?"))
        parser.exit()


def add_network_options(parser, title, prefix=""):
    group = parser.add_argument_group(title)
    group.add_argument("--{}base".format(prefix), type=backbone_name, default="resnet50", metavar="NAME",
                       help="backbone, one that --list_backbones prints: torchvision's {}; or timm/NAME, a network of "
                            "the package timm".format(families()))
    group.add_argument("--{}embedding_size".format(prefix), type=whole(0, MOST_DIMENSIONS), default=128, metavar="D",
                       help="dimensions of the embedding; 0: no linear layer, the pooled features are the embedding")
    group.add_argument("--{}pool".format(prefix), choices=tuple(POOLS), default="avg",
                       help="pooling of the last map: average; maximum; their sum (Kim et al., CVPR 2020); the "
                            "generalised mean with a trained exponent (Radenovic et al., TPAMI 2018)")
    group.add_argument("--{}l2normalize".format(prefix), type=true_or_false, default=True, metavar="true|false",
                       help="project embeddings to the unit sphere")
    return group


def add_pretrained_options(group):
    group.add_argument("--pretrained", type=path, default="imagenet", metavar="imagenet|none|FILE",
                       help="weights to start from: torchvision's IMAGENET1K_V1, or timm's own (fetched once); random; "
                            "or a file with the names of that library, .pth or safetensors, with or without "
                            "classifier")
    group.add_argument("--zero_init_residual", action="store_true",
                       help="with --pretrained none: every residual block starts as the identity; a ResNet50 then "
                            "trains from random weights")


def add_batch_options(parser):
    group = parser.add_argument_group("batches")
    group.add_argument("--batch", type=positive_int, default=64, metavar="N",
                       help="rows of a batch: pictures, or with --views crops of them")
    group.add_argument("--views", type=positive_int, default=1, metavar="N",
                       help="crops of each picture in a training batch, which then holds --batch / N pictures; 1 as in "
                            "the paper; Kim et al., CVPR 2021 (see --crop), take 2")
    group.add_argument("--num_image_per_class", type=positive_int, default=5, metavar="N",
                       help="pictures of each class in a training batch")
    group.add_argument("--iter_per_epoch", type=positive_int, default=100, metavar="N", help="batches in an epoch")


def add_training_options(parser, lr, lr_decay_epochs, lr_decay_gamma, epochs):
    group = parser.add_argument_group("optimisation (the defaults are those of RKD)")
    group.add_argument("--recipe", type=path, metavar="FILE",
                       help="take options from a JSON file, {\"lr\": 0.001, ...} or the config.json of another run "
                            "(without its directory and its machine); the command line wins; see docs/recipes.md")
    group.add_argument("--epochs", type=positive_int, default=epochs, metavar="N", help="epochs")
    group.add_argument("--eval_every", type=positive_int, default=1, metavar="N",
                       help="measure after every N-th epoch, and after the last")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adam",
                       help="adam: RKD; adamw: Proxy Anchor (Kim et al., CVPR 2020) and Label Relaxation (Kim et al., "
                            "CVPR 2021); sgd: with momentum {}".format(MOMENTUM))
    group.add_argument("--weight_decay", type=not_negative_float, default=1e-5, metavar="FACTOR",
                       help="of all weights; adam and sgd add it times the weights to the gradient, adamw shrinks the "
                            "weights; Proxy Anchor and Label Relaxation: 1e-4")
    group.add_argument("--lr", type=positive_float, default=lr,
                       help="learning rate. The default is for ImageNet weights; from random weights 3e-4 (a teacher) "
                            "and 1e-3 (a student) are a good start, see docs/results.md; Proxy Anchor and Label "
                            "Relaxation: 1e-4")
    group.add_argument("--schedule", choices=tuple(SCHEDULES), default="step",
                       help="of the learning rate, from epoch to epoch; step: see --lr_decay_epochs; cosine: to 0 over "
                            "--epochs (Label Relaxation)")
    group.add_argument("--lr_decay_epochs", type=positive_int, nargs="+", default=lr_decay_epochs, metavar="EPOCH",
                       help="after these epochs the rate is multiplied by --lr_decay_gamma")
    group.add_argument("--lr_decay_gamma", type=positive_float, default=lr_decay_gamma, metavar="FACTOR",
                       help="see --lr_decay_epochs")
    group.add_argument("--warmup_epochs", type=not_negative_int, default=0, metavar="N",
                       help="in epoch e of the first N the rate is e / (N + 1) of what it would be (Goyal et al. 2017, "
                            "arXiv:1706.02677, who raise it in every batch)")
    group.add_argument("--head_epochs", type=not_negative_int, default=0, metavar="N",
                       help="in the first N epochs train the head alone, on the backbone as it is in evaluation (Proxy "
                            "Anchor: 1, with ResNet50 5)")
    group.add_argument("--head_lr", type=positive_float, default=1, metavar="FACTOR",
                       help="the head's rate is FACTOR times the backbone's, which is the one that is printed (10: "
                            "lifted structured embedding, Song et al., CVPR 2016)")
    group.add_argument("--freeze_bn", action="store_true",
                       help="BatchNorm keeps the means and variances that the run starts with; its scale and shift are "
                            "trained (Proxy Anchor)")
    group.add_argument("--clip_grad", type=positive_float, metavar="NORM",
                       help="scale the gradient down to this norm where it is longer (Pascanu et al., ICML 2013)")
    return group


# The names of these options.
OPTIMISATION = tuple(action.dest for action in add_training_options(
    argparse.ArgumentParser(), lr=1, lr_decay_epochs=[1], lr_decay_gamma=1, epochs=1)._group_actions)


def add_run_options(parser):
    group = parser.add_argument_group("run")
    group.add_argument("--list_backbones", action=_ListBackbones, help="print all backbones, and end")
    group.add_argument("--recall", type=positive_int, nargs="+", default=[1], metavar="K",
                       help="Recall@K is printed for each K; the first one selects best.pth")
    group.add_argument("--metrics", type=str.lower, choices=MEASURES, nargs="+", default=["recall"], metavar="NAME",
                       help="measures: {}; recall is always there, the others are means over the queries that have "
                            "something to find (docs/measures.md)".format(", ".join(MEASURES)))
    group.add_argument("--select", choices=("test", "val", "last"), default="test",
                       help="which epoch's weights are best.pth: that of the best recall of the test set, as "
                            "published; that of the best recall of --val_classes, which looks at no test picture; the "
                            "last one that is measured")
    group.add_argument("--no_train_recall", action="store_true", help="measure the test set only")
    group.add_argument("--seed", type=not_negative_int, default=DEFAULT_SEED, help="of every random source")
    group.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps", help="where networks run")
    group.add_argument("--threads", type=whole(1, MOST_PROCESSES), metavar="N",
                       help="threads of the CPU's arithmetic; the default is torch's own: one per core. On a machine "
                            "that others use too, 1 may be several times faster")
    group.add_argument("--precision", choices=PRECISIONS, default="auto",
                       help="arithmetic of the networks in training; auto: bf16 where the device has it in hardware, "
                            "else fp32. Losses are float32, and so are measurements and what is embedded, unless this "
                            "option says otherwise where nothing is trained")
    group.add_argument("--sync_bn", action="store_true",
                       help="under torchrun: BatchNorm over the whole batch instead of each process's part of it")
    group.add_argument("--compile", action="store_true", help="let torch.compile make the networks (torch 2.0 and up)")
    group.add_argument("--save_dir", type=path, metavar="DIR",
                       help="keep best.pth, last.pth, config.json, log.jsonl, speed.jsonl, result.txt, curves.png, "
                            "gallery.png, README.md (a model card; one of your own stays) and checkpoint.pth there; "
                            "without it nothing is kept")
    group.add_argument("--resume", action="store_true",
                       help="go on with the run in --save_dir from its checkpoint.pth; options that you don't give "
                            "are the run's own. Without a checkpoint.pth the run begins")
    group.add_argument("--checkpoint_every", type=positive_int, metavar="N",
                       help="write checkpoint.pth after every N-th batch of an epoch, too, not only after each epoch")
    group.add_argument("--log", choices=("none",) + tuple(TRACKERS), default="none",
                       help="give the figures of log.jsonl to this tracker, too, epoch by epoch (docs/report.md); "
                            "needs its package and --save_dir")
    group.add_argument("--overwrite", action="store_true", help="replace the run that --save_dir holds, or "
                       "what is at --out; with --mode embed a part of another job beside it, too")


def check_shared(args, given, trains):
    """Refuse (UsageError) what can be seen to be wrong from the options alone."""
    if args.load is not None:
        refuse_idle(given, ("pretrained", "zero_init_residual"), "with --load, which gives all weights")
    if args.zero_init_residual and args.pretrained != "none":
        raise UsageError("--zero_init_residual is for random weights: add --pretrained none")
    if trains and args.save_dir is None:
        refuse_idle(given, ("overwrite", "checkpoint_every"), "without --save_dir")


def check_data(args):
    """Refuse (UsageError) a data set that is not known, ``--download`` for one that can't be fetched, and classes that
    can't be held out."""
    if args.dataset not in DATASETS:  # a network's config.json may name any
        raise UsageError("--dataset {} is not known here; there are {}".format(args.dataset, ", ".join(DATASETS)))
    if args.val_classes == 1:
        raise UsageError("--val_classes 1: a recall needs at least 2 classes to tell apart")
    if args.val_classes and getattr(args, "unlabelled", None) is not None:
        raise UsageError("--val_classes {} holds out classes, and pictures of --unlabelled have none; leave one of "
                         "them out".format(args.val_classes))
    if args.select == "val" and not args.val_classes:
        raise UsageError("--select val needs --val_classes N, the number of training classes that are held out")
    data_set = DATASETS[args.dataset]
    if args.download and not data_set.can_download:
        raise UsageError("--download does nothing with --dataset {}; leave it out{}".format(
            args.dataset, data_set.how_to_get and ": " + data_set.how_to_get))


def check_training(args, given):
    """Refuse (UsageError) options of the optimisation that don't fit together."""
    if args.schedule == "cosine":
        refuse_idle(given, ("lr_decay_epochs", "lr_decay_gamma"), "with --schedule cosine")
    if args.warmup_epochs >= args.epochs:
        raise UsageError("--warmup_epochs {} leaves none of --epochs {} at the whole rate; take fewer".format(
            args.warmup_epochs, args.epochs))
    if args.freeze_bn:
        refuse_idle(given, ("sync_bn",), "with --freeze_bn: no statistics of a batch are used")


def check_batches(args, needs_pairs):
    """Refuse (UsageError) training batches that don't hold all views of each picture, batches of a single picture or,
    where pictures have labels, those that hold only one class or, where the loss needs pairs, none."""
    if args.batch % args.views:
        raise UsageError("--batch {} can't be divided into --views {} of each picture; take a batch of {}".format(
            args.batch, args.views, args.batch + args.views - args.batch % args.views))
    if getattr(args, "unlabelled", None) is not None:
        if args.batch < 2 * args.views:
            raise UsageError("--batch {}{} holds no two pictures to compare; take at least {}".format(
                args.batch, as_factor(args.views), 2 * args.views))
        return
    if needs_pairs and args.num_image_per_class < 2:
        raise UsageError("--num_image_per_class 1 leaves no two pictures of one class in a batch, and the loss needs "
                         "such pairs; take at least 2")
    in_class = args.views * args.num_image_per_class
    if args.batch <= in_class:
        raise UsageError("--batch {} with --num_image_per_class {}{} is smaller than 2 classes; take a batch of at "
                         "least {}".format(args.batch, args.num_image_per_class, as_factor(args.views), 2 * in_class))


def as_factor(views):
    """Return the words on ``--views`` in a message about the size of batches."""
    return "" if views == 1 else " and --views {}".format(views)
