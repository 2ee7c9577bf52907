"""Networks: backbones that own their normalisation, and the embedding head."""
from model.backbone import (BACKBONES, build_backbone, check_backbone, find_backbone, own_name, pretrained_file,
                            recognise)
from model.embedding import LinearEmbedding
from model.fusion import fused
from model.pooling import POOLS
from model.statedicts import digest_of_network, digest_of_weights
from model.weights import WeightsError, check_finite, first_line, read_tensors, read_weights

__all__ = ["BACKBONES", "POOLS", "build_backbone", "check_backbone", "find_backbone", "own_name", "pretrained_file",
           "recognise", "LinearEmbedding", "digest_of_network", "digest_of_weights", "first_line", "fused",
           "WeightsError", "check_finite", "read_tensors", "read_weights"]
