"""--mode export: the file gives the network's embeddings, by itself; what differs is refused."""
import glob
import importlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import run
from conftest import make_pictures
from dataset import load_resized, load_splits, resized_size
from engine import export, parity
from engine.evaluation import Embedded
from engine.networks import build_network, read_network_file
from metric.retrieval import recall_by_definition
from model import FORMATS, LinearEmbedding, OnnxNetwork, compat, digest_of_network, to_onnx, to_torchscript
from model.compat import import_torchvision
from model.torchvision_networks import VisionTransformer
from processes import ROOT
from results import answer, failure
from tiny import TinyResNet

NOTES = {"base": "tiny", "embedding_size": "8", "l2normalize": "true", "pool": "avg", "image_size": "32",
         "resize": "square", "dataset": "folder", "project": export.PROJECT}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few calls are timed."""
    monkeypatch.setattr(parity, "ROUNDS", (1, 1))


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnx", reason="needs the package onnx")
    return pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")


def argv_for(whole, out, *more):
    return ["--mode", "export", "--load", str(whole / "best.pth"), "--out", str(out), "--workers", "0"] + list(more)


def network_of(whole):
    file = read_network_file(str(whole / "best.pth"))
    return build_network(dict(file.options, resize=None), file).eval()  # as in a run with --resize square


def test_pictures(pictures, resize="square"):
    """The test set's paths, and its pictures as the network sees them: N x 3 x 32 x 32, uint8."""
    paths = [path for path, _ in load_splits("folder", str(pictures))["test"].samples]
    side = resized_size(32)
    start = (side - 32) // 2
    return paths, torch.stack([torch.from_numpy(load_resized(path, side, resize=resize)[
        start:start + 32, start:start + 32].copy()).permute(2, 0, 1) for path in paths])


test_pictures.__test__ = False


def by_definition(network, images):
    """Embeddings of pictures that are scaled and normalised here."""
    scaled = images.double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (
        network.base.mean, network.base.std))
    with torch.no_grad():
        features = network.base(((scaled - mean) / std).float()).flatten(1).double()
    embeddings = features @ network.linear.weight.detach().double().t() + network.linear.bias.detach().double()
    return (embeddings / embeddings.pow(2).sum(1, keepdim=True).sqrt()).float()


@pytest.mark.parametrize("exporter", ["torch.export", "older"])
def test_an_onnx_file_gives_the_networks_embeddings(whole, pictures, tmp_path, capsys, monkeypatch, onnxruntime,
                                                    exporter):
    if exporter == "older":
        monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    elif compat.TORCH_VERSION < (2, 9):
        pytest.skip("this torch has the older exporter alone")
    out = tmp_path / "network.onnx"
    code, printed, errors = answer(capsys, run.main, argv_for(whole, out, "--recall", "1", "3"))
    assert code == 0, errors
    session = onnxruntime.InferenceSession(str(out))
    model = session.get_modelmeta()
    assert model.custom_metadata_map == dict(NOTES, digest=digest_of_network(network_of(whole)))
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("pictures", "tensor(uint8)", [3, 32, 32])
    assert (given.name, given.type, given.shape[1:]) == ("embeddings", "tensor(float)", [8])
    _, images = test_pictures(pictures)
    expected = by_definition(network_of(whole), images)
    for count in (1, 5, len(images)):
        found = session.run(None, {"pictures": images[:count].numpy()})[0]
        assert np.abs(found - expected[:count].numpy()).max() < 1e-5
    assert os.fsencode(ROOT) not in out.read_bytes() and b"site-packages" not in out.read_bytes()
    # What is printed: both rows have the recall by its definition.
    labels = torch.tensor(load_splits("folder", str(pictures))["test"].targets)
    recalled = ["{:.4f}".format(100 * value) for value in recall_by_definition(expected, labels, [1, 3])]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()
            if line.startswith("| ")]
    assert [row[0] for row in rows] == ["network", "---", "PyTorch", "onnxruntime"]
    assert rows[2][2:4] == rows[3][2:4] == recalled and rows[3][4] == "1.000000"
    assert "the same nearest neighbour for 18 of 18 queries" in printed
    assert sorted(os.listdir(str(tmp_path))) == ["network.onnx"]


def test_a_torchscript_file_gives_the_networks_embeddings(whole, pictures, tmp_path, capsys):
    code, printed, errors = answer(capsys, run.main, argv_for(whole, tmp_path / "network.pt"))
    assert code == 0, errors
    extra = {"notes.json": ""}
    script = torch.jit.load(str(tmp_path / "network.pt"), _extra_files=extra)
    assert json.loads(extra["notes.json"]) == dict(NOTES, digest=digest_of_network(network_of(whole)))
    _, images = test_pictures(pictures)
    expected = by_definition(network_of(whole), images)
    for count in (1, 5):
        with torch.no_grad():
            assert (script(images[:count]) - expected[:count]).abs().max() < 1e-5
    assert "| TorchScript | " in printed and "for 18 of 18 queries" in printed


def test_int8_takes_its_ranges_from_training_pictures_alone(whole, pictures, tmp_path, capsys, monkeypatch,
                                                            onnxruntime):
    taken, open_pictures = [], export.open_pictures
    monkeypatch.setattr(export, "open_pictures", lambda paths, *words: taken.extend(paths) or open_pictures(
        paths, *words))
    monkeypatch.setattr(export, "CALIBRATION", 10)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)  # the quicker exporter
    code, printed, errors = answer(capsys, run.main, argv_for(whole, tmp_path / "network.onnx", "--int8"))
    assert code == 0, errors
    train = {path for path, _ in load_splits("folder", str(pictures))["train"].samples}
    assert len(set(taken)) == 10 and set(taken) <= train
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[2:]] == ["PyTorch", "onnxruntime", "onnxruntime, int8"]
    session = onnxruntime.InferenceSession(str(tmp_path / "network.int8.onnx"))
    assert session.get_modelmeta().custom_metadata_map["precision"] == "int8"
    _, images = test_pictures(pictures)
    found = torch.from_numpy(session.run(None, {"pictures": images.numpy()})[0])
    cosines = F.cosine_similarity(found, by_definition(network_of(whole), images))
    assert 0.9 < cosines.min() < 1 - 1e-6  # like it, but not the same
    assert "{:.6f}".format(cosines.min().item())[:6] == rows[4][4].strip()[:6]


def test_a_file_that_embeds_otherwise_is_kept_apart(whole, tmp_path, capsys, monkeypatch):
    def write(network, image_size, notes):
        return to_torchscript(build_network(dict(base="tiny", embedding_size=8, l2normalize=True)), image_size, notes)

    monkeypatch.setitem(FORMATS, ".pt", FORMATS[".pt"]._replace(write=write))
    (tmp_path / "network.pt").write_text("the one before")
    assert "network.pt is there; --overwrite" in failure(capsys, run.main, argv_for(whole, tmp_path / "network.pt"))
    line = failure(capsys, run.main, argv_for(whole, tmp_path / "network.pt", "--overwrite"), code=1)
    assert "gives other embeddings" in line and "kept as {}/network.pt.failed".format(tmp_path) in line
    assert (tmp_path / "network.pt").read_text() == "the one before"
    torch.jit.load(str(tmp_path / "network.pt.failed"))


def test_a_network_that_the_exporter_does_not_take_is_one_line(whole, tmp_path, capsys, monkeypatch):
    def write(*_):
        raise KeyError("no such operator\nand more lines")

    monkeypatch.setitem(FORMATS, ".pt", FORMATS[".pt"]._replace(write=write))
    line = failure(capsys, run.main, argv_for(whole, tmp_path / "network.pt"), code=1)
    assert "--base tiny can't be exported to TorchScript with torch" in line
    assert not os.listdir(str(tmp_path))


def test_a_file_that_this_runtime_can_not_load_is_one_line(whole, tmp_path, capsys, monkeypatch):
    class Refusing(torch.nn.Module):
        def __init__(self, content, threads):
            raise KeyError("unsupported version\nand more lines")

    monkeypatch.setitem(FORMATS, ".pt", FORMATS[".pt"]._replace(run=Refusing))
    line = failure(capsys, run.main, argv_for(whole, tmp_path / "network.pt"), code=1)
    assert "TorchScript can't run the exported file" in line and not os.listdir(str(tmp_path))


@pytest.mark.parametrize("more, expected", [
    (["--out", "x.onnx"], "needs --load, the network, and --out"),
    (["--load", "x.pth"], "needs --load, the network, and --out"),
    (["--load", "x.pth", "--out", "x.tflite"], "--out x.tflite: the ending says what is written"),
    (["--load", "x.pth", "--out", "nowhere/x.pt"], "there is no directory nowhere; make it"),
    (["--load", "x.pt", "--out", "./x.pt"], "is the file of --load"),
    (["--load", "x.pth", "--out", "x.pt", "--int8"], "--int8 is made by onnxruntime"),
    (["--load", "x.pth", "--out", "x.pt", "--device", "cuda"], "on the CPU; leave --device out"),
    (["--load", "x.pth", "--out", "x.pt", "--no_check", "--recall", "2"], "--recall does nothing with --no_check"),
    (["--load", "x.pth", "--out", "x.pt", "--lr", "1"], "--lr does nothing with --mode export"),
    (["--load", "x.pth", "--out", "x.pt", "--metrics", "mrr"], "--metrics does nothing with --mode export"),
    (["--load", "nowhere.pth", "--out", "x.pt"], "nowhere.pth: no such file"),
])
def test_what_can_not_be_exported_is_one_line(capsys, more, expected):
    assert expected in failure(capsys, run.main, ["--mode", "export"] + more)


def test_packages_that_are_missing(whole, tmp_path, capsys, monkeypatch, onnxruntime):
    missing, imported = {"onnx"}, importlib.import_module

    def import_module(name, *words):
        if name in missing:
            raise ImportError(name)
        return imported(name, *words)

    monkeypatch.setattr("model.export.importlib.import_module", import_module)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    advice = ": pip install onnx onnxscript onnxruntime"
    assert failure(capsys, run.main, argv_for(whole, tmp_path / "a.onnx")).endswith("onnx here (onnx)" + advice)
    missing.clear()
    missing.add("onnxruntime")
    assert failure(capsys, run.main, argv_for(whole, tmp_path / "a.onnx", "--int8")).endswith(
        "onnxruntime here (onnxruntime)" + advice)
    assert not os.listdir(str(tmp_path))
    code, printed, _ = answer(capsys, run.main, argv_for(whole, tmp_path / "a.onnx"))
    assert code == 0 and "Warning: not compared on pictures: " in printed and advice in printed
    assert os.listdir(str(tmp_path)) == ["a.onnx"]


def test_without_a_check_no_picture_is_needed(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "open_data", None)
    code, printed, errors = answer(capsys, run.main, argv_for(whole, tmp_path / "a.pt", "--no_check")[:-3] + [
        "--no_check"])
    assert code == 0 and "Exported: {}".format(tmp_path / "a.pt") in printed, errors


def test_an_older_int8_file_does_not_stay_beside_a_new_network(whole, tmp_path, capsys, monkeypatch, onnxruntime):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)  # the faster exporter
    (tmp_path / "a.int8.onnx").write_text("")
    argv = argv_for(whole, tmp_path / "a.onnx", "--no_check")[:-3] + ["--no_check"]
    assert "a.int8.onnx is there; --overwrite replaces it" in failure(capsys, run.main, argv)
    assert answer(capsys, run.main, argv + ["--overwrite"])[0] == 0 and os.listdir(str(tmp_path)) == ["a.onnx"]
    argv[argv.index("--load") + 1] = str(tmp_path / "a.int8.onnx")
    assert "is the file of --load" in failure(capsys, run.main, argv + ["--overwrite"])


def test_an_int8_file_that_can_not_be_loaded_is_not_written(whole, tmp_path, capsys, monkeypatch, onnxruntime):
    def refuse(content, threads):
        raise KeyError("unsupported version")

    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "OnnxNetwork", refuse)
    line = failure(capsys, run.main, argv_for(whole, tmp_path / "a.onnx", "--int8"), code=1)
    assert "can't run the int8 file" in line and "leave --int8 out" in line and os.listdir(str(tmp_path)) == ["a.onnx"]


@pytest.mark.parametrize("resize", ["square", "short"])
def test_the_example_without_this_project_crops_as_it_does(whole, tmp_path, capsys, monkeypatch, onnxruntime, resize):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    make_pictures(tmp_path / "set", classes=2, pictures=4, size=(45, 71))
    argv = argv_for(whole, tmp_path / "a.onnx")[:-2] + ["--no_check", "--resize", resize]
    assert answer(capsys, run.main, argv)[0] == 0
    paths = sorted(glob.glob(str(tmp_path / "set" / "*" / "*")))
    command = [sys.executable, os.path.join(ROOT, "examples", "use_onnx.py"), str(tmp_path / "a.onnx")] + paths
    lines = [line.split() for line in subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, check=True,
                                                     universal_newlines=True).stdout.splitlines()]
    side = resized_size(32)
    start = (side - 32) // 2
    images = np.stack([load_resized(path, side, resize=resize)[start:start + 32, start:start + 32] for path in paths])
    with torch.no_grad():
        embeddings = network_of(whole)(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = dict(zip(paths[1:], (embeddings[1:] - embeddings[0]).norm(dim=1).tolist()))
    assert {path: float(value) for value, path in lines} == pytest.approx(expected, abs=2e-4)
    assert [path for _, path in lines] == sorted(expected, key=expected.get)


def test_parity_by_definition():
    drawn = torch.Generator().manual_seed(0)
    there, gallery = (torch.randn(count, 5, generator=drawn) for count in (40, 30))
    here, moved = (value + 0.2 * torch.randn(value.shape, generator=drawn) for value in (there, gallery))

    def nearest(rows, others):
        return [min((k for k in range(len(others)) if others is not rows or k != i), key=lambda k: float(
            (others[k] - row).pow(2).sum())) for i, row in enumerate(rows)]

    for pairs in (((there, None), (here, None)), ((there, gallery), (here, moved))):
        expected, found = (Embedded(queries, None, None, None if others is None else Embedded(others, None, None, None))
                           for queries, others in pairs)
        agreed = parity.parity(expected, found)
        both = [(a, b) for a, b in zip(*pairs) if a is not None]
        assert agreed.difference == pytest.approx(max(float((x - y).norm() / x.norm()) for a, b in both
                                                      for x, y in zip(a, b)), rel=1e-5)
        assert agreed.cosine == pytest.approx(min(float(x @ y / x.norm() / y.norm()) for a, b in both
                                                  for x, y in zip(a, b)), rel=1e-5)
        one, other = (nearest(queries, queries if others is None else others) for queries, others in pairs)
        assert agreed.same == sum(map(int.__eq__, one, other)) and 0 < agreed.same < agreed.count == 40


@pytest.fixture
def transformer():
    torchvision = import_torchvision()
    if not hasattr(torchvision.models, "VisionTransformer"):
        pytest.skip("this torchvision has no vision transformers")

    class Small(VisionTransformer):
        @classmethod
        def function(cls):
            def build(**words):
                words.pop("weights", None), words.pop("pretrained", None)
                return torchvision.models.VisionTransformer(patch_size=16, num_layers=1, num_heads=2, hidden_dim=8,
                                                            mlp_dim=8, **words)
            return build

    return LinearEmbedding(Small(False, image_size=32), 8, 4).eval()


def test_a_vision_transformer_takes_any_number_of_pictures(transformer):
    to_torchscript(transformer, 32, {})  # tries other numbers itself


def test_a_vision_transformer_as_an_onnx_file(transformer, onnxruntime):
    exported = OnnxNetwork(to_onnx(transformer, 32, {"project": "a test"}), 1)
    for count in (1, 3):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            assert (exported(images) - transformer(images)).abs().max() < 1e-5


def test_a_trace_of_one_number_of_pictures_is_refused():
    class Counting(TinyResNet):
        def forward(self, images, get_stages=False):
            found = super().forward(images, get_stages)
            return found if get_stages else found * (1 + torch.arange(len(images)).view(-1, 1, 1, 1) % 2 * len(images))

    with pytest.raises(RuntimeError):
        to_torchscript(LinearEmbedding(Counting(False), 8, 4, normalize=False).eval(), 32, {})
    content = to_torchscript(LinearEmbedding(TinyResNet(False), 8, 4).eval(), 32, {})
    torch.jit.load(io.BytesIO(content))
