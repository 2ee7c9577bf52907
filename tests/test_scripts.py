"""Both scripts as a user runs them: what they print, write, refuse."""
import json
import os
import re
import shutil

import pytest
import torch

import run
import run_distill
from conftest import make_pictures, options_for

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEPT = ["best.pth", "checkpoint.pth", "config.json", "last.pth", "log.jsonl", "result.txt", "speed.jsonl"]


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory):
    """The --save_dir of a trained teacher."""
    directory = str(tmp_path_factory.mktemp("runs") / "teacher")
    assert run.main(options_for(pictures, "--save_dir", directory, "--recall", "2", "4")) == 0
    return directory


def distil(teacher, *more):
    return ["--teacher_load", teacher + "/best.pth", "--base", "resnet18", "--embedding_size", "4", "--l2normalize",
            "false", "--pretrained", "none", "--batch", "8", "--num_image_per_class", "3", "--iter_per_epoch", "2",
            "--epochs", "2", "--workers", "0", "--device", "cpu"] + list(more)


def read(*path):
    with open(os.path.join(*path)) as file:
        return file.read()


def failure(capsys, main, argv, code=2):
    """Run a command that must fail with ``code``; return its one line."""
    try:
        returned = main(argv)
    except SystemExit as error:  # argparse
        returned = error.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert returned == code, lines
    assert len(lines) == 1 and ": error: " in lines[0], lines
    return lines[0]


def test_training_prints_and_writes(pictures, tmp_path, capsys):
    directory = str(tmp_path / "deep" / "run")
    assert run.main(options_for(pictures, "--save_dir", directory, "--recall", "1", "3")) == 0
    out = capsys.readouterr().out
    assert "Number of images in Training Set: 18\nNumber of images in Test set: 18\n" in out
    assert "Seed: 0\n" in out
    printed = re.findall(r"^\[Epoch (\d)\] Recall@(\d): \[(\d+\.\d{4})\]$", out, re.M)
    assert [(epoch, k) for epoch, k, _ in printed] == [(e, k) for e in "012" for _ in ("train", "test") for k in "13"]
    tests = [float(value) for _, k, value in printed if k == "1"][1::2]
    assert re.findall(r"^Best Recall@1: (0\.\d{4}|1\.0000)$", out, re.M) == [
        "{:.4f}".format(max(tests[:epoch + 1]) / 100) for epoch in (1, 2)]
    assert sorted(os.listdir(directory)) == KEPT
    assert read(directory, "result.txt") == "Best Recall@1: {:.4f}\nFinal Recall@1: {:.4f}\n".format(
        max(tests), tests[-1])

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
    assert list(results) == ["Best Recall@2", "Final Recall@2"]
    for name, line in (("best.pth", "Best"), ("last.pth", "Final")):
        capsys.readouterr()
        assert run.main(["--mode", "eval", "--load", os.path.join(teacher, name), "--recall", "2", "--device",
                         "cpu", "--workers", "0"]) == 0
        printed = re.findall(r"^\[Epoch 0\] Recall@2: \[(.*)\]$", capsys.readouterr().out, re.M)
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


@pytest.mark.parametrize("loss, sample", [("l1_triplet", "random"), ("l2_triplet", "hard"), ("contrastive", "all"),
                                          ("l2_triplet", "semihard"), ("l2_triplet", "distance_eligible")])
def test_every_loss_and_sampler_trains(pictures, tmp_path, loss, sample):
    directory = str(tmp_path / "run")
    assert run.main(options_for(pictures, "--loss", loss, "--sample", sample, "--epochs", "1",
                                "--save_dir", directory)) == 0
    line = json.loads(read(directory, "log.jsonl").splitlines()[-1])
    assert list(line["terms"]) == [loss] and line["loss"] > 0


def test_distillation_prints_and_writes(teacher, tmp_path, capsys):
    directory = str(tmp_path / "student")
    assert run_distill.main(distil(teacher, "--dist_ratio", "1", "--angle_ratio", "2", "--save_dir", directory)) == 0
    out = capsys.readouterr().out
    # Teacher on both splits, then the student on both, then after each epoch; all on the teacher's own data.
    assert len(re.findall(r"^\[Epoch 0\] Recall@1: ", out, re.M)) == 4
    assert len(re.findall(r"^\[Epoch [12]\] Recall@1: ", out, re.M)) == 4
    assert re.findall(r"^(Best \w+ Recall): \d\.\d{4}$", out, re.M) == ["Best Train Recall", "Best Eval Recall"] * 2
    assert "a ResNet18 with 8 dimensions, L2-normalised" in out
    assert "a ResNet18 with 4 dimensions, not L2-normalised" in out
    assert sorted(os.listdir(directory)) == KEPT
    assert re.fullmatch(r"Best Train Recall@1: \d+\.\d{4}\nBest Test Recall@1: \d+\.\d{4}\n"
                        r"Final Recall@1: \d+\.\d{4}\n", read(directory, "result.txt"))
    # config.json is enough to measure the student.
    assert run.main(["--mode", "eval", "--load", directory + "/best.pth", "--workers", "0"]) == 0
    best = re.search(r"Best Test Recall@1: (.*)", read(directory, "result.txt")).group(1)
    assert "Recall@1: [{}]\n".format(best) in capsys.readouterr().out


RATIOS = {"dist": "1", "angle": "2", "dark": "0.5", "at": "10", "triplet": "3"}


def words_of(names):
    return [word for name in names for word in ("--{}_ratio".format(name), RATIOS[name])]


def test_all_distillation_terms_train_together(teacher, tmp_path):
    directory = str(tmp_path / "run")
    assert run_distill.main(distil(teacher, "--epochs", "1", "--save_dir", directory, *words_of(RATIOS))) == 0
    line = json.loads(read(directory, "log.jsonl").splitlines()[-1])
    assert sorted(line["terms"]) == sorted(RATIOS)
    assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)


def test_terms_are_those_asked_for_times_their_ratio():
    from metric.loss import HardDarkRank, L2Triplet, RkdDistance, RKdAngle
    torch.manual_seed(0)
    maps = [[torch.rand(8, 2, 4, 4) for _ in range(4)] for _ in range(2)]
    student, teacher = torch.randn(8, 4), torch.randn(8, 6)
    labels = torch.arange(8) // 4
    networks = [lambda images, stages, out=(*maps[n], None, e): out for n, e in enumerate((student, teacher))]

    def attention(stage):
        flat = stage.pow(2).mean(1).flatten(1)
        return flat / flat.norm(dim=1, keepdim=True)

    expected = {
        "dist": RkdDistance()(student, teacher),
        "angle": 2 * RKdAngle()(student, teacher),
        "dark": 0.5 * HardDarkRank(alpha=2, beta=3)(student, teacher),
        "at": 10 * sum((attention(a) - attention(b)).pow(2).mean() for a, b in zip(maps[0][1:], maps[1][1:])),
        "triplet": 3 * L2Triplet(margin=0.2)(student, labels),
    }
    for name in RATIOS:
        argv = ["--teacher_load", "unused"] + words_of([name])
        if name == "triplet":
            argv += ["--triplet_sample", "all"]
        terms = run_distill.build_terms(run_distill.build_parser().parse_args(argv))
        values = run_distill.build_step(*networks, terms, 8)(torch.empty(8), labels)
        assert list(values) == [name] and values[name].item() == pytest.approx(expected[name].item(), rel=1e-5)


def test_teacher_stays_as_it_is(teacher, pictures):
    from engine.checkpoint import build_network, read_checkpoint
    checkpoint = read_checkpoint(teacher + "/best.pth")
    network = build_network(checkpoint.options, checkpoint).eval().requires_grad_(False)
    student = build_network(dict(checkpoint.options, embedding_size=4))
    args = run_distill.build_parser().parse_args(distil(teacher, "--dist_ratio", "1", "--at_ratio", "1"))
    step = run_distill.build_step(student, network, run_distill.build_terms(args), 4)
    sum(step(torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])).values()).backward()
    assert all(torch.equal(value, checkpoint.weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_schedule_steps_at_the_end_of_the_epoch(pictures, tmp_path):
    directory = str(tmp_path / "run")
    assert run.main(options_for(pictures, "--save_dir", directory, "--epochs", "3", "--iter_per_epoch", "1", "--lr",
                                "1e-3", "--lr_decay_epochs", "2", "--lr_decay_gamma", "0.1")) == 0
    rates = [json.loads(line).get("learning_rate") for line in read(directory, "log.jsonl").splitlines()]
    assert rates == [None, pytest.approx(1e-3), pytest.approx(1e-3), pytest.approx(1e-4)]


def test_checkpoint_of_the_reference_needs_no_config(teacher, pictures, tmp_path, capsys):
    path = str(tmp_path / "reference.pth")
    shutil.copy(teacher + "/best.pth", path)
    assert run.main(["--mode", "eval", "--load", path, "--base", "resnet18", "--embedding_size", "8", "--dataset",
                     "folder", "--data", str(pictures), "--image_size", "32", "--workers", "0"]) == 0
    assert "Recall@1" in capsys.readouterr().out
    line = failure(capsys, run.main, ["--mode", "eval", "--load", path, "--embedding_size", "16"])
    assert "holds a ResNet18 with 8 dimensions; you asked for a ResNet18 with 16 dimensions" in line


@pytest.mark.parametrize("stated, words", [
    (["--base", "resnet50"], "a ResNet50 with 8 dimensions, L2-normalised"),
    (["--embedding_size", "64"], "a ResNet18 with 64 dimensions, L2-normalised"),
    (["--l2normalize", "false"], "a ResNet18 with 8 dimensions, not L2-normalised"),
])
def test_contradicting_the_checkpoint_is_an_error(teacher, capsys, stated, words):
    path = teacher + "/best.pth"
    line = failure(capsys, run.main, ["--mode", "eval", "--load", path] + stated)
    assert "{} holds a ResNet18 with 8 dimensions, L2-normalised; you asked for {}".format(path, words) in line
    teachers = ["--teacher_" + stated[0][2:], stated[1]]
    line = failure(capsys, run_distill.main, distil(teacher, "--dist_ratio", "1", *teachers))
    assert "you asked for " + words in line


def test_weights_with_a_foreign_config(teacher, tmp_path, capsys):
    shutil.copy(teacher + "/best.pth", str(tmp_path / "best.pth"))
    config = json.loads(read(teacher, "config.json"))
    config["options"]["embedding_size"] = 128
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = ["--mode", "eval", "--load", str(tmp_path / "best.pth")]
    assert "don't belong together" in failure(capsys, run.main, argv)
    (tmp_path / "config.json").write_text("{")
    assert "not a config.json" in failure(capsys, run.main, argv)
    for name, value in (("dataset", "moths"), ("image_size", "big"), ("image_size", 4), ("data", None)):
        config = json.loads(read(teacher, "config.json"))
        config["options"][name] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "gives {} the value".format(name) in failure(capsys, run.main, argv)


def test_weights_of_another_shape(tmp_path, capsys):
    path = str(tmp_path / "odd.pth")
    torch.save({"base.conv1.weight": torch.ones(2), "linear.weight": torch.tensor(1.0)}, path)
    assert "not an embedding network" in failure(capsys, run.main, ["--mode", "eval", "--load", path])


def test_download_of_a_data_set_taken_from_config(teacher, capsys):
    argv = ["--mode", "eval", "--load", teacher + "/best.pth", "--download"]
    assert "--download does nothing with --dataset folder" in failure(capsys, run.main, argv)


def test_training_goes_on_from_loaded_weights(teacher, pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    argv = options_for(pictures, "--load", teacher + "/best.pth", "--save_dir", directory, "--epochs", "1")
    position = argv.index("--pretrained")
    assert run.main(argv[:position] + argv[position + 2:]) == 0
    first = json.loads(read(directory, "log.jsonl").splitlines()[0])["recall"]["test"]["1"]
    capsys.readouterr()
    assert run.main(["--mode", "eval", "--load", teacher + "/best.pth", "--workers", "0"]) == 0
    assert re.findall(r"Recall@1: \[(.*)\]", capsys.readouterr().out)[1] == "{:.4f}".format(100 * first)


def test_a_run_that_fails_at_once_leaves_the_earlier_run_alone(teacher, own_pictures, tmp_path, capsys):
    directory = str(tmp_path / "run")
    shutil.copytree(teacher, directory)
    before = {name: read(directory, name) for name in ("config.json", "log.jsonl", "result.txt")}
    break_a_picture(own_pictures)
    failure(capsys, run.main, options_for(own_pictures, "--save_dir", directory, "--l2normalize", "false"))
    assert {name: read(directory, name) for name in before} == before


def test_diverged_network_is_one_line(pictures, capsys):
    line = failure(capsys, run.main, options_for(pictures, "--lr", "1e30", "--iter_per_epoch", "1"), code=1)
    assert "not finite" in line and "lower --lr" in line


def test_out_of_memory_is_one_line(pictures, capsys, monkeypatch):
    monkeypatch.setattr(run, "place", lambda network, device: torch.empty(2 ** 60))
    line = failure(capsys, run.main, options_for(pictures), code=1)
    assert "out of memory: lower --batch" in line


def test_classes_in_both_splits_are_told(tmp_path, capsys):
    for split, seed in (("train", 0), ("test", 1)):
        make_pictures(tmp_path / split, classes=3, seed=seed)
    assert run.main(options_for(tmp_path, "--epochs", "1")) == 0
    assert "Warning: 3 classes are in both the training and the test set" in capsys.readouterr().out


def test_rkd_needs_no_two_pictures_of_a_class(teacher, tmp_path):
    make_pictures(tmp_path / "singles" / "train", classes=20, pictures=1)
    data = make_pictures(tmp_path / "singles" / "test", classes=2).parent
    assert run_distill.main(distil(teacher, "--dist_ratio", "1", "--epochs", "1", "--data", str(data))) == 0


def remove_all_but_one_picture(data):
    for name in sorted(os.listdir(str(data / "class01")))[1:]:
        os.remove(str(data / "class01" / name))


def break_a_picture(data):
    (data / "class04" / "02.png").write_bytes(b"not a picture")


def leave_one_class(data):
    for name in os.listdir(str(data)):
        if name != "class00":
            shutil.rmtree(str(data / name))


def one_training_class(data):
    for number in range(2, 6):
        shutil.rmtree(str(data / "class{:02d}".format(number)))


def empty_a_class(data):
    shutil.rmtree(str(data / "class05"))
    (data / "class05").mkdir()


@pytest.mark.parametrize("spoil, expected", [
    (remove_all_but_one_picture, r"1 of 3 classes of the training set have a single picture \(class01\)"),
    (break_a_picture, "class04/02.png: a picture that can't be read"),
    (leave_one_class, "only one class folder"),
    (one_training_class, r"the training set has only one class \(class00\)"),
    (empty_a_class, "class05: the class folder holds no picture"),
    (shutil.rmtree, "no such folder"),
])
def test_pictures_that_do_not_fit(own_pictures, tmp_path, capsys, spoil, expected):
    spoil(own_pictures)
    directory = tmp_path / "run"
    assert re.search(expected, failure(capsys, run.main, options_for(own_pictures, "--save_dir", str(directory))))
    assert not (directory / "best.pth").exists()


def test_single_pictures_are_no_error_where_no_pairs_are_needed(own_pictures, teacher, capsys):
    remove_all_but_one_picture(own_pictures)
    argv = distil(teacher, "--dist_ratio", "1", "--epochs", "1", "--data", str(own_pictures), "--batch", "7")
    assert run_distill.main(argv) == 0
    assert "Warning: 1 of 3 classes of the training set have a single picture" in capsys.readouterr().out
    failure(capsys, run_distill.main, argv + ["--triplet_ratio", "1"])


@pytest.mark.parametrize("more, expected", [
    (["--batch", "3"], "smaller than 2 classes"),
    (["--batch", "10"], "--batch 10 is more than the training set can give: 3 classes .* make 9"),
    (["--recall", "1", "18"], "--recall 18: .* holds only 17 pictures"),
    (["--recall", "0"], "'0' is not a whole number of at least 1"),
    (["--lr", "nan"], "'nan' is not a number above 0"),
    (["--l2normalize", "maybe"], "'maybe' is neither true nor false"),
    (["--base", "inception_v1bn"], "--base inception_v1bn is not here yet; there are resnet18, resnet50"),
    (["--dataset", "cars196"], "--dataset cars196 is not here yet; there are cub200, folder, synthetic"),
    (["--device", "cuda:77"], "--device cuda:77 doesn't work here"),
    (["--device", "banana"], "give auto, cpu, cuda"),
    (["--bogus"], "unrecognized arguments: --bogus"),
    (["--embedding", "3"], "unrecognized arguments"),
    (["--load", "nowhere.pth"], "--pretrained does nothing with --load"),
    (["--num_image_per_class", "1"], "leaves no two pictures of one class"),
    (["--pretrained", "nowhere.pth"], "nowhere.pth: no such file"),
    (["--download"], "--download does nothing"),
    (["--mode", "eval", "--lr", "1"], "--lr does nothing with --mode eval"),
    (["--image_size", "8"], "from 32 to 4096"),
])
def test_options_that_do_not_fit(pictures, capsys, more, expected):
    argv = options_for(pictures, *more)
    if "eval" in more:
        argv = ["--dataset", "folder", "--data", str(pictures)] + more
    assert re.search(expected, failure(capsys, run.main, argv))


@pytest.mark.parametrize("more, expected", [
    ([], "all loss ratios are 0"),
    (["--dist_ratio", "1", "--triplet_margin", "0.1"], "--triplet_margin does nothing with --triplet_ratio 0"),
    (["--dist_ratio", "1", "--dark_alpha", "1"], "--dark_alpha does nothing with --dark_ratio 0"),
    (["--dist_ratio", "-1"], "'-1' is not a number of at least 0"),
    (["--dist_ratio", "1", "--batch", "2"], "smaller than 2 classes"),
])
def test_distillation_options_that_do_not_fit(teacher, capsys, more, expected):
    assert re.search(expected, failure(capsys, run_distill.main, distil(teacher) + more))


def test_teacher_load_is_required(capsys):
    assert "--teacher_load" in failure(capsys, run_distill.main, ["--dist_ratio", "1"])


def test_a_run_does_not_overwrite_what_it_reads(teacher, pictures, capsys):
    before = read(teacher, "log.jsonl")
    line = failure(capsys, run_distill.main, distil(teacher, "--dist_ratio", "1", "--save_dir", teacher))
    assert "would overwrite" in line and read(teacher, "log.jsonl") == before
    argv = ["--load", teacher + "/last.pth", "--save_dir", teacher, "--dataset", "folder", "--data", str(pictures)]
    assert "would overwrite" in failure(capsys, run.main, argv)


def test_save_dir_that_can_not_be_written(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = failure(capsys, run.main, options_for(pictures, "--save_dir", str(tmp_path / "file" / "run")))
    assert "can't be written to" in line


def test_missing_data_set_says_what_to_do(tmp_path, capsys):
    line = failure(capsys, run.main, ["--data", str(tmp_path), "--pretrained", "none", "--device", "cpu"])
    assert "--download" in line and "--dataset synthetic" in line


def test_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, capsys, monkeypatch):
    def explode(self, embeddings, labels):
        explode.calls += 1
        return embeddings.sum() * (float("inf") if explode.calls == 4 else 1)

    explode.calls = 0
    monkeypatch.setattr(run.losses.L2Triplet, "forward", explode)
    directory = str(tmp_path / "run")
    line = failure(capsys, run.main, options_for(pictures, "--save_dir", directory), code=1)
    assert re.search("the loss is -?inf in epoch 2, batch 2", line)
    weights = torch.load(os.path.join(directory, "last.pth"))
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert [json.loads(text)["epoch"] for text in read(directory, "log.jsonl").splitlines()] == [0, 1]


def test_collapse_is_told(pictures, capsys, monkeypatch):
    network_forward = run.build_network

    def constant(*args, **kwargs):
        network = network_forward(*args, **kwargs)
        torch.nn.init.zeros_(network.linear.weight)
        return network

    monkeypatch.setattr(run, "build_network", constant)
    assert run.main(["--mode", "eval", "--dataset", "folder", "--data", str(pictures), "--base", "resnet18",
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
