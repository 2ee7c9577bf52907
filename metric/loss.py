"""Every loss under its fixed import path: the modules by the reference's names, and the pure functions under them."""

from metric.distillation import (AttentionTransfer, FitNet, HardDarkRank, RKdAngle, RkdDistance,
                                 attention_transfer_loss, fitnet_loss, hard_darkrank_loss, rkd_angle_loss,
                                 rkd_distance_loss)
from metric.transfer import (PKT, ContextualSimilarity, EmbeddingRegression, Projection, RelaxedContrastive,
                             SimilarityKL, contextual_similarity_loss, embedding_regression_loss, pkt_loss,
                             relaxed_contrastive_loss, similarity_kl_loss)
from metric.triplet import ContrastiveLoss, L1Triplet, L2Triplet, contrastive_loss, triplet_loss

__all__ = ["LOSSES", "L1Triplet", "L2Triplet", "ContrastiveLoss", "RkdDistance", "RKdAngle", "HardDarkRank",
           "AttentionTransfer", "FitNet", "RelaxedContrastive", "PKT", "SimilarityKL", "EmbeddingRegression",
           "ContextualSimilarity", "Projection", "triplet_loss", "contrastive_loss", "rkd_distance_loss",
           "rkd_angle_loss", "hard_darkrank_loss", "attention_transfer_loss", "fitnet_loss", "relaxed_contrastive_loss",
           "pkt_loss", "similarity_kl_loss", "embedding_regression_loss", "contextual_similarity_loss"]

# What run.py --loss offers: name -> class, called as (margin=, sampler=)(embeddings, labels). One more loss is one row.
LOSSES = {
    "l1_triplet": L1Triplet,
    "l2_triplet": L2Triplet,
    "contrastive": ContrastiveLoss,
}
