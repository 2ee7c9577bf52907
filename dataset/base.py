"""What every data set here is: pictures, one class each, in the way torchvision's ImageFolder shows them."""
import os

from PIL import Image

__all__ = ["DatasetError", "ImageSet", "IMAGE_EXTENSIONS", "list_classes", "list_images", "open_image",
           "split_of_class_folders", "usable_cores"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class DatasetError(Exception):
    """Pictures that are missing, unreadable or don't fit the job; the message is one line for the user."""


class ImageSet:
    """Pictures with class labels.

    Args:
        samples: list of (path, label).
        class_to_idx: class name -> label, for the classes of this split only.
        transform: PIL image -> anything, applied by ``[]``.
        target_transform: label -> anything, applied by ``[]``.

    Attributes:
        samples, imgs: list of (path, label); two names for one list.
        targets: list of labels, one a picture.
        classes: class names in the order of their labels.
        class_to_idx: class name -> label.
    """

    def __init__(self, samples, class_to_idx, transform=None, target_transform=None):
        self.samples = samples
        self.class_to_idx = class_to_idx
        self.classes = sorted(class_to_idx, key=class_to_idx.get)
        self.targets = [label for _, label in samples]
        self.transform = transform
        self.target_transform = target_transform

    @property
    def imgs(self):
        return self.samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        image = open_image(path)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


def open_image(path):
    """Return the picture at ``path``, decoded, as an RGB PIL image.

    Raises:
        DatasetError: no such file, or no picture that Pillow can decode.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for a broken picture
        reason = (str(error) or type(error).__name__).splitlines()[0].replace(" " + repr(path), "")
        raise DatasetError("{}: a picture that can't be read ({}); mend or remove it".format(path, reason)) from None


def list_classes(directory):
    """Return the sorted names of the class folders in ``directory`` (hidden ones left out)."""
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(directory, error.strerror)) from None


def list_images(directory):
    """Return the sorted paths of the pictures in the class folder ``directory``, judged by their extension."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(directory, error.strerror)) from None
    return [os.path.join(directory, name) for name in names
            if name[0] != "." and name.lower().endswith(IMAGE_EXTENSIONS)]


def split_of_class_folders(directory, names, first_label=0):
    """Return (samples, class_to_idx) of the class folders ``names`` in ``directory``, labelled from ``first_label``.

    Raises:
        DatasetError: a class folder holds no picture.
    """
    samples, class_to_idx = [], {}
    for label, name in enumerate(names, first_label):
        paths = list_images(os.path.join(directory, name))
        if not paths:
            raise DatasetError("{}: the class folder holds no picture ({})".format(
                os.path.join(directory, name), " ".join(IMAGE_EXTENSIONS)))
        class_to_idx[name] = label
        samples.extend((path, label) for path in paths)
    return samples, class_to_idx


def usable_cores():
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
