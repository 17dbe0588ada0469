"""What a reward model with one head an attribute is worth, attribute by attribute."""

from typing import Any

from preferl.reporting.formats import estimate, format_2f, percent
from preferl.reporting.measures import Stages, series
from preferl.reporting.page import Plot, Table, of_one_run, table
from preferl.reporting.plots import curve, draw, styles
from preferl.runs.record import StageRecord


@of_one_run("reward")
def attributes_plot(stages: Stages) -> Plot | None:
    """Each attribute's correlation with the dev ratings over the updates."""
    record = stages["reward"]
    names = record.summary.get("attributes", [])
    marks, ends = [], []
    for name, (colour, marker) in zip(names, styles(len(names)), strict=True):
        step, value = series(record, f"dev/{name}_correlation")
        if value:
            marks.append(curve(step, value, name, color=colour, marker=marker, markersize=3))
            ends.append(f"{name} {format_2f(value[-1])}")
    if not marks:
        return None
    reading = f"At the end the correlations with dev ratings are {', '.join(ends)}."
    return Plot("Reward model: attributes", draw(marks, "update", "correlation"), reading)


@of_one_run()
def attributes_table(stages: Stages) -> Table | None:
    """Each attribute against held-out ratings and labelled pairs, and its weight in the mixture."""
    rows = []
    for name, record in stages.items():
        if record.manifest["stage"] not in ("reward", "audit") or not record.audit:
            continue
        rows += [attribute_row(name, row, record) for row in record.audit.get("attributes") or []]
    several = len({row["stage"] for row in rows}) > 1
    shown = rows if several else [{k: v for k, v in row.items() if k != "stage"} for row in rows]
    note = (
        "Correlation is Pearson’s, of predicted and held-out ratings. A pair is two responses to one prompt, "
        "rated differently or labelled; its order agrees where the better one is predicted higher, a tie "
        "counting half. Intervals are over prompts."
    )
    return table("Attributes", shown, note)


def attribute_row(stage: str, row: dict[str, Any], record: StageRecord) -> dict[str, str]:
    cells = {"stage": stage, "attribute": row["attribute"]}
    if "correlation" in row:
        cells["held-out ratings"] = f"{row['responses']:,}"
        cells["correlation"] = estimate(row["correlation"], format_2f)
    cells["pairs"] = f"{row['pairs']:,}"
    cells["pairs in order"] = estimate(row["agreement"], percent)
    weights = record.summary.get("reward_mixture")
    if weights:
        cells["weight in the reward"] = f"{weights.get(row['attribute'], 0):.3g}"
    return cells
