"""The backbones by their names on the command line."""
from model.inception import InceptionV1BN
from model.resnet import ResNet18, ResNet50
from model.timm_networks import PREFIX, timm_backbone

__all__ = ["ResNet18", "ResNet50", "InceptionV1BN", "BACKBONES", "has_backbone", "backbone_class", "build_backbone",
           "recognise", "pretrained_file"]

BACKBONES = {"resnet18": ResNet18, "resnet50": ResNet50, "inception_v1bn": InceptionV1BN}


def has_backbone(name):
    """Return whether ``name`` is one of ``BACKBONES``, or "timm/NAME", whether or not timm has it."""
    return name in BACKBONES or name.startswith(PREFIX)


def backbone_class(name):
    """Return the class of the backbone called ``name``.

    Raises:
        WeightsError: it is one of timm's, which is not installed or has no such network.
    """
    return timm_backbone(name) if name.startswith(PREFIX) else BACKBONES[name]


def build_backbone(name, pretrained="none", image_size=None, **options):
    """Return the backbone called ``name``; the other arguments are those of its constructor.

    Args:
        image_size: side of the pictures, for those that are built for one; None for their own.
    """
    backbone = backbone_class(name)
    if backbone.image_size is not None:
        options["image_size"] = image_size
    return backbone(pretrained=pretrained, **options)


def recognise(weights):
    """Return the name in ``BACKBONES`` of the backbone that a state dict, {name: tensor}, is of; None if of none."""
    return next((name for name, backbone in BACKBONES.items() if backbone.recognises(weights)), None)


def pretrained_file(base, pretrained):
    """Return the path of the weights that the backbone ``base`` starts from, or None for random weights.

    Args:
        base: a name in ``BACKBONES``, or "timm/NAME".
        pretrained: "imagenet" or True (fetched if need be), "none" or False, or the path of a file.

    Raises:
        WeightsError: ImageNet weights can't be fetched, or there is no such file.
    """
    return backbone_class(base).weights_file(pretrained)
