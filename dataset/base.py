"""What every data set here is: pictures, one class each, in the way torchvision's ImageFolder shows them."""
import hashlib
import os

import numpy as np
from PIL import Image

__all__ = ["DatasetError", "ImageSet", "IMAGE_EXTENSIONS", "list_classes", "list_images", "open_image",
           "split_of_class_folders", "usable_cores"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


_ORIENTATION_TAG = 0x0112
# What puts a picture upright, by its EXIF orientation.
_ORIENTATIONS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
                 6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}


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

    def without(self, indices):
        """Return the set without these pictures; a class of which none is left goes, too. Labels stay."""
        left_out = set(indices)
        samples = [sample for index, sample in enumerate(self.samples) if index not in left_out]
        labels = {label for _, label in samples}
        return ImageSet(samples, {name: label for name, label in self.class_to_idx.items() if label in labels},
                        self.transform, self.target_transform)

    def fingerprint(self, root):
        """Return a digest of which pictures these are, by their paths below ``root`` and their labels."""
        digest = hashlib.sha256()
        for path, label in self.samples:
            digest.update("{}\0{}\n".format(os.path.relpath(path, root), label).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

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
    """Return the picture at ``path``, decoded, as an upright RGB PIL image of 8 bits.

    What is transparent is laid on white; 16-bit grey is scaled to 8 bits; of several frames the first is taken; a
    camera's note on how it was held (EXIF orientation) is followed.

    Raises:
        DatasetError: no such file, or no picture that Pillow can decode.
    """
    try:
        with Image.open(path) as image:
            turned = _ORIENTATIONS.get(_orientation(image))
            image = _as_rgb(image)
            return image if turned is None else image.transpose(turned)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for a broken picture
        reason = (str(error) or type(error).__name__).splitlines()[0].replace(" " + repr(path), "")
        raise DatasetError("{}: a picture that can't be read ({}); mend or remove it".format(path, reason)) from None


def _orientation(image):
    """Return the EXIF orientation, or None; a note that can't be read is no reason to refuse the picture."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # struct.error, SyntaxError, ValueError ... by version and damage
        return None


def _as_rgb(image):
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32 bits a channel; convert it to 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point values; convert it to 8 bits a channel")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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
