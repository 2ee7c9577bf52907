"""The numbers that the reference gives: losses, gradients, sampled negatives, weights, recall; and those of terms that
have come since, from plain loops."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from metric.loss import (PKT, AttentionTransfer, ContextualSimilarity, ContrastiveLoss, EmbeddingRegression,
                         HardDarkRank, L1Triplet, L2Triplet, MultiSimilarity, ProxyAnchor, RelaxedContrastive, RKdAngle,
                         RkdDistance, SimilarityKL)
from metric.pairsampler import AllPairs, HardNegative, SemiHardNegative, distance_weights
from metric.retrieval import recall, recall_by_definition

STUDENT = torch.tensor([[math.sin(0.7 * i + 1.3 * j + 0.1 * i * j) for j in range(6)] for i in range(12)],
                       dtype=torch.float64)
TEACHER = F.normalize(torch.tensor([[math.cos(0.5 * i - 0.9 * j + 0.05 * i * j) for j in range(10)]
                                    for i in range(12)], dtype=torch.float64))
NARROW_TEACHER = F.normalize(torch.tensor([[math.cos(0.5 * i - 0.9 * j + 0.05 * i * j) for j in range(6)]
                                           for i in range(12)], dtype=torch.float64))
PROXIES = torch.tensor([[math.cos(1.1 * k + 0.6 * j + 0.3) for j in range(6)] for k in range(4)], dtype=torch.float64)
PROJECTION = torch.tensor([[math.sin(0.3 * i + 0.8 * j + 0.2) for j in range(6)] for i in range(10)],
                          dtype=torch.float64)
LABELS = torch.tensor([i // 3 for i in range(12)])

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}

ROWS = {
    "RkdDistance": (lambda s, t, y: RkdDistance()(s, t), 0.0218934405, 0.0176594664),
    "RKdAngle": (lambda s, t, y: RKdAngle()(s, t), 0.0302797778, 0.0203159955),
    "HardDarkRank(2, 3)": (lambda s, t, y: HardDarkRank(alpha=2, beta=3)(s, t), 8.3496633765, 14.7406085838),
    "HardDarkRank": (lambda s, t, y: HardDarkRank()(s, t), 12.2922220137, 22.8091281661),
    "L2Triplet": (lambda s, t, y: L2Triplet()(F.normalize(s), y), 0.1482697786, 0.1145944359),
    "L1Triplet": (lambda s, t, y: L1Triplet()(F.normalize(s), y), 0.3011491822, 0.2577308403),
    "ContrastiveLoss": (lambda s, t, y: ContrastiveLoss()(F.normalize(s), y), 0.7293635279, 0.2412160812),
    "L2Triplet hard": (lambda s, t, y: L2Triplet(sampler=HardNegative())(F.normalize(s), y),
                       0.4075965385, 0.3947841339),
    "L2Triplet semihard": (lambda s, t, y: L2Triplet(sampler=SemiHardNegative())(F.normalize(s), y),
                           0.0910287774, 0.2286253128),
    "L2Triplet raw": (lambda s, t, y: L2Triplet()(s, y), 0.2064571601, 0.1820466007),
}

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(ROWS))
def test_loss_and_gradient(name, dtype, device):
    loss_of, expected_loss, expected_norm = ROWS[name]
    student = STUDENT.to(device, dtype, copy=True).requires_grad_()
    loss = loss_of(student, TEACHER.to(device, dtype), LABELS.to(device))
    loss.backward()
    tolerance = TOLERANCE[dtype]
    assert loss.dtype == dtype and loss.dim() == 0
    assert loss.item() == pytest.approx(expected_loss, rel=tolerance, abs=tolerance)
    assert student.grad.norm().item() == pytest.approx(expected_norm, rel=tolerance, abs=tolerance)


def _projected():
    criterion = EmbeddingRegression(6, 10)
    criterion.projection.weight.data = PROJECTION.clone()
    return criterion


LATER_ROWS = {
    "RelaxedContrastive": (RelaxedContrastive(), TEACHER, 2.1079662024),
    "PKT": (PKT(), TEACHER, 0.0094768945),
    "SimilarityKL": (SimilarityKL(), TEACHER, 0.0617370519),
    "SimilarityKL(0.2)": (SimilarityKL(temperature=0.2), TEACHER, 0.0083450978),
    "EmbeddingRegression": (EmbeddingRegression(), NARROW_TEACHER, 0.8702566519),
    "EmbeddingRegression with P": (_projected(), TEACHER, 1.2914662598),
    "ContextualSimilarity(4)": (ContextualSimilarity(k=4), NARROW_TEACHER, 1.3629845848),
    "ContextualSimilarity(12)": (ContextualSimilarity(k=12), NARROW_TEACHER, 2.3687975270),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(LATER_ROWS))
def test_later_terms(name, dtype, device):
    criterion, teacher, expected = LATER_ROWS[name]
    found = copy.deepcopy(criterion).to(device, dtype)(STUDENT.to(device, dtype), teacher.to(device, dtype))
    assert found.dtype == dtype and found.dim() == 0
    assert found.item() == pytest.approx(expected, rel=0, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_for_teachers(dtype, device):
    proxy_anchor = ProxyAnchor(classes=4, embedding_size=6)
    proxy_anchor.proxies.data = PROXIES.clone()
    for criterion, expected in ((MultiSimilarity(), 0.8170484924), (proxy_anchor, 17.8949481999)):
        found = criterion.to(device, dtype)(STUDENT.to(device, dtype), LABELS.to(device))
        assert found.dtype == dtype and found.dim() == 0
        assert found.item() == pytest.approx(expected, rel=0, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_transfer(dtype):
    student = torch.sin(0.37 * torch.arange(2 * 3 * 16, dtype=torch.float64)).reshape(2, 3, 4, 4).to(dtype)
    teacher = torch.cos(0.23 * torch.arange(2 * 5 * 16, dtype=torch.float64)).reshape(2, 5, 4, 4).to(dtype)
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(0.0189715143, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sampled_negatives(dtype):
    embeddings = F.normalize(STUDENT).to(dtype)
    pairs = [(a, p) for a in range(12) for p in range(12) if a != p and a // 3 == p // 3]
    expected = {
        HardNegative: "6 6 7 7 3 3 10 10 10 10 6 6 5 5 0 0 9 9 8 8 3 3 5 5",
        SemiHardNegative: "6 10 7 7 4 3 10 7 10 11 9 11 5 4 0 0 10 2 2 5 2 2 7 5",
    }
    for sampler, negatives in expected.items():
        anchor, positive, negative = sampler()(embeddings, LABELS)
        assert list(zip(anchor.tolist(), positive.tolist())) == pairs
        assert negative.tolist() == [int(index) for index in negatives.split()]
    assert len(AllPairs()(embeddings, LABELS)[0]) == 216


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("function", [recall, recall_by_definition])
def test_recall(function, dtype):
    found = function(STUDENT.to(dtype), LABELS, [1, 2, 4, 8])
    assert found == [8 / 12, 10 / 12, 1.0, 1.0]
    assert all(type(fraction) is float for fraction in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distance_weights(dtype):
    expected = [0.0] * 5 + [0.1583817300, 0.3499638695, 0.3265385529, 0.1651158475] + [0.0] * 3
    weights = distance_weights(STUDENT.to(dtype), LABELS)
    assert weights.dtype == dtype
    assert weights[0].tolist() == pytest.approx(expected, abs=TOLERANCE[dtype])
