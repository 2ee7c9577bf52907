"""Data sets, decoding and loaders."""
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_pictures
from dataset import (DATASETS, CUB2011Metric, DatasetError, EvaluationLoader, FolderMetric, ImageSet, TrainLoader,
                     default_workers, load_resized, load_splits, loader, resized_size)
from metric.batchsampler import NPairs


def names(images):
    return [path.replace("\\", "/").split("/")[-2:] for path, _ in images.samples]


def test_folder_halves(tmp_path):
    make_pictures(tmp_path, classes=5, pictures=2)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "class00" / "notes.txt").write_text("no picture")
    train, test = FolderMetric(str(tmp_path), train=True), FolderMetric(str(tmp_path))
    assert train.classes == ["class00", "class01", "class02"] and test.classes == ["class03", "class04"]
    assert train.class_to_idx == {"class00": 0, "class01": 1, "class02": 2}
    assert test.class_to_idx == {"class03": 3, "class04": 4} and test.targets == [3, 3, 4, 4]
    assert names(train)[:3] == [["class00", "00.png"], ["class00", "01.png"], ["class01", "00.png"]]
    assert train.imgs is train.samples and len(train) == 6


def test_folder_with_named_splits(tmp_path):
    make_pictures(tmp_path / "train", classes=2, pictures=2)
    make_pictures(tmp_path / "test", classes=3, pictures=2)
    train, test = FolderMetric(str(tmp_path), train=True), FolderMetric(str(tmp_path))
    assert len(train) == 4 and len(test) == 6
    assert sorted(set(test.targets)) == [2, 3, 4]


def _file_instead(path):
    path.write_text("")


def _linked(target, *name):
    """Return a function that makes a data set with a link in it; "" stands for the link itself."""
    def make(path):
        make_pictures(path / "train")
        make_pictures(path / "test", seed=1)
        path = path.joinpath(*name)
        path.symlink_to(target or path.name)
    return make


@pytest.mark.parametrize("make, expected", [
    (lambda path: None, "no such folder"),
    (_file_instead, "no such folder"),
    (lambda path: path.mkdir(), "no class folders"),
    (lambda path: make_pictures(path, classes=1), "only one class folder"),
    (lambda path: make_pictures(path / "train"), "train/ but no test/"),
    (lambda path: [make_pictures(path), (path / "class99").mkdir()], "class99: the class folder holds no picture"),
    (lambda path: [make_pictures(path), (path / "loop").symlink_to("loop")], "set/loop: this link .*Too many levels"),
    (lambda path: [make_pictures(path), (path / "line\nfeed").symlink_to("gone")], r"set/line\\nfeed: this link"),
    (_linked("", "test", "loop"), "set/test/loop: this link .*Too many levels"),
    (_linked("gone", "test", "class99"), "set/test/class99: this link .*No such file"),
    (_linked("gone", "test", "001.Laysan_Albatross"), "set/test/001.Laysan_Albatross: this link"),
    (_linked("class00/00.png/x", "test", "class99"), "set/test/class99: this link .*Not a directory"),
])
def test_folder_that_does_not_fit(tmp_path, make, expected):
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match=expected):
        FolderMetric(str(tmp_path / "set"), train=False)


def test_links_that_are_no_class_folders_are_left_alone(tmp_path):
    make_pictures(tmp_path / "set", classes=4, pictures=2)
    expected = FolderMetric(str(tmp_path / "set"), train=True).class_to_idx
    for name, target in (("x.jpg", "gone"), ("y.WEBP", "y.WEBP"), ("notes.txt", "gone"), ("old.tar.gz", "old.tar.gz"),
                         (".hidden", "gone"), (".loop", ".loop"), ("README", "x.txt")):
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "set" / "x.txt").write_text("a file that is there")
    assert FolderMetric(str(tmp_path / "set"), train=True).class_to_idx == expected
    make_pictures(tmp_path / "elsewhere", classes=1, pictures=2)
    (tmp_path / "set" / "class99").symlink_to(tmp_path / "elsewhere" / "class00")
    assert FolderMetric(str(tmp_path / "set")).classes == ["class03", "class99"]


def test_fingerprint_tells_pictures_apart(own_pictures, tmp_path):
    def fingerprint(root=own_pictures):
        return FolderMetric(str(root), train=True).fingerprint(str(root))

    images, original = FolderMetric(str(own_pictures), train=True), fingerprint()
    relabelled = ImageSet([(path, label + 1) for path, label in images.samples], {})
    assert relabelled.fingerprint(str(own_pictures)) != original
    path = own_pictures / "class00" / "00.png"
    content = path.read_bytes()
    os.utime(str(path), ns=(1, 1))
    assert fingerprint() == original
    path.write_bytes(content + b"more")
    changed = fingerprint()
    path.unlink()
    missing = images.fingerprint(str(own_pictures))
    path.symlink_to("gone")
    assert fingerprint() == missing and len({original, changed, missing}) == 3
    path.unlink()
    path.write_bytes(content)
    os.rename(str(own_pictures), str(tmp_path / "moved"))
    assert fingerprint(tmp_path / "moved") == original


@pytest.mark.parametrize("processes, expected", [
    (None, 8), ("1", 8), ("2", 5), ("4", 2), ("100", 1), ("x", 8), ("", 8), ("1.5", 8), ("0", 8), ("-2", 8)])
def test_loading_processes_share_the_cores(monkeypatch, processes, expected):
    monkeypatch.setattr(loader, "usable_cores", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_workers() == expected


def test_item_is_transformed(pictures):
    images = FolderMetric(str(pictures), train=True, transform=lambda image: image.size,
                          target_transform=lambda label: -label)
    assert images[len(images) - 1] == ((44, 40), -2)


def _fake_cub(root, counts):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    for number, count in enumerate(counts, 1):
        folder = root / "CUB_200_2011" / "images" / "{:03d}.Bird".format(number)
        folder.mkdir(parents=True)
        for index in range(count):
            (folder / "{:04d}.jpg".format(index)).write_bytes(picture.getvalue())


def test_cub200_with_other_classes_is_refused(tmp_path):
    _fake_cub(tmp_path, [1] * 224)
    with pytest.raises(DatasetError, match="224 class folders instead of 200"):
        CUB2011Metric(str(tmp_path))


def test_cub200_splits(tmp_path, monkeypatch):
    assert sum(CUB2011Metric.PICTURES.values()) == 11788
    monkeypatch.setattr(CUB2011Metric, "PICTURES", {True: 164, False: 124})
    _fake_cub(tmp_path, [2] * 64 + [1] * 136)
    train = CUB2011Metric(str(tmp_path), train=True)
    assert len(train) == 164 and len(train.classes) == 100 and set(train.targets) == set(range(100))
    with pytest.raises(DatasetError, match="100 test pictures instead of 124"):
        CUB2011Metric(str(tmp_path))


def test_every_data_set_describes_itself():
    assert all(data_set.summary and "\n" not in data_set.summary for data_set in DATASETS.values())
    assert "cub200" in [name for name, data_set in DATASETS.items() if data_set.can_download]


@pytest.mark.parametrize("can_download, download, expected", [
    (True, True, [(True, True), (False, False)]), (True, False, [(True, False), (False, False)]),
    (False, True, [(True, False), (False, False)])])
def test_a_download_is_asked_of_sets_that_can_and_once(monkeypatch, can_download, download, expected):
    calls = []

    class Moths:
        def __init__(self, root, train, **options):
            assert set(options) <= ({"download"} if can_download else set())
            calls.append((train, options.get("download", False)))

    Moths.can_download = can_download
    monkeypatch.setitem(DATASETS, "moths", Moths)
    load_splits("moths", "nowhere", download)
    assert calls == expected


def test_cub200_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match="--download.*--dataset synthetic"):
        CUB2011Metric(str(tmp_path))


def test_resize_is_the_references():
    assert [resized_size(size) for size in (224, 64, 56, 112)] == [256, 73, 64, 128]


def test_pixels_are_those_of_pil_and_torchvision(pictures):
    from model.compat import import_torchvision
    transforms = pytest.importorskip("torchvision.transforms") if import_torchvision() else None
    path = FolderMetric(str(pictures)).samples[0][0]
    side = resized_size(32)
    pipeline = transforms.Compose([transforms.Resize((side, side)), transforms.CenterCrop(32), transforms.ToTensor()])
    images, labels = next(iter(EvaluationLoader(FolderMetric(str(pictures)), 4, 32)))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 32)
    with Image.open(path) as picture:
        assert torch.equal(images[0].float() / 255, pipeline(picture.convert("RGB")))


def test_evaluation_sees_each_picture_once_in_order(pictures):
    images = FolderMetric(str(pictures))
    batches = list(EvaluationLoader(images, 5, 32, workers=1))
    assert [len(batch) for batch, _ in batches] == [5, 5, 5, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() == images.targets


def _train_batches(images, workers, epoch, seed=0):
    loader = TrainLoader(images, NPairs(images, 8, 3, 3, seed=seed), 32, seed, workers)
    return list(loader.epoch(epoch))


def test_training_batches_depend_on_seed_and_epoch_alone(pictures):
    images = FolderMetric(str(pictures), train=True)
    alone = _train_batches(images, 0, 1)
    with_workers = _train_batches(images, 2, 1)
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(alone, with_workers))
    assert not torch.equal(alone[0][0], _train_batches(images, 0, 2)[0][0])
    assert not torch.equal(alone[0][0], _train_batches(images, 0, 1, seed=1)[0][0])


def test_spans_of_a_training_batch_make_up_the_whole(pictures):
    images = FolderMetric(str(pictures), train=True)
    sampler = NPairs(images, 8, 3, 3, seed=0)
    loaders = [TrainLoader(images, sampler, 32, span=span) for span in (None, (0, 3), (3, 8))]
    assert [each.span for each in loaders] == [(0, 8), (0, 3), (3, 8)]
    for whole, *parts in zip(*(each.epoch(1) for each in loaders)):
        assert all(torch.equal(whole[kind], torch.cat([part[kind] for part in parts])) for kind in (0, 1))


def test_spans_of_an_evaluation_make_up_the_whole(pictures):
    images = FolderMetric(str(pictures))
    loaders = [EvaluationLoader(images, 4, 32, span=span) for span in (None, (0, 7), (7, 7), (7, 18))]
    assert [(loader.count, loader.total, len(loader)) for loader in loaders] == [
        (18, 18, 5), (7, 18, 2), (0, 18, 0), (11, 18, 3)]
    whole, *parts = ([batch for batch, _ in loader] for loader in loaders)
    assert torch.equal(torch.cat(whole), torch.cat([batch for part in parts for batch in part]))


def test_training_crops_are_windows_of_the_resized_picture(pictures):
    images = FolderMetric(str(pictures), train=True)
    images.samples = images.samples[:1] * 200
    side, size = resized_size(32), 32

    class OneBatch:
        def draw(self, epoch, number):
            return list(range(200))

        def __len__(self):
            return 1

    OneBatch.batch_size = len(OneBatch().draw(1, 0))
    (batch, _), = TrainLoader(images, OneBatch(), size).epoch(1)
    whole = load_resized(images.samples[0][0], side)
    windows = {}
    for top in range(side - size + 1):
        for left in range(side - size + 1):
            crop = whole[top:top + size, left:left + size]
            windows[crop.tobytes()] = (top, left, False)
            windows[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (top, left, True)
    seen = [windows[image.permute(1, 2, 0).contiguous().numpy().tobytes()] for image in batch]
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(side - size + 1))
    assert 60 < sum(flipped for _, _, flipped in seen) < 140


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_picture_is_named(own_pictures, workers):
    images = FolderMetric(str(own_pictures))
    path = images.samples[4][0]
    with open(path, "r+b") as file:
        file.truncate(300)
    with pytest.raises(DatasetError, match="04.png: a picture that can't be read") as error:
        list(EvaluationLoader(images, 4, 32, workers))
    assert "\n" not in str(error.value)
