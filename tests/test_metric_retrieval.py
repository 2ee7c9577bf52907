"""Recall@K: the fast way against the definition, ties, rounding, memory and the contract."""

import math

import pytest
import torch

from metric import exact, retrieval
from metric.retrieval import recall, recall_by_definition


def random_matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_recall_of_huge_and_tiny_embeddings(scale):
    e, labels = random_matrix(30, 3), torch.arange(30) // 3
    assert recall(e * scale, labels, K=[1, 3]) == recall(e, labels, K=[1, 3])


@pytest.mark.parametrize("block_size", [None, 1, 7, 30, 60, 61])
def test_recall_equals_brute_force_at_every_block_size(block_size):
    embeddings = random_matrix(60, 5, seed=1)
    labels = torch.randint(0, 9, (60,), generator=torch.Generator().manual_seed(2))
    ks = [5, 1, 59, 2]
    expected = recall_by_definition(embeddings, labels, ks)
    assert 0 < expected[1] < expected[3] < expected[0] < expected[2] == 59 / 60, "one query has no positive"
    assert recall(embeddings, labels, ks, block_size=block_size) == expected
    assert recall(embeddings.float(), labels, ks, block_size=block_size) == expected


def test_recall_defaults_to_the_first_neighbour():
    embeddings, labels = random_matrix(30, 3), torch.arange(30) % 4
    assert recall(embeddings, labels) == recall_by_definition(embeddings, labels, [1])


def test_recall_never_holds_more_than_a_block(monkeypatch):
    sizes = []
    addmm = torch.addmm

    def observed(*args, **settings):
        block = addmm(*args, **settings)
        sizes.append(block.numel())
        return block

    monkeypatch.setitem(retrieval.BLOCK_SIDE, "cpu", 6)
    monkeypatch.setattr(torch, "addmm", observed)
    recall(random_matrix(40, 3), torch.arange(40) % 4)
    assert max(sizes) == 36 and sum(sizes) < 3 * 40 * 40


@pytest.mark.parametrize("offset, spread, scale", [(0, 1, 1), (100, 1, 1), (0, 1e-3, 1e-20), (3e4, 1, 1e15)])
def test_recall_in_float32_is_that_of_float64(offset, spread, scale):
    # Clusters whose spread rounding reaches: products in float32 alone get several queries wrong.
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(600) % 150
    embeddings = torch.randn(150, 24, generator=generator)[labels] + 1.5 * torch.randn(600, 24, generator=generator)
    embeddings = ((spread * embeddings + offset) * scale)
    wide = embeddings.double() / scale
    distance = (wide.unsqueeze(1) - wide.unsqueeze(0)).pow(2).sum(2)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    itself = torch.eye(600, dtype=torch.bool)
    nearest = distance.masked_fill(~same | itself, math.inf).min(1, keepdim=True)[0]
    rank = ((distance <= nearest) & ~same).sum(1)
    ks = list(range(1, 200))
    expected = [(rank < k).double().mean().item() for k in ks]
    assert recall(embeddings, labels, ks, block_size=128) == pytest.approx(expected, abs=1e-12)
    assert recall(embeddings, labels, ks) == pytest.approx(expected, abs=1e-12)


def test_recall_with_one_embedding_far_out_leaves_the_others_decided(monkeypatch):
    embeddings, labels = random_matrix(300, 6, dtype=torch.float32), torch.arange(300) % 7
    expected = recall(embeddings[1:], labels[1:], [1, 5])
    settled = []
    monkeypatch.setattr(retrieval, "exact_counts",
                        lambda gallery, rows, *args: settled.extend(rows) or exact.exact_counts(gallery, rows, *args))
    embeddings[0] *= 1e4
    found = recall(embeddings, labels, [1, 5])
    assert [value * 300 for value in found] == pytest.approx([value * 299 for value in expected], abs=1.5)
    assert len(settled) < 30


def test_recall_settles_queries_in_float64_when_the_bound_is_hopeless(monkeypatch):
    # With a bound of 1e5 times the true one every query is undecided, and the answer must still be the same.
    embeddings, labels = random_matrix(120, 6, dtype=torch.float32), torch.arange(120) % 7
    expected = recall(embeddings, labels, [1, 2, 5, 20])
    settled = []
    finish = retrieval._Embeddings.__init__

    def worse(self, *args):
        finish(self, *args)
        self.margin *= 1e5
        self.squares += self.margin

    def observed(gallery, rows, *args):
        settled.extend(rows)
        return exact.exact_counts(gallery, rows, *args)

    monkeypatch.setattr(retrieval._Embeddings, "__init__", worse)
    monkeypatch.setattr(retrieval, "exact_counts", observed)
    assert recall(embeddings, labels, [1, 2, 5, 20]) == expected
    assert len(settled) > 60


@pytest.mark.parametrize("embeddings, labels, expected", [
    # The first query is as far from its positive as from a negative, and misses.
    ([[0.0], [1.0], [-1.0], [-1.5]], [0, 0, 1, 1], [0.75, 1.0]),
    # A positive duplicate of the query is found.
    ([[0.3], [0.3], [5.0], [5.1]], [0, 0, 1, 1], [1.0, 1.0]),
    # A positive and a negative duplicate of the query: a tie, and a miss.
    ([[0.3], [0.3], [0.3], [0.4]], [0, 0, 1, 1], [0.0, 0.5]),
    # A query without any positive is a miss at every K.
    ([[0.0], [0.1], [7.0]], [0, 0, 1], [2 / 3, 2 / 3]),
])
def test_recall_of_ties_duplicates_and_lonely_queries(embeddings, labels, expected):
    embeddings, labels = torch.tensor(embeddings), torch.tensor(labels)
    assert recall(embeddings, labels, [1, 2]) == expected == recall_by_definition(embeddings, labels, [1, 2])


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_recall_of_a_collapsed_network_is_zero(value):
    assert recall(torch.full((90, 17), value), torch.arange(90) % 3, [1, 60, 61]) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recall_ties_of_exact_duplicates_are_exact(dtype):
    # Every place holds one item of each class. A query's own place holds a negative (distance 0), and the nearest place
    # that has a positive has a negative too, exactly as far: two negatives come before the first positive, never one.
    places = random_matrix(501, 129, seed=3, dtype=dtype)
    embeddings = torch.cat([places, places])
    labels = torch.tensor([0] * 501 + [1] * 501)
    assert recall(embeddings, labels, [1, 2, 3]) == [0.0, 0.0, 1.0]


def test_recall_ties_of_binary_codes_are_exact():
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 2, (150, 12), generator=generator).float() * 2 - 1
    labels = torch.randint(0, 5, (150,), generator=generator)
    ks = [1, 2, 4, 8, 16]
    assert recall(codes, labels, ks) == recall_by_definition(codes, labels, ks)


@pytest.mark.parametrize("scale, offset", [(1.0, 1e4), (1e-3, 1.0), (1e-30, 0.0), (1e30, 0.0)])
def test_recall_is_exact_under_offsets_and_extreme_scales(scale, offset):
    embeddings = (random_matrix(80, 6, seed=5) * scale + offset).float()
    labels = torch.arange(80) % 8
    ks = [1, 2, 4]
    assert recall(embeddings, labels, ks) == recall_by_definition(embeddings, labels, ks)


def collapsed(kind, n, d, seed):
    """Embeddings of a network that has collapsed, wholly or in part, or that have many distances in common."""
    generator = torch.Generator().manual_seed(seed)

    def points(count):
        return unit[torch.randint(0, count, (n,), generator=generator)]

    unit, usual, noise = (random_matrix(n, d, seed + i, torch.float32) for i in range(3))
    unit /= unit.norm(dim=1, keepdim=True)
    return {
        "one point": lambda: points(1),
        "two points": lambda: points(2),
        "ten points": lambda: points(10),
        "half equal": lambda: torch.where((torch.arange(n) % 2 == 0).unsqueeze(1), unit[:1], usual),
        "one point and noise": lambda: points(1) + 1e-7 * noise,
        "two points and noise": lambda: points(2) + 1e-7 * noise,
        "two points and less noise": lambda: points(2) + 1e-8 * noise,
        "points among points": lambda: points(2) + 1e-4 * points(3) + 1e-8 * noise,
        "one far out": lambda: torch.cat([1e5 * unit[:1], (points(2) + 1e-7 * noise)[1:]]),
        "ever nearer points": lambda: unit[:1] * 0.5 ** (torch.arange(n) % 20).unsqueeze(1) + 1e-9 * noise,
        "signs": lambda: usual.sign(),
        "zeros of both signs": lambda: usual.sign() * (noise > 0),
        "integers": lambda: torch.randint(-3, 4, (n, d), generator=generator).float(),
        "axes": lambda: torch.eye(d)[torch.randint(0, d, (n,), generator=generator)],
        "bfloat16": lambda: unit.bfloat16(),
        "float16": lambda: unit.half(),
    }[kind]()


KINDS = ["one point", "two points", "ten points", "half equal", "one point and noise", "two points and noise",
         "two points and less noise", "points among points", "one far out", "ever nearer points", "signs",
         "zeros of both signs", "integers", "axes", "bfloat16", "float16"]


@pytest.mark.parametrize("kind", KINDS)
def test_recall_of_a_network_that_has_collapsed_is_that_of_the_definition(kind, monkeypatch):
    ks = list(range(1, 60))
    for seed, d in enumerate([2, 33]):
        embeddings = collapsed(kind, 60, d, seed)
        for labels in torch.arange(60) % 30, torch.arange(60) % 3, torch.arange(60).clamp(max=20):
            expected = recall_by_definition(embeddings, labels, ks)
            assert recall(embeddings, labels, ks) == recall(embeddings.double(), labels, ks) == expected
            with monkeypatch.context() as few:
                few.setattr(exact, "EXACT_DISTANCES", 7 * 60)  # 7 queries at a time
                few.setattr(exact, "EXACT_ENTRIES", 100)
                assert recall(embeddings, labels, ks) == expected


@pytest.mark.parametrize("seed", [10, 23, 25])
def test_recall_where_two_products_round_one_distance_apart(seed):
    # A product of other blocks rounds otherwise; a pair must not fall between the counts of two of them.
    embeddings, labels = collapsed("two points and noise", 150, 17, seed).double(), torch.arange(150) % 37
    ks = list(range(1, 150))
    assert recall(embeddings, labels, ks) == recall_by_definition(embeddings, labels, ks)


@pytest.mark.parametrize("kind", KINDS[:10])
def test_recall_of_a_network_that_has_collapsed_takes_few_differences(kind, monkeypatch):
    pairs = []
    difference = exact.exact
    monkeypatch.setattr(exact, "exact",
                        lambda rows, queries, *args: pairs.append(len(queries)) or difference(rows, queries, *args))
    recall(collapsed(kind, 1000, 32, 0), torch.arange(1000) % 100, [1, 10, 100, 500])
    assert sum(pairs) < 40000  # of 1000 x 999


def test_recall_of_distances_that_float32_cannot_hold():
    # Next to 1 the scale stays as it is, and squares of 1e-22 have no digits left in float32.
    embeddings, labels = 1e-22 * random_matrix(60, 5), torch.arange(60) % 8
    embeddings[0] = 1
    embeddings, ks = embeddings.float(), list(range(1, 60))
    assert recall(embeddings, labels, ks) == recall_by_definition(embeddings, labels, ks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recall_of_half_precision_is_computed_in_float32(dtype):
    embeddings, labels = random_matrix(40, 8, seed=6).to(dtype), torch.arange(40) % 5
    assert recall(embeddings, labels, [1, 3]) == recall_by_definition(embeddings, labels, [1, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall(embeddings, labels, [1, 3]) == recall_by_definition(embeddings, labels, [1, 3])


def test_recall_takes_no_gradient_and_works_on_inference_tensors():
    labels = torch.arange(10) % 3
    embeddings = random_matrix(10, 3).requires_grad_()
    expected = recall_by_definition(embeddings.detach(), labels, [1])
    assert recall(embeddings, labels, [1]) == expected
    with torch.inference_mode():
        inside = embeddings * 1
    assert recall(inside, labels.to(torch.int32), [1]) == expected


@pytest.mark.parametrize("K", [[0], [1, 10], [-1]])
def test_recall_names_a_k_that_is_out_of_range(K):
    with pytest.raises(ValueError, match=r"Recall@{}\b.*\b9\b".format(K[-1])):
        recall(random_matrix(10, 2), torch.arange(10), K)


def test_recall_of_one_embedding_has_no_gallery():
    with pytest.raises(ValueError, match="Recall@1"):
        recall(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_recall_refuses_embeddings_that_are_not_finite(value):
    embeddings = torch.zeros(4, 2)
    embeddings[2, 1] = value
    with pytest.raises(ValueError, match="1 of 4 .* row 2"):
        recall(embeddings, torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("labels, error, shown", [
    (torch.zeros(4), TypeError, "float32"),
    (torch.zeros(4, dtype=torch.bool), TypeError, "bool"),
    ([0, 0, 1, 1], TypeError, "list"),
    (torch.zeros(4, 1, dtype=torch.int64), ValueError, r"\(4, 1\)"),
    (torch.zeros(3, dtype=torch.int64), ValueError, r"\(4, 2\).*\(3,\)"),
    (torch.zeros(4, dtype=torch.int64, device="meta"), ValueError, "cpu.*meta"),
])
def test_recall_labels_contract(labels, error, shown):
    with pytest.raises(error, match=shown):
        recall(torch.ones(4, 2), labels)


def test_recall_k_and_block_size_contract():
    embeddings, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match="list"):
        recall(embeddings, labels, 1)
    with pytest.raises(TypeError):
        recall(embeddings, labels, [1.5])
    with pytest.raises(ValueError, match="block_size"):
        recall(embeddings, labels, [1], block_size=0)
