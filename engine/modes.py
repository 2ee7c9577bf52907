"""What a script does, by its ``--mode``: one more is one row of the script's table of modes."""
import collections
import os

from engine import arguments
from engine.errors import UsageError
from engine.recipe import parse_with_recipe

Mode = collections.namedtuple("Mode", "help run uses")
Mode.__doc__ = """One thing that a script does.

help: in words, for --help. run: what does it, ``Command`` -> None.
uses: names of the options that it uses, of those that not every mode uses; all that no mode names are everyone's.
"""


def add_mode_option(group, modes, default):
    group.add_argument("--mode", choices=tuple(modes), default=default,
                       help="{}. --mode NAME --help shows the options of this mode only".format(
                           "; ".join("{}: {}".format(name, mode.help) for name, mode in modes.items())))


def _idle(modes, name):
    """Return the names of the options that other modes use, and this one doesn't."""
    return set().union(*(mode.uses for mode in modes.values())).difference(modes[name].uses)


def parse(parser, modes, argv=None):
    """Return the ``Command`` that ``argv`` (None: of this process) gives, with what its mode doesn't use as ``idle``.
    --help beside a --mode shows what this one uses.

    Raises:
        UsageError: an option that the mode doesn't use is given.
    """
    name = arguments.given_alone(parser, "--mode", argv)
    if name in modes:
        arguments.hide(parser, _idle(modes, name))
        parser.description = "{}: {}".format(name, modes[name].help)
    command = parse_with_recipe(parser, argv)
    idle = _idle(modes, command.args.mode)
    arguments.refuse_idle(command.given - command.excused, idle, "with --mode " + command.args.mode)
    return command._replace(idle=idle)


def check_place(args, paths):
    """Refuse (UsageError) an --out that is a directory or in one that is not there, and, without --overwrite, to
    replace one of ``paths``, the files that are written."""
    if os.path.isdir(args.out):
        raise UsageError("--out {}: this is a directory; give the name of a file".format(args.out))
    if not os.path.isdir(os.path.dirname(args.out) or "."):
        raise UsageError("--out {}: there is no directory {}; make it".format(args.out, os.path.dirname(args.out)))
    check_new(args, paths)


def check_new(args, paths):
    """Refuse (UsageError) to replace one of these files without --overwrite."""
    there = [path for path in paths if os.path.lexists(path)]
    if there and not args.overwrite:
        raise UsageError("--out: {} is there; --overwrite replaces it".format(there[0]))
