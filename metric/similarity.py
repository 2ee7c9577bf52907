"""How alike two sets of embeddings of the same pictures are: common neighbours, linear CKA."""

import torch

from metric.contracts import check_embeddings, check_same_device, full_precision
from metric.nearest import nearest

__all__ = ["common_neighbours", "linear_cka"]

ROWS = 4096  # of the embeddings are taken at a time in linear_cka


def _check_pair(ours, theirs, name=""):
    check_embeddings(ours, "our" + name)
    check_embeddings(theirs, "their" + name)
    check_same_device(ours, theirs, "our embeddings", "theirs")
    if len(ours) != len(theirs):
        raise ValueError("both need the same N, got shapes {} and {}".format(tuple(ours.shape), tuple(theirs.shape)))


@torch.no_grad()
@full_precision
def common_neighbours(ours, theirs, K=(1, 10), our_gallery=None, their_gallery=None):
    """The mean share of common neighbours, {k: share}.

        share_k = 1 / N sum over the queries i of |N_k^S(i) and N_k^T(i)| / k

    N_k(i) is the set of the k nearest (Euclidean) to i in one set of embeddings, i itself excluded by index; their
    order does not count. 1: both networks find the same; two that know nothing of each other share k / (N - 1), or
    k / M.

    Args:
        ours: N x d, theirs: N x any dimension; the same N pictures, floating point, on one device.
        K: list of integers, each in 1 .. N - 1, or 1 .. M with galleries.
        our_gallery, their_gallery: M x d and M x the other dimension, what the queries search in; nothing is excluded
            then. None: each query searches all others of the N.

    Memory: copies of the embeddings and what `metric.nearest` takes at a time, never N x N.

    Corner cases: of equally near neighbours the first ones count. Embeddings that have collapsed to one point have no
    neighbours worth the name; their share means nothing.

    Raises:
        TypeError, ValueError: types, shapes or devices; a k out of range; one gallery without the other; embeddings
            that are not finite.
    """
    _check_pair(ours, theirs)
    if (our_gallery is None) != (their_gallery is None):
        raise ValueError("needs both galleries or none")
    if our_gallery is not None:
        _check_pair(our_gallery, their_gallery, "_gallery")
    size = len(ours) - 1 if our_gallery is None else len(our_gallery)
    for k in K:
        if not 1 <= k <= size:
            raise ValueError("k = {} needs 1 <= k <= {}, the number of others that a query searches".format(k, size))
    if not K:
        return {}
    found, shares = [nearest(*side, max(K))[1] for side in ((ours, our_gallery), (theirs, their_gallery))], {}
    for k in K:
        both = torch.cat([rows[:, :k] for rows in found], 1).sort(1)[0]
        shares[k] = int((both[:, 1:] == both[:, :-1]).sum()) / (len(ours) * k)  # each row is at most twice in a row
    return shares


def _offset(rows, origin):
    """The mean of rows, N x d, less `origin`, one of them: in float64, on the CPU."""
    return sum((part.cpu().double() - origin).sum(0) for part in rows.split(ROWS)) / len(rows)


@torch.no_grad()
def linear_cka(ours, theirs):
    """Linear centred kernel alignment (Kornblith et al., Similarity of Neural Network Representations Revisited,
    ICML 2019, arXiv:1905.00414), in its form by features:

        CKA = |Y^T X|^2 / (|X^T X| |Y^T Y|),  the columns of X and Y centred, | | the Frobenius norm

    In 0 .. 1. It is 1 where one set of embeddings is the other one turned, scaled and shifted, and does not change when
    either set is. It is high by chance where N is not much larger than the dimensions.

    Args:
        ours: N x d_s, theirs: N x d_t; the same N pictures, floating point.

    Returns:
        float. It is computed in float64 on the CPU, a block of rows at a time; memory is (d_s + d_t)^2.

    Corner cases: nan where all embeddings of a set are equal (N = 1, too), and where one is not finite.

    Raises:
        TypeError, ValueError: types, shapes (both are shown) or devices.
    """
    _check_pair(ours, theirs)
    # Measured from the first row, equal embeddings are exactly 0, whatever the rounding of the mean.
    origins = [rows[:1].cpu().double() for rows in (ours, theirs)]
    offsets = [_offset(rows, origin) for rows, origin in zip((ours, theirs), origins)]
    cross = our_square = their_square = 0
    for parts in zip(ours.split(ROWS), theirs.split(ROWS)):
        x, y = (part.cpu().double() - origin - offset for part, origin, offset in zip(parts, origins, offsets))
        cross, our_square, their_square = cross + x.t() @ y, our_square + x.t() @ x, their_square + y.t() @ y
    return float(cross.pow(2).sum() / (our_square.norm() * their_square.norm()))
