"""Loading processes that die, hang or lose their parent."""
import os
import signal
import subprocess
import time

import pytest

from conftest import options_for
from dataset import loader
from processes import finish, start


def _in_the_third_batch(happen):
    original, count = loader._Batches.__getitem__, [0]

    def getitem(self, key):
        count[0] += 1
        if count[0] == 3:
            happen()
        return original(self, key)

    loader._Batches.__getitem__ = getitem


def _die():
    _in_the_third_batch(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _hang():
    loader.LOADING_PATIENCE = 1
    _in_the_third_batch(lambda: time.sleep(1000))


@pytest.mark.parametrize("happen, expected", [
    (_die, "a loading process was killed"), (_hang, "no pictures came for")], ids=["die", "hang"])
def test_a_loading_process_that_dies_or_hangs_ends_the_run(pictures, tmp_path, happen, expected):
    argv = options_for(pictures, "--workers", "1", "--epochs", "50")
    assert finish(start("run", argv, tmp_path / "out", happen), 60) == 1
    # torch's destructor may print more, of an exception that it ignores.
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("run.py: error: ")]
    assert len(lines) == 1 and expected in lines[0]


def test_a_loading_process_ends_when_its_parent_has_gone(monkeypatch):
    """torch's own watch compares the parent with the one at its start, which may have gone by then."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(loader, "SECONDS_TO_LOOK", 0.05)
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            loader._end_on_sigterm_from(gone.pid)
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
