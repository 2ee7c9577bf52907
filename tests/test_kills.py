"""A run that is killed anywhere goes on and ends as if nothing had happened."""
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from conftest import FIXED, argv_for, make_pictures, options_for
from processes import complete, finish, start, wait_for_text
from results import assert_same_run, printed

# RKD_KILLS=300 is the long version.
KILLS = int(os.environ.get("RKD_KILLS", "12"))
SECONDS_FOR_KILLS = 6 * KILLS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kills_at_random_moments_change_nothing(pictures, whole, tmp_path, number):
    """One run that has no end of its own; after the last kill it is given one, and compared with a run that long."""
    directory = tmp_path / "run"
    argv = argv_for(pictures, directory, "--resume", "--epochs", "1000000", "--workers", "1")
    rng, deadline, kills = random.Random(int(number)), time.monotonic() + SECONDS_FOR_KILLS, 0
    while kills < KILLS and time.monotonic() < deadline:
        process = start("run", argv, tmp_path / "out")
        process.join(rng.uniform(0.1, 2))
        os.kill(process.pid, number)  # its loading process notices by itself
        assert finish(process) in (-number, 128 + number), printed(directory)
        kills += 1
    assert kills >= KILLS // 3
    done = torch.load(str(directory / "checkpoint.pth"))["progress"]["epoch"]
    end = ["--epochs", str(done + 1)]
    assert complete("run", argv + end, tmp_path / "out") == 0, printed(directory)
    whole_run = start("run", argv_for(pictures, tmp_path / "whole", *end), tmp_path / "out")
    assert finish(whole_run, 120 + SECONDS_FOR_KILLS) == 0
    assert_same_run(directory, tmp_path / "whole")
    if number == signal.SIGTERM:  # what has lost its parent to SIGKILL may say so
        assert "Traceback" not in printed(directory)
    assert set(os.listdir(str(directory))) == set(os.listdir(str(whole)))


def _die_at(number, directory):
    """End this process, without any cleaning up, when the ``number``-th change of a file in ``directory`` is due."""
    count = [0]

    def counted(change):
        def changed(*args):
            if os.path.dirname(args[0]) == directory and os.path.exists(args[0]) and not args[0].endswith(".lock"):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
            return change(*args)
        return changed

    os.replace, os.remove = counted(os.replace), counted(os.remove)


@pytest.fixture
def one_broken(tmp_path):
    """A data set of which one picture has to be skipped."""
    data = make_pictures(tmp_path / "set")
    (data / "class00" / "00.png").write_bytes(b"")
    return data


def test_death_between_any_two_files_changes_nothing(one_broken, tmp_path):
    argv = options_for(one_broken, *FIXED, "--iter_per_epoch", "1", "--epochs", "1", "--skip_broken")
    expected = tmp_path / "whole"
    assert complete("run", argv + ["--save_dir", str(expected)], tmp_path / "out") == 0
    for number in range(1, 100):
        directory = tmp_path / "run{}".format(number)
        code = complete("run", argv + ["--save_dir", str(directory)], tmp_path / "out", _die_at, number, str(directory))
        if code == 0:
            break
        assert code == 9
        assert complete("run", argv + ["--save_dir", str(directory), "--resume"], tmp_path / "out") == 0, printed(
            directory)
        assert_same_run(directory, expected)
        assert (directory / "skipped.txt").read_text() == (expected / "skipped.txt").read_text()
        shutil.rmtree(str(directory))
    assert number > 12  # state, config, skipped, best, last, log, speed before training; all but best after it; result


def test_death_while_a_run_is_replaced_leaves_the_one_or_the_other(pictures, whole, tmp_path):
    argv = options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--lr", "1e-4", "--precision", "fp32",
                       "--save_dir")
    assert complete("run", argv + [str(tmp_path / "other")], tmp_path / "out") == 0
    found = []
    for number in range(1, 10):  # until the new run is alone in the directory
        directory = tmp_path / "run{}".format(number)
        shutil.copytree(str(whole), str(directory))
        code = complete("run", argv + [str(directory), "--overwrite"], tmp_path / "out", _die_at, number,
                        str(directory))
        assert code == 9
        assert complete("run", ["--resume", "--save_dir", str(directory), "--workers", "0"],
                        tmp_path / "out") == 0, printed(directory)
        which = json.loads((directory / "config.json").read_text())["options"]["epochs"]
        assert_same_run(directory, {1: tmp_path / "other", 3: whole}[which])
        found.append(which)
        shutil.rmtree(str(directory))
    assert found == [3] + [1] * 8


def test_a_killed_run_with_loading_processes_goes_on_at_once(pictures, tmp_path):
    """What it has forked may live on for a while; it does not hold the directory."""
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000", "--workers", "2")
    process = start("run", argv, tmp_path / "out")
    wait_for_text(process, tmp_path / "out", "[Epoch 1] loss")
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    argv = ["--resume", "--save_dir", str(tmp_path / "run"), "--epochs", "3", "--workers", "0"]
    code = complete("run", argv, tmp_path / "again")
    # It may have been killed in its fourth epoch.
    assert code == 0 or code == 2 and "has done" in (tmp_path / "again").read_text(), (tmp_path / "again").read_text()
