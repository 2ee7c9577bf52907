"""Ranks that fail, differ or are stopped: each tells its own failure, none is left behind, the run goes on."""
import json
import os
import signal
import time

import pytest
import torch

import run
from conftest import argv_for, make_pictures, options_for
from dataset import files, loader
from engine import data, interruption, settle
from processes import (as_rank, codes, complete, finish, free_port, is_open, start, start_command, start_ranks,
                       wait_for, wait_for_line, wait_for_text)
from results import assert_same_run


LOST = "another process of this run has ended or can't be reached"


def _shown(path, count):
    """Return the one line of error, or "", that each of ``count`` ranks has printed into ``path``; no traceback."""
    outs = [(path.parent / "{}{}".format(path.name, rank)).read_text() for rank in range(count)]
    assert "Traceback" not in "".join(outs) and "terminate called" not in "".join(outs)
    found = [[line for line in out.splitlines() if ": error: " in line] for out in outs]
    assert all(len(lines) <= 1 for lines in found), found
    return ["".join(lines) for lines in found]


@pytest.mark.parametrize("differing", ["--lr", "--seed", "--batch", "--iter_per_epoch"])
def test_ranks_with_other_options_are_refused(pictures, tmp_path, differing):
    port = free_port()
    argv = argv_for(pictures, tmp_path / "run")
    processes = [start("run", argv + [differing, str(6 + rank)], tmp_path / "out{}".format(rank), as_rank, rank, 2,
                       port) for rank in range(2)]
    assert codes(processes) == [2, 2]
    for rank, line in enumerate(_shown(tmp_path / "out", 2)):
        assert line.startswith("run.py [rank {}]: error: ".format(rank)) and "{} is ".format(differing) in line
        assert "6" in line and "in process 0" in line and "7" in line and "in process 1" in line
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_pictures_are_refused(tmp_path):
    port = free_port()
    processes = []
    for rank in range(2):
        data = make_pictures(tmp_path / str(rank), pictures=6 + rank)
        processes.append(start("run", argv_for(data, tmp_path / "run"), tmp_path / "out{}".format(rank), as_rank, rank,
                               2, port))
    assert codes(processes) == [2, 2]
    assert all("the training set is 18 pictures" in line and "21 pictures" in line
               for line in _shown(tmp_path / "out", 2))


def test_ranks_that_skip_other_pictures_are_refused(tmp_path):
    port, processes = free_port(), []
    for rank in range(2):
        data = make_pictures(tmp_path / str(rank))
        path = data / "class01" / "0{}.png".format(2 + rank)
        path.write_bytes(bytes(path.stat().st_size))  # names and sizes are alike
        argv = argv_for(data, tmp_path / "run", "--skip_broken")
        processes.append(start("run", argv, tmp_path / "out{}".format(rank), as_rank, rank, 2, port))
    assert codes(processes) == [2, 2]
    assert all("the training set is 17 pictures" in line for line in _shown(tmp_path / "out", 2))


@pytest.mark.parametrize("more, expected", [
    (["--batch", "5", "--num_image_per_class", "2"], "--batch 5 is divided among 3 processes; take at least 6"),
    (["--device", "cuda:0"], "is one device for 3 processes"),
])
def test_what_all_ranks_find_wrong_is_told_by_all(pictures, tmp_path, more, expected):
    assert codes(start_ranks(3, "run", argv_for(pictures, tmp_path / "run", *more), tmp_path / "out")) == [2, 2, 2]
    assert all(expected in line for line in _shown(tmp_path / "out", 3))


def test_what_only_the_first_rank_looks_at_is_told_by_it(pictures, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").write_bytes(b"")
    argv = argv_for(pictures, tmp_path / "run", "--resume")
    assert codes(start_ranks(3, "run", argv, tmp_path / "out")) == [2, 1, 1]
    first, *others = _shown(tmp_path / "out", 3)
    assert "holds best.pth but no checkpoint.pth" in first and all(LOST in line for line in others)


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
    assert codes(processes) == [1, 2, 1]
    first, line, last = _shown(tmp_path / "out", 3)
    assert line.startswith("run.py [rank 1]: error: ") and expected in line
    assert LOST in first and LOST in last


def _as_rank_that_fetches(rank, count, port, log):
    """A rank whose data set and weights take a while to be there; where files can't be locked, as on some disks."""
    as_rank(rank, count, port)
    files.fcntl = None

    def fetched(original, name):
        def fetch(*args, **options):
            with open(str(log), "a") as file:
                file.write("{} {} begins\n".format(name, rank))
            time.sleep(0.5)
            with open(str(log), "a") as file:
                file.write("{} {} ends\n".format(name, rank))
            return original(*args, **options)
        return fetch

    data.load_splits = fetched(data.load_splits, "pictures")
    settle.pretrained_file = fetched(settle.pretrained_file, "weights")


def test_the_first_rank_of_a_machine_fetches_and_the_others_wait(pictures, tmp_path):
    port, log = free_port(), tmp_path / "log"
    processes = [start("run", argv_for(pictures, tmp_path / "run", "--epochs", "1"), tmp_path / "out{}".format(rank),
                       _as_rank_that_fetches, rank, 2, port, log) for rank in range(2)]
    assert codes(processes) == [0, 0], _shown(tmp_path / "out", 2)
    for what in ("weights", "pictures"):
        assert [line for line in log.read_text().splitlines() if line.startswith(what)] == [
            "{} {} {}".format(what, rank, when) for rank in range(2) for when in ("begins", "ends")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_in_vain_can_be_stopped(pictures, tmp_path, number):
    port = free_port()
    process = start("run", argv_for(pictures, tmp_path / "run"), tmp_path / "out", as_rank, 0, 2, port)
    wait_for(process, lambda: is_open(port))
    os.kill(process.pid, number)
    assert finish(process, 20) in (-number, 128 + number)


def test_a_directory_that_another_run_holds_is_refused(pictures, tmp_path):
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000")
    other = start("run", argv, tmp_path / "other")
    try:
        wait_for(other, (tmp_path / "run" / "checkpoint.pth").exists)
        assert codes(start_ranks(2, "run", argv, tmp_path / "out")) == [2, 1]
    finally:
        other.kill()
    assert "another run is writing to it" in _shown(tmp_path / "out", 2)[0]


def test_broken_pictures_are_listed_once(own_pictures, tmp_path):
    (own_pictures / "class01" / "02.png").write_bytes(b"")
    (own_pictures / "class02" / "02.png").write_bytes(b"")
    argv = argv_for(own_pictures, tmp_path / "run")
    assert codes(start_ranks(2, "run", argv, tmp_path / "out")) == [2, 1]
    assert "2 of 18 pictures can't be read" in _shown(tmp_path / "out", 2)[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_picture_that_disappears_ends_all_ranks_and_the_last_state_stays(own_pictures, tmp_path, rank):
    """Each batch of all 18 pictures holds it; by its place in the batch it is one rank's."""
    argv = argv_for(own_pictures, tmp_path / "run", "--epochs", "1000", "--cache", "off")
    processes = start_ranks(2, "run", argv, tmp_path / "out")
    wait_for_text(processes[0], tmp_path / "out0", "[Epoch 1] loss")
    path = own_pictures / "class0{}".format(3 * rank) / "02.png"
    path.unlink()
    assert codes(processes) in ([2, 2], [1, 2], [2, 1])  # an evaluation may divide the pictures another way
    lines = _shown(tmp_path / "out", 2)
    assert str(path) in "".join(lines) and all(str(path) in line or LOST in line for line in lines)
    state = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["progress"]
    assert (state["epoch"], state["batch"]) >= (1, 1)


@pytest.mark.parametrize("number, count", [(signal.SIGKILL, 2), (signal.SIGKILL, 3), (signal.SIGTERM, 2)])
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(pictures, tmp_path, number, count):
    """SIGKILL takes one rank away; SIGTERM to one of them is a stop of all."""
    argv = argv_for(pictures, tmp_path / "run", "--epochs", "1000", "--checkpoint_every", "1")
    processes = start_ranks(count, "run", argv, tmp_path / "out")
    wait_for_text(processes[0], tmp_path / "out0", "[Epoch 1] loss")
    os.kill(processes[1].pid, number)
    began = time.monotonic()
    found = codes(processes)
    assert time.monotonic() - began < 60
    out = (tmp_path / "out0").read_text()
    assert found == ([1, -9, 1][:count] if number == signal.SIGKILL else [143, 143])
    words = {signal.SIGKILL: "another process of this run has ended", signal.SIGTERM: "interrupted by SIGTERM"}
    lines = [line for line in _shown(tmp_path / "out", count) if line]
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


def _as_rank_whose_loading_stops(rank, count, port, mark):
    as_rank(rank, count, port)
    interruption.GRACE_SECONDS = 1
    if rank == 1:
        def stop(tensors):
            with open(str(mark), "w"):
                pass
            os.kill(os.getpid(), signal.SIGSTOP)

        loader.in_shared_memory = stop


def test_a_signal_ends_ranks_one_of_which_gets_no_pictures(pictures, tmp_path):
    port, argv = free_port(), argv_for(pictures, tmp_path / "run", "--workers", "1")
    processes = [start("run", argv, tmp_path / "out{}".format(rank), _as_rank_whose_loading_stops, rank, 2, port,
                       tmp_path / "mark") for rank in range(2)]
    wait_for(processes[0], (tmp_path / "mark").exists)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert [finish(process, 40) for process in processes] == [143, 143]


@pytest.mark.parametrize("more, code, expected", [
    (["--epochs", "1"], 0, None),
    (["--batch", "2", "--num_image_per_class", "1"], 1, "leaves no two pictures"),
    (["--margin", "x"], 1, "'x' is not a number above 0"),
])
def test_torchrun(pictures, tmp_path, more, code, expected):
    process = start_command("run.py", argv_for(pictures, tmp_path / "run", *more), ranks=2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    if expected is None:
        assert output.count("[Epoch 1] Recall@1") == 2
    else:
        assert expected in errors and "run.py" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_torchrun_is_a_stop_of_all(pictures, tmp_path, number):
    process = start_command("run.py", argv_for(pictures, tmp_path / "run", "--epochs", "1000"), ranks=2)
    try:
        wait_for_line(process, "[Epoch 1] loss")
        if number != signal.SIGTERM:
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
