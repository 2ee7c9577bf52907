"""--log: what trackers get. Their packages are stand-ins, which note what they are told; TensorBoard's is its own."""
import json
import os
import sys
import types

import pytest

import run
import run_distill
from conftest import distil_for, options_for
from engine.tracking import scalars
from results import answer, failure

LINE = {"epoch": 3, "recall": {"test": {"1": 0.5, "2": 0.75}, "val": {"1": 0.25}}, "map@r": {"test": 0.125},
        "select": "test", "best_epoch": 2, "loss": 0.5, "terms": {"dist": 0.25}, "learning_rate": 0.001}


def test_scalars_are_those_of_the_log():
    assert scalars(LINE) == {"recall@1/test": 0.5, "recall@2/test": 0.75, "recall@1/val": 0.25, "map@r/test": 0.125,
                             "best_epoch": 2, "loss": 0.5, "terms/dist": 0.25, "learning_rate": 0.001}


@pytest.fixture
def told(monkeypatch):
    """[what a stand-in for wandb and for trackio was told]"""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return Run()

    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        module.init, module.log, module.finish = init, Run().log, Run().finish
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_that_goes_on_is_the_same_run(pictures, tmp_path, capsys, told, name):
    argv = options_for(pictures, "--save_dir", tmp_path / "run", "--log", name, "--epochs", "1")
    assert answer(capsys, run.main, argv)[0] == 0
    assert answer(capsys, run.main, ["--resume", "--save_dir", tmp_path / "run", "--epochs", "2"])[0] == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [call[1:] for call in told if call[0] == "log"] == [(line["epoch"], scalars(line)) for line in log]
    assert [call[0] for call in told] == ["init", "log", "log", "finish", "init", "log", "finish"]
    first, second = (call[1] for call in told if call[0] == "init")
    key = "id" if name == "wandb" else "name"
    assert first[key] == second[key] and first["resume"] == second["resume"] == "allow"
    assert first.get("mode", "offline") == "offline" and first["config"]["epochs"] == 1


def test_a_run_that_begins_again_is_another_one(pictures, tmp_path, capsys, told):
    argv = options_for(pictures, "--save_dir", tmp_path / "run", "--log", "wandb", "--epochs", "1")
    assert answer(capsys, run.main, argv)[0] == answer(capsys, run.main, argv + ["--overwrite"])[0] == 0
    first, second = (call[1]["id"] for call in told if call[0] == "init")
    assert first != second


def test_a_tracker_that_fails_is_one_warning(pictures, teacher, tmp_path, capsys, told, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no\nroom")
    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    argv = distil_for(teacher, "--dist_ratio", "1", "--save_dir", tmp_path / "run", "--log", "wandb")
    code, out, errors = answer(capsys, run_distill.main, argv)
    assert code == 0, errors
    assert out.count("Warning: --log wandb gives up (RuntimeError: no room); log.jsonl has all figures\n") == 1


def test_tensorboard(pictures, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not here: its files were not read")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    argv = options_for(pictures, "--save_dir", tmp_path / "run", "--log", "tensorboard", "--epochs", "1")
    assert answer(capsys, run.main, argv)[0] == 0
    assert answer(capsys, run.main, ["--resume", "--save_dir", tmp_path / "run", "--epochs", "2"])[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()):
        for name, value in scalars(line).items():
            found = {event.step: event.value for event in events.Scalars(name)}
            assert found[line["epoch"]] == pytest.approx(value, rel=1e-6), name


def test_what_is_missing_is_said_before_anything_is_done(tmp_path, capsys, monkeypatch):
    argv = options_for(tmp_path / "no_pictures", "--save_dir", tmp_path / "run", "--log")
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        line = failure(capsys, run.main, argv + [name])
        assert "--log {0} needs the package {0}: pip install {0}".format(name) in line
    assert os.listdir(str(tmp_path)) == []
    assert "--log wandb needs --save_dir" in failure(capsys, run.main, options_for(tmp_path, "--log", "wandb"))
    assert "--log does nothing with --mode eval" in failure(capsys, run.main, ["--mode", "eval", "--log", "none"])
