"""The multi-similarity loss, which finds its own pairs in a batch."""

import math

import torch
from torch import nn

from metric.contracts import check_embeddings, check_labels, full_precision
from metric.distances import cosines

__all__ = ["multi_similarity_loss", "MultiSimilarity"]


def log_1_plus_sum_exp(x, kept, dim):
    """log(1 + sum of exp(x) over those that are `kept`) along `dim`; 0, with a gradient of 0, where none is."""
    x = x.masked_fill(~kept, -math.inf)
    return torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x], dim).logsumexp(dim)


@full_precision
def multi_similarity_loss(embeddings, labels, alpha=2, beta=50, base=0.5, epsilon=0.1):
    """The multi-similarity loss (Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric
    Learning, CVPR 2019).

        g_ij = cos(e_i, e_j)
        P_i  = the j != i of i's class with g_ij < max over negatives k of g_ik, plus epsilon
        N_i  = the j of other classes with g_ij > min over positives k of g_ik, minus epsilon
        loss = mean over all N i of   1/alpha log(1 + sum over P_i of exp(-alpha (g_ij - base)))
                                    + 1/beta  log(1 + sum over N_i of exp(  beta (g_ij - base)))

    Args:
        embeddings: N x d, floating point; half and bfloat16 are computed in float32. Their length does not matter.
        labels: N integers, on the same device.
        alpha, beta: > 0, how much the hardest of the positives, of the negatives, counts above the others.
        base: the cosine from which on a positive counts little, a negative much. epsilon: see above.

    Returns:
        scalar.

    Corner cases: an anchor without any positive, or without any negative, keeps no pair and counts as 0; so N = 1, one
    class and a batch without positives are 0 with a gradient of 0. A duplicate is a pair like any other. A zero vector
    has the cosine 0 with all and gets no gradient. Memory is a few N x N.

    Raises:
        TypeError, ValueError: types, shapes or devices; alpha or beta out of range.
    """
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    if not (alpha > 0 and beta > 0):
        raise ValueError("needs alpha > 0 and beta > 0, got {} and {}".format(alpha, beta))
    similarity = cosines(embeddings)
    positive = labels.unsqueeze(1) == labels.unsqueeze(0)
    negative = ~positive
    positive = positive & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    with torch.no_grad():
        hardest_negative = similarity.masked_fill(~negative, -math.inf).max(1, keepdim=True)[0]
        hardest_positive = similarity.masked_fill(~positive, math.inf).min(1, keepdim=True)[0]
        # "Not easier" in place of "harder": what is not a number is kept, and reaches the loss.
        positive = positive & ~(similarity >= hardest_negative + epsilon)
        negative = negative & ~(similarity <= hardest_positive - epsilon)
    similarity = similarity - base
    return (log_1_plus_sum_exp(-alpha * similarity, positive, 1) / alpha
            + log_1_plus_sum_exp(beta * similarity, negative, 1) / beta).mean()


class MultiSimilarity(nn.Module):
    """`multi_similarity_loss`: (embeddings N x d, labels N) -> scalar."""

    def __init__(self, alpha=2, beta=50, base=0.5, epsilon=0.1):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    def forward(self, embeddings, labels):
        return multi_similarity_loss(embeddings, labels, self.alpha, self.beta, self.base, self.epsilon)

    def extra_repr(self):
        return "alpha={}, beta={}, base={}, epsilon={}".format(self.alpha, self.beta, self.base, self.epsilon)
