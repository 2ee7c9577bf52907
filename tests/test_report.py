"""The report: its page in a browser, what it refuses and replaces, what a training leaves."""
import ast
import glob
import html.parser
import json
import os
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

import report.write
import run
from conftest import make_pictures, options_for
from embeddings import HOSTILE, embedded
from processes import ROOT
from report import curves, maps
from report.runs import read_diagnosis, read_log, read_logs, short_names
from report.sections import Shown
from report.text import link_to
from report.tiles import Tiles
from results import answer, failure

EVAL = ["--mode", "report", "--device", "cpu", "--workers", "0"]


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
