#!/usr/bin/env python3
"""How the training step scales over processes of one machine: pictures/s, share of the time in communication, bytes.

    python3 benchmarks/scaling.py                     # 1, 2, 4 ... processes on CPUs, as many as there are cores
    python3 benchmarks/scaling.py --device cuda       # as many as there are GPUs

One process uses as many threads as there are cores, R processes share them. The job is a step of distillation
(ResNet18 student, ResNet18 teacher of 512 dimensions, RKD-D and RKD-A) on pictures in memory. The time in
communication is what the step takes less than the same step in which nothing is exchanged.
"""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset import usable_cores  # noqa: E402
from engine import ranks  # noqa: E402
from engine.device import place, resolve_device, use_threads  # noqa: E402
from metric.loss import RkdDistance, RKdAngle  # noqa: E402
from model import LinearEmbedding, build_backbone, fused  # noqa: E402


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", metavar="R",
                        help="numbers to compare (default: 1, 2, 4 ... up to one a device or core)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64, help="pictures in the global batch")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed at once")
    parser.add_argument("--rounds", type=int, default=3, help="in each, every number of processes runs once")
    return parser


def measure(args):
    """As a rank: print pictures/s with and without exchange as one line of JSON."""
    device, _ = resolve_device(args.device)
    use_threads(None, device)
    ranks.use_device(device)
    torch.manual_seed(0)
    student = place(LinearEmbedding(build_backbone("resnet18"), 512, 64, False), device)
    teacher = place(fused(LinearEmbedding(build_backbone("resnet18"), 512, 512, True)), device)
    model = ranks.parallel(student, device)
    optimizer = torch.optim.Adam(student.parameters())
    distance, angle = RkdDistance(), RKdAngle()
    start, stop = ranks.span(args.batch)
    images = torch.randint(0, 256, (stop - start, 3, args.image_size, args.image_size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    whole = torch.randn(args.batch, 512, device=device)

    def step(exchange):
        with torch.no_grad():
            target = teacher(images)
        embeddings = (model if exchange else student)(images)
        if exchange:
            embeddings, target = ranks.gathered(embeddings, args.batch), ranks.gathered(target, args.batch)
            turned = ranks.summed(angle(embeddings, target, ranks.span(args.batch)))
        else:  # as much work on the losses, on numbers that are not the others'
            embeddings = torch.cat([embeddings, whole[stop - start:, :64]])
            target = torch.cat([target, whole[stop - start:]])
            turned = angle(embeddings, target, ranks.span(args.batch))
        optimizer.zero_grad(set_to_none=True)
        (distance(embeddings, target) + 2 * turned).backward()
        optimizer.step()

    def seconds(exchange):
        step(exchange)
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(args.steps):
            step(exchange)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / args.steps

    taken = [seconds(True), seconds(False)]
    weights = sum(parameter.numel() for parameter in student.parameters())
    # Embeddings and the teacher's to everybody, the gradient of the embeddings back, and the network's gradient.
    gathered = 4 * args.batch * (64 + 512 + 64)
    print(json.dumps({"seconds": taken, "gathered": gathered, "gradients": 4 * weights}), flush=True)


def run(args, count):
    """Start ``count`` processes as torchrun does and return what the first one measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank),
                           LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RKD_SCALING="1")
        processes.append(subprocess.Popen([sys.executable, os.path.abspath(__file__)] + sys.argv[1:], env=environment,
                                          stdout=subprocess.PIPE, universal_newlines=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("scaling.py: error: a process of {} failed".format(count))
    return json.loads(outputs[0].strip().splitlines()[-1])


def main(argv=None):
    args = build_parser().parse_args(argv)
    if "RKD_SCALING" in os.environ:
        with ranks.joined():
            measure(args)
        return
    if args.processes is None:
        most = torch.cuda.device_count() if args.device.startswith("cuda") else usable_cores()
        args.processes = [2 ** power for power in range(10) if 2 ** power <= max(1, most)]
    rounds = [{count: run(args, count) for count in args.processes} for _ in range(args.rounds)]
    print("| processes | pictures/s | times as fast | time in communication | gathered a step | gradients a step |")
    print("|---|---|---|---|---|---|")
    base = args.processes[0]
    for count in args.processes:
        found = [figures[count] for figures in rounds]
        speeds = [args.batch / figures["seconds"][0] for figures in found]
        ratios = [figures[base]["seconds"][0] / figures[count]["seconds"][0] for figures in rounds]
        shares = [max(0, 1 - figures["seconds"][1] / figures["seconds"][0]) for figures in found]
        alone = count == 1
        print("| {} | {:.1f} | {:.2f} | {} | {} | {} |".format(
            count, statistics.median(speeds), statistics.median(ratios),
            "-" if alone else "{:.0%}".format(statistics.median(shares)),
            "-" if alone else "{:.0f} kB".format(found[0]["gathered"] / 1e3),
            "-" if alone else "{:.1f} MB".format(found[0]["gradients"] / 1e6)))


if __name__ == "__main__":
    main()
