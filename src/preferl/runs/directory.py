"""A run on disk: ``runs/<name>/<stage>/`` with its configuration, manifest, metrics, samples and DONE.

A stage directory holds ``config.yaml manifest.json metrics.jsonl samples.jsonl model/ data/ DONE``. DONE is
written last, so a directory without it is unfinished work: the same command does that stage again.
Nothing finished is overwritten unless ``--fresh`` is given. Only ``OUTPUTS`` are ever deleted, and only where
a directory bears preferl's mark (``mark.py``).
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from preferl import __version__
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import plain, read_jsonl, write_atomically
from preferl.runs.mark import check_ours, claim, read_mark, remove

SHARED = "stages.json"  # of a run of a sweep: stage -> its directory, from the run's own
# What a stage writes, and so may delete, in this order: without DONE what is left counts as unfinished.
OUTPUTS = (
    *("DONE", "summary.json", "audit.json", "metrics.jsonl", "samples.jsonl", "manifest.json", "config.yaml"),
    *("model", "value_model", "adapter", "data", "state"),
)
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Versions and machine, for ``env.json`` and the manifests."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "preferl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def hash_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def hash_directory(path: Path) -> str:
    """SHA-256 of what a stage made: its model's weights and its data, whichever are there."""
    inside = path / "model" if (path / "model").is_dir() else path
    files = [p for p in inside.glob("*") if p.suffix in (".safetensors", ".json")]
    files += [p for p in (path / "data").glob("*") if p.is_file()]
    return hash_files(files)


class StageDirectory:
    """The directory of one stage: ``begin`` clears unfinished work, ``finish`` writes DONE."""

    def __init__(self, path: Path, name: str):
        self.path = Path(path)
        self.name = name
        self.started, self.cpu_started = time.time(), time.process_time()

    model = property(lambda self: self.path / "model")
    data = property(lambda self: self.path / "data")
    done = property(lambda self: (self.path / "DONE").exists())

    def settled(self, config: dict[str, Any], fresh: bool) -> bool:
        """True when this stage is finished with this very configuration.

        Raises:
            UsageError: it is finished with another configuration and ``fresh`` is not set, or the
                directory holds something that is not this stage.
        """
        check_ours(self.path, "stage", self.name)
        if fresh or not self.done:
            self._check_deletable()
            return False
        stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        current = yaml.safe_load(yaml.safe_dump(config))
        changed = sorted(k for k in stored.keys() | current.keys() if stored.get(k) != current.get(k))
        if changed:
            shown = ", ".join(f"{k}: {stored.get(k)!r} -> {current.get(k)!r}" for k in changed[:4])
            raise UsageError(
                f"{self.path} was finished with other options ({shown}); "
                f"use --fresh to do it again, or another --output_dir"
            )
        return True

    def _check_deletable(self) -> None:
        """What bears no mark is not begun anew, because that deletes what is there."""
        if self.path.is_dir() and any(self.path.iterdir()) and read_mark(self.path) is None:
            raise UsageError(
                f"{self.path} was made by a preferl that did not mark its directories yet, and nothing in it "
                f"is deleted: choose another --output_dir, or delete it yourself"
            )

    @distributed.main_writes
    def begin(self, config: dict[str, Any], parents: dict[str, str | None], keep: str | None = None) -> None:
        """Clears what an interrupted run left here and writes configuration and manifest.

        Stages inside this one whose names begin with ``keep`` stay, and so does what no stage wrote. Of
        ``parents`` (role to model or data set) the manifest keeps path and hash of local directories.

        Raises:
            UsageError: the directory is not this stage's, or the stage would read what it deletes.
        """
        own = [role for role, path in parents.items() if path and Path(path).resolve() == self.path.resolve()]
        if own:
            raise UsageError(
                f"{self.path} is the {own[0]} that {self.name} reads and would be replaced by what it "
                f"makes; choose another --output_dir (nothing was changed)"
            )
        claim(self.path, "stage", self.name)
        self._check_deletable()
        for name in OUTPUTS:
            remove(self.path / name)
        for path in sorted(self.path.iterdir()):
            inside = read_mark(path) if path.is_dir() and not path.is_symlink() else None
            if inside and inside.kind == "stage" and not (keep and path.name.startswith(keep)):
                remove(path)
        self.started, self.cpu_started = time.time(), time.process_time()
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text)
        self.write_json(
            "manifest.json",
            {
                "stage": self.name,
                "seed": config.get("seed"),
                "environment": environment(),
                "parents": self._parents(parents),
            },
        )

    def _parents(self, parents: dict[str, str | None]) -> dict[str, dict[str, str]]:
        return {
            role: {"path": os.path.relpath(path, self.path), "hash": hash_directory(Path(path))}
            for role, path in parents.items()
            if path and Path(path).is_dir()
        }

    def continues(self, config: dict[str, Any], parents: dict[str, str | None]) -> bool:
        """Whether what was interrupted here had this configuration and these parents, byte for byte."""
        stored_file, manifest_file = self.path / "config.yaml", self.path / "manifest.json"
        if self.done or not (stored_file.exists() and manifest_file.exists()):
            return False
        stored = yaml.safe_load(stored_file.read_text(encoding="utf-8"))
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        same = stored == yaml.safe_load(yaml.safe_dump(config))
        return same and manifest["parents"] == self._parents(parents)

    @distributed.main_writes
    def cut(self, step: int) -> None:
        """Drops what was logged after ``step``, before an interrupted stage goes on from there."""
        for name, key in (("metrics.jsonl", "step"), ("samples.jsonl", "iteration")):
            path = self.path / name
            if path.exists():  # a line that was being written when the run was killed has no end
                whole = path.read_bytes()
                path.write_bytes(whole[: whole.rfind(b"\n") + 1])
            rows = [row for row in read_jsonl(path) if row[key] <= step]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(path, text)

    @distributed.main_writes
    def finish(self, **summary: Any) -> None:
        """Writes ``summary.json`` with the seconds by the clock and of all this process's threads, and DONE
        after everything else."""
        took = {
            "seconds": round(time.time() - self.started, 2),
            "cpu_seconds": round(time.process_time() - self.cpu_started, 2),
        }
        self.write_json("summary.json", summary | took)
        write_atomically(self.path / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))

    @distributed.main_writes
    def log(self, **metrics: Any) -> None:
        """Appends one row to ``metrics.jsonl``."""
        self._append("metrics.jsonl", [metrics])

    @distributed.main_writes
    def log_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows to ``samples.jsonl``."""
        self._append("samples.jsonl", rows)

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(plain(value), indent=2, ensure_ascii=False)
        write_atomically(self.path / name, text + "\n")

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")


class StageRecord:
    """A finished stage, read from its directory: what the report and the next stages see."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        self.manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        summary = path / "summary.json"
        self.summary = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
        self.metrics = read_jsonl(path / "metrics.jsonl")
        self.samples = read_jsonl(path / "samples.jsonl")
        self.done = (path / "DONE").exists()

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """The reward stage's ``audit.json``, where it wrote one."""
        path = self.path / "audit.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def stage_records(run: Path) -> Iterator[tuple[str, StageRecord]]:
    """The stages of a run directory, by name, in the order in which they were begun. Those that a run of a
    sweep shares with others lie where its ``stages.json`` says.

    Raises:
        UsageError: ``stages.json`` leads out of the sweep.
    """
    shared = run / SHARED
    places = json.loads(shared.read_text(encoding="utf-8")).values() if shared.exists() else []
    sweep = run.resolve().parent.parent
    outside = [place for place in places if not (run / place).resolve().is_relative_to(sweep)]
    if outside:
        raise UsageError(f"{shared} names {outside[0]}, which lies outside of the sweep {sweep}")
    found = {p.resolve() for p in (*run.iterdir(), *(run / place for place in places))}
    found = {p for p in found if (p / "manifest.json").exists()}
    for path in sorted(found, key=lambda p: (p / "manifest.json").stat().st_mtime_ns):
        yield path.name, StageRecord(path)


def is_sweep(root: Path) -> bool:
    """Whether a directory holds a sweep."""
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
