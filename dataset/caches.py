r"""List the caches of decoded pictures, and of a teacher's embeddings of their crops, or remove them.

(in this project's folder)
  python3 -m dataset.caches                 those in ./data, and all in the user's cache directory
  python3 -m dataset.caches my_pictures     those of pictures in that folder, or in a directory of --cache
  python3 -m dataset.caches --clear         remove them; the next run makes again what it needs

A run that is still reading a cache which is removed stops with one line, and --resume goes on with it.
"""
import argparse
import contextlib
import os
import re
import sys
import time

from dataset.cache import FOLDER, SUFFIX, gigabytes, read_contents, users_cache
from dataset.croptable import TABLE_SUFFIX, read_table_contents
from dataset.files import locked
from dataset.pictures import shown

__all__ = ["main"]

# A cache of pictures or of embeddings, what says what is in it (in earlier versions .broken), what was measured with
# its pictures, and what is left of making one that was killed.
NAME = re.compile("([0-9a-f]{{32}}(?:{}|{}))".format(re.escape(SUFFIX), re.escape(TABLE_SUFFIX))
                  + r"((\.[0-9a-f]{32})?\.json|\.broken)?(\.[0-9]+\.tmp)?")


def caches_in(folder):
    """Return the sorted paths of the caches in ``folder``, or of what is left of them."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return sorted({os.path.join(folder, found.group(1)) for found in map(NAME.fullmatch, names) if found})


def files_of(path):
    """Return the paths of the files of the cache ``path``, the one with the pictures first."""
    folder, cache = os.path.split(path)
    return sorted(os.path.join(folder, found.group()) for found in map(NAME.fullmatch, os.listdir(folder))
                  if found and found.group(1) == cache)


def contents_of(path):
    """Return what is in the cache ``path``, a dict with at least ``folder``; None if nothing says so."""
    return read_table_contents(path) if path.endswith(TABLE_SUFFIX) else read_contents(path)


def describe(path, contents):
    """Return a line about a cache."""
    size = 0
    for name in files_of(path):
        with contextlib.suppress(FileNotFoundError):  # a run has just renamed it
            size += os.path.getsize(name)
    if contents is None or not os.path.exists(path):
        return "{:>9}  not whole, or of another version  {}".format(gigabytes(size), shown(path))
    made = time.strftime("%Y-%m-%d", time.localtime(os.path.getmtime(path)))
    where = shown(contents["folder"]) + ("" if os.path.isdir(contents["folder"]) else " (gone)")
    if "shape" in contents:
        crops, pictures, dimensions = contents["shape"]
        return "{:>9}  {} x {} numbers of {} pictures in {}, {}, computed {}  {}".format(
            gigabytes(size), crops, dimensions, pictures, where, shown(contents["what"]), made, shown(path))
    return "{:>9}  {} pictures of {} x {} in {}, decoded {}  {}".format(
        gigabytes(size), len(contents["checksums"]), contents["side"], contents["side"], where, made, shown(path))


def remove(path):
    """Remove a cache and return what to say of that."""
    try:
        with locked(path + ".lock", wait=False):
            for name in files_of(path):
                os.remove(name)
        return "removed"
    except BlockingIOError:
        return "is being made now: kept"
    except OSError as error:
        return "can't be removed ({})".format(error.strerror)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python3 -m dataset.caches", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="DIR", help="folder of --data or of --cache")
    parser.add_argument("--clear", action="store_true", help="remove the caches")
    args = parser.parse_args(argv)
    folders = args.folders or ["data"]
    places = [place for folder in folders for place in (folder, os.path.join(folder, FOLDER))]
    try:
        found = [path for place in places for path in caches_in(place)]
        found += [path for path in caches_in(users_cache())
                  if not args.folders or _is_of(contents_of(path), folders)]
    except OSError as error:
        parser.error("{}: can't be read ({})".format(shown(error.filename), error.strerror))
    for path in found:
        print(describe(path, contents_of(path)) + ("  " + remove(path) if args.clear else ""))
    for place in places if args.clear else []:
        if os.path.basename(place) == FOLDER:
            with contextlib.suppress(OSError):  # there is no such folder, or something else is in it
                os.rmdir(place)
    if not found:
        print("No caches in {}, none {}in {}".format(", ".join(map(shown, places)), "of it " if args.folders else "",
                                                     shown(users_cache())))
    return 0


def _is_of(contents, folders):
    """Whether a cache in the user's directory is of pictures in one of these folders."""
    return contents is not None and any(
        os.path.join(os.path.realpath(contents["folder"]), "").startswith(os.path.join(os.path.realpath(folder), ""))
        for folder in folders)


if __name__ == "__main__":
    sys.exit(main())
