"""Networks: backbones that own their normalisation, and the embedding head."""
from model.backbone import (BACKBONES, backbone_class, build_backbone, has_backbone, pretrained_file,
                            recognise)
from model.embedding import LinearEmbedding
from model.fusion import fused
from model.weights import WeightsError, check_finite, read_tensors, read_weights

__all__ = ["BACKBONES", "backbone_class", "build_backbone", "has_backbone", "pretrained_file", "recognise",
           "LinearEmbedding", "fused", "WeightsError", "check_finite", "read_tensors", "read_weights"]
