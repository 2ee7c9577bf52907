"""A signal ends a run between two steps, says how to go on, and nothing is lost."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from conftest import argv_for, options_for
from engine import loop
from processes import TESTS, at_step, complete, finish, start, start_command, wait_for, wait_for_line, wait_for_text
from results import assert_same_run, printed


@pytest.mark.parametrize("workers, number", [("fork", signal.SIGTERM), ("forkserver", signal.SIGUSR1)])
def test_with_loading_processes_and_in_bf16(pictures, tmp_path, workers, number):
    outcomes = []
    for name, number in (("whole", None), ("run", number)):
        argv = argv_for(pictures, tmp_path / name)
        argv[argv.index("--workers") + 1], argv[argv.index("fp32")] = "1", "auto"
        process = start("run", argv, tmp_path / "out", workers=workers)
        if number is not None:
            wait_for(process, lambda: "[Epoch 1] loss" in (tmp_path / "out").read_text()[len(before):])
            os.killpg(process.pid, number)  # as SLURM does: every process of the job, those that just start, too
        outcomes.append(finish(process))
        before = (tmp_path / "out").read_text()
    assert outcomes == [0, 128 + number], before
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]
    assert (state["epoch"], state["batch"]) >= (1, 2)  # what was trained is kept
    assert complete("run", ["--resume", "--save_dir", str(tmp_path / "run"), "--workers", "1"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_ends_the_step_and_says_how_to_go_on(pictures, tmp_path, name):
    number, directory = getattr(signal, name), tmp_path / "run"
    process = start_command("run.py", argv_for(pictures, directory, "--epochs", "1000", "--workers", "1"))
    try:
        wait_for_line(process, "[Epoch 2]")
        os.killpg(process.pid, number)  # as a terminal or a scheduler does: to the loading processes as well
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert errors.strip().splitlines()[-1] == "run.py: error: interrupted by {}; to go on: python3 run.py --resume " \
        "--save_dir {}".format(name, directory)
    assert "Traceback" not in errors
    assert not [name for name in os.listdir(str(directory)) if name.endswith((".tmp", ".lock"))]
    state = torch.load(str(directory / "checkpoint.pth"))
    assert state["progress"]["epoch"] >= 2
    assert [json.loads(line)["epoch"] for line in (directory / "log.jsonl").read_text().splitlines()] == list(
        range(state["progress"]["epoch"]))


def test_without_save_dir_a_signal_says_that_nothing_was_kept(pictures, tmp_path):
    assert complete("run", options_for(pictures), tmp_path / "out", at_step, 3, signal.raise_signal,
                    signal.SIGTERM) == 128 + signal.SIGTERM
    assert "nothing was kept" in (tmp_path / "out").read_text().splitlines()[-1]


def test_a_terminal_that_goes_takes_nothing_with_it(pictures, tmp_path):
    """What is printed to it fails from then on; an epoch's line is, before the signal is looked at."""
    master, slave = os.openpty()
    directory = tmp_path / "run"
    command = [sys.executable, os.path.join(TESTS, "with_tiny.py"), "run.py"]
    process = subprocess.Popen(command + argv_for(pictures, directory, "--epochs", "1000"), stdout=slave, stderr=slave)
    try:
        os.close(slave)
        shown = b""
        while b"[Epoch 1] best" not in shown:
            shown += os.read(master, 1000)  # OSError if it ends
        process.send_signal(signal.SIGSTOP)  # so that it prints nothing between these two
        os.close(master)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert torch.load(str(directory / "checkpoint.pth"))["progress"]["epoch"] >= 2


def _ignore_and_raise_at_step_2():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(2, signal.raise_signal, signal.SIGHUP)


def test_under_nohup_the_terminal_may_go(pictures, tmp_path):
    assert complete("run", options_for(pictures, "--workers", "1"), tmp_path / "out", _ignore_and_raise_at_step_2) == 0


def _never_end(*args):
    print("without end", flush=True)
    while True:
        time.sleep(0.01)


def test_a_second_ctrl_c_ends_at_once(pictures, tmp_path):
    directory = tmp_path / "run"
    process = start("run", argv_for(pictures, directory), tmp_path / "out", at_step, 1, _never_end)
    wait_for_text(process, tmp_path / "out", "without end")
    before = (directory / "checkpoint.pth").read_bytes()
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler repeats itself; that is no second Ctrl-C
        os.kill(process.pid, number)
        process.join(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, 20) == 128 + signal.SIGINT
    assert (directory / "checkpoint.pth").read_bytes() == before


def test_ctrl_c_twice_in_a_row_ends_at_once(pictures, tmp_path):
    process = start("run", argv_for(pictures, tmp_path / "run"), tmp_path / "out", at_step, 1, _never_end)
    wait_for_text(process, tmp_path / "out", "without end")
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        process.join(0.3)
    assert finish(process, 20) == 128 + signal.SIGINT


def _never_end_an_evaluation():
    loop.evaluate_splits = _never_end


def test_where_nothing_was_kept_yet_nothing_can_go_on(pictures, tmp_path):
    directory = tmp_path / "my run"
    process = start("run", argv_for(pictures, directory), tmp_path / "out", _never_end_an_evaluation)
    wait_for_text(process, tmp_path / "out", "without end")
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        process.join(0.3)
    assert finish(process, 20) == 128 + signal.SIGINT
    assert "nothing was kept yet; the same command starts again" in (tmp_path / "out").read_text()
    assert not directory.exists()


def test_the_last_epoch_is_measured_whatever_a_run_was_cut_to(pictures, tmp_path):
    directory = tmp_path / "run"
    argv = argv_for(pictures, directory, "--epochs", "1000", "--eval_every", "500")
    assert complete("run", argv, tmp_path / "out", at_step, 5, signal.raise_signal, signal.SIGTERM) == 143
    done = ["--epochs", str(torch.load(str(directory / "checkpoint.pth"))["progress"]["epoch"] - 1)]
    resume = ["--resume", "--save_dir", str(directory), "--workers", "0"]
    if torch.load(str(directory / "checkpoint.pth"))["progress"]["batch"]:
        assert complete("run", resume + done, tmp_path / "out") == 2
        assert "and begun the next one" in printed(directory).splitlines()[-1]
        done = ["--epochs", str(int(done[1]) + 1)]
    assert complete("run", resume + done, tmp_path / "out") == 0, printed(directory)
    assert complete("run", argv_for(pictures, tmp_path / "whole", "--eval_every", "500", *done), tmp_path / "out") == 0
    assert_same_run(directory, tmp_path / "whole")
