#!/usr/bin/env python3
r"""Distil a teacher into a smaller student by Relational Knowledge Distillation, and measure its Recall@K.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. The teacher comes from run.py:

  python3 run_distill.py --dataset cub200 --base resnet18 --embedding_size 64 --l2normalize false \
      --teacher_base resnet50 --teacher_embedding_size 512 --teacher_load teacher/best.pth \
      --dist_ratio 1 --angle_ratio 2 --save_dir student
  python3 run.py --mode eval --load student/best.pth

The student is trained on the sum of the loss terms whose ratio is not 0; the others are not computed.
"""
import sys

import torch

import dataset
from engine import options, ranks
from engine.batchnorm import synchronised
from engine.checkpoint import adopt_data, adopt_network, build_network, describe, read_checkpoint
from engine.device import compiled, place
from engine.errors import UsageError, run_script
from engine.evaluation import evaluate_splits
from engine.loop import fit, make_optimizer
from engine.record import RunRecord
from engine.resume import saved_run
from engine.session import check_splits, evaluation_loaders, one_run, open_splits, start, training_loader
from engine.state import Training
from metric import loss as losses
from metric import pairsampler
from model import fused

RATIOS = ("triplet", "dist", "angle", "dark", "at")
OPTIONS_OF_RATIO = {"triplet": ("triplet_sample", "triplet_margin"), "dark": ("dark_alpha", "dark_beta")}


def build_parser():
    parser = options.new_parser("run_distill.py", __doc__)
    group = options.add_network_options(parser, "student")
    group.add_argument("--load", metavar="PATH", help="weights of a whole student to start from")
    options.add_pretrained_options(group)
    group = options.add_network_options(parser, "teacher (frozen, in evaluation mode)", "teacher_")
    group.add_argument("--teacher_load", metavar="PATH",
                       help="weights of the teacher; what you don't state of it, and of the data, is taken from the "
                            "config.json beside it")
    options.add_data_options(parser)
    group = parser.add_argument_group("loss terms (at least one ratio above 0)")
    for name, words in (("dist", "RKD distance"), ("angle", "RKD angle"), ("dark", "HardDarkRank"),
                        ("at", "attention transfer, on stages 2, 3 and 4"), ("triplet", "the triplet loss")):
        group.add_argument("--{}_ratio".format(name), type=options.not_negative_float, default=0, metavar="RATIO",
                           help="weight of " + words)
    group.add_argument("--triplet_sample", choices=tuple(pairsampler.SAMPLERS), default="distance",
                       help=options.SAMPLER_HELP)
    group.add_argument("--triplet_margin", type=options.positive_float, default=0.2, help="margin of the triplet loss")
    group.add_argument("--dark_alpha", type=options.positive_float, default=2, help="scale of HardDarkRank's scores")
    group.add_argument("--dark_beta", type=options.positive_float, default=3, help="power of HardDarkRank's scores")
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-4, lr_decay_epochs=[40, 60], lr_decay_gamma=0.1, epochs=80)
    options.add_run_options(parser)
    return parser


def build_terms(args):
    """Return {name: (ratio, criterion)} of the terms that are asked for."""
    criteria = {
        "triplet": lambda: losses.L2Triplet(args.triplet_margin, pairsampler.SAMPLERS[args.triplet_sample]()),
        "dist": losses.RkdDistance,
        "angle": losses.RKdAngle,
        "dark": lambda: losses.HardDarkRank(alpha=args.dark_alpha, beta=args.dark_beta),
        "at": losses.AttentionTransfer,
    }
    ratios = {name: getattr(args, name + "_ratio") for name in RATIOS}
    return {name: (ratio, criteria[name]()) for name, ratio in ratios.items() if ratio > 0}


def build_step(student, teacher, terms, batch):
    """Return the training step: (this rank's share of ``batch`` pictures, labels) -> {name: ratio * term of all}."""
    def step(images, labels):
        with torch.no_grad():
            *teacher_stages, _, teacher_embeddings = teacher(images, True)
        *stages, _, embeddings = student(images, True)
        share = len(images) / batch
        embeddings, teacher_embeddings, labels = (
            ranks.gathered(rows, batch) for rows in (embeddings, teacher_embeddings, labels))
        values = {}
        for name, (ratio, criterion) in terms.items():
            if name == "triplet":
                value = criterion(embeddings, labels)
            elif name == "at":
                value = sum(criterion(stages[number], teacher_stages[number]) for number in (1, 2, 3))
                value = ranks.summed(share * value)
            elif name == "angle":
                value = ranks.summed(criterion(embeddings, teacher_embeddings, ranks.share(batch)))
            else:
                value = criterion(embeddings, teacher_embeddings)
            values[name] = ratio * value
        return values

    return step


def check_terms(args, stated, terms):
    """Refuse options of the loss terms that don't fit together.

    Raises:
        UsageError
    """
    options.check_batches(args, pairs_needed="triplet" in terms)
    if not terms:
        raise UsageError("all loss ratios are 0: give at least one of {}, for example --dist_ratio 1 --angle_ratio 2"
                         .format(", ".join("--{}_ratio".format(name) for name in RATIOS)))
    for name, idle in OPTIONS_OF_RATIO.items():
        if name not in terms:
            options.refuse_idle(stated, idle, "with --{}_ratio 0".format(name))


def train(args, stated):
    saved = saved_run(args, stated, build_parser())
    options.check_shared(args, stated)
    terms = build_terms(args)
    check_terms(args, stated, terms)
    if args.teacher_load is None:
        raise UsageError("--teacher_load is missing: the weights of the teacher, a best.pth of run.py")
    teacher_checkpoint = read_checkpoint(args.teacher_load)
    adopt_network(args, stated, teacher_checkpoint, "teacher_")
    if not saved:
        adopt_data(args, stated, teacher_checkpoint)
    options.check_download(args)
    checkpoint = read_checkpoint(args.load) if args.load and not saved else None
    if checkpoint:
        adopt_network(args, stated, checkpoint)
    record = RunRecord("run_distill.py", args, saved, inputs=["teacher_load", "load"])
    device, precision = start(args)

    splits = dataset.load_splits(args.dataset, args.data, args.download)
    check_splits(*splits, args, pairs_needed="triplet" in terms)
    student = build_network(vars(args), checkpoint, "none" if saved else args.pretrained,
                            zero_init_residual=args.zero_init_residual)
    student = place(student, device)
    teacher_options = {name: vars(args)["teacher_" + name] for name in ("base", "embedding_size", "l2normalize")}
    teacher = place(build_network(teacher_options, teacher_checkpoint), device)
    print("Teacher: {}".format(describe(teacher_options)))
    print("Student: {}".format(describe(vars(args))), flush=True)
    train_set, test_set, pictures, skipped = open_splits(*splits, args, pairs_needed="triplet" in terms)
    record.take_data(train_set, test_set, skipped)
    loaders = evaluation_loaders(train_set, test_set, pictures, args, device)

    if not saved:
        ranks.begin()
        evaluate_splits(teacher, loaders, args.recall, device, 0)
    teacher = place(fused(teacher), device)
    if args.compile:
        compiled(teacher)
        compiled(student)
    student.linear.requires_grad_(set(terms) != {"at"})  # attention alone says nothing about the embedding
    student = synchronised(student, device) if args.sync_bn else student
    model = ranks.parallel(student, device)

    def evaluate(epoch):
        return evaluate_splits(student, loaders, args.recall, device, epoch)

    def report():
        if "train" in record.best:
            print("Best Train Recall: {:.4f}".format(record.best["train"]))
        print("Best Eval Recall: {:.4f}".format(record.best["test"]), flush=True)

    optimizer, schedule = make_optimizer(student.parameters(), args.lr, args.lr_decay_epochs, args.lr_decay_gamma)
    fit(Training(student, optimizer, schedule, precision, device), build_step(model, teacher, terms, args.batch),
        training_loader(train_set, pictures, args, device), evaluate, record, report, args.epochs, args.eval_every,
        args.checkpoint_every)
    result = {"Best Train": record.best["train"]} if "train" in record.best else {}
    record.finish(dict(result, **{"Best Test": record.best["test"], "Final": record.final["test"]}))


def run(args, stated):
    with one_run(args):
        train(args, stated)


def main(argv=None):
    args, stated = options.parse(build_parser(), argv)
    return run_script("run_distill.py", lambda: run(args, stated))


if __name__ == "__main__":
    sys.exit(main())
