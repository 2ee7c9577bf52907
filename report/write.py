"""What is written: the page and the pictures of a report, and the two pictures that a training leaves."""
import contextlib
import io
import os
import shlex

from dataset.files import replaced_file
from report import gallery, neighbours, page
from report.curves import panels, sheet
from report.runs import read_diagnosis, read_log, read_options
from report.sections import Findings
from report.text import escaped
from report.tiles import Tiles

FILES = PAGE, CURVES, GALLERY, MAP = "report.html", "curves.png", "gallery.png", "map.png"
SCALE, SCALE_OF_A_RUN = 2.5, 1.5  # pixels of a PNG for a unit: a page's width at 300 dpi, and less
QUERIES = 6  # that a training leaves, and neighbours of each


def write_report(directory, networks, logs, command, seed=0, run_directory=None):
    """Write report.html, and pictures for a paper, into ``directory``, which is made; print where they are. What a
    former page left there is replaced.

    Args:
        networks: [``sections.Shown``], one or two, of the same test set: what is asked about, and another one.
        logs: [``runs.Log``] whose curves are shown; perhaps none.
        command: what was typed, words. seed: draws what is shown of a set that is too large to be shown.
        run_directory: where the first network's run left its config.json; None for nowhere.

    Raises:
        OSError: a file can't be written; the one that was there is as it was.
    """
    os.makedirs(directory, exist_ok=True)
    tiles = Tiles()
    findings, curves = Findings(networks, tiles, directory, seed), panels(logs)
    title = "What {} finds".format(networks[0].name)
    sections = _before(run_directory) + [
        _curves(curves, logs), findings.queries(), findings.maps(), findings.confusions(), findings.distances(),
        findings.classes()]
    content = {PAGE: page.page(title, _head(networks, command, run_directory), sections).encode(),
               GALLERY: _png(findings.queries_in_picture(), SCALE), MAP: _png(findings.maps_in_picture(), SCALE)}
    if curves:
        content[CURVES] = _png(sheet(curves), SCALE)
    for name, written in content.items():
        _write(directory, name, written)
        print("Written: {} ({:,.0f} kB)".format(os.path.join(directory, name), len(written) / 1000), flush=True)
    if not curves:
        with contextlib.suppress(FileNotFoundError):  # those of a former page
            os.remove(os.path.join(directory, CURVES))
    if tiles.missing:
        print("Pictures that could not be opened, and are grey: {}".format(tiles.missing), flush=True)


def leave_pictures(directory, embedded, seed=0):
    """Write curves.png and a small gallery.png of a run that is over into its directory. That this can't be done is a
    warning, never an error.

    Args:
        embedded: what the last network finds in the test set, see ``neighbours``; None: curves only.
    """
    try:
        log = read_log(directory)
        if log:
            _write(directory, CURVES, _png(sheet(panels([log])), SCALE_OF_A_RUN))
        if embedded:
            _write(directory, GALLERY, _png(_small_gallery(embedded, seed), SCALE_OF_A_RUN))
    except Exception as error:  # the run is whole; whatever is wrong with its pictures must not make it fail
        print("Warning: the pictures of this run could not be drawn ({}: {})".format(
            type(error).__name__, " ".join(str(error).split())), flush=True)


def _small_gallery(embedded, seed):
    items, queries = gallery.Items(embedded), neighbours.drawn(embedded.labels.cpu(), QUERIES, seed)
    found = neighbours.nearest(embedded, QUERIES, queries)
    rows = [gallery.Row(items.query(query), "", {"": items.neighbours(found, place)})
            for place, query in enumerate(queries)]
    return gallery.picture([("Queries drawn from the test set, and what last.pth finds", rows)], Tiles())


def _png(canvas, scale):
    content = io.BytesIO()
    canvas.image(scale).save(content, "PNG", dpi=(300, 300))
    return content.getvalue()


def _write(directory, name, content):
    with replaced_file(os.path.join(directory, name)) as file:
        file.write(content)


def _head(networks, command, run_directory):
    """Return what stands above the sections: the networks and their measures, the command, the options of the run."""
    rows = [["what it is"] + [network.description for network in networks]] + [
        ["{},\u00a0%".format(name)] + ["{:.2f}".format(100 * network.measures[name]) for network in networks]
        for name in networks[0].measures]
    parts = [page.table(["network"] + [network.path for network in networks], rows),
             "<p>Of {:,} pictures of the test set.</p>".format(len(networks[0].embedded.labels)),
             "<pre>{}</pre>".format(escaped(" ".join(map(shlex.quote, command))))]
    script, options = read_options(run_directory) if run_directory else (None, {})
    if options:
        parts.append(page.folded("Options of the run that made it, {}".format(script), page.table(
            ["option", "value"], [["--" + name, value] for name, value in sorted(options.items())], words=2)))
    return "".join(parts)


def _before(run_directory):
    """Return the section on the diagnosis of the run, in a list; [] if there was none."""
    found = read_diagnosis(run_directory) if run_directory else None
    if found is None:
        return []
    lines, figures, terms = found
    return [page.section("Before training", "before", "".join("<p>{}.</p>".format(escaped(line)) for line in lines)
                         + page.table(["on the test set", ""], figures.items())
                         + page.table(["loss term", "ratio", "share of the loss", "of the gradients"], terms),
                         "What run_distill.py --diagnose found.")]


def _curves(curves, logs):
    if not curves:
        return page.section("Curves", "curves", "<p>There is no log.jsonl beside the network.</p>")
    drawn = page.panels([("Curves of " + ", ".join(log.name for log in logs), canvas) for canvas in curves])
    return page.section("Curves", "curves", drawn, "By epoch; epoch 0 is before training. A ring marks the epoch of "
                        "best.pth." + (" Of {}.".format(logs[0].name) if len(logs) == 1 else ""))
