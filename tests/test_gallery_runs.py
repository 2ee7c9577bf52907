"""Whole commands whose test pictures are queries that search in a gallery: what is printed, kept and refused."""
import json
import re
import sys

import pytest
import torch
from PIL import Image

import run
from conftest import SMALL
from dataset import InShopMetric, load_resized, resized_size
from engine import ranks
from metric.retrieval import recall_by_definition
from miniatures import lower_clothes, make_clothes
from model import LinearEmbedding
from processes import call_in_ranks
from results import answer, assert_same_run, failure
from tiny import TinyResNet

KS = (1, 2, 5, 9)


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    make_clothes(tmp_path / "data" / "In-shop", monkeypatch)
    return tmp_path / "data"


def argv_for(data, *more):
    return ["--dataset", "inshop", "--data", str(data), "--image_size", "32", "--base", "tiny", "--embedding_size", "3",
            "--lr", "1e-2", "--precision", "fp32", "--recall", *map(str, KS)] + SMALL + list(map(str, more))


def recalls(out, split="test"):
    """{(epoch, K): the percentage that is printed}."""
    return {(int(epoch), int(k)): float(value) for epoch, k, value in re.findall(
        r"^\[Epoch (\d+)\] Recall@(\d+): \[(.*)\] {}$".format(split), out, re.M)}


def embedded(network, images):
    """Embeddings and labels, picture by picture."""
    side, rows = resized_size(32), []
    first = (side - 32) // 2
    for path, _ in images.samples:
        picture = torch.from_numpy(load_resized(path, side)[first:first + 32, first:first + 32].copy())
        with torch.no_grad():
            rows.append(network(picture.permute(2, 0, 1).unsqueeze(0))[0])
    return torch.stack(rows), torch.tensor(images.targets)


def test_queries_search_the_gallery_alone(clothes, tmp_path, capsys):
    code, out, _ = answer(capsys, run.main, argv_for(clothes, "--save_dir", tmp_path / "run", "--epochs", "1"))
    assert code == 0
    assert ("Number of images in Training Set: 16\nNumber of images in Test set: 6\nNumber of images in Gallery: 9\n"
            in out)
    assert "Warning: " not in out
    network = LinearEmbedding(TinyResNet(pretrained=False), TinyResNet.output_size, 3, True).eval()
    network.load_state_dict(torch.load(str(tmp_path / "run" / "last.pth")))
    queries = InShopMetric(str(clothes))
    expected = recall_by_definition(*embedded(network, queries), KS, *embedded(network, queries.gallery))
    assert [recalls(out)[1, k] for k in KS] == [round(100 * value, 4) for value in expected]
    assert 0 < expected[0] < expected[-1] == 1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sorted(log[1]["recall"]) == ["test", "train"]
    # The same from the weights, with other processes, without the training set's recall.
    code, again, _ = answer(capsys, run.main, [
        "--mode", "eval", "--load", tmp_path / "run" / "last.pth", "--recall", *KS, "--no_train_recall", "--workers",
        "1", "--batch", "4"])
    assert code == 0 and {k: value for (_, k), value in recalls(again).items()} == {
        k: value for (epoch, k), value in recalls(out).items() if epoch == 1} and not recalls(again, "train")


def _measure(argv, out):
    lower_clothes()
    if ranks.is_first():
        sys.stdout = open(out, "w")
    assert run.main(argv) == 0
    sys.stdout.flush()


@pytest.fixture
def whole(clothes, tmp_path):
    """The --save_dir of a run of two epochs."""
    assert run.main(argv_for(clothes, "--save_dir", tmp_path / "whole")) == 0
    return tmp_path / "whole"


def test_two_processes_measure_as_one(clothes, whole, tmp_path, capsys):
    argv = ["--mode", "eval", "--load", str(whole / "last.pth"), "--recall", *map(str, KS), "--device", "cpu",
            "--workers", "0", "--batch", "5"]
    call_in_ranks(2, _measure, argv, str(tmp_path / "out"))
    code, out, _ = answer(capsys, run.main, argv)
    found = recalls((tmp_path / "out").read_text())
    assert code == 0 and found == recalls(out) and sorted(found) == [(0, k) for k in KS]


def test_a_run_goes_on(clothes, whole, tmp_path, capsys):
    parts = tmp_path / "parts"
    assert run.main(argv_for(clothes, "--save_dir", parts, "--epochs", "1")) == 0
    assert run.main(argv_for(clothes, "--save_dir", parts, "--epochs", "2", "--resume")) == 0
    assert_same_run(parts, whole)
    picture = InShopMetric(str(clothes)).gallery.samples[0][0]
    Image.new("RGB", (40, 40)).save(picture)
    line = failure(capsys, run.main, argv_for(clothes, "--save_dir", parts, "--epochs", "3", "--resume"))
    assert "the pictures of the gallery set are not those" in line


def test_a_gallery_limits_k_and_may_lack_classes(clothes, tmp_path, monkeypatch, capsys):
    argv = ["--mode", "eval", "--dataset", "inshop", "--data", str(clothes), "--image_size", "32", "--base", "tiny",
            "--pretrained", "none", "--workers", "0", "--device", "cpu"]
    line = failure(capsys, run.main, argv + ["--recall", "10"])
    assert line.endswith("--recall 10: the gallery holds only 9 pictures")
    path = clothes / "In-shop" / "Eval" / "list_eval_partition.txt"
    text = path.read_text()
    # An item of queries only, and one of the gallery only: the first is always missed, the other is in the way.
    monkeypatch.setattr(InShopMetric, "CLASSES", {"train": 4, "query": 2, "gallery": 2})
    monkeypatch.setattr(InShopMetric, "PICTURES", {"train": 16, "query": 4, "gallery": 6})
    path.write_text("\n".join(line for line in text.splitlines() if not (
        "id_00000002 " in line and line.endswith("query") or "id_00000006 " in line and line.endswith("gallery"))))
    code, out, _ = answer(capsys, run.main, argv + ["--recall", "1", "6"])
    assert code == 0 and recalls(out)[0, 6] == 50.0
    assert ("Warning: 1 of 2 classes of the test set have no picture in the gallery (id_00000006); their queries count "
            "as misses\n" in out)
    kept = [line for line in text.splitlines() if not (
        line.endswith("query") and "id_00000006 " not in line or line.endswith("gallery") and "id_00000006 " in line)]
    path.write_text("\n".join(kept))
    monkeypatch.setattr(InShopMetric, "CLASSES", {"train": 4, "query": 1, "gallery": 2})
    monkeypatch.setattr(InShopMetric, "PICTURES", {"train": 16, "query": 2, "gallery": 6})
    assert "the test set has only one class (id_00000006)" in failure(capsys, run.main, argv)


def test_pictures_of_the_gallery_can_be_left_out(clothes, tmp_path, capsys):
    path = InShopMetric(str(clothes)).gallery.samples[-1][0]
    with open(path, "wb") as file:
        file.write(b"no picture")
    argv = argv_for(clothes, "--save_dir", tmp_path / "run", "--epochs", "1")
    argv[argv.index("9")] = "8"
    line = failure(capsys, run.main, argv)
    assert path in line
    code, out, _ = answer(capsys, run.main, argv + ["--skip_broken", "--skip_single"])
    assert code == 0 and "Number of images in Gallery: 8\n" in out
    assert "Skipped: 1 of 9 pictures of the gallery\n" in out and path in (tmp_path / "run" / "skipped.txt").read_text()
