"""Weights know what they are: a file of weights notes what its tensors don't show, and any PyTorch code loads it."""
import collections
import copy
import json
import os
import re
import shutil

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from engine.networks import read_network_file
from model import LinearEmbedding, compat
from results import answer, failure
from tiny import TinyResNet

WIDTH = TinyResNet.output_size


@pytest.fixture(scope="module")
def student(pictures, tmp_path_factory):
    """The --save_dir of a run whose options are not the defaults."""
    directory = tmp_path_factory.mktemp("student") / "run"
    assert run.main(options_for(pictures, "--l2normalize", "false", "--save_dir", directory, "--epochs", "1")) == 0
    return directory


@pytest.fixture
def alone(student, tmp_path):
    """Its best.pth without anything beside it."""
    shutil.copy(str(student / "best.pth"), str(tmp_path / "alone.pth"))
    return str(tmp_path / "alone.pth")


def measured(capsys, argv):
    """Return (the recalls that ``--mode eval`` prints, all that it prints)."""
    code, out, err = answer(capsys, run.main, ["--mode", "eval", "--workers", "0", "--device", "cpu"] + argv)
    assert code == 0, err
    return re.findall(r"Recall@1: \[.*", out), out


def test_weights_away_from_their_run_are_measured_as_beside_it(student, alone, pictures, capsys):
    data = ["--dataset", "folder", "--data", str(pictures)]
    expected, _ = measured(capsys, ["--load", student / "best.pth"])
    found, out = measured(capsys, ["--load", alone] + data)
    assert found == expected and "From {}: --image_size 32\n".format(alone) in out and "Warning" not in out
    assert "a TinyResNet with 8 dimensions, not L2-normalised" in out
    line = failure(capsys, run.main, ["--mode", "eval", "--load", alone, "--l2normalize", "true"])
    assert "holds a TinyResNet with 8 dimensions, not L2-normalised; you asked for" in line


def test_a_teacher_away_from_its_run(student, alone, pictures, capsys):
    argv = distil_for("unused", "--dist_ratio", "1", "--epochs", "1", "--dataset", "folder", "--data", pictures)
    argv[1] = alone
    code, out, err = answer(capsys, run_distill.main, argv)
    assert code == 0 and "--image_size 32" in out and "Warning" not in out
    assert "Teacher: a TinyResNet with 8 dimensions, not L2-normalised" in out


@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
@pytest.mark.parametrize("loader", ["torch's own", "ours"])
def test_a_run_notes_them_in_each_file(student, tmp_path, monkeypatch, name, loader):
    if loader == "ours":
        monkeypatch.setattr(compat, "_WEIGHTS_ONLY_IS_SAFE", (99, 0))
    shutil.copy(str(student / name), str(tmp_path / name))
    assert read_network_file(str(tmp_path / name)).options == {
        "base": "tiny", "embedding_size": 8, "l2normalize": False, "image_size": 32, "pool": "avg"}


def test_any_strict_loader_takes_the_file(student):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.linear = TinyResNet(pretrained=False), torch.nn.Linear(WIDTH, 8)

    safely = {"weights_only": True} if compat.TORCH_VERSION >= (1, 13) else {}
    weights = torch.load(str(student / "best.pth"), **safely)
    network = Plain()
    network.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_what_python_code_saves_is_noted_too(tmp_path):
    path = str(tmp_path / "mine.pth")
    network = LinearEmbedding(TinyResNet(pretrained=False), WIDTH, 4, normalize=False)
    for weights in network.state_dict(), copy.deepcopy(network).state_dict():
        torch.save(weights, path)
        options = read_network_file(path).options
        assert options["l2normalize"] is False and "image_size" not in options
    own = network.state_dict(destination=collections.OrderedDict()) if compat.TORCH_VERSION >= (2, 0) else {}
    assert not hasattr(own, "_metadata")


def rebuilt(path):
    torch.save(dict(torch.load(path)), path)


def test_nothing_known_is_told(alone, pictures, capsys):
    rebuilt(alone)
    said = "Warning: {} doesn't say how its network was trained; ".format(alone)
    data = ["--load", alone, "--dataset", "folder", "--data", str(pictures)]
    _, out = measured(capsys, data)
    assert said + "--l2normalize true and --image_size 224 and --pool avg are taken: give them to be sure\n" in out
    _, out = measured(capsys, data + ["--image_size", "32"])
    assert said + "--l2normalize true and --pool avg are taken: give them to be sure\n" in out
    _, out = measured(capsys, data + ["--image_size", "32", "--l2normalize", "true"])
    assert "Warning" not in out
    argv = distil_for("unused", "--dist_ratio", "1", "--epochs", "1", "--dataset", "folder", "--data", pictures)
    argv[1] = alone
    _, out, _ = answer(capsys, run_distill.main, argv + ["--image_size", "32"])
    assert said + "--teacher_l2normalize true and --teacher_pool avg are taken: give them to be sure\n" in out


def test_a_run_that_goes_on_is_told_nothing(alone, pictures, tmp_path, capsys):
    rebuilt(alone)
    argv = distil_for("unused", "--dist_ratio", "1", "--epochs", "1", "--dataset", "folder", "--data", pictures,
                      "--image_size", "32", "--save_dir", tmp_path / "run")
    argv[1] = alone
    assert answer(capsys, run_distill.main, argv)[0] == 0
    resume = ["--resume", "--save_dir", tmp_path / "run", "--epochs", "2", "--workers", "0"]
    code, out, _ = answer(capsys, run_distill.main, resume)
    assert code == 0 and "Warning" not in out


@pytest.mark.parametrize("notes, expected", [
    ({"l2normalize": "yes"}, "gives l2normalize the value 'yes'"),
    ({"l2normalize": torch.ones(1).expand(10 ** 6)}, "gives l2normalize the value Tensor"),
    ({"image_size": 5}, "gives image_size the value 5"),
    ({"image_size": 10 ** 30}, "gives image_size the value 1000"),
    ([1], "gives its options as a list"),
])
def test_odd_notes_are_one_line(alone, capsys, notes, expected):
    weights = torch.load(alone)
    weights._metadata[""]["rkd"] = notes
    torch.save(weights, alone)
    assert expected in failure(capsys, run.main, ["--mode", "eval", "--load", alone])


def test_metadata_of_others_is_passed_over(alone):
    weights = torch.load(alone)
    for metadata in (None, 5, [], {"": 5}, {"": {"version": "x"}, "base.bn1": 7}, {"": {"rkd": {"of others": []}}}):
        weights._metadata = metadata
        torch.save(weights, alone)
        assert set(read_network_file(alone).options) == {"base", "embedding_size"}


def test_notes_that_the_config_contradicts(student, tmp_path, capsys):
    shutil.copytree(str(student), str(tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["options"]["l2normalize"] = True
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    line = failure(capsys, run.main, ["--mode", "eval", "--load", os.path.join(str(tmp_path), "run", "best.pth")])
    assert "not L2-normalised, but the config.json beside it says a TinyResNet with 8 dimensions, L2-normalised" in line
    assert "they don't belong together" in line
