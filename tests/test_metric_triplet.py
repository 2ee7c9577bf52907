"""Triplet and contrastive losses against plain loops, and in their corner cases."""

import functools
import math

import pytest
import torch

from metric.loss import LOSSES, ContrastiveLoss, L1Triplet, L2Triplet, contrastive_loss, triplet_loss
from metric.pairsampler import SAMPLERS, AllPairs, HardNegative, SemiHardNegative

LABELS = torch.tensor([3, 1, 3, 3, 1, 8, 0, 0])
SAMPLED = {name: loss.build for name, loss in LOSSES.items() if "sampler" in loss.needs}
each_loss = pytest.mark.parametrize("loss", list(SAMPLED.values()), ids=list(SAMPLED))
each_sampler = pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))


def random_matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loop_norm(a, b, p):
    return sum(abs(x - y + 1e-6) ** p for x, y in zip(a, b)) ** (1 / p)


def loop_triplet(rows, triplets, margin, p):
    terms = [max(0.0, loop_norm(rows[a], rows[i], p) - loop_norm(rows[a], rows[j], p) + margin)
             for a, i, j in triplets]
    assert 0 < sum(term == 0 for term in terms) < len(terms), "the oracle should see active and inactive triplets"
    return sum(terms) / len(terms)


def loop_contrastive(rows, triplets, margin):
    terms = [loop_norm(rows[a], rows[i], 2) ** 2 for a, i, _ in triplets]
    terms += [max(0.0, margin - loop_norm(rows[a], rows[j], 2)) ** 2 for a, _, j in triplets]
    return sum(terms) / len(terms)


def random_triplets(seed, n=8, count=40):
    index = torch.randint(0, n, (3, count), generator=torch.Generator().manual_seed(seed))
    return index[0], index[1], index[2]


@pytest.mark.parametrize("margin", [0.2, 1.0])
@pytest.mark.parametrize("p", [1, 2])
def test_triplet_equals_loops(p, margin):
    embeddings, index = random_matrix(8, 3), random_triplets(1)
    expected = loop_triplet(embeddings.tolist(), torch.stack(index, 1).tolist(), margin, p)
    assert triplet_loss(embeddings, *index, margin=margin, p=p).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("margin", [0.2, 2.0])
def test_contrastive_equals_loops(margin):
    embeddings, index = random_matrix(8, 3), random_triplets(2)
    expected = loop_contrastive(embeddings.tolist(), torch.stack(index, 1).tolist(), margin)
    assert contrastive_loss(embeddings, *index, margin=margin).item() == pytest.approx(expected, rel=1e-12)


def test_the_names_of_the_command_line():
    expected = {"l1_triplet": L1Triplet, "l2_triplet": L2Triplet, "contrastive": ContrastiveLoss}
    assert {name: SAMPLED[name] for name in expected} == expected


@pytest.mark.parametrize("loss, loop", [
    (L1Triplet, functools.partial(loop_triplet, p=1)), (L2Triplet, functools.partial(loop_triplet, p=2)),
    (ContrastiveLoss, loop_contrastive)])
def test_modules_use_their_sampler_and_margin(loss, loop):
    embeddings = random_matrix(8, 3)
    expected = loop(embeddings.tolist(), torch.stack(random_triplets(3), 1).tolist(), margin=0.7)
    found = loss(margin=0.7, sampler=lambda embeddings, labels: random_triplets(3))(embeddings, LABELS)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert isinstance(loss().sampler, AllPairs) and loss().margin == 0.2


@pytest.mark.parametrize("sampler", [AllPairs, HardNegative, SemiHardNegative])
@each_loss
def test_gradient(loss, sampler):
    embeddings = random_matrix(8, 3).requires_grad_()
    module = loss(margin=0.5, sampler=sampler())
    assert torch.autograd.gradcheck(lambda x: module(x, LABELS), (embeddings,))


def test_gradient_is_the_same_every_time():
    labels = torch.arange(16).repeat(4)
    gradients = []
    for _ in range(3):
        embeddings = random_matrix(64, 32, dtype=torch.float32).requires_grad_()
        L2Triplet()(embeddings, labels).backward()
        gradients.append(embeddings.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_a_large_number_of_triplets_never_becomes_a_matrix_of_differences():
    # 2 million triplets of 256 numbers would take 2 GiB in each of three gathers; the resident set must not show it.
    resource = pytest.importorskip("resource")
    embeddings = random_matrix(128, 256, dtype=torch.float32).requires_grad_()
    index = torch.randint(0, 128, (3, 2000000), generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    triplet_loss(embeddings, index[0], index[1], index[2]).backward()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 600 * 1024


SITUATIONS = {
    "N=1": (torch.ones(1, 4), [0]),
    "one class": (random_matrix(5, 4), [2] * 5),
    "no positives": (random_matrix(5, 4), [0, 1, 2, 3, 4]),
    "all duplicates": (torch.full((6, 4), 0.3), [0, 0, 0, 1, 1, 2]),
    "large duplicates": (torch.full((6, 4), 300.0), [0, 0, 0, 1, 1, 2]),
    "antipodal": (torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]), [0, 0, 1, 1]),
    "zero vectors": (torch.zeros(4, 3), [0, 0, 1, 1]),
}
EMPTY = ("N=1", "one class", "no positives")


@pytest.mark.parametrize("situation", list(SITUATIONS))
@each_sampler
@each_loss
def test_corner_cases_are_finite_and_have_a_gradient(loss, sampler, situation):
    values, labels = SITUATIONS[situation]
    embeddings = values.float().clone().requires_grad_()
    value = loss(sampler=sampler())(embeddings, torch.tensor(labels))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(embeddings.grad).all()
    if situation in EMPTY:
        assert value.item() == 0 and embeddings.grad.abs().sum() == 0


@pytest.mark.parametrize("loss, cost", [(L1Triplet, 0.3), (L2Triplet, 0.3), (ContrastiveLoss, 0.3 ** 2 / 2)])
def test_duplicates_cost_the_margin(loss, cost):
    value = loss(margin=0.3)(torch.full((4, 3), 0.3, dtype=torch.float64), torch.tensor([0, 0, 1, 1])).item()
    assert value == pytest.approx(cost, abs=1e-5)


@each_loss
def test_no_triplets_is_zero_even_where_embeddings_are_not_finite(loss):
    embeddings = torch.tensor([[math.inf, 1.0], [math.nan, 0.0]], requires_grad=True)
    value = loss()(embeddings, torch.tensor([0, 0]))
    value.backward()
    assert value.item() == 0 and embeddings.grad.tolist() == [[0, 0], [0, 0]]


@each_sampler
@each_loss
def test_a_nan_reaches_the_loss(loss, sampler):
    embeddings = torch.full((4, 2), math.nan)
    assert torch.isnan(loss(sampler=sampler())(embeddings, torch.tensor([0, 0, 1, 1])))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    embeddings = random_matrix(8, 3).to(dtype).requires_grad_()
    expected = loss()(embeddings.detach().float(), LABELS)
    value = loss()(embeddings, LABELS)
    value.backward()
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    assert embeddings.grad.dtype == dtype and torch.isfinite(embeddings.grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss()(embeddings, LABELS), expected)


@pytest.mark.parametrize("function", [triplet_loss, contrastive_loss])
def test_contract(function):
    embeddings, (anchor, positive, negative) = random_matrix(8, 3), random_triplets(4)
    with pytest.raises(ValueError, match=r"\(40,\), \(40,\), \(39,\)"):
        function(embeddings, anchor, positive, negative[1:])
    with pytest.raises(ValueError, match=r"\(40, 1\)"):
        function(embeddings, anchor.unsqueeze(1), positive.unsqueeze(1), negative.unsqueeze(1))
    with pytest.raises(TypeError, match="pos_idx.*int32"):
        function(embeddings, anchor, positive.int(), negative)
    with pytest.raises(TypeError, match="neg_idx.*list"):
        function(embeddings, anchor, positive, negative.tolist())
    with pytest.raises(ValueError, match="cpu.*meta"):
        function(embeddings, anchor.to("meta"), positive, negative)
    with pytest.raises(ValueError, match=r"\(24,\)"):
        function(embeddings.flatten(), anchor, positive, negative)
    with pytest.raises(TypeError, match="int64"):
        function(embeddings.long(), anchor, positive, negative)


def test_the_norm_is_1_or_2():
    with pytest.raises(ValueError, match="3"):
        triplet_loss(random_matrix(8, 3), *random_triplets(4), p=3)
