"""The options of a teacher, and what can be seen to be wrong with them."""
from engine import arguments, options
from engine.errors import UsageError
from model import find_backbone

MADE_TEACHER = "--teacher_load FILE, a best.pth of run.py"
FOUND_TEACHER = "--teacher_pretrained imagenet or FILE with --teacher_embedding_size 0"


def add_teacher_options(parser):
    group = options.add_network_options(parser, "teacher (frozen, in evaluation mode)", "teacher_")
    group.add_argument("--teacher_load", type=arguments.path, metavar="PATH",
                       help="weights of the teacher; what you don't give of it, and of the data, is taken from it "
                            "and from the config.json beside it")
    group.add_argument("--teacher_pretrained", type=arguments.path, metavar="imagenet|FILE",
                       help="a teacher that needs no training, instead of --teacher_load: weights of its backbone, as "
                            "for --pretrained. It has no head: --teacher_embedding_size 0")
    group.add_argument("--teacher_views", type=arguments.not_negative_int, default=0, metavar="K",
                       help="each picture has K fixed crops; the teacher embeds them once, before the first epoch, and "
                            "is not run in the steps; 0, as published: a new crop each time, and the teacher in every "
                            "step")


def check_teacher(args, of_stages):
    """Refuse (UsageError) a teacher without weights, with weights of two kinds, or with an untrained head; and
    --teacher_views that are too few, or that a loss term rules out.

    Args:
        of_stages: the options of the terms that need the stages' maps.
    """
    if args.teacher_load is None and args.teacher_pretrained in (None, "none"):
        raise UsageError("a teacher is missing: give {}, or {}".format(MADE_TEACHER, FOUND_TEACHER))
    check_found(args, "teacher_")
    if args.teacher_views and of_stages:
        raise UsageError("{} needs the maps of the teacher's stages, and --teacher_views keeps its embeddings only; "
                         "leave one of them out".format(of_stages[0]))
    if 0 < args.teacher_views < args.views:
        raise UsageError("--teacher_views {} are fewer crops than --views {} takes of a picture; take at least as many"
                         .format(args.teacher_views, args.views))


def check_found(args, prefix):
    """Refuse (UsageError) a network, whose options have this prefix, with weights of two kinds, or with those of its
    backbone alone and an untrained head."""
    load, size = getattr(args, prefix + "load"), getattr(args, prefix + "embedding_size")
    if load is not None and getattr(args, prefix + "pretrained") is not None:
        raise UsageError("--{0}load gives all weights of that network, so --{0}pretrained does nothing; leave one of "
                         "them out".format(prefix))
    if load is None and size:
        raise UsageError("with --{0}pretrained a head of {1} dimensions would be untrained; add --{0}embedding_size 0"
                         .format(prefix, size))


def check_stages(args, of_stages):
    """Refuse (UsageError) networks without stages where terms, those with the options ``of_stages``, need them."""
    for option, base in (("--teacher_base", args.teacher_base), ("--base", args.base)):
        if of_stages and not find_backbone(base).has_stages:
            raise UsageError("{} needs the maps of four stages, and {} {} has none; leave it out, or take another "
                             "network".format(of_stages[0], option, base))
