"""benchmarks/compare.py, with scripts in place of run.py and run_distill.py that train nothing."""
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import pytest

import run
import run_distill
from comparison import AS_IT_COMES, COMPARISON, FAKE, Place
from engine import arguments
from processes import ROOT
from results import answer, failure, read
from tiny import TinyResNet

import compare  # comparison has made these importable
from comparisons import files, search, trials


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "SCRIPTS", str(tmp_path))
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.01)
    return Place(tmp_path)


def compared(capsys, place, *more, code=0):
    """Run a comparison to its end and return (what was started, what was printed)."""
    found, out, err = answer(capsys, compare.main, place.argv(*more))
    assert found == code, err
    return place.calls(), out + err


def test_the_rate_is_chosen_by_validation_and_the_test_classes_have_no_part_in_it(place, capsys):
    """The test classes say the opposite of the validation classes, in the rates and in the epochs."""
    place.figures(**{"one 0.0001 0": [0.5, 0.7], "one": [0.6, 0.2], "one 0.01 0": [0.4, 0.75]})
    calls, _ = compared(capsys, place, "--only", "one")
    assert calls[0] == "teacher" and [call[1:] for call in calls[1:]] == [
        (1e-4, 0), (1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-3, 2)]
    row = place.rows()["one"]
    assert float(row["rate"]) == 1e-3 and float(row["recall best mean"]) == pytest.approx(0.2)
    assert float(row["recall last mean"]) == pytest.approx(0.9)


def test_choices_see_validation_only():
    assert search.choose_rate({1e-4: 0.5, 1e-3: 0.7, 1e-2: None}) == 1e-3
    assert search.choose_rate({1e-2: 0.5, 1e-3: 0.5, 1e-4: 0.4}) == 1e-3  # of equals the lowest
    assert search.choose_rate({1e-3: None}) is None
    assert trials.choose_epoch({0: 0.1, 2: 0.6, 3: 0.6, 4: 0.5}) == 2  # of equals the first, as best.pth


def test_figures_of_the_table(place, capsys):
    """Means, deviations with n - 1, and the share of the teacher's recall, by hand."""
    place.figures(**{"one": [0.1, 0.3], "one 0.001 0": [0.8, 0.4], "one 0.001 1": [0.8, 0.5],
                     "one 0.001 2": [0.8, 0.6], "two": [0.3, 0.3], "two 0.001 0": [0.5, 0.3]})
    compared(capsys, place, "--jobs", "3")
    rows = place.rows()
    one = rows["one"]
    assert [one["size"], one["seeds"], float(one["rate"])] == ["16", "3", 1e-3]
    assert float(one["recall best mean"]) == pytest.approx(0.5)
    assert float(one["recall best deviation"]) == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert float(one["map@r best mean"]) == pytest.approx(0.25)
    assert float(one["map@r last mean"]) == pytest.approx(0.8)
    assert float(one["recall before mean"]) == pytest.approx(0.05)
    assert float(one["retained"]) == pytest.approx(0.5 / 0.8)
    assert float(one["seconds"]) == pytest.approx(4) and float(one["megabytes"]) == pytest.approx(2)
    assert rows["teacher"]["size"] == "512" and rows["teacher"]["recall best deviation"] == ""
    text = (place.out / "table.md").read_text()
    assert "| 16 | one | 0.001 | 3 | 0.500 ± 0.100 | 0.900 ± 0.000 | 0.050 ± 0.000 | 0.250 ± 0.050 |" in text
    assert "| 512 | teacher |  | 1 | 0.800 | 0.900 |" in text and text.index("teacher |") < text.index("| one")
    picture = xml.etree.ElementTree.parse(str(place.out / "plot.svg"))
    words = ["".join(element.itertext()) for element in picture.iter() if element.tag.endswith("}text")]
    assert {"d = 16", "one", "two", "teacher 0.800", "0.500 ± 0.100"} <= set(words)


def test_recall_alone(place, capsys):
    place.figures(one=[0.5, 0.4], two=[0.5, 0.4])
    for script in ("run.py", "run_distill.py"):
        (place.folder / script).write_text(FAKE.replace('"map@r"', '"something"'))
    compared(capsys, place)
    assert "MAP@R" not in (place.out / "table.md").read_text() and "map@r best mean" not in place.rows()["one"]


def test_a_measure_without_a_value(place, capsys):
    """No query has a match in the last epoch."""
    place.figures(one=[0.5, 0.4], two=[0.5, 0.4])
    for script in ("run.py", "run_distill.py"):
        (place.folder / script).write_text(FAKE.replace(', "test": 0.8}', "}"))
    compared(capsys, place)
    row = place.rows()["one"]
    assert float(row["map@r best mean"]) == pytest.approx(0.2) and "map@r last mean" not in row


@pytest.mark.parametrize("figures, tried, chosen", [
    ({"one": [0.1, 0.1], "one 0.01 0": [0.5, 0.1], "one 0.1 0": [0.6, 0.1], "one 0.1 1": [0.5, 0.1]}, [1e-1], 1e-1),
    ({"one": [0.1, 0.1], "one 0.01 0": [0.5, 0.1]}, [1e-1], 1e-2),
    ({"one": [0.1, 0.1], "one 0.0001 0": [0.5, 0.1], "one 1e-05 0": [0.6, 0.1]}, [1e-5], 1e-5),
    ({"one": [0.1, 0.1], "one 0.001 0": [0.5, 0.1]}, [], 1e-3)])
def test_a_best_rate_at_the_edge_is_followed_one_step(place, capsys, figures, tried, chosen):
    place.figures(**figures)
    calls, _ = compared(capsys, place, "--only", "one")
    searched = [rate for _, rate, seed in calls[1:] if seed == 0]
    assert searched == [1e-4, 1e-3, 1e-2] + tried
    row = place.rows()["one"]
    assert float(row["rate"]) == chosen and row["seeds"] == "3"
    assert ("of those tried" in row["notes"]) == (chosen in tried)


def test_without_going_further(place, capsys):
    place.figures(**{"one": [0.1, 0.1], "one 0.01 0": [0.5, 0.1]})
    calls, _ = compared(capsys, place, "--only", "one", "--no_extend")
    assert max(rate for _, rate, _ in calls[1:]) == 1e-2
    assert place.rows()["one"]["notes"] == "The best rate is the highest of those tried."


def test_failed_runs_are_worse_than_all_and_told(place, capsys):
    nan = "run_distill.py: error: the loss is nan in epoch 1; try a lower --lr"
    place.figures(**{"one": [0.2, 0.1], "one 0.01 0": nan, "one 0.0001 0": "run_distill.py: error: no room",
                     "two": nan})
    calls, text = compared(capsys, place, code=1)
    # No rate is chosen while one of them has failed for a reason that may pass.
    assert calls[1:] == [(method, rate, 0) for method in ("one", "two") for rate in (1e-4, 1e-3, 1e-2)]
    assert text.splitlines()[-1] == "compare.py: error: 1 run failed; the same command tries it again"
    rows = place.rows()
    assert rows["one"]["notes"].startswith("2 of 3 rates so far.") and "no room" in rows["one"]["notes"]
    assert "Failed at 0.01, seed 0: " + nan in rows["one"]["notes"]
    assert rows["two"]["seeds"] == "0" and rows["two"]["rate"] == "" and rows["two"]["recall best mean"] == ""
    # What diverged would do so again; all else is tried again.
    place.figures(**{"one": [0.2, 0.1], "one 0.0001 0": [0.1, 0.3], "one 0.001 2": "kill"})
    assert compared(capsys, place, code=1)[0] == [("one", 1e-4, 0), ("one", 1e-3, 1), ("one", 1e-3, 2)]
    row = place.rows()["one"]
    assert row["seeds"] == "2" and float(row["rate"]) == 1e-3 and "seed 2: ended by signal 9" in row["notes"]
    place.figures(**{"one": [0.2, 0.1]})
    assert compared(capsys, place)[0] == [("one", 1e-3, 2)]
    assert place.rows()["one"]["seeds"] == "3" and "signal" not in place.rows()["one"]["notes"]


def test_weights_that_nothing_needs_are_deleted(place, capsys):
    place.figures(one=[0.2, 0.1], two=[0.2, 0.1], **{"one 0.001 0": [0.5, 0.5], "two 0.001 0": [0.5, 0.5]})
    compared(capsys, place)
    kept = sorted(str(path.relative_to(place.out)) for path in place.out.glob("**/*.pth"))
    assert kept == [os.path.join("d16", "one", "lr0.001", "seed0", "best.pth"),
                    os.path.join("d16", "two", "lr0.001", "seed0", "best.pth"), os.path.join("teacher", "best.pth")]


def test_stopped_and_gone_on_with(place, capsys):
    place.figures(**{"one": [0.2, 0.1], "one 0.001 0": "wait", "one 0.01 0": "wait"})
    program = "import sys; sys.path.insert(0, {!r}); import compare; from comparisons import trials; " \
        "trials.SCRIPTS = {!r}; sys.exit(compare.main({!r}))".format(
            os.path.join(ROOT, "benchmarks"), str(place.folder), place.argv("--only", "one", "--jobs", "2"))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, universal_newlines=True)
    waiting = [place.run_directory("one", rate, 0) for rate in (1e-3, 1e-2)]
    deadline = time.monotonic() + 60
    while not all((directory / "waiting").exists() for directory in waiting):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    line = failure(capsys, compare.main, place.argv())
    assert "another compare.py is at work in it" in line
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.splitlines()[-1] == (
        "compare.py: error: interrupted by SIGTERM; the runs that were going have kept their state; the same command "
        "goes on")
    assert all((directory / "checkpoint.pth").read_text() == "state" for directory in waiting)
    assert "1 of 3 rates so far." in place.rows()["one"]["notes"]  # the table of what was over by then
    place.figures(one=[0.2, 0.1], **{"one 0.001 0": [0.5, 0.5]})
    place.calls()
    answer(capsys, compare.main, place.argv("--only", "one"))
    lines = (place.folder / "calls").read_text().splitlines()
    assert ["--resume" in line for line in lines] == [True, True, False, False]
    assert [call[1:] for call in place.calls()] == [(1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-3, 2)]
    assert compared(capsys, place, "--only", "one")[0] == []  # nothing is left to do


def test_other_options_than_those_of_runs_that_are_there(place, capsys):
    place.figures(one=[0.2, 0.1], two=[0.2, 0.1], **{"one 0.001 0": [0.5, 0.5], "two 0.001 0": [0.5, 0.5]})
    compared(capsys, place)
    place.describe(COMPARISON.replace("epochs = 3", "epochs = 4"))
    line = failure(capsys, compare.main, place.argv())
    assert "holds a run with other options (--epochs 3 there, 4 here)" in line
    place.describe(COMPARISON.replace("zero_init_residual =", ""))
    assert "--zero_init_residual given there, not given here" in failure(capsys, compare.main, place.argv())
    assert place.calls() == []
    place.describe(COMPARISON.replace("0 1 2", "0 1 2 3"))  # more of the same is no other run; --only gives the order
    assert compared(capsys, place, "--only", "two", "one")[0] == [("two", 1e-3, 3), ("one", 1e-3, 3)]
    (place.out / "teacher" / "best.pth").write_text("trained again")
    line = failure(capsys, compare.main, place.argv())
    assert "holds a run with other options (--teacher_load best.pth (sha256 " in line


def test_a_teacher_as_it_comes_is_measured(place, capsys):
    place.describe(AS_IT_COMES)
    place.figures(one=[0.2, 0.35])
    compared(capsys, place, "--only", "one")
    rows = place.rows()
    assert float(rows["teacher"]["recall best mean"]) == pytest.approx(0.7)
    assert float(rows["teacher"]["map@r best mean"]) == pytest.approx(0.4)
    assert float(rows["one"]["retained"]) == pytest.approx(0.5)
    assert rows["teacher"]["size"] == str(TinyResNet.output_size)
    assert compared(capsys, place, "--only", "one")[0] == []


def test_a_teacher_that_fails_ends_the_comparison(place, capsys):
    place.figures(teacher="run.py: error: no room")
    line = failure(capsys, compare.main, place.argv(), code=1)
    assert "the teacher failed: run.py: error: no room (the same command tries it again)" in line
    place.figures(teacher="run.py: error: the loss is nan; try a lower --lr")
    for _ in range(2):
        assert "teacher to train it again)" in failure(capsys, compare.main, place.argv(), code=1)
    assert place.calls() == ["teacher", "teacher"]


def test_the_list_of_commands_runs_nothing(place, capsys):
    place.figures()
    calls, out = compared(capsys, place, "--list", "--only", "two")
    lines = out.splitlines()
    assert calls == [] and not place.out.exists()
    assert lines[0].startswith(
        "python3 run.py --mode train --dataset synthetic --val_classes 10 --epochs 3 --select val --base tiny")
    assert [line.split()[1] for line in lines if line[0] != "#"] == ["run.py"] + 3 * ["run_distill.py"]
    for words in ("--teacher_load {}".format(place.out / "teacher" / "best.pth"), "--lr 0.0001 --seed 0 --select val",
                  "--no_train_recall --threads 1", "--zero_init_residual"):
        assert words in lines[2]


def test_tables_alone(place, capsys):
    place.figures(one=[0.2, 0.1], **{"one 0.001 0": [0.5, 0.5]})
    compared(capsys, place, "--only", "one")
    text = (place.out / "table.md").read_text()
    (place.out / "table.md").unlink()
    assert compared(capsys, place, "--table")[0] == []
    assert (place.out / "table.md").read_text() == text
    (place.run_directory("one", 1e-3, 0) / "log.jsonl").write_text("")
    assert "log.jsonl can't be read; remove" in failure(capsys, compare.main, place.argv("--table"))


@pytest.mark.parametrize("change, words", [
    (("[data]", "[dates]"), "[dates] is none"),
    (("[teacher]", "[teacher as it comes]\nbase = tiny\n[teacher]"), "[teacher] or [teacher as it comes]"),
    (("val_classes = 10", ""), "needs val_classes"),
    (("rates = 1e-3", "rates = many"), "[compare] rates: 'many' is not a number above 0"),
    (("sizes = 16", "sizes = 1.5"), "[compare] sizes: '1.5' is not a whole number of at least 0"),
    (("seeds = 0", "seeds = -1"), "[compare] seeds: '-1' is not a whole number of at least 0"),
    (("embedding_size = 512", "embedding_size = big"), "[teacher] embedding_size: 'big' is not a whole number"),
    (("val_classes = 10", "val_classes = 0"), "[data] val_classes: '0' is not a whole number of at least 1"),
    (("epochs = 3", "val_classes = 20"), "[training] has val_classes, which belongs in [data]"),
    (("zero_init_residual =", "data = x"), "[student] has data, which belongs in [data]"),
    (("val_classes = 10\n\n[training]", "val_classes = 10\nworkers = 2\n\n[training]\nworkers = 1"),
     "[training] has workers, which belongs in [data]"),
    (("val_classes = 10", "val_classes = 10\nrecall = 1 2"), "[data] has recall, but the tables have Recall@1"),
    (("seeds = 0 1 2", ""), "[compare] needs seeds"),
    (("seeds = 0", "seed = 0"), "[compare] has no seed"),
    (("dataset = synthetic", "data = %(data)s"), "data needs --set data=VALUE"),
    (("dataset = synthetic", "data = 5%"), "can't be read"),
    (("base = tiny\nzero", "lr = 1\nzero"), "[student] has lr, which compare.py gives by itself"),
    (("embedding_size = 512", ""), "[teacher] needs embedding_size"),
    (("[compare]", "[compare"), "is no INI file"),
    (("seeds =", "methods = three\nseeds ="), "has no method three; it has one, two")])
def test_a_comparison_that_can_t_be_read_is_one_line(place, capsys, change, words):
    assert COMPARISON.count(change[0]) == 1
    place.describe(COMPARISON.replace(*change))
    assert words in failure(capsys, compare.main, place.argv())
    assert not place.out.exists()


@pytest.mark.parametrize("words, told", [
    (["--set", "data"], "'data' is not NAME=VALUE"),
    (["--set", "dta=DIR"], "--set dta does nothing: there is no %(dta)s in"),
    (["--list", "--table"], "not allowed with"),
    (["--list", "--jobs", "2"], "--jobs does nothing with --list"),
    (["--table", "--jobs", "2", "--only", "one"], "--jobs and --only do nothing with --table")])
def test_options_that_do_nothing(place, capsys, words, told):
    place.figures()
    assert told in failure(capsys, compare.main, place.argv(*words))
    assert not place.out.exists()


@pytest.mark.parametrize("methods, words", [
    ("[other]\n", "one section, [methods]"),
    ("[methods]\na/b = --x 1\n", "no name of a method"),
    ("[methods]\none = x\n", "begins with x"),
    ("[methods]\none =\n", "has no options"),
    ("[methods]\none = --lr 1\n", "one has lr, which compare.py gives by itself"),
    ("[methods]\none = --x 1 --recall 2\n", "one has recall, but"),
    ("[methods]\none = --metrics recall\n", "one has metrics, which belongs in [data]")])
def test_methods_that_can_t_be_read_are_one_line(place, capsys, methods, words):
    (place.folder / "methods.ini").write_text(methods)
    assert words in failure(capsys, compare.main, place.argv())


@pytest.mark.parametrize("name", sorted(
    name for name in os.listdir(os.path.dirname(files.METHODS)) if name.endswith(".ini") and name != "methods.ini"))
def test_the_comparisons_that_we_ship_are_commands_of_the_scripts(name):
    path = os.path.join(os.path.dirname(files.METHODS), name)
    text = read(path)
    if "timm/" in text:
        pytest.importorskip("timm", reason="needs the package timm")
    comparison = files.read_comparison(path, files.METHODS, {
        name: value for name, value in (("data", "a folder"), ("teacher", "t.pth"), ("student", "s.pth"))
        if "%({})s".format(name) in text})
    args = run.build_parser().parse_args(files.argv_of(files.teacher_trial(comparison, "out")))
    assert args.data in ("data", "a folder")
    for method in comparison.methods:
        command = arguments.parse(run_distill.build_parser(), files.argv_of(
            files.student_trial(comparison, "out", 16, method, 3e-4, 1)))
        run_distill.check(command.args, command.given)  # nothing is idle beside anything else
        args = command.args
        assert (args.embedding_size, args.lr, args.seed, args.select) == (16, 3e-4, 1, "val") and args.val_classes > 1
