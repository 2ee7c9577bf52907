"""Pictures decoded once: the same pixels, up to date, used by several processes, and skipped if there is no room."""
import multiprocessing
import os
import shutil
import signal
import threading

import numpy as np
import pytest

import run
from conftest import make_pictures, options_for
from dataset import BrokenPicturesError, DatasetError, FolderMetric, cache, files, load_resized, open_pictures


def paths_of(root):
    return [path for split in (True, False) for path, _ in FolderMetric(str(root), train=split).samples]


def kept(folder):
    return sorted(name for name in os.listdir(str(folder)) if name.endswith(cache.SUFFIX))


def test_pixels_are_those_of_decoding_each_time(pictures, tmp_path):
    paths = paths_of(pictures)
    cached = open_pictures(paths, 37, str(tmp_path))
    assert isinstance(cached, cache.CachedPictures) and isinstance(open_pictures(paths, 37, "off"),
                                                                   cache.DecodedPictures)
    for index, path in enumerate(paths):
        assert np.array_equal(cached[index], load_resized(path, 37))


def test_made_once_and_anew_after_a_change(own_pictures, tmp_path, capsys, monkeypatch):
    paths = paths_of(own_pictures)
    open_pictures(paths, 37, str(tmp_path))
    assert "decoded once" in capsys.readouterr().out
    with monkeypatch.context() as context:
        context.setattr(cache, "_make", lambda *args: pytest.fail("made twice"))
        open_pictures(paths, 37, str(tmp_path))
    os.utime(paths[3], ns=(1, 1))
    open_pictures(paths, 37, str(tmp_path))
    open_pictures(paths, 38, str(tmp_path))
    shutil.copy(paths[4], paths[3])
    assert np.array_equal(open_pictures(paths, 37, str(tmp_path))[3], load_resized(paths[4], 37))
    assert len(kept(tmp_path)) == 4


def test_half_a_cache_is_not_taken_for_a_whole_one(pictures, tmp_path):
    paths = paths_of(pictures)
    open_pictures(paths, 37, str(tmp_path))
    path = str(tmp_path / kept(tmp_path)[0])
    os.truncate(path, os.path.getsize(path) // 2)
    remains = [files.ASIDE.format(name, 999999) for name in (path, path + cache.PROBLEMS)]
    for name in remains:
        open(name, "wb").close()
    assert np.array_equal(open_pictures(paths, 37, str(tmp_path))[-1], load_resized(paths[-1], 37))
    assert not any(os.path.exists(name) for name in remains)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100000, b'{"36": "x"}', b'{"-1": "x"}',
                                     b'{"2": 3}', b'{"two": "x"}'])
@pytest.mark.parametrize("broken", [[], [2, 35]])
def test_a_cache_with_half_a_list_of_broken_pictures_is_made_anew(own_pictures, tmp_path, capsys, content, broken):
    paths = paths_of(own_pictures)
    for index in broken:
        with open(paths[index], "wb") as file:
            file.write(b"no picture")
    expected = open_pictures(paths, 37, str(tmp_path / "cache"), skip_broken=True)
    listed = tmp_path / "cache" / (kept(tmp_path / "cache")[0] + cache.PROBLEMS)
    assert sorted(expected.skipped) == broken and listed.exists() == bool(broken)
    listed.write_bytes(content)
    capsys.readouterr()
    found = open_pictures(paths, 37, str(tmp_path / "cache"), skip_broken=True)
    assert "decoded once" in capsys.readouterr().out
    assert found.skipped == expected.skipped and listed.exists() == bool(broken)
    assert np.array_equal(found[5], expected[5])
    assert sorted(os.listdir(str(tmp_path / "cache"))) == kept(tmp_path / "cache") + ([listed.name] if broken else [])


def test_all_broken_pictures_are_listed(own_pictures, tmp_path, capsys):
    paths = paths_of(own_pictures)
    for path in paths[2], paths[20]:
        with open(path, "wb") as file:
            file.write(b"no picture")
    with pytest.raises(BrokenPicturesError, match="2 of 36 pictures can't be read") as caught:
        open_pictures(paths, 37, str(tmp_path))
    assert paths[2] in str(caught.value) and paths[20] in str(caught.value)
    assert kept(tmp_path) == []
    with open(paths[1], "wb"):  # two in the training set now
        pass
    assert run.main(options_for(own_pictures)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("run.py: error: 2 of 18") and paths[1] in lines[1]


def test_no_room_is_one_line(pictures, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    paths = paths_of(pictures)
    assert isinstance(open_pictures(paths, 37, str(tmp_path)), cache.DecodedPictures)
    out = capsys.readouterr().out
    assert out.startswith("Cache: none for the pictures") and len(out.splitlines()) == 1


def _full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [_full, lambda file, data, offset: len(data) // 2])
def test_a_disk_that_fills_up_meanwhile_is_one_line(pictures, tmp_path, capsys, monkeypatch, write):
    monkeypatch.setattr(cache.os, "pwrite", write)
    assert isinstance(open_pictures(paths_of(pictures), 37, str(tmp_path)), cache.DecodedPictures)
    assert "No space left" in capsys.readouterr().out
    assert [name for name in os.listdir(str(tmp_path)) if not name.endswith(".lock")] == []


def test_a_folder_that_can_not_be_made(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", tmp_path / "file"):
        with pytest.raises(DatasetError, match="--cache .*file.* can't be written"):
            open_pictures(paths_of(pictures), 37, str(folder))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interruption_leaves_nothing(own_pictures, tmp_path, capsys, monkeypatch):
    def decode(path, side):
        monkeypatch.setattr(cache, "load_resized", load_resized)
        assert list(tmp_path.glob(files.ASIDE.format("cache/*", "*")))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return load_resized(path, side)

    monkeypatch.setattr(cache, "load_resized", decode)
    # A shell's background job ignores SIGINT, and so would this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run.main(options_for(own_pictures, "--cache", str(tmp_path / "cache"))) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [name for name in os.listdir(str(tmp_path / "cache")) if not name.endswith(".lock")] == []


def _first_pixel(arguments):
    paths, folder = arguments
    return int(open_pictures(paths, 64, folder)[0][0, 0, 0])


def test_processes_that_start_together_make_it_once(tmp_path, capfd):
    paths = paths_of(make_pictures(tmp_path / "set", pictures=20))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pixels = pool.map(_first_pixel, [(paths, str(tmp_path / "cache"))] * 3, chunksize=1)
    assert pixels == [int(load_resized(paths[0], 64)[0, 0, 0])] * 3
    assert capfd.readouterr().out.count("decoded once") == 1


def test_a_run_is_the_same_with_and_without(pictures, tmp_path, capsys):
    weights = []
    for name, where in (("with", str(tmp_path / "cache")), ("without", "off")):
        assert run.main(options_for(pictures, "--save_dir", str(tmp_path / name), "--cache", where, "--workers",
                                    "1")) == 0
        with open(str(tmp_path / name / "last.pth"), "rb") as file:
            weights.append(file.read())
    recalls = [line for line in capsys.readouterr().out.splitlines() if "Recall@" in line]
    assert recalls[:len(recalls) // 2] == recalls[len(recalls) // 2:]
    assert weights[0] == weights[1] and len(kept(tmp_path / "cache")) == 2
