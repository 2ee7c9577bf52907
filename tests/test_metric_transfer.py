"""Distillation losses that have come beside RKD: against plain loops, their invariances, their own corner cases.

The corner cases that all losses on embeddings share are in test_metric_distillation.py.
"""

import math

import pytest
import torch

from metric.loss import (PKT, ContextualSimilarity, EmbeddingRegression, Projection, RelaxedContrastive, SimilarityKL,
                         contextual_similarity_loss, embedding_regression_loss, pkt_loss, relaxed_contrastive_loss,
                         similarity_kl_loss)
from tensors import assert_float32_is_enough, random_tensor

RELATIONAL = [relaxed_contrastive_loss, pkt_loss, similarity_kl_loss]
SPACES = [embedding_regression_loss, contextual_similarity_loss]  # both embeddings have one dimension


def loop_unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length if length else 0.0 for x in row]


def loop_cosine(a, b):
    return sum(x * y for x, y in zip(loop_unit(a), loop_unit(b)))


def loop_distance(a, b):
    return math.sqrt(max(1e-12, sum((x - y) ** 2 for x, y in zip(a, b))))


def loop_softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def loop_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def loop_relaxed(student, teacher, sigma=1, delta=1):
    n, total = len(student), 0.0
    for i in range(n):
        mean = sum(loop_distance(student[i], student[j]) for j in range(n) if j != i) / n
        for j in range(n):
            if j != i:
                weight = math.exp(-loop_distance(loop_unit(teacher[i]), loop_unit(teacher[j])) ** 2 / sigma)
                distance = loop_distance(student[i], student[j]) / mean
                total += weight * distance ** 2 + (1 - weight) * max(0, delta - distance) ** 2
    return total / n


def loop_pkt(student, teacher):
    n, total = len(student), 0.0
    for i in range(n):
        rows = [[(loop_cosine(e[i], other) + 1) / 2 for other in e] for e in (student, teacher)]
        ours, theirs = ([c / sum(row) for c in row] for row in rows)
        total += sum(t * math.log((t + 1e-7) / (s + 1e-7)) for s, t in zip(ours, theirs))
    return total / n ** 2


def loop_similarity(student, teacher, temperature=1):
    rows = [[loop_softmax([loop_cosine(row, other) / temperature for other in e]) for row in e]
            for e in (student, teacher)]
    return temperature ** 2 * sum(loop_kl(t, s) for s, t in zip(*rows)) / len(student)


def loop_regression(student, teacher):
    return sum(1 - loop_cosine(s, t) for s, t in zip(student, teacher)) / len(student)


def loop_contextual(student, teacher, k=96):
    total = 0.0
    for i, (s, t) in enumerate(zip(student, teacher)):
        order = sorted(range(len(teacher)), key=lambda j: (j != i, -loop_cosine(t, teacher[j])))[:k]
        total += loop_kl(loop_softmax([loop_cosine(t, teacher[j]) / 0.01 for j in order]),
                         loop_softmax([loop_cosine(s, teacher[j]) for j in order]))
    return total / len(student)


@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("module, loop, teacher_size", [
    (RelaxedContrastive(), loop_relaxed, 5),
    (RelaxedContrastive(sigma=0.3, delta=2), lambda s, t: loop_relaxed(s, t, 0.3, 2), 5),
    (PKT(), loop_pkt, 5),
    (SimilarityKL(), loop_similarity, 5),
    (SimilarityKL(temperature=0.1), lambda s, t: loop_similarity(s, t, 0.1), 5),
    (EmbeddingRegression(), loop_regression, 3),
    (ContextualSimilarity(), loop_contextual, 3),
    (ContextualSimilarity(k=2), lambda s, t: loop_contextual(s, t, 2), 3),
], ids=lambda value: str(value) if isinstance(value, torch.nn.Module) else "")
def test_losses_equal_loops(module, loop, teacher_size, n):
    student, teacher = 2 * random_tensor(n, 3, seed=1), random_tensor(n, teacher_size, seed=2)
    expected = loop(student.tolist(), teacher.tolist())
    assert expected > 1e-6
    assert module(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    # Duplicates and a zero vector on both sides.
    for embeddings in (student, teacher):
        embeddings[-1] = embeddings[0]
    student[0] *= n > 2
    assert module(student, teacher).item() == pytest.approx(loop(student.tolist(), teacher.tolist()), rel=1e-9,
                                                            abs=1e-12)


def moved_in(function):
    """The ways to move (student, teacher) that ``function`` does not see."""
    rotation = torch.linalg.qr(random_tensor(5, 5, seed=3))[0]
    ways = [lambda s, t: (s, 7 * t), lambda s, t: (7 * s, t), lambda s, t: (s @ rotation, t @ rotation)]
    if function in RELATIONAL:
        ways += [lambda s, t: (s @ rotation, t), lambda s, t: (s, t @ rotation)]
    if function is relaxed_contrastive_loss:
        ways.append(lambda s, t: (s + 11, t))
    return ways


@pytest.mark.parametrize("function", RELATIONAL + SPACES)
def test_what_losses_do_not_see(function):
    student, teacher = random_tensor(8, 5, seed=1), random_tensor(8, 5, seed=2)
    expected = function(student, teacher).item()
    for move in moved_in(function):
        assert function(*move(student, teacher)).item() == pytest.approx(expected, rel=1e-9)
    stretched = student * torch.tensor([5.0, 1, 1, 1, 1])
    assert function(stretched, teacher).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("function", SPACES)
def test_a_space_is_the_teachers_only_if_it_is_not_turned(function):
    teacher = random_tensor(8, 5, seed=2)
    rotation = torch.linalg.qr(random_tensor(5, 5, seed=3))[0]
    assert function(teacher @ rotation, teacher).item() > function(3 * teacher, teacher).item() + 0.1
    for relational in (pkt_loss, similarity_kl_loss):
        assert relational(teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("offset", [0, 5])  # far from the origin all directions are nearly the same
@pytest.mark.parametrize("function", RELATIONAL + SPACES)
def test_float32_is_within_1e_4_of_float64(function, offset):
    teacher = offset + random_tensor(128, 512 if function in RELATIONAL else 64, seed=5).float()
    student = offset + random_tensor(128, 64, seed=3).float()
    assert_float32_is_enough(function, student, teacher)


@pytest.mark.parametrize("function", RELATIONAL + SPACES)
def test_no_more_than_n_by_n_is_held_at_once(function):
    n, size, held = 64, 256, []
    student, teacher = random_tensor(n, size, seed=1).requires_grad_(), random_tensor(n, size, seed=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        function(student, teacher).backward()
    assert max(held) <= n * size and sum(held) < 20 * n * size


def test_a_sharp_softmax_of_similarities_is_finite_and_trains():
    student, teacher = random_tensor(9, 3, seed=1, dtype=torch.float32).requires_grad_(), random_tensor(9, 5, seed=2)
    loss = similarity_kl_loss(student, teacher, 0.005)  # a cosine of less than 0.4 has the probability 0 in float32
    loss.backward()
    expected = loop_similarity(student.double().tolist(), teacher.tolist(), 0.005)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(student.grad).all()


def test_students_that_are_all_equal_lie_at_the_mean_of_their_distances():
    student, teacher = torch.full((4, 3), 0.3), random_tensor(4, 5, dtype=torch.float32)
    weight = [math.exp(-loop_distance(loop_unit(a), loop_unit(b)) ** 2)
              for i, a in enumerate(teacher.tolist()) for j, b in enumerate(teacher.tolist()) if i != j]
    assert relaxed_contrastive_loss(student, teacher).item() == pytest.approx(sum(weight) / 4 * (4 / 3) ** 2, rel=1e-5)


def test_the_k_nearest_hold_the_query_itself():
    # Rows 0 to 3 of the teacher are one point. With k = 1 only the query itself is left, in row 3, too.
    student, teacher = random_tensor(6, 3, seed=1), random_tensor(6, 3, seed=2)
    teacher[:4] = teacher[0]
    assert contextual_similarity_loss(student, teacher, k=1).item() == 0
    assert contextual_similarity_loss(student, teacher, k=6).item() == contextual_similarity_loss(
        student, teacher, k=600).item() > 0


def test_regression_trains_its_projection():
    torch.manual_seed(0)
    module = EmbeddingRegression(4, 7)
    assert type(module.projection) is Projection and [tuple(p.shape) for p in module.parameters()] == [(7, 4)]
    assert list(module.projection.state_dict()) == ["weight"] and EmbeddingRegression().projection is None
    student, teacher = random_tensor(30, 4, seed=1, dtype=torch.float32), random_tensor(4, 7, seed=2).float()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = module(student, student @ teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 < 0.5 < losses[0]


def test_gradient_of_a_projection():
    student, teacher = random_tensor(5, 3, seed=1).requires_grad_(), random_tensor(5, 4, seed=2)
    module = EmbeddingRegression(3, 4).double()
    weight = random_tensor(4, 3, seed=3).requires_grad_()

    def loss(s, w):
        return embedding_regression_loss(s @ w.t(), teacher)

    assert torch.autograd.gradcheck(loss, (student, weight))
    module.projection.weight.data.copy_(weight)
    module(student, teacher).backward()
    assert torch.allclose(module.projection.weight.grad, torch.autograd.grad(loss(student, weight), weight)[0])


def test_a_projection_is_computed_in_float32():
    projection, student = Projection(64, 32), random_tensor(8, 64, dtype=torch.bfloat16)
    expected = student.float() @ projection.weight.t()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projection(student)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("call, expected", [
    (lambda s, t: relaxed_contrastive_loss(s, t, sigma=0), "sigma > 0 and delta > 0"),
    (lambda s, t: relaxed_contrastive_loss(s, t, delta=math.nan), "sigma > 0 and delta > 0"),
    (lambda s, t: similarity_kl_loss(s, t, temperature=0), "temperature > 0"),
    (lambda s, t: contextual_similarity_loss(s, t, k=0), "k >= 1"),
    (lambda s, t: contextual_similarity_loss(s, t[:, :2]), r"\(4, 3\) and \(4, 2\)"),
    (lambda s, t: embedding_regression_loss(s, t[:, :2]), r"\(4, 3\) and \(4, 2\)"),
    (lambda s, t: EmbeddingRegression(3), "both sizes or none"),
])
def test_contract(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(torch.ones(4, 3), torch.ones(4, 3))
