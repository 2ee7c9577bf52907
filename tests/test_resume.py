"""A run that is stopped or killed anywhere goes on and ends as if nothing had happened."""
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time

import pytest
import torch

import run
import run_distill
from conftest import make_pictures, options_for
from runs import (answer, assert_same_run, complete, content, finish, start, start_command, wait_for, wait_for_line)

# RKD_KILLS=300 is the long version.
KILLS = int(os.environ.get("RKD_KILLS", "30"))
SECONDS_FOR_KILLS = 6 * KILLS
FIXED = ["--sample", "distance", "--lr", "1e-3", "--lr_decay_epochs", "2", "--precision", "fp32"]


def argv_for(data, directory, *more):
    return options_for(data, *FIXED, "--epochs", "3", "--checkpoint_every", "1", "--save_dir", str(directory), *more)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The --save_dir of a run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert complete("run", argv_for(pictures, directory), directory.parent / "out") == 0
    return directory


def printed(directory):
    return (directory.parent / "out").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kills_at_random_moments_change_nothing(pictures, whole, tmp_path, number):
    """One run that has no end of its own; after the last kill it is given one, and compared with a run that long."""
    directory = tmp_path / "run"
    argv = argv_for(pictures, directory, "--resume", "--epochs", "1000", "--workers", "1")
    rng, deadline, kills = random.Random(int(number)), time.monotonic() + SECONDS_FOR_KILLS, 0
    while kills < KILLS and time.monotonic() < deadline:
        process = start("run", argv, tmp_path / "out")
        process.join(rng.uniform(0.1, 2))
        os.kill(process.pid, number)  # its loading process notices by itself
        assert finish(process) in (-number, 128 + number), printed(directory)
        kills += 1
    assert kills >= KILLS // 3
    done = torch.load(str(directory / "checkpoint.pth"))["progress"]["epoch"]
    end = ["--epochs", str(done + 1)]
    assert complete("run", argv + end, tmp_path / "out") == 0, printed(directory)
    whole_run = start("run", argv_for(pictures, tmp_path / "whole", *end), tmp_path / "out")
    assert finish(whole_run, 120 + SECONDS_FOR_KILLS) == 0
    assert_same_run(directory, tmp_path / "whole")
    assert "Traceback" not in printed(directory)
    assert set(os.listdir(str(directory))) == set(os.listdir(str(whole)))


def _die_at(number, directory):
    """End this process, without any cleaning up, when the ``number``-th change of a file in ``directory`` is due."""
    count = [0]

    def counted(change):
        def changed(*args):
            if os.path.dirname(args[0]) == directory and os.path.exists(args[0]) and not args[0].endswith(".lock"):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
            return change(*args)
        return changed

    os.replace, os.remove = counted(os.replace), counted(os.remove)


@pytest.fixture
def one_broken(tmp_path):
    """A data set of which one picture has to be skipped."""
    data = make_pictures(tmp_path / "set")
    (data / "class00" / "00.png").write_bytes(b"")
    return data


def test_death_between_any_two_files_changes_nothing(one_broken, tmp_path):
    argv = options_for(one_broken, *FIXED, "--iter_per_epoch", "1", "--epochs", "1", "--skip_broken")
    expected = tmp_path / "whole"
    assert complete("run", argv + ["--save_dir", str(expected)], tmp_path / "out") == 0
    for number in range(1, 100):
        directory = tmp_path / "run{}".format(number)
        code = complete("run", argv + ["--save_dir", str(directory)], tmp_path / "out", _die_at, number, str(directory))
        if code == 0:
            break
        assert code == 9
        assert complete("run", argv + ["--save_dir", str(directory), "--resume"], tmp_path / "out") == 0, printed(
            directory)
        assert_same_run(directory, expected)
        assert (directory / "skipped.txt").read_text() == (expected / "skipped.txt").read_text()
        shutil.rmtree(str(directory))
    assert number > 12  # state, config, skipped, best, last, log, speed before training; all but best after it; result


def test_death_while_a_run_is_replaced_leaves_the_one_or_the_other(pictures, whole, tmp_path):
    argv = options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--lr", "1e-4", "--precision", "fp32",
                       "--save_dir")
    assert complete("run", argv + [str(tmp_path / "other")], tmp_path / "out") == 0
    found = []
    for number in range(1, 10):  # until the new run is alone in the directory
        directory = tmp_path / "run{}".format(number)
        shutil.copytree(str(whole), str(directory))
        code = complete("run", argv + [str(directory), "--overwrite"], tmp_path / "out", _die_at, number,
                        str(directory))
        assert code == 9
        assert complete("run", ["--resume", "--save_dir", str(directory), "--workers", "0"],
                        tmp_path / "out") == 0, printed(directory)
        which = json.loads((directory / "config.json").read_text())["options"]["epochs"]
        assert_same_run(directory, {1: tmp_path / "other", 3: whole}[which])
        found.append(which)
        shutil.rmtree(str(directory))
    assert found == [3, 3] + [1] * 7


def test_a_killed_run_with_loading_processes_goes_on_at_once(pictures, tmp_path):
    """What it has forked may live on for a while; it does not hold the directory."""
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000", "--workers", "2")
    process = start("run", argv, tmp_path / "out")
    wait_for(lambda: (tmp_path / "out").exists() and "[Epoch 1] loss" in (tmp_path / "out").read_text())
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    argv = ["--resume", "--save_dir", str(tmp_path / "run"), "--epochs", "3", "--workers", "0"]
    code = complete("run", argv, tmp_path / "again")
    # It may have been killed in its fourth epoch.
    assert code == 0 or code == 2 and "has done" in (tmp_path / "again").read_text(), (tmp_path / "again").read_text()


@pytest.fixture(scope="module")
def teacher(whole):
    return str(whole / "best.pth")


def distil(teacher, directory, *more):
    return ["--teacher_load", teacher, "--base", "resnet18", "--embedding_size", "4", "--l2normalize", "false",
            "--pretrained", "none", "--batch", "8", "--num_image_per_class", "3", "--iter_per_epoch", "2", "--epochs",
            "2", "--workers", "0", "--device", "cpu", "--dist_ratio", "1", "--angle_ratio", "2", "--triplet_ratio", "1",
            "--save_dir", str(directory), *more]


def test_a_distillation_goes_on_by_its_directory_alone(teacher, tmp_path):
    expected, directory = tmp_path / "whole", tmp_path / "run"
    assert complete("run_distill", distil(teacher, expected), tmp_path / "out") == 0
    process = start("run_distill", distil(teacher, directory), tmp_path / "out")
    wait_for((directory / "checkpoint.pth").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) in (0, 128 + signal.SIGTERM)
    before = len((tmp_path / "out").read_text())
    assert complete("run_distill", ["--resume", "--save_dir", str(directory)], tmp_path / "out") == 0
    assert_same_run(directory, expected)
    assert (tmp_path / "out").read_text()[before:].count("[Epoch 0]") == 0  # the teacher is not measured again


@pytest.mark.parametrize("workers, number", [("fork", signal.SIGTERM), ("forkserver", signal.SIGUSR1)])
def test_with_loading_processes_and_in_bf16(pictures, tmp_path, workers, number):
    outcomes = []
    for name, number in (("whole", None), ("run", number)):
        argv = argv_for(pictures, tmp_path / name)
        argv[argv.index("--workers") + 1], argv[argv.index("fp32")] = "1", "auto"
        process = start("run", argv, tmp_path / "out", workers=workers)
        if number is not None:
            wait_for(lambda: "[Epoch 1] loss" in (tmp_path / "out").read_text()[len(before):])
            os.killpg(process.pid, number)  # as SLURM does: every process of the job, those that just start, too
        outcomes.append(finish(process))
        before = (tmp_path / "out").read_text()
    assert outcomes == [0, 128 + number], before
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]
    assert (state["epoch"], state["batch"]) >= (1, 2)  # what was trained is kept
    assert complete("run", ["--resume", "--save_dir", str(tmp_path / "run"), "--workers", "1"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_step_and_says_how_to_go_on(pictures, tmp_path, name):
    number, directory = getattr(signal, name), tmp_path / "run"
    command = [sys.executable, "run.py"] + argv_for(pictures, directory, "--epochs", "1000", "--workers", "1")
    process = start_command(command)
    try:
        wait_for_line(process, "[Epoch 2]")
        time.sleep(0.1)
        os.killpg(process.pid, number)  # as a terminal or a scheduler does: to the loading processes as well
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert errors.strip().splitlines()[-1] == "run.py: error: interrupted by {}; to go on: python3 run.py --resume " \
        "--save_dir {}".format(name, directory)
    assert "Traceback" not in errors
    assert not [name for name in os.listdir(str(directory)) if name.endswith((".tmp", ".lock"))]
    state = torch.load(str(directory / "checkpoint.pth"))
    assert state["progress"]["epoch"] >= 2
    assert [json.loads(line)["epoch"] for line in (directory / "log.jsonl").read_text().splitlines()] == list(
        range(state["progress"]["epoch"]))


def test_without_save_dir_a_signal_says_that_nothing_was_kept(pictures, tmp_path):
    process = start("run", options_for(pictures, "--epochs", "1000"), tmp_path / "out")
    wait_for(lambda: (tmp_path / "out").exists() and "[Epoch 1]" in (tmp_path / "out").read_text())
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
    assert "nothing was kept" in (tmp_path / "out").read_text().splitlines()[-1]


def _never_end_a_step():
    torch.optim.Adam.step = lambda self: [time.sleep(0.01) for _ in range(100000)]


def test_a_second_ctrl_c_ends_at_once(pictures, tmp_path):
    directory = tmp_path / "run"
    process = start("run", argv_for(pictures, directory), tmp_path / "out", _never_end_a_step)
    wait_for((directory / "speed.jsonl").exists)
    before = (directory / "checkpoint.pth").read_bytes()
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)  # a scheduler repeats itself; that is no second Ctrl-C
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, 20) == 128 + signal.SIGINT
    assert (directory / "checkpoint.pth").read_bytes() == before


def test_ctrl_c_twice_in_a_row_ends_at_once(pictures, tmp_path):
    process = start("run", argv_for(pictures, tmp_path / "run"), tmp_path / "out", _never_end_a_step)
    wait_for((tmp_path / "run" / "speed.jsonl").exists)
    time.sleep(0.3)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert finish(process, 20) == 128 + signal.SIGINT


def _never_end_an_evaluation():
    run.evaluate_splits = lambda *args: [time.sleep(0.01) for _ in range(100000)]


def _stop_in_evaluation():
    evaluate = run.evaluate_splits

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    run.evaluate_splits = stopped


def test_where_nothing_was_kept_yet_nothing_can_go_on(pictures, tmp_path):
    directory = tmp_path / "my run"
    process = start("run", argv_for(pictures, directory), tmp_path / "out", _never_end_an_evaluation)
    wait_for(lambda: (tmp_path / "out").exists() and "Network" in (tmp_path / "out").read_text())
    time.sleep(0.5)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert finish(process, 20) == 128 + signal.SIGINT
    assert "nothing was kept yet; the same command starts again" in (tmp_path / "out").read_text()
    assert not directory.exists()


def _limit_files_to(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_the_state_before(pictures, whole, tmp_path):
    directory = tmp_path / "run"
    process = start("run", argv_for(pictures, directory), tmp_path / "out")
    wait_for((directory / "checkpoint.pth").exists)
    os.kill(process.pid, signal.SIGTERM)
    finish(process)
    before = (directory / "checkpoint.pth").read_bytes()
    argv = ["--resume", "--save_dir", str(directory), "--workers", "0"]
    # Large enough for best.pth and last.pth, and for a part of checkpoint.pth.
    limit = 3 * (whole / "best.pth").stat().st_size // 2
    assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 1
    last = printed(directory).splitlines()[-1]
    assert "checkpoint.pth can't be written (File too large); the one that is there stays as it was" in last
    assert (directory / "checkpoint.pth").read_bytes() == before
    assert not [name for name in os.listdir(str(directory)) if name.endswith(".tmp")]
    assert complete("run", argv, tmp_path / "out") == 0
    assert_same_run(directory, whole)
    assert "Traceback" not in printed(directory)


def test_a_full_disk_leaves_the_run_that_is_to_be_replaced(pictures, whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "run"))
    before = content(tmp_path / "run")
    argv = argv_for(pictures, tmp_path / "run", "--seed", "3", "--overwrite")
    limit = (whole / "best.pth").stat().st_size // 2
    assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 1
    assert content(tmp_path / "run") == before


# From here on the runs are over, and what counts is what the next command says.

def refusal(capsys, main, argv):
    """Return (exit code, the one line on stderr)."""
    code, _, errors = answer(capsys, main, argv)
    assert len(errors.splitlines()) <= 1
    return code, errors


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "copy"))
    return tmp_path / "copy"


def test_a_run_is_not_overwritten_by_accident(pictures, copy, capsys):
    before = content(copy)
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "holds this run, finished; --overwrite does it again" in line
    code, line = refusal(capsys, run.main, argv_for(pictures, copy, "--lr", "0.5", "--margin", "0.1"))
    assert code == 2 and "holds another run (--lr 0.001 there, 0.5 here, --margin 0.2 there, 0.1 here)" in line
    code, line = refusal(capsys, run.main, argv_for("elsewhere", copy, "--epochs", "7"))
    assert code == 2 and "--data {} there, elsewhere here, --epochs 3 there, 7 here".format(pictures) in line
    code, line = refusal(capsys, run_distill.main, distil(before and str(copy.parent / "t.pth"), copy))
    assert code == 2
    (copy / "result.txt").unlink()
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "interrupted; --resume goes on with it" in line
    (copy / "config.json").unlink()
    code, line = refusal(capsys, run.main, argv_for(pictures, copy))
    assert code == 2 and "holds best.pth of another run" in line
    assert content(copy) == {name: before[name] for name in before if name not in ("result.txt", "config.json")}


def test_a_stop_before_anything_is_trained_leaves_the_run_that_is_to_be_replaced(pictures, copy, tmp_path):
    before = content(copy)
    argv = argv_for(pictures, copy, "--seed", "3", "--overwrite")
    process = start("run", argv, tmp_path / "out", _stop_in_evaluation)
    assert finish(process) == 128 + signal.SIGTERM
    assert "nothing was kept yet" in (tmp_path / "out").read_text()
    assert content(copy) == before


def test_a_config_of_others_is_not_replaced(pictures, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    code, line = refusal(capsys, run.main, argv_for(pictures, tmp_path))
    assert code == 2 and "is not a config.json of this project" in line
    assert content(tmp_path) == {"config.json": b'{"mine": 1}'}


def test_overwrite_replaces_the_run(pictures, copy, capsys):
    (copy / "mine.txt").write_text("kept")
    (copy / "skipped.txt").write_text("of the run before")
    argv = options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir", copy, "--overwrite")
    assert refusal(capsys, run.main, argv)[0] == 0
    assert len((copy / "log.jsonl").read_text().splitlines()) == 2
    assert sorted(content(copy)) == ["best.pth", "checkpoint.pth", "config.json", "last.pth", "log.jsonl", "mine.txt",
                                     "result.txt", "speed.jsonl"]


def test_files_of_others_stay(pictures, tmp_path, capsys):
    directory = tmp_path / "mine"
    (directory / "folder.1.tmp").mkdir(parents=True)
    (directory / "notes.2024.tmp").write_text("precious")
    (directory / "best.pth.12.tmp").write_text("half of one, of a killed run")
    code, _ = refusal(capsys, run.main, options_for("nowhere", "--save_dir", directory))
    assert code == 2 and sorted(os.listdir(str(directory))) == ["folder.1.tmp", "notes.2024.tmp"]


def test_the_last_epoch_is_measured_whatever_a_run_was_cut_to(pictures, tmp_path):
    directory = tmp_path / "run"
    argv = argv_for(pictures, directory, "--epochs", "1000", "--eval_every", "500")
    process = start("run", argv, tmp_path / "out")
    wait_for(lambda: (directory / "log.jsonl").exists() and len((directory / "log.jsonl").read_text().splitlines()) > 2)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
    done = ["--epochs", str(torch.load(str(directory / "checkpoint.pth"))["progress"]["epoch"] - 1)]
    resume = ["--resume", "--save_dir", str(directory), "--workers", "0"]
    if torch.load(str(directory / "checkpoint.pth"))["progress"]["batch"]:  # past it; to the end of that epoch
        done = ["--epochs", str(int(done[1]) + 1)]
    assert complete("run", resume + done, tmp_path / "out") == 0, printed(directory)
    assert complete("run", argv_for(pictures, tmp_path / "whole", "--eval_every", "500", *done), tmp_path / "out") == 0
    assert_same_run(directory, tmp_path / "whole")


def test_more_epochs_are_those_of_a_longer_run(pictures, copy, tmp_path, capsys):
    assert complete("run", ["--resume", "--save_dir", str(copy), "--epochs", "4", "--workers", "0"],
                    tmp_path / "out") == 0
    assert complete("run", argv_for(pictures, tmp_path / "longer", "--epochs", "4"), tmp_path / "out") == 0
    assert_same_run(copy, tmp_path / "longer")
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy, "--epochs", "2"])
    assert code == 2 and "has done 4 already" in line


@pytest.mark.parametrize("more, expected", [
    (["--lr", "0.5"], r"holds a run with other options \(--lr 0.001 there, 0.5 here\)"),
    (["--overwrite"], "give one of them"),
    (["--save_dir", "nowhere"], "nowhere holds no checkpoint.pth to go on from"),
])
def test_resume_that_does_not_fit(copy, capsys, monkeypatch, more, expected):
    monkeypatch.chdir(copy.parent)
    before = content(copy)
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy] + more)
    assert code == 2 and re.search(expected, line)
    assert content(copy) == before and not os.path.exists("nowhere")


def test_resume_needs_its_directory_and_its_script(pictures, copy, capsys):
    assert refusal(capsys, run.main, ["--resume"]) == (
        2, "run.py: error: --resume needs --save_dir, the directory of the run to go on with")
    code, line = refusal(capsys, run_distill.main, ["--resume", "--save_dir", copy])
    assert code == 2 and "checkpoint.pth is of run.py" in line
    code, line = refusal(capsys, run.main, ["--mode", "eval", "--resume"])
    assert code == 2 and "--resume does nothing with --mode eval" in line
    code, line = refusal(capsys, run.main, options_for(pictures, "--checkpoint_every", "3", "--overwrite"))
    assert code == 2 and "--checkpoint_every, --overwrite does nothing without --save_dir" in line
    (copy / "checkpoint.pth").unlink()
    code, line = refusal(capsys, run.main, ["--resume", "--save_dir", copy])
    assert code == 2 and "no checkpoint.pth, so there is nothing to go on from" in line


def test_pictures_that_changed_are_told(whole, tmp_path, capsys):
    data = make_pictures(tmp_path / "set")
    directory = tmp_path / "run"
    assert refusal(capsys, run.main, argv_for(data, directory, "--epochs", "1"))[0] == 0
    shutil.move(str(data), str(tmp_path / "moved"))
    resume = ["--resume", "--save_dir", directory, "--data", tmp_path / "moved", "--epochs", "2", "--workers", "0"]
    assert refusal(capsys, run.main, resume)[0] == 0
    (tmp_path / "moved" / "class00" / "01.png").unlink()
    code, line = refusal(capsys, run.main, resume[:-4] + ["--epochs", "3"])
    assert code == 2 and "the pictures of the training set are not those" in line and "18 then, 17 now" in line


def test_the_teacher_may_move_but_not_change(teacher, whole, tmp_path, capsys):
    shutil.copytree(str(whole), str(tmp_path / "teacher"))
    directory = tmp_path / "student"
    argv = distil(str(tmp_path / "teacher" / "best.pth"), directory, "--epochs", "1")
    assert refusal(capsys, run_distill.main, argv)[0] == 0
    shutil.move(str(tmp_path / "teacher"), str(tmp_path / "moved"))
    resume = ["--resume", "--save_dir", directory, "--epochs", "2", "--workers", "0"]
    code, line = refusal(capsys, run_distill.main, resume)
    assert code == 2 and "no such file" in line
    assert refusal(capsys, run_distill.main, resume + ["--teacher_load", tmp_path / "moved" / "best.pth"])[0] == 0
    weights = torch.load(str(tmp_path / "moved" / "best.pth"))
    torch.save({name: value + 1 if name == "linear.bias" else value for name, value in weights.items()},
               str(tmp_path / "moved" / "best.pth"))
    resume[resume.index("2")] = "3"
    code, line = refusal(capsys, run_distill.main, resume + ["--teacher_load", tmp_path / "moved" / "best.pth"])
    assert code == 2 and "is not the file that this run began with" in line


def test_two_runs_in_one_directory_are_held_apart(pictures, tmp_path, capsys):
    directory = tmp_path / "run"
    process = start("run", argv_for(pictures, directory, "--epochs", "1000"), tmp_path / "out")
    try:
        wait_for((directory / "checkpoint.pth").exists)
        for more in ([], ["--resume"], ["--overwrite"]):
            code, line = refusal(capsys, run.main, argv_for(pictures, directory, "--epochs", "1000", *more))
            assert code == 2 and "another run is writing to it" in line
        wait_for(lambda: not [name for name in os.listdir(str(directory)) if not name.startswith("checkpoint.pth.")
                              and name.endswith(".tmp")])
    finally:
        process.kill()
    process.join()
    assert "Traceback" not in (tmp_path / "out").read_text()


def test_two_runs_side_by_side_with_one_cache(whole, tmp_path):
    """Both start on a data set that nobody has opened yet."""
    data = make_pictures(tmp_path / "set")
    processes = [start("run", argv_for(data, tmp_path / name), tmp_path / "out") for name in "ab"]
    assert [finish(process) for process in processes] == [0, 0], (tmp_path / "out").read_text()
    for name in "ab":
        assert_same_run(tmp_path / name, whole)
    assert sorted(name.split(".")[-1] for name in os.listdir(str(data / ".rkd-cache"))) == ["uint8", "uint8"]
