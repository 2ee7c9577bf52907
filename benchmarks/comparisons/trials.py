"""Runs of a comparison as processes, and what each has left: its figures, or why it failed."""
import collections
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time

from comparisons.files import HERE, argv_of, only_measures
from dataset.files import digest_of
from engine.errors import UsageError
from engine.evaluation import TITLES
from engine.rundir.files import BEST, CHECKPOINT, LAST, LOG, RESULT, SPEED, read_json, write_json, write_text
from metric import utils

SCRIPTS = os.path.dirname(os.path.dirname(HERE))  # where run.py and run_distill.py are
OUTPUT, COMMAND, FAILED = "output.txt", "command.json", "failed.txt"
DIVERGED = "lower --lr"  # what the scripts advise where a loss or weights are not finite
POLL_SECONDS = 0.2
# As in a log: as printed.
MEASURES = dict({name: TITLES.get(name, name) for name in utils.MEASURES}, recall="Recall@1")
MEASURED = re.compile(r"^\[Epoch 0\] ([^:]+): \[([0-9.]+)\] (\w+)", re.MULTILINE)

Result = collections.namedtuple("Result", "validation epoch best last before seconds megabytes failure again")
Result.__doc__ = """What a run has left.

validation: recall of the validation classes in the epoch that they choose, ``epoch``; None for a run that failed.
best, last, before: {measure: value} of the test classes in that epoch, in the last one, before training.
seconds: of training. megabytes: of best.pth, None if it was deleted. failure: the reason in a line, or None.
again: whether it failed, and the same command, started once more, tries it again.
"""


def failed(reason, again):
    return Result(None, None, {}, {}, {}, None, None, reason, again)


def choose_epoch(validation):
    """Return the epoch with the highest recall on the validation classes, the first of equals.

    This is the choice that ``--select val`` makes for best.pth. It sees figures of the validation classes only.

    Args:
        validation: {epoch: recall of the validation classes}.
    """
    return min(validation, key=lambda epoch: (-validation[epoch], epoch))


def read_result(trial):
    """Return the ``Result`` of a run; None if it is not finished.

    Raises:
        UsageError: it was made with other options.
    """
    refuse_other_options(trial)
    reason = _read(os.path.join(trial.directory, FAILED)).strip()
    if reason:
        return failed(reason, again=False)
    if not os.path.exists(os.path.join(trial.directory, RESULT)):
        return None
    log = [line for line in _lines(trial, LOG) if "recall" in line]
    if not log:
        raise _unreadable(trial, LOG)

    def figures(line):  # a measure has no value where no query has a match
        values = {name: line[name]["test"] for name in MEASURES if "test" in line.get(name, ())}
        return dict(values, recall=values["recall"]["1"])

    validation = {line["epoch"]: line["recall"]["val"]["1"] for line in log}
    epoch = choose_epoch(validation)
    lines = {line["epoch"]: line for line in log}
    return Result(validation[epoch], epoch, figures(lines[epoch]), figures(log[-1]), figures(log[0]),
                  sum(line["seconds"] for line in _lines(trial, SPEED)), _megabytes(trial), None, again=False)


def _megabytes(trial):
    """Return the size of the run's weights, or of the file that a teacher as it comes is made of; None if unknown."""
    path = trial.options.get("pretrained", [""])[0] if only_measures(trial) else os.path.join(trial.directory, BEST)
    return os.path.getsize(path) / 1e6 if os.path.isfile(path) else None


def _read(path):
    """Return a text file; "" if there is none."""
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    return ""


def _lines(trial, name):
    """Return the lines of a file of a run, read as JSON; none if there is no such file."""
    try:
        return [json.loads(line) for line in _read(os.path.join(trial.directory, name)).splitlines()]
    except ValueError:
        raise _unreadable(trial, name) from None


def _unreadable(trial, name):
    return UsageError("{} can't be read; remove {} to do this run again".format(
        os.path.join(trial.directory, name), trial.directory))


def refuse_other_options(trial):
    """Refuse (UsageError) a directory in which a run with other options, or of another teacher, has begun."""
    there = read_json(os.path.join(trial.directory, COMMAND))
    if there is None:
        return
    here = comparable(trial.options)
    differing = ["--{} {} there, {} here".format(name, *(
        " ".join(options[name]) or "given" if name in options else "not given" for options in (there, here)))
        for name in sorted(set(there) | set(here)) if there.get(name) != here.get(name)]
    if differing:
        raise UsageError("{} holds a run with other options ({}); put the comparison back as it was, or give it a "
                         "--save_dir of its own".format(trial.directory, ", ".join(differing)))


def comparable(options):
    """Return the options as command.json holds them. Of a path the last part counts: files may have moved. A teacher's
    file has its digest beside it: the teacher may have been trained again."""
    words = {name: [os.path.basename(os.path.normpath(word)) for word in words] for name, words in options.items()}
    for path in filter(os.path.isfile, options.get("teacher_load", ())):
        words["teacher_load"].append("(sha256 {})".format(_digest(path, os.stat(path).st_mtime_ns)))
    return words


@functools.lru_cache(maxsize=None)
def _digest(path, _):
    """Return the digest of a file; the time of its last change is given, too, for the cache."""
    return digest_of(path)


def tidy(trial, keeps_best):
    """Delete what a run that is over needs no more: the state, the last weights and, unless ``keeps_best``, the best.
    Where it failed and will be tried again, all is kept."""
    if not any(os.path.exists(os.path.join(trial.directory, name)) for name in (RESULT, FAILED)):
        return
    for name in (CHECKPOINT, LAST) if keeps_best else (CHECKPOINT, LAST, BEST):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(trial.directory, name))


class Processes:
    """Runs as processes, at most ``count`` at once, one thread each."""

    def __init__(self, count):
        self.count, self.running = count, {}  # {directory: (Trial, process)}

    def has_room(self):
        return len(self.running) < self.count

    def start(self, trial):
        os.makedirs(trial.directory, exist_ok=True)
        write_json(os.path.join(trial.directory, COMMAND), comparable(trial.options))
        command = [sys.executable, os.path.join(SCRIPTS, trial.script)] + argv_of(trial)
        with open(os.path.join(trial.directory, OUTPUT), "ab") as output:
            # A session of its own: Ctrl-C reaches compare.py alone, which then ends its children one way.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env=dict(os.environ, OMP_NUM_THREADS="1"))
        self.running[trial.directory] = trial, process

    def wait(self):
        """Wait until a run is over; return (trial, ``Result``)."""
        while True:
            for trial, process in self.running.values():
                if process.poll() is not None:
                    del self.running[trial.directory]
                    return trial, self._finished(trial, process.returncode)
            time.sleep(POLL_SECONDS)

    def _finished(self, trial, code):
        text = _read(os.path.join(trial.directory, OUTPUT))
        if code == 0:
            if only_measures(trial):
                _keep_measured(trial, text)
            return read_result(trial) or failed("it measured nothing; see {}".format(OUTPUT), again=True)
        last = (text.strip().splitlines() or ["no output"])[-1].strip()
        if code < 0:
            return failed("ended by signal {}".format(-code), again=True)
        if DIVERGED in last:  # it would do so again
            write_text(os.path.join(trial.directory, FAILED), last + "\n")
        return failed(last, again=DIVERGED not in last)

    def stop(self):
        """End all runs; each writes its state first. Called again while that takes place, they are killed."""
        processes = [process for _, process in self.running.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
                process.wait()
            raise


def _keep_measured(trial, text):
    """Write what ``run.py --mode eval`` has printed as a training writes it: as the log of a run without epochs."""
    line, names = {"epoch": 0, "recall": {}}, {title: name for name, title in MEASURES.items()}
    for title, percent, split in MEASURED.findall(text):
        value = float(percent) / 100
        line.setdefault(names[title], {})[split] = {"1": value} if names[title] == "recall" else value
    if {"test", "val"} <= set(line["recall"]):
        write_text(os.path.join(trial.directory, LOG), json.dumps(line) + "\n")
        write_text(os.path.join(trial.directory, RESULT), "As it comes Recall@1: {:.4f}\n".format(
            100 * line["recall"]["test"]["1"]))
