"""Negative samplers: which (anchor, positive, negative) triplets of a batch a triplet loss sees.

A positive pair is every ordered (anchor, positive) of one label, anchor != positive, in row-major order. A sampler
gives each pair one negative (`AllPairs`: every negative). All return three int64 index vectors of one length on the
embeddings' device, possibly empty: N = 1, one class (no negatives) and all labels different (no positives) give no
triplets, and an anchor without any negative gives none either. No gradient flows through a sampler.
"""

import math

import torch
from torch import nn

from metric.contracts import check_embeddings, check_labels, full_precision
from metric.distances import pdist, unit

__all__ = ["pos_neg_mask", "distance_weights", "PairSampler", "AllPairs", "RandomNegative", "HardNegative",
           "SemiHardNegative", "DistanceWeighted", "EligibleDistanceWeighted", "SAMPLERS", "SAMPLER_HELP"]

# Distance-weighted sampling: negatives nearer than 0.5 get the weight of 0.5 (the nearest are often noise); negatives
# at 1.4 or farther are not drawn (most give no loss).
NEAREST_DISTANCE = 0.5
FARTHEST_DISTANCE = 1.4


def pos_neg_mask(labels):
    """Which pairs of a batch share a label, and which do not.

    Args:
        labels: N integers.

    Returns:
        positive, negative: two N x N bool masks. The diagonal is in neither.

    Raises:
        TypeError: labels are not an integer tensor. ValueError: they are not 1-d.
    """
    check_labels(labels)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _distances(embeddings, dist_func):
    distance = dist_func(embeddings)
    if tuple(distance.shape) != (len(embeddings), len(embeddings)):
        raise ValueError("dist_func must give N x N distances for N = {} embeddings, got shape {}".format(
            len(embeddings), tuple(distance.shape)))
    return distance


class PairSampler(nn.Module):
    """Base of the samplers: finds the positive pairs; a subclass chooses the negatives in `choose`.

    Args:
        dist_func: N x d embeddings -> N x N distances.
    """

    def __init__(self, dist_func=pdist):
        super().__init__()
        self.dist_func = dist_func

    @torch.no_grad()
    @full_precision
    def forward(self, embeddings, labels):
        """embeddings (N x d), labels (N) -> anchor_idx, pos_idx, neg_idx. TypeError, ValueError: shapes or devices."""
        check_embeddings(embeddings)
        check_labels(labels, embeddings)
        positive, negative = pos_neg_mask(labels)
        usable = positive & negative.any(1, keepdim=True)
        anchor_idx, pos_idx = usable.nonzero().unbind(1)
        if len(anchor_idx) == 0:
            return anchor_idx, pos_idx, torch.empty_like(anchor_idx)
        return self.choose(embeddings, labels, negative, anchor_idx, pos_idx)

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        """For P >= 1 positive pairs, each anchor having a negative: the triplets' three index vectors."""
        raise NotImplementedError


class AllPairs(PairSampler):
    """Every negative of every positive pair, in index order."""

    summary = "all of them"

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        pair, neg_idx = negative[anchor_idx].nonzero().unbind(1)
        return anchor_idx[pair], pos_idx[pair], neg_idx


class RandomNegative(PairSampler):
    """One negative for each positive pair, uniformly."""

    summary = "any, at random"

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        neg_idx = torch.multinomial(negative[anchor_idx].to(embeddings.dtype), 1).squeeze(1)
        return anchor_idx, pos_idx, neg_idx


class HardNegative(PairSampler):
    """The nearest negative of each anchor; of equally near ones the first."""

    summary = "the nearest"

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        distance = _distances(embeddings, self.dist_func)
        nearest = distance.masked_fill(~negative, math.inf).argmin(1)
        return anchor_idx, pos_idx, nearest[anchor_idx]


class SemiHardNegative(PairSampler):
    """The nearest negative that is farther than the positive; where there is none, the farthest negative.

    Semi-hard negatives: FaceNet, Schroff et al., CVPR 2015. A negative exactly as far as the positive is not farther.
    """

    summary = "the nearest that is farther than the positive"

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        distance = _distances(embeddings, self.dist_func)
        to_positive = distance[anchor_idx, pos_idx].unsqueeze(1)
        to_others, is_negative = distance[anchor_idx], negative[anchor_idx]
        semi_hard = is_negative & (to_others > to_positive)
        nearest_semi_hard = to_others.masked_fill(~semi_hard, math.inf).argmin(1)
        farthest = to_others.masked_fill(~is_negative, -math.inf).argmax(1)
        return anchor_idx, pos_idx, torch.where(semi_hard.any(1), nearest_semi_hard, farthest)


@torch.no_grad()
@full_precision
def distance_weights(embeddings, labels, eligible_only=False, dist_func=pdist):
    """Probability of each negative under distance-weighted sampling: the inverse of the density of distances on the
    unit sphere (Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, arXiv:1706.07567).

        d_ij   = max(0.5, |u_i - u_j|),  u = L2-normalised embeddings,  d_ii = 1
        log w  = (2 - n) log d_ij - ((n - 3) / 2) log(1 - d_ij^2 / 4),  n the dimension
        w      = exp(log w - row maximum) [negative] [d_ij < 1.4],  divided by its row sum

    A row whose weights sum to 0 becomes uniform over its negatives.

    The quirk (`eligible_only=False`; the published networks were trained with it): the row maximum runs over ALL
    columns, positives and the anchor itself included. Subtracting it only guards against overflow, and in exact numbers
    the division by the row sum cancels it; in float32 it does not. At n = 512 one positive at 0.5 or nearer makes the
    weight of every negative farther than about 0.63 underflow to 0. If no negative is nearer than that, the anchor
    falls back to uniform negatives. Float64 embeddings are weighted in float64, which can hold much smaller weights
    before they underflow.

    Args:
        embeddings: N x n, floating point; need not be normalised. Half and bfloat16 are computed in float32.
        labels: N integers on the same device.
        eligible_only: True (`--sample distance_eligible`): the row maximum runs over the negatives nearer than 1.4
            only, so that the largest weight of a row is 1 before the division. False (`--sample distance`): the quirk.
        dist_func: N x n embeddings -> N x N distances.

    Returns:
        N x N, rows summing to 1. A row without negatives is 0.

    Corner cases: antipodal pairs (1 - d_ij^2 / 4 = 0) have the weight 0, in any dimension (with the quirk they too can
    make their row uniform); a zero vector stays zero and its distance to every unit vector is 1; embeddings that are
    not finite give uniform rows and no error here: the loss over them is not finite, and that is reported.

    Raises:
        TypeError, ValueError: shapes or devices.
    """
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    dimension = embeddings.shape[1]
    _, negative = pos_neg_mask(labels)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    distance = _distances(unit(embeddings), dist_func).masked_fill(itself, 1).clamp(min=NEAREST_DISTANCE)

    # At d_ij = 2 the second logarithm's argument is 0 or, rounded, negative. The floor changes no pair nearer than 1.4.
    cap = (1 - distance.pow(2) / 4).clamp(min=torch.finfo(distance.dtype).tiny)
    log_weight = (2 - dimension) * distance.log() - (dimension - 3) / 2 * cap.log()
    eligible = negative & (distance < FARTHEST_DISTANCE)
    if eligible_only:
        # A row with no eligible negative keeps a finite maximum, and all its weights become 0 below.
        log_weight = log_weight.masked_fill(~eligible, torch.finfo(distance.dtype).min)
    row_maximum = log_weight.max(1, keepdim=True)[0]
    weight = (log_weight - row_maximum).exp() * eligible

    total = weight.sum(1, keepdim=True)
    uniform = negative.to(weight.dtype) / negative.sum(1, keepdim=True).clamp(min=1)
    # "not > 0" and not "== 0": a row with a NaN becomes uniform as well.
    return torch.where(total > 0, weight / total, uniform)


class DistanceWeighted(PairSampler):
    """One negative for each positive pair, drawn with the probabilities of `distance_weights`.

    Args:
        dist_func: N x d embeddings -> N x N distances; it is given the L2-normalised embeddings.
        eligible_only: False keeps the quirk that the published networks were trained with: at 512 dimensions an anchor
            with a positive at 0.5 or nearer gets uniform negatives, unless a negative is nearer than about 0.63. True
            weights them as the paper means. See `distance_weights`.
    """

    summary = "by distance, as the published networks were trained"

    def __init__(self, dist_func=pdist, eligible_only=False):
        super().__init__(dist_func)
        self.eligible_only = eligible_only

    def choose(self, embeddings, labels, negative, anchor_idx, pos_idx):
        weight = distance_weights(embeddings, labels, self.eligible_only, self.dist_func)
        return anchor_idx, pos_idx, torch.multinomial(weight[anchor_idx], 1).squeeze(1)


class EligibleDistanceWeighted(DistanceWeighted):
    """`DistanceWeighted` with `eligible_only`: `--sample distance_eligible`."""

    summary = "by distance, as the sampling paper means it"

    def __init__(self, dist_func=pdist):
        super().__init__(dist_func, eligible_only=True)


# What --sample and --triplet_sample offer: name -> class, called without arguments. One more sampler is one row.
SAMPLERS = {
    "random": RandomNegative,
    "hard": HardNegative,
    "all": AllPairs,
    "semihard": SemiHardNegative,
    "distance": DistanceWeighted,
    "distance_eligible": EligibleDistanceWeighted,
}
# For --help, built from the rows above.
SAMPLER_HELP = "which negatives a pair is compared with; " + "; ".join(
    "{}: {}".format(name, sampler.summary) for name, sampler in SAMPLERS.items())
