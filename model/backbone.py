"""The backbones by their names on the command line."""
from model.inception import InceptionV1BN
from model.resnet import ResNet18, ResNet50

__all__ = ["ResNet18", "ResNet50", "InceptionV1BN", "BACKBONES", "build_backbone", "recognise", "pretrained_file"]

BACKBONES = {"resnet18": ResNet18, "resnet50": ResNet50, "inception_v1bn": InceptionV1BN}


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
    return BACKBONES[base].weights_file(pretrained)
