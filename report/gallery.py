"""Queries and what they find: as HTML for a page, and as a picture."""
import collections

from report.canvas import Canvas
from report.text import breakable, escaped, link_to

TILE, GAP, LABEL = 80, 8, 17  # units of a canvas: a tile, between tiles, a line of words above them

Row = collections.namedtuple("Row", "query notes found")
Row.__doc__ = """A query and what networks find for it: the query, an ``Item``; a few words on it; {name of a network:
[``Item``], its nearest neighbours}."""

Item = collections.namedtuple("Item", "path name distance right", defaults=(None, None))
Item.__doc__ = "A picture: its path, the name of its class; of a neighbour its distance and whether it is right."


class Items:
    """The pictures of a set, by their index; those of its gallery, too.

    Args:
        embedded: see ``neighbours``.
    """

    def __init__(self, embedded):
        self.queries = embedded.images
        self.gallery = (embedded.gallery or embedded).images
        self.names = {label: name for images in (self.queries, self.gallery)
                      for name, label in images.class_to_idx.items()}

    def query(self, index):
        path, label = self.queries.samples[index]
        return Item(path, self.names[label])

    def neighbours(self, found, row):
        """Return the ``Item``s of a row of ``Neighbours``."""
        return [self.neighbour(*one) for one in zip(*(part[row].tolist() for part in found))]

    def neighbour(self, index, distance, right):
        path, label = self.gallery.samples[index]
        return Item(path, self.names[label], distance, right)


def html_rows(rows, tiles, directory):
    """Return HTML of rows, for a page in ``directory``."""
    return "".join(_html_row(row, lambda item: html_tile(item, tiles, directory)) for row in rows)


def _html_row(row, tile):
    found = "".join("{}<div class=\"found\">{}</div>".format(
        "<h4>{}</h4>".format(escaped(network)) if len(row.found) > 1 else "", "".join(map(tile, items)))
        for network, items in row.found.items())
    return '<article class="row">{}<header><h3>{}</h3><p class="note">{}</p></header><div>{}</div></article>'.format(
        tile(row.query), breakable(row.query.name), escaped(row.notes), found)


def html_tile(item, tiles, directory):
    """Return HTML of a picture: a link to its file; right ones are framed green, wrong ones red and dashed, with a sign
    and with words for those who don't see it."""
    kind = {None: "query", True: "right", False: "wrong"}[item.right]
    caption = "" if item.right is None else '<figcaption>{:.2f}{}</figcaption>'.format(
        item.distance, "" if item.right else "<br>" + escaped(item.name))
    return ('<figure class="{0}"><a href="{1}" title="{2}"><img src="{3}" alt="{0}: {4}" width="96" '
            'height="96"></a>{5}</figure>').format(kind, escaped(link_to(item.path, directory)), escaped(item.path),
                                                   tiles.address(item.path), escaped(item.name), caption)


def picture(groups, tiles):
    """Return a ``Canvas`` with groups of rows, [(title, [``Row``])], one below the other."""
    rows = [row for _, rows in groups for row in rows]
    columns = max(len(items) for row in rows for items in row.found.values())
    canvas, y = Canvas((columns + 1) * (TILE + GAP) + 3 * GAP), GAP
    room = canvas.width - 2 * GAP
    for title, rows in groups:
        if rows:
            canvas.text(GAP, y + 14, title, 14, room=room)
            y += 24
        for row in rows:
            canvas.text(GAP, y + 11, row.query.name + (row.notes and " (" + row.notes + ")"), 11, room=room)
            y += LABEL
            canvas.picture(GAP, y, TILE, tiles.tile(row.query.path))
            for network, items in row.found.items():
                if len(row.found) > 1:
                    canvas.text(TILE + 4 * GAP, y + 11, network, 11, colour="faint", room=room - TILE - 3 * GAP)
                    y += LABEL
                for column, item in enumerate(items):
                    _hit(canvas, TILE + 4 * GAP + column * (TILE + GAP), y, item, tiles.tile(item.path))
                y += TILE + GAP
            y += GAP
    canvas.height = y
    return canvas


def _hit(canvas, x, y, item, tile):
    """A neighbour: a picture, its frame, and a tick or a cross in its corner."""
    colour = "right" if item.right else "wrong"
    canvas.picture(x, y, TILE, tile)
    canvas.frame(x, y, TILE, TILE, colour, 3, dash=not item.right)
    canvas.marker("disc", x + TILE - 9, y + 9, 8, colour)
    for points in ([[(-4, 0), (-1, 3), (4, -3)]] if item.right else [[(-3, -3), (3, 3)], [(-3, 3), (3, -3)]]):
        canvas.line([(x + TILE - 9 + dx, y + 9 + dy) for dx, dy in points], "paper", 2)
