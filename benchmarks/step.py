"""Training steps and forward passes at 224 px: float32, channels first, against ours."""
import torch

from common import main, parser

import textbook
from engine.device import compiled, place, resolve_device
from engine.precision import Precision, resolve_precision
from metric.loss import RKdAngle, RkdDistance
from model import LinearEmbedding, build_backbone, fused


def network(base, dimensions, normalise, device):
    backbone = build_backbone(base)
    return place(LinearEmbedding(backbone, backbone.output_size, dimensions, normalise), device)


def train_step(model, step, scaler=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)

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
    images = torch.rand(args.batch, 3, 224, 224, device=device)

    def training(base):
        model = textbook.Network(base, 512, True).to(device)
        return train_step(model, lambda: model(images).pow(2).sum()),

    def forward():
        model = textbook.Network("resnet50", 512, True).to(device).eval()

        def run():
            with torch.no_grad():
                model(images)
        return run,

    def distillation():
        student = textbook.Network("resnet18", 64, False).to(device)
        teacher = textbook.Network("resnet50", 512, True).to(device).eval()

        def step():
            with torch.no_grad():
                target = teacher(images)
            e = student(images)
            return textbook.rkd_distance(e, target) + 2 * textbook.rkd_angle(e, target)
        return train_step(student, step),

    return training, forward, distillation


def our_jobs(args, device, precision, compile_networks):
    resolve_device(str(device))
    images = torch.randint(0, 256, (args.batch, 224, 224, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)

    def maybe_compiled(model):
        if compile_networks:
            compiled(model)
        return model

    def training(base):
        model = maybe_compiled(network(base, 512, True, device))

        def step():
            with precision.autocast():
                return model(images).pow(2).sum()
        return train_step(model, step, precision.scaler),

    def forward():
        model = maybe_compiled(place(fused(network("resnet50", 512, True, device)), device))

        def run():
            with torch.inference_mode(), precision.autocast():
                model(images)
        return run,

    def distillation():
        student = maybe_compiled(network("resnet18", 64, False, device))
        teacher = maybe_compiled(place(fused(network("resnet50", 512, True, device)), device))
        distance, angle = RkdDistance(), RKdAngle()

        def step():
            with precision.autocast():
                with torch.no_grad():
                    target = teacher(images)
                e = student(images)
                return distance(e, target) + 2 * angle(e, target)
        return train_step(student, step, precision.scaler),

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
    jobs = {"ResNet18 training step": lambda parts: parts[0]("resnet18"),
            "ResNet50 training step": lambda parts: parts[0]("resnet50"),
            "ResNet50 forward, frozen": lambda parts: parts[1](),
            "distillation step, ResNet50 -> ResNet18": lambda parts: parts[2]()}
    return {case: {way: {"prepare": (lambda build=build, select=select: select(build())), "work": lambda run: run(),
                         "count": args.batch} for way, build in ways.items()} for case, select in jobs.items()}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--compile", action="store_true", help="measure torch.compile too")
    arguments = options.parse_args()
    main(arguments, cases(arguments), "pictures")
