"""Files of weights: read without running code, checked, and torchvision's own fetched once."""
import contextlib
import http.client
import os
import pickle
import socket
import sys
import warnings
import zipfile

import torch

from model.compat import cached_weights_path, imagenet_weights_url, load_tensors, refused_name
from model.statedicts import NOTHING, described, find_networks

__all__ = ["WeightsError", "first_line", "read_tensors", "read_weights", "check_finite", "weights_file"]

CONNECT_SECONDS = 20
SAVED_ALONE = "torch.save(network.state_dict(), 'weights.pth')"
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16,
           torch.int32, torch.int64, torch.bool}
WHOLE_NUMBERS = ("num_batches_tracked", "relative_position_index")  # in networks whose weights are none


class WeightsError(Exception):
    """Weights that are missing, damaged or of another network; the message is one line for the user."""


def first_line(error):
    """Return the first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_tensors(path):
    """Return what is in the file ``path``: tensors, on the CPU, in plain containers. Nothing that it holds is run.

    It is one that torch.save wrote, or a safetensors file (where that package is there), whatever its name.

    Raises:
        WeightsError: no such file, damaged, or with something else in it, such as tensors that are no plain arrays of
            numbers; or its tensors need more memory than the file's size; or the package safetensors is missing.
    """
    _check_file(path)
    size = os.path.getsize(path)
    if _is_safetensors(path, size):
        tensors = _load_safetensors(path)
    else:
        _check_archive(path, size)
        tensors = _load(path)
    for name, tensor in _named_tensors(tensors):
        fault = _fault_of(tensor, size)
        if fault:
            raise WeightsError("{} is refused: it holds a tensor that is no plain array of numbers{} ({})".format(
                path, ", " + name if name else "", fault))
    return tensors


def _check_file(path):
    if os.path.isdir(path):
        raise WeightsError("{} is a folder; needed is one file that torch.save wrote, such as a best.pth".format(path))
    if not os.path.exists(path):
        raise WeightsError("{}: no such file".format(path))
    if not os.path.isfile(path):
        raise WeightsError("{} is no regular file".format(path))


def _load(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice for archives that are something else
            return load_tensors(path)
    except PermissionError:
        raise WeightsError("{} can't be read: no permission".format(path)) from None
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        name = refused_name(error)
        if name:
            raise WeightsError("{} is refused: beside tensors it asks for {} (such a file can run code); save the "
                               "state dict alone: {}".format(path, name, SAVED_ALONE)) from None
        raise WeightsError("{} is refused: it holds something else than tensors (such a file can run code), "
                           "or it is damaged".format(path)) from None
    except Exception:  # torch raises half a dozen types for a damaged file; each means the same to the user
        raise WeightsError("{} can't be read: it is damaged, or no file of PyTorch weights".format(path)) from None


def _is_safetensors(path, size):
    with contextlib.suppress(OSError), open(path, "rb") as file:  # where it can't be read, torch's reader says so
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
        return first == b"{" and length < size  # the length of a header in JSON, and the header
    return False


def _load_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise WeightsError("{} is a safetensors file, which needs the package safetensors: pip install "
                           "safetensors".format(path)) from None
    try:
        return load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # the package raises several types for a damaged file
        raise WeightsError("{} can't be read: a damaged safetensors file ({})".format(
            path, " ".join(str(error).split()))) from None


def _check_archive(path, size):
    """Refuse TorchScript, and an archive whose content is longer than its own ``size``; others are torch's business."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception:  # zipfile, too, raises half a dozen types for a damaged file; torch says what it is
        return
    if any(member.filename.split("/")[1:] == ["constants.pkl"] for member in members):
        raise WeightsError("{} is TorchScript (torch.jit.save); needed is its state dict: {}".format(
            path, SAVED_ALONE.replace("network", "torch.jit.load(FILE)")))
    if sum(member.file_size for member in members) > size:
        raise WeightsError("{} is refused: unpacked, it is longer than the file, and PyTorch compresses nothing".format(
            path))


def _named_tensors(content):
    """Yield (name or None, tensor) of all tensors in nested containers; each container is visited once."""
    seen, waiting = set(), [(None, content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, dict) else ((name, entry) for entry in value)
            waiting.extend((key if isinstance(key, str) else name, entry) for key, entry in entries)


def _fault_of(tensor, most):
    """Return in words why a tensor is no plain array of numbers in at most ``most`` bytes; None if it is one."""
    if getattr(tensor, "is_nested", False):
        return "nested"
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in NUMBERS:
        return "{}, {}, device {}".format(tensor.layout, tensor.dtype, tensor.device.type).replace("torch.", "")
    if tensor.numel() * tensor.element_size() > most:
        return "{} numbers in a file of {} bytes".format(" x ".join(map(str, tensor.shape)), most)
    return None


def read_weights(path, parts, misfit):
    """Return the weights of a network in the file ``path``, a ``Found``: finite tensors, on the CPU.

    They may be in an entry of a larger dict, and under a prefix; then a line is printed that says so.

    Args:
        parts: names of the network's own modules, with which the names of its tensors begin.
        misfit: ``Found`` -> None if these are such a network's weights; else why not, in words that follow the file's
            name.

    Raises:
        WeightsError: no such file, damaged, no such network in it or several, or with values that are not finite, or
            with whole numbers instead of weights.
    """
    content = read_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("network"), dict) and "progress" in content:
        raise WeightsError("{} is the state of a run, for --resume; the weights are in best.pth and last.pth beside it"
                           .format(path))
    try:
        there = find_networks(content, parts)
    except ValueError as error:
        raise WeightsError("{} holds {}; save the network alone: {}".format(path, error, SAVED_ALONE)) from None
    fitting = [found for found in there if misfit(found) is None]
    if not fitting:
        largest = max(there, key=lambda found: len(found.weights), default=NOTHING)
        raise WeightsError("{} {}".format(path, misfit(largest)))
    if len(fitting) > 1:
        entries = [found.entry for found in fitting if found.entry and not found.prefix]
        raise WeightsError("{} holds {} such networks ({}); save the one that is meant alone: {}".format(
            path, len(fitting), "; ".join(_place(found) for found in fitting),
            SAVED_ALONE.replace("network.state_dict()", "torch.load({!r})[{!r}]".format(path, entries[-1]))
            if entries and "." not in entries[-1] else SAVED_ALONE))
    found, = fitting
    for name, value in found.weights.items():
        if not value.is_floating_point() and not name.endswith(WHOLE_NUMBERS):
            raise WeightsError("{} holds whole numbers ({}) instead of weights, first in {}".format(
                path, str(value.dtype).replace("torch.", ""), name))
    check_finite(path, found.weights)
    if described(found):
        print("{}: read {}".format(path, described(found)), flush=True)
    return found


def _place(found):
    return " ".join((["in its entry " + found.entry] if found.entry else [])
                    + ["names with " + found.prefix + "." if found.prefix else "names without a prefix"])


def check_finite(path, weights):
    """Refuse weights, {name: tensor}, with values that are not finite.

    Raises:
        WeightsError: names ``path`` and the tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError("{} holds values that are not finite, first in {}".format(path, name))


def weights_file(architecture, pretrained):
    """Return the path of the weights that a backbone starts from, or None for random weights.

    Args:
        architecture: torchvision's name of the backbone, or None if torchvision does not have it.
        pretrained: "imagenet" or True for torchvision's IMAGENET1K_V1 weights, fetched if they are not in torch.hub's
            cache; "none", None or False for random weights; or the path of a file.

    Raises:
        WeightsError: the ImageNet weights can't be fetched, or there is no such file.
    """
    if pretrained in (None, False, "none"):
        return None
    if pretrained is True or pretrained == "imagenet":
        return _imagenet_file(architecture)
    _check_file(pretrained)
    return pretrained


def _imagenet_file(architecture):
    if architecture is None:
        raise WeightsError("there are no ImageNet weights of this backbone; give --pretrained FILE or none")
    url = imagenet_weights_url(architecture)
    if url is None:
        raise WeightsError("the installed torchvision has no IMAGENET1K_V1 weights of {}; give --pretrained FILE or "
                           "none".format(architecture))
    path = cached_weights_path(url)
    if os.path.isfile(path):
        return path
    digest = path.rsplit("-", 1)[-1].split(".")[0]  # torchvision's names end in the first 8 digits of the SHA-256
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # a machine behind a firewall would wait for minutes
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        print("Fetching ImageNet weights: {}".format(url), flush=True)
        torch.hub.download_url_to_file(url, path, hash_prefix=digest, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException, ValueError, EOFError) as error:
        raise WeightsError(
            "ImageNet weights of {} are not on this machine and can't be fetched ({}): put {} at {}, or give "
            "--pretrained FILE, or start from random weights with --pretrained none".format(
                architecture, " ".join(str(error).split()), url, path)) from None
    finally:
        socket.setdefaulttimeout(patience)
    return path
