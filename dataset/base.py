"""What every data set here is: pictures of one class each, with the attributes of torchvision's ImageFolder."""
import errno
import hashlib
import mimetypes
import os
import stat
import warnings

import numpy as np
from PIL import Image

__all__ = ["DatasetError", "UnreadablePicture", "ImageSet", "list_classes", "open_image", "shown",
           "split_of_class_folders", "usable_cores"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Errno values that are the machine's fault, not the picture's: what it is short of.
SHORTAGES = {errno.EMFILE: "file descriptors; see ulimit -n", errno.ENFILE: "file descriptors",
             errno.ENOMEM: "memory"}
# Pillow warns of pictures of more than 89 megapixels and refuses those of more than 179. The filter is set once:
# warnings.catch_warnings around each picture is not safe with threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION_TAG = 0x0112
# How to turn a picture upright, by its EXIF orientation.
_ORIENTATIONS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
                 6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}


class DatasetError(Exception):
    """Pictures that are missing, unreadable or don't fit the job; the message is one line for the user."""


class UnreadablePicture(DatasetError):
    """A picture that is missing, broken, or no picture; the others can be used without it."""


class ImageSet:
    """Pictures with class labels: the base of every data set.

    Those in ``dataset.DATASETS`` are called with (root, train) and say of themselves, on the class, ``summary`` (a line
    for --help) and ``can_download`` (whether they take ``download=True``).

    Args:
        samples: list of (path, label).
        class_to_idx: class name -> label, for the classes of this split only.
        transform: PIL image -> anything, applied by ``[]``.
        target_transform: label -> anything, applied by ``[]``.

    Attributes:
        samples, imgs: list of (path, label); two names for one list.
        targets: list of labels, one per picture.
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
        """Return the set without these pictures and without classes that lose all of theirs. Labels stay the same."""
        left_out = set(indices)
        samples = [sample for index, sample in enumerate(self.samples) if index not in left_out]
        labels = {label for _, label in samples}
        return ImageSet(samples, {name: label for name, label in self.class_to_idx.items() if label in labels},
                        self.transform, self.target_transform)

    def fingerprint(self, root):
        """Return a digest of which pictures these are, by their paths below ``root``, their labels and their files'
        sizes (-1 where there is no file)."""
        digest = hashlib.sha256()
        for path, label in self.samples:
            try:
                size = os.path.getsize(path)
            except OSError:
                size = -1
            digest.update("{}\0{}\0{}\n".format(os.path.relpath(path, root), label, size).encode(
                "utf-8", "surrogateescape"))
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


def shown(path):
    """Return ``path`` for a message: on one line, with unprintable characters escaped as in Python (``\\n``)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in path)


def open_image(path):
    """Return the picture at ``path``, decoded, as an upright RGB PIL image of 8 bits.

    Transparent pictures are laid on white; 16-bit grey is scaled to 8 bits; of several frames the first is taken; the
    EXIF orientation is applied.

    Raises:
        UnreadablePicture: no such file, no regular file, or no picture that Pillow can decode.
        DatasetError: the machine is short of file descriptors or of memory.
        MemoryError: it is short of memory.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe could wait for ever
            raise OSError("no regular file")
        with Image.open(path) as image:
            turned = _ORIENTATIONS.get(_orientation(image))
            image = _as_rgb(image)
            return image if turned is None else image.transpose(turned)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for a broken picture
        missing = _shortage(error)
        if missing:
            raise DatasetError("{}: this picture can't be read now, because the machine is short of {}".format(
                shown(path), missing)) from None
        reason = (str(error) or type(error).__name__).splitlines()[0].replace(" " + repr(path), "")
        raise UnreadablePicture("{}: a picture that can't be read ({}); mend or remove it".format(
            shown(path), reason)) from None


def _shortage(error):
    """Return what the machine is short of if that caused an error of ``open_image``, else None."""
    if not isinstance(error, OSError):
        return None
    # Pillow's decoders report a lack of memory without an errno.
    return SHORTAGES.get(errno.ENOMEM if str(error).startswith("out of memory") else error.errno)


def _orientation(image):
    """Return the EXIF orientation, or None; damaged EXIF data is no reason to refuse the picture."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except MemoryError:
        raise
    except Exception:  # struct.error, SyntaxError, ValueError ... by version and damage
        return None


def _as_rgb(image):
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32 bits per channel; convert it to 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point values; convert it to 8 bits per channel")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def list_classes(directory):
    """Return the sorted names of the class folders in ``directory`` (hidden ones left out).

    Raises:
        DatasetError: the directory can't be read; a link in it is broken and not named like a file.
    """
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.name[0] != "." and _is_folder(entry))
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(shown(directory), error.strerror)) from None


def _is_folder(entry):
    try:
        # entry.is_dir() is False for a broken link, which might have been a class.
        return stat.S_ISDIR(os.stat(entry.path).st_mode) if entry.is_symlink() else entry.is_dir()
    except OSError as error:
        if _is_named_like_a_file(entry.name):
            return False
        raise DatasetError("{}: this link in place of a class folder can't be followed ({}); mend or remove it".format(
            shown(entry.path), error.strerror)) from None


def _is_named_like_a_file(name):
    """Whether a name has the extension of a known kind of file; a dot is not enough: classes are named 001.Name."""
    return name.lower().endswith(IMAGE_EXTENSIONS) or mimetypes.MimeTypes().guess_type(name) != (None, None)


def list_images(directory):
    """Return the sorted paths of the pictures (by their extensions) in the class folder ``directory``."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(shown(directory), error.strerror)) from None
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
                shown(os.path.join(directory, name)), " ".join(IMAGE_EXTENSIONS)))
        class_to_idx[name] = label
        samples.extend((path, label) for path in paths)
    return samples, class_to_idx


def usable_cores():
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
