"""The start of a run: say what it will do, check that the pictures fit the job, make the loaders."""
import collections
import json

from dataset import EvaluationLoader, TrainLoader, open_pictures, resized_size
from engine.errors import UsageError
from metric.batchsampler import NPairs

__all__ = ["announce", "check_splits", "resized_pictures", "evaluation_loaders", "training_loader"]

SHOWN_CLASSES = 3


def announce(args, device, why, precision, precision_why):
    """Print the options, the seed, the device and the precision of the networks."""
    print("Options: {}".format(json.dumps(vars(args), sort_keys=True)))
    print("Seed: {}".format(args.seed))
    print("Device: {} ({})".format(device, why))
    print("Precision: {} ({})".format(precision.name, precision_why), flush=True)


def check_splits(train_set, test_set, args, training, pairs_needed):
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
            raise UsageError("the {} set has only one class ({}); at least 2 are needed".format(
                split, images.classes[0]))
        if max(args.recall) > len(images) - 1:
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


def resized_pictures(train_set, test_set, args):
    """Return {split: its resized pictures}, decoded once where ``--cache`` allows; without those nobody asks for.

    Raises:
        DatasetError: pictures that can't be read.
    """
    splits = {"train": train_set, "test": test_set}
    if args.no_train_recall and getattr(args, "mode", "train") == "eval":
        del splits["train"]
    return {split: open_pictures([path for path, _ in images.samples], resized_size(args.image_size), args.cache,
                                 args.data, "{} set".format("training" if split == "train" else split))
            for split, images in splits.items()}


def training_loader(train_set, pictures, args, device):
    """Return the ``TrainLoader`` of class-balanced batches."""
    batches = NPairs(train_set, args.batch, args.num_image_per_class, args.iter_per_epoch, seed=args.seed)
    return TrainLoader(train_set, batches, args.image_size, args.seed, args.workers, device.type != "cpu",
                       pictures["train"])


def evaluation_loaders(train_set, test_set, pictures, args, device):
    """Return {"train": loader, "test": loader}, both with the test transform; with --no_train_recall the second."""
    splits = {"test": test_set} if args.no_train_recall else {"train": train_set, "test": test_set}
    return {split: EvaluationLoader(images, args.batch, args.image_size, args.workers, device.type != "cpu",
                                    pictures[split])
            for split, images in splits.items()}
