"""A drawing of lines, words and pictures that is made once, and comes out as SVG for a page or as pixels for a PNG."""
import functools

from PIL import Image, ImageDraw, ImageFont

from report.colours import LIGHT
from report.text import data_uri, escaped

LETTER = 0.56  # width of a letter, as a part of its size: about that of most fonts
SMOOTH = 2  # pixels are drawn so many times as large and then averaged: Pillow's lines have no soft edges
# The corners of a marker, around (0, 0); a disc has none.
MARKERS = {"disc": (), "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
           "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0))}
# How Pillow calls a place of words on their base line, and how much of their width lies before it.
ANCHORS = {"start": ("ls", 0), "middle": ("ms", 0.5), "end": ("rs", 1)}


class Canvas:
    """Shapes in the order of drawing, in units of which a page shows about one per pixel. Colours are names in
    ``colours.LIGHT``.

    Args:
        width, height: in units; the height may be set later.
    """

    def __init__(self, width, height=0):
        self.width, self.height = width, height
        self.shapes = []  # (class of _Shape, x, y)

    def add(self, shape, x=0, y=0):
        self.shapes.append((shape, x, y))

    def place(self, other, x, y):
        """Draw another canvas with its upper left corner at (x, y)."""
        self.shapes += [(shape, x + dx, y + dy) for shape, dx, dy in other.shapes]

    def line(self, points, colour="ink", width=1, dash=False):
        self.add(_Line(points, colour, width, dash))

    def area(self, points, colour, opacity=1):
        """A polygon without an outline."""
        self.add(_Area(points, colour, opacity))

    def marker(self, kind, x, y, radius, colour, opacity=1):
        """A small shape of MARKERS about (x, y)."""
        if kind == "disc":
            self.add(_Disc(radius, colour, opacity), x, y)
        else:
            self.add(_Area([(radius * dx, radius * dy) for dx, dy in MARKERS[kind]], colour, opacity), x, y)

    def frame(self, x, y, width, height, colour, thickness=1, dash=False):
        self.line([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)], colour, thickness, dash)

    def text(self, x, y, words, size=11, anchor="start", colour="ink", room=None):
        """Words whose base line is at y; anchor: start, middle or end is at x. Cut short to ``room`` units."""
        self.add(_Text(words if room is None else fitted(words, size, room), size, anchor, colour), x, y)

    def picture(self, x, y, side, image):
        """A square PIL image."""
        self.add(_Picture(image, side), x, y)

    def svg(self, description):
        """Return the drawing as an <svg> element that fills the width that it is given."""
        return '<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>'.format(
            self.width, self.height, escaped(description), "".join(
                shape.svg(x, y) for shape, x, y in self.shapes))

    def image(self, scale):
        """Return the drawing as a PIL image of ``scale`` pixels a unit, on white."""
        size = [int(round(length * scale * SMOOTH)) for length in (self.width, self.height)]
        image = Image.new("RGB", [-(-length // SMOOTH) * SMOOTH for length in size], LIGHT["paper"])
        pen = ImageDraw.Draw(image, "RGBA")  # what is drawn is laid over what is there by its opacity
        for shape, x, y in self.shapes:
            shape.draw(image, pen, x, y, scale * SMOOTH)
        return image.reduce(SMOOTH)


def width_of(words, size):
    """Return about how many units wide words are."""
    return len(words) * size * LETTER


def fitted(words, size, room):
    """Return words, cut in the middle if they are wider than ``room`` units."""
    count = max(3, int(room / (size * LETTER)))
    if len(words) <= count:
        return words
    return words[:(count - 1) // 2] + "\u2026" + words[len(words) - count // 2:]


def _rgba(colour, opacity):
    return tuple(int(LIGHT[colour][at:at + 2], 16) for at in (1, 3, 5)) + (int(round(255 * opacity)),)


def _path(points, x, y):
    return " ".join("{:.1f},{:.1f}".format(x + dx, y + dy) for dx, dy in points)


class _Line:
    def __init__(self, points, colour, width, dash):
        self.points, self.colour, self.width, self.dash = points, colour, width, dash

    def svg(self, x, y):
        return '<polyline points="{}" fill="none" stroke="var(--{})" stroke-width="{:g}"{}/>'.format(
            _path(self.points, x, y), self.colour, self.width, ' stroke-dasharray="5 3"' if self.dash else "")

    def draw(self, image, pen, x, y, scale):
        points = [((x + dx) * scale, (y + dy) * scale) for dx, dy in self.points]
        for stroke in _dashes(points, 5 * scale, 3 * scale) if self.dash else [points]:
            pen.line(stroke, _rgba(self.colour, 1), max(1, int(round(self.width * scale))), joint="curve")


def _dashes(points, on, off):
    """Return the strokes of a dashed line through points."""
    strokes, left, drawing = [], on, True
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        length, done = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 0
        while done < length:
            step = min(left, length - done)
            if drawing:
                strokes.append([(x0 + (x1 - x0) * part / length, y0 + (y1 - y0) * part / length)
                                for part in (done, done + step)])
            done, left = done + step, left - step
            if left <= 0:
                drawing = not drawing
                left = on if drawing else off
    return strokes


class _Area:
    def __init__(self, points, colour, opacity):
        self.points, self.colour, self.opacity = points, colour, opacity

    def svg(self, x, y):
        return '<polygon points="{}" fill="var(--{})"{}/>'.format(
            _path(self.points, x, y), self.colour, _faded(self.opacity))

    def draw(self, image, pen, x, y, scale):
        pen.polygon([((x + dx) * scale, (y + dy) * scale) for dx, dy in self.points], _rgba(self.colour, self.opacity))


class _Disc:
    def __init__(self, radius, colour, opacity):
        self.radius, self.colour, self.opacity = radius, colour, opacity

    def svg(self, x, y):
        return '<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" fill="var(--{})"{}/>'.format(
            x, y, self.radius, self.colour, _faded(self.opacity))

    def draw(self, image, pen, x, y, scale):
        x, y, radius = x * scale, y * scale, self.radius * scale
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], _rgba(self.colour, self.opacity))


def _faded(opacity):
    return "" if opacity == 1 else ' fill-opacity="{:g}"'.format(opacity)


class _Text:
    def __init__(self, words, size, anchor, colour):
        self.words, self.size, self.anchor, self.colour = words, size, anchor, colour

    def svg(self, x, y):
        return '<text x="{:.1f}" y="{:.1f}" font-size="{:g}" text-anchor="{}" fill="var(--{})">{}</text>'.format(
            x, y, self.size, self.anchor, self.colour, escaped(self.words))

    def draw(self, image, pen, x, y, scale):
        font, (letter, part) = _font(int(round(self.size * scale))), ANCHORS[self.anchor]
        if isinstance(font, ImageFont.FreeTypeFont):
            pen.text((x * scale, y * scale), self.words, _rgba(self.colour, 1), font, anchor=letter)
            return
        # Pillow's own letters in one small size, which know Latin only: enlarged.
        known = self.words.encode("latin-1", "replace").decode("latin-1")
        small = Image.new("L", [max(1, length) for length in font.getmask(known, "1").size])
        ImageDraw.Draw(small).text((0, 0), known, 255, font)
        factor = self.size * scale / small.height
        large = small.resize((max(1, int(small.width * factor)), max(1, int(small.height * factor))))
        place = int(x * scale - part * large.width), int(y * scale - 0.8 * large.height)
        image.paste(_rgba(self.colour, 1)[:3], place, large)


@functools.lru_cache(maxsize=None)
def _font(size):
    """Return a font of ``size`` pixels: DejaVu Sans, which knows many alphabets, else what Pillow brings."""
    for load in (lambda: ImageFont.truetype("DejaVuSans.ttf", size), lambda: ImageFont.load_default(size)):
        try:
            return load()
        except (OSError, TypeError, ImportError):  # no such font; Pillow before 10.1; Pillow without FreeType
            pass
    return ImageFont.load_default()


class _Picture:
    def __init__(self, image, side):
        self.image, self.side = image, side

    def svg(self, x, y):
        return '<image x="{:.1f}" y="{:.1f}" width="{:g}" height="{:g}" href="{}"/>'.format(
            x, y, self.side, self.side, data_uri(self.image))

    def draw(self, image, pen, x, y, scale):
        side = int(round(self.side * scale))
        image.paste(self.image.resize((side, side), Image.BILINEAR), (int(round(x * scale)), int(round(y * scale))))
