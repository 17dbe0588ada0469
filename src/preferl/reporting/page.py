"""What pages are made of: plots, tables, verdicts, sections, and the one template.

Every page is a single file that loads nothing; everything shown is escaped. A plot or a table is made by a
maker, a function of runs by name: one run is a mapping with one entry.
"""

import base64
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from preferl import __version__
from preferl.reporting.measures import Runs, Stages
from preferl.runs.files import write_atomically

GENERATOR = '<meta name="generator" content="preferl">'  # by which a page is known as one of preferl's
SHOWN = 10  # prompts, and rows of a long table, that are not folded
LONG = 15  # rows of a table that is not long yet
SHORT = 24  # characters of a cell that is never broken within a word


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


def table(title: str, rows: Sequence[dict[str, str]], note: str = "") -> Table | None:
    """A table of rows whose cells stand under the name of their column; None without rows."""
    head = list(dict.fromkeys(column for row in rows for column in row))
    return (
        Table(title, head, [[row.get(column, "") for column in head] for row in rows], note) if rows else None
    )


Maker = Callable[[Runs], Plot | Table | list[Plot] | None]


def needs(*stages: str, at_least: int = 1) -> Callable[[Maker], Maker]:
    """A maker that makes nothing unless some run has finished these stages; on a page of fewer runs than
    ``at_least`` nothing either."""

    def limit(make: Maker) -> Maker:
        @functools.wraps(make)
        def made(runs: Runs) -> Any:
            there = any(all(stage in finished for stage in stages) for finished in runs.values())
            return make(runs) if there and len(runs) >= at_least else None

        return made

    return limit


def of_one_run(*stages: str) -> Callable[[Callable[[Stages], Any]], Maker]:
    """A maker for the page of one run that has finished these stages: it is made of the run's stages."""

    def limit(make: Callable[[Stages], Any]) -> Maker:
        @needs(*stages)
        @functools.wraps(make)
        def made(runs: Runs) -> Any:
            return make(next(iter(runs.values()))) if len(runs) == 1 else None

        return made

    return limit


def section(title: str, makers: Sequence[Maker], runs: Runs) -> Section:
    """A section of what the makers make of some runs."""
    made = [make(runs) for make in makers]
    parts = [part for some in made for part in (some if isinstance(some, list) else [some])]
    plots = [part for part in parts if isinstance(part, Plot)]
    return Section(title, plots, [part for part in parts if isinstance(part, Table)])


def write_page(
    path: Path,
    name: str,
    verdict: Verdict,
    facts: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    configs: Sequence[tuple[str, str]],
    made_from: Sequence[str],
    examples: Sequence[dict[str, Any]] = (),
    remarks: Sequence[str] = (),
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
        examples: prompts with both responses, as of ``reporting.samples``.
        remarks: sentences under the verdict about what the page is made of.
        notes: sentences about the data.
    """
    environment = Environment(loader=PackageLoader("preferl.reporting", "."), autoescape=True)
    environment.filters["bare"] = bare
    script = script_of_samples() if len(examples) > 1 else ""
    text = environment.get_template("page.html").render(
        name=name,
        generator=Markup(GENERATOR),
        version=__version__,
        verdict=verdict,
        facts=facts,
        sections=[section for section in sections if section.plots or section.tables],
        examples=examples,
        remarks=remarks,
        notes=notes,
        configs=configs,
        made_from=made_from,
        shown=SHOWN,
        fold_from=LONG,
        short=SHORT,
        script=Markup(script),
        script_source=Markup(source_of(script)),
    )
    write_atomically(path, text)
    return path


def script_of_samples() -> str:
    """The page's one script, which filters and sorts the responses."""
    return resources.files("preferl.reporting").joinpath("samples.js").read_text(encoding="utf-8")


def source_of(script: str) -> str:
    """A script as the page's policy names it: this text may run, and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def bare(value: float | None) -> str:
    """A number as an attribute holds it; empty where there is none."""
    return "" if value is None else repr(value)
