"""What tests share: pictures, options, small runs. No test reaches the network."""
import os
import socket

# Several tests run at once, and small networks gain nothing by a second thread. All that they start inherits it.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

import processes  # noqa: E402


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection to anywhere but this machine fails the test that opens it."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError("a test reached for the network: {}".format(address))
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True, scope="session")
def users_cache(tmp_path_factory):
    """The user's cache directory, for tests and all that they start."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("users_cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


def make_pictures(root, classes=6, pictures=6, size=(44, 40), seed=0):
    """Write class folders of small noisy pictures, one base colour a class, and return ``root``.

    The colours of classes overlap, so that losses and recalls are neither 0 nor 1.
    """
    rng = np.random.default_rng(seed)
    for number in range(classes):
        folder = root / "class{:02d}".format(number)
        folder.mkdir(parents=True)
        colour = rng.integers(100, 156, size=3)
        for picture in range(pictures):
            noise = rng.integers(-50, 50, size=(size[1], size[0], 3))
            shade = rng.integers(-40, 40, size=3)
            Image.fromarray((colour + shade + noise).astype(np.uint8)).save(str(folder / "{:02d}.png".format(picture)))
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder data set that tests only read: 6 classes of 6 pictures."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture
def own_pictures(tmp_path):
    """The same, for a test that spoils it."""
    return make_pictures(tmp_path / "own")


SMALL = ["--pretrained", "none", "--batch", "8", "--num_image_per_class", "3", "--iter_per_epoch", "2", "--epochs", "2",
         "--workers", "0", "--device", "cpu"]
FIXED = ["--sample", "distance", "--lr", "1e-3", "--lr_decay_epochs", "2", "--precision", "fp32"]


def options_for(data, *more, base="tiny"):
    """The options of a training run that takes a second."""
    return ["--dataset", "folder", "--data", str(data), "--image_size", "32", "--base", base, "--embedding_size",
            "8"] + SMALL + [str(word) for word in more]


def argv_for(data, directory, *more):
    """Those of a run that is stopped, resumed and compared."""
    return options_for(data, *FIXED, "--epochs", "3", "--checkpoint_every", "1", "--save_dir", directory, *more)


def distil_for(teacher, *more, base="tiny"):
    """Those of a distillation from the teacher in the run directory ``teacher``, without any term."""
    return ["--teacher_load", os.path.join(str(teacher), "best.pth"), "--base", base, "--embedding_size", "4",
            "--l2normalize", "false"] + SMALL + [str(word) for word in more]


def without_labels(argv, folder):
    """Return these options of a distillation for one that trains on the pictures in ``folder``, without labels."""
    at = argv.index("--num_image_per_class")
    return argv[:at] + ["--unlabelled", str(folder)] + argv[at + 2:]


@pytest.fixture(scope="session")
def whole(pictures, tmp_path_factory):
    """The --save_dir of a run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert processes.complete("run", argv_for(pictures, directory), directory.parent / "out") == 0
    return directory


@pytest.fixture(scope="session")
def teacher(pictures, tmp_path_factory):
    """The --save_dir of a trained teacher."""
    directory = tmp_path_factory.mktemp("teacher") / "run"
    argv = options_for(pictures, "--save_dir", directory, "--recall", "2", "4")
    assert processes.complete("run", argv, directory.parent / "out") == 0
    return str(directory)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A failure names the command that repeats it."""
    report = (yield).get_result()
    if report.failed:
        settings = ["{}={}".format(*pair) for pair in sorted(os.environ.items()) if pair[0].startswith("RKD_")]
        command = "bash tests/run.sh -n 0 '{}'".format(item.nodeid)
        report.sections.append(("to repeat it", " ".join(settings + [command])))
