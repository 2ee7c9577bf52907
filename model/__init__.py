"""Networks: backbones that own their normalisation, and the embedding head."""
from model.backbone import (BACKBONES, build_backbone, check_backbone, find_backbone, own_name, pretrained_file,
                            recognise)
from model.embedding import LinearEmbedding
from model.export import FORMATS, MissingPackage, OnnxNetwork, needed, to_int8, to_onnx, to_torchscript
from model.fusion import fused
from model.pooling import POOLS
from model.statedicts import digest_of_network, digest_of_weights
from model.weights import WeightsError, check_finite, first_line, read_tensors, read_weights

__all__ = ["BACKBONES", "FORMATS", "POOLS", "build_backbone", "check_backbone", "find_backbone", "own_name",
           "pretrained_file", "recognise", "LinearEmbedding", "MissingPackage", "OnnxNetwork", "digest_of_network",
           "digest_of_weights", "first_line", "fused", "needed", "to_int8", "to_onnx", "to_torchscript", "WeightsError",
           "check_finite", "read_tensors", "read_weights"]
