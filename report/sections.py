"""The parts of a report that show what networks find in a test set."""
import collections

from report import gallery, maps, neighbours, page
from report.canvas import LETTER, Canvas, fitted
from report.curves import sheet
from report.histogram import histogram
from report.text import breakable, escaped

QUERIES, NEIGHBOURS = 6, 8  # of each kind in the page
QUERIES_IN_PICTURE = 2  # of each kind in gallery.png
CONFUSED, WORST_CLASSES, LISTED_CLASSES = 12, 10, 500
LONGEST_NAME = 48 * LETTER  # of a class beside a pair of pictures: letters of size 1

Shown = collections.namedtuple("Shown", "name path description embedded measures")
Shown.__doc__ = """A network in a report: what it is called, the path of its file, what it is in words, what it finds
(see ``neighbours``), and {title of a measure: value} on the test set."""


class Findings:
    """What one or two networks find in one test set. The first one is asked about; the other one stands beside it.

    Args:
        networks: [``Shown``]. tiles: ``Tiles``. directory: of the page. seed: draws what is shown of many.
    """

    def __init__(self, networks, tiles, directory, seed):
        self.networks, self.tiles, self.directory, self.seed = networks, tiles, directory, seed
        self.embedded = networks[0].embedded
        self.labels = self.embedded.labels.cpu()
        self.items = gallery.Items(self.embedded)
        self.ranks = [neighbours.first_right(network.embedded) for network in networks]
        self.found = neighbours.nearest(self.embedded, NEIGHBOURS)
        self.rows = self._rows()
        self.chosen = maps.choose(self.labels, seed)
        self.components = [maps.principal_components(network.embedded.embeddings) for network in networks]
        self.map_height = max(maps.height_of(points, self.chosen) for points, _ in self.components)

    def _rows(self):
        """Return [(title, [``Row``])]: the worst queries, some that are drawn, the best."""
        groups = [("The hardest misses: many wrong pictures are nearer than the first right one", neighbours.worst(
                      self.ranks[0], self.labels, QUERIES)),
                  ("Drawn at random", neighbours.drawn(self.labels, QUERIES, self.seed)),
                  ("The best: most of the nearest are right", neighbours.best(self.found, self.labels, QUERIES))]
        which = [query for _, queries in groups for query in queries]
        found = {network.name: neighbours.nearest(network.embedded, NEIGHBOURS, which) for network in self.networks}
        rows = iter([gallery.Row(self.items.query(query), self._note(query), {
            network: self.items.neighbours(one, place) for network, one in found.items()})
            for place, query in enumerate(which)])
        return [(title, [next(rows) for _ in queries]) for title, queries in groups]

    def _note(self, query):
        ranks = [int(ranks[query]) for ranks in self.ranks]
        if ranks[0] == 0:
            return "there is nothing to find"
        return "nearest right one: " + ", ".join("rank {:,}{}".format(rank, self._by(number))
                                                 for number, rank in enumerate(ranks))

    def _by(self, number):
        return " by " + self.networks[number].name if len(self.networks) > 1 else ""

    def queries(self):
        """Return the section of queries, HTML."""
        return page.section("Queries", "queries", "".join("<h5>{}</h5>{}".format(escaped(title), gallery.html_rows(
            rows, self.tiles, self.directory) or "<p>There is none.</p>") for title, rows in self.rows),
            "A query, then its nearest neighbours, nearest first, with their distance. Green with a tick: of the "
            "query's class. Red, dashed, with a cross: of another one, which is named. A picture is a link to its "
            "file.")

    def queries_in_picture(self):
        return gallery.picture([(title, rows[:QUERIES_IN_PICTURE]) for title, rows in self.rows], self.tiles)

    def maps(self):
        drawn = [self._map(number) for number in range(len(self.networks))]
        captions = ["{}: the axes hold {:.0%} and {:.0%} of the variance".format(network.name, *shares)
                    for network, (_, shares) in zip(self.networks, self.components)]
        words = "The two directions in which the embeddings vary most (principal components)."
        if len(self.chosen.classes) < len(set(self.labels.tolist())):
            words += " {} classes that the seed drew are in colour; grey points are other classes.".format(
                len(self.chosen.classes))
        key = "".join(entry.svg("A class in colour") for entry in maps.entries(self.chosen, self.items.names))
        return page.section("Map", "map", page.panels(
            [("Map of the embeddings", canvas) for canvas in drawn], captions, "panels wide") +
            '<div class="key">{}</div>'.format(key), words)

    def _map(self, number):
        return maps.draw_map(self.components[number][0], self.labels, self.chosen, lambda index: self.tiles.tile(
            self.embedded.images.samples[index][0]), self.map_height)

    def maps_in_picture(self):
        parts = []
        for number, network in enumerate(self.networks):
            drawn = self._map(number)
            canvas = Canvas(drawn.width, drawn.height + 20)
            canvas.text(0, 12, "{}, {:.0%} and {:.0%} of the variance".format(
                network.name, *self.components[number][1]), 13, room=drawn.width)
            canvas.place(drawn, 0, 20)
            parts.append(canvas)
        return sheet(parts, below=maps.key(self.chosen, self.items.names))

    def confusions(self):
        found = neighbours.confusions(self.embedded, self.found, CONFUSED)
        body = "".join('<article><div class="pair">{}{}</div><div>{}<p class="note">{} of {} queries</p></div>'
                       '</article>'.format(
                           self._tile(self.items.query(one.query)),
                           self._tile(self.items.neighbour(one.neighbour, one.distance, False)),
                           " and ".join("<b>{}</b>".format(breakable(fitted(self.items.names[label], 1, LONGEST_NAME)))
                                        for label in one.labels), one.count, one.total) for one in found)
        return page.section("Confusions", "confusions", '<div class="confused">{}</div>'.format(
            body or "<p>There is none.</p>"), "The pairs of classes that are most often confused{}: so many of their "
            "queries have a picture of the other class as the nearest one. Shown is the nearest such pair.".format(
                self._by(0)))

    def _tile(self, item):
        return gallery.html_tile(item, self.tiles, self.directory)

    def distances(self):
        return page.section("Distances", "distances", page.panels([
            ("Histogram of distances", histogram(network.name, network.embedded, self.seed))
            for network in self.networks]), "How far apart two pictures of one class are, and two of different "
            "classes: the less the two overlap, the better. Of pairs that the seed drew.")

    def classes(self):
        """Return the section of recall by class, HTML."""
        columns = [dict((label, (hits, total)) for label, hits, total in neighbours.recall_by_class(ranks, self.labels))
                   for ranks in self.ranks]
        order = [label for label, _, _ in neighbours.recall_by_class(self.ranks[0], self.labels)]
        rows = [[self.items.names[label], columns[0][label][1]] + [
            "{:.1f}".format(100 * column[label][0] / column[label][1]) for column in columns]
            for label in order[:LISTED_CLASSES]]
        head = ["class", "queries"] + (["Recall@1"] if len(self.networks) == 1 else [
            "Recall@1, {}".format(network.name) for network in self.networks])
        left = len(order) - len(rows)
        words = "The worst classes first{}.".format("; {} better ones are left out".format(left) if left else "")
        return page.section("Classes", "classes", page.table(head, rows, WORST_CLASSES), words)
