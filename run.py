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
from engine import options
from engine.checkpoint import adopt_data, adopt_network, build_network, describe, read_checkpoint
from engine.device import compiled, place, prepare_device, resolve_device, seed_everything
from engine.errors import run_script
from engine.evaluation import evaluate_splits
from engine.loop import fit, make_optimizer
from engine.precision import resolve_precision
from engine.record import RunRecord
from engine.session import announce, check_splits, evaluation_loaders, resized_pictures, training_loader
from metric import loss as losses
from metric import pairsampler

LOSSES = {"l1_triplet": losses.L1Triplet, "l2_triplet": losses.L2Triplet, "contrastive": losses.ContrastiveLoss}
TRAINING_ONLY = ("sample", "loss", "margin", "lr", "lr_decay_epochs", "lr_decay_gamma", "num_image_per_class",
                 "epochs", "eval_every", "iter_per_epoch", "save_dir")


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


def run(args, stated):
    options.check_shared(args, stated)
    if args.mode == "eval":
        options.refuse_idle(stated, TRAINING_ONLY, "with --mode eval")
    else:
        options.check_batches(args, pairs_needed=True)
    checkpoint = read_checkpoint(args.load) if args.load else None
    if checkpoint:
        adopt_network(args, stated, checkpoint)
        if args.mode == "eval":
            adopt_data(args, stated, checkpoint)
    options.check_download(args)
    record = RunRecord(args.save_dir, args.recall[0], "run.py", vars(args), inputs=[args.load])
    device, why = resolve_device(args.device)
    prepare_device(device)
    precision, precision_why = resolve_precision(args.precision, device, measuring_only=args.mode == "eval")
    seed_everything(args.seed)
    announce(args, device, why, precision, precision_why)

    train_set, test_set = dataset.load_splits(args.dataset, args.data, args.download)
    training = args.mode == "train"
    check_splits(train_set, test_set, args, training, pairs_needed=training)
    network = build_network(vars(args), checkpoint, args.pretrained, zero_init_residual=args.zero_init_residual)
    network = place(network, device)
    print("Network: {}".format(describe(vars(args))), flush=True)
    if args.compile:
        compiled(network)
    pictures = resized_pictures(train_set, test_set, args)
    loaders = evaluation_loaders(train_set, test_set, pictures, args, device)
    if args.mode == "eval":
        evaluate_splits(network, loaders, args.recall, device, 0, precision)
        return

    def evaluate(epoch):
        return evaluate_splits(network, loaders, args.recall, device, epoch)

    criterion = LOSSES[args.loss](margin=args.margin, sampler=pairsampler.SAMPLERS[args.sample]())

    def step(images, labels):
        return {args.loss: criterion(network(images), labels)}

    def report():
        print("Best Recall@{}: {:.4f}".format(record.k, record.best["test"]), flush=True)

    optimizer, schedule = make_optimizer(network.parameters(), args.lr, args.lr_decay_epochs, args.lr_decay_gamma)
    fit(network, step, optimizer, schedule, training_loader(train_set, pictures, args, device), evaluate, record,
        args.epochs, device, report, precision, args.eval_every)
    record.finish({"Best": record.best["test"], "Final": record.final["test"]})


def main(argv=None):
    args, stated = options.parse(build_parser(), argv)
    return run_script("run.py", lambda: run(args, stated))


if __name__ == "__main__":
    sys.exit(main())
