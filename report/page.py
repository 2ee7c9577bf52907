"""The page: HTML with all that it shows in it. No script, nothing from elsewhere."""
import collections

from report.colours import DARK, LIGHT, variables
from report.text import breakable, escaped

# Width and height of what is shown follow from the window; the grids have as many columns as fit.
STYLE = """
:root{color-scheme:light dark;%s}
@media(prefers-color-scheme:dark){:root{%s}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px;background:var(--paper);
 color:var(--ink);font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:8px 0}
h2{font-size:1.2rem;margin:40px 0 6px;padding-top:12px;border-top:1px solid var(--grid)}
h3{font-size:.95rem;margin:0}h4{font-size:.8rem;font-weight:600;color:var(--faint);margin:8px 0 2px}
h5{font-size:1rem;margin:20px 0 8px}
p{margin:4px 0 10px;max-width:76ch}.note{color:var(--faint);font-size:.85rem;margin:0 0 4px}
a{color:var(--link)}nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:12px 0}
pre,code{font:12.5px/1.5 ui-monospace,SFMono-Regular,"DejaVu Sans Mono",monospace}
pre{background:var(--panel);border:1px solid var(--grid);border-radius:6px;padding:10px;white-space:pre-wrap}
svg{display:block;width:100%%;height:auto;font-family:inherit}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%%,330px),1fr));gap:16px 28px}
.panels>*{max-width:420px;margin:0}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%%,440px),1fr))}.wide>*{max-width:560px}
.panels figcaption{margin-bottom:6px}
.key{display:flex;flex-wrap:wrap;margin-top:10px;max-width:560px}.key svg{width:280px}
.table{overflow-x:auto;margin-bottom:14px}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--grid);vertical-align:top}
th:first-child,td:first-child{padding-left:0}td,th{overflow-wrap:normal}
.words{text-align:left;overflow-wrap:anywhere;min-width:8em}th{color:var(--faint);font-weight:600}
summary{cursor:pointer;color:var(--link);margin:8px 0}
.row{display:grid;grid-template:"query what" "query finds" 1fr/96px minmax(0,1fr);gap:4px 16px;margin:0 0 22px}
.row>figure{grid-area:query}.row>header{grid-area:what}.row>div{grid-area:finds;min-width:0}
.found,.pair{display:flex;flex-wrap:wrap;gap:8px 6px}
figure{margin:0}figure.query,figure.right,figure.wrong{position:relative;width:96px}
figure img{display:block;width:100%%;height:auto;aspect-ratio:1;border-radius:3px}
figure.right img,figure.wrong img{border:3px solid var(--right)}figure.wrong img{border:3px dashed var(--wrong)}
figure.right:before,figure.wrong:before{position:absolute;top:5px;right:5px;width:18px;height:18px;border-radius:9px;
 background:var(--right);color:var(--paper);font:bold 12px/18px sans-serif;text-align:center;pointer-events:none}
figure.right:before{content:"\\2713"}figure.wrong:before{content:"\\2717";background:var(--wrong)}
figure figcaption{font-size:.72rem;line-height:1.25;color:var(--faint);white-space:nowrap;overflow:hidden;
 text-overflow:ellipsis}
.panels figcaption{white-space:normal;font-size:.85rem}
.confused{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%%,330px),1fr));gap:18px 28px}
.confused article{display:flex;gap:12px}.confused .pair{flex:none;flex-wrap:nowrap}.pair+div{min-width:0}
@media(max-width:640px){body{padding:12px}
 .row{grid-template:"query what" "finds finds" auto/96px minmax(0,1fr)}
 .found figure,.found figure.right,.found figure.wrong{width:calc((100%% - 18px)/4)}
 .confused figure.query,.confused figure.wrong{width:84px}th,td{padding:4px 6px}}
""" % (variables(LIGHT), variables(DARK))

Section = collections.namedtuple("Section", "title anchor html")


def section(title, anchor, body, words=""):
    """Return a ``Section`` of the page; body is HTML, words are an explanation."""
    return Section(title, anchor, '<section id="{}"><h2>{}</h2>{}{}</section>'.format(
        anchor, escaped(title), "<p>{}</p>".format(escaped(words)) if words else "", body))


def table(head, rows, shown=None, words=1):
    """Return a table of text; of more rows than ``shown`` the others are folded away. The first columns, ``words`` of
    them, are words, the others numbers."""
    def line(cells, kind):
        return "<tr>{}</tr>".format("".join("<{0}{1}>{2}</{0}>".format(
            kind, ' class="words"' if column < words else "", breakable(cell)) for column, cell in enumerate(cells)))

    def part(some):
        lines = [line(head, "th")] + [line(row, "td") for row in some]
        return '<div class="table"><table>{}</table></div>'.format("".join(lines))

    if shown is None or len(rows) <= shown:
        return part(rows)
    return part(rows[:shown]) + folded("{} more".format(len(rows) - shown), part(rows[shown:]))


def folded(title, body):
    return "<details><summary>{}</summary>{}</details>".format(escaped(title), body)


def panels(canvases, captions=None, kind="panels"):
    """Return figures, side by side where there is room; canvases: [(description, ``Canvas``)]."""
    return '<div class="{}">{}</div>'.format(kind, "".join(
        "<figure>{}{}</figure>".format("<figcaption>{}</figcaption>".format(escaped(caption)) if caption else "",
                                       canvas.svg(description))
        for (description, canvas), caption in zip(canvases, captions or [None] * len(canvases))))


def page(title, head, sections):
    """Return the whole page; head: HTML below the title. sections: [what ``section`` gives]."""
    links = "".join('<a href="#{}">{}</a>'.format(one.anchor, escaped(one.title)) for one in sections)
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width='
            'device-width,initial-scale=1"><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            'img-src data:; style-src \'unsafe-inline\'"><title>{0}</title><style>{1}</style></head><body><h1>{0}</h1>'
            '{2}<nav>{3}</nav>\n{4}\n</body></html>\n').format(
                escaped(title), STYLE, head, links, "\n".join(one.html for one in sections))
