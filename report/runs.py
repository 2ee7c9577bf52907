"""What a run directory says: the curves in its log.jsonl, the options in its config.json, what diagnose.json found."""
import collections
import json
import math
import os

LOG, CONFIG, DIAGNOSIS = "log.jsonl", "config.json", "diagnose.json"

Log = collections.namedtuple("Log", "name losses recalls best_epoch k")
Log.__doc__ = """The curves of a run: its name; {term of the loss: [(epoch, value)]}, "loss" being their sum; {split:
[(epoch, Recall@k in percent)]}; the epoch of best.pth, None if unknown; and k, the first K of --recall, a string."""


def short_names(paths):
    """Return a name for each path: its last two parts, or as many as tell all of them apart. What is no path stays."""
    parts = [os.path.abspath(path).split(os.sep) if os.path.exists(path) else [path] for path in paths]
    for count in range(2, max([2] + [len(part) for part in parts]) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["{} ({})".format(name, number) for number, name in enumerate(names, 1)]


def read_logs(directories):
    """Return the ``Log`` of each run that has one; a directory that is named twice counts once."""
    directories = list({os.path.realpath(directory): directory for directory in directories}.values())
    logs = map(read_log, directories, short_names(directories))
    return [log for log in logs if log is not None]


def read_log(directory, name=""):
    """Return the ``Log``, called ``name``, of the run in ``directory``; None if there is none. Lines that can't be read
    are passed over."""
    losses, recalls, best, k = {}, {}, None, "1"
    lines = _lines(os.path.join(directory, LOG))
    for line in lines:
        epoch, terms = line["epoch"], line.get("terms")
        _append(losses, epoch, dict({"loss": line.get("loss")}, **_dict(terms)))
        for split, found in _dict(line.get("recall")).items():
            for k, value in list(_dict(found).items())[:1]:
                _append(recalls, epoch, {split: value})
        best = line.get("best_epoch", best)
    recalls = {split: [(epoch, 100 * value) for epoch, value in recalls[split]] for split in sorted(recalls)}
    return Log(name, losses, recalls, best, k) if lines else None


def _dict(value):
    return value if isinstance(value, dict) else {}


def _append(curves, epoch, values):
    for name, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            curves.setdefault(name, []).append((epoch, value))


def _lines(path):
    """Return the lines of a log that are an epoch's."""
    found = []
    try:
        with open(path, encoding="utf-8") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                    found.append(line)
    except (OSError, ValueError):
        pass
    return found


def read_diagnosis(directory):
    """Return (lines in words, {figure: text}, [[term, ratio, share of the loss, share of the gradients]]) of what
    ``run_distill.py --diagnose`` found before the run in ``directory``; None if there is none that can be read."""
    try:
        with open(os.path.join(directory, DIAGNOSIS), encoding="utf-8") as file:
            found = json.load(file)
        test = found["test"]
        figures = {"{}'s Recall@{}".format(who, k): "{:.2%}".format(value)
                   for who in ("teacher", "student") for k, value in test[who]["recall"].items()}
        figures.update(("common among the {} nearest".format(k), "{:.1%}".format(share))
                       for k, share in test["common_neighbours"].items())
        figures["linear CKA"] = _figure(test["linear_cka"], "{:.3f}")
        terms = [[name, "{:g}".format(term["ratio"]), _figure(term["share"], "{:.1%}"),
                  _figure(term["gradient_share"], "{:.1%}")] for name, term in found["terms"].items()]
        return list(map(str, found["words"])), figures, terms
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _figure(value, form):
    return "-" if value is None else form.format(value)


def read_options(directory):
    """Return (script, {option: value}) of the run in ``directory``; (None, {}) if its config.json can't be read."""
    try:
        with open(os.path.join(directory, CONFIG), encoding="utf-8-sig") as file:
            config = json.load(file)
        return str(config["script"]), dict(config["options"])
    except (OSError, ValueError, TypeError, LookupError):
        return None, {}
