"""What needs a GPU: the same losses and recalls as on the CPU, resumption, several processes. Skipped where there is
none."""
import json

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from metric.distances import cdist
from metric.loss import (PKT, ContextualSimilarity, EmbeddingRegression, HardDarkRank, L2Triplet, MultiSimilarity,
                         ProxyAnchor, RelaxedContrastive, RkdDistance, RKdAngle, SimilarityKL)
from metric.nearest import nearest
from metric.pairsampler import AllPairs
from metric.utils import recall
from processes import complete, finish, start_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def on_gpu(argv):
    argv = list(argv)
    argv[argv.index("--device") + 1] = "cuda"
    return argv


@pytest.mark.parametrize("criterion", [
    RkdDistance(), RKdAngle(), HardDarkRank(), RelaxedContrastive(), PKT(), SimilarityKL(), EmbeddingRegression(16, 32),
    ContextualSimilarity(), L2Triplet(0.2, AllPairs()), MultiSimilarity(), ProxyAnchor(12, 16)], ids=str)
def test_losses_are_those_of_the_cpu(criterion):
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(48, 16), torch.randn(48, 32), torch.arange(48) // 4
    if isinstance(criterion, ContextualSimilarity):
        teacher = teacher[:, :16]
    found = []
    for device in ("cpu", "cuda"):
        embeddings = student.to(device).requires_grad_()
        other = labels if isinstance(criterion, (L2Triplet, MultiSimilarity, ProxyAnchor)) else teacher
        loss = criterion.to(device)(embeddings, other.to(device))
        loss.backward()
        found.append((float(loss.detach()), embeddings.grad.cpu()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert float((found[1][1] - found[0][1]).abs().max()) <= 1e-4 * float(found[0][1].abs().max())


@pytest.mark.parametrize("p", [1, 2])
def test_distances_and_their_gradients_are_those_of_the_cpu(p):
    torch.manual_seed(0)
    e, outer = 100 + torch.randn(300, 32), torch.randn(300, 300)
    e[150:] = e[:150] + 1e-3  # pairs that are close together, far from the origin
    found = []
    for device in ("cpu", "cuda"):
        a, b = (e.to(device).detach().clone().requires_grad_() for _ in range(2))
        distance = cdist(a, b, p)
        (distance * outer.to(device)).sum().backward()
        found.append([x.detach().cpu() for x in (distance, a.grad, b.grad)])
    for one, expected in zip(*found):
        assert float((one - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_the_gradient_of_distances_takes_bounded_memory():
    student = torch.randn(4096, 512, device="cuda", requires_grad=True)  # all differences at once would take 34 GB
    teacher = torch.randn(4096, 64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    RkdDistance()(student, teacher).backward()
    assert torch.cuda.max_memory_allocated() - before < 2e9


def test_recalls_are_those_of_the_cpu():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(2000, 64), torch.arange(2000) // 10
    assert recall(embeddings.cuda(), labels.cuda(), K=[1, 10, 100]) == recall(embeddings, labels, K=[1, 10, 100])


def test_the_nearest_are_those_of_the_cpu():
    torch.manual_seed(0)
    embeddings = torch.randn(3000, 32)
    for gallery in (None, torch.randn(5000, 32)):
        found = nearest(embeddings.cuda(), None if gallery is None else gallery.cuda(), 10)
        assert all(map(torch.equal, found, nearest(embeddings, gallery, 10)))


def test_both_scripts_train_and_resume(pictures, tmp_path, capsys):
    teacher = str(tmp_path / "teacher")
    assert run.main(on_gpu(options_for(pictures, "--save_dir", teacher))) == 0
    assert "Device: cuda" in capsys.readouterr().out
    assert run.main(["--resume", "--save_dir", teacher, "--epochs", "3", "--workers", "0"]) == 0
    with open(teacher + "/log.jsonl") as file:
        assert [json.loads(line)["epoch"] for line in file] == [0, 1, 2, 3]
    assert run_distill.main(on_gpu(distil_for(teacher, "--epochs", "1", "--dist_ratio", "1", "--angle_ratio", "2",
                                              "--at_ratio", "1", "--regression_ratio", "1", "--fitnet_ratio",
                                              "1"))) == 0


def test_out_of_memory_says_what_to_lower(pictures, capsys, monkeypatch):
    monkeypatch.setattr(run, "open_network", lambda run: torch.empty(2 ** 50, device=run.device))
    assert run.main(on_gpu(options_for(pictures))) == 1
    assert "out of memory: lower --batch" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 GPUs here")
def test_two_gpus_are_one(pictures, tmp_path):
    argv = on_gpu(options_for(pictures, "--sync_bn", "--precision", "fp32", "--epochs", "1", "--save_dir"))
    assert complete("run", argv + [str(tmp_path / "one")], tmp_path / "out") == 0
    assert [finish(process) for process in start_ranks(2, "run", argv + [str(tmp_path / "two")], tmp_path / "out")] == [
        0, 0]
    one, two = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                for name in ("one", "two"))
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], rel=1e-3)
