"""Pictures without labels, for training: any tree of pictures."""
import contextlib
import os

from dataset.base import DatasetError, ImageSet, identity, list_images, shown

__all__ = ["UnlabelledPictures", "shared_files"]


class UnlabelledPictures(ImageSet):
    """All pictures in a folder and below it, at any depth. They have no classes; each one's label is 0.

    Hidden files and folders, and files that are not named like pictures, are left out.

    Args:
        root: the folder.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        DatasetError: no such folder, no picture in it, a broken link that may have led to a folder.
    """

    has_labels = False

    def __init__(self, root, transform=None, target_transform=None):
        if not os.path.isdir(root):
            raise DatasetError("{}: no such folder; --unlabelled names a folder of pictures, wherever it is now".format(
                shown(root)))
        paths = list_images(root)
        if not paths:
            raise DatasetError("{}: no picture in it (no file, at any depth, with an ending such as .jpg or "
                               ".png)".format(shown(root)))
        super().__init__([(path, 0) for path in paths], {}, transform, target_transform, root, root)


def shared_files(images, others):
    """Count the files of the ``ImageSet``s ``others`` that ``images`` has, too, whatever paths or links lead to them.
    Copies are not found."""
    here = set(_identities(images))
    return sum(file in here for other in others for file in _identities(other))


def _identities(images):
    for path, _ in images.samples:
        with contextlib.suppress(OSError):  # a broken link, or a file that has just gone
            yield identity(path)
