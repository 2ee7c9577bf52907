"""Embed a data set, measure its Recall@K and what else --metrics asks for, print the results."""
import collections
import contextlib
import math

import torch
from tqdm import tqdm

from engine import ranks
from engine.errors import TrainingError
from engine.interruption import deferred_interruptions, stop_if_interrupted, stop_while_waiting
from metric.utils import measures

Measurement = collections.namedtuple("Measurement", "recalls spread more")
Measurement.__doc__ = """recalls: {K: fraction of queries}; spread: see ``relative_spread``; more: {name of another
measure, one of ``metric.utils.MEASURES``: value}, but for those that have none because no query has a match."""

Embedded = collections.namedtuple("Embedded", "embeddings labels images gallery")
Embedded.__doc__ = """A set that was embedded: N x d, and N labels, on the device; its ``ImageSet``; and the
``Embedded`` that these, as queries, search in (None: each searches all others)."""

# How measures are written where people read; others by their names.
TITLES = {"map@r": "MAP@R", "r-precision": "R-precision", "mrr": "MRR"}

# Below this relative spread the embeddings are one point for any practical purpose.
COLLAPSED_SPREAD = 0.01


def embed(network, loader, device, description="Embedding", precision=None):
    """Return (embeddings N x d, labels N) of every picture in the set, on ``device``; the network's mode is put back.

    Each rank embeds its part, and all of them get everything.

    Args:
        loader: an ``EvaluationLoader`` of this rank's part. precision: a ``Precision``; None for float32.

    Raises:
        DatasetError: a picture can't be read. LoadingError: no batch comes. Stopped: a signal came.
    """
    was_training = network.training
    network.eval()
    embeddings, labels, done = None, torch.empty(loader.count, dtype=torch.int64), 0
    common = -(-(loader.total // ranks.count()) // loader.batch_size)  # batches that every rank has
    # Written into place: a list of batches would hold all embeddings twice when it is put together.
    with tqdm(total=len(loader), desc=description, leave=False, disable=None if ranks.is_first() else True) as bar:
        for number, (images, batch_labels) in enumerate(loader.batches(stop_while_waiting)):
            if number < common:
                stop_if_interrupted()
            with torch.inference_mode(), precision.autocast() if precision else contextlib.nullcontext():
                batch = network(images.to(device, non_blocking=True))
            if embeddings is None:
                embeddings = torch.empty(loader.count, batch.shape[1], device=device)
            embeddings[done:done + len(batch)] = batch
            labels[done:done + len(batch)] = batch_labels
            done += len(batch)
            bar.update()
    stop_if_interrupted()
    network.train(was_training)
    return ranks.gathered(embeddings, loader.total), ranks.gathered(labels.to(device), loader.total)


def relative_spread(embeddings):
    """Return the root mean square distance of embeddings, N x d, to their mean, divided by their root mean square norm.

    1 for embeddings that spread evenly about the origin, 0 for embeddings that are all the same.
    """
    centred = embeddings - embeddings.mean(0)
    return float((centred.pow(2).sum() / embeddings.pow(2).sum().clamp_min(1e-30)).sqrt())


def embed_finite(network, loader, device, name, precision):
    """Return what ``embed`` gives of the pictures called ``name``.

    Raises:
        TrainingError: an embedding is not finite.
    """
    embeddings, labels = embed(network, loader, device, "Embedding " + name, precision)
    broken = int((~torch.isfinite(embeddings)).any(1).sum())
    if broken:
        raise TrainingError("{} of {} embeddings of the {} are not finite; the weights of the last whole epoch stay as "
                            "they are; try a lower --lr".format(broken, len(embeddings), name))
    return embeddings, labels


def measurement(queries, args, gallery=None, paired=False):
    """Return the ``Measurement`` of (embeddings, labels); the measuring itself is done by the first rank.

    Args:
        args: the options; ``metrics`` and ``recall`` say what is measured.
        gallery: (embeddings, labels) of what the queries search in; None: each searches all others of them.
        paired: the gallery holds the queries' own pictures, which are excluded.
    """
    others = (None, None) if gallery is None else gallery
    found = dict(ranks.from_first(lambda: measures(*queries, args.metrics, args.recall, *others, paired=paired)))
    return Measurement(found.pop("recall"), relative_spread(queries[0]),
                       {name: value for name, value in found.items() if not math.isnan(value)})


def embed_set(network, loader, device, precision, name, gallery_name):
    """Return the ``Embedded`` of a loader's pictures and of the gallery that they search in, if there is one; names and
    errors as in ``embed_finite``."""
    gallery = loader.gallery
    return Embedded(*embed_finite(network, loader, device, name, precision), loader.images, gallery and Embedded(
        *embed_finite(network, gallery, device, gallery_name, precision), gallery.images, None))


def measured(embedded, args):
    """Return the ``Measurement`` of an ``Embedded``; see ``measurement``."""
    gallery = embedded.gallery
    return measurement((embedded.embeddings, embedded.labels), args,
                       gallery and (gallery.embeddings, gallery.labels))


@deferred_interruptions()
def evaluate_splits(network, loaders, args, device, epoch, precision=None, keep=None):
    """Measure each split, print its lines, and return {split name: Measurement}.

    Args:
        loaders: {split name: loader}, in the order of printing; a loader knows its gallery, if there is one.
        args: the options; ``metrics`` and ``recall`` say what is measured. epoch: for the lines.
        precision: a ``Precision``; None, in training too, for float32: the figures don't depend on a rounding mode.
        keep: a dict that gets {split name: ``Embedded``}; None keeps nothing.

    Raises:
        TrainingError: an embedding is not finite. Others: see ``embed``.
    """
    found = {}
    for split, loader in loaders.items():
        embedded = embed_set(network, loader, device, precision, "{} set".format(split), "gallery")
        found[split] = measured(embedded, args)
        if keep is not None:
            keep[split] = embedded
        tell(found[split], split, epoch)
    return found


def tell(found, split, epoch):
    """Print the lines of a ``Measurement``."""
    for title, fraction in titled(found).items():
        print("[Epoch {}] {}: [{:.4f}] {}".format(epoch, title, 100 * fraction, split), flush=True)
    if found.spread < COLLAPSED_SPREAD:
        print("Warning: the embeddings of the {} set have collapsed to nearly one point (relative spread {:.4f}); "
              "a lower --lr or --pretrained weights may help".format(split, found.spread),
              flush=True)


def titled(found):
    """Return {title of a measure: value} of a ``Measurement``."""
    values = {"Recall@{}".format(k): fraction for k, fraction in found.recalls.items()}
    values.update((TITLES.get(name, name), value) for name, value in found.more.items())
    return values
