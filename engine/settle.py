"""Check and complete the options (from a saved run, networks' files, defaults); choose device, precision and seed.

After this the options do not change.
"""
import collections
import contextlib
import copy
import json

from engine import ranks
from engine.device import resolve_device, seed_everything, use_threads
from engine.errors import UsageError
from engine.networks import (adopt_data, adopt_image_size, adopt_network, check_networks, read_network_file,
                             tell_guesses)
from engine.options import check_batches, check_data, check_shared, check_training
from engine.precision import resolve_precision
from engine.rundir import RunRecord, held_directory, saved_run
from engine.tracking import check_tracker
from metric.utils import MEASURES
from model import pretrained_file

Run = collections.namedtuple("Run", "args trains needs_pairs device precision files pretrained record is_resumed")
Run.__doc__ = """What a command does.

args: all options, a namedtuple. trains: whether it trains, or only measures.
needs_pairs: whether the loss needs two pictures of a class; two views of one picture are such a pair, too.
device, precision: a ``torch.device`` and a ``Precision``.
files: {prefix of a network's options: its ``NetworkFile``}, of those that are read.
pretrained: {prefix of a network's options: what its backbone begins from}, of those that are not read whole: the path
of weights, None for random ones, or "imagenet" for those that timm fetches.
record: the ``RunRecord`` of a training; it holds the state that the run goes on from, if ``is_resumed``.
"""


@contextlib.contextmanager
def settled(command, check, networks, data_options_from=None, trains=True):
    """Settle a command and yield its ``Run``. Within the block all ranks are connected, and no other run can write to
    --save_dir.

    Args:
        command: a ``Command``.
        check: (args, names of the given options) -> whether the loss needs two pictures of a class; the script's own
            checks.
        networks: [(option that names a network's file, prefix of its options)].
        data_options_from: the prefix of the network whose config.json says which pictures are used, or None.
        trains: whether the command trains.

    Raises:
        UsageError, DatasetError, WeightsError: it can't be done.
    """
    args, given, checked = copy.copy(command.args), command.given, command.given - command.excused
    args.recall = list(dict.fromkeys(args.recall))
    args.metrics = [name for name in MEASURES if name == "recall" or name in args.metrics]
    with ranks.joined(vars(args)), contextlib.ExitStack() as held:
        if trains:
            ranks.from_first(lambda: held.enter_context(held_directory(args.save_dir)))
        saved = saved_run(command, args) if trains else None
        check_shared(args, checked, trains)
        needs_pairs = check(args, checked) and args.views < 2
        if trains:
            check_training(args, checked)
            check_tracker(args)
            check_batches(args, needs_pairs)
        files = _read_files(args, given, networks, data_options_from, bool(saved))
        check_data(args)
        check_networks(args, [prefix for _, prefix in networks])
        args = collections.namedtuple("Options", sorted(vars(args)))(**vars(args))
        record = RunRecord(command.script, args._asdict(), saved, _files(networks),
                           command.defaults) if trains else None
        is_resumed = saved is not None
        del saved  # the record lets go of it, too, when it is restored
        device, precision = _start(args, command.idle, trains)
        # With --resume the weights of what is trained come from checkpoint.pth; those of a teacher don't.
        begin = [prefix for _, prefix in networks if prefix not in files and (prefix or not is_resumed)]
        pretrained = ranks.machine_by_machine(lambda: {prefix: pretrained_file(
            getattr(args, prefix + "base"), getattr(args, prefix + "pretrained")) for prefix in begin})
        yield Run(args, trains, needs_pairs, device, precision, files, pretrained, record, is_resumed)


def _read_files(args, given, networks, data_options_from, is_resumed):
    """Return ``Run.files``, and put into ``args`` what the files say and nobody gives."""
    files = {}
    for option, prefix in networks:
        # With --resume the weights of what is trained come from checkpoint.pth, so --load is not read.
        if getattr(args, option) is None or is_resumed and not prefix:
            continue
        base = getattr(args, prefix + "base") if is_resumed or prefix + "base" in given else None
        files[prefix] = read_network_file(getattr(args, option), base)
        # A run that goes on has all its options; the file must be of the same network.
        adopt_network(args, set(vars(args)) if is_resumed else given, files[prefix], prefix)
        if not is_resumed:
            if prefix == data_options_from:
                adopt_data(args, given, files[prefix], is_teacher=bool(prefix))
            tell_guesses(args, given, files[prefix], prefix, with_data=prefix == data_options_from)
    if not is_resumed and (data_options_from or "") not in files:
        adopt_image_size(args, given, getattr(args, (data_options_from or "") + "base"))
    return files


def _files(networks):
    """Return {option that may name a file that is read at each start: prefix of the options of its network}."""
    return dict(networks, **{prefix + "pretrained": prefix for _, prefix in networks if prefix})


def _start(args, idle, trains):
    """Seed every random source, print what the run will do, and return (device, ``Precision``)."""
    count, least = ranks.count(), 2 if trains and not (args.sync_bn or args.freeze_bn) else 1
    if count > 1 and args.batch < least * count:
        raise UsageError("--batch {} is divided among {} processes; take at least {}{}".format(
            args.batch, count, least * count, "" if least == 1 else
            ", or --sync_bn: a BatchNorm has nothing to learn from a single picture"))
    device, why = resolve_device(args.device)
    threads = use_threads(args.threads, device)
    ranks.use_device(device)
    precision, precision_why = resolve_precision(args.precision, device, not trains)
    ranks.agree({"--precision": precision.name})
    seed_everything(args.seed)
    used = {name: value for name, value in args._asdict().items() if name not in idle}
    print("Options: {}".format(json.dumps(used, sort_keys=True)))
    print("Seed: {}".format(args.seed))
    print("Device: {} ({})".format(device, why))
    print("Threads: {}".format(threads))
    print("Processes: {}".format(count if count == 1 else "{}, {} on this machine ({})".format(
        count, ranks.local()[1], "nccl" if device.type == "cuda" else "gloo")))
    print("Precision: {} ({})".format(precision.name, precision_why), flush=True)
    return device, precision
