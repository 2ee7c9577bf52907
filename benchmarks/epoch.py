"""A share of an epoch of distillation, ResNet50 -> ResNet18, 224 px, with both evaluations, on a folder of pictures.

An epoch is 100 batches of 64 and the evaluation of both splits; a share of 0.1 is 10 batches and every tenth picture of
both splits, so that the parts keep their proportions. Pictures a second are training pictures over all of that time.
"""
import torch

from common import main, parser

import run_distill
import textbook
from dataset import EvaluationLoader, ImageSet, TrainLoader, default_workers, load_splits, open_pictures, resized_size
from engine.device import place, resolve_device
from engine.evaluation import evaluate_splits
from engine.loop import train_epoch
from engine.optimisation import Schedule, make_optimizer, parameter_groups
from engine.precision import resolve_precision
from engine.training import Progress, Training
from metric.batchsampler import NPairs
from metric.loss import RKdAngle, RkdDistance
from model import LinearEmbedding, build_backbone, fused


def splits(args):
    found = load_splits("folder", args.data)
    step = max(1, round(1 / args.share))
    return found["train"], [ImageSet(images.samples[::step], images.class_to_idx) for images in found.values()]


def textbook_epoch(args, device):
    train, measured = splits(args)
    batches = NPairs(train, 64, 5, max(1, round(100 * args.share)), seed=0)
    student = textbook.Network("resnet18", 64, False).to(device)
    teacher = textbook.Network("resnet50", 512, True).to(device).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, weight_decay=1e-5)

    def run():
        student.train()
        for images, _ in textbook.loader(train.samples, list(batches)):
            images = images.to(device)
            with torch.no_grad():
                target = teacher(images)
            e = student(images)
            loss = textbook.rkd_distance(e, target) + 2 * textbook.rkd_angle(e, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        student.eval()
        for images in measured:
            with torch.no_grad():
                e = torch.cat([student(batch.to(device)) for batch, _ in textbook.loader(images.samples)])
            print(textbook.recall(e, torch.tensor(images.targets, device=device), [1]))
    return run,


def our_epoch(args, device, precision_name):
    resolve_device(str(device))
    precision, _ = resolve_precision(precision_name, device)
    train, measured = splits(args)
    side, pin, workers = resized_size(224), device.type != "cpu", default_workers()

    def pictures(images):
        return open_pictures([path for path, _ in images.samples], side, "auto", args.data)

    batches = NPairs(train, 64, 5, max(1, round(100 * args.share)), seed=0)
    loader = TrainLoader(train, batches, 224, 0, workers, pin, pictures(train))
    evaluations = {name: EvaluationLoader(images, 64, 224, workers, pin, pictures(images))
                   for name, images in zip(("train", "test"), measured)}
    backbones = [build_backbone(name) for name in ("resnet18", "resnet50")]
    student = place(LinearEmbedding(backbones[0], 512, 64, False), device)
    teacher = place(fused(LinearEmbedding(backbones[1], 2048, 512, True)), device)
    options = run_distill.build_parser().parse_args([])
    groups = parameter_groups(student, options)
    optimizer = make_optimizer(groups, options)
    training = Training(student, optimizer, Schedule(student, optimizer, groups, options), precision, device)
    distance, angle = RkdDistance(), RKdAngle()

    def step(images, labels):
        with torch.no_grad():
            target = teacher(images)
        e = student(images)
        return {"dist": distance(e, target), "angle": 2 * angle(e, target)}

    def run():
        train_epoch(training, step, loader, Progress(1))
        evaluate_splits(student, evaluations, options, device, 1)
    return run,


def cases(args):
    device = torch.device(args.device)
    count = 64 * max(1, round(100 * args.share))
    ways = {"textbook": lambda: textbook_epoch(args, device), "ours, fp32": lambda: our_epoch(args, device, "fp32"),
            "ours": lambda: our_epoch(args, device, "auto")}
    return {"{:g} epochs of distillation".format(args.share): {
        way: {"prepare": prepare, "work": lambda run: run(), "count": count, "warm_up": False}
        for way, prepare in ways.items()}}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--data", required=True, help="a directory of class folders")
    options.add_argument("--share", type=float, default=0.1)
    arguments = options.parse_args()
    main(arguments, cases(arguments), "training pictures")
