"""Paths of a run hold from any directory, and after the whole project folder has moved."""
import json
import os
import re
import shutil

import pytest
import torch

import run
import run_distill
from conftest import distil_for, make_pictures, options_for
from engine.rundir import read_config
from engine.rundir.paths import PATHS
from results import answer
from tiny import TinyResNet


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """A project folder with pictures, a teacher, a student and a run from own weights, all made by relative paths; the
    current directory is another one, with other pictures of the same name."""
    folder = tmp_path / "project"
    folder.mkdir()
    make_pictures(folder / "pics")
    make_pictures(tmp_path / "elsewhere" / "pics", seed=9)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    torch.save(TinyResNet(pretrained=False).state_dict(), "backbone.pth")
    for main, argv in COMMANDS:
        code, _, err = answer(capsys, main, argv)
        assert code == 0, err
        if argv is TEACHER:
            shutil.copytree("runs/teacher", "runs/taught")  # it stays when the teacher goes on
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


TEACHER = options_for("pics", "--cache", "decoded", "--epochs", "1", "--save_dir", "runs/teacher")
TEACHER[TEACHER.index("--pretrained") + 1] = "backbone.pth"
STUDENT = distil_for("runs/taught", "--dist_ratio", "1", "--epochs", "1", "--save_dir", "./runs/../runs/student")
LOADED = options_for("pics", "--load", "runs/taught/best.pth", "--epochs", "1", "--save_dir", "loaded")
LOADED = [word for word in LOADED if word not in ("--pretrained", "none")]
COMMANDS = [(run.main, TEACHER), (run_distill.main, STUDENT), (run.main, LOADED)]


def recalls(capsys, main, argv):
    code, out, err = answer(capsys, main, argv)
    assert code == 0, err
    return re.findall(r"\[Epoch .\] (Recall@1: .*)", out)


def measured(capsys, path):
    return recalls(capsys, run.main, ["--mode", "eval", "--load", path, "--workers", "0", "--device", "cpu"])


def go_on(capsys, main, directory, epochs, *more):
    return recalls(capsys, main, ["--resume", "--save_dir", directory, "--epochs", epochs, "--workers", "0", *more])


@pytest.mark.parametrize("moves", [False, True], ids=["from elsewhere", "after a move"])
def test_runs_are_measured_and_go_on(project, tmp_path, capsys, monkeypatch, moves):
    expected = {name: measured(capsys, project / name / "best.pth") for name in ("runs/teacher", "runs/student")}
    if moves:
        (tmp_path / "far").mkdir()
        project = project.rename(tmp_path / "far" / "away")
    for name in expected:
        assert measured(capsys, project / name / "best.pth") == expected[name]
        relative = os.path.relpath(str(project / name / "best.pth"))
        assert measured(capsys, relative) == expected[name]
    for main, name in ((run.main, "runs/teacher"), (run_distill.main, "runs/student"), (run.main, "loaded")):
        assert go_on(capsys, main, project / name, "2")
    teacher = os.path.relpath(str(project / "runs" / "taught" / "best.pth"))  # another spelling of the same file
    go_on(capsys, run.main, project / "runs" / ".." / "loaded", "2", "--load", teacher)
    assert sorted(os.listdir(str(tmp_path / "elsewhere"))) == ["pics"] == os.listdir("."), "nothing is made here"
    monkeypatch.chdir(project)  # the whole commands again, as typed
    for main, argv in COMMANDS:
        argv = argv + ["--epochs", "3", "--resume"]
        assert recalls(capsys, main, argv)
        os.remove(os.path.join(argv[argv.index("--save_dir") + 1], "checkpoint.pth"))
        code, _, err = answer(capsys, main, argv[:-1])
        assert code == 2 and "holds this run, finished" in err
    kept = json.loads((project / "runs" / "student" / "config.json").read_text())["options"]
    assert kept["teacher_load"] == str(project / "runs" / "taught" / "best.pth") and kept["data"] == str(
        project / "pics") and kept["save_dir"] == str(project / "runs" / "student") and kept["cache"] == "auto"


def test_other_paths_are_another_run(project, capsys, monkeypatch):
    code, _, err = answer(capsys, run.main, ["--resume", "--save_dir", project / "loaded", "--load", "best.pth"])
    assert code == 2 and "--load {} there, best.pth here".format(project / "runs" / "taught" / "best.pth") in err
    argv = LOADED[:-1] + [str(project / "loaded")]
    shutil.copytree(str(project / "runs"), "runs")
    code, _, err = answer(capsys, run.main, argv)
    assert code == 2 and "holds another run (--data {} there, pics here, --load".format(project / "pics") in err


def test_a_path_that_is_still_there_wins(project, tmp_path, capsys):
    shutil.copytree(str(project), str(tmp_path / "copy"))
    assert read_config(str(tmp_path / "copy" / "loaded"))["options"]["data"] == str(project / "pics")
    shutil.rmtree(str(project))
    assert read_config(str(tmp_path / "copy" / "loaded"))["options"]["data"] == str(tmp_path / "copy" / "pics")
    shutil.rmtree(str(tmp_path / "copy" / "pics"))
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", tmp_path / "copy" / "loaded" / "best.pth"])
    assert code == 2 and str(project / "pics") in err


def test_a_config_of_before_keeps_its_relative_paths(project, capsys, monkeypatch):
    path = project / "loaded" / "config.json"
    config = json.loads(path.read_text())
    config["options"].update(data="pics", load="runs/taught/best.pth", save_dir="loaded")
    path.write_text(json.dumps(config))
    assert read_config(str(project / "loaded"))["options"] == config["options"]
    monkeypatch.chdir(project)
    assert measured(capsys, "loaded/best.pth")


@pytest.mark.parametrize("script", [run, run_distill])
def test_a_tilde_is_the_home(script, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # the second one on Windows
        monkeypatch.setenv(name, str(tmp_path))
    parser = script.build_parser()
    names = [action.dest for action in parser._actions
             if action.metavar and re.search("PATH|DIR|FILE", str(action.metavar))]
    of_no_run = {"out", "gallery"} if script is run else set()  # of modes that keep no options
    assert len(names) == 9 + len(of_no_run) and set(names) - of_no_run <= set(PATHS) and of_no_run <= set(names)
    for name in names:
        args = parser.parse_args(["--{}=~/x".format(name)])
        assert getattr(args, name) == str(tmp_path / "x")
