"""The drawn birds: the same bytes for everybody, whole or not there at all, and too hard for raw pixels."""
import concurrent.futures
import functools
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dataset import files, synthetic
from dataset.scenery import draw_bird
from dataset.synthetic import contact_sheet, prepare_birds, species

SMALL = {"classes": 4, "pictures": 3, "size": 64, "progress": False}


def read_all(images):
    """Relative path -> bytes of every picture."""
    found = {}
    for folder, _, names in os.walk(images):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, images)] = file.read()
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return prepare_birds(str(tmp_path_factory.mktemp("birds")), processes=1, **SMALL)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return prepare_birds(str(tmp_path_factory.mktemp("all_birds")), progress=False)


def test_layout_is_cubs(small):
    classes = sorted(os.listdir(small))
    assert [name.split(".")[0] for name in classes] == ["001", "002", "003", "004"]
    for name in classes:
        noun = name.split(".", 1)[1]
        expected = ["{}_{:04d}.jpg".format(noun, number) for number in (1, 2, 3)]
        assert sorted(os.listdir(os.path.join(small, name))) == expected


def test_every_picture_has_its_own_bytes(small):
    pictures = read_all(small)
    assert len(set(pictures.values())) == len(pictures) == 12


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_bytes_do_not_depend_on_processes(small, tmp_path, monkeypatch, start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip("processes can't be started by {} here".format(start))
    pool = functools.partial(concurrent.futures.ProcessPoolExecutor, mp_context=multiprocessing.get_context(start))
    monkeypatch.setattr(synthetic, "ProcessPoolExecutor", pool)
    assert read_all(prepare_birds(str(tmp_path), processes=2, **SMALL)) == read_all(small)


def test_bytes_do_not_depend_on_how_many_classes_and_pictures_there_are(small, tmp_path):
    fewer = read_all(prepare_birds(str(tmp_path), processes=1, progress=False, classes=2, pictures=2, size=64))
    all_of_them = read_all(small)
    assert len(fewer) == 4 and all(all_of_them[path] == picture for path, picture in fewer.items())


def test_another_seed_draws_other_birds_into_another_folder(small, tmp_path):
    other = prepare_birds(str(tmp_path), seed=1, processes=1, **SMALL)
    assert os.path.basename(os.path.dirname(other)) != os.path.basename(os.path.dirname(small))
    assert not set(read_all(other).values()) & set(read_all(small).values())


def test_a_whole_folder_is_used_as_it_is(tmp_path, monkeypatch):
    images = prepare_birds(str(tmp_path), processes=1, **SMALL)
    monkeypatch.setattr(synthetic, "draw_bird", None)
    assert prepare_birds(str(tmp_path), processes=1, **SMALL) == images


@pytest.mark.parametrize("harm", ["no contents", "no picture", "short picture"])
def test_a_folder_that_is_not_whole_is_drawn_anew(small, tmp_path, harm):
    images = prepare_birds(str(tmp_path), processes=1, **SMALL)
    picture = os.path.join(images, sorted(read_all(images))[-1])
    if harm == "no contents":
        os.remove(os.path.join(os.path.dirname(images), "contents.txt"))
    if harm != "short picture":
        os.remove(picture)
    else:
        with open(picture, "r+b") as file:
            file.truncate(100)
    assert read_all(prepare_birds(str(tmp_path), processes=1, **SMALL)) == read_all(small)
    assert os.listdir(str(tmp_path)) == [os.path.basename(os.path.dirname(images))]


def test_a_failure_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(bird, rng, size):
        if bird == species(0, 2):
            raise KeyboardInterrupt
        return draw_bird(bird, rng, size)
    monkeypatch.setattr(synthetic, "draw_bird", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_birds(str(tmp_path), processes=1, **SMALL)
    assert os.listdir(str(tmp_path)) == []


def test_the_second_of_two_that_draw_at_once_uses_the_first_ones_folder(small, tmp_path, monkeypatch):
    """Where the disk knows no locks; with locks the second waits."""
    monkeypatch.setattr(files, "fcntl", None)

    def overtaken(bird, rng, size):
        monkeypatch.setattr(synthetic, "draw_bird", draw_bird)
        winner.append(prepare_birds(str(tmp_path), processes=1, **SMALL))
        winner.append(os.stat(winner[0]).st_ino)
        return draw_bird(bird, rng, size)
    winner = []
    monkeypatch.setattr(synthetic, "draw_bird", overtaken)
    images = prepare_birds(str(tmp_path), processes=1, **SMALL)
    assert [images, os.stat(images).st_ino] == winner
    assert len(os.listdir(str(tmp_path))) == 1 and read_all(images) == read_all(small)


def test_processes_that_start_together_all_end_well(small, tmp_path):
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(prepare_birds, str(tmp_path), processes=2, **SMALL) for _ in range(2)]
        images = {job.result() for job in jobs}
    assert len(images) == 1 and len(os.listdir(str(tmp_path))) == 1
    assert read_all(images.pop()) == read_all(small)


def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path):
    root = tmp_path / "file"
    root.write_text("not a directory")
    with pytest.raises(OSError, match="the birds can't be drawn") as caught:
        prepare_birds(str(root), processes=1, **SMALL)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"classes": 0}, {"classes": 81}, {"pictures": 0}, {"size": 8},
                                   {"processes": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="no such birds"):
        prepare_birds(str(tmp_path), **wrong)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_species_have_names_and_looks_of_their_own(seed):
    birds = [species(seed, index) for index in range(synthetic.CLASSES)]
    assert len({bird.name for bird in birds}) == synthetic.CLASSES
    assert len({bird._replace(name="") for bird in birds}) == synthetic.CLASSES
    assert all(name.replace("-", "").replace("_", "").isalpha() for name in (bird.name for bird in birds))


def test_draw_bird_has_the_size_asked_for_and_repeats_itself():
    first, second = (draw_bird(species(0, 5), np.random.default_rng(3), (90, 70)) for _ in range(2))
    assert first.size == (90, 70) and first.mode == "RGB" and first.tobytes() == second.tobytes()


def test_every_species_can_be_drawn():
    for index in range(synthetic.CLASSES):
        picture = np.asarray(draw_bird(species(1, index), np.random.default_rng(index), (48, 40)))
        assert picture.shape == (40, 48, 3) and picture.std() > 5


def test_command_writes_a_contact_sheet(small, tmp_path):
    sheet = contact_sheet(small, classes=2, pictures=3)
    assert sheet.width > sheet.height > 2 * 64
    run = subprocess.run([sys.executable, "-m", "dataset.synthetic", "--help"], stdout=subprocess.PIPE, check=True,
                         cwd=os.path.dirname(os.path.dirname(os.path.abspath(synthetic.__file__))))
    assert b"--sheet" in run.stdout


def test_the_default_set_is_complete_and_sane(full):
    classes = sorted(os.listdir(full))
    assert len(classes) == 80 and os.path.basename(os.path.dirname(full)) == "synthetic_birds_v1_s0"
    for name in classes:
        files = os.listdir(os.path.join(full, name))
        assert len(files) == 24
        for file in files:
            with Image.open(os.path.join(full, name, file)) as image:
                assert image.mode == "RGB" and all(100 <= side <= 150 for side in image.size)


def test_raw_pixels_do_not_retrieve_the_test_classes(full):
    pixels, labels = [], []
    for label, name in enumerate(sorted(os.listdir(full))[40:]):
        for file in sorted(os.listdir(os.path.join(full, name))):
            with Image.open(os.path.join(full, name, file)) as image:
                pixels.append(np.asarray(image.resize((64, 64), Image.BILINEAR), np.float32).ravel() / 255)
            labels.append(label)
    pixels, labels = np.stack(pixels), np.array(labels)
    squares = (pixels ** 2).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    recall = (labels[distance.argmin(1)] == labels).mean()
    # 23 of the 959 others are right: more than chance, or the pictures would have nothing in common
    assert 23 / 959 < recall < 0.35
