"""``run_distill.py --diagnose``: what there is to learn, which term pulls how hard, what an epoch costs.

Nothing is trained: the few steps whose time is taken are training steps, and are undone.
"""
import math
import time

import torch

from engine import ranks
from engine.arguments import refuse_idle
from engine.device import peak_memory
from engine.evaluation import embed_set, measured
from engine.firststeps import Batches, seconds_of_a_step, terms_at_start, undone
from engine.interruption import deferred_interruptions
from engine.networks import for_evaluation
from engine.optimisation import Schedule, make_optimizer, parameter_groups
from engine.teacherviews import crops_of_teacher_views
from engine.training import Training
from engine.verdict import in_words, tell_figures
from metric.similarity import common_neighbours, linear_cka

IDLE = ("resume", "overwrite", "checkpoint_every", "log")  # options of what is kept
NEIGHBOURS = (1, 10)  # how many of them are compared


def add_diagnose_option(parser):
    parser.add_argument_group("before hours are spent").add_argument(
        "--diagnose", action="store_true",
        help="add it to the command of a training: nothing is trained. Prints what the teacher and the student find in "
             "the test set before training, how alike they are, the size and the gradient of each loss term, the "
             "estimated time and memory, and what that means. With --save_dir the same stands in diagnose.json there, "
             "and nothing else is written; the run itself can then begin in that directory")


def check_diagnosis(given):
    """Refuse (UsageError) options that do nothing with --diagnose, and several processes."""
    refuse_idle(given, IDLE, "with --diagnose")
    ranks.refuse_several("--diagnose")


@deferred_interruptions()
def diagnose(job, teacher, ratios):
    """Print a diagnosis of a training that has not begun, and keep it as ``diagnose.json`` in --save_dir. Weights,
    BatchNorm statistics and random states are afterwards what they were.

    Args:
        job: the ``Job`` of the training; with --teacher_views its ``data`` draws as without. teacher: a frozen network.
        ratios: {name of a loss term: its weight}.

    Raises:
        TrainingError: an embedding or a loss term is not finite. Others: see ``fit``.
    """
    run, args = job.run, job.run.args
    groups = parameter_groups(job.network, args, job.criteria.values())
    optimizer = make_optimizer(groups, args)
    training = Training(job.network, optimizer, Schedule(job.network, optimizer, groups, args), run.precision,
                        run.device, {name: trained.module for name, trained in job.criteria.items()})
    test, seconds = _compare(run, job.network, teacher, job.data.evaluation)
    with undone(training):
        if args.teacher_views:
            job.data.batches.draw_from(crops_of_teacher_views(args))
        batches = Batches(job.data.batches, teacher if args.teacher_views else None, training)
        terms = terms_at_start(training, job.step, batches, ratios)
        seconds["step"] = seconds_of_a_step(training, job.step, batches)
    seconds["epoch"] = args.iter_per_epoch * seconds["step"] + seconds["measuring"] / args.eval_every
    seconds["training"] = seconds["measuring"] + args.epochs * seconds["epoch"]
    teacher_seconds = seconds.pop("teacher_picture")
    if args.teacher_views:
        seconds["teacher_views"] = args.teacher_views * job.data.training().total * teacher_seconds
        seconds["training"] += seconds["teacher_views"]
    found = {"test": test, "terms": terms, "seconds": seconds, "memory": peak_memory(run.device)}
    found["words"] = in_words(found)
    tell_figures(found, run)
    for line in found["words"]:
        print(line, flush=True)
    run.record.keep_diagnosis(_without_nan(found))


def _compare(run, student, teacher, loaders):
    """Return (the figures of the test set, {what: seconds}): "measuring", the student on all sets that a training
    measures, and "teacher_picture", one picture by the teacher."""
    loader = loaders["test"]
    theirs, their_figures, teacher_seconds, _ = _measure(run, teacher, loader, "teacher")
    ours, our_figures, _, student_seconds = _measure(run, for_evaluation(run, student), loader, "student")
    searched = len(ours[-1]) - (loader.gallery is None)
    shares = common_neighbours(ours[0], theirs[0], [k for k in NEIGHBOURS if k <= searched], *(
        () if loader.gallery is None else (ours[1], theirs[1])))
    pictures, all_pictures = _pictures(loader), sum(map(_pictures, loaders.values()))
    return ({"queries": len(ours[0]), "searched": searched, "teacher": their_figures, "student": our_figures,
             "common_neighbours": {str(k): share for k, share in shares.items()},
             "linear_cka": linear_cka(torch.cat(ours), torch.cat(theirs))},
            {"measuring": student_seconds * all_pictures / pictures, "teacher_picture": teacher_seconds / pictures})


def _measure(run, network, loader, name):
    """Return (embeddings of the queries and, if there is one, of the gallery; {measure: value}; seconds of embedding;
    seconds in all) of the network that is called ``name``."""
    began = time.perf_counter()
    whole = embed_set(network, loader, run.device, None, "test set by the " + name, "gallery by the " + name)
    embedded = time.perf_counter()
    found = measured(whole, run.args)
    figures = dict(found.more, recall={str(k): value for k, value in found.recalls.items()}, spread=found.spread)
    sides = [side.embeddings for side in (whole, whole.gallery) if side]
    return sides, figures, embedded - began, time.perf_counter() - began


def _pictures(loader):
    return loader.total + (0 if loader.gallery is None else loader.gallery.total)


def _without_nan(value):
    """Return nested dicts with None for what is not a number, which JSON can't say."""
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
