"""Whether a network's embeddings can search in a gallery: in its own; or in its teacher's, if it is a student that
learnt the teacher's space (see ``engine/asymmetric.py``).
"""
import torch.nn.functional as F

from engine import asymmetric
from engine.errors import UsageError
from engine.networks import NETWORK_OPTIONS, describe
from model import digest_of_network

DIGITS = 12  # of a digest, in a message


class _Unit:
    """A gallery on the unit sphere."""

    def __init__(self, gallery):
        self.gallery = gallery

    def __len__(self):
        return len(self.gallery)

    def __getitem__(self, rows):
        return F.normalize(self.gallery[rows])


def common_space(run, network, gallery):
    """Return (what turns the embeddings of ``network`` into queries, what these search in): the gallery as it is, if
    the network made it; its teacher's, and both L2-normalised.

    Raises:
        UsageError: another network made the gallery, and nothing leads to its space. WeightsError: a map that leads
        there can't be used.
    """
    args, about, digest = run.args, gallery.about, digest_of_network(network)
    if digest == about["network"]:
        if args.projection_load:
            raise UsageError("--projection_load does nothing in a gallery that {} itself made; leave it out".format(
                args.load))
        return (lambda queries: queries), gallery
    theirs = _in_words(about["options"], about.get("load"), about["network"])
    ours = _in_words({name: getattr(args, name) for name in NETWORK_OPTIONS}, args.load or args.pretrained, digest)
    student = asymmetric.trained_with(args.load) if args.load else {}
    has_learnt = network.embedding_size == gallery.width and any(
        student.get(name) for name in asymmetric.SPACE_TERMS)
    matrix = None
    if args.load and (has_learnt or asymmetric.projection_of(args)):
        matrix = asymmetric.find_projection(args, student, network.embedding_size, gallery.width, args.gallery)
    if matrix is None and not has_learnt:
        raise UsageError("--gallery {} was made by another network, {}, and this one is {}; only a student distilled "
                         "with {} can search in its teacher's gallery".format(
                             args.gallery, theirs, ours, asymmetric.in_words()))
    print("Note: the gallery was made by another network, {}; this one, {}, searches in it as its student{}. Both "
          "sides are L2-normalised".format(theirs, ours, "" if matrix is None else ", through the projection"),
          flush=True)
    asymmetric.warn_of_another_teacher(args.load, student, about.get("load"))
    return (lambda queries: F.normalize(queries if matrix is None else F.linear(queries, matrix))), _Unit(gallery)


def _in_words(options, file, digest):
    return "{} ({}, digest {})".format(describe(options), file, digest[:DIGITS])
