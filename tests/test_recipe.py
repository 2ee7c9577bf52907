"""--recipe: options from a file."""
import json
import os

import pytest

import run
import run_distill
from conftest import SMALL, options_for
from engine.recipe import parse_with_recipe
from processes import ROOT
from results import answer, content, failure, read

RECIPES = os.path.join(ROOT, "examples", "recipes")


@pytest.fixture
def recipe(tmp_path):
    def write(content):
        path = tmp_path / "recipe.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8-sig")
        return str(path)
    return write


def parsed(path, *words, script=run):
    return parse_with_recipe(script.build_parser(), ["--recipe", str(path)] + [str(word) for word in words])


def test_a_value_of_each_kind(recipe, capsys):
    path = recipe({"lr": 1, "epochs": 7, "recall": [2, 2, 4], "l2normalize": False, "freeze_bn": True, "sync_bn": False,
                   "optimizer": "sgd", "data": "~/x", "clip_grad": None, "margin": 1e-05})
    args = parsed(path).args
    expected = dict(lr=1.0, epochs=7, recall=[2, 2, 4], l2normalize=False, freeze_bn=True, sync_bn=False,
                    optimizer="sgd", data=os.path.expanduser("~/x"), clip_grad=None, margin=1e-5)
    assert {name: getattr(args, name) for name in expected} == expected
    assert type(args.lr) is float
    assert capsys.readouterr().out == (
        "From {}: --data {}, --epochs 7, --freeze_bn, --l2normalize false, --lr 1.0, --margin 1e-05, --optimizer sgd, "
        "--recall 2 2 4\n".format(path, args.data))


def test_the_command_line_wins(recipe, capsys):
    path = recipe({"lr": 0.5, "epochs": 7})
    for words in (["--lr", "0.25"], ["--lr=0.25"], ["--lr", run.build_parser().get_default("lr")]):
        command = parsed(path, *words)
        assert command.args.lr == float(words[-1].split("=")[-1] if isinstance(words[-1], str) else words[-1])
        assert command.args.epochs == 7 and {"lr", "epochs", "recipe"} == command.given
    assert "--lr" not in capsys.readouterr().out


@pytest.mark.parametrize("stated, expected", [
    ({"optimiser": "sgd"}, "run.py has no option 'optimiser'; did you mean optimizer?"),
    ({"triplet_sample": "all"}, "run.py has no option 'triplet_sample'"),
    ({"help": True}, "run.py has no option 'help'"),
    ({"lr": "fast"}, "argument --lr: 'fast' is not a number above 0"),
    ({"lr": "1e-3"}, '--lr can\'t be "1e-3"'),
    ({"lr": None}, "--lr can't be null"),
    ({"lr": [1]}, "--lr can't be [1]"),
    ({"epochs": True}, "argument --epochs: 'true' is not a whole number"),
    ({"epochs": 2.0}, "argument --epochs: '2.0' is not a whole number"),
    ({"recall": 1}, "--recall can't be 1"),
    ({"recall": []}, "--recall can't be []"),
    ({"recall": [1, "-h"]}, "argument --recall: '-h' is not a whole number"),
    ({"freeze_bn": 1}, "--freeze_bn can't be 1"),
    ({"l2normalize": 0}, "argument --l2normalize: '0' is neither true nor false"),
    ({"data": 5}, "--data can't be 5"),
    ({"data": "a\0b"}, "--data can't be"),
    ({"sample": "none"}, "argument --sample: invalid choice: 'none'"),
    ({"loss": "none"}, "argument --loss: 'none' is none of "),
    ({"save_dir": "x"}, "--save_dir is no part of a recipe; give it on the command line"),
    ({"recipe": "x"}, "--recipe is no part of a recipe"),
    ({"mode": "eval"}, "--mode is no part of a recipe"),
    ({"script": "run.py", "options": {"sampel": "all"}}, "run.py has no option 'sampel'; did you mean sample"),
    ({"script": "run_distill.py", "options": {}}, "this is a config.json of run_distill.py, and run.py has other"),
    ([], "not a file of options in JSON"),
    ("{", "not a file of options in JSON"),
    ("[" * 100000, "not a file of options in JSON"),
])
def test_what_is_no_recipe_is_one_line(recipe, capsys, stated, expected):
    path = recipe(stated)
    line = failure(capsys, run.main, ["--recipe", path])
    assert line.startswith("run.py: error: --recipe {}: ".format(path)) and expected in line


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    for path in (tmp_path / "none.json", tmp_path):
        assert "no such file" in failure(capsys, run.main, ["--recipe", str(path)])


def test_the_config_of_a_run_makes_it_again(pictures, whole, tmp_path, capsys):
    config = json.loads(read(str(whole), "config.json"))
    code, out, _ = answer(capsys, run.main, ["--recipe", whole / "config.json", "--save_dir", tmp_path / "again",
                                             "--workers", "0", "--device", "cpu"])
    assert code == 0 and "From {}: --base tiny, --batch 8, ".format(whole / "config.json") in out
    assert "workers" not in out.split("Options")[0] and "save_dir" not in out.split("Options")[0]
    for name in ("last.pth", "log.jsonl"):
        assert content(tmp_path / "again")[name] == content(whole)[name], name
    again = json.loads(read(str(tmp_path / "again"), "config.json"))["options"]
    assert again["recipe"] == str(whole / "config.json")
    assert {name for name, value in config["options"].items() if value != again[name]} == {
        "recipe", "save_dir", "checkpoint_every"}


def test_the_options_of_a_file_may_be_idle(recipe, capsys):
    config = {name: value for name, value in vars(run.build_parser().parse_args([])).items()}
    config.update(lr_decay_epochs=[3], pretrained="none")
    whole = {"script": "run.py", "options": config}
    typed = ["--schedule", "cosine", "--load", "nowhere.pth"]
    for stated in (whole, {"lr_decay_gamma": 0.5}, {"lr_decay_epochs": [3]}):  # a run's; the default; another value
        assert "nowhere.pth: no such file" in failure(capsys, run.main, ["--recipe", recipe(stated)] + typed)
    line = failure(capsys, run.main, ["--recipe", recipe(whole), "--lr_decay_epochs", "3"] + typed)
    assert "--lr_decay_epochs does nothing with --schedule cosine" in line


def test_a_loss_that_is_typed_leaves_options_of_others_in_the_file_idle(recipe, capsys):
    path = recipe({"loss": "proxy_anchor", "proxy_margin": 0.2, "proxy_lr": 10})
    line = failure(capsys, run.main, ["--recipe", path, "--loss", "l2_triplet", "--load", "nowhere.pth"])
    assert "nowhere.pth: no such file" in line
    line = failure(capsys, run.main, ["--recipe", path, "--sample", "distance", "--load", "nowhere.pth"])
    assert "--sample does nothing with --loss proxy_anchor; leave it out" in line
    path = recipe({"loss": "l2_triplet", "sample": "distance", "margin": 0.3})
    line = failure(capsys, run.main, ["--recipe", path, "--loss", "proxy_anchor", "--load", "nowhere.pth"])
    assert "nowhere.pth: no such file" in line


def test_what_is_typed_settles_what_belongs_to_it(recipe, pictures, capsys):
    options = dict(vars(run.build_parser().parse_args([])), dataset="folder", data=str(pictures), load="nowhere.pth")
    whole = recipe({"script": "run.py", "options": options})
    typed = SMALL + ["--base", "tiny", "--image_size", "32", "--epochs", "1"]
    assert answer(capsys, run.main, ["--recipe", whole] + typed)[0] == 0  # --pretrained is typed, so no --load
    line = failure(capsys, run.main, ["--recipe", whole, "--dataset", "cub200"] + typed)
    assert os.path.join("data", "CUB_200_2011") in line and str(pictures) not in line  # --data is of another set
    zero = recipe({"pretrained": "none", "zero_init_residual": True})
    assert "nowhere.pth: no such file" in failure(capsys, run.main, ["--recipe", zero, "--load", "nowhere.pth"])


def test_a_networks_file_on_the_command_line_says_what_it_is(teacher, recipe, pictures, capsys):
    path = recipe({"embedding_size": 64, "l2normalize": False, "teacher_embedding_size": 77, "dist_ratio": 1})
    words = ["--recipe", path, "--teacher_load", teacher + "/best.pth", "--base", "tiny"] + SMALL
    code, out, _ = answer(capsys, run_distill.main, words)
    assert code == 0 and "Teacher: a TinyResNet with 8 dimensions, L2-normalised" in out
    assert "Student: a TinyResNet with 64 dimensions, not L2-normalised" in out
    stated = recipe({"load": teacher + "/best.pth", "embedding_size": 64})
    line = failure(capsys, run.main, ["--recipe", stated, "--dataset", "folder", "--data", str(pictures)])
    assert "holds a TinyResNet with 8 dimensions, L2-normalised; you asked for" in line


def test_a_recipe_does_not_change_a_run_that_goes_on(pictures, tmp_path, recipe, capsys):
    path, directory = recipe({"optimizer": "sgd", "lr": 1e-3}), tmp_path / "run"
    argv = options_for(pictures, "--epochs", "1", "--recipe", path, "--resume", "--save_dir", directory)
    assert answer(capsys, run.main, argv)[0] == 0
    assert answer(capsys, run.main, argv)[0] == 0
    assert answer(capsys, run.main, ["--resume", "--save_dir", directory])[0] == 0
    recipe({"optimizer": "sgd", "lr": 1e-2, "margin": 0.2})
    assert "(--lr 0.001 there, 0.01 here)" in failure(capsys, run.main, argv)
    recipe({"optimizer": "adam"})
    assert "(--optimizer sgd there, adam here)" in failure(capsys, run.main, argv)
    (tmp_path / "recipe.json").unlink()
    assert answer(capsys, run.main, ["--resume", "--save_dir", directory])[0] == 0


def test_a_recipe_is_for_training(whole, capsys):
    line = failure(capsys, run.main, ["--mode", "eval", "--recipe", str(whole / "config.json")])
    assert line.endswith("--recipe does nothing with --mode eval; leave it out")


def scripts_of(name):
    return [run] if "loss" in json.loads(read(RECIPES, name)) else [run, run_distill]


@pytest.mark.parametrize("name, script", [(name, script) for name in sorted(os.listdir(RECIPES))
                                          for script in scripts_of(name)], ids=str)
def test_the_recipes_in_examples_train(pictures, teacher, tmp_path, capsys, name, script):
    words = ["--recipe", os.path.join(RECIPES, name), "--base", "tiny"] + SMALL
    if script is run:
        words += ["--dataset", "folder", "--data", pictures, "--image_size", "32"]
    else:
        words += ["--teacher_load", teacher + "/best.pth", "--dist_ratio", "1"]
    code, _, err = answer(capsys, script.main, words)
    assert code == 0, err
