"""--precision, --compile, --eval_every, --no_train_recall: what they change, and what they must not."""
import json

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from engine import precision
from engine.device import place
from engine.errors import UsageError
from model import LinearEmbedding, build_backbone, fused

CPU = torch.device("cpu")


def network(base="resnet18", dimensions=16):
    torch.manual_seed(0)
    backbone = build_backbone(base)
    result = LinearEmbedding(backbone, backbone.output_size, dimensions)
    with torch.no_grad():
        for module in result.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    value.uniform_(0.5, 1.5)
                for value in (module.bias, module.running_mean):
                    value.normal_()
    return result.eval()


def images(count=3, side=64):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def works(name):
    return precision._why_it_fails(name, CPU) is None


@pytest.mark.parametrize("base", ["resnet18", "resnet50"])
def test_fused_network_is_the_same_function(base):
    original = network(base)
    names = list(original.state_dict())
    small = fused(original)
    for expected, found in zip(original(images(), True), small(images(), True)):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert list(original.state_dict()) == names, "the original stays as it is"


def test_memory_format_changes_no_name_and_no_saved_layout(tmp_path):
    from engine.rundir.files import write_tensors
    from engine.training import Training
    placed = place(network(), CPU)
    assert placed.base.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    write_tensors(str(tmp_path / "a.pth"), Training(placed, None, None, None, None).weights())
    saved = torch.load(str(tmp_path / "a.pth"))
    assert all(value.is_contiguous() for value in saved.values())
    assert set(saved) == set(network().state_dict())


@pytest.mark.skipif(not works("bf16"), reason="this torch has no bf16 autocast for all layers on the CPU")
def test_under_autocast_the_network_is_close_and_its_embedding_float32():
    original = place(network(), CPU)
    with torch.no_grad():
        expected = original(images())
        with precision.Precision("bf16", CPU).autocast():
            found = original(images())
            stages = original(images(), True)
    assert found.dtype == torch.float32 and stages[0].dtype == torch.bfloat16
    assert not torch.equal(found, expected) and (found - expected).norm(dim=1).max() < 0.1


def test_auto_precision(monkeypatch):
    assert precision.resolve_precision("auto", CPU, measuring_only=True)[0].name == "fp32"
    monkeypatch.setattr(precision, "_why_it_fails", lambda name, device: None)
    for flags, expected in ((["avx512_bf16", "sse"], "bf16"), (["avx512f"], "fp32"), ([], "fp32")):
        monkeypatch.setattr(precision, "_processor_flags", lambda: flags)
        assert precision.resolve_precision("auto", CPU)[0].name == expected
    monkeypatch.setattr(precision, "_processor_flags", lambda: ["avx512_bf16"])
    monkeypatch.setattr(precision, "_why_it_fails", lambda name, device: "no such layer")
    assert precision.resolve_precision("auto", CPU)[0].name == "fp32"
    with pytest.raises(UsageError, match="no such layer"):
        precision.resolve_precision("bf16", CPU)


def test_fp16_on_a_cpu_is_refused(pictures, capsys):
    assert run.main(options_for(pictures, "--precision", "fp16")) == 2
    assert "for accelerators" in capsys.readouterr().err


@pytest.mark.skipif(not works("bf16"), reason="this torch has no bf16 autocast for all layers on the CPU")
def test_training_in_bf16_is_measured_in_float32(pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    assert run.main(options_for(pictures, "--precision", "bf16", "--save_dir", directory)) == 0
    out = capsys.readouterr().out
    assert "Precision: bf16 (as asked)" in out
    final = [line for line in out.splitlines() if line.startswith("[Epoch 2] Recall")]
    assert run.main(["--mode", "eval", "--load", directory + "/last.pth", "--workers", "0", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Precision: fp32" in out
    assert [line.split("]", 1)[1] for line in out.splitlines() if line.startswith("[Epoch 0]")] == [
        line.split("]", 1)[1] for line in final]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_fp16_trains_on_a_gpu(pictures):
    assert run.main(options_for(pictures, "--precision", "fp16", "--device", "cuda")) == 0


def test_eval_every(pictures, tmp_path, capsys):
    directory = tmp_path / "run"
    assert run.main(options_for(pictures, "--epochs", "5", "--eval_every", "2", "--save_dir", str(directory))) == 0
    out = capsys.readouterr().out
    for epoch in range(6):
        assert out.count("[Epoch {}] Recall@1".format(epoch)) == (0 if epoch in (1, 3) else 2)
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(6))
    assert [("recall" in line) for line in log] == [True, False, True, False, True, True]
    speed = [json.loads(line) for line in (directory / "speed.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in speed] == list(range(1, 6)) and all(0 <= line["waiting"] <= 1 for line in speed)


def test_no_train_recall(pictures, tmp_path, capsys):
    teacher = str(tmp_path / "teacher")
    assert run.main(options_for(pictures, "--no_train_recall", "--save_dir", teacher)) == 0
    assert capsys.readouterr().out.count("] Recall@1") == 3
    student = tmp_path / "student"
    assert run_distill.main(distil_for(teacher, "--epochs", "1", "--dist_ratio", "1", "--no_train_recall",
                                       "--save_dir", student)) == 0
    out = capsys.readouterr().out
    assert out.count("] Recall@1") == 3 and "Best Train Recall" not in out and "Best Eval Recall" in out
    assert "Train" not in (student / "result.txt").read_text()
    assert run.main(["--mode", "eval", "--load", teacher + "/best.pth", "--no_train_recall", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("] Recall@1") == 1


def test_compile_where_there_is_none_is_one_line(pictures, capsys, monkeypatch):
    from engine import device

    def broken(network):
        raise RuntimeError("no C++ compiler\nwith a long story")

    monkeypatch.setattr(device, "compile_network", broken)
    assert run.main(options_for(pictures, "--compile")) == 2
    assert capsys.readouterr().err.strip().endswith("--compile doesn't work here (no C++ compiler); leave it out")
