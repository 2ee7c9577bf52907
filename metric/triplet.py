"""Triplet and contrastive losses over sampled triplets.

The distances of all triplets are picked out of one N x N matrix: gathering the embeddings of T triplets would take
T x d of memory, and `AllPairs` gives up to N^3 triplets.
"""

import torch
from torch import nn
from torch.nn import functional as F

from metric.contracts import check_embeddings, check_same_device, full_precision
from metric.distances import cdist
from metric.pairsampler import AllPairs

__all__ = ["triplet_loss", "contrastive_loss", "L1Triplet", "L2Triplet", "ContrastiveLoss"]

# Added to every component of a difference, as torch's own triplet loss does: keeps a distance away from 0.
DIFFERENCE_OFFSET = 1e-6


def _check_triplets(embeddings, anchor_idx, pos_idx, neg_idx):
    check_embeddings(embeddings)
    for name, index in (("anchor_idx", anchor_idx), ("pos_idx", pos_idx), ("neg_idx", neg_idx)):
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64:
            raise TypeError("{} must be an int64 tensor, got {}".format(name, getattr(index, "dtype", type(index))))
        check_same_device(embeddings, index, "embeddings", name)
    shapes = [tuple(index.shape) for index in (anchor_idx, pos_idx, neg_idx)]
    if anchor_idx.dim() != 1 or len(set(shapes)) != 1:
        raise ValueError("anchor_idx, pos_idx and neg_idx must be 1-d and of one length, got shapes {}, {}, {}".format(
            *shapes))


def _triplet_distances(embeddings, anchor_idx, pos_idx, neg_idx, p):
    """|a - p + 1e-6| and |a - n + 1e-6| of every triplet."""
    distance = cdist(embeddings + DIFFERENCE_OFFSET, embeddings, p).flatten()
    row = anchor_idx * len(embeddings)
    # index_select and not indexing: on a CPU its gradient is summed in a fixed order, so that runs can be repeated.
    return distance.index_select(0, row + pos_idx), distance.index_select(0, row + neg_idx)


def _no_triplets(embeddings):
    # The sum over no rows is 0 and its gradient is 0, even where an embedding is infinite or NaN.
    return embeddings[:0].sum()


@full_precision
def triplet_loss(embeddings, anchor_idx, pos_idx, neg_idx, margin=0.2, p=2):
    """The triplet loss (FaceNet, Schroff et al., CVPR 2015, here with distances in place of their squares).

        loss = mean over the triplets of max(0, |a - p + 1e-6| - |a - n + 1e-6| + margin)

    a, p, n are the embeddings of anchor, positive and negative, and |x| is the p-norm. Triplets whose loss is 0 count
    in the mean.

    Args:
        embeddings: N x d, floating point; half and bfloat16 are computed in float32.
        anchor_idx, pos_idx, neg_idx: T indices into the rows each, int64, as a sampler gives them.
        margin: how much farther than the positive the negative should be.
        p: which norm, 1 or 2.

    Returns:
        scalar. No triplets: 0, with a gradient of 0.

    Corner cases: duplicates and zero vectors have finite gradients.

    Raises:
        TypeError, ValueError: types, shapes or devices; p is neither 1 nor 2.
    """
    _check_triplets(embeddings, anchor_idx, pos_idx, neg_idx)
    if p not in (1, 2):
        raise ValueError("p must be 1 or 2, got {!r}".format(p))
    if len(anchor_idx) == 0:
        return _no_triplets(embeddings)
    to_positive, to_negative = _triplet_distances(embeddings, anchor_idx, pos_idx, neg_idx, p)
    return F.relu(to_positive - to_negative + margin).mean()


@full_precision
def contrastive_loss(embeddings, anchor_idx, pos_idx, neg_idx, margin=0.2):
    """The contrastive loss (Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006).

        loss = mean over the 2 T pairs of T triplets of |a - p + 1e-6|^2 and max(0, margin - |a - n + 1e-6|)^2

    |x| is the Euclidean norm. A pair counts as often as it is in a triplet.

    Args, corner cases and errors: as in `triplet_loss`; negatives nearer than `margin` are pushed away.

    Returns:
        scalar. No triplets: 0, with a gradient of 0.
    """
    _check_triplets(embeddings, anchor_idx, pos_idx, neg_idx)
    if len(anchor_idx) == 0:
        return _no_triplets(embeddings)
    to_positive, to_negative = _triplet_distances(embeddings, anchor_idx, pos_idx, neg_idx, 2)
    return torch.cat([to_positive.pow(2), F.relu(margin - to_negative).pow(2)]).mean()


class _SampledLoss(nn.Module):
    """A loss over the triplets that a sampler finds in a batch.

    Args:
        margin: see the loss.
        sampler: (embeddings, labels) -> anchor_idx, pos_idx, neg_idx. Default: `AllPairs()`.
    """

    def __init__(self, margin=0.2, sampler=None):
        super().__init__()
        self.margin = margin
        self.sampler = AllPairs() if sampler is None else sampler

    def extra_repr(self):
        return "margin={}".format(self.margin)


class L1Triplet(_SampledLoss):
    """`triplet_loss` with the 1-norm: (embeddings N x d, labels N) -> scalar. No triplets: 0 with a gradient."""

    def forward(self, embeddings, labels):
        return triplet_loss(embeddings, *self.sampler(embeddings, labels), margin=self.margin, p=1)


class L2Triplet(_SampledLoss):
    """`triplet_loss` with the 2-norm: (embeddings N x d, labels N) -> scalar. No triplets: 0 with a gradient."""

    def forward(self, embeddings, labels):
        return triplet_loss(embeddings, *self.sampler(embeddings, labels), margin=self.margin, p=2)


class ContrastiveLoss(_SampledLoss):
    """`contrastive_loss`: (embeddings N x d, labels N) -> scalar. No triplets: 0 with a gradient."""

    def forward(self, embeddings, labels):
        return contrastive_loss(embeddings, *self.sampler(embeddings, labels), margin=self.margin)
