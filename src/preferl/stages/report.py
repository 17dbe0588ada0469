"""report: one self-contained HTML file from a run's files: what was gained, what it cost, was it hacked.

Reads ``summary.json``, ``metrics.jsonl`` and ``samples.jsonl`` of the stages that are there; sections appear
when their data exists. Plots are inline SVG, everything shown is escaped, and nothing is fetched.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from preferl.reporting.evaluation import examples
from preferl.reporting.measures import Runs, Stages
from preferl.reporting.page import write_page
from preferl.reporting.sections import sections
from preferl.reporting.verdict import facts, overall, verdict
from preferl.runs.errors import UsageError
from preferl.runs.record import PLACES, stage_records

# What every page reads of an evaluation.
NEEDED = ("policies", "comparison", "references", "signs", "training", "cost", "best_of", "num_generations")
ROUND = re.compile(r"(collect|reward|rl)(?:-(\d+))?")


def write(run: Path, path: Path | None = None) -> Path:
    """Writes a run's page, by default ``report.html`` in its directory; returns its path.

    Raises:
        UsageError: the directory holds no finished stage.
    """
    stages = finished_stages(run)
    name = "/".join(run.resolve().parts[-2 if (run / PLACES).exists() else -1 :])
    return write_runs(
        path or run / "report.html",
        {name: stages},
        made_from=list(stages),
        examples=examples(stages),
        notes=notes(stages),
    )


def verdict_of(run: Path) -> str:
    """A run's verdict in one word or two, as on top of its page."""
    return verdict(finished_stages(run)).word


def compare(runs: Sequence[Path], path: Path | None = None) -> Path:
    """Writes one page about several runs, by default ``comparison.html`` beside the first; returns its path.

    Raises:
        UsageError: one is no run, or two are the same.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError(f"the same run is named twice: {', '.join(map(str, runs))}")
    places = [run.resolve() for run in runs]
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        shared = Path(os.path.commonpath(places))
        names = [str(place.relative_to(shared)) for place in places]
    found = {name: finished_stages(run) for name, run in zip(names, runs, strict=True)}
    return write_runs(path or runs[0].resolve().parent / "comparison.html", found, made_from=names)


def write_runs(path: Path, runs: Runs, **more: Any) -> Path:
    """Writes the page of runs; ``more`` are arguments of ``write_page``."""
    configs = [
        (
            stage if len(runs) == 1 else f"{name}: {stage}",
            yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        )
        for name, stages in runs.items()
        for stage, record in stages.items()
    ]
    return write_page(
        path,
        name=" · ".join(runs),
        verdict=overall(runs),
        facts=facts(runs),
        sections=sections(runs),
        configs=configs,
        **more,
    )


def finished_stages(run: Path) -> Stages:
    """The finished stages of a run's directory.

    Raises:
        UsageError: it is no directory, or holds no finished stage.
    """
    if not run.is_dir():
        raise UsageError(f"{run} is not a directory; give the directory of a run, such as runs/demo")
    try:
        stages = latest_round({name: record for name, record in stage_records(run) if record.done})
    except json.JSONDecodeError as error:
        raise UsageError(f"a file of {run} is damaged ({error}); run its stage again with --fresh") from error
    if not stages:
        raise UsageError(f"{run} holds no finished stage; run `preferl run` or `preferl demo` first")
    if "evaluate" in stages:
        known = stages["evaluate"].summary
        missing = [key for key in NEEDED if key not in known]
        if missing or not stages["evaluate"].samples:
            raise UsageError(
                f"{run}/evaluate was made by an older preferl or is damaged (no "
                f"{missing[0] if missing else 'samples'}); run `evaluate` again with --fresh"
            )
    return stages


def latest_round(stages: Stages) -> Stages:
    """The last of a run's rounds under the plain names, those before it as "rl, round 1" and so on."""
    rounds = {name: (match[1], int(match[2] or 1)) for name in stages if (match := ROUND.fullmatch(name))}
    last = dict(sorted(rounds.values()))
    named: Stages = {}
    for name, record in stages.items():
        kind, number = rounds.get(name, (name, 0))
        named[kind if number == last.get(kind, 0) else f"{kind}, round {number}"] = record
    return named


def notes(stages: Stages) -> list[str]:
    """What the stages said about their data, each sentence once."""
    seen: dict[str, None] = {}
    for record in stages.values():
        for note in record.summary.get("notes", []):
            seen.setdefault(note)
    return list(seen)
