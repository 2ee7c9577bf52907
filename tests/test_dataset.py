"""Data sets, decoding and loaders."""
import numpy as np
import pytest
import torch
from PIL import Image

from dataset import (DATASETS, DatasetError, EvaluationLoader, FolderMetric, TrainLoader, default_workers, load_resized,
                     load_splits, loader, resized_size)
from metric.batchsampler import NPairs


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


def test_every_data_set_describes_itself():
    assert all(data_set.summary and "\n" not in data_set.summary for data_set in DATASETS.values())
    assert "cub200" in [name for name, data_set in DATASETS.items() if data_set.can_download]


@pytest.mark.parametrize("can_download, download, expected", [
    (True, True, [(True, True), (False, False)]), (True, False, [(True, False), (False, False)]),
    (False, True, [(True, False), (False, False)])])
def test_a_download_is_asked_of_sets_that_can_and_once(monkeypatch, can_download, download, expected):
    calls = []

    class Moths:
        gallery = None

        def __init__(self, root, train, **options):
            assert set(options) <= ({"download"} if can_download else set())
            calls.append((train, options.get("download", False)))

    Moths.can_download = can_download
    monkeypatch.setitem(DATASETS, "moths", Moths)
    load_splits("moths", "nowhere", download)
    assert calls == expected


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
