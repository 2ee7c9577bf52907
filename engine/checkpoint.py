"""Networks and their files: build, load, and let ``config.json`` speak for what the user does not state."""
import collections
import json
import os

from dataset import DATASETS, DatasetError, fetch_file
from engine.errors import UsageError
from engine.files import CONFIG, read_config
from engine.options import LARGEST_IMAGE, SMALLEST_IMAGE
from model import BACKBONES, LinearEmbedding, WeightsError, build_backbone, read_weights
from model.weights import imagenet_missing, imagenet_source

__all__ = ["Checkpoint", "read_checkpoint", "adopt_network", "adopt_data", "build_network", "describe"]

NETWORK_OPTIONS = ("base", "embedding_size", "l2normalize")
DATA_OPTIONS = ("dataset", "data", "image_size")

Checkpoint = collections.namedtuple("Checkpoint", "path weights options")
Checkpoint.__doc__ = """A state dict with the options that are known of its network.

``options`` holds what the tensors tell (``base``, ``embedding_size``) and, where a ``config.json`` lies beside the
file, what that tells.
"""


def describe(options):
    """Return a network in words: "a ResNet18 with 64 dimensions, not L2-normalised"."""
    words = "a {} with {} dimensions".format(BACKBONES[options["base"]].__name__, options["embedding_size"])
    if options.get("l2normalize") is None:
        return words
    return words + (", L2-normalised" if options["l2normalize"] else ", not L2-normalised")


def read_checkpoint(path):
    """Read a network's ``.pth`` and the ``config.json`` beside it, if there is one.

    Raises:
        WeightsError: no such file, damaged, not one of our networks, or not the network that config.json describes.
    """
    weights = read_weights(path)
    found = {"base": _backbone_of(path, weights), "embedding_size": int(weights["linear.weight"].shape[0])}
    options = _options_beside(path)
    for name, value in found.items():
        if options.get(name, value) != value:
            raise WeightsError("{} holds {}, but the {} beside it says {}; they don't belong together: move one of "
                               "them".format(path, describe(found), CONFIG, describe(dict(found, **options))))
    options.update(found)
    return Checkpoint(path, weights, options)


def adopt_network(args, stated, checkpoint, prefix=""):
    """Give the network options that the user does not state the values of ``checkpoint``.

    Raises:
        UsageError: what the user states contradicts the file.
    """
    names = {name: prefix + name for name in NETWORK_OPTIONS}
    asked = {name: getattr(args, option) if option in stated else checkpoint.options.get(name)
             for name, option in names.items()}
    if any(checkpoint.options.get(name) not in (None, value) for name, value in asked.items()):
        raise UsageError("{} holds {}; you asked for {}".format(
            checkpoint.path, describe(checkpoint.options), describe(asked)))
    for name, option in names.items():
        if asked[name] is not None:
            setattr(args, option, asked[name])


def adopt_data(args, stated, checkpoint):
    """Give the data options that the user does not state the values that the checkpoint was trained with."""
    taken = {name: checkpoint.options[name] for name in DATA_OPTIONS
             if name not in stated and checkpoint.options.get(name) is not None}
    if "dataset" in stated and args.dataset != checkpoint.options.get("dataset"):
        taken.pop("data", None)  # the directory of another data set
    for name, value in taken.items():
        setattr(args, name, value)
    if taken:
        print("From {}: {}".format(os.path.join(os.path.dirname(checkpoint.path), CONFIG),
                                   ", ".join("--{} {}".format(name, value) for name, value in sorted(taken.items()))))


def build_network(options, checkpoint=None, pretrained="none", **backbone_options):
    """Return the embedding network that ``options`` (base, embedding_size, l2normalize) describe.

    Args:
        options: a dict; see ``describe``.
        checkpoint: weights of the whole network; then ``pretrained`` is not looked at.
        pretrained: weights of the backbone; see ``model.backbone.ResNet``.

    Raises:
        WeightsError
    """
    if pretrained == "imagenet" and not checkpoint:
        _fetch_imagenet(BACKBONES[options["base"]].architecture)
    backbone = build_backbone(options["base"], "none" if checkpoint else pretrained, **backbone_options)
    network = LinearEmbedding(backbone, backbone.output_size, options["embedding_size"], options["l2normalize"])
    if checkpoint:
        try:
            network.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError("{} does not fit {}: {}".format(checkpoint.path, describe(options), first)) from None
    return network


def _fetch_imagenet(architecture):
    """Put torchvision's ImageNet weights into torch.hub's cache, where the model looks for them."""
    url, path, digest = imagenet_source(architecture)
    if os.path.isfile(path):
        return
    print("Fetching ImageNet weights: {}".format(url), flush=True)
    try:
        fetch_file(url, path, "sha256", digest)
    except DatasetError as error:
        reason = str(error).split(": ", 1)[-1]  # without the address, which is told anyway
        raise imagenet_missing(architecture, reason) from None


def _backbone_of(path, weights):
    """Return the command line's name of the backbone in a state dict, judged by names and shapes."""
    if "base.conv1.weight" not in weights or "linear.weight" not in weights or weights["linear.weight"].dim() != 2:
        raise WeightsError("{} is not an embedding network of this project (no base.conv1.weight and linear.weight in "
                           "it); a torchvision state dict goes to --pretrained".format(path))
    bottleneck = "base.layer1.0.conv3.weight" in weights
    blocks = len({name.split(".")[2] for name in weights if name.startswith("base.layer3.")})
    for name, shape in (("resnet18", (False, 2)), ("resnet50", (True, 6))):
        if (bottleneck, blocks) == shape:
            return name
    raise WeightsError("{} holds a residual network that is none of {}".format(path, ", ".join(BACKBONES)))


def _options_beside(path):
    """Return what the config.json beside the file ``path`` says of its network and its data; {} if there is none."""
    config = read_config(os.path.dirname(path))
    if config is None:
        return {}
    options = {name: config["options"].get(name) for name in NETWORK_OPTIONS + DATA_OPTIONS}
    for name, value in options.items():
        if not _ACCEPTED[name](value):
            raise WeightsError("{} gives {} the value {}, which this version does not know; mend or remove it, and "
                               "state the options".format(os.path.join(os.path.dirname(path), CONFIG), name,
                                                          json.dumps(value)))
    return options


_ACCEPTED = {
    "base": lambda value: isinstance(value, str) and value in BACKBONES,
    "embedding_size": lambda value: type(value) is int and value >= 1,
    "l2normalize": lambda value: type(value) is bool,
    "dataset": lambda value: isinstance(value, str) and value in DATASETS,
    "data": lambda value: isinstance(value, str),
    "image_size": lambda value: type(value) is int and SMALLEST_IMAGE <= value <= LARGEST_IMAGE,
}
