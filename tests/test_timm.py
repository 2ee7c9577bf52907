"""timm's networks: the features are timm's, their files load, what is missing is one line, runs know what they are."""
import json
import re
import shutil
import socket
import sys

import pytest
import torch

import run
import run_distill
from conftest import distil_for, options_for
from engine.networks import build_network, read_network_file
from model import (LinearEmbedding, WeightsError, build_backbone, compat, find_backbone, fused, pretrained_file,
                   recognise)
from results import answer, failure

compat.import_torchvision()  # timm imports it
timm = pytest.importorskip("timm", reason="needs the package timm")
SMALL = ["test_vit", "test_resnet", "test_efficientnet"]
SIDE = 64


@pytest.fixture
def calls(monkeypatch):
    """What looks up an address, which nothing here may do."""
    there = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: there.append(args) or [])
    return there


def build(name, pretrained="none", image_size=SIDE, pool="avg"):
    return build_backbone("timm/" + name, pretrained, pool, image_size=image_size).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pth", "safetensors", "without classifier", "without counters"])
@pytest.mark.parametrize("name", SMALL)
def test_features_are_timms(tmp_path, calls, name, kind):
    torch.manual_seed(0)
    original = timm.create_model(name, **({"img_size": SIDE} if "vit" in name else {})).eval()
    weights, path = original.state_dict(), str(tmp_path / "weights.pth")
    if kind == "without classifier":
        weights = timm.create_model(name, num_classes=0).state_dict()
        weights.update((name, value) for name, value in original.state_dict().items() if name in weights)
    if kind == "without counters":
        weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        torch.save(weights, path)
    backbone = build(name, path)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    mean, std = (torch.tensor(original.pretrained_cfg[part]).view(1, 3, 1, 1) for part in ("mean", "std"))
    expected = original.forward_head(original.forward_features((images / 255.0 - mean) / std), pre_logits=True)
    assert torch.allclose(backbone(images), expected, atol=1e-5) and expected.shape == (2, backbone.output_size)
    assert set(backbone.state_dict()) <= set(original.state_dict()) and not calls


@torch.no_grad()
@pytest.mark.parametrize("name, widths", [("test_resnet", [32, 48, 192, 96]), ("test_efficientnet", [24, 32, 48, 64]),
                                          ("test_convnext", [24, 32, 48, 64])])
def test_stages_are_the_last_four_sizes(name, widths):
    backbone, images = build(name), torch.randn(2, 3, SIDE, SIDE)
    *maps, pooled = backbone(images, True)
    assert backbone.has_stages
    assert [tuple(map.shape) for map in maps] == [
        (2, width, SIDE // side, SIDE // side) for width, side in zip(widths, (4, 8, 16, 32))]
    assert torch.equal(pooled, backbone(images))


def test_what_runs_after_the_stages():
    backbone = build("test_efficientnet")
    after = {id(parameter) for module in backbone.after_maps() for parameter in module.parameters()}
    names = {name for name, parameter in backbone.network.named_parameters() if id(parameter) in after}
    assert names == {"conv_head.weight", "bn2.weight", "bn2.bias"}
    *maps, _ = backbone(torch.randn(2, 3, SIDE, SIDE), True)
    sum(map.sum() for map in maps).backward()
    assert {name for name, parameter in backbone.network.named_parameters() if parameter.grad is None} == names


def test_a_network_of_one_size_has_no_stages():
    assert not build("test_vit").has_stages and not find_backbone("timm/test_vit").has_stages
    assert find_backbone("timm/test_resnet").has_stages


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_other_poolings_pool_the_last_map(tmp_path, name):
    images = torch.randn(2, 3, SIDE, SIDE)
    plain, pooled = build(name), build(name, pool="max")
    pooled.load_state_dict(plain.state_dict())
    kept = plain.network
    kept.reset_classifier(0, "")
    expected = kept(images)
    assert expected.dim() == 4 and torch.allclose(pooled(images), expected.amax((2, 3)))
    assert torch.equal(pooled(images, True)[-1], pooled(images)) and pooled.output_size == expected.shape[1]
    trained, again = build(name, pool="gem"), build(name, pool="gem")
    trained.pool.p.fill_(2.0)
    assert set(trained.state_dict()) == set(plain.state_dict()) | {"pool.p"}
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again(images), trained(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_folded_it_is_the_same_function(name):
    network = LinearEmbedding(build(name), build(name).output_size, 8, image_size=SIDE).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    small, images = fused(network), torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.allclose(small(images), network(images), atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in small.modules())


def test_a_name_with_a_tag_has_its_own_mean_and_size():
    kind = find_backbone("timm/vit_small_patch14_dinov2.lvd142m")
    assert (kind.image_size, kind.mean, kind.architecture) == (518, (0.485, 0.456, 0.406), None)
    assert kind is find_backbone("timm/vit_small_patch14_dinov2.lvd142m")
    assert find_backbone("timm/test_vit").mean == (0.5, 0.5, 0.5)
    assert recognise(build("test_vit").state_dict()) is None


def test_position_embeddings_are_resampled(tmp_path, calls):
    weights = build("test_vit", image_size=160).state_dict()  # a class token and 10 x 10 places
    weights["pos_embed"][0, 0], weights["pos_embed"][0, 1:] = 1, 2
    weights["pos_embed"][0, 1:, 0] = torch.arange(10.0).repeat_interleave(10)  # grows from line to line
    torch.save(weights, str(tmp_path / "weights.pth"))
    found = build("test_vit", str(tmp_path / "weights.pth"), 80).state_dict()
    assert found["pos_embed"].shape == (1, 26, 64) and not calls
    assert torch.allclose(found["pos_embed"][0, 0], torch.tensor(1.0))
    assert torch.allclose(found["pos_embed"][0, 1:, 1:], torch.tensor(2.0))
    lines = found["pos_embed"][0, 1:, 0].view(5, 5)
    assert torch.allclose(lines, lines[:, :1].expand(5, 5), atol=1e-5) and (lines[1:] > lines[:-1]).all()
    assert abs(float(lines[2, 0]) - 4.5) < 1e-4
    assert all(torch.equal(found[name], value) for name, value in weights.items() if name != "pos_embed")


def test_files_that_do_not_fit_are_one_line(tmp_path, calls):
    path, weights = str(tmp_path / "weights.pth"), build("test_vit").state_dict()
    for there, expected in (
            (build("test_resnet").state_dict(), r"not a state dict of timm/test_vit: 78 missing and 0 unknown names"),
            (dict(list(weights.items())[:-1]), "1 missing and 0 unknown names, first norm.bias"),
            (dict(weights, **{"blocks.9.more": torch.ones(1)}), "0 missing and 1 unknown names, first blocks.9.more"),
            (dict(weights, **{"norm.bias": torch.ones(7)}), "size mismatch for (network.)?norm.bias"),
            ({"base." + name: value for name, value in dict(weights, **{"x.linear.weight": torch.ones(1)}).items()},
             "is a whole embedding network; it goes to --load")):
        torch.save(there, path)
        with pytest.raises(WeightsError, match=expected) as error:
            build("test_vit", path)
        assert "\n" not in str(error.value)
    assert not calls


@pytest.mark.parametrize("name, expected", [
    ("test_resnett", "timm [0-9.]+ has no network 'test_resnett'; do you mean timm/test_resnet"),
    ("", "has no network ''"), ("hf-hub:a/b", "has no network 'hf-hub:a/b'"),
    ("test_vit.none", "has no weights 'test_vit.none'; of test_vit it has test_vit.r160_in1k")])
def test_names_that_timm_has_not(name, expected):
    with pytest.raises(WeightsError, match=expected):
        find_backbone("timm/" + name)


def test_what_a_network_can_not_be_is_one_line():
    for image_size, name in ((100, "test_vit"), (40, "test_coatnet")):
        expected = "timm/{} can't be built for pictures of {} pixels .*own --image_size is 160".format(name, image_size)
        with pytest.raises(WeightsError, match=expected):
            build(name, image_size=image_size)
    with pytest.raises(WeightsError, match="timm/test_vit has no map of one vector a place, so --pool gem does"):
        build("test_vit", pool="gem")


def test_without_timm_both_scripts_say_what_to_install(pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    distil = distil_for("unused", "--dist_ratio", "1", "--teacher_base", "timm/test_byobnet")
    for main, argv in ((run.main, options_for(pictures, base="timm/test_byobnet")), (run_distill.main, distil)):
        assert "needs the package timm: pip install timm" in failure(capsys, main, argv)


def test_timms_own_weights(monkeypatch):
    asked, create = [], timm.create_model

    def fetching(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fetching)
    assert pretrained_file("timm/test_vit.r160_in1k", "imagenet") == "imagenet"
    build("test_vit.r160_in1k", "imagenet")
    assert asked == [("test_vit.r160_in1k", True)] * 2

    def unreachable(name, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    for fetch in (lambda: pretrained_file("timm/test_vit", "imagenet"), lambda: build("test_vit", True)):
        with pytest.raises(WeightsError, match=r"\(no route\): get timm/test_vit.r160_in1k, .*--pretrained FILE"):
            fetch()


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """The --save_dir of a run of timm/test_vit that was not told its size."""
    directory = tmp_path_factory.mktemp("timm") / "run"
    argv = options_for(pictures, "--epochs", "1", "--no_train_recall", "--save_dir", directory, base="timm/test_vit")
    del argv[argv.index("--image_size"):argv.index("--image_size") + 2]
    assert run.main(argv) == 0
    return directory


def measured(capsys, path, *more):
    code, out, err = answer(capsys, run.main, ["--mode", "eval", "--load", path, "--workers", "0", "--device", "cpu",
                                               "--no_train_recall"] + list(more))
    assert code == 0, err
    return re.findall(r"Recall@1: \[.*", out), out


def test_a_run_takes_the_networks_own_size_and_its_files_know_the_network(trained, pictures, tmp_path, capsys):
    options = json.loads((trained / "config.json").read_text())["options"]
    assert (options["image_size"], options["base"]) == (160, "timm/test_vit")
    expected, out = measured(capsys, trained / "best.pth")
    assert "a timm/test_vit with 8 dimensions" in out
    data = ["--dataset", "folder", "--data", pictures]
    shutil.copy(str(trained / "best.pth"), str(tmp_path / "alone.pth"))
    assert read_network_file(str(tmp_path / "alone.pth")).options["base"] == "timm/test_vit"
    found, out = measured(capsys, tmp_path / "alone.pth", *data)
    assert found == expected and "--image_size 160" in out and "Warning" not in out
    _, out = measured(capsys, tmp_path / "alone.pth", "--image_size", "80", *data)  # resampled
    assert "Recall@1" in out


def test_a_network_as_it_comes_embeds_a_gallery(trained, tmp_path, capsys):
    gallery = build("test_resnet")
    torch.save(gallery.network.state_dict(), str(tmp_path / "found.pth"))
    torch.save({"weight": torch.eye(gallery.output_size, 8)}, str(tmp_path / "projection.pth"))
    _, out = measured(
        capsys, trained / "best.pth", "--gallery_base", "timm/test_resnet", "--gallery_embedding_size", "0",
        "--gallery_pretrained", tmp_path / "found.pth", "--projection_load", tmp_path / "projection.pth")
    assert "from 8 dimensions to {}".format(gallery.output_size) in out and "For comparison" in out


def test_as_safetensors_beside_its_config(trained, pictures, tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    path = str(tmp_path / "best.safetensors")
    safetensors.save_file(dict(torch.load(str(trained / "best.pth"))), path)
    assert "is not an embedding network" in failure(capsys, run.main, ["--mode", "eval", "--load", path])
    shutil.copy(str(trained / "config.json"), str(tmp_path))
    assert measured(capsys, path)[0] == measured(capsys, trained / "best.pth")[0]


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/densenet121"])
def test_names_that_are_torchvisions_too(tmp_path, name):
    path, options = str(tmp_path / "alone.pth"), {"base": name, "embedding_size": 4, "l2normalize": True}
    torch.save(dict(build_network(options).state_dict()), path)  # without the note
    for named, expected in (name, name), (None, name[len("timm/"):]), ("resnet50", name[len("timm/"):]):
        assert read_network_file(path, named).options["base"] == expected


def test_a_teacher_of_timm(trained, pictures, capsys):
    argv = distil_for(trained, "--dist_ratio", "1", "--epochs", "1", "--iter_per_epoch", "1", "--no_train_recall")
    code, out, err = answer(capsys, run_distill.main, argv)
    assert code == 0, err
    assert "Teacher: a timm/test_vit" in out and "config.json: --data" in out and "--image_size 160" in out


def test_a_size_that_is_given_is_taken(pictures, capsys):
    argv = options_for(pictures, "--epochs", "1", "--iter_per_epoch", "1", "--no_train_recall", base="timm/test_vit")
    code, out, err = answer(capsys, run.main, argv)
    assert code == 0 and "From timm/test_vit" not in out and '"image_size": 32' in out, err
