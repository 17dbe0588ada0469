"""One stage on disk: ``runs/<name>/<stage>/`` with its configuration, manifest, metrics, samples and DONE.

A stage directory holds ``config.yaml manifest.json metrics.jsonl samples.jsonl model/ data/ state/ DONE``.
DONE is written last, so a directory without it is unfinished work: the same command goes on there, from the
last checkpoint or the last part in ``state/``. Nothing finished is overwritten unless ``--fresh`` is given.
Only ``OUTPUTS`` are ever deleted, and only where a directory bears preferl's mark (``mark.py``).

    with Stage("dpo", config, fresh) as stage:
        if stage.is_finished:
            return stage.path
        ...                                   # load what cheap checks did not refuse
        saved = stage.begin({"policy": config.model_name_or_path}, source.notes)
        ...                                   # stage.log(step=1, **{"train/loss": loss})
        stage.finish(updates=updates)
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from preferl.runs import checkpoint, devices, disks, distributed, memory
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.environment import environment
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.files import parsed_lines, plain, read_json, read_yaml, write_atomically
from preferl.runs.mark import check_ours, claim, read_mark, remove
from preferl.runs.progress import say
from preferl.runs.ranges import check_ranges

# What a stage writes, and so may delete, in this order: without DONE what is left counts as unfinished.
OUTPUTS = (
    *("DONE", "summary.json", "audit.json", "metrics.jsonl", "samples.jsonl", "manifest.json", "config.yaml"),
    *("model", "value_model", "adapter", "data", "state"),
)
LOGS = {"metrics.jsonl": "step", "samples.jsonl": "iteration"}
# Options that change where and how fast a stage runs, and nothing that it makes.
NOT_COMPARED = ("output_dir", "device", "num_threads", "save_every")

Callback = Callable[[int | None, dict[str, Any]], None]


class Stage:
    """What every stage does before and after its own work.

    Args:
        name: the kind of stage, as ``reward``.
        config: its options, a dataclass with ``output_dir`` and those of ``DeviceOptions``.
        fresh: do it anew, whatever is there.
        callbacks: called with step and metrics of every logged row.

    Raises:
        UsageError: the directory holds something that is not this stage, or this stage finished with other
            options and ``fresh`` is not set.
    """

    def __init__(self, name: str, config: Any, fresh: bool = False, callbacks: Sequence[Callback] = ()):
        check_ranges(config)  # again: a field may have been set since the options were made
        self.name, self.config, self.fresh = name, config, fresh
        self.path = Path(config.output_dir)
        self.options = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))
        self.callbacks = list(callbacks)
        self.notes: list[str] = []
        self.is_finished = is_finished(self.path, name, self.options, fresh)
        self.started, self.cpu_started = time.time(), time.process_time()
        self._context = contextlib.ExitStack()

    model = property(lambda self: self.path / "model")
    data = property(lambda self: self.path / "data")
    state = property(lambda self: self.path / "state")

    def __enter__(self) -> Self:
        """Joins the other processes, seeds, and chooses ``device`` and ``dtype``, as long as it lasts."""
        if self.is_finished:
            say(f"{self.name}: finished before in {self.path}")
            return self
        options = self.config
        self._context.enter_context(disks.watched(self.path))
        self._context.enter_context(distributed.process_group())
        prepared = devices.prepared(options.seed, options.device, options.dtype, options.num_threads)
        try:
            self.device, self.dtype = self._context.enter_context(prepared)
        except BaseException:
            self._context.close()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is DivergedError:
            self.say(disks.survivors(self.path))
        self._context.__exit__(*exception)

    def say(self, text: str) -> None:
        """One line for the person who runs the stage."""
        say(f"{self.name}: {text}")

    def begin(
        self, parents: Mapping[str, str | None], notes: Iterable[str] = (), keep: str | None = None
    ) -> Checkpoint | None:
        """Goes on with what was interrupted here, or clears it and writes configuration and manifest.

        Args:
            parents: role -> model or data set. The manifest keeps path and hash of local directories.
            notes: sentences about the data, which are said and kept.
            keep: stages inside this one whose names begin so stay (unless the stage is done afresh).

        Returns:
            The checkpoint to go on from, its later logs cut off; None to start at the beginning.

        Raises:
            UsageError: the directory is not this stage's, or the stage would read what it deletes.
        """
        self._refuse_own(parents)
        claim(self.path, "stage", self.name)
        refuse_unmarked(self.path)
        killed = memory.ended_by_kernel(self.state)
        hashed = hash_parents(self.path, parents)
        goes_on = not self.fresh and self.can_resume(hashed)
        saved = checkpoint.latest(self.state) if goes_on else None
        if saved is None:
            self._clear(hashed, goes_on, None if self.fresh else keep)
            parts = checkpoint.parts_ready(self.state)
            if parts:
                self.say(f"goes on after {parts} parts that are ready")
        else:
            self.truncate_logs(saved.step)
            self.say(f"goes on after step {saved.step}")
        memory.note_start(self.state)
        self._context.callback(memory.forget_start, self.state)
        if killed:
            self.say(killed)
        self.started, self.cpu_started = time.time(), time.process_time()
        self.notes = list(notes)
        for note in self.notes:
            self.say(note)
        return saved

    def _refuse_own(self, parents: Mapping[str, str | None]) -> None:
        own = [role for role, path in parents.items() if path and Path(path).resolve() == self.path.resolve()]
        if own:
            raise UsageError(
                f"{self.path} is the {own[0]} that {self.name} reads and would be replaced by what it "
                f"makes; choose another --output_dir (nothing was changed)"
            )

    def can_resume(self, hashed_parents: dict[str, dict[str, str]]) -> bool:
        """Whether what was interrupted here had this configuration and these parents, byte for byte."""
        stored_file, manifest_file = self.path / "config.yaml", self.path / "manifest.json"
        if (self.path / "DONE").exists() or not (stored_file.exists() and manifest_file.exists()):
            return False
        stored, manifest = read_yaml(stored_file), read_json(manifest_file)
        return not changed_options(stored, self.options) and manifest["parents"] == hashed_parents

    @distributed.main_writes
    def _clear(self, hashed_parents: dict[str, dict[str, str]], goes_on: bool, keep: str | None) -> None:
        """Removes what an earlier run left; where this one goes on, all but the parts that are ready."""
        for name in OUTPUTS:
            if not (goes_on and name in ("state", "config.yaml", "manifest.json")):
                remove(self.path / name)
        for path in sorted(self.path.iterdir()):
            inside = read_mark(path) if path.is_dir() and not path.is_symlink() else None
            if inside and inside.kind == "stage" and not (keep and path.name.startswith(keep)):
                remove(path)
        if goes_on:
            return
        text = yaml.safe_dump(self.options, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text)
        self.write_json(
            "manifest.json",
            {
                "stage": self.name,
                "seed": self.options.get("seed"),
                "environment": environment(),
                "parents": hashed_parents,
            },
        )

    @distributed.main_writes
    def truncate_logs(self, step: int) -> None:
        """Drops what was logged after ``step``, before an interrupted stage goes on from there: also rows
        without a step, which follow the training."""
        for name, key in LOGS.items():
            path = self.path / name
            if path.exists():
                content = path.read_bytes()
                # A line that was being written when the run was killed has no end.
                whole = content[: content.rfind(b"\n") + 1]
                kept = [line for row, line in parsed_lines(path, whole) if row.get(key, math.inf) <= step]
                write_atomically(path, b"".join(kept).decode())

    @distributed.main_writes
    def finish(self, **summary: Any) -> None:
        """Writes ``summary.json`` with the notes, peak memory, and the seconds by the clock and of all this
        process's threads; then DONE, and last of all removes what only an interruption needed."""
        disks.check_still_there(self.path, "manifest.json")
        took = {
            "peak_memory_mib": devices.peak_memory_mib(self.device),
            "notes": self.notes,
            "seconds": round(time.time() - self.started, 2),
            "cpu_seconds": round(time.process_time() - self.cpu_started, 2),
        }
        self.write_json("summary.json", summary | took)
        write_atomically(self.path / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
        remove(self.state)

    def log(self, **metrics: Any) -> None:
        """Appends one row to ``metrics.jsonl``, and hands it to the callbacks."""
        self._append("metrics.jsonl", [metrics])
        if distributed.rank() == 0:
            row = plain(metrics)
            for callback in self.callbacks:
                callback(row.get("step"), row)

    def log_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows to ``samples.jsonl``."""
        self._append("samples.jsonl", rows)

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(plain(value), indent=2, ensure_ascii=False)
        write_atomically(self.path / name, text + "\n")

    @distributed.main_writes
    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")


def is_finished(path: Path, name: str, options: dict[str, Any], fresh: bool = False) -> bool:
    """Whether a directory holds this stage, finished with these options.

    Raises:
        UsageError: it is finished with other options and ``fresh`` is not set, or the directory holds
            something that is not this stage.
    """
    check_ours(path, "stage", name)
    options = yaml.safe_load(yaml.safe_dump(options))
    if fresh or not (path / "DONE").exists():
        refuse_unmarked(path)
        return False
    stored = read_yaml(path / "config.yaml")
    changed = changed_options(stored, options)
    if changed:
        shown = ", ".join(f"{k}: {stored.get(k)!r} -> {options.get(k)!r}" for k in changed[:4])
        raise UsageError(
            f"{path} was finished with other options ({shown}); "
            f"use --fresh to do it again, or another --output_dir"
        )
    return True


def changed_options(stored: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The options that differ and decide what a stage makes."""
    both = sorted(stored.keys() | options.keys())
    return [key for key in both if key not in NOT_COMPARED and stored.get(key) != options.get(key)]


def refuse_unmarked(path: Path) -> None:
    """What bears no mark is not begun anew, because that deletes what is there.

    Raises:
        UsageError: the directory holds a stage from before there were marks.
    """
    if path.is_dir() and any(path.iterdir()) and read_mark(path) is None:
        raise UsageError(
            f"{path} was made by a preferl that did not mark its directories yet, and nothing in it is "
            f"deleted: choose another --output_dir, or delete it yourself"
        )


def hash_parents(stage: Path, parents: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """Path (from the stage's directory) and hash of every parent that is a local directory."""
    return {
        role: {"path": os.path.relpath(path, stage), "hash": hash_directory(Path(path))}
        for role, path in parents.items()
        if path and Path(path).is_dir()
    }


def hash_directory(path: Path) -> str:
    """SHA-256 of what a stage made: its model's weights and its data, whichever are there."""
    inside = path / "model" if (path / "model").is_dir() else path
    files = [p for p in inside.glob("*") if p.suffix in (".safetensors", ".json")]
    files += [p for p in (path / "data").glob("*") if p.is_file()]
    return hash_files(files)


def hash_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
