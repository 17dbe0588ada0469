"""Files of a run: written whole or not at all, numbers as JSON can hold them."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from preferl.runs.errors import UsageError


def write_atomically(path: Path, text: str, encoding: str = "utf-8", newline: str | None = None) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            with open(temporary, "w", encoding=encoding, newline=newline) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as a JSON file, whole or not at all."""
    write_atomically(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A new directory to write into, which becomes ``path`` when the context ends without an error. Where
    ``path`` is there already, its files are replaced one by one and others in it stay."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with naming(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as written:
                        os.fsync(written.fileno())
            if not path.exists():
                os.replace(temporary, path)
            else:
                for file in [file for file in temporary.rglob("*") if file.is_file()]:
                    place = path / file.relative_to(temporary)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """The system says of what it could not write only that it could not: its errors get the path."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Keys and values of a JSON file that preferl wrote.

    Raises:
        UsageError: it is damaged; names it.
    """
    return _mapping(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file that preferl wrote.

    Raises:
        UsageError: it is damaged; names it.
    """
    return _mapping(path, yaml.safe_load)


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, f"it holds {type(found).__name__}, not keys and values")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every row of a JSONL file that preferl wrote; an absent file has none. What follows the last end of a
    line was being written when the run was killed, and is no row.

    Raises:
        UsageError: a line is damaged; names it.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    return [row for row, _ in parsed_lines(path, content[: content.rfind(b"\n") + 1])]


def parsed_lines(path: Path, content: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every row with the line that it stood in."""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise damaged(f"{path}:{number}", error) from error
            if not isinstance(row, dict):
                raise damaged(f"{path}:{number}", f"it holds {type(row).__name__}, no row")
            yield row, line


def damaged(place: Path | str, reason: object) -> UsageError:
    """The error of a file of a run that cannot be read as what preferl wrote."""
    return UsageError(
        f"{place} is damaged ({str(reason).splitlines()[0]}): it is not what preferl wrote there; bring it "
        f"back, or do this stage anew with --fresh"
    )


NOT_FINITE = ("nan", "inf", "-inf")
"""How numbers that are not finite stand in files: JSON has none."""


def plain(value: Any) -> Any:
    """A number as JSON can hold it: torch and numpy scalars unwrapped, non-finite numbers as text."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
