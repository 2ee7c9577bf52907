"""Whole commands whose test pictures are queries that search in a gallery: what is printed, kept and refused."""
import json
import os
import re

import pytest
import torch
from PIL import Image

import processes
import run
from conftest import SMALL
from dataset import InShopMetric, load_resized, resized_size
from metric.retrieval import recall_by_definition
from miniatures import lower_clothes, make_clothes
from model import LinearEmbedding
from results import answer, assert_same_run, failure
from tiny import TinyResNet

KS = (1, 2, 5, 9)


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    make_clothes(tmp_path / "data" / "In-shop", monkeypatch)
    return tmp_path / "data"


def argv_for(data, *more):
    return ["--dataset", "inshop", "--data", data, "--image_size", "32", "--base", "tiny", "--embedding_size", "3",
            "--lr", "1e-2", "--precision", "fp32", "--recall", *KS] + SMALL + list(more)


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
    code, again, _ = answer(capsys, run.main, ["--mode", "eval", "--load", tmp_path / "run" / "last.pth", "--recall", *KS,
                                               "--no_train_recall", "--workers", "1", "--batch", "4", "--device", "cpu"])
    assert code == 0 and {k: value for (_, k), value in recalls(again).items()} == {
        k: value for (epoch, k), value in recalls(out).items() if epoch == 1} and not recalls(again, "train")


def test_two_processes_say_what_one_says(clothes, tmp_path, capsys):
    argv = [str(word) for word in argv_for(clothes, "--mode", "eval", "--pretrained", "none", "--batch", "5")
            if word not in ("--lr", "1e-2", "--num_image_per_class", "3", "--iter_per_epoch", "--epochs", "2")]
    raise NotImplementedError


def _as_rank(number, count, port):
    processes.as_rank(number, count, port)
    lower_clothes()


def test_a_run_goes_on_and_two_processes_measure_as_one(clothes, tmp_path, capsys):
    assert run.main([str(word) for word in argv_for(clothes, "--save_dir", tmp_path / "whole")]) == 0
    for epochs, more in ("1", []), ("2", ["--resume"]):
        assert run.main([str(word) for word in argv_for(clothes, "--save_dir", tmp_path / "parts", "--epochs", epochs,
                                                        *more)]) == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
