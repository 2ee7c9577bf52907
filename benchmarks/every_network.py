#!/usr/bin/env python3
"""Try every torchvision classification network that the installed torchvision has, and print a table in Markdown:

  python3 benchmarks/every_network.py            # all: about 15 minutes of two cores, and 16 GB of memory
  python3 benchmarks/every_network.py swin_t vit_b_16

Each is built with random weights, makes one training step on pictures of its smallest sensible size, embeds them, is
saved, and is read back in the way of --load, with no option given, to give the same embeddings.
"""
import argparse
import gc
import os
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from engine.errors import first_line  # noqa: E402
from engine.networks import build_network, read_network_file  # noqa: E402
from metric.loss import L2Triplet  # noqa: E402
from metric.pairsampler import AllPairs  # noqa: E402
from model import BACKBONES, find_backbone  # noqa: E402
from model.compat import import_torchvision  # noqa: E402

SIDE = 64
LABELS = torch.tensor([0, 0, 1, 1])


def smallest_side(kind):
    """Return the least side, from 64 pixels on, that a network takes."""
    step = kind.step_of_sides
    return -(-max(SIDE, kind.least_side) // step) * step


def embeddings_of(network, pictures):
    with torch.no_grad():
        return network.eval()(pictures)


def tried(name, folder):
    """Return the side of the pictures with which the network called ``name`` did all that it should.

    Raises:
        Exception: it didn't; says why.
    """
    side = smallest_side(find_backbone(name))
    options = {"base": name, "embedding_size": 8, "l2normalize": True, "image_size": side}
    pictures = torch.randint(0, 256, (len(LABELS), 3, side, side), dtype=torch.uint8)
    network = build_network(options).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    loss = L2Triplet(sampler=AllPairs())(network(pictures), LABELS)
    loss.backward()
    optimizer.step()
    del optimizer
    for parameter in network.parameters():
        parameter.grad = None
    expected, path = embeddings_of(network, pictures), os.path.join(folder, "network.pth")
    if not (torch.isfinite(loss) and torch.isfinite(expected).all()):
        raise ValueError("loss or embeddings that are not finite")
    torch.save(network.state_dict(), path)
    del network
    file = read_network_file(path)
    if file.options["base"] != name:
        raise ValueError("recognised as {}".format(file.options["base"]))
    if not torch.equal(embeddings_of(build_network(file.options, file), pictures), expected):
        raise ValueError("other embeddings after loading")
    return side


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; the default is all")
    torch.manual_seed(0)
    print("| network | width | million parameters | pixels | works | seconds |\n|---|---|---|---|---|---|")
    for name in parser.parse_args(argv).names or sorted(BACKBONES):
        kind, began, side = find_backbone(name), time.perf_counter(), "-"
        if kind.architecture is None:
            continue  # not torchvision's
        try:
            with tempfile.TemporaryDirectory() as folder:
                side = tried(name, folder)
            result = "yes"
        except Exception as error:  # whatever it is, it is the table's
            result = "no: {}".format(first_line(error))
        gc.collect()
        print("| {} | {} | {} | {} | {} | {:.1f} |".format(
            name, kind.output_size, kind.millions, side, result, time.perf_counter() - began), flush=True)
    print("\ntorchvision {}, torch {}".format(import_torchvision().__version__, torch.__version__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
