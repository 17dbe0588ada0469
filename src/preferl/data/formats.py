"""Data sets to records and back: the kinds, reading with a policy for defects, a full check, writing,
converting.

Each kind of defect has a policy: ``error`` stops at the row and names it, ``skip`` leaves it out and counts
it. Nothing is left out silently, and a data set of which more than half would be left out is refused. What a
row may look like is in ``rows``, where rows come from in ``files``, which layouts of others are known in
``layouts``; ``recognise`` finds out which one a data set has, by all of its rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from preferl.data import copies
from preferl.data.columns import Options
from preferl.data.containers import read_rows
from preferl.data.files import Row, RowError, Table, write_rows
from preferl.data.layouts import Layout
from preferl.data.named_columns import refuse_absent
from preferl.data.reading import derived, dialect_notes
from preferl.data.recognise import Recognised, recognised
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
from preferl.data.unused import would_count

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
    """What rows in our columns may hold.

    Args:
        read: a row to a record, or RowError.
        layouts: name -> what writes a record as rows; the first is used where none is asked for.
    """

    read: Callable[[dict[str, Any]], Any]
    layouts: Mapping[str, Callable[[Any], Rows]]


KINDS = {
    "preference": Kind(to_pair, PAIR_LAYOUTS | WHOLE_LAYOUTS),
    "ranking": Kind(to_ranking, WHOLE_LAYOUTS | PAIR_LAYOUTS),
    "rated": Kind(to_rated, {"rated": one(rated_row)}),
    "demonstration": Kind(to_demonstration, {"demonstration": one(demonstration_row)}),
    "text": Kind(to_demonstration, {"demonstration": one(demonstration_row)}),
    "prompt": Kind(to_prompt, {"prompt": one(prompt_row)}),
}
COMPARISONS = ("preference", "ranking")
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
    "not_text": "error",
    "bad_role_order": "skip",
    "empty_prompt": "skip",
    "empty_response": "skip",
    "identical_pair": "skip",
    "no_rejected": "skip",
    "different_prompts": "skip",
    "tools_in_response": "skip",
    "called_bad": "skip",
    "broken_tree": "skip",
    "unlabelled": "skip",
    "single_response": "skip",
}
# Rows that are fine and say nothing yet: any share of a data set may be so.
EXCUSED = ("unlabelled", "single_response", "called_bad")


@dataclass
class ReadReport:
    """What reading a data set met. ``left_out`` counts by kind, ``examples`` hold a place and a reason,
    ``notes`` say what was read as what; ``ties`` are comparisons whose responses are all equally good;
    ``answer`` is the file's own name for the column of completions, where it has another than ours.

    Example: ``ReadReport("a.jsonl", 9, 8, {"empty_prompt": 1}, {"empty_prompt": ["a.jsonl:3: …"]})``.
    """

    name: str
    read: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    kind: str = ""
    unit: str = "rows"
    ties: int = 0
    notes: list[str] = field(default_factory=list)
    answer: str | None = None

    def count(self, where: str, error: RowError) -> None:
        self.left_out[error.kind] = self.left_out.get(error.kind, 0) + 1
        examples = self.examples.setdefault(error.kind, [])
        if len(examples) < 5:
            examples.append(f"{where}: {error}")

    def summary(self) -> str:
        """One sentence."""
        text = f"{self.name}: {self.kept} of {self.read} {self.unit} used"
        if self.ties:
            text += f", {self.ties} of them ties"
        if self.left_out:
            counts = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in sorted(self.left_out.items()))
            first = next(iter(self.examples.values()))[0]
            text += f"; left out {sum(self.left_out.values())} ({counts}; for example {first})"
        return text


# -------------------------------------------------------------------------------------------------- reading


class Loaded(NamedTuple):
    """Records, what reading them met, and the rows that they are of, in our columns."""

    records: list[Any]
    report: ReadReport
    rows: list[Row]


def load(
    name: str | Table,
    kind: str = "auto",
    policy: Mapping[str, str] | None = None,
    limit: int | None = None,
    options: Options | None = None,
) -> Loaded:
    """Reads and converts rows.

    Args:
        name: file, folder or Hub name.
        kind: of ``KINDS``; ``auto`` for what the rows are.
        policy: ``error`` or ``skip`` by kind of defect, over ``POLICY``; ``*`` means every other kind.
        limit: use at most so many rows; what they are is found from all.
        options: how to read them, where a person said so.

    Raises:
        DataError: no layout fits or a column that counts would not be used, a row with a defect whose policy
            is ``error``, no row at all, or more than half left out.
    """
    rules = effective_policy(policy or {})
    found = _read(name, kind, limit, options, rules)
    report = found.report
    if report.read == 0:
        raise DataError(f"data set '{name}' has no rows")
    lost = sum(n for kind, n in report.left_out.items() if kind not in EXCUSED)
    if report.kept == 0 or lost * 2 > report.read:
        raise DataError(
            f"{'none of the rows can' if report.kept == 0 else 'more than half of the rows cannot'} be used: "
            f"{report.summary()}; say which column is what (--columns ROLE=COLUMN,…), or mend them "
            f"(`preferl data validate {name}` lists them)"
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
            f"{count:,} of {len(found.records):,} rows repeat an earlier one and count like any other (for "
            f"example {example})"
        )
    return found


def rows_of(name: str | Table, options: Options | None) -> list[Row]:
    """Every row of a data set that may have the columns that a person names.

    Raises:
        DataError: it has not, or there is no such data set.
    """
    if isinstance(name, str) and options is not None:
        refuse_absent(name, options)
    return list(read_rows(name))


def _read(
    name: str | Table, kind: str, limit: int | None, options: Options | None, rules: Mapping[str, str] | None
) -> Loaded:
    """Every row as a record. A defect stops at its row where ``rules`` say so; without rules none does."""
    whole = rows_of(name, options)
    plan = plan_of(name, whole, kind, options)
    ours = derived(whole[:limit], plan)
    read = reader_of(plan, kind)
    found = Loaded([], ReadReport(str(name), unit=ours.unit, answer=plan.layout.answer), [])
    report = found.report
    report.kind = plan.layout.kind if kind == "auto" else kind
    report.notes = [plan.sentence(), *plan.notes, *ours.notes, *dialect_notes(ours.rows)]
    for row in ours.rows:
        report.read += 1
        try:
            record = _converted(row, read)
        except RowError as error:
            if rules is not None and rules[error.kind] == "error":
                held = f"; {plan.held}" if error.kind == "bad_ranking" and plan.held else ""
                if error.kind == "bad_margin":
                    held = "; --columns unused=margin leaves all margins aside"
                raise DataError(
                    f"{row.where}: {error} ({error.kind}){held}; {_way_on(ours.rows, read)}"
                ) from error
            report.count(row.where, error)
            continue
        found.records.append(record)
        found.rows.append(row)
        report.kept += 1
        report.ties += isinstance(record, Comparison) and len(set(record.ranks)) == 1
    return found


def _way_on(rows: Sequence[Row], read: Callable[[dict[str, Any]], Any]) -> str:
    """What to do about a row with a defect: leaving such rows out is no way where most are so."""
    bad = 0
    for row in rows:
        try:
            _converted(row, read)
        except RowError:
            bad += 1
    if bad * 2 <= len(rows):
        return "mend the row, or leave such rows out with --bad_rows skip"
    return (
        f"{bad:,} of {len(rows):,} rows have a defect, too many to leave out: mend them, or say which column "
        f"is what (--columns ROLE=COLUMN,…; docs/data.md)"
    )


def plan_of(name: str | Table, rows: list[Row], kind: str, options: Options | None) -> Recognised:
    """What rows are, by all of them.

    Raises:
        DataError: no layout fits, or a column that counts would not be used.
    """
    options = replace(options or Options(), dataset_format=kind)
    good = [row.value for row in rows if isinstance(row.value, dict)]
    if not good:
        first = next((row for row in rows), None)
        reason = f"has no good row; {first.where}: {first.value}" if first else "has no rows"
        raise DataError(f"data set '{name}' {reason}; `preferl data validate {name}` checks every row")
    if kind == "auto":
        return recognised(str(name), good, options, KINDS)
    # A kind that was named holds, whatever the rows may be besides: pairs are demonstrations of the better
    # one.
    wanted = [COMPARISONS if kind in COMPARISONS else (kind,)]
    wanted += [(*COMPARISONS, "rated")] if kind == "demonstration" else []
    wanted += [("demonstration", *COMPARISONS, "rated")] if kind == "prompt" else []
    first_error = None
    for kinds in wanted:
        try:
            return recognised(str(name), good, options, kinds)
        except DataError as error:
            first_error = first_error or error
    if options.columns or options.winner or options.layout:
        raise first_error or DataError(f"data set '{name}' is not of the kind {kind}")
    return Recognised(Layout("", kind, {kind: kind} if kind in ("prompt", "text") else {}))


def reader_of(plan: Recognised, kind: str) -> Callable[[dict[str, Any]], Any]:
    """What makes a record of a row in our columns: of the rows' own kind, or of the one that was named."""
    read = KINDS[plan.layout.kind].read
    if kind == "demonstration" and plan.layout.kind in (*COMPARISONS, "rated"):
        return lambda row: demonstration_of(read(row))
    if kind == "prompt" and plan.layout.kind != "prompt":
        return lambda row: PromptRecord((record := read(row)).prompt, record.columns)
    return read


def demonstration_of(record: Comparison | Rated) -> Demonstration:
    """What of a record can be imitated: of several responses the best one.

    Raises:
        RowError: it is called bad.
    """
    if isinstance(record, Comparison):
        return Demonstration(record.prompt, record.best(), record.columns)
    if record.good is False:
        raise RowError("called_bad", "its label says that the response is bad")
    return Demonstration(record.prompt, record.response, record.columns)


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


def detect(name: str | Table, options: Options | None = None) -> str:
    """The kind of a data set, by all its rows.

    Raises:
        DataError: there is no good row, no layout fits, or a column that counts would not be used.
    """
    return plan_of(name, rows_of(name, options), "auto", options).layout.kind


def validate(name: str | Table, kind: str = "auto", options: Options | None = None) -> ReadReport:
    """Checks every row and counts every kind of defect; never stops at a bad row.

    Raises:
        DataError: there is no such data set, it has no rows, or its columns fit no layout.
    """
    rows = rows_of(name, options)
    if rows and not any(isinstance(row.value, dict) for row in rows):
        # Where no row can be read, none is converted, and the report is about that.
        report = ReadReport(str(name), len(rows))
        for row in rows:
            assert isinstance(row.value, RowError)
            report.count(row.where, row.value)
        return report
    return _read(name, kind, None, options, None).report


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
    name: str | Table,
    out: Path,
    layout: str | None = None,
    policy: Mapping[str, str] | None = None,
    kind: str = "auto",
    options: Options | None = None,
) -> ReadReport:
    """Reads any kind and writes ours; rows are checked as in ``load``.

    Args:
        name: what to read.
        out: the file to write.
        layout: of comparisons, as in ``write``; in a layout of pairs a ranking becomes all its pairs (ties
            make none). By default rankings stay rankings, pairs are written in the explicit layout.
        policy, kind, options: as in ``load``.
    """
    loaded = load(name, kind, policy, options=options)
    records = [replace(record, columns=aside(record)) for record in loaded.records]
    layouts = KINDS[loaded.report.kind].layouts
    if layout in {**PAIR_LAYOUTS, **WHOLE_LAYOUTS} and layout not in layouts:
        loaded.report.notes.append(
            f"the layout {layout} is of comparisons; there are none, and rows are written as "
            f"{next(iter(layouts))}"
        )
        layout = None
    write(out, records, layout or next(iter(layouts)))
    return loaded.report


def aside(record: Record) -> dict[str, Any]:
    """A record's columns under names by which nobody takes them for labels or responses: ``source_`` goes
    before those. What belongs to a response keeps its name."""
    each = record.each if isinstance(record, Comparison) else ()
    renamed: dict[str, Any] = {}
    for name, value in record.columns.items():
        taken = name in each or not would_count(name) or f"source_{name}" in record.columns
        renamed[name if taken else f"source_{name}"] = value
    return renamed
