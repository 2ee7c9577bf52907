"""Backbones and the embedding head: names, shapes, normalisation, stages, folding, whose weights they are."""
import io
import warnings

import pytest
import torch
from torch.nn.utils import prune, weight_norm

from model import BACKBONES, LinearEmbedding, WeightsError, compat, fused, recognise
from model.resnet import ResNet18, ResNet50
from tiny import TinyResNet

torchvision = compat.import_torchvision()


def test_features_are_torchvisions():
    reference = torchvision.models.resnet18().eval()
    backbone = ResNet18(pretrained=False).eval()
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    backbone.load_state_dict(weights)  # torchvision's own names, strictly
    reference.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images), reference(images))


@pytest.mark.parametrize("constructor, width", [(ResNet18, 512), (ResNet50, 2048), (TinyResNet, 8)])
def test_output_size(constructor, width):
    backbone = constructor(pretrained=False).eval()
    assert backbone.output_size == width
    assert backbone(torch.rand(1, 3, 32, 32)).shape == (1, width)


def normalised(images):
    """Return uint8 pictures as the floats that torchvision's ImageNet networks take."""
    to_tensor = torchvision.transforms.ToTensor()
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return torch.stack([normalize(to_tensor(image.permute(1, 2, 0).numpy())) for image in images])


@pytest.mark.parametrize("constructor", [TinyResNet, ResNet18])
def test_uint8_pictures_and_normalised_floats_are_one_input(constructor):
    network = LinearEmbedding(constructor(pretrained=False), constructor.output_size, 8).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    expected = network(images)
    for same in images.long(), normalised(images):
        assert torch.allclose(network(same), expected, atol=1e-5)
    for dtype in torch.float64, torch.float16:  # become what the weights are
        found = network(normalised(images).to(dtype))
        assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-2)


def test_the_whole_network_in_another_precision():
    network = LinearEmbedding(TinyResNet(pretrained=False), 8, 8).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    expected = network(images)
    dtypes = [torch.float64] + [torch.bfloat16, torch.float16] * (compat.TORCH_VERSION >= (2, 2))  # on the CPU
    for dtype in dtypes:
        network.to(dtype)
        for same in images, normalised(images), normalised(images).to(dtype):
            assert network(same).dtype == dtype and torch.allclose(network(same).float(), expected, atol=3e-2)


def _quantised(network):
    return torch.quantization.quantize_dynamic(network, {torch.nn.Linear})


def _pruned(network):
    prune.l1_unstructured(network.linear, "weight", amount=1)
    return network


def _weight_norm(network):
    weight_norm(network.linear)
    return network


@pytest.mark.filterwarnings("ignore")  # torch's, of what will be removed
@pytest.mark.parametrize("change, dtype", [(_quantised, torch.float32), (_pruned, torch.float64),
                                           (_weight_norm, torch.float64)])
def test_the_head_may_be_another_kind_of_layer(change, dtype):
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    network = LinearEmbedding(TinyResNet(pretrained=False), 8, 8).eval()
    expected = network(images)
    changed = change(network).to(dtype)
    found = changed(images)
    assert found.dtype == dtype and torch.allclose(found.float(), expected, atol=0.1)
    assert torch.allclose(torch.jit.trace(changed, images)(images), found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert changed(images).dtype == dtype


def test_a_backbone_has_its_own_normalisation():
    class Plain(TinyResNet):
        mean, std = (0.0, 0.5, 1.0), (1.0, 2.0, 4.0)

    found = Plain(pretrained=False).normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert found.flatten().tolist() == [1, 0.25, 0]


@pytest.mark.parametrize("normalize", [True, False])
def test_embedding_and_stages(normalize):
    network = LinearEmbedding(ResNet18(pretrained=False), 512, 16, normalize).eval()
    images = torch.randn(3, 3, 64, 64)
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


@pytest.fixture
def tiny_row(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", TinyResNet)


def test_a_resnet_recognises_its_own_weights(tiny_row):
    for name in "tiny", "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2":
        assert recognise(BACKBONES[name](pretrained=False).state_dict()) == name


def test_nobody_recognises_weights_of_another_network(tiny_row):
    tiny = TinyResNet(pretrained=False).state_dict()
    wider = {name: torch.ones([9] + list(value.shape[1:])) for name, value in tiny.items() if value.dim()}
    deeper = dict(tiny, **{"layer2.1.conv1.weight": torch.ones(8, 8, 3, 3)})
    scalars = {name: torch.tensor(1.0) for name in tiny}
    googlenet = torchvision.models.googlenet(init_weights=False).state_dict()  # with its classifiers
    for weights in googlenet, wider, deeper, scalars, {}, {"layer1.": torch.ones(1)}:
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
