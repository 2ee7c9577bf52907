"""The page of --mode report about 60,502 embeddings of 512 dimensions, as many as the test set of Stanford Online
Products, by one network and by two: all but embedding them. The pictures are drawn birds, each of them many times."""
import functools
import tempfile
import types

import torch

from common import main, parser

from dataset import ImageSet, load_splits
from report import Shown, write_report


def shown(name, count, d, noise, samples):
    """A network in a report: embeddings about the centres of classes of five pictures."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) // 5
    centres = torch.randn(count // 5 + 1, d, generator=draw)
    rows = torch.nn.functional.normalize(centres[labels] + noise * torch.randn(count, d, generator=draw))
    images = ImageSet([(samples[number % len(samples)][0], label) for number, label in enumerate(labels.tolist())],
                      {"class {}".format(label): label for label in range(count // 5 + 1)})
    embedded = types.SimpleNamespace(embeddings=rows, labels=labels, images=images, gallery=None)
    return Shown(name, name, "random embeddings", embedded, {})


def prepare(count, d, data, networks):
    samples = load_splits("synthetic", data)["test"].samples
    return ([shown(*network, samples=samples) for network in (
        ("student", count, d, 1.3), ("teacher", count, d, 1.0))[:networks]],)


def work(networks):
    with tempfile.TemporaryDirectory() as directory:
        write_report(directory, networks, [], ["python3"])


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=60502, help="embeddings in the test set")
    options.add_argument("--dimensions", type=int, default=512)
    options.add_argument("--data", default="data", help="where the drawn birds are kept, or are drawn on first use")
    arguments = options.parse_args()
    main(arguments, {"{} x {}".format(arguments.size, arguments.dimensions): {
        way: {"prepare": functools.partial(prepare, arguments.size, arguments.dimensions, arguments.data, networks),
              "work": work, "count": 1, "warm_up": False}
        for way, networks in (("one network", 1), ("two networks", 2))}}, None)
