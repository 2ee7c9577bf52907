"""torchvision's classification networks without their classifiers.

A family is a class that says which modules of torchvision's network are kept, in the order in which they run. The
networks of all families are the rows of ``model.torchvision_table``; a class for each is made from its row. Importing
this module does not import torchvision. The ResNets have a module of their own: their code came first.
"""
import re

import torch
import torch.nn as nn
import torch.nn.functional as F

from model.base import WrappedBackbone
from model.resnet import ResNet, ResNet18, ResNet50
from model.torchvision_table import ROWS, digest_of

__all__ = ["NETWORKS", "TorchvisionBackbone", "recognised"]

GRID = "encoder.pos_embedding"  # of a vision transformer


class TorchvisionBackbone(WrappedBackbone):
    """A network of torchvision without its classifier: modules that run one after the other, then pooling.

    Args:
        pretrained: True or "imagenet" for torchvision's IMAGENET1K_V1 weights (fetched once, then cached), False or
            "none" for random weights, or the path of a torchvision state dict, with or without its classifier.
        options: more arguments of torchvision's function.

    Attributes:
        row: the ``Row`` of the table. parts: names of the modules that run, in order. A Sequential or ModuleList among
            them counts as its own modules; where the size of the map changes between two, a stage ends.
        kept: names of the modules that run after the pooling. arguments: those of torchvision's function.

    Raises:
        WeightsError: this torchvision lacks the network; the weights can't be fetched, can't be read or don't fit.
    """

    row = None
    parts = ("features",)
    kept = ()
    arguments = {}
    classifier = ("classifier",)

    def __init__(self, pretrained=True, **options):
        path = self.weights_file(pretrained)
        whole = self.function()(**dict(self.arguments, **options))
        network = nn.Module()
        for name in self.parts + self.kept:
            setattr(network, name, self.without_classifier(name, getattr(whole, name)))
        super().__init__(network)
        if path is not None:
            self.load(path)

    @classmethod
    def recognises(cls, weights):
        return digest_of(weights) == cls.row.digest

    def without_classifier(self, name, module):
        """Return the module called ``name`` without the layers of the classifier in it."""
        return module

    def forward(self, images, get_stages=False):
        x, maps = self.before(self.normalize(images)), []
        for step in self._steps():
            y = step(x)
            if get_stages and self.as_map(y).shape[2:] != self.as_map(x).shape[2:]:
                maps.append(self.as_map(x))
            x = y
        x = self.last(self.as_map(x))
        pooled = self.after_pool(self.pool(x))
        return (*(maps + [x])[-4:], pooled) if get_stages else pooled

    def _steps(self):
        for part in self.parts:
            module = getattr(self.network, part)
            if isinstance(module, (nn.Sequential, nn.ModuleList)):
                yield from module
            else:
                yield module

    def after_maps(self):
        return super().after_maps() + [getattr(self.network, name) for name in self.kept]

    def before(self, x):
        """Return normalised pictures as the first module takes them."""
        return x

    def as_map(self, x):
        """Return what a module returned as a map, B x C x H x W."""
        return x

    def last(self, x):
        """Return the last module's map as it is pooled."""
        return x

    def after_pool(self, pooled):
        """Return the features, B x C, from the pooled map, B x C x 1 x 1."""
        return pooled.flatten(1)


class DenseNet(TorchvisionBackbone):
    def last(self, x):
        return F.relu(x)

    def adapted(self, weights):
        # torchvision's own files have names of before PyTorch 0.4: norm.1 for norm1.
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value
                for name, value in weights.items()}


class MnasNet(TorchvisionBackbone):
    parts = ("layers",)


class ShuffleNet(TorchvisionBackbone):
    parts = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
    classifier = ("fc",)


class RegNet(TorchvisionBackbone):
    parts = ("stem", "trunk_output")
    classifier = ("fc",)


class _Inception(TorchvisionBackbone):
    """torchvision normalises the pictures anew, to mean and std 0.5, as these weights came from TensorFlow."""

    arguments = {"aux_logits": False, "init_weights": False}

    def before(self, x):
        mean, std = self.channel_mean, self.channel_std
        return (x * std + mean - 0.5) / 0.5


class _GoogLeNet(TorchvisionBackbone):
    parts = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3", "inception4a",
             "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4", "inception5a", "inception5b")
    arguments = _Inception.arguments
    classifier = ("aux1", "aux2", "fc")


class GoogleNet(_GoogLeNet):
    """GoogLeNet as the reference has it: torchvision's network, with BGR pictures, 0..255, less 104, 117 and 128.

    torchvision's weights were trained on other numbers, of a hundredth of the size (see ``TorchvisionGoogLeNet``). The
    reference takes them so, and so the published networks were trained.
    """

    is_bgr, range = True, 255
    mean, std = (104.0, 117.0, 128.0), (1.0, 1.0, 1.0)


class TorchvisionGoogLeNet(_Inception, _GoogLeNet):
    """GoogLeNet with torchvision's own normalisation."""


class InceptionV3(_Inception):
    parts = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
             "maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
             "Mixed_7a", "Mixed_7b", "Mixed_7c")
    classifier = ("AuxLogits", "fc")


class ConvNeXt(TorchvisionBackbone):
    kept = ("classifier",)  # its LayerNorm; the weights need it

    def without_classifier(self, name, module):
        return module[:1] if name == "classifier" else module

    def after_pool(self, pooled):
        return self.network.classifier(pooled).flatten(1)


class MaxVit(TorchvisionBackbone):
    parts = ("stem", "blocks")
    kept = ("classifier",)  # its LayerNorm
    takes = ("image_size",)

    def __init__(self, pretrained=True, image_size=224):
        super().__init__(pretrained, input_size=(image_size, image_size))

    def without_classifier(self, name, module):
        return module[2:3] if name == "classifier" else module

    def after_pool(self, pooled):
        return self.network.classifier(pooled.flatten(1))


class Swin(TorchvisionBackbone):
    parts = ("features", "norm")
    classifier = ("head",)

    def as_map(self, x):
        # The pictures are B x 3 x H x W; between the modules maps are B x H x W x C.
        return x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)


class VisionTransformer(TorchvisionBackbone):
    """A vision transformer; its features are those of the class token after the last LayerNorm.

    It is built for pictures of ``image_size`` pixels a side. Weights with another grid of position embeddings are
    interpolated (bicubic).
    """

    parts = ("class_token", "conv_proj", "encoder")
    classifier = ("heads",)
    takes = ("image_size",)
    has_map = has_stages = False

    def __init__(self, pretrained=True, image_size=224):
        super().__init__(pretrained, image_size=image_size)

    def forward(self, images):
        patches = self.network.conv_proj(self.normalize(images)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.network.class_token.expand(images.shape[0], -1, -1), patches], 1)
        return self.network.encoder(tokens)[:, 0]

    def adapted(self, weights):
        own = self.network.state_dict()
        adapted = {}
        for name, value in weights.items():
            if name not in own:  # torchvision's own files have names of its version 0.12
                name = re.sub(r"mlp\.linear_([12])\.", lambda found: "mlp.{}.".format("03"[int(found[1]) - 1]), name)
            adapted[name] = value
        grid = adapted.get(GRID)
        if grid is not None and grid.dim() == 3 and grid.shape[1] != own[GRID].shape[1]:
            adapted[GRID] = _resized(grid, own[GRID].shape[1] - 1)
        return adapted


def _resized(embeddings, count):
    """Return position embeddings, 1 x (1 + N) x C, of a square of N places, interpolated to ``count`` places.

    The first one is the class token's. Embeddings of no square are returned as they are.
    """
    before, after = (int(round(number ** 0.5)) for number in (embeddings.shape[1] - 1, count))
    if before < 1 or before ** 2 != embeddings.shape[1] - 1:
        return embeddings
    squares = embeddings[:, 1:].float().transpose(1, 2).reshape(1, -1, before, before)
    squares = F.interpolate(squares, size=(after, after), mode="bicubic", align_corners=True)  # as torchvision does
    return torch.cat([embeddings[:, :1], squares.flatten(2).transpose(1, 2).to(embeddings.dtype)], 1)


FAMILIES = {"features": TorchvisionBackbone, "densenet": DenseNet, "mnasnet": MnasNet, "shufflenet": ShuffleNet,
            "regnet": RegNet, "googlenet": GoogleNet, "inception": InceptionV3, "convnext": ConvNeXt, "maxvit": MaxVit,
            "swin": Swin, "vit": VisionTransformer, "resnet": ResNet}


def _made(name, row, family):
    return type(name, (family,), dict(row.more, row=row, architecture=row.name, output_size=row.width,
                                      millions=row.millions, since=row.since, __module__=__name__))


# {name on the command line: class}
NETWORKS = {row.name: _made(row.name, row, FAMILIES[row.family]) for row in ROWS}
NETWORKS.update(resnet18=ResNet18, resnet50=ResNet50)
NETWORKS["torchvision/googlenet"] = _made("torchvision/googlenet", NETWORKS["googlenet"].row, TorchvisionGoogLeNet)
BY_DIGEST = {row.digest: row.name for row in ROWS if row.digest}


def recognised(weights):
    """Return the name of the network that a state dict, {name: tensor}, without classifier is of; None if of none."""
    return BY_DIGEST.get(digest_of(weights))
