"""Several processes give what one gives: the same loss, the same gradient, the same recalls."""
import json
import os
import sys

import pytest
import torch

import run
import run_distill
from conftest import argv_for, distil_for, make_pictures, options_for, without_labels
from dataset import EvaluationLoader, FolderMetric
from engine import ranks
from engine.batchnorm import synchronised
from engine.evaluation import embed
from engine.losses import build_loss
from engine.terms import Shapes
from metric import pairsampler
from metric.loss import LOSSES, RKdAngle
from model import LinearEmbedding
from processes import call_in_ranks, codes, complete, start_ranks
from tiny import TinyResNet

CPU = torch.device("cpu")
# Few steps: where a triplet's hinge lies on the last digit, two runs part for good. And Adam turns a gradient of nearly
# 0 into a whole step of either sign; SGD shows how close runs are.
SHORT = ["--sync_bn", "--epochs", "1", "--lr", "1e-4", "--optimizer", "sgd", "--precision", "fp32"]
BATCH = 10  # 3 ranks take 3, 3 and 4 of it
RATIOS = {"angle": "2", "dark": "0.5", "at": "10", "triplet": "3", "pkt": "30000", "similarity": "50"}
SHAPES = Shapes(8, 16, *[[(8, 8, 8)] * 4] * 2)
CASES = ([("loss", name, sample) for name, loss in LOSSES.items()
          for sample in (pairsampler.SAMPLERS if "sampler" in loss.needs else ["all"])]
         + [("distil", term.name, RATIOS.get(term.name, "1")) for term in run_distill.TERMS])


def _network(dimensions, seed):
    torch.manual_seed(seed)
    return LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, dimensions, True).eval()


def _gradients(case):
    """Return (loss, gradients) of one step on this rank's share of a fixed batch, BatchNorm frozen."""
    kind, name, value = case
    student, teacher = _network(8, 0), _network(16, 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    # Pictures of noise are all alike; the negatives of a triplet then hang on the last digit.
    images *= torch.linspace(0.1, 1, BATCH).view(-1, 1, 1, 1)
    student.linear.requires_grad_(name not in ("at", "fitnet"))
    model = ranks.parallel(student, CPU)
    start, stop = ranks.span(BATCH)
    torch.manual_seed(3)
    if kind == "loss":
        criteria = {"loss": build_loss(run.build_parser().parse_args(["--loss", name, "--sample", value]), 5, 8)}
        share = model(images[start:stop]), labels[start:stop]
        loss = criteria["loss"](*(ranks.gathered(rows, BATCH) for rows in share))
    else:
        argv = ["--teacher_load", "unused", "--batch", str(BATCH), "--{}_ratio".format(name), value]
        args = run_distill.build_parser().parse_args(argv)
        criteria = run_distill.build_criteria(args, SHAPES)
        loss, = run_distill.build_step(model, teacher, args, criteria)(images[start:stop], labels[start:stop]).values()
    loss.backward()
    criteria = torch.nn.ModuleDict(criteria)
    ranks.average_gradients(criteria)
    return float(loss.detach()), torch.cat([parameter.grad.flatten() for module in (student, criteria)
                                            for parameter in module.parameters() if parameter.requires_grad])


def _all_gradients(path):
    with ranks.joined():
        found = {case: _gradients(case) for case in CASES}
    if ranks.is_first():
        torch.save(list(found.values()), path)


@pytest.fixture(scope="module")
def alone():
    return {case: _gradients(case) for case in CASES}


@pytest.mark.parametrize("count", [2, 3])
def test_losses_and_gradients_are_those_of_one_process(tmp_path, alone, count):
    path = str(tmp_path / "found.pth")
    call_in_ranks(count, _all_gradients, path)
    for case, (loss, gradient) in zip(CASES, torch.load(path)):
        expected_loss, expected = alone[case]
        assert expected_loss > 0 and float(expected.abs().max()) > 0, case
        assert loss == pytest.approx(expected_loss, rel=1e-5), case
        assert float((gradient - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), case


def _angle_work(path):
    done = []
    original = RKdAngle.forward
    RKdAngle.forward = lambda self, s, t, vertices: (done.append(vertices), original(
        self, s, t, vertices))[1]
    with ranks.joined():
        _gradients(("distil", "angle", "1"))
    torch.save(done, path + str(ranks.number()))


def test_the_work_of_the_angles_is_divided(tmp_path):
    call_in_ranks(3, _angle_work, str(tmp_path / "work"))
    assert [torch.load(str(tmp_path / "work") + str(rank)) for rank in range(3)] == [[(0, 3)], [(3, 6)], [(6, 10)]]


def _batchnorm(path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                                  torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    images = torch.randn(BATCH, 3, 8, 8) * 3 + 1
    with ranks.joined():
        network = synchronised(network, CPU)
        model = ranks.parallel(network, CPU)
        embeddings = ranks.gathered(model(images[slice(*ranks.span(BATCH))]), BATCH)
        torch.cdist(embeddings, embeddings.detach() + 1).tanh().mean().backward()
    if ranks.is_first():
        torch.save([embeddings.detach()] + [parameter.grad for parameter in network.parameters()]
                   + list(network.buffers()), path)


@pytest.mark.parametrize("count", [2, 3])
def test_sync_bn_is_batchnorm_over_the_whole_batch(tmp_path, count):
    _batchnorm(str(tmp_path / "alone"))
    call_in_ranks(count, _batchnorm, str(tmp_path / "found"))
    for found, expected in zip(*(torch.load(str(tmp_path / name)) for name in ("found", "alone"))):
        assert torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-6)


def test_sync_bn_travels_by_the_library_of_the_accelerator(monkeypatch):
    group = object()
    monkeypatch.setattr(ranks, "_tensors", group)
    network = ranks.synchronised_by_library(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    assert isinstance(network[0], torch.nn.SyncBatchNorm) and network[0].process_group is group


def _embed_everything(data, path):
    images = FolderMetric(data, train=True)
    with ranks.joined():
        loader = EvaluationLoader(images, 4, 32, span=ranks.span(len(images)))
        embeddings, labels = embed(_network(8, 0), loader, CPU)
        if ranks.is_first():
            torch.save([embeddings, labels], path)


def test_each_picture_is_measured_once(tmp_path):
    data = make_pictures(tmp_path / "set", classes=6, pictures=7)  # 21 pictures: 3 ranks of 7, batches of 4 and 3
    (data / "class00" / "00.png").unlink()  # 20: 6, 7 and 7
    _embed_everything(str(data), str(tmp_path / "alone"))
    for count in (2, 3):
        call_in_ranks(count, _embed_everything, str(data), str(tmp_path / "found"))
        (embeddings, labels), (expected, expected_labels) = (torch.load(str(tmp_path / name))
                                                             for name in ("found", "alone"))
        assert torch.equal(labels, expected_labels) and embeddings.shape == expected.shape == (20, 8)
        assert torch.allclose(embeddings, expected, atol=1e-6)


@pytest.fixture(scope="module")
def pair(pictures, tmp_path_factory):
    """The --save_dir of a run of two ranks."""
    directory = tmp_path_factory.mktemp("pair")
    assert codes(start_ranks(2, "run", argv_for(pictures, directory / "run", "--epochs", "3"), directory / "out")) == [
        0, 0]
    return directory / "run"


def _train(script, argv):
    sys.stdout = open(os.devnull, "w")
    assert {"run": run, "run_distill": run_distill}[script].main(argv) == 0


def _assert_same_epoch(tmp_path, count, script, argv, tolerance):
    """Weights that several processes and one have trained differ by ``tolerance`` of their way at most."""
    for name, processes in (("alone", 1), ("several", count)):
        call_in_ranks(processes, _train, script, argv + ["--save_dir", str(tmp_path / name)])
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("alone", "several")]
    assert logs[1][0]["recall"] == logs[0][0]["recall"]
    assert logs[1][1]["loss"] == pytest.approx(logs[0][1]["loss"], rel=1e-4)
    torch.manual_seed(0)
    start = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, 8, True).state_dict()
    alone, found = (torch.load(str(tmp_path / name / "last.pth")) for name in ("alone", "several"))
    criteria = [torch.load(str(tmp_path / name / "checkpoint.pth"))["criteria"] for name in ("alone", "several")]
    assert list(criteria[0]) == list(criteria[1])
    for name, value in criteria[0].items():
        assert torch.allclose(criteria[1][name], value, rtol=0, atol=1e-6), name
    moved, apart = (sum(float((alone[name] - other[name]).double().pow(2).sum()) for name in alone
                        if name.endswith(("weight", "bias"))) ** 0.5 for other in (start, found))
    assert moved > 0 and apart < tolerance * moved, apart / moved


@pytest.mark.parametrize("count, script, terms", [
    (2, "run", ["--sample", "all"]),
    (3, "run", ["--sample", "all"]),
    (3, "run", ["--sample", "distance"]),  # random, so that a generator out of step would show
    (2, "run", ["--sample", "random", "--loss", "contrastive"]),
    (2, "run", ["--loss", "multi_similarity"]),
    (3, "run", ["--loss", "proxy_anchor"]),
    (2, "run_distill", ["--dist_ratio", "1"]),
    (3, "run_distill", ["--angle_ratio", "2"]),
    (2, "run_distill", ["--dark_ratio", "0.1"]),
    (3, "run_distill", ["--at_ratio", "100"]),
    (2, "run_distill", ["--relaxed_ratio", "1", "--pkt_ratio", "1000", "--similarity_ratio", "10"]),
    (3, "run_distill", ["--regression_ratio", "1", "--csd_ratio", "1", "--fitnet_ratio", "1", "--projection",
                        "linear"]),
    (2, "run", ["--sample", "all", "--crop", "resized", "--views", "2"]),
    (3, "run_distill", ["--dist_ratio", "1", "--crop", "resized", "--views", "2", "--teacher_views", "3", "--cache",
                        "off"]),
], ids=str)
def test_an_epoch_is_that_of_one_process(pictures, pair, tmp_path, count, script, terms):
    more = ["--teacher_load", pair / "best.pth"] if script == "run_distill" else []
    # Other negatives, drawn by a generator out of step, would lead elsewhere; one hinge on the last digit does not.
    _assert_same_epoch(tmp_path, count, script, options_for(pictures, *SHORT, *terms, *more),
                       0.03 if "distance" in terms or "random" in terms else 1e-3)


def test_an_epoch_without_labels_is_that_of_one_process(pictures, pair, tmp_path):
    argv = options_for(pictures, *SHORT, "--dist_ratio", "1", "--teacher_load", pair / "best.pth")
    _assert_same_epoch(tmp_path, 2, "run_distill", without_labels(argv, pictures), 1e-3)


def test_only_the_first_rank_prints_and_writes(pair):
    out = [(pair.parent / "out{}".format(rank)).read_text() for rank in range(2)]
    assert "Processes: 2, 2 on this machine (gloo)" in out[0] and out[0].count("[Epoch 3] loss") == 1
    assert out[1] == ""
    assert sorted(os.listdir(str(pair))) == [
        "README.md", "best.pth", "checkpoint.pth", "config.json", "curves.png", "gallery.png", "last.pth", "log.jsonl",
        "result.txt", "speed.jsonl"]


def test_the_cache_is_made_once(tmp_path):
    data = make_pictures(tmp_path / "set")
    argv = argv_for(data, tmp_path / "run", "--epochs", "1", "--cache", tmp_path / "cache")
    assert codes(start_ranks(3, "run", argv, tmp_path / "out")) == [0] * 3
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 2


def test_distillation_in_two_processes(pair, tmp_path):
    ratios = [word for term in run_distill.TERMS for word in ("--{}_ratio".format(term.name), "1")]
    argv = distil_for(pair, "--epochs", "1", "--precision", "fp32", "--sync_bn", *ratios, "--save_dir")
    assert complete("run_distill", argv + [str(tmp_path / "alone")], tmp_path / "out") == 0
    assert codes(start_ranks(2, "run_distill", argv + [str(tmp_path / "two")], tmp_path / "out")) == [0, 0]
    alone, two = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                  for name in ("alone", "two"))
    assert alone[0]["recall"] == two[0]["recall"]
    for name, value in alone[1]["terms"].items():
        assert two[1]["terms"][name] == pytest.approx(value, rel=5e-3), name


def test_shares_cover_everything_once():
    for count in range(1, 9):
        os.environ["WORLD_SIZE"] = str(count)
        try:
            for total in range(count, 40):
                found = ranks.spans(total)
                assert [index for start, stop in found for index in range(start, stop)] == list(range(total))
                sizes = [stop - start for start, stop in found]
                assert len(sizes) == count and max(sizes) - min(sizes) <= 1
        finally:
            del os.environ["WORLD_SIZE"]
