"""Distillation losses against plain loops, their invariances, and their corner cases."""

import functools
import math

import pytest
import torch

from metric import angles
from metric.loss import (HardDarkRank, RKdAngle, RkdDistance, attention_transfer_loss, contextual_similarity_loss,
                         embedding_regression_loss, fitnet_loss, hard_darkrank_loss, pkt_loss, relaxed_contrastive_loss,
                         rkd_angle_loss, rkd_distance_loss, similarity_kl_loss)
from tensors import assert_float32_is_enough, random_tensor

EMBEDDING_LOSSES = [rkd_distance_loss, rkd_angle_loss, hard_darkrank_loss, relaxed_contrastive_loss, pkt_loss,
                    similarity_kl_loss, embedding_regression_loss, contextual_similarity_loss]


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def loop_distances(rows):
    return [[0.0 if i == j else math.sqrt(max(1e-12, sum((x - y) ** 2 for x, y in zip(rows[i], rows[j]))))
             for j in range(len(rows))] for i in range(len(rows))]


def loop_rkd_distance(student, teacher):
    ratios = []
    for rows in (student, teacher):
        distances = [d for row in loop_distances(rows) for d in row]
        positive = [d for d in distances if d > 0]
        ratios.append([d / (sum(positive) / len(positive)) for d in distances])
    return sum(smooth_l1(s - t) for s, t in zip(*ratios)) / len(ratios[0])


def loop_cosine(rows, i, j, k):
    first = [a - b for a, b in zip(rows[j], rows[i])]
    second = [a - b for a, b in zip(rows[k], rows[i])]
    lengths = [max(1e-12, math.sqrt(sum(x * x for x in edge))) for edge in (first, second)]
    return sum(x * y for x, y in zip(first, second)) / lengths[0] / lengths[1]


def loop_rkd_angle(student, teacher):
    n = len(student)
    terms = [smooth_l1(loop_cosine(student, i, j, k) - loop_cosine(teacher, i, j, k))
             for i in range(n) for j in range(n) for k in range(n)]
    return sum(terms) / n ** 3


def loop_darkrank(student, teacher, alpha=3, beta=3, permute_len=4):
    student, teacher, total = loop_distances(student), loop_distances(teacher), 0.0
    for i in range(len(student)):
        order = sorted((j for j in range(len(student)) if j != i), key=lambda j: teacher[i][j])[:permute_len]
        scores = [-alpha * student[i][j] ** beta for j in order]
        total -= sum(s - math.log(sum(math.exp(later) for later in scores[at:])) for at, s in enumerate(scores))
    return total / len(student)


@pytest.mark.parametrize("function, loop", [(rkd_distance_loss, loop_rkd_distance), (rkd_angle_loss, loop_rkd_angle),
                                            (hard_darkrank_loss, loop_darkrank)])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_embedding_losses_equal_loops(function, loop, n):
    student, teacher = random_tensor(n, 3, seed=1), random_tensor(n, 5, seed=2)
    expected = loop(student.tolist(), teacher.tolist())
    assert function(student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_smooth_l1_is_linear_beyond_one():
    # One far outlier in the student only: some ratios of distances differ by more than beta = 1.
    student, teacher = random_tensor(9, 3, seed=1), random_tensor(9, 5, seed=2)
    student[0] += 100
    expected = loop_rkd_distance(student.tolist(), teacher.tolist())
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha, beta, permute_len", [(2, 3, 4), (0.5, 1, 1), (1, 0.5, 3), (3, 2, 6)])
def test_darkrank_equals_loops_for_other_settings(alpha, beta, permute_len):
    student, teacher = random_tensor(7, 3, seed=3), random_tensor(7, 4, seed=4)
    expected = loop_darkrank(student.tolist(), teacher.tolist(), alpha, beta, permute_len)
    found = HardDarkRank(alpha=alpha, beta=beta, permute_len=permute_len)(student, teacher)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("function", EMBEDDING_LOSSES)
def test_gradient(function):
    student, teacher = random_tensor(6, 3, seed=1).requires_grad_(), random_tensor(6, 3, seed=2)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher), (student,))


@pytest.mark.parametrize("moved", ["student", "teacher"])
@pytest.mark.parametrize("function", [RkdDistance(), RKdAngle()])
def test_rkd_ignores_scale_shift_and_rotation(function, moved):
    student, teacher = random_tensor(8, 5, seed=1), random_tensor(8, 5, seed=2)
    rotation = torch.linalg.qr(random_tensor(5, 5, seed=3))[0]
    expected = function(student, teacher).item()
    assert expected > 1e-3
    for move in (lambda e: 37 * e, lambda e: e + 11, lambda e: e @ rotation, lambda e: (0.01 * e - 3) @ rotation):
        found = function(move(student), teacher) if moved == "student" else function(student, move(teacher))
        assert found.item() == pytest.approx(expected, rel=1e-9)
    # The loss is not merely constant: a stretch along one axis changes it.
    assert function(student * torch.tensor([5.0, 1, 1, 1, 1]), teacher).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("function", [RkdDistance(), RKdAngle()])
def test_rkd_of_the_teacher_itself_is_zero(function):
    teacher = random_tensor(8, 5)
    assert function(teacher.clone(), teacher).item() == 0
    assert function(-2 * teacher + 1, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("function", EMBEDDING_LOSSES + [attention_transfer_loss])
def test_the_teacher_is_a_constant(function):
    shape = (4, 3) if function in EMBEDDING_LOSSES else (4, 3, 2, 2)
    student, teacher = random_tensor(*shape, seed=1).requires_grad_(), random_tensor(*shape, seed=2).requires_grad_()
    function(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


ANTIPODAL = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
SITUATIONS = {
    "N=1": random_tensor(1, 3),
    "N=2": random_tensor(2, 3),
    "all duplicates": torch.full((6, 3), 0.3),
    "some duplicates": random_tensor(3, 3).repeat(2, 1),
    "antipodal": ANTIPODAL,
    "zero vectors": torch.zeros(5, 3),
    "one zero vector": torch.cat([ANTIPODAL, torch.zeros(1, 3)]),
    "collinear": torch.arange(5.0).unsqueeze(1).repeat(1, 3),
}


@pytest.mark.parametrize("degenerate", ["student", "teacher", "both"])
@pytest.mark.parametrize("situation", list(SITUATIONS))
@pytest.mark.parametrize("function", EMBEDDING_LOSSES)
def test_corner_cases_are_finite(function, situation, degenerate):
    values = SITUATIONS[situation].float()
    ordinary = random_tensor(len(values), values.shape[1], seed=9, dtype=torch.float32)
    student = (ordinary if degenerate == "teacher" else values).clone().requires_grad_()
    loss = function(student, ordinary if degenerate == "student" else values)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()
    # Finite is not enough: a direction divided by 1e-12 would be finite too.
    assert student.grad.abs().max() < 1e3
    if situation == "N=1" and function is not embedding_regression_loss:  # the only one that needs no other picture
        assert loss.item() == 0 and student.grad.abs().sum() == 0


def test_duplicates_in_the_student_equal_loops():
    student, teacher = SITUATIONS["some duplicates"], random_tensor(6, 4, seed=9)
    for function, loop in ((rkd_distance_loss, loop_rkd_distance), (rkd_angle_loss, loop_rkd_angle)):
        assert function(student, teacher).item() == pytest.approx(loop(student.tolist(), teacher.tolist()), rel=1e-6)


def test_darkrank_ranks_as_many_as_there_are():
    student, teacher = random_tensor(3, 3, seed=1), random_tensor(3, 3, seed=2)
    assert torch.equal(hard_darkrank_loss(student, teacher, permute_len=4),
                       hard_darkrank_loss(student, teacher, permute_len=2))


def test_darkrank_has_a_gradient_for_powers_below_one():
    student = random_tensor(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hard_darkrank_loss(s, random_tensor(6, 3, seed=2), beta=0.5), (student,))


def test_darkrank_never_ranks_the_query_itself():
    # Row 1 duplicates row 0 in the teacher; a self that slipped into the ranking would take its place.
    teacher = torch.tensor([[0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    student = random_tensor(4, 2, seed=5)
    expected = loop_darkrank(student.tolist(), teacher.tolist(), permute_len=2)
    assert hard_darkrank_loss(student, teacher, permute_len=2).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", EMBEDDING_LOSSES + [attention_transfer_loss, fitnet_loss])
def test_half_precision_is_computed_in_float32(function, dtype):
    shape = (6, 3) if function in EMBEDDING_LOSSES else (6, 3, 2, 2)
    student, teacher = random_tensor(*shape, seed=1).to(dtype).requires_grad_(), random_tensor(*shape, seed=2).to(dtype)
    extra = (random_tensor(3, 3, 1, 1, seed=3).to(dtype),) if function is fitnet_loss else ()
    expected = function(*(x.detach().float() for x in (student, teacher) + extra))
    loss = function(student, teacher, *extra)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert student.grad.dtype == dtype and torch.isfinite(student.grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(student, teacher, *extra), expected)


def test_students_and_teachers_precision_may_differ():
    student, teacher = random_tensor(6, 3, seed=1, dtype=torch.float32), random_tensor(6, 3, seed=2)
    for function in EMBEDDING_LOSSES:
        assert function(student, teacher).dtype == torch.float32
        assert function(student, teacher.half()).dtype == torch.float32


@pytest.mark.parametrize("function", [rkd_distance_loss, rkd_angle_loss])
def test_a_batch_of_128_by_512_in_float32_is_close_to_float64(function):
    student, teacher = random_tensor(128, 64, seed=1), random_tensor(128, 512, seed=2)
    expected = function(student, teacher).item()
    assert function(student.float(), teacher.float()).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("function", EMBEDDING_LOSSES)
def test_contract_of_embeddings(function):
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 3\)"):
        function(torch.ones(4, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"student.*\(4, 3, 1\)"):
        function(torch.ones(4, 3, 1), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"teacher.*\(0, 3\)"):
        function(torch.ones(4, 3), torch.ones(0, 3))
    with pytest.raises(TypeError, match="teacher.*int64"):
        function(torch.ones(4, 3), torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="cpu.*meta"):
        function(torch.ones(4, 3), torch.ones(4, 3, device="meta"))


@pytest.mark.parametrize("setting", [{"alpha": 0}, {"beta": -1}, {"permute_len": 0}, {"alpha": math.nan}])
def test_contract_of_darkrank(setting):
    with pytest.raises(ValueError, match="alpha > 0"):
        hard_darkrank_loss(torch.ones(4, 3), torch.ones(4, 3), **setting)


WAYS = [angles._ByProducts, angles._ByDifferences]


def angle_loss_by(way, student, teacher, first=0, last=None):
    return angles._AngleLoss.apply(student, teacher, way, first, len(student) if last is None else last)


@pytest.mark.parametrize("vertices", [1, 3, 100])
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_to_the_angles_equal_loops(monkeypatch, way, vertices):
    monkeypatch.setattr(way, "vertices_at_a_time", staticmethod(lambda n, dimension: vertices))
    student, teacher = random_tensor(7, 3), random_tensor(7, 5, seed=1)
    student[4] = student[2]  # a zero edge
    student.requires_grad_()
    loss = angle_loss_by(way, student, teacher)
    assert loss.item() == pytest.approx(loop_rkd_angle(student.tolist(), teacher.tolist()), rel=1e-9)
    apart = random_tensor(6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: angle_loss_by(way, x, teacher[:6]), (apart,))
    parts = angle_loss_by(way, student, teacher, 0, 3) + angle_loss_by(way, student, teacher, 3)
    assert parts.item() == pytest.approx(loss.item(), rel=1e-12)


def nearby(kind):
    """128 student embeddings of 64 dimensions: random, shifted by 100, or in pairs that lie 1e-3 apart."""
    student = random_tensor(128, 64, seed=3)
    if kind == "shifted":
        return student + 100
    if kind == "close":
        offset = random_tensor(64, 64, seed=4)
        student[64:] = student[:64] + 1e-3 * offset / offset.norm(dim=1, keepdim=True)
    return student


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("kind", ["random", "shifted", "close"])
@pytest.mark.parametrize("function", [rkd_distance_loss, rkd_angle_loss, hard_darkrank_loss] + [
    functools.partial(angle_loss_by, way) for way in WAYS])
def test_float32_is_within_1e_4_of_float64(function, kind, unit_length):
    teacher = random_tensor(128, 512, seed=5).float()
    student = nearby(kind)
    if unit_length and kind != "shifted":
        student = student / student.norm(dim=1, keepdim=True)
    assert_float32_is_enough(function, student, teacher)


@pytest.mark.parametrize("way", WAYS)
def test_angles_hold_one_block_at_a_time(way):
    n, dimension = 1024, 512
    block = way.vertices_at_a_time(n, dimension)
    entries = block * n * (n if way is angles._ByProducts else n + dimension)
    assert 8 * entries <= 2 ** 27, "a few such blocks stay below 1 GB"
