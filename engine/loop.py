"""The epoch loop. It takes a step function (a batch -> named loss terms) and does everything else."""
import collections
import time

import torch
from tqdm import tqdm

from dataset import DatasetError, LoadingError
from engine import ranks
from engine.data import NAMES
from engine.errors import TrainingError
from engine.evaluation import evaluate_splits
from engine.interruption import Stopped, deferred_interruptions, stop_if_interrupted, stop_while_waiting
from engine.networks import for_evaluation
from engine.optimisation import Schedule, make_optimizer, parameter_groups
from engine.tracking import tracked
from engine.training import Training

# Reading a loss synchronises an accelerator with the CPU, so there it is read now and then; on the CPU it is free.
BATCHES_BETWEEN_CHECKS = 20
# A network whose recall falls below this fraction of its untrained recall is not learning.
FAILING_FRACTION = 0.5
# What is said of the best epoch, for each way to --select it. As published there is no word on it.
BY = {"test": "", "val": ", by the recall of the validation set", "last": ", which is the last one measured"}

Job = collections.namedtuple("Job", "run data network step printed_bests criteria kept", defaults=({}, {}))
Job.__doc__ = """What ``fit`` needs.

run: a ``settle.Run``. data: its ``Data``. network: what is trained and measured.
step: (pictures, labels) on the device, or with --teacher_views (pictures, labels, teacher's embeddings) -> {name: loss
term}; their sum is minimised.
printed_bests: [(name of a best recall in what is printed, its name in result.txt, split)]. What is kept as best.pth
follows --select; see ``RunRecord``.
criteria: {name: ``Trained``}, what is trained beside the network: in the optimiser and the state, never in best.pth.
Their gradients are averaged over the ranks, so their loss has to be that of the whole batch.
kept: {file: name of a criterion}, whose weights are written to this file whenever best.pth is.
"""


@deferred_interruptions()
def fit(job):
    """Train for ``--epochs``, or for what is left of them; evaluate and record before the first epoch, after each
    ``--eval_every``-th and after the last. The state is written after each, and when a signal stops the run.

    Returns the ``Embedded`` test set as the last network has it, if it was measured here and is to be shown (by the
    rank that writes); else None.

    Raises:
        TrainingError: a loss is not finite. Stopped: a signal came. DatasetError: a picture can't be read.
        LoadingError: no batch comes. WeightsError: the state to go on from is damaged. UsageError: the network has not
        the parts that the options are for.
    """
    with tracked(job.run.args, job.run.record.writes) as tracker:
        return _fit(job, tracker)


def _fit(job, tracker):
    run, args, record = job.run, job.run.args, job.run.record
    groups = parameter_groups(job.network, args, job.criteria.values())
    optimizer = make_optimizer(groups, args)
    training = Training(job.network, optimizer, Schedule(job.network, optimizer, groups, args), run.precision,
                        run.device, {name: trained.module for name, trained in job.criteria.items()}, job.kept)
    bests = [best for best in job.printed_bests if best[2] in job.data.evaluation]
    embedded = {}

    def evaluate(epoch):
        keep = embedded if epoch == args.epochs and record.writes else None
        return evaluate_splits(for_evaluation(run, job.network), job.data.evaluation, args, run.device, epoch, None,
                               keep)

    def keep(*over):
        progress = record.keep(*over)
        tracker.send(record.log[-1])
        return progress

    progress = record.go_on(training)
    if progress.epoch > args.epochs:
        print("All {} epochs of this run are done; --epochs N adds more".format(args.epochs), flush=True)
    elif progress.epoch > 0:
        print("Resume: epoch {}, after batch {} of {}".format(progress.epoch, progress.batch, args.iter_per_epoch),
              flush=True)
    try:
        stop_if_interrupted()
        if progress.epoch == 0:
            progress = keep(0, training, evaluate(0))
        if progress.epoch > args.epochs and not record.is_measured():  # --epochs is smaller now
            last = progress.epoch - 1
            progress = keep(last, training, evaluate(last), *record.take_back())
        while progress.epoch <= args.epochs:
            epoch = progress.epoch
            train_epoch(training, job.step, job.data.batches, progress, record, args.checkpoint_every)
            figures, speed = _tell(progress)
            is_measured = epoch % args.eval_every == 0 or epoch == args.epochs
            progress = keep(epoch, training, evaluate(epoch) if is_measured else None, figures, speed)
            if is_measured:
                _tell_bests(epoch, bests, record)
    except Stopped as stop:
        if stop.between_steps:
            _leave(record, training, progress)
        stop.advice = record.advice()
        raise
    except (DatasetError, LoadingError):
        if ranks.count() == 1:  # of several, only this one knows
            _leave(record, training, progress)
            print("The run stops in epoch {} after batch {}; {}".format(
                progress.epoch, progress.batch, record.advice()), flush=True)
        raise
    if record.best_epoch == 0:
        print("Note: no epoch was better than the untrained network, so best.pth is that one; more --epochs or "
              "another --lr may help", flush=True)
    record.finish([(in_result, split) for _, in_result, split in bests])
    return embedded.get("test")


def _leave(record, training, progress):
    """Write the state between two steps, if anything is trained by then; the other ranks wait for it."""
    if progress.epoch > 0:
        record.write_state(training, progress)
    ranks.wait_for_all()


def train_epoch(training, step, loader, progress, record=None, checkpoint_every=None):
    """Train on the batches of epoch ``progress.epoch`` that are still to come.

    Raises:
        TrainingError: a loss is not finite; the batch is named.
        Stopped: a signal came; ``progress`` tells how far the epoch is. DatasetError: a picture can't be read.
        LoadingError: no batch comes.
    """
    count = len(loader)
    if progress.batch == count:
        return  # the run was stopped in the evaluation of this epoch
    training.schedule.begin(progress.epoch)
    progress.lr = training.optimizer.param_groups[0]["lr"]
    every = 1 if training.device.type == "cpu" else BATCHES_BETWEEN_CHECKS
    unchecked = []
    batches = loader.epoch(progress.epoch, progress.batch, stop_while_waiting)
    began = time.perf_counter()
    with tqdm(total=count, initial=progress.batch, desc="Epoch {}".format(progress.epoch), leave=False,
              disable=None if ranks.is_first() else True) as bar:
        while progress.batch < count:
            asked = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            stop_if_interrupted()
            progress.waited += arrived - asked
            progress.waited_for_ranks += time.perf_counter() - arrived
            loss, terms = _make_step(training, step, batch)
            progress.add(loss, terms)
            progress.pictures += loader.batch_size
            unchecked.append(loss)
            due = bool(checkpoint_every) and progress.batch % checkpoint_every == 0 and progress.batch < count
            if due or progress.batch % every == 0 or progress.batch == count:
                bar.set_postfix(loss="{:.4f}".format(_check_losses(unchecked, progress)))
                unchecked = []
            ended = time.perf_counter()  # after the check, which waits for the device
            progress.seconds, began = progress.seconds + ended - began, ended
            bar.update()
            if due:
                record.write_state(training, progress)
    ranks.spread_buffers(training.network)


def _make_step(training, step, batch):
    """Make one step of the optimiser; return the loss and its terms, {name: scalar}, on the device."""
    device, optimizer, scaler = training.device, training.optimizer, training.precision.scaler
    with training.precision.autocast():
        terms = step(*(part.to(device, non_blocking=True) for part in batch))
        loss = sum(terms.values())
    optimizer.zero_grad(set_to_none=True)
    if scaler is None:
        loss.backward()
        ranks.average_gradients(training.criteria)
        training.schedule.adjust_gradients()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        ranks.average_gradients(training.criteria)
        training.schedule.adjust_gradients(scaler)
        scaler.step(optimizer)
        scaler.update()
    return loss.detach(), {name: term.detach() for name, term in terms.items()}


def _check_losses(losses, progress):
    """Return the last of the losses that have come since the last check; all must be finite."""
    values = torch.stack(losses).tolist()
    for batch, value in enumerate(values, progress.batch - len(values) + 1):
        if not abs(value) < float("inf"):
            raise TrainingError("the loss is {} in epoch {}, batch {}; the weights of the last whole epoch stay as "
                                "they are; try a lower --lr".format(value, progress.epoch, batch))
    return values[-1]


def _tell(progress):
    """Print the line of an epoch that is trained; return (its figures, its speed) for the log."""
    loss, *terms = (progress.sums / progress.batch).tolist()
    terms, seconds = dict(zip(progress.terms, terms)), progress.seconds
    waiting = "{:.1%} of it waiting for pictures".format(progress.waited / seconds)
    if ranks.count() > 1:
        waiting += ", {:.1%} for other processes".format(progress.waited_for_ranks / seconds)
    print("[Epoch {}] loss {:.5f} ({}), lr {:g}, {:.1f} pictures/s, {:.1f} s, {}".format(
        progress.epoch, loss, ", ".join("{} {:.5f}".format(name, value) for name, value in terms.items()), progress.lr,
        progress.pictures / seconds, seconds, waiting), flush=True)
    return ({"loss": loss, "terms": terms, "learning_rate": progress.lr},
            {"images_per_second": round(progress.pictures / seconds, 2), "seconds": round(seconds, 3),
             "waiting": round(progress.waited / seconds, 4),
             "waiting_for_processes": round(progress.waited_for_ranks / seconds, 4)})


def _tell_bests(epoch, bests, record):
    for printed, _, split in bests:
        print("{}: {:.4f}".format(printed, record.shown_best(split)))
    print("[Epoch {}] best so far: epoch {}{}".format(epoch, record.best_epoch, BY[record.options["select"]]),
          flush=True)
    if record.final[record.judge] < FAILING_FRACTION * record.untrained:
        print("Warning: Recall@{} of the {} is below half of what the network had before training; a lower --lr or "
              "--pretrained weights may help".format(record.k, NAMES[record.judge]), flush=True)
