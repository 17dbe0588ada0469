"""Data sets to records and back: reading with a policy for defects, a full check, writing, converting.

Each kind of defect has a policy: ``error`` stops at the row and names it, ``skip`` leaves it out and counts
it. Nothing is left out silently, and a data set of which more than half would be left out is refused. What a
row may look like is in ``rows``, where rows come from in ``files``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from preferl.data.files import Row, RowError, read_rows, write_rows
from preferl.data.records import DataError, Demonstration, Preference, PromptRecord, Ranking, ranking_of
from preferl.data.rows import (
    LAYOUTS,
    comparison_row,
    demonstration_row,
    preference_row,
    prompt_row,
    ranking_row,
    to_demonstration,
    to_preference,
    to_prompt,
    to_ranking,
)

# Damage stops the reading: something is wrong with the file. Rows that are whole but useless are left out;
# hh-rlhf itself has all of those, also dialogues in which one side speaks twice.
POLICY = {
    "invalid_json": "error",
    "wrong_encoding": "error",
    "not_an_object": "error",
    "missing_column": "error",
    "null_value": "error",
    "wrong_type": "error",
    "bad_margin": "error",
    "bad_ranking": "error",
    "bad_role_order": "skip",
    "empty_prompt": "skip",
    "empty_response": "skip",
    "identical_pair": "skip",
    "different_prompts": "skip",
}
Record = TypeVar("Record")


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

    def count(self, where: str, error: RowError) -> None:
        self.left_out[error.kind] = self.left_out.get(error.kind, 0) + 1
        shown = self.examples.setdefault(error.kind, [])
        if len(shown) < 5:
            shown.append(f"{where}: {error}")

    def summary(self) -> str:
        """One sentence."""
        text = f"{self.name}: {self.kept} of {self.read} rows used"
        if self.left_out:
            counts = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in sorted(self.left_out.items()))
            first = next(iter(self.examples.values()))[0]
            text += f"; left out {sum(self.left_out.values())} ({counts}; for example {first})"
        return text


# -------------------------------------------------------------------------------------------------- reading


def load_preferences(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[Preference], ReadReport]:
    """Preference pairs of a data set; see ``load``."""
    return load(name, to_preference, policy, limit)


def load_rankings(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[Ranking], ReadReport]:
    """Rankings of a data set; see ``load``."""
    return load(name, to_ranking, policy, limit)


def load_demonstrations(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[Demonstration], ReadReport]:
    """Demonstrations of a data set; a plain text has an empty prompt. See ``load``."""
    return load(name, to_demonstration, policy, limit)


def load_prompts(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[PromptRecord], ReadReport]:
    """Prompts of a data set; see ``load``."""
    return load(name, to_prompt, policy, limit)


def load(
    name: str,
    convert_row: Callable[[dict[str, Any]], Record],
    policy: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> tuple[list[Record], ReadReport]:
    """Reads and converts rows.

    Args:
        name: file, folder or Hub name.
        convert_row: a row to a record, or RowError.
        policy: ``error`` or ``skip`` by kind of defect, over ``POLICY``; ``*`` means every other kind.
        limit: read at most so many rows.

    Raises:
        DataError: a row with a defect whose policy is ``error``, no row at all, or more than half left out.
    """
    rules = effective_policy(policy or {})
    report, records = ReadReport(name), []
    for row in read_rows(name):
        if limit is not None and report.read >= limit:
            break
        report.read += 1
        try:
            records.append(_converted(row, convert_row))
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
    return records, report


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


def detect(name: str) -> str:
    """``preference``, ``ranking``, ``demonstration``, ``text`` or ``prompt``, by the first rows' columns.

    Raises:
        DataError: there is no good row, or the columns fit none of them.
    """
    rows, first_error = _first_rows(name)
    if not rows:
        reason = f"has no good row; {first_error}" if first_error else "has no rows"
        raise DataError(f"data set '{name}' {reason}; `preferl data validate {name}` checks every row")
    columns = set().union(*rows)
    if all(_several_texts(row.get(column)) for row in rows for column in ("chosen", "rejected")):
        return "ranking"
    for kind, needed in (
        ("preference", {"chosen", "rejected"}),
        ("ranking", {"prompt", "responses"}),
        ("ranking", {"prompt", "response_a", "response_b", "z"}),
        ("ranking", {"output_1", "output_2", "label"}),
        ("ranking", {"output_1", "output_2", "preference"}),
        ("demonstration", {"messages"}),
        ("demonstration", {"prompt", "completion"}),
        ("text", {"text"}),
        ("prompt", {"prompt"}),
    ):
        if needed <= columns:
            return kind
    raise DataError(
        f"data set '{name}' has the columns {', '.join(sorted(columns)) or 'none'}; preferl reads "
        f"chosen + rejected (+ prompt), prompt + responses + ranks or scores, prompt + response_a + "
        f"response_b + z, output_1 + output_2 + label or preference, messages, prompt + completion, text, or "
        f"prompt: rename the columns"
    )


def _several_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _first_rows(name: str, rows: int = 20) -> tuple[list[dict[str, Any]], str]:
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
    converters: dict[str, Callable[[dict[str, Any]], Any]] = {
        "preference": to_preference,
        "ranking": to_ranking,
        "demonstration": to_demonstration,
        "text": to_demonstration,
        "prompt": to_prompt,
    }
    rows, first_error = _first_rows(name)
    # Where no row can be read, none is converted, and the report is about that.
    kind = "prompt" if not rows and first_error else detect(name)
    report = ReadReport(name)
    for row in read_rows(name):
        report.read += 1
        try:
            _converted(row, converters[kind])
            report.kept += 1
        except RowError as error:
            report.count(row.where, error)
    return report


def _converted(row: Row, convert_row: Callable[[dict[str, Any]], Record]) -> Record:
    if isinstance(row.value, RowError):
        raise row.value
    return convert_row(row.value)


# -------------------------------------------------------------------------------------------------- writing


def write_preferences(path: Path, records: Iterable[Preference], layout: str = "explicit") -> None:
    """Writes .jsonl, .jsonl.gz or .parquet; an existing file is replaced in one step.

    Args:
        path: its ending decides the kind of file.
        records: what to write. Columns named like ours are written with ``source_`` before their name.
        layout: ``explicit`` (prompt, chosen, rejected), ``implicit`` (whole dialogues as messages) or ``hh``
            (whole dialogues as text).

    Raises:
        DataError: another ending, an unknown layout, or records that the kind of file cannot hold.
    """
    write_rows(Path(path), [preference_row(record, layout) for record in records])


ROW_OF = {"ranking": ranking_row, "comparison": comparison_row}


def write_rankings(path: Path, records: Iterable[Ranking], layout: str = "ranking") -> None:
    """Writes ``prompt``, ``responses``, ``ranks`` and ``scores``, or (``comparison``) ``response_a``,
    ``response_b`` and ``z``; see ``write_preferences``."""
    write_rows(Path(path), [ROW_OF[layout](record) for record in records])


def write_demonstrations(path: Path, records: Iterable[Demonstration]) -> None:
    """Writes ``prompt`` and ``completion``, or ``text`` without a prompt; see ``write_preferences``."""
    write_rows(Path(path), [demonstration_row(record) for record in records])


def write_prompts(path: Path, records: Iterable[PromptRecord]) -> None:
    """Writes ``prompt``; see ``write_preferences``."""
    write_rows(Path(path), [prompt_row(record) for record in records])


def convert(
    name: str, out: Path, layout: str | None = None, policy: Mapping[str, str] | None = None
) -> ReadReport:
    """Reads any format and writes ours; rows are checked as in ``load``.

    Args:
        name: what to read.
        out: the file to write.
        layout: of comparisons: ``ranking``, ``comparison`` (rankings of two, with ``z``), or a layout of
            pairs (``explicit``, ``implicit``, ``hh``), in which a ranking becomes all its pairs (ties make
            none). Default: rankings stay rankings, pairs are written in the explicit layout.
        policy: as in ``load``.
    """
    kind = detect(name)
    if kind == "ranking":
        rankings, report = load_rankings(name, policy)
        if layout in (None, *ROW_OF):
            write_rankings(out, rankings, layout or "ranking")
        else:
            write_preferences(out, [pair for ranking in rankings for pair in ranking.pairs()], layout)
    elif kind == "preference":
        pairs, report = load_preferences(name, policy)
        if layout in ROW_OF:
            write_rankings(out, [ranking_of(pair) for pair in pairs], layout)
        else:
            write_preferences(out, pairs, layout or LAYOUTS[0])
    elif kind == "prompt":
        prompts, report = load_prompts(name, policy)
        write_prompts(out, prompts)
    else:
        demonstrations, report = load_demonstrations(name, policy)
        write_demonstrations(out, demonstrations)
    return report
