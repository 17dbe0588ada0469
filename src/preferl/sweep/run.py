"""Runs what a sweep is missing, and writes its tables and its page."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preferl.data.records import DataError
from preferl.pipeline import check_stages, run_stage, write_report
from preferl.reporting import sweeps
from preferl.runs import lock
from preferl.runs.errors import DATA, UsageError
from preferl.runs.files import write_atomically
from preferl.runs.mark import check_ours, claim
from preferl.runs.progress import say
from preferl.runs.record import Redo, write_run_files
from preferl.sweep.numbers import metrics_of, missing_metric, rows_of
from preferl.sweep.plan import Point, Run, SweepConfig, plan_all, points_of, write_places, written_config


@dataclass(frozen=True)
class Outcome:
    """What a sweep left; ``exit_code`` is that of the first error, 0 without one."""

    report: Path
    runs: int
    errors: list[str]
    exit_code: int


def run(config: SweepConfig, fresh: bool = False, keep_stale: bool = False) -> Outcome:
    """Runs what is missing, then writes ``table.csv``, ``table.json`` and ``report.html``.

    A run that fails is recorded in its directory as ``error.txt`` and in the tables; the sweep goes on.
    ``fresh`` and ``keep_stale`` are those of ``pipeline.run``.

    Raises:
        UsageError: a key, value, metric or directory cannot be used; found before anything runs, save for
            a metric that no summary has.
    """
    root, seeds = config.root, config.options.seeds
    points = points_of(config)
    runs = plan_all(root, points, seeds)
    metrics = metrics_of(config, runs)
    check_ours(root, "sweep", root.name)
    lock.refuse_if_held(root)
    redo = Redo(root, config.to_yaml(), fresh)
    for run_ in runs:
        check_ours(run_.path, "run", run_.path.name)
        check_stages(run_.stages, run_.places, redo.name)
    claim(root, "sweep", root.resolve().name)
    with lock.hold(root):
        redo.begin()
        outcome = run_all(config, points, runs, metrics, redo.name, keep_stale)
        if not outcome.errors:
            redo.end()
    return outcome


def run_all(
    config: SweepConfig,
    points: Sequence[Point],
    runs: Sequence[Run],
    metrics: Mapping[str, str],
    redo: str | None,
    keep_stale: bool,
) -> Outcome:
    """Every run of a sweep, in order, and after each of them the tables."""
    root, seeds = config.root, config.options.seeds
    write_run_files(root, config.to_yaml())
    for run_ in runs:  # before any stage that another one shares lies in it
        claim(run_.path, "run", run_.path.name)
    write_places(root, runs)
    say(f"sweep: {len(points)} points x {len(seeds)} seeds in {root}; {counts(runs)}")
    made: set[Path] = set()
    broken: dict[Path, Exception] = {}
    errors: dict[tuple[str, int], Exception] = {}
    for number, run_ in enumerate(runs, 1):
        say(f"sweep: run {number}/{len(runs)}: {run_.point.name}, seed {run_.seed}")
        note = run_.path / "error.txt"
        try:
            run_stages(run_, made, broken, redo, keep_stale)
            note.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001 - recorded, shown in the table, said by the exit code
            errors[run_.point.name, run_.seed] = error
            write_atomically(note, f"{error_line(error)}\n\n{traceback.format_exc()}")
            say(f"sweep: failed: {error_line(error)}")
        notes = {key: error_line(error) for key, error in errors.items()}
        rows = rows_of(points, runs, metrics, notes)
        sweeps.write_tables(root, rows, metrics, seeds)
    file = sweeps.page(root)
    if not errors:
        for name, path in config.options.metrics.items():
            if not any(row.values[name] for row in rows):
                raise UsageError(missing_metric(name, path, runs))
    return Outcome(
        report=file,
        runs=len(runs),
        errors=[f"{point}/seed-{seed}: {error_line(error)}" for (point, seed), error in errors.items()],
        exit_code=next(map(exit_code_of, errors.values()), 0),
    )


def run_stages(
    run_: Run, made: set[Path], broken: dict[Path, Exception], redo: str | None, keep_stale: bool
) -> None:
    """Runs the stages of one run that no run before has made. A stage that failed is not tried again by the
    runs that share it."""
    write_run_files(run_.path, written_config(run_).to_yaml())
    for stage in run_.stages:
        path = run_.places[stage.reference]
        for needed in (path, *run_.needs(stage)):
            if needed in broken:
                raise broken[needed]
        try:
            run_stage(stage, run_.places, made, redo, keep_stale)
        except Exception as error:
            broken[path] = error
            raise
    stale = not made.isdisjoint(run_.where.values()) or not (run_.path / "report.html").exists()
    if "report" in run_.config.stages and stale:
        write_report(run_.path, run_.config)


def counts(runs: Sequence[Run]) -> str:
    """How many of each stage there are: ``3 sft, 3 collect, 15 reward``."""
    return sweeps.counts([run_.where for run_ in runs])


def error_line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def exit_code_of(error: Exception) -> int:
    return getattr(error, "exit_code", DATA if isinstance(error, DataError) else 1)
