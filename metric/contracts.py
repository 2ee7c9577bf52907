"""The checks of arguments and the precision rule that all losses, samplers and measures use."""

import contextlib
import functools

import torch

__all__ = ["full_precision", "autocast_disabled", "check_floating", "check_embeddings", "check_labels",
           "check_same_device", "constant_teacher", "checked_student_and_teacher"]


def autocast_disabled(device_type):
    """A context in which autocast is off for `device_type`; a no-op where autocast does not know that type."""
    try:
        return torch.autocast(device_type, enabled=False)
    except (RuntimeError, ValueError, AssertionError):
        return contextlib.nullcontext()


def _promoted(value):
    # Narrower than 32 bits: float16, bfloat16, and the 8-bit types of newer versions of torch.
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() < 4:
        return value.float()
    return value


def full_precision(function):
    """Decorator: tensor arguments narrower than float32 become float32, and autocast is off inside.

    float32 stays float32 and float64 stays float64. A network may run under autocast, but not its losses: a distance is
    a small difference of large numbers, and half precision has too few digits for it.
    """
    @functools.wraps(function)
    def in_full_precision(*args, **kwargs):
        args = [_promoted(value) for value in args]
        kwargs = {name: _promoted(value) for name, value in kwargs.items()}
        tensors = [value for value in args + list(kwargs.values()) if isinstance(value, torch.Tensor)]
        with autocast_disabled(tensors[0].device.type) if tensors else contextlib.nullcontext():
            return function(*args, **kwargs)
    return in_full_precision


def check_floating(tensor, name):
    """TypeError unless `tensor` is a floating point tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError("{} must be a torch.Tensor, got {}".format(name, type(tensor).__name__))
    if not tensor.is_floating_point():
        raise TypeError("{} must be floating point, got {} of shape {}".format(
            name, tensor.dtype, tuple(tensor.shape)))


def check_embeddings(embeddings, name="embeddings"):
    """TypeError or ValueError unless `embeddings` is a floating point N x d matrix with N, d >= 1."""
    check_floating(embeddings, name)
    if embeddings.dim() != 2 or embeddings.numel() == 0:
        raise ValueError("{} must be N x d with N, d >= 1, got shape {}".format(name, tuple(embeddings.shape)))


def check_labels(labels, embeddings=None):
    """TypeError or ValueError unless `labels` is a 1-d integer tensor: one per row of `embeddings`, on its device."""
    if not isinstance(labels, torch.Tensor):
        raise TypeError("labels must be a torch.Tensor, got {}".format(type(labels).__name__))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError("labels must be integers, got {}".format(labels.dtype))
    if labels.dim() != 1:
        raise ValueError("labels must be 1-d, got shape {}".format(tuple(labels.shape)))
    if embeddings is None:
        return
    if labels.shape[0] != embeddings.shape[0]:
        raise ValueError("needs one label per row: embeddings have shape {}, labels {}".format(
            tuple(embeddings.shape), tuple(labels.shape)))
    check_same_device(embeddings, labels, "embeddings", "labels")


def check_same_device(first, second, first_name, second_name):
    """ValueError unless both tensors are on one device."""
    if first.device != second.device:
        raise ValueError("{} are on {}, {} on {}".format(first_name, first.device, second_name, second.device))


def constant_teacher(student, teacher):
    """Return the teacher's outputs, detached and in the student's precision. ValueError unless devices and N agree."""
    check_same_device(student, teacher, "student's outputs", "teacher's")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError("student and teacher must have the same N, got shapes {} and {}".format(
            tuple(student.shape), tuple(teacher.shape)))
    return teacher.detach().to(student.dtype)


def checked_student_and_teacher(student, teacher):
    """Return the `constant_teacher` of embeddings; TypeError or ValueError unless both are such, N x any dimension."""
    check_embeddings(student, "student")
    check_embeddings(teacher, "teacher")
    return constant_teacher(student, teacher)
