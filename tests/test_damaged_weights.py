"""Damaged weights and states of runs: each is named in one line; nothing in it is run, and no file is lost."""
import os
import random
import shutil
import zipfile

import pytest
import torch

import run
import run_distill
from conftest import options_for
from engine.rundir.state import PARTS
from results import answer, content
from tiny import TinyResNet

WIDTH = TinyResNet.output_size


def zero_bytes(path):
    open(path, "wb").close()


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(options_for(pictures, "--save_dir", str(directory), "--epochs", "1")) == 0
    return directory


class Code:
    def __reduce__(self):
        return os.mkdir, (Code.path,)


def cut_short(path):
    os.truncate(path, os.path.getsize(path) * 2 // 3)


def code_in_torch(path):
    torch.save({"linear.weight": Code()}, path)


def other_network(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def not_finite(path):
    content = torch.load(path)
    weights = content.get("network", content)
    weights["linear.weight"][0, 0] = float("nan")
    torch.save(content, path)


DAMAGES = [zero_bytes, cut_short, code_in_torch, other_network, not_finite]  # test_weights.py has all


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights_are_one_line(trained, tmp_path, capsys, damage):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    Code.path = str(tmp_path / "code was run")
    for name in "best.pth", "checkpoint.pth":
        damage(str(directory / name))
    before = content(directory)
    best = directory / "best.pth"
    for main, argv, named in (
            (run.main, ["--mode", "eval", "--load", best], best),
            (run.main, ["--load", best, "--save_dir", tmp_path / "new"], best),
            (run.main, ["--resume", "--save_dir", directory, "--epochs", "2"], directory / "checkpoint.pth"),
            (run_distill.main, ["--teacher_load", best, "--dist_ratio", "1", "--pretrained", "none"], best)):
        code, _, err = answer(capsys, main, argv)
        assert code == 2 and len(err.splitlines()) == 1 and str(named) in err, err
    assert content(directory) == before
    assert not os.path.exists(Code.path) and not (tmp_path / "new").exists()
    expected = {code_in_torch: "can run code", not_finite: "not finite, first in linear"}
    assert expected.get(damage, "") in err


REMOVED = "REMOVED"
PLACES = [  # in a state, what stands there instead, and what is said
    ("version", 99, "another version of this project"),
    ("script", "run_distill.py", "go on with that script"),
    ("network.linear.weight", torch.zeros(9, WIDTH), "is damaged: its network"),
    ("network.linear.weight", REMOVED, "is damaged: its network"),
    ("optimizer.param_groups", [], "is damaged: its optimizer"),
    ("random.torch", torch.zeros(3), "is damaged: its random"),
    ("progress.epoch", -5, "is damaged: its progress"),
    ("progress.sums", torch.ones(2), "is damaged: its progress"),
] + [(part, REMOVED, "is damaged: its {} ".format(part)) for part in PARTS
     if part not in ("version", "script", "network", "criteria")] + [  # an earlier version's state has no criteria
    (part, 5, "is damaged: its {} ".format(part)) for part in ("optimizer", "random", "criteria")]


def _put(state, place, value):
    """Put ``value`` at ``place`` in nested containers; a name there may hold points itself."""
    while place:
        keys = range(len(state)) if isinstance(state, list) else state
        key, = [key for key in keys if (place + ".").startswith(str(key) + ".")]
        place = place[len(str(key)) + 1:]
        if not place:
            break
        state = state[key]
    if value is REMOVED:
        del state[key]
    else:
        state[key] = value


@pytest.mark.parametrize("place, value, expected", PLACES, ids=[place for place, _, _ in PLACES])
def test_a_state_that_does_not_fit_is_one_line(trained, tmp_path, capsys, place, value, expected):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    state = torch.load(str(directory / "checkpoint.pth"))
    _put(state, place, value)
    torch.save(state, str(directory / "checkpoint.pth"))
    before = content(directory)
    code, _, err = answer(capsys, run.main, ["--resume", "--save_dir", directory, "--workers", "0"])
    assert code == 2 and len(err.splitlines()) == 1 and expected in err and "checkpoint.pth" in err
    assert content(directory) == before


def test_any_byte_that_changed_in_a_state_is_seen(trained, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    content = (directory / "checkpoint.pth").read_bytes()
    with zipfile.ZipFile(str(directory / "checkpoint.pth")) as archive:
        stored = [member for member in archive.infolist() if member.file_size > 1000]  # tensors
    rng = random.Random(0)
    for member in rng.sample(stored, 5):
        damaged = bytearray(content)
        # In the file each member's bytes follow its name and its padding.
        damaged[member.header_offset + 200 + rng.randrange(member.file_size - 200)] ^= 1
        (directory / "checkpoint.pth").write_bytes(damaged)
        code, _, err = answer(capsys, run.main, ["--resume", "--save_dir", directory, "--epochs", "2"])
        assert code == 2 and len(err.splitlines()) == 1 and "checkpoint.pth is damaged: its content" in err, err


def test_a_state_is_not_taken_for_weights(trained, capsys):
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", trained / "checkpoint.pth"])
    assert code == 2 and "is the state of a run, for --resume; the weights are in best.pth" in err
