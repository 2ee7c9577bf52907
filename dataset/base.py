"""What every data set here is: pictures of one class each, with the attributes of torchvision's ImageFolder."""
import collections
import copy
import hashlib
import mimetypes
import os
import stat

from dataset.pictures import IMAGE_EXTENSIONS, DatasetError, open_image, shown

__all__ = ["DatasetError", "NoTrainingSet", "ImageSet", "Listings", "find_folder", "identity", "is_picture",
           "list_classes", "list_images", "passed_over", "shown", "split_of_class_folders", "usable_cores", "walk"]

# Folders that systems put beside pictures: in archives from a Mac, thumbnails on a Synology, on disks. They are hidden.
OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


class NoTrainingSet(DatasetError):
    """There are only test pictures, which can be measured, but not trained on."""


class ImageSet:
    """Pictures with class labels: the base of every data set.

    Those in ``dataset.DATASETS`` are called with (root, train) and say of themselves, on the class, ``summary`` (a line
    for --help), ``can_download`` (whether they take ``download=True``) and, if a user must fetch them by hand,
    ``how_to_get`` (what to fetch, and where to put it).

    Args:
        samples: list of (path, label).
        class_to_idx: class name -> label, for the classes of this split only.
        transform: PIL image -> anything, applied by ``[]``.
        target_transform: label -> anything, applied by ``[]``.
        directory: the folder that the pictures lie below, so that they are the same ones when it has moved; with class
            folders, the one that holds these.
        layout: where the pictures were found and how the folder was read, for the user.
        gallery: where these pictures are queries only, the ``ImageSet`` that they search in, with the same labels.

    Attributes:
        samples, imgs: list of (path, label); two names for one list.
        targets: list of labels, one per picture.
        classes: class names in the order of their labels.
        class_to_idx: class name -> label.
        directory, layout, gallery: as given; the gallery is None where each picture searches all others.
        has_labels: False where all labels are 0 because nobody knows them.
        is_a_list: whether ``root`` is a file that names each picture, not a directory; what else lies beside them is
            left alone then.
    """

    how_to_get = ""
    has_labels = True
    is_a_list = False

    def __init__(self, samples, class_to_idx, transform=None, target_transform=None, directory="", layout="",
                 gallery=None):
        self._take(samples, class_to_idx)
        self.transform = transform
        self.target_transform = target_transform
        self.directory = directory
        self.layout = layout
        self.gallery = gallery

    def _take(self, samples, class_to_idx):
        self.samples = samples
        self.class_to_idx = class_to_idx
        self.classes = sorted(class_to_idx, key=class_to_idx.get)
        self.targets = [label for _, label in samples]

    @property
    def imgs(self):
        return self.samples

    def without(self, indices):
        """Return the set without these pictures and without classes that lose all of theirs. Labels stay the same, and
        so does the gallery."""
        left_out = set(indices)
        samples = [sample for index, sample in enumerate(self.samples) if index not in left_out]
        labels = {label for _, label in samples}
        fewer = copy.copy(self)
        fewer._take(samples, {name: label for name, label in self.class_to_idx.items() if label in labels})
        return fewer

    def only(self, indices):
        """Return the set of these pictures and their classes; see ``without``."""
        return self.without(set(range(len(self))).difference(indices))

    def divided(self, count):
        """Return two lists of indices: of the pictures of all classes but the last ``count``, in the order of their
        labels, and of those of these last ones."""
        last = set(sorted(set(self.targets))[-count:])
        return ([index for index, label in enumerate(self.targets) if label not in last],
                [index for index, label in enumerate(self.targets) if label in last])

    def fingerprint(self, checksums):
        """Return a digest of which pictures these are, by their paths below ``directory``, their labels and
        ``checksums``, a number for the content of each one's file."""
        digest = hashlib.sha256()
        for (path, label), checksum in zip(self.samples, checksums):
            path = os.path.relpath(path, self.directory) if self.directory else path
            digest.update("{}\0{}\0{}\n".format(path, label, checksum).encode("utf-8", "surrogateescape"))
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


def list_classes(directory):
    """Return the sorted names of the class folders in ``directory`` (hidden ones left out).

    Raises:
        DatasetError: the directory can't be read; a link in it is broken and not named like a file.
    """
    try:
        return sorted(entry.name for entry in os.scandir(directory) if not _is_hidden(entry.name) and _is_folder(entry))
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(shown(directory), error.strerror)) from None


def _is_folder(entry):
    try:
        # entry.is_dir() is False for a broken link, which might have been a class.
        return stat.S_ISDIR(os.stat(entry.path).st_mode) if entry.is_symlink() else entry.is_dir()
    except OSError as error:
        if _is_named_like_a_file(entry.name):
            return False
        raise DatasetError("{}: this link can't be followed ({}), and it may have led to a folder of pictures; mend or "
                           "remove it".format(shown(entry.path), error.strerror)) from None


def _is_named_like_a_file(name):
    """Whether a name has the extension of a known kind of file; a dot is not enough: classes are named 001.Name."""
    return name.lower().endswith(IMAGE_EXTENSIONS) or mimetypes.MimeTypes().guess_type(name) != (None, None)


class Listings:
    """Which files are there. Each folder is listed once: that is much faster than asking for each file."""

    def __init__(self):
        self._names = {}

    def hold(self, folder, name):
        """Return whether there is a file ``name`` in ``folder``, "" for the current one."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):  # no such folder; a name that is impossible
                self._names[folder] = frozenset()
        # Some file systems know a file by several names, in upper and lower case for example.
        return name in self._names[folder] or os.path.isfile(os.path.join(folder, name))


def is_picture(name):
    """Whether a file is taken for a picture, by its name: a known ending, and not hidden."""
    return not _is_hidden(name) and name.lower().endswith(IMAGE_EXTENSIONS)


def _is_hidden(name):
    return name[0] == "." or name in OF_SYSTEMS


def walk(directory, above=None):
    """Yield (folder, sorted names of its files and hidden folders) of ``directory`` and of each folder below it.

    Links are followed, except back to a folder that they lie in. Hidden folders are not entered.

    Args:
        above: identities of the folders in which ``directory`` lies; None to find them.

    Raises:
        DatasetError: a folder can't be read; a link is broken and not named like a file.
    """
    above = _identities_above(directory) if above is None else above
    try:
        entries, here = sorted(os.scandir(directory), key=lambda entry: entry.name), identity(directory)
    except OSError as error:
        raise DatasetError("{}: the folder can't be read ({})".format(shown(directory), error.strerror)) from None
    if here in above:
        return
    folders = dict.fromkeys(entry.name for entry in entries if not _is_hidden(entry.name) and _is_folder(entry))
    yield directory, [entry.name for entry in entries if entry.name not in folders]
    for name in folders:
        yield from walk(os.path.join(directory, name), above + (here,))


def identity(path):
    """Return what tells a file or folder from all others, whatever path leads to it; OSError if there is none."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _identities_above(directory):
    folder, found = os.path.abspath(directory), []
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        found.append(identity(folder))
    return tuple(found)


def list_images(directory, above=None):
    """Return the paths of the pictures below the class folder ``directory``, at any depth, in ImageFolder's order.
    ``above`` as in ``walk``."""
    return [os.path.join(folder, name) for folder, names in sorted(walk(directory, above)) for name in names
            if is_picture(name)]


def passed_over(image_sets):
    """Count the files below the directories of these sets that none of them takes: {what they are: number}. Of a list
    there are none."""
    used = {path for images in image_sets for path, _ in images.samples}
    counts = collections.Counter()
    for directory in {images.directory for images in image_sets if not images.is_a_list} - {""}:
        for folder, names in walk(directory):
            for name in names:
                if os.path.join(folder, name) not in used:
                    counts[_kind_of(name)] += 1
    return counts


def _kind_of(name):
    if _is_hidden(name):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()
    return ending + " in no class folder" if is_picture(name) else ending or "without an ending"


def split_of_class_folders(directory, names, first_label=0):
    """Return (samples, class_to_idx) of the class folders ``names`` in ``directory``, labelled from ``first_label``.

    Pictures may lie at any depth below a class folder.

    Raises:
        DatasetError: a class folder holds no picture.
    """
    samples, class_to_idx = [], {}
    above = _identities_above(directory) + (identity(directory),)  # the same for all of them
    for label, name in enumerate(names, first_label):
        paths = list_images(os.path.join(directory, name), above)
        if not paths:
            raise DatasetError("{}: the class folder holds no picture (no file, at any depth, with an ending such as "
                               ".jpg or .png); add some or remove it".format(shown(os.path.join(directory, name))))
        class_to_idx[name] = label
        samples.extend((path, label) for path in paths)
    return samples, class_to_idx


def find_folder(root, *names):
    """Return the folder names[0]/names[1]/... of a data set below ``root``, or None.

    It is looked for also where an archive was unpacked into a folder of its own name (A/A/...), and where ``root`` is
    itself the data set's folder, or one in it.
    """
    candidates = [os.path.join(root, *names), os.path.join(root, names[0], *names)]
    for here in (os.path.abspath(root), os.path.realpath(root)):  # a link to it may have another name
        for count in range(1, len(names) + 1):
            if here.split(os.sep)[-count:] == list(names[:count]):
                candidates.append(os.path.join(root, *names[count:]))
    return next((path for path in candidates if os.path.isdir(path)), None)


def usable_cores():
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
