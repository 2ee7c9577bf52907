"""A map of embeddings: their two principal components, some classes in colour, some pictures as thumbnails."""
import collections

import torch

from report.canvas import Canvas
from report.colours import series

SIDE, LEAST_HEIGHT, EDGE = 560, 300, 22  # width and greatest height; what is left free around the points
CLASSES, POINTS, THUMBNAILS = 8, 1500, 36
THUMBNAIL = 34
KINDS = ("disc", "square", "diamond", "triangle")  # with the colours, eight classes differ in both

Chosen = collections.namedtuple("Chosen", "classes points")
Chosen.__doc__ = """What maps of one set show: the labels that are in colour, and the indices of the pictures that are
points, in the order in which they get thumbnails: one of each of these classes, then any."""


def choose(labels, seed):
    """Return the ``Chosen`` of pictures with these labels (N, on the CPU), drawn by ``seed``: classes of at least ten
    pictures, where there are such, and all pictures of these classes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    labels = labels.tolist()
    counts, kinds = collections.Counter(labels), dict.fromkeys(labels[index] for index in order)
    classes = sorted(kinds, key=lambda label: -min(10, counts[label]))[:CLASSES]
    coloured, others = [], []
    for index in order:
        (coloured if labels[index] in classes else others).append(index)
    first = [next(index for index in coloured if labels[index] == label) for label in classes]
    shown = set(coloured[:POINTS] + others[:max(0, POINTS - len(coloured))]).difference(first)
    return Chosen(classes, first + [index for index in order if index in shown])


@torch.no_grad()
def principal_components(embeddings, count=2):
    """Return the projections of N x d embeddings on their first principal components, N x ``count``, and the share of
    the variance that each has, both in float64 on the CPU. A component that there is none of is 0.

    The sign of a component is the one with which its largest weight is positive, so that the map stays the same.
    """
    total = embeddings.new_zeros(embeddings.shape[1], embeddings.shape[1]).cpu().double()
    centre = embeddings.mean(0)
    for rows in embeddings.split(4096):
        rows = (rows - centre).cpu().double()
        total += rows.t() @ rows
    variances, directions = torch.linalg.eigh(total)
    variances, directions = variances.flip(0)[:count].clamp_(min=0), directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    found = torch.cat([(rows - centre).cpu().double() @ directions for rows in embeddings.split(4096)])
    missing = count - found.shape[1]
    return (torch.cat([found, found.new_zeros(len(found), missing)], 1),
            torch.cat([variances / total.trace().clamp(min=1e-300), found.new_zeros(missing)]).tolist())


def _scaled(points):
    """Return points, N x 2, so that the longer side of what they fill is as long as a map has room for, and the lengths
    of both sides."""
    low, spread = points.min(0)[0], (points.max(0)[0] - points.min(0)[0]).clamp_(min=1e-12)
    scale = (SIDE - 2 * EDGE) / spread.max()
    return scale * (points - low), scale * spread


def height_of(points, chosen):
    """Return the height of the map that ``draw_map`` makes of these."""
    return max(LEAST_HEIGHT, float(_scaled(points[chosen.points])[1][1]) + 2 * EDGE)


def draw_map(points, labels, chosen, picture, height):
    """Return a ``Canvas`` with a map.

    Args:
        points: N x 2. labels: N. chosen: a ``Chosen``. picture: index -> a square PIL image. height: of the map, at
            least ``height_of`` it; beside another map that of the higher one.
    """
    shown, sides = _scaled(points[chosen.points])
    canvas = Canvas(SIDE, height)
    shown = shown + (torch.tensor([SIDE, height], dtype=torch.float64) - sides) / 2  # in the middle
    places = {index: (x, height - y) for index, (x, y) in zip(chosen.points, shown.tolist())}
    colours = {label: number for number, label in enumerate(chosen.classes)}
    canvas.frame(0.5, 0.5, SIDE - 1, height - 1, "grid")
    labels = labels.tolist()
    for index in sorted(chosen.points, key=lambda index: labels[index] in colours):  # those in colour lie above
        _mark(canvas, *places[index], colours.get(labels[index]))
    for index in _apart(chosen.points, places, height):
        x, y = (length - THUMBNAIL / 2 for length in places[index])
        number = colours.get(labels[index])
        canvas.picture(x, y, THUMBNAIL, picture(index))
        colour, thickness = ("grid", 1) if number is None else (series(number), 3)
        canvas.frame(x, y, THUMBNAIL, THUMBNAIL, colour, thickness)
    return canvas


def entries(chosen, names):
    """Return a ``Canvas`` for each class in colour: its mark and its name; names: {label: name}."""
    found = []
    for number, label in enumerate(chosen.classes):
        canvas = Canvas(SIDE / 2, 22)
        _mark(canvas, 8, 11, number)
        canvas.text(20, 16, names[label], 13, room=SIDE / 2 - 26)
        found.append(canvas)
    return found


def key(chosen, names):
    """Return one ``Canvas`` with these entries, in two columns."""
    canvas = Canvas(SIDE, 22 * -(-len(chosen.classes) // 2))
    for number, entry in enumerate(entries(chosen, names)):
        canvas.place(entry, (number % 2) * SIDE / 2, 22 * (number // 2))
    return canvas


def _mark(canvas, x, y, number):
    """A point of a map: of the class with this number among those in colour, or None."""
    if number is None:
        canvas.marker("disc", x, y, 2, "faint", 0.35)
    else:
        canvas.marker(KINDS[number % len(KINDS)], x, y, 4, series(number), 0.9)


def _apart(order, places, height):
    """Return the first of these indices whose thumbnails don't overlap and lie within the map."""
    found, half = [], THUMBNAIL / 2 + 2
    for index in order:
        x, y = places[index]
        if (len(found) < THUMBNAILS and half <= x <= SIDE - half and half <= y <= height - half
                and all(max(abs(x - places[other][0]), abs(y - places[other][1])) > THUMBNAIL + 8 for other in found)):
            found.append(index)
    return found
