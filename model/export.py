"""A network as a file that runs without this project: what writes each kind, and what runs it here again.

In the file are scaling, normalisation, the network and its L2 normalisation. It takes N x 3 x S x S pictures, uint8 and
RGB, for any N, and gives N x d embeddings, float32.
"""
import collections
import importlib
import io
import json
import os
import tempfile
import warnings

import numpy as np
import torch
import torch.nn as nn

from model.compat import export_onnx, plain_attention
from model.fusion import fused
from model.weights import WeightsError

__all__ = ["FORMATS", "MissingPackage", "OnnxNetwork", "needed", "to_int8", "to_onnx", "to_torchscript"]

PICTURES, EMBEDDINGS = "pictures", "embeddings"  # what the file calls its input and its output
NOTES = "notes.json"  # the file in a TorchScript archive that holds its notes
TOLERANCE = 1e-3  # of an embedding's length: a trace may differ so much with another number of pictures


class MissingPackage(WeightsError):
    """A package that is only needed here is not installed."""


def needed(package):
    """Return the module ``package``, which only an export needs.

    Raises:
        MissingPackage: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage("an export needs the package {} here ({}): pip install onnx onnxscript onnxruntime".format(
            package, error)) from None


def to_onnx(network, image_size, notes):
    """Return ``network``, a ``LinearEmbedding``, as an ONNX file; the package onnx must be there.

    Args:
        image_size: S, the side of the pictures. notes: {name: text}, kept as the model's metadata.

    Raises: what the exporter raises, of many types, for a network that it can't export.
    """
    network, images = _prepared(network, image_size, torch.contiguous_format)
    with plain_attention(), torch.no_grad():
        model = needed("onnx").load_from_string(export_onnx(network, images, PICTURES, EMBEDDINGS))
    for node in model.graph.node:  # they name the lines of Python, with their paths on this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return _with_notes(model, notes)


def _with_notes(model, notes):
    model.producer_name, model.doc_string = notes["project"], ""
    del model.metadata_props[:]
    for name, text in notes.items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


def to_torchscript(network, image_size, notes):
    """Return ``network`` as a TorchScript file, traced and frozen; its ``notes`` are the extra file notes.json.

    Args: as in ``to_onnx``.

    Raises:
        RuntimeError: the trace holds for one number of pictures only; and what torch raises.
    """
    network, images = _prepared(network, image_size, torch.channels_last)  # faster, for one picture twice
    with plain_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are constants here, and of TorchScript's age
        traced = torch.jit.freeze(torch.jit.trace(network, images, check_trace=False))
        for count in (1, 3):
            other = _pictures(count, image_size)
            expected = network(other)
            gap = (traced(other) - expected).norm(dim=1) / expected.norm(dim=1)
            if not gap.max() < TOLERANCE:
                raise RuntimeError("with {} pictures the trace gives other embeddings".format(count))
        content = io.BytesIO()
        torch.jit.save(traced, content, _extra_files={NOTES: json.dumps(notes, sort_keys=True)})
    return content.getvalue()


def _prepared(network, image_size, memory_format):
    """Return what is exported, a copy with BatchNorm folded, on the CPU, and pictures to export it with."""
    copy = fused(network).to(torch.device("cpu"), torch.float32).to(memory_format=memory_format)
    return copy, _pictures(2, image_size)  # two: torch.export takes a 1 for a constant


def _pictures(count, image_size):
    drawn = torch.Generator().manual_seed(count)  # the run's own random numbers stay as they are
    return torch.randint(0, 256, (count, 3, image_size, image_size), generator=drawn, dtype=torch.uint8)


def to_int8(content, batches, notes):
    """Return an ONNX file whose layers compute in int8: static quantisation by onnxruntime, weights by channel.

    Activations are unsigned: with signed ones a ResNet18 took 3.7 times as long (onnxruntime 1.32, AVX512-VNNI).
    Weights have 7 bits: with 8 a processor without VNNI would overflow. That cost next to no accuracy and no time.

    Args:
        content: the ONNX file, bytes. batches: pictures, N x 3 x S x S uint8 each, from whose activations the ranges
            are taken: the smallest and largest values. notes: as in ``to_onnx``.
    """
    needed("onnxruntime")
    quantization = needed("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:  # onnxruntime takes files
        whole, inferred, small = (os.path.join(folder, name + ".onnx") for name in ("whole", "inferred", "int8"))
        with open(whole, "wb") as file:
            file.write(content)
        quantization.quant_pre_process(whole, inferred, skip_symbolic_shape=True)
        quantization.quantize_static(
            inferred, small, _reader(quantization.CalibrationDataReader, batches),
            quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8, per_channel=True,
            reduce_range=True)
        return _with_notes(needed("onnx").load(small), dict(notes, precision="int8"))


def _reader(base, batches):
    """Return ``batches`` as onnxruntime's calibration reads them; its own base class is only there where it is."""
    remaining = iter(batches)

    class Calibration(base):
        def get_next(self):
            images = next(remaining, None)
            return None if images is None else {PICTURES: _as_array(images)}

    return Calibration()


def _as_array(images):
    return np.ascontiguousarray(images.numpy())  # pictures are channels last in memory


class OnnxNetwork(nn.Module):
    """An ONNX file, run by onnxruntime on the CPU: B x 3 x S x S uint8 -> B x d.

    Args:
        content: the file, bytes. threads: of its arithmetic.

    Raises:
        MissingPackage: onnxruntime is not installed.
    """

    def __init__(self, content, threads):
        super().__init__()
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # its errors, not its advice
        # Its threads would go on spinning behind a call, at the cost of whatever is timed next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, images):
        return torch.from_numpy(self.session.run([EMBEDDINGS], {PICTURES: _as_array(images)})[0])


class ScriptNetwork(nn.Module):
    """A TorchScript file: B x 3 x S x S uint8 -> B x d, with torch's own threads. Args: as in ``OnnxNetwork``."""

    def __init__(self, content, threads):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript's age
            self.script = torch.jit.load(io.BytesIO(content), map_location="cpu")

    def forward(self, images):
        return self.script(images)


Format = collections.namedtuple("Format", "runtime packages write run")
Format.__doc__ = """A kind of file that a network is exported to.

runtime: what runs it, for people. packages: those that writing it needs beside this project's.
write: (network, image_size, notes) -> bytes. run: (bytes, threads) -> a module that embeds.
"""

# One more kind of file is one row: the ending of its name.
FORMATS = {".onnx": Format("onnxruntime", ("onnx",), to_onnx, OnnxNetwork),
           ".pt": Format("TorchScript", (), to_torchscript, ScriptNetwork)}
