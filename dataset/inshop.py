"""In-shop Clothes Retrieval of DeepFashion (Liu et al. 2016): some items train; of the others, pictures called queries
search in pictures called the gallery."""
import os

from dataset.base import DatasetError, ImageSet, shown
from dataset.listed import check_pictures, check_size, folder_with, read_table

__all__ = ["InShopMetric"]

BENCHMARK = "In-shop Clothes Retrieval Benchmark"  # as its authors call the folder
FOLDERS = (BENCHMARK, "In-shop", "Inshop", "InShop", "inshop", os.path.join("DeepFashion", BENCHMARK),
           os.path.join("DeepFashion", "In-shop"), "DeepFashion")
LISTS = (os.path.join("Eval", "list_eval_partition.txt"), "list_eval_partition.txt")
PARTS = ("train", "query", "gallery")


class InShopMetric(ImageSet):
    """One split of In-shop Clothes Retrieval: a folder with ``Eval/list_eval_partition.txt`` (or this file itself) and
    ``img``, below ``root`` (see ``FOLDERS``) or ``root`` itself.

    The test set is the queries, and its ``gallery`` what they search in; both have pictures of the same items.

    Args:
        root: the directory that holds that folder.
        train: True for 3,997 items (25,882 pictures), False for the queries of 3,985 other items (14,218 pictures, and
            12,612 in the gallery). Labels are in the order of the items' ids, those of the test set after the others.
        transform, target_transform: as in ``ImageSet``.

    Raises:
        DatasetError: the pictures are missing, incomplete or too many.
    """

    summary = "DeepFashion's In-shop Clothes Retrieval, queries against a gallery"
    can_download = False
    how_to_get = ("its authors give it to those who ask, see the page of DeepFashion: unpack img.zip of the In-shop "
                  "Clothes Retrieval Benchmark, and put img/ and Eval/list_eval_partition.txt into the folder In-shop "
                  "below --data")
    PICTURES = {"train": 25882, "query": 14218, "gallery": 12612}
    CLASSES = {"train": 3997, "query": 3985, "gallery": 3985}

    def __init__(self, root, train=False, transform=None, target_transform=None):
        base = folder_with(root, FOLDERS, *LISTS)
        if base is None:
            raise DatasetError("{} is not there: {}".format(
                shown(os.path.join(root, "In-shop", LISTS[0])), self.how_to_get))
        source = next(path for path in (os.path.join(base, name) for name in LISTS) if os.path.exists(path))
        rows = read_table(source, ["image_name", "item_id", "evaluation_status"], lines_before=1)
        parts = {part: [(name, item) for name, item, status in rows if status == part] for part in PARTS}
        if sum(map(len, parts.values())) != len(rows):
            raise DatasetError("{}: not every picture in it is of {}; get it again".format(
                shown(source), ", ".join(PARTS)))
        for part, pictures in parts.items():
            check_size(source, part, (len(pictures), len({item for _, item in pictures})),
                       (self.PICTURES[part], self.CLASSES[part]))
        trained, tested = (sorted({item for part in group for _, item in parts[part]})
                           for group in (PARTS[:1], PARTS[1:]))
        class_to_idx = {item: label for label, item in enumerate(trained + tested)}
        above = _above(base, rows[0][0])

        def samples(part):
            found = [(os.path.join(above, *name.split("/")), class_to_idx[item]) for name, item in parts[part]]
            check_pictures([path for path, _ in found], source)
            return found

        described = transform, target_transform, os.path.join(above, "img"), base
        class_to_idx = {item: class_to_idx[item] for item in (trained if train else tested)}
        gallery = None if train else ImageSet(samples("gallery"), class_to_idx, *described)
        super().__init__(samples("train" if train else "query"), class_to_idx, *described, gallery)


def _above(base, name):
    """Return the folder that ``name``, img/..., is below: img.zip may have been unpacked where it came, in Img/."""
    places = base, os.path.join(base, "Img"), os.path.join(base, "img")
    return next((place for place in places if os.path.exists(os.path.join(place, *name.split("/")))), base)
