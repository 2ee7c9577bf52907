"""What a run leaves behind: its options, a line an epoch, weights, and the figures that people read."""
import json
import os
import platform

import torch

from engine.checkpoint import CONFIG
from engine.errors import UsageError
from engine.files import append_line, prepare_directory, save_weights, write_json, write_text

__all__ = ["RunRecord"]

BEST, LAST, LOG, RESULT = "best.pth", "last.pth", "log.jsonl", "result.txt"


class RunRecord:
    """The best recalls of a run and its files.

    Args:
        directory: where the files go; None keeps none.
        k: the K of the Recall@K that selects the best network.
        script, options: what is run, for ``config.json``.
        inputs: files that the run reads; it must not write over them.

    Raises:
        UsageError: the directory can't be written to, or the run would overwrite one of ``inputs``.
    """

    def __init__(self, directory, k, script, options, inputs=()):
        self.directory = directory
        self.k = k
        self.config = {"script": script, "options": options,
                       "versions": {"python": platform.python_version(), "torch": torch.__version__}}
        self.best = {}
        self.final = {}
        if directory is None:
            return
        for path in inputs:
            if path and os.path.realpath(os.path.dirname(path)) == os.path.realpath(directory):
                raise UsageError("--save_dir {} holds {}, which this run reads and would overwrite; give the run a "
                                 "directory of its own".format(directory, path))
        prepare_directory(directory)

    def keep(self, epoch, measurements, network, figures=None):
        """Take the measurements of an epoch, {split: Measurement}, and write its weights and its line in the log."""
        self.final = {split: measurement.recalls[self.k] for split, measurement in measurements.items()}
        improved = epoch == 0 or self.final["test"] > self.best["test"]
        self.best = {split: max(value, self.best.get(split, value)) for split, value in self.final.items()}
        if self.directory is None:
            return
        if epoch == 0:
            self._take_over_directory()
        if improved:
            save_weights(self._path(BEST), network)
        line = {"epoch": epoch,
                "recall": {split: {str(k): value for k, value in measurement.recalls.items()}
                           for split, measurement in measurements.items()},
                "spread": {split: measurement.spread for split, measurement in measurements.items()}}
        line.update(figures or {})
        self._keep(network, line)

    def keep_unmeasured(self, epoch, network, figures):
        """Write the weights of an epoch that was not evaluated, and its line in the log."""
        if self.directory is not None:
            self._keep(network, dict({"epoch": epoch}, **figures))

    def _keep(self, network, line):
        save_weights(self._path(LAST), network)
        append_line(self._path(LOG), json.dumps(line))

    def finish(self, lines):
        """Write ``result.txt``: {what: fraction}, shown in percent."""
        if self.directory is not None:
            write_text(self._path(RESULT), "".join(
                "{} Recall@{}: {:.4f}\n".format(what, self.k, 100 * value) for what, value in lines.items()))

    def _take_over_directory(self):
        """Let the files of an earlier run give way, now that this one has something to put in their place."""
        write_json(self._path(CONFIG), self.config)
        write_text(self._path(LOG), "")
        if os.path.exists(self._path(RESULT)):
            os.remove(self._path(RESULT))

    def _path(self, name):
        return os.path.join(self.directory, name)
