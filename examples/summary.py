"""Print a table of runs: what each trained, its Recall@1 on the test set before and after, its size.

    python3 examples/summary.py runs/quickstart/teacher runs/quickstart/student_rkd
"""
import json
import os
import sys

COLUMNS = ("run", "network", "loss", "epochs", "recall before", "best", "final", "MB", "seconds")
RATIOS = (("triplet_ratio", "triplet"), ("dist_ratio", "RKD-D"), ("angle_ratio", "RKD-A"), ("dark_ratio", "DarkRank"),
          ("at_ratio", "attention"))


def describe_loss(config):
    options = config["options"]
    if config["script"] == "run.py":
        return "{}, {} negatives".format(options["loss"], options["sample"])
    return " + ".join("{:g} {}".format(options[ratio], name) for ratio, name in RATIOS if options[ratio])


def summarize(directory):
    """Return the cells of a run's row."""
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(directory, "log.jsonl")) as file:
        log = [json.loads(line) for line in file]
    options = config["options"]
    recalls = [line["recall"]["test"][str(options["recall"][0])] for line in log]
    network = "{} d={}{}".format(options["base"], options["embedding_size"],
                                 "" if options["l2normalize"] else " not normalised")
    size = os.path.getsize(os.path.join(directory, "best.pth")) / 1e6
    with open(os.path.join(directory, "speed.jsonl")) as file:
        seconds = sum(json.loads(line)["seconds"] for line in file)
    return (os.path.basename(os.path.normpath(directory)), network, describe_loss(config), str(len(log) - 1),
            "{:.4f}".format(recalls[0]), "{:.4f}".format(max(recalls)), "{:.4f}".format(recalls[-1]),
            "{:.1f}".format(size), "{:.0f}".format(seconds))


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
