"""A picture of what a search found: each query, and beside it what is nearest, with its distance."""
import os

from dataset.files import replaced_file
from report.canvas import Canvas
from report.tiles import Tiles

TILE, GAP, LINE = 96, 8, 13  # units: side of a tile, space around it, height of a line of text
ROOM = TILE - 14  # for words: letters may be wide
IN_A_ROW = 10  # more are wrapped
SCALE = 1.5  # pixels of a unit


def draw_found(queries, matches, out):
    """Draw each query, framed, with its matches to the right, and write the picture. Where each has one match alone, as
    pairs have, several stand in a row.

    Args:
        queries: paths. matches: for each query [(path, distance, label)], nearest first. Of a picture the middle
            square is shown; one that can't be opened is a grey tile.
        out: the file, .png or .jpg.

    Raises:
        OSError: it can't be written.
    """
    tiles, width, height = Tiles(), TILE + GAP, TILE + 3 * LINE + 2 * GAP
    columns = max(1, min(IN_A_ROW, max(map(len, matches), default=1)))
    entry = (columns + 1) * width + 2 * GAP  # the width of a query with its matches
    side_by_side = max(1, 4 // columns)
    canvas, top = Canvas(GAP + side_by_side * entry), GAP
    for first in range(0, len(queries), side_by_side):
        rows = 1
        for place, (query, found) in enumerate(zip(queries[first:first + side_by_side],
                                                   matches[first:first + side_by_side])):
            left = GAP + place * entry
            _tile(canvas, left, top, tiles.tile(query), [(os.path.basename(query), "link")])
            canvas.frame(left, top, TILE, TILE, "link", 3)
            for number, (path, distance, label) in enumerate(found):
                _tile(canvas, left + (number % columns + 1) * width + GAP, top + number // columns * height,
                      tiles.tile(path), [("{}.  {:.4f}".format(number + 1, distance), "ink"), (label, "ink"),
                                         (os.path.basename(path), "faint")])
            rows = max(rows, -(-len(found) // columns))
        top += rows * height
    canvas.height = top
    with replaced_file(out) as file:
        canvas.image(SCALE).save(file, "PNG" if out.lower().endswith(".png") else "JPEG")
    if tiles.missing:
        print("Pictures that could not be opened, and are grey: {}".format(tiles.missing), flush=True)


def _tile(canvas, left, top, tile, lines):
    canvas.picture(left, top, TILE, tile)
    for number, (text, colour) in enumerate(line for line in lines if line[0]):
        canvas.text(left, top + TILE + (number + 1) * LINE, text, 9, colour=colour, room=ROOM)
