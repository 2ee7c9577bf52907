"""The backbones by their names on the command line."""
import difflib

from model.inception import InceptionV1BN
from model.torchvision_networks import NETWORKS, TorchvisionBackbone, recognised
from model.timm_networks import PREFIX, timm_backbone
from model.weights import WeightsError

__all__ = ["ResNet18", "ResNet50", "GoogleNet", "InceptionV1BN", "BACKBONES", "find_backbone", "own_name",
           "check_backbone", "build_backbone", "recognise", "pretrained_file"]

BACKBONES = dict(NETWORKS, inception_v1bn=InceptionV1BN)
ResNet18, ResNet50, GoogleNet = BACKBONES["resnet18"], BACKBONES["resnet50"], BACKBONES["googlenet"]


def own_name(name):
    """Return the name in ``BACKBONES`` of a network: ``torchvision/NAME`` is NAME, apart from torchvision/googlenet."""
    prefix, _, rest = name.partition("/")
    return rest if prefix == "torchvision" and rest in NETWORKS and name not in NETWORKS else name


def find_backbone(name):
    """Return the class of the backbone called ``name``.

    Raises:
        WeightsError: there is none of that name; names the nearest.
    """
    if name.startswith(PREFIX):
        return timm_backbone(name)
    if own_name(name) in BACKBONES:
        return BACKBONES[own_name(name)]
    near = difflib.get_close_matches(name.lower(), BACKBONES, n=4, cutoff=0.5)
    raise WeightsError("{!r} is no network that is known here; {}--list_backbones prints all".format(
        name, "the nearest {} {}; ".format("names are" if len(near) > 1 else "name is", ", ".join(near))
        if near else ""))


def check_backbone(name, image_size, pool):
    """Refuse a backbone that can't be built for pictures of ``image_size`` pixels a side, with this pooling.

    Raises:
        WeightsError: so it is, or the installed torchvision lacks the network.
    """
    kind = find_backbone(name)
    if kind.architecture is not None:
        kind.function()
    fault = kind.fault_of(image_size, pool)
    if fault:
        raise WeightsError("{} {}".format(name, fault))


def build_backbone(name, pretrained="none", pool="avg", **options):
    """Return the backbone called ``name``.

    Args:
        pool: a name in ``model.pooling.POOLS``. options: arguments of constructors; the network ``takes`` some or none.

    Raises:
        WeightsError
    """
    kind = find_backbone(name)
    backbone = kind(pretrained=pretrained, **{
        option: value for option, value in options.items() if option in kind.takes and value is not None})
    backbone.name = own_name(name)
    if pool != backbone.pool_name:
        backbone.use_pool(pool)
    return backbone


def recognise(weights):
    """Return the name in ``BACKBONES`` of the backbone that a state dict, {name: tensor}, is of; None if of none."""
    kinds = ((name, kind) for name, kind in BACKBONES.items() if not issubclass(kind, TorchvisionBackbone))
    return recognised(weights) or next((name for name, kind in kinds if kind.recognises(weights)), None)


def pretrained_file(base, pretrained):
    """Return the path of the weights that the backbone ``base`` starts from, or None for random weights.

    Args:
        base: a name in ``BACKBONES``.
        pretrained: "imagenet" or True (fetched if need be), "none" or False, or the path of a file.

    Raises:
        WeightsError: ImageNet weights can't be fetched, or there is no such file.
    """
    return find_backbone(base).weights_file(pretrained)
