"""Networks and their files: read and build; options that are not given are taken from the file and its config.json."""
import collections
import os
import reprlib

from engine import ranks
from engine.batchnorm import synchronised
from engine.device import compiled, place
from engine.errors import UsageError
from engine.options import LARGEST_IMAGE, SMALLEST_IMAGE, as_typed
from engine.rundir import CONFIG, read_config
from model import BACKBONES, LinearEmbedding, WeightsError, build_backbone, fused, read_weights, recognise

NETWORK_OPTIONS = ("base", "embedding_size", "l2normalize")
# What they are in a config.json.
DATA_OPTIONS = {"dataset": str, "data": str, "image_size": int, "skip_broken": bool, "skip_single": bool,
                "truncated": str}
KINDS = dict(DATA_OPTIONS, base=str, embedding_size=int, l2normalize=bool)

NetworkFile = collections.namedtuple("NetworkFile", "path weights options")
NetworkFile.__doc__ = """A network's ``.pth``: its path, its state dict, and the options that are known of it: what the
tensors show (``base``, ``embedding_size``), what the file notes beside them (``l2normalize``, ``image_size``), and what
the ``config.json`` beside the file says, if there is one."""


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
    there = read_weights(path, ("base", "linear"), _misfit)
    found = {"base": _base_of(there.weights), "embedding_size": int(there.weights["linear.weight"].shape[0])}
    if there.notes is not None:
        found.update(_checked(there.notes, path, "save its tensors in a plain dict, and give the options", (
            "l2normalize", "image_size")))
    config = read_config(os.path.dirname(path))
    options = {} if config is None else _checked(config["options"], os.path.join(os.path.dirname(path), CONFIG),
                                                 "mend or remove it, and give the options", KINDS)
    if any(options.get(name, value) != value for name, value in found.items() if name in NETWORK_OPTIONS):
        raise WeightsError("{} holds {}, but the {} beside it says {}; they don't belong together: move one of "
                           "them".format(path, describe(found), CONFIG, describe(dict(found, **options))))
    options.update(found)
    return NetworkFile(path, there.weights, options)


def _misfit(found):
    """Return in words why a ``Found`` is not an embedding network; None if it is one."""
    head = found.weights.get("linear.weight")
    if _base_of(found.weights) is not None and head is not None and head.dim() == 2:
        return None
    return ("is not an embedding network of this project (linear.weight, and base.* of one of {}); a torchvision state "
            "dict goes to --pretrained".format(", ".join(BACKBONES)))


def _base_of(weights):
    return recognise({name[len("base."):]: value for name, value in weights.items() if name.startswith("base.")})


def _checked(values, source, advice, names):
    """Return the entries of ``values`` that are in ``names``, if each has a value that such an option can have."""
    if not isinstance(values, dict):
        raise WeightsError("{} gives its options as a {}; {}".format(source, type(values).__name__, advice))
    options = {name: value for name, value in values.items() if name in names}
    for name, value in options.items():
        if type(value) is not KINDS[name] or name == "image_size" and not SMALLEST_IMAGE <= value <= LARGEST_IMAGE:
            raise WeightsError("{} gives {} the value {}; {}".format(
                source, name, reprlib.repr(value) if isinstance(value, (str, int)) else type(value).__name__, advice))
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
        taken = {name: value for name, value in taken.items() if name == "image_size"}  # the rest is of another set
    changes = {name: value for name, value in taken.items() if getattr(args, name) != value}
    for name, value in changes.items():
        setattr(args, name, value)
    words = ["--" + name if value is True else "--{} {}".format(name, value) for name, value in sorted(changes.items())]
    if words:
        source = os.path.join(os.path.dirname(file.path), CONFIG) if "dataset" in file.options else file.path
        print("From {}: {}".format(source, ", ".join(words)))


def tell_guesses(args, given, file, prefix="", with_data=False):
    """Print which options nobody knows: neither the command nor the file says them, so their defaults are taken. Print,
    too, that the file was trained with another --image_size where nobody asked for that."""
    wanted = {"l2normalize": prefix + "l2normalize"}
    if with_data:
        wanted["image_size"] = "image_size"
    words = ["--{} {}".format(option, as_typed(getattr(args, option))) for name, option in wanted.items()
             if option not in given and name not in file.options]
    if words:
        print("Warning: {} doesn't say how its network was trained; {} {} taken: give {} to be sure".format(
            file.path, " and ".join(words), *("are", "them") if len(words) > 1 else ("is", "it")), flush=True)
    noted = file.options.get("image_size", args.image_size)
    if "image_size" not in given and noted != args.image_size:
        print("Note: {} was trained with --image_size {}; this run takes {}".format(
            file.path, noted, args.image_size), flush=True)


def build_network(options, file=None, pretrained=None, **backbone_options):
    """Return the embedding network that ``options`` (base, embedding_size, l2normalize) describe.

    Args:
        options: a dict, perhaps with the image_size that it is trained on. file: a ``NetworkFile`` with its weights, or
            None.
        pretrained: path of weights of the backbone; None for random ones. Not looked at beside ``file``.

    Raises:
        WeightsError
    """
    backbone = build_backbone(options["base"], None if file else pretrained, **backbone_options)
    network = LinearEmbedding(backbone, backbone.output_size, options["embedding_size"], options["l2normalize"],
                              options.get("image_size"))
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
    options["image_size"] = run.args.image_size
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


def for_evaluation(run, network):
    """Return what ``network`` is measured with: a copy with BatchNorm folded.

    With --compile it is ``network`` itself, since each copy would have to be compiled; with --sync_bn, too, since
    PyTorch's SyncBatchNorm can't be copied.
    """
    return network if run.args.compile or run.args.sync_bn else place(fused(network), run.device)


def for_steps(run, network):
    """Return ``network`` wrapped for training steps on several ranks (DDP, --sync_bn): the same weights."""
    return ranks.parallel(synchronised(network, run.device) if run.args.sync_bn else network, run.device)
