"""The losses of the package pytorch-metric-learning, ``pml/NAME``. It is imported only when one is asked for."""

import difflib
import importlib
import inspect

import torch
from torch import nn

from metric.contracts import full_precision

__all__ = ["PREFIX", "LossError", "PackageLoss", "find_package_loss", "sizes_asked_for"]

PREFIX, PACKAGE = "pml/", "pytorch_metric_learning"
# What a loss may ask for, by our name and by the package's.
SIZES = {"classes": "num_classes", "embedding_size": "embedding_size"}


class LossError(Exception):
    """A loss that is not there or can't be used; the message is one line for the user."""


def _in_words(error):
    return ": ".join(filter(None, [type(error).__name__, str(error)]))


def _import_losses():
    try:
        return importlib.import_module(PACKAGE + ".losses")
    except Exception as error:  # a package that doesn't fit the installed torch raises other types, too
        if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] == PACKAGE:
            raise LossError("{}NAME needs the package pytorch-metric-learning: pip install pytorch-metric-learning"
                            .format(PREFIX)) from None
        raise LossError("{}NAME needs the package pytorch-metric-learning, which can't be imported here ({})".format(
            PREFIX, _in_words(error))) from None


def find_package_loss(name):
    """Return the class of the loss ``name``, "pml/NAME", in pytorch-metric-learning.

    Raises:
        LossError: there is no such loss, it needs more than sizes, embeddings and labels, or the package is not
        installed.
    """
    losses, own = _import_losses(), name[len(PREFIX):]
    kinds = {word: kind for word, kind in vars(losses).items()
             if isinstance(kind, type) and issubclass(kind, nn.Module)}
    if own not in kinds:
        near = difflib.get_close_matches(own, sorted(kinds), 3, 0.5)
        raise LossError("pytorch-metric-learning has no loss {!r}{}".format(
            own, "; do you mean {}?".format(" or ".join(PREFIX + word for word in near)) if near else ""))
    kind = kinds[own]
    needed = [parameter.name for parameter in inspect.signature(kind).parameters.values()
              if parameter.default is parameter.empty and parameter.name not in SIZES.values()
              and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    if needed:
        raise LossError("{} can't be made from its name alone: it needs {}".format(name, ", ".join(needed)))
    # A batch of two classes shows what else may be wrong with it before any picture is read.
    PackageLoss(kind, **{size: 2 for size in sizes_asked_for(kind)})(
        torch.tensor([[1., 0.], [1., 1.], [0., 1.], [-1., 1.]]), torch.tensor([0, 0, 1, 1]))
    return kind


def sizes_asked_for(kind):
    """Return those of "classes" and "embedding_size" that a class of the package can't be made without."""
    asked = set()
    for each in kind.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(each.__init__).parameters.values()
            asked |= {parameter.name for parameter in parameters if parameter.default is parameter.empty}
            if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
                break  # nothing is handed on to the classes that it is made from
    return tuple(ours for ours, theirs in SIZES.items() if theirs in asked)


class PackageLoss(nn.Module):
    """A loss of pytorch-metric-learning with its defaults: (embeddings N x d, labels N) -> scalar.

    It is computed in float32 at least. `parameters()` has to be trained with the network.

    Args:
        kind: its class.
        sizes: those that it asks for, see `sizes_asked_for`. With `classes` labels are from 0 to classes - 1.

    Raises:
        LossError: it can't be made so, takes other inputs or returns no scalar.
    """

    def __init__(self, kind, **sizes):
        super().__init__()
        self.name = PREFIX + kind.__name__
        self.loss = self._call(kind, **{SIZES[size]: value for size, value in sizes.items()})

    @full_precision
    def forward(self, embeddings, labels):
        value = self._call(self.loss, embeddings, labels)
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            raise LossError("{} gives {}, and a loss has to be a scalar tensor".format(
                self.name, "a tensor of shape {}".format(tuple(value.shape)) if isinstance(value, torch.Tensor)
                else "a " + type(value).__name__))
        return value

    def _call(self, function, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError, AttributeError, AssertionError, NotImplementedError) as error:
            raise LossError("{} can't be used here ({})".format(self.name, _in_words(error))) from None
