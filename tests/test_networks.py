"""torchvision's networks as backbones: features, normalisation, stages, recognition, poolings, networks without a head.

A few small families stand for all; benchmarks/every_network.py tries every network.
"""
import copy
import re

import pytest
import torch

import run
import run_distill
from conftest import SMALL, distil_for, options_for
from engine.networks import build_network, read_network_file
from model import (BACKBONES, POOLS, LinearEmbedding, WeightsError, build_backbone, check_backbone, compat,
                   find_backbone, fused, own_name, recognise)
from model.backbone import GoogleNet
from model.torchvision_networks import VisionTransformer
from model.torchvision_table import ROWS, digest_of
from processes import complete
from results import answer, failure
from test_model import _with_statistics, normalised

torchvision = compat.import_torchvision()
HERE = [row for row in ROWS if hasattr(torchvision.models, row.name)]


def there(*names):
    return [name for name in names if hasattr(torchvision.models, name)]


def backbone(name, **options):
    torch.manual_seed(0)
    return build_backbone(name, **options).eval()


def whole(name, classifier, **options):
    """Return torchvision's own network with its classifier taken out by hand."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(**options).eval()
    classifier(network)
    return network


def _without(name):
    return lambda network: setattr(network, name, torch.nn.Identity())


def _last_of_classifier(network):
    network.classifier[2] = torch.nn.Identity()


OWN = {"mobilenet_v2": _without("classifier"), "shufflenet_v2_x0_5": _without("fc"),
       "mnasnet0_5": _without("classifier"), "swin_t": _without("head"), "convnext_tiny": _last_of_classifier,
       "vit_b_32": _without("heads")}


@torch.no_grad()
@pytest.mark.parametrize("name", there(*OWN))
def test_features_are_those_of_torchvisions_network(name):
    options = {"image_size": 64} if name.startswith("vit") else {}
    reference, ours = whole(name, OWN[name], **options), backbone(name, **options)
    weights = {place: value for place, value in reference.state_dict().items() if place in ours.state_dict()}
    ours.load_state_dict(weights)  # torchvision's own names, strictly
    images = torch.randn(2, 3, 64, 64)
    found, expected = ours(images), reference(images)
    assert found.shape == (2, ours.output_size) and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inception_takes_its_pictures_as_torchvision_does():
    reference = whole("googlenet", _without("fc"), aux_logits=False, init_weights=False, transform_input=True)
    ours = backbone("torchvision/googlenet")
    ours.load_state_dict(reference.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = reference(normalised(images))
    assert torch.allclose(ours(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    theirs = GoogleNet(pretrained=False).eval()  # the reference's way: BGR, 0..255, less 104, 117, 128
    theirs.load_state_dict(reference.state_dict())
    bgr = images.float()[:, [2, 1, 0]] - torch.tensor([104.0, 117, 128]).view(1, 3, 1, 1)
    assert torch.equal(theirs(images), theirs(bgr)) and not torch.allclose(theirs(images), expected, rtol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", there("mobilenet_v2", "shufflenet_v2_x0_5", "swin_t", "convnext_tiny"))
def test_four_stages(name):
    network = backbone(name)
    images = torch.randn(1, 3, 64, 64)
    *stages, pooled = network(images, True)
    assert [stage.shape[2] for stage in stages] == [16, 8, 4, 2] and all(stage.shape[2] == stage.shape[3]
                                                                         for stage in stages)
    assert torch.equal(pooled, network(images))
    if not name.startswith("convnext"):  # it has a LayerNorm after the pooling
        assert torch.allclose(pooled, stages[3].mean((2, 3)), atol=1e-5)


def test_a_transformer_has_neither_stages_nor_a_map(pictures, teacher, capsys):
    argv = distil_for(teacher, "--base", "vit_b_32", "--at_ratio", "1")
    if there("vit_b_32"):
        assert "--at_ratio needs the maps of four stages, and --base vit_b_32 has none" in failure(
            capsys, run_distill.main, argv)
        line = failure(capsys, run.main, options_for(pictures, "--base", "vit_b_32", "--pool", "max"))
        assert "has no map to pool" in line
        line = failure(capsys, run.main, options_for(pictures, "--base", "vit_b_32", "--image_size", "40"))
        assert "a side that is a multiple of 32; --image_size is 40" in line
    else:
        assert re.search("torchvision .* has no vit_b_32; it came with 0.12", failure(capsys, run_distill.main, argv))
    line = failure(capsys, run.main, options_for(pictures, "--base", "alexnet"))
    assert "at least 63 pixels a side" in line
    line = failure(capsys, run.main, options_for(pictures, "--base", "mobilenet_v2", "--zero_init_residual"))
    assert "--zero_init_residual does nothing with --base mobilenet_v2" in line


@pytest.mark.skipif(not there("vit_b_32"), reason="this torchvision has no vision transformer")
def test_position_embeddings_of_another_grid(tmp_path):
    class Thin(VisionTransformer):
        step_of_sides = 32

        @classmethod
        def function(cls):
            return lambda **options: torchvision.models.VisionTransformer(
                patch_size=32, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, **options)

    grid, path = "encoder.pos_embedding", str(tmp_path / "vit.pth")
    small, large = Thin(False, image_size=64), Thin(False, image_size=128)
    rows = torch.arange(4.0).view(4, 1).expand(4, 4)  # a slope stays a slope
    with torch.no_grad():
        large.network.encoder.pos_embedding[0, 1:] = rows.reshape(16, 1).expand(16, 8)
    torch.save(dict(large.state_dict(), **{"heads.head.weight": torch.ones(2, 8)}), path)
    small.load(path)
    found = small.state_dict()[grid]
    assert found.shape == (1, 5, 8) and torch.equal(found[0, 0], large.state_dict()[grid][0, 0])
    assert torch.allclose(found[0, 1:, 0], torch.tensor([0.0, 0, 3, 3]), atol=1e-5)
    large.load(path)
    assert torch.equal(large.state_dict()[grid][0, 1:, 5].view(4, 4), rows)
    assert digest_of(small.state_dict()) == digest_of(large.state_dict())


@pytest.mark.parametrize("name", there("mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "googlenet"))
def test_a_row_is_what_the_network_is(name):
    network = build_backbone(name)
    row = next(row for row in ROWS if row.name == name)
    weights = network.state_dict()
    assert recognise(weights) == name and digest_of(weights) == row.digest
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 3) == row.millions == network.millions
    assert network.output_size == row.width == network.eval()(torch.rand(1, 3, 64, 64)).shape[1]
    weights["pool.p"] = torch.ones(1)
    assert recognise(weights) == name
    del weights[next(place for place in weights if place.endswith(".weight"))]
    assert recognise(weights) is None


def test_the_table_has_every_network_of_this_torchvision():
    names = {name for name, kind in vars(torchvision.models).items() if callable(kind) and name.islower()
             and not name.startswith("get_") and name not in ("list_models",)}
    assert names == {row.name for row in HERE} and len({row.digest for row in ROWS if row.digest}) == len(
        [row for row in ROWS if row.digest])


@pytest.mark.skipif(not hasattr(torchvision.models, "get_model_weights"), reason="this torchvision says nothing of it")
def test_normalisation_is_that_of_the_weights():
    for row in HERE:
        weights = getattr(torchvision.models.get_model_weights(row.name), "IMAGENET1K_V1", None)
        kind = find_backbone("torchvision/" + row.name)
        if weights is None:
            assert compat.imagenet_weights_url(row.name) is None
        else:
            transform = weights.transforms()
            assert (tuple(transform.mean), tuple(transform.std)) == (kind.mean, kind.std)
    with pytest.raises(WeightsError, match="has no IMAGENET1K_V1 weights of vit_h_14; give --pretrained FILE"):
        BACKBONES["vit_h_14"].weights_file("imagenet")


def test_names():
    assert own_name("torchvision/mobilenet_v2") == "mobilenet_v2" and own_name("swin_t") == "swin_t"
    assert own_name("torchvision/googlenet") == "torchvision/googlenet"
    assert find_backbone("torchvision/resnet18") is BACKBONES["resnet18"]
    with pytest.raises(WeightsError, match="nearest .* efficientnet_b0"):
        find_backbone("efficientnetb0")
    lacking = [row for row in ROWS if row not in HERE]
    for row in lacking[:1]:
        with pytest.raises(WeightsError, match="has no {}; it came with {}".format(row.name, row.since)):
            check_backbone(row.name, 224, "avg")


@pytest.mark.parametrize("main", [run.main, run_distill.main])
def test_list_of_backbones(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--list_backbones"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and {line.split()[0] for line in lines[1:]} == set(BACKBONES)
    assert ["mobilenet_v2", "1280", "2.224"] in [line.split() for line in lines]


def _plain_pool(name, image, p):
    """Pool one map, a list of rows, in plain loops."""
    values = [float(value) for row in image for value in row]
    mean = sum(values) / len(values)
    power = (sum(max(value, 1e-6) ** p for value in values) / len(values)) ** (1 / p)
    return {"avg": mean, "max": max(values), "avgmax": mean + max(values), "gem": power}[name]


@pytest.mark.parametrize("name", list(POOLS))
def test_poolings_in_plain_loops(name):
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pool = POOLS[name]().double()
    expected = [[_plain_pool(name, maps[i, c].tolist(), 3.0) for c in range(3)] for i in range(2)]
    assert torch.allclose(pool(maps).flatten(1), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(pool, maps.abs().add(0.1).requires_grad_(True))
    assert [place for place, _ in pool.named_parameters()] == (["p"] if name == "gem" else [])


@pytest.mark.parametrize("name", there("mobilenet_v2", "swin_t") + ["tiny"])
def test_a_network_without_a_head_and_with_a_trained_pooling(name, tmp_path, monkeypatch):
    from tiny import TinyResNet
    monkeypatch.setitem(BACKBONES, "tiny", TinyResNet)
    options = {"base": name, "embedding_size": 0, "l2normalize": False, "pool": "gem", "image_size": 64}
    network = build_network(options)
    network.base.pool.p.data.fill_(2.5)
    weights = network.state_dict()
    assert not [place for place in weights if place.startswith("linear")] and weights["base.pool.p"].tolist() == [2.5]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = network.eval()(images)
    assert expected.shape == (2, network.base.output_size)
    for noted in True, False:
        path = str(tmp_path / "network.pth")
        torch.save(weights if noted else dict(weights), path)
        file = read_network_file(path)
        assert file.options == (options if noted else {"base": name, "embedding_size": 0, "pool": "gem"})
        again = build_network(dict(options, **file.options), file).eval()
        assert torch.equal(again(images), expected)


def test_noted_names(tmp_path):
    path, network = str(tmp_path / "network.pth"), build_network(
        {"base": "torchvision/googlenet", "embedding_size": 4, "l2normalize": True})
    torch.save(network.state_dict(), path)
    assert read_network_file(path).options["base"] == "torchvision/googlenet"
    torch.save(dict(network.state_dict()), path)  # without the note
    for named, expected in (None, "googlenet"), ("torchvision/googlenet", "torchvision/googlenet"), (
            "resnet18", "googlenet"):
        assert read_network_file(path, named).options["base"] == expected
    weights = network.state_dict()
    weights.pop("base.conv1.conv.weight")  # nobody recognises it any more, but it says what it is
    torch.save(weights, path)
    with pytest.raises(WeightsError, match="does not fit a torchvision/googlenet .*conv1.conv.weight"):
        build_network(dict(read_network_file(path).options), read_network_file(path))


@torch.no_grad()
@pytest.mark.parametrize("name, left", [("mobilenet_v2", 0), ("shufflenet_v2_x0_5", 0), ("densenet121", 62),
                                        ("googlenet", 0)] + [("swin_t", 0)] * bool(there("swin_t")))
def test_folding(name, left):
    network = _with_statistics(LinearEmbedding(backbone(name), BACKBONES[name].output_size, 8, image_size=64))
    folded, images = fused(network), torch.rand(2, 3, 64, 64)
    for expected, found in zip(network.eval()(images, True), folded(images, True)):
        assert torch.allclose(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    assert len([layer for layer in folded.modules() if isinstance(layer, torch.nn.BatchNorm2d)]) == left


@torch.no_grad()
def test_what_can_not_be_folded_stays():
    class Twice(torch.nn.Module):
        """A convolution whose output is used again after its BatchNorm."""

        has_stages, output_size = False, 4

        def __init__(self):
            super().__init__()
            self.conv, self.bn = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, images):
            x = self.conv(images.float() / 255)
            return (self.bn(x) + x).mean((2, 3))

    network = _with_statistics(LinearEmbedding(Twice(), 4, 0))
    folded, images = fused(network), torch.rand(2, 3, 8, 8)
    assert isinstance(folded.base.bn, torch.nn.BatchNorm2d) and not folded.training
    assert torch.equal(folded(images), network.eval()(images))


def test_a_file_of_data_parallel_training(pictures, tmp_path, capsys):
    network = build_network({"base": "shufflenet_v2_x0_5", "embedding_size": 4, "l2normalize": True})
    path, data = str(tmp_path / "colleague.pth"), ["--dataset", "folder", "--data", str(pictures), "--image_size", "32"]
    torch.save({"state_dict": {"module." + name: value for name, value in network.state_dict().items()}}, path)
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--load", path, "--workers", "0"] + data)
    assert code == 0 and "Network: a shufflenet_v2_x0_5 with 4 dimensions" in out
    assert "without the prefix module." in out
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), path)
    line = failure(capsys, run.main, ["--mode", "eval", "--load", path] + data)
    assert "goes to --pretrained, with --embedding_size 0 if it is to be measured" in line
    code, out, _ = answer(capsys, run.main, ["--mode", "eval", "--pretrained", path, "--workers", "0", "--base",
                                             "shufflenet_v2_x0_5", "--embedding_size", "0"] + data)
    assert code == 0 and "Network: a shufflenet_v2_x0_5 without a head" in out


def test_old_names_of_densenets():
    adapted = BACKBONES["densenet121"].adapted(None, {
        "features.denseblock1.denselayer1.norm.1.weight": 1, "features.denseblock4.denselayer16.conv.2.weight": 2,
        "features.transition1.norm.weight": 3})
    assert adapted == {"features.denseblock1.denselayer1.norm1.weight": 1,
                       "features.denseblock4.denselayer16.conv2.weight": 2, "features.transition1.norm.weight": 3}


TEACHER = ["--dataset", "folder", "--image_size", "32", "--embedding_size", "4", "--base", "tiny", "--teacher_base",
           "tiny", "--dist_ratio", "1"] + SMALL


@pytest.mark.parametrize("more, expected", [
    ([], "a teacher is missing: give --teacher_load FILE, .* or --teacher_pretrained"),
    (["--teacher_pretrained", "none"], "a teacher is missing"),
    (["--teacher_pretrained", "x.pth"], "head of 128 dimensions would be untrained; add --teacher_embedding_size 0"),
    (["--teacher_pretrained", "x.pth", "--teacher_load", "y.pth"], "leave one of them out"),
    (["--teacher_pretrained", "x.pth", "--teacher_embedding_size", "0"], "x.pth: no such file"),
])
def test_teachers_that_are_none(pictures, capsys, tmp_path, monkeypatch, more, expected):
    monkeypatch.chdir(tmp_path)
    line = failure(capsys, run_distill.main, ["--data", str(pictures)] + TEACHER + more)
    assert re.search(expected, line)


def test_a_teacher_that_needs_no_training(pictures, tmp_path):
    from tiny import TinyResNet
    path, directory = tmp_path / "found.pth", tmp_path / "run"
    torch.manual_seed(5)
    weights = TinyResNet(pretrained=False).state_dict()
    torch.save(weights, str(path))
    argv = ["--data", str(pictures)] + TEACHER + ["--save_dir", str(directory)]
    found = ["--teacher_pretrained", str(path), "--teacher_embedding_size", "0", "--teacher_pool", "max"]
    assert complete("run_distill", argv + found, tmp_path / "out") == 0
    assert "Teacher: a TinyResNet without a head, pooled by max, L2-normalised" in (tmp_path / "out").read_text()
    resume = ["--resume", "--save_dir", str(directory), "--epochs", "3", "--workers", "0"]
    other = copy.deepcopy(weights)
    other["conv1.weight"] += 1
    torch.save(other, str(path))
    assert complete("run_distill", resume, tmp_path / "out") == 2
    assert "is not the file that this run began with" in (tmp_path / "out").read_text()
    torch.save(weights, str(path))
    assert complete("run_distill", resume, tmp_path / "out") == 0
