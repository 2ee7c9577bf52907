"""Backbones: torchvision's ResNets up to and including the global average pool.

A backbone owns its normalisation: it scales and normalises uint8 pictures (0..255) itself, so a teacher and a student
can share one batch and each normalise it its own way. Float pictures it takes as they are, already normalised, as
torchvision's networks do. The names of its parameters are torchvision's own, without the classifier.

One more ResNet is one class with ``architecture``, ``blocks`` and ``output_size``, and one row in ``BACKBONES``.
"""
import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.compat import import_torchvision
from model.weights import WeightsError, read_weights, weights_file

__all__ = ["ResNet", "ResNet18", "ResNet50", "BACKBONES", "build_backbone", "recognise", "pretrained_file"]


class ResNet(nn.Module):
    """A residual network (He et al., CVPR 2016, arXiv:1512.03385) without its classifier.

    Args:
        pretrained: True or "imagenet" for torchvision's IMAGENET1K_V1 weights (fetched once, then cached), False or
            "none" for random weights, or the path of a torchvision state dict, with or without its classifier.
        zero_init_residual: with random weights, let every residual block start as the identity: the scale of its last
            BatchNorm is 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Attributes:
        architecture: torchvision's name of the network; None if torchvision does not have it.
        blocks: number of residual blocks in each stage.
        output_size: width of the pooled features, C.
        stages: names of the stages, in order.
        mean, std: of each channel of the pictures, scaled to 0..1, that the weights were trained on.

    Raises:
        WeightsError: the weights can't be fetched, can't be read or don't fit.
    """

    architecture = None
    blocks = None
    output_size = None
    stages = ("layer1", "layer2", "layer3", "layer4")
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, pretrained=True, zero_init_residual=False):
        super().__init__()
        path = weights_file(self.architecture, pretrained)
        layers = self.layers(zero_init_residual)
        for name in ("conv1", "bn1", "relu", "maxpool") + self.stages + ("avgpool",):
            setattr(self, name, getattr(layers, name))
        self.register_buffer("channel_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("channel_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        if path is not None:
            self._load(path)

    def layers(self, zero_init_residual):
        """Return an object with the layers as attributes of torchvision's names, their weights random."""
        # Without any weights argument torchvision of every version starts from random weights.
        return getattr(import_torchvision().models, self.architecture)(zero_init_residual=zero_init_residual)

    def _load(self, path):
        """Load a torchvision state dict; a classifier in it (``fc.*``) is left out."""
        own = set(self.state_dict())
        counters = {name for name in own if name.endswith("num_batches_tracked")}  # not in files before torch 0.4.1

        def misfit(found):
            if "base" in found.prefix.split(".") and any(name.endswith("linear.weight") for name in found.others):
                return "is a whole embedding network; it goes to --load"
            missing = sorted(own - counters - set(found.weights))
            unknown = sorted(name for name in set(found.weights) - own if not name.startswith("fc."))
            if missing or unknown:
                return "is not a torchvision state dict of {}: {} missing and {} unknown names, first {}".format(
                    type(self).__name__, len(missing), len(unknown), (missing or unknown)[0])
            return None

        found = read_weights(path, {name.split(".")[0] for name in own} | {"fc"}, misfit)
        try:
            self.load_state_dict({name: value for name, value in found.weights.items() if name in own})
        except RuntimeError as error:
            raise WeightsError("{} is not a torchvision state dict of {}: {}".format(
                path, type(self).__name__, str(error).splitlines()[-1].strip())) from None

    @classmethod
    def recognises(cls, weights):
        """Return whether a state dict, {name: tensor}, is one of this network: by its blocks and its width.

        Names that are missing, or sizes that are wrong elsewhere, are reported by ``load_state_dict``.
        """
        blocks = tuple(len({name.split(".")[1] for name in weights if name.startswith(stage + ".")})
                       for stage in cls.stages)
        widths = [len(value) for name, value in weights.items()  # of the BatchNorms in the last stage
                  if name.startswith(cls.stages[-1] + ".") and name.endswith(".weight") and value.dim() == 1]
        return blocks == cls.blocks and max(widths, default=0) == cls.output_size

    def normalize(self, images):
        """Return B x 3 x H x W pictures as the layers take them, in the precision of the weights.

        Integers (0..255) are divided by 255, less ``mean``, divided by ``std``. Floats are taken as normalised already.
        """
        values = images.to(self.channel_mean.dtype)
        if images.is_floating_point():
            return values
        return (values / 255 - self.channel_mean) / self.channel_std

    def forward(self, images, get_stages=False):
        """Return the pooled features, B x C.

        Args:
            images: B x 3 x H x W, uint8 in 0..255, or floats that are normalised already.
            get_stages: return (stage1, stage2, stage3, stage4, pooled) instead; a stage's map is B x C' x H' x W'.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(images)))))
        maps = []
        for stage in self.stages:
            x = getattr(self, stage)(x)
            maps.append(x)
        pooled = self.avgpool(x).flatten(1)
        return (*maps, pooled) if get_stages else pooled

    def fold(self):
        """Fold each BatchNorm into the convolution before it, in place; from then on for evaluation only."""
        self.eval()
        _fold(self, "conv1", "bn1")
        for stage in self.stages:
            for block in getattr(self, stage):
                for number in ("1", "2", "3"):
                    if hasattr(block, "conv" + number):
                        _fold(block, "conv" + number, "bn" + number)
                if block.downsample is not None:
                    _fold(block.downsample, "0", "1")


def _fold(module, convolution, norm):
    setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


class ResNet18(ResNet):
    """ResNet18: 512 features."""

    architecture = "resnet18"
    blocks = (2, 2, 2, 2)
    output_size = 512


class ResNet50(ResNet):
    """ResNet50: 2048 features."""

    architecture = "resnet50"
    blocks = (3, 4, 6, 3)
    output_size = 2048


BACKBONES = {"resnet18": ResNet18, "resnet50": ResNet50}


def build_backbone(name, pretrained="none", **options):
    """Return the backbone called ``name`` in ``BACKBONES``; the other arguments are those of its constructor."""
    return BACKBONES[name](pretrained=pretrained, **options)


def recognise(weights):
    """Return the name in ``BACKBONES`` of the backbone that a state dict, {name: tensor}, is of; None if of none."""
    return next((name for name, backbone in BACKBONES.items() if backbone.recognises(weights)), None)


def pretrained_file(base, pretrained):
    """Return the path of the weights that the backbone ``base`` starts from, or None for random weights.

    Args:
        base: a name in ``BACKBONES``.
        pretrained: "imagenet" or True (fetched if need be), "none" or False, or the path of a file.

    Raises:
        WeightsError: ImageNet weights can't be fetched, or there is no such file.
    """
    return weights_file(BACKBONES[base].architecture, pretrained)
