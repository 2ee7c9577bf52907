"""Distances between embeddings, and unit vectors.

Distances are computed from differences, component by component, and not from dot products (|a|^2 + |b|^2 - 2 a . b): in
float32 the dot products lose the digits of rows that are close together or far from the origin.

On a CPU torch's own gradient is used. On CUDA torch makes all N x M x d differences at once for it (34 GB at N = M =
4,096, d = 512), and some devices have none. So on other devices than a CPU the gradient is computed here, a block of
rows at a time.
"""

import torch

from metric.contracts import check_embeddings, full_precision

__all__ = ["cdist", "pdist", "unit", "cosines", "rows_at_a_time"]

# Entries of the largest block of differences on an accelerator: 64 MiB in float32.
DIFFERENCE_ENTRIES = 2 ** 24


def rows_at_a_time(entries):
    """How many rows a block on an accelerator has, if each row takes so many entries: as many as fit, at least 1."""
    return max(1, DIFFERENCE_ENTRIES // entries)


def _torch_cdist(a, b, p):
    return torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def cdist(a, b, p=2):
    """|a_i - b_j|_p for all rows of a (N x d) and b (M x d), p being 1 or 2: N x M.

    Corner cases: a pair at distance 0 gets the gradient 0. On other devices than a CPU there is no second derivative,
    and the gradient takes memory for N x M and for at most `DIFFERENCE_ENTRIES` numbers (or one row's M x d, if more).
    """
    return _torch_cdist(a, b, float(p)) if a.device.type == "cpu" else _Distances.apply(a, b, float(p))


class _Distances(torch.autograd.Function):
    """torch's distances with a gradient of our own.

        p = 2: d |a_i - b_j| / d a_i = (a_i - b_j) / |a_i - b_j|,   p = 1: sign(a_i - b_j),   by b_j the negative of it
    """

    @staticmethod
    def forward(ctx, a, b, p):
        distance = _torch_cdist(a, b, p)
        ctx.p = p
        ctx.save_for_backward(a, b, distance)
        return distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        a, b, distance = ctx.saved_tensors
        weight = outer if ctx.p == 1 else (outer / distance).masked_fill_(distance == 0, 0)
        gradient_a, gradient_b = torch.zeros_like(a), torch.zeros_like(b)
        step = rows_at_a_time(b.numel())
        for start in range(0, len(a), step):
            rows = slice(start, start + step)
            # Elementwise and not by a matrix product, which some devices round to TF32.
            part = a[rows].unsqueeze(1) - b.unsqueeze(0)
            if ctx.p == 1:
                part.sign_()
            part.mul_(weight[rows].unsqueeze(2))
            gradient_a[rows] = part.sum(1)
            gradient_b -= part.sum(0)
            del part  # before the next block is made, so that there is one at a time
        return gradient_a, gradient_b, None


@full_precision
def pdist(e, squared=False, eps=1e-12):
    """Euclidean distances between all rows of `e`.

        D2_ij = max(|e_i|^2 + |e_j|^2 - 2 e_i . e_j, eps),  D2_ii = 0

    Args:
        e: N x d, floating point. Half and bfloat16 are computed, and returned, as float32.
        squared: return D2 instead of its root.
        eps: floor of the off-diagonal squared distances.

    Returns:
        N x N, the diagonal exactly 0.

    Computed by `cdist`, from differences: rows that are close together, or share a large offset, keep their digits. The
    N x N x d differences are never in memory at once.

    Corner cases: rows that are equal lie sqrt(eps) apart and get no gradient from their pair; N = 1 gives [[0]].

    Raises:
        TypeError: `e` is not a floating point tensor.
        ValueError: `e` is not N x d with N, d >= 1.
    """
    check_embeddings(e, "e")
    distance = cdist(e, e).clamp(min=eps ** 0.5)
    if squared:
        distance = distance.pow(2)
    return distance.masked_fill(torch.eye(len(e), dtype=torch.bool, device=e.device), 0)


def unit(x, dim=-1, eps=1e-12):
    """x / max(|x|, eps) along `dim`, |x| being the Euclidean length.

    A zero vector stays zero and its gradient is zero. The formula alone would give it a gradient of 1 / eps: finite,
    but so large that every other gradient of the batch would be lost beside it.
    """
    squared_length = x.pow(2).sum(dim, keepdim=True)
    # The clamp comes before the root: the root's slope at 0 is infinite.
    direction = x / squared_length.clamp(min=eps ** 2).sqrt()
    return direction.masked_fill(squared_length == 0, 0)


def cosines(embeddings, others=None):
    """The cosines of all rows of `embeddings` (N x d) with all of `others` (M x d; None: with themselves): N x M.

    A zero vector has the cosine 0 with any row, itself too, and gets no gradient.
    """
    directions = unit(embeddings)
    return directions @ (directions if others is None else unit(others)).t()
