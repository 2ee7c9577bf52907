"""Loading processes that die, hang, are stopped, run short of something or lose their parent."""
import errno
import os
import resource
import signal
import subprocess
import time

import pytest
import torch

from conftest import argv_for, options_for
from dataset import loader, workers
from engine.errors import run_script
from processes import complete, finish, start, wait_for_text


def _in_the_third_batch(happen, trains=(True, False)):
    original, count = loader._Batches.__getitem__, [0]

    def getitem(self, key):
        is_training = key[1] is not None
        count[0] += is_training in trains
        if count[0] == 3 and is_training in trains:
            happen()
        return original(self, key)

    loader._Batches.__getitem__ = getitem


def _stop(trains):
    def stop():
        print("stopped", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

    _in_the_third_batch(stop, [trains])


def _no_room():
    workers._room = lambda: 0 if torch.utils.data.get_worker_info() else 2 ** 40


def _no_files():
    workers._files_left = lambda most: 0 if torch.utils.data.get_worker_info() else most


def _limit_files(number):
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def _die():
    _in_the_third_batch(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _hang():
    workers.LOADING_PATIENCE = 5

    def hang():
        print("hanging", flush=True)
        time.sleep(1000)

    _in_the_third_batch(hang)


@pytest.mark.parametrize("happen, expected", [
    (_die, "a loading process was killed"), (_hang, "no pictures came for"),
    (_no_room, "finds no room in /dev/shm"), (_no_files, "too many open files: raise the limit (ulimit -n)"),
], ids=["die", "hang", "no_room", "no_files"])
def test_a_loading_process_that_delivers_nothing_ends_the_run(pictures, tmp_path, happen, expected):
    argv = options_for(pictures, "--workers", "1", "--epochs", "50")
    assert finish(start("run", argv, tmp_path / "out", happen), 60) == 1
    # torch's destructor may print more, of an exception that it ignores.
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("run.py: error: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert happen is not _hang or "hanging" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("trains", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_whose_loading_process_is_stopped(pictures, tmp_path, trains, number):
    argv = argv_for(pictures, tmp_path / "run", "--workers", "1")
    process = start("run", argv, tmp_path / "out", _stop, trains)
    wait_for_text(process, tmp_path / "out", "stopped")
    os.kill(process.pid, number)
    assert finish(process, 30) == 128 + number
    assert "interrupted by {}; ".format(number.name) in (tmp_path / "out").read_text().splitlines()[-1]
    if trains:  # the third batch is the first of the second epoch
        assert complete("run", ["--resume", "--save_dir", tmp_path / "run", "--workers", "0"], tmp_path / "out") == 0


@pytest.mark.parametrize("room, ranks, expected", [
    (None, 1, 8), (180, 1, 8), (179, 1, 7), (67, 1, 2), (360, 2, 8), (67, 2, 0), (8, 1, 0)])
def test_no_more_loading_processes_than_shared_memory_has_room_for(monkeypatch, capsys, room, ranks, expected):
    monkeypatch.setattr(workers, "_room", lambda: room)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert workers.workers_that_fit(8, 10) == expected
    out = capsys.readouterr().out
    assert ("Workers: {} instead of 8: /dev/shm".format(expected) in out and "--shm-size" in out) == (expected < 8)


@pytest.mark.skipif(workers._room() is None, reason="no /dev/shm here")
def test_the_room_is_that_of_the_file_system():
    found = []
    for _ in range(5):  # another test may free some meanwhile
        before = workers._room()
        tensor = torch.zeros(2 ** 22, dtype=torch.uint8).share_memory_()
        found.append(before - workers._room() >= tensor.numel())
        del tensor
    assert any(found)


@pytest.mark.parametrize("limit", [24, 40])
def test_no_more_loading_processes_than_open_files_allow(pictures, tmp_path, limit):
    argv = options_for(pictures, "--workers", "4", "--cache", "off")
    assert complete("run", argv, tmp_path / "out", _limit_files, limit) == 0, (tmp_path / "out").read_text()
    assert " instead of 4: this process can open only" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("error", [
    OSError(errno.EMFILE, "Too many open files"), RuntimeError("received 0 items of ancdata"),
    RuntimeError("unable to open shared memory object </torch_1> in read/write mode: Too many open files (24)")])
def test_too_many_open_files_are_one_line(capsys, error):
    def body():
        raise error

    assert run_script("run.py", body) == 1
    err = capsys.readouterr().err
    assert err.startswith("run.py: error: too many open files: raise the limit (ulimit -n)") and err.count("\n") == 1


def test_a_loading_process_ends_when_its_parent_has_gone(monkeypatch):
    """torch's own watch compares the parent with the one at its start, which may have gone by then."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(workers, "SECONDS_TO_LOOK_FOR_PARENT", 0.05)
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            workers._end_on_sigterm_from(gone.pid)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("it did not end")
