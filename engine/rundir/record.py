"""What a run leaves behind: its state, its options, one line per epoch, weights, and the figures that people read.

The state, ``checkpoint.pth``, is written first and holds the lines of the log, too. After a kill, --resume brings the
other files in line with it (an earlier epoch's best.pth is kept; it can't be made again).
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
from engine.evaluation import TITLES
from engine.rundir.card import card, remove_card, write_card
from engine.rundir.files import (BEST, CHECKPOINT, CONFIG, CONTENT, DIAGNOSIS, LAST, LOG, PICTURES, RESULT, SKIPPED,
                                 SPEED, write_json, write_tensors, write_text)
from engine.rundir.paths import absolute, is_path
from engine.rundir.resume import refuse_other_run
from engine.rundir.state import VERSION, restore
from engine.training import Progress
from model import WeightsError, check_finite


class RunRecord:
    """The best recalls of a run and its files.

    Args:
        script, options: what is run: its name and {option: value}. ``save_dir`` is where the files go; None keeps none.
        saved: the state that the run goes on from, or None.
        networks: {option that may name a network's file: prefix of its options}; the run must not write over such a
            file.
        defaults: {option: value} of a command without any; for the card.

    Attributes:
        best, final: {split: recall}, the best one of all epochs and the last one. The first K of ``--recall`` is what
            counts.
        judge: the split whose recall says how well the run does: "val" with --select val, else "test".
        best_epoch: whose weights are best.pth, see ``_select``. untrained: recall of the judge before training.

    Raises:
        UsageError: the directory holds another run, or one of these files; or such a file is not the one that the run
            began with.
    """

    IN_STATE = ("best", "final", "best_epoch", "untrained")

    def __init__(self, script, options, saved, networks, defaults):
        self.save_dir = options["save_dir"]
        self.writes = self.save_dir is not None and ranks.is_first()
        self.k = options["recall"][0]
        self.judge = "val" if options["select"] == "val" else "test"
        self.script, self.options, self.saved, self.defaults = script, options, saved, defaults
        self.inputs, self.data, self.skipped = {}, {}, []
        self.best, self.final, self.best_epoch, self.untrained = {}, {}, 0, None
        self.log, self.speed = [], []
        self.owns_directory = saved is not None  # whether the files there belong to this run
        if self.save_dir is not None:
            self.inputs = ranks.from_first(lambda: self._checked(networks))

    def _checked(self, networks):
        """Return {option: digest} of the files that the run reads, if they and the directory are as they should be."""
        digests = {}
        for name, prefix in networks.items():
            path = self.options[name]
            if not is_path(name, path):
                if self.saved and prefix and name in self.saved["inputs"]:
                    raise UsageError("--{} {}: this run began with a file; give its place".format(name, path))
                continue
            in_the_way = os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.save_dir)
            if in_the_way and not self.options.get("diagnose"):
                raise UsageError("--save_dir {} holds {}, which this run reads and would overwrite; give the run a "
                                 "directory of its own".format(self.save_dir, path))
            if self.saved and not prefix:
                continue  # what is trained is in the state
            if not os.path.exists(path):
                raise UsageError("--{} {}: no such file; give its new place".format(name, path))
            digests[name] = digest_of(path)
            if self.saved and digests[name] != self.saved["inputs"].get(name):
                raise UsageError("--{} {} is not the file that this run began with; put that one back, or give its "
                                 "new place".format(name, path))
        if self.saved:
            return self.saved["inputs"]
        refuse_other_run(self.save_dir, self.script, self.options)
        return digests

    def take_data(self, splits, skipped):
        """Take note of the pictures that the run sees: {split: [number, digest]}, and a line on each left out.

        Raises:
            UsageError: they are not those that the run began with.
        """
        self.skipped = skipped
        self.data = splits
        for split, found in splits.items():
            before = self.saved["data"].get(split, [0]) if self.saved else found
            if before != found:
                raise UsageError("the pictures of the {} set are not those that the run in {} began with ({} then, {} "
                                 "now; names, contents and classes count): put them back, or start again with "
                                 "--overwrite instead of --resume".format(
                                     {"train": "training"}.get(split, split), self.save_dir, before[0], found[0]))

    def go_on(self, training):
        """Put ``training`` and all files to the saved state, if there is one; return the ``Progress`` to go on from.

        Raises:
            WeightsError: the saved state doesn't fit.
        """
        if self.saved is None:
            return Progress()
        saved, self.saved = self.saved, None  # its memory is freed after this
        progress = restore(self._path(CHECKPOINT), saved, training)
        for name in self.IN_STATE:
            setattr(self, name, saved["record"][name])
        self.log, self.speed = list(saved["log"]), list(saved["speed"])
        if saved["precision"] != training.precision.name:
            print("Warning: this run began in {} and goes on in {}".format(
                saved["precision"], training.precision.name))
        if self.writes:
            self._write_again(training, progress)
        return progress

    def _write_again(self, training, progress):
        """Bring the files to what the state says."""
        self._describe()
        if progress.epoch <= self.options["epochs"] or not self.is_measured():
            self._remove(RESULT, *PICTURES)
            remove_card(self.save_dir)
        self._write_files(training.weights() if progress.batch == 0 else None, progress.epoch - 1,
                          training.beside_weights())
        if not os.path.exists(self._path(BEST)):
            print("Warning: {} of epoch {} has gone; there is none until an epoch is better".format(
                self._path(BEST), self.best_epoch), flush=True)

    def is_measured(self):
        """Whether the last epoch that is over was measured."""
        return "recall" in json.loads(self.log[-1])

    def take_back(self):
        """Return (figures, speed) of the last epoch, as ``keep`` takes them, to keep it anew."""
        figures, speed = json.loads(self.log.pop()), json.loads(self.speed.pop())
        del figures["epoch"], speed["epoch"]
        return figures, speed

    def keep(self, epoch, training, measurements=None, figures=None, speed=None):
        """Take an epoch that is over, write the state, the weights and its lines; return the next one's ``Progress``.

        Args:
            measurements: {split: Measurement}; None if the epoch was not measured.
            figures: more for its line of the log. speed: what depends on the machine, for a line of its own.
        """
        line = {"epoch": epoch}
        if measurements:
            self._select(epoch, measurements)
            line["recall"] = {split: {str(k): value for k, value in measurement.recalls.items()}
                              for split, measurement in measurements.items()}
            for name in self.options["metrics"][1:]:  # the first one is "recall"
                line[name] = {split: measurement.more[name] for split, measurement in measurements.items()
                              if name in measurement.more}
            line["spread"] = {split: measurement.spread for split, measurement in measurements.items()}
            line.update(select=self.options["select"], best_epoch=self.best_epoch)
        self.log.append(json.dumps(dict(line, **figures or {})))
        if speed:
            self.speed.append(json.dumps(dict({"epoch": epoch}, **speed)))
        progress = Progress(epoch + 1)
        if self.writes:
            weights = training.weights()
            self.write_state(training, progress, weights)
            self._write_files(weights, epoch, training.beside_weights())
        return progress

    def _select(self, epoch, measurements):
        """Take the recalls of an epoch, and decide whether it is the best one: by the recall of the judge, or, with
        --select last, because it is the last one so far."""
        self.final = {split: measurement.recalls[self.k] for split, measurement in measurements.items()}
        if epoch == 0:
            self.untrained = self.final[self.judge]
        if epoch == 0 or self.options["select"] == "last" or self.final[self.judge] > self.best[self.judge]:
            self.best_epoch = epoch
        self.best = {split: max(value, self.best.get(split, value)) for split, value in self.final.items()}

    def shown_best(self, split):
        """Return the recall of a split that is called the best: as published that of its own best epoch; if best.pth
        doesn't follow the test set, that of best.pth."""
        if self.options["select"] == "test":
            return self.best[split]
        return json.loads(self.log[self.best_epoch])["recall"][split][str(self.k)]

    def write_state(self, training, progress, weights=None):
        """Write ``checkpoint.pth``.

        Raises:
            TrainingError: the weights are not finite, or the disk refuses; the state before this one stays.
        """
        if not self.writes:
            return
        weights = training.weights() if weights is None else weights
        try:
            check_finite("the network", weights)
        except WeightsError as error:
            raise TrainingError("{} in epoch {} after batch {}; the files of the run stay as they were before; try a "
                                "lower --lr".format(error, progress.epoch, progress.batch)) from None
        state = {"version": VERSION, "script": self.script, "options": absolute(self.options), "inputs": self.inputs,
                 "data": self.data, "progress": progress.capture(), "log": self.log, "speed": self.speed,
                 "record": {name: getattr(self, name) for name in self.IN_STATE},
                 "precision": training.precision.name, "network": weights}
        state.update(training.capture())
        write_tensors(self._path(CHECKPOINT), state)
        if not self.owns_directory:  # a run that was there is replaced; this state is the untrained network's
            self._remove(*(name for name in CONTENT if name not in (CHECKPOINT, SKIPPED)))
            remove_card(self.save_dir)
            self._describe()
            self.owns_directory = True

    def advice(self):
        """Return in words how to go on with this run."""
        if self.save_dir is None:
            return "nothing was kept, since no --save_dir was given"
        if not self.owns_directory:
            return "nothing was kept yet; the same command starts again"
        return "to go on: {} {} --resume --save_dir {}".format(
            "python3" if ranks.count() == 1 else "as many processes of", self.script, shlex.quote(self.save_dir))

    def finish(self, bests):
        """Write ``result.txt``, in percent: the recalls that are called the best, [(name, split)], and the last one of
        the test set; those of the validation set; the other measures; how the best epoch was selected. And the card."""
        if not self.writes:
            return
        recall = "Recall@{}".format(self.k)
        lines = [(name, recall, self.shown_best(split)) for name, split in bests]
        lines += [("Final", recall, self.final["test"])]
        if "val" in self.final:
            lines += [("Best Val", recall, self.shown_best("val")), ("Final Val", recall, self.final["val"])]
        for which, line in (("Best", self.log[self.best_epoch]), ("Final", self.log[-1])):
            for name in self.options["metrics"][1:]:  # those of best.pth and of last.pth
                values = json.loads(line)[name]
                lines += [(which + title, TITLES.get(name, name), values[split])
                          for split, title in (("test", ""), ("val", " Val")) if split in values]
        write_text(self._path(RESULT), "".join(
            ["{} {}: {:.4f}\n".format(which, measure, 100 * value) for which, measure, value in lines] + [
                "Selected by: {}\n".format(self.options["select"]),
                "Best epoch: {}\n".format(self.best_epoch), "Last epoch: {}\n".format(len(self.log) - 1)]))
        write_card(self.save_dir, card(self.script, self.options, self.defaults, self.data, self.log, self.best_epoch))

    def _write_files(self, weights, epoch, beside):
        """Write what follows from the state after ``epoch``. Without ``weights``, best.pth, what lies beside it ({file:
        state dict}) and last.pth stay."""
        if weights is not None:
            if epoch == self.best_epoch:
                write_tensors(self._path(BEST), weights)
                for name, state in beside.items():
                    write_tensors(self._path(name), state)
            write_tensors(self._path(LAST), weights)
        for name, lines in ((LOG, self.log), (SPEED, self.speed)):
            write_text(self._path(name), "".join(line + "\n" for line in lines))

    def _describe(self):
        """Write what the run is: its options, and the pictures that it leaves out."""
        write_json(self._path(CONFIG), self._description())
        if self.skipped:
            write_text(self._path(SKIPPED), "".join(line + "\n" for line in self.skipped))
        else:
            self._remove(SKIPPED)

    def _description(self):
        return {"script": self.script, "options": absolute(self.options),
                "versions": {"python": platform.python_version(), "torch": torch.__version__}}

    def keep_diagnosis(self, found):
        """Write ``diagnose.json``: what would be run, and what was ``found`` of it, plain values by name."""
        if self.writes:
            write_json(self._path(DIAGNOSIS), dict(self._description(), **found))

    def _remove(self, *names):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path(name))

    def _path(self, name):
        return os.path.join(self.save_dir, name)
