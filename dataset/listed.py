"""Data sets of the field whose pictures are named by a list in their archive: find them, see that all are there."""
import os

from dataset.base import DatasetError, Listings, shown

__all__ = ["check_pictures", "check_size", "folder_with", "read_table"]


def folder_with(root, folders, *marks):
    """Return the first folder in which one of ``marks``, relative paths, exists; None without any: ``root``/FOLDER,
    ``root``/FOLDER/FOLDER (an archive that was unpacked into a folder of its own name), and ``root`` itself."""
    candidates = [os.path.join(root, *parts) for folder in folders for parts in ((folder,), (folder, folder))]
    return next((path for path in candidates + [root]
                 if any(os.path.exists(os.path.join(path, mark)) for mark in marks)), None)


def read_table(path, header, lines_before=0):
    """Return the rows of a text file whose columns are divided by blanks: for each, as many words as ``header`` has.

    Args:
        header: the words of the line before the rows. lines_before: lines before that one.

    Raises:
        DatasetError: the file can't be read; it has another header; a row has too few words or too many.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError as error:
        raise DatasetError("{}: can't be read ({})".format(shown(path), error.strerror)) from None
    for number, words in enumerate(lines, 1):
        if number == lines_before + 1 and words != header or number > lines_before and len(words) != len(header):
            raise DatasetError("{}: line {} is {!r} and should be like {!r}; unpack the archive again".format(
                shown(path), number, " ".join(words)[:100], " ".join(header)))
    return lines[lines_before + 1:]


def check_pictures(paths, source):
    """See that all these pictures are there.

    Raises:
        DatasetError: some are missing; names the first, and ``source``, which names them.
    """
    listings = Listings()
    missing = [path for path in paths if not listings.hold(*os.path.split(path))]
    if missing:
        raise DatasetError("{} of the {} pictures that {} names are not there, the first is {}; unpack the archive "
                           "again".format(len(missing), len(paths), shown(source), shown(missing[0])))


def check_size(source, what, found, expected):
    """See that a list is whole.

    Args:
        what: which pictures. found, expected: (pictures, classes).

    Raises:
        DatasetError: it isn't.
    """
    if found != expected:
        raise DatasetError("{}: {} {} pictures of {} classes instead of {} of {}; unpack the archive again".format(
            shown(source), found[0], what, found[1], *expected))
