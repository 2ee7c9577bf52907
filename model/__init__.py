"""Networks: backbones that own their normalisation, and the embedding head."""
from model.backbone import BACKBONES, build_backbone
from model.embedding import LinearEmbedding
from model.weights import WeightsError, read_weights

__all__ = ["BACKBONES", "build_backbone", "LinearEmbedding", "WeightsError", "read_weights"]
