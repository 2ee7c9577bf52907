"""The field's data sets, on miniatures of their true layouts: what is found, and what is said of anything amiss."""
import hashlib
import os

import pytest

from conftest import options_for
from dataset import (Cars196Metric, DatasetError, InShopMetric, StanfordOnlineProductsMetric, load_splits, passed_over)
from matfiles import write_matfile
from miniatures import CARS, make_cars, make_clothes, make_products, make_torchvisions_cars
from results import failure
from test_archive import make_zip
from webserver import Server, cut


def colours(images):
    """{label: the mean colours of its pictures}."""
    found = {}
    for image, label in images:
        found.setdefault(label, []).append(image.resize((1, 1)).getpixel((0, 0)))
    return found


def assert_sound(images, directory):
    """Labels, names and pictures agree: all pictures of a label have nearly one colour; all lie below ``directory``."""
    assert sorted(images.class_to_idx.values()) == sorted(set(images.targets)) and images.gallery is None
    assert [images.class_to_idx[name] for name in images.classes] == sorted(set(images.targets))
    assert all(path.startswith(str(directory) + os.sep) for path, _ in images.samples)
    for shades in colours(images).values():
        assert all(max(values) - min(values) < 16 for values in zip(*shades))


def refused(make, expected):
    with pytest.raises(DatasetError, match=expected) as error:
        make()
    assert "\n" not in str(error.value)


CAR_LAYOUTS = {"archive": (make_cars, "Cars196"), "torchvision": (make_torchvisions_cars, "stanford_cars")}


@pytest.fixture(params=sorted(CAR_LAYOUTS))
def car_layout(request):
    return CAR_LAYOUTS[request.param]


@pytest.mark.parametrize("compressed", [True, False])
def test_cars_are_divided_by_class_in_both_layouts(tmp_path, monkeypatch, car_layout, compressed):
    make, folder = car_layout
    kinds = make(tmp_path / folder, monkeypatch, compressed)
    train, test = (Cars196Metric(str(tmp_path), train=train) for train in (True, False))
    assert train.classes == CARS[:3] and test.classes == CARS[3:]
    assert train.targets == [kind for kind in kinds if kind < 3] and test.targets == [
        kind for kind in kinds if kind >= 3]
    for images in train, test:
        assert_sound(images, images.directory)
    assert os.path.realpath(train.layout) == os.path.realpath(str(tmp_path / folder))
    others = passed_over([train, test])
    assert not any(ending.startswith(".jp") for ending in others), others


@pytest.mark.parametrize("root", ["", "Cars196", "other"])
def test_cars_are_found_where_people_unpack_them(tmp_path, monkeypatch, root):
    make_cars(tmp_path / {"": "Cars196/Cars196", "Cars196": "Cars196", "other": "other"}[root], monkeypatch)
    assert len(Cars196Metric(str(tmp_path / root))) == 11


def test_cars_that_are_not_there_or_not_whole(tmp_path, monkeypatch, capsys):
    import run
    for make in lambda: Cars196Metric(str(tmp_path)), lambda: Cars196Metric(str(tmp_path), download=True):
        refused(make, "car_ims.tgz .md5 d5c8f0aa497503f355e17dc7886c3f14. and cars_annos.mat .md5 b407c6086d669747")
    base = tmp_path / "Cars196"
    make_cars(base, monkeypatch)
    (base / "car_ims" / "000002.jpg").unlink()
    (base / "car_ims" / "000005.jpg").unlink()
    assert len(Cars196Metric(str(tmp_path))) == 11  # these two are not of the test set
    refused(lambda: Cars196Metric(str(tmp_path), train=True),
            "2 of the 10 pictures that .*cars_annos.mat names are not there, the first is .*000002.jpg")
    monkeypatch.setattr(Cars196Metric, "PICTURES", {True: 10, False: 12})
    refused(lambda: Cars196Metric(str(tmp_path)), "cars_annos.mat: 11 test pictures of 3 classes instead of 12 of 3")
    monkeypatch.setattr(Cars196Metric, "CLASSES", 8)
    refused(lambda: Cars196Metric(str(tmp_path)), "6 names of classes instead of 8")
    line = failure(capsys, run.main, options_for(tmp_path, "--dataset", "cars196"))
    assert "6 names of classes" in line
    for variables in ({}, {"annotations": "x"}, {"annotations": [{"class": 1}]}, {"annotations": [
            {"relative_im_path": "a", "class": "x"}], "class_names": CARS}, {"annotations": []}):
        write_matfile(base / "cars_annos.mat", variables)
        refused(lambda: Cars196Metric(str(tmp_path)), "cars_annos.mat: it holds no (annotations with|class_names)")


@pytest.mark.parametrize("below", ["", "Stanford_Online_Products", "Stanford_Online_Products/Stanford_Online_Products"])
def test_products(tmp_path, monkeypatch, below):
    make_products(tmp_path / below, monkeypatch)
    train, test = (StanfordOnlineProductsMetric(str(tmp_path), train=train) for train in (True, False))
    assert train.targets == [0, 0, 1, 1, 2, 2] and test.targets == [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3
    assert test.class_to_idx == {"4": 3, "5": 4, "6": 5, "7": 6}  # they agree, unlike those of the reference
    for images in train, test:
        assert_sound(images, tmp_path / below)
    assert passed_over([train, test]) == {".txt": 2}


@pytest.mark.parametrize("old, new, expected", [
    ("image_id", "picture", "Ebay_test.txt: line 1 is 'picture class_id"),
    ("8 4 1", "8 4", "Ebay_test.txt: line 3 is '8 4 bicycle_final/110004_1.JPG' and should be like 'image_id"),
    ("8 4 1", "8 x 1", "a class id is no number"),
    ("8 4 1", "8 99 1", "12 test pictures of 5 classes instead of 12 of 4"),
    ("7 4 1 bicycle_final/110004_0.JPG\n", "", "11 test pictures of 4 classes instead of 12 of 4"),
    (" 7 2 ", " 8 2 ", "class ids from 4 to 8 instead of 4 to 7"),
    ("110004_1.JPG", "gone.JPG", "1 of the 12 pictures that .*Ebay_test.txt names .* the first is .*gone.JPG"),
    ("", None, "can't be read"),
], ids=range(8))
def test_a_list_of_products_that_is_amiss(tmp_path, monkeypatch, old, new, expected):
    make_products(tmp_path, monkeypatch)
    path = tmp_path / "Ebay_test.txt"
    text = path.read_text()
    if new is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(text.replace(old, new))
    refused(lambda: StanfordOnlineProductsMetric(str(tmp_path)), expected)
    assert len(StanfordOnlineProductsMetric(str(tmp_path), train=True)) == 6


def test_products_are_fetched(tmp_path, monkeypatch):
    make_products(tmp_path / "source", monkeypatch)
    files = [path for path in sorted((tmp_path / "source").rglob("*")) if path.is_file()]
    archive = make_zip(tmp_path / "whole.zip", [("Stanford_Online_Products/{}".format(
        path.relative_to(tmp_path / "source").as_posix()), path.read_bytes()) for path in files])
    server, root = Server(archive.read_bytes()), tmp_path / "data"
    try:
        monkeypatch.setattr(StanfordOnlineProductsMetric, "URL", server.url.replace(".tgz", ".zip"))
        refused(lambda: StanfordOnlineProductsMetric(str(root)), "add --download .2.9 GB., or unpack http://127.* into")
        refused(lambda: StanfordOnlineProductsMetric(str(root), download=True), "has md5 .* instead of 7f73d41a2f")
        monkeypatch.setattr(StanfordOnlineProductsMetric, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        server.answers = [cut(1000)]
        monkeypatch.setattr("dataset.download.PAUSES", (0, 0))
        splits = load_splits("stanford", str(root), download=True)
        assert [len(splits[split]) for split in ("train", "test")] == [6, 12] and len(server.ranges) == 3
        assert_sound(splits["test"], root / "Stanford_Online_Products")
        for name in "Ebay_train.txt", "Ebay_test.txt":
            (root / "Stanford_Online_Products" / name).unlink()
        refused(lambda: StanfordOnlineProductsMetric(str(root), download=True), "folder is incomplete; move it away")
    finally:
        server.stop()


@pytest.mark.parametrize("below, lists, images", [
    ("In-shop", "Eval", "img"), ("Inshop", "", "img"), ("", "Eval", "img"), ("DeepFashion", "", "img"),
    ("In-shop Clothes Retrieval Benchmark", "Eval", "Img/img"),
    ("DeepFashion/In-shop Clothes Retrieval Benchmark", "Eval", "img/img")])
def test_clothes(tmp_path, monkeypatch, below, lists, images):
    make_clothes(tmp_path / below, monkeypatch, lists, images)  # a picture's folder is called like its item
    splits = load_splits("inshop", str(tmp_path))
    assert list(splits) == ["train", "test", "gallery"]
    train, test, gallery = splits.values()
    assert train.classes == ["id_0000000{}".format(item) for item in (1, 3, 5, 7)]
    assert test.class_to_idx == gallery.class_to_idx == {"id_00000002": 4, "id_00000004": 5, "id_00000006": 6}
    assert [len(part) for part in splits.values()] == [16, 6, 9] and train.gallery is None
    assert test.gallery is gallery and not set(test.samples) & set(gallery.samples)
    for part in splits.values():
        assert all(part.classes[label - min(part.targets)] in path for path, label in part.samples)
        assert all(path.startswith(str(tmp_path / below / images) + os.sep) for path, _ in part.samples)
    assert not passed_over(splits.values())


@pytest.mark.parametrize("old, new, expected", [
    ("31\n", "", "line 2 is 'img/WOMEN"), ("query", "quiz", "not every picture in it is of train, query, gallery"),
    ("01_1_front.jpg", "01_1_back.jpg", "of the 6 pictures that .*list_eval_partition.txt names .* is .*01_1_back"),
    ("train", "gallery", "0 train pictures of 0 classes instead of 16 of 4"),
], ids=range(4))
def test_a_list_of_clothes_that_is_amiss(tmp_path, monkeypatch, old, new, expected):
    path = make_clothes(tmp_path, monkeypatch)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refused(lambda: InShopMetric(str(tmp_path)), expected)


def test_clothes_without_some_pictures_keep_their_gallery(tmp_path, monkeypatch):
    make_clothes(tmp_path, monkeypatch)
    queries = InShopMetric(str(tmp_path))
    fewer = queries.without([0, 1])  # both of the first item in the list
    assert fewer.gallery is queries.gallery and len(fewer) == 4 and fewer.targets == queries.targets[2:]
    assert set(fewer.class_to_idx) < set(queries.class_to_idx)
