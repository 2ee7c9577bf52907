"""The tests themselves: they find this project's modules, whatever a used directory holds."""
import os
import subprocess
import sys

import torch

from conftest import options_for
from processes import ROOT, complete


def test_a_started_run_has_one_thread_and_knows_the_tiny_network(pictures, tmp_path):
    assert torch.get_num_threads() == 1
    argv = options_for(pictures, "--save_dir", tmp_path / "run")
    assert complete("run", argv, tmp_path / "out", _one_thread) == 0, (tmp_path / "out").read_text()


def _one_thread():
    assert torch.get_num_threads() == 1


def test_another_directory_with_modules_of_the_same_names(tmp_path):
    """As after the quickstart, which leaves runs/, and in a directory of other projects."""
    for name in ("data", "runs", "dataset", "engine", "metric", "model", "processes", "tiny"):
        (tmp_path / name).mkdir()
        if name not in ("data", "runs"):
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('the module of another project')\n")
    command = [sys.executable, "-m", "pytest", "-q", os.path.join(ROOT, "tests", "test_processes.py"), "-k", "started"]
    done = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100,
                          universal_newlines=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
