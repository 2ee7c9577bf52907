"""Options from a file: ``--recipe``."""
import argparse
import difflib
import json
import os

from engine import ranks
from engine.arguments import as_typed, in_words, parse
from engine.errors import UsageError
from engine.networks import DATA_OPTIONS, NETWORK_OPTIONS, OF_ANY_DATA
from engine.rundir import NOT_PART_OF_THE_RUN, found_again, read_json

# A run's config.json has these, too; they say where it was made and how, not what it is.
NOT_OF_A_RECIPE = NOT_PART_OF_THE_RUN | {"mode"}
PREFIXES = ("", "teacher_", "gallery_")  # of the networks' options


def parse_with_recipe(parser, argv=None):
    """Return the ``Command`` that ``argv`` (None: of this process) gives, with the options of its --recipe.

    What the command line states wins. Weights of a network that it states also win over what the recipe says of this
    network, and a data set over what it says of another one.

    Raises:
        UsageError: the file is no recipe of this script; names the file and the option.
    """
    command = parse(parser, argv)
    path, args = command.args.recipe, command.args
    if path is None:
        return command
    values = _read(parser, path, command.defaults)
    decided = _decided(args, command.given, values)
    values = {name: value for name, value in values.items() if name not in decided}
    changes = {name: value for name, value in values.items() if value != command.defaults[name]}
    for name, value in values.items():
        setattr(args, name, value)
    if changes and ranks.is_first():
        print("From {}: {}".format(path, in_words(changes)), flush=True)
    # A file may serve several commands, and what it holds may be idle beside what was typed.
    return command._replace(given=command.given | set(values), excused=set(values))


def _decided(args, typed, values):
    """Return the names of the options of a recipe, ``values``, that the command line settles: by itself, by weights of
    a network, or by naming another data set."""
    decided = set(typed)
    for prefix in PREFIXES:
        if prefix + "load" in typed:
            decided |= {prefix + name for name in NETWORK_OPTIONS + ("pretrained",)}
        if prefix + "pretrained" in typed:
            decided.add(prefix + "load")
    if typed & {"base", "pretrained", "load"}:
        decided.add("zero_init_residual")  # for random weights of some networks
    if "dataset" in typed and args.dataset != values.get("dataset"):
        decided |= set(DATA_OPTIONS) - set(OF_ANY_DATA)
    return decided


def _read(parser, path, defaults):
    """Return {option: value} of the recipe at ``path``."""
    content = read_json(path)
    if not isinstance(content, dict):
        problem = "not a file of options in JSON, like {\"lr\": 0.001} or a run's config.json"
        raise UsageError("--recipe {}: {}".format(path, problem if os.path.isfile(path) else "no such file"))
    is_config = isinstance(content.get("options"), dict)
    if is_config and content.get("script") != parser.prog:
        raise UsageError("--recipe {}: this is a config.json of {}, and {} has other options".format(
            path, content.get("script"), parser.prog))
    stated = found_again(content["options"], os.path.dirname(path)) if is_config else content
    actions = {action.dest: action for action in parser._actions if action.dest in defaults}
    values = {}
    for name, value in stated.items():
        if name not in actions:
            near = difflib.get_close_matches(name, sorted(actions))
            raise UsageError("--recipe {}: {} has no option {!r}{}".format(
                path, parser.prog, name, "; did you mean {}?".format(" or ".join(near)) if near else ""))
        if name in NOT_OF_A_RECIPE:
            if not is_config:
                raise UsageError("--recipe {}: --{} is no part of a recipe; give it on the command line".format(
                    path, name))
        elif value is not None or defaults[name] is not None:  # null is "not given", where that is the default
            values[name] = _value(parser, actions[name], value, path)
    return values


def _value(parser, action, stated, path):
    """Return an option's value as the command line would give it, from its value in JSON."""
    is_list = action.nargs == "+"
    items, found = stated if is_list else [stated], None
    # No command line can hold a zero byte.
    if isinstance(stated, list) == is_list and items and all(_kind(item) and "\0" not in str(item) for item in items):
        if isinstance(action, argparse._StoreTrueAction):
            found = items if isinstance(stated, bool) else None
        else:
            found = [_as_if_typed(parser, action.dest, item, path) for item in items]
            found = sum(found, []) if is_list else found
    if found is None or [_kind(item) for item in found] != [_kind(item) for item in items]:
        raise UsageError("--recipe {}: --{} can't be {}".format(path, action.dest, json.dumps(stated)))
    return found if is_list else found[0]


def _as_if_typed(parser, name, item, path):
    try:
        return getattr(parser.parse_args(["--{}={}".format(name, as_typed(item))]), name)
    except UsageError as error:
        raise UsageError("--recipe {}: {}".format(path, error)) from None


def _kind(value):
    """Return what JSON calls a value that an option can have; None for any other value."""
    return next((name for kind, name in ((bool, "boolean"), (str, "string"), ((int, float), "number"))
                 if isinstance(value, kind)), None)
