"""Work that is saved: what a faster way gives is what the plain way gives."""
import collections
import copy
import json
import os

import pytest
import torch
import torch.nn as nn

import run
import run_distill
from conftest import distil_for, options_for
from dataset import caches
from engine import measured, training
from engine.device import place
from engine.networks import for_evaluation
from engine.precision import Precision, _why_it_fails
from model import LinearEmbedding
from model.compat import autocast_off, fused_option
from results import assert_same_run
from tiny import TinyResNet

CPU = torch.device("cpu")
HAS_FUSED = bool(fused_option(torch.optim.Adam, CPU))
HAS_BF16 = _why_it_fails("bf16", CPU) is None


def a_network(dtype=torch.float32):
    """One with sizes that no vector register divides, 1 x 1 convolutions, depthwise ones and a linear layer."""
    torch.manual_seed(0)
    return place(nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, 9, 1), nn.ReLU6(),
                               nn.Conv2d(9, 9, 3, groups=9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 7)),
                 CPU).to(dtype)


def take_steps(network, optimizer, steps):
    """Train with gradients that don't depend on the weights, so that only the optimiser's rounding differs."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            gradient = torch.randn(parameter.shape, generator=draw) * 1e-2
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


def adam_for(network, fused=False):
    way = fused_option(torch.optim.Adam, CPU) if fused else {}
    return torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5, **way)


def largest_error(network, exact):
    return max(float((value.detach().double() - other.detach()).abs().max())
               for value, other in zip(network.parameters(), exact.parameters()))


@pytest.mark.skipif(not HAS_FUSED, reason="this torch has no fused Adam on the CPU")
def test_fused_adam_is_as_exact_as_the_plain_one():
    exact = a_network(torch.float64)
    take_steps(exact, adam_for(exact), range(20))
    errors = {}
    for fused in (False, True):
        network = a_network()
        optimizer = adam_for(network, fused)
        assert bool(optimizer.param_groups[0].get("fused")) == fused
        take_steps(network, optimizer, range(20))
        errors[fused] = largest_error(network, exact)
    assert errors[True] <= 1.5 * errors[False] < 1e-6, errors


@pytest.mark.skipif(not HAS_FUSED, reason="this torch has no fused Adam on the CPU")
def test_a_run_takes_the_fused_adam(pictures, tmp_path):
    assert run.main(options_for(pictures, "--epochs", "1", "--save_dir", tmp_path / "run")) == 0
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))
    assert all(group["fused"] for group in state["optimizer"]["param_groups"])


@pytest.mark.parametrize("before, after", [(False, True), (True, False)])
def test_a_run_goes_on_with_the_other_adam(before, after):
    exact = a_network(torch.float64)
    take_steps(exact, adam_for(exact), range(10))
    network = a_network()
    optimizer = adam_for(network, before)
    take_steps(network, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():  # another layout in memory than the weights have here
        state.update((name, value.contiguous()) for name, value in state.items() if name != "step")
    optimizer = adam_for(network, after)
    training.Training(network, optimizer, None, None, CPU).restore("optimizer", saved)
    assert bool(optimizer.param_groups[0].get("fused")) == (after and HAS_FUSED)
    take_steps(network, optimizer, range(5, 10))
    assert largest_error(network, exact) < 1e-6


def test_gradients_have_the_strides_of_the_weights():  # a fused Adam doesn't look at them
    network = a_network()
    network(torch.randn(2, 3, 9, 9)).sum().backward()
    for parameter in network.parameters():
        assert [step for step, size in zip(parameter.stride(), parameter.shape) if size > 1] == [
            step for step, size in zip(parameter.grad.stride(), parameter.shape) if size > 1]


@pytest.mark.skipif(not HAS_BF16, reason="this torch has no bf16 autocast for all layers on the CPU")
def test_depthwise_convolutions_train_in_float32_and_measure_in_bf16():
    plain = nn.Conv2d(9, 9, 3, groups=9)
    placed = place(copy.deepcopy(plain), CPU)
    images = torch.randn(2, 9, 8, 8).bfloat16()
    with Precision("bf16", CPU).autocast():
        found = placed(images)
        with torch.no_grad():
            assert torch.equal(placed(images), plain(images)), "without gradients nothing changes"
    assert found.dtype == torch.bfloat16
    found.float().pow(2).sum().backward()
    expected = plain(images.float())
    assert torch.equal(found, expected.bfloat16())
    expected.bfloat16().float().pow(2).sum().backward()
    assert torch.allclose(placed.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def test_other_convolutions_and_other_precisions_stay_as_they_are():
    network = a_network(torch.float64)
    assert [index for index, module in enumerate(network) if "forward" in vars(module)] == [4]
    assert network(torch.randn(2, 3, 9, 9).double()).dtype == torch.float64
    twin = copy.deepcopy(network)
    nn.init.zeros_(twin[4].weight), nn.init.zeros_(twin[4].bias)
    assert twin[4](torch.ones(1, 9, 3, 3).double()).abs().sum() == 0, "a copy computes with its own weights"
    with autocast_off("cpu"):
        assert network[4](torch.ones(1, 9, 3, 3).double()).abs().sum() > 0


def test_measuring_with_folded_batchnorm_is_measuring_the_network():
    torch.manual_seed(0)
    network = place(LinearEmbedding(TinyResNet(pretrained=False), 8, 4), CPU)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    for _ in range(3):
        network(images)  # so that the running means are not 0 and 1
    Run = collections.namedtuple("Run", "args device")
    Args = collections.namedtuple("Args", "compile sync_bn")
    copied = for_evaluation(Run(Args(False, False), CPU), network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        found = copied(images)
        assert torch.allclose(found, network.eval()(images), rtol=1e-4, atol=1e-5)
    for args in (Args(True, False), Args(False, True)):
        assert for_evaluation(Run(args, CPU), network) is network


def test_a_teacher_is_measured_once(teacher, tmp_path, capsys, monkeypatch):
    cache = str(tmp_path / "cache")

    def distil(*more):
        argv = distil_for(teacher, "--dist_ratio", "1", "--epochs", "1", "--cache", cache, *more)
        assert run_distill.main(argv) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "[Epoch" in line or "Measured" in line]

    first = distil("--save_dir", tmp_path / "first")
    words = ["Measured before with these pictures: the teacher on the {} set".format(split)
             for split in ("train", "test")]
    assert not set(words) & set(first)
    with monkeypatch.context() as patch:
        patch.setattr(measured, "evaluate_splits", lambda *args: pytest.fail("measured again"))
        again = distil("--save_dir", tmp_path / "again")
    assert_same_run(tmp_path / "again", tmp_path / "first")
    same = [line for line in again if line not in words]
    assert len(same) == len(again) - 2 and [line for line in same if "loss" not in line] == [
        line for line in first if "loss" not in line]
    assert again.index(words[0]) < again.index(words[1]) < again.index(next(line for line in again if "loss" in line))
    assert distil("--no_train_recall").count(words[1]) == 1
    for more in (["--recall", "2"], ["--metrics", "mrr"], ["--image_size", "36"]):  # other figures, other pictures
        assert not set(words) & set(distil(*more)), more
    for damaged in ("", "{}", "[]", '{"recalls": {"1": null}, "spread": 1, "more": {}}'):
        for name in kept(cache):
            with open(os.path.join(cache, name), "w") as file:
                file.write(damaged)
        assert [line for line in distil() if "[Epoch 0]" in line] == [line for line in first if "[Epoch 0]" in line]
    assert set(words) <= set(distil()), "what was damaged is written anew"
    monkeypatch.setattr(measured, "VERSION", 2)
    assert not set(words) & set(distil())


def kept(cache):
    """Return the names of the files of what was measured with the pictures of a cache."""
    return [name for name in os.listdir(cache) if name.count(".") == 3]


def test_what_was_measured_goes_with_the_cache_of_its_pictures(teacher, tmp_path, capsys):
    cache = str(tmp_path / "cache")
    options = ["--dist_ratio", "1", "--epochs", "1"]
    assert run_distill.main(distil_for(teacher, *options, "--cache", cache)) == 0
    assert len(kept(cache)) == 2
    with open(os.path.join(cache, kept(cache)[0])) as file:
        found = json.load(file)
    assert set(found) == {"recalls", "spread", "more"} and set(found["recalls"]) == {"1"}
    assert caches.main([cache, "--clear"]) == 0
    assert os.listdir(cache) == []
    assert run_distill.main(distil_for(teacher, *options, "--cache", "off")) == 0
    assert run_distill.main(distil_for(teacher, *options, "--cache", "off")) == 0
    assert "Measured before" not in capsys.readouterr().out


def test_another_teacher_is_measured(teacher, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    assert run.main(options_for(pictures, "--seed", "1", "--epochs", "1", "--save_dir", str(other))) == 0
    cache = str(tmp_path / "cache")
    for source in (teacher, str(other)):
        assert run_distill.main(distil_for(source, "--dist_ratio", "1", "--epochs", "1", "--cache", cache)) == 0
    assert "Measured before" not in capsys.readouterr().out
