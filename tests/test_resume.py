"""Runs that go on, are replaced or are refused: what the next command says to a --save_dir."""
import gc
import os
import re
import shutil
import signal

import pytest
import torch
from PIL import Image

import run
import run_distill
from conftest import argv_for, distil_for, make_pictures, options_for
from engine import loop
from processes import at_step, complete, finish, start, wait_for
from results import answer, assert_same_run, content


def distil(teacher, directory, *more):
    return distil_for(teacher, "--dist_ratio", "1", "--angle_ratio", "2", "--triplet_ratio", "1", "--save_dir",
                      directory, *more)


def test_a_distillation_goes_on_by_its_directory_alone(whole, tmp_path):
    expected, directory = tmp_path / "whole", tmp_path / "run"
    assert complete("run_distill", distil(whole, expected), tmp_path / "out") == 0
    assert complete("run_distill", distil(whole, directory), tmp_path / "out", at_step, 2, signal.raise_signal,
                    signal.SIGTERM) == 128 + signal.SIGTERM
    before = len((tmp_path / "out").read_text())
    assert complete("run_distill", ["--resume", "--save_dir", str(directory)], tmp_path / "out") == 0
    assert_same_run(directory, expected)
    assert (tmp_path / "out").read_text()[before:].count("[Epoch 0]") == 0  # the teacher is not measured again


def _stop_in_evaluation():
    evaluate = loop.evaluate_splits

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    loop.evaluate_splits = stopped


def refusal(capsys, main, argv):
    """Return (exit code, the one line on stderr)."""
    code, _, errors = answer(capsys, main, argv)
    assert len(errors.splitlines()) <= 1
    return code, errors


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "copy"))
    return tmp_path / "copy"


def test_a_run_is_not_overwritten_by_accident(pictures, copy, capsys):
    before = content(copy)
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "holds this run, finished; --overwrite does it again" in line
    code, line = refusal(capsys, run.main, argv_for(pictures, copy, "--lr", "0.5", "--margin", "0.1"))
    assert code == 2 and "holds another run (--lr 0.001 there, 0.5 here, --margin 0.2 there, 0.1 here)" in line
    code, line = refusal(capsys, run.main, argv_for("elsewhere", copy, "--epochs", "7"))
    assert code == 2 and "--data {} there, elsewhere here, --epochs 3 there, 7 here".format(pictures) in line
    code, line = refusal(capsys, run_distill.main, distil(copy.parent, copy))
    assert code == 2
    (copy / "result.txt").unlink()
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "interrupted; --resume goes on with it" in line
    (copy / "config.json").unlink()
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "holds best.pth of another run" in line
    assert content(copy) == {name: before[name] for name in before if name not in ("result.txt", "config.json")}


def test_a_stop_before_anything_is_trained_leaves_the_run_that_is_to_be_replaced(pictures, copy, tmp_path):
    before = content(copy)
    argv = argv_for(pictures, copy, "--seed", "3", "--overwrite")
    process = start("run", argv, tmp_path / "out", _stop_in_evaluation)
    assert finish(process) == 128 + signal.SIGTERM
    assert "nothing was kept yet" in (tmp_path / "out").read_text()
    assert content(copy) == before


def test_a_config_of_others_is_not_replaced(pictures, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    code, line = refusal(capsys, run.main, argv_for(pictures, tmp_path))
    assert code == 2 and "is not a config.json of this project" in line
    assert content(tmp_path) == {"config.json": b'{"mine": 1}'}


def test_overwrite_replaces_the_run(pictures, copy, capsys):
    (copy / "mine.txt").write_text("kept")
    (copy / "skipped.txt").write_text("of the run before")
    (copy / "gallery.png").write_text("of the run before")
    argv = options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir", copy, "--overwrite")
    assert refusal(capsys, run.main, argv)[0] == 0
    assert len((copy / "log.jsonl").read_text().splitlines()) == 2
    assert (copy / "gallery.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(content(copy)) == [
        "README.md", "best.pth", "checkpoint.pth", "config.json", "curves.png", "gallery.png", "last.pth", "log.jsonl",
        "mine.txt", "result.txt", "speed.jsonl"]


def test_files_of_others_stay(pictures, tmp_path, capsys):
    directory = tmp_path / "mine"
    (directory / "folder.1.tmp").mkdir(parents=True)
    (directory / "notes.2024.tmp").write_text("precious")
    (directory / "best.pth.12.tmp").write_text("half of one, of a killed run")
    code, _ = refusal(capsys, run.main, options_for("nowhere", "--save_dir", directory))
    assert code == 2 and sorted(os.listdir(str(directory))) == ["folder.1.tmp", "notes.2024.tmp"]


def test_more_epochs_are_those_of_a_longer_run(pictures, copy, tmp_path, capsys):
    assert complete("run", ["--resume", "--save_dir", str(copy), "--epochs", "4", "--workers", "0"],
                    tmp_path / "out") == 0
    assert complete("run", argv_for(pictures, tmp_path / "longer", "--epochs", "4"), tmp_path / "out") == 0
    assert_same_run(copy, tmp_path / "longer")
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy, "--epochs", "2"])
    assert code == 2 and "has done 4 already" in line


@pytest.mark.parametrize("more, expected", [
    (["--lr", "0.5"], r"holds a run with other options \(--lr 0.001 there, 0.5 here\)"),
    (["--overwrite"], "give one of them"),
    (["--save_dir", "nowhere"], "nowhere holds no checkpoint.pth to go on from"),
])
def test_resume_that_does_not_fit(copy, capsys, monkeypatch, more, expected):
    monkeypatch.chdir(copy.parent)
    before = content(copy)
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy] + more)
    assert code == 2 and re.search(expected, line)
    assert content(copy) == before and not os.path.exists("nowhere")


def test_resume_needs_its_directory_and_its_script(pictures, copy, capsys):
    assert refusal(capsys, run.main, ["--resume"]) == (
        2, "run.py: error: --resume needs --save_dir, the directory of the run to go on with")
    code, line = refusal(capsys, run_distill.main, ["--resume", "--save_dir", copy])
    assert code == 2 and "checkpoint.pth is of run.py" in line
    code, line = refusal(capsys, run.main, ["--mode", "eval", "--resume"])
    assert code == 2 and "--resume does nothing with --mode eval" in line
    code, line = refusal(capsys, run.main, options_for(pictures, "--checkpoint_every", "3", "--overwrite"))
    assert code == 2 and "--checkpoint_every and --overwrite do nothing without --save_dir; leave them out" in line
    (copy / "checkpoint.pth").unlink()
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy])
    assert code == 2 and "no checkpoint.pth, so there is nothing to go on from" in line


def test_pictures_that_changed_are_told(whole, tmp_path, capsys):
    data = make_pictures(tmp_path / "set")
    directory = tmp_path / "run"
    assert refusal(capsys, run.main, argv_for(data, directory, "--epochs", "1"))[0] == 0
    shutil.move(str(data), str(tmp_path / "moved"))
    resume = ["--resume", "--save_dir", directory, "--data", tmp_path / "moved", "--epochs", "2", "--workers", "0"]
    assert refusal(capsys, run.main, resume)[0] == 0
    (tmp_path / "moved" / "class00" / "01.png").unlink()
    code, line = refusal(capsys, run.main, resume[:-4] + ["--epochs", "3"])
    assert code == 2 and "the pictures of the training set are not those" in line and "18 then, 17 now" in line


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_pictures_of_the_same_size_that_changed_are_told(own_pictures, tmp_path, capsys, cache):
    first, second = (str(own_pictures / name / "00.bmp") for name in ("class00", "class01"))
    for path, colour in ((first, "red"), (second, "blue")):
        Image.new("RGB", (8, 8), colour).save(path)
        os.utime(path, (10 ** 9, 10 ** 9))
    argv = argv_for(own_pictures, tmp_path / "run", "--epochs", "1", "--cache", cache)
    assert refusal(capsys, run.main, argv)[0] == 0
    os.rename(first, str(tmp_path / "aside"))
    os.rename(second, first)
    os.rename(str(tmp_path / "aside"), second)
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", tmp_path / "run", "--epochs", "2"])
    assert code == 2 and "the pictures of the training set are not those" in line and "contents" in line


def test_the_teacher_may_move_but_not_change(whole, tmp_path, capsys):
    shutil.copytree(str(whole), str(tmp_path / "teacher"))
    directory = tmp_path / "student"
    argv = distil(tmp_path / "teacher", directory, "--epochs", "1")
    assert refusal(capsys, run_distill.main, argv)[0] == 0
    shutil.move(str(tmp_path / "teacher"), str(tmp_path / "moved"))
    resume = ["--resume", "--save_dir", directory, "--epochs", "2", "--workers", "0"]
    code, line = refusal(capsys, run_distill.main, resume)
    assert code == 2 and "no such file" in line
    assert refusal(capsys, run_distill.main, resume + ["--teacher_load", tmp_path / "moved" / "best.pth"])[0] == 0
    weights = torch.load(str(tmp_path / "moved" / "best.pth"))
    torch.save({name: value + 1 if name == "linear.bias" else value for name, value in weights.items()},
               str(tmp_path / "moved" / "best.pth"))
    resume[resume.index("2")] = "3"
    code, line = refusal(capsys, run_distill.main, resume + ["--teacher_load", tmp_path / "moved" / "best.pth"])
    assert code == 2 and "is not the file that this run began with" in line


def test_a_teacher_that_moved_beside_another_config_is_not_another_network(whole, tmp_path, capsys):
    shutil.copytree(str(whole), str(tmp_path / "teacher"))
    argv = distil(tmp_path / "teacher", tmp_path / "student", "--epochs", "1")
    assert refusal(capsys, run_distill.main, argv)[0] == 0
    config = tmp_path / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"l2normalize": true', '"l2normalize": false'))
    code, line = refusal(capsys, run_distill.main, ["--resume", "--save_dir", tmp_path / "student", "--epochs", "2"])
    assert code == 2 and "best.pth holds a TinyResNet with 8 dimensions, L2-normalised, but the config.json" in line


def test_two_runs_in_one_directory_are_held_apart(pictures, tmp_path, capsys):
    directory = tmp_path / "run"
    process = start("run", argv_for(pictures, directory, "--epochs", "1000"), tmp_path / "out")
    try:
        wait_for(process, (directory / "checkpoint.pth").exists)
        for more in ([], ["--resume"], ["--overwrite"]):
            code, line = refusal(capsys, run.main, argv_for(pictures, directory, "--epochs", "1000", *more))
            assert code == 2 and "another run is writing to it" in line
        wait_for(process, lambda: not [name for name in os.listdir(str(directory)) if name.endswith(".tmp")
                                       and not name.startswith("checkpoint.pth.")])
    finally:
        process.kill()
    process.join()
    assert "Traceback" not in (tmp_path / "out").read_text()


def test_two_runs_side_by_side_with_one_cache(whole, tmp_path):
    """Both start on a data set that nobody has opened yet."""
    data = make_pictures(tmp_path / "set")
    processes = [start("run", argv_for(data, tmp_path / name, "--cache", tmp_path / "cache"), tmp_path / "out")
                 for name in "ab"]
    assert [finish(process) for process in processes] == [0, 0], (tmp_path / "out").read_text()
    for name in "ab":
        assert_same_run(tmp_path / name, whole)
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 2 and not list((tmp_path / "cache").glob("*.tmp"))


def test_values_that_begin_with_a_dash(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(str(pictures), "-set")
    argv = options_for("x", "--epochs", "1", "--save_dir", "run")
    argv[argv.index("--data"):argv.index("--data") + 2] = ["--data=-set"]
    assert refusal(capsys, run.main, argv)[0] == 0
    assert refusal(capsys, run.main, ["--resume", "--save_dir", "run", "--epochs", "2"])[0] == 0
    assert refusal(capsys, run.main, ["--mode", "eval", "--load", "run/best.pth"])[0] == 0


def test_the_saved_state_does_not_stay_in_memory(copy, capsys, monkeypatch):
    """It has the weights and twice their size of moments."""
    found, train_epoch = [], loop.train_epoch

    def trained(*args):
        found.append(sum(type(thing) is dict and "version" in thing and "optimizer" in thing
                         for thing in gc.get_objects()))
        return train_epoch(*args)

    monkeypatch.setattr(loop, "train_epoch", trained)
    gc.collect()  # what earlier tests left
    assert refusal(capsys, run.main, ["--resume", "--save_dir", copy, "--epochs", "4"])[0] == 0
    assert found == [0]
