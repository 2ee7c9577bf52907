"""Negative samplers: which triplets, and how often."""

import math

import pytest
import torch

from metric.distances import pdist
from metric.pairsampler import (SAMPLERS, AllPairs, DistanceWeighted, EligibleDistanceWeighted, HardNegative,
                                PairSampler, RandomNegative,
                                SemiHardNegative, distance_weights, pos_neg_mask)

each_sampler = pytest.mark.parametrize("make", list(SAMPLERS.values()), ids=list(SAMPLERS))

# Unequal classes in no order, one of them with a single item.
LABELS = torch.tensor([3, 1, 3, 3, 1, 8, 0, 0, 3, 1, 0])


def random_matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loop_distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def loop_pairs(labels):
    n = len(labels)
    return [(a, p) for a in range(n) for p in range(n) if a != p and labels[a] == labels[p]]


def loop_triplets(kind, rows, labels):
    triplets = []
    for a, p in loop_pairs(labels):
        negatives = [n for n in range(len(labels)) if labels[n] != labels[a]]
        distance = {n: loop_distance(rows[a], rows[n]) for n in negatives}
        to_positive = loop_distance(rows[a], rows[p])
        farther = [n for n in negatives if distance[n] > to_positive]
        if kind == "all":
            chosen = negatives
        elif kind == "hard":
            chosen = [min(negatives, key=distance.get)]
        else:
            chosen = [min(farther, key=distance.get) if farther else max(negatives, key=distance.get)]
        triplets += [(a, p, n) for n in chosen]
    return triplets


def loop_weights(rows, labels, eligible_only):
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    n, d = len(rows), len(rows[0])
    weights = []
    for i in range(n):
        distance = [max(0.5, 1.0 if i == j else loop_distance(rows[i], rows[j])) for j in range(n)]
        log_weight = [(2 - d) * math.log(x) - (d - 3) / 2 * math.log(1 - x * x / 4) for x in distance]
        eligible = [labels[i] != labels[j] and distance[j] < 1.4 for j in range(n)]
        maximum = max(w for w, e in zip(log_weight, eligible) if e or not eligible_only)
        row = [math.exp(w - maximum) * e for w, e in zip(log_weight, eligible)]
        if sum(row) == 0:
            row = [float(labels[i] != labels[j]) for j in range(n)]
        weights.append([w / sum(row) for w in row])
    return weights


def test_pos_neg_mask():
    positive, negative = pos_neg_mask(LABELS)
    labels = LABELS.tolist()
    n = len(labels)
    assert positive.dtype == negative.dtype == torch.bool
    assert positive.tolist() == [[i != j and labels[i] == labels[j] for j in range(n)] for i in range(n)]
    assert negative.tolist() == [[labels[i] != labels[j] for j in range(n)] for i in range(n)]


@pytest.mark.parametrize("kind, sampler", [("all", AllPairs), ("hard", HardNegative), ("semihard", SemiHardNegative)])
@pytest.mark.parametrize("seed", range(5))
def test_deterministic_samplers_equal_loops(kind, sampler, seed):
    embeddings = random_matrix(11, 3, seed=seed)
    found = torch.stack(sampler()(embeddings, LABELS), 1)
    assert [tuple(row) for row in found.tolist()] == loop_triplets(kind, embeddings.tolist(), LABELS.tolist())


def test_semihard_falls_back_to_the_farthest_negative():
    # Both anchors of class 0 are farther from each other than from any negative; a tie is not farther.
    embeddings = torch.tensor([[0.0], [4.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1, 2])
    assert torch.stack(SemiHardNegative()(embeddings, labels)).tolist() == [[0, 1], [1, 0], [3, 2]]
    embeddings[3] = -4.0
    assert SemiHardNegative()(embeddings, labels)[2].tolist() == [3, 3]
    assert SemiHardNegative()(embeddings[:3], labels[:3])[2].tolist() == [2, 2]


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_triplet_is_valid_and_every_pair_has_one(make, dtype):
    sampler = make()
    for seed in range(5):
        embeddings = random_matrix(11, 4, seed=seed).to(dtype).requires_grad_()
        anchor, positive, negative = sampler(embeddings, LABELS)
        for index in (anchor, positive, negative):
            assert index.dtype == torch.int64 and index.dim() == 1 and index.device == embeddings.device
        assert (LABELS[anchor] == LABELS[positive]).all() and (anchor != positive).all()
        assert (LABELS[anchor] != LABELS[negative]).all()
        pairs = list(zip(anchor.tolist(), positive.tolist()))
        assert sorted(set(pairs)) == loop_pairs(LABELS.tolist())
        if not isinstance(sampler, AllPairs):
            assert pairs == loop_pairs(LABELS.tolist())


@each_sampler
@pytest.mark.parametrize("labels", [[0], [0, 0, 0, 0], [0, 1, 2, 3]], ids=["N=1", "one class", "no positives"])
def test_no_triplets(make, labels):
    triplets = make()(random_matrix(len(labels), 3), torch.tensor(labels))
    assert [(tuple(index.shape), index.dtype) for index in triplets] == [((0,), torch.int64)] * 3


@each_sampler
@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_degenerate_embeddings_still_give_valid_triplets(make, value):
    # With NaN it is the loss that must report the trouble, not the sampler.
    anchor, _, negative = make()(torch.full((11, 3), value), LABELS)
    assert len(anchor) >= len(loop_pairs(LABELS.tolist())) and (LABELS[anchor] != LABELS[negative]).all()


def test_the_names_of_the_command_line():
    built = {name: make() for name, make in SAMPLERS.items()}
    expected = {"random": RandomNegative, "hard": HardNegative, "all": AllPairs, "semihard": SemiHardNegative,
                "distance": DistanceWeighted, "distance_eligible": EligibleDistanceWeighted}
    assert {name: type(built[name]) for name in expected} == expected
    assert built["distance_eligible"].eligible_only and not built["distance"].eligible_only


def chi_square(counts, probabilities):
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, probabilities))


# 60 items of class 0 at one place make 60 * 59 = 3540 draws from one distribution over the 5 negatives.
MANY_LABELS = torch.tensor([0] * 60 + [1, 2, 3, 4, 5])
CHI_SQUARE_4_DOF = 23.5  # exceeded with probability 1e-4


def many_embeddings():
    angles = torch.tensor([0.0] * 60 + [0.3, 0.6, 0.8, 1.0, 1.3], dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles, 0 * angles], 1)


def test_random_negative_is_uniform():
    torch.manual_seed(0)
    negative = RandomNegative()(many_embeddings(), MANY_LABELS)[2]
    counts = torch.bincount(negative, minlength=65)[60:].tolist()
    assert sum(counts) == 60 * 59
    assert chi_square(counts, [0.2] * 5) < CHI_SQUARE_4_DOF


@pytest.mark.parametrize("eligible_only", [False, True])
def test_distance_weighted_draws_by_its_weights(eligible_only):
    torch.manual_seed(0)
    embeddings = many_embeddings()
    weights = distance_weights(embeddings, MANY_LABELS, eligible_only)
    negative = DistanceWeighted(eligible_only=eligible_only)(embeddings, MANY_LABELS)[2]
    counts = torch.bincount(negative, minlength=65)[60:].tolist()
    assert sum(counts) == 60 * 59
    assert chi_square(counts, weights[0, 60:].tolist()) < CHI_SQUARE_4_DOF
    assert chi_square(counts, [0.2] * 5) > 10 * CHI_SQUARE_4_DOF


@pytest.mark.parametrize("sampler", [RandomNegative, DistanceWeighted])
def test_draws_follow_the_global_seed(sampler):
    embeddings = random_matrix(11, 3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampler()(embeddings, LABELS)[2].tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("eligible_only", [False, True])
@pytest.mark.parametrize("dimension", [2, 3, 6, 40])
def test_distance_weights_equal_loops(dimension, eligible_only):
    embeddings = random_matrix(11, dimension, seed=dimension) + 0.3
    expected = loop_weights(embeddings.tolist(), LABELS.tolist(), eligible_only)
    found = distance_weights(embeddings, LABELS, eligible_only)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-12)


def at_distance(distance, dimension, axis):
    """A unit vector `distance` away from the first basis vector."""
    cosine = 1 - distance ** 2 / 2
    vector = torch.zeros(dimension, dtype=torch.float64)
    vector[0], vector[axis] = cosine, math.sqrt(1 - cosine ** 2)
    return vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_all_column_maximum_quirk(dtype):
    """At d = 512 one positive at 0.5 or nearer sends its anchor back to uniform negatives; eligible_only does not."""
    distances = [0.4, 0.66, 0.8, 1.0, 1.3, 1.41]
    embeddings = torch.stack([at_distance(0, 512, 1)] + [at_distance(x, 512, 1 + k) for k, x in enumerate(distances)])
    embeddings = embeddings.to(dtype)
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5])

    quirk = distance_weights(embeddings, labels)[0]
    assert quirk.dtype == torch.float32
    assert quirk.tolist() == pytest.approx([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])

    eligible = distance_weights(embeddings, labels, eligible_only=True)[0]
    assert eligible[2] > 0.99 and eligible[6] == 0 and eligible.sum().item() == pytest.approx(1)

    # It is the positive that does it, and it is a matter of precision.
    far_positive = embeddings.clone()
    far_positive[1] = at_distance(1.2, 512, 1).to(dtype)
    assert distance_weights(far_positive, labels)[0, 2] > 0.99
    assert distance_weights(embeddings.double(), labels)[0, 2] > 0.99


def test_the_quirk_begins_at_about_063():
    labels = torch.tensor([0, 0, 1, 2])
    for distance, uniform in ((0.60, False), (0.62, False), (0.635, True), (0.65, True)):
        embeddings = torch.stack([at_distance(x, 512, 1 + k) for k, x in enumerate((0, 0.5, distance, 1.3))]).float()
        weights = distance_weights(embeddings, labels)[0]
        assert (weights[2] == weights[3] == 0.5).item() == uniform


@pytest.mark.parametrize("eligible_only", [False, True])
@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_antipodal_and_zero_vectors_are_finite(dtype, dimension, eligible_only):
    x = random_matrix(2, dimension, seed=dimension, dtype=dtype)
    embeddings = torch.cat([x, -x, -3 * x, torch.zeros(2, dimension, dtype=dtype)])
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 3, 0])
    weights = distance_weights(embeddings, labels, eligible_only)
    assert torch.isfinite(weights).all() and (weights >= 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(8, dtype=dtype))
    assert (weights[pos_neg_mask(labels)[0]] == 0).all() and (weights.diagonal() == 0).all()


def test_an_antipodal_negative_is_not_drawn_where_another_is_eligible():
    embeddings = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [-1.0, 0, 0, 0], [0.6, 0, 0.8, 0]])
    weights = distance_weights(embeddings, torch.tensor([0, 0, 1, 2]), eligible_only=True)
    assert weights[0].tolist() == [0, 0, 0, 1]


def test_rows_without_negatives_have_no_weight():
    assert distance_weights(random_matrix(4, 3), torch.zeros(4, dtype=torch.int64)).abs().sum() == 0


def test_weights_do_not_depend_on_lengths():
    embeddings = random_matrix(11, 5)
    lengths = torch.linspace(0.1, 30, 11, dtype=torch.float64).unsqueeze(1)
    assert torch.allclose(distance_weights(embeddings * lengths, LABELS), distance_weights(embeddings, LABELS))


@pytest.mark.parametrize("sampler", [HardNegative, SemiHardNegative, DistanceWeighted])
def test_dist_func_is_used(sampler):
    def distance_by_index(embeddings):
        index = torch.arange(len(embeddings), dtype=embeddings.dtype)
        return (index.unsqueeze(0) - index.unsqueeze(1)).abs()

    labels = torch.tensor([0, 0, 1, 2, 2])
    negative = sampler(dist_func=distance_by_index)(random_matrix(5, 3), labels)[2].tolist()
    if sampler is DistanceWeighted:
        # Only a neighbour is nearer than 1.4: anchors 1 and 3 have such a negative, anchors 0 and 4 have none.
        assert negative[1:3] == [2, 2]
    else:
        assert negative == ([2, 2, 2, 2] if sampler is HardNegative else [2, 3, 1, 2])
    with pytest.raises(ValueError, match=r"N = 5.*\(5, 3\)"):
        sampler(dist_func=lambda embeddings: embeddings)(random_matrix(5, 3), labels)


@pytest.mark.parametrize("sampler", [HardNegative, SemiHardNegative, DistanceWeighted])
def test_samplers_build_no_graph(sampler):
    recorded = []

    def observed(embeddings):
        recorded.append(torch.is_grad_enabled())
        return pdist(embeddings)

    sampler(dist_func=observed)(random_matrix(11, 3).requires_grad_(), LABELS)
    assert recorded == [False]


@each_sampler
def test_contract(make):
    sampler = make()
    assert isinstance(sampler, PairSampler)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5,\)"):
        sampler(random_matrix(4, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(4, 3, 1\)"):
        sampler(random_matrix(4, 3).unsqueeze(2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="float"):
        sampler(random_matrix(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="cpu.*meta"):
        sampler(random_matrix(4, 3), torch.zeros(4, dtype=torch.int64, device="meta"))
