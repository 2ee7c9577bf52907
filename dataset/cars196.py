"""Cars196, also called Stanford Cars (Krause et al. 2013): 196 models; the first 98 train, the others test (zero-shot
retrieval)."""
import os

from dataset.base import DatasetError, ImageSet, shown
from dataset.listed import check_pictures, check_size, folder_with
from dataset.matfile import read_matfile

__all__ = ["Cars196Metric"]

# The archive's layout: folder, file of annotations, folder of the pictures that it names.
FOLDER = "Cars196"
ANNOTATIONS = "cars_annos.mat"
# torchvision's (StanfordCars), whose own halves are other ones: annotations and folders of the pictures.
TORCHVISION_FOLDER = "stanford_cars"
TORCHVISION_HALVES = ((("devkit/cars_train_annos.mat",), "cars_train"),
                      (("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"), "cars_test"))
TORCHVISION_NAMES = "devkit/cars_meta.mat"


class Cars196Metric(ImageSet):
    """One split of Cars196: ``root/Cars196/car_ims/*.jpg`` and ``root/Cars196/cars_annos.mat``, or torchvision's layout
    ``root/stanford_cars``, whose two halves are put together and divided anew by classes.

    Args:
        root: the directory that holds ``Cars196`` or ``stanford_cars``.
        train: True for classes 1-98 (8,054 pictures), False for classes 99-196 (8,131); labels are 0-97 and 98-195.
        transform, target_transform: as in ``ImageSet``.
        download: must be False; the server of this set is gone.

    Raises:
        DatasetError: the pictures are missing, incomplete or too many; ``download``.
    """

    summary = "Cars196"
    can_download = False
    how_to_get = ("the server of this set is gone, so get car_ims.tgz (md5 d5c8f0aa497503f355e17dc7886c3f14) and "
                  "cars_annos.mat (md5 b407c6086d669747186bd1d764ff9dbc) elsewhere and put them below --data as "
                  "Cars196/car_ims/000001.jpg ... and Cars196/cars_annos.mat; torchvision's folder stanford_cars, with "
                  "cars_train, cars_test, devkit and cars_test_annos_withlabels.mat, is read, too")
    CLASSES = 196
    PICTURES = {True: 8054, False: 8131}

    def __init__(self, root, train=False, transform=None, target_transform=None, download=False):
        if download:
            raise DatasetError("Cars196 can't be downloaded: {}".format(self.how_to_get))
        base = folder_with(root, [FOLDER], ANNOTATIONS)
        if base is not None:
            source, directory = os.path.join(base, ANNOTATIONS), os.path.join(base, "car_ims")
            rows, names = _archive_layout(base)
        else:
            base = directory = folder_with(root, [TORCHVISION_FOLDER], TORCHVISION_NAMES)
            if base is None:
                raise DatasetError("{} is not there: {}".format(
                    shown(os.path.join(root, FOLDER, ANNOTATIONS)), self.how_to_get))
            source = os.path.join(base, TORCHVISION_HALVES[0][0][0])
            rows, names = _torchvision_layout(base)
        half = self.CLASSES // 2
        if len(set(names)) != self.CLASSES:
            raise DatasetError("{}: {} names of classes instead of {}; get it again".format(
                shown(source), len(set(names)), self.CLASSES))
        labels = range(half) if train else range(half, self.CLASSES)
        samples = [(path, label) for path, label in rows if label in labels]
        check_size(source, "training" if train else "test", (len(samples), len({label for _, label in samples})),
                   (self.PICTURES[train], half))
        check_pictures([path for path, _ in samples], source)
        super().__init__(samples, {names[label]: label for label in labels}, transform, target_transform, directory,
                         base)


def _archive_layout(base):
    """Return ([(path, label)], names of the classes)."""
    path = os.path.join(base, ANNOTATIONS)
    found = read_matfile(path, ("relative_im_path", "class"))
    return _rows(path, found, "relative_im_path", base), _names(path, found)


def _torchvision_layout(base):
    """The same of torchvision's layout."""
    rows = []
    for names, folder in TORCHVISION_HALVES:
        places = [os.path.join(base, name) for name in names]
        path = next(filter(os.path.exists, places), places[0])
        rows += _rows(path, read_matfile(path, ("fname", "class")), "fname", os.path.join(base, folder))
    path = os.path.join(base, TORCHVISION_NAMES)
    return rows, _names(path, read_matfile(path, ()))


def _rows(source, found, field, folder):
    """Return [(path, label)] of the annotations ``found`` in ``source``, which name pictures below ``folder``."""
    try:
        return [(os.path.join(folder, *row[field].split("/")), int(row["class"][0]) - 1)
                for row in found["annotations"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):  # another kind of variable
        raise DatasetError("{}: it holds no annotations with the fields {} and class; get it again".format(
            shown(source), field)) from None


def _names(source, found):
    names = found.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError("{}: it holds no class_names; get it again".format(shown(source)))
    return names
