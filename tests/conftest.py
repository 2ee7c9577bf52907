"""Tests import the project from the root of the repository, and never touch the network."""
import os
import socket
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection to anywhere but this machine fails the test that opens it."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError("a test reached for the network: {}".format(address))
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def make_pictures(root, classes=6, pictures=6, size=(44, 40), seed=0):
    """Write class folders of small noisy pictures, one base colour a class, and return ``root``."""
    rng = np.random.default_rng(seed)
    for number in range(classes):
        folder = root / "class{:02d}".format(number)
        folder.mkdir(parents=True)
        colour = rng.integers(60, 200, size=3)
        for picture in range(pictures):
            noise = rng.integers(-50, 50, size=(size[1], size[0], 3))
            Image.fromarray((colour + noise).astype(np.uint8)).save(str(folder / "{:02d}.png".format(picture)))
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder data set that tests only read: 6 classes of 6 pictures."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture
def own_pictures(tmp_path):
    """The same, for a test that spoils it."""
    return make_pictures(tmp_path / "own")


def options_for(data, *more):
    """The options of a training run that takes a second."""
    return ["--dataset", "folder", "--data", str(data), "--image_size", "32", "--base", "resnet18", "--pretrained",
            "none", "--embedding_size", "8", "--batch", "8", "--num_image_per_class", "3", "--iter_per_epoch", "2",
            "--epochs", "2", "--workers", "0", "--device", "cpu"] + list(more)
