"""Data sets to records and back: one table of kinds, reading with a policy for defects, a full check,
writing, converting.

Each kind of defect has a policy: ``error`` stops at the row and names it, ``skip`` leaves it out and counts
it. Nothing is left out silently, and a data set of which more than half would be left out is refused. What a
row may look like is in ``rows``, where rows come from in ``files``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from preferl.data import copies
from preferl.data.containers import read_rows
from preferl.data.files import Row, RowError, Table, write_rows
from preferl.data.records import (
    Comparison,
    DataError,
    Demonstration,
    Pair,
    PromptRecord,
    Rated,
)
from preferl.data.rows import (
    demonstration_row,
    explicit_row,
    hh_row,
    implicit_row,
    outcome_row,
    prompt_row,
    ranking_row,
    rated_row,
    to_demonstration,
    to_pair,
    to_prompt,
    to_ranking,
    to_rated,
)

Record = Comparison | Rated | Demonstration | PromptRecord
Rows = Iterable[dict[str, Any]]


def of_pairs(row_of: Callable[[Pair], dict[str, Any]]) -> Callable[[Comparison], Rows]:
    """A layout of pairs: a row for every ordered pair of a comparison."""

    def rows(comparison: Comparison) -> Rows:
        return [row_of(pair) for pair in comparison.pairs()]

    return rows


def one(row_of: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Rows]:
    """A layout with one row for each record."""

    def rows(record: Any) -> Rows:
        return [row_of(record)]

    return rows


PAIR_LAYOUTS = {
    "explicit": of_pairs(explicit_row),
    "implicit": of_pairs(implicit_row),
    "hh": of_pairs(hh_row),
}
WHOLE_LAYOUTS = {"ranking": one(ranking_row), "comparison": one(outcome_row)}


@dataclass(frozen=True)
class Kind:
    """What rows may hold.

    Args:
        columns: sets of columns; a data set of this kind has all of one of them.
        read: a row to a record, or RowError.
        layouts: name -> what writes a record as rows; the first is used where none is asked for.
        when: what the values of its rows must be besides.
    """

    columns: tuple[frozenset[str], ...]
    read: Callable[[dict[str, Any]], Any]
    layouts: Mapping[str, Callable[[Any], Rows]]
    when: Callable[[list[dict[str, Any]]], bool] = bool

    def fits(self, rows: list[dict[str, Any]]) -> bool:
        """Whether rows are of this kind."""
        there = set().union(*rows)
        return any(needed <= there for needed in self.columns) and self.when(rows)


def lists_of_texts(rows: list[dict[str, Any]]) -> bool:
    """Several better and several worse responses (RM-Bench, RewardBench 2)."""
    return all(is_texts(row.get("chosen")) and is_texts(row.get("rejected")) for row in rows)


def is_texts(value: Any) -> bool:
    """Whether it is a list of one text or more; messages are no texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def rates(rows: list[dict[str, Any]]) -> bool:
    """Good or bad, or numbers by attribute; a label of another type is any column."""
    return all(isinstance(row.get("label"), bool) or isinstance(row.get("ratings"), dict) for row in rows)


def columns(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in sets)


# In the order in which they are tried on the first rows of a data set.
KINDS = {
    "preference": Kind(
        columns("chosen rejected"),
        to_pair,
        PAIR_LAYOUTS | WHOLE_LAYOUTS,
        when=lambda rows: not lists_of_texts(rows),
    ),
    "ranking": Kind(
        columns(
            "chosen rejected",
            "prompt responses",
            "prompt response_a response_b z",
            "output_1 output_2 label",
            "output_1 output_2 preference",
        ),
        to_ranking,
        WHOLE_LAYOUTS | PAIR_LAYOUTS,
    ),
    "rated": Kind(
        columns("prompt completion label", "prompt completion ratings"),
        to_rated,
        {"rated": one(rated_row)},
        when=rates,
    ),
    "demonstration": Kind(
        columns("messages", "prompt completion"), to_demonstration, {"demonstration": one(demonstration_row)}
    ),
    "text": Kind(columns("text"), to_demonstration, {"demonstration": one(demonstration_row)}),
    "prompt": Kind(columns("prompt"), to_prompt, {"prompt": one(prompt_row)}),
}
# The kind as which records are written, where nobody says another.
KIND_OF = {Comparison: "ranking", Rated: "rated", Demonstration: "demonstration", PromptRecord: "prompt"}

# Damage stops the reading: something is wrong with the file. Rows that are whole but useless are left out;
# hh-rlhf itself has all of those, also dialogues in which one side speaks twice.
POLICY = {
    "invalid_json": "error",
    "wrong_encoding": "error",
    "not_an_object": "error",
    "wrong_cells": "error",
    "missing_column": "error",
    "null_value": "error",
    "wrong_type": "error",
    "bad_margin": "error",
    "bad_ranking": "error",
    "bad_role_order": "skip",
    "empty_prompt": "skip",
    "empty_response": "skip",
    "identical_pair": "skip",
    "no_rejected": "skip",
    "different_prompts": "skip",
}


@dataclass
class ReadReport:
    """What reading a data set met. ``left_out`` counts by kind, ``examples`` hold a place and a reason.

    Example: ``ReadReport("a.jsonl", 9, 8, {"empty_prompt": 1}, {"empty_prompt": ["a.jsonl:3: …"]})``.
    """

    name: str
    read: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, where: str, error: RowError) -> None:
        self.left_out[error.kind] = self.left_out.get(error.kind, 0) + 1
        examples = self.examples.setdefault(error.kind, [])
        if len(examples) < 5:
            examples.append(f"{where}: {error}")

    def summary(self) -> str:
        """One sentence."""
        text = f"{self.name}: {self.kept} of {self.read} rows used"
        if self.left_out:
            counts = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in sorted(self.left_out.items()))
            first = next(iter(self.examples.values()))[0]
            text += f"; left out {sum(self.left_out.values())} ({counts}; for example {first})"
        return text


# -------------------------------------------------------------------------------------------------- reading


class Loaded(NamedTuple):
    """Records, what reading them met, and the rows that they are of."""

    records: list[Any]
    report: ReadReport
    rows: list[Row]


def load(
    name: str | Table, kind: str = "auto", policy: Mapping[str, str] | None = None, limit: int | None = None
) -> Loaded:
    """Reads and converts rows.

    Args:
        name: file, folder or Hub name.
        kind: of ``KINDS``; ``auto`` for what ``detect`` finds.
        policy: ``error`` or ``skip`` by kind of defect, over ``POLICY``; ``*`` means every other kind.
        limit: read at most so many rows.

    Raises:
        DataError: a row with a defect whose policy is ``error``, no row at all, or more than half left out.
    """
    rules = effective_policy(policy or {})
    read = KINDS[detect(name) if kind == "auto" else kind].read
    found = Loaded([], ReadReport(str(name)), [])
    report = found.report
    for row in read_rows(name):
        if limit is not None and report.read >= limit:
            break
        report.read += 1
        try:
            found.records.append(_converted(row, read))
            found.rows.append(row)
            report.kept += 1
        except RowError as error:
            if rules[error.kind] == "error":
                raise DataError(
                    f"{row.where}: {error} ({error.kind}); mend the row, or leave such rows out with "
                    f"--bad_rows skip"
                ) from error
            report.count(row.where, error)
    if report.read == 0:
        raise DataError(f"data set '{name}' has no rows")
    if report.kept * 2 < report.read:
        raise DataError(
            f"more than half of the rows cannot be used: {report.summary()}; "
            f"`preferl data validate {name}` lists them"
        )
    return counted_once(found)


def counted_once(found: Loaded) -> Loaded:
    """The same without the files that repeat others; those and rows that repeat others are said."""
    if written_by_us(found.report.name):  # whatever a stage repeats, it means
        return found
    notes = found.report.notes
    repeated = copies.repeated_files(found.records, found.rows)
    if repeated:
        kept = [i for i, row in enumerate(found.rows) if row.file not in repeated]
        records, rows = [found.records[i] for i in kept], [found.rows[i] for i in kept]
        found = found._replace(records=records, rows=rows)
        found.report.kept = len(kept)
        for file, count in repeated.items():
            notes.append(f"left out the {count:,} rows of {file}: other files have all of them")
    count, example = copies.repeated_rows(found.records, found.rows)
    if count:
        notes.append(
            f"{count:,} of {len(found.records):,} rows repeat an earlier one (for example {example})"
        )
    return found


def written_by_us(name: str) -> bool:
    """Whether it is a stage's directory: its rows and splits are what the stage made, and complete."""
    return (Path(name) / "manifest.json").exists()


def effective_policy(policy: Mapping[str, str]) -> dict[str, str]:
    """``POLICY`` with changes.

    Raises:
        DataError: an unknown kind or an unknown rule.
    """
    for kind, rule in policy.items():
        if rule not in ("error", "skip") or (kind != "*" and kind not in POLICY):
            raise DataError(
                f"row policy {kind}: {rule} is unknown; kinds are {', '.join(POLICY)} or *, "
                f"rules are error and skip"
            )
    return {kind: policy.get(kind, policy.get("*", rule)) for kind, rule in POLICY.items()}


def detect(name: str | Table) -> str:
    """The kind of a data set by the columns of its first rows.

    Raises:
        DataError: there is no good row, or the columns fit none of them.
    """
    rows, first_error = _first_rows(name)
    if not rows:
        reason = f"has no good row; {first_error}" if first_error else "has no rows"
        raise DataError(f"data set '{name}' {reason}; `preferl data validate {name}` checks every row")
    for name_of_kind, kind in KINDS.items():
        if kind.fits(rows):
            return name_of_kind
    raise DataError(
        f"data set '{name}' has the columns {', '.join(sorted(set().union(*rows))) or 'none'}; preferl reads "
        f"chosen + rejected (+ prompt), prompt + responses + ranks or scores, prompt + response_a + "
        f"response_b + z, output_1 + output_2 + label or preference, prompt + completion (+ label or "
        f"ratings), messages, text, or prompt: rename the columns"
    )


def _first_rows(name: str | Table, rows: int = 20) -> tuple[list[dict[str, Any]], str]:
    """The first good rows, and the first bad row's defect."""
    good, first_error = [], ""
    for row in read_rows(name):
        if isinstance(row.value, dict):
            good.append(row.value)
        else:
            first_error = first_error or f"{row.where}: {row.value}"
        if len(good) == rows:
            break
    return good, first_error


def validate(name: str) -> ReadReport:
    """Checks every row and counts every kind of defect; never stops at a bad row.

    Raises:
        DataError: there is no such data set, it has no rows, or its columns fit no format.
    """
    rows, first_error = _first_rows(name)
    # Where no row can be read, none is converted, and the report is about that.
    kind = "prompt" if not rows and first_error else detect(name)
    report = ReadReport(name)
    for row in read_rows(name):
        report.read += 1
        try:
            _converted(row, KINDS[kind].read)
            report.kept += 1
        except RowError as error:
            report.count(row.where, error)
    return report


def _converted(row: Row, read: Callable[[dict[str, Any]], Any]) -> Any:
    if isinstance(row.value, RowError):
        raise row.value
    return read(row.value)


# -------------------------------------------------------------------------------------------------- writing


def write(path: Path, records: Iterable[Record | Pair], layout: str | None = None) -> None:
    """Writes .jsonl, .jsonl.gz or .parquet; an existing file is replaced in one step.

    Args:
        path: its ending decides the kind of file.
        records: what to write. Columns named like ours are written with ``source_`` before their name.
        layout: of comparisons: ``explicit`` (prompt, chosen, rejected; what pairs have by default),
            ``implicit`` (whole dialogues as messages), ``hh`` (whole dialogues as text), ``ranking``
            (responses, ranks) or ``comparison`` (two responses with ``z``).

    Raises:
        DataError: another ending, an unknown layout, or records that the kind of file cannot hold.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        if isinstance(record, Pair):
            layouts, record = KINDS["preference"].layouts, record.comparison()
        else:
            layouts = KINDS[KIND_OF[type(record)]].layouts
        chosen = layout or next(iter(layouts))
        if chosen not in layouts:
            raise DataError(f"layout '{chosen}' is unknown; use {', '.join(layouts)}")
        rows += layouts[chosen](record)
    write_rows(Path(path), rows)


def convert(
    name: str, out: Path, layout: str | None = None, policy: Mapping[str, str] | None = None
) -> ReadReport:
    """Reads any kind and writes ours; rows are checked as in ``load``.

    Args:
        name: what to read.
        out: the file to write.
        layout: of comparisons, as in ``write``; in a layout of pairs a ranking becomes all its pairs (ties
            make none). By default rankings stay rankings, pairs are written in the explicit layout.
        policy: as in ``load``.
    """
    kind = detect(name)
    records, report, _ = load(name, kind, policy)
    write(out, records, layout or next(iter(KINDS[kind].layouts)))
    return report
