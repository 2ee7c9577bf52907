"""The angle-wise term of RKD (Park et al., CVPR 2019, arXiv:1904.05068) in blocks of vertices, with its own gradient.

    u_ij = (e_j - e_i) / |e_j - e_i|,  C_ijk = u_ij . u_ik,  loss = mean of smooth-L1(C_S - C_T) over all N^3

The N x N matrix of one vertex's cosines is made, compared, turned into a gradient and forgotten before the next one's,
so that neither N^3 cosines nor N^2 edges of d numbers are ever in memory.

There are two ways to the same cosines. By differences: the edges of a vertex, and their products; N^3 d
multiplications, in float32. By products: all of it from the N x N products of embeddings,

    C_ijk = (G_jk - G_ij - G_ik + G_ii) / (|e_j - e_i| |e_k - e_i|),  G = E E^T

which is d times less work, but subtracts large numbers from each other: G has to be in float64. So a CPU takes the
second way, and accelerators, some of which have no float64 worth the name, take the first.
"""

import torch

__all__ = ["angle_loss"]

# Entries of a block of cosines: what a core's own cache holds, for the many passes over a block.
PRODUCT_ENTRIES = 2 ** 17
# Entries of a block of edges and cosines on an accelerator: 64 MiB each in float32.
DIFFERENCE_ENTRIES = 2 ** 24


def angle_loss(student, teacher, first=0, last=None):
    """The loss of student (N x d) against teacher (N x any dimension): two matrices of one type, on one device.

    With ``first`` and ``last`` it is the part of the mean that belongs to the vertices i, first <= i < last.
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
    """Cosines of N embeddings from their products, and the gradient, gathered block by block."""

    sum_type = torch.float64

    def __init__(self, embeddings):
        self.type = embeddings.dtype
        centred = embeddings.double()
        self.centred = centred - centred.mean(0, keepdim=True)
        self.products = self.centred @ self.centred.t()
        self.own = self.products.diagonal()
        # Not from the products: equal embeddings must lie at exactly 0.
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
        """Add the slopes by the products, given those by the cosines, B x N x N and symmetric; uses up both."""
        inverse = self.inverse[vertices]
        # An edge's length divides all cosines that it is part of.
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
    """Cosines of N embeddings from the differences of each vertex to all, and the gradient, gathered block by block."""

    def __init__(self, embeddings):
        self.sum_type = embeddings.dtype
        self.embeddings = embeddings
        self.total = torch.zeros_like(embeddings)

    @staticmethod
    def vertices_at_a_time(n, dimension):
        return max(1, DIFFERENCE_ENTRIES // (n * (n + dimension)))

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
        by_edge.sub_(edge.mul_(along)).mul_(inverse)  # only what turns an edge changes its direction
        self.total += by_edge.sum(0)
        self.total[vertices] -= by_edge.sum(1)

    def gradient(self):
        return self.total
