"""--teacher_views: the embeddings are computed once, by one run or process, and kept beside the pictures."""
import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
import torch

import run_distill
from conftest import argv_for, make_pictures
from dataset import cache, caches, open_pictures
from dataset.croptable import TABLE_CONTENTS, TABLE_SUFFIX, CropTable, open_table, table_path
from dataset.files import locked
from engine import ranks, teacherviews
from processes import at_step, codes, complete, finish, start, start_ranks, wait_for
from results import answer, assert_same_run, content
from views import argv, array_of, kept


def test_a_second_run_takes_them_and_another_teacher_has_others(teacher, pictures, tmp_path, capsys, monkeypatch):
    place, weights = tmp_path / "cache", []
    for name in "ab":
        code, out, _ = answer(capsys, run_distill.main, argv(teacher, "--cache", place, "--save_dir", tmp_path / name))
        lines = [line for line in out.splitlines() if line.startswith("Teacher views:")]
        assert code == 0 and lines == ["Teacher views: 3 crops of each of 18 pictures, embedded {} {}".format(
            "once: 0.00 GB in" if name == "a" else "before, from", place)]
        weights.append((tmp_path / name / "last.pth").read_bytes())
        assert len(kept(place)) == 1
        with monkeypatch.context() as context:
            context.setattr(teacherviews, "_embeddings", lambda *args: pytest.fail("computed twice"))
            assert run_distill.main(argv(teacher, "--cache", place, "--views", "2", "--batch", "8")) == 0
    assert weights[0] == weights[1]
    shutil.copytree(teacher, str(tmp_path / "teacher"))
    shutil.copy(str(tmp_path / "teacher" / "last.pth"), str(tmp_path / "teacher" / "best.pth"))
    changed = torch.load(str(tmp_path / "teacher" / "best.pth"))
    changed["linear.bias"] += 1
    torch.save(changed, str(tmp_path / "teacher" / "best.pth"))
    for count, more in enumerate([["--teacher_load", tmp_path / "teacher" / "best.pth"], ["--seed", "1"],
                                  ["--crop", "resized"], ["--teacher_views", "4"]], 2):
        assert run_distill.main(argv(teacher, "--cache", place, *map(str, more))) == 0
        assert len(kept(place)) == count
    assert sorted(open_table(path).shape for path in kept(place)) == [(3, 18, 8)] * 4 + [(4, 18, 8)]
    assert not list(place.glob("*.tmp")) and not list(place.glob("*.lock"))


@pytest.mark.parametrize("damage", ["half", "contents", "no contents", "shape"])
def test_half_a_file_is_made_anew(teacher, tmp_path, capsys, damage):
    place = tmp_path / "cache"
    assert run_distill.main(argv(teacher, "--cache", place)) == 0
    path, = kept(place)
    expected, beside = array_of(path), path + TABLE_CONTENTS
    if damage == "half":
        os.truncate(path, os.path.getsize(path) // 2)
    elif damage == "no contents":
        os.remove(beside)
    else:
        with open(beside, "w") as file:
            file.write("{" if damage == "contents" else json.dumps({"folder": "", "what": "", "shape": [-3, 18, 8]}))
    open(path + ".999999.tmp", "wb").close()
    capsys.readouterr()
    assert run_distill.main(argv(teacher, "--cache", place)) == 0
    assert "embedded once" in capsys.readouterr().out and np.array_equal(array_of(path), expected)
    assert not list(place.glob("*.tmp"))


@pytest.mark.parametrize("fault, words", [
    ("room", "0.00 GB needed in"), ("write", "No space left on device"), ("lock", "Permission denied"),
    ("off", "the pictures have no cache to keep them beside")])
def test_where_nothing_can_be_kept_they_are_in_memory(teacher, tmp_path, capsys, monkeypatch, fault, words):
    place, weights = tmp_path / "cache", []
    for name in ("well", "ill"):
        more = ["--cache", place, "--save_dir", tmp_path / name]
        if name == "ill":
            path, = kept(place)
            os.remove(path)
        if name == "ill" and fault == "room":
            usage = shutil.disk_usage(str(tmp_path))
            monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        elif name == "ill" and fault == "off":
            more[1] = "off"
        elif name == "ill":
            def refuse(*args, **options):
                raise OSError(*((errno.ENOSPC, "No space left on device") if fault == "write" else (
                    errno.EACCES, "Permission denied")))

            monkeypatch.setattr(teacherviews, {"write": "write_table", "lock": "locked"}[fault], refuse)
        code, out, _ = answer(capsys, run_distill.main, argv(teacher, *more))
        weights.append((tmp_path / name / "last.pth").read_bytes())
        assert code == 0
    told, = [line for line in out.splitlines() if line.startswith("Teacher views:")]
    assert "embedded once: in memory for this run (" in told and words in told
    assert weights[0] == weights[1] and kept(place) == []


def test_a_file_that_goes_is_one_line(tmp_path):
    with pytest.raises(cache.DatasetError, match="gone or no longer whole.*the same command makes it again"):
        CropTable(path=str(tmp_path / "gone"), shape=(3, 4, 5)).rows([0], [1])


def test_a_stopped_run_goes_on_bit_for_bit(teacher, tmp_path):
    more = ["--epochs", "2", "--views", "2", "--crop", "resized", "--cache", tmp_path / "cache", "--save_dir"]
    assert complete("run_distill", argv(teacher, *more, tmp_path / "whole"), tmp_path / "out") == 0
    for remove in (False, True):  # with what is kept, and after it was removed
        directory = tmp_path / "run{}".format(remove)
        assert complete("run_distill", argv(teacher, *more, directory), tmp_path / "out", at_step, 3,
                        signal.raise_signal, signal.SIGTERM) == 128 + signal.SIGTERM
        if remove:
            assert caches.main([str(tmp_path / "cache"), "--clear"]) == 0
        assert complete("run_distill", ["--resume", "--save_dir", str(directory)], tmp_path / "out") == 0
        assert_same_run(directory, tmp_path / "whole")
    before = content(directory)
    assert complete("run_distill", ["--resume", "--save_dir", str(directory), "--teacher_views", "4"],
                    tmp_path / "refused") == 2
    assert "--teacher_views 3 there, 4 here" in (tmp_path / "refused").read_text() and content(directory) == before


def test_a_run_of_before_these_options_goes_on(whole, tmp_path):
    shutil.copytree(str(whole), str(tmp_path / "old"))
    path = str(tmp_path / "old" / "checkpoint.pth")
    state = torch.load(path)
    for name in ("crop", "views"):
        del state["options"][name]
    torch.save(state, path)
    for name in ("old", "new"):
        if name == "new":
            shutil.copytree(str(whole), str(tmp_path / "new"))
        assert complete("run", ["--resume", "--epochs", "4", "--workers", "0", "--save_dir", str(tmp_path / name)],
                        tmp_path / "out") == 0
    assert_same_run(tmp_path / "old", tmp_path / "new")


def test_a_loading_process_gets_the_path_of_a_file_and_the_numbers_of_memory(teacher, tmp_path):
    assert run_distill.main(argv(teacher, "--cache", tmp_path / "cache", "--workers", "1")) == 0
    path, = kept(tmp_path / "cache")
    numbers = array_of(path)
    for table, most in ((open_table(path), 500), (CropTable(numbers), 3000)):
        for _ in range(2):  # before and after it was read from
            sent = pickle.dumps(table)
            assert len(sent) < most
            assert np.array_equal(pickle.loads(sent).rows([2, 0], [3, 17]), numbers[[2, 0], [3, 17]])
            table.rows([0], [0])


def _stop_in_the_second_view():
    original, calls = teacherviews.embed, []

    def embed(*args):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    teacherviews.embed = embed


def test_a_signal_ends_the_computation_and_leaves_nothing(teacher, tmp_path):
    place = tmp_path / "cache"
    process = start("run_distill", argv(teacher, "--cache", place, "--save_dir", tmp_path / "run"), tmp_path / "out",
                    _stop_in_the_second_view)
    assert finish(process) == 128 + signal.SIGTERM
    assert (tmp_path / "out").read_text().splitlines()[-1].startswith("run_distill.py: error: interrupted by SIGTERM")
    assert [name for name in os.listdir(str(place)) if ".uint8" not in name] == [] and not (tmp_path / "run").exists()


def test_two_processes_compute_them_together(teacher, tmp_path):
    for name, count in (("alone", 1), ("two", 2)):
        more = ["--cache", tmp_path / name, "--save_dir", tmp_path / (name + "_run"), "--batch", "9"]
        assert codes(start_ranks(count, "run_distill", argv(teacher, *more), tmp_path / (name + "_out"))) == [0] * count
    alone, two = (kept(tmp_path / name) for name in ("alone", "two"))
    assert len(alone) == len(two) == 1
    assert np.allclose(array_of(alone[0]), array_of(two[0]), rtol=0, atol=1e-6)
    text = (tmp_path / "two_out0").read_text()
    assert text.count("Teacher views: 3 crops of each of 18 pictures, embedded once") == 1
    logs = [json.loads((tmp_path / (name + "_run") / "log.jsonl").read_text().splitlines()[0])
            for name in ("alone", "two")]
    assert logs[0]["recall"] == logs[1]["recall"]
    more = ["--cache", tmp_path / "two", "--batch", "9"]
    assert codes(start_ranks(2, "run_distill", argv(teacher, *more), tmp_path / "again")) == [0, 0]
    assert "embedded before" in (tmp_path / "again0").read_text()


def test_two_runs_side_by_side_compute_them_once(teacher, tmp_path):
    more = ["--cache", tmp_path / "cache", "--save_dir"]
    processes = [start("run_distill", argv(teacher, *more, tmp_path / name), tmp_path / "out") for name in "ab"]
    assert [finish(process) for process in processes] == [0, 0]
    assert_same_run(tmp_path / "a", tmp_path / "b")
    text = (tmp_path / "out").read_text()
    assert text.count("embedded once") == 1 and text.count("embedded before") == 1


def _hold(path, ready, done):
    with locked(path + ".lock"):
        ready.write_text("")
        while not done.exists():
            time.sleep(0.01)


def test_the_first_rank_of_another_machine_does_not_wait_for_a_lock(tmp_path, monkeypatch):
    """Its disk may be that of the first rank, which writes, and waits for all others."""
    path, ready, done = str(tmp_path / ("0" * 32 + TABLE_SUFFIX)), tmp_path / "ready", tmp_path / "done"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ranks, "local", lambda: (0, 1))
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(path, ready, done))
    holder.start()
    try:
        wait_for(holder, ready.exists)
        with contextlib.ExitStack() as held:
            assert teacherviews._hold(held, path) == "another process is just writing them"
    finally:
        done.write_text("")
        holder.join()


def test_they_are_listed_and_removed(teacher, tmp_path, capsys):
    place = tmp_path / "cache"
    assert run_distill.main(argv(teacher, "--cache", place)) == 0
    path, = kept(place)
    capsys.readouterr()
    assert caches.main([str(place)]) == 0
    line, = [line for line in capsys.readouterr().out.splitlines() if path in line]
    assert "3 x 8 numbers of 18 pictures in " in line
    assert "embeddings of a TinyResNet with 8 dimensions, L2-normalised, computed 20" in line
    assert caches.main([str(place), "--clear"]) == 0
    assert not place.exists() or os.listdir(str(place)) == []


def test_the_same_pictures_without_some_have_a_file_of_their_own(pictures, tmp_path):
    paths = [str(path) for path in sorted(pictures.glob("*/*.png"))]
    whole = open_pictures(paths, 37, str(tmp_path))
    found = {table_path(each, {}) for each in (whole, whole.without({3: "single"}), whole.without({4: "single"}))}
    assert len(found) == 3 and table_path(open_pictures(paths, 37, "off"), {}) is None


def test_pictures_that_are_left_out_have_no_embeddings(tmp_path):
    data = make_pictures(tmp_path / "set")
    teacher_dir = tmp_path / "teacher"
    assert complete("run", argv_for(data, teacher_dir, "--epochs", "1"), tmp_path / "out") == 0
    with open(str(data / "class00" / "02.png"), "r+b") as file:
        file.truncate(100)
    place = tmp_path / "cache"
    assert run_distill.main(argv(teacher_dir, "--cache", place, "--skip_broken")) == 0
    path, = kept(place)
    assert open_table(path).shape == (3, 17, 8)
