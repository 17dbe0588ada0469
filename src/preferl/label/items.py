"""What is there to label: items out of any file of comparisons, out of ``collect``, or out of a stage."""

import dataclasses
from pathlib import Path
from typing import Any

from preferl.data.columns import Options
from preferl.data.containers import named, read_rows
from preferl.data.files import RowError
from preferl.data.formats import load
from preferl.data.records import SPLITS, Comparison, DataError
from preferl.data.rows import to_prompt
from preferl.data.sources import policy_of
from preferl.options.collect import MOST_RESPONSES
from preferl.options.shared import ReadOptions

# What an earlier annotator said, or a simulated one would have: it must not pass for the new one's.
LABELS = (
    "p_chosen",
    "label_mode",
    "label_scale",
    "label_error_rate",
    "label_coin_width",
    "label_position_bias",
    "label_shown",
    "strength",
    "margin",
    "annotator",
    "tied",
)


def read_items(name: str, how: ReadOptions | None = None) -> tuple[list[Comparison], str]:
    """Items, and what was read. Labels that are there already are left behind.

    Args:
        name: a collect stage's directory, or a file, folder or Hub name of comparisons, or of rows with
            ``prompt`` and ``responses`` alone.
        how: how its rows are read.

    Raises:
        DataError: nothing there can be compared.
    """
    path, how = Path(name), how or ReadOptions()
    name = named(name, config=how.config_name, revision=how.revision)
    if path.is_dir() and (path / "data").is_dir():
        found = [str(path / "data" / f"{split}.jsonl") for split in SPLITS]
        parts = [read_items(file, how) for file in found if Path(file).exists() and Path(file).stat().st_size]
        if not parts:
            raise DataError(f"'{name}' holds no rows in data/; give a finished collect stage")
        return [item for part, _ in parts for item in part], "; ".join(text for _, text in parts)
    if unlabelled(name):
        items = [bare_item(row.where, row.value) for row in read_rows(name)]
        return items, f"{name}: {len(items)} rows used"
    loaded = load(name, how.dataset_format, policy_of(how.bad_rows), options=Options(**how.reading()))
    if not loaded.records or not isinstance(loaded.records[0], Comparison):
        raise DataError(
            f"'{name}' holds nothing to compare ({loaded.report.notes[0]}); items need chosen + rejected, or "
            f"prompt + responses: say which columns are so with --columns"
        )
    few = [record for record in loaded.records if len(record.responses) <= MOST_RESPONSES]
    said = "; ".join([loaded.report.summary(), *loaded.report.notes])
    if len(few) < len(loaded.records):
        said += f"; left out {len(loaded.records) - len(few)} with more than {MOST_RESPONSES} responses"
    return [without_label(comparison) for comparison in few], said


def read_gold(name: str, how: ReadOptions | None = None) -> list[Comparison]:
    """Items of known answer: preferences or rankings, whose labels are the answer."""
    how = how or ReadOptions()
    name = named(name, config=how.config_name, revision=how.revision)
    kind = "ranking" if how.dataset_format == "auto" else how.dataset_format
    return load(name, kind, policy_of(how.bad_rows), options=Options(**how.reading())).records


def unlabelled(name: str) -> bool:
    """Whether rows hold responses and nobody has ranked them."""
    first = next(iter(read_rows(name)), None)
    return (
        first is not None
        and isinstance(first.value, dict)
        and "responses" in first.value
        and not {"ranks", "scores"} & set(first.value)
    )


def bare_item(where: str, row: dict[str, Any] | RowError) -> Comparison:
    """A row of ``prompt`` and ``responses``; its ranks mean nothing."""
    try:
        if isinstance(row, RowError):
            raise row
        prompt, responses = to_prompt(row).prompt, row.get("responses")
        if not isinstance(responses, list) or not all(isinstance(r, str) and r.strip() for r in responses):
            raise RowError("wrong_type", "responses must be a list of texts")
        if not 2 <= len(responses) <= MOST_RESPONSES or len(set(responses)) < len(responses):
            raise RowError("bad_ranking", f"an item has 2 to {MOST_RESPONSES} different responses")
    except RowError as error:
        raise DataError(f"{where}: {error} ({error.kind}); mend the row") from error
    columns = {key: value for key, value in row.items() if key not in ("prompt", "responses", *LABELS)}
    return Comparison(prompt, responses, [1] * len(responses), None, columns)


def without_label(comparison: Comparison) -> Comparison:
    columns = {key: value for key, value in comparison.columns.items() if key not in LABELS}
    return dataclasses.replace(
        comparison, ranks=[1] * len(comparison.responses), scores=None, columns=columns
    )
