"""The nearest of a gallery: the search itself against brute force, and whole commands."""
import json
import math
import os
import pathlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import run
from engine.gallery.files import Gallery
from metric import nearest as module
from metric.nearest import close_pairs, nearest
from model import LinearEmbedding
from report.found import TILE, draw_found
from results import answer, failure
from tiny import TinyResNet

USUAL = ["--device", "cpu", "--workers", "0"]


def matrix(rows, columns, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    if levels:  # so few values that many distances are equal
        return torch.randint(0, levels, (rows, columns), generator=generator).float()
    return torch.randn(rows, columns, generator=generator)


def by_definition(query, gallery):
    """[(squared distance, row)] of a gallery, sorted: of equally near rows the first come first."""
    return sorted((math.fsum((a - b) ** 2 for a, b in zip(query, row)), number) for number, row in enumerate(gallery))


CASES = {"random": matrix(300, 5, 1), "of few values": matrix(300, 3, 2, levels=3), "one point": torch.ones(300, 4),
         "far away": matrix(300, 6, 3) * 1e-3 + 1e3, "tiny": matrix(300, 4, 4) * 1e-25,
         "huge": matrix(300, 4, 7) * 1e30, "about an outlier": torch.cat([torch.full((1, 4), 1e4), matrix(299, 4, 8)]),
         "half": matrix(300, 4, 5).half(), "float64": matrix(300, 4, 6).double() * (1 + 1e-12)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("numbers, distances", [(2 ** 19, 2 ** 22), (70, 100)])
def test_the_nearest_are_those_of_the_definition(name, numbers, distances, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(module, "DISTANCES", distances)
    gallery = CASES[name]
    queries = torch.cat([gallery[7:12], matrix(3, gallery.shape[1], 9).to(gallery.dtype)])
    for k in (1, 10, 300):
        found, rows = nearest(queries, gallery, k)
        for query, squares, which in zip(queries.tolist(), found ** 2, rows.tolist()):
            expected = by_definition(query, gallery.tolist())[:k]
            assert which == [row for _, row in expected]
            assert squares.tolist() == pytest.approx([square for square, _ in expected], rel=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("numbers, distances", [(2 ** 19, 2 ** 22), (70, 100)])
def test_a_query_of_the_gallery_can_be_left_out(name, numbers, distances, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(module, "DISTANCES", distances)
    gallery = CASES[name][:60]
    own = torch.tensor([0, 7, 8, 59, 31])
    for k in (1, 10, 59):
        found, rows = nearest(gallery[own], gallery, k, own)
        for query, squares, which in zip(own.tolist(), found ** 2, rows.tolist()):
            ranking = by_definition(gallery[query].tolist(), gallery.tolist())
            expected = [pair for pair in ranking if pair[1] != query][:k]
            assert which == [row for _, row in expected]
            assert squares.tolist() == pytest.approx([square for square, _ in expected], rel=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", [2048, 64])
def test_close_pairs_are_those_of_the_definition(name, side, monkeypatch):
    monkeypatch.setattr(module, "SIDE", side)
    gallery = CASES[name][:150]
    rows = gallery.tolist()
    every = sorted((square, number, other) for number, row in enumerate(rows)
                   for square, other in by_definition(row, rows) if other > number)
    for limit in (0, every[len(every) // 3][0] ** 0.5 * (1 + 1e-9), 1e200):
        expected = [pair for pair in every if pair[0] <= limit * limit]
        distances, pairs, count = close_pairs(gallery, limit, most=10 ** 6)
        assert count == len(expected) and pairs.tolist() == [list(pair[1:]) for pair in expected]
        few = close_pairs(gallery, limit, most=7)
        assert few[2] == count and few[0].tolist() == distances[:7].tolist()


@pytest.mark.parametrize("gallery", [
    torch.ones(3000, 32), torch.cat([torch.full((1, 32), 10.0), matrix(2999, 32) * 1e-3 + 1])],
    ids=["to one point", "about an outlier"])
def test_few_distances_are_decided_in_float64_though_a_network_has_collapsed(gallery, monkeypatch):
    pairs, exact = [], module.exact

    def counted(rows, queries, others, points):
        pairs.append(len(queries))
        return exact(rows, queries, others, points)

    monkeypatch.setattr(module, "exact", counted)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 32 * 300)
    nearest(gallery, None, 5)
    assert sum(pairs) < 1.2 * len(gallery) * 300  # of one block of ten


def test_an_empty_gallery_has_no_close_pairs():
    assert [len(close_pairs(torch.empty(0, 3), 1)[part]) for part in (0, 1)] == [0, 0]


def test_what_can_not_be_searched():
    for queries, gallery, k, words in ((torch.ones(1, 3), torch.ones(4, 2), 1, "dimensions"),
                                       (torch.ones(1, 3), torch.ones(4, 3), 5, "from 1 to 4"),
                                       (torch.ones(1, 3), torch.full((4, 3), math.nan), 1, "finite"),
                                       (torch.ones(1, 3).double() * 1e160, torch.ones(4, 3).double(), 1, "shorter")):
        with pytest.raises(ValueError, match=words):
            nearest(queries, gallery, k)
    with pytest.raises(ValueError, match="from 1 to 3"):
        nearest(torch.ones(1, 3), torch.ones(4, 3), 4, torch.tensor([2]))


# Whole commands.

@pytest.fixture(scope="module")
def pair(pictures, tmp_path_factory):
    """A folder with two networks of 4 and 8 dimensions, the second one L2-normalised, and its gallery."""
    root = tmp_path_factory.mktemp("pair")
    for name, size in (("student", 4), ("teacher", 8)):
        (root / name).mkdir()
        torch.manual_seed(size)
        network = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, size, size == 8, 32)
        torch.save(network.state_dict(), str(root / name / "best.pth"))
    assert run.main(["--mode", "embed", "--load", str(root / "teacher" / "best.pth"), "--dataset", "folder", "--data",
                     str(pictures), "--out", str(root / "all.npz")] + USUAL) == 0
    return root


def argv_of(pair, *more, network="teacher/best.pth", gallery="all.npz"):
    return ["--mode", "search", "--device", "cpu", "--load", str(pair / network), "--gallery",
            str(pair / gallery)] + [str(word) for word in more]


def queries_of(pictures):
    return [str(pictures / "class01" / "03.png"), str(pictures / "class05" / "00.png")]


def found_by(capsys, argv):
    """{query: [(distance, path)]}, of --json, which has stdout for itself."""
    code, out, errors = answer(capsys, run.main, [*argv, "--json"])
    assert code == 0, errors
    return {entry["query"]: [(match["distance"], match["path"]) for match in entry["matches"]]
            for entry in json.loads(out)["found"]}


def test_queries_find_themselves_first_and_then_the_nearest(pair, pictures, capsys):
    found = found_by(capsys, argv_of(pair, "--query", *queries_of(pictures), "--k", "5"))
    stored = np.load(str(pair / "all.npz"))
    paths = [os.path.join(str(pictures), path.decode()) for path in stored["paths"]]
    for query in queries_of(pictures):
        gaps = np.linalg.norm(stored["embeddings"] - stored["embeddings"][paths.index(query)], axis=1)
        order = gaps.argsort(kind="stable")[:5]
        assert [path for _, path in found[query]] == [paths[row] for row in order] and found[query][0][1] == query
        assert [distance for distance, _ in found[query]] == pytest.approx(gaps[order].tolist(), abs=1e-5)
    code, out, _ = answer(capsys, run.main, argv_of(pair, "--query", *queries_of(pictures), "--k", "1"))
    options = json.loads(out.split("Options: ")[1].split("\n")[0])
    assert options["image_size"] == 32 and options["k"] == 1 and "lr" not in options
    assert code == 0 and "Query: {0}\n  0.0000  {0}  (class01)\n".format(queries_of(pictures)[0]) in out


def test_a_network_as_it_comes(pictures, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(TinyResNet(pretrained=False).state_dict(), str(tmp_path / "found.pth"))
    network = ["--base", "tiny", "--pretrained", str(tmp_path / "found.pth"), "--embedding_size", "0", *USUAL[:2]]
    argv = ["--mode", "embed", "--dataset", "folder", "--data", pictures, "--image_size", "40", "--resize", "short",
            "--out", tmp_path / "g.npz", *network, *USUAL[2:]]
    assert answer(capsys, run.main, argv)[0] == 0
    found = found_by(capsys, ["--mode", "search", "--gallery", tmp_path / "g.npz", "--query", *queries_of(pictures),
                              *network])
    for query, matches in found.items():
        assert matches[0] == (pytest.approx(0, abs=1e-5), query) and len(matches) == 10


@pytest.mark.parametrize("index", ["faiss", "usearch"])
def test_other_indexes_find_the_same(pair, pictures, capsys, index):
    pytest.importorskip(index)
    argv = argv_of(pair, "--query", *queries_of(pictures), "--k", "6")
    ours, theirs = found_by(capsys, argv), found_by(capsys, argv + ["--index", index])
    for query in ours:
        assert [path for _, path in theirs[query]] == [path for _, path in ours[query]]
        assert [distance for distance, _ in theirs[query]] == pytest.approx(
            [distance for distance, _ in ours[query]], abs=2e-3)


def test_an_index_that_is_not_installed_is_named(pair, pictures, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    argv = argv_of(pair, "--query", *queries_of(pictures), "--index", "faiss")
    assert failure(capsys, run.main, argv).endswith("--index faiss needs the package faiss-cpu: pip install faiss-cpu")


def test_a_gallery_of_another_network_is_refused(pair, pictures, tmp_path, capsys):
    argv = argv_of(pair, "--query", *queries_of(pictures), network="student/best.pth")
    line = failure(capsys, run.main, argv)
    assert "was made by another network, a TinyResNet with 8 dimensions, L2-normalised ({}".format(
        pair / "teacher" / "best.pth") in line
    assert "this one is a TinyResNet with 4 dimensions, not L2-normalised" in line
    weights = torch.load(str(pair / "teacher" / "best.pth"))
    weights["linear.bias"] += 1e-6
    torch.save(weights, str(tmp_path / "other.pth"))
    assert "was made by another network, a TinyResNet with 8" in failure(
        capsys, run.main, argv_of(pair, "--query", *queries_of(pictures), network=tmp_path / "other.pth"))


def test_a_student_searches_its_teachers_gallery_through_the_projection(pair, pictures, tmp_path, capsys):
    """The student's head is the teacher's, followed by a rotation; its inverse is the projection."""
    weights = torch.load(str(pair / "teacher" / "best.pth"))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    for name in ("linear.weight", "linear.bias"):
        weights[name] = turn @ weights[name]
    torch.save(weights, str(tmp_path / "best.pth"))
    asked = ["--query", *queries_of(pictures), "--k", "4"]
    argv = argv_of(pair, *asked, network=tmp_path / "best.pth")
    assert "was made by another network" in failure(capsys, run.main, argv)
    torch.save({"weight": turn.t().contiguous()}, str(tmp_path / "projection.pth"))
    expected, found = (found_by(capsys, words) for words in (argv_of(pair, *asked), argv))
    for query, matches in expected.items():
        assert [path for _, path in found[query]] == [path for _, path in matches]
        assert [distance for distance, _ in found[query]] == pytest.approx(
            [distance for distance, _ in matches], abs=1e-3)
    _, out, _ = answer(capsys, run.main, argv)
    assert "Note: the gallery was made by another network" in out and "through the projection" in out
    torch.save({"weight": turn[:5]}, str(tmp_path / "projection.pth"))
    assert "this one is a TinyResNet" in failure(capsys, run.main, argv)
    assert "leads from 8 dimensions to 5" in failure(
        capsys, run.main, argv + ["--projection_load", str(tmp_path / "projection.pth")])


def test_duplicates_need_no_network(pair, pictures, tmp_path, capsys):
    twin = tmp_path / "twins"
    twin.mkdir()
    for name in ("a.png", "b.png"):
        (twin / name).write_bytes(pathlib.Path(queries_of(pictures)[0]).read_bytes())
    Image.open(queries_of(pictures)[1]).save(str(twin / "c.png"))
    argv = ["--mode", "embed", "--load", pair / "teacher" / "best.pth", "--dataset", "folder", "--data", twin, "--out",
            tmp_path / "twins.npy", *USUAL]
    assert answer(capsys, run.main, argv)[0] == 0
    argv = ["--mode", "search", "--gallery", tmp_path / "twins.npy", "--out", tmp_path / "pairs.png"]
    code, out, errors = answer(capsys, run.main, argv + ["--duplicates", "1e-6"])
    assert code == 0, errors
    assert "Pairs that are at most 1e-06 apart: 1\n  0.0000  {}\n          {}\n".format(
        twin / "a.png", twin / "b.png") in out
    assert Image.open(str(tmp_path / "pairs.png")).height > TILE
    assert "pairs.png is there; --overwrite replaces it" in failure(
        capsys, run.main, [str(word) for word in argv] + ["--duplicates"])
    argv.append("--overwrite")
    code, out, _ = answer(capsys, run.main, argv + ["--duplicates", "4", "--json"])
    assert code == 0 and json.loads(out)["pairs"] == 3
    os.rename(str(twin), str(tmp_path / "moved"))
    code, out, _ = answer(capsys, run.main, argv + ["--duplicates", "0", "--data", tmp_path / "moved"])
    assert code == 0 and str(tmp_path / "moved" / "b.png") in out
    assert "--load does nothing with --duplicates" in failure(
        capsys, run.main, [str(word) for word in argv] + ["--duplicates", "--load", "x.pth"])


def test_the_picture_of_what_is_found(pair, pictures, tmp_path, capsys):
    code, _, errors = answer(capsys, run.main, argv_of(pair, "--query", *queries_of(pictures), "--k", "3", "--out",
                                                       tmp_path / "found.png"))
    assert code == 0, errors
    few = Image.open(str(tmp_path / "found.png")).size
    draw_found(["gone.png"] * 2, [[(queries_of(pictures)[0], 0.5, "a \u00fcber-long name of a class \u4e2d")] * 12] * 2,
               str(tmp_path / "many.png"))
    many = Image.open(str(tmp_path / "many.png"))
    assert many.width > few[0] and many.height > 1.9 * few[1]  # ten in a row, the others below
    assert (150, 150, 150) in {colour for _, colour in many.getcolors(2 ** 24)}  # a picture that is not there
    assert "Pictures that could not be opened, and are grey: 1" in capsys.readouterr().out


@pytest.mark.parametrize("more, words", [
    (["--query", "nowhere.png"], "--query nowhere.png: there is no such file"),
    (["--query", "{text}"], "a picture that can't be read (no picture of a known format)"),
    (["--query", "{picture}", "--k", "37"], "holds only 36 pictures"),
    (["--query", "."], "--query .: this is no file"),
    (["--query", "{picture}", "--out", "nowhere/found.png"], "--out nowhere/found.png: there is no directory nowhere"),
    (["--query", "{picture}", "--duplicates"], "one of the two"),
    ([], "one of the two"),
    (["--query", "{picture}", "--recall", "2"], "--recall does nothing with --mode search"),
    (["--query", "{picture}", "--image_size", "64"], "--image_size does nothing with --mode search"),
    (["--query", "{picture}", "--out", "found.txt"], "its name ends in .png"),
    (["--query", "{picture}", "--projection_load", "p.pth"], "--projection_load does nothing in a gallery that"),
])
def test_what_is_refused(pair, pictures, tmp_path, capsys, more, words):
    (tmp_path / "text.txt").write_text("no picture")
    more = [word.format(text=tmp_path / "text.txt", picture=queries_of(pictures)[0]) for word in more]
    assert words in failure(capsys, run.main, argv_of(pair, *more))


def test_what_is_no_gallery(pair, pictures, tmp_path, capsys):
    def refused(path):
        return failure(capsys, run.main, ["--mode", "search", "--gallery", str(path), "--duplicates"])

    whole = (pair / "all.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    np.savez(str(tmp_path / "other.npz"), embeddings=np.zeros((3, 2), np.float32))
    np.savez(str(tmp_path / "objects.npz"), about=np.array([{"a": 1}]), embeddings=np.zeros((3, 2), np.float32))
    np.savez_compressed(str(tmp_path / "packed.npz"), **np.load(str(pair / "all.npz")))
    np.save(str(tmp_path / "alone.npy"), np.zeros((3, 2), np.float32))
    assert "alone.json, which belongs to it, is not there" in refused(tmp_path / "alone.npy")
    for name in ("cut.npz", "other.npz", "objects.npz", "packed.npz"):
        assert "this is no gallery of run.py --mode embed, or it is damaged" in refused(tmp_path / name), name
    assert "no such file" in refused(tmp_path / "gone.npz")
    contents = dict(np.load(str(pair / "all.npz")))
    np.savez(str(tmp_path / "empty.npz"), **{
        name: value[:0] if value.ndim else value for name, value in contents.items()})
    assert "it holds no pictures" in refused(tmp_path / "empty.npz")
    contents["embeddings"][3] = math.nan
    np.savez(str(tmp_path / "nan.npz"), **contents)
    assert "embeddings must be finite" in refused(tmp_path / "nan.npz")
    assert "needs --gallery" in failure(capsys, run.main, ["--mode", "search", "--duplicates"])
    assert len(Gallery(str(pair / "all.npz"))) == 36
