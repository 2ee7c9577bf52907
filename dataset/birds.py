"""Birds: what a species looks like, how one bird holds itself, and its parts on a sheet.

A bird is laid out in a frame of its own: x forward, y up, the body one unit long. A `View` carries that frame to the
picture. `dataset.synthetic` invents the species, `dataset.scenery` makes the picture around a bird.
"""
from typing import NamedTuple

import numpy as np
from PIL import ImageChops

from dataset.drawing import along, curve, darker, feather, lighter, mixed, rotated

PLUMAGE = {
    "Crimson": (164, 24, 42), "Scarlet": (222, 58, 36), "Rosy": (228, 132, 152), "Orange": (238, 132, 36),
    "Rufous": (170, 86, 40), "Chestnut": (108, 50, 32), "Cinnamon": (198, 142, 96), "Buff": (228, 204, 160),
    "Golden": (236, 186, 44), "Lemon": (240, 230, 96), "Olive": (120, 120, 50), "Emerald": (38, 142, 72),
    "Teal": (28, 130, 138), "Azure": (86, 168, 226), "Cobalt": (38, 70, 170), "Violet": (112, 62, 154),
    "Slate": (86, 98, 116), "Ashy": (164, 168, 172), "Sooty": (40, 38, 44), "Ivory": (240, 236, 226),
    "Umber": (94, 70, 50),
}
# length and depth in head radii; how far it bends down over its length; how far the tip hooks over
BEAKS = {
    "cone": (0.75, 0.66, 0.12, 0.00), "thin": (0.85, 0.27, 0.05, 0.00), "spear": (1.95, 0.46, 0.00, 0.00),
    "hook": (0.90, 0.50, 0.05, 0.22), "sickle": (1.90, 0.27, 0.42, 0.00), "chisel": (1.25, 0.38, 0.00, 0.00),
    "parrot": (0.68, 0.86, 0.45, 0.25),
}
# length of a tail feather by its place k, from -1 at one edge to 1 at the other
TAILS = {
    "square": lambda k: 1 - 0.04 * k ** 2, "round": lambda k: 1 - 0.30 * k ** 2,
    "notched": lambda k: 0.82 + 0.18 * abs(k),
    "forked": lambda k: 0.48 + 0.52 * abs(k) ** 1.6, "pointed": lambda k: 1 - 0.62 * abs(k),
}
# where and how long the tail's marks are, as shares of a feather
TAIL_BANDS = {"tipped": [(0.80, 0.985)], "banded": [(0.34, 0.46), (0.58, 0.70), (0.82, 0.94)]}
# how far along the wing its bars are
WING_BARS = {"one bar": (0.42,), "two bars": (0.30, 0.50), "barred": (0.20, 0.34, 0.48, 0.62, 0.76, 0.90)}
# direction and length of each plume
CRESTS = {
    "none": [], "peak": [(150, 1.25), (138, 1.45), (162, 0.95)],
    "spikes": [(112, 1.2), (130, 1.4), (148, 1.3), (166, 1.0)],
}
# of a body of depth 1, to be scaled in y
BODY = np.array([
    (0.50, 0.00), (0.44, 0.60), (0.22, 0.95), (-0.10, 0.92), (-0.38, 0.56), (-0.56, 0.20), (-0.58, 0.00),
    (-0.50, -0.32), (-0.30, -0.75), (0.00, -1.05), (0.30, -0.98), (0.46, -0.52)])
BELLY = np.array([(0.50, -0.30), (0.30, -0.98), (0.00, -1.05), (-0.30, -0.75), (-0.55, -0.20)])
VENT = np.array([(0.22, -1.60), (0.10, -0.40), (-0.25, 0.08), (-0.75, 0.40), (-0.80, -4.40)])
# everything on the head, in head radii around its centre
HEAD = [(1.08, -0.02), (0.86, 0.52), (0.36, 0.94), (-0.32, 0.94), (-0.86, 0.50),
        (-0.98, -0.20), (-0.62, -0.80), (0.10, -0.95), (0.78, -0.58)]
THROAT = [(1.3, -0.16), (0.55, -0.22), (0.1, -0.55), (-0.2, -1.3), (1.3, -1.3)]
CAP = [(1.3, 0.22), (0.4, 0.50), (-0.4, 0.42), (-1.4, 0.05), (-1.2, 1.4), (1.2, 1.4)]
FACES = {
    "brow": [(0.95, 0.38), (0.35, 0.62), (-0.4, 0.54), (-1.1, 0.24),
             (-1.1, 0.02), (-0.3, 0.32), (0.4, 0.40), (0.95, 0.20)],
    "eyestripe": [(1.1, 0.12), (0.4, 0.34), (-1.1, 0.20), (-1.1, -0.12), (0.4, 0.04), (1.1, -0.06)],
    "mask": [(1.2, 0.26), (0.4, 0.52), (-0.3, 0.40), (-0.62, 0.05), (-0.2, -0.24), (0.5, -0.30), (1.2, -0.16)],
    "cheek": [(0.25, 0.02), (-0.2, 0.12), (-0.66, -0.05), (-0.55, -0.52), (-0.05, -0.60), (0.3, -0.32)],
    "moustache": [(0.9, -0.12), (0.6, -0.18), (0.1, -0.62), (-0.1, -0.95), (0.22, -0.95), (0.75, -0.48)],
}
EYE = np.array([0.40, 0.20])


class Species(NamedTuple):
    """What all birds of one kind have in common. Colours are names from PLUMAGE; lengths are in body lengths."""
    name: str
    depth: float
    head_radius: float
    neck: float
    posture: float
    leg_length: float
    wing_length: float
    beak: str
    beak_length: float
    crest: str
    tail: str
    tail_length: float
    tail_angle: float
    back: str
    breast: str
    belly: str
    head: str
    cap: str
    throat: str
    face: str
    face_colour: str
    breast_pattern: str
    breast_mark: str
    wing: str
    wing_pattern: str
    wing_mark: str
    tail_colour: str
    tail_pattern: str
    tail_mark: str
    beak_colour: str
    leg_colour: str
    eye_ring: str


class Pose(NamedTuple):
    """How one bird holds itself in one picture. Angles in degrees."""
    flip: bool
    rotation: float
    tilt: float
    squeeze: float
    head_angle: float
    looks_back: bool
    wing_raised: bool
    wing_angle: float
    tail_angle: float
    tail_fan: float
    flies: bool


class Bird:
    """One bird in one pose: where its parts are in its own frame, and how each is drawn."""

    def __init__(self, species, pose, rng):
        self.species, self.pose, self.rng = species, pose, rng
        self.hue = rng.normal(0, 0.035, 3)
        self.tilt = species.posture + pose.tilt
        d = species.depth
        self.contour = self._body(curve(BODY * (1, d), closed=True))
        self.belly = self._body(curve(BELLY * (1, d)))
        self.flank = self._body(curve([(0.50, 0.10), (0.28, 0.02 * d), (0, -0.12 * d), (-0.3, -0.10 * d), (-0.6, 0)]))
        nape = self._body([(0.33, 0.42 * d)])[0]
        self.neck_base, self.neck_radius = nape, min(0.62 * d, 1.15 * species.head_radius)
        reach = (0.02 if pose.looks_back else 0.10, 0.5 * d + 0.6 * species.head_radius + species.neck)
        self.head_centre = nape + np.array(reach)
        self.tail_base = self._body([(-0.50, 0.04 * d)])[0]
        self.tail_way = 180 + self.tilt + species.tail_angle + pose.tail_angle
        self.feet = self._body([(-0.02, -0.9 * d)])[0] + (0.02, -species.leg_length)

    def _body(self, points):
        return rotated(points, self.tilt)

    def colour(self, name):
        """The species' colour as this one bird wears it: no two are quite the same."""
        return tuple(int(round(np.clip(level * (1 + shift), 0, 255))) for level, shift in zip(PLUMAGE[name], self.hue))

    def at_head(self, points):
        """From head radii around the head's centre to the bird's frame."""
        points = rotated(np.asarray(points, dtype=float) * self.species.head_radius, self.pose.head_angle)
        return self.head_centre + points * ((-1, 1) if self.pose.looks_back else (1, 1))

    def extent(self):
        """Points that the picture has to hold."""
        beak = self.at_head([(0.9 + self.species.beak_length, 0), (0, 1.3)])
        tail = self.tail_base + rotated([(0.85 * self.species.tail_length, 0)], self.tail_way)
        parts = [self.contour, beak, tail]
        if not self.pose.flies:
            parts.append(self.feet[None])
        if self.pose.wing_raised:
            parts.append(self._body([(0.1, 0.3)]) + rotated([(0.75 * self.species.wing_length, 0)], self._wing_way()))
        return np.concatenate(parts)

    def _wing_way(self):
        return self.tilt + 95 + self.pose.wing_angle

    def draw_tail(self, sheet):
        s = self.species
        colour, mark = self.colour(s.tail_colour), self.colour(s.tail_mark)
        places = np.linspace(-1, 1, 7)
        width = 0.085 + 0.02 * s.depth
        for k in sorted(places, key=abs, reverse=True):
            way = self.tail_way + k * (5 + self.pose.tail_fan)
            base = self.tail_base + rotated([(0, k * 0.05)], self.tail_way)[0]
            length = s.tail_length * TAILS[s.tail](k)
            shade = mixed(colour, (15, 12, 16), 0.10 + 0.16 * abs(k))
            sheet.polygon(feather(base, way, length, width), darker(shade, 0.45))
            outer = s.tail_pattern == "edged" and abs(k) > 0.6
            sheet.polygon(feather(base, way, length * 0.985, width * 0.8), mark if outer else shade)
            for start, end in TAIL_BANDS.get(s.tail_pattern, ()):
                root = base + rotated((start * length, 0), way)
                sheet.polygon(feather(root, way, (end - start) * length, width * 0.8), mark)

    def draw_legs(self, sheet):
        if self.pose.flies:
            return
        colour = self.colour(self.species.leg_colour)
        hips = self._body([(-0.06, -0.7 * self.species.depth), (0.06, -0.7 * self.species.depth)])
        for hip, step, shade in zip(hips, (-0.05, 0.07), (darker(colour, 0.4), colour)):
            foot = self.feet + (step, 0)
            knee = 0.5 * (hip + foot) + (-0.05, 0)
            sheet.line([hip, knee, foot], 0.035, shade)
            for toe in ((0.11, -0.02), (0.07, -0.05), (-0.07, -0.03)):
                sheet.line([foot, foot + toe], 0.026, shade)

    def draw_body(self, sheet):
        s = self.species
        body = sheet.stencil().polygon(self.contour)
        neck = self.head_centre - self.neck_base
        across = np.array([neck[1], -neck[0]]) / np.linalg.norm(neck)
        low, high = across * self.neck_radius, across * 0.8 * s.head_radius
        body.polygon([self.neck_base + low, self.head_centre + high, self.head_centre - high, self.neck_base - low])
        body.dot(self.neck_base, self.neck_radius)
        sheet.fill(self.colour(s.back), body)

        chin = self.at_head([(-0.1, -0.2)])
        front = (2, 0.3) if self.pose.looks_back else self.at_head([(3, -0.2)])[0]
        under = sheet.stencil().polygon(np.concatenate([chin, [front, (2, -3), (-2, -3)], self.flank[::-1]]))
        under.mask = ImageChops.darker(under.mask, body.mask)
        sheet.paint(self.colour(s.breast), under, body)
        vent = sheet.stencil(0.85).polygon(self._body(curve(VENT * (1, s.depth))))
        sheet.paint(self.colour(s.belly), vent, under)
        self._feather_hints(sheet, body)
        self._breast_pattern(sheet, under)

    def _feather_hints(self, sheet, body):
        """Short strokes that follow the body: lighter and darker plumage."""
        strokes = np.stack([self.rng.uniform(-0.55, 0.5, 68), self.rng.uniform(-1, 1, 68) * self.species.depth], axis=1)
        strokes = self._body(strokes[:, None] + [(0, 0), (-0.05, -0.012), (-0.09, -0.03)])
        for colour, half in (((20, 16, 18), strokes[::2]), ((255, 250, 240), strokes[1::2])):
            hints = sheet.stencil(0.16)
            for stroke in half:
                hints.line(stroke, 0.016)
            sheet.paint(colour, hints, body)

    def _underside(self, u, v):
        """u runs from the throat (0) to the vent (1), v from the flank (0) to the edge of the belly (1)."""
        upper, lower = along(self.flank, u), along(self.belly, u)
        return upper + (lower - upper) * np.asarray(v)[..., None]

    def _breast_pattern(self, sheet, under):
        s, marks = self.species, sheet.stencil(0.9)
        jitter = self.rng.normal(0, 0.012, (9, 5, 2))
        if s.breast_pattern in ("streaks", "spots", "scales"):
            self._flecks(marks, jitter)
        elif s.breast_pattern == "bars":
            for i, u in enumerate(np.linspace(0.06, 0.95, 9)):
                bar = self._underside(u + np.array([0, 0.02, 0.02, 0]), np.array([0, 0.35, 0.7, 1.1]))
                marks.line(bar + jitter[i, 0], 0.032)
        elif s.breast_pattern == "band":
            marks.line(self._underside(np.array([0.14, 0.15, 0.13]), np.array([-0.6, 0.4, 1.6])), 0.10)
        elif s.breast_pattern == "bib":
            bib = curve([(0.17, 0.16), (-0.04, 0.10), (-0.15, -0.02), (-0.04, -0.16), (0.12, -0.2)], closed=True)
            marks.polygon(self._underside(0.10, 0.55) + self._body(bib))
        sheet.paint(self.colour(s.breast_mark), marks, under)

    def _flecks(self, marks, jitter):
        """Rows of streaks, spots or scales."""
        streak = self._body([(0, 0), (-0.085, -0.015)])
        scale = self._body([(0.02, 0.045), (-0.025, 0.02), (-0.025, -0.02), (0.02, -0.045)])
        u, v = np.meshgrid(np.linspace(0.02, 0.82, 9), np.linspace(0.02, 0.82, 5), indexing="ij")
        places = self._underside(u + 0.04 * (np.arange(5) % 2), v) + jitter
        for place in places.reshape(-1, 2):
            if self.species.breast_pattern == "spots":
                marks.dot(place, 0.027)
            elif self.species.breast_pattern == "streaks":
                marks.line(place + streak, 0.026)
            else:
                marks.line(place + scale, 0.018)

    def _folded_wing(self):
        d, length = self.species.depth, self.species.wing_length
        tip = (0.28 - length, 0.10 * d)
        upper = [(0.30, 0.30 * d), (0.20, 0.62 * d), (-0.02, 0.72 * d), (0.26 - 0.75 * length, 0.46 * d), tip]
        lower = [(0.30, 0.30 * d), (0.24, -0.22 * d), (0.02, -0.50 * d), (0.24 - 0.68 * length, -0.22 * d), tip]
        shoulder, droop = np.array([0.28, 0.35 * d]), self.pose.wing_angle * 0.3
        upper, lower = (self._body(shoulder + rotated(curve(edge) - shoulder, droop)) for edge in (upper, lower))

        def at(u, v):
            """u from the shoulder to the tip, v from the upper to the lower edge."""
            top, bottom = along(upper, u), along(lower, u)
            return top + (bottom - top) * np.asarray(v)[..., None]
        return np.concatenate([upper, lower[::-1]]), at

    def _raised_wing(self, far=False):
        s = self.species
        base = self._body([(0.16 - 0.08 * far, 0.45 * s.depth)])[0]
        way, spread = self._wing_way() - 22 * far, 78.0

        def at(u, v):
            """u from the shoulder to the tips, v from the leading to the trailing edge."""
            u, v = np.broadcast_arrays(np.asarray(u, dtype=float), np.asarray(v, dtype=float))
            angle = np.radians(way + spread * v)
            length = u * s.wing_length * (1 - 0.42 * np.clip(v, 0, 1) ** 1.3)
            rear = self._body([(-0.30, 0.0)])[0] * v[..., None]
            return base + rear + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * length[..., None]
        v = np.linspace(0, 1, 41)
        # each feather ends in a tip of its own
        trailing = at(1 - 0.09 * np.abs(np.sin(v * np.pi * 9)) ** 2, v)
        leading, rear = at([0, 0.5], [0, -0.06]), at([0], [1])
        return np.concatenate([leading, trailing, rear]), at

    def draw_wing(self, sheet, far=False):
        s = self.species
        outline, at = self._raised_wing(far) if self.pose.wing_raised else self._folded_wing()
        colour = mixed(self.colour(s.wing), (20, 18, 24), 0.4 if far else 0.0)
        mark = mixed(self.colour(s.wing_mark), (20, 18, 24), 0.4 if far else 0.0)
        wing = sheet.stencil().polygon(outline)
        sheet.fill(darker(colour, 0.18), wing)
        ends = np.linspace(0, 1, 5)
        edge = at(0.46 + 0.06 * np.sin(ends * 9), ends[::-1])
        coverts = sheet.stencil().polygon(np.concatenate([at(np.full(5, -0.05), ends), edge]))
        sheet.paint(lighter(colour, 0.10), coverts, wing)
        self._wing_pattern(sheet, wing, at, mark)
        quills, edges = sheet.stencil(0.55), sheet.stencil(0.22)
        for v in np.linspace(0.08, 0.95, 9 if self.pose.wing_raised else 7):
            quills.line(at(np.array([0.44, 0.7, 1.02]), np.array([v, v, v])), 0.014)
            edges.line(at(np.array([0.50, 0.7, 0.98]), np.array([v, v, v]) + 0.045), 0.010)
        for u in (0.18, 0.31, 0.45):
            quills.line(at(u + 0.025 * np.sin(np.linspace(0, 22, 15)), np.linspace(0, 1, 15)), 0.011)
        sheet.paint((14, 12, 16), quills, wing)
        sheet.paint((255, 250, 240), edges, wing)

    def _wing_pattern(self, sheet, wing, at, mark):
        s, marks, across = self.species, sheet.stencil(), np.linspace(-0.05, 1.05, 7)
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

    def draw_head(self, sheet):
        s = self.species
        self._crest(sheet)
        self._beak(sheet)
        head, throat, cap, face = (sheet.stencil() for _ in range(4))
        sheet.fill(self.colour(s.head), head.polygon(self.at_head(curve(HEAD, closed=True))))
        sheet.paint(self.colour(s.throat), throat.polygon(self.at_head(THROAT)), head)
        sheet.paint(self.colour(s.cap), cap.polygon(self.at_head(CAP)), head)
        if s.face in FACES:
            face.polygon(self.at_head(curve(FACES[s.face], closed=True, steps=3)))
            sheet.paint(self.colour(s.face_colour), face, head)
        self._eye(sheet)

    def _crest(self, sheet):
        colour, wide = self.colour(self.species.cap), 0.31 if self.species.crest == "peak" else 0.15
        for k, (way, length) in enumerate(CRESTS[self.species.crest]):
            plume = [(0, -wide), (length * 0.7, -wide * 0.67), (length, 0.05), (length * 0.6, wide), (0, wide)]
            root = ((0.1, 0.5), (-0.4, 0.2))[k % 2]
            sheet.polygon(self.at_head(rotated(plume, way) + root), darker(colour, 0.12 * (k % 2)))

    def _beak(self, sheet):
        s = self.species
        _, depth, bend, hook = BEAKS[s.beak]
        length, colour = s.beak_length, self.colour(s.beak_colour)

        def bent(points):
            points = np.array(points)
            points[:, 1] -= bend * length * np.clip((points[:, 0] - 0.8) / length, 0, None) ** 2
            return self.at_head(points)
        end = 0.95 + length
        lower = [(0.6, -0.04), (end * 0.93, -0.04), (0.95 + 0.45 * length, -0.04 - 0.42 * depth), (0.6, -0.58 * depth)]
        upper = [(0.6, -0.06), (0.95 + 0.5 * length, -0.06), (end - 0.06, -0.06), (end, -0.06 - hook),
                 (end + 0.02, 0.02), (0.95 + 0.55 * length, 0.42 * depth), (0.6, 0.66 * depth)]
        sheet.polygon(bent(lower), darker(colour, 0.32))
        sheet.polygon(bent(upper), colour)
        sheet.line(bent([(0.7, 0.40 * depth), (0.95 + 0.45 * length, 0.26 * depth)]), 0.012, lighter(colour, 0.45))

    def _eye(self, sheet):
        ring, r = self.species.eye_ring, self.species.head_radius
        if ring != "none":
            sheet.dot(self.at_head(EYE), 0.30 * r, self.colour(ring))
        sheet.dot(self.at_head(EYE), 0.215 * r, (58, 34, 22))
        sheet.dot(self.at_head(EYE), 0.165 * r, (10, 8, 10))
        sheet.dot(self.at_head(EYE + (0.05, 0.07)), 0.065 * r, (250, 250, 250))


def random_pose(rng):
    """Any bird may hold itself so; nothing here depends on its species."""
    raised = bool(rng.random() < 0.28)
    return Pose(
        flip=bool(rng.random() < 0.5), rotation=rng.normal(0, 8), tilt=rng.normal(0, 9), squeeze=rng.uniform(0.80, 1.0),
        head_angle=rng.normal(0, 13), looks_back=bool(rng.random() < 0.16),
        wing_raised=raised, wing_angle=rng.uniform(-40, 25) if raised else rng.normal(0, 14),
        tail_angle=rng.normal(0, 8), tail_fan=rng.uniform(0, 9), flies=bool(raised and rng.random() < 0.5))
