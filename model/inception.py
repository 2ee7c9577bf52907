"""BN-Inception, which papers on metric learning call InceptionBN, too. The names of its parameters are those of its
public state dict, ``bn_inception-52deb4733.pth``: ``conv2_3x3.weight``, ``inception_3a_double_3x3_1_bn.bias`` ..."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model.base import Backbone
from model.weights import WeightsError, weights_file

__all__ = ["InceptionV1BN"]

# The names of the blocks, and the widths of their convolutions: 1x1, 3x3_reduce, 3x3, double_3x3_reduce, double_3x3_1
# and _2, pool_proj. Their branches are joined: 1x1; 3x3; double_3x3; a pool with a 1x1 after it. A block without (0)
# 1x1 and pool_proj halves the sides: the last 3x3 of two branches have stride 2, and the third is a pool alone.
BLOCKS = (
    ("inception_3a", 64, 64, 64, 64, 96, 32),
    ("inception_3b", 64, 64, 96, 64, 96, 64),
    ("inception_3c", 0, 128, 160, 64, 96, 0),
    ("inception_4a", 224, 64, 96, 96, 128, 128),
    ("inception_4b", 192, 96, 128, 96, 128, 128),
    ("inception_4c", 160, 128, 160, 128, 160, 128),
    ("inception_4d", 96, 128, 192, 160, 192, 128),
    ("inception_4e", 0, 128, 192, 192, 256, 0),
    ("inception_5a", 352, 192, 320, 160, 224, 128),
    ("inception_5b", 352, 192, 320, 192, 224, 128),
)
MAX_POOLED = "inception_5b"  # the other blocks that keep the sides pool by the average
PUBLIC_FILE = "bn_inception-52deb4733.pth"


class InceptionV1BN(Backbone):
    """BN-Inception (Ioffe & Szegedy, ICML 2015, arXiv:1502.03167) without its classifier: 1024 features. Its stages are
    the last maps of a 4th, 8th, 16th and 32nd of the picture's sides.

    Args:
        pretrained: the path of its public state dict, with or without classifier; False or "none" for random weights.

    Raises:
        WeightsError: the weights can't be read or don't fit; ``pretrained`` is True or "imagenet", which can't be
            fetched.
    """

    output_size = 1024
    millions = 10.27
    is_bgr, range = True, 255
    mean, std = (104.0, 117.0, 128.0), (1.0, 1.0, 1.0)
    classifier = ("last_linear", "fc")

    def __init__(self, pretrained=True):
        super().__init__()
        path = self.weights_file(pretrained)
        self._add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        width = 192
        for name, single, reduce, three, double_reduce, double, proj in BLOCKS:
            stride = 1 if single else 2
            if single:
                self._add(name + "_1x1", width, single, 1)
            self._add(name + "_3x3_reduce", width, reduce, 1)
            self._add(name + "_3x3", reduce, three, 3, stride)
            self._add(name + "_double_3x3_reduce", width, double_reduce, 1)
            self._add(name + "_double_3x3_1", double_reduce, double, 3)
            self._add(name + "_double_3x3_2", double, double, 3, stride)
            if proj:
                self._add(name + "_pool_proj", width, proj, 1)
            width = single + three + double + (proj or width)
        if path is not None:
            self.load(path)

    def _add(self, name, width, out, kernel, stride=1):
        self.add_module(name, nn.Conv2d(width, out, kernel, stride, padding=kernel // 2))
        self.add_module(name + "_bn", nn.BatchNorm2d(out))

    @classmethod
    def weights_file(cls, pretrained):
        if pretrained is True or pretrained == "imagenet":
            raise WeightsError("the ImageNet weights of inception_v1bn can't be fetched from here: get {} (of the "
                               "project pretrained-models) and give --pretrained FILE, or start from random weights "
                               "with --pretrained none".format(PUBLIC_FILE))
        return weights_file(None, pretrained)

    @classmethod
    def recognises(cls, weights):
        return all(name in weights and tuple(weights[name].shape) == shape for name, shape in (
            ("conv1_7x7_s2.weight", (64, 3, 7, 7)), ("inception_5b_pool_proj.weight", (128, 1024, 1, 1))))

    def adapted(self, weights):
        """Return ``weights`` with vectors, C, where old files (the public one is one) have them as 1 x C."""
        return {name: value[0] if value.dim() == 2 and len(value) == 1 else value for name, value in weights.items()}

    def forward(self, images, get_stages=False):
        x = self._layer("conv1_7x7_s2", self.normalize(images))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = self._layer("conv2_3x3", self._layer("conv2_3x3_reduce", x))
        maps = [x]
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        for name, single, *_ in BLOCKS:
            if not single:
                maps.append(x)
            x = self._keeping(name, x) if single else self._halving(name, x)
        maps.append(x)
        pooled = self.pool(x).flatten(1)
        return (*maps, pooled) if get_stages else pooled

    def _layer(self, name, x):
        return F.relu(getattr(self, name + "_bn")(getattr(self, name)(x)), inplace=True)

    def _both_3x3(self, name, x):
        """Return the maps of the two branches that end with a 3x3."""
        double = self._layer(name + "_double_3x3_1", self._layer(name + "_double_3x3_reduce", x))
        return [self._layer(name + "_3x3", self._layer(name + "_3x3_reduce", x)),
                self._layer(name + "_double_3x3_2", double)]

    def _keeping(self, name, x):
        pool = F.max_pool2d if name == MAX_POOLED else F.avg_pool2d
        proj = self._layer(name + "_pool_proj", pool(x, 3, stride=1, padding=1))
        return torch.cat([self._layer(name + "_1x1", x), *self._both_3x3(name, x), proj], 1)

    def _halving(self, name, x):
        # Of an odd side, 2 n - 1, the convolutions make n and the pool would make n - 1; with one more line of zeros it
        # makes n. No map is below 0, so no maximum changes; sides of 224 are even everywhere here.
        even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return torch.cat([*self._both_3x3(name, x), F.max_pool2d(even, 3, stride=2, ceil_mode=True)], 1)
