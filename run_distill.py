#!/usr/bin/env python3
r"""Distil a teacher into a smaller student by Relational Knowledge Distillation, and measure its Recall@K.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. The teacher comes from run.py:

  python3 run_distill.py --dataset cub200 --base resnet18 --embedding_size 64 --l2normalize false \
      --teacher_base resnet50 --teacher_embedding_size 512 --teacher_load teacher/best.pth \
      --dist_ratio 1 --angle_ratio 2 --save_dir student
  python3 run.py --mode eval --load student/best.pth

The student is trained on the sum of the loss terms whose ratio is not 0; the others are not computed.
"""
import collections
import sys

import torch

from engine import options, ranks
from engine.data import open_data
from engine.errors import UsageError, run_script
from engine.evaluation import evaluate_splits
from engine.loop import Job, fit
from engine.networks import for_steps, frozen, open_network
from engine.settle import settled
from metric import loss as losses
from metric.pairsampler import SAMPLERS

Batch = collections.namedtuple("Batch", "student teacher labels stages teacher_stages size fraction")
Batch.__doc__ = """What a term can be called with.

student, teacher, labels: embeddings (N x d, N x any dimension) and labels (N) of the whole batch of all ranks.
stages, teacher_stages: the four stages' maps of this rank's pictures. size: N. fraction: this rank's part of the N.
"""


# Ways to call the criterion of a term; each gives the value for the whole batch.
def on_embeddings(criterion, batch):
    return criterion(batch.student, batch.teacher)


def on_labels(criterion, batch):
    return criterion(batch.student, batch.labels)


def on_vertices(criterion, batch):
    """The N^3 angles are divided: each rank takes those at its own pictures."""
    return ranks.summed(criterion(batch.student, batch.teacher, ranks.span(batch.size)))


def on_stages(criterion, batch):
    """The sum over stages 2, 3 and 4."""
    value = sum(criterion(batch.stages[number], batch.teacher_stages[number]) for number in (1, 2, 3))
    return ranks.summed(batch.fraction * value)


Term = collections.namedtuple("Term", "name help build call flags")
# One more term is one row: --NAME_ratio; what --help says; (options) -> criterion; how that is called; its own flags.
TERMS = [
    Term("triplet", "the triplet loss",
         lambda args: losses.L2Triplet(args.triplet_margin, SAMPLERS[args.triplet_sample]()), on_labels, {
             "triplet_sample": dict(choices=tuple(SAMPLERS), default="distance", help=options.SAMPLER_HELP),
             "triplet_margin": dict(type=options.positive_float, default=0.2, help="margin of the triplet loss")}),
    Term("dist", "RKD distance", lambda args: losses.RkdDistance(), on_embeddings, {}),
    Term("angle", "RKD angle", lambda args: losses.RKdAngle(), on_vertices, {}),
    Term("dark", "HardDarkRank", lambda args: losses.HardDarkRank(args.dark_alpha, args.dark_beta), on_embeddings, {
        "dark_alpha": dict(type=options.positive_float, default=2, help="scale of HardDarkRank's scores"),
        "dark_beta": dict(type=options.positive_float, default=3, help="power of HardDarkRank's scores")}),
    Term("at", "attention transfer, on stages 2, 3 and 4", lambda args: losses.AttentionTransfer(), on_stages, {}),
]


def build_parser():
    parser = options.new_parser("run_distill.py", __doc__)
    group = options.add_network_options(parser, "student")
    group.add_argument("--load", metavar="PATH",
                       help="weights of a whole student to start from; what you don't state of it is taken from the "
                            "config.json beside it, else from the file")
    options.add_pretrained_options(group)
    group = options.add_network_options(parser, "teacher (frozen, in evaluation mode)", "teacher_")
    group.add_argument("--teacher_load", metavar="PATH",
                       help="weights of the teacher; what you don't state of it, and of the data, is taken from the "
                            "config.json beside it")
    options.add_data_options(parser)
    group = parser.add_argument_group("loss terms (at least one ratio above 0)")
    for term in TERMS:
        group.add_argument("--{}_ratio".format(term.name), type=options.not_negative_float, default=0, metavar="RATIO",
                           help="weight of " + term.help)
        for name, words in term.flags.items():
            group.add_argument("--" + name, **words)
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-4, lr_decay_epochs=[40, 60], lr_decay_gamma=0.1, epochs=80)
    options.add_run_options(parser)
    return parser


def ratios_of(args):
    """Return {name: ratio} of the terms that are asked for."""
    return {term.name: getattr(args, term.name + "_ratio") for term in TERMS if getattr(args, term.name + "_ratio")}


def needs_pairs(ratios):
    return any(term.call is on_labels for term in TERMS if term.name in ratios)


def check(args, stated):
    """Refuse options of the loss terms that don't fit together.

    Raises:
        UsageError
    """
    ratios = ratios_of(args)
    if not ratios:
        raise UsageError("all loss ratios are 0: give at least one of {}, for example --dist_ratio 1 --angle_ratio 2"
                         .format(", ".join("--{}_ratio".format(term.name) for term in TERMS)))
    for term in TERMS:
        if term.name not in ratios:
            options.refuse_idle(stated, term.flags, "with --{}_ratio 0".format(term.name))
    options.check_batches(args, needs_pairs(ratios))
    if args.teacher_load is None:
        raise UsageError("--teacher_load is missing: the weights of the teacher, a best.pth of run.py")


def build_step(student, teacher, args):
    """Return the training step: (this rank's pictures and labels) -> {name of term: its ratio times its value}."""
    ratios = ratios_of(args)
    terms = [(term, term.build(args)) for term in TERMS if term.name in ratios]

    def step(images, labels):
        with torch.no_grad():
            *teacher_stages, _, teacher_embeddings = teacher(images, True)
        *stages, _, embeddings = student(images, True)
        whole = (ranks.gathered(rows, args.batch) for rows in (embeddings, teacher_embeddings, labels))
        batch = Batch(*whole, stages, teacher_stages, args.batch, len(images) / args.batch)
        return {term.name: ratios[term.name] * term.call(criterion, batch) for term, criterion in terms}

    return step


def train(command):
    # Settle: the options are final from here on.
    with settled(command, check, data_from="teacher_load") as run:
        ratios = ratios_of(run.args)
        # Data.
        data = open_data(run, needs_pairs(ratios))
        # Networks.
        student = open_network(run, title="Student")
        teacher = open_network(run, "teacher_", title="Teacher")
        if not run.is_resumed:
            evaluate_splits(teacher, data.evaluation, run.args.recall, run.device, 0)
        teacher = frozen(run, teacher)
        # Stages alone say nothing about the embedding.
        student.linear.requires_grad_(any(term.call is not on_stages for term in TERMS if term.name in ratios))
        model = for_steps(run, student)
        # Fit.
        fit(Job(run, data, student, build_step(model, teacher, run.args), bests=[
            ("Best Train Recall", "Best Train", "train"), ("Best Eval Recall", "Best Test", "test")]))


def main(argv=None):
    return run_script("run_distill.py", lambda: train(options.parse(build_parser, argv)))


if __name__ == "__main__":
    sys.exit(main())
