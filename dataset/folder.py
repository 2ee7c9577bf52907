"""Pictures of your own: any directory of class folders."""
import os

from dataset.base import DatasetError, ImageSet, list_classes, shown, split_of_class_folders

__all__ = ["FolderMetric"]


class FolderMetric(ImageSet):
    """One split of a directory of class folders.

    ``root/train/CLASS/*`` and ``root/test/CLASS/*`` where both are there; else ``root/CLASS/*``, of which the first
    half of the sorted classes trains (the larger half, if their number is odd) and the rest tests.

    Args:
        root: the directory.
        train: which split.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        DatasetError: no such directory, no class folders, too few of them, an empty one, a broken link.
    """

    summary = "class folders of your own"
    can_download = False

    def __init__(self, root, train=False, transform=None, target_transform=None):
        if not os.path.isdir(root):
            raise DatasetError("{}: no such folder; --data names the directory of your class folders".format(
                shown(root)))
        splits = [os.path.join(root, split) for split in ("train", "test")]
        present = [os.path.isdir(split) for split in splits]
        if all(present):
            directory = splits[0 if train else 1]
            names = list_classes(directory)
            first_label = 0 if train else len(list_classes(splits[0]))
            if not names:
                raise DatasetError("{}: no class folders in it".format(shown(directory)))
        elif any(present):
            raise DatasetError("{0}: it has {1}/ but no {2}/; give it both, or class folders alone".format(
                shown(root), *(("train", "test") if present[0] else ("test", "train"))))
        else:
            directory = root
            everything = list_classes(root)
            if len(everything) < 2:
                raise DatasetError("{}: {} in it; the first half of the classes trains and the rest tests, so at "
                                   "least 4 are needed (2 to train on, 2 to tell apart)".format(
                                       shown(root), "no class folders" if not everything else "only one class folder"))
            middle = (len(everything) + 1) // 2
            names = everything[:middle] if train else everything[middle:]
            first_label = 0 if train else middle
        samples, class_to_idx = split_of_class_folders(directory, names, first_label)
        super().__init__(samples, class_to_idx, transform, target_transform)
