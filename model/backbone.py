"""Backbones: torchvision's ResNets up to and including the global average pool, on pictures as they come.

A backbone owns its normalisation. It takes uint8 pictures (0..255) or float pictures (0..1), so that a teacher and a
student can share one batch and each see it normalised its own way. The names of its parameters are torchvision's own,
without the classifier.
"""
import torch
import torch.nn as nn

from model.compat import import_torchvision
from model.weights import WeightsError, imagenet_weights, read_weights

__all__ = ["ResNet18", "ResNet50", "BACKBONES", "build_backbone"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """A residual network (He et al., CVPR 2016, arXiv:1512.03385) without its classifier.

    Args:
        pretrained: True or "imagenet" for torchvision's IMAGENET1K_V1 weights (fetched once, then cached), False or
            "none" for random weights, or the path of a torchvision state dict, with or without its classifier.
        zero_init_residual: with random weights, let every residual block start as the identity: the scale of its last
            BatchNorm is 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Attributes:
        output_size: width of the pooled features, C.

    Raises:
        WeightsError: the weights can't be had or don't fit.
    """

    architecture = None
    output_size = None

    def __init__(self, pretrained=True, zero_init_residual=False):
        super().__init__()
        constructor = getattr(import_torchvision().models, self.architecture)
        # Without any weights argument torchvision of every version starts from random weights.
        layers = constructor(zero_init_residual=zero_init_residual)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"):
            setattr(self, name, getattr(layers, name))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        if pretrained is True or pretrained == "imagenet":
            self.load_torchvision(imagenet_weights(self.architecture))
        elif pretrained not in (False, None, "none"):
            self.load_torchvision(pretrained)

    def load_torchvision(self, path):
        """Load a torchvision state dict from ``path``; a classifier in it (``fc.*``) is left out."""
        weights = {name: value for name, value in read_weights(path).items() if not name.startswith("fc.")}
        try:
            self.load_state_dict(weights)
        except RuntimeError:
            missing = sorted(set(self.state_dict()) - set(weights))
            unknown = sorted(set(weights) - set(self.state_dict()))
            example = (missing or unknown or ["the sizes of the tensors"])[0]
            raise WeightsError(
                "{} is not a torchvision state dict of {}: {} missing and {} unknown names, first {}".format(
                    path, type(self).__name__, len(missing), len(unknown), example)) from None

    def normalize(self, images):
        """Scale B x 3 x H x W pictures, uint8 in 0..255 or float in 0..1, to the backbone's own range."""
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, images, get_stages=False):
        """Return the pooled features, B x C; with ``get_stages`` the four stages' maps before them."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(images)))))
        stage1 = self.layer1(x)
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        stage4 = self.layer4(stage3)
        pooled = self.avgpool(stage4).flatten(1)
        return (stage1, stage2, stage3, stage4, pooled) if get_stages else pooled


class ResNet18(ResNet):
    """ResNet18: 512 features."""

    architecture = "resnet18"
    output_size = 512


class ResNet50(ResNet):
    """ResNet50: 2048 features."""

    architecture = "resnet50"
    output_size = 2048


BACKBONES = {"resnet18": ResNet18, "resnet50": ResNet50}


def build_backbone(name, pretrained="none", **options):
    """Return the backbone called ``name`` on the command line (see ``BACKBONES``)."""
    return BACKBONES[name](pretrained=pretrained, **options)
