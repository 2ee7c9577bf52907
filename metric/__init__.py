"""Distances, losses, negative samplers, the batch sampler and recall: tensors in, tensors out.

    metric.loss          every loss, under one import path
    metric.triplet       triplet and contrastive losses over sampled triplets
    metric.distillation  relational, ranking, attention and hint losses between a student and a teacher
    metric.angles        how the angles of RKD are computed, in blocks of vertices
    metric.pairsampler   which negatives a triplet loss sees
    metric.batchsampler  which images share a batch
    metric.utils         pdist and recall
    metric.retrieval     how recall is computed, in blocks of distances
"""
