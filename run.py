#!/usr/bin/env python3
r"""Train an embedding network on a triplet or contrastive loss, or measure its Recall@K.

Train a teacher, then measure it (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068):

  python3 run.py --mode train --dataset cub200 --base resnet50 --sample distance --margin 0.2 \
      --embedding_size 512 --save_dir teacher
  python3 run.py --mode eval --load teacher/best.pth

The same without data, network or accelerator, on birds that are drawn on first use:

  python3 run.py --mode train --dataset synthetic --image_size 64 --base resnet18 --pretrained none \
      --embedding_size 512 --sample distance --lr 3e-4 --epochs 8 --iter_per_epoch 40 --save_dir teacher
"""
import sys

import dataset
from engine import options, ranks
from engine.batchnorm import synchronised
from engine.checkpoint import adopt_data, adopt_network, build_network, describe, read_checkpoint
from engine.device import compiled, place
from engine.errors import run_script
from engine.evaluation import evaluate_splits
from engine.loop import fit, make_optimizer
from engine.record import RunRecord
from engine.resume import saved_run
from engine.session import check_splits, evaluation_loaders, one_run, open_splits, start, training_loader
from engine.state import Training
from metric import loss as losses
from metric import pairsampler

LOSSES = {"l1_triplet": losses.L1Triplet, "l2_triplet": losses.L2Triplet, "contrastive": losses.ContrastiveLoss}
TRAINING_ONLY = ("sample", "loss", "margin", "lr", "lr_decay_epochs", "lr_decay_gamma", "num_image_per_class",
                 "epochs", "eval_every", "iter_per_epoch", "save_dir", "resume", "checkpoint_every", "overwrite",
                 "sync_bn")


def build_parser():
    parser = options.new_parser("run.py", __doc__)
    group = parser.add_argument_group("what to do")
    group.add_argument("--mode", choices=("train", "eval"), default="train", help="train, or measure Recall@K only")
    group.add_argument("--load", metavar="PATH",
                       help="weights of a network to start from or to measure; what you don't state is taken from the "
                            "config.json beside it")
    options.add_data_options(parser)
    options.add_pretrained_options(options.add_network_options(parser, "network"))
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", choices=tuple(LOSSES), default="l2_triplet", help="loss")
    group.add_argument("--sample", choices=tuple(pairsampler.SAMPLERS), default="all",
                       help=options.SAMPLER_HELP)
    group.add_argument("--margin", type=options.positive_float, default=0.2, help="margin of the loss")
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-5, lr_decay_epochs=[25, 30, 35], lr_decay_gamma=0.5, epochs=40)
    options.add_run_options(parser)
    return parser


def measure(args, stated):
    options.check_shared(args, stated)
    options.refuse_idle(stated, TRAINING_ONLY, "with --mode eval")
    checkpoint = read_checkpoint(args.load) if args.load else None
    if checkpoint:
        adopt_network(args, stated, checkpoint)
        adopt_data(args, stated, checkpoint)
    options.check_download(args)
    device, precision = start(args)

    splits = dataset.load_splits(args.dataset, args.data, args.download)
    check_splits(*splits, args, training=False)
    network = build_network(vars(args), checkpoint, args.pretrained, zero_init_residual=args.zero_init_residual)
    network = place(network, device)
    print("Network: {}".format(describe(vars(args))), flush=True)
    if args.compile:
        compiled(network)
    *splits, pictures, _ = open_splits(*splits, args, training=False)
    loaders = evaluation_loaders(*splits, pictures, args, device)
    ranks.begin()
    evaluate_splits(network, loaders, args.recall, device, 0, precision)


def train(args, stated):
    saved = saved_run(args, stated, build_parser())
    options.check_shared(args, stated)
    options.check_batches(args, pairs_needed=True)
    checkpoint = read_checkpoint(args.load) if args.load and not saved else None
    if checkpoint:
        adopt_network(args, stated, checkpoint)
    options.check_download(args)
    record = RunRecord("run.py", args, saved, inputs=["load"])
    device, precision = start(args)

    splits = dataset.load_splits(args.dataset, args.data, args.download)
    check_splits(*splits, args, pairs_needed=True)
    network = build_network(vars(args), checkpoint, "none" if saved else args.pretrained,
                            zero_init_residual=args.zero_init_residual)
    network = place(network, device)
    print("Network: {}".format(describe(vars(args))), flush=True)
    if args.compile:
        compiled(network)
    train_set, test_set, pictures, skipped = open_splits(*splits, args, pairs_needed=True)
    record.take_data(train_set, test_set, skipped)
    loaders = evaluation_loaders(train_set, test_set, pictures, args, device)
    criterion = LOSSES[args.loss](margin=args.margin, sampler=pairsampler.SAMPLERS[args.sample]())

    network = synchronised(network, device) if args.sync_bn else network
    model = ranks.parallel(network, device)

    def step(images, labels):
        embeddings, labels = (ranks.gathered(share, args.batch) for share in (model(images), labels))
        return {args.loss: criterion(embeddings, labels)}

    def evaluate(epoch):
        return evaluate_splits(network, loaders, args.recall, device, epoch)

    def report():
        print("Best Recall@{}: {:.4f}".format(record.k, record.best["test"]), flush=True)

    optimizer, schedule = make_optimizer(network.parameters(), args.lr, args.lr_decay_epochs, args.lr_decay_gamma)
    fit(Training(network, optimizer, schedule, precision, device), step,
        training_loader(train_set, pictures, args, device), evaluate, record, report, args.epochs, args.eval_every,
        args.checkpoint_every)
    record.finish({"Best": record.best["test"], "Final": record.final["test"]})


def run(args, stated):
    with one_run(args):
        (measure if args.mode == "eval" else train)(args, stated)


def main(argv=None):
    args, stated = options.parse(build_parser(), argv)
    return run_script("run.py", lambda: run(args, stated))


if __name__ == "__main__":
    sys.exit(main())
