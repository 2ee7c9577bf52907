#!/usr/bin/env python3
r"""Train an embedding network on a loss of metric learning, measure its Recall@K, embed pictures and search in them.

Train a teacher, then measure it (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068):

  python3 run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 \
      --embedding_size 512 --save_dir teacher
  python3 run.py --mode eval --load teacher/best.pth
  python3 run.py --mode report --load teacher/best.pth --out looks

The same without data, network or accelerator, on birds that are drawn on first use:

  python3 run.py --mode train --dataset synthetic --image_size 64 --base resnet18 --pretrained none \
      --embedding_size 512 --sample distance --lr 3e-4 --epochs 8 --iter_per_epoch 40 --save_dir teacher

Look at what a student finds, beside its teacher; write it as a file that needs no PyTorch:

  python3 run.py --mode report --load student/best.pth --gallery_load teacher/best.pth --out looks
  python3 run.py --mode export --load student/best.pth --out student.onnx

Embed a folder of pictures, and find what looks like others:

  python3 run.py --mode embed --load teacher/best.pth --dataset folder --data pictures --out gallery.npz
  python3 run.py --mode search --load teacher/best.pth --gallery gallery.npz --query a.jpg b.jpg --out found.png
"""
import functools
import os
import sys

from engine import arguments, asymmetric, modes, options, ranks
from engine.data import open_data
from engine.errors import UsageError, run_script
from engine.evaluation import evaluate_splits, titled
from engine.export import EXPORT_OPTIONS, add_export_options, export
from engine.gallery.embedding import EMBED_OPTIONS, add_embed_options, embed
from engine.gallery.search import SEARCH_OPTIONS, add_search_options, find
from engine.loop import Job, fit
from engine.losses import LOSS_OPTIONS, add_loss_options, build_loss, check_loss, numbers_of
from engine.networks import describe_network, for_evaluation, for_steps, frozen, open_network
from engine.optimisation import Trained
from engine.rundir import held_directory
from engine.settle import settled
from report import FILES as REPORT_FILES
from report import OPTIONS as REPORT_OPTIONS
from report import (Shown, add_report_options, draw_found, leave_pictures, read_log, read_logs, short_names,
                    write_report)

# Options that not every mode uses.
TRAINING_ONLY = ("num_image_per_class", "crop", "views", "iter_per_epoch", "save_dir", "resume", "checkpoint_every",
                 "overwrite", "sync_bn", "select", "log") + LOSS_OPTIONS + options.OPTIMISATION
DATA = ("dataset", "download", "image_size", "resize", "workers", "skip_broken", "cache")
RECALL = ("recall", "skip_single")
OF_TRAINING_CLASSES = ("no_train_recall", "val_classes")
ARITHMETIC = ("precision", "compile")
NETWORKS = [("load", "")]  # the option that names a network's file, and the prefix of that network's options


def build_parser():
    parser = arguments.new_parser("run.py", __doc__)
    group = parser.add_argument_group("what to do")
    modes.add_mode_option(group, MODES, default="train")
    group.add_argument("--load", type=arguments.path, metavar="PATH",
                       help="weights of a network to start from or to measure. What you don't give of the network "
                            "(base, embedding size, normalisation) is taken from it and from the config.json beside "
                            "it; with --mode eval, report, embed and export the data options (dataset, data, "
                            "image_size ...), too")
    group.add_argument("--out", type=arguments.path, metavar="PATH",
                       help="where the result goes. report: the directory of report.html, curves.png, gallery.png and "
                            "map.png; embed: the gallery, .npz, or .npy with a .csv and a .json beside it; search: a "
                            "picture of what is found, .png or .jpg; export: the file, .onnx or .pt (TorchScript)")
    options.add_data_options(parser)
    options.add_pretrained_options(options.add_network_options(parser, "network"))
    asymmetric.add_gallery_options(parser)
    add_report_options(parser)
    add_embed_options(parser)
    add_search_options(parser)
    add_export_options(parser)
    add_loss_options(parser)
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-5, lr_decay_epochs=[25, 30, 35], lr_decay_gamma=0.5, epochs=40)
    options.add_run_options(parser)
    return parser


def measure(command):
    has_gallery = asymmetric.gallery_of(command.args) is not None
    networks = NETWORKS + [asymmetric.GALLERY] * has_gallery
    # Settle: run.args does not change after this.
    with settled(command, asymmetric.check_gallery, networks, data_options_from="", trains=False) as run:
        # Networks: first, since they show whether a projection is missing.
        network = for_evaluation(run, open_network(run))
        if has_gallery:
            gallery_network = frozen(run, open_network(run, "gallery_", "Gallery"))
            projection = asymmetric.open_projection(run, network, gallery_network)
        # Data.
        data = open_data(run)
        # Measure.
        if has_gallery:
            asymmetric.evaluate_across(run, network, gallery_network, projection, data.evaluation)
        else:
            evaluate_splits(network, data.evaluation, run.args, run.device, epoch=0, precision=run.precision)


def draw_report(command):
    args = command.args
    runs = [] if args.load is None else [os.path.dirname(args.load) or "."]  # the one that made the network

    def check(args, given):
        asymmetric.check_gallery(args, given)
        for directory in args.compare or ():
            if read_log(directory) is None:
                raise UsageError("--compare {}: there is no log.jsonl of a run".format(directory))

    if args.out is None:
        raise UsageError("--mode report needs --out DIR, the directory of the page")
    modes.check_new(args, [os.path.join(args.out, name) for name in REPORT_FILES])
    # Settle: run.args does not change after this.
    has_other = asymmetric.gallery_of(args) is not None
    networks = NETWORKS + [asymmetric.GALLERY] * has_other
    with held_directory(args.out if ranks.is_first() else None, "--out"), settled(
            command, check, networks, data_options_from="", trains=False) as run:
        # Data.
        data = open_data(run, wanted=("test",))
        # Networks: each searches in what it has embedded itself.
        paths = [run.args.load or run.args.base] + [asymmetric.gallery_of(run.args)] * has_other
        shown = []
        for (_, prefix), path, name in zip(networks, paths, short_names(paths)):
            network, kept = for_evaluation(run, open_network(run, prefix)), {}
            found = evaluate_splits(network, data.evaluation, run.args, run.device, 0, run.precision, kept)
            shown.append(Shown(name, path, describe_network(run.args, prefix), kept["test"], titled(found["test"])))
        # Draw.
        if ranks.is_first():
            write_report(run.args.out, shown, read_logs(runs + (run.args.compare or [])),
                         ["python3", command.script] + command.words, run.args.seed, *runs)


def train(command):
    # Settle: run.args does not change after this.
    with settled(command, check_loss, NETWORKS) as run:
        # Data.
        data = open_data(run)
        # Network.
        network = open_network(run)
        model = for_steps(run, network)
        args, labels_there = run.args, data.batches.labels
        criterion = build_loss(args, len(labels_there), network.embedding_size).to(run.device)
        numbers = numbers_of(labels_there, run.device)

        # Fit.
        def step(images, labels):
            # The embeddings and labels of the whole batch, from all ranks.
            embeddings, labels = ranks.gathered(model(images), args.batch), ranks.gathered(labels, args.batch)
            return {args.loss: criterion(embeddings, numbers[labels])}

        best = ("Best Recall@{}".format(args.recall[0]), "Best", "test")
        embedded = fit(Job(run, data, network, step, printed_bests=[best],
                           criteria={"loss": Trained(criterion, args.proxy_lr)}))
        # See.
        if run.record.writes:
            leave_pictures(args.save_dir, embedded, args.seed)


# One more mode is one row.
MODES = {
    "train": modes.Mode("train a network", train,
                        TRAINING_ONLY + DATA + RECALL + OF_TRAINING_CLASSES + ARITHMETIC + ("metrics",)),
    "eval": modes.Mode("measure Recall@K only", measure,
                       DATA + RECALL + OF_TRAINING_CLASSES + ARITHMETIC + ("metrics",) + asymmetric.OPTIONS),
    "report": modes.Mode("write a page about what a network finds (docs/report.md)", draw_report,
                         DATA + RECALL + ARITHMETIC + ("metrics",) + asymmetric.OF_TWO_NETWORKS + REPORT_OPTIONS
                         + ("out", "overwrite")),
    "embed": modes.Mode("write the embeddings of all pictures to a file, a gallery (docs/search.md)", embed,
                        DATA + ARITHMETIC + EMBED_OPTIONS + ("out", "overwrite")),
    "search": modes.Mode("find the nearest of a gallery, or near-duplicates in it",
                         functools.partial(find, draw=draw_found), ARITHMETIC + SEARCH_OPTIONS + ("out", "overwrite")),
    "export": modes.Mode("write the network as an ONNX or TorchScript file (docs/export.md)", export,
                         DATA + RECALL + EXPORT_OPTIONS + ("out", "overwrite")),
}


def main(argv=None):
    def run_command():
        command = modes.parse(build_parser(), MODES, argv)
        return MODES[command.args.mode].run(command)

    return run_script("run.py", run_command)


if __name__ == "__main__":
    sys.exit(main())
