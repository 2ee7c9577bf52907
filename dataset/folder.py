"""Pictures of your own: any directory of class folders."""
import itertools
import os

from dataset.base import (DatasetError, ImageSet, NoTrainingSet, is_picture, list_classes, list_images, shown,
                          split_of_class_folders, walk)

__all__ = ["MEASURED", "TOO_FEW_TO_HALVE", "VALIDATION", "FolderMetric", "in_words", "training_half"]

VALIDATION = ("val", "valid", "validation", "dev")
# What is measured: the pictures of one set among themselves, or the queries against the gallery.
MEASURED = (("test",), ("query", "gallery"))
# Folders of these names may be no classes.
SPLITS = ("train", "training", "test", "testing", "query", "gallery") + VALIDATION
TOO_FEW_TO_HALVE = ("the first half of the classes trains and the rest tests, so at least 4 are needed (2 to train on, "
                    "2 to tell apart)")


class FolderMetric(ImageSet):
    """One split of a directory of class folders; pictures may lie at any depth below these.

    ``root/train/CLASS/*`` and ``root/test/CLASS/*``; ``root/test/CLASS/*`` alone can be tested. In place of ``test``
    there may be ``root/query/CLASS/*`` and ``root/gallery/CLASS/*``: the test set is the queries then, and its
    attribute ``gallery`` the pictures that they are looked for in. Otherwise ``root/CLASS/*``, of which the first half
    of the sorted classes trains (the larger half, if their number is odd) and the rest tests. A folder called train,
    test, query or gallery that holds most of its pictures itself, not in folders, is a class. Upper case counts as
    lower case in these names.

    Args:
        root: the directory.
        train: which split.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        NoTrainingSet: ``train``, but there is only a test set.
        DatasetError: no such directory, no class folders, too few of them, an empty one, a broken link; a folder named
            like a split that may be one or a class; queries without a gallery, or a gallery without queries.
    """

    summary = "class folders of your own"
    can_download = False

    def __init__(self, root, train=False, transform=None, target_transform=None):
        if not os.path.isdir(root):
            raise DatasetError("{}: no such folder; --data names the directory of your class folders".format(
                shown(root)))
        names = list_classes(root)
        splits = {name.lower(): name for name in names
                  if name.lower() in SPLITS and _is_split(os.path.join(root, name))}
        used = [splits[split] for split in _used_splits(root, splits, names)]
        if used:
            directories, names, first_label, layout = _named_splits(root, used, names, train)
        else:
            _refuse_unclear(root, splits, names)
            directories, names, first_label, layout = _half(root, names, train)
        class_to_idx = {name: label for label, name in enumerate(names, first_label)}
        first, *others = [_samples(directory, class_to_idx) for directory in directories]
        super().__init__(first, class_to_idx, transform, target_transform, directories[0], layout)
        if others:
            self.gallery = ImageSet(others[0], class_to_idx, transform, target_transform, directories[1], layout)


def _used_splits(root, splits, names):
    """Return which of the folders named like ``splits`` are used, ("train", "test") for example; none if ``names`` are
    classes, or if that isn't clear."""
    for measured in MEASURED:
        if set(measured) <= set(splits):
            if "train" in splits:
                return ("train",) + measured
            # Measured alone, if nothing else there could be used.
            others = set(splits) - set(measured + VALIDATION)
            if not others and not any(list_images(os.path.join(root, name)) for name in names
                                      if name not in splits.values()):
                return measured
    return ()


def _named_splits(root, used, names, train):
    """Return (directories, names of their classes, first label, layout) of the training set, a single directory, or of
    what is measured: one directory, or those of the queries and of the gallery.

    Args:
        used: names of the folders of the splits, ["train", "test"] for example. names: of all folders.

    Raises:
        NoTrainingSet: ``train``, but there is no such folder.
    """
    trains = used[0].lower() == "train"
    shown_names = in_words(name + "/" for name in used)
    if train and not trains:
        raise NoTrainingSet("{}: it has {} but no train/, so there is nothing to train on; run.py --mode eval can "
                            "measure it".format(shown(root), shown_names.lower()))
    layout = "{}: {}, class folders in {}".format(root, shown_names, "each" if len(used) > 1 else "it")
    unused = [name + "/" for name in names if name not in used]
    if unused:
        layout += "; not used: " + ", ".join(unused)
    trained = os.path.join(root, used[0])
    if train:
        return [trained], list_classes(trained), 0, layout
    directories = [os.path.join(root, name) for name in used[trains:]]
    classes = sorted(set().union(*map(list_classes, directories)))
    return directories, classes, len(list_classes(trained)) if trains else 0, layout


def in_words(names):
    """Return "a, b and c" for these three names."""
    *first, last = names
    return (", ".join(first) + " and " if first else "") + last


def _samples(directory, class_to_idx):
    """Return [(path, label)] of the class folders in ``directory`` that ``class_to_idx`` names."""
    names = [name for name in list_classes(directory) if name in class_to_idx]
    samples, _ = split_of_class_folders(directory, names)
    return [(path, class_to_idx[names[number]]) for path, number in samples]


def _refuse_unclear(root, splits, names):
    """Raise DatasetError for folders that may be splits or classes. They are classes if others, not named like splits,
    hold pictures themselves."""
    if not splits or any(_own_pictures(os.path.join(root, name)) for name in names if name.lower() not in SPLITS):
        return
    pair = [split for split in MEASURED[1] if split in splits]
    if len(pair) == 1:
        missing, = set(MEASURED[1]) - set(pair)
        problem = ("there is no {1}/ beside it: queries are looked for in a gallery; add {1}/, or rename {0}/ to test/"
                   .format(shown(splits[pair[0]]), missing))
    elif pair and "test" in splits:
        problem = "there is test/ beside query/ and gallery/: move away what is not to be measured"
    elif pair:
        problem = ("other folders may be splits or classes, too: call the training set train/, and move away what is "
                   "not to be used")
    else:
        problem = "there is no train/ and test/ of which both do; rename two folders to train/ and test/"
    raise DatasetError("{}: {}/ holds its pictures in folders, as a split holds classes, but {}, or, if it is a class, "
                       "put its pictures right into it".format(
                           shown(root), shown(splits[pair[0]] if pair else sorted(splits.values())[0]), problem))


def _half(root, names, train):
    """Return ([root], names of the classes, first label, layout) of one half of ``root/CLASS``.

    Raises:
        DatasetError: fewer than two classes.
    """
    if not names:
        raise DatasetError("{}: no class folders in it".format(shown(root)))
    if len(names) == 1:
        inner = os.path.join(root, names[0])
        if len(list_classes(inner)) > 1:
            raise DatasetError("{0}: only one class folder in it; if {1} is not a class but holds the class folders, "
                               "give --data {1}".format(shown(root), shown(inner)))
        raise DatasetError("{}: only one class folder in it; {}".format(shown(root), TOO_FEW_TO_HALVE))
    middle = training_half(names)
    layout = "{}: {} class folders; the first {} train, the others test".format(root, len(names), middle)
    named = [name for name in names if name.lower() in SPLITS]
    if named:
        layout += "; among the classes: " + ", ".join(named)
    if not any(_own_pictures(os.path.join(root, name)) for name in names):
        layout += "; none of them holds pictures itself, they lie deeper"
    return ([root], names[:middle], 0, layout) if train else ([root], names[middle:], middle, layout)


def training_half(names):
    """Return how many of the sorted class names train where no split is given: half, or the larger half of them."""
    return (len(names) + 1) // 2


def _own_pictures(directory):
    """Return how many pictures lie in the folder itself, not deeper."""
    _, files = next(walk(directory), (directory, []))  # nothing of a link to a folder that it lies in
    return sum(map(is_picture, files))


def _is_split(directory):
    """Whether most pictures in the folder lie in folders of it, which are classes then."""
    enough = 2 * _own_pictures(directory) + 1  # these are counted, too
    found = (name for _, files in walk(directory) for name in files if is_picture(name))
    return len(list(itertools.islice(found, enough))) == enough  # all of them are listed later
