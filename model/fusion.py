"""A frozen network without its BatchNorm layers: the same function, in fewer passes over memory."""
import copy

import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fused"]


def fused(network):
    """Return a copy of ``network`` in evaluation mode, each BatchNorm folded into the convolution before it.

    In evaluation mode a BatchNorm is a fixed scale and shift, which a convolution's own weight and bias can hold. The
    outputs, those of the stages included, are the same up to rounding. The copy can't be trained further.

    Args:
        network: an embedding network over a residual backbone of ``model.backbone``.
    """
    network = copy.deepcopy(network).eval()
    base = network.base
    _fold(base, "conv1", "bn1")
    for stage in (base.layer1, base.layer2, base.layer3, base.layer4):
        for block in stage:
            for number in ("1", "2", "3"):
                if hasattr(block, "conv" + number):
                    _fold(block, "conv" + number, "bn" + number)
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")
    network.requires_grad_(False)
    return network


def _fold(module, convolution, norm):
    setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())
