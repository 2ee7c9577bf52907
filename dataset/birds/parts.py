"""How the parts of a bird are drawn on a sheet: feathers, patterns and colours, by its species."""
import numpy as np
from PIL import ImageChops

from dataset.birds.drawing import curve, darker, feather, lighter, mixed, rotated

__all__ = ["draw_tail", "draw_legs", "draw_body", "draw_wing", "draw_head"]

# depth in head radii; how far it bends down over its length; how far its tip hooks down
BEAKS = {
    "cone": (0.66, 0.12, 0.00), "thin": (0.27, 0.05, 0.00), "spear": (0.46, 0.00, 0.00), "hook": (0.50, 0.05, 0.22),
    "sickle": (0.27, 0.42, 0.00), "chisel": (0.38, 0.00, 0.00), "parrot": (0.86, 0.45, 0.25),
}
# length of a tail feather by its place k, from -1 at one edge of the tail to 1 at the other
TAILS = {
    "square": lambda k: 1 - 0.04 * k ** 2, "round": lambda k: 1 - 0.30 * k ** 2,
    "notched": lambda k: 0.82 + 0.18 * abs(k),
    "forked": lambda k: 0.48 + 0.52 * abs(k) ** 1.6, "pointed": lambda k: 1 - 0.62 * abs(k),
}
# where the marks of a tail feather start and end, as fractions of its length
TAIL_BANDS = {"tipped": [(0.80, 0.985)], "banded": [(0.34, 0.46), (0.58, 0.70), (0.82, 0.94)]}
# how far along the wing its bars are, from the shoulder (0) to the tip (1)
WING_BARS = {"one bar": (0.42,), "two bars": (0.30, 0.50), "barred": (0.20, 0.34, 0.48, 0.62, 0.76, 0.90)}
# direction in degrees and length in head radii of each plume
CRESTS = {
    "none": [], "peak": [(150, 1.25), (138, 1.45), (162, 0.95)],
    "spikes": [(112, 1.2), (130, 1.4), (148, 1.3), (166, 1.0)],
}
# under the tail, of a body of depth 1, to be scaled in y
VENT = np.array([(0.22, -1.60), (0.10, -0.40), (-0.25, 0.08), (-0.75, 0.40), (-0.80, -4.40)])
# all of the head, in head radii around its centre
HEAD = [(1.08, -0.02), (0.86, 0.52), (0.36, 0.94), (-0.32, 0.94), (-0.86, 0.50),
        (-0.98, -0.20), (-0.62, -0.80), (0.10, -0.95), (0.78, -0.58)]
THROAT = [(1.3, -0.16), (0.55, -0.22), (0.1, -0.55), (-0.2, -1.3), (1.3, -1.3)]
CAP = [(1.3, 0.22), (0.4, 0.50), (-0.4, 0.42), (-1.4, 0.05), (-1.2, 1.4), (1.2, 1.4)]
FACE_MARKS = {
    "brow": [(0.95, 0.38), (0.35, 0.62), (-0.4, 0.54), (-1.1, 0.24),
             (-1.1, 0.02), (-0.3, 0.32), (0.4, 0.40), (0.95, 0.20)],
    "eyestripe": [(1.1, 0.12), (0.4, 0.34), (-1.1, 0.20), (-1.1, -0.12), (0.4, 0.04), (1.1, -0.06)],
    "mask": [(1.2, 0.26), (0.4, 0.52), (-0.3, 0.40), (-0.62, 0.05), (-0.2, -0.24), (0.5, -0.30), (1.2, -0.16)],
    "cheek": [(0.25, 0.02), (-0.2, 0.12), (-0.66, -0.05), (-0.55, -0.52), (-0.05, -0.60), (0.3, -0.32)],
    "moustache": [(0.9, -0.12), (0.6, -0.18), (0.1, -0.62), (-0.1, -0.95), (0.22, -0.95), (0.75, -0.48)],
}
EYE = np.array([0.40, 0.20])


def draw_tail(bird, sheet):
    s = bird.species
    colour, mark = bird.colour(s.tail_colour), bird.colour(s.tail_mark)
    places = np.linspace(-1, 1, 7)
    width = 0.085 + 0.02 * s.depth
    for k in sorted(places, key=abs, reverse=True):
        direction = bird.tail_direction + k * (5 + bird.pose.tail_fan)
        base = bird.tail_base + rotated([(0, k * 0.05)], bird.tail_direction)[0]
        length = s.tail_length * TAILS[s.tail](k)
        shade = mixed(colour, (15, 12, 16), 0.10 + 0.16 * abs(k))
        sheet.polygon(feather(base, direction, length, width), darker(shade, 0.45))
        outer = s.tail_pattern == "edged" and abs(k) > 0.6
        sheet.polygon(feather(base, direction, length * 0.985, width * 0.8), mark if outer else shade)
        for start, end in TAIL_BANDS.get(s.tail_pattern, ()):
            root = base + rotated((start * length, 0), direction)
            sheet.polygon(feather(root, direction, (end - start) * length, width * 0.8), mark)


def draw_legs(bird, sheet):
    if bird.pose.flies:
        return
    colour = bird.colour(bird.species.leg_colour)
    hips = bird.at_body([(-0.06, -0.7 * bird.species.depth), (0.06, -0.7 * bird.species.depth)])
    for hip, step, shade in zip(hips, (-0.05, 0.07), (darker(colour, 0.4), colour)):
        foot = bird.feet + (step, 0)
        knee = 0.5 * (hip + foot) + (-0.05, 0)
        sheet.line([hip, knee, foot], 0.035, shade)
        for toe in ((0.11, -0.02), (0.07, -0.05), (-0.07, -0.03)):
            sheet.line([foot, foot + toe], 0.026, shade)


def draw_body(bird, sheet):
    s = bird.species
    body = sheet.stencil().polygon(bird.contour)
    neck = bird.head_centre - bird.neck_base
    across = np.array([neck[1], -neck[0]]) / np.linalg.norm(neck)
    low, high = across * bird.neck_radius, across * 0.8 * s.head_radius
    body.polygon([bird.neck_base + low, bird.head_centre + high, bird.head_centre - high, bird.neck_base - low])
    body.dot(bird.neck_base, bird.neck_radius)
    sheet.fill(bird.colour(s.back), body)

    chin = bird.at_head([(-0.1, -0.2)])
    front = (2, 0.3) if bird.pose.looks_back else bird.at_head([(3, -0.2)])[0]
    under = sheet.stencil().polygon(np.concatenate([chin, [front, (2, -3), (-2, -3)], bird.flank[::-1]]))
    under.mask = ImageChops.darker(under.mask, body.mask)
    sheet.paint(bird.colour(s.breast), under, body)
    vent = sheet.stencil(0.85).polygon(bird.at_body(curve(VENT * (1, s.depth))))
    sheet.paint(bird.colour(s.belly), vent, under)
    _feather_hints(bird, sheet, body)
    _breast_pattern(bird, sheet, under)


def _feather_hints(bird, sheet, body):
    """Paint short strokes along the body, lighter and darker than it, as feathers look."""
    strokes = np.stack([bird.rng.uniform(-0.55, 0.5, 68), bird.rng.uniform(-1, 1, 68) * bird.species.depth], axis=1)
    strokes = bird.at_body(strokes[:, None] + [(0, 0), (-0.05, -0.012), (-0.09, -0.03)])
    for colour, half in (((20, 16, 18), strokes[::2]), ((255, 250, 240), strokes[1::2])):
        hints = sheet.stencil(0.16)
        for stroke in half:
            hints.line(stroke, 0.016)
        sheet.paint(colour, hints, body)


def _breast_pattern(bird, sheet, under):
    s, marks = bird.species, sheet.stencil(0.9)
    jitter = bird.rng.normal(0, 0.012, (9, 5, 2))
    if s.breast_pattern in ("streaks", "spots", "scales"):
        _flecks(bird, marks, jitter)
    elif s.breast_pattern == "bars":
        for i, u in enumerate(np.linspace(0.06, 0.95, 9)):
            bar = bird.underside(u + np.array([0, 0.02, 0.02, 0]), np.array([0, 0.35, 0.7, 1.1]))
            marks.line(bar + jitter[i, 0], 0.032)
    elif s.breast_pattern == "band":
        marks.line(bird.underside(np.array([0.14, 0.15, 0.13]), np.array([-0.6, 0.4, 1.6])), 0.10)
    elif s.breast_pattern == "bib":
        bib = curve([(0.17, 0.16), (-0.04, 0.10), (-0.15, -0.02), (-0.04, -0.16), (0.12, -0.2)], closed=True)
        marks.polygon(bird.underside(0.10, 0.55) + bird.at_body(bib))
    sheet.paint(bird.colour(s.breast_mark), marks, under)


def _flecks(bird, marks, jitter):
    """Add rows of streaks, spots or scales to ``marks``."""
    streak = bird.at_body([(0, 0), (-0.085, -0.015)])
    scale = bird.at_body([(0.02, 0.045), (-0.025, 0.02), (-0.025, -0.02), (0.02, -0.045)])
    u, v = np.meshgrid(np.linspace(0.02, 0.82, 9), np.linspace(0.02, 0.82, 5), indexing="ij")
    places = bird.underside(u + 0.04 * (np.arange(5) % 2), v) + jitter
    for place in places.reshape(-1, 2):
        if bird.species.breast_pattern == "spots":
            marks.dot(place, 0.027)
        elif bird.species.breast_pattern == "streaks":
            marks.line(place + streak, 0.026)
        else:
            marks.line(place + scale, 0.018)


def draw_wing(bird, sheet, far=False):
    s = bird.species
    outline, at = bird.raised_wing(far) if bird.pose.wing_raised else bird.folded_wing()
    colour = mixed(bird.colour(s.wing), (20, 18, 24), 0.4 if far else 0.0)
    mark = mixed(bird.colour(s.wing_mark), (20, 18, 24), 0.4 if far else 0.0)
    wing = sheet.stencil().polygon(outline)
    sheet.fill(darker(colour, 0.18), wing)
    ends = np.linspace(0, 1, 5)
    edge = at(0.46 + 0.06 * np.sin(ends * 9), ends[::-1])
    coverts = sheet.stencil().polygon(np.concatenate([at(np.full(5, -0.05), ends), edge]))
    sheet.paint(lighter(colour, 0.10), coverts, wing)
    _wing_pattern(bird, sheet, wing, at, mark)
    quills, edges = sheet.stencil(0.55), sheet.stencil(0.22)
    for v in np.linspace(0.08, 0.95, 9 if bird.pose.wing_raised else 7):
        quills.line(at(np.array([0.44, 0.7, 1.02]), np.array([v, v, v])), 0.014)
        edges.line(at(np.array([0.50, 0.7, 0.98]), np.array([v, v, v]) + 0.045), 0.010)
    for u in (0.18, 0.31, 0.45):
        quills.line(at(u + 0.025 * np.sin(np.linspace(0, 22, 15)), np.linspace(0, 1, 15)), 0.011)
    sheet.paint((14, 12, 16), quills, wing)
    sheet.paint((255, 250, 240), edges, wing)


def _wing_pattern(bird, sheet, wing, at, mark):
    s, marks, across = bird.species, sheet.stencil(), np.linspace(-0.05, 1.05, 7)
    for u in WING_BARS.get(s.wing_pattern, ()):
        marks.line(at(np.full(7, u), across), 0.036 if s.wing_pattern == "barred" else 0.055)
    if s.wing_pattern == "patch":
        marks.polygon(at(np.array([0.52, 0.54, 0.80, 0.78]), np.array([0.15, 1.1, 1.1, 0.3])))
    elif s.wing_pattern == "shoulder":
        marks.polygon(at(np.array([-0.1, 0.0, 0.30, 0.26, -0.1]), np.array([-0.1, 1.1, 1.1, -0.1, 0.5])))
    elif s.wing_pattern == "spots":
        for u in (0.16, 0.30, 0.44, 0.58, 0.72):
            for v in (0.15, 0.4, 0.65, 0.9):
                marks.dot(at(np.array(u + 0.06 * (v > 0.3)), np.array(v)), 0.026)
    elif s.wing_pattern == "tip":
        marks.polygon(at(np.array([0.74, 0.70, 1.2, 1.2]), np.array([-0.1, 1.1, 1.1, -0.1])))
    sheet.paint(mark, marks, wing)


def draw_head(bird, sheet):
    s = bird.species
    _crest(bird, sheet)
    _beak(bird, sheet)
    head, throat, cap, face = (sheet.stencil() for _ in range(4))
    sheet.fill(bird.colour(s.head), head.polygon(bird.at_head(curve(HEAD, closed=True))))
    sheet.paint(bird.colour(s.throat), throat.polygon(bird.at_head(THROAT)), head)
    sheet.paint(bird.colour(s.cap), cap.polygon(bird.at_head(CAP)), head)
    if s.face in FACE_MARKS:
        face.polygon(bird.at_head(curve(FACE_MARKS[s.face], closed=True, steps=3)))
        sheet.paint(bird.colour(s.face_colour), face, head)
    _eye(bird, sheet)


def _crest(bird, sheet):
    colour, wide = bird.colour(bird.species.cap), 0.31 if bird.species.crest == "peak" else 0.15
    for k, (direction, length) in enumerate(CRESTS[bird.species.crest]):
        plume = [(0, -wide), (length * 0.7, -wide * 0.67), (length, 0.05), (length * 0.6, wide), (0, wide)]
        root = ((0.1, 0.5), (-0.4, 0.2))[k % 2]
        sheet.polygon(bird.at_head(rotated(plume, direction) + root), darker(colour, 0.12 * (k % 2)))


def _beak(bird, sheet):
    s = bird.species
    depth, bend, hook = BEAKS[s.beak]
    length, colour = s.beak_length, bird.colour(s.beak_colour)

    def bent(points):
        points = np.array(points)
        points[:, 1] -= bend * length * np.clip((points[:, 0] - 0.8) / length, 0, None) ** 2
        return bird.at_head(points)
    end = 0.95 + length
    lower = [(0.6, -0.04), (end * 0.93, -0.04), (0.95 + 0.45 * length, -0.04 - 0.42 * depth), (0.6, -0.58 * depth)]
    upper = [(0.6, -0.06), (0.95 + 0.5 * length, -0.06), (end - 0.06, -0.06), (end, -0.06 - hook),
             (end + 0.02, 0.02), (0.95 + 0.55 * length, 0.42 * depth), (0.6, 0.66 * depth)]
    sheet.polygon(bent(lower), darker(colour, 0.32))
    sheet.polygon(bent(upper), colour)
    sheet.line(bent([(0.7, 0.40 * depth), (0.95 + 0.45 * length, 0.26 * depth)]), 0.012, lighter(colour, 0.45))


def _eye(bird, sheet):
    ring, r = bird.species.eye_ring, bird.species.head_radius
    if ring != "none":
        sheet.dot(bird.at_head(EYE), 0.30 * r, bird.colour(ring))
    sheet.dot(bird.at_head(EYE), 0.215 * r, (58, 34, 22))
    sheet.dot(bird.at_head(EYE), 0.165 * r, (10, 8, 10))
    sheet.dot(bird.at_head(EYE + (0.05, 0.07)), 0.065 * r, (250, 250, 250))
