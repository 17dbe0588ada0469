"""The training of a policy that another tool trained: the curves that its trainer left beside the model.

The stage evaluate keeps them as its metrics. They are the trainer's own numbers, of its batches and in its
units; what preferl measured itself is the evaluation.
"""

from preferl.reporting.formats import format_2f, percent
from preferl.reporting.measures import Stages, series, summary_of
from preferl.reporting.page import Plot, of_one_run
from preferl.reporting.plots import BLUE, ORANGE, Mark, curve, curves, draw
from preferl.runs.record import StageRecord

REWARD = "train/reward/"  # and the name of one of several reward functions


def source_of(stages: Stages) -> str:
    """A sentence that names the trainer's file, for every caption, and says what of it was left out."""
    found = summary_of(stages)["elsewhere"]
    text = f"Read from the trainer’s {found['file']}"
    if found["left_out"]:
        text += f" ({found['left_out']} numbers in it are not finite and left out)"
    return text + ". "


def both(record: StageRecord, name: str) -> list[Mark]:
    """A measurement of the training's batches, and of its held-out prompts where it had some."""
    return [
        curve(*series(record, f"train/{name}"), "training batch", color=BLUE),
        curve(*series(record, f"dev/{name}"), "held-out prompts", color=ORANGE, marker="o", ms=3),
    ]


@of_one_run("evaluate")
def reward_plot(stages: Stages) -> Plot | None:
    """The reward that the trainer logged; of several functions each, beside their sum."""
    record = stages["evaluate"]
    _, reward = series(record, "train/reward")
    if not reward:
        return None
    marks = both(record, "reward")
    names = sorted({key for row in record.metrics for key in row if key.startswith(REWARD)})
    if len(names) > 1:
        marks += curves({key.removeprefix(REWARD): series(record, key) for key in names}, lw=0.7)
    measured = summary_of(stages)["policies"]["policy"]["score"]
    reading = (
        f"{source_of(stages)}Its reward went from {format_2f(reward[0])} to {format_2f(reward[-1])}; by the "
        f"reward that was named here the policy has {format_2f(measured)}."
    )
    return Plot("Training elsewhere: reward", draw(marks, "update", "mean reward"), reading)


@of_one_run("evaluate")
def kl_plot(stages: Stages) -> Plot | None:
    """The KL that the trainer logged: per token, as RLOO and GRPO do, or per response, as PPO did."""
    record, policy = stages["evaluate"], summary_of(stages)["policies"]["policy"]
    for key, unit, measured in (
        ("kl_per_token", "nats per token", policy["kl_per_token"]),
        ("kl", "nats per response", policy["kl"]),
    ):
        _, kl = series(record, f"train/{key}")
        if kl:
            reading = (
                f"{source_of(stages)}By its own estimate the KL went from {format_2f(kl[0])} to "
                f"{format_2f(kl[-1])} {unit}; measured here it is {format_2f(measured)}."
            )
            svg = draw(both(record, key), "update", f"KL ({unit})")
            return Plot("Training elsewhere: KL", svg, reading)
    return None


@of_one_run("evaluate")
def length_plot(stages: Stages) -> Plot | None:
    """How long responses were, and how many were cut off."""
    record = stages["evaluate"]
    _, length = series(record, "train/length")
    if not length:
        return None
    reading = f"{source_of(stages)}Responses went from {length[0]:.0f} to {length[-1]:.0f} tokens"
    _, clipped = series(record, "train/clipped_ratio")
    if clipped:
        reading += f", those that were cut off from {percent(clipped[0])} to {percent(clipped[-1])}"
    svg = draw(both(record, "length"), "update", "tokens")
    return Plot("Training elsewhere: length of responses", svg, reading + ".")


@of_one_run("evaluate")
def health_plot(stages: Stages) -> Plot | None:
    """Entropy, or else what a trainer on pairs logs: how many it orders as labelled, or its loss alone."""
    record = stages["evaluate"]
    for name, what, unit in (
        ("entropy", "entropy", "nats per token"),
        ("accuracy", "share of pairs that are ordered as labelled", "accuracy"),
        ("loss", "loss", "loss"),
    ):
        _, value = series(record, f"train/{name}")
        if value:
            reading = (
                f"{source_of(stages)}The {what} went from {format_2f(value[0])} to {format_2f(value[-1])}."
            )
            svg = draw(both(record, name), "update", unit)
            return Plot(f"Training elsewhere: {name}", svg, reading)
    return None
