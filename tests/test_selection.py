"""Which epoch's weights are best.pth: --select, and the training classes that --val_classes holds out."""
import json
import re
import signal
import sys

import pytest
import torch

import run
import run_distill
from conftest import argv_for, distil_for, make_pictures, options_for, without_labels
from dataset import load_splits
from engine import data, ranks
from processes import at_step, call_in_ranks, complete
from results import answer, assert_same_run, failure, read

FAST = ["--lr", "1e-2", "--epochs", "4", "--precision", "fp32"]
HELD_OUT = ["--val_classes", "2"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """6 classes that train and 6 that test, of 6 pictures."""
    return make_pictures(tmp_path_factory.mktemp("classes") / "set", classes=12)


def recalls_of(directory, split):
    return [json.loads(line)["recall"][split]["1"] for line in read(str(directory), "log.jsonl").splitlines()
            if "recall" in line]


def results_of(directory):
    return dict(line.split(": ") for line in read(str(directory), "result.txt").splitlines())


def percent(fraction):
    return "{:.4f}".format(100 * fraction)


@pytest.fixture(scope="module")
def selected(classes, tmp_path_factory):
    """{way to select: --save_dir of the same training}"""
    root = tmp_path_factory.mktemp("selected")
    for way in ("test", "val", "last"):
        argv = options_for(classes, *FAST, *HELD_OUT, "--select", way, "--save_dir", root / way)
        assert complete("run", argv, root / (way + ".out")) == 0
    return {way: root / way for way in ("test", "val", "last")}


def test_the_last_training_classes_are_held_out_and_measured(classes, tmp_path, capsys, monkeypatch):
    trained = []
    loader = data.TrainLoader
    monkeypatch.setattr(data, "TrainLoader", lambda images, *more: trained.append(images) or loader(images, *more))
    code, out, _ = answer(capsys, run.main, options_for(classes, *HELD_OUT, "--epochs", "1", "--recall", "1", "3"))
    assert code == 0
    assert trained[0].classes == ["class00", "class01", "class02", "class03"]
    assert {path.split("/")[-2] for path, _ in trained[0].samples} == set(trained[0].classes)
    assert "Number of images in Training Set: 24\n" in out
    assert "Validation set: 12, of 2 training classes that are held out (class04, class05)\n" in out
    assert re.findall(r"^\[Epoch 1\] Recall@(\d): \[\d+\.\d{4}\] (\w+)$", out, re.M) == [
        (k, split) for split in ("train", "val", "test") for k in "13"]


def test_the_held_out_classes_are_measured_like_a_test_set(classes, selected, tmp_path, capsys):
    """The recall of the split val is that of a test set of these classes alone."""
    alone = tmp_path / "alone" / "test"
    for name in ("class04", "class05"):
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        (alone / name).symlink_to(classes / name)
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", selected["val"] / "last.pth", "--dataset",
                                             "folder", "--data", alone.parent, "--device", "cpu", "--workers", "0"])
    assert code == 0
    assert "Recall@1: [{}] test\n".format(percent(recalls_of(selected["val"], "val")[-1])) in out
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", selected["val"] / "last.pth", *HELD_OUT,
                                             "--device", "cpu", "--workers", "0", "--no_train_recall"])
    assert re.findall(r"Recall@1: \[(.*)\] (\w+)", out) == [
        (percent(recalls_of(selected["val"], split)[-1]), split) for split in ("val", "test")]


@pytest.mark.parametrize("way", ["test", "val", "last"])
def test_best_weights_follow_what_selects(selected, capsys, way):
    directory = selected[way]
    recalls = {split: recalls_of(directory, split) for split in ("train", "val", "test")}
    first_best = {split: values.index(max(values)) for split, values in recalls.items()}
    assert first_best["val"] != first_best["test"] and 4 not in (first_best["val"], first_best["test"])  # or all agree
    epoch = {"test": first_best["test"], "val": first_best["val"], "last": 4}[way]
    log = [json.loads(line) for line in read(str(directory), "log.jsonl").splitlines()]
    assert [line["select"] for line in log] == [way] * 5 and log[-1]["best_epoch"] == epoch
    assert results_of(directory) == {
        "Best Recall@1": percent(recalls["test"][epoch]), "Final Recall@1": percent(recalls["test"][4]),
        "Best Val Recall@1": percent(recalls["val"][epoch if way != "test" else first_best["val"]]),
        "Final Val Recall@1": percent(recalls["val"][4]),
        "Selected by": way, "Best epoch": str(epoch), "Last epoch": "4"}
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", directory / "best.pth", "--device", "cpu",
                                             "--workers", "0", "--no_train_recall"])
    assert code == 0 and "Recall@1: [{}] test\n".format(percent(recalls["test"][epoch])) in out
    printed = read(str(directory.parent), way + ".out")
    words = {"test": "", "val": ", by the recall of the validation set", "last": ", which is the last one measured"}
    assert "[Epoch 4] best so far: epoch {}{}\n".format(epoch, words[way]) in printed
    assert "Best Recall@1: {:.4f}\n[Epoch 4]".format(recalls["test"][epoch]) in printed


def test_selecting_changes_no_training(selected):
    first, *others = (torch.load(str(directory / "last.pth")) for directory in selected.values())
    for weights in others:
        assert all(torch.equal(value, weights[name]) for name, value in first.items())


def test_a_student_is_selected_by_the_validation_classes(classes, selected, tmp_path, capsys):
    argv = distil_for(selected["val"], "--dist_ratio", "1", *FAST, *HELD_OUT, "--select", "val", "--save_dir",
                      tmp_path / "student")
    code, out, _ = answer(capsys, run_distill.main, argv)
    assert code == 0
    assert re.findall(r"^\[Epoch 0\] Recall@1: \[.*\] (\w+)$", out, re.M) == ["train", "val", "test"] * 2
    recalls = {split: recalls_of(tmp_path / "student", split) for split in ("train", "val", "test")}
    epoch = recalls["val"].index(max(recalls["val"]))
    results = results_of(tmp_path / "student")
    assert [results[name] for name in ("Best Train Recall@1", "Best Test Recall@1", "Best Val Recall@1")] == [
        percent(recalls[split][epoch]) for split in ("train", "test", "val")]
    assert results["Selected by"] == "val" and results["Best epoch"] == str(epoch)


@pytest.mark.parametrize("held_out, taken, warned", [
    ([], "2", False), (["--val_classes", "2"], "2", False), (["--val_classes", "3"], "3", True)])
def test_a_student_holds_out_what_its_teacher_has_not_seen(selected, capsys, held_out, taken, warned):
    argv = distil_for(selected["val"], "--dist_ratio", "1", "--epochs", "1", *held_out)
    code, out, _ = answer(capsys, run_distill.main, argv)
    assert code == 0 and '"val_classes": {},'.format(taken) in out
    assert ("was trained on classes that --val_classes 3 holds out here" in out) == warned


@pytest.mark.parametrize("way", ["val", "last"])
def test_a_stopped_run_goes_on_to_the_same_selection(classes, tmp_path, way):
    more = [*HELD_OUT, "--select", way, "--eval_every", "2"]
    assert complete("run", argv_for(classes, tmp_path / "whole", *more), tmp_path / "out") == 0
    argv = argv_for(classes, tmp_path / "run", *more)
    assert complete("run", argv, tmp_path / "out", at_step, 4, signal.raise_signal, signal.SIGTERM) == 143
    assert complete("run", ["--resume", "--save_dir", tmp_path / "run"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    # Made shorter before the next measured epoch, it is measured then, and with "last" this is the best one.
    argv = argv_for(classes, tmp_path / "short", *more)
    assert complete("run", argv, tmp_path / "out", at_step, 4, signal.raise_signal, signal.SIGTERM) == 143
    assert complete("run", ["--resume", "--save_dir", tmp_path / "short", "--epochs", "2"], tmp_path / "out") == 0
    recalls = recalls_of(tmp_path / "short", "val")
    assert results_of(tmp_path / "short")["Best epoch"] == (
        "2" if way == "last" else str([0, 2][recalls.index(max(recalls))]))


def test_a_run_of_a_version_without_these_options_goes_on(pictures, whole, tmp_path, capsys):
    argv = argv_for(pictures, tmp_path / "run")
    assert complete("run", argv, tmp_path / "out", at_step, 3, signal.raise_signal, signal.SIGTERM) == 143
    path = str(tmp_path / "run" / "checkpoint.pth")
    state = torch.load(path)
    for name in ("select", "val_classes", "metrics"):
        del state["options"][name]
    del state["criteria"]
    torch.save(state, path)
    code, _, errors = answer(capsys, run.main, ["--resume", "--save_dir", tmp_path / "run", "--select", "last"])
    assert code == 2 and "--select test there, last here" in errors
    assert complete("run", ["--resume", "--save_dir", tmp_path / "run"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", whole)


def test_held_out_pictures_share_the_training_sets_cache(classes, tmp_path, capsys):
    argv = options_for(classes, "--epochs", "1", "--cache", tmp_path / "cache")
    assert answer(capsys, run.main, argv)[0] == 0
    before = sorted(path.name for path in (tmp_path / "cache").glob("*.uint8"))
    assert answer(capsys, run.main, argv + HELD_OUT)[0] == 0
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.uint8")) == before and len(before) == 2


def test_pictures_left_out_and_classes_held_out(tmp_path, capsys):
    """The last classes of those that are left; broken pictures are in no split."""
    root = make_pictures(tmp_path / "set", classes=12)
    for name in ("class02/01.png", "class04/03.png"):
        (root / name).write_bytes(b"not a picture")
    for number in range(1, 6):
        (root / "class05" / "{:02d}.png".format(number)).unlink()
    code, out, _ = answer(capsys, run.main, options_for(
        root, "--epochs", "1", *HELD_OUT, "--skip_broken", "--skip_single", "--save_dir", tmp_path / "run"))
    assert code == 0
    assert "Number of images in Training Set: 17\n" in out
    assert "Validation set: 11, of 2 training classes that are held out (class03, class04)\n" in out
    assert len(read(str(tmp_path / "run"), "skipped.txt").splitlines()) == 3


def test_the_classes_of_a_set_are_divided_by_their_labels(classes):
    train = load_splits("folder", str(classes))["train"]
    left, held = train.divided(4)
    assert sorted(left + held) == list(range(36)) and set(train.only(left).targets) == {0, 1}
    assert train.only(held).class_to_idx == {"class02": 2, "class03": 3, "class04": 4, "class05": 5}


@pytest.mark.parametrize("more, expected", [
    (["--select", "val"], "--select val needs --val_classes N"),
    (["--val_classes", "1"], "--val_classes 1: a recall needs at least 2 classes"),
    (["--val_classes", "5"], "--val_classes 5 leaves fewer than 2 of the 6 training classes .* at most 4"),
    (["--val_classes", "9"], "--val_classes 9 leaves fewer than 2 of the 6 training classes .* at most 4"),
    (["--val_classes", "-2"], "'-2' is not a whole number of at least 0"),
    (["--val_classes", "4"], "--batch 8 is more than .* 2 classes .* make 6, without the 4 of --val_classes"),
    (["--val_classes", "2", "--recall", "12"], "--recall 12: beside the query, .* validation set holds only 11"),
    (["--select", "train"], "invalid choice: 'train'"),
    (["--mode", "eval", "--select", "last"], "--select does nothing with --mode eval"),
])
def test_what_can_not_be_selected(classes, capsys, more, expected):
    argv = options_for(classes, *more)
    if "eval" in more:
        argv = ["--dataset", "folder", "--data", str(classes)] + more
    assert re.search(expected, failure(capsys, run.main, argv))


def test_pictures_without_labels_have_no_classes_to_hold_out(selected, pictures, capsys):
    argv = without_labels(distil_for(selected["val"], "--dist_ratio", "1", *HELD_OUT), pictures)
    assert "--val_classes 2 holds out classes, and pictures of --unlabelled have none" in failure(
        capsys, run_distill.main, argv)


def test_a_test_set_alone_has_no_classes_to_hold_out(classes, selected, tmp_path, capsys):
    (tmp_path / "test").symlink_to(classes)
    argv = ["--mode", "eval", "--load", str(selected["val"] / "best.pth"), "--data", str(tmp_path), *HELD_OUT]
    assert "there is no training set of which classes could be held out" in failure(capsys, run.main, argv)


def _train(argv, out):
    if ranks.is_first():
        sys.stdout = open(out, "w")
    assert run.main(argv) == 0
    sys.stdout.flush()


def test_two_processes_hold_out_and_select_like_one(classes, selected, tmp_path):
    argv = options_for(classes, *FAST, *HELD_OUT, "--select", "val", "--sync_bn", "--save_dir", tmp_path / "run")
    call_in_ranks(2, _train, argv, str(tmp_path / "out"))
    for split in ("val", "test"):  # each network's own rounding decides later on
        assert recalls_of(tmp_path / "run", split)[0] == recalls_of(selected["val"], split)[0]
    recalls = recalls_of(tmp_path / "run", "val")
    assert results_of(tmp_path / "run")["Best epoch"] == str(recalls.index(max(recalls)))
