"""Recall@K of queries in a gallery of others: against the definition, known answers, the contract."""

import math

import pytest
import torch

from metric import exact, retrieval
from metric.utils import recall
from metric.retrieval import recall_by_definition
from test_metric_retrieval import KINDS, collapsed, random_matrix


def problem(queries=40, size=70, classes=9, d=5, seed=0):
    labels, gallery_labels = (torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed + n))
                              for n in (queries, size))
    return random_matrix(queries, d, seed + 1), labels, random_matrix(size, d, seed + 2), gallery_labels


def in_plain_loops(embeddings, labels, gallery, gallery_labels, k):
    """Written without `recall_by_definition`: count the negatives that are no farther than the nearest positive."""
    hits = 0
    for row, label in zip(embeddings.tolist(), labels.tolist()):
        distances = [math.sqrt(sum((a - b) ** 2 for a, b in zip(row, other))) for other in gallery.tolist()]
        nearest = min([gap for gap, other in zip(distances, gallery_labels.tolist()) if other == label], default=None)
        hits += nearest is not None and sum(
            gap <= nearest for gap, other in zip(distances, gallery_labels.tolist()) if other != label) < k
    return hits / len(labels)


@pytest.mark.parametrize("block_size", [None, 1, 7, 40, 70, 71])
@pytest.mark.parametrize("queries, size", [(40, 70), (70, 40), (1, 5)])
def test_recall_in_a_gallery_equals_plain_loops_at_every_block_size(block_size, queries, size):
    embeddings, labels, gallery, gallery_labels = problem(queries, size)
    ks = [5, 1, size, 2]
    expected = [in_plain_loops(embeddings, labels, gallery, gallery_labels, k) for k in ks]
    assert queries == 1 or 0 < expected[1] < expected[3] < expected[0] < expected[2]
    assert recall_by_definition(embeddings, labels, ks, gallery, gallery_labels) == expected
    for dtype in torch.float64, torch.float32:
        assert recall(embeddings.to(dtype), labels, ks, block_size, gallery.to(dtype), gallery_labels) == expected


def test_nothing_is_excluded_from_a_gallery():
    embeddings, labels = random_matrix(30, 3), torch.arange(30)
    assert recall(embeddings, labels, [1]) == [0.0]  # no other one of its class
    assert recall(embeddings, labels, [1], gallery=embeddings, gallery_labels=labels) == [1.0]


def test_a_gallery_of_all_others_is_what_one_query_searches_without_a_gallery():
    embeddings, labels = random_matrix(30, 3, seed=4).float(), torch.arange(30) % 4
    others = [torch.arange(30) != i for i in range(30)]
    alone = [recall(embeddings[~other], labels[~other], [1, 3], gallery=embeddings[other],
                    gallery_labels=labels[other]) for other in others]
    assert recall(embeddings, labels, [1, 3]) == [sum(pair[k] for pair in alone) / 30 for k in (0, 1)]


@pytest.mark.parametrize("gallery, gallery_labels, expected", [
    ([[1.0], [-1.0]], [0, 1], [0.0, 1.0]),  # as far from its positive as from a negative: a miss
    ([[0.0], [0.0]], [0, 1], [0.0, 1.0]),
    ([[0.0], [0.0]], [0, 0], [1.0, 1.0]),
    ([[0.1], [0.2]], [1, 2], [0.0, 0.0]),  # its class is not there
])
def test_recall_in_a_gallery_of_ties_and_missing_classes(gallery, gallery_labels, expected):
    found = recall(torch.zeros(1, 1), torch.tensor([0]), [1, 2], gallery=torch.tensor(gallery),
                   gallery_labels=torch.tensor(gallery_labels))
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_recall_in_a_gallery_of_a_network_that_has_collapsed_is_that_of_the_definition(kind, monkeypatch):
    ks = list(range(1, 36))
    embeddings = collapsed(kind, 60, 17, 0)
    for labels in torch.arange(60) % 30, torch.arange(60) % 3, torch.arange(60).clamp(max=20):
        arguments = embeddings[1::2][:24], labels[1::2][:24], ks, embeddings[::2], labels[::2]
        arguments = arguments[:3] + (torch.cat([embeddings[::2], embeddings[1:12:2]]), torch.cat([
            labels[::2], labels[1:12:2]]))  # some queries are in the gallery, too, and then find themselves
        expected = recall_by_definition(*arguments)
        assert recall(*arguments[:3], None, *arguments[3:]) == expected
        with monkeypatch.context() as few:
            few.setattr(exact, "EXACT_DISTANCES", 7 * 36)  # 7 queries at a time
            few.setattr(exact, "EXACT_ENTRIES", 100)
            assert recall(*arguments[:3], None, *arguments[3:]) == expected


@pytest.mark.parametrize("scale, offset", [(1.0, 1e4), (1e-3, 1.0), (1e-30, 0.0), (1e30, 0.0)])
def test_recall_in_a_gallery_is_exact_under_offsets_and_extreme_scales(scale, offset):
    embeddings, labels, gallery, gallery_labels = problem(d=6)
    embeddings, gallery = ((matrix * scale + offset).float() for matrix in (embeddings, gallery))
    expected = recall_by_definition(embeddings, labels, [1, 2, 4], gallery, gallery_labels)
    assert recall(embeddings, labels, [1, 2, 4], None, gallery, gallery_labels) == expected


def test_a_far_gallery_and_tiny_queries_share_one_scale():
    embeddings, labels, gallery, gallery_labels = problem()
    embeddings = embeddings * 1e-200
    found = recall(embeddings, labels, [1, 5], None, gallery, gallery_labels)
    assert found == recall_by_definition(embeddings, labels, [1, 5], gallery, gallery_labels)
    assert found == recall(embeddings * 0, labels, [1, 5], None, gallery, gallery_labels)


def test_recall_in_a_gallery_never_holds_more_than_a_block(monkeypatch):
    sizes = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **settings: sizes.append(addmm(*args, **settings)) or sizes[-1])
    monkeypatch.setitem(retrieval.BLOCK_SIDE, "cpu", 6)
    embeddings, labels, gallery, gallery_labels = problem()
    recall(embeddings, labels, [1], None, gallery, gallery_labels)
    assert max(block.numel() for block in sizes) == 36 and sum(block.numel() for block in sizes) < 2 * 40 * 70


@pytest.mark.parametrize("change, error, shown", [
    (dict(K=[71]), ValueError, "Recall@71 needs 1 <= K <= 70, the gallery size"),
    (dict(gallery=random_matrix(70, 4)), ValueError, "dimension and type of the queries"),
    (dict(gallery=random_matrix(70, 5).float()), ValueError, "dimension and type of the queries"),
    (dict(gallery=random_matrix(70, 5)[0]), ValueError, "gallery must be N x d"),
    (dict(gallery_labels=None), TypeError, "labels must be a torch.Tensor"),
    (dict(gallery_labels=torch.arange(69)), ValueError, "one label per row"),
    (dict(gallery=random_matrix(70, 5) / 0), ValueError, "70 of 70 embeddings are not finite"),
])
def test_recall_gallery_contract(change, error, shown):
    embeddings, labels, gallery, gallery_labels = problem()
    with pytest.raises(error, match=shown):
        recall(embeddings, labels, **dict(dict(gallery=gallery, gallery_labels=gallery_labels), **change))


@pytest.mark.parametrize("block_size", [None, 1, 7, 40])
def test_a_paired_gallery_excludes_each_querys_own_item(block_size):
    embeddings, labels, gallery, _ = problem(40, 40)
    gallery = 0.7 * embeddings + 0.3 * gallery  # near: a query's own item would often be the nearest
    others = [torch.arange(40) != i for i in range(40)]
    expected = [sum(in_plain_loops(embeddings[~other], labels[~other], gallery[other], labels[other], k)
                    for other in others) / 40 for k in (1, 3, 39)]
    assert recall_by_definition(embeddings, labels, [1, 3, 39], gallery, labels, paired=True) == expected
    assert recall(embeddings, labels, [1, 3, 39], block_size, gallery, labels, paired=True) == expected
    assert expected[0] < recall(embeddings, labels, [1], block_size, gallery, labels)[0]
    assert recall(embeddings, labels, [1, 3], block_size, embeddings.clone(), labels, paired=True) == recall(
        embeddings, labels, [1, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_paired_gallery_of_a_network_that_has_collapsed(kind):
    embeddings, labels = collapsed(kind, 60, 17, 0), torch.arange(60) % 30
    arguments = embeddings, labels, list(range(1, 60))
    assert recall(*arguments, None, embeddings.flip(1), labels, paired=True) == recall_by_definition(
        *arguments, embeddings.flip(1), labels, paired=True)


def test_a_paired_gallery_holds_the_queries_own_items():
    embeddings, labels = random_matrix(6, 3), torch.arange(6) // 2
    with pytest.raises(ValueError, match="its labels must be those of the queries"):
        recall(embeddings, labels, [1], gallery=embeddings, gallery_labels=labels.flip(0), paired=True)
    with pytest.raises(ValueError, match="Recall@6 needs 1 <= K <= 5"):
        recall(embeddings, labels, [6], gallery=embeddings, gallery_labels=labels, paired=True)
