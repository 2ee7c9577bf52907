"""Open the pictures of a run: find them, check that they fit the job, decode them once, make the loaders."""
import collections

from dataset import EvaluationLoader, TrainLoader, load_splits, open_pictures, resized_size
from engine import ranks
from engine.errors import UsageError
from metric.batchsampler import NPairs

SHOWN_CLASSES = 3
SHOWN_LINES = 10
NAMES = {"train": "training", "test": "test"}

Data = collections.namedtuple("Data", "batches evaluation")
Data.__doc__ = """batches: the ``TrainLoader`` of class-balanced batches, or None where nothing is trained.
evaluation: {"train": loader, "test": loader}, both with the test transform; with --no_train_recall the second only.
"""


def open_data(run):
    """Return the ``Data`` of a ``settle.Run``.

    Raises:
        DatasetError: pictures that are missing or can't be read.
        UsageError: they don't fit the job, or are not those that the run began with.
    """
    args = run.args
    splits = dict(zip(NAMES, ranks.machine_by_machine(lambda: load_splits(args.dataset, args.data, args.download))))
    measured = ["test"] if args.no_train_recall else ["train", "test"]
    _check(splits, run, measured)
    used = {split: images for split, images in splits.items() if run.trains or split in measured}
    pictures = ranks.machine_by_machine(lambda: {
        split: open_pictures([path for path, _ in images.samples], resized_size(args.image_size), args.cache,
                             args.data, "{} set".format(NAMES[split]), args.skip_broken)
        for split, images in used.items()})
    lines = _tell_skipped({split: pictures[split].skipped for split in used}, used)
    if lines:
        splits.update((split, images.without(pictures[split].skipped)) for split, images in used.items())
        _check(splits, run, measured)
    if run.record or ranks.count() > 1:
        found = {split: [len(splits[split]), splits[split].fingerprint(args.data)] for split in used}
        ranks.agree({"the {} set".format(NAMES[split]): "{} pictures, digest {}".format(*entry)
                     for split, entry in found.items()})
        if run.record:
            run.record.take_data(found, lines)

    batches, pinned = None, run.device.type != "cpu"
    if run.trains:
        drawn = NPairs(splits["train"], args.batch, args.num_image_per_class, args.iter_per_epoch, seed=args.seed)
        batches = TrainLoader(splits["train"], drawn, args.image_size, args.seed, args.workers, pinned,
                              pictures["train"], ranks.span(args.batch))
    size = -(-args.batch // ranks.count())
    return Data(batches, {
        split: EvaluationLoader(splits[split], size, args.image_size, args.workers, pinned, pictures[split],
                                ranks.span(len(splits[split]))) for split in measured})


def _tell_skipped(skipped, splits):
    """Print which pictures are left out; return a line for each."""
    lines = [line for problems in skipped.values() for _, line in sorted(problems.items())]
    for split, problems in skipped.items():
        if problems:
            print("Skipped: {} of {} pictures of the {} set can't be read".format(
                len(problems), len(splits[split]), NAMES[split]))
    more = ["... and {} more".format(len(lines) - SHOWN_LINES)] if len(lines) > SHOWN_LINES else []
    for line in lines[:SHOWN_LINES] + more:
        print("  " + line)
    return lines


def _check(splits, run, measured):
    """Print the sizes of the splits, and refuse pictures that don't fit the job: one class only, classes of one picture
    where pairs are needed, fewer pictures than asked for."""
    args = run.args
    print("Number of images in Training Set: {}".format(len(splits["train"])))
    print("Number of images in Test set: {}".format(len(splits["test"])), flush=True)
    shared = sorted(set(splits["train"].classes) & set(splits["test"].classes))
    if shared:
        print("Warning: {} classes are in both the training and the test set ({}); what is measured is then not how "
              "the network does on classes that it has never seen".format(len(shared), _first(shared)), flush=True)
    for split, images in splits.items():
        name = NAMES[split]
        if len(images.classes) < 2:
            raise UsageError("the {} set has {}; at least 2 classes are needed".format(
                name, "only one class ({})".format(images.classes[0]) if images.classes else "no pictures"))
        if len(images) < ranks.count():
            raise UsageError("the {} set has {} pictures for {} processes".format(name, len(images), ranks.count()))
        if split in measured and max(args.recall) > len(images) - 1:
            raise UsageError("--recall {}: beside the query, the gallery of the {} set holds only {} pictures".format(
                max(args.recall), name, len(images) - 1))
        counts = collections.Counter(images.targets)
        single = [kind for kind in images.classes if counts[images.class_to_idx[kind]] == 1]
        if single:
            _check_single(split, single, len(counts), run.needs_pairs and split == "train")
        most = sum(min(args.num_image_per_class, count) for count in counts.values())
        if run.trains and split == "train" and args.batch > most:
            raise UsageError("--batch {} is more than the training set can give: {} classes with --num_image_per_class "
                             "{} make {}; lower the one or raise the other".format(
                                 args.batch, len(counts), args.num_image_per_class, most))


def _check_single(split, single, classes, needs_pairs):
    """Warn of ``single``, the classes of one picture, or refuse them."""
    finding = "{} of {} classes of the {} set have a single picture ({})".format(
        len(single), classes, NAMES[split], _first(single))
    if split == "test" and len(single) == classes:
        raise UsageError("every class of the test set has a single picture, so no query has anything to find; add "
                         "pictures of these classes")
    if needs_pairs:
        raise UsageError("{}; the loss needs pairs of one class: add pictures or remove the class".format(finding))
    print("Warning: {}; as queries they count as misses".format(finding), flush=True)


def _first(names):
    return ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
