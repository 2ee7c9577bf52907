"""The plot of a comparison: Recall@1 of each method with error bars, one panel a size, the teacher as a dashed line."""
from xml.sax.saxutils import escape

from comparisons.tables import mean_and_deviation, values_of, with_deviation

WIDTH, LEFT, RIGHT, LINE, HEAD, FOOT, STEP = 720, 170, 130, 22, 48, 30, 0.1
STYLE = """
text { font: 13px sans-serif; fill: #24292f; }
.head { font-weight: bold; }
.small { font-size: 11px; fill: #6e7781; }
.grid { stroke: #8c959f; stroke-opacity: 0.35; }
.teacher { stroke: #bf5600; stroke-width: 1.5; stroke-dasharray: 6 4; }
.teachers { fill: #bf5600; }
.bar { stroke: #0969da; stroke-width: 2; }
.dot { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .teacher { stroke: #f0883e; }
  .teachers { fill: #f0883e; }
  .bar { stroke: #58a6ff; }
  .dot { fill: #58a6ff; }
}
"""


def plot(found, title):
    """Return an SVG of the rows ``found``, the teacher's first: means and standard deviations; a dot alone where there
    is one seed."""
    rows = [(row, *mean_and_deviation(values_of(row, "best", "recall"))) for row in found if row.results]
    teacher = [mean for row, mean, _ in rows if row is found[0]]
    students = [entry for entry in rows if entry[0] is not found[0]]
    ends = teacher + [mean + sign * (deviation or 0) for _, mean, deviation in students for sign in (-1, 1)]
    low = max(0, int(min(ends, default=0) / STEP)) * STEP
    high = (int(max(ends, default=0) / STEP) + 1) * STEP

    def x(value):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * max(0, value - low) / (high - low), 1)

    parts, top = ['<text class="head" x="12" y="22">{}: Recall@1 on test classes</text>'.format(escape(title))], 34
    for size in dict.fromkeys(row.size for row, _, _ in students):
        panel = sorted((entry for entry in students if entry[0].size == size), key=lambda entry: -entry[1])
        parts += _panel("d = {}".format(size), panel, teacher, top, x, _ticks(low, high))
        top += HEAD + LINE * len(panel) + FOOT
    return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">\n' \
        '<style>{2}</style>\n{3}\n</svg>\n'.format(WIDTH, top, STYLE, "\n".join(parts))


def _ticks(low, high):
    return [low + STEP * number for number in range(int(round((high - low) / STEP)) + 1)]


def _panel(head, panel, teacher, top, x, ticks):
    """Return the elements of one size: from ``top`` a head, a line for each row, an axis."""
    first, bottom = top + HEAD, top + HEAD + LINE * len(panel)
    parts = ['<text class="head" x="12" y="{}">{}</text>'.format(top + 20, head)]
    for tick in ticks:
        parts += ['<line class="grid" x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>'.format(x(tick), first - 6, bottom),
                  '<text class="small" x="{}" y="{}" text-anchor="middle">{:.1f}</text>'.format(
                      x(tick), bottom + 14, tick)]
    for value in teacher:
        parts += ['<line class="teacher" x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>'.format(x(value), first - 6, bottom),
                  '<text class="small teachers" x="{}" y="{}" text-anchor="middle">teacher {:.3f}</text>'.format(
                      x(value), first - 12, value)]
    for number, (row, mean, deviation) in enumerate(panel):
        y = first + LINE * number + LINE // 2
        parts.append('<text x="{}" y="{}" text-anchor="end">{}</text>'.format(LEFT - 12, y + 4, escape(row.method)))
        if deviation is not None:
            parts.append('<line class="bar" x1="{}" y1="{y}" x2="{}" y2="{y}"/>'.format(
                x(mean - deviation), x(mean + deviation), y=y))
        parts += ['<circle class="dot" cx="{}" cy="{}" r="4"/>'.format(x(mean), y),
                  '<text x="{}" y="{}">{}</text>'.format(WIDTH - RIGHT + 14, y + 4, with_deviation(mean, deviation))]
    return parts
