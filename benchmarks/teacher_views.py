"""Distillation steps at 224 px, ResNet50 -> ResNet18, with the teacher in every step and with --teacher_views; and what
the embeddings cost before the first epoch. Pictures come from the cache of loader.py's, in this process."""
import numpy as np
import torch

from common import main, parser

import run_distill
from dataset import EvaluationLoader, FixedCrops, ImageSet, RandomCrops, TrainLoader, open_pictures, resized_size
from dataset.croptable import CropTable
from engine.device import place, resolve_device
from engine.evaluation import embed
from engine.loop import train_epoch
from engine.optimisation import Schedule, make_optimizer, parameter_groups
from engine.precision import resolve_precision
from engine.training import Progress, Training
from loader import COUNT, FOLDER, draw
from metric.batchsampler import NPairs
from model import fused
from step import network

DIMENSIONS = 512


def opened(args, pictures=None):
    """Return (device, precision, the pictures' samples, the resized pictures)."""
    device = torch.device(args.device)
    resolve_device(args.device)
    samples = draw()[:pictures]
    return device, resolve_precision(args.precision, device)[0], samples, open_pictures(
        [path for path, _ in samples], resized_size(224), FOLDER)


def steps(args, with_teacher):
    device, precision, samples, pictures = opened(args)
    images = ImageSet(samples, {str(label): label for label in range(1 + samples[-1][1])})
    crops, teacher = RandomCrops(args.crop), None
    if with_teacher:
        teacher = place(fused(network("resnet50", DIMENSIONS, True, 224, device)), device)
    else:  # the time doesn't depend on what the numbers are
        numbers = np.random.default_rng(0).normal(size=(args.views, len(samples), DIMENSIONS)).astype(np.float32)
        crops = FixedCrops(args.crop, 0, args.views, table=CropTable(numbers))
    batches = TrainLoader(images, NPairs(images, args.batch, 2, args.steps, seed=0), 224, pictures=pictures,
                          pin_memory=device.type == "cuda", crops=crops)
    student = network("resnet18", 64, False, 224, device)
    options = run_distill.build_parser().parse_args(
        ["--dist_ratio", "1", "--angle_ratio", "2", "--batch", str(args.batch)])
    groups = parameter_groups(student, options)
    optimizer = make_optimizer(groups, options)
    training = Training(student, optimizer, Schedule(student, optimizer, groups, options), precision, device)
    step = run_distill.build_step(student, teacher, options, run_distill.build_criteria(options, None))
    return lambda: train_epoch(training, step, batches, Progress(1)),


def embeddings(args):
    device, precision, samples, pictures = opened(args, args.batch * args.steps)
    teacher = place(fused(network("resnet50", DIMENSIONS, True, 224, device)), device)
    batches = EvaluationLoader(ImageSet(samples, {}), args.batch, 224, pictures=pictures,
                               pin_memory=device.type == "cuda", crops=FixedCrops(args.crop, 0, args.views).only(0))
    return lambda: embed(teacher, batches, device, precision=precision),


def cases(args):
    def job(prepare, *more):
        return {"prepare": lambda: prepare(args, *more), "work": lambda run: run(), "count": args.batch * args.steps}

    if args.batch * args.steps > COUNT:
        raise SystemExit("--batch times --steps: at most {} pictures".format(COUNT))
    return {"distillation steps, ResNet50 -> ResNet18": {"the teacher in every step": job(steps, True),
                                                         "--teacher_views {}".format(args.views): job(steps, False)},
            "embedding one crop of each picture": {"before the first epoch": job(embeddings)}}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=4, help="batches in one measurement")
    options.add_argument("--views", type=int, default=4, help="crops of each picture")
    options.add_argument("--crop", default="fixed", choices=("fixed", "resized"))
    options.add_argument("--precision", default="auto")
    arguments = options.parse_args()
    main(arguments, cases(arguments), "pictures")
