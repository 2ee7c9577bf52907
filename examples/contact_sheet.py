"""Draw the synthetic birds, if they are not there yet, and show some of them in one picture: a row for each species.

    python3 examples/contact_sheet.py --root data --out birds.png
"""
import argparse
import os
import sys

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset.birds import prepare_birds  # noqa: E402

CELL = 136  # pixels, with 4 around each picture
MARGIN = 150  # for the names


def contact_sheet(images, classes=12, pictures=8):
    """Return one picture (Pillow): the names and first pictures of some classes, evenly spread over all.

    Args:
        images: the directory of the class folders.
    """
    names = sorted(entry.name for entry in os.scandir(images) if entry.is_dir())
    names = [names[int(place)] for place in np.linspace(0, len(names) - 1, min(classes, len(names)))]
    rows = [(name, sorted(os.listdir(os.path.join(images, name)))[:pictures]) for name in names]
    sheet = Image.new("RGB", (MARGIN + max(len(files) for _, files in rows) * CELL, len(rows) * CELL), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for row, (name, files) in enumerate(rows):
        pen.text((8, row * CELL + CELL // 2 - 14), name.replace(".", "  ").replace("_", "\n"), fill=(30, 30, 30))
        for column, file in enumerate(files):
            with Image.open(os.path.join(images, name, file)) as image:
                image.thumbnail((CELL - 8, CELL - 8))
                left, top = (CELL - image.width) // 2, (CELL - image.height) // 2
                sheet.paste(image, (MARGIN + column * CELL + left, row * CELL + top))
    return sheet


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, "{}: error: {}\n".format(self.prog, message))


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("{!r} is not a number from 1 on".format(text))
    return int(text)


def build_parser():
    parser = _Parser(prog="contact_sheet.py", description=__doc__.splitlines()[0])
    parser.add_argument("--root", metavar="DIR", default="data", help="directory of the data sets (default: data)")
    parser.add_argument("--out", metavar="FILE", required=True, help="the picture to write, as .png or .jpg")
    parser.add_argument("--seed", type=int, default=0, help="which species, and which pictures of them (default: 0)")
    parser.add_argument("--classes", type=_count, default=12, help="at most so many species (default: 12)")
    parser.add_argument("--pictures", type=_count, default=8, help="at most so many pictures of each (default: 8)")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    try:
        contact_sheet(prepare_birds(args.root, args.seed), args.classes, args.pictures).save(args.out)
    except (OSError, ValueError) as error:
        print("contact_sheet.py: error: {}".format(error), file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
