"""Where a run computes: an accelerator only if it can train, threads that fit the machine."""
import pytest
import torch

import run
from conftest import options_for
from engine import device
from engine.errors import UsageError
from engine.training import Training
from model import compat

CPU = torch.device("cpu")


class _NoGradient(torch.autograd.Function):
    """Distances as on mps in most versions of torch."""

    @staticmethod
    def forward(ctx, points):
        return torch.cdist(points, points)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("The operator 'aten::_cdist_backward' is not there\nfor the MPS device")


@pytest.fixture
def no_gradient(monkeypatch):
    """A device that adds and measures, but can't train."""
    monkeypatch.setattr(device, "pdist", _NoGradient.apply)


def test_auto_takes_no_accelerator_that_can_not_train(no_gradient, monkeypatch):
    monkeypatch.setattr(device, "_is_present", lambda kind: kind == "mps")
    monkeypatch.setattr(device.torch, "device", lambda kind: type(torch.ones(1).device)("cpu"))
    found, why = device.resolve_device("auto")
    assert found.type == "cpu" and "mps: The operator 'aten::_cdist_backward' is not there" in why


def test_a_device_that_is_asked_for_and_can_not_train_is_one_line(no_gradient, pictures, capsys):
    with pytest.raises(UsageError, match=r"--device cpu doesn't work here \(The operator .* is not there\)"):
        device.resolve_device("cpu")
    assert run.main(options_for(pictures)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("free, words", [(0.2, "2; this machine is busy, 0.2 of"), (1.9, "2"), (None, "2")])
def test_a_busy_machine_is_told(threads_as_before, monkeypatch, free, words):
    monkeypatch.setattr(device, "_free_cores", lambda: free)
    assert device.use_threads(2, CPU).startswith(words)
    assert ("--threads 1" in device.use_threads(2, CPU)) == (free == 0.2)
    assert torch.get_num_threads() == 2


def test_free_cores_are_counted():
    free = device._free_cores()
    assert free is None or 0 <= free <= device.usable_cores()


def test_threads_of_a_run(threads_as_before, pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    assert run.main(options_for(pictures, "--threads", "2", "--epochs", "1", "--save_dir", directory)) == 0
    assert "Threads: 2" in capsys.readouterr().out and torch.get_num_threads() == 2
    assert run.main(["--resume", "--save_dir", directory, "--epochs", "2", "--threads", "1"]) == 0
    assert "Threads: 1\n" in capsys.readouterr().out and torch.get_num_threads() == 1


def test_the_generator_of_mps_is_in_the_state(monkeypatch):
    found = []
    mps = type("mps", (), {"get_rng_state": staticmethod(lambda: torch.tensor([7])),
                           "set_rng_state": staticmethod(found.append)})
    monkeypatch.setattr(torch, "mps", mps, raising=False)
    state = compat.accelerator_rng_state(torch.device("mps"))
    Training(None, None, None, None, torch.device("mps")).restore("random", {
        **_state_of_the_cpu(), "accelerator": state})
    assert found == [state] and compat.accelerator_rng_state(torch.device("cpu")) is None


def _state_of_the_cpu():
    from engine.training import _random_state
    return _random_state(torch.device("cpu"))
