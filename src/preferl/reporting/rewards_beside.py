"""Reward models, and audits of rewards, of several runs in one table."""

from typing import Any

from preferl.reporting.formats import estimate, percent, with_interval
from preferl.reporting.measures import Runs
from preferl.reporting.page import Table, table
from preferl.reporting.rounds import one_by_one
from preferl.runs.record import StageRecord


def rewards_table(runs: Runs) -> Table | None:
    """A reward model, or an audit, a row; one that several runs share stands there once. None for fewer than
    two."""
    owners: dict[Any, tuple[StageRecord, list[str]]] = {}
    for run, stages in runs.items():
        measured = [item for item in one_by_one(stages) if item[1].manifest["stage"] in ("reward", "audit")]
        for name, record in measured:
            label = run if len(measured) == 1 else f"{run}: {name}"
            owners.setdefault(record.path.resolve(), (record, []))[1].append(label)
    if len(owners) < 2:
        return None
    rows = [{"": ", ".join(labels)} | row_of(record) for record, labels in owners.values()]
    note = (
        "Each on its own pairs, with 95 % intervals over prompts: they can be compared where the pairs are "
        "the same. The ten demonstration pairs are preferl’s own."
    )
    return table("Agreement with labels", rows, note)


def row_of(record: StageRecord) -> dict[str, str]:
    """Accuracy, calibration, and the ten demonstration pairs."""
    start = "eval/" if record.manifest["stage"] == "reward" else f"{record.config['split']}/"
    found = {key.removeprefix(start): v for key, v in record.summary.items() if key.startswith(start)}
    length = found.get("length_baseline_accuracy")
    demonstration = (record.audit or {}).get("demonstration", {})
    return {
        "agreement with labels": with_interval(found, "accuracy", percent),
        "pairs": f"{found['pairs']:,}" if "pairs" in found else "–",
        "length alone": percent(length) if length is not None else "–",
        "log-loss (nats)": f"{found['loss']:.3f}" if "loss" in found else "–",
        "calibration error": f"{found['ece']:.3f}" if "ece" in found else "–",
        "six demonstration pairs": accuracy_of(demonstration.get("seen")),
        "four more": accuracy_of(demonstration.get("unseen")),
    }


def accuracy_of(part: dict[str, Any] | None) -> str:
    return estimate(part["accuracy"], percent) if part else "–"
