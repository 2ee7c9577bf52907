"""Class folders below query/ and gallery/: what is measured, its labels, and what is not clear."""
import os
import shutil

import pytest

from conftest import make_pictures
from dataset import DatasetError, FolderMetric, load_splits


def _query_and_gallery(root):
    make_pictures(root / "Query", classes=3, pictures=2)
    make_pictures(root / "gallery", classes=5, pictures=3, seed=1)
    shutil.rmtree(str(root / "gallery" / "class01"))
    return root


def test_queries_and_a_gallery(tmp_path):
    """Labels go by the names of the classes, of which the one or the other may lack some."""
    make_pictures(_query_and_gallery(tmp_path) / "train", classes=2, pictures=2, seed=2)
    make_pictures(tmp_path / "val", classes=2, pictures=2, seed=3)
    train, queries = (FolderMetric(str(tmp_path), train=split) for split in (True, False))
    assert train.class_to_idx == {"class00": 0, "class01": 1} and train.gallery is None
    assert queries.class_to_idx == {"class0{}".format(number): 2 + number for number in range(5)}
    assert queries.targets == [2, 2, 3, 3, 4, 4] and queries.directory == str(tmp_path / "Query")
    gallery = queries.gallery
    assert gallery.targets == [2] * 3 + [4] * 3 + [5] * 3 + [6] * 3 and gallery.class_to_idx == queries.class_to_idx
    assert gallery.directory == str(tmp_path / "gallery")
    assert all(path.split(os.sep)[-2] == "class0{}".format(label - 2) for path, label in gallery.samples)
    assert train.layout == queries.layout == gallery.layout == (
        "{}: train/, Query/ and gallery/, class folders in each; not used: val/".format(tmp_path))
    make_pictures(tmp_path / "test", classes=2, pictures=2)
    assert FolderMetric(str(tmp_path)).layout.endswith("train/ and test/, class folders in each; not used: Query/, "
                                                       "gallery/, val/")


def test_queries_and_a_gallery_alone(tmp_path):
    _query_and_gallery(tmp_path)
    assert FolderMetric(str(tmp_path)).targets == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DatasetError, match="it has query/ and gallery/ but no train/, so there is nothing to train on"):
        load_splits("folder", str(tmp_path))
    splits = load_splits("folder", str(tmp_path), test_alone=True)
    assert splits["test"].gallery.targets == [0] * 3 + [2] * 3 + [3] * 3 + [4] * 3 and "train" not in splits


def test_classes_called_query_and_gallery(own_pictures):
    (own_pictures / "class05").rename(own_pictures / "query")
    (own_pictures / "class04").rename(own_pictures / "Gallery")
    images = FolderMetric(str(own_pictures))
    assert images.classes == ["class02", "class03", "query"] and images.gallery is None
    assert "among the classes: Gallery, query" in images.layout


@pytest.mark.parametrize("there, expected", [
    (["train", "query"], "query/ holds its pictures in folders, .* but there is no gallery/ beside it: .* rename que"),
    (["train", "Gallery"], "Gallery/ holds .* but there is no query/ beside it: .* add query/, or rename Gallery/ to "),
    (["query"], "there is no gallery/ beside it"),
    (["query", "gallery", "test"], "there is test/ beside query/ and gallery/: move away what is not to be measured"),
    (["query", "gallery", "training"], "query/ holds .* other folders may be splits or classes, too: call the "),
])
@pytest.mark.parametrize("train", [True, False])
def test_queries_and_galleries_that_are_not_clear(tmp_path, there, expected, train):
    for name in there:
        make_pictures(tmp_path / name, classes=2, pictures=2)
    with pytest.raises(DatasetError, match=expected) as error:
        FolderMetric(str(tmp_path), train=train)
    assert "\n" not in str(error.value)
