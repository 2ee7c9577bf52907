"""All processes that tests start: runs of the scripts, ranks, commands.

``start`` forks the run off a server that has imported torch already; ``start_command`` starts a new Python. Both find
this project's modules first, whatever lies in the current directory, and know the backbone "tiny".
"""
import importlib
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import socket
import subprocess
import sys
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
for folder in (TESTS, ROOT):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import tiny  # noqa: E402
from model.compat import import_torchvision  # noqa: E402

tiny.register()
import_torchvision()  # takes two seconds, which each run need not spend again
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["processes", "run", "run_distill"])


def _start(function, *arguments):
    """Call ``function(*arguments)`` in a new process."""
    # The server imports what it preloads from its current directory first, and takes nothing from our sys.path.
    here = os.getcwd()
    os.chdir(TESTS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.chdir(here)
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def _run(script, argv, output, workers, prepare, prepare_arguments):
    os.setpgrp()
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdin.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background job starts ignores it
    multiprocessing.set_start_method(workers, force=True)
    if prepare is not None:
        prepare(*prepare_arguments)
    sys.exit(importlib.import_module(script).main(argv))


def start(script, argv, output, prepare=None, *prepare_arguments, workers="fork"):
    """Start ``script`` ("run" or "run_distill") and return its process; what it prints is appended to ``output``.

    Args:
        prepare: a function of a module, called in the new process before the script.
        workers: how loading processes start; "fork" is Python's own way on Linux up to 3.13, "forkserver" from 3.14 on.
    """
    return _start(_run, script, [str(word) for word in argv], str(output), workers, prepare, prepare_arguments)


def at_step(step, function, *arguments):
    """A ``prepare`` that lets the run call ``function(*arguments)`` in its ``step``-th training step."""
    loop = importlib.import_module("engine.loop")
    original, steps = loop._make_step, itertools.count(1)

    def stepped(*args):
        if next(steps) == step:
            function(*arguments)
        return original(*args)

    loop._make_step = stepped


def as_rank(number, count, port):
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count), LOCAL_RANK=str(number), LOCAL_WORLD_SIZE=str(count),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def free_port():
    """Return a port that nobody listens on, below those that the system gives to connections meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10000, 32000)
        if not is_open(port):
            return port


def is_open(port):
    """Whether somebody listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_ranks(count, script, argv, output):
    """Start ``count`` processes of one run, as torchrun does; rank r prints into ``output`` with its number added."""
    port = free_port()
    return [start(script, argv, "{}{}".format(output, rank), as_rank, rank, count, port) for rank in range(count)]


def _call_in_rank(number, count, port, function, arguments):
    as_rank(number, count, port)
    function(*arguments)


def call_in_ranks(count, function, *arguments):
    """Call a function of a module of tests in ``count`` processes that are ranks of one run."""
    port = free_port()
    assert codes([_start(_call_in_rank, rank, count, port, function, arguments) for rank in range(count)]) == [
        0] * count


def finish(process, seconds=120):
    """Wait for a process and return its exit code (negative: the signal that killed it)."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError("a run did not end within {} s".format(seconds))
    return process.exitcode


def codes(processes):
    """Wait for all of them and return their exit codes."""
    return [finish(process) for process in processes]


def complete(script, argv, output, prepare=None, *prepare_arguments):
    """Run a script to its end and return its exit code."""
    return finish(start(script, argv, output, prepare, *prepare_arguments))


def start_command(script, argv, ranks=1):
    """Start ``python3 SCRIPT ARGV`` in the repository's root as a terminal does; with several ``ranks``, torchrun.

    It is in a process group of its own, and what it prints is piped.
    """
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    command += [os.path.join(TESTS, "with_tiny.py"), script] + [str(word) for word in argv]
    # A shell's background job, and so perhaps a test, ignores SIGINT; what a terminal starts does not.
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for_line(process, beginning):
    """Wait until a process of ``start_command`` prints a line that begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError("it ended without a line {!r}".format(beginning))


def wait_for(process, condition, seconds=100):
    """Wait until ``condition()`` holds, for as long as ``process`` is running."""
    deadline = time.monotonic() + seconds
    while not condition():
        process.join(0.01)
        assert process.is_alive() or condition(), "the run ended (exit code {})".format(process.exitcode)
        assert time.monotonic() < deadline, "waited {} s in vain".format(seconds)


def wait_for_text(process, path, text):
    """Wait until ``process``, which prints into the file ``path``, has printed ``text``."""
    wait_for(process, lambda: path.exists() and text in path.read_text())
