"""What mkdocs.yml cannot say."""

import re
from typing import Any

ITEM = re.compile(r"([-*]|\d+\.) ")


def on_page_markdown(markdown: str, **_: Any) -> str:
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
