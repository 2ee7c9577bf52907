"""Two networks that should embed alike, one of them exported: how far apart they are, and how fast each is."""
import collections
import math
import statistics
import time

import torch

from engine.interruption import stop_if_interrupted
from metric.nearest import nearest

BATCHES = (1, 32)  # pictures at once, whose latency is measured
WARM_UP = 3  # calls that are not timed
ROUNDS, SECONDS = (5, 200), 8  # of timing: at least and at most so many, and no more of them after so long

Parity = collections.namedtuple("Parity", "difference cosine same count")
Parity.__doc__ = """How far two networks agree.

difference: the longest distance between their embeddings of a picture, as a fraction of the first one's length.
cosine: the smallest one of these two. same: how many of ``count`` queries have the same nearest neighbour.
"""

Latency = collections.namedtuple("Latency", "median slow")
Latency.__doc__ = """Seconds for a batch: the median, and what 95 % of the calls stay below."""


def parity(expected, found):
    """Return the ``Parity`` of two ``engine.evaluation.Embedded`` of the same pictures."""
    apart, cosines = [], []
    for there, here in ((expected, found), (expected.gallery, found.gallery)):
        if there is not None:
            there, here = there.embeddings.double(), here.embeddings.double()
            lengths = there.norm(dim=1).clamp_min(1e-30)
            apart.append(((there - here).norm(dim=1) / lengths).max().item())
            cosines.append(((there * here).sum(1) / lengths / here.norm(dim=1).clamp_min(1e-30)).min().item())
    same = _nearest(expected) == _nearest(found)
    return Parity(max(apart), min(cosines), int(same.sum()), len(same))


def _nearest(found):
    """Return of each query the row of its nearest neighbour: N. The first one of equally near ones."""
    return nearest(found.embeddings, found.gallery and found.gallery.embeddings, 1)[1][:, 0]


def latencies(networks, image_size, count):
    """Return {name: ``Latency``} of embedding ``count`` pictures at once on the CPU.

    Args:
        networks: {name: module}; they take turns, so that what else the machine does slows all of them down alike.
    """
    # Channels last in memory, as pictures are decoded. What they show does not change the time.
    images = torch.randint(0, 256, (count, image_size, image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    times, began = {name: [] for name in networks}, time.perf_counter()
    with torch.inference_mode():
        for number in range(WARM_UP + ROUNDS[1]):
            if number >= WARM_UP + ROUNDS[0] and time.perf_counter() - began > SECONDS:
                break
            for name, network in networks.items():
                stop_if_interrupted()
                start = time.perf_counter()
                network(images)
                times[name].append(time.perf_counter() - start)
    return {name: _latency(seconds[WARM_UP:]) for name, seconds in times.items()}


def _latency(seconds):
    return Latency(statistics.median(seconds), sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1])
