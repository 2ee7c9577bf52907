"""Random command lines: whatever is typed, the answer is a result or one line, never a traceback."""
import argparse
import collections
import os
import random
import shutil

import pytest

import model.weights
import run
import run_distill
from conftest import options_for
from dataset import CUB2011Metric, StanfordOnlineProductsMetric, download
from metric.loss import LOSSES

# RKD_COMMAND_LINES=2000 is a long version; RKD_SEED=1 draws others.
COUNT = int(os.environ.get("RKD_COMMAND_LINES", "60"))
ODD = ["", " ", "-1", "0", "1", "2", "3", "8", "33", "1.5", "1e-3", "-0.0", "1e400", "nan", "inf", "-inf", "0x10",
       "1_0", "9" * 20, "\uff11", "\u00fc", "None", "true", "FALSE", "yes", "auto", "off", "none", "cpu", "cuda:99",
       "a\nb", "*", "folder", "cub200", "cars196", "resnet18", "googlenet", "all", "hard", "fp16", "fp32", "bf16",
       "eval", "--", "-"]
PATHS = ["set", "run", "run/best.pth", "run/checkpoint.pth", "run/config.json", "new", "new/deep", "missing.pth",
         ".", "/dev/null", "/proc/version", "file", "file/below", "x" * 300, "weights.pth"]
# A run of ages, a compiler of a minute, 1,920 drawn birds, a step that rightly ends in infinity: no subject here.
LEFT_OUT = {"epochs": {"9" * 20}, "iter_per_epoch": {"9" * 20}, "head_lr": {"9" * 20}, "weight_decay": {"9" * 20},
            "lr": {"1", "2", "3", "8", "33", "1.5", "1_0", "9" * 20, "\uff11"}}
SENSIBLE = {"l2normalize": ["true", "false"], "teacher_l2normalize": ["true"], "embedding_size": ["8", "3"],
            "image_size": ["33", "40"], "workers": ["0", "1"], "device": ["cpu", "auto"],
            "cache": ["auto", "off", "new"], "pretrained": ["none"], "data": ["set"], "load": ["weights.pth"],
            "save_dir": ["new", "new/deep", "run"], "lr": ["1e-3"], "recipe": ["run/config.json"],
            "batch": ["8", "6"], "loss": list(LOSSES) + ["pml/CircleLoss"]}
FLAGS_LEFT_OUT = {"compile", "list_backbones"}


def random_words(rng, parser):
    """Return some options of the parser, each with values that may or may not make sense."""
    actions = [action for action in parser._actions if action.option_strings and action.dest not in FLAGS_LEFT_OUT]
    words = []
    for action in rng.sample(actions, rng.randint(1, 4)):
        words.append(rng.choice(action.option_strings))
        if isinstance(action, (argparse._StoreTrueAction, argparse._HelpAction)):
            continue
        pool = [word for word in ODD + PATHS + list(action.choices or []) * 10
                if word not in LEFT_OUT.get(action.dest, ()) and word != "synthetic"]
        pool += SENSIBLE.get(action.dest, [])
        for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2] if action.nargs is None else [0, 1, 2, 3])):
            sensible = action.choices or SENSIBLE.get(action.dest) or ["1", "2", "3"]
            words.append(rng.choice([word for word in sensible if word in pool] if rng.random() < 0.7 else pool))
    return words


def test_random_command_lines(pictures, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for data_set in CUB2011Metric, StanfordOnlineProductsMetric:
        monkeypatch.setattr(data_set, "URL", "http://127.0.0.1:9/set.tgz")  # nobody listens there
    monkeypatch.setattr(download, "PAUSES", ())
    monkeypatch.setattr(model.weights, "imagenet_weights_url", lambda name: "http://127.0.0.1:9/none-12345678.pth")
    shutil.copytree(str(pictures), "set")
    (tmp_path / "file").write_text("text")
    base = options_for("set", "--epochs", "1", "--iter_per_epoch", "1")
    assert run.main(base + ["--save_dir", "run"]) == 0
    shutil.copy("run/best.pth", "weights.pth")
    seed = int(os.environ.get("RKD_SEED", "0"))
    rng, codes = random.Random(seed), collections.Counter()
    for number in range(COUNT):
        script = (run, run_distill)[number % 2]
        argv = list(base)
        if script is run_distill:
            argv += ["--teacher_load", "weights.pth", "--dist_ratio", "1"]
        elif rng.random() < 0.2:
            argv = ["--mode", "eval", "--load", "run/best.pth", "--data", "set", "--workers", "0"]
        argv += random_words(rng, script.build_parser())
        if rng.random() < 0.1:
            del argv[rng.randrange(len(argv))]
        shown = ("{}.py {!r}\nNumber {}; RKD_SEED={} RKD_COMMAND_LINES={} bash tests/run.sh -n 0 -k random_command "
                 "repeats it").format(script.__name__, argv, number, seed, number + 1)
        capfd.readouterr()
        try:
            code = script.main(argv)
        except SystemExit as error:  # argparse
            code = error.code
        except BaseException as error:
            pytest.fail("{!r}\n{}".format(error, shown))
        out, err = capfd.readouterr()
        shown += "\n" + err
        assert code in (0, 2), shown
        assert "Traceback" not in err, shown
        if code == 2:
            assert len(err.splitlines()) == 1 and ": error: " in err, shown
        else:
            assert "Recall@" in out or "usage:" in out, shown
        codes[code] += 1
    assert (tmp_path / "file").read_text() == "text" and len(os.listdir(str(tmp_path / "set"))) >= 6
    assert min(codes[0], codes[2]) > COUNT // 20, codes
