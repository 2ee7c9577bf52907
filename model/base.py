"""What every backbone is: a network that turns pictures into pooled features and owns their normalisation.

A backbone scales and normalises uint8 pictures (0..255) itself, so a teacher and a student can share one batch and each
normalise it its own way. Float pictures it takes as they are, already normalised, as torchvision's networks do.
"""
import torch
import torch.nn as nn

from model.weights import WeightsError, read_weights, weights_file

__all__ = ["Backbone", "WrappedBackbone"]


class Backbone(nn.Module):
    """The base of every backbone. Those in ``BACKBONES`` are called with (pretrained, zero_init_residual).

    A subclass gives ``forward``, ``fold`` and ``recognises``, and the attributes that are not given here.

    Attributes:
        name: its name on the command line, where its weights alone don't show which network they are of; else None.
        image_size: side of the pictures that it is built for, an argument of its constructor; None if any side will do.
        architecture: torchvision's name of the network; None if torchvision does not have it.
        output_size: width of the pooled features, C.
        has_stages: whether ``forward`` can return the maps of four stages.
        mean, std: of each channel of the pictures, scaled to 0..``range``, that the weights were trained on.
        range: 1 or 255. is_bgr: whether the channels are blue, green, red (the order of ``mean``, too), not RGB.
        classifier: the first parts of the names of the classifier's weights; files may hold them, too.
    """

    name = None
    image_size = None
    architecture = None
    output_size = None
    has_stages = True
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    range = 1
    is_bgr = False
    classifier = ("fc",)

    def __init__(self):
        super().__init__()
        self.register_buffer("channel_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("channel_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

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
        own = set(self.state_dict())
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

    def fold(self):
        """Fold each BatchNorm into the convolution before it, in place; from then on for evaluation only."""
        raise NotImplementedError

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
        self._register_load_state_dict_pre_hook(_with_its_place)

    def state_dict(self, *args, **kwargs):
        return self.network.state_dict(*args, **kwargs)


def _with_its_place(state_dict, prefix, *_):
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[prefix + "network." + name[len(prefix):]] = state_dict.pop(name)
