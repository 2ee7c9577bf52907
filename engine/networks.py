"""Networks and their files: read, build, and let ``config.json`` speak for what the user does not state."""
import collections
import json
import os

from engine import ranks
from engine.batchnorm import synchronised
from engine.device import compiled, place
from engine.errors import UsageError
from engine.rundir import CONFIG, read_config
from model import BACKBONES, LinearEmbedding, WeightsError, build_backbone, fused, read_weights, recognise

NETWORK_OPTIONS = ("base", "embedding_size", "l2normalize")
DATA_OPTIONS = ("dataset", "data", "image_size")

Checkpoint = collections.namedtuple("Checkpoint", "path weights options")
Checkpoint.__doc__ = """A state dict with the options that are known of its network: what the tensors tell (``base``,
``embedding_size``) and, where a ``config.json`` lies beside the file, what that tells."""


def describe(options):
    """Return a network in words: "a ResNet18 with 64 dimensions, not L2-normalised"."""
    words = "a {} with {} dimensions".format(BACKBONES[options["base"]].__name__, options["embedding_size"])
    if options.get("l2normalize") is None:
        return words
    return words + (", L2-normalised" if options["l2normalize"] else ", not L2-normalised")


def read_checkpoint(path, accepts):
    """Read a network's ``.pth`` and the ``config.json`` beside it, if there is one.

    Args:
        accepts: as in ``options.Command``.

    Raises:
        WeightsError: no such file, damaged, not one of our networks, or not the network that config.json describes.
    """
    weights = read_weights(path)
    head = weights.get("linear.weight")
    base = recognise({name[len("base."):]: value for name, value in weights.items() if name.startswith("base.")})
    if base is None or head is None or head.dim() != 2:
        raise WeightsError("{} is not an embedding network of this project (linear.weight, and base.* of one of {}); a "
                           "torchvision state dict goes to --pretrained".format(path, ", ".join(BACKBONES)))
    found = {"base": base, "embedding_size": int(head.shape[0])}
    options = _options_beside(path, accepts)
    if any(options.get(name, value) != value for name, value in found.items()):
        raise WeightsError("{} holds {}, but the {} beside it says {}; they don't belong together: move one of "
                           "them".format(path, describe(found), CONFIG, describe(dict(found, **options))))
    options.update(found)
    return Checkpoint(path, weights, options)


def _options_beside(path, accepts):
    """Return what the config.json beside the file ``path`` says of its network and its data; {} if there is none."""
    config = read_config(os.path.dirname(path))
    if config is None:
        return {}
    options = {name: config["options"].get(name) for name in NETWORK_OPTIONS + DATA_OPTIONS}
    for name, value in options.items():
        if not accepts(name, value):
            raise WeightsError("{} gives {} the value {}, which this version does not know; mend or remove it, and "
                               "state the options".format(os.path.join(os.path.dirname(path), CONFIG), name,
                                                          json.dumps(value)))
    return options


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


def build_network(options, checkpoint=None, pretrained=None, **backbone_options):
    """Return the embedding network that ``options`` (base, embedding_size, l2normalize) describe.

    Args:
        options: a dict; see ``describe``.
        checkpoint: weights of the whole network; then ``pretrained`` is not looked at.
        pretrained: weights of the backbone, the path of a file; None for random ones.

    Raises:
        WeightsError
    """
    backbone = build_backbone(options["base"], "none" if checkpoint else pretrained, **backbone_options)
    network = LinearEmbedding(backbone, backbone.output_size, options["embedding_size"], options["l2normalize"])
    if checkpoint:
        try:
            network.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError("{} does not fit {}: {}".format(checkpoint.path, describe(options), first)) from None
    return network


def open_network(run, prefix="", title="Network"):
    """Return the network that the options of ``run`` with this prefix describe, with its weights, on its device.

    Args:
        run: a ``settle.Run``. title: for the printed line.
    """
    options = {name: getattr(run.args, prefix + name) for name in NETWORK_OPTIONS}
    more = {} if prefix else {"pretrained": run.pretrained, "zero_init_residual": run.args.zero_init_residual}
    network = place(build_network(options, run.checkpoints.get(prefix + "load"), **more), run.device)
    print("{}: {}".format(title, describe(options)), flush=True)
    if run.args.compile and not prefix:
        compiled(network)
    return network


def frozen(run, network):
    """Return a faster copy of ``network`` that can't be trained: BatchNorm folded, compiled with --compile."""
    network = place(fused(network), run.device)
    if run.args.compile:
        compiled(network)
    return network


def for_steps(run, network):
    """Return ``network`` as training steps call it on several ranks; both share their weights."""
    return ranks.parallel(synchronised(network, run.device) if run.args.sync_bn else network, run.device)
