"""A panel with axes: lines over numbers, or filled steps; its names stand above it."""
import collections
import math

from report.canvas import Canvas, width_of

WIDTH, HEIGHT = 380, 220  # of a panel without its names, in units; the width of a phone
LEFT, RIGHT, BELOW, ABOVE = 46, 10, 34, 26
ROW = 16  # height of a line of names
SIZE = 11  # of letters

Curve = collections.namedtuple("Curve", "name points colour dash mark", defaults=(False, None))
Curve.__doc__ = """name: for the list above the panel. points: [(x, y)]. colour: a name in ``colours``. dash: whether
its line is broken. mark: an x at which it gets a ring; None for none."""


def panel(title, curves, x_label, whole_x=False, filled=False, named=True):
    """Return a ``Canvas`` with curves in one system of axes.

    Args:
        whole_x: whether the x axis has whole numbers only. filled: fill the area below each curve, from 0 on.
        named: whether the names of the curves stand above.
    """
    if len({x for curve in curves for x, _ in curve.points}) == 1:  # no curves yet: numbers say more than places
        curves = [curve._replace(name="{} {:.4g}".format(curve.name, curve.points[0][1])) for curve in curves]
    names = _names(curves) if named else []
    top = ABOVE + ROW * len(names)
    canvas = Canvas(WIDTH, top + HEIGHT)
    canvas.text(LEFT, 15, title, 13, room=WIDTH - LEFT - RIGHT)
    for row, entries in enumerate(names):
        x = LEFT
        for curve in entries:
            y = ABOVE + ROW * row
            canvas.line([(x, y + 4), (x + 16, y + 4)], curve.colour, 3, curve.dash)
            canvas.text(x + 21, y + 8, curve.name, SIZE, room=WIDTH - RIGHT - x - 21)
            x += 36 + width_of(curve.name, SIZE)
    box = _Box([x for curve in curves for x, _ in curve.points], [y for curve in curves for _, y in curve.points],
               top, whole_x, filled)
    _axes(canvas, box, x_label)
    for curve in curves:
        points = [box.at(*point) for point in curve.points]
        if filled:
            canvas.area([(points[0][0], box.bottom)] + points + [(points[-1][0], box.bottom)], curve.colour, 0.25)
        if len(points) == 1:
            canvas.marker("disc", *points[0], 3, curve.colour)
        canvas.line(points, curve.colour, 2, curve.dash)
        for x, y in curve.points:
            if x == curve.mark:
                canvas.marker("disc", *box.at(x, y), 5, curve.colour)
                canvas.marker("disc", *box.at(x, y), 2.5, "paper")
    return canvas


def _names(curves):
    """Return rows of curves, as many in each as their names leave room for."""
    rows, used = [], WIDTH
    for curve in curves:
        width = 36 + width_of(curve.name, SIZE)
        if used + width > WIDTH - LEFT and not (rows and not rows[-1]):
            rows.append([])
            used = 0
        rows[-1].append(curve)
        used += width
    return rows


class _Box:
    """Where numbers lie on a panel."""

    def __init__(self, xs, ys, top, whole_x, from_zero):
        self.x_ticks = ticks(min(xs), max(xs), 6, whole_x)
        self.y_ticks = ticks(0 if from_zero else min(ys), max(ys), 5)
        self.left, self.right, self.top, self.bottom = LEFT, WIDTH - RIGHT, top, top + HEIGHT - BELOW
        self.x_from, self.x_to = min(xs + self.x_ticks[:1]), max(xs + self.x_ticks[-1:])
        self.y_from, self.y_to = self.y_ticks[0], self.y_ticks[-1]

    def at(self, x, y):
        width = self.x_to - self.x_from
        across = (x - self.x_from) / width if width else 0.5
        up = (y - self.y_from) / ((self.y_to - self.y_from) or 1)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def _axes(canvas, box, x_label):
    for value in box.y_ticks:
        _, y = box.at(box.x_from, value)
        canvas.line([(box.left, y), (box.right, y)], "grid")
        canvas.text(box.left - 5, y + 4, "{:g}".format(value), SIZE, "end", "faint")
    for value in box.x_ticks:
        x, _ = box.at(value, box.y_from)
        canvas.line([(x, box.bottom), (x, box.bottom + 4)], "faint")
        canvas.text(x, box.bottom + 15, "{:g}".format(value), SIZE, "middle", "faint")
    canvas.line([(box.left, box.bottom), (box.right, box.bottom)], "faint")
    canvas.text(box.right, box.bottom + 29, x_label, SIZE, "end", "faint")


def ticks(low, high, most, whole=False):
    """Return at most ``most`` + 2 round numbers, evenly apart, from one at or below ``low`` to one at or above
    ``high``; of whole numbers only those within."""
    span = (high - low) or abs(high) or 1
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    if whole:
        step = max(1, int(round(step)))
        return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]
