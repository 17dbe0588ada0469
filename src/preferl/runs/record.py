"""Runs and finished stages as files: what the report and the next stages read. Nothing here loads torch."""

import json
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from preferl.runs.environment import environment
from preferl.runs.errors import UsageError
from preferl.runs.files import damaged, read_json, read_jsonl, read_yaml, write_atomically, write_json
from preferl.runs.mark import read_mark
from preferl.runs.old_keys import renamed
from preferl.runs.progress import say

REDO = "redo.json"  # of a run or a sweep that was begun with --fresh, until it is done
PLACES = "stages.json"  # of a run of a sweep: stage -> its directory, from the run's own


class StageRecord:
    """A stage, read from its directory. Keys of stages from before the mark come under today's names."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.manifest = read_manifest(path)
        self.config = with_chosen(read_config(path), self.manifest)
        summary = path / "summary.json"
        self.summary = with_infinite_ends(read_json(summary)) if summary.exists() else {}
        self.metrics = read_jsonl(path / "metrics.jsonl")
        self.samples = read_jsonl(path / "samples.jsonl")
        self.done = (path / "DONE").exists()
        if read_mark(path) is None:
            self.summary = renamed(self.kind, "summary", self.summary, self.config)
            self.metrics = [renamed(self.kind, "metrics", row, self.config) for row in self.metrics]

    @property
    def kind(self) -> str:
        """The kind of stage: ``sft``, ``reward``, …"""
        if "stage" not in self.manifest:
            raise damaged(self.path / "manifest.json", "it does not say which stage it is of")
        return self.manifest["stage"]

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """The reward stage's ``audit.json``, where it wrote one."""
        path = self.path / "audit.json"
        return read_json(path) if path.exists() else None


def with_infinite_ends(tree: Any) -> Any:
    """Infinite ends of intervals and errors, which JSON holds as text, as numbers again."""
    if isinstance(tree, list):
        return [with_infinite_ends(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    found = {}
    for key, value in tree.items():
        infinite = key.endswith(("_low", "_high", "_se")) and value in ("inf", "-inf")
        found[key] = float(value) if infinite else with_infinite_ends(value)
    return found


def with_chosen(config: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """Options with the values that the stage chose for those that were left open."""
    chosen = manifest.get("chosen") or {}
    return {name: chosen.get(name) if value is None else value for name, value in config.items()}


def read_config(stage: Path) -> dict[str, Any]:
    """The options of a stage."""
    return read_yaml(stage / "config.yaml")


def read_manifest(stage: Path) -> dict[str, Any]:
    """What a stage is, and what it read."""
    return read_json(stage / "manifest.json")


def stage_paths(run: Path) -> dict[str, Path]:
    """Name -> directory of the stages of a run. Those that a run of a sweep shares with others lie where its
    ``stages.json`` says.

    Raises:
        UsageError: ``stages.json`` leads out of the sweep.
    """
    shared = run / PLACES
    if not shared.exists():
        return {path.name: path for path in run.iterdir() if (path / "manifest.json").exists()}
    places = read_json(shared)
    sweep = run.resolve().parent.parent
    outside = [place for place in places.values() if not (run / place).resolve().is_relative_to(sweep)]
    if outside:
        raise UsageError(f"{shared} names {outside[0]}, which lies outside of the sweep {sweep}")
    return {name: (run / place).resolve() for name, place in places.items()}


def stage_of(path: Path) -> Path | None:
    """The stage that a path names: itself, or its ``model`` or ``data``."""
    return next((place for place in (path, path.parent) if (place / "manifest.json").is_file()), None)


def stages_begun(run: Path) -> list[tuple[str, Path]]:
    """The directories of a run's stages, by name, in the order in which they were begun."""
    begun = {
        name: path / "manifest.json"
        for name, path in stage_paths(run).items()
        if (path / "manifest.json").exists()
    }
    return [
        (name, begun[name].parent) for name in sorted(begun, key=lambda name: begun[name].stat().st_mtime_ns)
    ]


def stage_records(run: Path) -> Iterator[tuple[str, StageRecord]]:
    """The stages of a run directory, by name, in the order in which they were begun."""
    for name, path in stages_begun(run):
        yield name, StageRecord(path)


def is_sweep(root: Path) -> bool:
    """Whether a directory holds a sweep."""
    mark = read_mark(root)
    if mark is not None:
        return mark.kind == "sweep"
    stored = root / "config.yaml"
    return stored.is_file() and "sweep" in read_yaml(stored)


def write_run_files(run: Path, config_text: str) -> None:
    """``config.yaml``, ``command.txt`` and ``env.json`` of a run or a sweep, whose directory is claimed."""
    write_atomically(run / "config.yaml", config_text)
    write_atomically(run / "command.txt", " ".join(["preferl", *sys.argv[1:]]) + "\n")
    write_json(run / "env.json", environment())


class Redo:
    """A run or a sweep that is done anew. It has a name, which its stages record: if it is interrupted, those
    that bear the name are done, and the others are done again by the same command, with ``--fresh`` or
    without.

    Args:
        root: the run's or sweep's directory.
        config_text: its configuration; an interrupted redo of another one is not gone on with.
        fresh: whether to begin one.
    """

    def __init__(self, root: Path, config_text: str, fresh: bool):
        self.file = root / REDO
        self.config_text = config_text
        self.name = self._interrupted()
        if self.name is not None:
            say("goes on with the redo that was interrupted")
        elif fresh:
            self.name = time.strftime("%Y-%m-%dT%H:%M:%S")

    def _interrupted(self) -> str | None:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return str(found["redo"]) if found["config"] == self.config_text else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self) -> None:
        """Before the first stage."""
        if self.name is not None:
            write_json(self.file, {"redo": self.name, "config": self.config_text})

    def end(self) -> None:
        """After the last one."""
        self.file.unlink(missing_ok=True)
