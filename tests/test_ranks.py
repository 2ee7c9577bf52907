"""Several processes give what one gives: the same loss, the same gradient, the same recalls; none is left behind."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import run
import run_distill
from conftest import ROOT, make_pictures, options_for
from dataset import EvaluationLoader, FolderMetric
from engine import ranks
from engine.batchnorm import synchronised
from engine.evaluation import embed
from metric import pairsampler
from model import LinearEmbedding, build_backbone
from runs import (as_rank, assert_same_run, call_in_ranks, complete, finish, free_port, start, start_command,
                  start_ranks, wait_for, wait_for_line)

CPU = torch.device("cpu")
BATCH = 10  # 3 ranks take 3, 3 and 4 of it
TRIPLETS = [(loss, sample) for loss in ("l2_triplet", "l1_triplet") for sample in pairsampler.SAMPLERS]
CASES = ([("triplet", loss, sample) for loss, sample in TRIPLETS + [("contrastive", "all")]]
         + [("distil", *words) for words in (("dist", "1"), ("angle", "2"), ("dark", "0.5"), ("at", "10"),
                                             ("triplet", "3"))])


def _network(dimensions, seed):
    torch.manual_seed(seed)
    return LinearEmbedding(build_backbone("resnet18", "none"), 512, dimensions, True).eval()


def _gradients(case):
    """Return (loss, gradients) of one step on this rank's share of a fixed batch, BatchNorm frozen."""
    kind, name, value = case
    student, teacher = _network(8, 0), _network(16, 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    # Pictures of noise are all alike; the negatives of a triplet then hang on the last digit.
    images *= torch.linspace(0.1, 1, BATCH).view(-1, 1, 1, 1)
    student.linear.requires_grad_(name != "at")
    model = ranks.parallel(student, CPU)
    start, stop = ranks.share(BATCH)
    torch.manual_seed(3)
    if kind == "triplet":
        criterion = run.LOSSES[name](margin=0.2, sampler=pairsampler.SAMPLERS[value]())
        loss = criterion(*(ranks.gathered(rows, BATCH) for rows in (model(images[start:stop]), labels[start:stop])))
    else:
        argv = ["--teacher_load", "unused", "--{}_ratio".format(name), value]
        terms = run_distill.build_terms(run_distill.build_parser().parse_args(argv))
        step = run_distill.build_step(model, teacher, terms, BATCH)
        loss, = step(images[start:stop], labels[start:stop]).values()
    loss.backward()
    return float(loss.detach()), torch.cat([parameter.grad.flatten() for parameter in student.parameters()
                                            if parameter.requires_grad])


def _all_gradients(path):
    with ranks.joined():
        found = {case: _gradients(case) for case in CASES}
    if ranks.is_first():
        torch.save(list(found.values()), path)


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {case: _gradients(case) for case in CASES}
    torch.set_num_threads(threads)
    return found


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
    original = run_distill.losses.RKdAngle.forward
    run_distill.losses.RKdAngle.forward = lambda self, s, t, vertices: (done.append(vertices), original(
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
        embeddings = ranks.gathered(model(images[slice(*ranks.share(BATCH))]), BATCH)
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
        loader = EvaluationLoader(images, 4, 32, share=ranks.share(len(images)))
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


def argv_for(data, directory, *more):
    return options_for(data, "--save_dir", str(directory), "--sample", "distance", "--precision", "fp32", "--lr",
                       "1e-3", *more)


def codes(processes):
    return [finish(process) for process in processes]


@pytest.fixture(scope="module")
def pair(pictures, tmp_path_factory):
    """The --save_dir of a run of two ranks."""
    directory = tmp_path_factory.mktemp("pair")
    assert codes(start_ranks(2, "run", argv_for(pictures, directory / "run", "--epochs", "3"), directory / "out")) == [
        0, 0]
    return directory / "run"


def _train_with_sgd(script, argv):
    """Adam turns a gradient of nearly 0 into a whole step of either sign; plain descent shows how close runs are."""
    def make_optimizer(parameters, lr, *schedule):
        optimizer = torch.optim.SGD(parameters, lr=lr)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [100])

    script = {"run": run, "run_distill": run_distill}[script]
    script.make_optimizer = make_optimizer
    sys.stdout = open(os.devnull, "w")
    assert script.main(argv) == 0


@pytest.mark.parametrize("count, script, terms", [
    (2, "run", ["--sample", "all"]),
    (3, "run", ["--sample", "all"]),
    (3, "run", ["--sample", "distance"]),  # random, so that a generator out of step would show
    (2, "run", ["--sample", "random", "--loss", "contrastive"]),
    (2, "run_distill", ["--dist_ratio", "1"]),
    (3, "run_distill", ["--angle_ratio", "2"]),
    (2, "run_distill", ["--dark_ratio", "0.1"]),
    (3, "run_distill", ["--at_ratio", "100"]),
], ids=str)
def test_an_epoch_is_that_of_one_process(pictures, pair, tmp_path, count, script, terms):
    # Few steps: where a triplet's hinge lies on the last digit, two runs part for good.
    fixed = ["--sync_bn", "--epochs", "1", "--lr", "1e-4", "--precision", "fp32"] + terms
    if script == "run_distill":
        fixed += ["--teacher_load", str(pair / "best.pth")]
    for name, processes in (("alone", 1), ("several", count)):
        call_in_ranks(processes, _train_with_sgd, script, options_for(
            pictures, *fixed, "--save_dir", str(tmp_path / name)))
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("alone", "several")]
    assert logs[1][0]["recall"] == logs[0][0]["recall"]
    assert logs[1][1]["loss"] == pytest.approx(logs[0][1]["loss"], rel=1e-4)
    torch.manual_seed(0)
    start = LinearEmbedding(build_backbone("resnet18", "none"), 512, 8, True).state_dict()
    alone, found = (torch.load(str(tmp_path / name / "last.pth")) for name in ("alone", "several"))
    moved, apart = (sum(float((alone[name] - other[name]).double().pow(2).sum()) for name in alone
                        if name.endswith(("weight", "bias"))) ** 0.5 for other in (start, found))
    # Other negatives, drawn by a generator out of step, would lead elsewhere; one hinge on the last digit does not.
    assert moved > 0 and apart < (0.03 if "distance" in terms or "random" in terms else 1e-3) * moved, apart / moved


def test_only_the_first_rank_prints_and_writes(pair):
    out = [(pair.parent / "out{}".format(rank)).read_text() for rank in range(2)]
    assert "Processes: 2, 2 on this machine (gloo)" in out[0] and out[0].count("[Epoch 3] loss") == 1
    assert out[1] == ""
    assert sorted(os.listdir(str(pair))) == ["best.pth", "checkpoint.pth", "config.json", "last.pth", "log.jsonl",
                                             "result.txt", "speed.jsonl"]


def test_the_cache_is_made_once(tmp_path):
    data = make_pictures(tmp_path / "set")
    assert codes(start_ranks(3, "run", argv_for(data, tmp_path / "run", "--epochs", "1"), tmp_path / "out")) == [0] * 3
    assert len([name for name in os.listdir(str(data / ".rkd-cache")) if name.endswith(".uint8")]) == 2


def _shown(path, count):
    """Return the lines of errors that ``count`` ranks have printed into ``path``; none may be a traceback."""
    out = "".join((path.parent / "{}{}".format(path.name, rank)).read_text() for rank in range(count))
    assert "Traceback" not in out and "terminate called" not in out
    return [line for line in out.splitlines() if ": error: " in line]


@pytest.mark.parametrize("differing", ["--lr", "--seed", "--batch", "--iter_per_epoch"])
def test_ranks_with_other_options_are_refused(pictures, tmp_path, differing):
    port = free_port()
    argv = argv_for(pictures, tmp_path / "run")
    processes = [start("run", argv + [differing, str(6 + rank)], tmp_path / "out{}".format(rank), as_rank, rank, 2,
                       port) for rank in range(2)]
    assert codes(processes) == [2, 2]
    line, = _shown(tmp_path / "out", 2)
    assert line.startswith("run.py [rank 1]") and "{} 6".format(differing) in line and not (tmp_path / "run").exists()


def test_ranks_with_other_pictures_are_refused(tmp_path):
    port = free_port()
    processes = []
    for rank in range(2):
        data = make_pictures(tmp_path / str(rank), pictures=6 + rank)
        processes.append(start("run", argv_for(data, tmp_path / "run"), tmp_path / "out{}".format(rank), as_rank, rank,
                               2, port))
    assert codes(processes) == [2, 2]
    line, = _shown(tmp_path / "out", 2)
    assert "pictures of the training set" in line


@pytest.mark.parametrize("more, expected", [
    (["--batch", "5", "--num_image_per_class", "2"], "--batch 5 is divided among 3 processes; take at least 6"),
    (["--device", "cuda:0"], "is one device for 3 processes"),
    (["--resume"], "holds best.pth but no checkpoint.pth"),
])
def test_what_all_ranks_know_is_told_once(pictures, tmp_path, more, expected):
    directory = tmp_path / "run"
    if more == ["--resume"]:
        directory.mkdir()
        (directory / "best.pth").write_bytes(b"")
    assert codes(start_ranks(3, "run", argv_for(pictures, directory, *more), tmp_path / "out")) == [2, 2, 2]
    line, = _shown(tmp_path / "out", 3)
    assert line.startswith("run.py: error: ") and expected in line


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["begin", "resume"])
@pytest.mark.parametrize("name, expected", [
    ("--data", "elsewhere: no such folder"), ("--cache", "can't be written to"), ("--device", "with 0 accelerators")])
def test_what_one_rank_knows_is_told_by_it(pictures, tmp_path, name, expected, resume):
    """These options may differ between machines, and each rank keeps its own."""
    (tmp_path / "elsewhere").write_text("no folder")
    port, value = free_port(), {"--data": "elsewhere", "--cache": str(tmp_path / "elsewhere"), "--device": "cuda"}[name]
    if name == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    processes = [start("run", argv_for(pictures, tmp_path / "run", *resume, *([name, value] if rank == 1 else [])),
                       tmp_path / "out{}".format(rank), as_rank, rank, 3, port) for rank in range(3)]
    assert codes(processes) == [2, 2, 2]
    line, = _shown(tmp_path / "out", 3)
    assert line.startswith("run.py [rank 1]: error: ") and expected in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_in_vain_can_be_stopped(pictures, tmp_path, number):
    process = start("run", argv_for(pictures, tmp_path / "run"), tmp_path / "out", as_rank, 0, 2, free_port())
    wait_for((tmp_path / "out").exists)
    time.sleep(2)
    os.kill(process.pid, number)
    assert finish(process, 20) in (-number, 128 + number)


def test_a_directory_that_another_run_holds_is_told_once(pictures, tmp_path):
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000")
    other = start("run", argv, tmp_path / "other")
    try:
        wait_for((tmp_path / "run" / "checkpoint.pth").exists)
        assert codes(start_ranks(2, "run", argv, tmp_path / "out")) == [2, 2]
    finally:
        other.kill()
    line, = _shown(tmp_path / "out", 2)
    assert "another run is writing to it" in line


def test_broken_pictures_are_listed_once(own_pictures, tmp_path):
    (own_pictures / "class01" / "02.png").write_bytes(b"")
    (own_pictures / "class02" / "02.png").write_bytes(b"")
    argv = argv_for(own_pictures, tmp_path / "run")
    assert codes(start_ranks(2, "run", argv, tmp_path / "out")) == [2, 2]
    line, = _shown(tmp_path / "out", 2)
    assert "2 of 18 pictures can't be read" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_picture_that_disappears_stops_all_ranks_between_two_steps(own_pictures, tmp_path, rank):
    """Each batch of all 18 pictures holds it; by its place in the batch it is one rank's."""
    argv = argv_for(own_pictures, tmp_path / "run", "--epochs", "1000", "--cache", "off")
    processes = start_ranks(2, "run", argv, tmp_path / "out")
    wait_for(lambda: (tmp_path / "out0").exists() and "[Epoch 1] loss" in (tmp_path / "out0").read_text())
    path = own_pictures / "class0{}".format(3 * rank) / "02.png"
    path.unlink()
    assert codes(processes) == [2, 2]
    lines = _shown(tmp_path / "out", 2)
    assert len(lines) in (1, 2) and all(str(path) in line for line in lines)
    assert "to go on: as many processes of run.py --resume" in (tmp_path / "out0").read_text()
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]
    assert "The run stops in epoch {epoch} after batch {batch};".format(**state) in (tmp_path / "out0").read_text()


@pytest.mark.parametrize("number, count", [(signal.SIGKILL, 2), (signal.SIGKILL, 3), (signal.SIGTERM, 2)])
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(pictures, tmp_path, number, count):
    """SIGKILL takes one rank away; SIGTERM to one of them is a stop of all."""
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000", "--checkpoint_every", "1")
    processes = start_ranks(count, "run", argv, tmp_path / "out")
    wait_for(lambda: (tmp_path / "out0").exists() and "[Epoch 1] loss" in (tmp_path / "out0").read_text())
    os.kill(processes[1].pid, number)
    began = time.monotonic()
    found = codes(processes)
    assert time.monotonic() - began < 60
    out = (tmp_path / "out0").read_text()
    assert found == ([1, -9, 1][:count] if number == signal.SIGKILL else [143, 143])
    words = {signal.SIGKILL: "another process of this run has ended", signal.SIGTERM: "interrupted by SIGTERM"}
    lines = _shown(tmp_path / "out", count)
    assert len(lines) == count - 1 and all(words[number] in line for line in lines) and lines[0] in out
    resume = ["--resume", "--save_dir", str(tmp_path / "run"), "--workers", "0"]
    done = ["--epochs", str(torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]["epoch"] + 1)]
    assert codes(start_ranks(count, "run", resume + done, tmp_path / "again")) == [0] * count, (
        tmp_path / "again0").read_text()
    argv = argv_for(pictures, tmp_path / "whole", *done)
    assert codes(start_ranks(count, "run", argv, tmp_path / "out")) == [0] * count
    if count == 2:
        assert_same_run(tmp_path / "run", tmp_path / "whole")
    else:  # PyTorch sums the gradients of three in an order that depends on what it has seen before
        logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                for name in ("run", "whole")]
        assert logs[0][0] == logs[1][0] and [line["epoch"] for line in logs[0]] == list(range(int(done[1]) + 1))
        assert logs[0][1]["loss"] == pytest.approx(logs[1][1]["loss"], rel=0.05)
    # With another number of ranks it goes on, too; the figures are then those of another rounding.
    more = [["--epochs", str(int(done[1]) + number)] for number in (1, 2)]
    assert codes(start_ranks(5 - count, "run", resume + more[0], tmp_path / "more")) == [0] * (5 - count)
    assert complete("run", resume + more[1], tmp_path / "one") == 0
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == int(more[1][1]) + 1


def test_distillation_in_two_processes(pair, tmp_path):
    argv = ["--teacher_load", str(pair / "best.pth"), "--base", "resnet18", "--embedding_size", "4", "--pretrained",
            "none", "--batch", "8", "--num_image_per_class", "3", "--iter_per_epoch", "2", "--epochs", "1", "--workers",
            "0", "--device", "cpu", "--precision", "fp32", "--sync_bn", "--dist_ratio", "1", "--angle_ratio", "2",
            "--dark_ratio", "1", "--at_ratio", "1", "--triplet_ratio", "1", "--save_dir"]
    assert complete("run_distill", argv + [str(tmp_path / "alone")], tmp_path / "out") == 0
    assert codes(start_ranks(2, "run_distill", argv + [str(tmp_path / "two")], tmp_path / "out")) == [0, 0]
    alone, two = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                  for name in ("alone", "two"))
    assert alone[0]["recall"] == two[0]["recall"]
    for name, value in alone[1]["terms"].items():
        assert two[1]["terms"][name] == pytest.approx(value, rel=5e-3), name


@pytest.mark.parametrize("more, code, expected", [
    (["--epochs", "1"], 0, None),
    (["--batch", "2", "--num_image_per_class", "1"], 1, "leaves no two pictures"),
    (["--margin", "x"], 1, "'x' is not a number above 0"),
])
def test_torchrun(pictures, tmp_path, more, code, expected):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
               str(free_port()), "run.py"] + argv_for(pictures, tmp_path / "run", *more)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          timeout=120)
    assert done.returncode == code, done.stderr
    if expected is None:
        assert done.stdout.count("[Epoch 1] Recall@1") == 2
    else:
        lines = [line for line in done.stderr.splitlines() if line.startswith("run.py") and "error:" in line]
        assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_is_a_stop_of_all(pictures, tmp_path, number):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
               str(free_port()), "run.py"] + argv_for(pictures, tmp_path / "run", "--epochs", "1000")
    process = start_command(command)
    try:
        wait_for_line(process, "[Epoch 1] loss")
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            os.kill(process.pid, number)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    lines = [line for line in errors.splitlines() if line.startswith("run.py")]
    assert lines == ["run.py: error: interrupted by {}; to go on: as many processes of run.py --resume --save_dir {}"
                     .format(number.name, tmp_path / "run")], errors
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]
    assert (state["epoch"], state["batch"]) >= (1, 2)


def test_an_environment_of_no_torchrun(pictures, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert run.main(options_for(pictures)) == 2
    assert "the environment gives WORLD_SIZE the value 'many'" in capsys.readouterr().err


def test_shares_cover_everything_once():
    for count in range(1, 9):
        os.environ["WORLD_SIZE"] = str(count)
        try:
            for total in range(count, 40):
                found = ranks.shares(total)
                assert [index for start, stop in found for index in range(start, stop)] == list(range(total))
                sizes = [stop - start for start, stop in found]
                assert len(sizes) == count and max(sizes) - min(sizes) <= 1
        finally:
            del os.environ["WORLD_SIZE"]
