"""report: one self-contained HTML file from a run's files: what was gained, what it cost, was it hacked.

Reads ``summary.json``, ``metrics.jsonl`` and ``samples.jsonl`` of the stages that are there; sections appear
when their data exists. Plots are inline SVG, everything shown is escaped, and nothing is fetched.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from preferl.reporting import comparison, cost, evaluation, hacking, rewards, training
from preferl.reporting.page import Stages, section, write_page
from preferl.reporting.verdict import facts, verdict
from preferl.runs.errors import UsageError
from preferl.runs.record import SHARED, stage_records

# What every page reads of an evaluation.
NEEDED = ("policies", "comparison", "references", "signs", "training", "cost", "best_of", "num_generations")
ROUND = re.compile(r"(collect|reward|rl)(?:-(\d+))?")

# Title of a section -> what makes its plots and tables, each from the stages that are there, or None.
SECTIONS = {
    "Did it work?": (
        evaluation.policies_table,
        evaluation.win_rates_table,
        evaluation.categories_table,
        training.rl_reward_plot,
        training.rl_kl_plot,
    ),
    "What the KL bought": (hacking.frontier_plots, hacking.prediction_table, hacking.adjusted_table),
    "Was the reward hacked?": (
        hacking.over_optimisation_plot,
        hacking.best_of_n_plot,
        hacking.signs_plot,
        training.rl_length_plot,
        hacking.signs_table,
        training.alarms_table,
    ),
    "What it cost": (cost.cost_plot, cost.equal_cost_table, cost.stages_table, cost.memory_table),
    "The reward model": (
        rewards.reward_plot,
        rewards.calibration_plot,
        rewards.reward_table,
        hacking.verification_table,
        rewards.audit_table,
        rewards.benchmark_table,
        rewards.bias_table,
        rewards.disagreement_table,
    ),
    "How it was trained": (
        training.rl_health_plot,
        training.dpo_plot,
        training.sft_plot,
        training.rounds_table,
        training.checks_table,
    ),
}


def write(run: Path, path: Path | None = None) -> Path:
    """Writes a run's page, by default ``report.html`` in its directory; returns its path.

    Raises:
        UsageError: the directory holds no finished stage.
    """
    stages = finished_stages(run)
    return write_page(
        path or run / "report.html",
        name="/".join(run.resolve().parts[-2 if (run / SHARED).exists() else -1 :]),
        verdict=verdict(stages),
        facts=facts(stages),
        sections=[section(title, makers, stages) for title, makers in SECTIONS.items()],
        configs=[
            (stage, yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
            for stage, record in stages.items()
        ],
        made_from=list(stages),
        examples=evaluation.examples(stages),
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
    return write_page(
        path or runs[0].resolve().parent / "comparison.html",
        name=" · ".join(names),
        verdict=comparison.overall(found),
        facts=comparison.facts(found),
        sections=comparison.sections(found),
        configs=[
            (f"{name}: {stage}", yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
            for name, stages in found.items()
            for stage, record in stages.items()
        ],
        made_from=names,
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
