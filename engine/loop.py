"""The epoch loop. It takes a step function (pictures, labels -> named loss terms) and does everything else."""
import time

import torch
from tqdm import tqdm

from dataset import DatasetError
from engine import ranks
from engine.errors import TrainingError
from engine.interruption import Stopped, ToldElsewhere, deferred_interruptions, interrupted, stop_if_interrupted

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
def fit(training, step, loader, evaluate, record, report, epochs, eval_every=1, checkpoint_every=None):
    """Train for ``epochs`` epochs, or for what is left of them; evaluate and record before the first, after each
    ``eval_every``-th and after the last.

    Args:
        training: a ``Training``.
        step: (pictures, labels) on the device -> {name: loss term}; their sum is minimised.
        loader: ``epoch(number, first)`` yields the batches of an epoch from the given one.
        evaluate: epoch number -> {split: Measurement}.
        record: a ``RunRecord``; a state is written after each epoch, and when the run is stopped between two steps.
        report: called after each evaluation, to print the bests.
        checkpoint_every: batches between the states within an epoch; None for none.

    Raises:
        TrainingError: a loss is not finite.
        Stopped: a signal came.
        DatasetError: a picture can't be read. ToldElsewhere: another process can't read one.
    """
    progress = record.begin(training)
    ranks.begin()
    if progress.epoch > epochs:
        print("All {} epochs of this run are done; --epochs N adds more".format(epochs), flush=True)
    elif progress.epoch > 0:
        print("Resume: epoch {}, after batch {} of {}".format(progress.epoch, progress.batch, len(loader)), flush=True)
    try:
        if progress.epoch == 0:
            progress = record.keep(0, training, evaluate(0))
        if progress.epoch > epochs and not record.is_measured():
            last = progress.epoch - 1
            progress = record.keep(last, training, evaluate(last), *record.take_back())
        while progress.epoch <= epochs:
            epoch = progress.epoch
            train_epoch(training, step, loader, progress, record, checkpoint_every)
            figures, speed = _tell(progress)
            if epoch % eval_every and epoch < epochs:
                progress = record.keep(epoch, training, None, figures, speed)
                continue
            progress = record.keep(epoch, training, evaluate(epoch), figures, speed)
            report()
            if record.final["test"] < FAILING_SHARE * record.untrained:
                print("Warning: Recall@{} of the test set is below half of what the network had before training; a "
                      "lower --lr, another --sample or, with --pretrained none, --zero_init_residual may help".format(
                          record.k), flush=True)
    except Stopped as stop:
        if stop.between_steps:
            _leave(training, progress, record)
        stop.advice = record.advice()
        raise
    except (DatasetError, ToldElsewhere) as error:
        if isinstance(error, ToldElsewhere) and not error.between_steps:
            raise
        _leave(training, progress, record)
        print("The run stops in epoch {} after batch {}; {}".format(progress.epoch, progress.batch, record.advice()),
              flush=True)
        raise


def _leave(training, progress, record):
    """Write the state between two steps, if anything is trained by then; the others wait for it."""
    if progress.epoch > 0:
        record.checkpoint(training, progress)
    ranks.wait_for_all()


def train_epoch(training, step, loader, progress, record=None, checkpoint_every=None):
    """Train on the batches of epoch ``progress.epoch`` that are still to come, and step the schedule at its end.

    Raises:
        TrainingError: a loss is not finite; the batch is named.
        Stopped: a signal came; ``progress`` tells how far the epoch is.
        DatasetError: a picture can't be read. ToldElsewhere: another process can't read one.
    """
    count = len(loader)
    if progress.batch == count:
        return  # stopped in the evaluation that follows
    network, optimizer, device, scaler = (training.network, training.optimizer, training.device,
                                          training.precision.scaler)
    network.train()
    progress.lr = optimizer.param_groups[0]["lr"]
    every = BATCHES_BETWEEN_CHECKS.get(device.type, BATCHES_BETWEEN_CHECKS_DEFAULT)
    losses = _Losses(progress)
    batches = iter(loader.epoch(progress.epoch, progress.batch))
    began = time.perf_counter()
    with tqdm(total=count, initial=progress.batch, desc="Epoch {}".format(progress.epoch), leave=False,
              disable=None) as bar:
        while progress.batch < count:
            asked, failure = time.perf_counter(), None
            try:
                images, labels = _next(batches)
            except DatasetError as error:
                failure = error
            stop_if_interrupted(failure)
            progress.waited += time.perf_counter() - asked
            with training.precision.autocast():
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

            losses.add(loss.detach(), {name: term.detach() for name, term in terms.items()})
            progress.pictures += loader.batch_size
            progress.batch += 1
            ended = time.perf_counter()
            progress.seconds, began = progress.seconds + ended - began, ended
            due = bool(checkpoint_every) and progress.batch % checkpoint_every == 0 and progress.batch < count
            if due or progress.batch % every == 0 or progress.batch == count:
                bar.set_postfix(loss="{:.4f}".format(losses.check()))
            bar.update()
            if due:
                record.checkpoint(training, progress)
    ranks.spread_buffers(network)
    training.schedule.step()


def _next(batches):
    try:
        return next(batches)
    except RuntimeError:
        if interrupted():  # a loading process that was just starting died of the signal, which ends the run next
            return None, None
        raise


class _Losses:
    """Sums up the losses of an epoch on the device, and looks at them when asked."""

    def __init__(self, progress):
        self.progress = progress
        self.unchecked = []

    def add(self, loss, terms):
        values = torch.stack([loss] + list(terms.values()))
        self.progress.terms = list(terms)
        self.progress.sums = values if self.progress.sums is None else self.progress.sums + values
        self.unchecked.append(loss)

    def check(self):
        """Return the last loss.

        Raises:
            TrainingError: one of those that have come since the last check is not finite.
        """
        values = torch.stack(self.unchecked).tolist()
        for batch, value in enumerate(values, self.progress.batch - len(values) + 1):
            if not abs(value) < float("inf"):
                raise TrainingError("the loss is {} in epoch {}, batch {}; the weights of the last whole epoch stay as "
                                    "they are; try a lower --lr".format(value, self.progress.epoch, batch))
        self.unchecked = []
        return values[-1]


def _tell(progress):
    """Print the line of an epoch that is trained; return (its figures, its speed) for the log."""
    loss, *terms = (progress.sums / progress.batch).tolist()
    terms = dict(zip(progress.terms, terms))
    seconds = progress.seconds
    print("[Epoch {}] loss {:.5f} ({}), lr {:g}, {:.1f} pictures/s, {:.1f} s, {:.1%} of it waiting for pictures".format(
        progress.epoch, loss, ", ".join("{} {:.5f}".format(name, value) for name, value in terms.items()), progress.lr,
        progress.pictures / seconds, seconds, progress.waited / seconds), flush=True)
    return ({"loss": loss, "terms": terms, "learning_rate": progress.lr},
            {"images_per_second": round(progress.pictures / seconds, 2), "seconds": round(seconds, 3),
             "waiting": round(progress.waited / seconds, 4)})
