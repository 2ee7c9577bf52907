"""Everything that differs between the supported versions of PyTorch and torchvision (torch 1.10 to the newest).

Vendors' builds lag behind: the BI-V100's SDK 3.0.0 has torch 1.10.2 with torchvision 0.11. No other module asks for a
version.
"""
import collections
import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
import pickle
import re
import sys
import types
import warnings

import torch

__all__ = ["import_torchvision", "imagenet_weights_url", "cached_weights_path", "load_tensors", "refused_name",
           "require_float32_products", "autocast", "autocast_off", "gradient_scaler", "fused_option", "compile_network",
           "keep_freed_memory", "accelerator_rng_state", "set_accelerator_rng_state", "plain_attention", "export_onnx",
           "TORCH_VERSION"]

TORCH_VERSION = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])

# torch.load(weights_only=True) could be escaped through the old tar format before this version (CVE-2025-32434).
_WEIGHTS_ONLY_IS_SAFE = (2, 6)

# From here on torch.onnx.export is by default the one that goes by torch.export; it needs the package onnxscript.
_ONNX_BY_TORCH_EXPORT = (2, 9)
# torch.export's operators are of this version of ONNX. The older exporter knows it since torch 2.1; before that the
# newest one that torch 1.10 has, too. onnxruntime takes both.
_OPSET, _OLDER_OPSET, _OPSET_SINCE = 18, 14, (2, 1)

# Operators that torchvision registers on import even where its compiled part could not be loaded.
_TORCHVISION_OPERATORS = ("nms", "qnms")
_operator_library = None

# What torchvision before 0.13 calls these in its tables of addresses.
_OLD_NAMES = {"inception_v3": "inception_v3_google", "shufflenet_v2_x0_5": "shufflenetv2_x0.5",
              "shufflenet_v2_x1_0": "shufflenetv2_x1.0"}


def import_torchvision():
    """Return the torchvision package, also where its compiled operators don't fit the installed torch.

    torchvision from one source beside a torch from another (a CPU build, a vendor's build) fails on import with
    "operator torchvision::nms does not exist", although we need only its Python definitions of the networks.
    Declaring the missing operators, without an implementation, lets the import go through.
    """
    global _operator_library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operator_library = torch.library.Library("torchvision", "DEF")
    for operator in _TORCHVISION_OPERATORS:
        _operator_library.define(operator + "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def imagenet_weights_url(architecture):
    """Return the address of torchvision's IMAGENET1K_V1 weights for ``architecture``, such as "resnet18"; None if this
    torchvision knows none."""
    models = import_torchvision().models
    if hasattr(models, "get_model_weights"):
        return _first_address(models.get_model_weights(architecture))
    for name, weights in vars(models).items():  # torchvision 0.13: enumerations, but no function that finds them
        if name.lower() == architecture + "_weights":
            return _first_address(weights)
    module = sys.modules[getattr(models, architecture).__module__]
    addresses = getattr(module, "model_urls", None) or getattr(module, "_MODEL_URLS", {})
    return addresses.get(architecture) or addresses.get(_OLD_NAMES.get(architecture))


def _first_address(weights):
    return weights.IMAGENET1K_V1.url if hasattr(weights, "IMAGENET1K_V1") else None


def cached_weights_path(url):
    """Return the path at which torch.hub keeps the file of ``url``."""
    return os.path.join(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def load_tensors(path):
    """Read a ``.pth`` file on the CPU without running any code that it may hold.

    Raises ``pickle.UnpicklingError`` for a file that asks for anything but tensors and plain containers, and whatever
    torch raises (RuntimeError, EOFError, ...) for a file that is damaged.
    """
    if TORCH_VERSION >= _WEIGHTS_ONLY_IS_SAFE:
        return torch.load(path, map_location="cpu", weights_only=True)
    if TORCH_VERSION >= (1, 13):
        return torch.load(path, map_location="cpu", pickle_module=_tensors_only, weights_only=False)
    return torch.load(path, map_location="cpu", pickle_module=_tensors_only)


def refused_name(error):
    """Return the class or function that a file asks for, from the ``UnpicklingError`` of ``load_tensors``; None if it
    names none."""
    found = re.search(r"(?:GLOBAL|asks for|<class) '?([\w.]{1,100})", str(error))
    return found and found.group(1)


def require_float32_products():
    """Let CUDA devices compute float32 matrix products and convolutions in float32, not in TF32 (10 bits of mantissa).

    Newer cards take TF32 for convolutions by default, and torch before 1.12 for matrix products too. Distances are
    small differences of large products, so three decimal digits are too few, and a measured recall must not depend on
    the card.
    """
    with warnings.catch_warnings():
        # torch 2.9 has new switches (fp32_precision) and warns about these old ones. Only the old ones are set here:
        # that sets the new ones too, and where the two disagree, torch.compile fails as it reads the old ones.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def autocast(device_type, dtype):
    """Return torch's autocast context for a device type."""
    return torch.autocast(device_type, dtype=dtype)


def autocast_off(device_type):
    """Return a context in which autocast is off; where torch has none for the device type, it is off anyway."""
    try:
        return torch.autocast(device_type, enabled=False)
    except (RuntimeError, ValueError, AssertionError):
        return contextlib.nullcontext()


def gradient_scaler(device_type):
    """Return a GradScaler; torch before 2.3 has them for CUDA devices only."""
    if hasattr(getattr(torch, "amp", None), "GradScaler"):
        return torch.amp.GradScaler(device_type)
    return torch.cuda.amp.GradScaler()


def fused_option(optimizer, device):
    """Return {"fused": True} if this torch has ``optimizer`` in one pass over the weights of ``device``, else {}.

    Args:
        optimizer: one of torch's, such as ``torch.optim.Adam``.
    """
    try:
        weight = torch.nn.Parameter(torch.zeros(1, device=device))
        weight.grad = torch.ones_like(weight)
        optimizer([weight], lr=1, fused=True).step()
        return {"fused": True} if weight.item() < 0 else {}
    except Exception:  # no such argument, no such device, no such kernel: of a dozen types, by version and vendor
        return {}


def compile_network(network):
    """Let torch.compile make the forward pass of ``network``, in place: its state dict keeps its names.

    Raises:
        RuntimeError: this torch has no compiler, or the compiler doesn't work here.
    """
    if not hasattr(torch, "compile"):
        raise RuntimeError("torch {} has no torch.compile; it came with 2.0".format(torch.__version__))
    device = next(network.parameters()).device
    torch.compile(lambda x: (x * 2).relu() + 1)(torch.ones(8, device=device))  # finds a missing C++ compiler at once
    network.forward = torch.compile(network.forward)


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next allocation instead of giving it back to the kernel.

    A training step on the CPU frees and allocates the same gigabytes over and over, and the kernel clears each page
    before it hands it out: a third of the time of a ResNet50's forward pass. The peak of memory stays the same.
    """
    trim_threshold, mmap_threshold, largest = -1, -3, 2 ** 31 - 1
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, largest)
        library.mallopt(trim_threshold, largest)


def accelerator_rng_state(device):
    """Return the state of a CUDA or mps device's random generator; None for a CPU, and for mps before torch 2.0."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    if device.type == "mps" and hasattr(torch, "mps"):
        return torch.mps.get_rng_state()
    return None


def set_accelerator_rng_state(state, device):
    """Put a device's random generator into a state of ``accelerator_rng_state``; of another kind of device: no-op."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps" and hasattr(torch, "mps"):
        torch.mps.set_rng_state(state)


@contextlib.contextmanager
def plain_attention():
    """Within the block torch's attention consists of plain operators. Its fused one, for networks that aren't trained,
    can't be exported: it holds for one number of pictures. torch before 1.12 has only plain ones; 1.12 to 2.1 can't be
    told: there a trace takes any number, and ``export_onnx`` helps itself."""
    switch = getattr(torch.backends, "mha", None)
    before = switch and switch.get_fastpath_enabled()
    try:
        if switch:
            switch.set_fastpath_enabled(False)
        yield
    finally:
        if switch:
            switch.set_fastpath_enabled(before)


def export_onnx(network, images, input_name, output_name):
    """Return ``network`` as an ONNX model, bytes, that takes any number of such ``images``.

    By torch.export where that is torch's own choice and onnxscript is installed; else by the older exporter, which
    traces, and leaves the weights marked as to be trained. The first one names the lines of Python that each operator
    came from.

    Raises: what the exporter raises; of many types.
    """
    names = {"input_names": [input_name], "output_names": [output_name]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if TORCH_VERSION >= _ONNX_BY_TORCH_EXPORT and importlib.util.find_spec("onnxscript"):
            program = torch.onnx.export(network, (images,), dynamo=True, verbose=False, opset_version=_OPSET,
                                        dynamic_shapes=({0: torch.export.Dim("N")},), **names)
            return program.model_proto.SerializeToString()
        content = io.BytesIO()
        # Of torch 1.12 to 2.1 only a network that is to be trained has plain attention.
        with torch.enable_grad():
            torch.onnx.export(network.requires_grad_(True), (images,), content,
                              dynamic_axes={input_name: {0: "N"}, output_name: {0: "N"}},
                              opset_version=_OPSET if TORCH_VERSION >= _OPSET_SINCE else _OLDER_OPSET,
                              **({"dynamo": False} if TORCH_VERSION >= (2, 5) else {}), **names)
        return content.getvalue()


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors, storages and ordered dicts, and refuses every other global."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch", "Size"): torch.Size,
    }
    STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")

    def find_class(self, module, name):
        if (module, name) in self.ALLOWED:
            return self.ALLOWED[module, name]
        if module == "torch" and name in {kind + "Storage" for kind in self.STORAGES}:
            return getattr(torch, name)
        raise pickle.UnpicklingError("the file asks for {}.{}, which is no tensor".format(module, name))


def _load_tensors_only(file, **options):
    return _TensorUnpickler(file, **options).load()


# torch.load takes a "pickle module" and uses its load(), its Unpickler and its name.
_tensors_only = types.ModuleType("tensors_only_pickle")
_tensors_only.Unpickler = _TensorUnpickler
_tensors_only.load = _load_tensors_only
