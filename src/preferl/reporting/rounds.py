"""Stages that were done in rounds, read as one: curves go on, costs add up."""

from collections.abc import Iterator, Sequence
from typing import Any

from preferl.reporting.measures import Stages
from preferl.reporting.plots import GREY, Mark
from preferl.runs.record import StageRecord

COUNTED = ("step", "forward_passes")  # of a row of metrics: counted from the stage's own beginning
SUMS = ("seconds", "cpu_seconds", "updates", "iterations", "episodes", "forward_passes")
PLACES_OF_STEPS = ("best_update",)


class Rounds(StageRecord):
    """The rounds of one kind of stage as one record: options, measurements and samples are the last one's.

    ``starts`` are the steps at which the second round and those after it begin.
    """

    def __init__(self, rounds: Sequence[StageRecord]):
        last = rounds[-1]
        self.rounds = list(rounds)
        self.path, self.config, self.manifest = last.path, last.config, last.manifest
        self.samples, self.done = last.samples, all(record.done for record in rounds)
        self.metrics: list[dict[str, Any]] = []
        self.starts: list[int] = []
        before: dict[str, int] = dict.fromkeys(COUNTED, 0)
        for record in rounds:
            if record is not rounds[0]:
                self.starts.append(before["step"])
            counted = {key: [row[key] for row in record.metrics if key in row] for key in COUNTED}
            shift = dict(before)
            self.metrics += [shifted(row, shift) for row in record.metrics]
            before = {key: shift[key] + max(values, default=0) for key, values in counted.items()}
        self.summary = dict(last.summary)
        for key in SUMS:
            if key in last.summary:
                self.summary[key] = added([record.summary[key] for record in rounds if key in record.summary])
        for key in PLACES_OF_STEPS:
            if key in last.summary and self.starts:
                self.summary[key] += self.starts[-1]
        if any("alarms" in record.summary for record in rounds):
            self.summary["alarms"] = {}
            for record in rounds:
                self.summary["alarms"] |= record.summary.get("alarms", {})


def shifted(row: dict[str, Any], shift: dict[str, int]) -> dict[str, Any]:
    """A row of a later round, counted on from the one before."""
    return row | {key: row[key] + shift[key] for key in COUNTED if isinstance(row.get(key), int | float)}


def added(values: Sequence[Any]) -> Any:
    """The sum of numbers, or of mappings to numbers key by key."""
    if isinstance(values[0], dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: sum(value.get(key, 0) for value in values) for key in keys}
    return sum(values)


def rounds_of(stages: Stages, kind: str) -> list[StageRecord]:
    """Every round of a kind of stage, in their order; none where there is no such stage."""
    record = stages.get(kind)
    if record is None:
        return []
    return record.rounds if isinstance(record, Rounds) else [record]


def one_by_one(stages: Stages) -> Iterator[tuple[str, StageRecord]]:
    """Every stage by itself: ``rl, round 1``, ``rl, round 2``, …; one that is called otherwise than its kind
    has its own name beside it."""
    for name, record in stages.items():
        if isinstance(record, Rounds):
            yield from ((f"{name}, round {i}", one) for i, one in enumerate(record.rounds, 1))
        else:
            own = record.path.name
            yield (name if own in (name, name.split("/")[-1]) else f"{name} ({own})"), record


def starts_of(record: StageRecord) -> list[Mark]:
    """A line where each further round begins."""
    starts = record.starts if isinstance(record, Rounds) else []
    return [lambda axes, at=at: axes.axvline(at, color=GREY, lw=0.8, ls=":") for at in starts]


def rounds_text(record: StageRecord) -> str:
    """What a reader of a curve over rounds has to know; nothing of one round."""
    if not isinstance(record, Rounds):
        return ""
    where = ", ".join(map(str, record.starts))
    return f" Dotted: after {where} another round begins, with labels and a reward model of its own."
