"""--mode embed: what a gallery holds, and that nothing is lost when its making is interrupted."""
import csv
import itertools
import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch

import run
from dataset import load_resized, load_splits, resized_size
from engine.gallery import embedding, partial
from engine.gallery.files import Gallery, as_stored
from engine.networks import build_network, read_network_file
from model import LinearEmbedding, digest_of_network
from processes import complete
from results import answer, failure
from tiny import TinyResNet


def save_network(path, size):
    """Save a network of ``size`` dimensions for pictures of 32 pixels, and return its path."""
    torch.manual_seed(1)
    network = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, size, False, 32)
    torch.save(network.state_dict(), str(path))
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("weights") / "best.pth", 5)


def argv_of(weights, data, out, *more):
    return [str(word) for word in ("--mode", "embed", "--load", weights, "--dataset", "folder", "--data", data, "--out",
                                   out, "--device", "cpu", "--workers", "0", "--batch", "4") + more]


def embedded(weights, paths):
    """The embeddings of pictures, one by one."""
    file = read_network_file(weights)
    network, side, rows = build_network(file.options, file).eval(), resized_size(32), []
    first = (side - 32) // 2
    for path in paths:
        picture = torch.from_numpy(load_resized(path, side)[first:first + 32, first:first + 32].copy())
        with torch.no_grad():
            rows.append(network(picture.permute(2, 0, 1).unsqueeze(0))[0])
    return torch.stack(rows).numpy()


def texts(array):
    return [text.decode() for text in array]


def test_a_gallery_holds_each_picture_once_with_all_that_is_known_of_it(weights, pictures, tmp_path, capsys):
    out = tmp_path / "all.npz"
    code, printed, errors = answer(capsys, run.main, argv_of(weights, pictures, out, "--workers", "1"))
    assert code == 0, errors
    assert "Gallery: {}, 36 pictures, 5 dimensions, float32".format(out) in printed
    assert os.listdir(str(tmp_path)) == ["all.npz"]
    options = json.loads(printed.split("Options: ")[1].split("\n")[0])
    assert {"store", "seed", "batch"} <= set(options) and not {"lr", "query", "int8"} & set(options)
    found, samples = np.load(str(out)), []
    for split, images in load_splits("folder", str(pictures)).items():
        names = {label: name for name, label in images.class_to_idx.items()}
        samples += [(path, names[label], split) for path, label in images.samples]
    about = json.loads(found["about"].item())
    assert [(os.path.join(about["folder"], path), *rest) for path, *rest in zip(
        *map(texts, (found["paths"], found["labels"], found["splits"])))] == samples
    np.testing.assert_allclose(found["embeddings"], embedded(weights, [path for path, _, _ in samples]), atol=1e-5)
    file = read_network_file(weights)
    assert about["network"] == digest_of_network(build_network(file.options, file))
    assert about["options"] == {"base": "tiny", "embedding_size": 5, "l2normalize": False, "pool": "avg",
                                "image_size": 32, "resize": "square"}
    assert (about["folder"], about["load"], about["skipped"]) == (str(pictures), weights, [])
    assert "all.npz is there; --overwrite replaces it" in failure(capsys, run.main, argv_of(weights, pictures, out))


@pytest.mark.parametrize("store, tolerance", [("float32", 0), ("float16", 1e-3), ("int8", 0.5 / 127 + 1e-6)])
def test_what_is_stored(weights, pictures, tmp_path, capsys, store, tolerance):
    galleries = []
    for name in ("g.npz", "g.npy"):
        assert answer(capsys, run.main, argv_of(weights, pictures, tmp_path / name, "--store", store))[0] == 0
        galleries.append(Gallery(str(tmp_path / name)))
    archive, three = galleries
    stored = np.load(str(tmp_path / "g.npz"))
    assert stored["embeddings"].dtype == store
    assert np.array_equal(stored["embeddings"], np.load(str(tmp_path / "g.npy")))
    assert torch.equal(archive[:], three[:]) and torch.equal(archive[30:33], archive[:][30:33])
    assert [archive.entry(row) for row in range(36)] == [three.entry(row) for row in range(36)]
    assert archive.about == three.about == json.load(open(str(tmp_path / "g.json")))
    with open(str(tmp_path / "g.csv"), newline="") as file:
        lines = list(csv.DictReader(file))
    exact = embedded(weights, [str(pictures / line["path"]) for line in lines])
    largest = np.abs(exact).max(1, keepdims=True)
    assert (np.abs(archive[:].numpy() - exact) <= tolerance * largest + 1e-5).all()
    if store == "int8":
        rows = stored["embeddings"] * stored["scales"][:, None]
        assert (np.abs(stored["embeddings"]).max(1) == 127).all() and np.array_equal(rows, archive[:].numpy())


def test_a_blank_embedding_has_a_scale_of_zero():
    stored = as_stored(np.zeros((2, 3), np.float32), "int8")
    assert stored["embeddings"].tolist() == [[0] * 3] * 2 and stored["scales"].tolist() == [0, 0]


def test_a_folder_without_classes(weights, pictures, tmp_path, capsys):
    flat, mixed = tmp_path / "flat", tmp_path / "mixed"
    shutil.copytree(str(pictures / "class00"), str(flat))
    (flat / "notes.txt").write_text("")
    shutil.copytree(str(pictures), str(mixed))
    shutil.copy(str(flat / "00.png"), str(mixed / "\u00fcber.png"))
    for folder, count, first in ((flat, 6, "00.png"), (mixed, 37, "\u00fcber.png")):
        out = tmp_path / (folder.name + ".npz")
        code, printed, errors = answer(capsys, run.main, argv_of(weights, folder, out))
        assert code == 0, errors
        assert "all pictures in it and below it, without labels (it holds pictures itself)" in printed
        gallery = Gallery(str(out))
        assert len(gallery) == count and gallery.entry(0) == (first, "", "all")
    # A single class folder is no set to train on, and yet pictures to embed.
    code, printed, _ = answer(capsys, run.main, argv_of(weights, _alone(tmp_path, flat), tmp_path / "one.npz"))
    assert code == 0 and "only one class folder in it" in printed
    assert Gallery(str(tmp_path / "one.npz")).entry(0) == (os.path.join("flat", "00.png"), "", "all")


def _alone(tmp_path, folder):
    shutil.copytree(str(folder), str(tmp_path / "alone" / folder.name))
    return tmp_path / "alone"


# Interrupted.

def _at_write(count, function, *arguments):
    """Let the run call ``function(*arguments)`` in its ``count``-th write of rows, and flush after every second batch.
    """
    original, writes = partial.Partial.write, itertools.count(1)

    def written(self, *rows):
        original(self, *rows)
        if next(writes) == count:
            function(*arguments)

    partial.Partial.write, embedding.FLUSHED_EVERY = written, 2


def _limit_files_to(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _kill(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("store, number", [("float32", signal.SIGKILL), ("int8", signal.SIGTERM)])
def test_the_same_command_goes_on(weights, pictures, tmp_path, capsys, store, number):
    whole, out = tmp_path / "whole.npz", tmp_path / "cut.npz"
    assert answer(capsys, run.main, argv_of(weights, pictures, whole, "--store", store))[0] == 0
    argv = argv_of(weights, pictures, out, "--store", store)
    code = complete("run", argv, tmp_path / "out", _at_write, 6, _kill, number)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert not out.exists()
    done = 16 if number == signal.SIGKILL else 22  # what was flushed; a killed one leaves what it wrote after that
    if number == signal.SIGTERM:
        assert (tmp_path / "out").read_text().splitlines()[-1] == (
            "run.py: error: interrupted by SIGTERM; 22 of 36 pictures are in {}.partial; the same command goes "
            "on".format(out))
    code, printed, errors = answer(capsys, run.main, argv)
    assert code == 0, errors
    assert "Goes on: {} of 36 pictures".format(done) in printed and "Embedded: {} pictures".format(36 - done) in printed
    assert out.read_bytes() == whole.read_bytes() and not (tmp_path / "cut.npz.partial").exists()


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_a_full_disk_leaves_what_was_done(pictures, tmp_path, capsys, ending):
    out, row = tmp_path / ("full" + ending), 4 * 512
    (tmp_path / "network").mkdir()
    argv = argv_of(save_network(tmp_path / "network" / "best.pth", 512), pictures, out)
    # A disk that takes the first 30 pictures, then one that takes all rows but not the gallery.
    for limit, words in ((30 * row, ending + ".partial can't be written (File too large)"),
                         (36 * row + 64, "can't be written (File too large)")):
        assert complete("run", argv, tmp_path / "out", _limit_files_to, limit) == 1
        last = (tmp_path / "out").read_text().splitlines()[-1]
        assert words in last and last.endswith("make room, and the same command goes on")
        assert sorted(os.listdir(str(tmp_path))) == ["full" + ending + ".partial", "network", "out"]
    code, printed, _ = answer(capsys, run.main, argv)
    assert code == 0 and "Goes on: 36 of 36" in printed
    assert "Traceback" not in (tmp_path / "out").read_text()
    files = ["full.npz"] if ending == ".npz" else ["full.csv", "full.json", "full.npy"]
    assert sorted(os.listdir(str(tmp_path))) == files + ["network", "out"]


def test_a_part_of_another_job_is_not_gone_on_with(weights, own_pictures, tmp_path, capsys):
    out = tmp_path / "g.npz"
    argv = argv_of(weights, own_pictures, out)
    assert complete("run", argv, tmp_path / "out", _at_write, 6, _kill, signal.SIGTERM) == 143
    other = torch.load(weights)
    other["linear.bias"] += 1
    torch.save(other, str(tmp_path / "other.pth"))
    for changed, words in ((argv + ["--store", "int8"], "other store"),
                           (argv_of(tmp_path / "other.pth", own_pictures, out), "other network")):
        assert "holds a part of another job ({}); --overwrite begins anew".format(words) in failure(
            capsys, run.main, changed)
    # What is not yet embedded may change.
    shutil.copy(str(own_pictures / "class05" / "00.png"), str(own_pictures / "class05" / "99.png"))
    moved = tmp_path / "moved"
    os.rename(str(own_pictures), str(moved))
    shutil.copytree(str(tmp_path / "g.npz.partial"), str(tmp_path / "kept"))
    code, printed, _ = answer(capsys, run.main, argv_of(weights, moved, out))
    assert code == 0 and "Goes on: 22 of 37 pictures" in printed
    os.rename(str(tmp_path / "kept"), str(tmp_path / "g.npz.partial"))
    os.remove(str(out))
    shutil.copy(str(moved / "class05" / "00.png"), str(moved / "class00" / "00.png"))
    assert "other pictures" in failure(capsys, run.main, argv_of(weights, moved, out))
    code, printed, _ = answer(capsys, run.main, argv_of(weights, moved, out, "--overwrite"))
    assert code == 0 and "Goes on" not in printed
    found = Gallery(str(out))
    np.testing.assert_allclose(found[:1].numpy(), embedded(weights, [str(moved / "class00" / "00.png")]), atol=1e-5)


def test_a_job_that_begins_anew_leaves_nothing_of_the_one_before(tmp_path):
    jobs = [({"store": "float32", "width": 2, "network": name}, str, True) for name in "ab"]
    for job, done in zip(jobs + jobs[:1], (22, None, None)):
        rows = partial.Partial(str(tmp_path), *job)
        assert rows.done == 0
        rows.write(0, {"embeddings": np.zeros((30, 2), np.float32)})
        if done:
            rows.flush(done)
        rows.close()


def test_broken_pictures_are_left_out_if_asked_for(weights, own_pictures, tmp_path, capsys):
    broken = [own_pictures / "class04" / "01.png", own_pictures / "class05" / "05.png"]
    for path in broken:
        path.write_bytes(b"no picture")
    argv = argv_of(weights, own_pictures, tmp_path / "g.npz")
    code, printed, errors = answer(capsys, run.main, argv)
    assert code == 2 and len(errors.splitlines()) == 1 and str(broken[0]) in errors
    assert "22 of 36 pictures are in {}".format(tmp_path / "g.npz.partial") in printed
    code, printed, errors = answer(capsys, run.main, argv + ["--skip_broken"])
    assert code == 0 and "Goes on: 22 of 34 pictures" in printed, errors
    assert "Skipped: 2 of 18 pictures of the test set" in printed and str(broken[1]) in printed
    gallery = Gallery(str(tmp_path / "g.npz"))
    paths = [str(own_pictures / gallery.entry(row)[0]) for row in range(len(gallery))]
    assert len(paths) == 34 and not set(map(str, broken)) & set(paths)
    assert [str(path) in line for path, line in zip(broken, gallery.about["skipped"])] == [True, True]
    np.testing.assert_allclose(gallery[:].numpy(), embedded(weights, paths), atol=1e-5)


@pytest.mark.parametrize("more, words", [
    (["--out", "g.txt"], "--mode embed needs --out FILE.npz or --out FILE.npy"),
    (["--recall", "2"], "--recall does nothing with --mode embed"),
    (["--query", "a.png"], "--query does nothing with --mode embed"),
    (["--embedding_size", "6"], "holds a TinyResNet with 5 dimensions"),
    (["--data", "nowhere"], "nowhere: no such folder"),
    (["--out", "{text}/g.npz"], "g.npz: there is no directory "),
])
def test_what_is_refused(weights, pictures, tmp_path, capsys, more, words):
    (tmp_path / "text").write_text("")
    argv = argv_of(weights, pictures, tmp_path / "g.npz", *(word.format(text=tmp_path / "text") for word in more))
    assert words in failure(capsys, run.main, argv)


def test_an_untrained_head_and_several_processes_are_refused(pictures, tmp_path, capsys, monkeypatch):
    argv = argv_of("w.pth", pictures, tmp_path / "g.npz")
    alone = argv[:2] + argv[4:]
    assert "a head of 128 dimensions would be untrained" in failure(capsys, run.main, alone)
    monkeypatch.setattr(embedding.ranks, "count", lambda: 2)
    with pytest.raises(embedding.UsageError, match="--mode embed is done by one process"):
        embedding.check_embed(run.build_parser().parse_args(argv), {"load"})
