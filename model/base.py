"""What every backbone is: a network that turns pictures into pooled features and owns their normalisation.

A backbone scales and normalises uint8 pictures (0..255) itself, so a teacher and a student can share one batch and each
normalise it its own way. Float pictures it takes as they are, already normalised, as torchvision's networks do.
"""
import torch
import torch.nn as nn

from model.compat import import_torchvision
from model.pooling import pooling
from model.weights import WeightsError, read_weights, weights_file

__all__ = ["Backbone", "WrappedBackbone"]


class Backbone(nn.Module):
    """The base of every backbone. Those in ``BACKBONES`` are called with ``pretrained`` and what ``takes`` names.

    A subclass gives ``forward`` and ``recognises``, and the attributes that are not given here.

    Attributes:
        architecture: torchvision's name of the network; None if torchvision does not have it.
        output_size: width of the pooled features, C.
        millions: of parameters, without classifier; None if not known. It is only shown.
        has_stages: whether ``forward`` can return the maps of four stages.
        has_map: whether there is a map to be pooled; without one the features are as if pooled by "avg".
        takes: names of the constructor's arguments beside ``pretrained``: "zero_init_residual", "image_size".
        image_size: side of the pictures that it is made for, which a run takes if none is given; None for any side.
        least_side, step_of_sides: the sides that pictures can have: at least that many pixels, and a multiple of these.
        mean, std: of each channel of the pictures, scaled to 0..``range``, that the weights were trained on.
        range: 1 or 255. is_bgr: whether the channels are blue, green, red (the order of ``mean``, too), not RGB.
        classifier: the first parts of the names of the classifier's weights; files may hold them, too.
        since: the version of torchvision that it came with; None for the oldest that is supported.
        name: the network's name in ``BACKBONES``, if it was built by that name.
        pool: a map, B x C x H x W -> B x C x 1 x 1; see ``use_pool``.
    """

    architecture = None
    output_size = None
    millions = None
    has_stages = True
    has_map = True
    takes = ()
    image_size = None
    least_side, step_of_sides = 1, 1
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    range = 1
    is_bgr = False
    classifier = ("fc",)
    since = None
    name = None
    pool_name = "avg"

    def __init__(self):
        super().__init__()
        self.register_buffer("channel_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("channel_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self.pool = pooling(self.pool_name)

    def use_pool(self, name):
        """Let ``pool`` be the pooling called ``name`` in ``model.pooling.POOLS``; it is a new one, to be trained."""
        self.pool_name, self.pool = name, pooling(name)

    @classmethod
    def function(cls):
        """Return torchvision's function that makes the whole network.

        Raises:
            WeightsError: the installed torchvision lacks it.
        """
        torchvision = import_torchvision()
        if not hasattr(torchvision.models, cls.architecture):
            raise WeightsError("torchvision {} has no {}; it came with {}".format(
                torchvision.__version__.split("+")[0], cls.architecture, cls.since))
        return getattr(torchvision.models, cls.architecture)

    @classmethod
    def fault_of(cls, image_size, pool):
        """Return in words why the network can't have such pictures or such a pooling; None if it can."""
        if image_size < cls.least_side or image_size % cls.step_of_sides:
            return "needs pictures of {}; --image_size is {}".format(
                "a side that is a multiple of {}".format(cls.step_of_sides) if image_size >= cls.least_side
                else "at least {} pixels a side".format(cls.least_side), image_size)
        if pool != "avg" and not cls.has_map:
            return "has no map to pool (its features are those of its class token), so --pool {} does nothing".format(
                pool)
        return None

    def normalize(self, images):
        """Return B x 3 x H x W pictures as the layers take them, in the precision of the weights.

        Integers (RGB, 0..255) are put into the network's order of channels, scaled to 0..``range``, less ``mean``,
        divided by ``std``. Floats are taken as normalised already.
        """
        if images.is_floating_point():
            return images.to(self.channel_mean.dtype)
        values = (images.flip(1) if self.is_bgr else images).to(self.channel_mean.dtype)
        return ((values / 255 if self.range == 1 else values) - self.channel_mean) / self.channel_std

    def forward(self, images, get_stages=False):
        """Return the pooled features, B x C.

        Args:
            images: B x 3 x H x W, uint8 in 0..255, or floats that are normalised already.
            get_stages: return (stage1, stage2, stage3, stage4, pooled) instead; a stage's map is B x C' x H' x W'.
        """
        raise NotImplementedError

    def load(self, path):
        """Load a state dict with the names of the network's own library; a classifier in it is left out.

        Raises:
            WeightsError: it can't be read, or doesn't fit.
        """
        own = {name for name in self.state_dict() if not name.startswith("pool.")}
        counters = {name for name in own if name.endswith("num_batches_tracked")}  # not in files before torch 0.4.1

        def misfit(found):
            if "base" in found.prefix.split(".") and any(name.endswith("linear.weight") for name in found.others):
                return "is a whole embedding network; it goes to --load"
            names = set(self.adapted(found.weights))
            missing = sorted(own - counters - names)
            unknown = sorted(name for name in names - own if name.split(".")[0] not in self.classifier)
            if missing or unknown:
                return "is not a state dict of {}: {} missing and {} unknown names, first {}".format(
                    type(self).__name__, len(missing), len(unknown), (missing or unknown)[0])
            return None

        found = read_weights(path, {name.split(".")[0] for name in own} | set(self.classifier), misfit)
        try:
            weights = self.adapted(found.weights)
            self.load_state_dict({name: value for name, value in weights.items() if name in own})
        except RuntimeError as error:
            raise WeightsError("{} is not a state dict of {}: {}".format(
                path, type(self).__name__, str(error).splitlines()[-1].strip())) from None

    def after_maps(self):
        """Return the modules that run after the last stage's map; a loss on maps alone does not train them."""
        return [self.pool]

    @classmethod
    def weights_file(cls, pretrained):
        """Return the path of the weights that ``pretrained`` means (see ``weights.weights_file``); None if random.

        Raises:
            WeightsError: they can't be fetched, or there is no such file.
        """
        return weights_file(cls.architecture, pretrained)

    def adapted(self, weights):
        """Return a state dict, {name: tensor}, of another version of the network's library in this one's form."""
        return weights

    @classmethod
    def recognises(cls, weights):
        """Return whether a state dict, {name: tensor}, is one of this network."""
        raise NotImplementedError


class WrappedBackbone(Backbone):
    """A network of a library, whole but for its classifier, as ``network``. Its state dict has the library's names.

    Args:
        network: the network. Its modules keep their places; only the names in a state dict lack ``network.``.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        self._register_state_dict_hook(_without_its_place)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Called before the modules inside take their part of ``state_dict``: here the names get their places back.
        own = {prefix + "pool." + name for name in self.pool.state_dict()}
        names = [name for name in state_dict if name.startswith(prefix) and name not in own]
        weights = self.adapted({name[len(prefix):]: state_dict.pop(name) for name in names})
        state_dict.update((prefix + "network." + name, value) for name, value in weights.items())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_its_place(module, state_dict, prefix, _):
    metadata = getattr(state_dict, "_metadata", {})
    for names in state_dict, metadata:
        for name in [name for name in names if name.startswith(prefix + "network.")]:
            names[prefix + name[len(prefix + "network."):]] = names.pop(name)
    metadata.pop(prefix + "network", None)
