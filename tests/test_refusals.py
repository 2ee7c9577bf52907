"""What the scripts refuse and what ends them: one line each, and no file is lost."""
import json
import os
import re
import shutil

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from metric.loss import L2Triplet
from results import failure, read


@pytest.mark.parametrize("stated, words", [
    (["--base", "resnet50"], "a ResNet50 with 8 dimensions, L2-normalised"),
    (["--embedding_size", "64"], "a TinyResNet with 64 dimensions, L2-normalised"),
    (["--l2normalize", "false"], "a TinyResNet with 8 dimensions, not L2-normalised"),
])
def test_contradicting_the_checkpoint_is_an_error(teacher, capsys, stated, words):
    path = teacher + "/best.pth"
    line = failure(capsys, run.main, ["--mode", "eval", "--load", path] + stated)
    assert "{} holds a TinyResNet with 8 dimensions, L2-normalised; you asked for {}".format(path, words) in line
    teachers = ["--teacher_" + stated[0][2:], stated[1]]
    line = failure(capsys, run_distill.main, distil_for(teacher, "--dist_ratio", "1", *teachers))
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
    config["options"]["embedding_size"] = 8
    del config["options"]["skip_broken"]  # written before there was such an option
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run.main(argv + ["--workers", "0"]) == 0
    capsys.readouterr()
    for name, value in (("l2normalize", "yes"), ("image_size", "big"), ("image_size", True), ("data", None)):
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
    monkeypatch.setattr(run, "open_network", lambda run: torch.empty(2 ** 60))
    line = failure(capsys, run.main, options_for(pictures), code=1)
    assert "out of memory: lower --batch" in line


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
    argv = distil_for(teacher, "--dist_ratio", "1", "--epochs", "1", "--data", str(own_pictures), "--batch", "7")
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
    (["--base", "mobilnet_v2"], "--base: 'mobilnet_v2' is no network .* nearest names are mobilenet_v2, "),
    (["--base", "qqqqqq"], "'qqqqqq' is no network that is known here; --list_backbones prints all"),
    (["--dataset", "cars"], "invalid choice: 'cars'"),
    (["--dataset", "cars196", "--download"], "--download does nothing with --dataset cars196; .*md5 d5c8f0aa"),
    (["--dataset", "inshop", "--data", "nowhere"], "nowhere/In-shop/Eval/list_eval_partition.txt is not there: .*img"),
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
    assert re.search(expected, failure(capsys, run_distill.main, distil_for(teacher) + more))


def test_teacher_load_is_required(capsys):
    assert "--teacher_load" in failure(capsys, run_distill.main, ["--dist_ratio", "1"])


def test_a_run_does_not_overwrite_what_it_reads(teacher, pictures, capsys):
    before = read(teacher, "log.jsonl")
    line = failure(capsys, run_distill.main, distil_for(teacher, "--dist_ratio", "1", "--save_dir", teacher))
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
    monkeypatch.setattr(L2Triplet, "forward", explode)
    directory = str(tmp_path / "run")
    line = failure(capsys, run.main, options_for(pictures, "--save_dir", directory), code=1)
    assert re.search("the loss is -?inf in epoch 2, batch 2", line)
    weights = torch.load(os.path.join(directory, "last.pth"))
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert [json.loads(text)["epoch"] for text in read(directory, "log.jsonl").splitlines()] == [0, 1]
