"""``--log``: the figures of log.jsonl go to TensorBoard, Weights & Biases or Trackio, too, epoch by epoch.

A tracker is an extra: whatever goes wrong with it while a run is going on is a warning, and the run goes on.
"""
import collections
import contextlib
import importlib.util
import json
import os
import uuid

from engine.errors import UsageError

PROJECT = "rkd"  # what the runs are filed under where a tracker has projects
IDENTITY = "tracker_id.txt"  # in --save_dir: by what a tracker knows the run when it goes on

Tracker = collections.namedtuple("Tracker", "package open")
Tracker.__doc__ = """A tracker: its pip package, and (options, first epoch that is sent) -> (what takes {name: number}
and an epoch, what ends it)."""


def _tensorboard(args, epoch):
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(os.path.join(args.save_dir, "tensorboard"), purge_step=epoch)

    def write(values, epoch):
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()
    return write, writer.close


def _wandb(args, epoch):
    import wandb
    # Without a word of the user's it stays on this machine; `wandb sync` sends it later.
    run = wandb.init(project=PROJECT, name=_name(args), id=_identity(args, epoch), resume="allow", dir=args.save_dir,
                     config=args._asdict(), mode=os.environ.get("WANDB_MODE", "offline"))
    return lambda values, epoch: run.log(values, step=epoch), run.finish


def _trackio(args, epoch):
    import trackio
    trackio.init(project=PROJECT, name="{}-{}".format(_name(args), _identity(args, epoch)[:8]), resume="allow",
                 config=args._asdict())
    return lambda values, epoch: trackio.log(values, step=epoch), trackio.finish


# One more tracker is one row.
TRACKERS = {"tensorboard": Tracker("tensorboard", _tensorboard), "wandb": Tracker("wandb", _wandb),
            "trackio": Tracker("trackio", _trackio)}


def _name(args):
    return os.path.basename(os.path.abspath(args.save_dir))


def _identity(args, epoch):
    """Return by what a tracker knows this run: new for one that begins, the same one for one that goes on."""
    path = os.path.join(args.save_dir, IDENTITY)
    if epoch > 0 and os.path.exists(path):
        with open(path) as file:
            return file.read().strip()
    identity = uuid.uuid4().hex
    with open(path, "w") as file:
        file.write(identity + "\n")
    return identity


def check_tracker(args):
    """Refuse (UsageError) ``--log`` without --save_dir or without the tracker's package."""
    if args.log == "none":
        return
    if args.save_dir is None:
        raise UsageError("--log {} needs --save_dir, the directory of the run".format(args.log))
    package = TRACKERS[args.log].package
    if importlib.util.find_spec(package) is None:
        raise UsageError("--log {0} needs the package {1}: pip install {1}".format(args.log, package))


def scalars(line):
    """Return {name: number} of a line of log.jsonl, a dict: {"loss": 0.1, "terms/dist": 0.1, "recall@1/test": 0.5}."""
    found = {}
    for name, value in line.items():
        if name == "recall":
            found.update(("recall@{}/{}".format(k, split), number)
                         for split, numbers in value.items() for k, number in numbers.items())
        elif isinstance(value, dict):
            found.update(("{}/{}".format(name, part), number) for part, number in value.items())
        elif isinstance(value, (int, float)) and name != "epoch":
            found[name] = value
    return found


class _Sender:
    """Sends lines of log.jsonl to a tracker, which is opened when the first one comes; None: no-op."""

    def __init__(self, tracker, args):
        self.tracker, self.args = tracker, args
        self._write = self._end = None

    def send(self, line):
        if self.tracker is not None:
            self._try(lambda: self._send(json.loads(line)))

    def _send(self, line):
        if self._write is None:
            self._write, self._end = self.tracker.open(self.args, line["epoch"])
        self._write(scalars(line), line["epoch"])

    def end(self):
        if self._end is not None:
            self._try(self._end)

    def _try(self, act):
        try:
            act()
        except Exception as error:  # of any type, by package; the run is worth more than its tracker
            self.tracker = None
            print("Warning: --log {} gives up ({}: {}); log.jsonl has all figures".format(
                self.args.log, type(error).__name__, " ".join(str(error).split())), flush=True)


@contextlib.contextmanager
def tracked(args, writes):
    """Yield what ``send``s a line of log.jsonl to the tracker of ``--log``; writes: whether this rank does so."""
    sender = _Sender(TRACKERS.get(args.log) if writes else None, args)
    try:
        yield sender
    finally:
        sender.end()
