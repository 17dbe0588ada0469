"""Runs and finished stages as files: what the report and the next stages read. Nothing here loads torch."""

import json
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from preferl.runs.environment import environment
from preferl.runs.errors import UsageError
from preferl.runs.files import read_jsonl, write_atomically
from preferl.runs.mark import claim, read_mark
from preferl.runs.old_keys import renamed

PLACES = "stages.json"  # of a run of a sweep: stage -> its directory, from the run's own


class StageRecord:
    """A stage, read from its directory. Keys of stages from before the mark come under today's names."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = read_config(path)
        self.manifest = read_manifest(path)
        summary = path / "summary.json"
        self.summary = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
        self.metrics = read_jsonl(path / "metrics.jsonl")
        self.samples = read_jsonl(path / "samples.jsonl")
        self.done = (path / "DONE").exists()
        if read_mark(path) is None:
            self.summary = renamed(self.kind, "summary", self.summary, self.config)
            self.metrics = [renamed(self.kind, "metrics", row, self.config) for row in self.metrics]

    @property
    def kind(self) -> str:
        """The kind of stage: ``sft``, ``reward``, …"""
        return self.manifest["stage"]

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """The reward stage's ``audit.json``, where it wrote one."""
        path = self.path / "audit.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_config(stage: Path) -> dict[str, Any]:
    """The options of a stage."""
    return yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))


def read_manifest(stage: Path) -> dict[str, Any]:
    """What a stage is, and what it read."""
    return json.loads((stage / "manifest.json").read_text(encoding="utf-8"))


def stage_paths(run: Path) -> dict[str, Path]:
    """Name -> directory of the stages of a run. Those that a run of a sweep shares with others lie where its
    ``stages.json`` says.

    Raises:
        UsageError: ``stages.json`` leads out of the sweep.
    """
    shared = run / PLACES
    if not shared.exists():
        return {path.name: path for path in run.iterdir() if (path / "manifest.json").exists()}
    places = json.loads(shared.read_text(encoding="utf-8"))
    sweep = run.resolve().parent.parent
    outside = [place for place in places.values() if not (run / place).resolve().is_relative_to(sweep)]
    if outside:
        raise UsageError(f"{shared} names {outside[0]}, which lies outside of the sweep {sweep}")
    return {name: (run / place).resolve() for name, place in places.items()}


def stage_records(run: Path) -> Iterator[tuple[str, StageRecord]]:
    """The stages of a run directory, by name, in the order in which they were begun."""
    begun = {
        name: path / "manifest.json"
        for name, path in stage_paths(run).items()
        if (path / "manifest.json").exists()
    }
    for name in sorted(begun, key=lambda name: begun[name].stat().st_mtime_ns):
        yield name, StageRecord(begun[name].parent)


def is_sweep(root: Path) -> bool:
    """Whether a directory holds a sweep."""
    mark = read_mark(root)
    if mark is not None:
        return mark.kind == "sweep"
    stored = root / "config.yaml"
    content = yaml.safe_load(stored.read_text(encoding="utf-8")) if stored.is_file() else None
    return isinstance(content, dict) and "sweep" in content


def write_run_files(run: Path, config_text: str, kind: str = "run") -> None:
    """``config.yaml``, ``command.txt`` and ``env.json`` of a run or a sweep.

    Raises:
        UsageError: the directory holds something else.
    """
    claim(run, kind, run.resolve().name)
    write_atomically(run / "config.yaml", config_text)
    write_atomically(run / "command.txt", " ".join(["preferl", *sys.argv[1:]]) + "\n")
    write_atomically(run / "env.json", json.dumps(environment(), indent=2) + "\n")
