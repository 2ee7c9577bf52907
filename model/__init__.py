"""Networks: backbones that own their normalisation, and the embedding head."""
from model.backbone import BACKBONES, WeightsError, build_backbone
from model.embedding import LinearEmbedding

__all__ = ["BACKBONES", "WeightsError", "build_backbone", "LinearEmbedding"]
