"""Colours by their names, for a light and a dark page. In a page they are CSS variables, in a PNG those of LIGHT."""

# Okabe and Ito's colours, which people who see colours differently can tell apart, darker or lighter as the page asks.
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#656d76", "grid": "#d8dee4", "panel": "#f6f8fa",
         "right": "#1a7f37", "wrong": "#cf222e", "link": "#0969da",
         "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#cc79a7", "c4": "#b8860b", "c5": "#56b4e9",
         "c6": "#6a51a3", "c7": "#7f7f7f"}
DARK = {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "grid": "#30363d", "panel": "#161b22",
        "right": "#3fb950", "wrong": "#ff7b72", "link": "#58a6ff",
        "c0": "#4aa8e8", "c1": "#ff8c42", "c2": "#2fc79b", "c3": "#e79cc4", "c4": "#dbab3d", "c5": "#9bd5fb",
        "c6": "#ab94e6", "c7": "#a8a8a8"}
SERIES = tuple(name for name in LIGHT if name[1:].isdigit())


def series(number):
    """Return the name of the colour of the ``number``-th line, class or network; they come round again."""
    return SERIES[number % len(SERIES)]


def variables(colours):
    """Return CSS that sets a variable for each colour: "--ink:#1f2328;..."."""
    return "".join("--{}:{};".format(*item) for item in colours.items())
