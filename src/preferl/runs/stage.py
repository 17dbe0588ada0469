"""One stage on disk: ``runs/<name>/<stage>/`` with its configuration, manifest, metrics, samples and DONE.

A stage directory holds ``config.yaml manifest.json metrics.jsonl samples.jsonl model/ data/ state/ DONE``.
The manifest says what the stage is made of (``inputs.py``); DONE holds the hash of that and is written last.
So a directory without DONE is unfinished work: the same command goes on there, from the last checkpoint or
the last part in ``state/``; and one whose DONE is of other options or other inputs is not what was asked for.
Nothing is overwritten unless ``--fresh`` is given. Only ``OUTPUTS`` are ever deleted, and only where a
directory bears preferl's mark (``mark.py``). One command at a time works in a directory (``lock.py``).

    with Stage("dpo", config, fresh) as stage:
        if stage.is_finished:
            return stage.path
        ...                                   # load what cheap checks did not refuse
        saved = stage.begin(source.notes)
        ...                                   # stage.log(step=1, **{"train/loss": loss})
        stage.finish(updates=updates)
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from preferl.runs import checkpoint, devices, disks, distributed, lock, memory
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.environment import environment
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.files import parsed_lines, plain, read_json, read_jsonl, write_atomically, write_json
from preferl.runs.found import examine, plain_options, refuse_unmarked
from preferl.runs.inputs import hash_of, identify
from preferl.runs.mark import claim, read_mark, refuse_no_place, remove
from preferl.runs.progress import is_new, say
from preferl.runs.ranges import check_ranges
from preferl.runs.tracking import IDS, Tracked, Trackers

# What a stage writes, and so may delete, in this order: without DONE what is left counts as unfinished.
OUTPUTS = (
    *("DONE", "summary.json", "audit.json", "metrics.jsonl", "samples.jsonl", "manifest.json", "config.yaml"),
    *("model", "value_model", "adapter", "last_good", "data", "state", "tensorboard", "wandb", "trackio"),
)
LOGS = {"metrics.jsonl": "step", "samples.jsonl": "iteration"}

Callback = Callable[[int | None, dict[str, Any]], None]
WhyNot = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
"""Stored options, and today's -> why an unfinished stage cannot go on with today's, or None."""


class Stage:
    """What every stage does before and after its own work.

    Args:
        name: the kind of stage, as ``reward``.
        config: its options, a dataclass with ``output_dir`` and those of ``StageOptions``.
        fresh: do it anew, whatever is there; a redo that was interrupted goes on. A text names the redo that
            this is part of: one that was begun under another name does not go on.
        callbacks: called with step and metrics of every logged row.
        extendable: options that may change while the stage is unfinished, where nothing says why not.

    Raises:
        UsageError: the directory is in use, holds something that is not this stage, or this stage with other
            options or inputs, and ``fresh`` is not set; or what it reads is not finished.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        fresh: bool | str = False,
        callbacks: Sequence[Callback] = (),
        extendable: Mapping[str, WhyNot] | None = None,
    ):
        check_ranges(config)  # again: a field may have been set since the options were made
        self.name, self.config, self.fresh = name, config, fresh
        self.extendable = extendable or {}
        self.path = Path(config.output_dir)
        self.options = plain_options(config)
        self.callbacks = list(callbacks)
        self.trackers = Trackers((), Tracked(self.path, self.options, self.state / IDS), name)
        self.notes: list[str] = []
        self.chosen: dict[str, Any] = {}  # values of options that were left open
        refuse_no_place(self.path)
        lock.refuse_if_held(self.path)
        self.identity = identify(self.options)
        self.found = examine(self.path, name, self.identity)
        self.is_finished = not fresh and self.found.is_this_finished(self.path)
        self.goes_on = not self.is_finished and self._goes_on()
        self.started, self.cpu_started = time.time(), time.process_time()
        self._context = contextlib.ExitStack()

    model = property(lambda self: self.path / "model")
    data = property(lambda self: self.path / "data")
    state = property(lambda self: self.path / "state")

    def _goes_on(self) -> bool:
        """Whether what was interrupted here had these options and inputs, byte for byte.

        Raises:
            UsageError: it had others, and has work in it that would be lost.
        """
        found = self.found
        same = found.is_unfinished and (not found.changes or self._extends())
        if self.fresh:
            refuse_unmarked(self.path)
            redo = self.fresh if isinstance(self.fresh, str) else found.redo
            return same and redo is not None and found.redo == redo
        if found.is_unfinished and not same and checkpoint.has_work(self.state):
            raise UsageError(
                f"{self.path} is unfinished and was begun with other options or inputs ({found.changes}): "
                f"as it was begun it goes on; use --fresh to begin it anew, or another --output_dir"
            )
        return same

    def _extends(self) -> bool:
        """Whether nothing has changed since this stage was interrupted but that it is to be longer.

        Raises:
            UsageError: so it is, and the schedule does not allow it.
        """
        changes = self.found.changes
        if changes.inputs or not changes.options.keys() <= self.extendable.keys():
            return False
        for option in changes.options:
            reason = self.extendable[option](self.found.stored, self.options)
            if reason and not self.fresh:
                raise UsageError(
                    f"{self.path} is unfinished, and cannot go on with {changes}: {reason}; give the old "
                    f"values to go on, or --fresh to begin anew"
                )
            if reason:
                return False
        return True

    @property
    def owner(self) -> str:
        """SHA-256 of what decides which checkpoints are this stage's: its kind, its inputs, and the options
        that may not change while it is unfinished."""
        options = {key: value for key, value in self.identity.options.items() if key not in self.extendable}
        content = {role: found.content for role, found in self.identity.inputs.items()}
        return hash_of({"stage": self.name} | options, content)

    def __enter__(self) -> Self:
        """Joins the other processes, seeds, and chooses ``device`` and ``dtype``, as long as it lasts."""
        if self.is_finished:
            if distributed.is_main():
                remove(self.state)  # it was killed between DONE and the end
            unknown = "" if self.found.has_inputs else ", by a preferl that did not record inputs yet"
            self.say(f"finished before in {self.path}{unknown}")
            return self
        self._context.enter_context(disks.watched(self.path))
        self._context.enter_context(distributed.process_group())
        # What was chosen when it was begun is chosen again, on whatever machine it goes on.
        chosen = self.found.chosen if self.goes_on else {}
        dtype, threads = self.config.dtype, self.config.num_threads
        prepared = devices.prepared(
            self.config.seed,
            self.config.device,
            chosen.get("dtype", dtype) if dtype == "auto" else dtype,
            threads or chosen.get("num_threads", 0),
        )
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

    def choose(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Records the values of options that were left open, as the model at hand decides; a stage that goes
        on has those with which it was begun. Before ``begin``."""
        kept = self.found.chosen if self.goes_on else {}
        found = {name: kept.get(name, value) for name, value in values.items()}
        self.chosen |= found
        return found

    def choose_anew(self, **values: Any) -> None:
        """Records other values of such options from here on, in ``manifest.json``. After ``begin``."""
        self.chosen |= values
        manifest = read_json(self.path / "manifest.json")
        manifest["chosen"] |= values
        self.write_json("manifest.json", manifest)

    def say(self, text: str) -> None:
        """One line for the person who runs the stage."""
        say(f"{self.name}: {text}")

    def begin(self, notes: Iterable[str] = (), keep: str | None = None) -> Checkpoint | None:
        """Goes on with what was interrupted here, or clears it and writes configuration and manifest. Until
        the stage is left, no other command works in its directory.

        Args:
            notes: sentences about the data, which are said and kept.
            keep: stages inside this one whose names begin so stay (unless the stage is done afresh).

        Returns:
            The checkpoint to go on from, its later logs cut off; None to start at the beginning.

        Raises:
            UsageError: the directory is not this stage's, or in use, or the stage would read what it deletes.
        """
        self._refuse_own()
        claim(self.path, "stage", self.name)
        refuse_unmarked(self.path)
        killed = memory.ended_by_kernel(self.state)
        self.identity = identify(self.options)  # with the revisions of what came from the Hub meanwhile
        self._lock()
        saved = checkpoint.latest(self.state, self.owner) if self.goes_on else None
        logged = self._last_step() if self.config.report_to else -1
        if self.goes_on and self.found.changes:
            self.say(f"is made longer: {self.found.changes}")
            distributed.main_writes(self._write_record)()
        if saved is None:
            if self.found.is_unfinished and not self.goes_on and not self.fresh:
                self.say(f"begins anew, nothing had been kept: {self.found.changes}")
            self._clear(keep if self.goes_on or not self.fresh else None)
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
        new = [note for note in self.notes if is_new(note)]
        for note in new:
            self.say(note)
        if len(new) < len(self.notes):
            self.say("its data are read as above")
        after = None if saved is None else saved.step
        tracked = Tracked(self.path, self.options, self.state / IDS, after, logged)
        with distributed.sync_errors():
            self.trackers = Trackers(self.config.report_to, tracked, self.name)
        self._context.callback(self.trackers.close)
        return saved

    def _lock(self) -> None:
        """Keeps others out, and sees what they did until now."""
        with distributed.sync_errors():
            if distributed.rank() == 0:
                self._context.enter_context(lock.hold(self.path))
                if examine(self.path, self.name, self.identity).state != self.found.state:
                    raise UsageError(
                        f"{self.path} was changed by another command meanwhile; give this one again"
                    )

    def _refuse_own(self) -> None:
        for role, found in self.identity.inputs.items():
            if found.path is not None and found.path.resolve() == self.path.resolve():
                raise UsageError(
                    f"{self.path} is the {role} that {self.name} reads and would be replaced by what it "
                    f"makes; choose another --output_dir (nothing was changed)"
                )

    @distributed.main_writes
    def _clear(self, keep: str | None) -> None:
        """Removes what an earlier run left; where this one goes on, all but the parts that are ready."""
        for name in OUTPUTS:
            if not (self.goes_on and name in ("state", "config.yaml", "manifest.json")):
                remove(self.path / name)
        for path in sorted(self.path.iterdir()):
            inside = read_mark(path) if path.is_dir() and not path.is_symlink() else None
            if inside and inside.kind == "stage" and not (keep and path.name.startswith(keep)):
                remove(path)
        if not self.goes_on:
            self._write_record()

    def _write_record(self) -> None:
        """What this stage is made of, in ``config.yaml`` and ``manifest.json``."""
        text = yaml.safe_dump(self.options, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text)
        redo = self.fresh if isinstance(self.fresh, str) else time.strftime("%Y-%m-%dT%H:%M:%S")
        begun = {"redo": redo} if self.fresh else {}
        # What was chosen for it is only recorded: it makes nothing stale.
        chosen = devices.chosen(self.device, self.dtype) | self.chosen
        if self.goes_on:
            begun, chosen = ({"redo": self.found.redo} if self.found.redo else {}), self.found.chosen
        self.write_json(
            "manifest.json",
            {
                "stage": self.name,
                "seed": self.options.get("seed"),
                **self.identity.recorded(self.path),
                **begun,
                "chosen": chosen,
                "environment": environment(),
            },
        )

    def _last_step(self) -> int:
        """The last step that was logged here; -1 where there is none, or what there is cannot be read."""
        with contextlib.suppress(UsageError):
            rows = read_jsonl(self.path / "metrics.jsonl")
            return max((row["step"] for row in rows if "step" in row), default=-1)
        return -1

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
        process's threads; then DONE, removes what only an interruption needed, and last of all tells the
        trackers."""
        disks.check_still_there(self.path, "manifest.json")
        took = {
            "peak_memory_mib": devices.peak_memory_mib(self.device),
            "notes": self.notes,
            "seconds": round(time.time() - self.started, 2),
            "cpu_seconds": round(time.process_time() - self.cpu_started, 2),
        }
        self.write_json("summary.json", summary | took)
        self.write_json(
            "DONE", {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "made_of": self.identity.hash}
        )
        remove(self.state)
        self.trackers.finish(summary | took)

    def log(self, **metrics: Any) -> None:
        """Appends one row to ``metrics.jsonl``, and hands it to the trackers and the callbacks."""
        self._append("metrics.jsonl", [metrics])
        self.trackers.numbers(metrics)
        if distributed.rank() == 0:
            row = plain(metrics)
            for callback in self.callbacks:
                callback(row.get("step"), row)

    def log_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows to ``samples.jsonl``, and hands them to the trackers."""
        rows = list(rows)
        self._append("samples.jsonl", rows)
        self.trackers.samples(rows)

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    @distributed.main_writes
    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
