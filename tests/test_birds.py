"""The drawn birds: the same bytes for everybody, whole or not there at all, too hard for raw pixels; their sheet."""
import concurrent.futures
import functools
import hashlib
import multiprocessing
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from processes import ROOT
from dataset import FolderMetric, files, load_splits, passed_over
from dataset.birds import CLASSES, draw_bird, invent_species, prepare, prepare_birds

sys.path.insert(0, os.path.join(ROOT, "examples"))

import contact_sheet  # noqa: E402

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
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", pool)
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
    monkeypatch.setattr(prepare, "draw_bird", None)
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
        if bird == invent_species(0)[2]:
            raise KeyboardInterrupt
        return draw_bird(bird, rng, size)
    monkeypatch.setattr(prepare, "draw_bird", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_birds(str(tmp_path), processes=1, **SMALL)
    assert os.listdir(str(tmp_path)) == []


def test_the_second_of_two_that_draw_at_once_uses_the_first_ones_folder(small, tmp_path, monkeypatch):
    """On a file system without locks; with locks the second waits."""
    monkeypatch.setattr(files, "fcntl", None)

    def overtaken(bird, rng, size):
        monkeypatch.setattr(prepare, "draw_bird", draw_bird)
        winner.append(prepare_birds(str(tmp_path), processes=1, **SMALL))
        winner.append(os.stat(winner[0]).st_ino)
        return draw_bird(bird, rng, size)
    winner = []
    monkeypatch.setattr(prepare, "draw_bird", overtaken)
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
    birds = invent_species(seed)
    assert len({bird.name for bird in birds}) == len(birds) == CLASSES
    assert len({bird._replace(name="") for bird in birds}) == CLASSES
    assert all(name.replace("-", "").replace("_", "").isalpha() for name in (bird.name for bird in birds))


def test_species_of_version_1_stay_as_they_are():
    """Other species need another VERSION, for folders of this name hold these."""
    birds = invent_species(0)
    assert [bird.name for bird in birds[:2]] == ["Ivory-tailed_Warbler", "Streaked_Parakeet"] and prepare.VERSION == 1
    looks = "\n".join(" ".join("{:.6f}".format(value) if isinstance(value, float) else str(value) for value in bird)
                      for bird in birds)
    assert hashlib.sha256(looks.encode()).hexdigest()[:16] == "32d7af88edf0e280"


def test_draw_bird_has_the_size_asked_for_and_repeats_itself():
    first, second = (draw_bird(invent_species(0)[5], np.random.default_rng(3), (90, 70)) for _ in range(2))
    assert first.size == (90, 70) and first.mode == "RGB" and first.tobytes() == second.tobytes()


def test_every_species_can_be_drawn():
    for index, bird in enumerate(invent_species(1)):
        picture = np.asarray(draw_bird(bird, np.random.default_rng(index), (48, 40)))
        assert picture.shape == (40, 48, 3) and picture.std() > 5


def test_both_splits_are_found_in_one_place_when_they_have_just_been_drawn(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "_draw_into_place", lambda root, folder, *rest: shutil.copytree(
        os.path.dirname(small), folder))
    splits = load_splits("synthetic", "data")
    assert splits["train"].directory == splits["test"].directory and not passed_over(splits.values())


def test_the_folder_of_an_earlier_release_is_used_as_it_is(small, tmp_path, monkeypatch):
    shutil.copytree(os.path.dirname(small), str(tmp_path / "synthetic_birds_v1_s0"))
    monkeypatch.setattr(prepare, "draw_bird", None)
    folder = tmp_path / "synthetic_birds_v1_s0"
    for root in (tmp_path, folder, folder / "images"):
        splits = load_splits("synthetic", str(root))
        train, test = splits["train"], splits["test"]
        assert train.classes + test.classes == sorted(os.listdir(small))
        assert train.samples[0][0].startswith(str(folder / "images" / train.classes[0]))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.txt").write_text("not a bird")
    (tmp_path / "project" / "pics").symlink_to(folder / "images")
    assert load_splits("synthetic", str(tmp_path / "project" / "pics"))["train"].classes == train.classes
    assert os.listdir(str(tmp_path / "project" / "pics")) and (tmp_path / "project" / "thesis.txt").exists()
    folder.rename(tmp_path / "aside")  # unpacked into a folder of its own name
    folder.mkdir()
    (tmp_path / "aside").rename(folder / folder.name)
    assert load_splits("synthetic", str(tmp_path))["train"].directory == str(folder / folder.name / "images")


def test_all_classes_are_there_and_raw_pixels_do_not_retrieve_them(tmp_path):
    """With 6 pictures a class, a quarter of the default set."""
    test = FolderMetric(prepare_birds(str(tmp_path), pictures=6, progress=False))
    assert len(test.classes) == 40 and len(test) == 40 * 6
    pixels, labels = [], np.array(test.targets)
    for path, _ in test.samples:
        with Image.open(path) as image:
            assert image.mode == "RGB" and all(100 <= side <= 150 for side in image.size)
            pixels.append(np.asarray(image.resize((64, 64), Image.BILINEAR), np.float32).ravel() / 255)
    pixels = np.stack(pixels)
    squares = (pixels ** 2).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T
    same = labels[:, None] == labels
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(1)] == labels).mean() < 0.1  # by chance: 5 of the 239 others
    apart = distance[~same].mean()
    assert 0.9 * apart < distance[same & np.isfinite(distance)].mean() < apart  # but a class has something in common


def test_contact_sheet_shows_every_picture(small):
    sheet = contact_sheet.contact_sheet(small, classes=3, pictures=2)
    cells = [np.asarray(sheet.crop((left, top, left + contact_sheet.CELL, top + contact_sheet.CELL)))
             for top in range(0, sheet.height, contact_sheet.CELL)
             for left in range(contact_sheet.MARGIN, sheet.width, contact_sheet.CELL)]
    assert len(cells) == 6 and all(cell.std() > 5 for cell in cells)


def test_contact_sheet_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contact_sheet, "prepare_birds", functools.partial(prepare_birds, processes=1, **SMALL))
    assert contact_sheet.main(["--root", "data", "--out", "birds.png"]) == 0
    with Image.open("birds.png") as sheet:
        assert sheet.height == 4 * contact_sheet.CELL
    capsys.readouterr()
    for wrong in (["--out", "no/birds.png"], ["--out", "birds.xyz"], ["--out", "b.png", "--root", "birds.png"]):
        assert contact_sheet.main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    for wrong in ([], ["--out", "b.png", "--classes", "0"]):
        with pytest.raises(SystemExit) as stop:
            contact_sheet.main(wrong)
        assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
