"""Backbones: torchvision's ResNets up to and including the global average pool, on pictures as they come.

A backbone owns its normalisation. It takes uint8 pictures (0..255) or float pictures (0..1), so that a teacher and a
student can share one batch and each see it normalised its own way. The names of its parameters are torchvision's own,
without the classifier.
"""
import os
import pickle
import socket
import sys

import torch
import torch.nn as nn

from model.compat import cached_weights_path, imagenet_weights_url, import_torchvision, load_tensors

__all__ = ["ResNet18", "ResNet50", "BACKBONES", "WeightsError", "build_backbone", "read_weights"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONNECT_SECONDS = 20


class WeightsError(Exception):
    """Weights that are missing, damaged or of another network; the message is one line for the user."""


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
            self.load_torchvision(_imagenet_weights(self.architecture))
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


def read_weights(path):
    """Return the state dict in the file ``path``: names to finite tensors, on the CPU.

    Raises:
        WeightsError: no such file, not a state dict, damaged, or with values that are not finite.
    """
    if not os.path.isfile(path):
        raise WeightsError("{}: no such file".format(path))
    try:
        weights = load_tensors(path)
    except PermissionError:
        raise WeightsError("{} can't be read: no permission".format(path)) from None
    except pickle.UnpicklingError:
        raise WeightsError("{} is refused: it holds something else than tensors (such a file can run code), "
                           "or it is damaged".format(path)) from None
    except Exception:  # torch raises half a dozen types for a damaged file; each means the same to the user
        raise WeightsError("{} can't be read: it is damaged, or no file of PyTorch weights".format(path)) from None
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise WeightsError("{} holds no state dict (names and tensors)".format(path))
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError("{} holds values that are not finite, first in {}".format(path, name))
    return weights


def _imagenet_weights(architecture):
    """Return the path of torchvision's ImageNet weights, fetched if they are not in torch.hub's cache."""
    url = imagenet_weights_url(architecture)
    path = cached_weights_path(url)
    if not os.path.isfile(path):
        digest = path.rsplit("-", 1)[-1].split(".")[0]  # torchvision's names end in the first 8 digits of the SHA-256
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            print("Fetching ImageNet weights: {}".format(url))
            patience = socket.getdefaulttimeout()
            socket.setdefaulttimeout(CONNECT_SECONDS)  # a machine behind a firewall would wait for minutes
            try:
                torch.hub.download_url_to_file(url, path, hash_prefix=digest, progress=sys.stderr.isatty())
            finally:
                socket.setdefaulttimeout(patience)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                "ImageNet weights of {} are not on this machine and can't be fetched ({}): put {} at {}, or give "
                "--pretrained FILE, or start from random weights with --pretrained none".format(
                    architecture, error, url, path)) from None
    return path
