#!/usr/bin/env python3
r"""Distil a teacher into a smaller student by Relational Knowledge Distillation, and measure its Recall@K.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. The teacher comes from run.py:

  python3 run_distill.py --dataset cub200 --base resnet18 --embedding_size 64 --l2normalize false \
      --teacher_base resnet50 --teacher_embedding_size 512 --teacher_load teacher/best.pth \
      --dist_ratio 1 --angle_ratio 2 --save_dir student
  python3 run.py --mode eval --load student/best.pth

The student is trained on the sum of the loss terms whose ratio is not 0; the others are not computed. With --diagnose
nothing is trained: the same command then says in seconds whether it is worth the hours.
"""
import sys

from engine import arguments, options, ranks  # first: says which packages are missing

import torch

from engine.data import open_data
from engine.diagnosis import add_diagnose_option, check_diagnosis, diagnose
from engine.errors import UsageError, run_script
from engine.loop import Job, fit
from engine.measured import evaluate_once
from engine.networks import for_steps, frozen, open_network
from engine.recipe import parse_with_recipe
from engine.optimisation import Trained
from engine.rundir import PROJECTION
from engine.settle import settled
from engine.teacher import add_teacher_options, check_stages, check_teacher
from engine.teacherviews import draw_from_teacher_views
from engine.terms import (ON_EMBEDDINGS, ON_LABELS, ON_LAST_STAGE, ON_PROJECTED, ON_STAGES, ON_VERTICES, Batch, Term,
                          add_term_options, check_terms, chosen, needing, outputs, shapes_of)
from metric import loss as losses
from metric.pairsampler import SAMPLER_HELP, SAMPLERS
from report import leave_pictures

# One more term is one row.
TERMS = [
    Term("triplet", "the triplet loss",
         lambda args, shapes: losses.L2Triplet(args.triplet_margin, SAMPLERS[args.triplet_sample]()), ON_LABELS, {
             "triplet_sample": dict(choices=tuple(SAMPLERS), default="distance", help=SAMPLER_HELP),
             "triplet_margin": dict(type=arguments.positive_float, default=0.2, help="margin of the triplet loss")}),
    Term("dist", "RKD distance", lambda args, shapes: losses.RkdDistance(), ON_EMBEDDINGS, {}),
    Term("angle", "RKD angle", lambda args, shapes: losses.RKdAngle(), ON_VERTICES, {}),
    Term("dark", "HardDarkRank",
         lambda args, shapes: losses.HardDarkRank(args.dark_alpha, args.dark_beta), ON_EMBEDDINGS, {
             "dark_alpha": dict(type=arguments.positive_float, default=2, help="scale of HardDarkRank's scores"),
             "dark_beta": dict(type=arguments.positive_float, default=3, help="power of HardDarkRank's scores")}),
    Term("at", "attention transfer, on stages 2, 3 and 4", lambda args, shapes: losses.AttentionTransfer(), ON_STAGES,
         {}),
    Term("relaxed", "the relaxed contrastive loss (Kim et al., CVPR 2021)",
         lambda args, shapes: losses.RelaxedContrastive(args.relaxed_sigma, args.relaxed_delta), ON_EMBEDDINGS, {
             "relaxed_sigma": dict(type=arguments.positive_float, default=1, help="a pair is alike by exp(-D^2 / sigma)"
                                   ", D being its distance on the teacher's unit sphere"),
             "relaxed_delta": dict(type=arguments.positive_float, default=1, help="pairs that are not alike are pushed "
                                   "apart up to this distance; the mean distance is 1")}),
    Term("pkt", "probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018); 30000 is usual: its value is tiny",
         lambda args, shapes: losses.PKT(), ON_EMBEDDINGS, {}),
    Term("similarity", "the KL divergence of similarities (S2SD, Roth et al., ICML 2021); 50 is usual",
         lambda args, shapes: losses.SimilarityKL(args.similarity_temperature), ON_EMBEDDINGS, {
             "similarity_temperature": dict(type=arguments.positive_float, default=1,
                                            help="temperature of the similarities whose softmax is compared")}),
    Term("regression", "embedding regression, 1 - cosine of the student's embedding and the teacher's",
         lambda args, shapes: losses.EmbeddingRegression(), ON_PROJECTED, {}),
    Term("csd", "contextual similarity to the teacher's nearest embeddings (Wu et al., CVPR 2022)",
         lambda args, shapes: losses.ContextualSimilarity(args.csd_k), ON_PROJECTED, {
             "csd_k": dict(type=arguments.whole(2, 10 ** 6), default=96, metavar="K",
                           help="how many of the batch's pictures are near; at most all")}),
    Term("fitnet", "FitNet's hint, on stage 4 through a 1 x 1 convolution (Romero et al., ICLR 2015)",
         lambda args, shapes: losses.FitNet(shapes.student_maps[-1][0], shapes.teacher_maps[-1][0]), ON_LAST_STAGE, {}),
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
    add_term_options(parser, TERMS)
    options.add_batch_options(parser)
    options.add_training_options(parser, lr=1e-4, lr_decay_epochs=[40, 60], lr_decay_gamma=0.1, epochs=80)
    options.add_run_options(parser)
    add_diagnose_option(parser)
    return parser


def check(args, given):
    """Refuse (UsageError) options of the terms that don't fit together; return whether two pictures of a class are
    needed."""
    if args.diagnose:
        check_diagnosis(given)
    check_terms(TERMS, args, given)
    terms = chosen(TERMS, args)
    check_teacher(args, needing(terms, "stages"))
    of_pairs = needing(terms, "needs_pairs")
    if args.unlabelled is not None:
        arguments.refuse_idle(given, ("num_image_per_class", "no_train_recall"), "with --unlabelled")
        if of_pairs:
            raise UsageError("{} needs labels, and pictures of --unlabelled have none; leave it out".format(
                " and ".join(of_pairs)))
    return bool(of_pairs)


def build_criteria(args, shapes):
    """Return {name of term: its criterion}, and as "projection" the map P where terms share it."""
    terms = chosen(TERMS, args)
    criteria = {term.name: term.build(args, shapes) for term in terms}
    if needing(terms, "shares_space") and (args.projection == "linear" or shapes.student != shapes.teacher):
        criteria["projection"] = losses.Projection(shapes.student, shapes.teacher)
        print("Projection: a linear map from {} to {} dimensions".format(shapes.student, shapes.teacher), flush=True)
    return criteria


def build_step(student, teacher, args, criteria):
    """Return the training step: (this rank's pictures and labels) -> {name of term: its ratio times its value}.

    With ``--teacher_views`` it gets the teacher's embeddings of these pictures, too, and doesn't call the teacher.
    """
    terms = [(term, getattr(args, term.name + "_ratio"), criteria[term.name]) for term in chosen(TERMS, args)]
    with_stages = any(term.way.stages for term, _, _ in terms)

    def step(images, labels, teacher_embeddings=None):
        teacher_stages = []
        if teacher_embeddings is None:
            with torch.no_grad():
                *teacher_stages, teacher_embeddings = outputs(teacher, images, with_stages)
        *stages, embeddings = outputs(student, images, with_stages)
        embeddings = ranks.gathered(embeddings, args.batch)
        projected = criteria["projection"](embeddings) if "projection" in criteria else embeddings
        batch = Batch(student=embeddings, projected=projected, teacher=ranks.gathered(teacher_embeddings, args.batch),
                      labels=ranks.gathered(labels, args.batch), stages=stages, teacher_stages=teacher_stages,
                      size=args.batch, fraction=len(images) / args.batch)
        return {term.name: ratio * term.way.call(criterion, batch) for term, ratio, criterion in terms}

    return step


def train(command):
    # Settle: run.args does not change after this.
    with settled(command, check, NETWORKS, data_options_from="teacher_") as run:
        args, terms = run.args, chosen(TERMS, run.args)
        check_stages(args, needing(terms, "stages"))
        # Data.
        data = open_data(run)
        # Networks. The teacher is frozen, and not measured again when a run goes on.
        student = open_network(run, title="Student")
        teacher = frozen(run, open_network(run, "teacher_", title="Teacher"))
        criteria = build_criteria(args, shapes_of(student, teacher, terms, args, run.device))
        if not (run.is_resumed or args.diagnose):
            evaluate_once(run, teacher, data.evaluation)
        if args.teacher_views and not args.diagnose:
            draw_from_teacher_views(run, teacher, data)
            teacher = None  # it needs no memory any more
        if not any(term.way.reaches_embedding for term in terms):
            for module in student.after_maps():
                module.requires_grad_(False)
        model = for_steps(run, student)
        # Fit, or say what that would be. What the criteria have to learn is new, as the student's head is.
        trained = {name: Trained(criterion.to(run.device), args.head_lr) for name, criterion in criteria.items()}
        job = Job(run, data, student, build_step(model, teacher, args, criteria), criteria=trained,
                  kept={PROJECTION: "projection"} if "projection" in trained else {}, printed_bests=[
                      ("Best Train Recall", "Best Train", "train"), ("Best Eval Recall", "Best Test", "test")])
        if args.diagnose:
            diagnose(job, teacher, {term.name: getattr(args, term.name + "_ratio") for term in terms})
        else:
            embedded = fit(job)
            # See.
            if run.record.writes:
                leave_pictures(args.save_dir, embedded, args.seed)


def main(argv=None):
    return run_script("run_distill.py", lambda: train(parse_with_recipe(build_parser(), argv)))


if __name__ == "__main__":
    sys.exit(main())
