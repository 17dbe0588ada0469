"""A run in Markdown, for pull requests and notes: its verdict, its few numbers and its first tables."""

import html
from collections.abc import Sequence

from preferl.reporting.page import Section, Table, Verdict

POINTS = "Table and curves"  # of a sweep
SECTIONS = (POINTS, "Rewards side by side", "Did it work?")  # whose tables are shown; the page has the rest
RESPONSES = "The same prompts"  # a table of what models wrote


def summary(
    name: str,
    verdict: Verdict,
    facts: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    remarks: Sequence[str] = (),
) -> str:
    """The text. Everything is escaped: names and cells can be what a model or a person wrote.

    Args:
        name: of the run, or of several.
        verdict: of the run.
        facts: name, value, and interval or unit.
        sections: of the page.
        remarks: sentences about what it is made of.
    """
    parts = [f"## {cell(name)}: {cell(verdict.word)}", cell(verdict.text)]
    parts += [rows(("", "", ""), facts)] if facts else []
    shown = [part for section in sections if section.title in SECTIONS for part in section.tables]
    parts += [of_table(part) for part in shown if part.title != RESPONSES]
    return "\n\n".join([*parts, *map(cell, remarks)]) + "\n"


def of_table(table: Table) -> str:
    """A table under its title, with its note."""
    text = f"**{cell(table.title)}**\n\n{rows(table.head, table.rows)}"
    return f"{text}\n\n{cell(table.note)}" if table.note else text


def rows(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of cells."""
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line; brackets are those of an interval and never a link."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    marked = "".join(f"\\{letter}" if letter in "|*_`#~\\" else letter for letter in escaped)
    return marked.replace("](", "]\\(")
