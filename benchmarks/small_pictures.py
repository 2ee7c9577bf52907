"""Small pictures, the whole process as a user runs it: ResNet18 -> ResNet18, RKD and triplets, batches of 64 at 64 px.

The textbook process measures the student once, at the end, on the test set. Ours is run_distill.py with all that it
measures: the teacher, the untrained and the trained student, on both splits.
"""
import argparse
import glob
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from common import ROOT

import textbook
from dataset import load_splits
from metric.batchsampler import NPairs

SIDE = 64


def textbook_process(args):
    """Distil by a plain loop: pictures from their files each time, float32, channels first."""
    splits = load_splits("folder", args.data)
    teacher, student = textbook.Network("resnet18", 512, True), textbook.Network("resnet18", 64, False)
    weights = torch.load(args.teacher)
    head = {"fc." + name.split(".")[1]: value for name, value in weights.items() if name.startswith("linear.")}
    teacher.layers.load_state_dict(dict(
        {name[len("base."):]: value for name, value in weights.items() if name.startswith("base.")}, **head))
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, weight_decay=1e-5)
    batches = list(NPairs(splits["train"], 64, 5, args.steps, seed=0))
    for images, labels in textbook.loader(splits["train"].samples, batches, side=SIDE):
        with torch.no_grad():
            target = teacher(images)
        e = student(images)
        loss = (textbook.rkd_distance(e, target) + 2 * textbook.rkd_angle(e, target) + textbook.triplet(e, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    with torch.no_grad():
        found = [(student(images), labels) for images, labels in textbook.loader(splits["test"].samples, side=SIDE)]
    print("Recall@1", textbook.recall(*map(torch.cat, zip(*found)), [1]))


def our_command(args, tree, cache, *more):
    return [sys.executable, os.path.join(tree, "run_distill.py"), "--dataset", "folder", "--data", args.data,
            "--image_size", str(SIDE), "--base", "resnet18", "--pretrained", "none", "--embedding_size", "64",
            "--l2normalize", "false", "--teacher_load", args.teacher, "--dist_ratio", "1", "--angle_ratio", "2",
            "--triplet_ratio", "1", "--epochs", "1", "--iter_per_epoch", str(args.steps), "--cache", cache] + list(more)


def seconds_of(command):
    """Run a command; return (seconds that passed, seconds of the processors that it and its children took)."""
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before, started = used(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started, used() - before


def ways_of(args, cache):
    """Return {way: (its command, whether the teacher must not have been measured before)}."""
    ways = {"textbook": ([sys.executable, __file__, "--data", args.data, "--teacher", args.teacher, "--steps",
                          str(args.steps), "--textbook"], False)}
    for precision in ("fp32", "auto"):
        if args.before:
            ways["before, " + precision] = our_command(args, args.before, cache, "--precision", precision), False
        command = our_command(args, ROOT, cache, "--precision", precision)
        ways["ours, {}, a new teacher".format(precision)] = command, True
        ways["ours, {}, its recall known".format(precision)] = command, False
    if args.test_alone:
        ways["ours, auto, its recall known, --no_train_recall"] = command + ["--no_train_recall"], False
    return ways


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "cache")
        if args.teacher is None:
            args.teacher = os.path.join(folder, "teacher", "best.pth")
            subprocess.run([sys.executable, os.path.join(ROOT, "run.py"), "--dataset", "folder", "--data", args.data,
                            "--image_size", str(SIDE), "--base", "resnet18", "--pretrained", "none", "--sample",
                            "distance", "--embedding_size", "512", "--lr", "3e-4", "--epochs", "1", "--iter_per_epoch",
                            "20", "--cache", cache, "--save_dir", os.path.dirname(args.teacher)],
                           stdout=subprocess.DEVNULL, check=True)
        ways = ways_of(args, cache)
        found = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, (command, is_new) in ways.items():
                for path in glob.glob(os.path.join(cache, "*.uint8.*.json")) if is_new else ():
                    os.remove(path)
                found[way].append(seconds_of(command))
    print("| whole process, {} steps | seconds | times as fast | processor seconds | times as few |".format(args.steps))
    print("|---|---|---|---|---|")
    for way, rounds in found.items():
        columns = []
        for which in (0, 1):
            ratios = [first[which] / ours[which] for first, ours in zip(found["textbook"], rounds)]
            columns += ["{:.1f}".format(statistics.median(one[which] for one in rounds)),
                        "{:.2f}".format(statistics.median(ratios))]
        print("| {} | {} |".format(way, " | ".join(columns)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a directory of class folders")
    parser.add_argument("--steps", type=int, default=94)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; in each, every way runs once")
    parser.add_argument("--teacher", help="a ResNet18 of 512 dimensions; without it one is trained for 20 steps")
    parser.add_argument("--before", metavar="DIR", help="another checkout of this project, measured beside this one")
    parser.add_argument("--test_alone", action="store_true", help="measure --no_train_recall, too")
    parser.add_argument("--textbook", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    textbook_process(arguments) if arguments.textbook else main(arguments)
