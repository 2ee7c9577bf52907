"""BatchNorm over the global batch. PyTorch's SyncBatchNorm is for GPUs; on a CPU ours does the same."""
import torch
import torch.nn as nn

from engine import ranks


def synchronised(network, device):
    """Return ``network`` with every BatchNorm2d taking its mean and variance over the batches of all ranks.

    It keeps its parameters and their names; the layers are replaced in place.
    """
    if ranks.count() == 1:
        return network
    return ranks.synchronised_by_library(network) if device.type == "cuda" else _converted(network)


def _converted(module):
    if type(module) is nn.BatchNorm2d:
        layer = _SynchronisedBatchNorm(module.num_features, module.eps, module.momentum)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(layer, name, getattr(module, name))
        return layer.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    def forward(self, images):
        if not self.training:
            return super().forward(images)
        values = images.float()
        channels = values.shape[1]
        ours = values.new_full((1,), values.numel() // channels)
        total = ranks.summed(torch.cat([values.sum((0, 2, 3)), ours]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = ranks.summed(centred.pow(2).sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(images.dtype)
