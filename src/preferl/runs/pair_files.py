"""A file to which pairs are added one at a time, as ``preferl reward --dataset_name`` reads them.

JSON Lines, a row for each pair: ``{"prompt": …, "chosen": "…", "rejected": "…"}``. The prompt is a text, or
messages where turns came before it. What is there stays as it is, and a row is written whole or not at all.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferl.runs.errors import UsageError
from preferl.runs.files import naming

SUFFIX = ".jsonl"
NEEDED = ("prompt", "chosen", "rejected")


def check_pair_file(path: Path) -> None:
    """Refuses a file to which no pairs can be added, before any are made.

    Raises:
        UsageError: it is no JSON Lines file, holds something else than pairs, or lies in no folder.
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"'{path}' is to hold pairs as JSON Lines; give it a name that ends with {SUFFIX}")
    if not path.parent.is_dir():
        raise UsageError(f"'{path}' lies in a folder that is not there; make {path.parent} first")
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(f"'{path}' is no file; name another")
    with open(path, "rb") as file:
        first = file.readline()
    if not first.strip():
        return
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not set(NEEDED) <= row.keys():
        raise UsageError(
            f"'{path}' is no file of pairs (its first row has no {', '.join(NEEDED)}); name another, to add "
            f"them to"
        )


def append_pair(path: Path, row: Mapping[str, Any]) -> None:
    """Adds the row of one pair. From a row that was cut off, by a full disk or a crash, it is kept apart."""
    line = json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    with naming(path), open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)  # one call, at the end, whoever else adds to the file
        file.flush()
        os.fsync(file.fileno())
