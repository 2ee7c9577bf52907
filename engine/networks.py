"""Networks and their files: read and build; options that are not given are taken from the file and its config.json."""
import collections
import os

from engine import ranks
from engine.batchnorm import synchronised
from engine.device import compiled, place
from engine.errors import UsageError
from engine.rundir import CONFIG, read_config
from model import BACKBONES, LinearEmbedding, WeightsError, build_backbone, fused, read_weights, recognise

NETWORK_OPTIONS = ("base", "embedding_size", "l2normalize")
DATA_OPTIONS = {"dataset": str, "data": str, "image_size": int, "skip_broken": bool}  # what they are in a config.json

NetworkFile = collections.namedtuple("NetworkFile", "path weights options")
NetworkFile.__doc__ = """A network's ``.pth``: its path, its state dict, and the options that are known of it: what the
tensors show (``base``, ``embedding_size``) and, where a ``config.json`` lies beside the file, what that says."""


def describe(options):
    """Return a network in words: "a ResNet18 with 64 dimensions, not L2-normalised"."""
    kind = BACKBONES.get(options["base"])
    words = "a {} with {} dimensions".format(kind.__name__ if kind else options["base"], options["embedding_size"])
    if options.get("l2normalize") is None:
        return words
    return words + (", L2-normalised" if options["l2normalize"] else ", not L2-normalised")


def read_network_file(path):
    """Return the ``NetworkFile`` at ``path``.

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
    options = _options_beside(path)
    if any(options.get(name, value) != value for name, value in found.items()):
        raise WeightsError("{} holds {}, but the {} beside it says {}; they don't belong together: move one of "
                           "them".format(path, describe(found), CONFIG, describe(dict(found, **options))))
    options.update(found)
    return NetworkFile(path, weights, options)


def _options_beside(path):
    """Return what the config.json beside the file ``path`` says of its network and its data; {} if there is none."""
    config = read_config(os.path.dirname(path))
    if config is None:
        return {}
    kinds = dict(DATA_OPTIONS, base=str, embedding_size=int, l2normalize=bool)
    options = {name: value for name, value in config["options"].items() if name in kinds}
    for name, value in options.items():
        if type(value) is not kinds[name]:
            raise WeightsError("{} gives {} the value {!r}; mend or remove it, and give the options".format(
                os.path.join(os.path.dirname(path), CONFIG), name, value))
    return options


def adopt_network(args, given, file, prefix=""):
    """Set the network options that are not given to those of a ``NetworkFile``.

    Raises:
        UsageError: what is given contradicts the file.
    """
    asked = {name: getattr(args, prefix + name) if prefix + name in given else file.options.get(name)
             for name in NETWORK_OPTIONS}
    if any(file.options.get(name) not in (None, value) for name, value in asked.items()):
        raise UsageError("{} holds {}; you asked for {}".format(file.path, describe(file.options), describe(asked)))
    for name, value in asked.items():
        if value is not None:
            setattr(args, prefix + name, value)


def adopt_data(args, given, file):
    """Set the data options that are not given to those that the network in a ``NetworkFile`` was trained with."""
    taken = {name: file.options[name] for name in DATA_OPTIONS if name not in given and name in file.options}
    if "dataset" in given and args.dataset != file.options.get("dataset"):
        for name in ("data", "skip_broken"):  # they are about another data set
            taken.pop(name, None)
    for name, value in taken.items():
        setattr(args, name, value)
    words = ["--" + name if value is True else "--{} {}".format(name, value)
             for name, value in sorted(taken.items()) if value is not False]
    if words:
        print("From {}: {}".format(os.path.join(os.path.dirname(file.path), CONFIG), ", ".join(words)))


def build_network(options, file=None, pretrained=None, **backbone_options):
    """Return the embedding network that ``options`` (base, embedding_size, l2normalize) describe.

    Args:
        options: a dict. file: a ``NetworkFile`` with its weights, or None.
        pretrained: path of weights of the backbone; None for random ones. Not looked at beside ``file``.

    Raises:
        WeightsError
    """
    backbone = build_backbone(options["base"], None if file else pretrained, **backbone_options)
    network = LinearEmbedding(backbone, backbone.output_size, options["embedding_size"], options["l2normalize"])
    if file:
        try:
            network.load_state_dict(file.weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError("{} does not fit {}: {}".format(file.path, describe(options), first)) from None
    return network


def open_network(run, prefix="", title="Network"):
    """Return the network that the options of ``run`` with this prefix describe, with its weights, on its device."""
    options = {name: getattr(run.args, prefix + name) for name in NETWORK_OPTIONS}
    more = {} if prefix else {"pretrained": run.pretrained, "zero_init_residual": run.args.zero_init_residual}
    # Taken out of the run: its weights need no memory any more.
    network = place(build_network(options, run.files.pop(prefix, None), **more), run.device)
    print("{}: {}".format(title, describe(options)), flush=True)
    if run.args.compile and not prefix:
        compiled(network)
    return network


def frozen(run, network):
    """Return a faster copy of ``network``, in evaluation mode, that can't be trained: BatchNorm folded, compiled with
    --compile."""
    network = place(fused(network), run.device)
    if run.args.compile:
        compiled(network)
    return network


def for_steps(run, network):
    """Return ``network`` wrapped for training steps on several ranks (DDP, --sync_bn): the same weights."""
    return ranks.parallel(synchronised(network, run.device) if run.args.sync_bn else network, run.device)
