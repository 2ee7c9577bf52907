"""Terms of distillation on the command line: what they train beside the student, what they keep, what is refused."""
import os
import signal

import pytest
import torch

import run
import run_distill
from conftest import distil_for
from metric.loss import Projection
from processes import at_step, complete
from results import answer, assert_same_run, failure
from views import VIEWS

REGRESSION, FITNET = ["--regression_ratio", "1"], ["--fitnet_ratio", "1"]
BOTH = REGRESSION + FITNET  # each has weights of its own


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory):
    """The --save_dir of a student of a term in the teacher's space and of one with weights."""
    directory = tmp_path_factory.mktemp("distilled") / "run"
    argv = distil_for(teacher, *BOTH, "--precision", "fp32", "--checkpoint_every", "1", "--lr", "1e-3", "--save_dir",
                      directory)
    assert complete("run_distill", argv, directory.parent / "out") == 0
    return directory


def test_what_is_trained_beside_the_student_is_kept_apart(distilled, teacher, capsys):
    best = torch.load(str(distilled / "best.pth"))
    assert {name.split(".")[0] for name in best} == {"base", "linear"}
    projection = torch.load(str(distilled / "projection.pth"))
    assert {name: tuple(value.shape) for name, value in projection.items()} == {"weight": (8, 4)}
    state = torch.load(str(distilled / "checkpoint.pth"))
    assert {name: tuple(value.shape) for name, value in state["criteria"].items()} == {
        "projection.weight": (8, 4), "fitnet.transform.weight": (8, 8, 1, 1)}
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", distilled / "best.pth", "--workers", "0"])
    assert code == 0 and "Recall@1" in out


def test_projection_and_hint_are_trained(teacher, monkeypatch, capsys):
    moves = {}
    original = run_distill.fit

    def fit(job):
        weights = {name: parameter for name, trained in job.criteria.items()
                   for parameter in trained.module.parameters()}
        before = {name: parameter.detach().clone() for name, parameter in weights.items()}
        original(job)
        moves.update((name, (parameter.detach() - before[name]).abs()) for name, parameter in weights.items())

    monkeypatch.setattr(run_distill, "fit", fit)
    argv = distil_for(teacher, *BOTH, "--epochs", "1", "--iter_per_epoch", "1", "--lr", "1e-2", "--head_lr", "3")
    assert answer(capsys, run_distill.main, argv)[0] == 0
    assert set(moves) == {"projection", "fitnet"}
    for name, moved in moves.items():  # Adam's first step is as long as the rate, that of the head
        assert moved.max().item() == pytest.approx(0.03, rel=1e-2) and (moved > 0.02).float().mean() > 0.9, name


@pytest.mark.parametrize("term", [["--regression_ratio", "1", "--projection", "linear"], ["--fitnet_ratio", "1"]])
def test_the_rate_of_the_head_is_for_what_is_trained_beside_a_network_without_one(teacher, capsys, term):
    argv = distil_for(teacher, "--embedding_size", "0", "--epochs", "1", "--iter_per_epoch", "1", "--head_lr", "3")
    assert answer(capsys, run_distill.main, argv + term)[0] == 0


def test_a_projection_is_made_where_it_is_needed_or_asked_for(teacher, tmp_path, capsys):
    directory, wide = tmp_path / "run", ["--embedding_size", "8", "--epochs", "1", "--overwrite"]
    for words, expected in ((["--projection", "linear", "--csd_ratio", "1"], True), (["--csd_ratio", "1"], False),
                            (["--csd_ratio", "1", "--embedding_size", "4"], True), (["--dist_ratio", "1"], False)):
        argv = distil_for(teacher, *wide, *words, "--save_dir", directory)
        assert answer(capsys, run_distill.main, argv)[0] == 0
        assert os.path.exists(str(directory / "projection.pth")) == expected, words


@pytest.mark.parametrize("stop", [2, 3])
def test_a_killed_run_goes_on_bit_for_bit_with_its_projection(teacher, distilled, tmp_path, stop):
    argv = distil_for(teacher, *BOTH, "--precision", "fp32", "--checkpoint_every", "1", "--lr", "1e-3", "--save_dir",
                      tmp_path / "run")
    assert complete("run_distill", argv, tmp_path / "out", at_step, stop, signal.raise_signal, signal.SIGKILL) == (
        -signal.SIGKILL)
    assert complete("run_distill", ["--resume", "--save_dir", tmp_path / "run"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", distilled)
    for name in ("projection.pth", "best.pth"):
        found, expected = (torch.load(str(directory / name)) for directory in (tmp_path / "run", distilled))
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_all_terms_on_embeddings_train_with_teacher_views(teacher, capsys):
    ratios = [word for term in run_distill.TERMS if not term.way.stages
              for word in ("--{}_ratio".format(term.name), "1")]
    code, out, _ = answer(capsys, run_distill.main, distil_for(teacher, *ratios, "--epochs", "1", "--teacher_views",
                                                               VIEWS, "--cache", "off"))
    assert code == 0 and "csd" in out


def test_fitnet_alone_trains_no_head(teacher, monkeypatch, capsys):
    jobs = []
    monkeypatch.setattr(run_distill, "fit", jobs.append)
    assert answer(capsys, run_distill.main, distil_for(teacher, *FITNET))[0] == 0
    job, = jobs
    assert not job.network.linear.weight.requires_grad and list(job.criteria) == ["fitnet"] and not job.kept
    assert job.criteria["fitnet"].module.transform.weight.requires_grad


def test_the_projection_begins_as_the_seed_says(teacher, monkeypatch, capsys):
    jobs = []
    monkeypatch.setattr(run_distill, "fit", jobs.append)
    for seed in "001":
        assert answer(capsys, run_distill.main, distil_for(teacher, *REGRESSION, "--seed", seed))[0] == 0
    weights = [job.criteria["projection"].module.weight for job in jobs]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    assert isinstance(jobs[0].criteria["projection"].module, Projection)


@pytest.mark.parametrize("more, expected", [
    (["--dist_ratio", "1", "--projection", "linear"],
     "--projection does nothing without --regression_ratio or --csd_ratio"),
    (["--dist_ratio", "1", "--csd_k", "4"], "--csd_k does nothing with --csd_ratio 0; leave it out"),
    (["--pkt_ratio", "1", "--relaxed_sigma", "4", "--relaxed_delta", "1"],
     "--relaxed_delta and --relaxed_sigma do nothing with --relaxed_ratio 0; leave them out"),
    (["--csd_ratio", "1", "--csd_k", "1"], "'1' is not a whole number from 2"),
    (["--similarity_ratio", "1", "--similarity_temperature", "0"], "'0' is not a number above 0"),
    (FITNET + ["--teacher_views", "3"], "--fitnet_ratio needs the maps of the teacher's stages"),
    (FITNET + ["--base", "resnet18"], "the student has one of 1 x 1, the teacher 8 x 8"),
], ids=str)
def test_what_does_not_fit_is_one_line(teacher, capsys, more, expected):
    assert expected in failure(capsys, run_distill.main, distil_for(teacher, *more))


def test_help_says_whose_space_a_term_leads_to(capsys):
    with pytest.raises(SystemExit):
        run_distill.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for space, names in (("teacher's", ["regression", "csd"]), ("own", ["dist", "relaxed", "pkt", "similarity",
                                                                       "fitnet", "triplet"])):
        for name in names:
            assert text.split("--{}_ratio RATIO ".format(name))[1].split(" (default")[0].endswith(
                "[{} space]".format(space)), name
