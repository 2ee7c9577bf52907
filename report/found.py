"""A picture of what a search found: each query, and beside it what is nearest, with its distance."""
import os

from PIL import Image, ImageDraw

from dataset import DatasetError
from dataset.pictures import open_image

TILE, GAP, LINE = 128, 8, 14  # pixels: side of a tile, space around it, height of a line of text
TEXT_LINES = 3
IN_A_ROW = 10  # more are wrapped
PAPER, GREY, INK, PALE, BLUE = (255, 255, 255), (200, 200, 200), (25, 25, 25), (110, 110, 110), (40, 90, 200)
LETTER = 6  # width of a letter of Pillow's own font


def draw_found(queries, matches, out):
    """Draw each query, framed blue, with its matches to the right, and write the picture.

    Args:
        queries: paths. matches: for each query [(path, distance, label)], nearest first. A picture that can't be
            opened is a grey tile.
        out: the file, .png or .jpg.

    Raises:
        OSError: it can't be written.
    """
    columns = min(IN_A_ROW, max(map(len, matches), default=1))
    heights = [max(1, -(-len(found) // columns)) for found in matches]  # in tiles
    width, height = TILE + GAP, TILE + GAP + TEXT_LINES * LINE
    sheet = Image.new("RGB", ((columns + 1) * width + 3 * GAP, sum(heights) * height + 2 * GAP), PAPER)
    pen, top = ImageDraw.Draw(sheet), GAP
    for query, found, rows in zip(queries, matches, heights):
        _tile(sheet, pen, GAP, top, query, [(os.path.basename(query), BLUE)], BLUE)
        for number, (path, distance, label) in enumerate(found):
            _tile(sheet, pen, (number % columns + 1) * width + 2 * GAP, top + number // columns * height, path,
                  [("{}.  {:.4f}".format(number + 1, distance), INK), (label, INK), (os.path.basename(path), PALE)])
        top += rows * height
    sheet.save(out)


def _tile(sheet, pen, left, top, path, lines, frame=None):
    try:
        picture = open_image(path, truncated="ok")
        picture.thumbnail((TILE, TILE))
    except (DatasetError, MemoryError):
        picture = Image.new("RGB", (TILE, TILE), GREY)
    corner = left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2
    sheet.paste(picture, corner)
    if frame:
        pen.rectangle([corner[0] - 2, corner[1] - 2, corner[0] + picture.width + 1, corner[1] + picture.height + 1],
                      outline=frame, width=2)
    for number, (text, colour) in enumerate(line for line in lines if line[0]):
        pen.text((left, top + TILE + 2 + number * LINE), _short(text), fill=colour)


def _short(text):
    """Return a text that fits under a tile, in letters that each of Pillow's own fonts has."""
    text = text.encode("ascii", "replace").decode()
    most = TILE // LETTER
    return text if len(text) <= most else text[:most // 2 - 1] + ".." + text[-(most - most // 2 - 1):]
