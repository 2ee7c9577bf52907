"""--resize short: the short side is resized and the middle square kept; what the default made before stays."""
import hashlib
import json
import os
import shutil

import numpy as np
import PIL
import pytest
from PIL import Image

import run
from conftest import make_pictures, options_for
from dataset import cache, decoding, load_resized, open_pictures
from model.compat import import_torchvision
from results import answer, failure

# (width, height): upright, flat, square, smaller than the result, long, odd differences that are rounded.
SIZES = [(60, 97), (123, 61), (50, 50), (20, 11), (500, 41), (41, 500), (77, 78), (38, 37), (90, 131)]


def noise(path, size):
    rng = np.random.default_rng(sum(size))
    Image.fromarray(rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)).save(str(path))
    return str(path)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [37, 64])
def test_short_is_torchvisions_resize_and_middle_square(tmp_path, size, side):
    path = noise(tmp_path / "x.png", size)
    transforms = import_torchvision().transforms
    expected = transforms.CenterCrop(side)(transforms.Resize(side)(Image.open(path)))
    found = load_resized(path, side, resize="short")
    assert found.shape == (side, side, 3) and found.dtype == np.uint8
    # Both round to whole values between the two passes; that and the box in float32 make a difference of 1 at most.
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_square_picture_is_the_same_both_ways(tmp_path):
    path = noise(tmp_path / "x.png", (90, 90))
    assert np.array_equal(load_resized(path, 64, resize="short"), load_resized(path, 64))
    path = noise(tmp_path / "x.png", (90, 60))
    assert not np.array_equal(load_resized(path, 64, resize="short"), load_resized(path, 64))


def test_a_long_strip_needs_no_memory_for_what_is_cut_off(tmp_path):
    path = str(tmp_path / "x.png")
    Image.new("L", (40000, 2), 7).save(path)  # resized as a whole: 1.3 million pixels wide, 250 MB
    assert np.array_equal(load_resized(path, 64, resize="short"), np.full((64, 64, 3), 7))


def test_caches_of_squares_keep_their_names(own_pictures, tmp_path):
    paths = [str(path) for path in sorted(own_pictures.glob("*/*.png"))]
    # As before there was another way to resize.
    which = hashlib.sha256("37 {}".format(len(paths)).encode())
    state = hashlib.sha256("{} refuse {}".format(cache.VERSION, PIL.__version__).encode())
    for path in paths:
        status = os.stat(path)
        which.update((path + "\n").encode())
        state.update("{}\n".format((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)).encode())
    name = which.hexdigest()[:16] + state.hexdigest()[:16] + ".uint8"
    assert cache._name(decoding.DecodedPictures(paths, 37)) == name
    for resize in ("square", "short"):
        pictures = open_pictures(paths, 37, str(tmp_path), resize=resize)
        assert (os.path.basename(pictures.path) == name) == (resize == "square")
        assert np.array_equal(pictures[3], load_resized(paths[3], 37, resize=resize))


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Pictures of which the middle square is a third."""
    return make_pictures(tmp_path_factory.mktemp("flat") / "set", size=(120, 40))


@pytest.fixture(scope="module")
def trained(flat, tmp_path_factory):
    """A run with --resize short."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(options_for(flat, "--resize", "short", "--epochs", "1", "--save_dir", directory)) == 0
    return directory


def recalls(capsys, *argv):
    """Return (the lines of recalls that --mode eval prints, all that it prints)."""
    code, out, err = answer(capsys, run.main, ["--mode", "eval", "--workers", "0", *argv])
    assert code == 0, err
    return [line for line in out.splitlines() if "Recall@" in line], out


def test_a_network_is_measured_as_it_was_trained(flat, trained, tmp_path, capsys):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    expected = ["{:.4f}".format(100 * log[-1]["recall"][split]["1"]) for split in ("train", "test")]
    found, out = recalls(capsys, "--load", trained / "last.pth")
    assert "--resize short" in out and [line.split("[")[2].split("]")[0] for line in found] == expected
    # Away from its run the file itself says it, and for other pictures it holds, too.
    shutil.copy(str(trained / "last.pth"), str(tmp_path / "alone.pth"))
    data = ["--dataset", "folder", "--data", flat]
    assert recalls(capsys, "--load", tmp_path / "alone.pth", *data)[0] == found
    _, out = recalls(capsys, "--load", trained / "last.pth", "--resize", "square")
    assert '"resize": "square"' in out


def test_the_shape_of_the_pictures_matters(flat, trained, tmp_path, capsys):
    directory = tmp_path / "square"
    assert answer(capsys, run.main, options_for(flat, "--epochs", "1", "--save_dir", directory))[0] == 0
    losses = [json.loads((path / "log.jsonl").read_text().splitlines()[1])["loss"] for path in (trained, directory)]
    assert losses[0] != losses[1]
    # What earlier versions kept doesn't say it, and means the square.
    config = json.loads((directory / "config.json").read_text())
    assert config["options"].pop("resize") == "square"
    (directory / "config.json").write_text(json.dumps(config))
    assert "--resize" not in recalls(capsys, "--load", directory / "last.pth")[1]


def test_a_network_that_goes_on_with_other_pictures_is_told(flat, trained, capsys):
    argv = options_for(flat, "--load", trained / "last.pth", "--epochs", "1")
    at = argv.index("--pretrained")
    code, out, _ = answer(capsys, run.main, argv[:at] + argv[at + 2:])
    assert code == 0 and "was trained with --resize short; this run takes square\n" in out


def test_an_odd_value_is_one_line(trained, tmp_path, capsys):
    shutil.copytree(str(trained), str(tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["options"]["resize"] = "long"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    line = failure(capsys, run.main, ["--mode", "eval", "--load", str(tmp_path / "run" / "last.pth")])
    assert "gives resize the value 'long'" in line
