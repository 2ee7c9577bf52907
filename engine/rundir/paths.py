"""Paths among the options of a run: absolute where they are kept, and found again where the run's folder has moved."""
import contextlib
import os

# The options that are paths, and their values that are none.
PATHS = {"data": (), "unlabelled": (), "load": (), "teacher_load": (), "save_dir": (), "recipe": (),
         "gallery_load": (), "projection_load": (), "pretrained": ("imagenet", "none"),
         "teacher_pretrained": ("imagenet", "none"), "gallery_pretrained": ("imagenet", "none"),
         "cache": ("auto", "off")}


def absolute(options):
    """Return {option: value} with absolute paths, to be kept: they hold from any directory."""
    return dict(options, **{name: os.path.abspath(options[name]) for name in _paths(options)})


def found_again(options, directory):
    """Return {option: value}, read from a file in ``directory``, with the paths that hold today.

    A path that is there no more is looked for where it lay as seen from --save_dir: the whole project may have moved.
    """
    options, before = dict(options), options.get("save_dir")
    names = [name for name in _paths(options) if os.path.isabs(options[name])]  # earlier versions kept them as typed
    if "save_dir" not in names:
        return options
    options["save_dir"] = os.path.abspath(directory)
    for name in names:
        if not os.path.exists(options[name]):
            with contextlib.suppress(ValueError):  # on another drive of Windows
                way = os.path.relpath(options[name], before)
                moved = os.path.normpath(os.path.join(os.path.realpath(directory), way))  # it may be a link
                if os.path.exists(moved):
                    options[name] = moved
    return options


def equal(name, there, here):
    """Whether two values of an option, the first one kept and the second one typed, mean the same."""
    if there == here or not (_paths({name: there}) and _paths({name: here})):
        return there == here
    return os.path.realpath(there) == os.path.realpath(here)


def is_path(name, value):
    """Whether a value of an option is a path."""
    return bool(_paths({name: value}))


def _paths(options):
    return [name for name, words in PATHS.items() if isinstance(options.get(name), str) and options[name] not in words]
