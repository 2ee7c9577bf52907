"""Pictures of your own: a list that names each picture, its label and its split, as spreadsheet programs write it."""
import codecs
import collections
import csv
import io
import os
import re
import sys

from dataset.base import DatasetError, ImageSet, Listings, NoTrainingSet, shown
from dataset.folder import MEASURED, TOO_FEW_TO_HALVE, VALIDATION, in_words, training_half

__all__ = ["ListMetric"]

DELIMITERS = ",;\t|"
NEEDED, SPLIT = ("path", "label"), "split"
KNOWN_SPLITS = ("train",) + sum(MEASURED, ())
# How the text begins that is not UTF-8. The longest first: what UTF-16 begins with is half of that of UTF-32.
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}

List = collections.namedtuple("List", "splits unused repeated")
List.__doc__ = """What a list says.

splits: {split: [(path, class name)]}; the only split is None if the list has no such column.
unused: {split that is not used: number of its rows}. repeated: number of rows that say what an earlier one says.
"""


class ListMetric(ImageSet):
    """One split of a list of pictures: a text file with the columns ``path``, ``label`` and, if wanted, ``split``.

    Its first line names the columns, in any order, in upper or lower case; others are passed over. They are separated
    by commas, semicolons, tabs or ``|``, with quotes as Python's csv reads them. The text is UTF-8, or UTF-16 or UTF-32
    that begins with a byte order mark. Blanks around a value and blank lines don't count, and a row that says what an
    earlier one says counts once.

    ``path``: relative to the folder of the list, or absolute; backslashes are read as slashes if there is no such file
    otherwise. ``label``: the class, any text; classes are numbered in the order of sorted text, as class folders are.
    ``split``: train and test; in place of test there may be query and gallery: the test set is the queries then, and
    its attribute ``gallery`` the pictures that they are looked for in. Rows of val, valid, validation and dev are not
    used. Without this column the first half of the sorted labels trains (the larger half, if their number is odd) and
    the rest tests.

    Args:
        root: the list.
        train: which split.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        NoTrainingSet: ``train``, but there are only other splits.
        DatasetError: no such file, no text, no such columns; a row that can't be used, with the number of its line;
            pictures that are not there; nothing to test.
    """

    summary = "pictures of your own, named by a .csv with the columns path, label and split"
    can_download = False
    is_a_list = True

    def __init__(self, root, train=False, transform=None, target_transform=None):
        found = _read(root)
        splits = _halves(root, found.splits[None]) if None in found.splits else _named(root, found)
        measured = [split for split in splits if split != "train"]
        if train and "train" not in splits:
            raise NoTrainingSet("{}: it has rows of {} but none of train, so there is nothing to train on; run.py "
                                "--mode eval can measure it".format(shown(root), in_words(measured)))
        trained = _numbered(splits.get("train", ()), 0)
        class_to_idx = trained if train else _numbered(
            [row for split in measured for row in splits[split]], len(trained))
        first, *others = [[(path, class_to_idx[name]) for path, name in splits[split]]
                          for split in (["train"] if train else measured)]
        common = class_to_idx, transform, target_transform, os.path.dirname(root) or ".", _layout(root, found, splits)
        super().__init__(first, *common)
        if others:
            self.gallery = ImageSet(others[0], *common)
            self.gallery.is_a_list = True


def _numbered(rows, first_label):
    """Return {class name: label} of [(path, class name)], in the order of sorted text."""
    return {name: label for label, name in enumerate(sorted({name for _, name in rows}), first_label)}


def _halves(root, rows):
    """Return {"train": rows, "test": rows} of [(path, class name)], the first half of the classes and the rest.

    Raises:
        DatasetError: fewer than two classes.
    """
    numbers = _numbered(rows, 0)
    if len(numbers) < 2:
        raise DatasetError("{}: all its pictures have one label ({}), and there is no column split; {}".format(
            shown(root), shown(rows[0][1]), TOO_FEW_TO_HALVE))
    splits, middle = {"train": [], "test": []}, training_half(numbers)
    for path, name in rows:
        splits["train" if numbers[name] < middle else "test"].append((path, name))
    return splits


def _named(root, found):
    """Return {split: rows} of a ``List``: the training set, if there is one, and what is measured, as in ``MEASURED``.

    Raises:
        DatasetError: nothing is measured, or it is not clear what.
    """
    measured = next((names for names in MEASURED if set(names) <= set(found.splits)), ())
    if not measured or set(found.splits) - {"train", *measured}:
        raise DatasetError("{}: it has rows of {}; what is measured must be either the rows of test or those of query "
                           "and gallery, and those of train are trained on{}".format(
                               shown(root), in_words(sorted(found.splits)), _unused(found)))
    return {name: found.splits[name] for name in ("train",) + measured if name in found.splits}


def _layout(root, found, splits):
    """Return what is in the list, for the user."""
    layout = "{}: a list of pictures: {}".format(
        root, ", ".join("{} {}".format(len(rows), split) for split, rows in splits.items()))
    if None in found.splits:
        count = len({name for rows in splits.values() for _, name in rows})
        layout += "; it has no column split: the first {} of {} labels train, the others test".format(
            training_half(range(count)), count)
    if found.repeated:
        layout += "; rows that repeat an earlier one: {}".format(found.repeated)
    return layout + _unused(found)


def _unused(found):
    rows = ["{} {}".format(count, split) for split, count in found.unused.items()]
    return "; not used: " + ", ".join(rows) if rows else ""


def _read(root):
    """Return the ``List`` in the file ``root``.

    Raises:
        DatasetError: the file can't be read, a row can't be used, or pictures are not there.
    """
    files, lines_of, missing, read = _Files(os.path.dirname(root)), {}, [], 0
    splits, unused, repeated = collections.defaultdict(list), collections.Counter(), 0
    for line, written, label, split in _rows(root):
        label, split = sys.intern(label), split and sys.intern(split.lower())  # one string each instead of one a row
        if split in VALIDATION:
            unused[split] += 1
            continue
        if split is not None and split not in KNOWN_SPLITS:
            raise _at(root, line, "the split {!r} is not known; known are {}, and {}, which are not used".format(
                split, ", ".join(KNOWN_SPLITS), ", ".join(VALIDATION)) if split else "it has no split")
        if not written or not label:
            raise _at(root, line, "it has no " + ("label" if written else "path"))
        read += 1
        path, key = files.find(written)
        if path is None:
            missing.append((line, written))
            continue
        before, *said = lines_of.setdefault(key, (line, label, split))
        if said != [label, split]:
            raise _at(root, line, "the picture {} is in line {} already, with {}; it can have one label and one split"
                      .format(shown(written), before, "the label " + shown(said[0]) if said[0] != label else
                              "the split " + said[1]))
        if before != line:
            repeated += 1
            continue
        splits[split].append((path, label))
    if missing:
        line, written = missing[0]
        raise _at(root, line, "there is no picture {}; {} of {} pictures of the list are not there: put them there, or "
                  "remove their rows (a path is absolute or relative to the folder of the list, {})".format(
                      shown(written), len(missing), read, shown(os.path.abspath(os.path.dirname(root)))))
    if not splits:
        raise DatasetError("{}: it names no pictures{}".format(shown(root), _unused(List(splits, unused, repeated))))
    return List(splits, unused, repeated)


class _Files:
    """The files that a list names.

    Args:
        folder: what relative paths are relative to.
    """

    def __init__(self, folder):
        self.folder = folder or "."
        self._listings, self._folders = Listings(), {}

    def find(self, written):
        """Return (path, what is equal for two spellings of it) of the file that the list calls ``written``, or (None,
        None)."""
        found = self._find(written)
        if not found and "\\" in written:
            found = self._find(written.replace("\\", "/"))
        return found or (None, None)

    def _find(self, written):
        end = written.rfind("/") + 1
        start, name = written[:end], written[end:]
        if start not in self._folders:
            folder = os.path.join(self.folder, start)
            self._folders[start] = folder, os.path.join(os.path.normpath(folder), "")
        folder, same = self._folders[start]
        if not self._listings.hold(folder, name):
            return None
        path = folder + name
        return path, path if folder == same else same + name


def _rows(root):
    """Yield (number of the line, path, label, split or None) of each row of the list ``root``, without blanks around
    them. The split is None if there is no such column.

    Raises:
        DatasetError: no such file, no text, no such columns, a row that doesn't fit them.
    """
    text = _text(root)
    delimiter, names = _columns(root, text)
    path, label, split = (names.index(name) if name in names else None for name in NEEDED + (SPLIT,))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line, is_header = 1, True
    try:
        for cells in reader:
            if any(cells):
                if len(cells) != len(names):
                    cells = _fitted(root, line, cells, names)
                if not is_header:
                    yield (line, cells[path].strip(), cells[label].strip(),
                           None if split is None else cells[split].strip())
                is_header = False
            line = reader.line_num + 1
    except csv.Error as error:
        raise _at(root, line, "its quotes can't be read ({})".format(error)) from None


def _fitted(root, line, cells, names):
    """Return the values of a row, one for each column: those that lack at its end are blank."""
    if any(cells[len(names):]):
        raise _at(root, line, "it has {} values, but the first line names {} columns; a value that holds the character "
                  "between columns needs quotes".format(len(cells), len(names)))
    return cells + [""] * (len(names) - len(cells))


def _columns(root, text):
    """Return (delimiter, names of the columns in lower case) by the first line that is not blank.

    The delimiter is the one by which the needed columns are there: ``csv.Sniffer`` would guess it from the rows.
    """
    lines = enumerate(io.StringIO(text, newline=""), 1)
    number, header = next(((number, line) for number, line in lines if line.strip(DELIMITERS + ' "\r\n')), (1, ""))
    found = {}
    for delimiter in DELIMITERS:
        with_quotes = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        names = found[delimiter] = [name.strip().lower() for name in with_quotes]
        if set(NEEDED) <= set(names):
            twice = [name for name in NEEDED + (SPLIT,) if names.count(name) > 1]
            if twice:
                raise _at(root, number, "there are two columns " + twice[0])
            return delimiter, names
    names = max(found.values(), key=len)
    raise _at(root, number, "there is no column {}; the first line must name the columns path, label and, if wanted, "
              "split; it has {}".format(" and no column ".join(name for name in NEEDED if name not in names),
                                        shown(", ".join(filter(None, names)))[:200] or "none"))


def _text(root):
    """Return the text of the list ``root``, with its line ends as they are."""
    if os.path.isdir(root):
        lists = sorted(name for name in os.listdir(root) if name.lower().endswith(".csv")) + ["LIST.csv"]
        raise DatasetError("{}: this is a directory; --dataset list takes a file, the list of the pictures: --data {}"
                           .format(shown(root), shown(os.path.join(root, lists[0]))))
    if not os.path.isfile(root):
        raise DatasetError("{}: no such file; --data names the list of your pictures".format(shown(root)))
    try:
        with open(root, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DatasetError("{}: the list can't be read ({})".format(shown(root), error.strerror)) from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        text = content[:error.start].decode(encoding, "replace") + "\0"
    if "\0" in text:
        raise _at(root, text[:text.index("\0")].count("\n") + 1, "no text in UTF-8; let the spreadsheet program save "
                  "the list as CSV, in UTF-8")
    return re.sub(r"\Asep=.(?=[\r\n])", "", text)  # what Excel may write first; the columns show the delimiter


def _at(root, line, problem):
    return DatasetError("{}: line {}: {}".format(shown(root), line, problem))
