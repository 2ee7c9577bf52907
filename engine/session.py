"""The start of a run: say what it will do, check that the pictures fit the job, open them, make the loaders."""
import collections
import contextlib
import json

from dataset import EvaluationLoader, TrainLoader, open_pictures, resized_size
from engine import ranks
from engine.device import prepare_device, resolve_device, seed_everything
from engine.errors import UsageError
from engine.files import held_directory
from engine.precision import resolve_precision
from metric.batchsampler import NPairs

__all__ = ["one_run", "start", "check_splits", "open_splits", "evaluation_loaders", "training_loader"]

SHOWN_CLASSES = 3
SHOWN_LINES = 10
NAMES = {"train": "training", "test": "test"}


@contextlib.contextmanager
def one_run(args):
    """Within the block the processes of a run act as one, and nobody else writes to its --save_dir."""
    with ranks.joined(vars(args)), contextlib.ExitStack() as held:
        if getattr(args, "mode", "train") == "train":
            ranks.from_first(lambda: held.enter_context(held_directory(args.save_dir)))
        yield


def start(args):
    """Seed every random source, print what the run will do, and return (device, ``Precision``).

    Raises:
        UsageError: the device or the precision doesn't work here.
    """
    measuring_only = getattr(args, "mode", "train") == "eval"
    least = ranks.count() if measuring_only or args.sync_bn else 2 * ranks.count()
    if ranks.count() > 1 and args.batch < least:
        raise UsageError("--batch {} is divided among {} processes; take at least {}{}".format(
            args.batch, ranks.count(), least, "" if measuring_only or args.sync_bn else
            ", or --sync_bn: a BatchNorm has nothing to learn from a single picture"))
    device, why = resolve_device(args.device)
    prepare_device(device)
    ranks.use_device(device)
    precision, precision_why = resolve_precision(args.precision, device, measuring_only)
    ranks.agree({"--precision": precision.name})
    seed_everything(args.seed)
    print("Options: {}".format(json.dumps(vars(args), sort_keys=True)))
    print("Seed: {}".format(args.seed))
    print("Device: {} ({})".format(device, why))
    print("Processes: {}".format(ranks.describe(device)))
    print("Precision: {} ({})".format(precision.name, precision_why), flush=True)
    return device, precision


def check_splits(train_set, test_set, args, training=True, pairs_needed=False):
    """Print the sizes of the splits and refuse pictures that don't fit the job.

    Args:
        training: the training set will be trained on, not only measured.
        pairs_needed: the loss needs two pictures of a class.

    Raises:
        UsageError: one class only, classes of one picture where pairs are needed, fewer pictures than asked for.
    """
    print("Number of images in Training Set: {}".format(len(train_set)))
    print("Number of images in Test set: {}".format(len(test_set)), flush=True)
    shared = sorted(set(train_set.classes) & set(test_set.classes))
    if shared:
        print("Warning: {} classes are in both the training and the test set ({}); what is measured is then not how "
              "the network does on classes that it has never seen".format(len(shared), _first(shared)), flush=True)
    for split, images in (("training", train_set), ("test", test_set)):
        if len(images.classes) < 2:
            raise UsageError("the {} set has {}; at least 2 classes are needed".format(
                split, "only one class ({})".format(images.classes[0]) if images.classes else "no pictures"))
        if len(images) < ranks.count():
            raise UsageError("the {} set has {} pictures for {} processes".format(split, len(images), ranks.count()))
        if (images is test_set or not args.no_train_recall) and max(args.recall) > len(images) - 1:
            raise UsageError("--recall {}: beside the query, the gallery of the {} set holds only {} pictures".format(
                max(args.recall), split, len(images) - 1))
        _check_single_pictures(split, images, pairs_needed and images is train_set)
    if training:
        _check_batch(train_set, args)


def _check_single_pictures(split, images, pairs_needed):
    counts = collections.Counter(images.targets)
    single = [name for name in images.classes if counts[images.class_to_idx[name]] == 1]
    if not single:
        return
    if len(single) == len(images.classes) and split == "test":
        raise UsageError("every class of the test set has a single picture, so no query has anything to find; add "
                         "pictures of these classes")
    finding = "{} of {} classes of the {} set have a single picture ({})".format(
        len(single), len(images.classes), split, _first(single))
    if pairs_needed:
        raise UsageError("{}; the loss needs pairs of one class: add pictures or remove the class".format(finding))
    print("Warning: {}; as queries they count as misses".format(finding), flush=True)


def _first(names):
    return ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")


def _check_batch(train_set, args):
    counts = collections.Counter(train_set.targets)
    most = sum(min(args.num_image_per_class, count) for count in counts.values())
    if args.batch > most:
        raise UsageError("--batch {} is more than the training set can give: {} classes with --num_image_per_class {} "
                         "make {}; lower the one or raise the other".format(
                             args.batch, len(counts), args.num_image_per_class, most))


def open_splits(train_set, test_set, args, training=True, pairs_needed=False):
    """Open the pictures of both splits.

    Args: as in ``check_splits``.

    Returns:
        (training set, test set, {split: resized pictures}, lines on pictures that were skipped): decoded once where
        ``--cache`` allows; without the pictures of a split that nobody asks for; with --skip_broken without those that
        can't be read.

    Raises:
        DatasetError: pictures that can't be read.
        UsageError: what is left without them does not fit the job; see ``check_splits``.
    """
    splits = {"train": train_set, "test": test_set}

    def opened():
        return {split: open_pictures([path for path, _ in images.samples], resized_size(args.image_size), args.cache,
                                     args.data, "{} set".format(NAMES[split]), args.skip_broken)
                for split, images in splits.items() if split == "test" or training or not args.no_train_recall}

    pictures = ranks.machine_by_machine(opened)
    if ranks.count() > 1:
        ranks.agree({"pictures of the {} set".format(NAMES[split]): [
            len(images), images.fingerprint(args.data), sorted(getattr(pictures.get(split), "skipped", ()))]
                     for split, images in splits.items()})
    skipped = {split: opened.skipped for split, opened in pictures.items() if opened.skipped}
    if not skipped:
        return train_set, test_set, pictures, []
    lines = [line for split in skipped for _, line in sorted(skipped[split].items())]
    for split, problems in skipped.items():
        print("Skipped: {} of {} pictures of the {} set can't be read".format(
            len(problems), len(splits[split]), NAMES[split]))
        splits[split] = splits[split].without(problems)
    for line in lines[:SHOWN_LINES]:
        print("  " + line)
    if len(lines) > SHOWN_LINES:
        print("  ... and {} more".format(len(lines) - SHOWN_LINES))
    check_splits(splits["train"], splits["test"], args, training, pairs_needed)
    return splits["train"], splits["test"], pictures, lines


def training_loader(train_set, pictures, args, device):
    """Return the ``TrainLoader`` of class-balanced batches."""
    batches = NPairs(train_set, args.batch, args.num_image_per_class, args.iter_per_epoch, seed=args.seed)
    return TrainLoader(train_set, batches, args.image_size, args.seed, args.workers, device.type != "cpu",
                       pictures["train"], ranks.share(args.batch))


def evaluation_loaders(train_set, test_set, pictures, args, device):
    """Return {"train": loader, "test": loader}, both with the test transform; with --no_train_recall the second."""
    splits = {"test": test_set} if args.no_train_recall else {"train": train_set, "test": test_set}
    batch = -(-args.batch // ranks.count())
    return {split: EvaluationLoader(images, batch, args.image_size, args.workers, device.type != "cpu",
                                    pictures[split], ranks.share(len(images)))
            for split, images in splits.items()}
