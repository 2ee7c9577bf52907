"""Every loss under its fixed import path: the modules by the reference's names, and the pure functions under them."""

import collections
import functools

from metric.distillation import (AttentionTransfer, FitNet, HardDarkRank, RKdAngle, RkdDistance,
                                 attention_transfer_loss, fitnet_loss, hard_darkrank_loss, rkd_angle_loss,
                                 rkd_distance_loss)
from metric.multisimilarity import MultiSimilarity, multi_similarity_loss
from metric.pml import PREFIX, LossError, PackageLoss, find_package_loss, sizes_asked_for
from metric.proxies import ProxyAnchor, proxy_anchor_loss
from metric.transfer import (PKT, ContextualSimilarity, EmbeddingRegression, Projection, RelaxedContrastive,
                             SimilarityKL, contextual_similarity_loss, embedding_regression_loss, pkt_loss,
                             relaxed_contrastive_loss, similarity_kl_loss)
from metric.triplet import ContrastiveLoss, L1Triplet, L2Triplet, contrastive_loss, triplet_loss

__all__ = ["LOSSES", "Loss", "Setting", "find_loss", "LossError", "PREFIX", "L1Triplet", "L2Triplet", "ContrastiveLoss",
           "MultiSimilarity", "ProxyAnchor", "RkdDistance", "RKdAngle", "HardDarkRank", "AttentionTransfer", "FitNet",
           "RelaxedContrastive", "PKT", "SimilarityKL", "EmbeddingRegression", "ContextualSimilarity", "Projection",
           "triplet_loss", "contrastive_loss", "multi_similarity_loss", "proxy_anchor_loss", "rkd_distance_loss",
           "rkd_angle_loss", "hard_darkrank_loss", "attention_transfer_loss", "fitnet_loss",
           "relaxed_contrastive_loss", "pkt_loss", "similarity_kl_loss", "embedding_regression_loss",
           "contextual_similarity_loss"]

Loss = collections.namedtuple("Loss", "build help needs settings")
Loss.__doc__ = """A loss of run.py --loss, called with (embeddings, labels).

build: what makes it, from ``needs`` and ``settings`` by name. help: a few words for --help.
needs: which it takes of what run.py can give: "margin" (--margin), "sampler" (of pairs, --sample), "classes" (how many;
labels are then from 0 to one less) and "embedding_size". One without "classes" needs two pictures of a class.
settings: {option of its own: ``Setting``}.
"""

Setting = collections.namedtuple("Setting", "argument default may_be_0 help")
Setting.__doc__ = """A number that a loss can be given: the argument of ``build``, its default, whether it may be 0 or
has to be above it, and what --help says."""

OF_PAIRS, OF_CLASSES = ("margin", "sampler"), ("classes", "embedding_size")

# One more loss is one row.
LOSSES = {
    "l1_triplet": Loss(L1Triplet, "triplet loss with the 1-norm", OF_PAIRS, {}),
    "l2_triplet": Loss(L2Triplet, "the same with the 2-norm", OF_PAIRS, {}),
    "contrastive": Loss(ContrastiveLoss, "contrastive loss (Hadsell et al., CVPR 2006)", OF_PAIRS, {}),
    "multi_similarity": Loss(MultiSimilarity, "multi-similarity loss (Wang et al., CVPR 2019)", (), {
        "ms_alpha": Setting("alpha", 2, False, "how much the hardest positives count above the others"),
        "ms_beta": Setting("beta", 50, False, "how much the hardest negatives count above the others"),
        "ms_base": Setting("base", 0.5, True, "the cosine to which positives and negatives are compared"),
        "ms_epsilon": Setting("epsilon", 0.1, True, "a pair counts unless it is easier by this than the hardest of "
                                                     "the other kind")}),
    "proxy_anchor": Loss(ProxyAnchor, "Proxy Anchor (Kim et al., CVPR 2020)", OF_CLASSES, {
        "proxy_alpha": Setting("alpha", 32, False, "how much the hardest pictures of a class count above the others"),
        "proxy_margin": Setting("margin", 0.1, True, "by how much the cosine with the own proxy should be above 0, "
                                                      "and with the others below")}),
}


def find_loss(name):
    """Return the ``Loss`` called ``name``, one of ``LOSSES`` or "pml/NAME".

    Raises:
        LossError: it is not there, or can't be used.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not name.startswith(PREFIX):
        raise LossError("{!r} is none of {} and {}NAME".format(name, ", ".join(LOSSES), PREFIX))
    kind = find_package_loss(name)
    return Loss(functools.partial(PackageLoss, kind), "", sizes_asked_for(kind), {})
