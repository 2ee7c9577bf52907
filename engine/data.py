"""Open the pictures of a run: find them, check that they fit the job, decode them once, make the loaders."""
import collections
import functools
import os

import torch

from dataset import (EvaluationLoader, RandomCrops, TrainLoader, load_splits, open_pictures, passed_over, resized_size,
                     shared_files, shown, workers_that_fit)
from engine import ranks
from engine.errors import UsageError
from engine.options import as_factor
from metric.batchsampler import NPairs, Uniform
from metric.utils import queries_without_match

SHOWN_CLASSES = 3
SHOWN_LINES = 10
SHOWN_KINDS = 20
NAMES = {"train": "training set", "val": "validation set", "test": "test set", "gallery": "gallery", "all": "folder"}

Data = collections.namedtuple("Data", "batches evaluation training")
Data.__doc__ = """batches: the ``TrainLoader`` of class-balanced batches, or of uniform ones where pictures have no
labels; None where nothing is trained.
evaluation: {split that is measured, "train", "val" (the classes of --val_classes) or "test": loader}, with the test
transform. A loader of queries knows that of the gallery that they search in.
training: what draws crops -> an ``EvaluationLoader`` of the training set with these; None where nothing is trained.
"""


def open_data(run, wanted=("train", "test")):
    """Return the ``Data`` of a ``settle.Run``; wanted: the splits that are measured, beside that of --val_classes.

    Raises:
        DatasetError: pictures that are missing or can't be read.
        UsageError: they don't fit the job, or are not those that the run began with.
    """
    args = run.args
    splits = ranks.machine_by_machine(lambda: load_splits(
        args.dataset, args.data, args.download, test_alone=not run.trains,
        unlabelled=getattr(args, "unlabelled", None)))
    measured = [split for split, images in splits.items() if split in wanted and (split == "test"
                or split == "train" and images.has_labels and not args.no_train_recall)]
    # With --val_classes, too, the training set is opened as a whole: runs with and without them share its cache.
    used = {split: splits[split] for split in splits
            if run.trains or split in measured or split == "gallery" or split == "train" and args.val_classes}
    measured += ["val"] if args.val_classes else []
    _tell_layout(splits)
    may_skip = args.skip_broken or args.skip_single
    if not may_skip:
        _check(_hold_out(splits, args.val_classes), run, measured)  # before they are decoded, which takes a while
    pictures = ranks.machine_by_machine(lambda: _open_used(used, args))
    skipped = {split: pictures[split].skipped for split in used}
    lines = tell_skipped(skipped, used)
    if may_skip:
        splits = {split: images.without(skipped.get(split, ())) for split, images in splits.items()}
        _check(_hold_out(splits, args.val_classes), run, measured)
    if "train" in pictures:
        pictures = _hold_out_pictures(pictures, splits["train"], args.val_classes)
    splits = _hold_out(splits, args.val_classes)
    _take_note(run, {split: splits[split] for split in pictures}, pictures, lines)
    return _loaders(run, splits, pictures, [split for split in splits if split in measured])


def _hold_out(splits, count):
    """Return {split: ``ImageSet``} with the last ``count`` training classes as the split "val"."""
    if not count:
        return splits
    if "train" not in splits:
        raise UsageError("--val_classes {}: there is no training set of which classes could be held out".format(count))
    left, held = splits["train"].divided(count)
    if len({splits["train"].targets[index] for index in left}) < 2:
        raise UsageError("--val_classes {} leaves fewer than 2 of the {} training classes to train on; take at most "
                         "{}".format(count, len(set(splits["train"].targets)),
                                     max(0, len(set(splits["train"].targets)) - 2)))
    return {"train": splits["train"].only(left), "val": splits["train"].only(held),
            **{split: images for split, images in splits.items() if split != "train"}}


def _hold_out_pictures(pictures, images, count):
    """Return the {split: resized pictures} that belong to ``_hold_out``; ``images`` is the whole training set."""
    if not count:
        return pictures
    left, held = images.divided(count)
    return dict(pictures, train=pictures["train"].only(left, "held out by --val_classes"),
                val=pictures["train"].only(held, "trained on"))


def _take_note(run, splits, pictures, lines):
    """See that all ranks, and the run before it was resumed, have the same pictures."""
    if ranks.count() == 1 and run.args.save_dir is None:  # nothing to compare with; check sums take time
        return
    found = {split: [len(images), images.fingerprint(pictures[split].checksums(NAMES[split]))]
             for split, images in splits.items()}
    ranks.agree({"the " + NAMES[split]: "{} pictures, digest {}".format(*entry) for split, entry in found.items()})
    if run.record:
        run.record.take_data(found, lines)


def _loaders(run, splits, pictures, measured):
    """Return the ``Data`` of open pictures."""
    args, pinned, size = run.args, run.device.type != "cpu", -(-run.args.batch // ranks.count())
    workers, batches, training = workers_that_fit(args.workers, size * 3 * args.image_size ** 2), None, None

    def every(split, crops=None):
        gallery = every("gallery") if split == "test" and "gallery" in splits else None
        return EvaluationLoader(splits[split], size, args.image_size, workers, pinned, pictures[split],
                                ranks.span(len(splits[split])), crops, gallery)

    if run.trains:
        train, drawn = splits["train"], args.batch // args.views
        sampler = (NPairs(train, drawn, args.num_image_per_class, args.iter_per_epoch, args.seed)
                   if train.has_labels else Uniform(len(train), drawn, args.iter_per_epoch, args.seed))
        batches = TrainLoader(train, sampler, args.image_size, args.seed, workers, pinned,
                              pictures["train"], ranks.span(args.batch), RandomCrops(args.crop, args.views))
        training = functools.partial(every, "train")
    return Data(batches, {split: every(split) for split in measured}, training)


def _tell_layout(splits):
    """Print where the pictures are, and which files there are not taken for pictures."""
    print("Pictures: {}".format(shown(splits["test"].layout)))
    looked_through = list(splits.values())
    if "train" in splits and not splits["train"].has_labels:
        # The test set's folder may hold the training set, too, which is not opened; its pictures are not passed over.
        looked_through = [splits["train"]]
        print("Pictures without labels: {}".format(shown(splits["train"].layout)), flush=True)
    others = passed_over(looked_through) if ranks.is_first() else None
    if others:
        kinds = ["{} {}".format(count, shown(kind)) for kind, count in others.most_common()]
        print("Passed over: {} files there that are not taken for pictures: {}".format(
            sum(others.values()), ", ".join(kinds[:SHOWN_KINDS] + ["..."] * (len(kinds) > SHOWN_KINDS))), flush=True)


def opened(splits, args):
    """Return {split: its resized pictures}."""
    with_classes = {os.path.realpath(images.directory) for images in splits.values()
                    if images.directory and images.has_labels and not images.is_a_list}
    if args.cache not in ("auto", "off") and os.path.dirname(os.path.realpath(args.cache)) in with_classes:
        raise UsageError("--cache {}: this is among the class folders, and would be taken for one; give another "
                         "directory".format(args.cache))
    # A folder more beside class folders would be taken for a class by other programs; there may be some beside a list.
    beside = None if os.path.isfile(args.data) or os.path.realpath(args.data) in with_classes else args.data
    pictures = {}
    for split, images in splits.items():
        pictures[split] = open_pictures(
            [path for path, _ in images.samples], resized_size(args.image_size), args.cache,
            beside, NAMES[split], args.skip_broken, args.truncated, args.resize)
    return pictures


def _open_used(splits, args):
    """Return what ``opened`` gives, without single pictures of a class if they are to be left out."""
    pictures = opened(splits, args)
    for split, images in splits.items():
        if args.skip_single and (split == "train" or "gallery" not in splits):
            pictures[split] = pictures[split].without(_single(images, pictures[split].skipped))
    return pictures


def _single(images, skipped):
    """Return {index: why} of the pictures that are the only ones of their class, when those skipped are left out."""
    counts = collections.Counter(label for index, label in enumerate(images.targets) if index not in skipped)
    return {index: "{}: the only picture of its class".format(shown(path))
            for index, (path, label) in enumerate(images.samples) if counts[label] == 1 and index not in skipped}


def tell_skipped(skipped, splits):
    """Print which pictures are left out; return a line for each."""
    lines = [line for problems in skipped.values() for _, line in sorted(problems.items())]
    for split, problems in skipped.items():
        if problems:
            print("Skipped: {} of {} pictures of the {}".format(len(problems), len(splits[split]), NAMES[split]))
    more = ["... and {} more".format(len(lines) - SHOWN_LINES)] if len(lines) > SHOWN_LINES else []
    for line in lines[:SHOWN_LINES] + more:
        print("  " + line)
    return lines


def _check(splits, run, measured):
    """Print the sizes of the splits, and refuse pictures that don't fit the job: one class only, classes of one picture
    where pairs are needed, queries that can find nothing, fewer pictures than asked for. Pictures without labels have
    no classes to look at."""
    args = run.args
    print("Number of images in Training Set: {}".format(len(splits["train"]) if "train" in splits else 0))
    if "val" in splits:
        print("Number of images in Validation set: {}, of {} training classes that are held out ({})".format(
            len(splits["val"]), len(splits["val"].classes), _first(splits["val"].classes)))
    print("Number of images in Test set: {}".format(len(splits["test"])), flush=True)
    if "gallery" in splits:
        print("Number of images in Gallery: {}".format(len(splits["gallery"])), flush=True)
    _warn_of_shared_classes(splits)
    for split, images in splits.items():
        if not images.has_labels:
            _check_unlabelled(images, [other for other in splits.values() if other is not images], args)
            continue
        if len(set(images.targets)) < 2:
            raise UsageError("the {} has {}; at least 2 classes are needed".format(
                NAMES[split], "only one class ({})".format(_kinds(images)[0]) if images.targets else "no pictures"))
        if len(images) < ranks.count():
            raise UsageError("the {} has {} pictures for {} processes".format(NAMES[split], len(images), ranks.count()))
        if split in measured:
            _check_recall(max(args.recall), splits, split)
        if "gallery" not in splits or split in ("train", "val"):
            _check_single(split, images, run.needs_pairs and split == "train")
        if run.trains and split == "train":
            _check_batch(args, images)
    if "gallery" in splits:
        _check_queries(splits)
    if len(args.metrics) > 1:
        _tell_unmatched(splits, measured)


def _tell_unmatched(splits, measured):
    """Print how many queries of each split have nothing to find; the measures beside recall leave them out."""
    for split in measured:
        gallery = torch.tensor(splits["gallery"].targets) if split == "test" and "gallery" in splits else None
        count = queries_without_match(torch.tensor(splits[split].targets), gallery)
        if count:
            print("Without a match: {} of {} queries of the {}; the measures beside recall leave them out".format(
                count, len(splits[split]), NAMES[split]), flush=True)


def _kinds(images):
    """Return the names of the classes that have pictures; those of queries and their gallery may be listed in both."""
    labels = set(images.targets)
    return [name for name in images.classes if images.class_to_idx[name] in labels]


def _warn_of_shared_classes(splits):
    kinds = {split: set(_kinds(images)) for split, images in splits.items()}
    trained = kinds.pop("train", set()) | kinds.pop("val", set())
    shared = sorted(trained.intersection(set().union(*kinds.values())))
    if shared:
        print("Warning: {} classes are in both the training and the test set ({}); what is measured is then not how "
              "the network does on classes that it has never seen".format(len(shared), _first(shared)), flush=True)


def _check_unlabelled(images, others, args):
    """Refuse fewer pictures without labels than a batch takes; warn of those that are in ``others``, too, the sets that
    are measured."""
    if args.batch > len(images) * args.views:
        raise UsageError("--batch {}{} is more than the {} pictures in {}; lower it or add pictures".format(
            args.batch, as_factor(args.views), len(images), shown(images.directory)))
    shared = shared_files(images, others) if ranks.is_first() else 0
    if shared:
        print("Warning: {} of {} test pictures are also among those that are trained on; no label is used, but the "
              "recall is then transductive, not that of pictures that the network has never seen".format(
                  shared, sum(map(len, others))), flush=True)


def _check_recall(most, splits, split):
    """Refuse ``most``, the largest K, if it is more than there is to find."""
    if split == "test" and "gallery" in splits:
        size, where = len(splits["gallery"]), "the gallery"
    else:
        size, where = len(splits[split]) - 1, "beside the query, the gallery of the {}".format(NAMES[split])
    if most > size:
        raise UsageError("--recall {}: {} holds only {} pictures".format(most, where, size))


def _check_single(split, images, needs_pairs):
    """Warn of classes of one picture, or refuse them."""
    counts = collections.Counter(images.targets)
    single = [name for name in images.classes if counts[images.class_to_idx[name]] == 1]
    if not single:
        return
    finding = "{} of {} classes of the {} have a single picture ({})".format(
        len(single), len(counts), NAMES[split], _first(single))
    if split != "train" and len(single) == len(counts):
        raise UsageError("every class of the {} has a single picture, so no query has anything to find; add "
                         "pictures of these classes".format(NAMES[split]))
    if needs_pairs:
        raise UsageError("{}; the loss needs pairs of one class: add pictures, or leave such classes out with "
                         "--skip_single".format(finding))
    print("Warning: {}; as queries they count as misses (--skip_single leaves them out)".format(finding), flush=True)


def _check_queries(splits):
    """Warn of classes of queries that the gallery lacks; refuse queries none of which has anything to find."""
    there, asked = set(splits["gallery"].targets), _kinds(splits["test"])
    missing = [name for name in asked if splits["test"].class_to_idx[name] not in there]
    if len(missing) == len(asked):
        raise UsageError("no class of the test set is in its gallery, so no query has anything to find; their classes "
                         "must have the same names")
    if missing:
        print("Warning: {} of {} classes of the test set have no picture in the gallery ({}); their queries count as "
              "misses".format(len(missing), len(asked), _first(missing)), flush=True)


def _check_batch(args, images):
    """Refuse a --batch that is larger than what the classes can give."""
    counts = collections.Counter(images.targets)
    most = sum(min(args.num_image_per_class, count) for count in counts.values())
    if args.batch > most * args.views:
        raise UsageError("--batch {} is more than the training set can give: {} classes with --num_image_per_class "
                         "{}{} make {}{}; lower the one or raise the other".format(
                             args.batch, len(counts), args.num_image_per_class, as_factor(args.views),
                             most * args.views, ", without the {} of --val_classes".format(args.val_classes)
                             if args.val_classes else ""))


def _first(names):
    return ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
