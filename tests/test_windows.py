"""A run where what only POSIX has is missing, as on Windows."""
import os
import subprocess
import sys

from conftest import argv_for
from processes import ROOT


def _run(*argv):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tests", "on_windows.py")] + [str(word) for word in argv],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=140)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_a_run_and_its_resumption(own_pictures, tmp_path):
    directory = tmp_path / "run"
    cache = tmp_path / "cache"
    out = _run("run.py", *argv_for(own_pictures, directory, "--epochs", "1", "--workers", "1", "--no_train_recall",
                                   "--cache", cache))
    assert "Cache: training set, decoded once" in out
    out = _run("run.py", "--resume", "--save_dir", directory, "--epochs", "2", "--workers", "0")
    assert "Resume: epoch 2" in out and "[Epoch 2] Recall@1" in out
    left = [name for folder in (directory, cache) for name in os.listdir(str(folder))]
    assert not [name for name in left if name.endswith((".lock", ".tmp"))], left
