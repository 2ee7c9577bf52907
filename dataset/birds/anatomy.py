"""Where the parts of a bird are: its body, head, tail, wings and feet, in one pose.

A bird is laid out in a frame of its own: x forward, y up, the body one unit long. ``parts`` draws it; a ``View``
carries the frame to the picture.
"""
from typing import NamedTuple

import numpy as np

from dataset.birds.drawing import along, curve, rotated
from dataset.birds.species import PLUMAGE

__all__ = ["Bird", "Pose", "random_pose"]

# of a body of depth 1, to be scaled in y
BODY = np.array([
    (0.50, 0.00), (0.44, 0.60), (0.22, 0.95), (-0.10, 0.92), (-0.38, 0.56), (-0.56, 0.20), (-0.58, 0.00),
    (-0.50, -0.32), (-0.30, -0.75), (0.00, -1.05), (0.30, -0.98), (0.46, -0.52)])
BELLY = np.array([(0.50, -0.30), (0.30, -0.98), (0.00, -1.05), (-0.30, -0.75), (-0.55, -0.20)])


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


def random_pose(rng):
    """Return a pose that any bird may take: nothing here depends on its species."""
    raised = bool(rng.random() < 0.28)
    return Pose(
        flip=bool(rng.random() < 0.5), rotation=rng.normal(0, 8), tilt=rng.normal(0, 9), squeeze=rng.uniform(0.80, 1.0),
        head_angle=rng.normal(0, 13), looks_back=bool(rng.random() < 0.16),
        wing_raised=raised, wing_angle=rng.uniform(-40, 25) if raised else rng.normal(0, 14),
        tail_angle=rng.normal(0, 8), tail_fan=rng.uniform(0, 9), flies=bool(raised and rng.random() < 0.5))


class Bird:
    """One bird in one pose: where its parts are in its own frame.

    Args:
        species: a ``Species``. pose: a ``Pose``.
        rng: draws how this one bird differs from others of its species.

    Attributes:
        contour, belly, flank: outline of the body, its lower edge, and the line between back and underside.
        neck_base, neck_radius, head_centre, tail_base, feet: points, and a length.
        tail_direction: in degrees.
    """

    def __init__(self, species, pose, rng):
        self.species, self.pose, self.rng = species, pose, rng
        self.hue = rng.normal(0, 0.035, 3)
        self.tilt = species.posture + pose.tilt
        d = species.depth
        self.contour = self.at_body(curve(BODY * (1, d), closed=True))
        self.belly = self.at_body(curve(BELLY * (1, d)))
        self.flank = self.at_body(curve([(0.50, 0.10), (0.28, 0.02 * d), (0, -0.12 * d), (-0.3, -0.10 * d), (-0.6, 0)]))
        nape = self.at_body([(0.33, 0.42 * d)])[0]
        self.neck_base, self.neck_radius = nape, min(0.62 * d, 1.15 * species.head_radius)
        reach = (0.02 if pose.looks_back else 0.10, 0.5 * d + 0.6 * species.head_radius + species.neck)
        self.head_centre = nape + np.array(reach)
        self.tail_base = self.at_body([(-0.50, 0.04 * d)])[0]
        self.tail_direction = 180 + self.tilt + species.tail_angle + pose.tail_angle
        self.feet = self.at_body([(-0.02, -0.9 * d)])[0] + (0.02, -species.leg_length)

    def at_body(self, points):
        """Turn points of a level body as this one is tilted."""
        return rotated(points, self.tilt)

    def colour(self, name):
        """Return the colour ``name`` of the species as this one bird wears it: no two are quite the same."""
        return tuple(int(round(np.clip(level * (1 + shift), 0, 255))) for level, shift in zip(PLUMAGE[name], self.hue))

    def at_head(self, points):
        """Carry points, in head radii around the head's centre, to the bird's frame."""
        points = rotated(np.asarray(points, dtype=float) * self.species.head_radius, self.pose.head_angle)
        return self.head_centre + points * ((-1, 1) if self.pose.looks_back else (1, 1))

    def extent(self):
        """Return points that lie at the edges of the bird, to fit it into a picture."""
        beak = self.at_head([(0.9 + self.species.beak_length, 0), (0, 1.3)])
        tail = self.tail_base + rotated([(0.85 * self.species.tail_length, 0)], self.tail_direction)
        parts = [self.contour, beak, tail]
        if not self.pose.flies:
            parts.append(self.feet[None])
        if self.pose.wing_raised:
            wing = rotated([(0.75 * self.species.wing_length, 0)], self._wing_direction())
            parts.append(self.at_body([(0.1, 0.3)]) + wing)
        return np.concatenate(parts)

    def _wing_direction(self):
        return self.tilt + 95 + self.pose.wing_angle

    def underside(self, u, v):
        """Return points of the underside: u from the throat (0) to the vent (1), v from the flank (0) to the edge of
        the belly (1)."""
        upper, lower = along(self.flank, u), along(self.belly, u)
        return upper + (lower - upper) * np.asarray(v)[..., None]

    def folded_wing(self):
        """Return (outline, function (u, v) -> points of the wing); u and v are 0 to 1, see ``at``."""
        d, length = self.species.depth, self.species.wing_length
        tip = (0.28 - length, 0.10 * d)
        upper = [(0.30, 0.30 * d), (0.20, 0.62 * d), (-0.02, 0.72 * d), (0.26 - 0.75 * length, 0.46 * d), tip]
        lower = [(0.30, 0.30 * d), (0.24, -0.22 * d), (0.02, -0.50 * d), (0.24 - 0.68 * length, -0.22 * d), tip]
        shoulder, droop = np.array([0.28, 0.35 * d]), self.pose.wing_angle * 0.3
        upper, lower = (self.at_body(shoulder + rotated(curve(edge) - shoulder, droop)) for edge in (upper, lower))

        def at(u, v):
            """u from the shoulder to the tip, v from the upper to the lower edge."""
            top, bottom = along(upper, u), along(lower, u)
            return top + (bottom - top) * np.asarray(v)[..., None]
        return np.concatenate([upper, lower[::-1]]), at

    def raised_wing(self, far=False):
        """The same of a raised wing; ``far``: the one on the other side of the body."""
        s = self.species
        base = self.at_body([(0.16 - 0.08 * far, 0.45 * s.depth)])[0]
        direction, spread = self._wing_direction() - 22 * far, 78.0

        def at(u, v):
            """u from the shoulder to the tips, v from the leading to the trailing edge."""
            u, v = np.broadcast_arrays(np.asarray(u, dtype=float), np.asarray(v, dtype=float))
            angle = np.radians(direction + spread * v)
            length = u * s.wing_length * (1 - 0.42 * np.clip(v, 0, 1) ** 1.3)
            rear = self.at_body([(-0.30, 0.0)])[0] * v[..., None]
            return base + rear + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * length[..., None]
        v = np.linspace(0, 1, 41)
        # scalloped: each feather ends in a tip of its own
        trailing = at(1 - 0.09 * np.abs(np.sin(v * np.pi * 9)) ** 2, v)
        leading, rear = at([0, 0.5], [0, -0.06]), at([0], [1])
        return np.concatenate([leading, trailing, rear]), at
