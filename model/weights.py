"""Files of weights: read without running code, checked, and torchvision's own fetched once."""
import os
import pickle
import socket
import sys
import warnings

import torch

from model.compat import cached_weights_path, imagenet_weights_url, load_tensors

__all__ = ["WeightsError", "read_tensors", "read_weights", "check_finite", "imagenet_weights"]

CONNECT_SECONDS = 20


class WeightsError(Exception):
    """Weights that are missing, damaged or of another network; the message is one line for the user."""


def read_tensors(path):
    """Return what is in the file ``path``: tensors, on the CPU, in plain containers. Nothing that it holds is run.

    Raises:
        WeightsError: no such file, damaged, or with something else in it.
    """
    if os.path.isdir(path):
        raise WeightsError("{} is a folder; give the .pth file in it".format(path))
    if not os.path.exists(path):
        raise WeightsError("{}: no such file".format(path))
    if not os.path.isfile(path):
        raise WeightsError("{} is no regular file".format(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice for archives that are something else
            return load_tensors(path)
    except PermissionError:
        raise WeightsError("{} can't be read: no permission".format(path)) from None
    except MemoryError:
        raise
    except pickle.UnpicklingError:
        raise WeightsError("{} is refused: it holds something else than tensors (such a file can run code), "
                           "or it is damaged".format(path)) from None
    except Exception:  # torch raises half a dozen types for a damaged file; each means the same to the user
        raise WeightsError("{} can't be read: it is damaged, or no file of PyTorch weights".format(path)) from None


def read_weights(path):
    """Return the state dict in the file ``path``: names to finite tensors, on the CPU.

    Raises:
        WeightsError: no such file, not a state dict, damaged, or with values that are not finite.
    """
    weights = read_tensors(path)
    if isinstance(weights, dict) and isinstance(weights.get("network"), dict) and "training" in weights:
        raise WeightsError("{} is the state of a run, for --resume; the weights are in best.pth and last.pth beside it"
                           .format(path))
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise WeightsError("{} holds no state dict (names and tensors)".format(path))
    check_finite(path, weights)
    return weights


def check_finite(path, weights):
    """Refuse weights, {name: tensor}, with values that are not finite.

    Raises:
        WeightsError: names ``path`` and the tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError("{} holds values that are not finite, first in {}".format(path, name))


def imagenet_weights(architecture):
    """Return the path of torchvision's IMAGENET1K_V1 weights, fetched if they are not in torch.hub's cache.

    Raises:
        WeightsError: they are not there and can't be fetched.
    """
    url = imagenet_weights_url(architecture)
    path = cached_weights_path(url)
    if os.path.isfile(path):
        return path
    digest = path.rsplit("-", 1)[-1].split(".")[0]  # torchvision's names end in the first 8 digits of the SHA-256
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # a machine behind a firewall would wait for minutes
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        print("Fetching ImageNet weights: {}".format(url))
        torch.hub.download_url_to_file(url, path, hash_prefix=digest, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            "ImageNet weights of {} are not on this machine and can't be fetched ({}): put {} at {}, or give "
            "--pretrained FILE, or start from random weights with --pretrained none".format(
                architecture, error, url, path)) from None
    finally:
        socket.setdefaulttimeout(patience)
    return path
