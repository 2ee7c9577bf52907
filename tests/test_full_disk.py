"""A disk that is full: what was there before stays."""
import os
import resource
import shutil
import signal

from conftest import argv_for
from processes import at_step, complete
from results import assert_same_run, content, printed


def _limit_files_to(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_the_state_before(pictures, whole, tmp_path):
    directory = tmp_path / "run"
    argv = argv_for(pictures, directory)
    assert complete("run", argv, tmp_path / "out", at_step, 3, signal.raise_signal, signal.SIGTERM) == 143
    before = (directory / "checkpoint.pth").read_bytes()
    argv = ["--resume", "--save_dir", str(directory), "--workers", "0"]
    # Large enough for best.pth and last.pth, and for a part of checkpoint.pth.
    limit = 3 * (whole / "best.pth").stat().st_size // 2
    assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 1
    last = printed(directory).splitlines()[-1]
    assert "checkpoint.pth can't be written (File too large); the one that is there stays as it was" in last
    assert (directory / "checkpoint.pth").read_bytes() == before
    assert not [name for name in os.listdir(str(directory)) if name.endswith(".tmp")]
    assert complete("run", argv, tmp_path / "out") == 0
    assert_same_run(directory, whole)
    assert "Traceback" not in printed(directory)


def test_a_full_disk_leaves_the_run_that_is_to_be_replaced(pictures, whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "run"))
    before = content(tmp_path / "run")
    argv = argv_for(pictures, tmp_path / "run", "--seed", "3", "--overwrite")
    limit = (whole / "best.pth").stat().st_size // 2
    assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 1
    assert content(tmp_path / "run") == before
