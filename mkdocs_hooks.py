"""What mkdocs.yml cannot say: lists as on GitHub, commands that are copied without what they print, and the
tables of options, which are made from the dataclasses."""

import dataclasses
import html
import re
import typing
from typing import Any

from preferl.options.defaults import rules
from preferl.options.help import AT_HAND, GROUPS, default_of, said
from preferl.pipeline import KINDS, RunOptions
from preferl.runs.config import parser_for
from preferl.runs.ranges import Range, ranges_of, without_ranges
from preferl.sweep.plan import SweepOptions

ITEM = re.compile(r"([-*]|\d+\.) ")
CONSOLE = re.compile(r'<div class="language-console highlight">(.*?)</div>', re.S)
TITLES = {"run": "run, demo", "sweep": "sweep: options under `sweep`"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "options.md":
        markdown += "\n".join(["", *tables_of_options()])
    return lists_as_on_github(markdown)


def lists_as_on_github(markdown: str) -> str:
    """A list may follow a paragraph without a blank line, as on GitHub: Python-Markdown wants one."""
    lines, fenced, listed = [], False, False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        item = not fenced and ITEM.match(line) is not None
        if item and not listed and lines and lines[-1]:
            lines.append("")
        listed = item or (listed and bool(line))
        lines.append(line)
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- copying


def on_page_content(content: str, **_: Any) -> str:
    """The button of a console block copies its commands alone: the theme takes ``data-copy`` where it is."""
    return CONSOLE.sub(with_commands, content)


def with_commands(block: re.Match[str]) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", "", block[1]))
    commands = html.escape(commands_in(text)).replace("\n", "&#10;")
    return block[0].replace("<div", f'<div data-copy="{commands}"', 1)


def commands_in(console: str) -> str:
    """What follows the ``$`` of a console's text, with the lines in which a command goes on.

    Example:
        >>> commands_in("$ ls a \\\\\\n    b\\na  b\\n$ pwd\\n/")
        'ls a \\\\\\n    b\\npwd'
    """
    found, goes_on = [], False
    for line in console.splitlines():
        if goes_on or line.startswith("$ "):
            found.append(line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return "\n".join(found)


# --------------------------------------------------------------------------------------------------- options


def tables_of_options() -> list[str]:
    """A section with a table for every kind of stage, for a run and for a sweep."""
    lines = []
    for kind, options in {**KINDS, "run": RunOptions, "sweep": SweepOptions}.items():
        lines += ["", f"## {TITLES.get(kind, kind)}", ""]
        lines += ["| option | type | default | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows_of(kind, options)]
    return lines


def rows_of(kind: str, options: type) -> list[list[str]]:
    """Name, type, default (or the rule that decides it) and text of each option, in Markdown; those that
    people change come first."""
    usual = [name for names in GROUPS.get(kind, {}).values() for name in names]
    fields = {field.name: field for field in dataclasses.fields(options)}
    parser = parser_for(options, kind, "", ["--help"])  # with the texts below the fields
    texts = {action.dest: action.help or "" for action in parser._actions}
    types, ranges, by_rule = typing.get_type_hints(options), ranges_of(options), rules(kind)
    rows = []
    for name in dict.fromkeys([*usual, *fields]):
        default = said(default_of(fields[name]))
        rows.append(
            [
                f"`{name}`",
                type_of(types[name], ranges.get(name)),
                by_rule.get(name) or (f"`{default}`" if default else "–"),
                with_links(texts[name].replace(AT_HAND, "")),
            ]
        )
    return rows


def type_of(hint: Any, range_: Range | None) -> str:
    """A type, and which numbers of it an option can be."""
    text = without_ranges(hint).replace("typing.", "")
    text = re.sub(r"Union\[(\w+), Literal\['(\w+)'\]\]", r"\1 | \2", text)
    if range_ is None or str(range_) == "finite":
        return f"`{text}`"
    return f"`{text}`, {'0 or more' if range_.high == 2**64 - 1 else range_}"


def with_links(text: str) -> str:
    """A text for a cell of a table: pages become links, and no sign ends the cell."""
    text = re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", " ".join(text.split()))
    parts = re.split(r"(``.*?``)", text)  # in code a | is no border
    return "".join(part if part.startswith("``") else part.replace("|", "&#124;") for part in parts)
