"""Pictures decoded once: the same pixels, up to date, used by several processes, and skipped if there is no room."""
import json
import multiprocessing
import os
import shutil
import signal
import threading
import types

import numpy as np
import pytest
from PIL import Image

import run
from conftest import make_pictures, options_for
from dataset import (BrokenPicturesError, DatasetError, FolderMetric, cache, caches, decoding, files, load_resized,
                     open_pictures)
from processes import complete


def paths_of(root):
    return [path for split in (True, False) for path, _ in FolderMetric(str(root), train=split).samples]


def kept(folder):
    return sorted(name for name in os.listdir(str(folder)) if name.endswith(cache.SUFFIX))


def test_pixels_are_those_of_decoding_each_time(pictures, tmp_path):
    paths = paths_of(pictures)
    cached = open_pictures(paths, 37, str(tmp_path))
    assert isinstance(cached, cache.CachedPictures) and isinstance(open_pictures(paths, 37, "off"),
                                                                   decoding.DecodedPictures)
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


def _swapped(first, second):
    """Swap two files, or two folders; what is in them keeps its size and its time."""
    os.rename(first, first + ".aside")
    os.rename(second, first)
    os.rename(first + ".aside", second)


def _swapped_folders(first, second):
    _swapped(os.path.dirname(first), os.path.dirname(second))


def _copied_with_its_time(first, second):
    shutil.copy2(second, first)


def _linked_elsewhere(first, second):
    os.remove(first)
    os.symlink(second, first)


def _restored(first, second):
    """Written over in place, and the time put back, as a backup does."""
    before = os.stat(first)
    with open(second, "rb") as source, open(first, "r+b") as file:
        file.write(source.read())
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [_swapped, _swapped_folders, _copied_with_its_time, _linked_elsewhere, _restored])
def test_other_pictures_of_the_same_size_and_time(own_pictures, tmp_path, change):
    for path in paths_of(own_pictures):  # BMP: the size says nothing of the content
        with Image.open(path) as picture:
            picture.save(path[:-len("png")] + "bmp")
        os.remove(path)
    paths = paths_of(own_pictures)
    for path in paths:
        os.utime(path, (10 ** 9, 10 ** 9))
    before = open_pictures(paths, 37, str(tmp_path / "cache")).checksums()
    change(paths[0], paths[20])
    found = open_pictures(paths, 37, str(tmp_path / "cache"))
    assert all(np.array_equal(found[index], load_resized(path, 37)) for index, path in enumerate(paths))
    assert found.checksums() == open_pictures(paths, 37, "off").checksums() != before


def test_an_inode_tells_pictures_apart_where_times_do_not(own_pictures, tmp_path, monkeypatch):
    paths, original = paths_of(own_pictures), os.stat

    def stat(path, **options):
        status = original(path, **options)
        return types.SimpleNamespace(st_size=1, st_mtime_ns=1, st_ctime_ns=1, st_ino=status.st_ino,
                                     st_mode=status.st_mode)

    monkeypatch.setattr(cache.os, "stat", stat)
    before = cache._name(decoding.DecodedPictures(paths, 37))
    _swapped(paths[0], paths[20])
    after = cache._name(decoding.DecodedPictures(paths, 37))
    assert before != after and before[:16] == after[:16]


def test_older_caches_are_told(own_pictures, tmp_path, capsys):
    paths = paths_of(own_pictures)
    open_pictures(paths[:3], 37, str(tmp_path))
    open_pictures(paths, 37, str(tmp_path))
    assert "older of these" not in capsys.readouterr().out
    os.utime(paths[0])
    open_pictures(paths, 37, str(tmp_path))
    assert "1 older of these pictures (0.00 GB) there: python3 -m dataset.caches" in capsys.readouterr().out


def test_a_cache_among_class_folders_is_refused(pictures, capsys):
    assert run.main(options_for(pictures, "--cache", pictures / "cache")) == 2
    assert "among the class folders" in capsys.readouterr().err and not (pictures / "cache").exists()


def test_caches_are_listed_and_removed(own_pictures, tmp_path, capsys):
    others = make_pictures(tmp_path / "others", seed=1)
    for root in (own_pictures, others):
        assert run.main(options_for(root, "--epochs", "1")) == 0
    assert not (others / cache.FOLDER).exists()  # class folders lie there
    capsys.readouterr()
    for argv, of_own, of_others in (([], 2, 2), ([str(own_pictures), "--clear"], 2, 0), ([], 0, 2)):
        assert caches.main(argv) == 0
        out = capsys.readouterr().out
        lines = [line for line in out.splitlines() if "18 pictures of 37 x 37" in line]
        counts = [sum(" in {}, decoded".format(root) in line for line in lines) for root in (own_pictures, others)]
        assert counts == [of_own, of_others] and ("removed" in out) == ("--clear" in argv)


def test_a_cache_that_is_being_made_is_not_removed(pictures, tmp_path, capsys):
    open_pictures(paths_of(pictures), 37, str(tmp_path))
    path = str(tmp_path / kept(tmp_path)[0])
    with files.locked(path + ".lock"):
        assert complete("dataset.caches", [str(tmp_path), "--clear"], tmp_path / "out") == 0
    assert "is being made now: kept" in (tmp_path / "out").read_text() and kept(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ("0" * 32 + ".uint8.broken")).write_text("{}")  # of an earlier version
    (tmp_path / "old" / ("0" * 32 + ".uint8.bak")).write_text("the user's own")
    assert caches.main([str(tmp_path), str(tmp_path / "old"), "--clear"]) == 0
    assert not kept(tmp_path) and os.listdir(str(tmp_path / "old")) == ["0" * 32 + ".uint8.bak"]
    assert "not whole, or of another version" in capsys.readouterr().out


def test_half_a_cache_is_not_taken_for_a_whole_one(pictures, tmp_path):
    paths = paths_of(pictures)
    open_pictures(paths, 37, str(tmp_path))
    path = str(tmp_path / kept(tmp_path)[0])
    os.truncate(path, os.path.getsize(path) // 2)
    remains = [files.ASIDE.format(name, 999999) for name in (path, path + cache.CONTENTS)]
    for name in remains:
        open(name, "wb").close()
    assert np.array_equal(open_pictures(paths, 37, str(tmp_path))[-1], load_resized(paths[-1], 37))
    assert not any(os.path.exists(name) for name in remains)


def _contents(**changes):
    contents = {"folder": "x", "side": 37, "checksums": [0] * 36, "broken": {"2": "x"}}
    return json.dumps(dict(contents, **changes)).encode()


@pytest.mark.parametrize("content", [
    None, b"", b"{", b"\xff", b"[]", b"[" * 100000, b"{}", _contents(broken={"36": "x"}), _contents(broken={"-1": "x"}),
    _contents(broken={"2": 3}), _contents(broken={"two": "x"}), _contents(broken=[]), _contents(checksums=[0] * 35),
    _contents(checksums=["0"] * 36), _contents(checksums=3), _contents(side="37"), _contents(folder=3)])
@pytest.mark.parametrize("broken", [[], [2, 35]])
def test_a_cache_whose_contents_are_not_told_is_made_anew(own_pictures, tmp_path, capsys, content, broken):
    paths = paths_of(own_pictures)
    for index in broken:
        with open(paths[index], "wb") as file:
            file.write(b"no picture")
    expected = open_pictures(paths, 37, str(tmp_path / "cache"), skip_broken=True)
    listed = tmp_path / "cache" / (kept(tmp_path / "cache")[0] + cache.CONTENTS)
    assert sorted(expected.skipped) == broken and listed.exists()
    if content is None:
        listed.unlink()
    else:
        listed.write_bytes(content)
    capsys.readouterr()
    found = open_pictures(paths, 37, str(tmp_path / "cache"), skip_broken=True)
    assert "decoded once" in capsys.readouterr().out
    assert found.skipped == expected.skipped and found.checksums() == expected.checksums()
    assert np.array_equal(found[5], expected[5])
    assert sorted(os.listdir(str(tmp_path / "cache"))) == kept(tmp_path / "cache") + [listed.name]


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
    assert isinstance(open_pictures(paths, 37, str(tmp_path)), decoding.DecodedPictures)
    out = capsys.readouterr().out
    assert out.startswith("Cache: none for the pictures") and len(out.splitlines()) == 1


def _limit_files_to(size):
    resource = pytest.importorskip("resource")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_fills_up_meanwhile_is_one_line(pictures, tmp_path):
    argv = options_for(pictures, "--cache", tmp_path / "cache", "--epochs", "1")
    limit = 18 * 37 * 37 * 3 // 2  # half of one set
    assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 0
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if "Cache: none for the" in line]
    assert len(lines) == 2 and all("File too large" in line for line in lines)
    assert [name for name in os.listdir(str(tmp_path / "cache")) if not name.endswith(".lock")] == []


def test_a_folder_that_can_not_be_made(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", tmp_path / "file"):
        with pytest.raises(DatasetError, match="--cache .*file.* can't be written"):
            open_pictures(paths_of(pictures), 37, str(folder))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interruption_leaves_nothing(own_pictures, tmp_path, capsys, monkeypatch):
    def decode(path, *options):
        monkeypatch.setattr(decoding, "load_resized", load_resized)
        assert list(tmp_path.glob(files.ASIDE.format("cache/*", "*")))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return load_resized(path, *options)

    monkeypatch.setattr(decoding, "load_resized", decode)
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
