"""MAP@R, R-precision and MRR beside recall: plain loops, known answers, ties, rounding, memory, the contract."""

import math

import pytest
import torch
from torch.nn import functional as F

from metric import exact, retrieval, rnearest
from metric.measures import measures_by_definition
from metric.utils import MEASURES, measures, queries_without_match, recall
from test_metric_known_answers import DEVICES, LABELS, STUDENT, TOLERANCE
from test_metric_retrieval import KINDS, collapsed, random_matrix

U = F.normalize(torch.tensor([[math.cos(0.5 * i - 0.9 * j + 0.05 * i * j) for j in range(6)] for i in range(12)],
                             dtype=torch.float64))


KNOWN = ("recall", "map@r", "r-precision", "mrr")  # those that the oracles here know


def in_plain_loops(embeddings, labels, ks, gallery=None, gallery_labels=None, paired=False):
    """Written without the package: ranks from counts of what is nearer. {measure: value}."""
    excludes = paired or gallery is None
    gallery, gallery_labels = (embeddings, labels) if gallery is None else (gallery, gallery_labels)
    sums, hits, matched = dict.fromkeys(KNOWN[1:], 0.0), [0] * len(ks), 0
    for i, (row, label) in enumerate(zip(embeddings.double().tolist(), labels.tolist())):
        gaps = [math.fsum((a - b) ** 2 for a, b in zip(row, other)) for other in gallery.double().tolist()]
        of_label = [(gap, j) for j, gap in enumerate(gaps) if gallery_labels[j] == label and not (excludes and i == j)]
        negatives = [gap for j, gap in enumerate(gaps) if gallery_labels[j] != label]
        places = [1 + j + sum(negative <= gap for negative in negatives)
                  for j, (gap, _) in enumerate(sorted(of_label))]
        if not places:
            continue
        matched, r = matched + 1, len(places)
        hits = [count + (places[0] <= k) for count, k in zip(hits, ks)]
        sums["map@r"] += sum((1 + j) / place for j, place in enumerate(places) if place <= r) / r
        sums["r-precision"] += sum(place <= r for place in places) / r
        sums["mrr"] += 1 / places[0]
    found = {name: value / matched if matched else math.nan for name, value in sums.items()}
    return dict(found, recall={k: count / len(labels) for k, count in zip(ks, hits)})


def assert_same(found, expected):
    assert set(found) == set(expected) and found["recall"] == expected["recall"]
    for name in set(found) - {"recall"}:
        assert type(found[name]) is float
        assert found[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def ways_to_search(e, labels):
    """Arguments without a gallery, with one that shares some items with the queries, with a paired one."""
    yield e, labels, {}
    yield e[20:], labels[20:], dict(gallery=e[::2], gallery_labels=labels[::2])
    yield e, labels, dict(gallery=e.flip(1), gallery_labels=labels, paired=True)


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setitem(rnearest.DISTANCES, "cpu", 7 * 40)
        monkeypatch.setattr(rnearest, "COMPARED", 100)
        for module in exact, rnearest:
            monkeypatch.setattr(module, "EXACT_DISTANCES", 5 * 40)
        monkeypatch.setattr(exact, "EXACT_ENTRIES", 100)
        monkeypatch.setitem(retrieval.BLOCK_SIDE, "cpu", 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes", [1, 2, 9, 25, 60])
def test_measures_equal_plain_loops(classes, dtype, blocks):
    e = random_matrix(60, 5, seed=1, dtype=dtype)
    labels = torch.randint(0, classes, (60,), generator=torch.Generator().manual_seed(2))
    for queries, of_queries, others in ways_to_search(e, labels):
        ks = [5, 1, 29]
        expected = in_plain_loops(queries, of_queries, ks, **others)
        assert classes in (1, 60) or 0 < expected["map@r"] <= expected["r-precision"] < expected["mrr"] < 1
        assert_same(measures(queries, of_queries, KNOWN, ks, **others), expected)
        assert_same(measures_by_definition(queries, of_queries, KNOWN, ks, **others), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_measures_of_a_network_that_has_collapsed_are_those_of_the_definition(kind, blocks):
    for d, count in ((2, 20), (17, 3), (17, 2)):
        e, labels = collapsed(kind, 40, d, seed=d + count), torch.arange(40) % count
        for queries, of_queries, others in ways_to_search(e, labels):
            expected = measures_by_definition(queries, of_queries, MEASURES, [1, 7], **others)
            assert_same(measures(queries, of_queries, MEASURES, [1, 7], **others), expected)


def in_one_matrix(e, labels):
    """MAP@R, R-precision and MRR from an N x N matrix of differences in float64."""
    distance = (e.unsqueeze(1) - e.unsqueeze(0)).pow(2).sum(2)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    itself = torch.eye(len(e), dtype=torch.bool)
    negatives_first = same.long().sort(stable=True)[1]
    order = distance.masked_fill(itself, math.inf).gather(1, negatives_first).sort(stable=True)[1]
    relevant = (same & ~itself).gather(1, negatives_first.gather(1, order)).double()
    r = relevant.sum(1, keepdim=True)
    precision = relevant.cumsum(1) / torch.arange(1, len(e) + 1)
    first = torch.arange(len(e)) < r
    return {"map@r": ((precision * relevant * first).sum(1) / r.squeeze(1)).mean().item(),
            "r-precision": ((relevant * first).sum(1) / r.squeeze(1)).mean().item(),
            "mrr": (1 / (1 + relevant.max(1)[1].double())).mean().item()}


@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize("offset, spread, scale", [(0, 1, 1), (100, 1, 1), (0, 1e-3, 2.0 ** -66), (3e4, 1, 2.0 ** 50)])
def test_measures_in_float32_are_those_of_float64(offset, spread, scale, classes):
    # Clusters whose spread rounding reaches: products in float32 alone get many queries wrong.
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(600) % classes
    e = torch.randn(classes, 24, generator=generator)[labels] + 1.5 * torch.randn(600, 24, generator=generator)
    e = (spread * e + offset) * scale
    expected = in_one_matrix(e.double() / scale, labels)
    assert measures(e, labels, KNOWN[1:]) == {name: pytest.approx(expected[name], abs=1e-12) for name in expected}


@pytest.mark.parametrize("scale, offset", [(1.0, 1e4), (1e-3, 1.0), (1e-30, 0.0), (1e30, 0.0)])
def test_measures_are_exact_under_offsets_and_extreme_scales(scale, offset, blocks):
    e, labels = (random_matrix(40, 6, seed=5) * scale + offset).float(), torch.arange(40) % 8
    for queries, of_queries, others in ways_to_search(e, labels):
        assert_same(measures(queries, of_queries, MEASURES, **others),
                    measures_by_definition(queries, of_queries, MEASURES, **others))


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_measures_of_huge_and_tiny_embeddings(scale):
    e, labels = random_matrix(30, 3), torch.arange(30) // 3
    assert measures(e * scale, labels, MEASURES) == measures(e, labels, MEASURES)


@pytest.mark.parametrize("classes", [7, 2])
def test_measures_when_the_bound_is_hopeless(classes, monkeypatch):
    # With a bound of 1e5 times the true one every pair is open at first, and the answer must still be the same.
    e, labels = random_matrix(120, 6, dtype=torch.float32), torch.arange(120) % classes
    expected = measures(e, labels, KNOWN)
    pairs, prepare, difference = [], retrieval._Embeddings.__init__, exact.exact

    def worse(self, *args):
        prepare(self, *args)
        self.margin *= 1e5
        self.squares += self.margin

    monkeypatch.setattr(retrieval._Embeddings, "__init__", worse)
    monkeypatch.setattr(rnearest, "CROWD", math.inf)
    monkeypatch.setattr(rnearest, "exact", lambda rows, queries, *args: pairs.append(len(queries)) or difference(
        rows, queries, *args))
    assert_same(measures(e, labels, KNOWN), expected)
    assert sum(pairs) > 5000


@pytest.mark.parametrize("kind", KINDS[:10])
def test_measures_of_a_network_that_has_collapsed_take_few_differences(kind, monkeypatch):
    pairs, difference = [], exact.exact
    for module in exact, rnearest:
        monkeypatch.setattr(module, "exact", lambda rows, queries, *args: pairs.append(len(queries)) or difference(
            rows, queries, *args))
    measures(collapsed(kind, 1000, 32, 0), torch.arange(1000) % 100, ["map@r"])
    assert sum(pairs) < 40000  # of 1000 x 999


def test_large_classes_are_settled_by_products_in_float64(monkeypatch):
    pairs, left, neighbourhoods = [], [], rnearest.neighbourhoods
    monkeypatch.setattr(rnearest, "exact", lambda rows, queries, *args: pairs.append(len(queries)) or exact.exact(
        rows, queries, *args))
    monkeypatch.setattr(rnearest, "neighbourhoods", lambda rows, waiting, reach: left.append(len(waiting)) or
                        neighbourhoods(rows, waiting, reach))
    measures(random_matrix(500, 8, dtype=torch.float32), torch.arange(500) % 2, ["map@r"])
    assert left == [0] and sum(pairs) < 50  # of 500 x 499


def test_members_of_the_points_of_a_gallery():
    rows, labels = torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]]), torch.tensor([2, 2, 2, 5, 5])
    for merge, expected in ((True, [[1, 2, 2, 1, 2], [1, 1, 1, 1, 1], [0] * 5, [0] * 5]),
                            (False, [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0] * 5, [0] * 5])):
        gallery = exact.ExactGallery(rows, labels, merge)
        assert gallery.members(gallery.point_of.expand(4, 5), torch.tensor([2, 5, 3, 9])).tolist() == expected


def test_measures_never_hold_more_than_a_block(monkeypatch):
    sizes, kept = [], []
    addmm, settle = torch.addmm, rnearest._Searches._settle

    def observed(self, which, lower, *args):
        kept.append(lower.numel())
        return settle(self, which, lower, *args)

    monkeypatch.setattr(torch, "addmm", lambda *args, **settings: sizes.append(addmm(*args, **settings)) or sizes[-1])
    monkeypatch.setattr(rnearest._Searches, "_settle", observed)
    monkeypatch.setattr(rnearest, "COMPARED", 50)
    monkeypatch.setitem(rnearest.DISTANCES, "cpu", 3 * 40)
    monkeypatch.setattr(rnearest, "EXACT_DISTANCES", 2 * 40)
    e = random_matrix(40, 3)
    monkeypatch.setattr(rnearest, "CROWD", math.inf)
    measures(e, torch.arange(40) % 20, ["map@r"])
    assert max(matrix.numel() for matrix in sizes) == 3 * 40 and max(kept) <= 50
    sizes.clear()
    monkeypatch.setattr(rnearest, "CROWD", 0)
    measures(e, torch.arange(40) % 2, ["map@r"])
    assert max(matrix.numel() for matrix in sizes) == 2 * 40 and 20 <= max(kept) <= 50


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_known_answers(dtype, device):
    s, query, u, labels = STUDENT.to(dtype), F.normalize(STUDENT).to(dtype), U.to(dtype), LABELS.to(device)
    s, query, u = (matrix.to(device) for matrix in (s, query, u))
    for function in measures, measures_by_definition:
        assert function(s, labels, KNOWN) == {
            "recall": {1: pytest.approx(0.6666666667, abs=TOLERANCE[dtype])},
            "map@r": pytest.approx(0.4583333333, abs=TOLERANCE[dtype]),
            "r-precision": pytest.approx(0.5, abs=TOLERANCE[dtype]),
            "mrr": pytest.approx(0.8055555556, abs=TOLERANCE[dtype])}
        assert function(query, labels, KNOWN, gallery=u, gallery_labels=labels) == {
            "recall": {1: pytest.approx(0.75, abs=TOLERANCE[dtype])},
            "map@r": pytest.approx(0.4490740741, abs=TOLERANCE[dtype]),
            "r-precision": pytest.approx(0.4722222222, abs=TOLERANCE[dtype]),
            "mrr": pytest.approx(0.8333333333, abs=TOLERANCE[dtype])}


def test_measures_of_pytorch_metric_learning():
    package = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.inference import CustomKNN
    calculator = package.AccuracyCalculator(
        include=("mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank"), k=199,
        device=torch.device("cpu"), knn_func=CustomKNN(LpDistance(normalize_embeddings=False)))
    e, labels = random_matrix(200, 8, seed=3, dtype=torch.float32), torch.arange(200) ** 2 % 31
    theirs = calculator.get_accuracy(e, labels)
    found = measures(e, labels, KNOWN)
    for name, their_name in (("map@r", "mean_average_precision_at_r"), ("r-precision", "r_precision"),
                             ("mrr", "mean_reciprocal_rank")):
        assert found[name] == pytest.approx(theirs[their_name], abs=1e-5)


def test_measures_do_not_depend_on_the_order_of_embeddings_and_axes():
    e, labels = random_matrix(70, 6, seed=7), torch.arange(70) ** 2 % 13
    expected = measures(e, labels, KNOWN, [1, 2])
    assert 0.05 < expected["map@r"] < 0.9
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    turned = e[:, [3, 0, 5, 1, 4, 2]] * torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64)
    names = labels * -7 + 3
    for other, of_other in ((e[order], labels[order]), (turned, labels), (0.25 * e, labels), (e, names),
                            (e, labels.to(torch.int32))):
        assert_same(measures(other, of_other, KNOWN, [1, 2]), expected)


@pytest.mark.parametrize("e, labels, expected", [
    # Ranks of positives by hand. The first query is as far from its positive as from a negative: rank 2 of R = 1.
    ([0.0, 1.0, -1.0, -1.5], [0, 0, 1, 1], {"map@r": 3 / 4, "r-precision": 3 / 4, "mrr": (1 / 2 + 3) / 4}),
    # Duplicates of both kinds at the query: the negative one comes first.
    ([0.3, 0.3, 0.3, 0.4], [0, 0, 1, 1], {"map@r": 0, "r-precision": 0, "mrr": (1 / 2 + 1 / 2 + 1 / 3 + 1 / 3) / 4}),
    # R = 2. Positives at ranks 1, 3; 1, 3; 2, 3 (the last query has none, and is left out).
    ([0.0, 1.0, 3.0, 2.5], [0, 0, 0, 1], {"map@r": (1 / 2 + 1 / 2 + 1 / 4) / 3, "r-precision": 1 / 2,
                                          "mrr": (1 + 1 + 1 / 2) / 3}),
    # All of one label.
    ([0.0, 1.0, 3.0], [4, 4, 4], {"map@r": 1, "r-precision": 1, "mrr": 1}),
    # Nothing to find for anyone.
    ([0.0, 1.0], [0, 1], {"map@r": math.nan, "r-precision": math.nan, "mrr": math.nan}),
])
def test_measures_of_ties_duplicates_and_lonely_queries(e, labels, expected):
    e, labels = torch.tensor(e).unsqueeze(1), torch.tensor(labels)
    for function in measures, measures_by_definition:
        assert function(e, labels, KNOWN[1:]) == {
            name: pytest.approx(value, abs=1e-12, nan_ok=True) for name, value in expected.items()}


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_measures_of_a_collapsed_network_are_the_lowest(value):
    found = measures(torch.full((90, 17), value), torch.arange(90) % 3, KNOWN)
    assert found == {"recall": {1: 0.0}, "map@r": 0.0, "r-precision": 0.0, "mrr": pytest.approx(1 / 61)}


def test_a_query_without_a_match_is_a_miss_in_recall_and_left_out_of_the_others():
    e, labels = random_matrix(30, 3), torch.arange(30) // 3
    gallery, gallery_labels = random_matrix(20, 3, seed=1), torch.arange(20) // 3
    there = labels <= 6
    full = measures(e, labels, KNOWN, gallery=gallery, gallery_labels=gallery_labels)
    part = measures(e[there], labels[there], KNOWN, gallery=gallery, gallery_labels=gallery_labels)
    assert full["recall"][1] * 30 == pytest.approx(part["recall"][1] * 21)
    assert [full[name] for name in KNOWN[1:]] == [pytest.approx(part[name]) for name in KNOWN[1:]]
    assert queries_without_match(labels, gallery_labels) == 9


@pytest.mark.parametrize("labels, gallery_labels, expected", [
    ([0, 0, 1, 2], None, 2),
    ([5, 5, 5], None, 0),
    ([7], None, 1),
    ([0, 0, 1, 1, 9], [0, 5], 3),
    ([3, -1], [-1, 3, 4], 0),
])
def test_queries_without_match(labels, gallery_labels, expected):
    others = None if gallery_labels is None else torch.tensor(gallery_labels, dtype=torch.int32)
    assert queries_without_match(torch.tensor(labels), others) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_measures_of_half_precision_are_computed_in_float32(dtype):
    e, labels = random_matrix(40, 8, seed=6).to(dtype), torch.arange(40) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(measures(e, labels, MEASURES), measures_by_definition(e, labels, MEASURES))


def test_measures_take_no_gradient_and_work_on_inference_tensors():
    labels = torch.arange(10) % 3
    e = random_matrix(10, 3).requires_grad_()
    expected = measures_by_definition(e.detach(), labels, KNOWN)
    assert_same(measures(e, labels, KNOWN), expected)
    with torch.inference_mode():
        inside = e * 1
    assert_same(measures(inside, labels, KNOWN), expected)


def test_measures_give_what_is_asked_for():
    e, labels = random_matrix(40, 3), torch.arange(40) % 5
    full = measures(e, labels, KNOWN, [1, 4])
    assert measures(e, labels, K=[1, 4]) == {"recall": full["recall"]}
    assert list(full["recall"].values()) == recall(e, labels, [1, 4])
    assert measures(e, labels, []) == {}
    for names in (["mrr"], ["r-precision", "map@r"], ("mrr", "recall")):
        found = measures(e, labels, names, [1, 4])
        assert list(found) == list(names) and found == {name: full[name] for name in names}


def test_without_recall_no_k_is_needed():
    assert math.isnan(measures(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), ["map@r"])["map@r"])
    with pytest.raises(ValueError, match="Recall@1"):
        measures(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), ["recall"])


@pytest.mark.parametrize("change, error, shown", [
    (dict(names=["map"]), ValueError, "unknown measure 'map'; there are recall, map@r"),
    (dict(K=[71]), ValueError, "Recall@71 needs 1 <= K <= 70"),
    (dict(labels=torch.zeros(40)), TypeError, "labels must be integers"),
    (dict(gallery=random_matrix(70, 4)), ValueError, "dimension and type of the queries"),
    (dict(gallery_labels=None), TypeError, "labels must be a torch.Tensor"),
    (dict(gallery=random_matrix(70, 5) / 0), ValueError, "70 of 70 embeddings are not finite"),
    (dict(paired=True), ValueError, "its labels must be those of the queries"),
])
def test_measures_contract(change, error, shown):
    given = dict(embeddings=random_matrix(40, 5), labels=torch.arange(40), gallery=random_matrix(70, 5),
                 gallery_labels=torch.arange(70))
    with pytest.raises(error, match=shown):
        measures(**dict(given, **change))
