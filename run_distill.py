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

from engine import arguments, options, ranks
from engine.data import open_data
from engine.errors import UsageError, run_script
from engine.loop import Job, fit
from engine.measured import evaluate_once
from engine.networks import for_steps, frozen, open_network
from engine.recipe import parse_with_recipe
from engine.settle import settled
from engine.teacher import add_teacher_options, check_stages, check_teacher
from engine.teacherviews import draw_from_teacher_views
from metric import loss as losses
from metric.pairsampler import SAMPLER_HELP, SAMPLERS

Batch = collections.namedtuple("Batch", "student teacher labels stages teacher_stages size fraction")
Batch.__doc__ = """The inputs of a term.

student, teacher, labels: embeddings (N x d, N x any dimension) and labels (N) of the whole batch of all ranks.
stages, teacher_stages: the four stages' maps of this rank's pictures; none if no term needs them.
size: N. fraction: this rank's part of the N.
"""


def of_vertices(criterion, batch):
    # The angles are divided among the ranks: each computes those whose vertex is one of its own pictures.
    return ranks.summed(criterion(batch.student, batch.teacher, ranks.span(batch.size)))


def of_stages(criterion, batch):
    for ours, theirs in zip(batch.stages[1:], batch.teacher_stages[1:]):
        if ours.shape[2:] != theirs.shape[2:]:
            raise UsageError("the maps of both networks' stages must have equal sizes; the student has one of {} x {}, "
                             "the teacher {} x {}: take another network, or leave the term out".format(
                                 *ours.shape[2:], *theirs.shape[2:]))
    value = sum(criterion(batch.stages[number], batch.teacher_stages[number]) for number in (1, 2, 3))  # from 0
    return ranks.summed(batch.fraction * value)


# How the criterion of a term is called: (criterion, batch) -> the value for the whole batch; whether it needs two
# pictures of a class; whether its gradient reaches the embedding, so that the linear layer is trained; whether it needs
# the stages' maps of both networks.
Way = collections.namedtuple("Way", "call needs_pairs reaches_embedding needs_stages")
ON_EMBEDDINGS = Way(lambda criterion, batch: criterion(batch.student, batch.teacher), False, True, False)
ON_LABELS = Way(lambda criterion, batch: criterion(batch.student, batch.labels), True, True, False)
ON_VERTICES = Way(of_vertices, False, True, False)
ON_STAGES = Way(of_stages, False, False, True)

# One more term is one row.
Term = collections.namedtuple("Term", [
    "name",  # its flag is --NAME_ratio
    "help",  # text after "weight of" in --help
    "build",  # options -> criterion
    "way",  # how the criterion is called
    "flags"])  # its own flags: {name: arguments of add_argument}
TERMS = [
    Term("triplet", "the triplet loss",
         lambda args: losses.L2Triplet(args.triplet_margin, SAMPLERS[args.triplet_sample]()), ON_LABELS, {
             "triplet_sample": dict(choices=tuple(SAMPLERS), default="distance", help=SAMPLER_HELP),
             "triplet_margin": dict(type=arguments.positive_float, default=0.2, help="margin of the triplet loss")}),
    Term("dist", "RKD distance", lambda args: losses.RkdDistance(), ON_EMBEDDINGS, {}),
    Term("angle", "RKD angle", lambda args: losses.RKdAngle(), ON_VERTICES, {}),
    Term("dark", "HardDarkRank", lambda args: losses.HardDarkRank(args.dark_alpha, args.dark_beta), ON_EMBEDDINGS, {
        "dark_alpha": dict(type=arguments.positive_float, default=2, help="scale of HardDarkRank's scores"),
        "dark_beta": dict(type=arguments.positive_float, default=3, help="power of HardDarkRank's scores")}),
    Term("at", "attention transfer, on stages 2, 3 and 4", lambda args: losses.AttentionTransfer(), ON_STAGES, {}),
]
# The options that name networks' files, and the prefixes of these networks' options.
NETWORKS = [("teacher_load", "teacher_"), ("load", "")]


def build_parser():
    parser = arguments.new_parser("run_distill.py", __doc__)
    group = options.add_network_options(parser, "student")
    group.add_argument("--load", type=arguments.path, metavar="PATH",
                       help="weights of a whole student to start from; what you don't give of it is taken from it and "
                            "from the config.json beside it")
    options.add_pretrained_options(group)
    add_teacher_options(parser)
    group = options.add_data_options(parser)
    group.add_argument("--unlabelled", type=arguments.path, metavar="DIR",
                       help="train on all pictures in this folder and below it, without labels; --dataset and --data "
                            "then give the test set alone")
    group = parser.add_argument_group("loss terms (at least one ratio above 0)")
    for term in TERMS:
        group.add_argument("--{}_ratio".format(term.name), type=arguments.not_negative_float, default=0,
                           metavar="RATIO", help="weight of " + term.help)
        for name, words in term.flags.items():
            group.add_argument("--" + name, **words)
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-4, lr_decay_epochs=[40, 60], lr_decay_gamma=0.1, epochs=80)
    options.add_run_options(parser)
    return parser


def chosen(args):
    """Return the terms that are asked for."""
    return [term for term in TERMS if getattr(args, term.name + "_ratio") > 0]


def _needing(terms, what):
    """Return the options of the terms whose way says that it needs this."""
    return ["--{}_ratio".format(term.name) for term in terms if getattr(term.way, what)]


def check(args, given):
    """Refuse (UsageError) options of the terms that don't fit together; return whether two pictures of a class are
    needed."""
    terms = chosen(args)
    if not terms:
        raise UsageError("all loss ratios are 0: give at least one of {}, for example --dist_ratio 1 --angle_ratio 2"
                         .format(", ".join("--{}_ratio".format(term.name) for term in TERMS)))
    for term in TERMS:
        if term not in terms:
            arguments.refuse_idle(given, term.flags, "with --{}_ratio 0".format(term.name))
    check_teacher(args, _needing(terms, "needs_stages"))
    needing = _needing(terms, "needs_pairs")
    if args.unlabelled is not None:
        arguments.refuse_idle(given, ("num_image_per_class", "no_train_recall"), "with --unlabelled")
        if needing:
            raise UsageError("{} needs labels, and pictures of --unlabelled have none; leave it out".format(
                " and ".join(needing)))
    return bool(needing)


def outputs(network, images, with_stages):
    """Return [stage1, stage2, stage3, stage4, embeddings], or [embeddings] alone."""
    if not with_stages:
        return [network(images)]
    *stages, _pooled, embeddings = network(images, True)
    return stages + [embeddings]


def build_step(student, teacher, args):
    """Return the training step: (this rank's pictures and labels) -> {name of term: its ratio times its value}.

    With ``--teacher_views`` it gets the teacher's embeddings of these pictures, too, and doesn't call the teacher.
    """
    terms = [(term, getattr(args, term.name + "_ratio"), term.build(args)) for term in chosen(args)]
    needs_stages = any(term.way.needs_stages for term, _, _ in terms)

    def step(images, labels, teacher_embeddings=None):
        teacher_stages = []
        if teacher_embeddings is None:
            with torch.no_grad():
                *teacher_stages, teacher_embeddings = outputs(teacher, images, needs_stages)
        *stages, embeddings = outputs(student, images, needs_stages)
        batch = Batch(student=ranks.gathered(embeddings, args.batch),
                      teacher=ranks.gathered(teacher_embeddings, args.batch), labels=ranks.gathered(labels, args.batch),
                      stages=stages, teacher_stages=teacher_stages, size=args.batch, fraction=len(images) / args.batch)
        return {term.name: ratio * term.way.call(criterion, batch) for term, ratio, criterion in terms}

    return step


def train(command):
    # Settle: run.args does not change after this.
    with settled(command, check, NETWORKS, data_options_from="teacher_") as run:
        check_stages(run.args, _needing(chosen(run.args), "needs_stages"))
        # Data.
        data = open_data(run)
        # Networks. The teacher is frozen, and not measured again when a run goes on.
        student = open_network(run, title="Student")
        teacher = frozen(run, open_network(run, "teacher_", title="Teacher"))
        if not run.is_resumed:
            evaluate_once(run, teacher, data.evaluation)
        if run.args.teacher_views:
            draw_from_teacher_views(run, teacher, data)
            teacher = None  # it needs no memory any more
        if not any(term.way.reaches_embedding for term in chosen(run.args)):
            for module in student.after_maps():
                module.requires_grad_(False)
        model = for_steps(run, student)
        # Fit.
        fit(Job(run, data, student, build_step(model, teacher, run.args), printed_bests=[
            ("Best Train Recall", "Best Train", "train"), ("Best Eval Recall", "Best Test", "test")]))


def main(argv=None):
    return run_script("run_distill.py", lambda: train(parse_with_recipe(build_parser(), argv)))


if __name__ == "__main__":
    sys.exit(main())
