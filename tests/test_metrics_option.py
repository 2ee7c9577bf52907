"""--metrics in whole runs: what is printed, kept in the log and written to result.txt."""
import json
import pathlib
import re

import pytest
import torch

import run
import run_distill
from conftest import distil_for, make_pictures, options_for
from dataset import load_splits
from metric.utils import MEASURES, measures
from results import answer, failure, read
from test_asymmetric import embedded

TITLES = {"map@r": "MAP@R", "r-precision": "R-precision", "mrr": "MRR"}
ALL = ["--metrics", "mrr", "map@r", "recall", "r-precision"]


def test_every_measure_has_its_lines(pictures, tmp_path, capsys):
    code, out, _ = answer(capsys, run.main, options_for(
        pictures, *ALL, "--recall", "1", "3", "--select", "last", "--save_dir", tmp_path / "run"))
    assert code == 0
    log = [json.loads(line) for line in read(str(tmp_path / "run"), "log.jsonl").splitlines()]
    printed = re.findall(r"^\[Epoch (\d)\] ([\w@-]+): \[(\d+\.\d{4})\] (train|test)$", out, re.M)
    titles = ["Recall@1", "Recall@3", "MAP@R", "R-precision", "MRR"]
    assert [(epoch, title, split) for epoch, title, _, split in printed] == [
        (epoch, title, split) for epoch in "012" for split in ("train", "test") for title in titles]
    values = {(int(epoch), title, split): value for epoch, title, value, split in printed}
    for line in log:
        for name, title in TITLES.items():
            assert {split: "{:.4f}".format(100 * value) for split, value in line[name].items()} == {
                split: values[line["epoch"], title, split] for split in ("train", "test")}
    assert read(str(tmp_path / "run"), "result.txt") == "".join(
        ["{} Recall@1: {}\n".format(which, values[2, "Recall@1", "test"]) for which in ("Best", "Final")]
        + ["{} {}: {}\n".format(which, title, values[2, title, "test"]) for which in ("Best", "Final")
           for title in titles[2:]] + ["Selected by: last\nBest epoch: 2\nLast epoch: 2\n"])


def test_best_and_final_measures_are_those_of_the_two_files_of_weights(tmp_path, capsys):
    root = make_pictures(tmp_path / "set", classes=12)
    code, _, _ = answer(capsys, run.main, options_for(
        root, "--metrics", "map@r", "--val_classes", "2", "--select", "val", "--lr", "1e-2", "--epochs", "4",
        "--save_dir", tmp_path / "run"))
    results = dict(line.split(": ") for line in read(str(tmp_path / "run"), "result.txt").splitlines())
    assert results["Best MAP@R"] != results["Final MAP@R"]
    for name, which in (("best.pth", "Best"), ("last.pth", "Final")):
        code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", tmp_path / "run" / name, "--metrics",
                                                 "map@r", "--val_classes", "2", "--device", "cpu", "--workers", "0"])
        assert code == 0 and re.findall(r"^\[Epoch 0\] MAP@R: \[(.*)\] (?:val|test)$", out, re.M) == [
            results[which + " Val MAP@R"], results[which + " MAP@R"]]


def test_the_figures_are_those_of_the_embeddings(teacher, pictures, capsys):
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", teacher + "/best.pth", "--device", "cpu",
                                             "--workers", "0", "--no_train_recall", *ALL])
    images = load_splits("folder", str(pictures))["test"]
    expected = measures(embedded(pathlib.Path(teacher), images), torch.tensor(images.targets), MEASURES, [1])
    assert code == 0
    for name, title in TITLES.items():
        assert "[Epoch 0] {}: [{:.4f}] test\n".format(title, 100 * expected[name]) in out


def test_a_teachers_measures_are_kept(teacher, tmp_path, capsys):
    argv = distil_for(teacher, "--dist_ratio", "1", "--epochs", "1", "--cache", tmp_path / "cache", *ALL)
    first, again = (answer(capsys, run_distill.main, argv)[1] for _ in range(2))
    lines = [[line for line in out.splitlines() if line.startswith("[Epoch 0]")] for out in (first, again)]
    assert lines[0] == lines[1] and len(lines[0]) == 16 and again.count("Measured before") == 2


def test_queries_without_a_match_are_counted(tmp_path, capsys):
    root = make_pictures(tmp_path / "set")
    for number in range(1, 6):
        (root / "class05" / "{:02d}.png".format(number)).unlink()
    code, out, _ = answer(capsys, run.main, options_for(root, "--epochs", "1", "--metrics", "mrr"))
    assert code == 0 and out.count("Without a match: 1 of 13 queries of the test set; the measures beside recall leave "
                                   "them out\n") == 1
    code, out, _ = answer(capsys, run.main, options_for(root, "--epochs", "1"))
    assert "Without a match" not in out


def test_a_set_of_which_no_query_has_a_match(teacher, tmp_path, capsys):
    """Its other measures have no value, and the log stays JSON."""
    root = make_pictures(tmp_path / "set" / "train", classes=20, pictures=1).parent
    make_pictures(root / "test", classes=3)
    code, out, errors = answer(capsys, run_distill.main, distil_for(
        teacher, "--dist_ratio", "1", "--data", root, "--num_image_per_class", "1", "--epochs", "1", "--metrics", "mrr",
        "--save_dir", tmp_path / "run"))
    assert code == 0, errors
    assert "Without a match: 20 of 20 queries of the training set" in out
    assert re.findall(r"^\[Epoch [01]\] MRR: \[\d.*\] (\w+)$", out, re.M) == ["test"] * 3
    log = read(str(tmp_path / "run"), "log.jsonl")
    assert "NaN" not in log and list(json.loads(log.splitlines()[-1])["mrr"]) == ["test"]


@pytest.mark.parametrize("main, more", [(run.main, []), (run_distill.main, ["--dist_ratio", "1"])])
def test_an_unknown_measure(capsys, main, more):
    assert re.search(r"argument --metrics: invalid choice: 'ndcg' \(choose from .*map@r", failure(
        capsys, main, more + ["--metrics", "ndcg"]))
