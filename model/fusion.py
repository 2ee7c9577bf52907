"""A frozen network without its BatchNorm layers: the same function, in fewer passes over memory."""
import copy

import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fused"]

TOLERANCE = 1e-3  # of the largest value of an output
SIDE = 64  # of the pictures that the copy is tried on


def fused(network):
    """Return a frozen copy of ``network`` in evaluation mode, each BatchNorm folded into the convolution before it.

    In evaluation mode a BatchNorm is a fixed scale and shift, which a convolution's own weight and bias can hold. The
    outputs, those of the stages included, are the same up to rounding. The copy can't be trained further. A BatchNorm
    that follows no convolution stays. Where the folded copy gives other outputs on a random picture, nothing is folded.

    Args:
        network: an embedding network.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    picture = _picture_for(network)
    before, pairs = _outputs_and_pairs(network, picture)
    folded = copy.deepcopy(network)
    for convolution, norm in pairs:
        _fold(folded, convolution, norm)
    after, _ = _outputs_and_pairs(folded, picture)
    same = all((new - old).abs().max() <= TOLERANCE * old.abs().max() for old, new in zip(before, after))
    return folded.requires_grad_(False) if same else network  # torch 1.10 makes new parameters that want gradients


def _picture_for(network):
    base = network.base
    side = max(SIDE, getattr(base, "least_side", 1))
    if "image_size" in getattr(base, "takes", ()):
        side = network.image_size or getattr(base, "image_size", None) or 224
    device = next(network.parameters()).device
    drawn = torch.Generator().manual_seed(0)  # the run's own random numbers stay as they are
    return torch.randint(0, 256, (1, 3, side, side), generator=drawn, dtype=torch.uint8).to(device)


def _outputs_and_pairs(network, picture):
    """Return (outputs, [(name of a convolution, name of the BatchNorm that takes its output as it is)])."""
    made, calls, pairs = {}, {}, []

    def after_convolution(name, output):
        made[id(output)] = (name, output)  # kept, so that no other tensor gets its id

    def before_norm(name, image):
        calls[name] = calls.get(name, 0) + 1
        if id(image) in made:
            pairs.append((made[id(image)][0], name))

    hooks = []
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(
                lambda module, inputs, output, name=name: after_convolution(name, output)))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(
                lambda module, inputs, name=name: before_norm(name, inputs[0])))
    with torch.no_grad():
        outputs = network(picture, True) if network.base.has_stages else [network(picture)]
    for hook in hooks:
        hook.remove()
    return outputs, [pair for pair in pairs if calls[pair[1]] == 1]


def _fold(network, convolution, norm):
    """Fold a BatchNorm into a convolution, both given by name; what a subclass does after normalising stays."""
    modules = dict(network.named_modules())
    layer = modules[norm]
    after = [getattr(layer, name) for name in ("drop", "act") if isinstance(getattr(layer, name, None), nn.Module)]
    for name, module in ((convolution, fuse_conv_bn_eval(modules[convolution], layer)),
                         (norm, nn.Sequential(*after) if after else nn.Identity())):
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, module)
