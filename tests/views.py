"""What tests of --teacher_views share: options, and what is in the files that are kept."""
import os

import numpy as np

from conftest import distil_for
from dataset.croptable import TABLE_SUFFIX, open_table
from engine.networks import build_network, read_network_file
from model import fused

__all__ = ["TERMS", "VIEWS", "argv", "array_of", "kept", "network_of"]

TERMS = ["--dist_ratio", "1", "--angle_ratio", "2", "--triplet_ratio", "1", "--triplet_sample", "all"]
VIEWS = 3


def argv(teacher, *more, terms=TERMS):
    return distil_for(teacher, *terms, "--epochs", "1", "--precision", "fp32", "--teacher_views", VIEWS, *more)


def kept(folder):
    return sorted(str(path) for path in folder.glob("*" + TABLE_SUFFIX))


def array_of(path):
    return np.array(np.memmap(path, dtype=np.float32, mode="r", shape=open_table(path).shape))


def network_of(directory):
    file = read_network_file(os.path.join(str(directory), "best.pth"))
    return fused(build_network(file.options, file).eval())
