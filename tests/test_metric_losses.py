"""Multi-similarity and Proxy Anchor against plain loops, and in their corner cases."""

import math

import pytest
import torch

from metric.loss import LOSSES, MultiSimilarity, ProxyAnchor, find_loss, multi_similarity_loss, proxy_anchor_loss

LABELS = torch.tensor([3, 1, 3, 3, 1, 0, 0, 4])  # of 6 classes: one of a single picture, two of none
CLASSES = 6
CASES = {"multi_similarity": multi_similarity_loss,
         "proxy_anchor": lambda x, y, **words: proxy_anchor_loss(x, y, random_matrix(CLASSES, 3, 9).to(x), **words)}
each_loss = pytest.mark.parametrize("loss", list(CASES.values()), ids=list(CASES))


def random_matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop_cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def loop_multi_similarity(rows, labels, alpha, beta, base, epsilon):
    """Return (the loss, how many pairs there are, how many of them count)."""
    total, pairs, kept = 0, 0, 0
    for i, anchor in enumerate(rows):
        positives = [loop_cosine(anchor, row) for j, row in enumerate(rows) if j != i and labels[j] == labels[i]]
        negatives = [loop_cosine(anchor, row) for j, row in enumerate(rows) if labels[j] != labels[i]]
        if positives and negatives:
            hard_positives = [g for g in positives if g < max(negatives) + epsilon]
            hard_negatives = [g for g in negatives if g > min(positives) - epsilon]
            total += math.log(1 + sum(math.exp(-alpha * (g - base)) for g in hard_positives)) / alpha
            total += math.log(1 + sum(math.exp(beta * (g - base)) for g in hard_negatives)) / beta
            pairs += len(positives) + len(negatives)
            kept += len(hard_positives) + len(hard_negatives)
    return total / len(rows), pairs, kept


def loop_proxy_anchor(rows, labels, proxies, alpha, margin):
    attracting, repelling = [], []
    for c, proxy in enumerate(proxies):
        own = [loop_cosine(row, proxy) for row, label in zip(rows, labels) if label == c]
        others = [loop_cosine(row, proxy) for row, label in zip(rows, labels) if label != c]
        if own:
            attracting.append(math.log(1 + sum(math.exp(-alpha * (g - margin)) for g in own)))
        repelling.append(math.log(1 + sum(math.exp(alpha * (g + margin)) for g in others)))
    return sum(attracting) / len(attracting) + sum(repelling) / len(repelling)


@pytest.mark.parametrize("settings", [(2, 50, 0.5, 0.1), (3, 10, 0.2, 0.3), (0.5, 5, 0, 0)], ids=str)
def test_multi_similarity_equals_loops(settings):
    rows = random_matrix(8, 3, seed=3)
    expected, pairs, kept = loop_multi_similarity(rows.tolist(), LABELS.tolist(), *settings)
    assert 0 < kept < pairs, "the oracle should see pairs that count and pairs that don't"
    assert multi_similarity_loss(rows, LABELS, *settings).item() == pytest.approx(expected, rel=1e-12)
    assert MultiSimilarity(*settings)(rows, LABELS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("settings", [(32, 0.1), (4, 0.5), (1, 0)], ids=str)
def test_proxy_anchor_equals_loops(settings):
    rows, proxies = random_matrix(8, 3), random_matrix(CLASSES, 3, seed=1)
    expected = loop_proxy_anchor(rows.tolist(), LABELS.tolist(), proxies.tolist(), *settings)
    assert proxy_anchor_loss(rows, LABELS, proxies, *settings).item() == pytest.approx(expected, rel=1e-12)
    criterion = ProxyAnchor(CLASSES, 3, *settings).double()
    criterion.proxies.data = proxies
    assert criterion(rows, LABELS).item() == pytest.approx(expected, rel=1e-12)


def test_gradients():
    rows, proxies = random_matrix(8, 3, seed=3).requires_grad_(), random_matrix(CLASSES, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: multi_similarity_loss(x, LABELS, beta=5), (rows,))
    assert torch.autograd.gradcheck(lambda x, p: proxy_anchor_loss(x, LABELS, p, alpha=4), (rows, proxies))


@each_loss
def test_lengths_and_order_do_not_matter(loss):
    rows, order = random_matrix(8, 3), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    expected = loss(rows, LABELS).item()
    lengths = torch.linspace(0.1, 9, 8, dtype=torch.float64).unsqueeze(1)
    assert loss(rows * lengths, LABELS).item() == pytest.approx(expected, rel=1e-12)
    assert loss(rows[order], LABELS[order]).item() == pytest.approx(expected, rel=1e-12)


def test_names_of_classes_do_not_matter_to_multi_similarity():
    rows = random_matrix(8, 3)
    names = torch.tensor([70, -5, 8, 10 ** 12, 2, 3])
    assert torch.equal(multi_similarity_loss(rows, names[LABELS]), multi_similarity_loss(rows, LABELS))


@pytest.mark.parametrize("labels", [[0], [2, 2, 2], [0, 1, 2]], ids=str)
def test_multi_similarity_without_positives_or_negatives_is_0(labels):
    rows = random_matrix(len(labels), 3).requires_grad_()
    value = multi_similarity_loss(rows, torch.tensor(labels))
    value.backward()
    assert value.item() == 0 and not rows.grad.any()


@pytest.mark.parametrize("labels", [[5], [2, 2, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("classes", [6, 7])
def test_proxy_anchor_of_few_pictures_equals_loops(labels, classes):
    rows, proxies = random_matrix(len(labels), 3), random_matrix(classes, 3, seed=1)
    expected = loop_proxy_anchor(rows.tolist(), labels, proxies.tolist(), 32, 0.1)
    assert proxy_anchor_loss(rows, torch.tensor(labels), proxies).item() == pytest.approx(expected, rel=1e-12)


def test_one_class_in_all():
    rows, proxy = random_matrix(2, 3), random_matrix(1, 3, seed=1)
    expected = math.log(1 + sum(math.exp(-32 * (loop_cosine(row, proxy[0].tolist()) - 0.1)) for row in rows.tolist()))
    assert proxy_anchor_loss(rows, torch.tensor([0, 0]), proxy).item() == pytest.approx(expected, rel=1e-12)


@each_loss
def test_duplicates_and_zeros_have_finite_gradients(loss):
    rows = random_matrix(8, 3).float()
    rows[2], rows[1], rows[7] = rows[0], rows[0], 0  # of the same class, of another one, a zero vector
    rows.requires_grad_()
    value = loss(rows, LABELS)
    value.backward()
    assert 0 < value.item() < math.inf and torch.isfinite(rows.grad).all()
    assert rows.grad[0].any() and not rows.grad[7].any()


@each_loss
def test_extreme_cosines_do_not_overflow(loss):
    rows = torch.tensor([[1e4, 0, 0], [-1e4, 0, 0]] * 4)
    value = loss(rows.requires_grad_(), torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), alpha=1000)
    value.backward()
    assert math.isfinite(value.item()) and torch.isfinite(rows.grad).all()


@each_loss
def test_a_nan_reaches_the_loss(loss):
    rows = random_matrix(8, 3)
    rows[4] = math.nan
    assert torch.isnan(loss(rows, LABELS))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    rows = random_matrix(8, 3).to(dtype).requires_grad_()
    expected = loss(rows.detach().float(), LABELS)
    value = loss(rows, LABELS)
    value.backward()
    assert value.dtype == torch.float32 and torch.allclose(value, expected, rtol=1e-2)
    assert rows.grad.dtype == dtype and torch.isfinite(rows.grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(rows.detach().float(), LABELS), expected)


@each_loss
def test_contract(loss):
    rows = random_matrix(8, 3)
    with pytest.raises(ValueError, match=r"\(24,\)"):
        loss(rows.flatten(), LABELS)
    with pytest.raises(ValueError, match=r"\(8, 3\), labels \(7,\)"):
        loss(rows, LABELS[1:])
    with pytest.raises(TypeError, match="labels must be integers"):
        loss(rows, LABELS.float())
    with pytest.raises(TypeError, match="int64"):
        loss(rows.long(), LABELS)
    with pytest.raises(ValueError, match="alpha > 0"):
        loss(rows, LABELS, alpha=0)


@pytest.mark.parametrize("labels, found", [([6, 0], "0 to 6"), ([-1, 3], "-1 to 3")])
def test_a_label_without_a_proxy(labels, found):
    with pytest.raises(ValueError, match="from 0 to 5, one for each of the 6 proxies, got " + found):
        ProxyAnchor(CLASSES, 3)(random_matrix(2, 3), torch.tensor(labels))


def test_proxies_of_another_dimension():
    with pytest.raises(ValueError, match=r"one dimension, got shapes \(8, 3\) and \(6, 4\)"):
        ProxyAnchor(CLASSES, 4)(random_matrix(8, 3), LABELS)


def test_proxies_start_from_the_normal_distribution_of_fan_out():
    torch.manual_seed(0)
    proxies = ProxyAnchor(400, 50).proxies
    assert proxies.shape == (400, 50) and proxies.requires_grad and list(ProxyAnchor(4, 5).state_dict()) == ["proxies"]
    assert proxies.mean().item() == pytest.approx(0, abs=2e-3)
    assert proxies.std().item() == pytest.approx(math.sqrt(2 / 400), rel=2e-2)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_row_can_be_built_with_its_defaults(name):
    row = find_loss(name)
    sizes = {need: {"classes": CLASSES, "embedding_size": 3}[need] for need in row.needs
             if need not in ("margin", "sampler")}
    settings = {setting.argument: setting.default for setting in row.settings.values()}
    torch.manual_seed(0)
    stated = row.build(**sizes, **settings)
    torch.manual_seed(0)
    assert torch.equal(stated(random_matrix(8, 3), LABELS), row.build(**sizes)(random_matrix(8, 3), LABELS))
