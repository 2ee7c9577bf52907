"""``run.py --mode embed``: every picture of a data set, or of a folder, becomes a row of a gallery.

Rows are written to a folder beside the gallery as they come (``partial.py``), so that the same command goes on after
any end, and memory holds no more of a picture than its path. ``files.py`` says what is made of them.
"""
import os
import time

import numpy as np
import torch
from tqdm import tqdm

from dataset import EvaluationLoader, shown, workers_that_fit
from engine import ranks
from engine.errors import TrainingError, UsageError
from engine.gallery.arrays import Array
from engine.gallery.files import ENDINGS, STORES, as_stored, beside, write_gallery
from engine.gallery.partial import opened_partial
from engine.gallery.parts import Prefix, open_parts, texts_of
from engine.interruption import Stopped, deferred_interruptions, stop_if_interrupted, stop_while_waiting
from engine.modes import check_place
from engine.networks import NETWORK_OPTIONS, for_evaluation, open_network
from engine.settle import settled
from model import digest_of_network

FLUSHED_EVERY = 50  # batches

EMBED_OPTIONS = ("store",)


def add_embed_options(parser):
    group = parser.add_argument_group("a gallery (--mode embed)")
    group.add_argument("--store", choices=tuple(STORES), default="float32",
                       help="numbers of the embeddings; int8: with a scale for each, its largest absolute value / 127")
    return group


def embed(command):
    """Do what ``run.py --mode embed`` is asked for."""
    # Settle: run.args does not change after this.
    with settled(command, check_embed, [("load", "")], data_options_from="", trains=False) as run:
        # Data.
        pictures, skipped = open_parts(run.args)
        # Network.
        network = open_network(run)
        about = described(run, network)
        # Embed.
        write_embeddings(run, for_evaluation(run, network), about, pictures, skipped)


def check_embed(args, given):
    """Refuse (UsageError) to embed with an untrained head, with several processes, or without a place for the result.
    Without --cache pictures are decoded as they are needed: most galleries are made once."""
    check_trained(args)
    ranks.refuse_several("--mode embed")
    if args.out is None or not args.out.endswith(ENDINGS):
        raise UsageError("--mode embed needs --out FILE{}, the gallery to write".format(" or --out FILE".join(ENDINGS)))
    endings = (".npz",) if args.out.endswith(".npz") else (".npy", ".csv", ".json")
    check_place(args, [beside(args.out, ending) for ending in endings])
    if "cache" not in given:
        args.cache = "off"


def check_trained(args):
    """Refuse (UsageError) weights of a backbone alone below an untrained head."""
    if args.load is None and args.embedding_size:
        raise UsageError("give --load FILE, a trained network; with --pretrained alone a head of {} dimensions would "
                         "be untrained: add --embedding_size 0".format(args.embedding_size))


def described(run, network):
    """Return what a gallery says of the network that makes it, {name: value}; see ``engine/gallery/files.py``."""
    args = run.args
    return {"network": digest_of_network(network), "width": network.embedding_size, "precision": run.precision.name,
            "load": os.path.abspath(args.load) if args.load else args.pretrained,
            "options": {name: getattr(args, name) for name in NETWORK_OPTIONS + ("image_size", "resize")}}


def write_embeddings(run, network, about, parts, skipped):
    """Embed the pictures of ``parts`` with ``network``, ready for evaluation, and write the gallery --out.

    Args:
        about: what ``described`` says of the network as it was before that. skipped: lines on pictures left out.

    Raises:
        TrainingError: an embedding is not finite, or the disk refuses. UsageError: --out was begun as another job.
        Others: see ``engine.evaluation.embed``. In each case what is done is kept.
    """
    args = run.args
    folder = os.path.abspath(args.data if os.path.isdir(args.data) else os.path.dirname(args.data))
    job = {"network": about["network"], "width": about["width"], "precision": about["precision"], "store": args.store}
    with opened_partial(args.out + ".partial", job, Prefix(parts, folder), args.overwrite) as partial:
        _embed(run, network, parts, partial)
        kept = np.concatenate([part.kept for part in parts])
        arrays = {name: Array(kind, (len(kept),) + shape, partial.blocks(name, kept))
                  for name, (kind, shape) in partial.kinds.items()}
        about = dict(about, store=args.store, dataset=args.dataset, folder=folder, skipped=skipped)
        try:
            write_gallery(args.out, about, arrays, texts_of(parts, folder))
        except OSError as error:
            raise TrainingError("{} can't be written ({}); the embeddings are kept in {}: make room, and the same "
                                "command goes on".format(args.out, error.strerror or error, partial.folder)) from None
        partial.remove()
    print("Gallery: {}, {} pictures, {} dimensions, {}, {:.1f} MB".format(
        args.out, len(kept), about["width"], args.store, os.path.getsize(args.out) / 1e6), flush=True)


@deferred_interruptions()
def _embed(run, network, parts, partial):
    """Fill ``partial`` with what it lacks."""
    count, done, began = sum(len(part.kept) for part in parts), partial.done, time.monotonic()
    before = sum(int(np.searchsorted(part.kept, done)) for part in parts)
    if before:
        print("Goes on: {} of {} pictures are in {}".format(before, count, partial.folder), flush=True)
    network.eval()
    finished = before
    with tqdm(total=count, initial=before, desc="Embedding", unit=" pictures", leave=False, disable=None) as bar:
        try:
            for number, (rows, embeddings) in enumerate(_rows(run, network, parts, done), 1):
                for first, last in _runs(rows):
                    partial.write(int(rows[first]), as_stored(embeddings[first:last], run.args.store))
                done, finished = int(rows[-1]) + 1, finished + len(rows)
                bar.update(len(rows))
                if number % FLUSHED_EVERY == 0:
                    partial.flush(done)
            partial.flush(done)
        except BaseException as error:
            partial.flush(done)
            kept = "{} of {} pictures are in {}; the same command goes on".format(finished, count, partial.folder)
            if isinstance(error, Stopped):
                error.advice = kept
            else:
                print(kept, flush=True)
            raise
    seconds = time.monotonic() - began
    print("Embedded: {} pictures in {:.1f} s, {:.1f}/s".format(count - before, seconds, (count - before) / seconds))


def _rows(run, network, parts, done):
    """Yield (rows, embeddings) of each batch of the pictures from the row ``done`` on; both are NumPy arrays."""
    args = run.args
    workers = workers_that_fit(args.workers, args.batch * 3 * args.image_size ** 2)
    for part in parts:
        first = int(np.searchsorted(part.kept, done))
        if first == len(part.kept):
            continue
        loader = EvaluationLoader(part.images, args.batch, args.image_size, workers, run.device.type != "cpu",
                                  part.pictures, (first, len(part.kept)))
        for images, _ in loader.batches(stop_while_waiting):
            stop_if_interrupted()
            with torch.inference_mode(), run.precision.autocast():
                embeddings = network(images.to(run.device, non_blocking=True)).float().cpu()
            rows, first = part.kept[first:first + len(embeddings)], first + len(embeddings)
            _check_finite(embeddings, part.images.samples[first - len(embeddings):first], args.store)
            yield rows, embeddings.numpy()
    stop_if_interrupted()


def _check_finite(embeddings, samples, store):
    stored = embeddings.half() if store == "float16" else embeddings
    broken = (~torch.isfinite(stored)).any(1).nonzero().flatten().tolist()
    if broken:
        raise TrainingError("the embedding of {} is not finite{}".format(
            shown(samples[broken[0]][0]), " in float16; take --store float32" if torch.isfinite(embeddings).all()
            else ""))


def _runs(rows):
    """Return [(first, last)] of the places in ``rows``, sorted numbers, between which each is one more than before."""
    ends = [0] + (np.flatnonzero(np.diff(rows) != 1) + 1).tolist() + [len(rows)]
    return list(zip(ends[:-1], ends[1:]))
