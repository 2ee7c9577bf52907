"""CUB-200-2011 (Wah et al. 2011): 200 bird species; the first 100 train, the last 100 test (zero-shot retrieval)."""
import os

from dataset.base import DatasetError, ImageSet, find_folder, list_classes, split_of_class_folders
from dataset.download import fetch_archive

__all__ = ["CUB2011Metric"]


class CUB2011Metric(ImageSet):
    """One split of CUB-200-2011: ``root/CUB_200_2011/images/001.Name/*.jpg``.

    Args:
        root: the directory that holds (or, with ``download``, will hold) ``CUB_200_2011``.
        train: True for classes 1-100 (5,864 pictures), False for classes 101-200 (5,924); labels are 0-99 and 100-199.
        transform, target_transform: as in ``ImageSet``.
        download: fetch and unpack the archive (1.1 GB) if the folder is not there.

    Raises:
        DatasetError: the pictures are missing, incomplete or too many; the download fails.
    """

    summary = "CUB-200-2011"
    can_download = True
    FOLDER = "CUB_200_2011"
    FIRST_CLASS = "001.Black_footed_Albatross"
    URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    MD5 = "97eceeb196236b17998738112f37df78"
    CLASSES = 200
    PICTURES = {True: 5864, False: 5924}

    def __init__(self, root, train=False, transform=None, target_transform=None, download=False):
        if download and self._find(root) is None:
            fetch_archive(self.URL, self.MD5, root, self.FOLDER)
        folder = os.path.join(root, self.FOLDER)
        there = os.path.lexists(folder)  # before _find: another run may put the whole folder there in between
        images = self._find(root)
        if images is None:
            if there:
                raise DatasetError("{} is incomplete, there is no folder images in it: move it away, then --download "
                                   "fetches it again (1.1 GB)".format(folder))
            raise DatasetError(
                "{} is not there: add --download (1.1 GB), or unpack {} into {}, or try --dataset synthetic, which "
                "needs no download".format(os.path.join(folder, "images"), self.URL, root))
        names = list_classes(images)
        if len(names) != self.CLASSES:
            raise DatasetError("{}: {} class folders instead of {}; unpack the archive again".format(
                images, len(names), self.CLASSES))
        names = names[:100] if train else names[100:]
        samples, class_to_idx = split_of_class_folders(images, names, 0 if train else 100)
        if len(samples) != self.PICTURES[train]:
            raise DatasetError("{}: {} {} pictures instead of {}; unpack the archive again".format(
                images, len(samples), "training" if train else "test", self.PICTURES[train]))
        super().__init__(samples, class_to_idx, transform, target_transform, images, images)

    def _find(self, root):
        """Return the folder of the class folders, or None. ``root`` may be the data set's folder under another name."""
        renamed = (path for path in (os.path.join(root, "images"), root)
                   if os.path.isdir(os.path.join(path, self.FIRST_CLASS)))
        return find_folder(root, self.FOLDER, "images") or next(renamed, None)
