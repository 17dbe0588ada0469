"""The mark of a directory that preferl made: only what bears it is ever deleted.

``.preferl.json`` is written before anything else in every run, stage and sweep. A directory without it is
somebody else's, whatever its files are called, and is left as it is. Runs from before the mark are read and
never deleted.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preferl import __version__
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import read_yaml, write_json

MARK = ".preferl.json"
PROGRAM, FORMAT = "preferl", 1
# Before the mark: what a run and a stage wrote first, and keys that no other program's files have together.
UNMARKED_RUN = ("config.yaml", "command.txt", "env.json")
UNMARKED_RUN_KEYS = {"output_dir", "stages", "rounds", "dataset_name"}
UNMARKED_STAGE_KEYS = {"stage", "environment", "parents"}


@dataclass(frozen=True)
class Mark:
    """Who made a directory. ``kind`` is ``run``, ``stage`` or ``sweep``; ``name`` is a stage's (``reward``),
    of the others their directory's. ``format`` is that of the files in it.

    Example: ``Mark("stage", "reward", "0.2.0", 1)``.
    """

    kind: str
    name: str
    version: str = __version__
    format: int = FORMAT


def read_mark(path: Path) -> Mark | None:
    """The mark of a directory; None where there is none, or something else under its name."""
    try:
        found = json.loads((path / MARK).read_text(encoding="utf-8"))
        if found["program"] != PROGRAM:
            return None
        return Mark(str(found["kind"]), str(found["name"]), str(found["version"]), int(found["format"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def contents(path: Path) -> list[Path]:
    """What lies in a directory, but for a mark that was being written when the disk was full."""
    return [inside for inside in path.iterdir() if inside.name != f"{MARK}.tmp"]


def check_ours(path: Path, kind: str, name: str) -> None:
    """Refuses a directory that holds anything but a preferl directory of this kind and name.

    Raises:
        UsageError: it is no directory, or what it holds is not ours. Nothing has been changed.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory; choose another --output_dir (nothing was changed)")
    mark = read_mark(path)
    if mark is None:
        inside = contents(path)
        # Stages that were made one by one may become a run: it deletes nothing but what they would.
        only_ours = kind != "stage" and all(map(read_mark, inside))
        if inside and not only_ours and not was_ours(path, kind, name):
            raise UsageError(
                f"{path} is not empty and holds no preferl {kind}; choose another --output_dir (nothing was "
                f"changed)"
            )
    elif (mark.kind, mark.name if kind == "stage" else name) != (kind, name):
        held = f"the stage {mark.name}" if mark.kind == "stage" else f"a {mark.kind}"
        wanted = f"the stage {name}" if kind == "stage" else f"a {kind}"
        raise UsageError(
            f"{path} holds {held}, not {wanted}; choose another --output_dir (nothing was changed)"
        )


def was_ours(path: Path, kind: str, name: str) -> bool:
    """Whether a directory without a mark is a run, a sweep or a stage from before there were marks."""
    if kind == "stage":
        return was_stage(path, name)
    config = _mapping(path / "config.yaml")
    if not all((path / file).is_file() for file in UNMARKED_RUN) or not config.keys() >= UNMARKED_RUN_KEYS:
        return False
    return (kind == "sweep") == ("sweep" in config)


def was_stage(path: Path, name: str | None = None) -> bool:
    """Whether a directory's manifest is that of a stage (of this name), marked or not."""
    manifest = _mapping(path / "manifest.json")
    return manifest.keys() >= UNMARKED_STAGE_KEYS and name in (None, manifest["stage"])


def _mapping(path: Path) -> dict[str, Any]:
    """A file of JSON or YAML that holds keys and values; anything else has none."""
    try:
        return read_yaml(path)
    except (OSError, UsageError):
        return {}


def refuse_no_place(path: Path) -> None:
    """Refuses a directory that could not be made or written when its content is there.

    Raises:
        UsageError: something above it is a file, or is another user's.
    """
    place = path.absolute()
    there = next(above for above in (place, *place.parents) if above.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file, so {path} is no place for a stage; choose another --output_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{path} cannot be written: {there} does not allow it; change its rights, or choose another "
            f"--output_dir"
        )


@distributed.main_writes
def claim(path: Path, kind: str, name: str) -> None:
    """Makes a directory, where there is none, and marks it. One from before the mark stays without.

    Raises:
        UsageError: it holds something that is not ours.
    """
    check_ours(path, kind, name)
    path.mkdir(parents=True, exist_ok=True)
    if read_mark(path) is None and not was_ours(path, kind, name):
        write_json(path / MARK, {"program": PROGRAM} | asdict(Mark(kind, name)))


def remove(path: Path) -> None:
    """Deletes a file or a directory; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
