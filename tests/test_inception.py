"""BN-Inception: the public network's names, sizes, pools and pictures; its public state dict as people have it."""
import pytest
import torch
import torch.nn.functional as F

import run
from model import LinearEmbedding, WeightsError, build_backbone, fused, pretrained_file, recognise
from model.backbone import InceptionV1BN
from results import failure

# The whole public network has 11,295,240 parameters, 1024 x 1000 + 1000 of them in its classifier.
PARAMETERS = 11295240 - 1025000
KNOWN = {"conv1_7x7_s2.bias": (64,), "conv2_3x3_reduce_bn.running_var": (64,),
         "inception_3a_1x1.weight": (64, 192, 1, 1), "inception_3c_3x3.weight": (160, 128, 3, 3),
         "inception_4a_pool_proj.weight": (128, 576, 1, 1), "inception_4e_double_3x3_2.weight": (256, 256, 3, 3),
         "inception_5a_1x1_bn.weight": (352,), "inception_5b_double_3x3_reduce.weight": (192, 1024, 1, 1)}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = InceptionV1BN(pretrained=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # a state that folding and loading can get wrong
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return network.eval()


def plainly(weights, x):
    """The network again, from its state dict alone, branch by branch; returns its maps before each halving."""
    def layer(name, x, stride=1):
        kernel = weights[name + ".weight"].shape[-1]
        x = F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"], stride, kernel // 2)
        norm = [weights["{}_bn.{}".format(name, part)] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-5).clamp(min=0)

    x = F.max_pool2d(layer("conv1_7x7_s2", x, 2), 3, 2, ceil_mode=True)
    x = layer("conv2_3x3", layer("conv2_3x3_reduce", x))
    maps = [x]
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for block in "3a 3b 3c 4a 4b 4c 4d 4e 5a 5b".split():
        name, stride = "inception_" + block, 2 if block in ("3c", "4e") else 1
        branches = [] if stride == 2 else [layer(name + "_1x1", x)]
        branches.append(layer(name + "_3x3", layer(name + "_3x3_reduce", x), stride))
        double = layer(name + "_double_3x3_1", layer(name + "_double_3x3_reduce", x))
        branches.append(layer(name + "_double_3x3_2", double, stride))
        if stride == 2:
            maps.append(x)
            branches.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        else:
            pooled = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1)
            branches.append(layer(name + "_pool_proj", pooled))
        x = torch.cat(branches, 1)
    return maps + [x]


@torch.no_grad()
def test_it_is_the_public_network(network):
    weights = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    assert {name: tuple(weights[name].shape) for name in KNOWN} == KNOWN
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    blue_first = images[:, [2, 1, 0]].float() - torch.tensor([104.0, 117.0, 128.0]).view(1, 3, 1, 1)
    expected = plainly(weights, blue_first)
    *maps, pooled = network(images, True)
    assert [tuple(map.shape) for map in maps] == [(2, 192, 16, 16), (2, 320, 8, 8), (2, 608, 4, 4), (2, 1024, 2, 2)]
    for found, value in zip(maps + [pooled], expected + [expected[-1].mean((2, 3))]):
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-4 * float(value.max()))
    assert torch.equal(network(images), pooled) and pooled.shape == (2, network.output_size)
    assert torch.allclose(network(blue_first), pooled)  # floats are normalised already, their channels in order


def test_known_pictures():
    colours = torch.tensor([[10, 20, 30]], dtype=torch.uint8).view(1, 3, 1, 1)
    assert InceptionV1BN(pretrained=False).normalize(colours).flatten().tolist() == [30 - 104, 20 - 117, 10 - 128]


@torch.no_grad()
@pytest.mark.parametrize("side, last", [(32, 1), (33, 1), (40, 2), (72, 3)])
def test_sides_that_do_not_halve(network, side, last):
    assert network(torch.zeros(1, 3, side, side), True)[3].shape == (1, 1024, last, last)


@torch.no_grad()
def test_folded_it_is_the_same_function(network):
    embedding = LinearEmbedding(network, 1024, 8).eval()
    small, images = fused(embedding), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in small.modules())
    for expected, found in zip(embedding(images, True), small(images, True)):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def with_rows(weights):
    """As in the public file: what belongs to BatchNorms is 1 x C, and there are no counters of batches."""
    return {name: value.view(1, -1) if "_bn." in name else value for name, value in weights.items()
            if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("classifier", ["last_linear", "fc", None])
@pytest.mark.parametrize("change", [dict, with_rows])
def test_public_state_dicts_load(network, tmp_path, classifier, change):
    weights, path = network.state_dict(), str(tmp_path / "bn_inception.pth")
    there = change(weights)
    if classifier:
        there.update({classifier + ".weight": torch.ones(1000, 1024), classifier + ".bias": torch.ones(1000)})
    torch.save(there, path)
    assert pretrained_file("inception_v1bn", path) == path
    loaded = build_backbone("inception_v1bn", path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items() if "num_batches" not in name)


def test_whose_weights_they_are(network):
    weights = network.state_dict()
    assert recognise(weights) == "inception_v1bn" and recognise(with_rows(weights)) == "inception_v1bn"
    assert recognise(dict(weights, **{"conv1_7x7_s2.weight": torch.ones(64)})) is None


def test_what_can_not_be_had_is_one_line(tmp_path, capsys):
    for weights in True, "imagenet":
        with pytest.raises(WeightsError, match="get bn_inception-52deb4733.pth .* give --pretrained FILE"):
            InceptionV1BN(weights)
    torch.save({"conv1_7x7_s2.weight": torch.ones(64, 3, 7, 7)}, str(tmp_path / "part.pth"))
    with pytest.raises(WeightsError, match="is not a state dict of InceptionV1BN: .* missing"):
        InceptionV1BN(str(tmp_path / "part.pth"))
    line = failure(capsys, run.main, ["--base", "inception_v1bn", "--dataset", "folder", "--data", str(tmp_path)])
    assert "bn_inception-52deb4733.pth" in line
