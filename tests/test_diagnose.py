"""run_distill.py --diagnose: its figures are those of a training, which it leaves nothing of; its words; refusals."""
import copy
import json
import math
import re

import pytest
import torch

import run
import run_distill
from conftest import distil_for, make_pictures, without_labels
from engine import diagnosis, firststeps
from engine.diagnosis import check_diagnosis
from engine.errors import UsageError
from engine.verdict import _duration, in_words
from metric.similarity import common_neighbours, linear_cka
from model import fused
from report.runs import read_diagnosis
from results import answer, assert_same_run, content, failure, read
from views import VIEWS, kept, network_of

RKD = ["--dist_ratio", "1", "--angle_ratio", "2", "--precision", "fp32"]
# Three batches of an epoch whose weights stay what they were: the log then holds what a diagnosis finds.
STANDING = ["--iter_per_epoch", str(firststeps.LOSS_BATCHES), "--epochs", "1", "--lr", "1e-12"]


def diagnosed(capsys, directory, argv):
    """Return (what a diagnosis prints, its diagnose.json)."""
    code, out, err = answer(capsys, run_distill.main, argv + ["--diagnose", "--save_dir", directory])
    assert code == 0, err
    assert [path.name for path in directory.iterdir()] == ["diagnose.json"]
    return out, json.loads(read(str(directory), "diagnose.json"))


@pytest.fixture
def stopped(monkeypatch):
    """The last job that ``diagnose`` got, its other arguments and the state before it."""
    found = []

    def noted(job, *more):
        found[:] = [job, more, state_of(job)]
        diagnosis.diagnose(job, *more)

    monkeypatch.setattr(run_distill, "diagnose", noted)
    return found


def state_of(job):
    modules = [job.network] + [trained.module for trained in job.criteria.values()]
    return copy.deepcopy([module.state_dict() for module in modules] + [{"random": torch.get_rng_state()}])


def assert_equal_states(found, expected):
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("more", [[], ["--teacher_views", str(VIEWS)]], ids=str)
def test_figures_are_those_of_a_training_that_then_begins_there(teacher, pictures, tmp_path, capsys, more):
    argv = distil_for(teacher, *RKD, *STANDING, "--recall", "1", "4", "--metrics", "map@r", *more, "--cache",
                      tmp_path / "cache")
    out, found = diagnosed(capsys, tmp_path / "run", argv)
    assert not kept(tmp_path / "cache")
    before = read(str(tmp_path / "run"), "diagnose.json")
    for directory in ("run", "fresh"):
        code, trained, err = answer(capsys, run_distill.main, argv + ["--save_dir", tmp_path / directory])
        assert code == 0, err
    assert_same_run(tmp_path / "run", tmp_path / "fresh")
    assert read(str(tmp_path / "run"), "diagnose.json") == before
    untrained, epoch = [json.loads(line) for line in read(str(tmp_path / "run"), "log.jsonl").splitlines()]
    student, theirs = found["test"]["student"], found["test"]["teacher"]
    assert student["recall"] == untrained["recall"]["test"] and student["map@r"] == untrained["map@r"]["test"]
    assert {name: term["loss"] for name, term in found["terms"].items()} == pytest.approx(epoch["terms"], rel=1e-4)
    code, of_teacher, _ = answer(capsys, run.main, ["--mode", "eval", "--load", teacher + "/best.pth", "--recall", "1",
                                                    "4", "--metrics", "map@r", "--workers", "0"])
    for title, value in (("Recall@1", theirs["recall"]["1"]), ("Recall@4", theirs["recall"]["4"]),
                         ("MAP@R", theirs["map@r"])):
        assert "{}: [{:.4f}] test".format(title, 100 * value) in of_teacher
        assert re.search(r"{}\s+{:.2f} ".format(title, 100 * value), out), out
    assert ("Teacher views: about" in out) == bool(more)
    words, figures, terms = read_diagnosis(str(tmp_path / "run"))  # what a report shows
    assert words == found["words"] and sorted(name for name, *_ in terms) == ["angle", "dist"]
    assert figures["teacher's Recall@4"] == "{:.2%}".format(theirs["recall"]["4"])


def test_neighbours_cka_and_gradients_are_those_of_the_networks(teacher, stopped, tmp_path, capsys):
    _, found = diagnosed(capsys, tmp_path / "run", distil_for(teacher, *RKD))
    job, _, _ = stopped
    networks = fused(job.network.eval()), network_of(teacher)
    images = torch.cat([images for images, _ in job.data.evaluation["test"]])
    with torch.no_grad():
        embedded = [network(images) for network in networks]
    shares = common_neighbours(*embedded)
    assert found["test"]["common_neighbours"] == {"1": pytest.approx(shares[1]), "10": pytest.approx(shares[10])}
    assert found["test"]["linear_cka"] == pytest.approx(linear_cka(*embedded), rel=1e-3)
    assert (found["test"]["queries"], found["test"]["searched"]) == (18, 17)
    norms = dict.fromkeys(found["terms"], 0)
    for batch in list(job.data.batches.epoch(1)) + list(job.data.batches.epoch(2))[:1]:
        for name in norms:
            job.network.train().zero_grad()
            job.step(*batch)[name].backward()
            gradient = torch.cat([weight.grad.flatten() for weight in job.network.parameters()])
            norms[name] += float(gradient.norm()) / firststeps.LOSS_BATCHES
    assert {name: term["gradient"] for name, term in found["terms"].items()} == pytest.approx(norms, rel=1e-3)
    for term, norm in zip(found["terms"].values(), norms.values()):
        assert term["gradient_share"] == pytest.approx(norm / sum(norms.values()), rel=1e-3)
        assert term["loss"] == pytest.approx(term["ratio"] * term["value"])
    assert sum(term["share"] for term in found["terms"].values()) == pytest.approx(1)


def test_nothing_is_trained(teacher, stopped, monkeypatch, capsys):
    original, moved = firststeps.train_epoch, []

    def noted(training, *more):
        original(training, *more)
        moved.append(state_of(stopped[0]))

    monkeypatch.setattr(firststeps, "train_epoch", noted)
    argv = distil_for(teacher, "--regression_ratio", "1", "--fitnet_ratio", "1", "--triplet_ratio", "1", "--lr", "1e-2",
                      "--head_epochs", "1", "--diagnose")
    assert answer(capsys, run_distill.main, argv)[0] == 0
    job, _, before = stopped
    assert_equal_states(state_of(job), before)
    changed = [any(not torch.equal(part[name], start[name]) for name in start)
               for part, start in zip(moved[-1], before) if start]
    assert changed == [True] * 4  # the steps were real: student, FitNet's map, projection, random numbers


def test_every_term_is_told_and_those_on_labels_left_out_without(teacher, pictures, tmp_path, capsys):
    ratios = [word for term in run_distill.TERMS for word in ("--{}_ratio".format(term.name), "1")]
    out, found = diagnosed(capsys, tmp_path / "all", distil_for(teacher, *ratios))
    assert set(found["terms"]) == {term.name for term in run_distill.TERMS}
    for name, term in found["terms"].items():
        assert re.search(r"^  {} +[-\d]".format(name), out, re.M) and term["gradient"] > 0, name
    out, found = diagnosed(capsys, tmp_path / "unlabelled", without_labels(distil_for(teacher, *RKD), pictures))
    assert "Recall@1" in out and set(found["terms"]) == {"dist", "angle"}


def test_a_student_that_is_its_teacher(teacher, pictures, tmp_path, capsys):
    argv = ["--teacher_load", teacher + "/best.pth", "--load", teacher + "/best.pth", "--dist_ratio", "1", "--batch",
            "8", "--num_image_per_class", "3", "--workers", "0", "--freeze_bn", "--precision", "fp32"]
    out, found = diagnosed(capsys, tmp_path / "run", argv)
    assert found["test"]["common_neighbours"] == {"1": 1, "10": 1}
    assert found["test"]["linear_cka"] == pytest.approx(1) and found["terms"]["dist"]["value"] < 1e-9
    assert "student, as loaded" in out and "The student already finds what the teacher finds: 100%" in out


def test_queries_that_search_in_a_gallery_and_a_teacher_as_it_comes(tmp_path, capsys):
    from tiny import TinyResNet
    for number, part in enumerate(("train", "query", "gallery")):
        make_pictures(tmp_path / "set" / part, classes=3, pictures=3 + number, seed=number)
    torch.save(TinyResNet(pretrained=False).state_dict(), str(tmp_path / "found.pth"))
    argv = distil_for(tmp_path, "--dist_ratio", "1", "--dataset", "folder", "--data", tmp_path / "set", "--image_size",
                      "32", "--teacher_pretrained", tmp_path / "found.pth", "--teacher_embedding_size", "0",
                      "--teacher_base", "tiny")
    out, found = diagnosed(capsys, tmp_path / "run", argv[2:])
    assert "Test set: 12 queries, each searches 15 pictures" in out and 0 < found["test"]["linear_cka"] < 1
    assert set(found["test"]["common_neighbours"]) == {"1", "10"}


def test_a_directory_may_hold_this_run_and_no_other(teacher, tmp_path, capsys):
    argv = distil_for(teacher, *RKD, *STANDING, "--save_dir", tmp_path / "run")
    assert answer(capsys, run_distill.main, argv)[0] == 0
    before = content(tmp_path / "run")
    line = failure(capsys, run_distill.main, argv + ["--diagnose", "--seed", "7"])
    assert "holds another run (--seed 0 there, 7 here); give this run a directory of its own" in line
    assert "--overwrite" not in line and content(tmp_path / "run") == before
    assert answer(capsys, run_distill.main, argv + ["--diagnose"])[0] == 0
    after = content(tmp_path / "run")
    diagnosis_there = after.pop("diagnose.json")
    assert after == before
    assert answer(capsys, run_distill.main, argv + ["--overwrite"])[0] == 0
    assert content(tmp_path / "run")["diagnose.json"] == diagnosis_there
    line = failure(capsys, run_distill.main, argv + ["--diagnose", "--save_dir", teacher])
    assert "holds another run (it is of run.py)" in line


@pytest.mark.parametrize("more, expected", [
    (["--overwrite"], "--overwrite does nothing with --diagnose; leave it out"),
    (["--checkpoint_every", "1"], "--checkpoint_every does nothing with --diagnose; leave it out"),
    (["--resume"], "--resume does nothing with --diagnose; leave it out"),
])
def test_options_that_do_nothing(teacher, tmp_path, capsys, more, expected):
    argv = distil_for(teacher, *RKD, "--diagnose", "--save_dir", tmp_path / "run", *more)
    assert expected in failure(capsys, run_distill.main, argv) and not (tmp_path / "run").exists()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        check_diagnosis({"diagnose"})


def test_a_term_that_is_not_finite_is_one_line(teacher, capsys):
    argv = distil_for(teacher, "--dark_ratio", "1", "--dark_alpha", "1e300", "--diagnose")
    assert "the loss term dark is nan" in failure(capsys, run_distill.main, argv, code=1)


def figures(teacher=0.5, student=0.2, queries=1000, shared=0.1, spread=(1, 1), **terms):
    """The figures of a diagnosis as far as they are put into words; terms: (share, gradient, share of gradients)."""
    return {"test": {"queries": queries, "searched": 1000, "common_neighbours": {"1": shared, "10": shared},
                     "linear_cka": 0.5, "teacher": {"recall": {"1": teacher}, "spread": spread[0]},
                     "student": {"recall": {"1": student}, "spread": spread[1]}},
            "terms": {name: dict(zip(("share", "gradient", "gradient_share"), values))
                      for name, values in (terms or {"dist": (1, 1, 1)}).items()}}


@pytest.mark.parametrize("found, beginnings", [
    (figures(), ["The teacher finds what the student doesn't yet (Recall@1 50.0% against 20.0%)"]),
    (figures(0.21, 0.20), ["The teacher is hardly better than the student is already (Recall@1 21.0% against 20.0%"]),
    (figures(0.5, 0.4, queries=50), ["With 50 queries it can't be told"]),  # five queries are chance
    (figures(0.2, 0.5), ["The student finds more than the teacher"]),
    (figures(shared=0.9), ["The student already finds what the teacher finds: 90% of the 10 nearest"]),
    (figures(spread=(0.001, 1)), ["The teacher's embeddings are nearly one point"]),
    (figures(spread=(1, 0.001)), ["The teacher finds", "The student's embeddings are nearly one point"]),
    (figures(dist=(0.01, 1, 0.5), angle=(0.99, 1, 0.5)),
     ["The teacher finds", "The term angle is 99% of the loss, but 50.0% of the gradients"]),
    (figures(dist=(0.01, 1, 0.01), angle=(0.99, 99, 0.99)),
     ["The teacher finds", "The term angle makes 99% of the gradients (99.0% of the loss)"]),
    (figures(dist=(0.5, 50, 0.5), pkt=(0.01, 0.1, 0.001), angle=(0.49, 49, 0.499)),
     ["The teacher finds", "The term pkt makes 0.1% of the gradients: at the start it hardly counts"]),
    (figures(dist=(0.0, 0, 0.0), angle=(1.0, 1, 1.0)),
     ["The teacher finds", "The term dist has no gradient", "The term angle makes 100% of the gradients"]),
    (figures(dist=(math.nan, 0, math.nan), angle=(math.nan, 0, math.nan)),
     ["The teacher finds", "The term dist has no gradient", "The term angle has no gradient"]),
], ids=str)
def test_what_figures_mean(found, beginnings):
    lines = in_words(found)
    assert len(lines) == len(beginnings)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings)), lines


def test_durations():
    assert [_duration(seconds) for seconds in (0.04, 9.4, 42, 119, 121, 3600, 7199, 7200, 400000)] == [
        "0.0 s", "9.4 s", "42 s", "119 s", "2.0 min", "60 min", "120 min", "2.0 h", "111 h"]
