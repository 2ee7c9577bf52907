"""The curves of runs: their loss by term, and their recall, by epoch."""
from report.axes import Curve, panel
from report.canvas import Canvas
from report.colours import SERIES, series

GAP = 14


def panels(logs):
    """Return a list of ``Canvas``: of one run its losses and its recalls; of several a panel for the recall of each
    split, the loss and each term of it, with a curve for each run.

    Args:
        logs: [``runs.Log``].
    """
    if not logs:
        return []
    return _of_one(*logs) if len(logs) == 1 else _of_several(logs)


def _of_one(log):
    losses = {name: points for name, points in log.losses.items() if name != "loss" or len(log.losses) != 2}
    groups = [("Loss", losses, None), ("Recall@{}, %".format(log.k), log.recalls, log.best_epoch)]
    return [panel(title, [Curve(name, points, series(number), name == "loss" and len(curves) > 1,
                                best if name == "test" else None)
                          for number, (name, points) in enumerate(curves.items())], "epoch", whole_x=True)
            for title, curves, best in groups if curves]


def _of_several(logs):
    found = []
    for part, title in (("recalls", "Recall@{}, {{}} set, %".format(logs[0].k)), ("losses", "{}")):
        for name in dict.fromkeys(name for log in logs for name in getattr(log, part)):
            words = title.format(name if part == "recalls" or name == "loss" else "loss term " + name)
            found.append(panel(words, [
                Curve(log.name, getattr(log, part)[name], series(number), number >= len(SERIES),
                      log.best_epoch if name == "test" else None)
                for number, log in enumerate(logs) if name in getattr(log, part)], "epoch", whole_x=True))
    return found


def sheet(canvases, below=None):
    """Return one ``Canvas`` with others side by side, two in a row, and one below them."""
    rows = [canvases[at:at + 2] for at in range(0, len(canvases), 2)] + ([] if below is None else [[below]])
    whole, y = Canvas(max(sum(one.width + GAP for one in row) for row in rows) + GAP), GAP
    for row in rows:
        x = GAP
        for one in row:
            whole.place(one, x, y)
            x += one.width + GAP
        y += max(one.height for one in row) + GAP
    whole.height = y
    return whole
