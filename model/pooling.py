"""Pooling of the last map, B x C x H x W -> B x C x 1 x 1: one row a pooling."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model.compat import autocast_off

__all__ = ["POOLS", "pooling"]


class AverageAndMaximum(nn.Module):
    """The sum of average and maximum pooling, as in the code of Kim et al., "Proxy Anchor Loss", CVPR 2020."""

    def forward(self, maps):
        return F.adaptive_avg_pool2d(maps, 1) + F.adaptive_max_pool2d(maps, 1)


class GeneralisedMean(nn.Module):
    """GeM: (mean over the places of max(x, 1e-6)^p)^(1/p); p is trained and begins at 3.

    p = 1 is the average of what is positive; the larger p is, the nearer it comes to the maximum. Radenovic, Tolias,
    Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, arXiv:1711.02512.
    """

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, maps):
        with autocast_off(maps.device.type):  # powers need the exponent's precision
            values = maps.to(self.p.dtype).clamp(min=1e-6).pow(self.p)
            return F.adaptive_avg_pool2d(values, 1).pow(1 / self.p)


POOLS = {"avg": lambda: nn.AdaptiveAvgPool2d(1), "max": lambda: nn.AdaptiveMaxPool2d(1), "avgmax": AverageAndMaximum,
         "gem": GeneralisedMean}


def pooling(name):
    """Return a new module that pools maps in the way called ``name``."""
    return POOLS[name]()
