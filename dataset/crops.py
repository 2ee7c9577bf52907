"""Which window of a resized picture a row of a batch shows: drawn anew each time, drawn from a few fixed ones, or the
centre; and cutting it out.

What draws a batch's crops is called with (indices, seed, span, side, size) and returns the ``Crop`` of each row in the
span (start, stop). indices: the pictures of all rows. seed: of the batch. side: of the resized pictures. size: of the
crop that the network sees. Several processes, each with its span, get what a single one gets for all rows.
"""
import collections
import math

import numpy as np
from PIL import Image

__all__ = ["CROPS", "Crop", "CentreCrops", "RandomCrops", "FixedCrops", "cut"]

Crop = collections.namedtuple("Crop", "top left height width flip view")
Crop.__new__.__defaults__ = (None,)
Crop.__doc__ = """A window of a picture, in its pixels; whether it is mirrored; its number among the picture's fixed
crops, or None."""

# Of the window of a ``resized_crop``: its share of the area, and its width divided by its height.
SHARE, RATIO = (0.16, 1), (3 / 4, 4 / 3)
TRIES = 10
# Last part of the seed of a fixed crop: no batch has the same seed.
VIEW_STREAM = 2


def fixed_crop(rng, side, size):
    """Draw a window of the size that the network sees; mirrored with probability 0.5."""
    top, left = rng.integers(0, side - size + 1, size=2)
    return Crop(top, left, size, size, rng.random() < 0.5)


def resized_crop(rng, side, size):
    """Draw a window that is then resized, as torchvision's RandomResizedCrop does: up to ``TRIES`` times a share of the
    area and a ratio; the whole picture if none of them fits. Mirrored with probability 0.5."""
    ratios = np.log(RATIO)
    for _ in range(TRIES):
        area, ratio = side * side * rng.uniform(*SHARE), math.exp(rng.uniform(*ratios))
        height, width = int(round(math.sqrt(area / ratio))), int(round(math.sqrt(area * ratio)))
        if 0 < height <= side and 0 < width <= side:
            top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
            break
    else:
        top, left, height, width = 0, 0, side, side
    return Crop(top, left, height, width, rng.random() < 0.5)


# The command line's name of each kind of random crop: (NumPy generator, side, size) -> Crop.
CROPS = {"fixed": fixed_crop, "resized": resized_crop}


class CentreCrops:
    """The centre of each picture, not mirrored."""

    table = None

    def __call__(self, indices, seed, span, side, size):
        start = int(round((side - size) / 2))
        return [Crop(start, start, size, size, False)] * (span[1] - span[0])


class RandomCrops:
    """A new random crop for each row.

    Args:
        kind: a name in ``CROPS``. views: rows of each picture in a batch, one behind the other.
    """

    table = None

    def __init__(self, kind="fixed", views=1):
        self.draw = CROPS[kind]
        self.views = views

    def __call__(self, indices, seed, span, side, size):
        rng = np.random.default_rng(seed)
        return [self.draw(rng, side, size) for _ in range(span[1])][span[0]:]


class FixedCrops:
    """A few crops of each picture that never change. Each row draws one of them, the rows of a picture different ones.

    Crop k of the i-th picture depends on ``seed``, i, k, the kind and the sizes alone.

    Args:
        kind, views: as in ``RandomCrops``. seed: of the crops. count: how many each picture has, at least ``views``.
        table: numbers that belong to each crop, a ``CropTable``, which the batches then hold, too; or None.
    """

    def __init__(self, kind, seed, count, views=1, table=None):
        self.kind, self.seed, self.count, self.views, self.table = kind, seed, count, views, table

    def __call__(self, indices, seed, span, side, size):
        # A random order of the crops for each picture of the batch, of which the first ones are taken.
        orders = np.random.default_rng(seed).random((len(indices) // self.views, self.count)).argsort(1)
        drawn = orders[:, :self.views].ravel().tolist()
        return [self.crop(*row, side, size) for row in list(zip(indices, drawn))[slice(*span)]]

    def crop(self, index, view, side, size):
        rng = np.random.default_rng((self.seed, index, view, VIEW_STREAM))
        return CROPS[self.kind](rng, side, size)._replace(view=view)

    def only(self, view):
        """Return what gives every row the crop with this number."""
        return _OneView(self, view)

    def with_table(self, table):
        return FixedCrops(self.kind, self.seed, self.count, self.views, table)


class _OneView:
    table = None

    def __init__(self, crops, view):
        self.crops, self.view = crops, view

    def __call__(self, indices, seed, span, side, size):
        return [self.crops.crop(index, self.view, side, size) for index in indices[slice(*span)]]


def cut(picture, crop, row):
    """Put a crop of ``picture``, side x side x 3, into ``row``, a tensor of size x size x 3; both are uint8.

    A window of another size is resized as torchvision's ``resized_crop`` resizes a PIL image, pixel for pixel: cut out,
    then Pillow's bilinear filter, antialiased. (With Pillow's own ``box=`` the filter would reach beyond the window;
    torch's antialiased filter needs torch 1.11, and one of uint8 torch 2.1.)
    """
    size = row.shape[0]
    window = picture[crop.top:crop.top + crop.height, crop.left:crop.left + crop.width]
    if window.shape[:2] != (size, size):
        window = np.asarray(Image.fromarray(np.ascontiguousarray(window)).resize((size, size), Image.BILINEAR))
    row.numpy()[...] = window
    if crop.flip:
        row.copy_(row.flip(1))  # torch's is ten times as fast as NumPy's here
