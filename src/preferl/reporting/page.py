"""What pages are made of: plots as inline SVG, tables, verdicts, sections, and the one template.

Every page is a single file that loads nothing; everything shown is escaped.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from preferl import __version__
from preferl.runs.files import write_atomically
from preferl.runs.record import StageRecord

# Okabe and Ito's palette: told apart with every kind of colour vision, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
# The same without its yellow, which is faint on white, for several lines; their markers differ too.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", GREY)
MARKERS = "osD^vP*X"
MAX_TEXT = 1200  # characters of a response that a table shows

Stages = dict[str, StageRecord]


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its title and a sentence that reads it, computed from the data."""

    title: str
    svg: Markup
    reading: str


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """``word`` in one or two words, ``tone`` good, plain or bad, ``text`` one paragraph."""

    word: str
    tone: str
    text: str


@dataclass(frozen=True)
class Section:
    """Plots and tables that answer one question; left out where there are none."""

    title: str
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def draw(
    paint: Callable[[Any], None],
    x_label: str,
    y_label: str,
    height: float = 2.9,
    legend_outside: bool = False,
) -> Markup:
    """One small chart as SVG, 4.8 inches wide; text stays text. A long legend stands below it."""
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
        "grid.color": "#e6e6e6",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        lines = len(axes.get_legend_handles_labels()[0])
        if lines > 5 or legend_outside:  # it would hide the curves
            figure.legend(loc="outside lower center", ncols=3, fontsize=8)
            figure.set_figheight(height + 0.2 * -(-lines // 3))
        elif lines:
            axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1))


def series(record: StageRecord, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` (see ``metric``) as a finite number."""
    name = metric(record, key)
    rows = [(row["step"], row[name]) for row in record.metrics if isinstance(row.get(name), int | float)]
    return [step for step, _ in rows], [value for _, value in rows]


def metric(record: StageRecord, key: str) -> str:
    """The name of a metric; ``held-out/…`` is on the split on which this stage was watched."""
    return key.replace("held-out/", f"{record.config.get('eval_split', 'dev')}/")


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, its start corrected."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        out.append(total / norm)
    return out


def estimate(row: dict[str, Any] | None, form: Callable[[float], str]) -> str:
    """An audit's estimate with its interval, or a dash."""
    if row is None or row["value"] is None:
        return "–"
    ends = [form(row[end]) if row[end] is not None else "…" for end in ("low", "high")]
    return f"{form(row['value'])} [{ends[0]},\u00a0{ends[1]}]"


def short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"


def percent(value: float) -> str:
    return f"{100 * value:z.1f}\u00a0%".replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+z.2f}".replace("-", "−")


def signed_percent(value: float) -> str:
    return f"{100 * value:+z.1f}\u00a0%".replace("-", "−")


def two(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−")


def brackets(row: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    """[low, high] of a 95 % interval."""
    return f"[{form(row[key + '_low'])},\u00a0{form(row[key + '_high'])}]"


def section(title: str, makers: Sequence[Callable[[Any], Any]], source: Any) -> Section:
    """A section of what the makers make of a source: a plot, a table, several of them, or None."""
    made = [make(source) for make in makers]
    parts = [part for some in made for part in (some if isinstance(some, list) else [some])]
    plots = [part for part in parts if isinstance(part, Plot)]
    return Section(title, plots, [part for part in parts if isinstance(part, Table)])


def error_bars(rows: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    """How far the bars go down and up from ``key`` to ``key_low`` and ``key_high``; by rounding alone an end
    can lie on the wrong side."""
    return [
        [max(0.0, row[key] - row[f"{key}_low"]) for row in rows],
        [max(0.0, row[f"{key}_high"] - row[key]) for row in rows],
    ]


def write_page(
    path: Path,
    name: str,
    verdict: Verdict,
    facts: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    configs: Sequence[tuple[str, str]],
    made_from: Sequence[str],
    examples: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Writes one page.

    Args:
        path: the file.
        name: of the run, the title.
        verdict: what stands on top.
        facts: the few numbers under it: name, value, interval or unit.
        sections: in their order; empty ones are left out.
        configs: title and YAML of each configuration, folded.
        made_from: what the page was made from, for the last line.
        examples: prompts with both responses, as ``samples.jsonl`` of evaluate has them.
        notes: sentences about the data.
    """
    environment = Environment(loader=PackageLoader("preferl.reporting", "."), autoescape=True)
    text = environment.get_template("page.html").render(
        name=name,
        version=__version__,
        verdict=verdict,
        facts=facts,
        sections=[section for section in sections if section.plots or section.tables],
        examples=examples,
        notes=notes,
        configs=configs,
        made_from=made_from,
    )
    write_atomically(path, text)
    return path
