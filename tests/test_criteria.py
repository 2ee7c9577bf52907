"""Criteria with parameters: in the optimiser and the state, never in best.pth."""
import copy

import pytest
import torch
from torch import nn

import run
from engine.optimisation import Schedule, Trained, make_optimizer, parameter_groups
from engine.precision import Precision
from engine.rundir.state import TRAINING
from engine.training import Training
from model import LinearEmbedding
from tiny import TinyResNet

CPU = torch.device("cpu")


def made(seed):
    """A training of a tiny network with two criteria: one with 100 times the rate, one without weights."""
    torch.manual_seed(seed)
    args = run.build_parser().parse_args(["--lr", "1e-3"])
    network = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, 4)
    criteria = {"proxies": Trained(nn.Linear(4, 3, bias=False), 100), "plain": Trained(nn.ReLU(), 1)}
    groups = parameter_groups(network, args, criteria.values())
    optimizer = make_optimizer(groups, args)
    return Training(network, optimizer, Schedule(network, optimizer, groups, args), Precision("fp32", CPU), CPU,
                    {name: trained.module for name, trained in criteria.items()}, {"beside.pth": "proxies"})


def a_step(training):
    training.schedule.begin(1)
    training.optimizer.zero_grad(set_to_none=True)
    training.criteria["proxies"](training.network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))).sum().backward()
    training.optimizer.step()


def test_a_criterion_is_trained_at_its_own_rate():
    training = made(0)
    before = training.criteria["proxies"].weight.detach().clone()
    a_step(training)
    assert [group["lr"] for group in training.optimizer.param_groups] == [1e-3, pytest.approx(0.1)]
    moved = (training.criteria["proxies"].weight.detach() - before).abs()
    assert moved.max() == pytest.approx(0.1, rel=1e-2)  # Adam's first step is as long as the rate


def test_a_criterion_is_in_the_state_and_beside_the_network_but_not_in_it():
    training, other = made(0), made(1)
    a_step(training)
    saved = copy.deepcopy(dict(training.capture(), network=training.weights()))  # as from a disk
    assert not [name for name in saved["network"] if "proxies" in name]
    for part in ("network",) + TRAINING:
        other.restore(part, saved[part])
    assert torch.equal(other.beside_weights()["beside.pth"]["weight"], training.criteria["proxies"].weight)
    a_step(training)
    a_step(other)
    for ours, theirs in zip(training.criteria.parameters(), other.criteria.parameters()):
        assert torch.equal(ours, theirs)
