"""Distances, their gradients on a CPU and on accelerators, and unit vectors."""

import math

import pytest
import torch

from metric import distances, triplet
from metric.distances import cdist, pdist, unit
from metric.loss import contrastive_loss, hard_darkrank_loss, rkd_distance_loss, triplet_loss


def random_matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_accelerators(a, b, p=2):
    """`cdist` as on other devices than a CPU."""
    return distances._Distances.apply(a, b, float(p))


def gradients(distance, a, b, p, outer):
    """The gradients of a and of b of sum(outer * distance(a, b))."""
    a, b = (x.clone().requires_grad_() for x in (a, b))
    (distance(a, b, p) * outer).sum().backward()
    return a.grad, b.grad


def loop_distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def loop_gradients(a, b, p, outer):
    of_a, of_b = ([[0.0] * len(row) for row in rows] for rows in (a, b))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            length = loop_distance(x, y)
            for k, difference in enumerate(u - v for u, v in zip(x, y)):
                if length > 0:
                    slope = difference / length if p == 2 else (difference > 0) - (difference < 0)
                    of_a[i][k] += outer[i][j] * slope
                    of_b[j][k] -= outer[i][j] * slope
    return of_a, of_b


@pytest.mark.parametrize("entries", [1, 30, 10 ** 6], ids=["a row a block", "2 rows a block", "one block"])
@pytest.mark.parametrize("p", [1, 2])
def test_gradients_on_accelerators_equal_loops(monkeypatch, p, entries):
    monkeypatch.setattr(distances, "DIFFERENCE_ENTRIES", entries)
    a, b, outer = random_matrix(7, 3), random_matrix(5, 3, seed=1), random_matrix(7, 5, seed=2)
    b[3] = a[2]  # a pair at distance 0
    found = gradients(on_accelerators, a, b, p, outer)
    for one, expected in zip(found, loop_gradients(a.tolist(), b.tolist(), p, outer.tolist())):
        assert torch.allclose(one, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    for one, expected in zip(found, gradients(cdist, a, b, p, outer)):
        assert torch.allclose(one, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(on_accelerators(a, b, p), cdist(a, b, p))
    apart = a.clone().requires_grad_(), random_matrix(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: on_accelerators(x, y, p), apart)


@pytest.mark.parametrize("kind", ["random", "shifted by 100", "pairs 1e-3 apart"])
@pytest.mark.parametrize("p", [1, 2])
def test_gradients_on_accelerators_are_exact_in_float32(p, kind):
    e = random_matrix(128, 64)
    if kind == "shifted by 100":
        e += 100
    elif kind == "pairs 1e-3 apart":
        offset = random_matrix(64, 64, seed=1)
        e[64:] = e[:64] + 1e-3 * offset / offset.norm(dim=1, keepdim=True)
    e, outer = e.float(), random_matrix(128, 128, seed=2, dtype=torch.float32)
    found = gradients(on_accelerators, e, e, p, outer)
    expected = gradients(cdist, e.double(), e.double(), p, outer.double())
    for one, exact in zip(found, expected):
        assert (one - exact).norm() < 1e-5 * exact.norm()
        assert (one - exact).abs().max() < 1e-4


def test_duplicates_on_accelerators_have_no_gradient():
    e, outer = torch.full((4, 3), 0.1), torch.ones(4, 4)
    for p in (1, 2):
        assert all(torch.equal(one, torch.zeros(4, 3)) for one in gradients(on_accelerators, e, e, p, outer))


def test_a_second_derivative_on_accelerators_is_an_error():
    e = random_matrix(4, 3).requires_grad_()
    gradient, = torch.autograd.grad(on_accelerators(e, e.detach()).pow(2).sum(), e, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


INDEX = torch.randint(0, 9, (3, 40), generator=torch.Generator().manual_seed(3))
LOSSES_OVER_DISTANCES = {
    "rkd_distance_loss": lambda e: rkd_distance_loss(e, random_matrix(len(e), 5, seed=4).to(e.device)),
    "hard_darkrank_loss": lambda e: hard_darkrank_loss(e, random_matrix(len(e), 5, seed=4).to(e.device)),
    "triplet_loss, p = 1": lambda e: triplet_loss(e, *INDEX.to(e.device), p=1),
    "triplet_loss, p = 2": lambda e: triplet_loss(e, *INDEX.to(e.device)),
    "contrastive_loss": lambda e: contrastive_loss(e, *INDEX.to(e.device), margin=3),
}
each_loss_over_distances = pytest.mark.parametrize("loss", list(LOSSES_OVER_DISTANCES.values()),
                                                   ids=list(LOSSES_OVER_DISTANCES))


@each_loss_over_distances
def test_losses_on_accelerators_are_those_of_the_cpu(monkeypatch, loss):
    found = []
    for _ in range(2):
        e = random_matrix(9, 4).requires_grad_()
        value = loss(e)
        value.backward()
        found.append((value.detach(), e.grad))
        for module in (distances, triplet):
            monkeypatch.setattr(module, "cdist", on_accelerators)
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].abs().max() > 1e-3
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


@each_loss_over_distances
def test_no_loss_on_accelerators_makes_all_differences_at_once(loss):
    """The meta device computes shapes only: a training step at N = 1,024, d = 512 shows the size of all its tensors."""
    dispatch = pytest.importorskip("torch.utils._python_dispatch")
    if not hasattr(dispatch, "TorchDispatchMode"):
        pytest.skip("this torch has no TorchDispatchMode")
    sizes, operations = [], set()

    class Recorded(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            operations.add(str(function))
            sizes.extend(x.numel() for x in (result if isinstance(result, tuple) else (result,))
                         if isinstance(x, torch.Tensor))
            return result

    e = torch.empty(1024, 512, device="meta", requires_grad=True)
    with Recorded():
        loss(e).backward()
    assert max(sizes) == distances.DIFFERENCE_ENTRIES < 1024 * 1024 * 512
    assert not any("_cdist_backward" in operation for operation in operations), "torch's makes N x N x d inside"


@pytest.mark.parametrize("squared", [False, True])
def test_pdist_equals_loops(squared):
    e = random_matrix(7, 4)
    rows = e.tolist()
    expected = [[loop_distance(a, b) ** (2 if squared else 1) for b in rows] for a in rows]
    assert torch.allclose(pdist(e, squared=squared), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_pdist_gradient(squared):
    e = random_matrix(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pdist(x, squared=squared), (e,))


def test_pdist_of_duplicates_is_the_floor_without_gradient():
    e = torch.tensor([[0.1, 0.7], [0.1, 0.7], [0.1, 0.7]], requires_grad=True)
    distance = pdist(e)
    distance.sum().backward()
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(distance.diagonal(), torch.zeros(3))
    assert torch.allclose(distance[off_diagonal], torch.tensor(1e-6), rtol=1e-5, atol=0)
    assert torch.equal(e.grad, torch.zeros(3, 2))
    assert pdist(e, squared=True, eps=1e-4)[0, 1].item() == pytest.approx(1e-4)


def test_pdist_keeps_its_digits_under_a_shared_offset():
    e = random_matrix(20, 16, dtype=torch.float32) + 1000
    exact = torch.cdist(e.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert (pdist(e).double() - exact).abs().max().item() < 1e-5


def test_pdist_of_one_row():
    e = torch.ones(1, 3, requires_grad=True)
    pdist(e).sum().backward()
    assert pdist(e).tolist() == [[0.0]] and e.grad.tolist() == [[0.0] * 3]


@pytest.mark.parametrize("bad, error, shown", [
    (torch.zeros(3), ValueError, r"\(3,\)"),
    (torch.zeros(2, 3, 4), ValueError, r"\(2, 3, 4\)"),
    (torch.zeros(0, 3), ValueError, r"\(0, 3\)"),
    (torch.zeros(2, 3, dtype=torch.int64), TypeError, "int64"),
    ([[1.0]], TypeError, "list"),
])
def test_pdist_contract(bad, error, shown):
    with pytest.raises(error, match=shown):
        pdist(bad)


def test_unit_of_a_zero_vector_is_zero_without_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    direction = unit(x)
    direction.sum().backward()
    assert torch.allclose(direction, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert x.grad[1].tolist() == [0.0, 0.0] and x.grad[0].abs().sum() > 0
