"""Which run a --save_dir holds: go on with it, or keep off it."""
import os

from engine import ranks
from engine.errors import UsageError
from engine.files import CHECKPOINT, CONFIG, CONTENT, RESULT, read_config
from engine.options import accepts
from engine.state import read_state
from model import WeightsError

__all__ = ["saved_run", "refuse_other_run"]

# About how a run runs; commands that differ only in these are for the same run.
FREE = {"workers", "cache", "device", "download", "compile", "checkpoint_every", "resume", "overwrite", "save_dir"}
# A run may be made longer, and its files may have moved: that they are the same is seen from their content.
FREE_TO_GO_ON = FREE | {"epochs", "data", "teacher_load"}
# What a run that goes on takes from the command line or this machine, never from the one that it began with.
OF_THIS_COMMAND = {"resume", "overwrite", "save_dir", "workers", "download"}


def saved_run(args, stated, parser):
    """With --resume, return the content of the run's checkpoint and put its options into ``args``.

    Returns None without --resume, and where the run has not begun yet.

    Args:
        args, stated: as ``options.parse`` gives them. parser: of the script.

    Raises:
        UsageError: there is nothing to go on from, or the command states other options than the run has.
        WeightsError: the checkpoint is damaged.
    """
    if not args.resume:
        return None
    saved, values = ranks.from_first(lambda: (_saved_run(args, stated, parser), vars(args)))
    vars(args).update({name: value for name, value in values.items() if name not in ranks.OF_A_MACHINE & stated})
    return saved


def _saved_run(args, stated, parser):
    if args.save_dir is None:
        raise UsageError("--resume needs --save_dir, the directory of the run to go on with")
    if args.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite throws it away; give one of them")
    path = os.path.join(args.save_dir, CHECKPOINT)
    if not os.path.lexists(path):
        _refuse_without_checkpoint(args, stated)
        print("Resume: no {} yet; the run starts from the beginning".format(path), flush=True)
        return None
    saved = read_state(path)
    if saved["script"] != parser.prog:
        raise UsageError("{} is of {}; go on with that script".format(path, saved["script"]))
    config = read_config(args.save_dir)
    foreign = config and _differences(config["options"], saved["options"], FREE_TO_GO_ON)
    if foreign:
        raise UsageError("{} is not of the run that {} beside it describes ({}); one of them was put there".format(
            path, CONFIG, foreign))
    wanted = {name: getattr(args, name) for name in stated}
    differing = _differences(saved["options"], wanted, FREE_TO_GO_ON)
    if differing:
        raise UsageError("--save_dir {} holds a run with other options ({}); leave them out to go on with it, or give "
                         "this run a directory of its own".format(args.save_dir, differing))
    for name, value in saved["options"].items():
        if name in OF_THIS_COMMAND or name in FREE_TO_GO_ON & stated or not hasattr(args, name):
            continue
        if not accepts(parser, name, value):
            raise WeightsError("{} gives --{} the value {!r}, which this version does not know".format(
                path, name, value))
        setattr(args, name, value)
    if saved["progress"]["batch"] > args.iter_per_epoch:
        raise WeightsError("{} has done more batches of an epoch than there are".format(path))
    done = saved["progress"]["epoch"] - 1
    if args.epochs < done:
        raise UsageError("--epochs {}: the run in {} has done {} already".format(args.epochs, args.save_dir, done))
    return saved


def refuse_other_run(directory, script, options):
    """Refuse a directory that holds a run, unless --overwrite is given.

    Raises:
        UsageError: says whether it is this very run, finished or not, or another one, and what differs.
    """
    present = [name for name in CONTENT if os.path.exists(os.path.join(directory, name))]
    if options["overwrite"]:
        return
    config = read_config(directory)
    if not present:
        return
    if config is None:
        raise UsageError("--save_dir {} holds {} of another run; give this run a directory of its own, or replace that "
                         "one with --overwrite".format(directory, present[0]))
    differing = _differences(config["options"], options, FREE)
    if config.get("script") != script:
        differing = "it is of {}".format(config.get("script"))
    if differing:
        raise UsageError("--save_dir {} holds another run ({}); give this run a directory of its own, replace that one "
                         "with --overwrite, or go on with that one with --resume".format(directory, differing))
    if RESULT in present:
        raise UsageError("--save_dir {} holds this run, finished; --overwrite does it again, --resume with more "
                         "--epochs goes on".format(directory))
    if CHECKPOINT in present:
        raise UsageError("--save_dir {} holds this run, interrupted; --resume goes on with it, --overwrite starts it "
                         "again".format(directory))
    raise UsageError("--save_dir {} holds this run without a {}, so it can't go on; --overwrite starts it again".format(
        directory, CHECKPOINT))


def _refuse_without_checkpoint(args, stated):
    present = [name for name in CONTENT if os.path.exists(os.path.join(args.save_dir, name))]
    if present:
        raise UsageError("--save_dir {} holds {} but no {}, so there is nothing to go on from; --overwrite instead of "
                         "--resume starts again".format(args.save_dir, present[0], CHECKPOINT))
    if not stated - {"resume", "save_dir", "checkpoint_every", "workers", "cache", "device"}:
        raise UsageError("--save_dir {} holds no {} to go on from".format(args.save_dir, CHECKPOINT))


def _differences(there, here, free):
    """Return in words what differs between two sets of options, where both have it and it is not in ``free``."""
    return ", ".join("--{} {} there, {} here".format(name, _shown(there[name]), _shown(here[name]))
                     for name in sorted(set(there) & set(here) - free) if there[name] != here[name])


def _shown(value):
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
