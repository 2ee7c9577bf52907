"""The first steps of a training, for a diagnosis: its loss terms, their gradients, the time of a step."""
import contextlib
import copy
import itertools
import math
import time

import torch

from engine.errors import TrainingError
from engine.interruption import stop_if_interrupted, stop_while_waiting
from engine.loop import train_epoch
from engine.training import Progress

LOSS_BATCHES = 3  # whose loss terms and gradients are averaged
# Steps before time is taken; about so many seconds of steps are timed, but at least and at most so many steps.
WARM_UP_STEPS, TIMED_SECONDS, LEAST_STEPS, MOST_STEPS = 2, 5, 3, 20


@contextlib.contextmanager
def undone(training):
    """At the end of the block the weights, the statistics of BatchNorm and the random states are what they were."""
    before = copy.deepcopy(dict(training.capture(), network=training.weights()))
    try:
        yield
    finally:
        for part in ("network", "criteria", "random"):
            training.restore(part, before[part])


class Batches:
    """The batches of a training, one after the other, as ``train_epoch`` takes them: ``count`` at a time.

    With --teacher_views a training finds the teacher's embeddings of a batch where they were kept. Here the teacher
    makes them, and ``teacher_seconds`` is the time that this took.
    """

    def __init__(self, loader, teacher, training):
        self.batch_size = loader.batch_size
        self.count = 0
        self.teacher_seconds = 0.0
        self._teacher, self._training = teacher, training
        self._batches = (batch for epoch in itertools.count(1)
                         for batch in loader.epoch(epoch, 0, stop_while_waiting))

    def __len__(self):
        return self.count

    def epoch(self, *_):
        return iter(self)

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        if self._teacher is None:
            return batch
        began = time.perf_counter()
        with torch.no_grad(), self._training.precision.autocast():
            embeddings = self._teacher(batch[0].to(self._training.device)).float().cpu()
        self.teacher_seconds += time.perf_counter() - began
        return (*batch, embeddings)


def terms_at_start(training, step, batches, ratios):
    """Return {name: {ratio, value, loss, share, gradient, gradient_share}} of the loss terms, means of some batches.

    loss: the value times the ratio. gradient: the norm of the gradient that this gives the student's weights (in fp16
    it is not scaled, so that the smallest numbers are lost). share, gradient_share: of the sum over the terms.
    """
    training.schedule.begin(_epoch_of_all(training))
    weights = [weight for weight in training.network.parameters() if weight.requires_grad]
    sums = torch.zeros(len(ratios), 2, device=training.device)
    for batch in itertools.islice(batches, LOSS_BATCHES):
        stop_if_interrupted()
        batch = [part.to(training.device) for part in batch]
        for number, name in enumerate(ratios):  # each with a graph of its own: a compiled one can be gone through once
            with training.precision.autocast():
                loss = step(*batch)[name]
            sums[number] += torch.stack([loss.detach().float(), _gradient_norm(loss, weights)])
    values = (sums / LOSS_BATCHES).tolist()
    for name, pair in zip(ratios, values):
        if not all(map(math.isfinite, pair)):
            raise TrainingError("the loss term {} is {:g}, and its gradient {:g}, before anything is trained; look at "
                                "its options, or try --precision fp32".format(name, *pair))
    losses, gradients = zip(*values)
    return {name: {"ratio": ratio, "value": loss / ratio, "loss": loss, "share": _share(loss, losses),
                   "gradient": gradient, "gradient_share": _share(gradient, gradients)}
            for (name, ratio), loss, gradient in zip(ratios.items(), losses, gradients)}


def _epoch_of_all(training):
    """Return the first epoch in which not only the head is trained, if there is one."""
    return min(training.schedule.args.head_epochs + 1, training.schedule.args.epochs)


def _gradient_norm(loss, weights):
    found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
    norms = [gradient.float().norm() for gradient in found if gradient is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=loss.device)


def _share(value, values):
    return value / sum(values) if sum(values) > 0 else math.nan


def seconds_of_a_step(training, step, batches):
    """Return the seconds of a training step, with its part of the waiting for pictures."""
    def seconds_of(count):
        batches.count, batches.teacher_seconds = count, 0.0
        progress = Progress(_epoch_of_all(training))
        train_epoch(training, step, batches, progress)
        return (progress.seconds - batches.teacher_seconds) / count

    guess = seconds_of(WARM_UP_STEPS)
    return seconds_of(max(LEAST_STEPS, min(MOST_STEPS, int(TIMED_SECONDS / max(guess, 1e-9)))))
