"""Common neighbours and linear CKA: plain loops, known answers, invariances, corner cases."""
import math

import pytest
import torch

from metric import similarity
from metric.similarity import common_neighbours, linear_cka
from tensors import random_tensor

ROTATION = torch.linalg.qr(random_tensor(6, 6, seed=9))[0]


def related(count=40, seed=0):
    """Two sets of embeddings, N x 6 and N x 9, that have something in common."""
    ours = random_tensor(count, 6, seed=seed)
    return ours, torch.cat([ours[:, :4], random_tensor(count, 5, seed=seed + 1)], 1)


def in_plain_loops(ours, theirs, k, galleries=(None, None)):
    shares = []
    for i in range(len(ours)):
        sets = []
        for rows, gallery in zip((ours, theirs), galleries):
            others = rows if gallery is None else gallery
            gaps = [(math.dist(rows[i].tolist(), others[j].tolist()), j) for j in range(len(others))
                    if not (gallery is None and i == j)]
            sets.append({j for _, j in sorted(gaps)[:k]})
        shares.append(len(sets[0] & sets[1]) / k)
    return sum(shares) / len(shares)


def by_kernels(ours, theirs):
    """CKA from the N x N matrices of products, as the paper defines it: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(ours)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    kernels = [centring @ rows @ rows.t() @ centring for rows in (ours, theirs)]

    def hsic(first, second):
        return sum(float(first[i, j]) * float(second[i, j]) for i in range(n) for j in range(n))

    return hsic(*kernels) / math.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))


def test_common_neighbours_in_plain_loops():
    ours, theirs = related()
    galleries = related(25, seed=5)
    found = common_neighbours(ours, theirs, [1, 3, 10, 39])
    assert found == pytest.approx({k: in_plain_loops(ours, theirs, k) for k in found}, abs=1e-12)
    assert 0.1 < found[3] < 0.9 and found[39] == 1
    found = common_neighbours(ours, theirs, [1, 10], *galleries)
    assert found == pytest.approx({k: in_plain_loops(ours, theirs, k, galleries) for k in found}, abs=1e-12)


def test_a_known_answer_of_common_neighbours():
    ours = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # nearest: 1, 0, 1, 2
    theirs = torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, 1.0], [0.0, 7.0]])  # nearest: 2, 2, 0, 1
    assert common_neighbours(ours, theirs, [1]) == {1: 0}
    assert common_neighbours(ours, theirs, [2]) == {2: 1}  # in both {1, 2}, {0, 2}, {0, 1}, {1, 2}
    assert common_neighbours(ours, ours.flip(0), [1]) == {1: 2 / 4}  # 1, 2, 3, 2
    assert common_neighbours(ours, theirs, []) == {}


def test_common_neighbours_do_not_change_with_scale_shift_and_rotation():
    ours, theirs = (rows.float() for rows in related())
    expected = common_neighbours(ours, theirs, [1, 5])
    for other in (ours * 1e-30, ours * 1e30, ours + 100, ours @ ROTATION.float()):
        assert common_neighbours(ours, other, [1, 5]) == {1: 1, 5: 1}
    assert common_neighbours(ours * 1e30 + 1e31, theirs * 1e-30, [1, 5]) == expected


def test_linear_cka_by_its_definition(monkeypatch):
    ours, theirs = related()
    expected = by_kernels(ours, theirs)
    assert 0.2 < expected < 0.9
    assert linear_cka(ours, theirs) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(similarity, "ROWS", 7)
    assert linear_cka(ours, theirs) == pytest.approx(expected, rel=1e-12)


def test_linear_cka_is_1_for_the_same_turned_scaled_and_shifted():
    ours, theirs = related()
    for other in (ours @ ROTATION, ours * -3e-20, ours + 1e4):
        assert linear_cka(ours, other) == pytest.approx(1, abs=1e-9)
        assert linear_cka(other, theirs) == pytest.approx(linear_cka(theirs, ours), rel=1e-9)
    assert linear_cka(torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0], [1.0], [-2.0]])) == 0


@pytest.mark.parametrize("ours", [torch.full((40, 3), 0.1), torch.zeros(40, 3), torch.full((40, 3), math.inf)],
                         ids=["equal", "zero", "infinite"])
def test_linear_cka_of_what_has_collapsed_or_burst_is_nan(ours):
    theirs = related()[1].float()
    assert math.isnan(linear_cka(ours, theirs)) and math.isnan(linear_cka(theirs, ours))
    assert math.isnan(linear_cka(theirs[:1], theirs[:1]))


@pytest.mark.parametrize("arguments, error, words", [
    ((torch.ones(4, 2), torch.ones(3, 2)), ValueError, r"the same N, got shapes \(4, 2\) and \(3, 2\)"),
    ((torch.ones(4, 2), torch.ones(4, dtype=torch.int64)), TypeError, "floating point"),
    ((torch.ones(4, 2), torch.ones(4, 2), [4]), ValueError, "k = 4 needs 1 <= k <= 3"),
    ((torch.ones(4, 2), torch.ones(4, 2), [0]), ValueError, "k = 0 needs"),
    ((torch.ones(4, 2), torch.ones(4, 2), [1], torch.ones(4, 2)), ValueError, "both galleries or none"),
    ((torch.ones(1, 2), torch.ones(1, 2), [1]), ValueError, "k = 1 needs 1 <= k <= 0"),
])
def test_what_does_not_fit_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        common_neighbours(*arguments)
    if len(arguments) == 2:
        with pytest.raises(error, match=words):
            linear_cka(*arguments)
