"""The data that a model was made from, as a data set of its own to share: rows as they are, with pseudonyms
for the people who labelled them.

Only what lies on this disk is shared: what stages of the run wrote, and files of a person's own. What is on
the Hub already is named and not copied. Free text (prompts, responses, reasons) stands as it was written:
nobody can tell by rule what in it is private, and the card says so.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferl import __version__
from preferl.data.containers import own_split, read_rows
from preferl.data.files import RowError
from preferl.reporting.markdown import cell, rows
from preferl.runs.errors import UsageError
from preferl.runs.inputs import seen_from
from preferl.share.private import Private, texts_in
from preferl.share.subject import Subject

# How columns that hold who labelled end, after what may follow a name.
PEOPLE = ("annotator", "annotators", "worker", "rater", "labeler", "labeller", "email")
AFTER_PEOPLE = ("id", "ids", "name", "names", "chosen", "rejected", "a", "b")
COLLECTIVE = ("majority", "dawid_skene")  # who labelled where `preferl label export` put several together
WITH_DATA = ("collect", "best_of")  # kinds of stages that write data


class Pseudonyms:
    """``annotator-1``, ``annotator-2``, … in the order in which people come.

    Args:
        machines: names of annotators that are no people.
    """

    def __init__(self, machines: Iterable[str] = ()):
        self.machines = {"world", *COLLECTIVE, *machines}
        self.of: dict[str, str] = {}

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row without names of people."""
        return {
            column: self._value(value) if is_of_people(column) else value for column, value in row.items()
        }

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(one) for one in value]
        if isinstance(value, str) and ", " in value:  # several, as `preferl label export` writes them
            return ", ".join(self._value(one) for one in value.split(", "))
        text = "" if value is None else str(value)
        if not text or text in self.machines:
            return value
        return self.of.setdefault(text, f"annotator-{len(self.of) + 1}")


def is_of_people(column: str) -> bool:
    """Whether a column says who labelled, by its name.

    Example:
        >>> [is_of_people(name) for name in ("annotator", "workerId", "annotator_kind")]
        [True, True, False]
    """
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
    while len(words) > 1 and words[-1] in AFTER_PEOPLE:
        words.pop()
    return bool(words) and words[-1] in PEOPLE


@dataclass(frozen=True)
class Part:
    """Rows that were written to one file: of ``source``, of a ``split``, so many, at ``path`` in the
    repository."""

    source: str
    split: str
    rows: int
    path: str
    file: Path


def sources(subject: Subject) -> dict[str, Path]:
    """Name -> place of the data on this disk that a model was made from."""
    found: dict[str, Path] = {}
    for _, record in subject.steps():
        if record.kind in WITH_DATA:
            found[record.path.name] = record.path
    for data in subject.data():
        if data.place is not None:
            name = re.sub(r"[^\w.-]+", "-", data.place.name.split(".")[0]) or "data"
            free, count = name, 2
            while free in found:
                free, count = f"{name}-{count}", count + 1
            found[free] = data.place
    return found


def write(subject: Subject, folder: Path) -> tuple[list[Part], Pseudonyms]:
    """Writes the rows, a file for every split of every source.

    Raises:
        UsageError: there is no data to share, or a row holds something that must not leave this machine.
    """
    people = Pseudonyms(machines_of(subject))
    parts: list[Part] = []
    for name, place in sources(subject).items():
        of_splits: dict[str, list[dict[str, Any]]] = {}
        for where, split, row in rows_of(place):
            shared = with_names(people.row(row), subject.private)
            refuse_private(where, shared, subject.private)
            of_splits.setdefault(split, []).append(shared)
        for split, found in of_splits.items():
            path = f"{name}/{split}.jsonl"
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "w", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in found)
            parts.append(Part(name, split, len(found), path, file))
    if not parts:
        raise UsageError(
            f"{subject.run}: there is no data to share: all that it was made from is on the Hub or embedded; "
            f"leave out --with_data"
        )
    return parts, people


def machines_of(subject: Subject) -> Iterator[str]:
    """What labelled in the stages of the run, as an option names it and as the stage writes it."""
    for _, record in subject.steps():
        name = record.config.get("annotator")
        if record.kind == "collect" and name is not None:
            yield name
            yield seen_from(record.path, name)


def rows_of(place: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, split and content of every row that can be read."""
    for row in read_rows(str(place)):
        if not isinstance(row.value, RowError):
            split = own_split(row) or "train"
            yield row.where, re.sub(r"[^\w.-]+", "-", split), row.value


def with_names(row: dict[str, Any], private: Private) -> dict[str, Any]:
    """A row in whose ``source`` and ``annotator``, as stages write them, names stand in place of paths."""
    changed = {
        key: private.clean(row[key]) for key in ("source", "annotator") if isinstance(row.get(key), str)
    }
    return row | changed


def refuse_private(where: str, row: Mapping[str, Any], private: Private) -> None:
    """Refuses a row that holds what must not leave: rows are not changed behind a person's back.

    Raises:
        UsageError: it does.
    """
    for text in texts_in(row):
        found = private.found_in(text)
        if found:
            raise UsageError(
                f"{where} holds {found[0]}, so that nothing was uploaded; take it out of the data, or leave "
                f"out --with_data"
            )


def data_card(subject: Subject, parts: list[Part], people: Pseudonyms, title: str) -> Any:
    """The card of the data, as ``huggingface_hub.DatasetCard``."""
    from huggingface_hub import DatasetCard, DatasetCardData

    of_source: dict[str, list[Part]] = {}
    for part in parts:
        of_source.setdefault(part.source, []).append(part)
    front = DatasetCardData(
        license="unknown",
        tags=["preferl", "rlhf", "preferences"],
        pretty_name=title.split("/")[-1],
        configs=[
            {
                "config_name": name,
                "data_files": [
                    {"split": re.sub(r"\W", "_", part.split), "path": part.path} for part in found
                ],
            }
            for name, found in of_source.items()
        ],
    )
    made = {
        record.path.name: f"written by {record.kind}"
        for _, record in subject.steps()
        if record.kind in WITH_DATA
    }
    table = rows(
        ("source", "split", "rows", "what it is"),
        [
            (part.source, part.split, f"{part.rows:,}", made.get(part.source, "a file of its author's"))
            for part in parts
        ],
    )
    who = f"{len(people.of)} who labelled have pseudonyms" if people.of else "No column names a person"
    text = (
        f"# {cell(title)}\n\nThe data that a model was made from with preferl {__version__}.\n\n{table}\n\n"
        f"{who}; which columns name people is told by the columns' names. Prompts, responses and remarks "
        f"stand as they were written: nobody looked through them for names or anything private.\n\n"
        f"Licence: not known to preferl; look where the prompts and responses come from.\n"
    )
    return DatasetCard(subject.private.clean(f"---\n{front.to_yaml()}\n---\n\n{text}"))
