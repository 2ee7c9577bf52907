"""How a command line is read: kinds of values, the parser and its help, what was typed."""
import argparse
import collections
import math
import os
import sys

from engine.errors import UsageError
from model import WeightsError, find_backbone, own_name

Command = collections.namedtuple("Command", "script args given defaults excused words idle")
Command.__doc__ = """What was typed: the script's name, all options, the names of those that the command line gives, by
itself or in its --recipe, {name: value} of all that it would be without any, the names of those given that may do
nothing (they are in a recipe), the words of the command line behind the script, and the names of the options that do
nothing in this mode."""


def _number(kind, accept, description):
    """Return an argparse type: text -> a number of ``kind`` that ``accept`` accepts."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError("{!r} is not {}".format(text, description))
        return value
    return convert


def whole(least, most):
    return _number(int, lambda value: least <= value <= most, "a whole number from {} to {}".format(least, most))


positive_int = _number(int, lambda value: value >= 1, "a whole number of at least 1")
not_negative_int = _number(int, lambda value: 0 <= value < 2 ** 63, "a whole number of at least 0")
positive_float = _number(float, lambda value: math.isfinite(value) and value > 0, "a number above 0")
not_negative_float = _number(float, lambda value: math.isfinite(value) and value >= 0, "a number of at least 0")


def true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError("{!r} is neither true nor false".format(text))
    return text.lower() == "true"


def backbone_name(text):
    """Return the name of a backbone as ``BACKBONES`` has it."""
    try:
        find_backbone(text)
    except WeightsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return own_name(text)


path = os.path.expanduser  # a shell doesn't replace the ~ in --save_dir=~/runs


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and shows defaults where there are any to show."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, bool) and action.nargs == 0:
            return action.help
        if isinstance(action.default, (list, bool)):
            return action.help + " (default: {})".format(as_typed(action.default))
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option with one line, without the whole usage before it."""

    def error(self, message):
        raise UsageError("{} (--help lists the options)".format(message))


def as_typed(value):
    """Return an option's value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(values):
    """Return {option: value} as it is typed, in order of the names, with commas."""
    return ", ".join("--" + name if value is True else "--{} {}".format(name, as_typed(value))
                     for name, value in sorted(values.items()))


def new_parser(program, description):
    return _Parser(prog=program, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def given_alone(parser, option, argv=None):
    """Return what ``argv`` (None: of this process) gives as ``option``, whatever stands beside it; None if nothing."""
    alone = type(parser)(prog=parser.prog, add_help=False, allow_abbrev=False)
    alone.add_argument(option, dest="value")
    return alone.parse_known_args(argv)[0].value


def hide(parser, names):
    """Leave these options out of --help."""
    for action in parser._actions:
        if action.dest in names:
            action.help = argparse.SUPPRESS


def parse(parser, argv=None):
    """Return the ``Command`` that ``argv`` (None: of this process) gives to the parser of a script."""
    args, words = parser.parse_args(argv), list(sys.argv[1:] if argv is None else argv)
    typed = {word.split("=")[0] for word in words}
    return Command(parser.prog, args, {action.dest for action in parser._actions
                                       if typed & set(action.option_strings)},
                   {name: parser.get_default(name) for name in vars(args)}, set(), words, set())


def refuse_idle(given, names, reason):
    """Refuse options (UsageError) that the command gives although they do nothing."""
    idle = ["--" + name for name in sorted(set(names) & set(given))]
    if len(idle) == 1:
        raise UsageError("{} does nothing {}; leave it out".format(idle[0], reason))
    if idle:
        raise UsageError("{} and {} do nothing {}; leave them out".format(", ".join(idle[:-1]), idle[-1], reason))
