"""Both scripts as a user runs them: what they print and write."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import run
import run_distill
from conftest import distil_for, make_pictures, options_for
from engine.terms import Shapes
from metric.loss import LOSSES
from metric.pairsampler import SAMPLERS
from model import BACKBONES, LinearEmbedding
from processes import ROOT
from results import failure, read

KEPT = ["README.md", "best.pth", "checkpoint.pth", "config.json", "curves.png", "gallery.png", "last.pth", "log.jsonl",
        "result.txt", "speed.jsonl"]


def test_training_prints_and_writes(pictures, tmp_path, capsys):
    directory = str(tmp_path / "deep" / "run")
    assert run.main(options_for(pictures, "--save_dir", directory, "--recall", "1", "3")) == 0
    out = capsys.readouterr().out
    assert "Number of images in Training Set: 18\nNumber of images in Test set: 18\n" in out
    assert "Seed: 0\n" in out
    printed = re.findall(r"^\[Epoch (\d)\] Recall@(\d): \[(\d+\.\d{4})\] (train|test)$", out, re.M)
    assert [(epoch, k, split) for epoch, k, _, split in printed] == [
        (epoch, k, split) for epoch in "012" for split in ("train", "test") for k in "13"]
    tests = [float(value) for _, k, value, split in printed if (k, split) == ("1", "test")]
    assert re.findall(r"^\[Epoch (\d)\] best so far: epoch (\d)$", out, re.M) == [
        (str(epoch), str(tests.index(max(tests[:epoch + 1])))) for epoch in (1, 2)]
    assert re.findall(r"^Best Recall@1: (0\.\d{4}|1\.0000)$", out, re.M) == [
        "{:.4f}".format(max(tests[:epoch + 1]) / 100) for epoch in (1, 2)]
    assert sorted(os.listdir(directory)) == KEPT
    assert read(directory, "result.txt") == (
        "Best Recall@1: {:.4f}\nFinal Recall@1: {:.4f}\nSelected by: test\nBest epoch: {}\nLast epoch: 2\n".format(
            max(tests), tests[-1], tests.index(max(tests))))

    log = [json.loads(line) for line in read(directory, "log.jsonl").splitlines()]
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert [round(100 * line["recall"]["test"]["1"], 4) for line in log] == tests
    assert log[2]["loss"] == pytest.approx(log[2]["terms"]["l2_triplet"])
    assert {"learning_rate", "spread"} <= set(log[2])
    speed = [json.loads(line) for line in read(directory, "speed.jsonl").splitlines()]
    assert [line["epoch"] for line in speed] == [1, 2] and speed[0]["images_per_second"] > 0 and speed[0]["seconds"] > 0
    assert json.loads(read(directory, "config.json"))["options"]["embedding_size"] == 8


def test_last_weights_are_those_of_the_last_epoch_and_best_of_the_best(teacher, capsys):
    results = dict(line.split(": ") for line in read(teacher, "result.txt").splitlines())
    assert list(results) == ["Best Recall@2", "Final Recall@2", "Selected by", "Best epoch", "Last epoch"]
    for name, line in (("best.pth", "Best"), ("last.pth", "Final")):
        capsys.readouterr()
        assert run.main(["--mode", "eval", "--load", os.path.join(teacher, name), "--recall", "2", "--device",
                         "cpu", "--workers", "0"]) == 0
        printed = re.findall(r"^\[Epoch 0\] Recall@2: \[(.*)\] \w+$", capsys.readouterr().out, re.M)
        assert len(printed) == 2 and printed[1] == results[line + " Recall@2"]


def test_same_command_same_result(pictures, tmp_path):
    directories = [str(tmp_path / name) for name in "ab"]
    for number, directory in enumerate(directories):
        argv = options_for(pictures, "--save_dir", directory, "--sample", "distance", "--workers", str(number))
        assert run.main(argv) == 0
    assert read(directories[0], "result.txt") == read(directories[1], "result.txt")
    for name in ("best.pth", "last.pth"):
        first, second = (torch.load(os.path.join(directory, name)) for directory in directories)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_another_seed_another_result(pictures, tmp_path):
    weights = []
    for seed in "12":
        assert run.main(options_for(pictures, "--save_dir", str(tmp_path / seed), "--epochs", "1", "--seed", seed)) == 0
        weights.append(torch.load(str(tmp_path / seed / "last.pth"))["linear.weight"])
    assert not torch.equal(*weights)


@pytest.mark.parametrize("loss, sample", [(loss, None) for loss in LOSSES] + [
    ("l2_triplet", sample) for sample in SAMPLERS])
def test_every_loss_and_sampler_trains(pictures, tmp_path, loss, sample):
    directory, words = str(tmp_path / "run"), ["--sample", sample, "--margin", "3"] if sample else []
    assert run.main(options_for(pictures, "--loss", loss, *words, "--epochs", "1", "--save_dir", directory)) == 0
    line = json.loads(read(directory, "log.jsonl").splitlines()[-1])
    assert list(line["terms"]) == [loss] and line["loss"] > 0


def test_distillation_prints_and_writes(teacher, tmp_path, capsys):
    directory = str(tmp_path / "student")
    argv = distil_for(teacher, "--dist_ratio", "1", "--angle_ratio", "2", "--save_dir", directory)
    assert run_distill.main(argv) == 0
    out = capsys.readouterr().out
    # Teacher on both splits, then the student on both, then after each epoch; all on the teacher's own data.
    assert len(re.findall(r"^\[Epoch 0\] Recall@1: ", out, re.M)) == 4
    assert len(re.findall(r"^\[Epoch [12]\] Recall@1: ", out, re.M)) == 4
    assert re.findall(r"^(Best \w+ Recall): \d\.\d{4}$", out, re.M) == ["Best Train Recall", "Best Eval Recall"] * 2
    assert "a TinyResNet with 8 dimensions, L2-normalised" in out
    assert "a TinyResNet with 4 dimensions, not L2-normalised" in out
    assert sorted(os.listdir(directory)) == KEPT
    assert re.fullmatch(r"Best Train Recall@1: \d+\.\d{4}\nBest Test Recall@1: \d+\.\d{4}\n"
                        r"Final Recall@1: \d+\.\d{4}\nSelected by: test\nBest epoch: \d\nLast epoch: 2\n",
                        read(directory, "result.txt"))
    # config.json is enough to measure the student.
    assert run.main(["--mode", "eval", "--load", directory + "/best.pth", "--workers", "0"]) == 0
    best = re.search(r"Best Test Recall@1: (.*)", read(directory, "result.txt")).group(1)
    assert "Recall@1: [{}] test\n".format(best) in capsys.readouterr().out


RATIOS = {"dist": "1", "angle": "2", "dark": "0.5", "at": "10", "triplet": "3", "relaxed": "2", "pkt": "30000",
          "similarity": "50", "regression": "4", "csd": "5", "fitnet": "6"}


def words_of(names):
    return [word for name in names for word in ("--{}_ratio".format(name), RATIOS.get(name, "1"))]


def test_all_distillation_terms_train_together(teacher, tmp_path):
    directory, names = str(tmp_path / "run"), [term.name for term in run_distill.TERMS]
    assert run_distill.main(distil_for(teacher, "--epochs", "1", "--save_dir", directory, *words_of(names))) == 0
    line = json.loads(read(directory, "log.jsonl").splitlines()[-1])
    assert list(line["terms"]) == names
    assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)


def test_terms_are_those_asked_for_times_their_ratio():
    from metric.loss import (PKT, ContextualSimilarity, EmbeddingRegression, HardDarkRank, L2Triplet,
                             RelaxedContrastive, RkdDistance, RKdAngle, SimilarityKL)
    torch.manual_seed(0)
    maps = [[torch.rand(8, channels, 4, 4) for _ in range(4)] for channels in (2, 3)]
    shapes = Shapes(4, 6, *([tuple(each.shape[1:]) for each in of_network] for of_network in maps))
    student, teacher = torch.randn(8, 4), torch.randn(8, 6)
    labels = torch.arange(8) // 4
    networks = [lambda images, stages=False, n=n, e=e: (*maps[n], None, e) if stages else e
                for n, e in enumerate((student, teacher))]

    def attention(stage):
        flat = stage.pow(2).mean(1).flatten(1)
        return flat / flat.norm(dim=1, keepdim=True)

    expected = {
        "dist": RkdDistance()(student, teacher),
        "angle": 2 * RKdAngle()(student, teacher),
        "dark": 0.5 * HardDarkRank(alpha=2, beta=3)(student, teacher),
        "at": 10 * sum((attention(a) - attention(b)).pow(2).mean() for a, b in zip(maps[0][1:], maps[1][1:])),
        "triplet": 3 * L2Triplet(margin=0.2)(student, labels),
        "relaxed": 2 * RelaxedContrastive(sigma=0.5, delta=2)(student, teacher),
        "pkt": 30000 * PKT()(student, teacher),
        "similarity": 50 * SimilarityKL(temperature=0.3)(student, teacher),
        "regression": lambda p: 4 * EmbeddingRegression()(student @ p.weight.t(), teacher),
        "csd": lambda p: 5 * ContextualSimilarity(k=3)(student @ p.weight.t(), teacher),
        "fitnet": lambda w: 6 * (w.transform(maps[0][3]) - maps[1][3]).pow(2).mean(),
    }
    flags = {"triplet": ["--triplet_sample", "all"], "relaxed": ["--relaxed_sigma", "0.5", "--relaxed_delta", "2"],
             "similarity": ["--similarity_temperature", "0.3"], "csd": ["--csd_k", "3"]}
    for name in RATIOS:
        argv = ["--teacher_load", "unused", "--batch", "8"] + words_of([name]) + flags.get(name, [])
        args = run_distill.build_parser().parse_args(argv)
        criteria = run_distill.build_criteria(args, shapes)
        values = run_distill.build_step(*networks, args, criteria)(torch.empty(8), labels)
        value = expected[name]
        if callable(value):  # of what is trained
            value = value(criteria.get("projection", criteria[name]))
        assert list(values) == [name] and values[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_teacher_stays_as_it_is(teacher, pictures):
    from engine.networks import build_network, read_network_file
    file = read_network_file(teacher + "/best.pth")
    network = build_network(file.options, file).eval().requires_grad_(False)
    student = build_network(dict(file.options, embedding_size=4))
    args = run_distill.build_parser().parse_args(distil_for(teacher, "--dist_ratio", "1", "--at_ratio", "1",
                                                           "--batch", "4"))
    step = run_distill.build_step(student, network, args, run_distill.build_criteria(args, None))
    sum(step(torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])).values()).backward()
    assert all(torch.equal(value, file.weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_schedule_steps_at_the_end_of_the_epoch(pictures, tmp_path):
    directory = str(tmp_path / "run")
    assert run.main(options_for(pictures, "--save_dir", directory, "--epochs", "3", "--iter_per_epoch", "1", "--lr",
                                "1e-3", "--lr_decay_epochs", "2", "--lr_decay_gamma", "0.1")) == 0
    rates = [json.loads(line).get("learning_rate") for line in read(directory, "log.jsonl").splitlines()]
    assert rates == [None, pytest.approx(1e-3), pytest.approx(1e-3), pytest.approx(1e-4)]


def test_checkpoint_of_the_reference_needs_no_config(pictures, tmp_path, capsys):
    path = str(tmp_path / "reference.pth")
    network = BACKBONES["resnet18"](pretrained=False)
    torch.save(dict(LinearEmbedding(network, network.output_size, 8).state_dict()), path)  # without our notes
    assert run.main(["--mode", "eval", "--load", path, "--base", "resnet18", "--embedding_size", "8", "--dataset",
                     "folder", "--data", str(pictures), "--image_size", "32", "--workers", "0"]) == 0
    assert "Recall@1" in capsys.readouterr().out
    line = failure(capsys, run.main, ["--mode", "eval", "--load", path, "--embedding_size", "16"])
    assert "holds a ResNet18 with 8 dimensions; you asked for a ResNet18 with 16 dimensions" in line


def test_training_goes_on_from_loaded_weights(teacher, pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    argv = options_for(pictures, "--load", teacher + "/best.pth", "--save_dir", directory, "--epochs", "1")
    position = argv.index("--pretrained")
    assert run.main(argv[:position] + argv[position + 2:]) == 0
    first = json.loads(read(directory, "log.jsonl").splitlines()[0])["recall"]["test"]["1"]
    capsys.readouterr()
    assert run.main(["--mode", "eval", "--load", teacher + "/best.pth", "--workers", "0"]) == 0
    assert re.findall(r"Recall@1: \[(.*)\]", capsys.readouterr().out)[1] == "{:.4f}".format(100 * first)


def test_classes_in_both_splits_are_told(tmp_path, capsys):
    for split, seed in (("train", 0), ("test", 1)):
        make_pictures(tmp_path / split, classes=3, seed=seed)
    assert run.main(options_for(tmp_path, "--epochs", "1")) == 0
    assert "Warning: 3 classes are in both the training and the test set" in capsys.readouterr().out


def test_rkd_needs_no_two_pictures_of_a_class(teacher, tmp_path):
    make_pictures(tmp_path / "singles" / "train", classes=20, pictures=1)
    data = make_pictures(tmp_path / "singles" / "test", classes=2).parent
    assert run_distill.main(distil_for(teacher, "--dist_ratio", "1", "--epochs", "1", "--data", str(data))) == 0


def test_collapse_is_told(pictures, capsys, monkeypatch):
    open_network = run.open_network

    def constant(*args):
        network = open_network(*args)
        torch.nn.init.zeros_(network.linear.weight)
        return network

    monkeypatch.setattr(run, "open_network", constant)
    assert run.main(["--mode", "eval", "--dataset", "folder", "--data", str(pictures), "--base", "tiny",
                     "--pretrained", "none", "--image_size", "32", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "Warning: the embeddings of the test set have collapsed" in out and "Recall@1: [0.0000]" in out


@pytest.mark.parametrize("main", [run.main, run_distill.main])
def test_help_names_every_default(main, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert "arXiv:1904.05068" in text and "(default: resnet50)" in text and "(default: None)" not in text


@pytest.mark.parametrize("script", ["run.py", "run_distill.py"])
def test_missing_packages_are_one_line(script):
    command = [sys.executable, "-E", "-S", os.path.join(ROOT, script)]  # -S: without what is installed
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "has no torch, torchvision, numpy, tqdm, pillow: pip install -r requirements.txt" in done.stderr


def test_help_of_a_mode_shows_its_options_and_no_others(capsys):
    texts = {}
    for mode in run.MODES:
        with pytest.raises(SystemExit):
            run.main(["--help", "--mode=" + mode])
        texts[mode] = capsys.readouterr().out
    for mode, text in texts.items():
        assert ("\n  --margin " in text) == (mode == "train") and ("\n  --query " in text) == (mode == "search")
        assert "\n  --load " in text and ("\nexport (--mode export):" in text) == (mode == "export")


DEFAULTS = {
    run: dict(mode="train", load=None, dataset="cub200", base="resnet50", sample="all", loss="l2_triplet", margin=0.2,
              embedding_size=128, l2normalize=True, lr=1e-5, lr_decay_epochs=[25, 30, 35], lr_decay_gamma=0.5, batch=64,
              num_image_per_class=5, epochs=40, iter_per_epoch=100, recall=[1], data="data", save_dir=None),
    run_distill: dict(load=None, dataset="cub200", base="resnet50", teacher_base="resnet50", triplet_sample="distance",
                      triplet_ratio=0, dist_ratio=0, angle_ratio=0, triplet_margin=0.2, embedding_size=128,
                      teacher_embedding_size=128, l2normalize=True, teacher_l2normalize=True, lr=1e-4,
                      lr_decay_epochs=[40, 60], lr_decay_gamma=0.1, batch=64, num_image_per_class=5, epochs=80,
                      iter_per_epoch=100, recall=[1], data="data", save_dir=None, dark_ratio=0, dark_alpha=2,
                      dark_beta=3, at_ratio=0),
}


@pytest.mark.parametrize("script", DEFAULTS, ids=lambda script: script.__name__)
def test_the_references_flags_and_defaults(script):
    args = vars(script.build_parser().parse_args(["--teacher_load", "t"] if script is run_distill else []))
    assert {name: args[name] for name in DEFAULTS[script]} == DEFAULTS[script]
