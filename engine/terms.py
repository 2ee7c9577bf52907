"""Terms of distillation: what one is, its options, and the ways in which its criterion is called."""
import collections

import torch

from engine import arguments, ranks
from engine.errors import UsageError

# One more term is one row of these in run_distill.py.
Term = collections.namedtuple("Term", [
    "name",  # its flag is --NAME_ratio
    "help",  # text after "weight of" in --help
    "build",  # (options, Shapes) -> criterion
    "way",  # how the criterion is called
    "flags"])  # its own flags: {name: arguments of add_argument}

Shapes = collections.namedtuple("Shapes", "student teacher student_maps teacher_maps")
Shapes.__doc__ = """What the networks of a run give for one picture.

student, teacher: dimensions of the embeddings.
student_maps, teacher_maps: (channels, height, width) of each of the four stages; none if no term needs them.
"""

Batch = collections.namedtuple("Batch", "student projected teacher labels stages teacher_stages size fraction")
Batch.__doc__ = """The inputs of a term.

student, teacher, labels: embeddings (N x d, N x any dimension) and labels (N) of the whole batch of all ranks.
projected: the student's embeddings in the teacher's space: through P where there is one, else as they are.
stages, teacher_stages: the four stages' maps of this rank's pictures; none if no term needs them.
size: N. fraction: this rank's part of the N.
"""

Way = collections.namedtuple("Way", [
    "call",  # (criterion, Batch) -> the value for the whole batch
    "needs_pairs",  # whether it needs two pictures of a class
    "reaches_embedding",  # whether its gradient reaches the embedding, so that the linear layer is trained
    "stages",  # which of the four stages' maps of both networks it compares, from 0
    "shares_space"])  # whether it makes the student's space the teacher's, which takes ``Batch.projected``


def _of_vertices(criterion, batch):
    # The angles are divided among the ranks: each computes those whose vertex is one of its own pictures.
    return ranks.summed(criterion(batch.student, batch.teacher, ranks.span(batch.size)))


def _of_stages(*numbers):
    """Return the way of a criterion on the maps of these stages, whose values are added up."""
    def call(criterion, batch):
        value = sum(criterion(batch.stages[number], batch.teacher_stages[number]) for number in numbers)
        return ranks.summed(batch.fraction * value)
    return Way(call, False, False, numbers, False)


ON_EMBEDDINGS = Way(lambda criterion, batch: criterion(batch.student, batch.teacher), False, True, (), False)
ON_PROJECTED = Way(lambda criterion, batch: criterion(batch.projected, batch.teacher), False, True, (), True)
ON_LABELS = Way(lambda criterion, batch: criterion(batch.student, batch.labels), True, True, (), False)
ON_VERTICES = Way(_of_vertices, False, True, (), False)
ON_STAGES = _of_stages(1, 2, 3)
ON_LAST_STAGE = _of_stages(3)

SPACES = """At least one ratio above 0. "own space": the term compares relations or maps, and leaves the student's
embeddings where they are. "teacher's space": it makes the student's space the teacher's, so that a
student's query can search in a teacher's gallery (run.py --mode eval --gallery_load)."""


def add_term_options(parser, terms):
    group = parser.add_argument_group("loss terms", SPACES)
    for term in terms:
        group.add_argument("--{}_ratio".format(term.name), type=arguments.not_negative_float, default=0,
                           metavar="RATIO", help="weight of {} [{}]".format(
                               term.help, "teacher's space" if term.way.shares_space else "own space"))
        for name, words in term.flags.items():
            group.add_argument("--" + name, **words)
    group.add_argument("--projection", choices=("auto", "linear"), default="auto",
                       help="P, the linear map from the student's to the teacher's space that the terms of the "
                            "teacher's space share. auto: where the dimensions differ; linear: always. It is trained "
                            "with the student, as fast as its head, and kept as projection.pth beside best.pth")


def chosen(terms, args):
    """Return those of the terms that are asked for."""
    return [term for term in terms if getattr(args, term.name + "_ratio") > 0]


def needing(terms, what):
    """Return the options of the terms whose way says that it needs this."""
    return ["--{}_ratio".format(term.name) for term in terms if getattr(term.way, what)]


def check_terms(terms, args, given):
    """Refuse (UsageError) a command without any term, and options of terms that are not asked for."""
    asked = chosen(terms, args)
    if not asked:
        raise UsageError("all loss ratios are 0: give at least one of {}, for example --dist_ratio 1 --angle_ratio 2"
                         .format(", ".join("--{}_ratio".format(term.name) for term in terms)))
    for term in terms:
        if term not in asked:
            arguments.refuse_idle(given, term.flags, "with --{}_ratio 0".format(term.name))
    if not needing(asked, "shares_space"):
        arguments.refuse_idle(given, ["projection"], "without {}".format(" or ".join(needing(terms, "shares_space"))))


def outputs(network, images, with_stages):
    """Return [stage1, stage2, stage3, stage4, embeddings], or [embeddings] alone."""
    if not with_stages:
        return [network(images)]
    *stages, _pooled, embeddings = network(images, True)
    return stages + [embeddings]


def shapes_of(student, teacher, terms, args, device):
    """Return the ``Shapes`` of two embedding networks; each is shown one picture if a term compares maps.

    Raises:
        UsageError: stages that a term compares have maps of unequal sizes.
    """
    compared = sorted({number for term in terms for number in term.way.stages})
    ours, theirs = ([_maps_of(network, args.image_size, device) for network in (student, teacher)] if compared
                    else ([], []))
    for number in compared:
        if ours[number][1:] != theirs[number][1:]:
            raise UsageError("the maps of both networks' stages must have equal sizes; the student has one of {} x {}, "
                             "the teacher {} x {}: take another network, or leave the term out".format(
                                 *ours[number][1:], *theirs[number][1:]))
    return Shapes(student.embedding_size, teacher.embedding_size, ours, theirs)


def _maps_of(network, image_size, device):
    """Return (channels, height, width) of the maps of the four stages."""
    picture = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
    was_training = network.training
    network.eval()
    with torch.no_grad():
        # Of the class: the network's own may be compiled, and would be so for this one picture.
        *maps, _ = outputs(type(network).forward.__get__(network), picture, True)
    network.train(was_training)
    return [tuple(each.shape[1:]) for each in maps]
