"""Rows out of files and into files: JSON Lines, JSON, CSV, TSV, parquet, Arrow, plain text (texts also .gz
and .zst). Folders and names of the Hub are in ``containers``.

Nothing that is read is executed: no pickle, no scripts of data sets. Rows come with where they were (file and
line), and what cannot be read as a row comes as a ``RowError``, so that the reader's policy decides about it.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from preferl.data.records import DataError
from preferl.data.splits import meaning

BYTE_ORDER_MARK, END_OF_TEXT = b"\xef\xbb\xbf", b"<|endoftext|>"
LONGEST_LINE = 8 * 2**20  # bytes: a row is a prompt and some responses
PACKED = (".gz", ".zst")
LINES = (".jsonl", ".ndjson", ".jsonlines")
TEXTS = (*LINES, ".json", ".csv", ".tsv", ".txt")
ENDINGS = (*TEXTS, ".parquet", ".arrow", *(text + packed for text in TEXTS for packed in PACKED))
KINDS_READ = (
    ".jsonl (.ndjson, .jsonlines), .json, .csv, .tsv and .txt (each also .gz or .zst), .parquet and .arrow"
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Columns of a table that are texts whatever stands in them: an answer may be a number.
TEXT_COLUMN = re.compile(
    r"(prompt|chosen|rejected|text|instruction|input|question|history|context|messages|system"
    r"|(response|output|answer|completion|conversation)s?_?([ab]|[0-9])|response|completion|output)",
    re.IGNORECASE,
)
WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class RowError(Exception):
    """A row that is not what it should be: ``kind`` names the defect, the message says what is wrong."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Row:
    """A row with its place; ``value`` is a dict, or the RowError that reading it gave. ``split`` is what the
    file's name or the Hub calls the split that it is in, where they do; ``file`` is the file, or the split of
    the Hub, that it comes from."""

    where: str
    value: dict[str, Any] | RowError
    split: str | None = None
    file: str = ""


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


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, by its ending.

    Raises:
        DataError: its kind is not known, it is no whole file of its kind, or a pointer of Git LFS.
    """
    refuse_pointer(path)
    name = unpacked_name(path)
    if name.endswith(TEXTS):
        refuse_utf16(path)
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif name.endswith(".arrow"):
        yield from _arrow_rows(path)
    elif name.endswith((".csv", ".tsv")):
        yield from _cell_rows(path, name)
    elif name.endswith(LINES):
        yield from json_lines(path)
    elif name.endswith(".json"):
        yield from _json_file(path)
    elif name.endswith(".txt"):
        yield from _paragraphs(path)
    else:
        raise DataError(f"'{path}' is of no kind that preferl reads; the kinds are {KINDS_READ}")


def unpacked_name(path: Path) -> str:
    """A file's name in small letters, without the ending that says how it is packed."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name


def refuse_pointer(path: Path) -> None:
    """Git LFS leaves a text of three lines where a file was not fetched.

    Raises:
        DataError: this is one.
    """
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"'{path}' is a pointer of Git LFS, not the data: run `git lfs pull` in '{path.parent}', "
                f"then the same command again"
            )


def is_data(name: str) -> bool:
    """Whether a file of this name is of a kind that is read."""
    return name.lower().endswith(ENDINGS)


def refuse_utf16(path: Path) -> None:
    """Spreadsheets save text in UTF-16, which begins with a mark of its own.

    Raises:
        DataError: this is such a file.
    """
    with _opened(path) as file:
        try:
            begins = file.read(2)
        except (OSError, EOFError, zlib.error):
            return  # what is damaged is told where it is read
    if begins in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"'{path}' is UTF-16, not UTF-8: save it as UTF-8 (iconv -f UTF-16 -t UTF-8), then run the same "
            f"command again"
        )


# ------------------------------------------------------------------------------------------------ columnar


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


def _arrow_rows(path: Path) -> Iterator[Row]:
    """A file of Arrow's: a stream, as ``datasets`` writes them, or the file format."""
    import pyarrow

    number = 0
    try:
        with pyarrow.OSFile(str(path)) as file:
            magic = file.read(6)
            file.seek(0)
            reader = pyarrow.ipc.open_file(file) if magic == b"ARROW1" else pyarrow.ipc.open_stream(file)
            count = getattr(reader, "num_record_batches", None)
            batches = iter(reader) if count is None else map(reader.get_batch, range(count))
            for batch in batches:
                for row in _table_rows(batch):
                    number += 1
                    yield Row(f"{path}: row {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is no whole Arrow file: {error}; fetch it again") from error


# -------------------------------------------------------------------------------------------------- tables


def _cell_rows(path: Path, name: str) -> Iterator[Row]:
    """CSV and TSV: the first row names the columns; a column in which everything is a number (or true and
    false) holds numbers (or truth values), empty cells are null there.

    Raises:
        DataError: there is no header, a column is named twice, or quotes do not close.
    """
    # What is no UTF-8 is found again in its cell.
    data = b"".join(byte_lines(path)).removeprefix(BYTE_ORDER_MARK)
    cells, lines = cells_of(path, data.decode("utf-8", "surrogateescape"), name.endswith(".tsv"))
    if not cells:
        return
    header = [cell.strip() or f"column_{number}" for number, cell in enumerate(cells[0], 1)]
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise DataError(f"{path}:1: the column '{twice[0]}' is named twice in the header; rename one")
    rows = [row for row in cells[1:] if len(row) == len(header)]
    columns = []
    for column, values in zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True):
        columns.append(list(values) if TEXT_COLUMN.fullmatch(column) else _typed(values))
    values_of = iter(zip(*columns, strict=True))
    for row, line in zip(cells[1:], lines[1:], strict=True):
        where = f"{path}:{line}"
        if len(row) != len(header):
            what = f"has {len(row)} cells where the header has {len(header)}"
            yield Row(where, RowError("wrong_cells", what))
            continue
        value = dict(zip(header, next(values_of), strict=True))
        if any(0xDC80 <= ord(letter) <= 0xDCFF for cell in row for letter in cell):
            yield Row(where, RowError("wrong_encoding", "is not UTF-8; save the table as UTF-8"))
        else:
            yield Row(where, _object(value))


def cells_of(path: Path, text: str, tabs: bool) -> tuple[list[list[str]], list[int]]:
    """The cells of every row that has some, and the line on which each begins."""
    dialect: type[csv.Dialect] = csv.excel_tab if tabs else csv.excel
    delimiter = dialect.delimiter
    if not tabs:
        with contextlib.suppress(csv.Error):  # a table of one column has no delimiter
            delimiter = csv.Sniffer().sniff(text.split("\n", 1)[0], ",;\t|").delimiter
    # The limit is the module's own, so it is put back; a dialogue in one cell may be longer than it.
    usual = csv.field_size_limit(LONGEST_LINE)
    cells, lines, line = [], [], 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), dialect, delimiter=delimiter, strict=True)
        for row in reader:
            if row:
                cells.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: is no row of a table ({error}); mend its quotes") from error
    finally:
        csv.field_size_limit(usual)
    return cells, lines


def _typed(cells: Sequence[str]) -> list[Any]:
    """A column's values: numbers or truth values where every cell that is not empty is one."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    if not filled:
        return list(cells)
    if all(WHOLE_NUMBER.fullmatch(cell) for cell in filled):
        read: Any = int
    elif all(NUMBER.fullmatch(cell) for cell in filled):
        read = float
    elif all(cell.lower() in ("true", "false") for cell in filled):
        read = _is_true
    else:
        return list(cells)
    return [read(cell) if cell.strip() else None for cell in cells]


def _is_true(cell: str) -> bool:
    return cell.strip().lower() == "true"


# --------------------------------------------------------------------------------------------------- texts


def _opened(path: Path) -> BinaryIO:
    """A file as bytes, unpacked."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.name.lower().endswith(".zst"):
        import pyarrow

        unpacked = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        return io.BufferedReader(unpacked)
    return open(path, "rb")


def byte_lines(path: Path, longest: int = -1) -> Iterator[bytes]:
    """Lines as bytes, so that one line in a wrong encoding does not take the others with it.

    Raises:
        DataError: a line has more than ``longest`` bytes, which is found before it is read, or the file is no
            whole gzip file.
    """
    try:
        with _opened(path) as file:
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
    except OSError as error:
        # Arrow's errors of a damaged stream carry no number of the system's.
        if error.errno is not None or not path.name.endswith(".zst"):
            raise
        raise DataError(f"'{path}' is no whole zstd file: {error}; fetch it again") from error


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines file.

    Raises:
        DataError: a line is too long to be a row.
    """
    for number, line in enumerate(byte_lines(path, LONGEST_LINE), 1):
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
    """An array of rows, or what other programs write around one; many a .json file is JSON Lines, and is read
    as that, and some hold one object after the other over several lines."""
    text = b"".join(byte_lines(path)).removeprefix(BYTE_ORDER_MARK)
    if text.lstrip()[:1] == b"{" and not _is_one_value(text):
        objects = _one_after_the_other(text)
        if objects is None:
            yield from json_lines(path)
        else:
            yield from (Row(f"{path}: row {n}", _object(row)) for n, row in enumerate(objects, 1))
        return
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not UTF-8 JSON: {error}") from error
    for split, rows in _rows_in(path, value).items():
        of_split = f"[{split}]" if split else ""
        for number, row in enumerate(rows, 1):
            yield Row(f"{path}{of_split}: row {number}", _object(row), split)


def _rows_in(path: Path, value: Any) -> dict[str | None, list[Any]]:
    """Split (None where there is none) -> the rows that a JSON file holds: an array; an object with one
    (``{"data": […]}``), with one for each split, or with a list or mapping for each column.

    Raises:
        DataError: it holds none.
    """
    if isinstance(value, list):
        return {None: value}
    parts = value if isinstance(value, dict) else {}
    arrays = {name: part for name, part in parts.items() if _are_objects(part)}
    if len(arrays) == len(parts) > 0 and all(map(meaning, arrays)):
        return dict(arrays)
    if len(arrays) == 1:
        rows = next(iter(arrays.values()))
        # The Hub's viewer puts each row under `row`.
        return {
            None: [
                row["row"] if isinstance(row.get("row"), dict) and "row_idx" in row else row for row in rows
            ]
        }
    columns = [list(part.values()) if isinstance(part, dict) else part for part in parts.values()]
    same = all(isinstance(part, list) for part in columns) and len({len(part) for part in columns}) == 1
    if same and len(columns) > 1:
        return {None: [dict(zip(parts, cells, strict=True)) for cells in zip(*columns, strict=True)]}
    raise DataError(
        f"'{path}' holds one {type(value).__name__} that is no array of rows; where it is not the data, name "
        f"the file that is, not the folder"
    )


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _one_after_the_other(text: bytes) -> list[Any] | None:
    """The objects of a text, where the first goes over several lines; None where each line is one, or one is
    damaged."""
    decoder, found, at = json.JSONDecoder(), [], 0
    try:
        whole = text.decode("utf-8").strip()
        json.loads(whole.split("\n", 1)[0])
    except UnicodeDecodeError:
        return None
    except ValueError:
        try:
            while at < len(whole):
                value, at = decoder.raw_decode(whole, at)
                found.append(value)
                at += len(whole[at:]) - len(whole[at:].lstrip(" \t\r\n,"))
        except (ValueError, RecursionError):
            return None
        return found
    return None


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
    lines = [line.replace(b"\r\n", b"\n") for line in byte_lines(path, LONGEST_LINE)]
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
