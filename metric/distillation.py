"""Distillation losses between a student and a teacher: relations (RKD), rankings, attention, hints.

In all of them the teacher is a constant (detached inside). They are computed in the student's precision, but at least
in float32.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from metric.angles import angle_loss
from metric.contracts import check_floating, checked_student_and_teacher, constant_teacher, full_precision
from metric.distances import pdist, unit

__all__ = ["rkd_distance_loss", "rkd_angle_loss", "hard_darkrank_loss", "attention_transfer_loss", "fitnet_loss",
           "RkdDistance", "RKdAngle", "HardDarkRank", "AttentionTransfer", "FitNet"]


def _over_mean_distance(embeddings):
    """Distances in units of the batch's mean distance: pdist / mu, mu the mean of the entries that are > 0."""
    distance = pdist(embeddings)
    # No distance is negative, so the sum of all is the sum of those that are > 0.
    count = (distance > 0).sum()
    mean = distance.sum() / count.clamp(min=1)
    return distance / mean.masked_fill(count == 0, 1)


@full_precision
def rkd_distance_loss(student, teacher):
    """Distance-wise relational distillation (Park et al., CVPR 2019, arXiv:1904.05068).

        loss = mean over all N^2 (i, j) of smooth-L1(d_S,ij / mu_S - d_T,ij / mu_T)

    d = pdist, mu = the mean of the entries of d that are > 0, smooth-L1 with beta = 1. The gradient flows through mu_S.
    The loss does not change when either set of embeddings is scaled, shifted or rotated.

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device.

    Returns:
        scalar.

    Corner cases: N = 1 has no distances: 0, with a gradient of 0. Equal embeddings lie 1e-6 apart (pdist's floor) and
    their pair gives no gradient; if all are equal, every distance equals mu and the ratios are 1. Memory is N^2.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    teacher = checked_student_and_teacher(student, teacher)
    return F.smooth_l1_loss(_over_mean_distance(student), _over_mean_distance(teacher))


@full_precision
def rkd_angle_loss(student, teacher, vertices=None):
    """Angle-wise relational distillation (Park et al., CVPR 2019, arXiv:1904.05068).

        u_ij = (e_j - e_i) / max(|e_j - e_i|, 1e-12)
        loss = mean over all N^3 (i, j, k) of smooth-L1(u_S,ij . u_S,ik - u_T,ij . u_T,ik)

    u_ij . u_ik is the cosine of the angle at vertex i between e_j and e_k; smooth-L1 with beta = 1. Triples that form
    no angle (i = j, i = k or j = k) count in the mean, so that the published weights keep their meaning. The loss does
    not change when either set is scaled, shifted or rotated.

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device. Memory is N^2 times a constant (on
            accelerators: a block of vertices times N (N + d)), not N^3; `metric.angles` says how.
        vertices: (first, last): sum only over the vertices i with first <= i < last, still divided by N^3. The sums of
            several processes add up to the whole loss, and so do their gradients. None for all.

    Returns:
        scalar.

    Corner cases: equal embeddings (for example one picture twice with the same crop) form an edge of length 0, and so
    does a vertex with itself: its cosine with every other edge is 0 and it gets no gradient. So N = 1 (a loss of 0) and
    embeddings that are all equal are no errors. There is no second derivative.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    teacher = checked_student_and_teacher(student, teacher)
    if vertices is None:
        return angle_loss(student, teacher)
    first, last = vertices
    if not 0 <= first <= last <= len(student):
        raise ValueError("vertices must lie between 0 and N = {}, got {}".format(len(student), tuple(vertices)))
    return angle_loss(student, teacher, first, last)


@full_precision
def hard_darkrank_loss(student, teacher, alpha=3, beta=3, permute_len=4):
    """Hard DarkRank: the likelihood of the teacher's ranking under the student (Chen et al., DarkRank, AAAI 2018).

        s    = -alpha pdist(student)^beta, each row in the order of the teacher's `permute_len` nearest others
        loss = mean over rows of -sum_i (s_i - logsumexp_{j >= i} s_j)

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device.
        alpha, beta: > 0. permute_len: >= 1.

    Returns:
        scalar.

    Corner cases: in a batch with fewer than `permute_len` others all of them are ranked, and N = 1 gives 0 with a
    gradient of 0. Equally near others keep the order of their indices.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices; alpha, beta or permute_len out of range.
    """
    teacher = checked_student_and_teacher(student, teacher)
    if not (alpha > 0 and beta > 0 and permute_len >= 1):
        raise ValueError("needs alpha > 0, beta > 0 and permute_len >= 1, got {}, {} and {}".format(
            alpha, beta, permute_len))
    n = len(student)
    length = min(permute_len, n - 1)
    itself = torch.eye(n, dtype=torch.bool, device=teacher.device)
    teacher_order = pdist(teacher).masked_fill(itself, math.inf).sort(dim=1, stable=True)[1][:, :length]
    # The diagonal is 0, where the power has no finite slope for beta < 1: so the neighbours are picked first.
    score = -alpha * pdist(student).gather(1, teacher_order).pow(beta)
    total = -score.sum()
    for i in range(length):
        total = total + score[:, i:].logsumexp(1).sum()
    return total / n


def _check_map(feature_map, name):
    check_floating(feature_map, name)
    if feature_map.dim() != 4 or feature_map.numel() == 0:
        raise ValueError("{} must be B x C x H x W and not empty, got shape {}".format(
            name, tuple(feature_map.shape)))


def _check_equal_sizes(student, teacher):
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError("student and teacher maps must have the same height and width, got shapes {} and {}".format(
            tuple(student.shape), tuple(teacher.shape)))


def _attention(feature_map):
    return unit(feature_map.pow(2).mean(1).flatten(1), dim=1)


@full_precision
def attention_transfer_loss(student_map, teacher_map):
    """Attention transfer (Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017).

        attention = flattened mean over channels of the squared map, L2-normalised
        loss      = mean of (attention_S - attention_T)^2 over B and H W

    Args:
        student_map: B x C x H x W, teacher_map: B x any channels x H x W; floating point, on one device.

    Returns:
        scalar.

    Corner cases: a map that is 0 everywhere has attention 0 and no gradient. B = 1 needs no exception.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    _check_map(student_map, "student_map")
    _check_map(teacher_map, "teacher_map")
    teacher_map = constant_teacher(student_map, teacher_map)
    _check_equal_sizes(student_map, teacher_map)
    return F.mse_loss(_attention(student_map), _attention(teacher_map))


@full_precision
def fitnet_loss(student, teacher, weight):
    """The hint loss of FitNets (Romero et al., FitNets, ICLR 2015).

        loss = mean over B, C_T, H and W of (W s - t)^2,  W a 1 x 1 convolution without bias

    Args:
        student: B x C_S x H x W maps, or B x C_S vectors; teacher: B x C_T with the same H x W.
        weight: C_T x C_S x 1 x 1, the convolution W. It has to be trained with the student.

    Returns:
        scalar.

    Corner cases: none.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    for name, value in (("student", student), ("teacher", teacher), ("weight", weight)):
        check_floating(value, name)
    shapes = tuple(student.shape), tuple(teacher.shape)
    if student.dim() not in (2, 4) or student.dim() != teacher.dim() or student.numel() == 0:
        raise ValueError("student and teacher must both be B x C x H x W or B x C, got shapes {} and {}".format(
            *shapes))
    teacher = constant_teacher(student, teacher)
    _check_equal_sizes(student, teacher)
    if tuple(weight.shape) != (teacher.shape[1], student.shape[1], 1, 1):
        raise ValueError("a weight of shape {} does not take student {} to teacher {}".format(
            tuple(weight.shape), *shapes))
    # A matrix product and not a convolution: cuDNN's convolutions round float32 to TF32 by default.
    projected = torch.matmul(weight.flatten(1), student.reshape(*student.shape[:2], -1))
    return F.mse_loss(projected, teacher.reshape(*teacher.shape[:2], -1))


class RkdDistance(nn.Module):  # spelling of the reference
    """`rkd_distance_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def forward(self, student, teacher):
        return rkd_distance_loss(student, teacher)


class RKdAngle(nn.Module):  # spelling of the reference
    """`rkd_angle_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def forward(self, student, teacher, vertices=None):
        return rkd_angle_loss(student, teacher, vertices)


class HardDarkRank(nn.Module):
    """`hard_darkrank_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def __init__(self, alpha=3, beta=3, permute_len=4):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.permute_len = permute_len

    def forward(self, student, teacher):
        return hard_darkrank_loss(student, teacher, self.alpha, self.beta, self.permute_len)

    def extra_repr(self):
        return "alpha={}, beta={}, permute_len={}".format(self.alpha, self.beta, self.permute_len)


class AttentionTransfer(nn.Module):
    """`attention_transfer_loss`: (student_map B x C x H x W, teacher_map B x any channels x H x W) -> scalar."""

    def forward(self, student_map, teacher_map):
        return attention_transfer_loss(student_map, teacher_map)


class FitNet(nn.Module):
    """`fitnet_loss` with its own W: (student B x in_feature x H x W, teacher B x out_feature x H x W) -> scalar.

    W starts as U(-0.005, 0.005). It is a parameter of this module and must be trained with the student: give
    `parameters()` to the optimiser.
    """

    def __init__(self, in_feature, out_feature):
        super().__init__()
        self.transform = nn.Conv2d(in_feature, out_feature, kernel_size=1, bias=False)
        nn.init.uniform_(self.transform.weight, -0.005, 0.005)

    def forward(self, student, teacher):
        return fitnet_loss(student, teacher, self.transform.weight)
