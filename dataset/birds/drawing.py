"""Drawing with soft edges: on sheets SCALE times as large as the picture, which are shrunk; and its geometry."""
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SCALE = 3


class View(NamedTuple):
    """Carries points of a frame to pixels of a sheet; ``unit`` is how many of them are one unit of the frame."""
    matrix: np.ndarray
    offset: np.ndarray
    unit: float

    def __call__(self, points):
        return np.asarray(points, dtype=float).dot(self.matrix.T) + self.offset

    def pixels(self, width):
        return max(1, int(round(width * self.unit)))

    def box(self, centre, radius):
        (x, y), r = self(centre).tolist(), radius * self.unit
        return x - r, y - r, x + r, y + r


class Stencil:
    """A hard-edged mask of a sheet's size: a part, or marks to paint on one; ``level`` (0..255) is how opaque it is."""

    def __init__(self, size, view, level):
        self.mask = Image.new("L", size)
        self._pen, self._view, self._level = ImageDraw.Draw(self.mask), view, level

    def polygon(self, points):
        self._pen.polygon(self._view(points).ravel().tolist(), fill=self._level)
        return self

    def line(self, points, width):
        self._pen.line(self._view(points).ravel().tolist(), fill=self._level, width=self._view.pixels(width))
        return self

    def dot(self, centre, radius):
        self._pen.ellipse(self._view.box(centre, radius), fill=self._level)
        return self


class Sheet:
    """A transparent sheet over a picture of ``size``, SCALE times as large: colour, and what it covers."""

    def __init__(self, size, view):
        self._size, self._view = (size[0] * SCALE, size[1] * SCALE), view
        self._colour, self._cover = Image.new("RGB", self._size), Image.new("L", self._size)
        self._pens = ImageDraw.Draw(self._colour), ImageDraw.Draw(self._cover)

    def stencil(self, opacity=1.0):
        return Stencil(self._size, self._view, int(round(255 * opacity)))

    def polygon(self, points, colour):
        pixels = self._view(points).ravel().tolist()
        for pen, fill in zip(self._pens, (colour, 255)):
            pen.polygon(pixels, fill=fill)

    def line(self, points, width, colour):
        pixels, width = self._view(points).ravel().tolist(), self._view.pixels(width)
        for pen, fill in zip(self._pens, (colour, 255)):
            pen.line(pixels, fill=fill, width=width)

    def dot(self, centre, radius, colour):
        for pen, fill in zip(self._pens, (colour, 255)):
            pen.ellipse(self._view.box(centre, radius), fill=fill)

    def fill(self, colour, stencil):
        """Draw a whole part."""
        self._cover.paste(255, (0, 0), stencil.mask)
        self.paint(colour, stencil, stencil)

    def paint(self, colour, marks, part):
        """Paint marks on a part that has been drawn, and nowhere else."""
        box = marks.mask.getbbox()
        if box:
            mask = ImageChops.darker(marks.mask.crop(box), part.mask.crop(box))
            self._colour.paste(colour, box, mask)

    def shrink(self):
        """Return (colour x cover, cover), floats in 0..1, of the picture's size."""
        colour, cover = self._colour.reduce(SCALE), self._cover.reduce(SCALE)
        return np.asarray(colour, np.float32) / 255, np.asarray(cover, np.float32)[..., None] / 255


def rotated(points, degrees):
    """Return points turned counter-clockwise around the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(points, dtype=float).dot(np.array([[c, s], [-s, c]]))


def curve(points, closed=False, steps=6):
    """Return a Catmull-Rom spline through the points."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    a, b, c, d = (p[i:len(p) - 3 + i, None, :] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    path = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    path = path.reshape(-1, 2)
    return path if closed else np.concatenate([path, p[-2:-1]])


def along(points, share):
    """Return the points at fractions ``share`` (0..1) of the way from the first vertex of a polyline to the last."""
    place, share = np.arange(len(points)), np.asarray(share) * (len(points) - 1)
    return np.stack([np.interp(share, place, points[:, axis]) for axis in (0, 1)], axis=-1)


def feather(base, degrees, length, width):
    """Return the outline of one feather: narrow at its base, rounded at its tip."""
    x = np.array([0, 0.3, 0.75, 0.94, 1, 0.94, 0.75, 0.3, 0]) * length
    y = np.array([0.3, 0.75, 1, 0.7, 0, -0.7, -1, -0.75, -0.3]) * width / 2
    return np.asarray(base) + rotated(np.stack([x, y], axis=1), degrees)


def mixed(first, second, share):
    """Return the first colour with a fraction ``share`` of the second in it."""
    return tuple(int(round(a + (b - a) * share)) for a, b in zip(first, second))


def darker(colour, share=0.35):
    return mixed(colour, (12, 10, 14), share)


def lighter(colour, share=0.3):
    return mixed(colour, (255, 252, 244), share)
