"""Small charts as inline SVG: a chart is a list of marks, which paint themselves on matplotlib's axes."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

# Okabe and Ito's palette: told apart with every kind of colour vision, and in print.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#777777", "#000000"
# The same without its yellow, which is faint on white, for several lines; their markers differ too.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", BLACK, GREY)
MARKERS = "osD^vP*X"

GRID = "#e6e6e6"
LEGEND_WIDTH = 84  # characters of its small type that are as wide as a chart

Mark = Callable[[Any], None]


def draw(marks: Sequence[Mark], x_label: str, y_label: str, height: float = 2.9) -> Markup:
    """One small chart as SVG, 4.8 inches wide; text stays text. Black and the grid are the page's
    colours, light or dark, and the legend stands below."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "preferl",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#999999",
        "axes.grid": True,
        "grid.color": GRID,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        axes = figure.subplots()
        for mark in marks:
            mark(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        names = axes.get_legend_handles_labels()[1]
        if names:  # below the axes, where it hides no curve
            columns = columns_of(names)
            figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
            figure.set_figheight(height + 0.2 * -(-len(names) // columns))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for colour, name in ((BLACK, "currentColor"), (GRID, "var(--grid)")):
        text = text.replace(colour, name)
    return Markup(text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1))


def columns_of(names: Sequence[str]) -> int:
    """Columns of a legend that fit below a chart: characters and a handle's room against its width."""
    return next(n for n in (3, 2, 1) if n == 1 or n * (max(map(len, names)) + 8) <= LEGEND_WIDTH)


def curve(x: Sequence[float], y: Sequence[float], label: str | None = None, **look: Any) -> Mark:
    """Points that a line joins, with error bars where the look has ``xerr`` or ``yerr``; nothing without
    points."""

    def paint(axes: Any) -> None:
        plot = axes.errorbar if {"xerr", "yerr"} & look.keys() else axes.plot
        if len(x):
            plot(x, y, label=label, **look)

    return paint


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], **look: Any) -> list[Mark]:
    """Several lines by name, each in its colour and with its marker."""
    return [
        curve(x, y, name, color=colour, marker=marker, ms=3, **look)
        for (name, (x, y)), (colour, marker) in zip(lines.items(), styles(len(lines)), strict=True)
    ]


def ticks(places: Sequence[float], names: Sequence[str], **look: Any) -> Mark:
    """These ticks alone on the x axis."""

    def paint(axes: Any) -> None:
        axes.set_xticks(places, names, **look)
        axes.set_xticks([], minor=True)

    return paint


def styles(count: int) -> list[tuple[str, str]]:
    """Colour and marker of each of several runs; beyond eight the pairs differ, not the colours."""
    return [(COLOURS[i % 8], MARKERS[(i + i // 8) % 8]) for i in range(count)]


def error_bars(rows: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    """How far the bars go down and up from ``key`` to ``key_low`` and ``key_high``; by rounding alone an end
    can lie on the wrong side. An end that is not known has no bar."""
    return [
        [bar(row[key] - row[f"{key}_low"]) for row in rows],
        [bar(row[f"{key}_high"] - row[key]) for row in rows],
    ]


def bar(length: float) -> float:
    """What matplotlib draws: nothing for NaN."""
    return max(0.0, length) if math.isfinite(length) else math.nan
