"""A residual backbone of width 8, for tests that are not about the networks: a run's state is tens of kilobytes."""
import types

import torch.nn as nn

from model import BACKBONES
from model.resnet import ResNet
from model.compat import import_torchvision

__all__ = ["TinyResNet", "register"]


class TinyResNet(ResNet):
    """One block of width 8 in each of the four stages; the maps of all stages are a fourth of the picture's side."""

    blocks = (1, 1, 1, 1)
    output_size = 8

    def layers(self, zero_init_residual):
        block = import_torchvision().models.resnet.BasicBlock
        layers = {stage: nn.Sequential(block(self.output_size, self.output_size)) for stage in self.stages}
        if zero_init_residual:
            for stage in layers.values():
                nn.init.zeros_(stage[0].bn2.weight)
        return types.SimpleNamespace(
            conv1=nn.Conv2d(3, self.output_size, 3, stride=2, padding=1, bias=False),
            bn1=nn.BatchNorm2d(self.output_size), relu=nn.ReLU(inplace=True), maxpool=nn.MaxPool2d(3, 2, 1),
            avgpool=nn.AdaptiveAvgPool2d(1), **layers)


def register():
    """Make it the backbone "tiny" of the command lines in this process."""
    BACKBONES["tiny"] = TinyResNet
