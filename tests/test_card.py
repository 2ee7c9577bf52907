"""README.md of a run: what it says, and whose it is."""
import json
import re
import shlex
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from PIL import Image

import run
import run_distill
from conftest import distil_for, options_for
from dataset import load_resized, load_splits, resized_size
from engine.networks import build_network, read_network_file
from processes import ROOT
from results import answer


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The --save_dir of a distillation with two measures, and what it printed."""
    directory = tmp_path_factory.mktemp("card") / "student"
    assert run_distill.main(distil_for(teacher, "--dist_ratio", "1", "--angle_ratio", "0.5", "--metrics", "map@r",
                                       "--recall", "1", "2", "--lr", "0.000123456789", "--save_dir", directory)) == 0
    return directory


def text_of(directory):
    return (directory / "README.md").read_text()


def blocks(text, language):
    return re.findall("```{}\n(.*?)```".format(language), text, re.S)


def test_the_table_is_that_of_the_log(student):
    lines = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text_of(student).splitlines()
            if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["before training", "`best.pth`", "`last.pth`"]
    for row, epoch in zip(rows[2:], (0, lines[-1]["best_epoch"], 2)):
        found = dict(zip(rows[0], row))
        assert found["epoch"] == str(epoch)
        for split in ("test", "train"):
            assert found["MAP@R, " + split] == "{:.2f}".format(100 * lines[epoch]["map@r"][split])
            for k in "12":
                assert found["Recall@{}, {}".format(k, split)] == "{:.2f}".format(
                    100 * lines[epoch]["recall"][split][k])
    assert "best Recall@1 of the test set" in text_of(student)


def test_the_command_gives_the_options_of_the_run(student):
    command = shlex.split(blocks(text_of(student), "bash")[0].replace("\\\n", " "))
    assert command[:2] == ["python3", "run_distill.py"]
    args = vars(run_distill.build_parser().parse_args(command[2:]))
    config = json.loads((student / "config.json").read_text())["options"]
    machine = {"workers", "device", "threads", "cache"}
    assert {name: value for name, value in args.items() if name not in machine} == {
        name: value for name, value in config.items() if name not in machine}


def test_the_front_matter_is_the_hubs(student):
    front = text_of(student).split("---\n")[1]
    assert dict(re.findall(r"^(\w+): (.+)$", front, re.M)) == {
        "library_name": "pytorch", "pipeline_tag": "image-feature-extraction"}
    assert re.findall("^- (.*)$", front, re.M) == ["image-retrieval", "metric-learning", "knowledge-distillation",
                                                   '"tiny"', "recall"]
    assert "licen" not in text_of(student)


def test_the_card_crops_as_the_project_does(student, tmp_path, monkeypatch):
    """The code for onnxruntime, which gets the crop of a picture from a phone that was held upright."""
    taken = []
    session = types.SimpleNamespace(run=lambda _, pictures: taken.append(pictures["pictures"]) or [None])
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=lambda path: session))
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)).save(
        str(tmp_path / "picture.png"), exif=turned)
    path, first = str(tmp_path / "picture.png"), (resized_size(32) - 32) // 2
    exec(blocks(text_of(student), "python")[1].replace('"picture.jpg"', repr(path)), {})
    expected = load_resized(path, resized_size(32))[first:first + 32, first:first + 32]
    assert np.array_equal(taken[0][0].transpose(1, 2, 0), expected)


def test_the_python_of_the_card_embeds_a_picture(student, pictures):
    path = load_splits("folder", str(pictures))["test"].samples[0][0]
    code = blocks(text_of(student), "python")[0].replace('"picture.jpg"', repr(path))
    found = {}
    exec(textwrap.dedent(code), found)
    file, first = read_network_file(str(student / "best.pth")), (resized_size(32) - 32) // 2
    picture = torch.from_numpy(load_resized(path, resized_size(32))[first:first + 32, first:first + 32].copy())
    with torch.no_grad():
        assert torch.equal(found["embedding"], build_network(file.options, file).eval()(
            picture.permute(2, 0, 1).unsqueeze(0)))


def test_the_card_of_a_run_that_goes_on_is_written_again(pictures, tmp_path, capsys):
    argv = options_for(pictures, "--save_dir", tmp_path, "--epochs", "1")
    assert answer(capsys, run.main, argv)[0] == 0
    assert "1 epochs of 2 batches" in text_of(tmp_path)
    assert answer(capsys, run.main, ["--resume", "--save_dir", str(tmp_path), "--epochs", "2"])[0] == 0
    assert "2 epochs of 2 batches" in text_of(tmp_path) and "--resume" not in text_of(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    code, out, _ = answer(capsys, run.main, argv + ["--overwrite"])
    assert code == 0 and (tmp_path / "README.md").read_text() == "mine"
    assert "Note: {}/README.md is not by this project, so it stays as it is".format(tmp_path) in out


def test_no_path_of_this_machine_is_in_a_card_of_files_below_the_current_directory(pictures, tmp_path, monkeypatch,
                                                                                  capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(pictures)
    argv = options_for("set", "--save_dir", tmp_path / "run", "--epochs", "1", "--iter_per_epoch", "1", "--select",
                       "last", "--resize", "short")
    assert answer(capsys, run.main, argv)[0] == 0
    text = text_of(tmp_path / "run")
    assert str(tmp_path) not in text and ROOT not in text
    assert "--save_dir run" in text and 'read_network_file("run/best.pth")' in text
    assert "is the last epoch that was measured" in text and "Trained with --resize short" in text
