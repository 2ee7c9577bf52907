"""A picture of a bird: the place around it, the light on it, and what is in front.

    picture = draw_bird(species, numpy.random.default_rng(0), size=(136, 124))

The species says what the bird looks like. All else in the picture is drawn at random without regard to the species, so
that a network can't tell classes apart by their backgrounds. The parts are drawn on sheets that are too large (Pillow's
polygons have hard edges), shrunk, shaded by their outlines and laid over each other, from the background to the leaves
in front.
"""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dataset.birds.anatomy import Bird, random_pose
from dataset.birds.drawing import SCALE, Sheet, View, curve, darker, mixed, rotated
from dataset.birds.parts import draw_body, draw_head, draw_legs, draw_tail, draw_wing

__all__ = ["draw_bird"]

# background: how many patches of light and dark there are across and down
PLACES = {"sky": (3, 2), "foliage": (9, 8), "water": (2, 14), "grass": (16, 3), "ground": (14, 12), "wood": (12, 2)}


def view_of(bird, rng, size):
    """Return the view that places the bird in a picture of ``size``: where it is, and how large."""
    pose = bird.pose
    turn = rotated(np.eye(2), pose.rotation).T * (pose.squeeze, 1)
    turn = turn * np.array([[-1 if pose.flip else 1], [-1]])
    points = bird.extent().dot(turn.T)
    low, high = points.min(0), points.max(0)
    picture = np.array(size, dtype=float)
    scale = min(picture / (high - low)) * rng.uniform(0.70, 1.02)
    room = np.abs(picture - scale * (high - low))
    centre = picture / 2 + rng.uniform(-0.5, 0.5, 2) * room
    return View(turn * scale * SCALE, (centre - scale * (low + high) / 2) * SCALE, scale * SCALE)


def clouds(rng, size, cells, octaves=1):
    """Return smooth noise around 0, of amplitude about 1; ``cells``: how many patches across and down."""
    field = 0
    for octave in range(octaves):
        shape = [max(2, count * 2 ** octave) for count in (cells[1], cells[0])]
        grid = rng.uniform(-1, 1, shape).astype(np.float32)
        field = field + np.asarray(Image.fromarray(grid).resize(size, Image.BICUBIC)) / 1.8 ** octave
    return field


def blurred(picture, radius):
    """Return a float picture in 0..1 after a Gaussian blur."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8).squeeze())
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(radius))), np.float32) / 255


def tone(rng, hues=((0.16, 0.42), (0.50, 0.62), (0.04, 0.14)), saturation=(0.1, 0.5), value=(0.2, 0.92)):
    """Return a colour of the outdoors, 0..255: mostly a green, blue or brown."""
    low, high = hues[int(rng.integers(len(hues)))]
    h, s, v = rng.uniform(low, high), rng.uniform(*saturation), rng.uniform(*value)
    level = [v * (1 - s * max(0.0, min(1.0, min(k, 4 - k)))) for k in ((n + h * 6) % 6 for n in (5, 3, 1))]
    return tuple(int(255 * x) for x in level)


def leaf(centre, degrees, length, width):
    """Return the outline of a leaf."""
    x = np.array([-0.5, -0.25, 0.05, 0.3, 0.5, 0.3, 0.05, -0.25])
    y = np.array([0, 0.40, 0.5, 0.3, 0, -0.3, -0.5, -0.40])
    return np.asarray(centre) + rotated(np.stack([x * length, y * width], axis=1), degrees)


def draw_leaves(sheet, rng, size, count, colour, length):
    for _ in range(count):
        centre, direction = rng.uniform(-0.05, 1.05, 2) * size, rng.uniform(0, 360)
        long = length * rng.uniform(0.6, 1.5)
        shade = mixed(colour, tone(rng), rng.uniform(0, 0.35))
        sheet.polygon(leaf(centre, direction, long, long * rng.uniform(0.3, 0.55)), shade)
        sheet.line(centre + rotated([(-0.5 * long, 0), (0.42 * long, 0)], direction), 0.8, darker(shade, 0.25))


def draw_twig(sheet, rng, size, width, colour, start=None, degrees=None):
    """Draw a bent twig across the picture, with up to two side twigs."""
    start = rng.uniform(0, 1, 2) * size if start is None else np.asarray(start)
    degrees = rng.uniform(-60, 60) if degrees is None else degrees
    x = np.linspace(-1.1, 1.1, 8) * max(size)
    middle = np.stack([x, np.concatenate([rng.normal(0, 2.5, 3), np.zeros(2), rng.normal(0, 2.5, 3)])], axis=1)
    middle = start + rotated(curve(middle, steps=3), degrees)
    half = rotated([(0, width / 2)], degrees) * rng.uniform(0.8, 1.15, (len(middle), 1))
    sheet.polygon(np.concatenate([middle - half, (middle + half)[::-1]]), colour)
    for _ in range(int(rng.integers(0, 3))):
        root = middle[int(rng.integers(4, len(middle) - 4))]
        direction = degrees + rng.choice([-1, 1]) * rng.uniform(25, 70)
        sheet.line([root, root + rotated((rng.uniform(15, 45), 0), direction)], width * 0.4, colour)


def background(rng, size):
    """Return sky, leaves, water, grass, bare ground or a wood, out of focus: a float picture in 0..1."""
    first, second, third = (np.array(tone(rng), np.float32) / 255 for _ in range(3))
    kind = str(rng.choice(list(PLACES)))
    down = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None] * rng.uniform(-1, 1)
    share = np.clip(0.5 + 0.5 * down + 0.45 * clouds(rng, size, PLACES[kind], 2), 0, 1)[..., None]
    picture = first + (second - first) * share
    share = np.clip(0.9 * clouds(rng, size, (4, 3)) - 0.1, 0, 1)[..., None]
    picture = picture + (third - picture) * share
    if kind in ("foliage", "grass", "wood"):
        picture = _with_clutter(picture, kind, rng, size, tuple((first * 255).astype(int).tolist()))
    return blurred(picture, rng.uniform(0.6, 3.5))


def _with_clutter(picture, kind, rng, size, colour):
    """Add leaves, blades of grass or trunks far behind the bird."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    pen, bottom = ImageDraw.Draw(image), size[1] + 5
    for _ in range(int(rng.integers(10, 45))):
        shade = mixed(tone(rng), colour, rng.uniform(0.2, 0.8))
        (x, y), r = (rng.uniform(0, 1, 2) * size).tolist(), rng.uniform(3, 13)
        if kind == "foliage":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
        elif kind == "grass":
            pen.line((x, bottom, x + rng.normal(0, 18), y - 20), fill=shade, width=int(rng.integers(1, 5)))
        else:
            pen.line((x, -5, x + rng.normal(0, 25), bottom), fill=shade, width=int(r))
    return np.asarray(image, np.float32) / 255


def rounded(cover, radius, light):
    """Return the brightness of a rounded thing that covers ``cover``, lit from the direction ``light``."""
    soft = blurred(cover, radius)
    slope_down, slope_right = np.gradient(soft)
    slope = -(slope_right * light[0] + slope_down * light[1]) * radius
    return (0.80 + 0.22 * soft + np.clip(slope, -0.42, 0.40))[..., None]


def lay(picture, colour, cover):
    """Lay a sheet, as ``Sheet.shrink`` returns it, over the picture."""
    return picture * (1 - cover) + np.clip(colour, 0, 1)


def in_this_light(picture, rng):
    """Return the picture after a change of exposure, contrast and warmth, with patches of shade, blur and noise."""
    size = picture.shape[1], picture.shape[0]
    warmth, green = rng.normal(0, 0.07), rng.normal(0, 0.025)
    picture = picture * np.array([1 + warmth, 1 + green, 1 - warmth], np.float32) * rng.uniform(0.72, 1.22)
    picture = picture * (1 + rng.uniform(0, 0.28) * clouds(rng, size, (3, 3), 2)[..., None])
    middle = picture.mean()
    picture = middle + (picture - middle) * rng.uniform(0.78, 1.18) + rng.uniform(0, 0.05)
    picture = blurred(picture, rng.uniform(0, 0.75))
    return picture + rng.uniform(0.004, 0.03) * rng.standard_normal(picture.shape, dtype=np.float32)


def draw_bird(species, rng, size):
    """Return a picture (Pillow, RGB) of one bird of this species.

    Args:
        rng: draws all that the species does not say; the same state gives the same picture.
        size: (width, height).
    """
    bird = Bird(species, random_pose(rng), rng)
    view = view_of(bird, rng, size)
    light = np.array([rng.uniform(-0.7, 0.7), -0.9])
    picture = background(rng, size)
    picture = _lay_perch(picture, bird, view, rng, size, light)
    picture = _lay_bird(picture, bird, view, rng, size, light)
    picture = _lay_front(picture, rng, size, light)
    return Image.fromarray((np.clip(in_this_light(picture, rng), 0, 1) * 255).astype(np.uint8))


def _picture_view():
    """Return the view that carries pixels of the picture to a sheet."""
    return View(np.eye(2) * SCALE, np.zeros(2), SCALE)


def _lay_perch(picture, bird, view, rng, size, light):
    """Lay leaves and a twig behind the bird, and the branch it sits on."""
    sheet = Sheet(size, _picture_view())
    draw_leaves(sheet, rng, size, int(rng.integers(0, 10)), tone(rng), rng.uniform(8, 20))
    if rng.random() < 0.5:
        draw_twig(sheet, rng, size, rng.uniform(1, 4), tone(rng, value=(0.15, 0.5)))
    if not bird.pose.flies:
        bark = tone(rng, hues=((0.02, 0.14),), saturation=(0.1, 0.5), value=(0.2, 0.6))
        foot, width = view(bird.feet - (0, 0.05)) / SCALE, view.unit / SCALE * rng.uniform(0.05, 0.16)
        draw_twig(sheet, rng, size, width, bark, foot, rng.normal(0, 12))
    colour, cover = sheet.shrink()
    return lay(picture, colour * rounded(cover, 2.0, light), cover)


def _lay_bird(picture, bird, view, rng, size, light):
    length = view.unit / SCALE
    back, body, wing, head = (Sheet(size, view) for _ in range(4))
    if bird.pose.wing_raised:
        draw_wing(bird, back, far=True)
    draw_tail(bird, back)
    draw_legs(bird, back)
    draw_body(bird, body)
    draw_wing(bird, wing)
    draw_head(bird, head)
    (back, back_cover), (body, body_cover), (wing, wing_cover), (head, head_cover) = (
        sheet.shrink() for sheet in (back, body, wing, head))
    picture = lay(picture, back * rounded(back_cover, 0.05 * length, light), back_cover)
    # head and body are shaded as one, else a seam shows between them
    shape = rounded(np.maximum(body_cover, head_cover), 0.13 * length, light)
    shape = shape * (1 + 0.10 * clouds(rng, size, (size[0] // 3, size[1] // 3))[..., None])
    wing_shadow = blurred(np.roll(wing_cover, 2, axis=0), 1.5)[..., None]
    picture = lay(picture, body * shape * (1 - 0.35 * wing_shadow), body_cover)
    picture = lay(picture, wing * rounded(wing_cover, 0.07 * length, light), wing_cover)
    return lay(picture, head * (0.35 * rounded(head_cover, 0.08 * length, light) + 0.65 * shape), head_cover)


def _lay_front(picture, rng, size, light):
    """In some pictures, lay leaves or a twig in front of the bird, out of focus."""
    leaves, twig = (int(rng.integers(1, 6)) if rng.random() < 0.45 else 0), rng.random() < 0.2
    if not (leaves or twig):
        return picture
    sheet = Sheet(size, _picture_view())
    draw_leaves(sheet, rng, size, leaves, tone(rng, hues=((0.16, 0.42),)), rng.uniform(10, 22))
    if twig:
        draw_twig(sheet, rng, size, rng.uniform(1, 3), tone(rng, value=(0.15, 0.5)))
    (colour, cover), blur = sheet.shrink(), rng.uniform(0.3, 1.6)
    return lay(picture, blurred(colour * rounded(cover, 2.0, light), blur), blurred(cover, blur)[..., None])
