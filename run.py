#!/usr/bin/env python3
r"""Train an embedding network on a loss of metric learning, measure its Recall@K, embed pictures and search in them.

Train a teacher, then measure it (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068):

  python3 run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 \
      --embedding_size 512 --save_dir teacher
  python3 run.py --mode eval --load teacher/best.pth

The same without data, network or accelerator, on birds that are drawn on first use:

  python3 run.py --mode train --dataset synthetic --image_size 64 --base resnet18 --pretrained none \
      --embedding_size 512 --sample distance --lr 3e-4 --epochs 8 --iter_per_epoch 40 --save_dir teacher

Embed a folder of pictures, and find what looks like others:

  python3 run.py --mode embed --load teacher/best.pth --dataset folder --data pictures --out gallery.npz
  python3 run.py --mode search --load teacher/best.pth --gallery gallery.npz --query a.jpg b.jpg --out found.png
"""
import sys

from engine import arguments, asymmetric, modes, options, ranks
from engine.data import open_data
from engine.errors import run_script
from engine.evaluation import evaluate_splits
from engine.gallery import embedding, parts, search, spaces
from engine.loop import Job, fit
from engine.losses import LOSS_OPTIONS, add_loss_options, build_loss, check_loss, numbers_of
from engine.networks import for_evaluation, for_steps, frozen, open_network
from engine.optimisation import Trained
from engine.recipe import parse_with_recipe
from engine.settle import settled
from report.found import draw_found

TRAINING_ONLY = ("num_image_per_class", "crop", "views", "iter_per_epoch", "save_dir", "resume", "checkpoint_every",
                 "overwrite", "sync_bn", "select") + LOSS_OPTIONS + options.OPTIMISATION
MEASURING = ("recall", "metrics", "no_train_recall", "val_classes", "skip_single")
DATA = ("dataset", "download", "image_size", "resize", "workers", "skip_broken", "cache")
NETWORKS = [("load", "")]  # the option that names a network's file, and the prefix of that network's options


def build_parser():
    parser = arguments.new_parser("run.py", __doc__)
    group = parser.add_argument_group("what to do")
    modes.add_mode_option(group, MODES, default="train")
    group.add_argument("--load", type=arguments.path, metavar="PATH",
                       help="weights of a network to start from or to measure. What you don't give of the network "
                            "(base, embedding size, normalisation) is taken from it and from the config.json beside "
                            "it; with --mode eval and embed the data options (dataset, data, image_size ...), too")
    group.add_argument("--out", type=arguments.path, metavar="PATH",
                       help="where the result goes. embed: the gallery, .npz, or .npy with a .csv and a .json beside "
                            "it; search: a picture of what is found, .png or .jpg")
    options.add_data_options(parser)
    options.add_pretrained_options(options.add_network_options(parser, "network"))
    asymmetric.add_gallery_options(parser)
    embedding.add_embed_options(parser)
    search.add_search_options(parser)
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


def embed(command):
    def check(args, given):
        modes.refuse_idle(MODES, args, given)
        embedding.check_embed(args, given)

    # Settle: run.args does not change after this.
    with settled(command, check, NETWORKS, data_options_from="", trains=False) as run:
        # Data.
        pictures, skipped = parts.open_parts(run.args)
        # Network.
        network = open_network(run)
        about = embedding.described(run, network)
        # Embed.
        embedding.write_embeddings(run, for_evaluation(run, network), about, pictures, skipped)


def find(command):
    def check(args, given):
        modes.refuse_idle(MODES, args, given)
        search.check_search(args, given, gallery)

    with search.answer_alone(command.args.json) as out:
        command, gallery = search.open_gallery(command)
        has_queries, count = command.args.query is not None, None
        # Settle: run.args does not change after this.
        with settled(command, check, NETWORKS * has_queries, trains=False) as run:
            if has_queries:
                # Data.
                queries = search.open_queries(run.args)
                # Network.
                network = open_network(run)
                space = spaces.common_space(run, network, gallery)
                # Search.
                found = search.search(run, for_evaluation(run, network), space, gallery, queries)
            else:
                found, count = search.duplicates(run.args, gallery)
            search.tell(run.args, found, count, out)
            if run.args.out:
                draw_found(*search.to_draw(found), run.args.out)


# One more mode is one row.
MODES = {
    "train": modes.Mode("train a network", train, TRAINING_ONLY + MEASURING + DATA),
    "eval": modes.Mode("measure Recall@K only", measure, MEASURING + DATA + asymmetric.OPTIONS),
    "embed": modes.Mode("write the embeddings of all pictures to a file, a gallery", embed,
                        DATA + embedding.OPTIONS + ("out", "overwrite")),
    "search": modes.Mode("find the nearest of a gallery, or near-duplicates in it", find, search.OPTIONS + ("out",)),
}


def main(argv=None):
    def run_command():
        command = parse_with_recipe(build_parser(), argv)
        return MODES[command.args.mode].run(command)

    return run_script("run.py", run_command)


if __name__ == "__main__":
    sys.exit(main())
