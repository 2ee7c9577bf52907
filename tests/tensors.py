"""Tensors for tests of losses, and what all losses are held to."""
import pytest
import torch


def random_tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_float32_is_enough(loss_of, student, teacher):
    """In float32 a loss and its gradient are within 1e-4 of what they are in float64, from the same float32 inputs."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.float().to(dtype, copy=True).requires_grad_()
        loss = loss_of(leaf, teacher.to(dtype))
        loss.backward()
        results.append((loss.item(), leaf.grad.double()))
    (loss, gradient), (expected, expected_gradient) = results
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
