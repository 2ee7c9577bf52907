"""Networks and their files: read and build; options that are not given are taken from the file and its config.json."""
import collections
import os
import reprlib

from dataset import RESIZES, TRUNCATED
from engine import ranks
from engine.arguments import as_typed, in_words
from engine.batchnorm import synchronised
from engine.device import compiled, place
from engine.errors import UsageError
from engine.options import LARGEST_IMAGE, SMALLEST_IMAGE
from engine.rundir import CONFIG, equal, read_config
from model import (BACKBONES, POOLS, LinearEmbedding, WeightsError, build_backbone, check_backbone, find_backbone,
                   fused, read_weights, recognise)

NETWORK_OPTIONS = ("base", "embedding_size", "l2normalize", "pool")
# What they are in a config.json.
DATA_OPTIONS = {"dataset": str, "data": str, "image_size": int, "resize": str, "skip_broken": bool,
                "skip_single": bool, "truncated": str}
HELD_OUT = "val_classes"  # a student takes this from its teacher's config.json; to measure a network needs none
OF_ANY_DATA = ("image_size", "resize")  # those that hold for other pictures, too
KINDS = dict(DATA_OPTIONS, val_classes=int, base=str, embedding_size=int, l2normalize=bool, pool=str)

NOTED = ("base", "l2normalize", "pool") + OF_ANY_DATA  # in a file, see ``LinearEmbedding``

NetworkFile = collections.namedtuple("NetworkFile", "path weights options")
NetworkFile.__doc__ = """A network's ``.pth``: its path, its state dict, and the options that are known of it: what the
tensors show (``base``, ``embedding_size``), what the file notes beside them (``NOTED``), and what the ``config.json``
beside the file says, if there is one."""


def describe(options):
    """Return a network in words: "a ResNet18 with 64 dimensions, not L2-normalised"."""
    kind = BACKBONES.get(options["base"])
    name = kind.__name__ if kind else options["base"]
    words = "{} {} {}".format(
        "an" if name[:1] in "aeiou" else "a", name, "with {} dimensions".format(options["embedding_size"])
        if options["embedding_size"] else "without a head")
    if options.get("pool") not in (None, "avg"):
        words += ", pooled by {}".format(options["pool"])
    if options.get("l2normalize") is None:
        return words
    return words + (", L2-normalised" if options["l2normalize"] else ", not L2-normalised")


def describe_network(args, prefix=""):
    """Return in words the network whose options, in ``args``, have this prefix."""
    return describe({name: getattr(args, prefix + name) for name in NETWORK_OPTIONS})


def read_network_file(path, base=None):
    """Return the ``NetworkFile`` at ``path``.

    Args:
        base: the backbone that the command line names, where the file does not show which one it has; None for none.

    Raises:
        WeightsError: no such file, damaged, not one of our networks, or not the network that config.json describes.
    """
    config = read_config(os.path.dirname(path))
    options = {} if config is None else _checked(config["options"], os.path.join(os.path.dirname(path), CONFIG),
                                                 "mend or remove it, and give the options", KINDS)
    named = base or options.get("base")
    there = read_weights(path, ("base", "linear"), lambda found: _misfit(found, named))
    head = there.weights.get("linear.weight")
    found = {"base": _base_of(there, named), "embedding_size": 0 if head is None else len(head)}
    if there.notes is not None:
        found.update(_checked(there.notes, path, "save its tensors in a plain dict, and give the options", NOTED))
    if "base.pool.p" in there.weights:
        found["pool"] = "gem"
    if any(options.get(name, value) != value for name, value in found.items() if name in NETWORK_OPTIONS):
        raise WeightsError("{} holds {}, but the {} beside it says {}; they don't belong together: move one of "
                           "them".format(path, describe(found), CONFIG, describe(dict(found, **options))))
    options.update(found)
    return NetworkFile(path, there.weights, options)


def _misfit(found, named):
    """Return in words why a ``Found`` is not an embedding network; None if it is one."""
    head, heads = found.weights.get("linear.weight"), [name for name in found.weights if name.startswith("linear.")]
    if _base_of(found, named) is not None and (not heads or head is not None and head.dim() == 2):
        return None
    return ("is not an embedding network of this project (base.* of a network that --list_backbones names, and "
            "linear.weight if it has a head); a torchvision state dict goes to --pretrained, with --embedding_size 0 "
            "if it is to be measured as it comes. A network of timm whose file doesn't note its name needs --base")


def _base_of(found, named):
    """Return the name of the backbone of a ``Found``: that which its tensors show, else that which it notes, else
    ``named``; None if it has no backbone, or of an unknown name.

    The tensors of a network and of its ``torchvision/`` way are the same, and those of some networks of timm are called
    like torchvision's; then what is noted or named decides.
    """
    weights = {name[len("base."):]: value for name, value in found.weights.items() if name.startswith("base.")}
    if not weights:
        return None
    shown, noted = recognise(weights), found.notes.get("base") if isinstance(found.notes, dict) else None
    stated = noted if isinstance(noted, str) else named
    decides = shown is None or stated is not None and (stated == "torchvision/" + shown or stated.startswith("timm/"))
    return stated if decides else shown


def _checked(values, source, advice, names):
    """Return the entries of ``values`` that are in ``names``, if each has a value that such an option can have."""
    if not isinstance(values, dict):
        raise WeightsError("{} gives its options as a {}; {}".format(source, type(values).__name__, advice))
    options = {name: value for name, value in values.items() if name in names}
    for name, value in options.items():
        if (type(value) is not KINDS[name] or name == "image_size" and not SMALLEST_IMAGE <= value <= LARGEST_IMAGE
                or name == HELD_OUT and value < 0
                or name == "resize" and value not in RESIZES or name == "pool" and value not in POOLS
                or name == "truncated" and value not in TRUNCATED):
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


def adopt_data(args, given, file, is_teacher):
    """Set the data options that are not given to those that the network in a ``NetworkFile`` was trained with."""
    names = list(DATA_OPTIONS) + [HELD_OUT] * (is_teacher and args.unlabelled is None)
    taken = {name: file.options[name] for name in names if name not in given and name in file.options}
    if "dataset" in given and args.dataset != file.options.get("dataset"):
        taken = {name: value for name, value in taken.items() if name in OF_ANY_DATA}  # the rest is of another set
    changes = {name: value for name, value in taken.items() if getattr(args, name) != value}
    for name, value in changes.items():
        setattr(args, name, value)
    if changes:
        source = os.path.join(os.path.dirname(file.path), CONFIG) if "dataset" in file.options else file.path
        print("From {}: {}".format(source, in_words(changes)))
    same = all(name in file.options and equal(name, file.options[name], getattr(args, name))
               for name in ("dataset", "data"))
    if is_teacher and same and args.val_classes > file.options.get(HELD_OUT, 0):
        print("Warning: {} was trained on classes that --val_classes {} holds out here, so their recall flatters the "
              "student; train the teacher with the same --val_classes".format(file.path, args.val_classes))


def adopt_image_size(args, given, base):
    """Set ``--image_size``, if it is not given, to that which a backbone is made for."""
    own = find_backbone(base).image_size
    if own not in (None, args.image_size) and "image_size" not in given:
        args.image_size = own
        print("From {}: --image_size {}".format(base, own))


def tell_guesses(args, given, file, prefix="", with_data=False):
    """Print which options nobody knows: neither the command nor the file says them, so their defaults are taken. Print,
    too, that the file was trained with another --image_size or --resize where nobody asked for that."""
    wanted = {"l2normalize": prefix + "l2normalize"}
    if with_data:
        wanted.update(image_size="image_size", dataset="dataset")
    if "l2normalize" not in file.options and prefix + "l2normalize" not in given:  # a file that notes nothing
        wanted["pool"] = prefix + "pool"
    words = ["--{} {}".format(option, as_typed(getattr(args, option))) for name, option in wanted.items()
             if option not in given and name not in file.options]
    if words:
        print("Warning: {} doesn't say how its network was trained; {} {} taken: give {} to be sure".format(
            file.path, " and ".join(words), *("are", "them") if len(words) > 1 else ("is", "it")), flush=True)
    for name in OF_ANY_DATA:
        taken = getattr(args, name)
        noted = file.options.get(name, "square" if name == "resize" else taken)  # a file that doesn't say it means this
        if name not in given and noted != taken:
            print("Note: {} was trained with --{} {}; this run takes {}".format(file.path, name, noted, taken),
                  flush=True)


def check_networks(args, prefixes):
    """Refuse networks, those with these prefixes, that can't be built or can't take pictures of ``--image_size``.

    Raises:
        UsageError
    """
    for prefix in prefixes:
        try:
            check_backbone(getattr(args, prefix + "base"), args.image_size, getattr(args, prefix + "pool"))
        except WeightsError as error:
            raise UsageError("--{}base {}".format(prefix, error)) from None
    if args.zero_init_residual and "zero_init_residual" not in find_backbone(args.base).takes:
        raise UsageError("--zero_init_residual does nothing with --base {}; leave it out".format(args.base))


def build_network(options, file=None, pretrained=None, **backbone_options):
    """Return the embedding network that ``options`` (base, embedding_size, l2normalize) describe.

    Args:
        options: a dict, perhaps with the pool, and the image_size and resize that it is trained with.
        file: a ``NetworkFile`` with its weights, or None.
        pretrained: path of weights of the backbone; None for random ones. Not looked at beside ``file``.

    Raises:
        WeightsError
    """
    backbone = build_backbone(options["base"], None if file else pretrained, options.get("pool") or "avg",
                              image_size=options.get("image_size"), **backbone_options)
    network = LinearEmbedding(backbone, backbone.output_size, options["embedding_size"], options["l2normalize"],
                              options.get("image_size"), options.get("resize"))
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
    if run.args.resize != "square":  # a file that doesn't say it means this
        options["resize"] = run.args.resize
    more = {} if prefix else {"zero_init_residual": run.args.zero_init_residual}
    # Taken out of the run: its weights need no memory any more.
    network = place(build_network(options, run.files.pop(prefix, None), run.pretrained.get(prefix),
                                  **more), run.device)
    print("{}: {}".format(title, describe_network(run.args, prefix)), flush=True)
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
