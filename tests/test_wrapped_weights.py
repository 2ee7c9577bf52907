"""Weights inside larger dicts and under other names: read as the plain file is, and one line says what was done."""
import collections
import re

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from engine.networks import read_network_file
from model import LinearEmbedding, WeightsError
from results import answer, failure
from tiny import TinyResNet

WIDTH = TinyResNet.output_size


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return LinearEmbedding(TinyResNet(pretrained=False), WIDTH, 8, normalize=False, image_size=32).state_dict()


class Lightning(torch.nn.Module):
    def __init__(self, name, network):
        super().__init__()
        self.add_module(name, network)
        self.criterion = torch.nn.Linear(2, 2)


def network_of(weights):
    network = LinearEmbedding(TinyResNet(pretrained=False), WIDTH, 8, normalize=False, image_size=32)
    network.load_state_dict(weights)
    return network


def renamed(weights, change):
    return {change(name): value for name, value in weights.items()}


def prefixed(prefix):
    return lambda weights: renamed(weights, lambda name: prefix + name)


def inside(*entries, **beside):
    """In nested entries, with others beside."""
    def wrap(weights):
        for entry in reversed(entries):
            weights = dict(beside, **{entry: weights})
        return weights
    return wrap


def of_lightning(name):
    """As a Lightning checkpoint: the network is an attribute, beside a loss with weights of its own."""
    return lambda weights: {"epoch": 3, "state_dict": Lightning(name, network_of(weights)).state_dict(),
                            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}


WRAPPED = [  # how; what is said of it
    (prefixed("module."), "without the prefix module. of its names"),
    (prefixed("_orig_mod."), "without the prefix _orig_mod. of its names"),
    (prefixed("module._orig_mod."), "without the prefix module._orig_mod. of its names"),
    (prefixed("some.thing.else."), "without the prefix some.thing.else. of its names"),
    (prefixed("base."), "without the prefix base. of its names"),
    (lambda weights: renamed(weights, lambda name: name.replace("base.", "base._orig_mod.module.")),
     "without _orig_mod. and module. inside its names"),
    (lambda weights: renamed(weights, lambda name: "module." + name.replace("layer2.0", "layer2._orig_mod.0")),
     "without the prefix module. of its names, without _orig_mod. inside its names"),
    (inside("state_dict"), "from its entry state_dict"),
    (inside("model", epoch=1, best=0.5), "from its entry model"),
    (inside("weights", optimizer={"state": {}, "param_groups": [{"lr": 0.1}]}), "from its entry weights"),
    (inside("anything", "model_state_dict"), "from its entry anything.model_state_dict"),
    (lambda weights: inside("net")(prefixed("module.")(weights)),
     "from its entry net, without the prefix module. of its names"),
    (of_lightning("net"), "from its entry state_dict, without the prefix net. of its names, without 2 other tensors "
                          "(criterion.weight, criterion.bias)"),
    (lambda weights: dict(weights, proxies=torch.ones(3)), "without 1 other tensor (proxies)"),
]


@pytest.mark.parametrize("wrap, words", WRAPPED, ids=[words for _, words in WRAPPED])
def test_wrapped_weights_are_those_of_the_plain_file(plain, tmp_path, capsys, wrap, words):
    path = str(tmp_path / "weights.pth")
    torch.save(wrap(plain), path)
    weights = read_network_file(path).weights
    assert capsys.readouterr().out == "{}: read {}\n".format(path, words)
    assert set(weights) == set(plain) and all(torch.equal(weights[name], plain[name]) for name in plain)


def test_the_notes_of_a_wrapped_network_are_read_too(plain, tmp_path):
    path = str(tmp_path / "weights.pth")
    for wrapped in Lightning("model", network_of(plain)), torch.nn.DataParallel(network_of(plain)):
        torch.save({"state_dict": wrapped.state_dict()}, path)
        options = read_network_file(path).options
        assert (options["l2normalize"], options["image_size"]) == (False, 32)


def test_all_three_options_take_them(plain, pictures, tmp_path, capsys):
    backbone = {name[len("base."):]: value for name, value in plain.items() if name.startswith("base.")}
    for name, content in (("plain", plain), ("wrapped", of_lightning("net")(plain)), ("backbone", backbone),
                          ("backbone_wrapped", inside("model", epoch=1)(prefixed("module.")(backbone)))):
        torch.save(content, str(tmp_path / name))
    commands = [(run.main, lambda wrapped: ["--mode", "eval", "--load", tmp_path / wrapped("plain")] + data)]
    data = ["--dataset", "folder", "--data", str(pictures), "--workers", "0", "--device", "cpu", "--image_size", "32"]
    training = options_for(pictures, "--epochs", "1", "--precision", "fp32")
    training[training.index("--pretrained") + 1] = None
    commands.append((run.main, lambda wrapped: [word or tmp_path / wrapped("backbone") for word in training]))
    distilling = distil_for("unused", "--dist_ratio", "1", "--epochs", "1", "--precision", "fp32")
    distilling[1] = None
    commands.append((run_distill.main, lambda wrapped: [word or tmp_path / wrapped("plain") for word in distilling]
                     + data))
    for main, argv in commands:
        outputs = []
        for wrapped in (lambda name: name, lambda name: {"plain": "wrapped", "backbone": "backbone_wrapped"}[name]):
            code, out, err = answer(capsys, main, argv(wrapped))
            assert code == 0, err
            outputs.append(re.findall(r"Recall@1: \[.*|loss [\d.]+", out))
            assert ("wrapped: read from its entry " in out) == (wrapped("plain") == "wrapped")
        assert outputs[0] == outputs[1] and outputs[0]


def test_several_networks_in_a_file_are_named(plain, tmp_path, capsys):
    path = str(tmp_path / "weights.pth")
    torch.save(dict(prefixed("student.")(plain), **prefixed("teacher.")(plain)), path)
    with pytest.raises(WeightsError, match=r"2 such networks \(names with student\.; names with teacher\.\); save the"):
        read_network_file(path)
    torch.save({"model": plain, "ema": collections.OrderedDict(plain)}, path)
    with pytest.raises(WeightsError, match="2 such networks .in its entry model names without a prefix; in its entry"):
        read_network_file(path)
    torch.save(dict(plain, **{"base._orig_mod.conv1.weight": plain["base.conv1.weight"]}), path)
    with pytest.raises(WeightsError, match="base.conv1.weight twice, the second time as base._orig_mod.conv1.weight"):
        read_network_file(path)


def test_a_larger_backbone_is_not_taken_for_a_smaller_one_with_more_beside(plain, tmp_path):
    weights = prefixed("module.")(TinyResNet(pretrained=False).state_dict())
    weights["module.layer2.1.conv1.weight"] = torch.ones(8, 8, 3, 3)
    torch.save(weights, str(tmp_path / "deeper.pth"))
    with pytest.raises(WeightsError, match="0 missing and 1 unknown names, first layer2.1.conv1.weight"):
        TinyResNet(pretrained=str(tmp_path / "deeper.pth"))


@pytest.mark.parametrize("wrap", [lambda weights: weights, of_lightning("model")], ids=["plain", "Lightning"])
def test_the_wrong_option_gets_a_hint_to_the_right_one(plain, pictures, tmp_path, capsys, wrap):
    torch.save(wrap(plain), str(tmp_path / "best.pth"))
    argv = options_for(pictures, "--pretrained", tmp_path / "best.pth")
    code, out, err = answer(capsys, run.main, argv)
    assert code == 2 and "best.pth is a whole embedding network; it goes to --load" in err and ": read " not in out
    torch.save(prefixed("module.")(TinyResNet(pretrained=False).state_dict()), str(tmp_path / "backbone.pth"))
    line = failure(capsys, run.main, ["--mode", "eval", "--load", str(tmp_path / "backbone.pth")])
    assert "a torchvision state dict goes to --pretrained" in line
