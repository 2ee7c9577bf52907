"""Asymmetric evaluation: ``run.py --mode eval --load STUDENT --gallery_load TEACHER``. One network embeds the queries,
another one what they search in: a phone asks a server whose pictures a large network has embedded.

Both sides are L2-normalised. It needs a student in its teacher's space. Where its embeddings reach that space through a
linear map, P, this was left beside its best.pth as projection.pth: {"weight": gallery's width x queries' width}.
"""
import os

import torch
import torch.nn.functional as F

from engine import arguments, options
from engine.errors import UsageError
from engine.evaluation import embed_finite, measurement, tell, titled
from engine.interruption import deferred_interruptions
from engine.networks import NETWORK_OPTIONS
from engine.rundir import BEST, PROJECTION, equal, read_config
from engine.teacher import check_found
from model import WeightsError, check_finite, read_tensors

GALLERY = ("gallery_load", "gallery_")  # the option that names the network's file, and the prefix of its options
SPACE_TERMS = ("regression_ratio", "csd_ratio")  # those that make the student's space the teacher's
OF_TWO_NETWORKS = ("gallery_load", "gallery_pretrained") + tuple("gallery_" + name for name in NETWORK_OPTIONS)
OPTIONS = OF_TWO_NETWORKS + ("projection_load",)


def add_gallery_options(parser):
    group = options.add_network_options(parser, "asymmetric evaluation: the gallery's network (--mode eval); the other "
                                        "network (--mode report)", "gallery_")
    group.add_argument("--gallery_load", type=arguments.path, metavar="PATH",
                       help="the network of --load, a student, embeds the queries, and this one, its teacher, what "
                            "they search in. That works for students distilled with {}, which learn the teacher's "
                            "space ([teacher's space] in run_distill.py --help). All other terms compare relations or "
                            "maps (RKD, DarkRank, PKT, similarity KL, relaxed contrastive, attention transfer, FitNet, "
                            "triplet) and leave the student's space its own: about what chance gives. What you don't "
                            "give of the network is taken from the file and from the config.json beside it. With "
                            "--mode report: another network, shown beside that of --load; each searches in what it "
                            "has embedded itself, so any two will do".format(in_words()))
    group.add_argument("--gallery_pretrained", type=arguments.path, metavar="imagenet|FILE",
                       help="a teacher that needed no training, instead of --gallery_load: weights of its backbone, as "
                            "for --pretrained, with --gallery_embedding_size 0")
    group.add_argument("--projection_load", type=arguments.path, metavar="FILE",
                       help="a linear map from the space of --load to that of --gallery_load; without this option the "
                            "projection.pth beside --load, if there is one")
    return group


def gallery_of(args):
    """Return the file of the gallery's network, or "imagenet"; None where no other network embeds a gallery."""
    return args.gallery_load or args.gallery_pretrained


def check_gallery(args, given):
    """Refuse (UsageError) options that do nothing without a gallery's network, and one without weights or a query's."""
    if gallery_of(args) is None:
        arguments.refuse_idle(given, OPTIONS, "without --gallery_load or --gallery_pretrained")
    elif args.load is None:
        raise UsageError("--gallery_load and --gallery_pretrained need --load, the network of the queries")
    elif args.gallery_pretrained == "none":
        raise UsageError("--gallery_pretrained none leaves the gallery's network untrained; give imagenet or FILE")
    else:
        check_found(args, GALLERY[1])


def open_projection(run, network, gallery_network):
    """Return the map that leads from the queries' space to the gallery's, a matrix; None where they are one.

    Args:
        network: the queries'.

    Raises:
        UsageError: it is missing, or doesn't fit. WeightsError: its file can't be used.
    """
    args = run.args
    student = trained_with(args.load)
    _warn_of_other_spaces(args, student)
    return find_projection(args, student, network.embedding_size, gallery_network.embedding_size, gallery_of(args))


def trained_with(path):
    """Return the options of the run that left the network at ``path``, from its config.json; {} without one."""
    return (read_config(os.path.dirname(path)) or {"options": {}})["options"]


def projection_of(args):
    """Return the file of the map that leads from the space of --load to its teacher's; None if there is none."""
    beside = os.path.join(os.path.dirname(args.load), PROJECTION)
    return args.projection_load or (beside if os.path.lexists(beside) else None)


def find_projection(args, student, ours, theirs, gallery):
    """Return the map that leads from the queries' space, of ``ours`` dimensions, to that of ``gallery``, of ``theirs``;
    None where they are one. student: what ``trained_with`` gives. Raises as ``open_projection``."""
    path = projection_of(args)
    if path is None:
        if ours != theirs:
            raise UsageError("{} has {} dimensions, {} has {}: needed is the projection.pth that run_distill.py leaves "
                             "beside best.pth with {} (--projection_load FILE)".format(
                                 args.load, ours, gallery, theirs, in_words()))
        if student.get("projection") == "linear":
            raise UsageError("{} was trained with --projection linear, and there is no {}: put it back, or give its "
                             "place with --projection_load FILE".format(
                                 args.load, os.path.join(os.path.dirname(args.load), PROJECTION)))
        return None
    weight = _read(path)
    if tuple(weight.shape) != (theirs, ours):
        problem = "{} leads from {} dimensions to {}, and {} has {}, {} has {}".format(
            path, *reversed(weight.shape), args.load, ours, gallery, theirs)
        if args.projection_load or ours != theirs:
            raise UsageError(problem + "; it belongs to other networks")
        print("Note: {}, so it is not used".format(problem), flush=True)
        return None
    print("Projection: {}, from {} dimensions to {}".format(path, ours, theirs), flush=True)
    if not args.projection_load and os.path.basename(args.load) != BEST:
        print("Warning: {} belongs to the {} beside it; {} may be of another epoch".format(
            path, BEST, args.load), flush=True)
    return weight


def _warn_of_other_spaces(args, student):
    """Warn of a student that did not learn the gallery network's space, by the options that it was trained with."""
    if "teacher_load" in student and not any(student.get(name) for name in SPACE_TERMS):
        print("Warning: {} was distilled without {}, so its space is its own; about what chance gives is to be "
              "expected".format(args.load, in_words()), flush=True)
    warn_of_another_teacher(args.load, student, gallery_of(args))


def warn_of_another_teacher(path, student, gallery):
    """Warn unless ``gallery``, a network's file or the name of its weights, is the teacher of the student at ``path``.
    student: what ``trained_with`` gives."""
    teacher = student.get("teacher_load") or student.get("teacher_pretrained")
    if teacher and gallery and not equal("teacher_load", teacher, gallery):
        print("Warning: the teacher of {} was {}, not {}; other networks have other spaces".format(
            path, teacher, gallery), flush=True)


def in_words():
    return " or ".join("--" + name for name in SPACE_TERMS)


def _read(path):
    content = read_tensors(path)
    weight = content.get("weight") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise WeightsError("{} is no projection: it must hold one matrix, called weight".format(path))
    check_finite(path, content)
    return weight.float()


@deferred_interruptions()
def evaluate_across(run, network, gallery_network, projection, loaders):
    """Measure ``network``, whose queries search in what ``gallery_network`` embeds, on each split; print the lines, and
    return {split: Measurement}.

    The pictures of a split that has a gallery search in it, and nothing is left out. Others search in all pictures of
    their split but their own, and there each network alone is measured, too, as it comes.

    Args:
        projection: from ``open_projection``. loaders: {split: its ``EvaluationLoader``}.

    Raises: as ``evaluate_splits``.
    """
    args, results = run.args, {}
    print("Queries: {}. Gallery: {}".format(args.load, gallery_of(args)), flush=True)
    for split, loader in loaders.items():
        paired = loader.gallery is None
        ours, labels = embed_finite(network, loader, run.device, "{} set".format(split), run.precision)
        theirs, gallery_labels = embed_finite(gallery_network, loader if paired else loader.gallery, run.device,
                                              "gallery of the {} set".format(split), run.precision)
        queries = ours if projection is None else F.linear(ours, projection.to(ours.device))
        results[split] = measurement((F.normalize(queries), labels), args, (F.normalize(theirs), gallery_labels),
                                     paired)
        tell(results[split], split, epoch=0)
        if paired:
            for path, embeddings in ((args.load, ours), (gallery_of(args), theirs)):
                alone = titled(measurement((embeddings, labels), args))
                print("For comparison, queries and gallery of the {} set by {}: {}".format(
                    split, path, ", ".join("{} {:.4f}".format(*item) for item in (
                        (title, 100 * value) for title, value in alone.items()))), flush=True)
    return results
