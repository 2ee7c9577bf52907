"""torchvision's ResNets up to and including the global average pool.

The names of their parameters are torchvision's own, without the classifier. One more ResNet is one row in
``model.torchvision_table``, or one class with ``architecture``, ``blocks`` and ``output_size`` and a row in
``BACKBONES``.
"""
from model.base import Backbone

__all__ = ["ResNet", "ResNet18", "ResNet50"]


class ResNet(Backbone):
    """A residual network (He et al., CVPR 2016, arXiv:1512.03385) without its classifier.

    Args:
        pretrained: True or "imagenet" for torchvision's IMAGENET1K_V1 weights (fetched once, then cached), False or
            "none" for random weights, or the path of a torchvision state dict, with or without its classifier.
        zero_init_residual: with random weights, let every residual block start as the identity: the scale of its last
            BatchNorm is 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Attributes:
        blocks: number of residual blocks in each stage.
        inner: widths, out and in, of the second convolution of the first block: they tell ResNeXts and wide ResNets
            from ResNets. stages: names of the stages, in order.
        The others are those of ``Backbone``.

    Raises:
        WeightsError: the weights can't be fetched, can't be read or don't fit.
    """

    blocks = None
    inner = None
    takes = ("zero_init_residual",)
    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, pretrained=True, zero_init_residual=False):
        super().__init__()
        path = self.weights_file(pretrained)
        layers = self.layers(zero_init_residual)
        for name in ("conv1", "bn1", "relu", "maxpool") + self.stages:
            setattr(self, name, getattr(layers, name))
        if path is not None:
            self.load(path)

    def layers(self, zero_init_residual):
        """Return an object with the layers as attributes of torchvision's names, their weights random."""
        # Without any weights argument torchvision of every version starts from random weights.
        return self.function()(zero_init_residual=zero_init_residual)

    @classmethod
    def recognises(cls, weights):
        """Return whether a state dict, {name: tensor}, is one of this network: by its blocks and its widths.

        Names that are missing, or sizes that are wrong elsewhere, are reported by ``load_state_dict``.
        """
        blocks = tuple(len({name.split(".")[1] for name in weights if name.startswith(stage + ".")})
                       for stage in cls.stages)
        widths = [len(value) for name, value in weights.items()  # of the BatchNorms in the last stage
                  if name.startswith(cls.stages[-1] + ".") and name.endswith(".weight") and value.dim() == 1]
        inner = weights.get(cls.stages[0] + ".0.conv2.weight")
        if inner is not None and cls.inner is not None and tuple(inner.shape[:2]) != cls.inner:
            return False
        return blocks == cls.blocks and max(widths, default=0) == cls.output_size

    def forward(self, images, get_stages=False):
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(images)))))
        maps = []
        for stage in self.stages:
            x = getattr(self, stage)(x)
            maps.append(x)
        pooled = self.pool(x).flatten(1)
        return (*maps, pooled) if get_stages else pooled


class ResNet18(ResNet):
    """ResNet18: 512 features."""

    architecture = "resnet18"
    blocks = (2, 2, 2, 2)
    inner = (64, 64)
    output_size = 512
    millions = 11.177


class ResNet50(ResNet):
    """ResNet50: 2048 features."""

    architecture = "resnet50"
    blocks = (3, 4, 6, 3)
    inner = (64, 64)
    output_size = 2048
    millions = 23.508
