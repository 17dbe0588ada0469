"""Rows out of files and into files: JSON Lines, JSON, parquet, plain text (all but parquet also .gz), folders
of them, Hub names.

Nothing that is read is executed: no pickle, no scripts of data sets. Rows come with where they were (file and
line), and what cannot be read as a row comes as a ``RowError``, so that the reader's policy decides about it.
"""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preferl.data.records import DataError
from preferl.data.splits import split_of_file

# Hub names of the shipped configurations, as files of the folder PREFERL_DATA.
OFFLINE = {
    "Anthropic/hh-rlhf:helpful-base": "pref/hh_helpful_base.*.jsonl.gz",
    "Anthropic/hh-rlhf:harmless-base": "pref/hh_harmless_base.*.jsonl.gz",
    "roneneldan/TinyStories": "lm/tinystories_5k.jsonl.gz",
}
BYTE_ORDER_MARK, END_OF_TEXT = b"\xef\xbb\xbf", b"<|endoftext|>"
LONGEST_LINE = 8 * 2**20  # bytes: a row is a prompt and some responses
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")


class RowError(Exception):
    """A row that is not what it should be: ``kind`` names the defect, the message says what is wrong."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Row:
    """A row with its place; ``value`` is a dict, or the RowError that reading it gave. ``split`` is what the
    file's name or the Hub calls the split that it is in, where they do."""

    where: str
    value: dict[str, Any] | RowError
    split: str | None = None


class Table:
    """Rows in memory, as a data set.

    Args:
        rows: dicts; or such by the name of their split. Rows are read again and again, so not an iterator.
        name: what the data set is called in messages.
    """

    def __init__(self, rows: Iterable[Any] | Mapping[str, Iterable[Any]], name: str = "in memory"):
        self.rows, self.name = rows, name

    def __str__(self) -> str:
        return self.name

    def read(self) -> Iterator[Row]:
        """Every row with its place."""
        parts = self.rows.items() if isinstance(self.rows, Mapping) else [(None, self.rows)]
        for split, rows in parts:
            of_split = f"[{split}]" if split else ""
            for number, row in enumerate(rows, 1):
                value = dict(row) if isinstance(row, Mapping) else row
                yield Row(f"{self.name}{of_split} row {number}", _object(value), split)


def read_rows(name: str | Table) -> Iterator[Row]:
    """The rows of a data set.

    Raises:
        DataError: there is no such file or data set, or the file's kind is not known.
    """
    if isinstance(name, Table):
        yield from name.read()
        return
    for path in resolve(name):
        if isinstance(path, str):
            yield from _hub_rows(path)
            continue
        split = split_of_file(path.name)
        for row in _file_rows(path):
            yield replace(row, split=split)


def resolve(name: str) -> list[Path] | list[str]:
    """Files of a name: a file, a folder's files in order, or what PREFERL_DATA holds for a Hub name.

    A name that is none of these is taken for a Hub name and comes back as it is.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        path = path / "data" if (path / "manifest.json").exists() else path
        found = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS)) if path.is_dir() else []
        if not found:
            raise DataError(f"folder '{name}' holds no {', '.join(ENDINGS)} file")
        return found
    root = os.environ.get("PREFERL_DATA")
    if root and name in OFFLINE:
        found = sorted(Path(root).glob(OFFLINE[name]))
        if found:
            return found
    if name.endswith(ENDINGS) or name.startswith((".", "/", "~")) or name.split(":")[0].count("/") > 1:
        raise DataError(f"'{name}' is no file or folder here; check the path")
    return [name]


def _hub_rows(name: str) -> Iterator[Row]:
    """Rows of a Hub data set, all splits one after the other; ``name:config`` picks a folder of it,
    ``name[split]`` one split."""
    import datasets

    name, _, wanted = name.removesuffix("]").partition("[")
    repository, _, part = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, data_dir=part or None)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"data set '{name}' is no local file, and the Hub did not give it: {lines[0]}; "
            f"check the name, the network, or set PREFERL_DATA to a folder that has it"
        ) from error
    splits: dict[str, Any] = dict(loaded.items())  # type: ignore[union-attr]
    if wanted and wanted not in splits:
        raise DataError(f"data set '{name}' has no split '{wanted}'; it has {', '.join(splits)}")
    for split, rows in splits.items():
        if wanted in ("", split):
            for number, row in enumerate(rows, 1):
                yield Row(f"{name}[{split}] row {number}", dict(row), split)


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif name.endswith(".jsonl"):
        yield from json_lines(path)
    elif name.endswith(".json"):
        yield from _json_file(path)
    elif name.endswith(".txt"):
        yield from _paragraphs(path)
    else:
        raise DataError(f"'{path}' is of no kind that preferl reads; the kinds are {', '.join(ENDINGS)}")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for row in _table_rows(batch):
                number += 1
                yield Row(f"{path}: row {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is no whole parquet file: {error}; fetch it again") from error


def _table_rows(batch: Any) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield RowError("wrong_encoding", f"is not UTF-8 ({error.reason})")
        else:  # find the rows that are meant, one by one
            for i in range(batch.num_rows):
                yield from _table_rows(batch.slice(i, 1))


def _lines(path: Path, longest: int = -1) -> Iterator[bytes]:
    """Lines as bytes, so that one line in a wrong encoding does not take the others with it.

    Raises:
        DataError: a line has more than ``longest`` bytes, which is found before it is read, or the file is no
            whole gzip file.
    """
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            number = 0
            while line := file.readline(longest + 1 if longest >= 0 else -1):
                number += 1
                if 0 <= longest < len(line):
                    raise DataError(
                        f"{path}:{number}: the line has more than {longest // 2**20} MiB, the most that a "
                        f"row can have; is this the right file, with one row a line?"
                    )
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' is no whole gzip file: {error}; fetch it again") from error


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines file.

    Raises:
        DataError: a line is too long to be a row.
    """
    for number, line in enumerate(_lines(path, LONGEST_LINE), 1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.strip():
            yield Row(f"{path}:{number}", _json_row(line))


def _json_row(line: bytes) -> dict[str, Any] | RowError:
    try:
        return _object(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return RowError("wrong_encoding", f"is not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return RowError("invalid_json", f"is not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return RowError("invalid_json", f"is not JSON that can be read ({error})")


def _json_file(path: Path) -> Iterator[Row]:
    """An array of rows; many a .json file is JSON Lines, and is read as that."""
    text = b"".join(_lines(path)).removeprefix(BYTE_ORDER_MARK)
    if text.lstrip()[:1] == b"{" and not _is_one_value(text):
        yield from json_lines(path)
        return
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not UTF-8 JSON: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"'{path}' holds one {type(value).__name__}; an array of rows is needed")
    for number, row in enumerate(value, 1):
        yield Row(f"{path}: row {number}", _object(row))


def _is_one_value(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _paragraphs(path: Path) -> Iterator[Row]:
    """Plain text: texts are separated by lines of ``<|endoftext|>`` where there are any, else by empty lines.

    The first is how TinyStories comes (its stories hold empty lines), the second fits plays, poems and books.
    One text a line would cut both into fragments.
    """
    lines = [line.replace(b"\r\n", b"\n") for line in _lines(path, LONGEST_LINE)]
    separator = END_OF_TEXT if any(line.strip() == END_OF_TEXT for line in lines) else b""
    start, block = 1, []
    for number, line in enumerate([*lines, separator], 1):
        if line.strip() != separator:
            start = start if block else number
            block.append(line)
            continue
        text = b"".join(block)
        if text.strip():
            yield Row(f"{path}:{start}", _text_row(text))
        block = []


def _text_row(text: bytes) -> dict[str, Any] | RowError:
    try:
        return {"text": text.removeprefix(BYTE_ORDER_MARK).decode("utf-8").strip("\n")}
    except UnicodeDecodeError as error:
        return RowError("wrong_encoding", f"is not UTF-8 ({error.reason} at byte {error.start})")


def _object(value: Any) -> dict[str, Any] | RowError:
    if not isinstance(value, dict):
        return RowError("not_an_object", f"is of type {type(value).__name__}, not an object with columns")
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        # JSON can escape half of a character; no tokenizer and no file takes that.
        return RowError("wrong_encoding", "holds half of a surrogate pair (\\ud800 to \\udfff alone)")
    return value


# ------------------------------------------------------------------------------------------------ writing


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows beside ``path`` and then moves them there: readers see the old file or the whole new one.

    The same rows give the same bytes.

    Raises:
        DataError: the ending is unknown, or the kind of file cannot hold the rows.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise DataError(f"'{path}' must end with .jsonl, .jsonl.gz or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.name.endswith(".parquet"):
            _write_parquet(temporary, rows, path)
        else:
            _write_json_lines(temporary, rows, path)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk says only that it is full
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_json_lines(temporary: Path, rows: Sequence[dict[str, Any]], path: Path) -> None:
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(f"'{path}' cannot hold the rows: {error}") from error
    # Without the time of writing a repeated run writes the same bytes.
    temporary.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)


def _write_parquet(temporary: Path, rows: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    # pyarrow takes the columns of the first row alone and would drop what only later rows have.
    columns = list(dict.fromkeys(column for row in rows for column in row))
    try:
        table = pyarrow.table({c: pyarrow.array([row.get(c) for row in rows]) for c in columns})
        pyarrow.parquet.write_table(table, temporary)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"'{path}' cannot hold the rows, parquet needs one type a column ({error}); write .jsonl instead"
        ) from error
