"""The epoch loop. It takes a step function (pictures, labels -> named loss terms) and does everything else."""
import time

import torch
from tqdm import tqdm

from engine.errors import TrainingError
from engine.interruption import deferred_interruptions, stop_if_interrupted

__all__ = ["fit", "train_epoch", "make_optimizer"]

WEIGHT_DECAY = 1e-5
# Asking an accelerator for a number stops it; on the CPU the question costs nothing.
BATCHES_BETWEEN_CHECKS = {"cpu": 1}
BATCHES_BETWEEN_CHECKS_DEFAULT = 20
# A network whose recall falls below this share of its untrained recall is not learning.
FAILING_SHARE = 0.5


def make_optimizer(parameters, lr, decay_epochs, decay_gamma):
    """Return (Adam, MultiStepLR); the schedule is stepped once at the end of each epoch."""
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, sorted(decay_epochs), decay_gamma)


@deferred_interruptions()
def fit(network, step, optimizer, schedule, loader, evaluate, record, epochs, device, report, precision, eval_every=1):
    """Train ``network`` for ``epochs`` epochs; evaluate and record before the first and after each
    ``eval_every``-th and the last.

    Args:
        step: (pictures, labels) on ``device`` -> {name: loss term}; their sum is minimised.
        loader: ``epoch(number)`` yields the batches of an epoch.
        evaluate: epoch number -> {split: Measurement}.
        record: a ``RunRecord``.
        report: called after each evaluation, to print the bests.
        precision: the ``Precision`` that the step runs in.

    Raises:
        TrainingError: a loss is not finite.
    """
    record.keep(0, evaluate(0), network)
    untrained = record.final["test"]
    for epoch in range(1, epochs + 1):
        lr = optimizer.param_groups[0]["lr"]
        started = time.perf_counter()
        loss, terms, pictures, waited = train_epoch(network, step, optimizer, loader, epoch, device, precision)
        seconds = time.perf_counter() - started
        schedule.step()
        print("[Epoch {}] loss {:.5f} ({}), lr {:g}, {:.1f} pictures/s, {:.1f} s, {:.1%} of it waiting for "
              "pictures".format(
                  epoch, loss, ", ".join("{} {:.5f}".format(name, value) for name, value in terms.items()), lr,
                  pictures / seconds, seconds, waited / seconds), flush=True)
        figures = {"loss": loss, "terms": terms, "learning_rate": lr, "images_per_second": round(pictures / seconds, 2),
                   "seconds": round(seconds, 3), "waiting": round(waited / seconds, 4)}
        if epoch % eval_every and epoch < epochs:
            record.keep_unmeasured(epoch, network, figures)
            continue
        record.keep(epoch, evaluate(epoch), network, figures)
        report()
        if record.final["test"] < FAILING_SHARE * untrained:
            print("Warning: Recall@{} of the test set is below half of what the network had before training; a lower "
                  "--lr, another --sample or, with --pretrained none, --zero_init_residual may help".format(record.k),
                  flush=True)


def train_epoch(network, step, optimizer, loader, epoch, device, precision):
    """Train on the batches of one epoch.

    Returns:
        (mean loss, {name: mean of the term}, pictures seen, seconds spent waiting for pictures).

    Raises:
        TrainingError: a loss is not finite; the batch is named.
    """
    network.train()
    every = BATCHES_BETWEEN_CHECKS.get(device.type, BATCHES_BETWEEN_CHECKS_DEFAULT)
    sums, pictures, waited = None, 0, 0.0
    scaler = precision.scaler
    losses, first_unchecked = [], 1
    batches = iter(loader.epoch(epoch))
    bar = tqdm(range(1, len(loader) + 1), desc="Epoch {}".format(epoch), leave=False, disable=None)
    for number in bar:
        asked = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - asked
        with precision.autocast():
            terms = step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            loss = sum(terms.values())
        optimizer.zero_grad(set_to_none=True)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        values = torch.stack([loss.detach()] + [term.detach() for term in terms.values()])
        sums = values if sums is None else sums + values
        pictures += len(images)
        stop_if_interrupted()
        losses.append(loss.detach())
        if number % every == 0 or number == len(loader):
            checked = torch.stack(losses).tolist()
            for batch, value in enumerate(checked, first_unchecked):
                if not abs(value) < float("inf"):
                    raise TrainingError("the loss is {} in epoch {}, batch {}; the weights of the last whole epoch "
                                        "stay as they are; try a lower --lr".format(value, epoch, batch))
            losses, first_unchecked = [], number + 1
            bar.set_postfix(loss="{:.4f}".format(checked[-1]))
    means = (sums / len(loader)).tolist()
    return means[0], dict(zip(terms, means[1:])), pictures, waited
