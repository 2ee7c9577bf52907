"""The embedding head: pooled features -> Linear, if there is one -> optional L2 normalisation."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model.compat import autocast_off
from model.statedicts import NOTES

__all__ = ["LinearEmbedding"]


class LinearEmbedding(nn.Module):
    """An embedding network: ``base``, then one linear layer, then optionally a projection to the unit sphere.

    Args:
        base: a backbone; called on B x 3 x H x W pictures it returns B x ``output_size`` features, and with a second
            argument True the maps of its four stages before them.
        output_size: width of the backbone's features.
        embedding_size: width of the embedding, d; 0: no linear layer, the pooled features are the embedding.
        normalize: divide each embedding by its L2 norm (Park et al. 2019 do so for the teacher, not for the student).
        image_size: side of the pictures that it is trained on; None if not known.
        resize: how these are made square, a value of --resize; None: squeezed.

    Attributes:
        embedding_size: d, also without a linear layer.

    A state dict of it, and a file of that, also says what its tensors don't show: ``normalize``, ``image_size``,
    ``resize``, and the base's name and pooling.
    """

    def __init__(self, base, output_size=512, embedding_size=128, normalize=True, image_size=None, resize=None):
        super().__init__()
        self.base = base
        self.linear = nn.Linear(output_size, embedding_size) if embedding_size else nn.Identity()
        self.embedding_size = embedding_size or output_size
        self.normalize = normalize
        self.image_size = None if image_size is None else int(image_size)
        self.resize = resize

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # PyTorch keeps such notes of each module beside the tensors, in files too. Strict loading looks at the names of
        # tensors only, so any code, and the reference, loads the file as before.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        notes = {"l2normalize": bool(self.normalize), "image_size": self.image_size, "resize": self.resize,
                 "base": getattr(self.base, "name", None), "pool": getattr(self.base, "pool_name", None)}
        if hasattr(destination, "_metadata"):  # a dict that the caller brought may have none
            destination._metadata[prefix[:-1]][NOTES] = {
                name: value for name, value in notes.items() if value is not None}

    def forward(self, images, get_stages=False, get_ha=False):
        """Return embeddings, B x d.

        Args:
            images: B x 3 x H x W, uint8 in 0..255, or floats that are normalised already.
            get_stages: return (stage1, stage2, stage3, stage4, pooled, embeddings) instead: the maps of the backbone's
                stages, B x C' x H' x W', and its pooled features, B x ``output_size``, before the embeddings.
            get_ha: the same, under the name that the reference implementation gives it.
        """
        if not (get_stages or get_ha):
            return self._embed(self.base(images).flatten(1))
        if not getattr(self.base, "has_stages", True):
            raise ValueError("{} has no stages".format(type(self.base).__name__))
        stage1, stage2, stage3, stage4, pooled = self.base(images, True)
        pooled = pooled.flatten(1)
        return stage1, stage2, stage3, stage4, pooled, self._embed(pooled)

    def after_maps(self):
        """Return the modules that run after the last stage's map; a loss on maps alone does not train them."""
        return self.base.after_maps() + [self.linear]

    def _embed(self, pooled):
        # Embeddings are compared by small differences: under autocast, too, the head computes in its own precision,
        # that of its parameters. `weight` need not be one: in a quantised layer it is a method, and pruning makes it
        # anew at each call. A quantised layer has no parameters and takes float32. Without a head it is the base's.
        part = self.base if isinstance(self.linear, nn.Identity) else self.linear
        precision = next((parameter.dtype for parameter in part.parameters()), torch.float32)
        with autocast_off(pooled.device.type):
            embeddings = self.linear(pooled.to(precision))
        return F.normalize(embeddings, p=2, dim=1) if self.normalize else embeddings
