"""``run.py --mode export``: a network as one file that runs without this project, compared on the test set's pictures
with the one that it was made from."""
import contextlib
import os

import numpy as np
import torch

from dataset import EvaluationLoader, NoTrainingSet, load_splits, open_pictures, resized_size
from engine import ranks
from engine.arguments import as_typed, refuse_idle
from engine.asymmetric import trained_with
from engine.data import open_data
from engine.errors import TrainingError, UsageError, first_line
from engine.evaluation import embed_set, measured
from engine.modes import check_place
from engine.networks import NETWORK_OPTIONS, OF_ANY_DATA, for_evaluation, open_network
from engine.parity import BATCHES, latencies, parity
from engine.rundir import write_bytes
from engine.settle import settled
from model import FORMATS, MissingPackage, OnnxNetwork, WeightsError, digest_of_network, needed, to_int8

EXPORT_OPTIONS = ("int8", "no_check")
PROJECT = "RKD: Relational Knowledge Distillation from the shell"
MOST_APART = 1e-3  # of an embedding's length: an exported network that differs by more is not the same
INT8 = ".int8"  # before the ending of the quantised network's file
FAILED = ".failed"  # behind the name of a file that is not the same network
CALIBRATION, CALIBRATION_BATCH = 256, 16  # training pictures that the ranges of int8 come from


def add_export_options(parser):
    group = parser.add_argument_group("export (--mode export)")
    group.add_argument("--int8", action="store_true",
                       help="write OUT.int8.onnx, too: the layers in int8, with ranges from {} training pictures "
                            "(static quantisation by onnxruntime)".format(CALIBRATION))
    group.add_argument("--no_check", action="store_true",
                       help="only write the file; otherwise it embeds the test set, and is kept if its embeddings are "
                            "those of --load; then both are timed")
    return group


def check_export(args, given):
    """Refuse (UsageError) an export that can't be made, before any picture is read."""
    if args.load is None or args.out is None:
        raise UsageError("--mode export needs --load, the network, and --out, the file")
    if _ending(args.out) not in FORMATS:
        raise UsageError("--out {}: the ending says what is written; give a name that ends in {}".format(
            args.out, " or ".join("{} ({})".format(*item) for item in
                                  ((ending, form.runtime) for ending, form in FORMATS.items()))))
    if args.int8 and _ending(args.out) != ".onnx":
        raise UsageError("--int8 is made by onnxruntime; give an --out that ends in .onnx")
    written = [args.out] + [_int8(args.out)] * (_ending(args.out) == ".onnx")
    if os.path.realpath(args.load) in map(os.path.realpath, written):
        raise UsageError("--out {} is the file of --load; give another name".format(args.out))
    check_place(args, written)
    if args.no_check:
        refuse_idle(given, ("int8", "recall", "dataset", "data", "download", "skip_broken", "skip_single", "truncated",
                            "batch", "workers", "cache"), "with --no_check")
    if args.device not in ("auto", "cpu"):
        raise UsageError("--mode export works on the CPU; leave --device out")
    ranks.refuse_several("--mode export")
    for package in FORMATS[_ending(args.out)].packages + ("onnxruntime",) * args.int8:
        needed(package)
    args.device = "cpu"


def export(command):
    """Do what ``run.py --mode export`` is asked for."""
    # Settle: run.args does not change after this.
    with settled(command, check_export, [("load", "")], data_options_from="", trains=False) as run:
        # Data.
        data = None if run.args.no_check else open_data(run, wanted=("test",))
        # Network.
        network = open_network(run)
        # Export.
        export_network(run, network, data)


def export_network(run, network, data):
    """Write ``network`` to --out, compared with itself on the test set of ``data``; ``data`` None: not compared.

    Raises:
        TrainingError: it can't be exported or written, or the exported network gives other embeddings. Others: as
        ``embed_finite``.
    """
    args, form = run.args, FORMATS[_ending(run.args.out)]
    notes = _notes(args, network)
    content = _in_a_line(lambda: form.write(network, args.image_size, notes), _unexportable(args, form.runtime))
    try:
        exported = None if data is None else _in_a_line(
            lambda: form.run(content, torch.get_num_threads()),
            "{} can't run the exported file; take a newer one, or --no_check".format(form.runtime))
    except MissingPackage as error:
        print("Warning: not compared on pictures: {}".format(error), flush=True)
        exported = None
    if exported is None:
        _replace(args.out, content)
        return
    table = _Table(run, data.evaluation["test"], for_evaluation(run, network))
    found = table.add(form.runtime, exported, len(content))
    if not found.difference <= MOST_APART:
        write_bytes(args.out + FAILED, content)
        raise TrainingError("the exported network gives other embeddings (up to {:.2g} of their length); it is kept as "
                            "{}{}, and {} is as it was".format(found.difference, args.out, FAILED, args.out))
    _replace(args.out, content)
    if args.int8:
        small = _in_a_line(lambda: to_int8(content, _calibration(args), notes), _unexportable(args, "int8"))
        quantised = _in_a_line(lambda: OnnxNetwork(small, torch.get_num_threads()),
                               "onnxruntime can't run the int8 file; take a newer one, or leave --int8 out")
        table.add("onnxruntime, int8", quantised, len(small))
        _write(_int8(args.out), small)
    table.tell()


def _int8(path):
    """Return the path of the int8 form of a network."""
    return INT8.join(os.path.splitext(path))


def _ending(path):
    return os.path.splitext(path)[1].lower()


def _unexportable(args, target):
    return "--base {} can't be exported to {} with torch {}".format(args.base, target, torch.__version__)


def _in_a_line(act, problem):
    """Return what ``act()`` gives; that it fails is told as ``problem``."""
    try:
        return act()
    except (WeightsError, UsageError, MemoryError):
        raise
    except Exception as error:  # those of exporters and runtimes, of many types
        raise TrainingError("{} ({}: {})".format(problem, type(error).__name__, first_line(error))) from None


def _write(path, content):
    write_bytes(path, content)
    print("Exported: {} ({:.1f} MB)".format(path, len(content) / 1e6), flush=True)


def _replace(path, content):
    """Write the network; an int8 form of the one before goes."""
    _write(path, content)
    if _ending(path) == ".onnx":
        with contextlib.suppress(FileNotFoundError):
            os.remove(_int8(path))


def _notes(args, network):
    """Return {name: text}: what whoever gets the file alone has to know, and which network it is."""
    trained = trained_with(args.load)
    notes = {name: as_typed(getattr(args, name)) for name in NETWORK_OPTIONS + OF_ANY_DATA}
    return dict(notes, project=PROJECT, digest=digest_of_network(network), dataset=trained.get("dataset", "unknown"))


def _calibration(args):
    """Yield batches of pictures of the training set, drawn by --seed, cropped as for a measurement."""
    try:
        images = load_splits(args.dataset, args.data)["train"]
    except NoTrainingSet as error:
        raise UsageError("--int8 takes its ranges from training pictures: {}".format(error)) from None
    count = min(len(images), CALIBRATION)
    images = images.only(np.random.default_rng(args.seed).choice(len(images), count, replace=False).tolist())
    pictures = open_pictures([path for path, _ in images.samples], resized_size(args.image_size), "off", None,
                             "training set", args.skip_broken, args.truncated, args.resize)
    images = images.without(pictures.skipped)
    print("Calibration: {} pictures of the training set".format(len(images)), flush=True)
    for batch, _ in EvaluationLoader(images, CALIBRATION_BATCH, args.image_size, pictures=pictures):
        yield batch


class _Table:
    """The networks of an export side by side: the first row is PyTorch's."""

    def __init__(self, run, loader, network):
        self.run, self.loader = run, loader
        self.networks, self.sizes, self.recalls, self.parities = {}, {}, {}, {}
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.expected = self._embed("PyTorch", network)
        self._take("PyTorch", network, os.path.getsize(run.args.load), self.expected)

    def _embed(self, name, network):
        return embed_set(network, self.loader, self.run.device, self.run.precision, "test set by " + name,
                         "gallery by " + name)

    def _take(self, name, network, size, found):
        self.networks[name], self.sizes[name] = network, size
        self.recalls[name] = measured(found, self.run.args).recalls

    def add(self, name, network, size):
        """Compare a network with PyTorch's; print and return the ``Parity``. size: of its file, in bytes."""
        found = self._embed(name, network)
        self._take(name, network, size, found)
        self.parities[name] = agreed = parity(self.expected, found)
        print("{} and PyTorch on {} pictures of the test set: largest difference {:.2e} of an embedding's length, "
              "smallest cosine {:.6f}, the same nearest neighbour for {} of {} queries".format(
                  name, self.loader.total, agreed.difference, agreed.cosine, agreed.same, agreed.count), flush=True)
        return agreed

    def tell(self):
        """Time all networks and print the table, in Markdown."""
        seconds = {count: latencies(self.networks, self.run.args.image_size, count) for count in BATCHES}
        print("Parameters: {:.2f} million. Milliseconds a batch: the median, and in brackets what 95 % stay below; "
              "threads: {}, the networks in turns".format(self.parameters / 1e6, torch.get_num_threads()))
        recalled = ["Recall@{}".format(k) for k in self.run.args.recall]
        timed = [title for count in BATCHES for title in ("batch {}, ms".format(count), "times as fast")]
        lines = [["network", "MB"] + recalled + ["smallest cosine"] + timed]
        for name in self.networks:
            line = [name, "{:.1f}".format(self.sizes[name] / 1e6)]
            line += ["{:.4f}".format(100 * value) for value in self.recalls[name].values()]
            line.append("{:.6f}".format(self.parities[name].cosine) if name in self.parities else "")
            for latency in seconds.values():
                line += ["{:.2f} ({:.2f})".format(1e3 * latency[name].median, 1e3 * latency[name].slow),
                         "{:.2f}".format(latency["PyTorch"].median / latency[name].median)]
            lines.append(line)
        lines.insert(1, ["---"] * len(lines[0]))
        widths = [max(map(len, column)) for column in zip(*lines)]
        for line in lines:
            print("| {} |".format(" | ".join(map(str.ljust, line, widths))), flush=True)
