#!/usr/bin/env python3
r"""Compare methods of distillation: a teacher, then a student for each method, size, learning rate and seed.

  python3 benchmarks/compare.py benchmarks/comparisons/birds.ini --save_dir runs/birds --jobs 2

For each size and method every rate is tried with the first seed; the best one by the recall of validation classes
(held out of training; never the test classes) is run with the other seeds. Where it is the highest or lowest rate, one
step further is tried. table.md, table.csv and plot.svg in --save_dir are written again after each run. The same command
goes on where it was stopped.
"""
import argparse
import os
import shlex
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.dirname(HERE)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from comparisons.files import (  # noqa: E402
    METHODS, argv_of, read_comparison, refuse_unknown, student_trial, teacher_trial)
from comparisons.plot import plot  # noqa: E402
from comparisons.search import search  # noqa: E402
from comparisons.tables import Found, comma_separated, markdown  # noqa: E402
from comparisons.trials import Processes, read_result, tidy  # noqa: E402
from dataset.files import locked  # noqa: E402
from engine import arguments  # noqa: E402
from engine.errors import TrainingError, UsageError, run_script  # noqa: E402
from engine.rundir.files import write_text  # noqa: E402
from model import find_backbone  # noqa: E402


def build_parser():
    parser = arguments.new_parser("compare.py", __doc__)
    parser.add_argument("file", type=arguments.path, help="what is compared; see benchmarks/comparisons")
    parser.add_argument("--save_dir", type=arguments.path, metavar="DIR", required=True,
                        help="where runs, tables and plot go")
    parser.add_argument("--methods", type=arguments.path, metavar="FILE", default=METHODS,
                        help="the methods, as options of run_distill.py")
    parser.add_argument("--set", nargs="+", type=variable, default=[], metavar="NAME=VALUE",
                        help="what stands for %%(NAME)s in the files, for example data=DIR")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="these methods only, in this order")
    parser.add_argument("--jobs", type=arguments.positive_int, default=1, metavar="N",
                        help="runs at once; each has one thread")
    parser.add_argument("--no_extend", action="store_true", help="try no rates beyond those of the file")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--list", action="store_true", help="print the commands that are left to do, and end")
    group.add_argument("--table", action="store_true", help="only write tables and plot from what is there")
    return parser


def variable(text):
    if "=" not in text:
        raise argparse.ArgumentTypeError("{!r} is not NAME=VALUE".format(text))
    return text.split("=", 1)


class Study:
    """A comparison in a directory, and how far it is.

    Attributes:
        results: {directory of a run: its ``Result``}, of those that are over.
        only: the methods whose students are trained, in order.
    """

    def __init__(self, comparison, args, title):
        self.comparison, self.title, self.directory = comparison, title, args.save_dir
        self.extend, self.only = not args.no_extend, list(dict.fromkeys(args.only or comparison.methods))
        self.results = {}
        self.teacher = teacher_trial(comparison, args.save_dir)

    def result(self, trial):
        """Return the ``Result`` of a run, None if it is not over."""
        if trial.directory not in self.results:
            result = read_result(trial)
            if result is None:
                return None
            self.results[trial.directory] = result
        return self.results[trial.directory]

    def trial_of(self, size, method, rate, seed):
        return student_trial(self.comparison, self.directory, size, method, rate, seed)

    def searches(self, methods=None):
        """Return the ``Search`` of each size and method; of all methods by default."""
        comparison = self.comparison

        def outcome(size, method):
            return lambda rate, seed: self.result(self.trial_of(size, method, rate, seed))

        return [search(size, method, comparison.rates, comparison.seeds, outcome(size, method), self.extend)
                for size in comparison.sizes for method in methods or comparison.methods]

    def waiting(self):
        """Return the runs that are known to be needed and not over, in order; of teacher and students, the teacher
        alone first."""
        if self.result(self.teacher) is None:
            return [self.teacher]
        return self.students_waiting()

    def students_waiting(self):
        return [self.trial_of(found.size, found.method, rate, seed) for found in self.searches(self.only)
                for rate, seed in found.waiting]

    def refuse_failed_teacher(self):
        teacher = self.result(self.teacher)
        if teacher is not None and teacher.failure is not None:
            raise TrainingError("the teacher failed: {} ({})".format(
                teacher.failure, "the same command tries it again" if teacher.again
                else "remove {} to train it again".format(self.teacher.directory)))

    def tidy(self):
        """Delete the weights that nothing needs: all but the teacher's, and the first seed's at each chosen rate."""
        tidy(self.teacher, keeps_best=True)
        for found in self.searches():
            for rate, seed, result in found.over:
                # While rates are still tried, the first seed's weights may be those that are kept.
                may_be_kept = seed == self.comparison.seeds[0] and result.failure is None and (
                    not found.is_chosen or rate == found.rate)
                tidy(self.trial_of(found.size, found.method, rate, seed), may_be_kept)

    def found(self):
        """Return the rows of the table."""
        teacher = self.result(self.teacher)
        is_there = teacher is not None and teacher.failure is None
        rows = [Found(dimensions_of(self.comparison.teacher), "teacher", None, {0: teacher} if is_there else {}, [])]
        return rows + [Found(found.size, found.method, found.rate, found.results, found.notes)
                       for found in self.searches() if found.over]

    def write(self):
        """Write tables and plot."""
        rows = self.found()
        for name, text in (("table.md", markdown(rows, self.title)), ("table.csv", comma_separated(rows)),
                           ("plot.svg", plot(rows, self.title))):
            write_text(os.path.join(self.directory, name), text)


def dimensions_of(teacher):
    """Return the dimensions of a teacher's embeddings, from its options; None if they are not known without it."""
    size = int(teacher["embedding_size"][0])
    return size or find_backbone(teacher["base"][0]).output_size or None


def show(trial):
    return "python3 {} {}".format(trial.script, " ".join(map(shlex.quote, argv_of(trial))))


def tell(result):
    return result.failure or "Recall@1 {:.4f} (validation {:.4f}), {:.0f} s of training".format(
        result.best["recall"], result.validation, result.seconds)


def list_commands(study):
    waiting = study.waiting()
    for trial in waiting:
        print(show(trial))
    if waiting == [study.teacher]:
        print("# then the students, each rate with the first seed:")
        for trial in study.students_waiting():
            print(show(trial))
    if waiting:
        print("# then the other seeds at each best rate")


def carry_out(study, jobs):
    """Do all runs that are left, ``jobs`` at once.

    Raises:
        TrainingError: the teacher failed, or students failed in a way that may pass; all else is done by then.
    """
    study.refuse_failed_teacher()
    processes = Processes(jobs)
    try:
        while True:
            waiting = [trial for trial in study.waiting() if trial.directory not in processes.running]
            for number, trial in enumerate(waiting, 1):
                if processes.has_room():
                    print("Start {} ({} more wait)".format(trial.directory, len(waiting) - number), flush=True)
                    processes.start(trial)
            if not processes.running:
                break
            trial, result = processes.wait()
            study.results[trial.directory] = result
            print("Over  {}: {}".format(trial.directory, tell(result)), flush=True)
            study.refuse_failed_teacher()
            study.tidy()
            study.write()
    except BaseException as error:
        processes.stop()
        if isinstance(error, KeyboardInterrupt):
            error.advice = "the runs that were going have kept their state; the same command goes on"
        raise
    count = sum(result.again for result in study.results.values())
    if count:
        raise TrainingError("{} run{} failed; the same command tries {} again".format(
            count, *("s", "them") if count > 1 else ("", "it")))


def compare(command):
    args = command.args
    for way in ("list", "table"):
        if getattr(args, way):
            arguments.refuse_idle(command.given, ("jobs",) + ("only",) * (way == "table"), "with --" + way)
    comparison = read_comparison(args.file, args.methods, dict(args.set))
    refuse_unknown(args.only, comparison.methods, args.file)
    study = Study(comparison, args, os.path.splitext(os.path.basename(args.file))[0])
    if args.list:
        return list_commands(study)
    os.makedirs(args.save_dir, exist_ok=True)
    try:
        with locked(os.path.join(args.save_dir, ".lock"), wait=False):
            study.tidy()
            study.write()
            print("Tables: {}".format(os.path.join(args.save_dir, "table.md")))
            if not args.table:
                carry_out(study, args.jobs)
    except BlockingIOError:
        raise UsageError("--save_dir {}: another compare.py is at work in it".format(args.save_dir)) from None


def main(argv=None):
    return run_script("compare.py", lambda: compare(arguments.parse(build_parser(), argv)))


if __name__ == "__main__":
    sys.exit(main())
