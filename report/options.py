"""The options of ``run.py --mode report``."""
import os

OPTIONS = ("compare",)


def add_report_options(parser):
    group = parser.add_argument_group("report (--mode report)")
    group.add_argument("--compare", type=os.path.expanduser, nargs="+", metavar="RUN",
                       help="directories of runs whose curves are shown beside those of the run of --load")
    return group
