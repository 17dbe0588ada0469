"""Rows out of files: JSON Lines (.gz), JSON, parquet, plain text (.gz), folders of them, Hub names.

Rows come with where they were (file and line), and what cannot be read as a row comes as a ``RowError``, so
that the reader's policy decides about it.
"""

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferl.data.records import DataError

# Hub names of the shipped configurations, as files of the folder PREFERL_DATA.
OFFLINE = {
    "Anthropic/hh-rlhf:helpful-base": "pref/hh_helpful_base.*.jsonl.gz",
    "Anthropic/hh-rlhf:harmless-base": "pref/hh_harmless_base.*.jsonl.gz",
    "roneneldan/TinyStories": "lm/tinystories_5k.jsonl.gz",
}
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")


class RowError(Exception):
    """A row that is not what it should be: ``kind`` names the defect, the message says what is wrong."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Row:
    """A row with its place; ``value`` is a dict, or the RowError that reading it gave."""

    where: str
    value: dict[str, Any] | RowError


def read_rows(name: str) -> Iterator[Row]:
    """The rows of a data set.

    Raises:
        DataError: there is no such file or data set, or the file's kind is not known.
    """
    for path in resolve(name):
        if isinstance(path, str):
            yield from _hub_rows(path)
        else:
            yield from _file_rows(path)


def resolve(name: str) -> list[Path] | list[str]:
    """Files of a name: a file, a folder's files in order, or what PREFERL_DATA holds for a Hub name.

    A name that is none of these is taken for a Hub name and comes back as it is.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS))
        if not found:
            raise DataError(f"folder '{name}' holds no {', '.join(ENDINGS)} file")
        return found
    root = os.environ.get("PREFERL_DATA")
    if root and name in OFFLINE:
        found = sorted(Path(root).glob(OFFLINE[name]))
        if found:
            return found
    if name.endswith(ENDINGS) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"'{name}' is no file or folder here; check the path")
    return [name]


def _hub_rows(name: str) -> Iterator[Row]:
    """Rows of a Hub data set, all splits one after the other; ``name:config`` picks a folder of it."""
    import datasets

    repository, _, part = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, data_dir=part or None)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"data set '{name}' is no local file, and the Hub did not give it: {lines[0]}; "
            f"check the name, the network, or set PREFERL_DATA to a folder that has it"
        ) from error
    for split, rows in loaded.items():  # type: ignore[union-attr]
        for number, row in enumerate(rows, 1):
            yield Row(f"{name}[{split}] row {number}", dict(row))


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield Row(f"{path}: row {number}", row)
    elif name.endswith(".jsonl"):
        yield from _json_lines(path)
    elif name.endswith(".json"):
        yield from _json_array(path)
    elif name.endswith(".txt"):
        yield from _paragraphs(path)
    else:
        raise DataError(f"'{path}' is of no kind that preferl reads; the kinds are {', '.join(ENDINGS)}")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes, so that one line in a wrong encoding does not take the others with it."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"'{path}' is no whole gzip file: {error}; fetch it again") from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Row(
                where, RowError("wrong_encoding", f"is not UTF-8 ({error.reason} at byte {error.start})")
            )
        except json.JSONDecodeError as error:
            yield Row(where, RowError("invalid_json", f"is not JSON ({error.msg} at column {error.colno})"))
        else:
            yield Row(where, _object(value))


def _json_array(path: Path) -> Iterator[Row]:
    text = b"".join(_lines(path))
    try:
        value = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"'{path}' is not UTF-8 JSON: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"'{path}' holds one {type(value).__name__}; an array of rows is needed")
    for number, row in enumerate(value, 1):
        yield Row(f"{path}: row {number}", _object(row))


def _paragraphs(path: Path) -> Iterator[Row]:
    """Plain text: one text a paragraph, separated by empty lines."""
    start, block = 1, []
    for number, line in enumerate([*_lines(path), b""], 1):
        if line.strip():
            start = start if block else number
            block.append(line)
            continue
        if block:
            where = f"{path}:{start}"
            try:
                yield Row(where, {"text": b"".join(block).decode("utf-8").rstrip("\n")})
            except UnicodeDecodeError as error:
                yield Row(where, RowError("wrong_encoding", f"is not UTF-8 ({error.reason})"))
        block = []


def _object(value: Any) -> dict[str, Any] | RowError:
    if isinstance(value, dict):
        return value
    return RowError("not_an_object", f"is a JSON {type(value).__name__}, not an object with columns")
