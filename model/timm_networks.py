"""timm's networks as backbones, ``timm/NAME``. The package timm is imported only when one of them is asked for."""
import difflib
import functools
import importlib
import logging

import torch
import torch.nn as nn

from model.base import WrappedBackbone
from model.compat import import_torchvision
from model.weights import WeightsError, first_line, weights_file

__all__ = ["PREFIX", "timm_backbone"]

PREFIX = "timm/"
STAGES = 4


def import_timm():
    """Return the package timm.

    Raises:
        WeightsError: it is not installed, or doesn't fit the installed torch.
    """
    import_torchvision()  # timm imports it; ours works beside a torch from another source, too
    try:
        return importlib.import_module("timm")
    except Exception as error:  # a timm that doesn't fit the installed torch raises other types, too
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise WeightsError("timm/NAME needs the package timm: pip install timm") from None
        raise WeightsError("timm/NAME needs the package timm, which can't be imported here ({})".format(
            first_line(error))) from None


@functools.lru_cache(maxsize=None)
def timm_backbone(name):
    """Return the class of the backbone ``name``, "timm/NAME"; NAME may end in a tag, as in vit_base_patch16_224.mae.

    Raises:
        WeightsError: there is no such network or tag, or timm is not installed.
    """
    timm, own = import_timm(), name[len(PREFIX):]
    config = _config(timm, own)
    classifier = config.classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return type(name, (TimmBackbone,), {
        "__doc__": "timm's network {}.".format(own), "name": name, "config": config,
        "mean": tuple(config.mean), "std": tuple(config.std), "image_size": max(config.input_size[1:]),
        "classifier": tuple(head.split(".")[0] for head in heads), "heads": tuple(head + "." for head in heads)})


def _config(timm, own):
    """Return timm's record of the weights of the network called ``own``: mean, std, size of the pictures ..."""
    if not timm.is_model(own):
        near = difflib.get_close_matches(own, timm.list_models() + timm.list_pretrained(), 3)
        raise WeightsError("timm {} has no network {!r}{}".format(
            timm.__version__, own, "; do you mean {}?".format(" or ".join(PREFIX + word for word in near))
            if near else ""))
    try:
        return timm.get_pretrained_cfg(own)
    except RuntimeError:
        bare = own.split(".")[0]
        raise WeightsError("timm {} has no weights {!r}; of {} it has {}".format(
            timm.__version__, own, bare, ", ".join(
                word for word in timm.list_pretrained() if word.split(".")[0] == bare) or "none")) from None


class _HasStages:
    """Whether a class of ``TimmBackbone`` has stages: known when a network of it is built."""

    def __get__(self, backbone, kind):
        return len(_last_sizes(kind._random(kind.image_size))) == STAGES


class TimmBackbone(WrappedBackbone):
    """A network of timm without its classifier, its features pooled as timm pools them (of a ViT: the class token).

    Args:
        pretrained: True or "imagenet" for timm's own weights of this name, which timm fetches once; False or "none" for
            random weights; or the path of timm's state dict, with or without classifier.
        image_size: side of the pictures; None for the network's own. It matters to networks that are built for one
            size, as a ViT: their position embeddings are resampled when weights of another size are loaded.

    Attributes:
        config: timm's record of the weights. heads: how the names of its classifiers' weights begin.
        image_size: side of the pictures: of the class, those of the weights; of a network, those that it is built for.
        stages: places of the maps of the last four sizes among timm's feature maps; empty, and ``has_stages`` False,
        if it has no four. The others are those of ``Backbone``.

    Raises:
        WeightsError: the network can't be built for such pictures; the weights can't be fetched, read, or don't fit.
    """

    config = None
    heads = ()
    takes = ("image_size",)
    has_stages = _HasStages()  # of a network it is a plain attribute

    def __init__(self, pretrained=True, image_size=None):
        side = image_size or self.image_size
        fetched = pretrained is True or pretrained == "imagenet"
        path = None if fetched else weights_file(None, pretrained)
        super().__init__(self._fetched(side) if fetched else self._random(side))
        self.image_size = side
        self.output_size = self._features_of_nothing().shape[1]
        self.stages = _last_sizes(self.network)
        self.has_stages = len(self.stages) == STAGES
        if path is not None:
            self.load(path)

    @classmethod
    def _create(cls, side, **options):
        # timm builds most networks for any size; those with a fixed one take another one at their construction.
        if cls.config.fixed_input_size and tuple(cls.config.input_size[1:]) != (side, side):
            options["img_size"] = side
        return import_timm().create_model(cls.name[len(PREFIX):], num_classes=0, **options)

    @classmethod
    def _random(cls, side):
        try:
            return cls._create(side)
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise cls._unfit(side, error) from None

    @classmethod
    def _fetched(cls, side):
        logging.disable(logging.WARNING)  # the hub's complaints; the error below says all
        try:
            return cls._create(side, pretrained=True)
        except Exception as error:  # of timm, of its hub or of the network: a dozen types
            raise WeightsError(
                "timm's weights of {} are not on this machine and can't be fetched ({}): get {}, its state dict, and "
                "give --pretrained FILE, or start from random weights with --pretrained none".format(
                    cls.name, first_line(error), cls.config.hf_hub_id or cls.config.url or "one")) from None
        finally:
            logging.disable(logging.NOTSET)

    @classmethod
    def _unfit(cls, side, error):
        return WeightsError("{} can't be built for pictures of {} pixels ({}); its own --image_size is {}".format(
            cls.name, side, first_line(error), max(cls.config.input_size[1:])))

    @classmethod
    def weights_file(cls, pretrained):
        """Return what the constructor takes as ``pretrained``: a path, None, or "imagenet"; fetches timm's weights."""
        if pretrained is True or pretrained == "imagenet":
            print("Fetching timm's weights of {}, if they are not on this machine".format(cls.name), flush=True)
            cls._fetched(cls.image_size)
            return "imagenet"
        return weights_file(None, pretrained)

    def use_pool(self, name):
        """See ``Backbone``; "avg" is timm's own pooling. Raises WeightsError if there is no map to pool."""
        super().use_pool(name)
        self.network.reset_classifier(0, "")  # the map, not pooled
        self.output_size = self._features_of_nothing().shape[1]

    @torch.no_grad()
    def _features_of_nothing(self):
        """Return the features of a black picture: some networks find out only then that its size is wrong."""
        is_training = self.training
        try:
            features = self.eval()._pooled(self.network(self._black()))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise self._unfit(self.image_size, error) from None
        finally:
            self.train(is_training)
        if features.dim() != 2:
            raise WeightsError("{} has no map of one vector a place, so --pool {} does nothing".format(
                self.name, self.pool_name))
        return features

    def _black(self):
        return torch.zeros(1, 3, self.image_size, self.image_size)

    def _pooled(self, features):
        """Return what the network gave: features, B x C, as they are; a map is pooled to such."""
        if features.dim() != 4:
            return features
        is_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return self.pool(features.permute(0, 3, 1, 2) if is_last else features).flatten(1)

    @classmethod
    def recognises(cls, weights):
        """Return False: timm has a thousand networks; the name of one is noted in our files, and in config.json."""
        return False

    def adapted(self, weights):
        """Return timm's state dict of another size, or of an older version, as this network's; else as it is."""
        own = self.network.state_dict()
        if all(name in weights and weights[name].shape == value.shape for name, value in own.items()):
            return weights
        there = {name: value for name, value in weights.items() if name in own or not name.startswith(self.heads)}
        try:  # without classes on either side timm loads strictly; without an address it fetches nothing
            network = self._create(self.image_size, pretrained=True, pretrained_cfg_overlay={
                "state_dict": there, "num_classes": 0, "classifier": None, "hf_hub_id": None, "url": None})
        except Exception:  # timm's conversions meet in many ways what is not for them; what is wrong is said elsewhere
            return weights
        return network.state_dict()

    def forward(self, images, get_stages=False):
        """See ``Backbone.forward``; only a network that ``has_stages`` can be asked for them."""
        images = self.normalize(images)
        if not get_stages:
            return self._pooled(self.network(images))
        last, maps = self.network.forward_intermediates(images, indices=self.stages, output_fmt="NCHW")
        return (*maps, self._pooled(self.network.forward_head(last)))

    def after_maps(self):
        there = super().after_maps()
        if self.has_stages:
            is_training, parameters = self.training, [value for value in self.parameters() if value.requires_grad]
            *maps, _ = self.eval()(self._black().to(parameters[0]), True)
            self.train(is_training)
            gradients = torch.autograd.grad(sum(map.sum() for map in maps), parameters, allow_unused=True)
            there.append(nn.ParameterList(
                [value for value, gradient in zip(parameters, gradients) if gradient is None]))
        return there


def _last_sizes(network):
    """Return the places, among timm's feature maps of a network, of the last map of each of the last four sizes."""
    last = {feature["reduction"]: place for place, feature in enumerate(getattr(network, "feature_info", None) or ())}
    there = sorted(last.values())[-STAGES:]
    return there if len(there) == STAGES and hasattr(network, "forward_intermediates") else []
