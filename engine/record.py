"""What a run leaves behind: its state, its options, a line an epoch, weights, and the figures that people read.

The state, ``checkpoint.pth``, is written first and holds the lines of the log, too. Whatever comes after it can be
written again from it: so the files agree with each other wherever a run was killed, once it goes on.
"""
import contextlib
import json
import os
import platform

import torch

from engine import ranks
from engine.errors import TrainingError, UsageError
from engine.files import write_json, write_tensors, write_text
from engine.resume import (BEST, CHECKPOINT, CONFIG, CONTENT, LAST, LOG, RESULT, SKIPPED, SPEED, digest_of,
                           refuse_other_run)
from engine.state import VERSION, Progress

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
        if self.directory is None:
            return
        self._check_inputs([name for name in inputs if self.options[name]])
        if saved is None:
            refuse_other_run(self.directory, script, self.options)

    def _check_inputs(self, names):
        for name in names:
            path = self.options[name]
            if os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.directory):
                raise UsageError("--save_dir {} holds {}, which this run reads and would overwrite; give the run a "
                                 "directory of its own".format(self.directory, path))
            if self.saved is None or os.path.exists(path):
                self.inputs[name] = digest_of(path)
            if self.saved and self.inputs.get(name) != self.saved["inputs"].get(name) and name != "load":
                raise UsageError("--{} {} is not the file that this run began with; put that one back, or state where "
                                 "it is".format(name, path))
        if self.saved:
            self.inputs = self.saved["inputs"]

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
                                 "now): put them back, or start again with --overwrite instead of --resume".format(
                                     split, self.save_dir, self.saved["data"].get(split, [0])[0], count))

    def begin(self, training):
        """Return the ``Progress`` to go on from; with a saved run, ``training`` and all files are put to that state.

        Raises:
            WeightsError: the saved state doesn't fit.
        """
        progress = Progress()
        if self.saved is None:
            return progress
        training.restore(os.path.join(self.save_dir, CHECKPOINT), self.saved["network"], self.saved["training"])
        progress.restore(self.saved["progress"], training.device)
        began_in = self.saved["training"]["precision"]
        if began_in != training.precision.name:
            print("Warning: this run began in {} and goes on in {}".format(began_in, training.precision.name))
        vars(self).update({name: self.saved["record"][name] for name in ("best", "final", "best_epoch", "untrained")})
        self.log, self.speed = list(self.saved["log"]), list(self.saved["speed"])
        self.saved = None  # its tensors are free to go
        if self.directory is None:
            return progress
        write_json(self._path(CONFIG), self._config())
        if progress.epoch <= self.options["epochs"]:
            self._remove(RESULT)
        if progress.epoch > 0:
            self._write_files(training.weights() if progress.batch == 0 else None, progress.epoch - 1)
        return progress

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
        for name, value in weights.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainingError("the weights are not finite in epoch {} after batch {} (first in {}); the files "
                                    "of the run stay as they were before; try a lower --lr".format(
                                        progress.epoch, progress.batch, name))
        self._claim()
        write_tensors(self._path(CHECKPOINT), {
            "version": VERSION, "script": self.script, "options": self.options, "inputs": self.inputs,
            "data": self.data, "progress": progress.capture(), "log": self.log, "speed": self.speed,
            "record": {"best": self.best, "final": self.final, "best_epoch": self.best_epoch,
                       "untrained": self.untrained},
            "training": training.capture(), "network": weights})

    def advice(self):
        """Return in words how to go on with this run."""
        if self.save_dir is None:
            return "nothing was kept, since no --save_dir was given"
        return "to go on: {} {} --resume --save_dir {}".format(
            "python3" if ranks.count() == 1 else "torchrun as before,", self.script, self.save_dir)

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

    def _claim(self):
        """Let the files of an earlier run give way, now that this one has something to put in their place."""
        if self.claimed:
            return
        for name in CONTENT:
            self._remove(name)
        write_json(self._path(CONFIG), self._config())
        if self.skipped:
            write_text(self._path(SKIPPED), "".join(line + "\n" for line in self.skipped))
        self.claimed = True

    def _config(self):
        return {"script": self.script, "options": self.options,
                "versions": {"python": platform.python_version(), "torch": torch.__version__}}

    def _remove(self, name):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._path(name))

    def _path(self, name):
        return os.path.join(self.directory, name)
