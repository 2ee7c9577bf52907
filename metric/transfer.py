"""Distillation losses on embeddings that have come beside RKD.

Relaxed contrastive, PKT and similarity KL compare relations, so student and teacher may have any dimensions. Embedding
regression and contextual similarity compare the student with the teacher's own embeddings, through a `Projection` where
the dimensions differ: they make the student's space the teacher's.

In all of them the teacher is a constant (detached inside). They are computed in the student's precision, but at least
in float32. Memory is a few N x N.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from metric.contracts import checked_student_and_teacher, full_precision
from metric.distances import cosines, pdist, unit

__all__ = ["relaxed_contrastive_loss", "pkt_loss", "similarity_kl_loss", "embedding_regression_loss",
           "contextual_similarity_loss", "RelaxedContrastive", "PKT", "SimilarityKL", "EmbeddingRegression",
           "ContextualSimilarity", "Projection"]

PKT_FLOOR = 1e-7  # is added to both probabilities
# Of the softmax over the teacher's and over the student's cosines in contextual similarity.
CONTEXT_TEMPERATURE, STUDENTS_CONTEXT_TEMPERATURE = 0.01, 1


def _divergence(ours, theirs):
    """The mean over the rows of KL(theirs || ours), both given as logarithms of probabilities.

    From each term theirs - ours is taken off, which adds up to 0 in a row. The terms that are left don't cancel each
    other, so that distributions that are nearly the same, as those of an untrained network, keep their digits.
    """
    ratio = theirs - ours
    ours, theirs = ours.exp(), theirs.exp()
    surplus = torch.where(ratio < 1, ours * ratio.clamp(max=1).expm1(), theirs - ours)  # both are theirs - ours
    return (theirs * ratio - surplus).sum() / len(ours)


def _check_equal_widths(student, teacher):
    if student.shape[1] != teacher.shape[1]:
        raise ValueError("student and teacher must have the same dimension, got shapes {} and {}; a Projection takes "
                         "the student's to the teacher's".format(tuple(student.shape), tuple(teacher.shape)))


@full_precision
def relaxed_contrastive_loss(student, teacher, sigma=1, delta=1):
    """Relaxed contrastive loss (Kim et al., Embedding Transfer with Label Relaxation, CVPR 2021).

        w_ij = exp(-|t_i - t_j|^2 / sigma),  t L2-normalised
        d_ij = |s_i - s_j| / mean over all N j of |s_i - s_j|,  s not normalised
        loss = 1/N sum over i != j of w_ij d_ij^2 + (1 - w_ij) max(0, delta - d_ij)^2

    The zero |s_i - s_i| counts in the mean, and the gradient flows through it. The loss does not change when the
    student's embeddings are scaled, shifted or rotated, nor when the teacher's are scaled or rotated.

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device.
        sigma, delta: > 0.

    Returns:
        scalar.

    Corner cases: N = 1 gives 0 with a gradient of 0. Equal embeddings of the student lie 1e-6 apart (pdist's floor) and
    their pair gives no gradient; if all are equal, every d_ij is N / (N - 1).

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices; sigma or delta out of range.
    """
    teacher = checked_student_and_teacher(student, teacher)
    if not (sigma > 0 and delta > 0):
        raise ValueError("needs sigma > 0 and delta > 0, got {} and {}".format(sigma, delta))
    weight = (pdist(unit(teacher), squared=True) / -sigma).exp()  # 1 on the diagonal, where the distance is 0
    distance = pdist(student)
    mean = distance.mean(1, keepdim=True)
    distance = distance / mean.masked_fill(mean == 0, 1)
    return (weight * distance.pow(2) + (1 - weight) * F.relu(delta - distance).pow(2)).sum() / len(student)


def _pkt_probabilities(embeddings):
    similarity = ((cosines(embeddings) + 1) / 2).clamp(min=0)  # rounding may leave an antipodal pair below 0
    return similarity / similarity.sum(1, keepdim=True)


@full_precision
def pkt_loss(student, teacher):
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018).

        p_ij = c_ij / sum_k c_ik,  c_ij = (cos(e_i, e_j) + 1) / 2
        loss = mean over all N^2 (i, j) of p_T log((p_T + 1e-7) / (p_S + 1e-7))

    The diagonal counts. The mean is tiny (a row of p adds up to 1), so its usual weight is 30,000.

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device.

    Returns:
        scalar.

    Corner cases: N = 1 gives 0 with a gradient of 0. A zero vector has the cosine 0 with all, itself too, and gets no
    gradient. Equal embeddings need no exception.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    teacher = checked_student_and_teacher(student, teacher)
    ours, theirs = _pkt_probabilities(student), _pkt_probabilities(teacher)
    surplus = theirs - ours  # adds up to 0 in a row; taken off for the reason that _divergence gives
    return (theirs * (surplus / (ours + PKT_FLOOR)).log1p() - surplus).mean()


@full_precision
def similarity_kl_loss(student, teacher, temperature=1):
    """The similarity distributions of S2SD (Roth et al., Simultaneous Similarity-based Self-Distillation, ICML 2021).

        p_i  = softmax over all N j of cos(e_i, e_j) / temperature
        loss = temperature^2 / N sum_i KL(p_T,i || p_S,i)

    The diagonal counts. Their weight is 50.

    Args:
        student: N x d, teacher: N x any dimension; floating point, on one device.
        temperature: > 0.

    Returns:
        scalar.

    Corner cases: N = 1 gives 0 with a gradient of 0. A zero vector has the cosine 0 with all, itself too, and gets no
    gradient. Equal embeddings need no exception.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices; temperature out of range.
    """
    teacher = checked_student_and_teacher(student, teacher)
    if not temperature > 0:
        raise ValueError("needs temperature > 0, got {}".format(temperature))
    ours, theirs = ((cosines(e) / temperature).log_softmax(1) for e in (student, teacher))
    return temperature ** 2 * _divergence(ours, theirs)


@full_precision
def embedding_regression_loss(student, teacher):
    """The student's embedding is to point where the teacher's does.

        loss = mean over i of 1 - cos(s_i, t_i)

    It makes the student's space the teacher's, so that a student's query can search in a teacher's gallery.

    Args:
        student: N x d, teacher: N x d; floating point, on one device. A `Projection` makes equal dimensions.

    Returns:
        scalar.

    Corner cases: a zero vector has the cosine 0 with any other, and gets no gradient. N = 1 and equal embeddings need
    no exception.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    teacher = checked_student_and_teacher(student, teacher)
    _check_equal_widths(student, teacher)
    return 1 - (unit(student) * unit(teacher)).sum(1).mean()


@full_precision
def contextual_similarity_loss(student, teacher, k=96):
    """Contextual similarity distillation (Wu et al., Contextual Similarity Distillation for Asymmetric Image Retrieval,
    CVPR 2022).

        j    = the k nearest of t_i by cosine, i itself included
        loss = mean over i of KL(softmax_j(cos(t_i, t_j) / 0.01) || softmax_j(cos(s_i, t_j) / 1))

    It makes the student's space the teacher's, so that a student's query can search in a teacher's gallery.

    Args:
        student: N x d, teacher: N x d; floating point, on one device. A `Projection` makes equal dimensions.
        k: >= 1.

    Returns:
        scalar.

    Corner cases: in a batch of fewer than k all are taken. N = 1, or k = 1, gives 0 with a gradient of 0. Equally near
    ones are taken in the order of their indices, after i itself. A zero vector of the student gets no gradient.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices; k out of range.
    """
    teacher = checked_student_and_teacher(student, teacher)
    _check_equal_widths(student, teacher)
    if not k >= 1:
        raise ValueError("needs k >= 1, got {}".format(k))
    theirs = cosines(teacher)
    itself = torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
    nearest = (-theirs).masked_fill(itself, -math.inf).sort(dim=1, stable=True)[1][:, :k]
    theirs = (theirs.gather(1, nearest) / CONTEXT_TEMPERATURE).log_softmax(1)
    ours = (cosines(student, teacher).gather(1, nearest) / STUDENTS_CONTEXT_TEMPERATURE).log_softmax(1)
    return _divergence(ours, theirs)


class RelaxedContrastive(nn.Module):
    """`relaxed_contrastive_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def __init__(self, sigma=1, delta=1):
        super().__init__()
        self.sigma = sigma
        self.delta = delta

    def forward(self, student, teacher):
        return relaxed_contrastive_loss(student, teacher, self.sigma, self.delta)

    def extra_repr(self):
        return "sigma={}, delta={}".format(self.sigma, self.delta)


class PKT(nn.Module):
    """`pkt_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def forward(self, student, teacher):
        return pkt_loss(student, teacher)


class SimilarityKL(nn.Module):
    """`similarity_kl_loss`: (student N x d, teacher N x any dimension) -> scalar."""

    def __init__(self, temperature=1):
        super().__init__()
        self.temperature = temperature

    def forward(self, student, teacher):
        return similarity_kl_loss(student, teacher, self.temperature)

    def extra_repr(self):
        return "temperature={}".format(self.temperature)


class Projection(nn.Linear):
    """The linear map P from the student's space to the teacher's, without bias: N x student_size -> N x teacher_size.

    It is computed in float32 at least. Its weight, teacher_size x student_size, has to be trained with the student.
    """

    def __init__(self, student_size, teacher_size):
        super().__init__(student_size, teacher_size, bias=False)

    @full_precision
    def forward(self, student):
        return F.linear(student, self.weight.to(student.dtype))


class EmbeddingRegression(nn.Module):
    """`embedding_regression_loss` of P s and t: (student N x student_size, teacher N x teacher_size) -> scalar.

    With sizes, `projection` is P, a `Projection`; it has to be trained with the student: give `parameters()` to the
    optimiser. Without sizes it is None: there is no P, and both have one dimension.
    """

    def __init__(self, student_size=None, teacher_size=None):
        super().__init__()
        if (student_size is None) != (teacher_size is None):
            raise ValueError("needs both sizes or none, got {} and {}".format(student_size, teacher_size))
        self.projection = None if student_size is None else Projection(student_size, teacher_size)

    def forward(self, student, teacher):
        return embedding_regression_loss(student if self.projection is None else self.projection(student), teacher)


class ContextualSimilarity(nn.Module):
    """`contextual_similarity_loss`: (student N x d, teacher N x d) -> scalar."""

    def __init__(self, k=96):
        super().__init__()
        self.k = k

    def forward(self, student, teacher):
        return contextual_similarity_loss(student, teacher, self.k)

    def extra_repr(self):
        return "k={}".format(self.k)
