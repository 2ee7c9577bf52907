"""What people look at: a page about what a network finds, its pictures for a paper, the curves of runs.

In come a run's directory, embeddings and pictures; out come HTML and PNG. Nothing here knows engine. The modules:

    write       write_report, the page and its pictures; leave_pictures, the two that a training leaves
    sections    the parts of the page that show what networks find
    neighbours  the numbers: nearest neighbours, misses, confused classes, recall by class, distances
    gallery     queries and their neighbours, as HTML and as a picture
    found       what a search found, as a picture
    maps        two principal components, with classes in colour and thumbnails
    histogram   distances within classes and between them
    runs        log.jsonl and config.json of a run; curves: panels of these
    axes        a panel with axes; canvas: shapes that come out as SVG and as pixels; colours, for light and dark
    tiles       pictures as small squares; text: escaping, links, data: addresses; page: HTML around it all
"""
from report.found import draw_found
from report.options import OPTIONS, add_report_options
from report.runs import read_log, read_logs, short_names
from report.sections import Shown
from report.write import FILES, leave_pictures, write_report

__all__ = ["FILES", "OPTIONS", "Shown", "add_report_options", "draw_found", "leave_pictures", "read_log",
           "read_logs", "short_names", "write_report"]
