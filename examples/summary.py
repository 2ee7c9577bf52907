"""Print a table of runs: what each trained, its Recall@1 on the test set before and after, its size.

    python3 examples/summary.py runs/quickstart/teacher runs/quickstart/student_rkd
"""
import json
import os
import sys

COLUMNS = ("run", "network", "loss", "epochs", "recall before", "best", "final", "MB", "seconds")
RATIO = "_ratio"  # ends the name of each option of run_distill.py that weighs a term


def describe_loss(config):
    options = config["options"]
    if config["script"] == "run.py":
        return "{}, {} negatives".format(options["loss"], options["sample"])
    return " + ".join("{:g} {}".format(value, name[:-len(RATIO)]) for name, value in sorted(options.items())
                      if name.endswith(RATIO) and value)


def summarize(directory):
    """Return the cells of a run's row."""
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
    return (os.path.basename(os.path.normpath(directory)), network, describe_loss(config), str(len(log) - 1),
            "{:.4f}".format(recalls[0]), "{:.4f}".format(best) + ("" if select == "test" else " by " + select),
            "{:.4f}".format(recalls[-1]),
            "{:.1f}".format(size), "{:.0f}".format(seconds))


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
        rows = [COLUMNS] + [summarize(directory) for directory in directories]
    except (OSError, ValueError, KeyError) as error:
        print("summary.py: error: not the --save_dir of a run: {!r}".format(error), file=sys.stderr)
        return 2
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if row is COLUMNS:
            print("-|-".join("-" * width for width in widths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
