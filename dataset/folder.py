"""Pictures of your own: any directory of class folders."""
import itertools
import os

from dataset.base import (DatasetError, ImageSet, NoTrainingSet, is_picture, list_classes, list_images, shown,
                          split_of_class_folders, walk)

__all__ = ["FolderMetric"]

VALIDATION = ("val", "valid", "validation", "dev")
SPLITS = ("train", "training", "test", "testing") + VALIDATION  # folders of these names may be no classes


class FolderMetric(ImageSet):
    """One split of a directory of class folders; pictures may lie at any depth below these.

    ``root/train/CLASS/*`` and ``root/test/CLASS/*``; ``root/test/CLASS/*`` alone can be tested. Otherwise
    ``root/CLASS/*``, of which the first half of the sorted classes trains (the larger half, if their number is odd) and
    the rest tests. A folder called train or test that holds most of its pictures itself, not in folders, is a class.
    Upper case counts as lower case in these names.

    Args:
        root: the directory.
        train: which split.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        NoTrainingSet: ``train``, but there is only a test set.
        DatasetError: no such directory, no class folders, too few of them, an empty one, a broken link; a folder named
            like a split that may be one or a class.
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
        test_alone = "test" in splits and not set(splits) - {"test", *VALIDATION} and not any(
            list_images(os.path.join(root, name)) for name in names if name not in splits.values())
        if {"train", "test"} <= set(splits) or test_alone:
            directory, names, first_label, layout = _named_split(root, splits, names, train)
        else:
            _refuse_unclear(root, splits, names)
            directory, names, first_label, layout = _half(root, names, train)
        samples, class_to_idx = split_of_class_folders(directory, names, first_label)
        super().__init__(samples, class_to_idx, transform, target_transform, directory, layout)


def _named_split(root, splits, names, train):
    """Return (directory, names of the classes, first label, layout) of ``root/train`` or ``root/test``.

    Raises:
        NoTrainingSet: there is only ``root/test``.
    """
    used = [splits[split] for split in ("train", "test") if split in splits]
    if train and "train" not in splits:
        raise NoTrainingSet("{}: it has test/ but no train/, so there is nothing to train on; run.py --mode eval can "
                            "measure it".format(shown(root)))
    directory = os.path.join(root, splits["train" if train else "test"])
    first_label = 0 if train or len(used) == 1 else len(list_classes(os.path.join(root, splits["train"])))
    layout = "{}: {}/, class folders in {}".format(root, "/ and ".join(used), "each" if len(used) == 2 else "it")
    others = [name + "/" for name in names if name not in used]
    if others:
        layout += "; not used: " + ", ".join(others)
    return directory, list_classes(directory), first_label, layout


def _refuse_unclear(root, splits, names):
    """Raise DatasetError for folders that may be splits or classes. They are classes if others, not named like splits,
    hold pictures themselves."""
    if splits and not any(_own_pictures(os.path.join(root, name)) for name in names if name.lower() not in SPLITS):
        raise DatasetError("{}: {}/ holds its pictures in folders, as a split holds classes, but there is no train/ "
                           "and test/ of which both do; rename two folders to train/ and test/, or, if it is a class, "
                           "put its pictures right into it".format(shown(root), shown(sorted(splits.values())[0])))


def _half(root, names, train):
    """Return (directory, names of the classes, first label, layout) of one half of ``root/CLASS``.

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
        raise DatasetError("{}: only one class folder in it; the first half of the classes trains and the rest tests, "
                           "so at least 4 are needed (2 to train on, 2 to tell apart)".format(shown(root)))
    middle = (len(names) + 1) // 2
    layout = "{}: {} class folders; the first {} train, the others test".format(root, len(names), middle)
    named = [name for name in names if name.lower() in SPLITS]
    if named:
        layout += "; among the classes: " + ", ".join(named)
    if not any(_own_pictures(os.path.join(root, name)) for name in names):
        layout += "; none of them holds pictures itself, they lie deeper"
    return (root, names[:middle], 0, layout) if train else (root, names[middle:], middle, layout)


def _own_pictures(directory):
    """Return how many pictures lie in the folder itself, not deeper."""
    _, files = next(walk(directory), (directory, []))  # nothing of a link to a folder that it lies in
    return sum(map(is_picture, files))


def _is_split(directory):
    """Whether most pictures in the folder lie in folders of it, which are classes then."""
    enough = 2 * _own_pictures(directory) + 1  # these are counted, too
    found = (name for _, files in walk(directory) for name in files if is_picture(name))
    return len(list(itertools.islice(found, enough))) == enough  # all of them are listed later
