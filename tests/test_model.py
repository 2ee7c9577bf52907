"""Backbones and the embedding head: names, shapes, normalisation, weights."""
import os
import pickle

import pytest
import torch

from model import LinearEmbedding, WeightsError, compat, read_weights
from model.backbone import BACKBONES, ResNet18, ResNet50

torchvision = compat.import_torchvision()


def test_features_are_torchvisions():
    reference = torchvision.models.resnet18().eval()
    backbone = ResNet18(pretrained=False).eval()
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    backbone.load_state_dict(weights)  # torchvision's own names, strictly
    reference.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = reference((images - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(backbone(images), expected, atol=1e-5)


@pytest.mark.parametrize("constructor, width", [(ResNet18, 512), (ResNet50, 2048)])
def test_output_size(constructor, width):
    backbone = constructor(pretrained=False).eval()
    assert backbone.output_size == width
    assert backbone(torch.rand(1, 3, 32, 32)).shape == (1, width)


def test_uint8_and_float_pictures_are_one_input():
    network = LinearEmbedding(ResNet18(pretrained=False)).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    assert torch.allclose(network(images), network(images.float() / 255), atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_embedding_and_stages(normalize):
    network = LinearEmbedding(ResNet18(pretrained=False), 512, 16, normalize).eval()
    images = torch.rand(3, 3, 64, 64)
    stage1, stage2, stage3, stage4, pooled, embeddings = network(images, True)
    assert [tuple(stage.shape[1:]) for stage in (stage1, stage2, stage3, stage4)] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert torch.allclose(pooled, stage4.mean((2, 3)), atol=1e-6)
    assert torch.equal(embeddings, network(images))
    expected = network.linear(pooled)
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(embeddings, expected, atol=1e-6)


def test_state_dict_has_the_references_names():
    names = set(LinearEmbedding(ResNet18(pretrained=False)).state_dict())
    backbone = {"base." + name for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    assert names == backbone | {"linear.weight", "linear.bias"}


def test_pretrained_file_with_and_without_classifier(tmp_path):
    weights = torchvision.models.resnet18().state_dict()
    for name in ("with", "without"):
        path = str(tmp_path / name)
        torch.save(weights if name == "with" else {k: v for k, v in weights.items() if k[:3] != "fc."}, path)
        assert torch.equal(ResNet18(pretrained=path).conv1.weight, weights["conv1.weight"])
    with pytest.raises(WeightsError, match="not a torchvision state dict of ResNet50"):
        ResNet50(pretrained=path)


def test_zero_init_residual_makes_blocks_the_identity():
    backbone = ResNet50(pretrained=False, zero_init_residual=True)
    assert all(block.bn3.weight.abs().max() == 0 for block in backbone.layer2)
    assert all(block.bn3.weight.abs().max() > 0 for block in ResNet50(pretrained=False).layer2)


@pytest.mark.parametrize("name", BACKBONES)
def test_imagenet_without_network_names_file_and_place(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError) as error:
        BACKBONES[name](pretrained=True)
    message = str(error.value)
    assert compat.imagenet_weights_url(name) in message and str(tmp_path) in message
    assert "--pretrained none" in message and "no route to host" in message


def test_imagenet_weights_are_taken_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = compat.cached_weights_path(compat.imagenet_weights_url("resnet18"))
    os.makedirs(os.path.dirname(path))
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, path)
    assert torch.equal(ResNet18().conv1.weight, weights["conv1.weight"])


class RunsCode:
    """A pickle that would make a folder while it is read."""

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
    with pytest.raises(WeightsError, match="is refused"):
        read_weights(path)
    assert not trap.exists()
    with open(path, "wb") as file:
        pickle.dump(RunsCode(str(trap)), file)
    with pytest.raises(WeightsError):
        read_weights(path)
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_our_unpickler_reads_what_torch_saves(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(compat, "_WEIGHTS_ONLY_IS_SAFE", (99, 0))
    weights = LinearEmbedding(ResNet18(pretrained=False)).state_dict()
    weights["half"] = torch.ones(3).half()
    path = str(tmp_path / "weights.pth")
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    loaded = read_weights(path)
    assert list(loaded) == list(weights)
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def _truncated(path):
    torch.save({"weight": torch.ones(1000)}, path)
    with open(path, "r+b") as file:
        file.truncate(700)


DAMAGED = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (os.mkdir, "is a folder"),
    "empty": (lambda path: open(path, "w").close(), "damaged"),
    "text": (lambda path: open(path, "w").write("hello, I am no checkpoint\n" * 9), "damaged|refused"),
    "truncated": (_truncated, "damaged"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "no state dict"),
    "nested": (lambda path: torch.save({"state_dict": {"a": torch.ones(2)}}, path), "no state dict"),
    "not finite": (lambda path: torch.save({"a": torch.tensor([1, float("nan")])}, path), "not finite, first in a"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_one_line(tmp_path, kind):
    make, expected = DAMAGED[kind]
    path = str(tmp_path / "weights.pth")
    make(path)
    with pytest.raises(WeightsError, match=expected) as error:
        read_weights(path)
    assert path in str(error.value) and "\n" not in str(error.value)
