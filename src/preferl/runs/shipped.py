"""Configurations that come with preferl: ``--config`` takes them by name, ``--config hacking``."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from preferl.runs.errors import UsageError

FOLDER = Path(__file__).resolve().parents[1] / "configs"


def configurations() -> dict[str, Path]:
    """The file of every name."""
    return {file.stem: file for file in sorted(FOLDER.rglob("*.yaml"), key=lambda file: file.stem)}


def with_files(arguments: Sequence[str]) -> list[str]:
    """Arguments in which ``--config`` has a file where it had a name. A file of that name comes first.

    Raises:
        UsageError: there is neither a file nor a configuration of that name.
    """
    found = list(arguments)
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            found[i] = f"--config={_file(argument.removeprefix('--config='))}"
        elif argument == "--config" and i + 1 < len(arguments):
            found[i + 1] = _file(arguments[i + 1])
    return found


def _file(name: str) -> str:
    if Path(name).is_file():
        return name
    known = configurations()
    if name in known:
        return str(known[name])
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    raise UsageError(
        f"--config {name} is no file"
        + (f"; did you mean --config {near[0]}?" if near else f", and none of {', '.join(known)}")
    )
