"""Distances, losses, negative samplers, the batch sampler and recall: tensors in, tensors out.

Where each formula is, with its shapes and corner cases:

    RKD-D, RKD-A                     rkd_distance_loss, rkd_angle_loss in metric.distillation
    HardDarkRank                     hard_darkrank_loss in metric.distillation
    attention transfer, FitNet       attention_transfer_loss, fitnet_loss in metric.distillation
    relaxed contrastive, PKT,        relaxed_contrastive_loss, pkt_loss, similarity_kl_loss,
      similarity KL, embedding         embedding_regression_loss, contextual_similarity_loss and
      regression, contextual           the linear map Projection in metric.transfer
      similarity (CSD)
    multi-similarity, Proxy Anchor   multi_similarity_loss in metric.multisimilarity,
                                       proxy_anchor_loss in metric.proxies
    triplet and contrastive loss     triplet_loss, contrastive_loss in metric.triplet
    distances, unit vectors          pdist, cdist, unit, cosines in metric.distances
    negatives for a triplet loss     metric.pairsampler (AllPairs, HardNegative, SemiHardNegative, ...)
    distance-weighted sampling,      distance_weights in metric.pairsampler
      with the quirk of the reference
    which images share a batch       NPairs, Uniform in metric.batchsampler
    Recall@K, also in a gallery      recall_by_definition in metric.retrieval; recall there is the fast way, and
                                       metric.exact the last step of it
    MAP@R, R-precision, MRR          measures_by_definition in metric.measures; measures there is the fast way, and
                                       metric.rnearest the ranks that the first two are made of
    common neighbours, linear CKA    common_neighbours, linear_cka in metric.similarity

    the nearest of a gallery,        nearest, close_pairs in metric.nearest
      and near-duplicates in it

    metric.loss       every loss under one import path; LOSSES, the rows of run.py --loss
    metric.pml        the losses of the package pytorch-metric-learning for run.py --loss pml/NAME
    metric.angles     how RKD-A is computed without N^3 cosines in memory
    metric.contracts  the checks of shapes and types that all share, the teacher as a constant, and the rule that losses
                        run in float32
    metric.utils      pdist and recall, the reference's import path; measures, the names of them all
"""
