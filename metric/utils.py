"""Pairwise distances, and Recall@K under its fixed import path."""

import torch

from metric.contracts import check_embeddings, full_precision
from metric.retrieval import recall

__all__ = ["pdist", "recall", "unit"]

def unit(x, dim=-1, eps=1e-12):
    """x / max(|x|, eps) along `dim`, |x| being the Euclidean length.

    A zero vector stays zero and its gradient is zero: by the letter of the formula it would be 1 / eps in every
    direction, which is finite but drowns every other gradient of the batch.
    """
    squared_length = x.pow(2).sum(dim, keepdim=True)
    # The clamp stands under the root, so that the root's slope at zero is never asked for.
    direction = x / squared_length.clamp(min=eps ** 2).sqrt()
    return direction.masked_fill(squared_length == 0, 0)


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

    Computed from differences, not from the products of that formula: rows that are close together, or share a large
    offset, keep their digits. The N x N x d differences are never in memory at once on a CPU.

    Corner cases: rows that are equal lie sqrt(eps) apart and the clamp gives their pair the gradient 0; N = 1 gives
    [[0]].

    Raises:
        TypeError: `e` is not a floating point tensor.
        ValueError: `e` is not N x d with N, d >= 1.
    """
    check_embeddings(e, "e")
    distance = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=eps ** 0.5)
    if squared:
        distance = distance.pow(2)
    return distance.masked_fill(torch.eye(len(e), dtype=torch.bool, device=e.device), 0)
