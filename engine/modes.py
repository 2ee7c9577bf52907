"""What a script does, by its ``--mode``: one more is one row of the script's table of modes."""
import collections
import os

from engine import arguments
from engine.errors import UsageError

Mode = collections.namedtuple("Mode", "help run uses")
Mode.__doc__ = """One thing that a script does.

help: in words, for --help. run: what does it, ``Command`` -> None.
uses: names of the options that it uses, of those that not every mode uses; all that no mode names are everyone's.
"""


def add_mode_option(group, modes, default):
    group.add_argument("--mode", choices=tuple(modes), default=default,
                       help="; ".join("{}: {}".format(name, mode.help) for name, mode in modes.items()))


def refuse_idle(modes, command):
    """Refuse options (UsageError) that a ``Command`` gives although its mode does not use them."""
    name = command.args.mode
    others = set().union(*(mode.uses for mode in modes.values())).difference(modes[name].uses)
    arguments.refuse_idle(command.given - command.excused, others, "with --mode " + name)


def check_place(path):
    """Refuse (UsageError) an --out, unless it is None, in a directory that is not there, or that is one itself."""
    if path is not None and os.path.isdir(path):
        raise UsageError("--out {}: this is a directory; give the name of a file".format(path))
    if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError("--out {}: there is no directory {}; make it".format(path, os.path.dirname(path)))
