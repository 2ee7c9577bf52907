"""Print a table of runs: what each trained, its Recall@1 on the test set before and after, its size; then what each
student gained by its teacher.

    python3 examples/summary.py runs/quickstart/teacher runs/quickstart/student_triplet runs/quickstart/student_rkd
"""
import collections
import json
import os
import sys

COLUMNS = ("run", "network", "loss", "epochs", "recall before", "best", "final", "MB", "seconds")
Row = collections.namedtuple("Row", "cells options script best")
Row.__doc__ = """A run: the cells of its row, its options, its script, and the test recall of its best.pth."""
RATIO = "_ratio"  # ends the name of each option of run_distill.py that weighs a term


def describe_loss(config):
    options = config["options"]
    if config["script"] == "run.py":
        return "{}, {} negatives".format(options["loss"], options["sample"])
    return " + ".join("{:g} {}".format(value, name[:-len(RATIO)]) for name, value in sorted(options.items())
                      if name.endswith(RATIO) and value)


def summarize(directory):
    """Return the ``Row`` of a run."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(directory, "log.jsonl"), encoding="utf-8") as file:
        log = [json.loads(line) for line in file]
    options = config["options"]
    recalls = [line["recall"]["test"][str(options["recall"][0])] for line in log if "recall" in line]
    best, select = _best(log, recalls, str(options["recall"][0]))
    network = "{} d={}{}".format(options["base"], options["embedding_size"],
                                 "" if options["l2normalize"] else " not normalised")
    size = os.path.getsize(os.path.join(directory, "best.pth")) / 1e6
    with open(os.path.join(directory, "speed.jsonl"), encoding="utf-8") as file:
        seconds = sum(json.loads(line)["seconds"] for line in file)
    cells = (os.path.basename(os.path.normpath(directory)), network, describe_loss(config), str(len(log) - 1),
             "{:.4f}".format(recalls[0]), "{:.4f}".format(best) + ("" if select == "test" else " by " + select),
             "{:.4f}".format(recalls[-1]), "{:.1f}".format(size), "{:.0f}".format(seconds))
    return Row(cells, options, config["script"], best)


def gains(rows):
    """Return a line for each distilled student that stands beside the same network trained alone, or its teacher."""
    lines = []
    for row in rows:
        if row.script != "run_distill.py":
            continue
        words = ["{:+.1f} points of Recall@1 to the same network without a teacher ({})".format(
            100 * (row.best - alone.best), alone.cells[0]) for alone in rows if alone.script == "run.py"
            and all(alone.options[name] == row.options[name] for name in ("base", "embedding_size"))]
        loaded = row.options["teacher_load"] or ""
        words += ["{:.0f}% of its teacher's".format(100 * row.best / teacher.best) for teacher in rows
                  if teacher.best and os.path.basename(os.path.dirname(loaded)) == teacher.cells[0]]
        lines += ["{}: {}".format(row.cells[0], ", ".join(words))] if words else []
    return lines


def _best(log, recalls, k):
    """Return (the test recall of best.pth, what selected its epoch: test, val or last)."""
    last = [line for line in log if "recall" in line][-1]
    if "best_epoch" not in last:  # a run of an earlier version
        return max(recalls), "test"
    return log[last["best_epoch"]]["recall"]["test"][k], last["select"]


def main(directories):
    if not directories:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        runs = [summarize(directory) for directory in directories]
    except (OSError, ValueError, KeyError) as error:
        print("summary.py: error: not the --save_dir of a run: {!r}".format(error), file=sys.stderr)
        return 2
    rows = [COLUMNS] + [run.cells for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if row is COLUMNS:
            print("-|-".join("-" * width for width in widths))
    for line in gains(runs):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
