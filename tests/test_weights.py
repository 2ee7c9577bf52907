"""Files of weights: damaged ones are refused in one line, no code in them is run, ImageNet's are fetched once."""
import argparse
import collections
import contextlib
import hashlib
import json
import os
import pickle
import socket
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch

import model.weights
from model import BACKBONES, WeightsError, compat, pretrained_file, read_tensors, read_weights
from model.backbone import ResNet18, ResNet50
from tiny import TinyResNet


class RunsCode:
    """A pickle that makes a folder while it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("loader", ["torch's own", "ours"])
def test_weights_never_run_code(tmp_path, monkeypatch, zipped, loader):
    trap, path = tmp_path / "trap", str(tmp_path / "weights.pth")
    torch.save({"weight": RunsCode(str(trap))}, path, _use_new_zipfile_serialization=zipped)
    if loader == "ours":
        monkeypatch.setattr(compat, "_WEIGHTS_ONLY_IS_SAFE", (99, 0))
    with pytest.raises(WeightsError, match="is refused.*can run code"):
        read_tensors(path)
    assert not trap.exists()
    torch.load(path, **({"weights_only": False} if compat.TORCH_VERSION >= (1, 13) else {}))
    assert trap.exists(), "the code would have run"
    trap.rmdir()
    with open(path, "wb") as file:
        pickle.dump(RunsCode(str(trap)), file)
    with pytest.raises(WeightsError):
        read_tensors(path)
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_our_unpickler_reads_what_torch_saves(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(compat, "_WEIGHTS_ONLY_IS_SAFE", (99, 0))
    weights = TinyResNet(pretrained=False).state_dict()
    weights["half"] = torch.ones(3).half()
    path = str(tmp_path / "weights.pth")
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    loaded = read_tensors(path)
    assert list(loaded) == list(weights)
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@pytest.mark.parametrize("loader", ["torch's own", "ours"])
@pytest.mark.parametrize("value, name", [
    (argparse.Namespace(lr=1), r"argparse\.Namespace"), (np.float64(0.5), r"numpy\.\w*core\.multiarray\.scalar"),
    (collections.defaultdict(list), r"collections\.defaultdict")], ids=lambda value: type(value).__name__)
def test_a_refused_file_names_what_it_asks_for(tmp_path, monkeypatch, loader, value, name):
    path = str(tmp_path / "weights.pth")
    torch.save({"a": torch.ones(1), "more": value}, path)
    if loader == "ours":
        monkeypatch.setattr(compat, "_WEIGHTS_ONLY_IS_SAFE", (99, 0))
    with pytest.raises(WeightsError, match="asks for {} .* save the state dict alone: torch.save".format(name)):
        read_tensors(path)


def _truncated(path):
    torch.save({"weight": torch.ones(1000)}, path)
    os.truncate(path, 700)


def _overwritten(path):
    torch.save({"weight": torch.ones(1000)}, path)
    with open(path, "r+b") as file:
        file.seek(-200, os.SEEK_END)  # the list of the archive's files
        file.write(b"\0" * 64)


def _text(path):
    with open(path, "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n" * 3)


def _other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _safetensors(content=bytes(8), dtype="F32", shape=(2,), end=8):
    """Return a function that writes a safetensors file with one tensor, a."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()

    def write(path):
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + content)
    return write


def _saved(value):
    return lambda path: torch.save(value, path)


DAMAGED = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (os.mkdir, "is a folder"),
    "a pipe": (os.mkfifo, "is no regular file"),
    "empty": (lambda path: open(path, "w").close(), "damaged"),
    "text": (_text, "damaged|refused"),
    "another archive": (_other_zip, "damaged|refused"),
    "truncated": (_truncated, "damaged"),
    "overwritten": (_overwritten, "damaged"),
    "a module": (_saved(torch.nn.Linear(2, 2)), "is refused"),
    "a list": (_saved([torch.ones(2)]), "no weights"),
    "numbers": (_saved({"a": 1}), "no weights"),
    "TorchScript": (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), "is TorchScript .*; needed is "),
    "safetensors, cut": (_safetensors(bytes(7)), "a damaged safetensors file"),
    "safetensors of many numbers": (_safetensors(shape=(10 ** 12,)), "a damaged safetensors file"),
    "safetensors that goes on": (_safetensors(bytes(12)), "a damaged safetensors file"),
    "safetensors of an odd kind": (_safetensors(dtype="F7"), "a damaged safetensors file"),
    "safetensors, not finite": (_safetensors(b"\xff" * 8), "not finite, first in a"),
    "safetensors of whole numbers": (_safetensors(dtype="I32"), r"whole numbers \(int32\) .*, first in a"),
    "a run's state": (_saved({"network": {"a": torch.ones(2)}, "progress": {}}), "the state of a run, for --resume"),
    "not finite": (_saved({"a": torch.tensor([1, float("nan")])}), "not finite, first in a"),
    "whole numbers": (_saved({"a": torch.ones(2, dtype=torch.int64)}), r"whole numbers \(int64\) .*, first in a"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_one_line(tmp_path, kind):
    make, expected = DAMAGED[kind]
    path = str(tmp_path / "weights.pth")
    make(path)
    if "safetensors" in kind:
        pytest.importorskip("safetensors", reason="needs the package safetensors")
    with pytest.raises(WeightsError, match=expected) as error:
        read_weights(path, {"a"}, lambda found: None if found.weights else "holds no weights")
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_safetensors_are_read_like_any_file(tmp_path, name):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the package safetensors")
    weights, path = TinyResNet(pretrained=False).state_dict(), str(tmp_path / name)
    safetensors.save_file(dict(weights, **{"fc.weight": torch.ones(2, 8)}), path, metadata={"format": "pt"})
    loaded = TinyResNet(pretrained=path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    whole = {"linear.weight": torch.ones(3, 8).half(), "linear.bias": torch.zeros(3, dtype=torch.bfloat16)}
    safetensors.save_file({"module." + name: value for name, value in whole.items()}, path)
    found = read_weights(path, {"linear"}, lambda found: None)
    assert found.prefix == "module" and found.notes is None
    assert all(torch.equal(found.weights[name], value) for name, value in whole.items())


def test_without_its_package_a_safetensors_file_is_one_line(tmp_path, monkeypatch):
    path = str(tmp_path / "weights.safetensors")
    _safetensors()(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(WeightsError, match="needs the package safetensors: pip install safetensors$"):
        read_tensors(path)


ODD_TENSORS = [
    ("sparse_coo", lambda: torch.ones(8, 512).to_sparse()),
    ("sparse_csr", lambda: torch.ones(8, 512).to_sparse_csr()),
    ("meta", lambda: torch.empty(8, 512, device="meta")),
    ("nested", lambda: torch.nested.nested_tensor([torch.ones(4, 512)] * 2)),
    ("nested", lambda: torch.nested.nested_tensor([torch.ones(4, 512)] * 2, layout=torch.jagged)),
    ("qint8", lambda: torch.quantize_per_tensor(torch.ones(8, 512), 0.1, 0, torch.qint8)),
    ("float8_e5m2", lambda: torch.ones(8, 512).to(torch.float8_e5m2)),
    ("complex64", lambda: torch.full((8, 512), complex("nan"))),
    ("1000000 x 1000000 numbers", lambda: torch.zeros(1, 1).expand(10 ** 6, 10 ** 6)),
]


@pytest.mark.filterwarnings("ignore")  # torch says of some of these tensors that they are unfinished
@pytest.mark.parametrize("kind, tensor", ODD_TENSORS)
def test_odd_tensors_are_one_line(tmp_path, kind, tensor):
    if kind in ("meta", "sparse_csr") and compat.TORCH_VERSION < (1, 13):
        pytest.skip("this torch crashes when it saves such tensors")
    path = str(tmp_path / "weights.pth")
    try:
        torch.save({"linear.weight": tensor()}, path)
    except (AttributeError, NotImplementedError, RuntimeError):
        pytest.skip("this torch has no such tensors, or can't save them")
    with pytest.raises(WeightsError, match="is refused") as error:
        read_tensors(path)
    message = str(error.value)
    if "beside tensors it asks for" not in message:  # torch loads it, and so we know more of it
        assert "no plain array of numbers, linear.weight (" in message and kind in message


def test_tensors_are_looked_at_wherever_they_are(tmp_path):
    path, odd = str(tmp_path / "file.pth"), torch.zeros(1).expand(10 ** 6)
    for nested, name in (([odd], ""), ({"a": [1, ({"b": {"deep": odd}}, 2)]}, ", deep"), ({"deep": [[odd]]}, ", deep"),
                         ({1: odd}, "")):
        torch.save(nested, path)
        with pytest.raises(WeightsError, match="no plain array of numbers{} ".format(name)):
            read_tensors(path)
    knot = [torch.ones(2), torch.nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.bool)]
    knot.append(knot)
    torch.save(knot, path)
    assert len(read_tensors(path)) == 4
    deep = [torch.ones(1)]
    for _ in range(10000):
        deep = [deep, deep]
    assert len(list(model.weights._named_tensors(deep))) == 1


def test_a_compressed_file_is_not_unpacked(tmp_path, monkeypatch):
    path = str(tmp_path / "file.pth")
    torch.save(torch.zeros(10 ** 6), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            archive.writestr(name, members[name])
    assert os.path.getsize(path) < 10 ** 5
    monkeypatch.setattr(model.weights, "load_tensors", pytest.fail)
    with pytest.raises(WeightsError, match="longer than the file"):
        read_tensors(path)


def test_pretrained_file_with_and_without_classifier(tmp_path):
    weights = TinyResNet(pretrained=False).state_dict()
    for more in {}, {"fc.weight": torch.ones(2, 8), "fc.bias": torch.ones(2)}:
        path = str(tmp_path / "weights.pth")
        torch.save(dict(weights, **more), path)
        assert pretrained_file("resnet18", path) == path
        assert torch.equal(TinyResNet(pretrained=path).conv1.weight, weights["conv1.weight"])
    # A file older than torch 0.4.1 has no counters of batches.
    torch.save({name: value for name, value in weights.items() if "num_batches" not in name}, path)
    assert torch.equal(TinyResNet(pretrained=path).conv1.weight, weights["conv1.weight"])
    with pytest.raises(WeightsError, match="not a state dict of ResNet50: .* unknown names, first "):
        ResNet50(pretrained=path)
    with pytest.raises(WeightsError, match="nowhere.pth: no such file"):
        pretrained_file("resnet18", str(tmp_path / "nowhere.pth"))
    assert [pretrained_file("resnet18", nothing) for nothing in ("none", None, False)] == [None] * 3


@pytest.mark.parametrize("look_up", ["by name", "by enumeration"])
def test_imagenet_addresses_of_any_resnet(monkeypatch, look_up):
    if look_up == "by enumeration":  # torchvision 0.13; the oldest has tables of its own
        monkeypatch.delattr(compat.import_torchvision().models, "get_model_weights", raising=False)
    for name, digest in (("resnet18", "f37072fd"), ("resnet34", "b627a593"), ("resnet50", "0676ba61")):
        assert compat.imagenet_weights_url(name) == "https://download.pytorch.org/models/{}-{}.pth".format(name, digest)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_imagenet_weights_are_fetched_once(hub, tmp_path, monkeypatch, capsys):
    weights, source = ResNet18(pretrained=False).state_dict(), tmp_path / "source"
    torch.save(weights, str(source))
    name = "resnet18-{:.8}.pth".format(hashlib.sha256(source.read_bytes()).hexdigest())
    source.rename(tmp_path / name)
    monkeypatch.setattr(model.weights, "imagenet_weights_url", lambda architecture: (tmp_path / name).as_uri())
    assert pretrained_file("resnet18", "imagenet") == str(hub / name)
    assert "Fetching ImageNet weights: file://" in capsys.readouterr().out
    (tmp_path / name).unlink()  # from here on they can only come from the cache
    assert pretrained_file("resnet18", True) == str(hub / name)
    assert torch.equal(ResNet18().conv1.weight, weights["conv1.weight"])
    assert capsys.readouterr().out == "" and [path.name for path in hub.iterdir()] == [name]


@contextlib.contextmanager
def server(answer):
    """Answer one request on loopback with the bytes ``answer``; yields the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield "http://127.0.0.1:{}/resnet18-12345678.pth".format(listener.getsockname()[1])
        thread.join(60)


@pytest.mark.parametrize("answer, expected", [
    (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
    (b"hello\r\n\r\n", "hello"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nother", "invalid hash value"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", "invalid literal for int.*abc"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nother", "IncompleteRead"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n", "Invalid IPv6 URL"),
], ids=["404", "no HTTP", "cut short", "odd length", "cut in a chunk", "no address"])
def test_imagenet_weights_that_do_not_come_are_one_line(hub, monkeypatch, answer, expected):
    with server(answer) as url:
        monkeypatch.setattr(model.weights, "imagenet_weights_url", lambda architecture: url)
        with pytest.raises(WeightsError, match=expected) as error:
            ResNet18(pretrained=True)
    message = str(error.value)
    assert message.startswith("ImageNet weights of resnet18 are not on this machine and can't be fetched (")
    assert "): put {} at {}, or give --pretrained FILE, or ".format(url, hub / "resnet18-12345678.pth") in message
    assert "\n" not in message and list(hub.iterdir()) == [] and socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_without_network_names_file_and_place(hub, monkeypatch, name):
    def unreachable(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    for fetch in (lambda: BACKBONES[name](pretrained=True), lambda: pretrained_file(name, "imagenet")):
        with pytest.raises(WeightsError, match="no route to host.*--pretrained none") as error:
            fetch()
        assert compat.imagenet_weights_url(name) in str(error.value) and str(hub) in str(error.value)
