"""What a comparison has found, and its tables: Markdown and CSV."""
import collections
import csv
import io
import statistics

from comparisons.trials import MEASURES

Found = collections.namedtuple("Found", "size method rate results notes")
Found.__doc__ = """A row of the table.

size: dimensions of the embedding. method: its name; "teacher" in the first row. rate: the chosen one.
results: {seed: its ``Result``} of the finished runs at that rate that did not fail. notes: sentences.
"""
WHEN = {"best": "chosen by validation", "last": "last epoch", "before": "before training"}


def mean_and_deviation(values):
    """Return (mean, standard deviation of a sample, n - 1); the deviation of a single value is None."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def values_of(found, when, measure):
    """Return the values of a measure, one a seed: ``when`` is "best", "last" or "before"."""
    values = [getattr(result, when).get(measure) for result in found.results.values()]
    return [value for value in values if value is not None]


def figures_of(found, teacher):
    """Return {column: number or text, None where there is none} of a row.

    Args:
        teacher: the row of the teacher.
    """
    columns = collections.OrderedDict([("size", found.size), ("method", found.method), ("rate", found.rate),
                                       ("seeds", len(found.results))])
    for measure in MEASURES:
        for when in WHEN:
            values = values_of(found, when, measure)
            mean, deviation = mean_and_deviation(values) if values else (None, None)
            columns[measure, when, "mean"], columns[measure, when, "deviation"] = mean, deviation
    whole = values_of(teacher, "best", "recall")
    share = columns["recall", "best", "mean"]
    columns["retained"] = share / whole[0] if whole and whole[0] and share is not None else None
    results = list(found.results.values())
    columns["seconds"] = statistics.median(result.seconds for result in results) if results else None
    columns["megabytes"] = next((result.megabytes for result in results if result.megabytes), None)
    columns["notes"] = " ".join(found.notes)
    return columns


def _shown(rows):
    """Return the (measure, when) of which any row has a figure."""
    return [(measure, when) for measure in MEASURES for when in WHEN
            if any(columns[measure, when, "mean"] is not None for columns in rows)]


def with_deviation(mean, deviation):
    if mean is None:
        return ""
    return "{:.3f}".format(mean) + (" ± {:.3f}".format(deviation) if deviation is not None else "")


def markdown(found, title):
    """Return the table of rows ``found``, the teacher's first, as Markdown."""
    rows = [figures_of(row, found[0]) for row in found]
    shown = _shown(rows)
    heads = ["d", "method", "rate", "seeds"]
    heads += ["{}, {}".format(MEASURES[measure], WHEN[when]) for measure, when in shown]
    heads += ["of the teacher's", "seconds", "MB", "notes"]
    lines = ["# " + title, "", "Mean ± standard deviation over the seeds, on test classes. Learning rate and epoch are "
             "chosen by the recall of", "validation classes, never by that of test classes.", "",
             "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for columns in rows:
        cells = [_text(columns["size"], "{}"), columns["method"], _text(columns["rate"], "{:g}"), str(columns["seeds"])]
        cells += [with_deviation(columns[measure, when, "mean"], columns[measure, when, "deviation"])
                  for measure, when in shown]
        cells += [_text(columns["retained"], "{:.1%}"), _text(columns["seconds"], "{:.0f}"),
                  _text(columns["megabytes"], "{:.1f}"), columns["notes"].replace("|", "\\|")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comma_separated(found):
    """Return the same table as CSV, with means and deviations in columns of their own and all digits."""
    rows = [figures_of(row, found[0]) for row in found]
    shown = {(measure, when) for measure, when in _shown(rows)}
    columns = [column for column in rows[0] if isinstance(column, str) or column[:2] in shown]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column if isinstance(column, str) else " ".join(column) for column in columns])
    for row in rows:
        writer.writerow(["" if row[column] is None else row[column] for column in columns])
    return text.getvalue()


def _text(value, form):
    return "" if value is None else form.format(value)
