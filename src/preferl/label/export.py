"""Judgements as data sets: every layout that the stages read, with who said it, when and how.

What comes out is what annotators were asked for: items of known answer and repeats are left out. Ties are
kept by the layouts that can hold them (``ranking``, ``comparison``, ``csv``); pairs leave them out.
"""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from preferl.data import formats
from preferl.data.files import write_rows
from preferl.data.records import Comparison, dialogue_text, per_response, ranks_of_scores
from preferl.data.rows import STRENGTHS, provenance
from preferl.label.judgements import Item, StoredJudgement, labels, read_items, read_judgements, table_of
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from preferl.runs.files import write_atomically
from preferl.statistics import agreement

FORMATS = (*formats.PAIR_LAYOUTS, *formats.WHOLE_LAYOUTS, "csv")
AGGREGATES = ("none", "majority", "dawid_skene")
KINDS = ("human", "sim", "all")
# What a spreadsheet would take for a formula (OWASP, "CSV injection").
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def records(store: Store, aggregate: str = "none", kind: str = "human") -> list[Comparison]:
    """The judgements as rankings with their provenance.

    Args:
        store: the project.
        aggregate: ``none``: each judgement by itself; ``majority``: one an item, what most said (of more than
            two responses: by their mean places); ``dawid_skene``: one an item, annotators weighed by the
            error rates that the model of Dawid and Skene finds.
        kind: ``human``, ``sim`` or ``all``.

    Raises:
        UsageError: an unknown choice, or no judgement.
    """
    for name, value, known in (("aggregate", aggregate, AGGREGATES), ("kind", kind, KINDS)):
        if value not in known:
            raise UsageError(f"{name} '{value}' is unknown; use {', '.join(known)}")
    with store.database.read() as connection:
        found, texts = read_judgements(connection), read_items(connection)
    wanted = (labels(found) if kind != "sim" else []) + (labels(found, "sim") if kind != "human" else [])
    if aggregate == "none":
        return [one_judgement(j, texts[j.item_id]) for j in wanted]
    groups: dict[int, list[StoredJudgement]] = defaultdict(list)
    for j in wanted:
        groups[j.item_id].append(j)
    if aggregate == "majority":
        return [by_majority(groups[key], texts[key]) for key in sorted(groups)]
    return by_dawid_skene(wanted, texts)


def one_judgement(j: StoredJudgement, item: Item) -> Comparison:
    """A judgement with what was said about it. A strength s of a pair is a margin of |s| / 3."""
    ranks = j.ranks or []
    columns: dict[str, Any] = {
        "annotator": j.annotator,
        "annotator_kind": j.kind,
        "item": j.item_id,
        "judgement": j.id,
        # One number a response, so that pairs of it take theirs along.
        "shown_at": [j.order.index(i) + 1 for i in range(len(j.order))],
        "both_bad": j.both_bad,
        "flagged": j.flagged,
        "reason": j.reason,
        "seconds": round(j.seconds, 3),
        "judged_at": datetime.fromtimestamp(j.at, UTC).isoformat(timespec="seconds"),
        "selected": j.selected,
        "source": "preferl label",
    }
    scores = None
    if j.strength:
        columns["strength"] = abs(j.strength)
        margin = abs(j.strength) / STRENGTHS
        scores = [margin, 0.0] if j.strength > 0 else [0.0, margin]
    return ranking(item, ranks, scores, columns)


def ranking(item: Item, ranks: list[int], scores: list[float] | None, columns: dict[str, Any]) -> Comparison:
    """With the item's own columns, under ``source_…`` where ours have the same name."""
    own = provenance(item.columns, tuple(columns)) | columns
    each = per_response(own, len(item.responses))
    return Comparison(item.prompt, item.responses, ranks, scores, own, each)


def by_majority(group: Sequence[StoredJudgement], item: Item) -> Comparison:
    """One ranking out of several: of pairs what most said (a tie where as many said otherwise), of more
    responses the order of their mean places (Borda's count; tied responses share the mean of theirs)."""
    columns = summary(group, "majority")
    if len(item.responses) > 2:
        mean_K = np.mean([middle_places(j.ranks or []) for j in group], axis=0)
        return ranking(item, ranks_of_scores([-round(float(place), 9) for place in mean_K]), None, columns)
    votes = Counter(choice for j in group for _, choice in j.choices())
    most = [choice for choice, count in votes.items() if count == max(votes.values())]
    choice = most[0] if len(most) == 1 else 0
    # Many weak votes can stand against a strong one: then the mean strength says nothing about the winner.
    margin = choice * float(np.mean([j.strength or 0 for j in group])) / STRENGTHS
    scores = None
    if choice and margin > 0:
        scores = [margin, 0.0] if choice > 0 else [0.0, margin]
    return ranking(item, {1: [1, 2], 0: [1, 1], -1: [2, 1]}[choice], scores, columns)


def middle_places(ranks: Sequence[int]) -> list[float]:
    """Places in which tied responses share the mean of theirs: 1, 2, 2 becomes 1, 2.5, 2.5."""
    return [rank + (ranks.count(rank) - 1) / 2 for rank in ranks]


def by_dawid_skene(judgements: Sequence[StoredJudgement], texts: dict[int, Item]) -> list[Comparison]:
    """One ranking an item. Pairs take the most probable of better, tie and worse, with its ``probability``;
    more responses are ordered by their expected wins against the others."""
    table = table_of(judgements)
    try:
        fit = agreement.dawid_skene(table.choice_AU)
    except agreement.Undefined as error:
        raise UsageError(f"dawid_skene: {error}") from error
    # Back into each item's own order: P(choice) of every pair of responses.
    posterior = {
        unit: dict(zip(fit.values_C * turn, probability_C, strict=True))
        for unit, turn, probability_C in zip(table.units, table.turn_U, fit.posterior_UC, strict=True)
    }
    groups: dict[int, list[StoredJudgement]] = defaultdict(list)
    for j in judgements:
        groups[j.item_id].append(j)
    found = []
    for key in sorted(groups):
        item, columns = texts[key], summary(groups[key], "dawid_skene")
        K = len(item.responses)
        if K == 2:
            choice, probability = max(posterior[key, 0, 1].items(), key=lambda entry: entry[1])
            ranks = {1: [1, 2], 0: [1, 1], -1: [2, 1]}[int(choice)]
            columns["probability"] = round(float(probability), 6)
        else:
            wins_K = np.zeros(K)
            for i in range(K):
                for k in range(i + 1, K):
                    expected = sum(p * (choice + 1) / 2 for choice, p in posterior[key, i, k].items())
                    wins_K[i] += expected
                    wins_K[k] += 1 - expected
            ranks = ranks_of_scores([round(float(w), 9) for w in wins_K])
        found.append(ranking(item, ranks, None, columns))
    return found


def summary(group: Sequence[StoredJudgement], how: str) -> dict[str, Any]:
    return {
        "item": group[0].item_id,
        "annotator": how,
        "annotators": ", ".join(j.annotator for j in group),
        "judgements": len(group),
        "both_bad": sum(j.both_bad for j in group) * 2 > len(group),
        "flagged": any(j.flagged for j in group),
        "source": "preferl label",
    }


def rows_of(rankings: Iterable[Comparison], layout: str) -> list[dict[str, Any]]:
    """Comparisons as rows of a layout.

    Raises:
        UsageError: an unknown layout.
        DataError: the layout cannot hold the records.
    """
    if layout not in FORMATS:
        raise UsageError(f"layout '{layout}' is unknown; use {', '.join(FORMATS)}")
    if layout == "csv":
        return [flat_row(record) for record in rankings]
    return [row for record in rankings for row in formats.KINDS["ranking"].layouts[layout](record)]


def flat_row(record: Comparison) -> dict[str, Any]:
    """A row for spreadsheets: texts and numbers only."""
    row: dict[str, Any] = {"prompt": dialogue_text(record.prompt)}
    for i, response in enumerate(record.responses, 1):
        row |= {f"response_{i}": response, f"rank_{i}": record.ranks[i - 1]}
    for name, value in record.columns.items():
        plain = isinstance(value, str | int | float) or value is None
        row.setdefault(name, value if plain else json.dumps(value, ensure_ascii=False))
    return row


def safe_cell(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV (RFC 4180); written with a byte order mark, without which Excel takes UTF-8 for Latin-1."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([safe_cell(name) for name in names])
    for row in rows:
        writer.writerow([safe_cell(row.get(name, "")) for name in names])
    return out.getvalue()


def write(store: Store, path: Path, layout: str, aggregate: str = "none", kind: str = "human") -> int:
    """Writes a file; returns its number of rows.

    Raises:
        UsageError: nothing was judged yet, or an unknown choice.
        DataError: the file's ending or the layout cannot hold the rows.
    """
    rows = rows_of(records(store, aggregate, kind), layout)
    if not rows:
        raise UsageError("there is no judgement to export yet")
    if layout == "csv":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, csv_text(rows), encoding="utf-8-sig", newline="")
    else:
        write_rows(path, rows)
    return len(rows)


def as_bytes(
    store: Store, layout: str, aggregate: str = "none", kind: str = "human"
) -> tuple[bytes, str, str]:
    """The judgements for a browser: content, media type and the file's ending."""
    rows = rows_of(records(store, aggregate, kind), layout)
    if layout == "csv":
        return csv_text(rows).encode("utf-8-sig"), "text/csv; charset=utf-8", "csv"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lines.encode(), "application/x-ndjson; charset=utf-8", "jsonl"
