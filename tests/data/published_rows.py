"""The rows of data sets as they are published, out of docs/data.md, and what records become of them in
words."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from preferl.data import formats
from preferl.data.files import Table
from preferl.data.records import Comparison, Demonstration, PromptRecord, Rated

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def published() -> list[tuple[str, list[dict[str, Any]], str]]:
    """Layout, rows and what they become, by the table of docs/data.md."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) == 3 and cells[1].startswith("`{"):
            rows = [json.loads(row) for row in re.findall(r"`(\{.*?\})`(?:<br>|$)", cells[1])]
            found.append((cells[0], rows, cells[2]))
    return found


def read(rows: list[dict[str, Any]], **options: Any):
    """Records, and the report of reading them."""
    records, report, _ = formats.load(Table(rows), **options)
    return records, report


def becomes(records: list[Any]) -> str:
    """Records in the words of docs/data.md: ``prompt → best > second = third``."""
    return "; ".join(described(record) for record in records).replace("\n\n", " ⏎ ")


def described(record: Any) -> str:
    asked = record.prompt
    if not isinstance(asked, str):
        asked = " ".join(f"[{turn['role']}] {turn['content']}" for turn in asked)
    match record:
        case Comparison(ranks=ranks, responses=responses, scores=scores):
            order = sorted(range(len(ranks)), key=lambda i: ranks[i])
            text = responses[order[0]]
            for before, i in itertools.pairwise(order):
                text += f" {'=' if ranks[i] == ranks[before] else '>'} {responses[i]}"
            by = f" (by {scores[order[0]] - scores[order[-1]]:.3g})" if scores else ""
            return f"{asked} → {text}{by}"
        case Rated(good=good, ratings=ratings):
            said = ["good" if good else "bad"] if good is not None else []
            said += [f"{name} {value:g}" for name, value in ratings.items()]
            return f"{asked} → {record.response} ({', '.join(said)})"
        case Demonstration():
            return f"{asked} → {record.response}" if asked else record.response
        case PromptRecord():
            return asked
    raise TypeError(record)
