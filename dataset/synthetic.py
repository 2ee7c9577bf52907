"""A data set of drawn birds, so that the whole job (teacher, distillation, Recall@K) runs without data or network.

    python -m dataset.synthetic --root data --sheet birds.png

80 species, 24 pictures each, in CUB's own layout: ROOT/synthetic_birds_v1_s0/images/001.Crimson-capped_Warbler/*.jpg.
The first half of the sorted classes is for training, the second for testing. Species are fine-grained: they come in
families of one build, colours are shared within and between families, and some species differ from the next one only in
patterns and a single colour. Pose, place, light and what is in front are drawn for each picture without regard to its
species.

The same version and seed give the same bytes, however many processes draw.
"""
import argparse
import functools
import itertools
import multiprocessing
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from dataset.base import usable_cores
from dataset.birds import PLUMAGE, Species
from dataset.files import locked
from dataset.scenery import draw_bird

VERSION = 1
CLASSES = 80
PICTURES_PER_CLASS = 24
SIZE = 128
QUALITY = 90

# noun: depth, head radius, neck, posture, legs, wing, beak, beak length, crest, tail, tail length, tail angle
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
# browns and greys stand twice: they are the common ones
UPPER = ["Umber", "Chestnut", "Cinnamon", "Olive", "Slate", "Ashy", "Sooty"] * 2 + [
    "Rufous", "Emerald", "Teal", "Azure", "Cobalt", "Violet", "Crimson", "Golden"]
UNDER = ["Ivory", "Buff"] * 2 + [
    "Lemon", "Golden", "Orange", "Rosy", "Scarlet", "Rufous", "Cinnamon", "Ashy", "Azure"]
FACE_COLOURS = ["Sooty", "Ivory", "Golden", "Scarlet", "Slate", "Azure"]
BREAST_MARKS = ["Sooty", "Umber", "Chestnut", "Scarlet", "Slate", "Ivory", "Cobalt"]
WING_MARKS = ["Ivory", "Golden", "Scarlet", "Azure", "Sooty", "Buff", "Emerald"]
# pattern: the word for it, with the colour of its marks where that is said
BREASTS = {"plain": "", "streaks": "Streaked", "spots": "Spotted", "scales": "Scaly", "bars": "Barred",
           "band": "{}-banded", "bib": "{}-bibbed"}
WINGS = {"plain": "", "one bar": "Bar-winged", "two bars": "Double-barred", "barred": "Ladder-winged",
         "patch": "{}-mirrored", "shoulder": "{}-shouldered", "spots": "Spot-winged", "tip": "{}-tipped"}
FACES = {"plain": "", "brow": "{}-browed", "eyestripe": "Stripe-eyed", "mask": "Masked", "cheek": "{}-cheeked",
         "moustache": "{}-whiskered"}
BUILD = ("depth", "head_radius", "neck", "posture", "leg_length", "wing_length", "beak", "beak_length", "crest", "tail",
         "tail_length", "tail_angle")


def _other(rng, names, *taken):
    """A colour from names that stands out against the taken ones."""
    def apart(name):
        return min(np.abs(np.subtract(PLUMAGE[name], PLUMAGE[other])).sum() for other in taken)
    return str(rng.choice([name for name in names if apart(name) > 150]))


def _scheme(rng):
    """Colours that go together: what several species, of more than one family, have in common."""
    back = str(rng.choice(UPPER))
    breast = _other(rng, UNDER, back)
    scheme = {"back": back, "breast": breast, "belly": str(rng.choice(["Ivory", "Buff", breast, breast]))}
    scheme["head"] = str(rng.choice([back, breast, str(rng.choice(UPPER))]))
    scheme["cap"] = str(rng.choice([scheme["head"], str(rng.choice(UPPER + ["Scarlet", "Lemon", "Ivory"]))]))
    scheme["throat"] = str(rng.choice([breast, scheme["head"], str(rng.choice(UNDER + ["Sooty"]))]))
    scheme["wing"] = str(rng.choice([back, back, "Sooty", "Umber", "Slate", str(rng.choice(UPPER))]))
    scheme["tail_colour"] = str(rng.choice([scheme["wing"], back, str(rng.choice(UPPER))]))
    return scheme


def _adjectives(bird):
    """What a bird watcher might call it, from what is seen."""
    words = [BREASTS[bird.breast_pattern].format(bird.breast_mark), WINGS[bird.wing_pattern].format(bird.wing_mark),
             FACES[bird.face].format(bird.face_colour), bird.breast + "-breasted", bird.back + "-backed"]
    words += [bird.cap + "-capped"] if bird.cap != bird.head else [bird.head + "-headed"]
    words += [bird.throat + "-throated"] if bird.throat not in (bird.breast, bird.head) else []
    words += [bird.wing + "-winged"] if bird.wing != bird.back else []
    words += [bird.tail_colour + "-tailed"] if bird.tail_colour not in (bird.back, bird.wing) else []
    words += ["Spectacled"] if bird.eye_ring != "none" else []
    return [word for word in words if word]


def _named(birds, rng):
    """The birds with a name each that no other has."""
    taken = set()
    for bird in birds:
        words = [str(word) for word in rng.permutation(_adjectives(bird))]
        pairs = (first + "_" + second for first, second in itertools.permutations(words, 2))
        names = (word + "_" + bird.name for word in itertools.chain(words, pairs))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield bird._replace(name=name)


def _variant(rng, noun, scheme, breast_pattern, wing_pattern, face):
    """One species: the family's build, a scheme's colours with perhaps one of them changed, and its patterns."""
    build = dict(zip(BUILD, FAMILIES[noun]))
    for part in ("depth", "head_radius", "wing_length", "beak_length", "tail_length"):
        build[part] *= rng.uniform(0.92, 1.08)
    colours = dict(scheme)
    if rng.random() < 0.6:
        part = str(rng.choice(["cap", "throat", "wing", "tail_colour", "belly", "head"]))
        colours[part] = _other(rng, UPPER + UNDER, colours[part])
    return Species(
        name=noun, face=face, breast_pattern=breast_pattern, wing_pattern=wing_pattern,
        face_colour=_other(rng, FACE_COLOURS, colours["head"], colours["cap"]),
        breast_mark=_other(rng, BREAST_MARKS, colours["breast"], colours["belly"]),
        wing_mark=_other(rng, WING_MARKS, colours["wing"]),
        tail_pattern=str(rng.choice(["plain", "plain", "tipped", "banded", "edged"])),
        tail_mark=_other(rng, ["Ivory", "Sooty", "Golden", "Rufous"], colours["tail_colour"]),
        beak_colour=str(rng.choice(["Sooty", "Sooty", "Slate", "Golden", "Orange", "Scarlet", "Buff"])),
        leg_colour=str(rng.choice(["Sooty", "Umber", "Rosy", "Orange", "Slate", "Golden"])),
        eye_ring=str(rng.choice(["none", "none", "none", "Ivory", "Golden", "Scarlet"])), **build, **colours)


@functools.lru_cache(maxsize=4)
def _all_species(seed):
    rng = np.random.default_rng(seed)
    nouns, birds = list(FAMILIES), []
    schemes = [_scheme(rng) for _ in nouns]
    patterns = list(itertools.product(BREASTS, WINGS, FACES))
    for number, noun in enumerate(nouns):
        # three species in the family's own colours, two in those of another one
        looks = rng.choice(len(patterns), CLASSES // len(nouns), replace=False)
        for place, look in enumerate(looks):
            scheme = schemes[number if place < 3 else (number + 5) % len(nouns)]
            birds.append(_variant(rng, noun, scheme, *patterns[look]))
    rng.shuffle(birds)
    return tuple(_named(birds, rng))


def species(seed, index):
    """Species number `index` (from 0) of the seed's CLASSES species."""
    return _all_species(seed)[index]


def _folder_name(seed, classes, pictures, size):
    """The default set has the short name; any other says how it differs, so that no two sets share a folder."""
    name = "synthetic_birds_v{}_s{}".format(VERSION, seed)
    if (classes, pictures, size) != (CLASSES, PICTURES_PER_CLASS, SIZE):
        name += "_c{}_p{}_x{}".format(classes, pictures, size)
    return name


def _class_name(seed, index):
    return "{:03d}.{}".format(index + 1, species(seed, index).name)


def _draw_class(folder, seed, index, pictures, size):
    """Draw one class into folder/images. -> a line '<bytes> <path>' for each picture."""
    name, bird, lines = _class_name(seed, index), species(seed, index), []
    os.makedirs(os.path.join(folder, "images", name))
    for number in range(1, pictures + 1):
        # a generator of its own for each picture: what it shows doesn't depend on who drew the others
        rng = np.random.default_rng([seed, index + 1, number])
        shape = int(size * rng.uniform(0.95, 1.15)), int(size * rng.uniform(0.85, 1.05))
        path = "/".join(["images", name, "{}_{:04d}.jpg".format(bird.name, number)])
        draw_bird(bird, rng, shape).save(os.path.join(folder, path), quality=QUALITY)
        lines.append("{} {}".format(os.path.getsize(os.path.join(folder, path)), path))
    return lines


def _draw_all(folder, seed, classes, pictures, size, processes, progress):
    """Draw every class into folder, then list what is there in contents.txt, by which a whole folder is known."""
    contents = [None] * classes
    quiet = None if progress else True  # None: quiet unless stderr is a terminal
    with tqdm(total=classes * pictures, desc="Drawing birds", unit="picture", disable=quiet) as bar:
        for index, lines in _class_by_class(processes, (folder, seed, classes, pictures, size)):
            contents[index] = lines
            bar.update(pictures)
    with open(os.path.join(folder, "contents.txt"), "w") as file:
        file.write("\n".join(itertools.chain.from_iterable(contents)) + "\n")


def _class_by_class(processes, job):
    """Yield (index, lines) of each class as it is drawn."""
    folder, seed, classes, pictures, size = job
    # a daemon, such as a worker of a data loader, may not have children
    if processes == 1 or multiprocessing.current_process().daemon:
        for index in range(classes):
            yield index, _draw_class(folder, seed, index, pictures, size)
        return
    with ProcessPoolExecutor(min(processes, classes)) as pool:
        futures = {pool.submit(_draw_class, folder, seed, index, pictures, size): index for index in range(classes)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _is_whole(folder):
    """Whether every picture that contents.txt lists is there in its full length; contents.txt is written last."""
    try:
        with open(os.path.join(folder, "contents.txt")) as file:
            entries = [line.rstrip("\n").split(" ", 1) for line in file]
        return bool(entries) and all(os.path.getsize(os.path.join(folder, path)) == int(size) for size, path in entries)
    except (OSError, ValueError):
        return False


def prepare_birds(root, seed=0, processes=None, progress=True, classes=CLASSES, pictures=PICTURES_PER_CLASS, size=SIZE):
    """Return the images folder of the birds under root; draw them first if they aren't there (20 s on two cores).

    Args:
        root: directory that holds (or will hold) the set's own folder; made if need be.
        seed: which species, and which pictures of them; 0 or more.
        processes: how many draw; None for as many as there are cores. The bytes don't depend on it.
        progress: a bar on stderr, if that is a terminal.
        classes, pictures, size: another set, in a folder of another name: 1 to 80 classes, pictures in each, pixels.

    The folder appears whole or not at all: it is drawn beside its place and renamed. A folder that isn't whole is drawn
    anew. Of processes that start at the same time one draws, and the others wait; where the disk knows no locks, each
    draws, the first one's folder stays, and all use it.

    Raises:
        OSError: root can't be written.
        ValueError: a number out of its range.
    """
    processes = usable_cores() if processes is None else processes
    if seed < 0 or not 1 <= classes <= CLASSES or pictures < 1 or size < 32 or processes < 1:
        raise ValueError("no such birds: seed {}, {} classes (1 to {}), {} pictures (1 or more), size {} (32 or more), "
                         "{} processes".format(seed, classes, CLASSES, pictures, size, processes))
    name = _folder_name(seed, classes, pictures, size)
    folder = os.path.join(root, name)
    # asked before the next line looks inside: a folder that another process puts there in between is no broken one
    was_there = os.path.lexists(folder)
    if not _is_whole(folder):
        try:
            os.makedirs(root, exist_ok=True)
            with locked(folder + ".lock"):
                if not _is_whole(folder):
                    if was_there:
                        _put_away(folder)
                    _draw_into_place(root, name, (seed, classes, pictures, size, processes, progress))
        except OSError as error:
            reason = "the birds can't be drawn ({})".format(error.strerror or error)
            raise OSError(error.errno, reason, folder) from error
    return os.path.join(folder, "images")


def _draw_into_place(root, name, job):
    """Draw the set beside its place, then rename it; if another process was first, keep that one's."""
    folder, beside = os.path.join(root, name), os.path.join(root, ".{}.{}".format(name, uuid.uuid4().hex))
    os.makedirs(root, exist_ok=True)
    try:
        os.mkdir(beside)
        _draw_all(beside, *job)
        try:
            os.rename(beside, folder)
        except OSError:
            if not _is_whole(folder):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put_away(folder):
    """Remove a folder that isn't whole. It is renamed first, so that another process never meets half of it."""
    aside = "{}.{}.broken".format(folder, uuid.uuid4().hex)
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def contact_sheet(images_dir, classes=12, pictures=8):
    """One picture (Pillow), a row for each of some classes, taken evenly from all: its name and its first pictures."""
    names = sorted(entry.name for entry in os.scandir(images_dir) if entry.is_dir())
    names = [names[int(place)] for place in np.linspace(0, len(names) - 1, min(classes, len(names)))]
    cell, margin = SIZE + 8, 150
    sheet = Image.new("RGB", (margin + pictures * cell, len(names) * cell), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        pen.text((8, row * cell + cell // 2 - 14), name.replace(".", "  ").replace("_", "\n"), fill=(30, 30, 30))
        for column, file in enumerate(sorted(os.listdir(os.path.join(images_dir, name)))[:pictures]):
            with Image.open(os.path.join(images_dir, name, file)) as image:
                image.thumbnail((SIZE, SIZE))
                left, top = (cell - image.width) // 2, (cell - image.height) // 2
                sheet.paste(image, (margin + column * cell + left, row * cell + top))
    return sheet


def build_parser():
    parser = argparse.ArgumentParser(description="Draw the synthetic birds, if they are not there yet, and show them.")
    parser.add_argument("--root", default="data", help="directory that holds the folder of the set")
    parser.add_argument("--seed", type=int, default=0, help="which species, and which pictures of them")
    parser.add_argument("--processes", type=int, help="how many draw (default: one a core)")
    parser.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet")
    parser.add_argument("--sheet_classes", type=int, default=12, help="classes on the sheet")
    parser.add_argument("--sheet_pictures", type=int, default=8, help="pictures of each class on the sheet")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    images = prepare_birds(args.root, args.seed, args.processes)
    print(images)
    if args.sheet:
        contact_sheet(images, args.sheet_classes, args.sheet_pictures).save(args.sheet)
        print(args.sheet)


if __name__ == "__main__":
    main()
