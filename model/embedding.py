"""The embedding head: pooled features -> Linear -> optional L2 normalisation."""
import torch.nn as nn
import torch.nn.functional as F

from model.compat import autocast_off

__all__ = ["LinearEmbedding"]


class LinearEmbedding(nn.Module):
    """An embedding network: ``base``, then one linear layer, then optionally a projection to the unit sphere.

    Args:
        base: a backbone; called on B x 3 x H x W pictures it returns B x ``output_size`` features, and with a second
            argument True its four stages' maps before them.
        output_size: width of the backbone's features.
        embedding_size: width of the embedding, d.
        normalize: divide each embedding by its L2 norm (Park et al. 2019 do so for the teacher, not for the student).
    """

    def __init__(self, base, output_size=512, embedding_size=128, normalize=True):
        super().__init__()
        self.base = base
        self.linear = nn.Linear(output_size, embedding_size)
        self.normalize = normalize

    def forward(self, images, get_stages=False):
        """Return embeddings, B x d; with ``get_stages``: (stage1, stage2, stage3, stage4, pooled, embeddings)."""
        if not get_stages:
            return self._embed(self.base(images).flatten(1))
        stage1, stage2, stage3, stage4, pooled = self.base(images, True)
        pooled = pooled.flatten(1)
        return stage1, stage2, stage3, stage4, pooled, self._embed(pooled)

    def _embed(self, pooled):
        # Embeddings are compared by small differences: under autocast the head still computes in its own precision.
        with autocast_off(pooled.device.type):
            embeddings = self.linear(pooled.to(self.linear.weight.dtype))
        return F.normalize(embeddings, p=2, dim=1) if self.normalize else embeddings
