"""Optimisers, learning rates, what is trained when; and all of it through resume and on several processes."""
import copy
import json
import math
import os
import signal
import sys

import pytest
import torch

import run
import run_distill
from conftest import FIXED, distil_for, options_for
from engine import loop
from engine.errors import UsageError
from engine.optimisation import Schedule, make_optimizer, parameter_groups, rate_of
from engine.precision import Precision
from engine.training import Training
from model import LinearEmbedding
from processes import at_step, call_in_ranks, codes, complete, start_ranks
from results import answer, assert_same_run, failure, read
from tiny import TinyResNet

CPU = torch.device("cpu")
ALL = ["--optimizer", "adamw", "--weight_decay", "1e-2", "--schedule", "cosine", "--warmup_epochs", "1",
       "--head_epochs", "1", "--head_lr", "3", "--freeze_bn", "--clip_grad", "0.1"]


def options(*words):
    return run.build_parser().parse_args([str(word) for word in words])


def rates(*words):
    args = options(*words)
    return [rate_of(args, epoch) for epoch in range(1, args.epochs + 1)]


@pytest.mark.parametrize("parser", [run.build_parser(), run_distill.build_parser()], ids=lambda parser: parser.prog)
def test_the_rates_by_default_are_those_of_multisteplr(parser):
    args = parser.parse_args(["--lr_decay_epochs", "3", "7", "7", "5", "--lr_decay_gamma", "0.3", "--epochs", "9"])
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, sorted(args.lr_decay_epochs), args.lr_decay_gamma)
    for epoch in range(1, 10):
        assert rate_of(args, epoch) == optimizer.param_groups[0]["lr"], epoch  # bit for bit
        optimizer.step()
        schedule.step()


def test_rates_of_the_options():
    assert rates("--lr", 1) == [1] * 25 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5
    assert rates("--lr", 1, "--schedule", "cosine", "--epochs", 4) == pytest.approx(
        [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])
    assert rates("--lr", 1, "--warmup_epochs", 3, "--lr_decay_epochs", 2, 4, "--epochs", 5) == [
        0.25, 0.5, 0.375, 0.5, 0.25]
    # After 2 epochs of warming up the cosine has 4.
    assert rates("--lr", 3, "--schedule", "cosine", "--warmup_epochs", 2, "--epochs", 6) == pytest.approx(
        [1, 2, 3, 3 * (2 + math.sqrt(2)) / 4, 1.5, 3 * (2 - math.sqrt(2)) / 4])


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=11)
    for rate in rates("--lr", 0.7, "--schedule", "cosine", "--epochs", 11):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def training(*words, scaler=None):
    """Return (a ``Training`` of a small network with these options, its training step, a batch: pictures and what they
    are to become)."""
    torch.manual_seed(0)
    network, args = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, 4, False), options(*words)
    groups = parameter_groups(network, args)
    optimizer, precision = make_optimizer(groups, args), Precision("fp32", CPU)
    precision.scaler = scaler
    made = Training(network, optimizer, Schedule(network, optimizer, groups, args), precision, CPU)
    return (made, lambda images, targets: {"square": (network(images) - targets).pow(2).mean()},
            (torch.rand(6, 3, 32, 32), torch.randn(6, 4)))


def steps(made, epoch, count=2):
    made[0].schedule.begin(epoch)
    for _ in range(count):
        loop._make_step(*made)


@pytest.mark.parametrize("name, theirs", [
    ("adam", lambda groups: torch.optim.Adam(groups, lr=1, weight_decay=0.1)),
    ("adamw", lambda groups: torch.optim.AdamW(groups, lr=1, weight_decay=0.1)),
    ("sgd", lambda groups: torch.optim.SGD(groups, lr=1, weight_decay=0.1, momentum=0.9))])
@pytest.mark.parametrize("head_lr", [1, 10])
def test_a_step_is_that_of_torchs_optimiser(name, theirs, head_lr):
    made = training("--optimizer", name, "--lr", "1e-3", "--weight_decay", "0.1", "--head_lr", head_lr)
    images, targets = made[2]
    network = copy.deepcopy(made[0].network).train()
    optimizer = theirs([{"params": network.base.parameters(), "lr": 1e-3},
                        {"params": network.linear.parameters(), "lr": head_lr * 1e-3}])
    steps(made, 1)
    for _ in range(2):
        optimizer.zero_grad()
        (network(images) - targets).pow(2).mean().backward()
        optimizer.step()
    assert len(made[0].optimizer.param_groups) == (1 if head_lr == 1 else 2)
    for (where, expected), found in zip(network.state_dict().items(), made[0].network.state_dict().values()):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), where  # a fused step rounds otherwise


def test_by_default_the_optimiser_is_the_one_of_earlier_runs():
    optimizer = training()[0].optimizer
    group, = optimizer.param_groups
    assert type(optimizer) is torch.optim.Adam and group["weight_decay"] == 1e-5
    assert [parameter.shape for parameter in group["params"]] == [
        parameter.shape for parameter in training()[0].network.parameters()]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_head_alone(name):
    made = training("--optimizer", name, "--lr", "1e-2", "--weight_decay", "0.1", "--head_epochs", "2", "--head_lr",
                    "2")
    network, optimizer = made[0].network, made[0].optimizer
    steps(made, 1, 1)
    before = copy.deepcopy(network.state_dict())
    steps(made, 2)
    for where, value in network.state_dict().items():
        assert torch.equal(value, before[where]) == where.startswith("base."), where
    assert set(optimizer.state) == set(network.linear.parameters())  # no moments of the backbone
    steps(made, 3)
    changed = [where for where, value in network.state_dict().items() if not torch.equal(value, before[where])]
    assert {where for where, _ in network.named_parameters()} <= set(changed) and "base.bn1.running_mean" in changed


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_scale():
    made = training("--freeze_bn", "--lr", "1e-2")
    before = copy.deepcopy(made[0].network.state_dict())
    steps(made, 1)
    for where, value in made[0].network.state_dict().items():
        assert torch.equal(value, before[where]) == ("running" in where or "num_batches" in where), where


def gradient(*words, scaler=None):
    made = training("--optimizer", "sgd", "--lr", "1e-9", *words, scaler=scaler)
    steps(made, 1, 1)
    return torch.cat([parameter.grad.flatten() for parameter in made[0].network.parameters()
                      if parameter.grad is not None])


def test_the_gradient_is_clipped():
    whole = gradient()
    norm = float(whole.norm())
    assert torch.allclose(gradient("--clip_grad", norm / 3), whole / 3, rtol=1e-3)
    assert torch.equal(gradient("--clip_grad", norm * 3), whole)
    head = gradient("--head_epochs", "1", "--clip_grad", norm / 100)  # the norm of what is trained
    assert len(head) == 36 and float(head.norm()) == pytest.approx(norm / 100, rel=1e-3)


@pytest.mark.skipif(not hasattr(getattr(torch, "amp", None), "GradScaler"), reason="this torch scales on GPUs only")
def test_the_gradient_is_clipped_without_the_scale_of_fp16():
    norm = float(gradient().norm())
    for words in ((), ("--clip_grad", norm / 3), ("--clip_grad", norm / 3, "--head_epochs", "1")):
        scaled = gradient(*words, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
        assert torch.allclose(scaled, gradient(*words), rtol=1e-5)


@pytest.mark.parametrize("words", [["--freeze_bn"], ["--head_epochs", "1"], ["--head_lr", "2"]], ids=str)
def test_options_for_parts_that_the_network_has_not(words):
    class Plain(torch.nn.Module):
        base = torch.nn.Linear(2, 2)

    with pytest.raises(UsageError, match="{} does nothing here".format(words[0])):
        parameter_groups(Plain(), options(*words))


@pytest.mark.parametrize("words, expected", [
    (["--schedule", "cosine", "--lr_decay_gamma", "0.1"], "--lr_decay_gamma does nothing with --schedule cosine"),
    (["--warmup_epochs", "2"], "--warmup_epochs 2 leaves none of --epochs 2"),
    (["--freeze_bn", "--sync_bn"], "--sync_bn does nothing with --freeze_bn"),
    (["--optimizer", "lion"], "invalid choice: 'lion'"),
    (["--weight_decay", "-1"], "'-1' is not a number of at least 0"),
    (["--clip_grad", "0"], "'0' is not a number above 0"),
])
def test_options_that_do_not_fit(capsys, words, expected):
    assert expected in failure(capsys, run.main, options_for("nowhere", *words))


def test_a_head_that_no_term_reaches(teacher, capsys):
    line = failure(capsys, run_distill.main, distil_for(teacher, "--at_ratio", "1", "--head_epochs", "1"))
    assert "--head_epochs does nothing here: the network has no head that is trained" in line


def all_on(pictures, directory, *more):
    argv = options_for(pictures, *FIXED[:4], "--precision", "fp32", "--epochs", "4", "--checkpoint_every", "1", *ALL)
    return argv + ["--save_dir", str(directory)] + list(more)


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert complete("run", all_on(pictures, directory), directory.parent / "out") == 0
    return directory


def test_the_log_has_the_rate_of_the_backbone(undisturbed):
    rate = [json.loads(line).get("learning_rate") for line in read(str(undisturbed), "log.jsonl").splitlines()]
    assert rate == [None, 5e-4, 1e-3, pytest.approx(0.75e-3), pytest.approx(0.25e-3)]


@pytest.mark.parametrize("step", [2, 3])  # two steps an epoch; in the second one the backbone is trained, too
def test_with_everything_on_a_run_goes_on_as_if_nothing_had_happened(pictures, undisturbed, tmp_path, step):
    directory = tmp_path / "run"
    assert complete("run", all_on(pictures, directory), tmp_path / "out", at_step, step, signal.raise_signal,
                    signal.SIGTERM) == 128 + signal.SIGTERM
    assert complete("run", ["--resume", "--save_dir", str(directory)], tmp_path / "out") == 0
    assert_same_run(directory, undisturbed)


def test_a_cosine_over_more_epochs_is_told(pictures, tmp_path, capsys):
    argv = options_for(pictures, "--schedule", "cosine", "--lr", "1", "--save_dir", tmp_path / "run", "--optimizer",
                       "sgd", "--clip_grad", "1e-3")
    assert answer(capsys, run.main, argv)[0] == 0
    code, out, _ = answer(capsys, run.main, ["--resume", "--save_dir", tmp_path / "run", "--epochs", "4"])
    assert code == 0 and "Note: from here on the learning rate follows a cosine over 4 epochs" in out
    log = [json.loads(line) for line in read(str(tmp_path / "run"), "log.jsonl").splitlines()]
    assert [line["learning_rate"] for line in log[1:]] == pytest.approx([1, 0.5, 0.5, (2 - math.sqrt(2)) / 4])


def test_a_run_of_before_these_options_goes_on(whole, tmp_path, capsys):
    state = torch.load(str(whole / "checkpoint.pth"))
    new = ("optimizer", "weight_decay", "schedule", "warmup_epochs", "head_epochs", "head_lr", "freeze_bn", "clip_grad",
           "recipe")
    assert all(name in state["options"] for name in new)
    state["options"] = {name: value for name, value in state["options"].items() if name not in new}
    state["schedule"] = {"last_epoch": 3, "base_lrs": [1e-3], "_last_lr": [5e-4], "_step_count": 4}
    directory = tmp_path / "run"
    directory.mkdir()
    torch.save(state, str(directory / "checkpoint.pth"))
    resume = ["--resume", "--save_dir", str(directory), "--epochs", "4"]
    assert "(--head_epochs 0 there, 1 here)" in failure(capsys, run.main, resume + ["--head_epochs", "1"])
    assert answer(capsys, run.main, resume + ["--optimizer", "adam"])[0] == 0


def _train(argv):
    sys.stdout = open(os.devnull, "w")
    assert run.main(argv) == 0


def test_with_everything_on_two_processes_are_one(pictures, tmp_path):
    # Adam turns a gradient of nearly 0 into a whole step of either sign; SGD shows how close runs are.
    fixed = ["--precision", "fp32", "--optimizer", "sgd"] + ALL[2:]
    for name, count, more in (("alone", 1, ["--epochs", "3"]), ("two", 2, ["--epochs", "3"]),
                              ("head", 2, ["--epochs", "1", "--warmup_epochs", "0"])):
        call_in_ranks(count, _train, options_for(pictures, *fixed, *more, "--save_dir", tmp_path / name))
    alone, two, head = (torch.load(str(tmp_path / name / "last.pth")) for name in ("alone", "two", "head"))
    torch.manual_seed(0)
    start = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, 8, True).state_dict()
    for where, value in alone.items():
        moved = float((value - start[where]).float().norm())
        assert float((two[where] - value).float().norm()) <= 2e-3 * moved, where
        assert moved > 0 or "running" in where or "num_batches" in where, where
        assert torch.equal(head[where], start[where]) == where.startswith("base."), where


def test_a_part_of_a_batch_may_be_a_single_picture_where_batchnorm_is_frozen(pictures, tmp_path):
    argv = options_for(pictures, "--epochs", "1", "--batch", "4", "--num_image_per_class", "2", "--freeze_bn")
    assert codes(start_ranks(3, "run", argv, tmp_path / "out")) == [0] * 3
