#!/usr/bin/env python3
r"""Train an embedding network on a loss of metric learning, or measure its Recall@K.

Train a teacher, then measure it (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068):

  python3 run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 \
      --embedding_size 512 --save_dir teacher
  python3 run.py --mode eval --load teacher/best.pth

The same without data, network or accelerator, on birds that are drawn on first use:

  python3 run.py --mode train --dataset synthetic --image_size 64 --base resnet18 --pretrained none \
      --embedding_size 512 --sample distance --lr 3e-4 --epochs 8 --iter_per_epoch 40 --save_dir teacher
"""
import sys

from engine import arguments, asymmetric, export, modes, options, ranks
from engine.data import open_data
from engine.errors import run_script
from engine.evaluation import evaluate_splits
from engine.loop import Job, fit
from engine.losses import LOSS_OPTIONS, add_loss_options, build_loss, check_loss, numbers_of
from engine.networks import for_evaluation, for_steps, frozen, open_network
from engine.optimisation import Trained
from engine.recipe import parse_with_recipe
from engine.settle import settled

TRAINING_ONLY = ("num_image_per_class", "crop", "views", "iter_per_epoch", "save_dir", "resume", "checkpoint_every",
                 "overwrite", "sync_bn", "select") + LOSS_OPTIONS + options.OPTIMISATION
MEASURING = ("metrics", "no_train_recall", "val_classes", "precision", "compile")  # what training and measuring share
NETWORKS = [("load", "")]  # the option that names a network's file, and the prefix of that network's options


def build_parser():
    parser = arguments.new_parser("run.py", __doc__)
    group = parser.add_argument_group("what to do")
    modes.add_mode_option(group, MODES, default="train")
    group.add_argument("--load", type=arguments.path, metavar="PATH",
                       help="weights of a network to start from or to measure. What you don't give of the network "
                            "(base, embedding size, normalisation) is taken from it and from the config.json beside "
                            "it; with --mode eval and export the data options (dataset, data, image_size ...), too")
    group.add_argument("--out", type=arguments.path, metavar="PATH",
                       help="where the result goes. --mode export: the file, .onnx or .pt (TorchScript)")
    options.add_data_options(parser)
    options.add_pretrained_options(options.add_network_options(parser, "network"))
    asymmetric.add_gallery_options(parser)
    export.add_export_options(parser)
    add_loss_options(parser)
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-5, lr_decay_epochs=[25, 30, 35], lr_decay_gamma=0.5, epochs=40)
    options.add_run_options(parser)
    return parser


def measure(command):
    def check(args, given):
        modes.refuse_idle(MODES, args, given)
        asymmetric.check_gallery(args, given)

    has_gallery = asymmetric.gallery_of(command.args) is not None
    networks = NETWORKS + [asymmetric.GALLERY] * has_gallery
    # Settle: run.args does not change after this.
    with settled(command, check, networks, data_options_from="", trains=False) as run:
        projection = asymmetric.open_projection(run)
        # Data.
        data = open_data(run)
        # Networks.
        network = for_evaluation(run, open_network(run))
        gallery_network = frozen(run, open_network(run, "gallery_", "Gallery")) if has_gallery else None
        # Measure.
        if has_gallery:
            asymmetric.evaluate_across(run, network, gallery_network, projection, data.evaluation)
        else:
            evaluate_splits(network, data.evaluation, run.args, run.device, epoch=0, precision=run.precision)


def ship(command):
    def check(args, given):
        modes.refuse_idle(MODES, args, given)
        export.check_export(args, given)

    # Settle: run.args does not change after this.
    with settled(command, check, NETWORKS, data_options_from="", trains=False) as run:
        # Data.
        data = None if run.args.no_check else open_data(run)
        # Network.
        network = open_network(run)
        # Export.
        export.export_network(run, network, data)


def train(command):
    def check(args, given):
        modes.refuse_idle(MODES, args, given)
        return check_loss(args, given)

    # Settle: run.args does not change after this.
    with settled(command, check, NETWORKS) as run:
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
        fit(Job(run, data, network, step, printed_bests=[best], criteria={"loss": Trained(criterion, args.proxy_lr)}))


# One more mode is one row.
MODES = {
    "train": modes.Mode("train a network", train, TRAINING_ONLY + MEASURING),
    "eval": modes.Mode("measure Recall@K only", measure, asymmetric.OPTIONS + MEASURING),
    "export": modes.Mode("write the network as an ONNX or TorchScript file", ship, export.OPTIONS + ("out",)),
}


def main(argv=None):
    def run_command():
        command = parse_with_recipe(build_parser(), argv)
        return MODES[command.args.mode].run(command)

    return run_script("run.py", run_command)


if __name__ == "__main__":
    sys.exit(main())
