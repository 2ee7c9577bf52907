"""What an epoch says of its time."""
import json
import re
import time

import run
from conftest import options_for
from engine import loop


def _speed(directory):
    return json.loads((directory / "speed.jsonl").read_text().splitlines()[0])


def test_the_wait_for_the_device_counts_as_time_of_the_epoch(pictures, tmp_path, monkeypatch):
    """Reading a loss waits until an accelerator has done its work; the last batch's wait counts, too."""
    check = loop._check_losses
    monkeypatch.setattr(loop, "_check_losses", lambda *args: (time.sleep(0.5), check(*args))[1])
    assert run.main(options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir", tmp_path / "r")) == 0
    assert _speed(tmp_path / "r")["seconds"] >= 0.5


def test_waiting_for_pictures_is_not_waiting_for_other_processes(pictures, tmp_path, monkeypatch, capsys):
    agree = loop.stop_if_interrupted
    monkeypatch.setattr(loop, "stop_if_interrupted", lambda: (time.sleep(0.3), agree())[1])
    assert run.main(options_for(pictures, "--epochs", "1", "--iter_per_epoch", "2", "--save_dir", tmp_path / "r")) == 0
    speed = _speed(tmp_path / "r")
    assert speed["waiting_for_processes"] * speed["seconds"] >= 0.59
    assert speed["waiting"] + speed["waiting_for_processes"] <= 1.001
    shown = float(re.search(r"([\d.]+)% of it waiting for pictures", capsys.readouterr().out).group(1))
    assert shown / 100 <= 1 - speed["waiting_for_processes"] + 0.002
