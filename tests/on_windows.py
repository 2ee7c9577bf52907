"""Run a script of the repository's root where what Windows lacks is missing and what it refuses is refused:
python3 tests/on_windows.py run.py OPTIONS

Loading processes are spawned, and import this file before anything else.
"""
import builtins
import collections
import os
import shutil
import signal
import sys

OF_OS = ("EX_OK", "chown", "fchmod", "fork", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice", "pread",
         "pwrite", "sched_getaffinity", "setpgrp", "setsid", "statvfs", "sync", "sysconf", "uname")
OF_SIGNAL = ("SIGHUP", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask", "sigtimedwait", "sigwait")
MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
FORBIDDEN = set('<>:"|?*')


def _remove(module, names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


_remove(signal, OF_SIGNAL)  # Python's multiprocessing asks for these when it is imported

import importlib  # noqa: E402
import multiprocessing  # noqa: E402
import multiprocessing.resource_tracker  # noqa: E402, F401

import torch  # noqa: E402
from PIL import Image  # noqa: E402, F401

_remove(os, OF_OS)  # the libraries ask for these when they are imported
sys.modules.update(dict.fromkeys(MODULES))  # their imports fail
Usage = collections.namedtuple("Usage", "total used free")
# Python's own of Windows, which need neither statvfs nor to open folders.
shutil.disk_usage = lambda path: Usage(2 ** 40, 0, 2 ** 40)
shutil._use_fd_functions = False


def _is_open(path):
    """Whether this process has the file at ``path`` open, or in its memory."""
    path = os.path.realpath(path)
    with original["open"]("/proc/self/maps") as file:
        if any(line.rstrip("\n").endswith(" " + path) for line in file):
            return True
    return any(os.path.realpath("/proc/self/fd/" + number) == path for number in os.listdir("/proc/self/fd"))


def _guarded(function, refuses):
    def guarded(*args, **kwargs):
        if refuses(*args):
            raise PermissionError(13, "refused as on Windows", str(args[0]))
        return function(*args, **kwargs)
    return guarded


def _has_forbidden_name(path, *rest):
    return isinstance(path, str) and bool(FORBIDDEN & set(path))


original = {"open": open}
builtins.open = _guarded(open, _has_forbidden_name)
os.open = _guarded(os.open, lambda path, *rest: os.path.isdir(path))
os.kill = _guarded(os.kill, lambda process, number: number == 0)  # there this ends the process
os.remove = _guarded(os.remove, _is_open)
os.rename = _guarded(os.rename, lambda source, target: os.path.exists(target) or _is_open(source))
os.replace = _guarded(os.replace, lambda source, target: _is_open(source) or _is_open(target))

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

if __name__ == "__main__":
    import tiny
    tiny.register()
    multiprocessing.set_start_method("spawn")
    torch.set_num_threads(1)
    sys.exit(importlib.import_module(sys.argv[1][:-len(".py")]).main(sys.argv[2:]))
