"""The report: its numbers against plain loops, its page in a browser, what a training leaves."""
import ast
import glob
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import types
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import report.canvas
import report.neighbours
import report.write
import run
from conftest import make_pictures, options_for
from dataset import ImageSet
from metric.measures import ranks_of_first_positives
from metric.retrieval import rankings_by_definition
from processes import ROOT
from report import axes, curves, maps
from report.canvas import Canvas
from report.colours import LIGHT
from report.runs import read_diagnosis, read_log, read_logs, short_names
from report.sections import Shown
from report.text import link_to
from report.tiles import Tiles
from results import answer, failure

HOSTILE = '<script>document.title="taken"</script>"\'&\n'
EVAL = ["--mode", "report", "--device", "cpu", "--workers", "0"]


def embedded(rows, labels, gallery=None, paths=None):
    """What ``report`` takes: embeddings of pictures that nobody has."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    paths = paths or ["nowhere/{}.png".format(number) for number in range(len(rows))]
    images = ImageSet(list(zip(paths, labels)), {"class {}".format(label): label for label in sorted(set(labels))})
    return types.SimpleNamespace(embeddings=rows, labels=torch.tensor(labels), images=images, gallery=gallery)


def drawn(count, seed, dimensions=3):
    draw = np.random.default_rng(seed)
    # Whole numbers: many distances are equal, so the order within ties is tested, too.
    return draw.integers(-2, 3, (count, dimensions)), draw.integers(0, 4, count).tolist()


@pytest.mark.parametrize("has_gallery", [False, True])
def test_neighbours_and_ranks_are_those_of_plain_loops(has_gallery):
    rows, labels = drawn(23, 0)
    gallery = embedded(*drawn(17, 1)) if has_gallery else None
    asked = embedded(rows, labels, gallery)
    found, ranks = report.neighbours.nearest(asked, 6), report.neighbours.first_right(asked)
    other, others = (gallery or asked), (gallery or asked).labels.tolist()
    for query in range(23):
        searched = [index for index in range(len(others)) if has_gallery or index != query]
        distance = [math.dist(rows[query], other.embeddings[index].tolist()) for index in range(len(others))]
        best = sorted(searched, key=lambda index: (round(distance[index], 6), others[index] == labels[query]))
        assert found.distances[query].tolist() == pytest.approx([distance[index] for index in best[:6]], abs=1e-6)
        assert found.right[query].tolist() == [others[index] == labels[query] for index in best[:6]]
        assert found.indices[query].tolist() == best[:6]
        right = [others[index] == labels[query] for index in best]
        assert int(ranks[query]) == (1 + right.index(True) if any(right) else 0)
    some = report.neighbours.nearest(asked, 6, [7, 2])
    assert torch.equal(some.indices, found.indices[[7, 2]])


def test_ranks_of_first_positives_by_definition():
    torch.manual_seed(0)
    rows, labels = torch.randn(40, 5), torch.randint(0, 30, (40,))  # some are alone in their class
    expected = [1 + ranking.index(True) if any(ranking) else 0 for ranking in rankings_by_definition(rows, labels)]
    assert ranks_of_first_positives(rows, labels).tolist() == expected and 0 in expected and max(expected) > 5


def test_which_queries_and_classes_are_shown():
    # On a line: two a's, a b amid them, two c's far away, a d beside them.
    asked = embedded([[0.0], [1.0], [0.4], [10.0], [10.5], [13.0]], [0, 0, 1, 2, 2, 3])
    found, ranks = report.neighbours.nearest(asked, 2), report.neighbours.first_right(asked)
    assert ranks.tolist() == [2, 2, 0, 1, 1, 0]
    assert report.neighbours.worst(ranks, asked.labels, 5) == [0, 1]
    assert report.neighbours.best(found, asked.labels, 5) == [4, 3] or report.neighbours.best(
        found, asked.labels, 5) == [3, 4]
    assert report.neighbours.recall_by_class(ranks, asked.labels) == [(0, 0, 2), (1, 0, 1), (3, 0, 1), (2, 2, 2)]
    first, second = report.neighbours.confusions(asked, found, 9)
    assert (first.labels, first.count, first.total) == ((0, 1), 3, 3) and {first.query, first.neighbour} == {0, 2}
    assert first.distance == pytest.approx(0.4) and first.query == 0
    assert (second.labels, second.count, second.total, second.query, second.neighbour) == ((3, 2), 1, 3, 5, 4)
    order = torch.tensor([0, 1, 2, 3])
    assert report.neighbours.of_different_classes(order, torch.tensor([5, 5, 6, 7]), 4) == [0, 2, 3, 1]


def test_sampled_distances_of_two_points():
    same, different = report.neighbours.sampled_distances(embedded([[0.0], [0.0], [2.0], [2.0]], [0, 0, 1, 1]), 400, 0)
    assert same.unique().tolist() == [0.0] and different.unique().tolist() == [2.0]
    assert len(same) > 100 and len(different) > 100
    same, _ = report.neighbours.sampled_distances(embedded([[0.0], [1.0]], [0, 1]), 50, 0)
    assert len(same) == 0


def test_principal_components_are_numpys_and_keep_their_sign():
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([3.0, 1.0, 2.0, 0.5]) + 5
    found, shares = maps.principal_components(rows)
    _, sizes, directions = np.linalg.svd(rows.double().numpy() - rows.double().numpy().mean(0))
    expected = (rows.double().numpy() - rows.double().numpy().mean(0)) @ directions[:2].T
    assert np.allclose(np.abs(found.numpy()), np.abs(expected), atol=1e-5)
    assert shares == pytest.approx((sizes ** 2 / (sizes ** 2).sum())[:2].tolist(), abs=1e-6)
    assert torch.allclose(maps.principal_components(rows + 7)[0], found, atol=1e-4)
    line, shares = maps.principal_components(torch.tensor([[0.0], [1.0]]))
    assert line.tolist() == [[-0.5, 0.0], [0.5, 0.0]] and shares == [1.0, 0.0]


def test_maps_of_two_networks_are_of_one_height():
    wide, high = (torch.tensor(points, dtype=torch.float64) for points in (
        [[0, 0], [1, 0.1], [2, 0.2]], [[0, 0], [1, 3], [0.1, 2]]))
    chosen = maps.Chosen([0], [0, 1, 2])
    heights = [maps.height_of(points, chosen) for points in (wide, high)]
    assert heights == [maps.LEAST_HEIGHT, pytest.approx(maps.SIDE)]
    canvas = maps.draw_map(wide, torch.zeros(3), chosen, lambda index: None, heights[1])
    marks = [y for shape, x, y in canvas.shapes if type(shape).__name__ == "_Disc"]
    assert canvas.height == heights[1] and (min(marks) + max(marks)) / 2 == pytest.approx(heights[1] / 2)


@pytest.mark.parametrize("low, high, whole, expected", [
    (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.013, 0.048, False, [0.01, 0.02, 0.03, 0.04, 0.05]),
    (0, 5, True, [0, 1, 2, 3, 4, 5]), (1, 2, True, [1, 2]), (3, 3, True, [3]), (7, 7, False, [6, 8])])
def test_ticks(low, high, whole, expected):
    found = axes.ticks(low, high, 5, whole)
    assert found == pytest.approx(expected) if expected != [6, 8] else found[0] <= 7 <= found[-1] and len(found) > 1


def test_what_has_one_epoch_is_told_in_numbers():
    one, two = (axes.panel("Loss", [axes.Curve("dist", points, "ink")], "epoch", whole_x=True).svg("")
                for points in ([(1, 1.25)], [(1, 1.25), (2, 1)]))
    assert "dist 1.25<" in one and "dist<" in two


def test_a_canvas_is_the_same_as_svg_and_as_pixels():
    canvas, inner = Canvas(40, 30), Canvas(10, 10)
    inner.area([(0, 0), (10, 0), (10, 10), (0, 10)], "wrong")
    canvas.place(inner, 20, 5)
    canvas.text(1, 28, HOSTILE, 5)
    canvas.picture(0, 0, 10, Image.new("RGB", (3, 3), (0, 0, 255)))
    image = canvas.image(2)
    assert image.size == (80, 60)
    assert image.getpixel((50, 20)) == tuple(bytes.fromhex(LIGHT["wrong"][1:]))
    assert image.getpixel((70, 20)) == (255, 255, 255)
    assert image.getpixel((10, 10)) == (0, 0, 255)
    svg = canvas.svg("a drawing")
    assert 'points="20.0,5.0 30.0,5.0 30.0,15.0 20.0,15.0" fill="var(--wrong)"' in svg and "<script" not in svg


@pytest.mark.parametrize("is_old", [False, True])
def test_words_are_drawn_where_they_are_asked_for(is_old, monkeypatch):
    if is_old:  # a Pillow without FreeType
        monkeypatch.setattr(report.canvas, "_font", lambda size: getattr(
            ImageFont, "load_default_imagefont", ImageFont.load_default)())
    for anchor, first, last in (("start", 100, 200), ("middle", 60, 140), ("end", 0, 100)):
        canvas = Canvas(200, 40)
        canvas.text(100, 30, "a\u4e2d word", 16, anchor)
        found = np.nonzero((np.asarray(canvas.image(1)) < 128).any(2))
        assert first - 3 <= found[1].min() and found[1].max() <= last + 3
        assert 10 <= found[0].min() < found[0].max() <= 36
    assert report.canvas.fitted("abcdefghij", 10, 29) == "ab\u2026ij" and report.canvas.fitted("abc", 10, 29) == "abc"


def test_a_log_is_read_though_it_is_damaged(tmp_path):
    lines = ['{"epoch": 0, "recall": {"val": {"2": 0.3}, "test": {"2": 0.25, "4": 0.5}}, "best_epoch": 0}', "{", "[]",
             '{"epoch": 1, "loss": 3.0, "terms": {"dist": 1.0, "angle": 2.0}}', '{"epoch": "x"}',
             '{"epoch": 2, "loss": NaN, "terms": [1], "recall": {"test": {"2": 0.5}, "val": 3}, "best_epoch": 2}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = read_log(str(tmp_path), "name")
    assert log == ("name", {"loss": [(1, 3.0)], "dist": [(1, 1.0)], "angle": [(1, 2.0)]},
                   {"test": [(0, 25.0), (2, 50.0)], "val": [(0, 30.0)]}, 2, "2")
    assert len(curves.panels([log])) == 2 and len(curves.panels([log, log])) == 5
    assert [one.name for one in read_logs([str(tmp_path), str(tmp_path / "nowhere"), os.path.join(str(tmp_path), ".")])
            ] == short_names([str(tmp_path)])
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe")
    assert read_log(str(tmp_path)) is None and read_log(str(tmp_path / "nowhere")) is None
    (tmp_path / "diagnose.json").write_text('{"test": {"teacher": 3}}')
    assert read_diagnosis(str(tmp_path)) is None and read_diagnosis(str(tmp_path / "nowhere")) is None


def test_names_tell_paths_apart(tmp_path):
    paths = [str(tmp_path / part / "lr" / "seed0") for part in ("a", "b")]
    for path in paths:
        os.makedirs(path)
    assert short_names(paths) == ["a/lr/seed0", "b/lr/seed0"] and short_names(paths[:1]) == ["lr/seed0"]
    assert short_names(["imagenet"]) == ["imagenet"] and len(set(short_names(paths[:1] * 2))) == 2


class _Reader(html.parser.HTMLParser):
    """The elements of a page: [(tag, attributes)]."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


def test_names_are_text_and_moved_pictures_are_grey(tmp_path, capsys):
    folder = tmp_path / "pic\u00fctures #1"
    folder.mkdir()
    paths = [str(folder / (name + ".png")) for name in ("a", "b %41", "gone", 'q"<b>')]
    for path in paths[:2] + paths[3:]:
        Image.new("RGB", (20, 10), (0, 200, 0)).save(path)
    asked = embedded([[0.0], [0.1], [1.0], [1.2]], [0, 0, 1, 1], paths=paths)
    asked.images.class_to_idx = {HOSTILE: 0, "other": 1}
    shown = Shown(HOSTILE, HOSTILE, HOSTILE, asked, {"Recall@1": 1.0})
    report.write_report(str(tmp_path / "out"), [shown], [], ["python3", HOSTILE])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    elements = _Reader(page).elements
    assert "could not be opened, and are grey: 1\n" in capsys.readouterr().out
    assert "script" not in {tag for tag, _ in elements}
    links = {attributes["href"] for tag, attributes in elements if tag == "a" and "#" not in attributes["href"][:1]}
    assert {os.path.realpath(os.path.join(str(tmp_path / "out"), unquote(link))) for link in links} == {
        os.path.realpath(path) for path in paths}
    sources = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources) and sources
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    tiles = Tiles()
    assert tiles.tile(paths[0]).getpixel((120, 120)) == (0, 200, 0) and tiles.missing == 0
    assert tiles.tile(paths[2]).getpixel((5, 5)) == (150, 150, 150) and tiles.missing == 1
    assert link_to(os.path.join("x", "y z"), ".") == "x/y%20z"


def test_a_network_that_has_collapsed_and_classes_of_one_picture(tmp_path):
    asked = embedded([[1.0, 2.0]] * 5, [0, 0, 1, 2, 3])
    report.write_report(str(tmp_path), [Shown("net", "net", "a net", asked, {})] * 2, [], ["python3"])
    assert "there is nothing to find" in (tmp_path / "report.html").read_text()
    chosen = maps.choose(torch.tensor([0] * 2000 + [1]), 0)
    assert sorted(chosen.classes) == [0, 1] and chosen.points.count(2000) == 1 and len(chosen.points) == maps.POINTS + 1


@pytest.fixture(scope="module")
def page(whole, teacher, tmp_path_factory):
    """The report of a run beside its teacher's, and what was printed."""
    out = tmp_path_factory.mktemp("report") / "deep" / "out"
    assert run.main(EVAL + ["--load", str(whole / "best.pth"), "--gallery_load", teacher + "/best.pth", "--out",
                            str(out), "--compare", teacher]) == 0
    return out


def test_the_mode_writes_a_page_and_pictures(page, whole, capsys):
    assert sorted(os.listdir(str(page))) == ["curves.png", "gallery.png", "map.png", "report.html"]
    for name in ("curves", "gallery", "map"):
        with Image.open(str(page / (name + ".png"))) as image:
            image.load()
            assert min(image.size) > 400
    text = (page / "report.html").read_text(encoding="utf-8")
    printed = re.findall(r"Recall@1: \[(.*)\] test", answer(capsys, run.main, [
        "--mode", "eval", "--load", whole / "best.pth", "--no_train_recall", "--workers", "0"])[1])
    assert "<td>{:.2f}</td>".format(float(printed[0])) in text and len(text) < 3e6
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert text.count('<circle') > 4 and "loss term l2_triplet" in text and len(log) == 4
    rows = re.findall(r'<td class="words">class\d\d</td><td>(\d+)</td><td>([\d.]+)</td>', text)
    total = sum(int(count) for count, _ in rows)
    assert sum(int(count) * float(share) for count, share in rows) / total == pytest.approx(float(printed[0]), abs=0.06)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(page, tmp_path, width):
    """No error of a script, no picture that is missing, nothing that is wider than the window."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here: the page was not opened in a browser")
    # In a frame, since Chromium's own window may be no narrower than 500 pixels.
    frame = """<iframe src="page.html" width="{}" height="900" style="border:0"></iframe><script>
        addEventListener("message", event => {{
            for (const name in event.data) document.documentElement.setAttribute("data-" + name, event.data[name]);
        }});</script>""".format(width)
    probe = """<script>
        const say = words => parent.postMessage(words, "*");
        addEventListener("error", event => say({error: event.message}));
        addEventListener("load", () => {
            const root = document.documentElement, images = [...document.images];
            document.querySelectorAll("details").forEach(one => one.open = true);
            say({pictures: images.length, window: innerWidth,
                 missing: images.filter(image => !(image.complete && image.naturalWidth)).length,
                 width: Math.max(root.scrollWidth, document.body.scrollWidth)});
        });</script>"""
    text = (page / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "default-src 'none'" in text
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", probe, text)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text("<!DOCTYPE html><html><head></head><body>" + frame, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
               "--user-data-dir={}".format(tmp_path / "profile"), "--window-size=1400,1000",
               "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=100).stdout.decode()
    said = dict(re.findall(r' data-(\w+)="([^"]*)"', dom[:dom.index("<head")]))
    assert "error" not in said and int(said["pictures"]) > 20 and said["missing"] == "0", said
    assert int(said["window"]) == width and int(said["width"]) <= width, said


def test_queries_search_in_their_gallery(whole, tmp_path, capsys):
    for name, seed in (("query", 1), ("gallery", 2)):
        make_pictures(tmp_path / "set" / name, classes=3, pictures=3, seed=seed)
    code, out, errors = answer(capsys, run.main, EVAL + ["--load", whole / "best.pth", "--data", tmp_path / "set",
                                                         "--dataset", "folder", "--out", tmp_path / "out"])
    assert code == 0, errors
    text = (tmp_path / "out" / "report.html").read_text()
    found = re.findall(r'<figure class="(\w+)"><a href="([^"]*)"', text)
    assert {kind for kind, link in found if "/query/" in link} == {"query"}
    assert {kind for kind, link in found if "/gallery/" in link} <= {"right", "wrong"} and len(found) > 20


@pytest.mark.parametrize("more, words", [
    ([], "--mode report needs --out DIR"), (["--out", "FILE"], "--out FILE: this is a file; give a directory"),
    (["--out", "new", "--compare", "nowhere"], "--compare nowhere: there is no log.jsonl"),
    (["--out", "new", "--no_train_recall"], "--no_train_recall does nothing with --mode report"),
    (["--out", "new", "--projection_load", "x"], "--projection_load does nothing with --mode report"),
    (["--mode", "train", "--out", "new"], "--out does nothing with --mode train")])
def test_what_the_mode_refuses(whole, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert words in failure(capsys, run.main, EVAL + ["--load", str(whole / "best.pth")] + more)
    assert os.listdir(str(tmp_path)) == ["FILE"]


def test_a_training_leaves_its_pictures_and_fails_by_none(whole, pictures, tmp_path, capsys, monkeypatch):
    for name in ("curves.png", "gallery.png"):
        with Image.open(str(whole / name)) as image:
            image.load()
    monkeypatch.setattr(report.write, "_png", lambda *_: (_ for _ in ()).throw(MemoryError("none\nleft")))
    code, out, _ = answer(capsys, run.main, options_for(pictures, "--epochs", "1", "--save_dir", tmp_path / "run"))
    assert code == 0 and "Warning: the pictures of this run could not be drawn (MemoryError: none left)\n" in out
    assert (tmp_path / "run" / "result.txt").exists() and not (tmp_path / "run" / "gallery.png").exists()


def test_a_page_is_replaced_with_its_pictures_if_asked_for(whole, tmp_path, capsys):
    (tmp_path / "curves.png").write_text("of another network")
    argv = EVAL + ["--load", str(tmp_path / "alone.pth"), "--out", str(tmp_path), "--base", "tiny"]
    config = json.loads((whole / "config.json").read_text())["options"]
    for name in ("dataset", "data", "image_size"):
        argv += ["--" + name, str(config[name])]
    shutil.copy(str(whole / "best.pth"), str(tmp_path / "alone.pth"))
    assert "curves.png is there; --overwrite replaces it" in failure(capsys, run.main, argv)
    assert answer(capsys, run.main, argv + ["--overwrite"])[0] == 0
    assert sorted(os.listdir(str(tmp_path))) == ["alone.pth", "gallery.png", "map.png", "report.html"]


def test_a_full_disk_is_named_and_leaves_the_page_before(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("before")

    def full(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        report.write._write(str(tmp_path), "report.html", b"after")
    assert str(error.value) == "[Errno 28] No space left on device: {!r}".format(str(tmp_path / "report.html"))
    assert os.listdir(str(tmp_path)) == ["report.html"] and (tmp_path / "report.html").read_text() == "before"


@pytest.mark.parametrize("room, stranger", [("report", "engine"), ("engine", "report")])
def test_rooms_that_do_not_know_each_other(room, stranger):
    for path in glob.glob(os.path.join(ROOT, room, "**", "*.py"), recursive=True):
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        names = [name for node in ast.walk(tree) for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])]
        assert stranger not in {name.split(".")[0] for name in names}, path
