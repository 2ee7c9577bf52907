"""How far apart pictures of one class are, and pictures of different classes."""
import torch

from report.axes import Curve, panel
from report.neighbours import sampled_distances

PAIRS = 20000
BINS = 50


def histogram(title, embedded, seed):
    """Return a ``Canvas`` with the histograms of the distances of pairs that ``seed`` draws."""
    distances = sampled_distances(embedded, PAIRS, seed)
    farthest = max([float(part.max()) for part in distances if len(part)] + [1e-12])
    curves = []
    for name, colour, part in zip(("same class", "different classes"), ("c2", "c1"), distances):
        if len(part):
            curves.append(Curve(name, _steps(part, farthest), colour, colour == "c1"))
    return panel(title + ", % of pairs", curves, "distance", filled=True)


def _steps(values, farthest):
    counts = torch.histc(values.double(), BINS, 0, farthest).mul(100 / len(values)).tolist()
    return [(farthest * (bin + side) / BINS, share) for bin, share in enumerate(counts) for side in (0, 1)]
