"""What a sweep reads off the summaries of its stages."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferl.reporting.sweeps import NAMED, Row
from preferl.runs.errors import UsageError
from preferl.runs.record import read_manifest
from preferl.sweep.plan import BASE, Point, Run, SweepConfig

# Metrics of a sweep that names none: those of its stages, as far as the summaries have them.
DEFAULT_METRICS = {
    "sft": {"sft_loss": "sft.dev/loss"},
    "reward": {
        "accuracy": "reward.eval/accuracy",
        "fraction_of_bayes": "reward.eval/fraction_of_bayes",
        "log_loss": "reward.eval/loss",
        "calibration_error": "reward.eval/ece",
    },
    "best_of": {"kept_reward": "best_of.splits.train.kept.score"},
    "distil": {"distil_loss": "distil.dev/loss"},
    "dpo": {"dpo_accuracy": "dpo.dev/accuracy", "dpo_loss": "dpo.dev/loss", "dpo_kl": "dpo.dev/kl"},
    "evaluate": {
        "gold_win_rate": "evaluate.comparison.gold.win_rate",
        "gold_gain": "evaluate.comparison.gold.difference",
        "reward_gain": "evaluate.comparison.score.difference",
        "kl": "evaluate.policies.policy.kl",
    },
}

# Beside these, where it is varied for how long a reward model trains: the best checkpoint, which is kept,
# against the last weights, on the same held-out pairs.
HOW_LONG = ("num_train_epochs", "max_steps")
LAST_WEIGHTS = {
    "best_dev_loss": "reward.dev/loss",
    "last_dev_loss": "reward.dev/final_loss",
    "best_dev_accuracy": "reward.dev/accuracy",
    "last_dev_accuracy": "reward.dev/final_accuracy",
}


def metrics_of(config: SweepConfig, runs: Sequence[Run]) -> dict[str, str]:
    """The metrics asked for, or the usual ones of the stages that the swept keys reach.

    Raises:
        UsageError: a metric is of no stage of the sweep, or there is none.
    """
    stages = list(dict.fromkeys(name for run in runs for name in run.where))
    for name, path in config.options.metrics.items():
        stage = path.split(".")[0]
        if stage not in stages or "." not in path:
            near = difflib.get_close_matches(stage, stages, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near and near[0] != stage else ""
            raise UsageError(
                f"sweep.metrics: {name}: '{path}' must be a stage of this run ({', '.join(stages)}) and "
                f"a path into its summary.json, as reward.eval/accuracy{hint}"
            )
    if config.options.metrics:
        return config.options.metrics
    # A stage that no swept key reaches lies in the base's directory, BASE/seed/stage: it never varies.
    varied: set[str] = set()
    for run in runs:
        varied |= {name for name, path in run.where.items() if path.parent.parent.name != BASE}
    usual: dict[str, str] = {}
    for stage in stages:
        if stage in (varied or stages):
            usual |= DEFAULT_METRICS.get(stage, {})
            swept = {key.split(".")[-1] for run in runs for key in run.point.keys}
            usual |= LAST_WEIGHTS if stage == "reward" and swept & set(HOW_LONG) else {}
    if not usual:
        raise UsageError(
            f"sweep: no usual metrics for the stages that vary ({', '.join(varied or stages)}); "
            f"name some in sweep.metrics, as cost: {stages[0] if stages else 'reward'}.seconds"
        )
    return usual


def rows_of(
    points: Sequence[Point],
    runs: Sequence[Run],
    metrics: Mapping[str, str],
    errors: Mapping[tuple[str, int], str],
) -> list[Row]:
    """One row for each point, from the summaries of the stages that are finished."""
    keys = list(dict.fromkeys(key for point in points for key in point.keys))
    named = any(point.label for point in points)
    rows: dict[str, Row] = {}
    for run in runs:
        point = run.point
        # Once one point has a label, all are called by one; else their settings tell them apart.
        if named:
            settings = {NAMED: point.label or point.name}
        else:
            settings = {key: setting_of(run, key) for key in keys}
        # The first seed of a point makes its row, the others fill it.
        empty = Row(point.name, settings, {name: {} for name in metrics}, {name: {} for name in metrics}, {})
        row = rows.setdefault(point.name, empty)
        if (point.name, run.seed) in errors:
            row.errors[run.seed] = errors[point.name, run.seed]
        found = {stage: summary_of(path) for stage, path in run.where.items()}
        for metric, path in metrics.items():
            value = number_at(found, path)
            if value is not None:
                row.values[metric][run.seed] = value
                low, high = number_at(found, path + "_low"), number_at(found, path + "_high")
                if low is not None and high is not None:
                    row.bounds[metric][run.seed] = (low, high)
    return list(rows.values())


def setting_of(run: Run, key: str) -> Any:
    """The value of a swept key in a run; where it was left open, the one that the stage chose."""
    value = run.value_of(key)
    stage, _, option = key.partition(".")
    where = run.where.get(stage)
    if value is not None or where is None or not (where / "manifest.json").exists():
        return value
    return read_manifest(where).get("chosen", {}).get(option)


def summary_of(path: Path) -> dict[str, Any]:
    """A finished stage's ``summary.json``."""
    if not (path / "DONE").exists():
        return {}
    return json.loads((path / "summary.json").read_text(encoding="utf-8"))


def number_at(tree: Any, path: str) -> float | None:
    """The finite number at a dotted path (a list's parts by their index), or None."""
    for part in path.split("."):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return None
    return finite_number(tree)


def finite_number(value: Any) -> float | None:
    """The value as a float where it is a finite number, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def missing_metric(name: str, path: str, runs: Sequence[Run]) -> str:
    """Says that no summary has a metric, and which number comes nearest."""

    def paths(tree: Any, start: str) -> list[str]:
        """The dotted path of every number below ``start``."""
        if finite_number(tree) is not None:
            return [start]
        if isinstance(tree, list):
            tree = dict(enumerate(tree))
        if not isinstance(tree, dict):
            return []
        found: list[str] = []
        for key, value in tree.items():
            found += paths(value, f"{start}.{key}")
        return found

    stage = path.split(".")[0]
    known: list[str] = []
    for run in runs:
        if stage in run.where:
            known += paths(summary_of(run.where[stage]), stage)
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return (
        f"sweep.metrics: {name}: no summary.json of this sweep has a number '{path}'"
        + (f"; the nearest is '{near[0]}'" if near else "")
        + ". No run is lost: with the right path the same command makes the table"
    )
