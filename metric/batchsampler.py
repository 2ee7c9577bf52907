"""The batch samplers: which images share a batch."""

import operator

import numpy as np
import torch

__all__ = ["NPairs", "Uniform"]


def _labels_of(data_source):
    """Labels of a data set (`.targets`, or the second of each of `.samples` or `.imgs`) or of a sequence of labels."""
    if hasattr(data_source, "targets"):
        labels = data_source.targets
    elif hasattr(data_source, "samples"):
        labels = [label for _, label in data_source.samples]
    elif hasattr(data_source, "imgs"):
        labels = [label for _, label in data_source.imgs]
    else:
        labels = data_source
    labels = labels.tolist() if isinstance(labels, (torch.Tensor, np.ndarray)) else list(labels)
    try:
        return [operator.index(label) for label in labels]
    except TypeError:
        raise TypeError("labels must be integers: give .targets, .samples, .imgs or a sequence of labels") from None


class _BatchSampler:
    """What all batch samplers have: arguments, numbered batches, epochs; `NPairs` describes them. Each adds `_drawn`, a
    batch of a random generator."""

    def __init__(self, batch_size, iter_per_epoch, seed):
        self.batch_size = operator.index(batch_size)
        self.iter_per_epoch = operator.index(iter_per_epoch)
        self.seed = int(torch.randint(2 ** 62, ())) if seed is None else operator.index(seed)
        self.epoch = 0
        self._check_least(batch_size=2, iter_per_epoch=1, seed=0)

    def _check_least(self, **least):
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError("{} must be at least {}, got {}".format(name, value, getattr(self, name)))

    def set_epoch(self, epoch):
        """Let the next iteration draw epoch `epoch`, and the one after it epoch `epoch` + 1."""
        self.epoch = operator.index(epoch)
        if self.epoch < 0:
            raise ValueError("epoch must be at least 0, got {}".format(epoch))

    def draw(self, epoch, b):
        """Batch `b` of epoch `epoch`: a list of `batch_size` image indices."""
        if epoch < 0 or not 0 <= b < self.iter_per_epoch:
            raise ValueError("needs epoch >= 0 and 0 <= b < {}, got epoch {} and b {}".format(
                self.iter_per_epoch, epoch, b))
        return self._drawn(np.random.default_rng([self.seed, epoch, b]))

    def __iter__(self):
        # The body of a generator runs from its first batch on. A DataLoader with workers makes one iterator that it
        # never uses, and that one must not count as an epoch.
        epoch = self.epoch
        self.epoch = epoch + 1
        for b in range(self.iter_per_epoch):
            yield self.draw(epoch, b)

    def __len__(self):
        return self.iter_per_epoch


class Uniform(_BatchSampler):
    """Batches of distinct images, drawn from all of them with the same chance, whatever their labels.

    Each batch is drawn by itself, as in `NPairs`; it is no part of a pass over all images. So some come again before
    others have come: N / batch_size batches show about 63 percent of the N images, three times as many 95 percent.

    Batch b of epoch e depends on (seed, e, b) alone, and iterations are epochs, as in `NPairs`.

    Args:
        count: number of images, N, at least `batch_size`.
        batch_size, iter_per_epoch, seed: as in `NPairs`.

    Attributes: as of `NPairs`.

    Raises:
        ValueError: an argument out of range. TypeError: an argument that is no integer.
    """

    def __init__(self, count, batch_size, iter_per_epoch=200, seed=None):
        super().__init__(batch_size, iter_per_epoch, seed)
        self.count = operator.index(count)
        if self.count < self.batch_size:
            raise ValueError("batch_size {} is more than {} images".format(self.batch_size, self.count))

    def _drawn(self, generator):
        return generator.choice(self.count, self.batch_size, replace=False).tolist()


class NPairs(_BatchSampler):
    """Batches of several images of each of several classes (after Sohn, N-pair loss, NIPS 2016).

    For each batch the classes are shuffled, min(m, class size) distinct images of each in turn are drawn until
    at least `batch_size` are there, and the first `batch_size` are kept; so the last class may give fewer than m.

    Batch b of epoch e depends on (seed, e, b) alone: a run can be resumed at any batch, and the number of workers
    changes nothing. Each new iteration draws the next epoch, the first one epoch 0 or the one given to `set_epoch`.

    Args:
        data_source: has `.targets` (labels), `.samples` or `.imgs` (pairs of path and label), or is a sequence of
            labels.
        batch_size: images per batch, at least 2.
        m: images per class, at least 1.
        iter_per_epoch: batches per epoch.
        seed: a non-negative integer. None draws one from torch's global generator when the sampler is made.

    Attributes:
        seed: the one in use. epoch: the one that the next iteration will draw.

    Corner cases: a class with a single image is drawn like any other, but gives no positive pair;
    `single_image_labels` lists such classes.

    Raises:
        ValueError: an argument out of range; fewer than two classes; a batch that a single
            class could fill; a batch larger than one round through all classes can give.
        TypeError: labels or arguments that are not integers.
    """

    def __init__(self, data_source, batch_size, m=5, iter_per_epoch=200, seed=None):
        super().__init__(batch_size, iter_per_epoch, seed)
        self.m = operator.index(m)
        self._check_least(m=1)
        images = {}
        for index, label in enumerate(_labels_of(data_source)):
            images.setdefault(label, []).append(index)
        # In the order of the labels, so that it does not matter which class the data set lists first.
        self._images = {label: np.array(images[label]) for label in sorted(images)}
        self._classes = list(self._images.values())
        self._check()

    def _check(self):
        if len(self._classes) < 2:
            raise ValueError("needs at least 2 classes, the data set has {}".format(len(self._classes)))
        sizes = [len(images) for images in self._classes]
        drawn = [min(self.m, size) for size in sizes]
        if max(drawn) >= self.batch_size:
            raise ValueError("batch_size {} could be filled by a single class: m is {}, the largest class has {} images"
                             .format(self.batch_size, self.m, max(sizes)))
        if sum(drawn) < self.batch_size:
            raise ValueError("batch_size {} is more than {} classes give with m = {}: {} images".format(
                self.batch_size, len(sizes), self.m, sum(drawn)))

    @property
    def single_image_labels(self):
        """Sorted labels of the classes with a single image, which never give a positive pair."""
        return [label for label, images in self._images.items() if len(images) == 1]

    def _drawn(self, generator):
        batch = []
        for c in generator.permutation(len(self._classes)):
            images = self._classes[c]
            batch.extend(generator.choice(images, min(self.m, len(images)), replace=False).tolist())
            if len(batch) >= self.batch_size:
                break
        return batch[:self.batch_size]
