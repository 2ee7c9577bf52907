"""Embeddings of pictures that nobody has, as ``report`` takes them, and a name that is no name."""
import types

import torch

from dataset import ImageSet

HOSTILE = '<script>document.title="taken"</script>"\'&\n'


def embedded(rows, labels, gallery=None, paths=None):
    """What ``report`` takes: embeddings of pictures that nobody has."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    paths = paths or ["nowhere/{}.png".format(number) for number in range(len(rows))]
    images = ImageSet(list(zip(paths, labels)), {"class {}".format(label): label for label in sorted(set(labels))})
    return types.SimpleNamespace(embeddings=rows, labels=torch.tensor(labels), images=images, gallery=gallery)
