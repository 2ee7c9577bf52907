"""Which crops the rows of a batch show: as before by default, resized ones, several of a picture, fixed ones."""
import math

import numpy as np
import pytest
import torch
from PIL import Image

import run
from conftest import make_pictures, options_for
from dataset import (FixedCrops, FolderMetric, RandomCrops, TrainLoader, crops as drawing, decoding, load_resized,
                     resized_size)
from dataset.croptable import CropTable
from metric.batchsampler import NPairs
from model.compat import import_torchvision
from results import answer, failure

SIZE = 32
SIDE = resized_size(SIZE)


def batches(images, crops=None, epoch=1, seed=5, pictures=4, **options):
    """Two batches of ``pictures`` pictures each, times the crops of each."""
    loader = TrainLoader(images, NPairs(images, pictures, 2, 2, seed=seed), SIZE, seed, crops=crops, **options)
    return list(loader.epoch(epoch))


def equal(found, expected):
    return len(found) == len(expected) and all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(found, expected))


@pytest.fixture(scope="module")
def images(pictures):
    return FolderMetric(str(pictures), train=True)


def drawn_as_published(images, seed, epoch, number):
    """What a batch was before there was any option."""
    rng = np.random.default_rng((seed, epoch, number, 1))
    rows = []
    for index in NPairs(images, 4, 2, 2, seed=seed).draw(epoch, number):
        top, left = rng.integers(0, SIDE - SIZE + 1, size=2)
        flip = rng.random() < 0.5
        picture = load_resized(images.samples[index][0], SIDE)[top:top + SIZE, left:left + SIZE]
        rows.append(picture[:, ::-1] if flip else picture)
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def test_without_options_batches_are_those_of_before(images):
    for seed, epoch in ((5, 1), (6, 3)):
        for number, (pictures, _) in enumerate(batches(images, epoch=epoch, seed=seed)):
            assert torch.equal(pictures, drawn_as_published(images, seed, epoch, number))


def test_a_resized_crop_is_torchvisions_pixel_for_pixel():
    functional = pytest.importorskip("torchvision.transforms.functional") if import_torchvision() else None
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(20):
        crop = drawing.resized_crop(rng, SIDE, SIZE)
        expected = np.asarray(functional.resized_crop(Image.fromarray(picture), crop.top, crop.left, crop.height,
                                                      crop.width, (SIZE, SIZE)))
        row = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8)
        drawing.cut(picture, crop, row)
        assert np.array_equal(row.numpy(), expected[:, ::-1] if crop.flip else expected)


def test_resized_crops_are_drawn_as_torchvision_draws_them():
    transform = pytest.importorskip("torchvision.transforms").RandomResizedCrop if import_torchvision() else None
    torch.manual_seed(0)
    picture, rng, count = Image.new("RGB", (256, 256)), np.random.default_rng(0), 4000
    expected = np.array([transform.get_params(picture, (0.16, 1), (3 / 4, 4 / 3)) for _ in range(count)])
    found = np.array([drawing.resized_crop(rng, 256, 224)[:4] for _ in range(count)])[:, [0, 1, 2, 3]]
    assert np.all(found[:, :2] >= 0) and np.all(found[:, :2] + found[:, 2:] <= 256)
    areas, ratios = found[:, 2] * found[:, 3] / 256 ** 2, found[:, 3] / found[:, 2]
    assert 0.155 < areas.min() < 0.18 and areas.max() > 0.95 and 0.73 < ratios.min() < 0.76 < 1.31 < ratios.max() < 1.36
    for part in range(4):
        for share in (10, 50, 90):
            assert abs(np.percentile(found[:, part], share) - np.percentile(expected[:, part], share)) < 6
    flips = sum(drawing.resized_crop(rng, 256, 224).flip for _ in range(1000))
    assert 430 < flips < 570


def test_where_no_window_fits_the_whole_picture_is_taken(monkeypatch):
    monkeypatch.setattr(drawing, "SHARE", (1, 1))
    monkeypatch.setattr(drawing, "RATIO", (1.3, 1.3))
    crop = drawing.resized_crop(np.random.default_rng(0), SIDE, SIZE)
    assert crop[:4] == (0, 0, SIDE, SIDE)


@pytest.mark.parametrize("crops", [RandomCrops("resized"), RandomCrops("fixed", 2), RandomCrops("resized", 3),
                                   FixedCrops("resized", 3, 5, 2)], ids=["resized", "two", "three", "fixed crops"])
def test_spans_and_loading_processes_change_nothing(images, crops):
    whole = batches(images, crops)
    total = 4 * crops.views
    assert all(len(rows) == total for rows, _ in whole)
    assert equal(batches(images, crops, workers=1), whole)
    assert not equal(batches(images, crops, epoch=2), whole) and not equal(batches(images, crops, seed=9), whole)
    for cut in (1, 3):
        parts = zip(*(batches(images, crops, span=span) for span in ((0, cut), (cut, total))))
        assert equal([[torch.cat(pair) for pair in zip(*rows)] for rows in parts], whole)


def test_views_of_a_picture_are_neighbours_and_differ(images):
    views = 3
    for number, (rows, labels) in enumerate(batches(images, RandomCrops("resized", views))):
        drawn = NPairs(images, 4, 2, 2, seed=5).draw(1, number)
        assert labels.tolist() == [images.targets[index] for index in drawn for _ in range(views)]
        rng = np.random.default_rng((5, 1, number, 1))
        for row, index in enumerate(index for index in drawn for _ in range(views)):
            expected = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8)
            drawing.cut(load_resized(images.samples[index][0], SIDE), drawing.resized_crop(rng, SIDE, SIZE), expected)
            assert torch.equal(rows[row].permute(1, 2, 0), expected)
        assert len({row.numpy().tobytes() for row in rows}) == len(rows)


def test_a_picture_is_decoded_once_for_its_views(images, monkeypatch):
    read = []
    monkeypatch.setattr(decoding, "load_resized", lambda path, *more: (read.append(path), load_resized(path, *more))[1])
    batches(images, RandomCrops("fixed", 4))
    assert len(read) == 8


def test_fixed_crops_depend_on_seed_picture_and_number_alone(images):
    crops = FixedCrops("resized", 3, 4, 2)
    allowed = {index: [FixedCrops("resized", 3, 9).crop(index, view, SIDE, SIZE) for view in range(4)]
               for index in range(len(images))}
    assert len({crop[:5] for fixed in allowed.values() for crop in fixed}) > 0.9 * 4 * len(images)
    assert crops.crop(0, 0, SIDE, SIZE) != FixedCrops("resized", 4, 4).crop(0, 0, SIDE, SIZE)
    indices, seen = [index for index in range(len(images)) for _ in range(2)], set()
    for batch in range(30):
        drawn = crops(indices, (0, batch), (0, len(indices)), SIDE, SIZE)
        assert all(crop == allowed[index][crop.view] for index, crop in zip(indices, drawn))
        assert all(first.view != second.view for first, second in zip(drawn[::2], drawn[1::2]))
        seen.update((index, crop.view) for index, crop in zip(indices, drawn))
        assert crops(indices, (0, batch), (3, 9), SIDE, SIZE) == drawn[3:9]
    assert len(seen) == 4 * len(images)
    for view in range(4):
        assert crops.only(view)(range(2, 5), None, (0, 3), SIDE, SIZE) == [allowed[index][view] for index in (2, 3, 4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_numbers_of_the_drawn_crops_come_with_the_batch(images, workers):
    table = np.arange(3 * len(images) * 2, dtype=np.float32).reshape(3, len(images), 2)
    crops = FixedCrops("fixed", 3, 3, 1, CropTable(table))
    for number, (rows, labels, numbers) in enumerate(batches(images, crops, workers=workers, span=(1, 4))):
        drawn = NPairs(images, 4, 2, 2, seed=5).draw(1, number)
        views = [crop.view for crop in crops(drawn, (5, 1, number, 1), (0, 4), SIDE, SIZE)]
        assert numbers.dtype == torch.float32 and labels.tolist() == [images.targets[index] for index in drawn[1:]]
        assert numbers.tolist() == [table[view, index].tolist() for view, index in zip(views[1:], drawn[1:])]


@pytest.mark.parametrize("more, expected", [
    (["--views", "3"], "--batch 8 can't be divided into --views 3 of each picture; take a batch of 9"),
    (["--views", "4"], "--batch 8 with --num_image_per_class 3 and --views 4 is smaller than 2 classes; take a batch "
                       "of at least 24"),
    (["--views", "2", "--batch", "20"], "--batch 20 is more than the training set can give: 3 classes with "
                                        "--num_image_per_class 3 and --views 2 make 18"),
    (["--views", "0"], "'0' is not a whole number of at least 1"),
    (["--num_image_per_class", "1"], "--num_image_per_class 1 leaves no two pictures of one class in a batch"),
    (["--crop", "round"], "invalid choice: 'round'"),
    (["--teacher_views", "2"], "unrecognized arguments"),
])
def test_options_that_do_not_fit(pictures, capsys, more, expected):
    assert expected in failure(capsys, run.main, options_for(pictures, *more))


@pytest.mark.parametrize("more", [["--crop", "resized"], ["--views", "2"]])
def test_measuring_takes_no_training_crops(pictures, capsys, more):
    argv = ["--mode", "eval", "--dataset", "folder", "--data", pictures, "--image_size", "32"] + more
    assert more[0] + " does nothing with --mode eval" in failure(capsys, run.main, [str(word) for word in argv])


def test_two_views_are_the_pair_that_a_loss_needs(tmp_path, capsys):
    """Classes of one picture, and one picture of each class."""
    data = make_pictures(tmp_path / "set", classes=16, pictures=1)
    for name in range(8, 16):  # the second half is the test set
        picture = data / "class{:02d}".format(name) / "00.png"
        (picture.parent / "01.png").write_bytes(picture.read_bytes())
    argv = options_for(data, "--num_image_per_class", "1", "--recall", "1", "--epochs", "1", "--sample", "all")
    assert "needs such pairs" in failure(capsys, run.main, argv)
    code, out, errors = answer(capsys, run.main, argv + ["--views", "2"])
    assert code == 0 and not errors and "8 of 8 classes of the training set have a single picture" in out
    loss = float(out.split("[Epoch 1] loss ")[1].split()[0])
    assert math.isfinite(loss) and loss > 0
