"""The embedding head: pooled features -> Linear -> optional L2 normalisation."""
import torch.nn as nn
import torch.nn.functional as F

from model.compat import autocast_off

__all__ = ["LinearEmbedding"]


class LinearEmbedding(nn.Module):
    """An embedding network: ``base``, then one linear layer, then optionally a projection to the unit sphere.

    Args:
        base: a backbone; called on B x 3 x H x W pictures it returns B x ``output_size`` features, and with a second
            argument True the maps of its four stages before them.
        output_size: width of the backbone's features.
        embedding_size: width of the embedding, d.
        normalize: divide each embedding by its L2 norm (Park et al. 2019 do so for the teacher, not for the student).
    """

    def __init__(self, base, output_size=512, embedding_size=128, normalize=True):
        super().__init__()
        self.base = base
        self.linear = nn.Linear(output_size, embedding_size)
        self.normalize = normalize

    def forward(self, images, get_stages=False, get_ha=False):
        """Return embeddings, B x d.

        Args:
            images: B x 3 x H x W, uint8 in 0..255 or float in 0..1.
            get_stages: return (stage1, stage2, stage3, stage4, pooled, embeddings) instead: the maps of the backbone's
                stages, B x C' x H' x W', and its pooled features, B x ``output_size``, before the embeddings.
            get_ha: the same, under the name that the reference implementation gives it.
        """
        if not (get_stages or get_ha):
            return self._embed(self.base(images).flatten(1))
        stage1, stage2, stage3, stage4, pooled = self.base(images, True)
        pooled = pooled.flatten(1)
        return stage1, stage2, stage3, stage4, pooled, self._embed(pooled)

    def _embed(self, pooled):
        # Embeddings are compared by small differences: under autocast, too, the head computes in its own precision.
        with autocast_off(pooled.device.type):
            embeddings = self.linear(pooled.to(self.linear.weight.dtype))
        return F.normalize(embeddings, p=2, dim=1) if self.normalize else embeddings
