"""What a run leaves behind: its state, its options, a line an epoch, weights, and the figures that people read.

The state, ``checkpoint.pth``, is written first and holds the lines of the log, too. Whatever comes after it can be
written again from it: so the files agree with each other wherever a run was killed, once it goes on.
"""
import contextlib
import json
import os
import platform
import shlex

import torch

from dataset.files import digest_of
from engine import ranks
from engine.errors import TrainingError, UsageError
from engine.files import (BEST, CHECKPOINT, CONFIG, CONTENT, LAST, LOG, RESULT, SKIPPED, SPEED, write_json,
                          write_tensors, write_text)
from engine.resume import refuse_other_run
from engine.state import VERSION, Progress
from model import WeightsError, check_finite

__all__ = ["RunRecord"]


class RunRecord:
    """The best recalls of a run and its files.

    Args:
        script, args: what is run. ``args.save_dir`` is where the files go; None keeps none.
        saved: the content of the checkpoint that the run goes on from, or None.
        inputs: names of the options that name files which the run reads; it must not write over them.

    Attributes:
        best, final: {split: recall}, the best one and the last one. The first K of ``--recall`` is what counts.
        untrained: recall of the test set before training.

    Raises:
        UsageError: the directory holds another run, or one of ``inputs``; or such a file is not the one that the run
            began with.
    """

    def __init__(self, script, args, saved=None, inputs=()):
        self.save_dir = args.save_dir
        self.directory = args.save_dir if ranks.is_first() else None
        self.k = args.recall[0]
        self.script = script
        self.options = dict(vars(args))
        self.saved = saved
        self.inputs = {}
        self.data = {}
        self.skipped = []
        self.best, self.final, self.best_epoch, self.untrained = {}, {}, 0, None
        self.log, self.speed = [], []
        self.claimed = saved is not None
        if self.save_dir is not None:
            self.inputs = ranks.from_first(lambda: self._checked([name for name in inputs if self.options[name]]))

    def _checked(self, inputs):
        """Return {name: digest} of the files that the run reads, if they and the directory are as they should be."""
        digests = {}
        for name in inputs:
            path = self.options[name]
            if os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.directory):
                raise UsageError("--save_dir {} holds {}, which this run reads and would overwrite; give the run a "
                                 "directory of its own".format(self.directory, path))
            if self.saved and name == "load":
                continue  # all of it is in the state
            digests[name] = digest_of(path)
            if self.saved and digests[name] != self.saved["inputs"].get(name):
                raise UsageError("--{} {} is not the file that this run began with; put that one back, or state where "
                                 "it is".format(name, path))
        if self.saved is None:
            refuse_other_run(self.directory, self.script, self.options)
        return self.saved["inputs"] if self.saved else digests

    def take_data(self, train_set, test_set, skipped):
        """Take note of the pictures that the run sees.

        Args:
            train_set, test_set: ``ImageSet``s.
            skipped: lines on pictures that were left out.

        Raises:
            UsageError: they are not those that the run began with.
        """
        self.data = {split: [len(images), images.fingerprint(self.options["data"])]
                     for split, images in (("training", train_set), ("test", test_set))}
        self.skipped = skipped
        if self.saved is None:
            return
        for split, (count, digest) in self.data.items():
            if self.saved["data"].get(split) != [count, digest]:
                raise UsageError("the pictures of the {} set are not those that the run in {} began with ({} then, {} "
                                 "now; names, sizes and classes count): put them back, or start again with --overwrite "
                                 "instead of --resume".format(
                                     split, self.save_dir, self.saved["data"].get(split, [0])[0], count))

    def begin(self, training):
        """Return the ``Progress`` to go on from; with a saved run, ``training`` and all files are put to that state.

        Raises:
            WeightsError: the saved state doesn't fit.
        """
        progress = Progress()
        if self.saved is None:
            return progress
        progress.restore(self.saved["progress"], training.device)
        training.restore(os.path.join(self.save_dir, CHECKPOINT), self.saved["network"], self.saved["training"],
                         has_stepped=progress.epoch > 1 or progress.batch > 0)
        began_in = self.saved["training"]["precision"]
        if began_in != training.precision.name:
            print("Warning: this run began in {} and goes on in {}".format(began_in, training.precision.name))
        vars(self).update({name: self.saved["record"][name] for name in ("best", "final", "best_epoch", "untrained")})
        self.log, self.speed = list(self.saved["log"]), list(self.saved["speed"])
        self.saved = None  # its tensors are free to go
        if self.directory is None:
            return progress
        self._describe()
        if progress.epoch <= self.options["epochs"] or not self.is_measured():
            self._remove(RESULT)
        if progress.epoch == 0:
            self._remove(BEST, LAST, LOG, SPEED)
            return progress
        self._write_files(training.weights() if progress.batch == 0 else None, progress.epoch - 1)
        if not os.path.exists(self._path(BEST)):
            print("Warning: {} of epoch {} has gone; there is none until an epoch is better".format(
                self._path(BEST), self.best_epoch), flush=True)
        return progress

    def is_measured(self):
        """Whether the last epoch that is over was measured, or none is over."""
        return not self.log or "recall" in json.loads(self.log[-1])

    def take_back(self):
        """Return (figures, speed) of the last epoch, as ``keep`` takes them, to keep it anew."""
        figures, speed = json.loads(self.log.pop()), json.loads(self.speed.pop())
        del figures["epoch"], speed["epoch"]
        return figures, speed

    def keep(self, epoch, training, measurements=None, figures=None, speed=None):
        """Take an epoch that is over: write the state, the weights and the epoch's lines.

        Args:
            measurements: {split: Measurement}; None if the epoch was not measured.
            figures: more for its line of the log. speed: what depends on the machine, for a line of its own.

        Returns:
            The ``Progress`` of the next epoch's beginning.
        """
        line = {"epoch": epoch}
        if measurements:
            self._measured(epoch, measurements)
            line["recall"] = {split: {str(k): value for k, value in measurement.recalls.items()}
                              for split, measurement in measurements.items()}
            line["spread"] = {split: measurement.spread for split, measurement in measurements.items()}
        self.log.append(json.dumps(dict(line, **figures or {})))
        if speed:
            self.speed.append(json.dumps(dict({"epoch": epoch}, **speed)))
        progress = Progress(epoch + 1)
        if self.directory is not None:
            weights = training.weights()
            self.checkpoint(training, progress, weights)
            self._write_files(weights, epoch)
        return progress

    def _measured(self, epoch, measurements):
        self.final = {split: measurement.recalls[self.k] for split, measurement in measurements.items()}
        if epoch == 0:
            self.untrained = self.final["test"]
        if epoch == 0 or self.final["test"] > self.best["test"]:
            self.best_epoch = epoch
        self.best = {split: max(value, self.best.get(split, value)) for split, value in self.final.items()}

    def checkpoint(self, training, progress, weights=None):
        """Write the state of the run.

        Raises:
            TrainingError: the weights are not finite, or the disk refuses; the state before this one stays.
        """
        if self.directory is None:
            return
        weights = training.weights() if weights is None else weights
        try:
            check_finite("the network", weights)
        except WeightsError as error:
            raise TrainingError("{} in epoch {} after batch {}; the files of the run stay as they were before; try a "
                                "lower --lr".format(error, progress.epoch, progress.batch)) from None
        write_tensors(self._path(CHECKPOINT), {
            "version": VERSION, "script": self.script, "options": self.options, "inputs": self.inputs,
            "data": self.data, "progress": progress.capture(), "log": self.log, "speed": self.speed,
            "record": {"best": self.best, "final": self.final, "best_epoch": self.best_epoch,
                       "untrained": self.untrained},
            "training": training.capture(), "network": weights}, before=self._give_way)
        self._claim()

    def advice(self):
        """Return in words how to go on with this run."""
        if self.save_dir is None:
            return "nothing was kept, since no --save_dir was given"
        if not self.claimed:
            return "nothing was kept yet; the same command starts again"
        return "to go on: {} {} --resume --save_dir {}".format(
            "python3" if ranks.count() == 1 else "as many processes of", self.script, shlex.quote(self.save_dir))

    def finish(self, lines):
        """Write ``result.txt``: {what: fraction}, shown in percent."""
        if self.directory is not None:
            write_text(self._path(RESULT), "".join(
                "{} Recall@{}: {:.4f}\n".format(what, self.k, 100 * value) for what, value in lines.items()))

    def _write_files(self, weights, epoch):
        """Write what follows from the state after ``epoch``; ``weights`` of None are those of no whole epoch."""
        if weights is not None:
            if epoch == self.best_epoch:
                write_tensors(self._path(BEST), weights)
            write_tensors(self._path(LAST), weights)
        write_text(self._path(LOG), "".join(line + "\n" for line in self.log))
        write_text(self._path(SPEED), "".join(line + "\n" for line in self.speed))

    def _give_way(self):
        """Let an earlier run's options go: a state without them stands for itself, one beside others is refused."""
        if not self.claimed:
            self._remove(CONFIG)

    def _claim(self):
        """Let the other files of an earlier run go, now that the state of this one is in its place."""
        if self.claimed:
            return
        self._remove(*(name for name in CONTENT if name not in (CHECKPOINT, SKIPPED)))
        self._describe()
        self.claimed = True

    def _describe(self):
        """Write what the run is: its options, and the pictures that it leaves out."""
        write_json(self._path(CONFIG), {
            "script": self.script, "options": self.options,
            "versions": {"python": platform.python_version(), "torch": torch.__version__}})
        if self.skipped:
            write_text(self._path(SKIPPED), "".join(line + "\n" for line in self.skipped))
        else:
            self._remove(SKIPPED)

    def _remove(self, *names):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path(name))

    def _path(self, name):
        return os.path.join(self.directory, name)
