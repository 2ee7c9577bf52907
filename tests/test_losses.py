"""run.py --loss: its options, what a loss with weights of its own leaves, and losses of pytorch-metric-learning."""
import importlib
import json
import signal
import sys

import pytest
import torch

import run
from conftest import make_pictures, options_for
from engine.losses import build_loss, numbers_of
from metric.loss import LOSSES, ContrastiveLoss, MultiSimilarity, ProxyAnchor, find_loss
from metric.pairsampler import DistanceWeighted
from processes import at_step, codes, complete, start_ranks
from results import answer, assert_same_run, failure

LOSSES_OF_A_PACKAGE = '''
import torch

class _Base(torch.nn.Module):
    def __init__(self, scale=1, **kwargs):
        super().__init__()
        self.scale = scale

    def forward(self, embeddings, labels):
        assert embeddings.dtype == torch.float32
        return self.scale * self.value(embeddings, labels)

class PairLoss(_Base):
    def value(self, embeddings, labels):
        return torch.cdist(embeddings, embeddings.detach() + 1)[labels[:, None] == labels[None]].mean()

class ProxyLoss(_Base):
    def __init__(self, num_classes, embedding_size, optional=None, **kwargs):
        super().__init__(**kwargs)
        self.W = torch.nn.Parameter(torch.randn(num_classes, embedding_size))

    def value(self, embeddings, labels):
        return torch.nn.functional.cross_entropy(embeddings @ self.W.t(), labels)

class DerivedLoss(ProxyLoss):
    def __init__(self, *args, margin=3, num_proxies=None, **kwargs):
        super().__init__(*args, scale=margin, **kwargs)

class OptionalLoss(PairLoss):
    def __init__(self, num_classes=None, embedding_size=None):
        super().__init__()
        assert num_classes is None and embedding_size is None

class WrapperLoss(_Base):
    def __init__(self, loss, num_classes, gamma, **kwargs):
        super().__init__(**kwargs)

class VectorLoss(_Base):
    def value(self, embeddings, labels):
        return embeddings.sum(1)

class TupleLoss(_Base):
    def forward(self, embeddings, labels):
        return embeddings.sum(), labels

class AbstractLoss(_Base):
    def value(self, embeddings, labels):
        raise NotImplementedError

class PickyLoss(_Base):
    def value(self, embeddings, labels):
        if len(labels) > 4:
            raise ValueError("takes 4 rows")
        return embeddings.sum()

def helper():
    pass
'''
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PROXIES = ["--loss", "proxy_anchor", "--lr", "1e-4", "--precision", "fp32"]


def forget_package():
    for name in [name for name in sys.modules if name.split(".")[0] == "pytorch_metric_learning"]:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name, which hides the real one; returns the file of its losses."""
    path = tmp_path / "packages" / "pytorch_metric_learning"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("")
    (path / "losses.py").write_text(LOSSES_OF_A_PACKAGE)
    monkeypatch.syspath_prepend(str(path.parent))
    forget_package()
    yield path / "losses.py"
    forget_package()


def parsed(*words):
    return run.build_parser().parse_args(list(words))


def built(*words, classes=3, size=4):
    return build_loss(parsed(*words), classes, size)


# Options.


@pytest.mark.parametrize("words, expected", [
    (["--loss", "proxy_anchor", "--sample", "all"], "--sample does nothing with --loss proxy_anchor; leave it out"),
    (["--loss", "proxy_anchor", "--margin", "0.2"], "--margin does nothing with --loss proxy_anchor; leave it out"),
    (["--loss", "multi_similarity", "--sample", "hard", "--margin", "1"],
     "--margin and --sample do nothing with --loss multi_similarity; leave them out"),
    (["--loss", "multi_similarity", "--proxy_lr", "10"], "--proxy_lr does nothing with --loss multi_similarity"),
    (["--ms_alpha", "1", "--proxy_margin", "1"],
     "--ms_alpha and --proxy_margin do nothing with --loss l2_triplet; leave them out"),
    (["--loss", "proxy_anchor", "--proxy_alpha", "0"], "'0' is not a number above 0"),
    (["--loss", "multi_similarity", "--ms_epsilon", "-1"], "'-1' is not a number of at least 0"),
    (["--loss", "triplet"], "'triplet' is none of {} and pml/NAME".format(", ".join(LOSSES))),
    (["--loss", "multi_similarity", "--num_image_per_class", "1"], "leaves no two pictures of one class"),
    (["--mode", "eval", "--loss", "proxy_anchor", "--ms_beta", "1", "--proxy_lr", "1", "--sample", "all"],
     "--loss, --ms_beta, --proxy_lr and --sample do nothing with --mode eval; leave them out"),
], ids=str)
def test_options_of_another_loss_are_one_line(capsys, words, expected):
    assert expected in failure(capsys, run.main, words)


def test_options_reach_the_loss():
    loss = built("--loss", "multi_similarity", "--ms_alpha", "3", "--ms_beta", "4", "--ms_base", "0", "--ms_epsilon",
                 "0.3")
    assert type(loss) is MultiSimilarity and (loss.alpha, loss.beta, loss.base, loss.epsilon) == (3, 4, 0, 0.3)
    loss = built("--loss", "proxy_anchor", "--proxy_alpha", "7", "--proxy_margin", "0.5", classes=5, size=6)
    assert type(loss) is ProxyAnchor and (loss.alpha, loss.margin, loss.proxies.shape) == (7, 0.5, (5, 6))
    loss = built("--loss", "contrastive", "--margin", "0.7", "--sample", "distance")
    assert type(loss) is ContrastiveLoss and loss.margin == 0.7 and type(loss.sampler) is DistanceWeighted


def test_help_names_every_loss(capsys):
    with pytest.raises(SystemExit):
        run.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, loss in LOSSES.items():
        assert "{}: {}".format(name, loss.help) in text
        for option in loss.settings:
            assert "--{} {} {}: ".format(option, option.upper(), name) in text
    assert "(default: l2_triplet)" in text and "l1_triplet, l2_triplet, contrastive (default: all)" in text


# Labels.


def test_labels_become_numbers_from_0():
    numbers = numbers_of([3, 7, 8], torch.device("cpu"))
    assert numbers[torch.tensor([8, 3, 3, 7])].tolist() == [2, 0, 0, 1]


def test_a_run_numbers_the_classes_that_it_trains_on(tmp_path, monkeypatch, capsys):
    """Of six classes the second has one picture only, and is skipped; the last two are held out."""
    data = make_pictures(tmp_path / "set", classes=12, pictures=3)
    for number in (1, 2):
        (data / "class01" / "{:02d}.png".format(number)).unlink()
    seen, jobs = [], []
    forward = ProxyAnchor.forward
    monkeypatch.setattr(ProxyAnchor, "forward",
                        lambda self, rows, labels: (seen.append(labels), forward(self, rows, labels))[1])
    original = run.fit
    monkeypatch.setattr(run, "fit", lambda job: (jobs.append(job), original(job)))
    argv = options_for(data, *PROXIES, "--skip_single", "--val_classes", "2", "--epochs", "3")
    code, _, errors = answer(capsys, run.main, argv)
    assert code == 0, errors
    assert set(torch.cat(seen).tolist()) == {0, 1, 2}
    assert jobs[0].data.batches.labels == [0, 2, 3]
    assert jobs[0].criteria["loss"].module.proxies.shape == (3, 8)


# Weights of a loss.


@pytest.fixture(scope="module")
def with_proxies(pictures, tmp_path_factory):
    """The --save_dir of a whole run on Proxy Anchor."""
    directory = tmp_path_factory.mktemp("proxies") / "run"
    argv = options_for(pictures, *PROXIES, "--checkpoint_every", "1", "--save_dir", directory)
    assert complete("run", argv, directory.parent / "out") == 0
    return directory


@pytest.mark.parametrize("stop", [2, 3])  # in the middle of an epoch, and at the beginning of one
def test_a_killed_run_goes_on_bit_for_bit_with_its_proxies(pictures, with_proxies, tmp_path, stop):
    argv = options_for(pictures, *PROXIES, "--checkpoint_every", "1", "--save_dir", tmp_path / "run")
    assert complete("run", argv, tmp_path / "out", at_step, stop, signal.raise_signal, signal.SIGKILL) == (
        -signal.SIGKILL)
    assert complete("run", ["--resume", "--save_dir", tmp_path / "run"], tmp_path / "out") == 0
    assert_same_run(tmp_path / "run", with_proxies)


def test_proxies_are_in_the_state_and_not_in_the_weights(with_proxies):
    state = torch.load(str(with_proxies / "checkpoint.pth"))
    assert {name: value.shape for name, value in state["criteria"].items()} == {"loss.proxies": (3, 8)}
    for name in ("best.pth", "last.pth"):
        assert list(torch.load(str(with_proxies / name))) == list(state["network"])
    assert not [name for name in state["network"] if "prox" in name or name.startswith("loss")]


def test_proxies_have_a_rate_of_their_own(pictures, tmp_path):
    proxies = []
    for number, words in enumerate(([], ["--proxy_lr", "1"])):
        directory = tmp_path / str(number)
        assert run.main(options_for(pictures, *PROXIES, *words, "--epochs", "1", "--iter_per_epoch", "1", "--save_dir",
                                    directory)) == 0
        state = torch.load(str(directory / "checkpoint.pth"))
        proxies.append(state["criteria"]["loss.proxies"])
        rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
        assert rates == [pytest.approx(1e-4), pytest.approx((1e-2, 1e-4)[number])]
    # Both begin alike; the first step of Adam is as long as the rate.
    assert (proxies[0] - proxies[1]).abs().max().item() == pytest.approx(1e-2 - 1e-4, rel=1e-2)


def test_two_processes_hold_the_same_proxies(pictures, with_proxies, tmp_path):
    argv = options_for(pictures, *PROXIES, "--sync_bn", "--save_dir", tmp_path / "run")
    assert codes(start_ranks(2, "run", argv, tmp_path / "out")) == [0, 0]
    lines = [json.loads((directory / "log.jsonl").read_text().splitlines()[1])
             for directory in (tmp_path / "run", with_proxies)]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-3)


# Losses of pytorch-metric-learning: a small package of that name, and the real one where it is installed.


@pytest.mark.parametrize("name, weights, needs", [
    ("PairLoss", [], ()), ("OptionalLoss", [], ()),
    ("ProxyLoss", [(3, 4)], ("classes", "embedding_size")), ("DerivedLoss", [(3, 4)], ("classes", "embedding_size"))])
def test_a_loss_of_the_package_gets_what_it_asks_for(package, name, weights, needs):
    torch.manual_seed(0)
    rows = torch.randn(6, 4)
    loss = built("--loss", "pml/" + name)
    assert find_loss("pml/" + name).needs == needs
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == weights
    value = loss(rows.half(), LABELS)
    assert value.dim() == 0 and torch.equal(value, loss.loss(rows.half().float(), LABELS))


@pytest.mark.parametrize("name, expected", [
    ("pml/ProxLoss", "pytorch-metric-learning has no loss 'ProxLoss'; do you mean pml/ProxyLoss or "),
    ("pml/", "pytorch-metric-learning has no loss ''"),
    ("pml/helper", "pytorch-metric-learning has no loss 'helper'"),
    ("pml/torch", "pytorch-metric-learning has no loss 'torch'"),
    ("pml/WrapperLoss", "pml/WrapperLoss can't be made from its name alone: it needs loss, gamma"),
    ("pml/VectorLoss", "pml/VectorLoss gives a tensor of shape (4,), and a loss has to be a scalar tensor"),
    ("pml/TupleLoss", "pml/TupleLoss gives a tuple, and a loss has to be a scalar tensor"),
    ("pml/AbstractLoss", "pml/AbstractLoss can't be used here (NotImplementedError)"),
])
def test_what_the_package_does_not_have_is_one_line(package, capsys, name, expected):
    assert expected in failure(capsys, run.main, ["--loss", name])


def test_a_loss_that_fails_in_training_is_one_line(package, pictures, capsys):
    line = failure(capsys, run.main, options_for(pictures, "--loss", "pml/PickyLoss"))
    assert line.endswith("pml/PickyLoss can't be used here (ValueError: takes 4 rows)")


@pytest.mark.parametrize("words, expected", [
    (["--sample", "all"], "--sample does nothing with --loss pml/PairLoss"),
    (["--proxy_lr", "1"], "--proxy_lr does nothing with --loss pml/PairLoss"),
    (["--num_image_per_class", "1"], "leaves no two pictures of one class"),
])
def test_options_beside_a_loss_of_the_package(package, capsys, words, expected):
    assert expected in failure(capsys, run.main, ["--loss", "pml/PairLoss"] + words)


def test_a_loss_of_the_package_trains_and_goes_on(package, pictures, tmp_path, capsys):
    argv = options_for(pictures, "--loss", "pml/DerivedLoss", "--proxy_lr", "10", "--num_image_per_class", "1",
                       "--batch", "3")
    for name in ("run", "whole"):
        epochs = "1" if name == "run" else "2"
        assert answer(capsys, run.main, argv + ["--epochs", epochs, "--save_dir", tmp_path / name])[0] == 0
    assert answer(capsys, run.main, ["--resume", "--epochs", "2", "--save_dir", tmp_path / "run"])[0] == 0
    states = [torch.load(str(tmp_path / name / "checkpoint.pth")) for name in ("run", "whole")]
    assert list(states[0]["criteria"]) == ["loss.loss.W"]
    assert torch.equal(*(state["criteria"]["loss.loss.W"] for state in states))
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert list(line["terms"]) == ["pml/DerivedLoss"]


def test_a_package_that_is_missing_or_broken_is_one_line(package, capsys, monkeypatch):
    package.write_text("import no_such_module")
    assert "which can't be imported here (ModuleNotFoundError: No module named 'no_such_module')" in failure(
        capsys, run.main, ["--loss", "pml/PairLoss"])
    forget_package()
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert failure(capsys, run.main, ["--loss", "pml/PairLoss"]).endswith(
        "pml/NAME needs the package pytorch-metric-learning: pip install pytorch-metric-learning")


def test_the_package_is_not_imported_for_others(package, pictures, capsys):
    package.write_text("raise SystemExit('imported')")
    assert answer(capsys, run.main, options_for(pictures, "--epochs", "1"))[0] == 0
    assert "pytorch_metric_learning" not in sys.modules


@pytest.fixture
def real():
    return pytest.importorskip("pytorch_metric_learning.losses", reason="needs the package pytorch-metric-learning")


def test_the_real_package_gives_the_same_values(real):
    torch.manual_seed(0)
    rows, labels = torch.randn(30, 4), torch.arange(30) // 5
    miner = importlib.import_module("pytorch_metric_learning.miners").MultiSimilarityMiner(epsilon=0.1)
    theirs = real.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    assert MultiSimilarity()(rows, labels).item() == pytest.approx(
        theirs(rows, labels, miner(rows, labels)).item(), rel=1e-5)
    ours, theirs = ProxyAnchor(6, 4), real.ProxyAnchorLoss(6, 4, margin=0.1, alpha=32)
    theirs.proxies.data = ours.proxies.data
    assert ours(rows, labels).item() == pytest.approx(theirs(rows, labels).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["CircleLoss", "ArcFaceLoss", "CosFaceLoss", "SoftTripleLoss", "MarginLoss"])
def test_losses_of_the_real_package_train(real, pictures, tmp_path, capsys, name):
    argv = options_for(pictures, "--loss", "pml/" + name, "--epochs", "1", "--save_dir", tmp_path / "run")
    assert answer(capsys, run.main, argv)[0] == 0
    weights = torch.load(str(tmp_path / "run" / "checkpoint.pth"))["criteria"]
    assert bool(weights) == (name in ("ArcFaceLoss", "CosFaceLoss", "SoftTripleLoss"))


@pytest.mark.parametrize("name, needed", [("CrossBatchMemory", "loss"), ("RankedListLoss", "margin, Tn"),
                                          ("P2SGradLoss", "descriptors_dim")])
def test_losses_of_the_real_package_that_need_more(real, capsys, name, needed):
    line = failure(capsys, run.main, ["--loss", "pml/" + name])
    assert line.endswith("can't be made from its name alone: it needs " + needed)
