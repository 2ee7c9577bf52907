"""Which run a --save_dir holds: continue it, or refuse to touch it."""
import os

from engine import ranks
from engine.errors import UsageError
from engine.arguments import as_typed
from engine.rundir.files import CHECKPOINT, CONTENT, RESULT, read_config
from engine.rundir.paths import equal
from engine.rundir.state import read_state

# Sets of options. Commands that differ in these only are for the same run.
NOT_PART_OF_THE_RUN = {"workers", "threads", "cache", "device", "download", "compile", "checkpoint_every", "resume",
                       "overwrite", "save_dir", "recipe", "diagnose", "log"}
# A run may be made longer or shorter, and files may have moved: that they are the same is seen from their content.
MAY_CHANGE_ON_RESUME = NOT_PART_OF_THE_RUN | {"epochs", "data", "unlabelled", "teacher_load", "teacher_pretrained"}
# A run that goes on takes these from the command line or this machine, never from its state.
NEVER_FROM_THE_STATE = {"resume", "overwrite", "save_dir", "workers", "download"}


def saved_run(command, args):
    """With --resume, return the state of the run and put its options into ``args``.

    Returns None without --resume, and where the run has not begun yet.

    Args:
        command: a ``Command``. args: its options, which are changed here.

    Raises:
        UsageError: there is nothing to go on from, or the command gives other options than the run has.
        WeightsError: the state is damaged.
    """
    if not args.resume:
        return None
    saved, options = ranks.from_first(lambda: _saved_run(command, args))
    for name, value in options.items():
        # What may differ stays as this machine's command gives it, or as its defaults are.
        if not (name in ranks.MAY_DIFFER and (name in command.given or name in NEVER_FROM_THE_STATE)):
            setattr(args, name, value)
    return saved


def _saved_run(command, args):
    """Return (state or None, {option: value} that the run goes on with)."""
    if args.save_dir is None:
        raise UsageError("--resume needs --save_dir, the directory of the run to go on with")
    if args.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite throws it away; give one of them")
    path = os.path.join(args.save_dir, CHECKPOINT)
    if not os.path.lexists(path):
        _refuse_without_checkpoint(command, args)
        print("Resume: no {} yet; the run starts from the beginning".format(path), flush=True)
        return None, {}
    saved = read_state(path)
    if saved["script"] != command.script:
        raise UsageError("{} is of {}; go on with that script".format(path, saved["script"]))
    wanted = {name: getattr(args, name) for name in command.given}
    # A run of an earlier version was made as today's defaults say, where it doesn't know an option.
    differing = _differences({**command.defaults, **saved["options"]}, wanted, MAY_CHANGE_ON_RESUME)
    if differing:
        raise UsageError("--save_dir {} holds a run with other options ({}); leave them out to go on with it, or give "
                         "this run a directory of its own".format(args.save_dir, differing))
    options = {name: value for name, value in saved["options"].items() if hasattr(args, name)
               and name not in NEVER_FROM_THE_STATE | (MAY_CHANGE_ON_RESUME & command.given)}
    options = dict(vars(args), **options)
    done, has_begun = saved["progress"]["epoch"] - 1, saved["progress"]["batch"] > 0
    if options["epochs"] < done + has_begun:
        raise UsageError("--epochs {}: the run in {} has done {} already{}".format(
            options["epochs"], args.save_dir, done, " and begun the next one" if has_begun else ""))
    if options["schedule"] == "cosine" and options["epochs"] != saved["options"]["epochs"]:
        print("Note: from here on the learning rate follows a cosine over {} epochs; before it was one over {}".format(
            options["epochs"], saved["options"]["epochs"]), flush=True)
    return saved, options


def refuse_other_run(directory, script, options):
    """Refuse a directory that holds a run, unless --overwrite is given; to a diagnosis, one that holds another run.

    Raises:
        UsageError: says whether it is this very run, finished or not, or another one, and what differs.
    """
    config, present = None if options["overwrite"] else read_config(directory), _present(directory)
    if options["overwrite"] or not present:
        return
    holds = "--save_dir {} holds ".format(directory)

    def other(what, go_on):
        replace = "" if options.get("diagnose") else ", replace that one with --overwrite" + go_on
        return UsageError("{}{}; give this run a directory of its own{}".format(holds, what, replace))

    if config is None:
        raise other(present[0] + " of another run",
                    ", or go on with it with --resume" if CHECKPOINT in present else "")
    differing = _differences(config["options"], options, NOT_PART_OF_THE_RUN)
    if config.get("script") != script:
        differing = "it is of {}".format(config.get("script"))
    if differing:
        raise other("another run ({})".format(differing), ", or go on with that one with --resume")
    if options.get("diagnose"):  # its file lies beside the run that it is of
        return
    if RESULT in present:
        raise UsageError(holds + "this run, finished; --overwrite does it again, --resume with more --epochs goes on")
    if CHECKPOINT in present:
        raise UsageError(holds + "this run, interrupted; --resume goes on with it, --overwrite starts it again")
    raise UsageError("{}this run without a {}, so it can't go on; --overwrite starts it again".format(
        holds, CHECKPOINT))


def _refuse_without_checkpoint(command, args):
    present = _present(args.save_dir)
    if present:
        raise UsageError("--save_dir {} holds {} but no {}, so there is nothing to go on from; --overwrite instead of "
                         "--resume starts again".format(args.save_dir, present[0], CHECKPOINT))
    if not command.given - NOT_PART_OF_THE_RUN - {"mode"}:
        raise UsageError("--save_dir {} holds no {} to go on from".format(args.save_dir, CHECKPOINT))


def _present(directory):
    return [name for name in CONTENT if os.path.exists(os.path.join(directory, name))]


def _differences(there, here, free):
    """Return in words what differs between two sets of options, where both have it and it is not in ``free``."""
    return ", ".join("--{} {} there, {} here".format(name, as_typed(there[name]), as_typed(here[name]))
                     for name in sorted(set(there) & set(here) - free) if not equal(name, there[name], here[name]))
