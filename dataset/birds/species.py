"""Species: what birds of one kind have in common, and how the species of a seed are invented.

Species are fine-grained, as in CUB: they come in families of one build, colours are shared within and between families,
and some species differ from the next one only in patterns and a single colour.
"""
import functools
import itertools
from typing import NamedTuple

import numpy as np

__all__ = ["CLASSES", "PLUMAGE", "Species", "invent_species"]

CLASSES = 80
# name of a colour: red, green, blue
PLUMAGE = {
    "Crimson": (164, 24, 42), "Scarlet": (222, 58, 36), "Rosy": (228, 132, 152), "Orange": (238, 132, 36),
    "Rufous": (170, 86, 40), "Chestnut": (108, 50, 32), "Cinnamon": (198, 142, 96), "Buff": (228, 204, 160),
    "Golden": (236, 186, 44), "Lemon": (240, 230, 96), "Olive": (120, 120, 50), "Emerald": (38, 142, 72),
    "Teal": (28, 130, 138), "Azure": (86, 168, 226), "Cobalt": (38, 70, 170), "Violet": (112, 62, 154),
    "Slate": (86, 98, 116), "Ashy": (164, 168, 172), "Sooty": (40, 38, 44), "Ivory": (240, 236, 226),
    "Umber": (94, 70, 50),
}
BUILD = ("depth", "head_radius", "neck", "posture", "leg_length", "wing_length", "beak", "beak_length", "crest", "tail",
         "tail_length", "tail_angle")
# of each family, in the order of BUILD
FAMILIES = {
    "Warbler": (0.25, 0.170, 0.02, 22, 0.16, 0.86, "thin", 0.85, "none", "square", 0.50, 0),
    "Finch": (0.29, 0.195, 0.01, 28, 0.12, 0.84, "cone", 0.75, "none", "notched", 0.46, 0),
    "Thrush": (0.29, 0.170, 0.03, 32, 0.20, 0.88, "thin", 1.05, "none", "square", 0.52, 0),
    "Wren": (0.31, 0.190, 0.00, 12, 0.15, 0.70, "sickle", 1.05, "none", "round", 0.34, -58),
    "Flycatcher": (0.25, 0.195, 0.01, 50, 0.10, 0.88, "hook", 0.85, "spikes", "notched", 0.52, 4),
    "Cardinal": (0.28, 0.185, 0.02, 36, 0.12, 0.80, "cone", 0.80, "peak", "round", 0.66, 4),
    "Jay": (0.27, 0.190, 0.03, 26, 0.17, 0.84, "spear", 1.10, "peak", "round", 0.74, 0),
    "Swallow": (0.22, 0.165, 0.00, 20, 0.06, 1.12, "thin", 0.50, "none", "forked", 0.78, 4),
    "Kingfisher": (0.30, 0.235, 0.00, 42, 0.06, 0.78, "spear", 1.90, "spikes", "square", 0.30, 6),
    "Shrike": (0.26, 0.205, 0.01, 40, 0.12, 0.80, "hook", 0.90, "none", "round", 0.68, 8),
    "Oriole": (0.25, 0.170, 0.03, 30, 0.13, 0.86, "spear", 1.15, "none", "round", 0.60, 4),
    "Woodpecker": (0.25, 0.190, 0.06, 62, 0.07, 0.84, "chisel", 1.40, "spikes", "pointed", 0.46, 12),
    "Sunbird": (0.24, 0.165, 0.02, 30, 0.10, 0.82, "sickle", 1.95, "none", "pointed", 0.64, 0),
    "Dove": (0.33, 0.145, 0.06, 20, 0.10, 0.92, "thin", 0.85, "none", "pointed", 0.64, 0),
    "Plover": (0.30, 0.195, 0.03, 16, 0.36, 0.92, "thin", 0.85, "none", "square", 0.26, 0),
    "Parakeet": (0.26, 0.205, 0.01, 44, 0.08, 0.88, "parrot", 0.68, "none", "pointed", 0.92, 6),
}
# browns and greys are listed twice, to be drawn twice as often
UPPER = ["Umber", "Chestnut", "Cinnamon", "Olive", "Slate", "Ashy", "Sooty"] * 2 + [
    "Rufous", "Emerald", "Teal", "Azure", "Cobalt", "Violet", "Crimson", "Golden"]
UNDER = ["Ivory", "Buff"] * 2 + [
    "Lemon", "Golden", "Orange", "Rosy", "Scarlet", "Rufous", "Cinnamon", "Ashy", "Azure"]
FACE_COLOURS = ["Sooty", "Ivory", "Golden", "Scarlet", "Slate", "Azure"]
BREAST_MARKS = ["Sooty", "Umber", "Chestnut", "Scarlet", "Slate", "Ivory", "Cobalt"]
WING_MARKS = ["Ivory", "Golden", "Scarlet", "Azure", "Sooty", "Buff", "Emerald"]
# pattern: the word for it in a species' name; {} is the colour of the marks
BREASTS = {"plain": "", "streaks": "Streaked", "spots": "Spotted", "scales": "Scaly", "bars": "Barred",
           "band": "{}-banded", "bib": "{}-bibbed"}
WINGS = {"plain": "", "one bar": "Bar-winged", "two bars": "Double-barred", "barred": "Ladder-winged",
         "patch": "{}-mirrored", "shoulder": "{}-shouldered", "spots": "Spot-winged", "tip": "{}-tipped"}
FACES = {"plain": "", "brow": "{}-browed", "eyestripe": "Stripe-eyed", "mask": "Masked", "cheek": "{}-cheeked",
         "moustache": "{}-whiskered"}


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


@functools.lru_cache(maxsize=4)
def invent_species(seed):
    """Return the CLASSES species of a seed, each with a name that no other has."""
    rng = np.random.default_rng(seed)
    families, birds = list(FAMILIES), []
    schemes = [_scheme(rng) for _ in families]
    patterns = list(itertools.product(BREASTS, WINGS, FACES))
    for number, family in enumerate(families):
        # three species wear the family's own colours, two those of another family
        looks = rng.choice(len(patterns), CLASSES // len(families), replace=False)
        for place, look in enumerate(looks):
            scheme = schemes[number if place < 3 else (number + 5) % len(families)]
            birds.append(_variant(rng, family, scheme, *patterns[look]))
    rng.shuffle(birds)
    return tuple(_named(birds, rng))


def _scheme(rng):
    """Return colours that go together, by part; several species, of more than one family, wear them."""
    back = str(rng.choice(UPPER))
    breast = _other(rng, UNDER, back)
    scheme = {"back": back, "breast": breast, "belly": str(rng.choice(["Ivory", "Buff", breast, breast]))}
    scheme["head"] = str(rng.choice([back, breast, str(rng.choice(UPPER))]))
    scheme["cap"] = str(rng.choice([scheme["head"], str(rng.choice(UPPER + ["Scarlet", "Lemon", "Ivory"]))]))
    scheme["throat"] = str(rng.choice([breast, scheme["head"], str(rng.choice(UNDER + ["Sooty"]))]))
    scheme["wing"] = str(rng.choice([back, back, "Sooty", "Umber", "Slate", str(rng.choice(UPPER))]))
    scheme["tail_colour"] = str(rng.choice([scheme["wing"], back, str(rng.choice(UPPER))]))
    return scheme


def _variant(rng, family, scheme, breast_pattern, wing_pattern, face):
    """Return one species: the family's build, a scheme's colours with at most one changed, and the patterns."""
    build = dict(zip(BUILD, FAMILIES[family]))
    for part in ("depth", "head_radius", "wing_length", "beak_length", "tail_length"):
        build[part] *= rng.uniform(0.92, 1.08)
    colours = dict(scheme)
    if rng.random() < 0.6:
        part = str(rng.choice(["cap", "throat", "wing", "tail_colour", "belly", "head"]))
        colours[part] = _other(rng, UPPER + UNDER, colours[part])
    return Species(
        name=family, face=face, breast_pattern=breast_pattern, wing_pattern=wing_pattern,
        face_colour=_other(rng, FACE_COLOURS, colours["head"], colours["cap"]),
        breast_mark=_other(rng, BREAST_MARKS, colours["breast"], colours["belly"]),
        wing_mark=_other(rng, WING_MARKS, colours["wing"]),
        tail_pattern=str(rng.choice(["plain", "plain", "tipped", "banded", "edged"])),
        tail_mark=_other(rng, ["Ivory", "Sooty", "Golden", "Rufous"], colours["tail_colour"]),
        beak_colour=str(rng.choice(["Sooty", "Sooty", "Slate", "Golden", "Orange", "Scarlet", "Buff"])),
        leg_colour=str(rng.choice(["Sooty", "Umber", "Rosy", "Orange", "Slate", "Golden"])),
        eye_ring=str(rng.choice(["none", "none", "none", "Ivory", "Golden", "Scarlet"])), **build, **colours)


def _other(rng, names, *taken):
    """Return one of the colours ``names`` that stands out against the ``taken`` ones."""
    def apart(name):
        return min(np.abs(np.subtract(PLUMAGE[name], PLUMAGE[other])).sum() for other in taken)
    return str(rng.choice([name for name in names if apart(name) > 150]))


def _named(birds, rng):
    """Yield the species, each with a name that no other has."""
    taken = set()
    for bird in birds:
        words = [str(word) for word in rng.permutation(_adjectives(bird))]
        pairs = (first + "_" + second for first, second in itertools.permutations(words, 2))
        names = (word + "_" + bird.name for word in itertools.chain(words, pairs))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield bird._replace(name=name)


def _adjectives(bird):
    """Return words for what is seen of a species, for its name."""
    words = [BREASTS[bird.breast_pattern].format(bird.breast_mark), WINGS[bird.wing_pattern].format(bird.wing_mark),
             FACES[bird.face].format(bird.face_colour), bird.breast + "-breasted", bird.back + "-backed"]
    words += [bird.cap + "-capped"] if bird.cap != bird.head else [bird.head + "-headed"]
    words += [bird.throat + "-throated"] if bird.throat not in (bird.breast, bird.head) else []
    words += [bird.wing + "-winged"] if bird.wing != bird.back else []
    words += [bird.tail_colour + "-tailed"] if bird.tail_colour not in (bird.back, bird.wing) else []
    words += ["Spectacled"] if bird.eye_ring != "none" else []
    return [word for word in words if word]
