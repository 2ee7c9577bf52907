"""A teacher is measured once for a set of pictures: its figures are kept beside the decoded pictures.

Each file belongs to a digest of all that the figures depend on: the weights and options of the teacher, the pictures
and their labels, the measures and their Ks, the version of torch and the kind of device.
"""
import contextlib
import hashlib
import json
import os

import torch

from dataset.files import replaced_file
from engine import ranks
from engine.evaluation import Measurement, evaluate_splits, tell
from engine.networks import NETWORK_OPTIONS
from model import digest_of_weights

VERSION = 1  # raise this when a network of the same weights and options, or a measure, gives other figures


def evaluate_once(run, teacher, loaders):
    """Print what ``evaluate_splits`` prints of a teacher before epoch 1; measure only what was not measured before.

    Args:
        teacher: as ``frozen`` gives it. loaders: {split: its ``EvaluationLoader``}.
    """
    weights = digest_of_weights(teacher)
    for split, loader in loaders.items():
        path = _path(run, loader, weights)
        found = ranks.from_first(lambda: path and _read(path, run.args))
        if found:
            print("Measured before with these pictures: the teacher on the {} set".format(split))
            tell(found, split, epoch=0)
        else:
            measured = evaluate_splits(teacher, {split: loader}, run.args, run.device, epoch=0)[split]
            if path and ranks.is_first():
                _write(path, measured)


def _path(run, loader, weights):
    """Return the path of the file of a measurement; None where the pictures are not kept (--cache off)."""
    galleries = [one for one in (loader, loader.gallery) if one is not None]
    if not all(one.pictures.path for one in galleries):
        return None
    options = {name: getattr(run.args, "teacher_" + name) for name in NETWORK_OPTIONS}
    depends_on = [VERSION, weights, options, run.args.metrics, run.args.recall, run.args.image_size, run.args.compile,
                  torch.__version__, run.device.type]
    for one in galleries:
        depends_on.append([os.path.basename(one.pictures.path), sorted(one.pictures.skipped),
                           hashlib.sha256(one.labels.tobytes()).hexdigest()])
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return loader.pictures.beside(digest[:32])


def _read(path, args):
    """Return the ``Measurement`` in the file ``path``; None if there is none, or nothing that can be used."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return Measurement({k: float(found["recalls"][str(k)]) for k in args.recall}, float(found["spread"]),
                           {name: float(value) for name, value in found["more"].items()})
    return None


def _write(path, measurement):
    with contextlib.suppress(OSError), replaced_file(path) as file:  # a folder of somebody else's: nothing is kept
        file.write(json.dumps(measurement._asdict()).encode())
