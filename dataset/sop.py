"""Stanford Online Products (Song et al. 2016): products on sale, 2 to 12 pictures of each."""
import os

from dataset.base import DatasetError, ImageSet, shown
from dataset.download import fetch_archive
from dataset.listed import check_pictures, check_size, folder_with, read_table

__all__ = ["StanfordOnlineProductsMetric"]


class StanfordOnlineProductsMetric(ImageSet):
    """One split of Stanford Online Products: ``root/Stanford_Online_Products/Ebay_train.txt`` and ``Ebay_test.txt``,
    which name the pictures in the folders beside them.

    A label is the class id in these files less 1, and the class's name is the id. (In the reference ``class_to_idx`` of
    the test set disagrees with its labels.)

    Args:
        root: the directory that holds (or, with ``download``, will hold) ``Stanford_Online_Products``.
        train: True for classes 1-11,318 (59,551 pictures), False for the 11,316 after them (60,502).
        transform, target_transform: as in ``ImageSet``.
        download: fetch and unpack the archive (2.9 GB) if the folder is not there.

    Raises:
        DatasetError: the pictures are missing, incomplete or too many; the download fails.
    """

    summary = "Stanford Online Products"
    can_download = True
    FOLDER = "Stanford_Online_Products"
    URL = "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip"
    MD5 = "7f73d41a2f44250d4779881525aea32e"
    LISTS = {True: "Ebay_train.txt", False: "Ebay_test.txt"}
    PICTURES = {True: 59551, False: 60502}
    CLASSES = {True: 11318, False: 11316}

    def __init__(self, root, train=False, transform=None, target_transform=None, download=False):
        folder = os.path.join(root, self.FOLDER)
        if download and self._find(root) is None:
            fetch_archive(self.URL, self.MD5, root, self.FOLDER)
        there = os.path.lexists(folder)  # before _find: another run may put the whole folder there in between
        base = self._find(root)
        if base is None:
            raise DatasetError("{} is not there: {}".format(shown(os.path.join(folder, self.LISTS[train])), (
                "the folder is incomplete; move it away, then --download fetches it again (2.9 GB)" if there else
                "add --download (2.9 GB), or unpack {} into {}".format(self.URL, shown(root)))))
        source = os.path.join(base, self.LISTS[train])
        rows = read_table(source, ["image_id", "class_id", "super_class_id", "path"])
        first = 0 if train else self.CLASSES[True]
        try:
            samples = [(os.path.join(base, *path.split("/")), int(class_id) - 1) for _, class_id, _, path in rows]
        except ValueError:
            raise DatasetError("{}: a class id is no number; unpack the archive again".format(shown(source))) from None
        labels = sorted({label for _, label in samples})
        check_size(source, "training" if train else "test", (len(samples), len(labels)),
                   (self.PICTURES[train], self.CLASSES[train]))
        if labels[0] != first or labels[-1] != first + len(labels) - 1:
            raise DatasetError("{}: class ids from {} to {} instead of {} to {}; unpack the archive again".format(
                shown(source), labels[0] + 1, labels[-1] + 1, first + 1, first + len(labels)))
        check_pictures([path for path, _ in samples], source)
        super().__init__(samples, {str(label + 1): label for label in labels}, transform, target_transform, base, base)

    def _find(self, root):
        return folder_with(root, [self.FOLDER], *self.LISTS.values())
