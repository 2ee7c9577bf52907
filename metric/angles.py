"""The angle-wise term of RKD (Park et al., CVPR 2019, arXiv:1904.05068) in blocks of vertices, with its own gradient.

    u_ij = (e_j - e_i) / max(|e_j - e_i|, 1e-12),  C_ijk = u_ij . u_ik
    loss = mean of smooth-L1(C_S - C_T) over all N^3 (i, j, k)

For each block of vertices i the N x N cosines of each i are computed, compared and turned into their part of the
gradient, then dropped. So neither N^3 cosines nor N^2 edges of d numbers are ever in memory.

The cosines are computed in one of two ways. By differences: the edges of a vertex, and their dot products; N^3 d
multiplications, in float32. By products: everything from the dot products of the embeddings (the N x N Gram matrix),

    C_ijk = (G_jk - G_ij - G_ik + G_ii) / (|e_j - e_i| |e_k - e_i|),  G = E E^T

which is d times less work, but subtracts large numbers from each other: G has to be in float64. A CPU takes the
second way. Accelerators take the first, since on some of them float64 is missing or very slow.
"""

import torch

from metric.distances import rows_at_a_time

__all__ = ["angle_loss"]

# Entries of a block of cosines on a CPU. It is read and written many times, and this many fit the cache of one core.
PRODUCT_ENTRIES = 2 ** 17


def angle_loss(student, teacher, first=0, last=None):
    """The loss above, for student N x d and teacher N x any dimension, of one type and on one device: a scalar.

    ``first`` and ``last``: take only the vertices i with first <= i < last (still divided by N^3). Default: all.
    """
    return _AngleLoss.apply(student, teacher, _ByProducts if student.device.type == "cpu" else _ByDifferences, first,
                            len(student) if last is None else last)


class _AngleLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, kind, first, last):
        n = len(student)
        students, teachers = kind(student), kind(teacher)
        total = torch.zeros((), dtype=students.sum_type, device=student.device)
        step = kind.vertices_at_a_time(n, max(student.shape[1], teacher.shape[1]))
        for start in range(first, last, step):
            vertices = slice(start, min(start + step, last))
            cosines = students.cosines(vertices)
            difference = cosines - teachers.cosines(vertices)
            # Smooth-L1 with its slope w = clamp(x, -1, 1) is w (x - w / 2).
            slope = difference.clamp(-1, 1)
            total += (slope * difference.sub_(slope, alpha=0.5)).sum()
            if ctx.needs_input_grad[0]:
                students.add_gradient(vertices, cosines, slope)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(students.gradient() / n ** 3)
        return (total / n ** 3).to(student.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        gradient, = ctx.saved_tensors
        return outer * gradient, None, None, None, None


def _inverse(length):
    """1 / max(length, 1e-12), and 0 for a length of 0."""
    return length.clamp(min=1e-12).reciprocal().masked_fill_(length == 0, 0)


class _ByProducts:
    """Cosines of N embeddings from their dot products, and the sum of the gradient over blocks of vertices."""

    sum_type = torch.float64

    def __init__(self, embeddings):
        self.type = embeddings.dtype
        centred = embeddings.double()
        self.centred = centred - centred.mean(0, keepdim=True)
        self.products = self.centred @ self.centred.t()
        self.own = self.products.diagonal()
        # Not from the dot products: the distance of equal embeddings must be exactly 0.
        self.inverse = _inverse(torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist"))
        self.slope_of_products = torch.zeros_like(self.products)

    @staticmethod
    def vertices_at_a_time(n, dimension):
        return max(1, PRODUCT_ENTRIES // n ** 2)

    def cosines(self, vertices):
        to_vertex = self.products[vertices]
        numerator = self.products.unsqueeze(0) - to_vertex.unsqueeze(2)
        numerator -= (to_vertex - self.own[vertices].unsqueeze(1)).unsqueeze(1)
        inverse = self.inverse[vertices]
        return numerator.to(self.type).mul_(inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))

    def add_gradient(self, vertices, cosines, slope):
        """Add this block's part of the slopes by the dot products G.

        Args:
            cosines: as computed. slope: of the loss by each of them. Both B x N x N, symmetric; both are overwritten.
        """
        inverse = self.inverse[vertices]
        # Every cosine that an edge is part of is divided by the edge's length.
        by_own_length = (cosines.mul_(slope).sum(2) * inverse * inverse).double()
        by_numerator = slope.mul_(inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))
        by_edge = by_numerator.sum(2).double() - by_own_length
        total = self.slope_of_products
        total += by_numerator.sum(0)
        total.diagonal().sub_(by_own_length.sum(0))
        total[vertices] -= 2 * by_edge
        total.diagonal()[vertices] += by_edge.sum(1)

    def gradient(self):
        slope = self.slope_of_products
        return ((slope + slope.t()) @ self.centred).to(self.type)


class _ByDifferences:
    """Cosines of N embeddings from the differences of each vertex to all, and the sum of the gradient over blocks."""

    def __init__(self, embeddings):
        self.sum_type = embeddings.dtype
        self.embeddings = embeddings
        self.total = torch.zeros_like(embeddings)

    @staticmethod
    def vertices_at_a_time(n, dimension):
        return rows_at_a_time(n * (n + dimension))

    def _edges(self, vertices):
        edge = self.embeddings.unsqueeze(0) - self.embeddings[vertices].unsqueeze(1)
        inverse = _inverse(edge.pow(2).sum(2, keepdim=True).sqrt())
        return edge.mul_(inverse), inverse

    def cosines(self, vertices):
        edge, _ = self._edges(vertices)
        return torch.bmm(edge, edge.transpose(1, 2))

    def add_gradient(self, vertices, cosines, slope):
        edge, inverse = self._edges(vertices)
        by_edge = 2 * torch.bmm(slope, edge)
        along = (by_edge * edge).sum(2, keepdim=True)
        by_edge.sub_(edge.mul_(along)).mul_(inverse)  # a change along an edge doesn't change its direction
        self.total += by_edge.sum(0)
        self.total[vertices] -= by_edge.sum(1)

    def gradient(self):
        return self.total
