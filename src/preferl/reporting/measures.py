"""What is measured and what it is called, and the numbers of finished stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from preferl.runs.record import StageRecord

Stages = dict[str, StageRecord]  # the finished stages of a run, by name
Runs = Mapping[str, Stages]

NAMES = {"score": "reward", "gold": "gold reward", "held_out": "held-out reward"}
MEASURES = NAMES | {"judge": "judge, both orders"}
BEST_FIRST = ("gold", "held_out", "score")  # what a policy is judged by, where it is known
WATCHED = {"score": "held-out/reward", "gold": "held-out/gold"}  # a measure -> its metric over training


def evaluated(runs: Runs) -> dict[str, Stages]:
    return {name: stages for name, stages in runs.items() if "evaluate" in stages}


def summary_of(stages: Stages) -> dict[str, Any]:
    """What the stage evaluate found."""
    return stages["evaluate"].summary


def summaries(runs: Runs) -> dict[str, dict[str, Any]]:
    return {name: summary_of(stages) for name, stages in runs.items()}


def main_measure(*found: dict[str, Any]) -> str:
    """What policies are judged by: gold, else a held-out reward, else the proxy itself; of several
    evaluations what they all know. What trained or labelled is no gold, whatever it was named."""
    return next(key for key in BEST_FIRST if all(key in judges(summary) for summary in found))


def judges(summary: dict[str, Any]) -> list[str]:
    """The measures of an evaluation that are more than the training signal, and the reward itself."""
    signals = summary.get("training_signals", {})  # not told apart by an older preferl
    return [key for key in summary["comparison"] if key not in signals]


def series(record: StageRecord, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``key`` (see ``metric``) as a finite number."""
    name = metric(record, key)
    rows = [(row["step"], row[name]) for row in record.metrics if isinstance(row.get(name), int | float)]
    return [step for step, _ in rows], [value for _, value in rows]


def metric(record: StageRecord, key: str) -> str:
    """The name of a metric; ``held-out/…`` is on the split on which this stage was watched."""
    return key.replace("held-out/", f"{record.config.get('eval_split', 'dev')}/")


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, its start corrected."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        out.append(total / norm)
    return out
