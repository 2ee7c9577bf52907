"""Runs of the scripts in processes of their own that start in no time: forked off a server that has imported torch."""
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import torch

from conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runs", "run", "run_distill"])


def _run(script, argv, output, workers, prepare, prepare_arguments):
    os.setpgrp()
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdin.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background job starts ignores it
    multiprocessing.set_start_method(workers, force=True)
    torch.set_num_threads(1)  # several runs share the machine, and small networks gain nothing by a second one
    if prepare is not None:
        prepare(*prepare_arguments)
    sys.exit(importlib.import_module(script).main(argv))


def start(script, argv, output, prepare=None, *prepare_arguments, workers="fork"):
    """Start ``script`` ("run" or "run_distill") and return its process; what it prints is appended to ``output``.

    Args:
        prepare: a function of a module of tests, called in the new process before the script.
        workers: how loading processes start; "fork" is Python's own way on Linux up to 3.13, "forkserver" from 3.14 on.
    """
    process = CONTEXT.Process(target=_run, args=(script, list(argv), str(output), workers, prepare, prepare_arguments))
    process.start()
    return process


def as_rank(number, count, port):
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count), LOCAL_RANK=str(number), LOCAL_WORLD_SIZE=str(count),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count, script, argv, output):
    """Start ``count`` processes of one run, as torchrun does; rank r prints into ``output`` with its number added."""
    port = free_port()
    return [start(script, argv, "{}{}".format(output, rank), as_rank, rank, count, port) for rank in range(count)]


def _call_in_rank(number, count, port, function, arguments):
    as_rank(number, count, port)
    torch.set_num_threads(1)
    function(*arguments)


def call_in_ranks(count, function, *arguments):
    """Call a function of a module of tests in ``count`` processes that are ranks of one run."""
    port = free_port()
    processes = [CONTEXT.Process(target=_call_in_rank, args=(rank, count, port, function, arguments))
                 for rank in range(count)]
    for process in processes:
        process.start()
    assert [finish(process) for process in processes] == [0] * count


def finish(process, seconds=120):
    """Wait for a process and return its exit code (negative: the signal that killed it)."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError("a run did not end within {} s".format(seconds))
    return process.exitcode


def complete(script, argv, output, prepare=None, *prepare_arguments):
    """Run a script to its end and return its exit code."""
    return finish(start(script, argv, output, prepare, *prepare_arguments))


def start_command(command):
    """Start a command in the repository's root as a terminal does, in a group of its own; what it prints is piped."""
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


def wait_for(condition, seconds=60):
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited {} s in vain".format(seconds))
        time.sleep(0.002)


def answer(capsys, main, argv):
    """Call ``main`` of a script in this process and return (exit code, what it printed, what it printed on stderr)."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip()


def content(directory):
    """Return {name: bytes} of the files in a directory."""
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(str(directory)))}


def assert_same_run(found, expected):
    """Two --save_dirs hold the same weights, optimiser, random states, log and result, bit for bit."""
    for name in ("log.jsonl", "result.txt"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("best.pth", "last.pth"):
        _assert_equal(torch.load(str(found / name)), torch.load(str(expected / name)), name)
    states = [torch.load(str(directory / "checkpoint.pth")) for directory in (found, expected)]
    for part in ("network", "training", "progress", "record", "log", "data"):
        _assert_equal(*(state[part] for state in states), part)
    assert [line.count('"epoch"') for line in (found / "speed.jsonl").read_text().splitlines()] == [1] * (
        len((found / "log.jsonl").read_text().splitlines()) - 1)


def _assert_equal(found, expected, where):
    assert type(found) is type(expected), where
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), where
    elif isinstance(found, dict):
        assert list(found) == list(expected), where
        for name in found:
            _assert_equal(found[name], expected[name], "{} {}".format(where, name))
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected)):
            _assert_equal(*pair, "{} {}".format(where, number))
    else:
        assert found == expected, where
