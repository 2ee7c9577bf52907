"""``run.py --mode search``: what of a gallery lies nearest to some pictures, or which of its pictures are alike.

Queries are resized and embedded as the gallery's pictures were, by the network that made it; or by a student of that
one which learnt its space (``engine/gallery/spaces.py``).
"""
import argparse
import collections
import contextlib
import json
import os
import sys

from dataset import EvaluationLoader, ImageSet, open_pictures, resized_size, shown
from engine import arguments, ranks
from engine.errors import UsageError
from engine.evaluation import embed_finite
from engine.gallery.embedding import check_trained
from engine.gallery.files import Gallery
from engine.gallery.indexes import INDEXES, open_index
from engine.gallery.spaces import common_space
from engine.interruption import deferred_interruptions
from engine.modes import check_place
from engine.networks import for_evaluation, open_network
from engine.settle import settled
from metric.nearest import close_pairs

ALIKE = 0.1  # the distance of --duplicates, on the unit sphere
SHOWN_PAIRS = 5000
DRAWN_ROWS = 20
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")

SEARCH_OPTIONS = ("gallery", "query", "k", "index", "duplicates", "json", "projection_load")
OF_QUERIES = ("load", "pretrained", "zero_init_residual", "base", "embedding_size", "pool", "l2normalize", "k", "index",
              "projection_load", "truncated", "batch", "precision", "compile")

Match = collections.namedtuple("Match", "distance path label split")
Match.__doc__ = """A picture of the gallery: its distance to what it was found by, and what the gallery says of it."""


def add_search_options(parser):
    group = parser.add_argument_group("search (--mode search)")
    group.add_argument("--gallery", type=arguments.path, metavar="FILE",
                       help="what --mode embed wrote, .npz or .npy. If its pictures have moved, --data says where "
                            "their folder is now")
    group.add_argument("--query", type=arguments.path, nargs="+", metavar="PICTURE", help="pictures to search for")
    group.add_argument("--k", type=arguments.positive_int, default=10, metavar="K",
                       help="how many are found for each, nearest first; by default fewer where the gallery is smaller")
    group.add_argument("--index", choices=tuple(INDEXES), default="exact",
                       help="; ".join("{}: {}".format(name, index.help) for name, index in INDEXES.items()))
    group.add_argument("--duplicates", type=arguments.not_negative_float, nargs="?", const=ALIKE, metavar="DISTANCE",
                       help="instead of --query: list the pairs of the gallery that are at most DISTANCE apart, the "
                            "nearest first, at most {}; without DISTANCE {}, for embeddings on the unit sphere. Needs "
                            "no network".format(SHOWN_PAIRS, ALIKE))
    group.add_argument("--json", action="store_true",
                       help="print one JSON document, and everything else on stderr")
    return group


def find(command, draw):
    """Do what ``run.py --mode search`` is asked for.

    Args:
        draw: makes the picture of --out, see ``report.found.draw_found``.
    """
    def check(args, given):
        check_search(args, given, gallery)

    with answer_alone(command.args.json) as out:
        command, gallery = open_gallery(command)
        has_queries, count = command.args.query is not None, None
        # Settle: run.args does not change after this.
        with settled(command, check, [("load", "")] * has_queries, trains=False) as run:
            if has_queries:
                # Data.
                queries = open_queries(run.args)
                # Network.
                network = open_network(run)
                space = common_space(run, network, gallery)
                # Search.
                found = search(run, for_evaluation(run, network), space, gallery, queries)
            else:
                found, count = duplicates(run.args, gallery)
            tell(run.args, found, count, out)
            if run.args.out:
                draw(*to_draw(found), run.args.out)


@contextlib.contextmanager
def answer_alone(wanted):
    """Yield stdout, for the answer; if ``wanted``, what is printed within the block goes to stderr."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield out


def open_gallery(command):
    """Return the ``Command`` with what the gallery decides, --image_size and --resize, and the ``Gallery``.

    Raises:
        UsageError: there is none, or it can't be searched.
    """
    args = argparse.Namespace(**vars(command.args))
    if args.gallery is None:
        raise UsageError("--mode search needs --gallery FILE; run.py --mode embed makes one")
    gallery = Gallery(args.gallery)
    if "data" in command.given:
        if not os.path.isdir(args.data):
            raise UsageError("--data {}: there is no such directory".format(args.data))
        gallery.folder = args.data
    elif not os.path.isdir(gallery.folder):
        print("Note: the pictures of {} were in {}, which is not there; --data DIR says where it is now".format(
            args.gallery, shown(gallery.folder)), flush=True)
    decided = {name: gallery.about["options"][name] for name in ("image_size", "resize")}
    vars(args).update(decided)
    # As if they were typed, so that nothing else decides them.
    more = set(decided) - command.given
    return command._replace(args=args, given=command.given | more, excused=command.excused | more,
                            idle=command.idle - set(decided)), gallery


def check_search(args, given, gallery):
    """Refuse (UsageError) options that don't fit together, or more neighbours than the gallery holds."""
    ranks.refuse_several("--mode search")
    if (args.query is None) == (args.duplicates is None):
        raise UsageError("--mode search needs --query PICTURE ... or --duplicates, one of the two")
    if not len(gallery):
        raise UsageError("--gallery {}: it holds no pictures".format(args.gallery))
    if args.out is not None:
        if not args.out.lower().endswith(PICTURE_ENDINGS):
            raise UsageError("--out {}: with --mode search this is a picture; its name ends in {}".format(
                args.out, " or ".join(PICTURE_ENDINGS)))
        check_place(args, [args.out])
    if args.query is None:
        arguments.refuse_idle(given, OF_QUERIES, "with --duplicates")
        return
    check_trained(args)
    for path in args.query:
        if not os.path.isfile(path):
            raise UsageError("--query {}: {}".format(
                path, "this is no file, but a picture is needed" if os.path.exists(path) else "there is no such file"))
    open_index(args.index)
    if "k" not in given:
        args.k = min(args.k, len(gallery))
    if args.k > len(gallery):
        raise UsageError("--k {}: the gallery {} holds only {} picture{}".format(
            args.k, args.gallery, len(gallery), "s" if len(gallery) > 1 else ""))


def open_queries(args):
    """Return the ``EvaluationLoader`` of the pictures of --query; one that can't be read is an error when it comes."""
    pictures = open_pictures(args.query, resized_size(args.image_size), "off", truncated=args.truncated,
                             resize=args.resize)
    return EvaluationLoader(ImageSet([(path, 0) for path in args.query], {}), args.batch, args.image_size,
                            pictures=pictures)


@deferred_interruptions()
def search(run, network, space, gallery, queries):
    """Return [(query's path, [its k nearest ``Match``])].

    Args:
        network: ready for evaluation. space: from ``engine.gallery.spaces.common_space``. queries: their loader.

    Raises:
        DatasetError: a query can't be read. TrainingError: an embedding is not finite. UsageError: one of the
        gallery's isn't.
    """
    as_queries, searched = space
    embeddings, _ = embed_finite(network, queries, run.device, "queries", run.precision)
    try:
        distances, rows = open_index(run.args.index)(as_queries(embeddings.float().cpu()), searched, run.args.k)
    except ValueError as error:
        raise UsageError("--gallery {}: {}".format(run.args.gallery, error)) from None
    return [(query, [Match(distance, *_entry(gallery, row)) for distance, row in zip(*found)])
            for query, *found in zip(run.args.query, distances.tolist(), rows.tolist())]


def duplicates(args, gallery):
    """Return ([(path, [the ``Match`` that is alike])], the number of all such pairs)."""
    try:
        distances, pairs, count = close_pairs(gallery, args.duplicates, SHOWN_PAIRS)
    except ValueError as error:
        raise UsageError("--gallery {}: {}".format(args.gallery, error)) from None
    return [(_entry(gallery, first)[0], [Match(distance, *_entry(gallery, second))])
            for distance, (first, second) in zip(distances.tolist(), pairs.tolist())], count


def _entry(gallery, row):
    path, label, split = gallery.entry(row)
    return os.path.join(gallery.folder, path), label, split


def tell(args, found, count, out):
    """Print what was found, for people or as JSON. count: of all pairs; None for queries."""
    if args.json:
        answer = {"gallery": args.gallery, "found": [
            {"query": query, "matches": [match._asdict() for match in matches]} for query, matches in found]}
        print(json.dumps(answer if count is None else dict(answer, pairs=count, within=args.duplicates)), file=out)
        return
    if count is not None:
        print("Pairs that are at most {:g} apart: {}{}".format(
            args.duplicates, count, "; the nearest {}:".format(len(found)) if len(found) < count else ""), file=out)
        for path, (match,) in found:
            print("  {:.4f}  {}\n          {}".format(match.distance, shown(path), shown(match.path)), file=out)
        return
    for query, matches in found:
        print("Query: {}".format(shown(query)), file=out)
        for match in matches:
            print("  {:.4f}  {}{}".format(match.distance, shown(match.path), "  ({})".format(shown(match.label))
                                          if match.label else ""), file=out)


def to_draw(found):
    """Return what ``report.found.draw_found`` takes: the queries' paths, and (path, distance, label) of each's matches.
    """
    if len(found) > DRAWN_ROWS:
        print("Note: the picture shows the first {} of {} rows".format(DRAWN_ROWS, len(found)), flush=True)
    rows = found[:DRAWN_ROWS]
    return [query for query, _ in rows], [[(match.path, match.distance, match.label) for match in matches]
                                          for _, matches in rows]
