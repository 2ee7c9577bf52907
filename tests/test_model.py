"""Backbones and the embedding head: names, shapes, normalisation, stages, folding, whose weights they are."""
import io
import warnings

import pytest
import torch

from model import BACKBONES, LinearEmbedding, WeightsError, compat, fused, recognise
from model.backbone import ResNet, ResNet18, ResNet50
from tiny import TinyResNet

torchvision = compat.import_torchvision()


class ResNet34(ResNet):
    """What one more backbone takes; its row in BACKBONES is written by a fixture."""

    architecture = "resnet34"
    blocks = (3, 4, 6, 3)
    output_size = 512


@pytest.fixture
def backbones(monkeypatch):
    """BACKBONES with two more rows."""
    monkeypatch.setitem(BACKBONES, "tiny", TinyResNet)
    monkeypatch.setitem(BACKBONES, "resnet34", ResNet34)
    return BACKBONES


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


@pytest.mark.parametrize("constructor, width", [(ResNet18, 512), (ResNet50, 2048), (TinyResNet, 8)])
def test_output_size(constructor, width):
    backbone = constructor(pretrained=False).eval()
    assert backbone.output_size == width
    assert backbone(torch.rand(1, 3, 32, 32)).shape == (1, width)


def test_uint8_and_float_pictures_are_one_input():
    network = LinearEmbedding(TinyResNet(pretrained=False), 8).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    assert torch.allclose(network(images), network(images.float() / 255), atol=1e-5)


def test_a_backbone_has_its_own_normalisation():
    class Plain(TinyResNet):
        mean, std = (0.0, 0.5, 1.0), (1.0, 2.0, 4.0)

    found = Plain(pretrained=False).normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert found.flatten().tolist() == [1, 0.25, 0]


@pytest.mark.parametrize("normalize", [True, False])
def test_embedding_and_stages(normalize):
    network = LinearEmbedding(ResNet18(pretrained=False), 512, 16, normalize).eval()
    images = torch.rand(3, 3, 64, 64)
    stage1, stage2, stage3, stage4, pooled, embeddings = network(images, True)
    assert [tuple(stage.shape[1:]) for stage in (stage1, stage2, stage3, stage4)] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert torch.allclose(pooled, stage4.mean((2, 3)), atol=1e-6)
    assert torch.equal(embeddings, network(images))
    for again in network(images, get_stages=True), network(images, get_ha=True):  # get_ha: the reference's keyword
        assert all(map(torch.equal, again, (stage1, stage2, stage3, stage4, pooled, embeddings)))
    expected = network.linear(pooled)
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(embeddings, expected, atol=1e-6)


def test_state_dict_has_the_references_names():
    names = set(LinearEmbedding(ResNet18(pretrained=False)).state_dict())
    backbone = {"base." + name for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    assert names == backbone | {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("constructor, last", [(ResNet50, "bn3"), (TinyResNet, "bn2")])
def test_zero_init_residual_makes_blocks_the_identity(constructor, last):
    for zero in (True, False):
        backbone = constructor(pretrained=False, zero_init_residual=zero)
        assert all((getattr(block, last).weight.abs().max() == 0) == zero for block in backbone.layer2)


def _with_statistics(network):
    """Give every BatchNorm a state that folding can get wrong."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                torch.nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                torch.nn.init.normal_(value)
    return network


@pytest.mark.parametrize("constructor", [ResNet18, ResNet50, TinyResNet])
@torch.no_grad()
def test_fused_network_is_the_same_function(constructor):
    original = _with_statistics(LinearEmbedding(constructor(pretrained=False), constructor.output_size, 16)).train()
    small, names = fused(original), list(original.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert original.training and not small.training
    for expected, found in zip(original.eval()(images, True), small(images, True)):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert list(original.state_dict()) == names and all(value.requires_grad for value in original.parameters())


def test_a_backbone_recognises_its_own_weights(backbones):
    for name, constructor in backbones.items():
        assert recognise(constructor(pretrained=False).state_dict()) == name


def test_nobody_recognises_weights_of_another_network(backbones):
    tiny = TinyResNet(pretrained=False).state_dict()
    wider = {name: torch.ones([9] + list(value.shape[1:])) for name, value in tiny.items() if value.dim()}
    deeper = dict(tiny, **{"layer2.1.conv1.weight": torch.ones(8, 8, 3, 3)})
    scalars = {name: torch.tensor(1.0) for name in tiny}
    others = torchvision.models.resnet101().state_dict(), torchvision.models.googlenet(init_weights=False).state_dict()
    for weights in others + (wider, deeper, scalars, {}, {"layer1.": torch.ones(1)}):
        assert recognise(weights) is None


def test_tiny_backbone_is_tiny():
    backbone, file = TinyResNet(pretrained=False).train(), io.BytesIO()
    stages = backbone(torch.rand(2, 3, 32, 32), True)
    assert [tuple(stage.shape) for stage in stages] == [(2, 8, 8, 8)] * 4 + [(2, 8)]
    torch.save(backbone.state_dict(), file)
    assert len(file.getvalue()) < 50000
    with pytest.raises(WeightsError, match="no ImageNet weights of this backbone"):
        TinyResNet()


def test_float32_is_not_tf32():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compat.require_float32_products()
        assert not matmul.allow_tf32 and not cudnn.allow_tf32
        assert getattr(getattr(cudnn, "conv", None), "fp32_precision", "ieee") != "tf32"  # torch 2.9 and later
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
