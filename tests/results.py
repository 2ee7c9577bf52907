"""What a run leaves and says: exit code, output, files."""
import os

import torch


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
    for part in ("network", "criteria", "optimizer", "random", "record", "log", "data"):
        _assert_equal(*(state[part] for state in states), part)
    steps = [{name: value for name, value in state["progress"].items() if "waited" not in name and name != "seconds"}
             for state in states]
    _assert_equal(*steps, "progress")
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


def printed(directory):
    return (directory.parent / "out").read_text()


def read(*path):
    with open(os.path.join(*path)) as file:
        return file.read()


def failure(capsys, main, argv, code=2):
    """Run a command that must fail with ``code``; return its one line."""
    try:
        returned = main(argv)
    except SystemExit as error:  # argparse
        returned = error.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert returned == code, lines
    assert len(lines) == 1 and ": error: " in lines[0], lines
    return lines[0]
