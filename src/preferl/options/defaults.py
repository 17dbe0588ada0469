"""Options that depend on the model at hand, as a table; ``learning.defaults`` says how it is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    """A model that is trained.

    Args:
        new: preferl initialised it, now or in an earlier stage.
        parameters: how many it has; 0 of one that is not there yet.
        lora: LoRA weights are trained, not its own.
        untrained: it is initialised now.
    """

    new: bool
    parameters: int
    lora: bool = False
    untrained: bool = False

    def __str__(self) -> str:
        if self.new:
            origin = "initialised now" if self.untrained else "initialised by preferl"
        else:
            origin = "pretrained"
        trained = "LoRA" if self.lora else "all weights trained"
        size = f"{self.parameters / 1e6:,.1f} M parameters, " if self.parameters else ""
        return f"{origin}, {size}{trained}"


@dataclass(frozen=True)
class Row:
    """What one kind of stage takes for one kind of start.

    Args:
        stage: ``sft``, ``reward``, ``dpo`` or ``rl``.
        start: ``initialised now``, ``initialised by preferl`` or ``pretrained``.
        below: models of fewer parameters; the first row that fits counts.
        values: option -> value where all weights are trained.
        source: who published it, or where it was measured.
        lora: the learning rate of LoRA weights; None for the same.
        lora_source: who published that.
    """

    stage: str
    start: str
    below: float
    values: Mapping[str, float]
    source: str
    lora: float | None = None
    lora_source: str = "ten times the rate of all weights (Schulman et al. 2025, LoRA Without Regret)"

    def fits(self, stage: str, start: Start) -> bool:
        if self.stage != stage or start.parameters >= self.below:
            return False
        if not start.new:
            return self.start == "pretrained"
        return self.start == ("initialised now" if start.untrained else "initialised by preferl")

    def of(self, start: Start) -> tuple[dict[str, float], str]:
        """The values for a start, and their source."""
        values = dict(self.values)
        if not start.lora or self.lora is None:
            return values, self.source
        values["learning_rate"] = self.lora
        return values, self.lora_source


BILLION = 1e9
WORLD = "searched on the embedded world"
TRL = "TRL's scripts for models of 0.5 billion parameters"
HUANG = "Huang et al. 2024, Pythia of 1 to 6.9 billion parameters"
TULU_70B = "Lambert et al. 2024, Tülu 3 of 70 billion parameters"
# Sizes of batches were not searched: those of pretrained models are what a laptop has memory and patience
# for, and lie between TRL's 8 and the hundreds of clusters.
TABLE = (
    Row("sft", "initialised now", math.inf, {"learning_rate": 4e-3, "train_batch_size": 32}, WORLD),
    Row("sft", "initialised by preferl", math.inf, {"learning_rate": 1e-3, "train_batch_size": 32}, WORLD),
    Row("sft", "pretrained", 10 * BILLION, {"learning_rate": 2e-5, "train_batch_size": 16},
        f"{TRL}; Tunstall et al. 2023, Zephyr of 7 billion parameters",
        lora=2e-4, lora_source=f"{TRL}; Zephyr of 7 billion parameters, QLoRA"),
    Row("sft", "pretrained", math.inf, {"learning_rate": 2e-6, "train_batch_size": 16}, TULU_70B, lora=2e-5),
    Row("reward", "initialised by preferl", math.inf, {"learning_rate": 1e-3, "train_batch_size": 16}, WORLD),
    Row("reward", "pretrained", BILLION, {"learning_rate": 1e-5, "train_batch_size": 16}, TRL,
        lora=1e-4, lora_source=TRL),
    Row("reward", "pretrained", math.inf, {"learning_rate": 3e-6, "train_batch_size": 16},
        f"{HUANG}; Lambert et al. 2024, Tülu 3 of 8 billion parameters", lora=3e-5),
    Row("dpo", "initialised by preferl", math.inf, {"learning_rate": 3e-4, "train_batch_size": 32}, WORLD),
    Row("dpo", "pretrained", BILLION, {"learning_rate": 1e-6, "train_batch_size": 16},
        "the recipe of SmolLM2 of 135 and 360 million parameters (alignment-handbook); TRL", lora=1e-5),
    Row("dpo", "pretrained", 10 * BILLION, {"learning_rate": 5e-7, "train_batch_size": 16},
        "Tunstall et al. 2023, Zephyr of 7 billion parameters; Tülu 3 of 8 billion",
        lora=5e-6, lora_source="Zephyr of 7 billion parameters, QLoRA (alignment-handbook)"),
    Row("dpo", "pretrained", math.inf, {"learning_rate": 2e-7, "train_batch_size": 16}, TULU_70B, lora=2e-6),
    Row("rl", "initialised by preferl", math.inf,
        {"learning_rate": 5e-4, "critic_learning_rate": 5e-4, "kl_coef": 0.1, "batch_size": 128}, WORLD),
    Row("rl", "pretrained", BILLION,
        {"learning_rate": 1e-5, "critic_learning_rate": 1e-5, "kl_coef": 0.05, "batch_size": 64},
        "Ziegler et al. 2019, GPT-2 of 124 million parameters; KL of Huang et al. 2024 and TRL", lora=1e-4),
    Row("rl", "pretrained", 10 * BILLION,
        {"learning_rate": 3e-6, "critic_learning_rate": 3e-6, "kl_coef": 0.05, "batch_size": 64},
        f"{HUANG}; TRL's PPO", lora=3e-5),
    Row("rl", "pretrained", math.inf,
        {"learning_rate": 1e-7, "critic_learning_rate": 1e-7, "kl_coef": 0.05, "batch_size": 64},
        TULU_70B, lora=1e-6),
)  # fmt: skip
TRAINING = tuple(dict.fromkeys(row.stage for row in TABLE))
"""The kinds of stages that train."""


def rules(stage: str) -> dict[str, str]:
    """Option -> its defaults in words, of those options of a stage that the table decides.

    Example:
        >>> rules("dpo")["train_batch_size"]
        'if initialised by preferl 32; if pretrained 16'
    """
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for row in TABLE:
        for name, value in row.values.items() if row.stage == stage else ():
            with_lora = name == "learning_rate" and row.lora is not None
            said = f"{value:g}" + (f" (LoRA {row.lora:g})" if with_lora else "")
            found.setdefault(name, {}).setdefault(row.start, []).append((said, row.below))
    return {
        name: "; ".join(f"if {start} {by_size(values)}" for start, values in by_start.items())
        for name, by_start in found.items()
    }


def by_size(values: Sequence[tuple[str, float]]) -> str:
    """Values with the parameters (in billions) below which each holds, where they differ."""
    if len({said for said, _ in values}) == 1:
        return values[0][0]
    return ", ".join(
        f"{said} below {below / BILLION:g} B parameters" if below != math.inf else f"{said} above"
        for said, below in values
    )
