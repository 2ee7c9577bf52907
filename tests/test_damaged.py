"""Damaged pictures and weights: each is read as a person would read it, or named in one line; no file is lost."""
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import run
import run_distill
from conftest import make_pictures, options_for
from dataset import DatasetError, load_resized
from dataset.base import open_image
from model.compat import TORCH_VERSION
from runs import assert_same_run, finish, start, wait_for

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
GREY = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 40 // 256)[..., None].repeat(3, 2)
WHITE_TOP = np.where((np.arange(SIDE) < SIDE // 2)[:, None, None], 255, PIXELS)


@pytest.mark.parametrize("make, expected, tolerance", [
    (cmyk, PIXELS, 40), (palette, PIXELS, 0), (sixteen_bits, GREY, 0), (transparent, WHITE_TOP, 0),
    (held_upright, PIXELS, 0), (one_pixel, np.full((1, 1, 3), (10, 20, 30)), 0), (odd_name, PIXELS, 0),
])
def test_readable_pictures_are_what_a_person_sees(tmp_path, make, expected, tolerance):
    path = str(tmp_path / "one.png")
    make(path)
    found = np.asarray(open_image(path)).astype(int)
    assert found.shape == expected.shape
    assert np.mean(np.abs(found - expected) > tolerance) <= (0.05 if tolerance else 0)  # JPEG blurs edges
    assert load_resized(path, 7).shape == (7, 7, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(tmp_path, orientation):
    undone = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
              6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}
    image = _picture() if orientation == 1 else _picture().transpose(undone[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(str(tmp_path / "one.png"), exif=exif.tobytes())
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "one.png"))), PIXELS)


def test_a_broken_camera_note_is_no_reason_to_refuse(tmp_path):
    path = str(tmp_path / "one.jpg")
    _picture().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    assert open_image(path).size == (SIDE, SIDE)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pictures_of_unclear_range_are_named(tmp_path, mode):
    path = str(tmp_path / "one.tif")
    Image.fromarray(np.full((4, 4), 1e6, np.float32 if mode == "F" else np.int32)).save(path)
    with pytest.raises(DatasetError, match="convert it to 8"):
        open_image(path)


def answer(capsys, main, argv):
    capsys.readouterr()
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip()


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


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_that_disappears_in_mid_run(own_pictures, tmp_path, workers):
    directory, path = tmp_path / "run", own_pictures / "class01" / "02.png"
    fixed = ["--cache", "off", "--epochs", "4", "--workers", workers]
    process = start("run", options_for(own_pictures, *fixed, "--iter_per_epoch", "20", "--save_dir", str(directory)),
                    tmp_path / "out")
    wait_for((directory / "speed.jsonl").exists)
    shutil.move(str(path), str(tmp_path / "away.png"))
    assert finish(process) == 2
    out = (tmp_path / "out").read_text()
    assert str(path) in out.splitlines()[-1] and "Traceback" not in out
    assert "to go on: python3 run.py --resume --save_dir {}".format(directory) in out
    shutil.move(str(tmp_path / "away.png"), str(path))
    for name, more in (("run", ["--resume"]), ("whole", [])):
        process = start("run", options_for(own_pictures, *fixed, "--iter_per_epoch", "20", "--save_dir",
                                           str(tmp_path / name), *more), tmp_path / "out")
        assert finish(process) == 0
    assert_same_run(directory, tmp_path / "whole")


# Weights


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(options_for(pictures, "--save_dir", str(directory), "--epochs", "1")) == 0
    return directory


class Code:
    def __reduce__(self):
        return os.mkdir, (Code.path,)


def cut_short(path):
    os.truncate(path, os.path.getsize(path) * 2 // 3)


def flipped_bytes(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) - 400)  # the list of the archive
        file.write(b"\0" * 64)


def text(path):
    with open(path, "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def bare_code(path):
    with open(path, "wb") as file:
        pickle.dump({"linear.weight": Code()}, file)


def code_in_torch(path):
    torch.save({"linear.weight": Code()}, path)


def code_in_old_torch(path):
    torch.save({"linear.weight": Code()}, path, _use_new_zipfile_serialization=False)


def other_objects(path):
    torch.save(torch.nn.Linear(2, 2), path)


def numbers(path):
    torch.save([1, 2, 3], path)


def other_network(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def not_finite(path):
    content = torch.load(path)
    weights = content.get("network", content)
    weights["linear.weight"][0, 0] = float("nan")
    torch.save(content, path)


DAMAGES = [zero_bytes, cut_short, flipped_bytes, text, other_zip, bare_code, code_in_torch, code_in_old_torch,
           other_objects, numbers, other_network, not_finite]


def content(directory):
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(str(directory)))}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights_are_one_line(trained, tmp_path, capsys, damage):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    Code.path = str(tmp_path / "code was run")
    for name in "best.pth", "checkpoint.pth":
        damage(str(directory / name))
    before = content(directory)
    best = directory / "best.pth"
    for main, argv, named in (
            (run.main, ["--mode", "eval", "--load", best], best),
            (run.main, ["--load", best, "--save_dir", tmp_path / "new"], best),
            (run.main, ["--resume", "--save_dir", directory, "--epochs", "2"], directory / "checkpoint.pth"),
            (run_distill.main, ["--teacher_load", best, "--dist_ratio", "1", "--pretrained", "none"], best)):
        code, _, err = answer(capsys, main, argv)
        assert code == 2 and len(err.splitlines()) == 1 and str(named) in err, err
    assert content(directory) == before
    assert not os.path.exists(Code.path) and not (tmp_path / "new").exists()
    expected = {bare_code: "can run code", code_in_torch: "can run code", not_finite: "not finite, first in linear"}
    assert expected.get(damage, "") in err


def test_the_code_would_have_run(tmp_path):
    Code.path = str(tmp_path / "code was run")
    code_in_torch(str(tmp_path / "code.pth"))
    torch.load(str(tmp_path / "code.pth"), **({"weights_only": False} if TORCH_VERSION >= (1, 13) else {}))
    assert os.path.exists(Code.path)


def _forget_optimizer(state):
    del state["training"]["optimizer"]


def _forget_parameter(state):
    state["training"]["optimizer"]["param_groups"][0]["params"].pop()


def _other_version(state):
    state["version"] = 99


def _other_shape(state):
    state["network"]["linear.weight"] = torch.zeros(9, 512)


def _odd_option(state):
    state["options"]["epochs"] = "many"


def _other_options(state):
    state["options"]["margin"] = 0.7


def _no_position(state):
    state["progress"] = {"epoch": 1}


def _no_random_state(state):
    state["training"]["random"]["torch"] = torch.zeros(3)


@pytest.mark.parametrize("spoil, expected", [
    (_forget_optimizer, "does not fit this run"), (_forget_parameter, "does not fit this run"),
    (_other_version, "another version of this project"), (_other_shape, "does not fit this run"),
    (_odd_option, "gives --epochs the value 'many'"), (_other_options, "is not of the run that config.json"),
    (_no_position, "does not say how far"), (_no_random_state, "does not fit this run"),
])
def test_a_state_that_does_not_fit_is_one_line(trained, tmp_path, capsys, spoil, expected):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    state = torch.load(str(directory / "checkpoint.pth"))
    spoil(state)
    torch.save(state, str(directory / "checkpoint.pth"))
    before = content(directory)
    code, _, err = answer(capsys, run.main, ["--resume", "--save_dir", directory, "--workers", "0"])
    assert code == 2 and len(err.splitlines()) == 1 and expected in err and "checkpoint.pth" in err
    assert content(directory) == before


def test_a_state_is_not_taken_for_weights(trained, capsys):
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", trained / "checkpoint.pth"])
    assert code == 2 and "is the state of a run, for --resume; the weights are in best.pth" in err


def test_the_test_set_needs_something_to_find(tmp_path, capsys):
    make_pictures(tmp_path / "set" / "train", classes=4)
    make_pictures(tmp_path / "set" / "test", classes=6, pictures=1)
    code, _, err = answer(capsys, run.main, options_for(tmp_path / "set"))
    assert code == 2 and "every class of the test set has a single picture" in err
