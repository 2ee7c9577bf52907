"""NPairs and Uniform: what a batch holds, and what it depends on."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from metric.batchsampler import NPairs, Uniform

# Classes of 7, 3, 1, 9 and 6 images, labels neither sorted nor dense.
LABELS = np.random.RandomState(0).permutation([10] * 7 + [3] * 3 + [5] * 1 + [42] * 9 + [0] * 6).tolist()
SIZES = Counter(LABELS)


def batches_of(**settings):
    arguments = dict(batch_size=12, m=5, iter_per_epoch=20, seed=1)
    arguments.update(settings)
    return NPairs(LABELS, **arguments)


@pytest.mark.parametrize("batch_size, m", [(9, 5), (10, 3), (6, 5), (5, 1), (19, 5)])
def test_what_a_batch_holds(batch_size, m):
    lasts = set()
    for batch in batches_of(batch_size=batch_size, m=m):
        assert len(batch) == batch_size and all(type(index) is int for index in batch)
        assert len(set(batch)) == batch_size, "an image twice"
        labels = [LABELS[index] for index in batch]
        order = list(dict.fromkeys(labels))
        assert labels == sorted(labels, key=order.index), "classes come one after another"
        for label in order[:-1]:
            assert labels.count(label) == min(m, SIZES[label])
        last = min(m, SIZES[order[-1]])
        assert 1 <= labels.count(order[-1]) <= last
        assert sum(min(m, SIZES[label]) for label in order[:-1]) < batch_size
        lasts.add(labels.count(order[-1]) < last)
    if (batch_size, m) == (9, 5):
        assert lasts == {True, False}, "the last class is sometimes cut short, sometimes not"


def test_classes_and_images_are_drawn_evenly():
    first, images = Counter(), Counter()
    labels = [i // 10 for i in range(50)]
    for batch in NPairs(labels, batch_size=4, m=2, iter_per_epoch=2000, seed=0):
        first[labels[batch[0]]] += 1
        images.update(batch)
    # Standard deviations: 18 of 400 and about 12 of 160.
    assert len(first) == 5 and all(abs(count - 400) < 90 for count in first.values())
    assert len(images) == 50 and all(abs(count - 160) < 65 for count in images.values())


def test_length_and_number_of_batches():
    sampler = batches_of(iter_per_epoch=7)
    assert len(sampler) == 7 == len(list(sampler))
    assert len(NPairs(LABELS, 12)) == 200


def test_batches_depend_on_seed_epoch_and_number_alone():
    sampler = batches_of()
    first, second = list(sampler), list(sampler)
    assert first != second
    again = batches_of()
    assert [again.draw(1, b) for b in reversed(range(20))][::-1] == second
    assert [again.draw(0, b) for b in range(20)] == first
    assert list(again) == first
    assert list(batches_of(seed=2)) != first
    assert len({tuple(batch) for batch in first + second}) == 40
    assert [batch for batch in batches_of(iter_per_epoch=5)] == first[:5], "the length of an epoch changes no batch"


def test_set_epoch():
    sampler = batches_of()
    epochs = [list(sampler) for _ in range(4)]
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]
    assert list(sampler) == epochs[3]
    for _ in range(2):
        sampler.set_epoch(1)
        assert list(sampler) == epochs[1]
    with pytest.raises(ValueError, match="-1"):
        sampler.set_epoch(-1)


def test_the_seed_comes_from_torch_by_default():
    drawn = []
    for torch_seed in (3, 3, 4):
        torch.manual_seed(torch_seed)
        drawn.append(list(batches_of(seed=None)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_number_of_workers_changes_nothing():
    data = TensorDataset(torch.arange(len(LABELS)))
    epochs = []
    for workers in (0, 2):
        loader = DataLoader(data, batch_sampler=batches_of(iter_per_epoch=3), num_workers=workers)
        epochs.append([[batch.tolist() for (batch,) in loader] for _ in range(2)])
    assert epochs[0] == epochs[1]
    assert epochs[0] == [[batches_of().draw(epoch, b) for b in range(3)] for epoch in range(2)]


@pytest.mark.parametrize("source", [
    LABELS, tuple(LABELS), np.array(LABELS), torch.tensor(LABELS),
    SimpleNamespace(targets=LABELS), SimpleNamespace(targets=torch.tensor(LABELS)),
    SimpleNamespace(samples=[("a.jpg", label) for label in LABELS]),
    SimpleNamespace(imgs=[("a.jpg", label) for label in LABELS]),
], ids=["list", "tuple", "array", "tensor", "targets", "targets tensor", "samples", "imgs"])
def test_sources_of_labels(source):
    assert list(NPairs(source, 12, iter_per_epoch=3, seed=1)) == list(batches_of(iter_per_epoch=3))


def test_classes_of_a_single_image_are_listed():
    assert batches_of().single_image_labels == [5]
    assert NPairs([9, 9, 4, 7, 7, 1], 4, m=2, seed=0).single_image_labels == [1, 4]
    assert NPairs([0, 0, 1, 1], 4, m=2, seed=0).single_image_labels == []


@pytest.mark.parametrize("labels, settings, shown", [
    ([0, 0, 1, 1], {"m": 0}, "m must be at least 1, got 0"),
    ([0, 0, 1, 1], {"batch_size": 1}, "batch_size must be at least 2, got 1"),
    ([0, 0, 1, 1], {"iter_per_epoch": 0}, "iter_per_epoch must be at least 1, got 0"),
    ([0, 0, 1, 1], {"seed": -1}, "seed must be at least 0, got -1"),
    ([0, 0, 0, 0], {}, "at least 2 classes, the data set has 1"),
    ([], {}, "at least 2 classes, the data set has 0"),
    ([0, 0, 0, 0, 0, 1, 1], {"batch_size": 4}, "could be filled by a single class: m is 5, the largest class has 5"),
    ([0, 0, 0, 0, 0, 1, 1], {"batch_size": 5}, "could be filled by a single class"),
    ([0, 0, 0, 1, 1], {"batch_size": 5, "m": 2}, "more than 2 classes give with m = 2: 4 images"),
])
def test_refusals(labels, settings, shown):
    arguments = dict(batch_size=4, seed=0)
    arguments.update(settings)
    with pytest.raises(ValueError, match=shown) as raised:
        NPairs(labels, **arguments)
    assert "\n" not in str(raised.value)


def test_the_limits_of_the_refusals():
    # Exactly one round through all classes; a batch one larger than the largest class.
    assert sorted(NPairs([0, 0, 0, 1, 1], 5, m=3, seed=0).draw(0, 0)) == [0, 1, 2, 3, 4]
    for b in range(20):
        assert len({[0, 0, 0, 1, 1][i] for i in NPairs([0, 0, 0, 1, 1], 4, seed=0).draw(0, b)}) == 2


def test_labels_must_be_integers():
    for labels in ([0.5, 1.5, 1.5], ["a", "b", "b"]):
        with pytest.raises(TypeError, match="integers"):
            NPairs(labels, 2, m=1)


@pytest.mark.parametrize("epoch, b", [(-1, 0), (0, -1), (0, 20)])
def test_draw_knows_its_epoch(epoch, b):
    with pytest.raises(ValueError, match="b < 20"):
        batches_of().draw(epoch, b)


def test_a_uniform_batch_holds_distinct_images():
    for count, batch_size in ((12, 12), (13, 12), (200, 7), (10 ** 6, 64)):
        for batch in Uniform(count, batch_size, iter_per_epoch=20, seed=3):
            assert all(type(index) is int and 0 <= index < count for index in batch)
            assert len(batch) == batch_size == len(set(batch)), "an image twice"


def test_uniform_batches_are_drawn_evenly():
    images, pairs, firsts = Counter(), Counter(), Counter()
    for batch in Uniform(10, 4, iter_per_epoch=3000, seed=0):
        images.update(batch)
        pairs.update((a, b) for a in batch for b in batch if a < b)
        firsts[batch[0]] += 1
    # Means of 1200, 3000 * 6 / 45 = 400 and 300; standard deviations of 27, 19 and 16.
    assert len(images) == 10 and all(abs(count - 1200) < 135 for count in images.values())
    assert len(pairs) == 45 and all(abs(count - 400) < 95 for count in pairs.values())
    assert len(firsts) == 10 and all(abs(count - 300) < 80 for count in firsts.values())


def test_uniform_batches_depend_on_seed_epoch_and_number_alone():
    sampler = Uniform(100, 8, iter_per_epoch=20, seed=1)
    epochs = [list(sampler), list(sampler)]
    assert len(sampler) == 20 and len({tuple(batch) for epoch in epochs for batch in epoch}) == 40
    again = Uniform(100, 8, iter_per_epoch=30, seed=1)
    assert [[again.draw(epoch, b) for b in reversed(range(20))][::-1] for epoch in (0, 1)] == epochs
    assert list(Uniform(100, 8, iter_per_epoch=20, seed=2)) != epochs[0]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    with pytest.raises(ValueError, match="b < 20"):
        sampler.draw(0, 20)


@pytest.mark.parametrize("settings, shown", [
    ({"count": 3}, "batch_size 4 is more than 3 images"),
    ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
    ({"iter_per_epoch": 0}, "iter_per_epoch must be at least 1, got 0"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
])
def test_refusals_of_uniform_batches(settings, shown):
    with pytest.raises(ValueError, match=shown):
        Uniform(**dict(dict(count=9, batch_size=4, seed=0), **settings))
