"""A picture of what a search found: each query, and beside it what is nearest, with its distance."""
import os

from PIL import Image, ImageDraw

from dataset.files import replaced_file
from report.tiles import Tiles

TILE, GAP, LINE = 128, 8, 14  # pixels: side of a tile, space around it, height of a line of text
TEXT_LINES = 3
IN_A_ROW = 10  # more are wrapped
PAPER, INK, PALE, BLUE = (255, 255, 255), (25, 25, 25), (110, 110, 110), (40, 90, 200)
LETTER = 6  # width of a letter of Pillow's own font


def draw_found(queries, matches, out):
    """Draw each query, framed blue, with its matches to the right, and write the picture.

    Args:
        queries: paths. matches: for each query [(path, distance, label)], nearest first. Of a picture the middle
            square is shown; one that can't be opened is a grey tile.
        out: the file, .png or .jpg.

    Raises:
        OSError: it can't be written.
    """
    columns = min(IN_A_ROW, max(map(len, matches), default=1))
    heights = [max(1, -(-len(found) // columns)) for found in matches]  # in tiles
    width, height = TILE + GAP, TILE + GAP + TEXT_LINES * LINE
    sheet = Image.new("RGB", ((columns + 1) * width + 3 * GAP, sum(heights) * height + 2 * GAP), PAPER)
    pen, top, tiles = ImageDraw.Draw(sheet), GAP, Tiles()
    for query, found, rows in zip(queries, matches, heights):
        _tile(sheet, pen, GAP, top, tiles.tile(query), [(os.path.basename(query), BLUE)], BLUE)
        for number, (path, distance, label) in enumerate(found):
            left = (number % columns + 1) * width + 2 * GAP
            _tile(sheet, pen, left, top + number // columns * height, tiles.tile(path), [
                ("{}.  {:.4f}".format(number + 1, distance), INK), (label, INK), (os.path.basename(path), PALE)])
        top += rows * height
    with replaced_file(out) as file:
        sheet.save(file, "PNG" if out.lower().endswith(".png") else "JPEG")


def _tile(sheet, pen, left, top, tile, lines, frame=None):
    sheet.paste(tile.resize((TILE, TILE), Image.BILINEAR), (left, top))
    if frame:
        pen.rectangle([left - 2, top - 2, left + TILE + 1, top + TILE + 1], outline=frame, width=2)
    for number, (text, colour) in enumerate(line for line in lines if line[0]):
        pen.text((left, top + TILE + 2 + number * LINE), _short(text), fill=colour)


def _short(text):
    """Return a text that fits under a tile, in letters that each of Pillow's own fonts has."""
    text = text.encode("ascii", "replace").decode()
    most = TILE // LETTER
    return text if len(text) <= most else text[:most // 2 - 1] + ".." + text[-(most - most // 2 - 1):]
