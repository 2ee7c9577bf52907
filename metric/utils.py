"""Pairwise distances and Recall@K."""

import math
import operator

import torch

from metric.contracts import check_embeddings, check_labels, full_precision

__all__ = ["pdist", "recall", "unit"]

# Entries of one queries x gallery block in `recall`. A block costs about 16 bytes an entry (its distances, their masked
# copy, the masks): near 128 MiB beside a few copies of the embeddings, however large the gallery is.
RECALL_BLOCK_ENTRIES = 2 ** 23


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

    Corner cases: rows that are equal lie sqrt(eps) apart and the clamp gives their pair the gradient 0; N = 1 gives
    [[0]]. The mean row is subtracted first: that changes neither distances nor gradients, and rows that share a
    large offset keep their digits.

    Raises:
        TypeError: `e` is not a floating point tensor.
        ValueError: `e` is not N x d with N, d >= 1.
    """
    check_embeddings(e, "e")
    centred = e - e.detach().mean(0, keepdim=True)
    products = centred @ centred.t()
    # Squared lengths from the same product: equal rows then cancel exactly, as far as the BLAS sums each entry alike.
    squared_length = products.diagonal()
    distance = (squared_length.unsqueeze(0) + squared_length.unsqueeze(1) - 2 * products).clamp(min=eps)
    if not squared:
        # Root first, diagonal after: the root of a zero has an infinite slope, and infinity times zero is no gradient.
        distance = distance.sqrt()
    return distance.masked_fill(torch.eye(len(e), dtype=torch.bool, device=e.device), 0)


def _checked_ks(K, gallery_size):
    if isinstance(K, int):
        raise TypeError("K must be a list of integers, got {!r}".format(K))
    ks = [operator.index(k) for k in K]
    for k in ks:
        if not 1 <= k <= gallery_size:
            raise ValueError("Recall@{} needs 1 <= K <= {}, the gallery size (all others of {} embeddings)".format(
                k, gallery_size, gallery_size + 1))
    return ks


def _rank_preserving(embeddings):
    """Shifts and scales the embeddings so that squares neither overflow nor cancel; which is nearer stays the same.

    Every step is exact where it can be: the scale is a power of two and the centre is one of the rows (the one nearest
    to the mean), so that embeddings on a grid, such as binary codes, keep their exact ties.
    """
    largest = embeddings.abs().max().item()
    if not math.isfinite(largest):
        bad = (~torch.isfinite(embeddings)).any(1).nonzero().flatten()
        raise ValueError("{} of {} embeddings are not finite, the first is row {}".format(
            len(bad), len(embeddings), bad[0].item()))
    limit = 1000 if embeddings.dtype == torch.float64 else 120  # 2 ** limit must be a number of that type
    exponent = max(-limit, min(limit, math.frexp(largest)[1]))
    scaled = embeddings * 2.0 ** -exponent
    centre = (scaled - scaled.mean(0, keepdim=True)).pow(2).sum(1).argmin()
    return scaled - scaled[centre]


@torch.no_grad()
@full_precision
def recall(embeddings, labels, K=(1,), block_size=None):
    """Recall@K: the share of queries with at least one same-label item among their K nearest others (Euclidean).

    Every embedding is a query, and all others are its gallery; the query itself is excluded by index, so duplicate
    images do no harm. Nothing is sorted: a query's rank is the number of negatives that are at least as close as
    its nearest positive, and it is a hit at K when fewer than K are.

    Args:
        embeddings: N x d, floating point; half and bfloat16 are computed in float32.
        labels: N integers on the same device.
        K: list of integers, each in 1 .. N - 1.
        block_size: queries at a time. Default: what keeps a block near 128 MiB; never an N x N matrix.

    Returns:
        list of floats, one fraction a K, in the order of K.

    Corner cases: a negative at exactly the distance of the nearest positive counts as closer (ties go against the
    query), so a collapsed network, all embeddings equal, scores 0 and not 1. Exact duplicates in the gallery are
    exactly equally far from a query. A query without any positive is a miss. Embeddings of any finite size are ranked
    without overflow, and a large offset that they share costs no digits.

    Raises:
        TypeError: wrong types of tensors, or K is not a list of integers.
        ValueError: shapes or devices disagree, an embedding is not finite, a K is not in 1 .. N - 1.
    """
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    n = len(embeddings)
    ks = _checked_ks(K, n - 1)
    if block_size is None:
        block_size = max(1, RECALL_BLOCK_ENTRIES // n)
    elif block_size < 1:
        raise ValueError("block_size must be at least 1, got {}".format(block_size))

    queries = _rank_preserving(embeddings)
    # A matrix product may sum two equal columns in a different order. Equal rows therefore share one column.
    gallery, column = torch.unique(queries, dim=0, return_inverse=True)
    if len(gallery) == n:
        gallery, column = queries, None
    squared_length = gallery.pow(2).sum(1)

    closer_negatives = []
    for start in range(0, n, block_size):
        query = queries[start:start + block_size]
        # |q - g|^2 less |q|^2, which is the same for the whole row and changes no rank.
        distance = torch.addmm(squared_length.unsqueeze(0), query, gallery.t(), alpha=-2)
        if column is not None:
            distance = distance.index_select(1, column)
        same = labels[start:start + block_size].unsqueeze(1) == labels.unsqueeze(0)
        negative = ~same
        positive = same
        positive.diagonal(start).fill_(False)
        # Without a positive this is infinite: all N - 1 others are negatives and closer, a miss at every K allowed.
        nearest_positive = distance.masked_fill(~positive, math.inf).min(1, keepdim=True)[0]
        closer_negatives.append(((distance <= nearest_positive) & negative).sum(1))
    closer_negatives = torch.cat(closer_negatives)

    thresholds = torch.tensor(ks, dtype=torch.int64, device=closer_negatives.device)
    hits = (closer_negatives.unsqueeze(1) < thresholds.unsqueeze(0)).sum(0)
    return [hit / n for hit in hits.tolist()]
