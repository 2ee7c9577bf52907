"""Training steps and forward passes of familiar networks: float32, channels first, against ours."""
import torch

from common import main, parser

import textbook
from engine.device import compiled, place, resolve_device
from engine.precision import Precision, resolve_precision
from metric.loss import RKdAngle, RkdDistance
from model import BACKBONES, LinearEmbedding, build_backbone, fused
from model.compat import fused_option

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16")


def network(base, dimensions, normalise, side, device):
    takes_side = "image_size" in getattr(BACKBONES[base], "takes", ())
    backbone = build_backbone(base, **{"image_size": side} if takes_side else {})
    return place(LinearEmbedding(backbone, backbone.output_size, dimensions, normalise, side), device)


def train_step(optimizer, step, scaler=None):
    def run():
        loss = step()
        optimizer.zero_grad(set_to_none=True)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return run


def textbook_jobs(args, device):
    images = torch.rand(args.batch, 3, args.side, args.side, device=device)

    def made(base, dimensions, normalise):
        return textbook.Network(base, dimensions, normalise, args.side).to(device)

    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)

    def training(base):
        model = made(base, 512, True)
        return train_step(adam(model), lambda: model(images).pow(2).sum()),

    def forward(base):
        model = made(base, 512, True).eval()

        def run():
            with torch.no_grad():
                model(images)
        return run,

    def distillation():
        student, teacher = made("resnet18", 64, False), made("resnet50", 512, True).eval()

        def step():
            with torch.no_grad():
                target = teacher(images)
            e = student(images)
            return textbook.rkd_distance(e, target) + 2 * textbook.rkd_angle(e, target)
        return train_step(adam(student), step),

    return training, forward, distillation


def our_jobs(args, device, precision, compile_networks):
    resolve_device(str(device))
    images = torch.randint(0, 256, (args.batch, args.side, args.side, 3), dtype=torch.uint8, device=device)
    images = images.permute(0, 3, 1, 2)

    def made(base, dimensions, normalise, is_frozen=False):
        model = network(base, dimensions, normalise, args.side, device)
        model = place(fused(model), device) if is_frozen else model
        if compile_networks:
            compiled(model)
        return model

    def adam(model):
        way = fused_option(torch.optim.Adam, device)
        return torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5, **way)

    def training(base):
        model = made(base, 512, True)

        def step():
            with precision.autocast():
                return model(images).pow(2).sum()
        return train_step(adam(model), step, precision.scaler),

    def forward(base):
        model = made(base, 512, True, is_frozen=True)

        def run():
            with torch.inference_mode(), precision.autocast():
                model(images)
        return run,

    def distillation():
        student, teacher = made("resnet18", 64, False), made("resnet50", 512, True, is_frozen=True)
        distance, angle = RkdDistance(), RKdAngle()

        def step():
            with precision.autocast():
                with torch.no_grad():
                    target = teacher(images)
                e = student(images)
                return distance(e, target) + 2 * angle(e, target)
        return train_step(adam(student), step, precision.scaler),

    return training, forward, distillation


def cases(args):
    device = torch.device(args.device)
    ways = {"textbook": lambda: textbook_jobs(args, device),
            "ours, fp32": lambda: our_jobs(args, device, Precision("fp32", device), False)}
    automatic, _ = resolve_precision("auto", device)
    if automatic.name != "fp32":
        ways["ours, " + automatic.name] = lambda: our_jobs(args, device, automatic, False)
    if device.type == "cuda":
        ways["ours, fp16"] = lambda: our_jobs(args, device, Precision("fp16", device), False)
    if args.compile:
        ways["ours, {}, --compile".format(automatic.name)] = lambda: our_jobs(args, device, automatic, True)
    jobs = {}
    for base in args.networks:
        jobs[base + " training step"] = lambda parts, base=base: parts[0](base)
        jobs[base + " forward, frozen"] = lambda parts, base=base: parts[1](base)
    jobs["distillation step, resnet50 -> resnet18"] = lambda parts: parts[2]()
    return {case: {way: {"prepare": (lambda build=build, select=select: select(build())), "work": lambda run: run(),
                         "count": args.batch} for way, build in ways.items()} for case, select in jobs.items()}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--side", type=int, default=224, help="of the pictures, in pixels")
    options.add_argument("--networks", nargs="*", choices=NETWORKS, metavar="NAME",
                         default=[name for name in NETWORKS if name in BACKBONES], help="of " + ", ".join(NETWORKS))
    options.add_argument("--compile", action="store_true", help="measure torch.compile too")
    arguments = options.parse_args()
    main(arguments, cases(arguments), "pictures")
