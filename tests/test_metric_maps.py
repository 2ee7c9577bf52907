"""Attention transfer and FitNet, the losses over feature maps: against plain loops, and in their corner cases."""

import math

import pytest
import torch

from metric.loss import AttentionTransfer, FitNet, attention_transfer_loss, fitnet_loss
from tensors import random_tensor


def loop_attention(maps):
    attention = []
    for image in maps:
        height, width = len(image[0]), len(image[0][0])
        energy = [sum(channel[y][x] ** 2 for channel in image) / len(image)
                  for y in range(height) for x in range(width)]
        length = math.sqrt(sum(value ** 2 for value in energy))
        attention += [value / length for value in energy]
    return attention


def loop_fitnet(student, teacher, weight):
    terms = []
    for s, t in zip(student, teacher):
        for o, out in enumerate(t):
            for y, row in enumerate(out):
                for x, target in enumerate(row):
                    terms.append((sum(weight[o][c][0][0] * s[c][y][x] for c in range(len(s))) - target) ** 2)
    return sum(terms) / len(terms)


def test_attention_transfer_equals_loops():
    student, teacher = random_tensor(2, 3, 4, 5, seed=1), random_tensor(2, 6, 4, 5, seed=2)
    pairs = list(zip(loop_attention(student.tolist()), loop_attention(teacher.tolist())))
    expected = sum((s - t) ** 2 for s, t in pairs) / len(pairs)
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_fitnet_equals_loops():
    module = FitNet(3, 4).double()
    student, teacher = random_tensor(2, 3, 2, 5, seed=1), random_tensor(2, 4, 2, 5, seed=2)
    weight = random_tensor(4, 3, 1, 1, seed=3)
    expected = loop_fitnet(student.tolist(), teacher.tolist(), weight.tolist())
    module.transform.weight.data.copy_(weight)
    assert module(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    vectors = fitnet_loss(student[:, :, 0, 0], teacher[:, :, 0, 0], weight)
    maps = fitnet_loss(student[:, :, :1, :1], teacher[:, :, :1, :1], weight)
    assert torch.equal(vectors, maps)


def test_fitnet_weights_start_small_and_train():
    torch.manual_seed(0)
    module = FitNet(50, 40)
    (weight,) = module.parameters()
    assert weight.shape == (40, 50, 1, 1)
    assert weight.abs().max() <= 0.005 and weight.max() > 0.0049 and weight.min() < -0.0049
    assert weight.std().item() == pytest.approx(0.01 / math.sqrt(12), rel=0.05)
    module(random_tensor(2, 50, 3, 3, dtype=torch.float32), random_tensor(2, 40, 3, 3, dtype=torch.float32)).backward()
    assert weight.grad.abs().sum() > 0


def test_gradient_of_maps():
    student, teacher = random_tensor(2, 3, 2, 3, seed=1).requires_grad_(), random_tensor(2, 4, 2, 3, seed=2)
    weight = random_tensor(4, 3, 1, 1, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_transfer_loss(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s, w: fitnet_loss(s, teacher, w), (student, weight))


def test_fitnets_teacher_is_a_constant():
    teacher = random_tensor(4, 3, 2, 2).requires_grad_()
    FitNet(2, 3).double()(random_tensor(4, 2, 2, 2), teacher).backward()
    assert teacher.grad is None


def test_attention_of_a_zero_map_has_no_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_transfer_loss(student, random_tensor(2, 3, 4, 4, dtype=torch.float32))
    loss.backward()
    assert loss.item() == pytest.approx(1 / 16, rel=1e-5) and student.grad.abs().sum() == 0


def test_a_large_half_precision_map_does_not_overflow():
    student = torch.full((1, 2, 2, 2), 300.0).half()
    assert attention_transfer_loss(student, student).item() == 0


def test_contract_of_maps():
    weight = torch.ones(5, 3, 1, 1)
    calls = [lambda s, t: attention_transfer_loss(s, t), lambda s, t: fitnet_loss(s, t, weight)]
    for call in calls:
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 5, 7, 7\)"):
            call(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 7, 7))
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(3, 5, 4, 4\)"):
            call(torch.ones(2, 3, 4, 4), torch.ones(3, 5, 4, 4))
        with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
            call(torch.ones(2, 3, 4), torch.ones(2, 5, 4))
        with pytest.raises(TypeError, match="int64"):
            call(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="cpu.*meta"):
            call(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"\(5, 3, 1, 1\).*\(2, 4, 4, 4\)"):
        fitnet_loss(torch.ones(2, 4, 4, 4), torch.ones(2, 5, 4, 4), weight)
