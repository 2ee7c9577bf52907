"""Settle what a command does. From here on its options are final."""
import collections
import contextlib
import json

from engine import ranks
from engine.device import resolve_device, seed_everything, use_threads
from engine.errors import UsageError
from engine.networks import adopt_data, adopt_network, read_checkpoint
from engine.options import check_data, check_shared
from engine.precision import resolve_precision
from engine.rundir import RunRecord, held_directory, saved_run
from model import pretrained_file

NETWORKS = {"teacher_load": "teacher_", "load": ""}  # options that name a network's file: the prefix of its options

Run = collections.namedtuple("Run", "args training device precision checkpoints pretrained record is_resumed")
Run.__doc__ = """What a command does.

args: all options, a namedtuple. training: whether it trains, or only measures.
device, precision: a ``torch.device`` and a ``Precision``.
checkpoints: {"load" or "teacher_load": Checkpoint} of the network files that are read.
pretrained: path of the backbone's weights, or None.
record: the ``RunRecord`` of a training; it holds the state that the run goes on from, if ``is_resumed``.
"""


@contextlib.contextmanager
def settled(command, check, data_from=None, training=True):
    """Settle ``command`` and yield its ``Run``; within the block its processes act as one, and own its --save_dir.

    In this order: meet the other ranks, take --save_dir, go on with a saved run, check the options, read the networks'
    files (what the user doesn't state of a network is taken from its file), choose device and precision, seed.

    Args:
        command: a ``Command``.
        check: (args, stated) -> None; the script's own checks.
        data_from: the option whose network tells what pictures it was trained on, or None.
        training: whether the command trains.

    Raises:
        UsageError, DatasetError, WeightsError: it can't be done.
    """
    args, stated = type(command.args)(**vars(command.args)), command.stated
    with ranks.joined(vars(args)), contextlib.ExitStack() as held:
        if training:
            ranks.from_first(lambda: held.enter_context(held_directory(args.save_dir)))
        saved = saved_run(command, args) if training else None
        check_shared(args, stated, training)
        check(args, stated)
        checkpoints = {}
        for option, prefix in NETWORKS.items():
            # A student that goes on has its weights in the state.
            if getattr(args, option, None) and not (saved and option == "load"):
                checkpoints[option] = read_checkpoint(getattr(args, option), command.accepts)
                adopt_network(args, stated, checkpoints[option], prefix)
                if option == data_from and not saved:
                    adopt_data(args, stated, checkpoints[option])
        check_data(args)
        _check_parts(args, training)
        args = collections.namedtuple("Options", sorted(vars(args)))(**vars(args))
        record = RunRecord(command.script, args._asdict(), saved, list(NETWORKS)) if training else None
        device, precision = _start(args, training)
        pretrained = None
        if not saved and "load" not in checkpoints:
            pretrained = ranks.machine_by_machine(lambda: pretrained_file(args.base, args.pretrained))
        yield Run(args, training, device, precision, checkpoints, pretrained, record, saved is not None)


def _check_parts(args, training):
    """Refuse a batch that the ranks can't divide."""
    count, pictures_each = ranks.count(), 2 if training and not args.sync_bn else 1
    if count > 1 and args.batch < pictures_each * count:
        raise UsageError("--batch {} is divided among {} processes; take at least {}{}".format(
            args.batch, count, pictures_each * count, "" if pictures_each == 1 else
            ", or --sync_bn: a BatchNorm has nothing to learn from a single picture"))


def _start(args, training):
    """Seed every random source, print what the run will do, and return (device, ``Precision``)."""
    device, why = resolve_device(args.device)
    threads = use_threads(args.threads)
    ranks.use_device(device)
    precision, precision_why = resolve_precision(args.precision, device, not training)
    ranks.agree({"--precision": precision.name})
    seed_everything(args.seed)
    print("Options: {}".format(json.dumps(args._asdict(), sort_keys=True)))
    print("Seed: {}".format(args.seed))
    print("Device: {} ({})".format(device, why))
    print("Threads: {}".format(threads))
    print("Processes: {}".format(ranks.describe(device)))
    print("Precision: {} ({})".format(precision.name, precision_why), flush=True)
    return device, precision
