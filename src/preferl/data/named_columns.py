"""Columns that a person names, looked for before the rows are read: a wrong name is said at once, also of a
file of a million rows.

Nothing is refused that a reader of all rows would find: a text is searched for the name wherever it may
stand, a parquet file has a list of its columns, and of everything else nothing is said here.
"""

import itertools
import json
import re
from pathlib import Path

from preferl.data import winners
from preferl.data.columns import Options, no_column, paths_in
from preferl.data.containers import files_of
from preferl.data.files import BYTE_ORDER_MARK, LINES, byte_lines, cells_of, file_rows, unpacked_name
from preferl.data.layouts import parsed_columns, top

SHOWN_ROWS = 100  # whose columns an error names
JSON, TABLES = (*LINES, ".json"), (".csv", ".tsv")


def refuse_absent(name: str, options: Options) -> None:
    """Refuses a column that is named and in none of a data set's files.

    Args:
        name: of the data set.
        options: what a person said.

    Raises:
        DataError: that, or an option is not of its form.
    """
    named = named_in(options)
    files = files_of(name) if named else []
    for option, path in named:
        if files and not any(may_have(file, path) for file in files):
            raise no_column(option, name, path, {column for file in files for column in columns_of(file)})


def named_in(options: Options) -> list[tuple[str, str]]:
    """(option, path) of every column that is named."""
    named = [("--columns", path) for path in paths_in(parsed_columns(options.columns))]
    if options.winner:
        named += [("--winner", path) for path in winners.parsed(options.winner).columns]
    return named


def may_have(file: Path, path: str) -> bool:
    """Whether a row of a file may have a column of this path; False is certain."""
    names = {path, top(path)}  # a column may have a full stop in its name
    kind = kind_of(file)
    if kind in JSON:
        if not all(re.fullmatch(r"[\w .-]*", name) for name in names):
            return True  # programs escape other letters in ways of their own
        keys = {json.dumps(name, ensure_ascii=ascii_only) for name in names for ascii_only in (True, False)}
        written = [key.encode() for key in keys]
        return any(key in line for line in byte_lines(file) for key in written)
    if kind in TABLES:
        unnamed = any(re.fullmatch(r"column_\d+", name) for name in names)
        return unnamed or any(name.encode() in line for line in byte_lines(file) for name in names)
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            schema = str(pyarrow.parquet.read_schema(file))
        except (pyarrow.ArrowException, OSError):
            return True  # what is damaged is told where it is read
        return any(name in schema for name in names)
    return True


def columns_of(file: Path) -> list[str]:
    """The columns of a file's first rows."""
    if kind_of(file) in TABLES:
        header = next(byte_lines(file), b"").removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
        cells, _ = cells_of(file, header, kind_of(file) == ".tsv")
        return [cell.strip() for row in cells for cell in row]
    rows = (row.value for row in itertools.islice(file_rows(file), SHOWN_ROWS))
    return list(dict.fromkeys(column for row in rows if isinstance(row, dict) for column in row))


def kind_of(file: Path) -> str:
    """The ending that says how a file is read, as ``.jsonl``."""
    return Path(unpacked_name(file)).suffix
