"""Damaged pictures: each is read as a person would read it, or named in one line; no file is lost."""
import errno
import os
import shutil
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import run
from conftest import make_pictures, options_for
from dataset import DatasetError, open_pictures
from dataset.pictures import UnreadablePicture
from processes import at_step, complete, finish, start
from results import answer, assert_same_run

SIDE = 40
# Red at the top, blue at the bottom, a green corner: any turn or flip shows.
PIXELS = np.zeros((SIDE, SIDE, 3), np.uint8)
PIXELS[:SIDE // 2, :, 0] = 255
PIXELS[SIDE // 2:, :, 2] = 255
PIXELS[:10, :10] = (0, 255, 0)


def _picture():
    return Image.fromarray(PIXELS)


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(path, "JPEG")
    os.truncate(path, os.path.getsize(path) // 2)


def zero_bytes(path):
    open(path, "wb").close()


def no_picture(path):
    with open(path, "w") as file:
        file.write("<html>Not found</html>")


def bomb(path):
    """A small file that asks for 40 gigabytes."""
    Image.new("1", (1, 1)).save(path, "PNG")
    with open(path, "rb") as file:
        content = file.read()
    header = b"IHDR" + struct.pack(">II", 120000, 120000) + content[24:29]
    with open(path, "wb") as file:
        file.write(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


def dangling_link(path):
    os.symlink(path + ".gone", path)


def named_pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    here = os.getcwd()
    os.chdir(os.path.dirname(path))  # the name of a socket may have no more than 100 letters
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def device(path):
    os.symlink("/dev/zero", path)


def cmyk(path):
    _picture().convert("CMYK").save(path, "JPEG", quality=95)


def palette(path):
    _picture().quantize(16).save(path, "PNG")


def sixteen_bits(path):
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 40
    Image.fromarray(values).save(path, "PNG")


def transparent(path):
    image = _picture().convert("RGBA")
    image.putalpha(Image.fromarray((np.arange(SIDE * SIDE).reshape(SIDE, SIDE) >= SIDE * SIDE // 2).astype(np.uint8)
                                   * 255))
    image.save(path, "PNG")


def held_upright(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture().transpose(Image.ROTATE_90).save(path, "PNG", exif=exif.tobytes())


def one_pixel(path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(path, "PNG")


def odd_name(path):
    _picture().save(path, "PNG")


BROKEN = [truncated, zero_bytes, no_picture, bomb, dangling_link]
READABLE = [cmyk, palette, sixteen_bits, transparent, held_upright, one_pixel, odd_name]


@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("make", BROKEN + READABLE, ids=lambda make: make.__name__)
def test_a_run_over_it(own_pictures, tmp_path, capsys, make, cache):
    path = str(own_pictures / "class04" / u"00 z\u00fcrich \u9ce5.png")
    make(path)
    argv = options_for(own_pictures, "--epochs", "1", "--iter_per_epoch", "1", "--cache", cache, "--save_dir",
                       tmp_path / "run")
    code, out, err = answer(capsys, run.main, argv)
    if make in READABLE:
        assert code == 0 and err == ""
        return
    assert code == 2 and len(err.splitlines()) == 1 and path in err
    if make is dangling_link:
        assert os.path.islink(path)
    argv += ["--skip_broken"] + (["--overwrite"] if cache == "off" else [])
    code, out, err = answer(capsys, run.main, argv)
    assert (code, err) == (0, "") and "Skipped: 1 of 19 pictures of the test set" in out and path in out
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(path)
    # Once mended, it is in again; what was skipped before is not looked up in a list.
    os.remove(path)
    odd_name(path)
    code, out, err = answer(capsys, run.main, argv[:-1] + ["--skip_broken", "--overwrite"])
    assert code == 0 and "Skipped" not in out and not (tmp_path / "run" / "skipped.txt").exists()


def test_skipping_is_the_same_with_and_without_the_cache(own_pictures, tmp_path, capsys):
    for number, make in enumerate(BROKEN):
        make(str(own_pictures / "class0{}".format(number) / "03.jpg"))
    runs = []
    for name, cache in (("a", "auto"), ("b", "off"), ("c", "auto")):
        argv = options_for(own_pictures, "--skip_broken", "--cache", cache, "--save_dir", tmp_path / name)
        assert answer(capsys, run.main, argv)[0] == 0
        runs.append(tmp_path / name)
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])
    code, _, err = answer(capsys, run.main, options_for(own_pictures))
    assert code == 2 and len(err.splitlines()) == 4 and "3 of 21 pictures can't be read" in err


def test_skipping_leaves_enough_or_says_so(own_pictures, capsys):
    for name in os.listdir(str(own_pictures / "class00")):
        no_picture(str(own_pictures / "class00" / name))
    code, out, err = answer(capsys, run.main, options_for(own_pictures, "--skip_broken"))
    assert code == 2 and "--batch 8 is more than the training set can give: 2 classes" in err
    assert answer(capsys, run.main, options_for(own_pictures, "--skip_broken", "--batch", "6"))[0] == 0


@pytest.mark.parametrize("make", [named_pipe, unix_socket, device], ids=lambda make: make.__name__)
def test_what_is_no_file_is_not_opened(own_pictures, tmp_path, make):
    path = str(own_pictures / "class04" / "00 x.jpg")
    make(path)
    argv = options_for(own_pictures, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir", str(tmp_path / "run"))
    assert finish(start("run", argv, tmp_path / "out"), 60) == 2  # in a process, for it might wait for ever
    expected = "{}: a picture that can't be read (no regular file)".format(path)
    assert expected in (tmp_path / "out").read_text().splitlines()[-1]
    assert finish(start("run", argv + ["--skip_broken"], tmp_path / "out"), 60) == 0
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(expected)


SHORTAGES = [(MemoryError("no more"), MemoryError, "no more"),
             (OSError("out of memory error when reading image file"), DatasetError, "short of memory")] + [
    (OSError(number, os.strerror(number)), DatasetError, "short of " + what) for number, what in (
        (errno.EMFILE, "file descriptors"), (errno.ENFILE, "file descriptors"), (errno.ENOMEM, "memory"))]


@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("error, expected, message", SHORTAGES)
def test_what_the_machine_lacks_is_no_fault_of_a_picture(own_pictures, monkeypatch, error, expected, message, cache):
    paths = [str(own_pictures / "class00" / name) for name in sorted(os.listdir(str(own_pictures / "class00")))]
    original = Image.open

    def opened(file, **options):
        if file.name == paths[2]:
            raise error
        return original(file, **options)

    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(expected, match=message) as caught:
        open_pictures(paths, SIDE, cache, str(own_pictures), skip_broken=True)
    assert not isinstance(caught.value, UnreadablePicture)
    if expected is DatasetError:
        assert paths[2] in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not list((own_pictures / ".rkd-cache").glob("*.uint8*"))
    monkeypatch.undo()
    assert open_pictures(paths, SIDE, cache, str(own_pictures), skip_broken=True).skipped == {}


def _warn_of_every_picture():
    Image.MAX_IMAGE_PIXELS = 1500  # those here have 1,760: more than that, less than twice as many


def _refuse_every_picture():
    Image.MAX_IMAGE_PIXELS = 800


@pytest.mark.parametrize("prepare, code", [(_warn_of_every_picture, 0), (_refuse_every_picture, 2)])
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_large_pictures_pass_quietly_and_bombs_do_not(own_pictures, tmp_path, prepare, code, cache):
    argv = options_for(own_pictures, "--epochs", "1", "--iter_per_epoch", "1", "--cache", cache)
    assert complete("run", argv, tmp_path / "out", prepare) == code
    out = (tmp_path / "out").read_text()
    assert "Warning" not in out and ("exceeds limit" in out) == (code == 2)


@pytest.mark.parametrize("name, expected", [
    ("two\nlines.png", "two\\nlines.png"), ("a\r\x1b[2Jb.png", "a\\r\\x1b[2Jb.png"),
    (u"a\u2028b.png", "a\\u2028b.png"), ("out of memory.png", "out of memory.png"),
    (u"\u9ce5.png", u"\u9ce5.png")])
def test_a_name_is_shown_on_one_line(own_pictures, tmp_path, capsys, name, expected):
    no_picture(str(own_pictures / "class04" / name))
    expected = str(own_pictures / "class04" / expected)
    argv = options_for(own_pictures, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir", tmp_path / "run")
    code, _, err = answer(capsys, run.main, argv)
    assert code == 2 and len(err.splitlines()) == 1 and expected + ": " in err
    no_picture(str(own_pictures / "class04" / "00.png"))
    code, _, err = answer(capsys, run.main, argv)
    assert code == 2 and len(err.splitlines()) == 3 and expected + ": " in err
    assert answer(capsys, run.main, argv + ["--skip_broken"])[0] == 0
    lines = (tmp_path / "run" / "skipped.txt").read_bytes().decode("utf-8").splitlines()
    assert len(lines) == 2 and any(line.startswith(expected + ": ") for line in lines)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_that_disappears_in_mid_run(own_pictures, tmp_path, workers):
    directory, path = tmp_path / "run", own_pictures / "class01" / "02.png"
    fixed = ["--cache", "off", "--epochs", "4", "--workers", workers]
    argv = options_for(own_pictures, *fixed, "--iter_per_epoch", "20", "--save_dir", directory)
    assert complete("run", argv, tmp_path / "out", at_step, 5, os.rename, str(path), str(tmp_path / "away.png")) == 2
    out = (tmp_path / "out").read_text()
    assert str(path) in out.splitlines()[-1] and "Traceback" not in out
    assert "to go on: python3 run.py --resume --save_dir {}".format(directory) in out
    shutil.move(str(tmp_path / "away.png"), str(path))
    for name, more in (("run", ["--resume"]), ("whole", [])):
        argv = options_for(own_pictures, *fixed, "--iter_per_epoch", "20", "--save_dir", tmp_path / name, *more)
        assert complete("run", argv, tmp_path / "out") == 0
    assert_same_run(directory, tmp_path / "whole")


def test_the_test_set_needs_something_to_find(tmp_path, capsys):
    make_pictures(tmp_path / "set" / "train", classes=4)
    make_pictures(tmp_path / "set" / "test", classes=6, pictures=1)
    code, _, err = answer(capsys, run.main, options_for(tmp_path / "set"))
    assert code == 2 and "every class of the test set has a single picture" in err
