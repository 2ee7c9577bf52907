"""The Proxy Anchor loss, which compares embeddings with a trained vector for each class, its proxy."""

import torch
from torch import nn

from metric.contracts import check_embeddings, check_labels, check_same_device, full_precision
from metric.distances import cosines
from metric.multisimilarity import log_1_plus_sum_exp

__all__ = ["proxy_anchor_loss", "ProxyAnchor"]


def _check_classes(labels, classes):
    # An accelerator is not asked: each step would wait for its answer.
    if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError("labels must be from 0 to {}, one for each of the {} proxies, got {} to {}".format(
            classes - 1, classes, int(labels.min()), int(labels.max())))


@full_precision
def proxy_anchor_loss(embeddings, labels, proxies, alpha=32, margin=0.1):
    """The Proxy Anchor loss (Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv:2003.13911).

        loss =   mean over the classes c in the batch of
                     log(1 + sum over the i of c     of exp(-alpha (cos(e_i, p_c) - margin)))
               + mean over all C classes c of
                     log(1 + sum over the i not of c of exp( alpha (cos(e_i, p_c) + margin)))

    Args:
        embeddings: N x d, floating point; half and bfloat16 are computed in float32. Their length does not matter.
        labels: N integers from 0 to C - 1, on the same device: rows of `proxies`.
        proxies: C x d, on the same device. Their length does not matter.
        alpha: > 0, how much the hardest of a class counts above the others. margin: see above.

    Returns:
        scalar. Its gradient reaches the embeddings and the proxies.

    Corner cases: a class without any picture in the batch is still pushed away from all of them. N = 1, one class in
    the batch, no two pictures of a class and duplicates need no exception. With C = 1 there are no negatives. A zero
    vector has the cosine 0 with all and gets no gradient. Memory is a few N x C.

    Raises:
        TypeError, ValueError: types, shapes or devices; on a CPU, a label that has no proxy; alpha out of range.
    """
    check_embeddings(embeddings)
    check_labels(labels, embeddings)
    check_embeddings(proxies, "proxies")
    check_same_device(embeddings, proxies, "embeddings", "proxies")
    if proxies.shape[1] != embeddings.shape[1]:
        raise ValueError("embeddings and proxies must have one dimension, got shapes {} and {}".format(
            tuple(embeddings.shape), tuple(proxies.shape)))
    _check_classes(labels, len(proxies))
    if not alpha > 0:
        raise ValueError("needs alpha > 0, got {}".format(alpha))
    similarity = cosines(embeddings, proxies.to(embeddings.dtype))
    positive = labels.unsqueeze(1) == torch.arange(len(proxies), device=labels.device)
    present = positive.any(0).sum()
    return (log_1_plus_sum_exp(-alpha * (similarity - margin), positive, 0).sum() / present
            + log_1_plus_sum_exp(alpha * (similarity + margin), ~positive, 0).mean())


class ProxyAnchor(nn.Module):
    """`proxy_anchor_loss`: (embeddings N x embedding_size, labels N from 0 to classes - 1) -> scalar.

    `proxies`, classes x embedding_size, starts from the normal distribution of He et al. (fan out). It has to be
    trained with the network: give `parameters()` to the optimiser, in the paper at 100 times the network's rate.
    """

    def __init__(self, classes, embedding_size, alpha=32, margin=0.1):
        super().__init__()
        self.proxies = nn.Parameter(torch.empty(classes, embedding_size))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.alpha = alpha
        self.margin = margin

    def forward(self, embeddings, labels):
        return proxy_anchor_loss(embeddings, labels, self.proxies, self.alpha, self.margin)

    def extra_repr(self):
        return "classes={}, embedding_size={}, alpha={}, margin={}".format(*self.proxies.shape, self.alpha, self.margin)
