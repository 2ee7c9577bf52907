"""In which arithmetic the networks run. Losses and the measured recalls are float32 whatever is chosen here."""
import contextlib
import types

import torch
import torch.nn as nn

from engine.errors import UsageError, first_line
from model.compat import autocast, autocast_off, gradient_scaler

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Processor flags of bfloat16 products in hardware: AVX512-BF16, AMX, Arm's BF16 extension.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


class Precision:
    """A context to run networks in, and a scaler of their loss.

    Attributes:
        name: fp32, bf16 or fp16. device: where the networks run. scaler: a GradScaler with fp16, else None.
    """

    def __init__(self, name, device):
        self.name = name
        self.device = device
        self.scaler = gradient_scaler(device.type) if name == "fp16" else None

    def autocast(self):
        """Return a context in which the layers that gain by it compute in the chosen precision."""
        return contextlib.nullcontext() if self.name == "fp32" else autocast(self.device.type, TYPES[self.name])


def resolve_precision(name, device, measuring_only=False):
    """Return (``Precision``, why) for ``auto``, ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` trains in bf16 where the device multiplies bf16 in hardware and torch has autocast for it, else in float32,
    and measures in float32.

    Raises:
        UsageError: the device can't do it.
    """
    if name == "auto":
        if measuring_only:
            return Precision("fp32", device), "measurements are float32 unless told otherwise"
        if _has_bf16(device) and _why_it_fails("bf16", device) is None:
            return Precision("bf16", device), "the device has it in hardware"
        return Precision("fp32", device), "no bf16 in hardware"
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for accelerators; on a CPU take bf16 or fp32")
    reason = None if name == "fp32" else _why_it_fails(name, device)
    if reason:
        raise UsageError("--precision {} doesn't work on {} ({}); take fp32".format(name, device, reason))
    return Precision(name, device), "as asked"


def train_depthwise_in_float32(network):
    """Let training steps compute the depthwise convolutions of ``network``, on a CPU, in float32 under autocast, too.

    Their backward pass in bf16 takes three to five times as long there (torch 2.13, AVX512-BF16), so that a MobileNetV2
    would train more slowly in bf16 than in float32. Without gradients they gain by bf16 as others do.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.forward = types.MethodType(_in_its_own_precision, module)


def _in_its_own_precision(convolution, images):
    forward = type(convolution).forward
    if not torch.is_grad_enabled():
        return forward(convolution, images)
    with autocast_off(images.device.type):
        return forward(convolution, images.to(convolution.weight.dtype)).to(images.dtype)


def _has_bf16(device):
    if device.type == "cpu":
        return any(flag in _processor_flags() for flag in BF16_FLAGS)
    return device.type == "cuda" and torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability(device) >= (8,)


def _processor_flags():
    """The flags of the first processor, as Linux lists them; none elsewhere."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.split(":")[0].strip() in ("flags", "Features"):
                return line.split(":", 1)[1].split()
    return []


def _why_it_fails(name, device):
    """Return None if a small network trains and measures in that precision, else the reason in one line."""
    try:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                                nn.AdaptiveAvgPool2d(1)).to(device, memory_format=torch.channels_last)
        images = torch.ones(2, 3, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
        with autocast(device.type, TYPES[name]):
            network(images).float().sum().backward()
            with torch.no_grad():  # a teacher with folded BatchNorm; torch 1.10 has the training half only
                nn.Sequential(network[0], *network[2:])(images)
        return None
    except Exception as error:  # of a dozen types, by version and vendor
        return first_line(error)
