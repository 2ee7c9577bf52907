"""What a report shows: its numbers against plain loops, and how they are drawn."""
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import report.canvas
import report.neighbours
from embeddings import HOSTILE, embedded
from metric.measures import ranks_of_first_positives
from metric.retrieval import rankings_by_definition
from report import axes, maps
from report.canvas import Canvas
from report.colours import LIGHT


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
