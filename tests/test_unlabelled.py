"""run_distill.py --unlabelled: pictures without labels train a student; a data set's test pictures measure it."""
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import run
import run_distill
from conftest import distil_for, make_pictures, without_labels
from dataset import ImageSet, UnlabelledPictures, passed_over, shared_files
from engine.data import Uniform
from processes import at_step, complete
from results import answer, assert_same_run, failure, read


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """30 pictures: some right in the folder, some in folders, at several depths."""
    root = tmp_path_factory.mktemp("pile") / "set"
    make_pictures(root, classes=4, pictures=6, seed=5)
    make_pictures(root / "2019" / "summer", classes=1, pictures=6, seed=6)
    for path in (root / "class00").iterdir():
        path.rename(root / path.name)
    (root / "class00").rmdir()
    return root


@pytest.fixture
def own_pile(pile, tmp_path):
    """The same, for a test that spoils it."""
    return shutil.copytree(str(pile), str(tmp_path / "pile")) and tmp_path / "pile"


def distil(teacher, pile, *more):
    """A distillation of the terms that need no labels, in fp32."""
    return without_labels(distil_for(teacher, "--dist_ratio", "1", "--angle_ratio", "2", "--precision", "fp32", *more),
                          pile)


def test_what_is_a_picture(own_pile):
    (own_pile / ".hidden").mkdir()
    for name in ("notes.txt", ".DS_Store", ".hidden/x.png", "class01/Thumbs.db"):
        (own_pile / name).write_bytes(b"x")
    (own_pile / "round").symlink_to(own_pile)  # followed, it would never end
    images = UnlabelledPictures(str(own_pile))
    found = sorted(os.path.relpath(path, str(own_pile)) for path, _ in images.samples)
    assert found == sorted(["{:02d}.png".format(n) for n in range(6)] + [
        "class0{}/{:02d}.png".format(c, n) for c in (1, 2, 3) for n in range(6)] + [
            "2019/summer/class00/{:02d}.png".format(n) for n in range(6)])
    assert not images.has_labels and set(images.targets) == {0} and images.classes == []
    assert passed_over([images]) == {".txt": 1, ".db": 1, "hidden": 2}
    fewer = images.without([0, 7])
    assert len(fewer) == 28 and not fewer.has_labels and ImageSet.has_labels


def test_training_prints_and_writes(teacher, pile, pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    code, out, err = answer(capsys, run_distill.main, distil(teacher, pile, "--save_dir", directory))
    assert code == 0, err
    assert "Number of images in Training Set: 30\nNumber of images in Test set: 18\n" in out
    assert "Pictures without labels: {}\n".format(pile) in out and "Passed over" not in out and "Warning" not in out
    # The data set is the teacher's, of which the test half is measured: teacher, untrained student, two epochs.
    assert "--data {}, --dataset folder".format(pictures) in out
    assert [line[-4:] for line in out.splitlines() if "] Recall@1" in line] == ["test"] * 4
    assert re.findall(r"^(Best .*): ", out, re.M) == ["Best Eval Recall"] * 2
    assert re.fullmatch(r"Best Test Recall@1: \d+\.\d{4}\nFinal Recall@1: \d+\.\d{4}\nSelected by: test\n.*",
                        read(directory, "result.txt"), re.S)
    log = [json.loads(line) for line in read(directory, "log.jsonl").splitlines()]
    assert all(list(line["recall"]) == ["test"] for line in log) and log[2]["loss"] > 0
    assert json.loads(read(directory, "config.json"))["options"]["unlabelled"] == str(pile)
    assert sorted(os.listdir(str(pile))) == ["00.png", "01.png", "02.png", "03.png", "04.png", "05.png", "2019",
                                             "class01", "class02", "class03"]  # no cache among them
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", directory + "/last.pth", "--workers", "0"])
    assert code == 0 and "Recall@1: [{:.4f}] test".format(100 * log[2]["recall"]["test"]["1"]) in out


def test_the_training_pictures_are_those_of_the_folder_alone(teacher, pile, pictures, tmp_path, monkeypatch, capsys):
    """The data set's own training pictures are not opened: there need be none."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test").symlink_to(pictures)
    seen = []
    original = Uniform.draw
    monkeypatch.setattr(Uniform, "draw", lambda self, *which: (seen.append((self.count, self.seed)), original(
        self, *which))[1])
    argv = distil(teacher, pile, "--data", tmp_path / "set", "--epochs", "1", "--seed", "4")
    code, out, err = answer(capsys, run_distill.main, argv)
    assert code == 0, err
    assert "Number of images in Test set: 36\n" in out and seen == [(30, 4)] * 2


@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(teacher, pile, own_pile, tmp_path, stop):
    more = ["--iter_per_epoch", "3", "--checkpoint_every", "1", "--save_dir"]
    expected, directory = tmp_path / "whole", tmp_path / "run"
    assert complete("run_distill", distil(teacher, own_pile, *more, expected), tmp_path / "out") == 0
    assert complete("run_distill", distil(teacher, own_pile, *more, directory), tmp_path / "out", at_step, stop,
                    signal.raise_signal, signal.SIGKILL) == -signal.SIGKILL
    # The pictures may have moved meanwhile.
    own_pile.rename(tmp_path / "moved")
    assert complete("run_distill", ["--resume", "--save_dir", directory, "--unlabelled", tmp_path / "moved"],
                    tmp_path / "out") == 0
    assert "Resume: epoch {}".format(1 + (stop - 1) // 3) in (tmp_path / "out").read_text()
    assert_same_run(directory, expected)


def test_a_run_goes_on_with_its_own_pictures_only(teacher, own_pile, tmp_path, capsys):
    directory = tmp_path / "run"
    assert answer(capsys, run_distill.main, distil(teacher, own_pile, "--save_dir", directory))[0] == 0
    resume = ["--resume", "--save_dir", str(directory), "--epochs", "3"]
    Image.new("RGB", (9, 9)).save(str(own_pile / "class01" / "00.png"))
    line = failure(capsys, run_distill.main, resume)
    assert "the pictures of the training set are not those" in line and "30 then, 30 now" in line


def test_a_run_with_labels_goes_on_with_labels(teacher, pile, tmp_path, capsys):
    directory = tmp_path / "run"
    argv = distil_for(teacher, "--dist_ratio", "1", "--save_dir", directory)
    assert answer(capsys, run_distill.main, argv)[0] == 0
    resume = ["--resume", "--save_dir", str(directory), "--epochs", "3"]
    line = failure(capsys, run_distill.main, resume + ["--unlabelled", str(pile)])
    assert "the pictures of the training set are not those" in line
    # A state of an earlier version knows neither this option nor --resize, whose default it was made with.
    state = torch.load(str(directory / "checkpoint.pth"))
    assert state["options"].pop("unlabelled", 0) is None and state["options"].pop("resize") == "square"
    torch.save(state, str(directory / "checkpoint.pth"))
    line = failure(capsys, run_distill.main, resume + ["--resize", "short"])
    assert "a run with other options (--resize square there, short here)" in line
    assert answer(capsys, run_distill.main, resume)[0] == 0


def test_pictures_that_are_measured_are_told(teacher, pictures, tmp_path, capsys):
    """Links and other paths lead to the same pictures; copies and training pictures are not counted."""
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile" / "all").symlink_to(pictures)
    (tmp_path / "pile" / "one.png").symlink_to(pictures / "class05" / "00.png")
    (tmp_path / "pile" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(str(pictures / "class04" / "00.png"), str(tmp_path / "pile" / "copy.png"))
    argv = distil(teacher, tmp_path / "pile", "--epochs", "1", "--skip_broken")
    code, out, err = answer(capsys, run_distill.main, argv)
    assert code == 0, err
    assert "Number of images in Training Set: 38\n" in out and "Skipped: 1 of 39 pictures of the training set" in out
    assert "Warning: 18 of 18 test pictures are also among those that are trained on" in out
    images = UnlabelledPictures(str(tmp_path / "pile"))
    assert shared_files(images, [ImageSet([(str(pictures / "class05" / "00.png"), 0)], {"a": 0})]) == 1


def test_broken_pictures(teacher, own_pile, tmp_path, capsys):
    (own_pile / "class01" / "00.png").write_bytes(b"no picture")
    line = failure(capsys, run_distill.main, distil(teacher, own_pile))
    assert "class01/00.png: a picture that can't be read" in line
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(str(own_pile / "cut.jpg"))
    os.truncate(str(own_pile / "cut.jpg"), os.path.getsize(str(own_pile / "cut.jpg")) - 9)
    directory = tmp_path / "run"
    code, out, _ = answer(capsys, run_distill.main, distil(
        teacher, own_pile, "--skip_broken", "--truncated", "ok", "--save_dir", directory))
    assert code == 0 and "Number of images in Training Set: 30\n" in out
    assert read(str(directory), "skipped.txt").startswith(str(own_pile / "class01" / "00.png"))


@pytest.mark.parametrize("more, expected", [
    (["--triplet_ratio", "1"], "--triplet_ratio needs labels, and pictures of --unlabelled have none"),
    (["--num_image_per_class", "2"], "--num_image_per_class does nothing with --unlabelled; leave it out"),
    (["--no_train_recall"], "--no_train_recall does nothing with --unlabelled; leave it out"),
    (["--batch", "31"], "--batch 31 is more than the 30 pictures in .*set; lower it or add pictures"),
    (["--batch", "1"], "--batch 1 holds no two pictures to compare; take at least 2"),
    (["--batch", "2", "--views", "2"], "--batch 2 and --views 2 holds no two pictures to compare; take at least 4"),
    (["--unlabelled", "nowhere"], "nowhere: no such folder; --unlabelled names a folder of pictures"),
    (["--recall", "18"], "the gallery of the test set holds only 17 pictures"),
])
def test_what_does_not_fit_is_one_line(teacher, pile, capsys, more, expected):
    assert re.search(expected, failure(capsys, run_distill.main, distil(teacher, pile, *more)))


def test_folders_that_hold_no_pictures(teacher, tmp_path, capsys):
    (tmp_path / "empty" / ".thumbnails").mkdir(parents=True)
    (tmp_path / "empty" / ".thumbnails" / "a.png").write_bytes(b"x")
    (tmp_path / "empty" / "a.txt").write_bytes(b"x")
    assert "empty: no picture in it" in failure(capsys, run_distill.main, distil(teacher, tmp_path / "empty"))
    line = failure(capsys, run_distill.main, distil(teacher, tmp_path / "empty" / "a.txt"))
    assert "a.txt: no such folder" in line


def test_every_term_without_labels_trains(teacher, pile, tmp_path, capsys):
    names = [term.name for term in run_distill.TERMS if not term.way.needs_pairs]
    assert len(names) >= 4 and "triplet" not in names
    ratios = [word for name in names for word in ("--{}_ratio".format(name), "1")]
    argv = without_labels(distil_for(teacher, *ratios, "--epochs", "1", "--save_dir", tmp_path / "run"), pile)
    assert answer(capsys, run_distill.main, argv)[0] == 0
    assert list(json.loads(read(str(tmp_path / "run"), "log.jsonl").splitlines()[-1])["terms"]) == names
