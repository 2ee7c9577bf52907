"""Damaged weights and states of runs: each is named in one line; nothing in it is run, and no file is lost."""
import os
import pickle
import shutil
import zipfile

import pytest
import torch

import model.weights
import run
import run_distill
from conftest import make_pictures, options_for
from model import WeightsError, read_tensors
from model.compat import TORCH_VERSION
from runs import answer, content


def zero_bytes(path):
    open(path, "wb").close()


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(options_for(pictures, "--save_dir", str(directory), "--epochs", "1")) == 0
    return directory


class Code:
    def __reduce__(self):
        return os.mkdir, (Code.path,)


def cut_short(path):
    os.truncate(path, os.path.getsize(path) * 2 // 3)


def flipped_bytes(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) - 400)  # the list of the archive
        file.write(b"\0" * 64)


def text(path):
    with open(path, "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def bare_code(path):
    with open(path, "wb") as file:
        pickle.dump({"linear.weight": Code()}, file)


def code_in_torch(path):
    torch.save({"linear.weight": Code()}, path)


def code_in_old_torch(path):
    torch.save({"linear.weight": Code()}, path, _use_new_zipfile_serialization=False)


def other_objects(path):
    torch.save(torch.nn.Linear(2, 2), path)


def numbers(path):
    torch.save([1, 2, 3], path)


def other_network(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def not_finite(path):
    content = torch.load(path)
    weights = content.get("network", content)
    weights["linear.weight"][0, 0] = float("nan")
    torch.save(content, path)


def put(tensor):
    """Return the damage that puts ``tensor()`` in the place of the embedding's weights."""
    def damage(path):
        content = torch.load(path)
        try:
            content.get("network", content)["linear.weight"] = tensor()
            torch.save(content, path)
        except (AttributeError, NotImplementedError, RuntimeError):
            pytest.skip("this torch has no such tensors, or can't save them")
    return damage


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            archive.writestr(name, members[name])


DAMAGES = [zero_bytes, cut_short, flipped_bytes, text, other_zip, bare_code, code_in_torch, code_in_old_torch,
           other_objects, numbers, other_network, not_finite]
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


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights_are_one_line(trained, tmp_path, capsys, damage):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    Code.path = str(tmp_path / "code was run")
    for name in "best.pth", "checkpoint.pth":
        damage(str(directory / name))
    before = content(directory)
    best = directory / "best.pth"
    for main, argv, named in (
            (run.main, ["--mode", "eval", "--load", best], best),
            (run.main, ["--load", best, "--save_dir", tmp_path / "new"], best),
            (run.main, ["--resume", "--save_dir", directory, "--epochs", "2"], directory / "checkpoint.pth"),
            (run_distill.main, ["--teacher_load", best, "--dist_ratio", "1", "--pretrained", "none"], best)):
        code, _, err = answer(capsys, main, argv)
        assert code == 2 and len(err.splitlines()) == 1 and str(named) in err, err
    assert content(directory) == before
    assert not os.path.exists(Code.path) and not (tmp_path / "new").exists()
    expected = {bare_code: "can run code", code_in_torch: "can run code", not_finite: "not finite, first in linear"}
    assert expected.get(damage, "") in err


@pytest.mark.filterwarnings("ignore")  # torch calls some of these tensors unfinished
@pytest.mark.parametrize("kind, tensor", ODD_TENSORS)
def test_odd_tensors_are_one_line(trained, tmp_path, capsys, kind, tensor):
    if kind in ("meta", "sparse_csr") and TORCH_VERSION < (1, 13):
        pytest.skip("this torch crashes when it saves such tensors")
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    for name in "best.pth", "checkpoint.pth":
        put(tensor)(str(directory / name))
    for argv, named in (
            (["--mode", "eval", "--load", directory / "best.pth"], directory / "best.pth"),
            (["--resume", "--save_dir", directory, "--epochs", "2"], directory / "checkpoint.pth")):
        code, _, err = answer(capsys, run.main, argv)
        assert code == 2 and len(err.splitlines()) == 1 and "{} is refused".format(named) in err, err
        if "something else than tensors" not in err:  # what torch loads, we say more of
            assert "no plain array of numbers, linear.weight (" in err and kind in err


def test_whole_numbers_are_no_weights(trained, tmp_path, capsys):
    path = tmp_path / "best.pth"
    shutil.copy(str(trained / "best.pth"), str(path))
    put(lambda: torch.ones(8, 512, dtype=torch.int64))(str(path))
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", path])
    assert code == 2 and "holds whole numbers (int64) instead of weights, first in linear.weight" in err


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
    compressed(path)
    assert os.path.getsize(path) < 10 ** 5
    monkeypatch.setattr(model.weights, "load_tensors", pytest.fail)
    with pytest.raises(WeightsError, match="longer than the file"):
        read_tensors(path)


def test_the_code_would_have_run(tmp_path):
    Code.path = str(tmp_path / "code was run")
    code_in_torch(str(tmp_path / "code.pth"))
    torch.load(str(tmp_path / "code.pth"), **({"weights_only": False} if TORCH_VERSION >= (1, 13) else {}))
    assert os.path.exists(Code.path)


REMOVED = object()
PLACES = [  # in a state, what stands there, and what is said
    ("version", 99, "another version of this project"),
    ("script", "run_distill.py", "go on with that script"),
    ("options.epochs", "many", "gives --epochs the value 'many'"),
    ("options.epochs", torch.zeros(2), "its options is not what a run writes"),
    ("options.cache", 5, "gives --cache the value 5"),
    ("options.device", None, "gives --device the value None"),
    ("options.margin", 0.7, "is not of the run that config.json"),
    ("data.test", None, "its data is not what a run writes"),
    ("log", [1, 2], "its log is not what a run writes"),
    ("log", [], "does not say what its run has reached"),
    ("speed", ["{", "}"], "its speed is not what a run writes"),
    ("progress", {"epoch": 1}, "does not say how far"),
    ("progress.epoch", -5, "does not say how far"),
    ("progress.batch", 2, "does not say how far"),
    ("progress", dict(epoch=2, batch=9, sums=torch.ones(2), terms=["l2_triplet"], pictures=1, seconds=1.0, waited=0.0,
                      lr=1.0), "more batches of an epoch than there are"),
    ("record", {}, "does not say what its run has reached"),
    ("record.untrained", None, "does not say what its run has reached"),
    ("record.best", {"test": "much"}, "does not say what its run has reached"),
    ("network.linear.weight", torch.zeros(9, 512), "does not fit this run"),
    ("network.linear.weight", REMOVED, "does not fit this run"),
    ("training.optimizer", REMOVED, "its training is not what a run writes"),
    ("training.precision", 3, "its training is not what a run writes"),
    ("training.random.torch", torch.zeros(3), "does not fit this run"),
    ("training.random.numpy", [], "does not fit this run"),
    ("training.schedule", "", "does not fit this run"),
    ("training.schedule.last_epoch", REMOVED, "does not fit this run"),
    ("training.schedule._last_lr", [0.1, 0.2], "does not fit this run"),
    ("training.optimizer.state", {}, "moments are incomplete"),
    ("training.optimizer.state.3", REMOVED, "moments are incomplete"),
    ("training.optimizer.state.3.exp_avg", torch.zeros(2), "exp_avg of weight 3 does not fit"),
    ("training.optimizer.state.3.step", torch.tensor(0.0), "the step of weight 3 does not fit"),
    ("training.optimizer.param_groups.0.params", [0, 1], "of other weights"),
    ("training.optimizer.param_groups.0.lr", "fast", "lr can't be 'fast'"),
]


def _put(state, place, value):
    """Put ``value`` at ``place`` in nested containers; a name there may hold points itself."""
    while place:
        keys = range(len(state)) if isinstance(state, list) else state
        key, = [key for key in keys if (place + ".").startswith(str(key) + ".")]
        place = place[len(str(key)) + 1:]
        if not place:
            break
        state = state[key]
    if value is REMOVED:
        del state[key]
    else:
        state[key] = value


@pytest.mark.parametrize("place, value, expected", PLACES, ids=str)
def test_a_state_that_does_not_fit_is_one_line(trained, tmp_path, capsys, place, value, expected):
    directory = tmp_path / "run"
    shutil.copytree(str(trained), str(directory))
    state = torch.load(str(directory / "checkpoint.pth"))
    _put(state, place, value)
    torch.save(state, str(directory / "checkpoint.pth"))
    before = content(directory)
    code, _, err = answer(capsys, run.main, ["--resume", "--save_dir", directory, "--workers", "0"])
    assert code == 2 and len(err.splitlines()) == 1 and expected in err and "checkpoint.pth" in err
    assert content(directory) == before


def test_a_state_is_not_taken_for_weights(trained, capsys):
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", trained / "checkpoint.pth"])
    assert code == 2 and "is the state of a run, for --resume; the weights are in best.pth" in err


def test_the_test_set_needs_something_to_find(tmp_path, capsys):
    make_pictures(tmp_path / "set" / "train", classes=4)
    make_pictures(tmp_path / "set" / "test", classes=6, pictures=1)
    code, _, err = answer(capsys, run.main, options_for(tmp_path / "set"))
    assert code == 2 and "every class of the test set has a single picture" in err
