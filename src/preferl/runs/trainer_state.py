"""The curves of a training that another tool did, from the ``trainer_state.json`` that lies beside its model.

Trainers on ``transformers.Trainer``, TRL's among them, keep there what they logged. The file comes with a
model that anybody may have made: it is read as data, of a bounded size, and only what is known is taken.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferl.runs.errors import UsageError

FILE = "trainer_state.json"
MAX_BYTES = 64 * 2**20
MAX_ROWS = 2000  # of a longer training evenly spaced rows are kept
MAX_REWARDS = 8  # reward functions that are told apart
CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")

# What preferl calls a measurement -> what trainers call it, today's name first.
NAMES = {
    "reward": ("reward", "objective/scores"),
    "kl_per_token": ("kl",),
    "kl": ("objective/kl",),
    "length": ("completions/mean_length", "completion_length"),
    "clipped_ratio": ("completions/clipped_ratio",),
    "entropy": ("entropy",),
    "accuracy": ("rewards/accuracies",),
    "margin": ("rewards/margins",),
    "loss": ("loss",),
}
OF_ONE_REWARD = re.compile(r"rewards/([\w.:-]{1,60})/mean")  # of several reward functions


@dataclass(frozen=True)
class Curves:
    """What a trainer logged.

    ``rows`` have a ``step`` and measurements by preferl's names, as ``train/reward`` and ``dev/reward``, in
    the order of their steps; ``left_out`` counts numbers that were not finite.
    """

    path: Path
    rows: list[dict[str, float]]
    left_out: int


def find_trainer_state(model: Path) -> Path | None:
    """The trainer's file of a model: in its folder, or else in the newest checkpoint in the folder or, where
    the model is no checkpoint itself, beside it."""
    places = [model]
    for parent in (model, model.resolve().parent):
        if parent != model and CHECKPOINT.fullmatch(model.resolve().name):
            continue
        steps = {path: CHECKPOINT.fullmatch(path.name) for path in parent.glob("checkpoint-*")}
        numbered = {path: int(match[1]) for path, match in steps.items() if match}
        places += sorted(numbered, key=numbered.__getitem__, reverse=True)
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_curves(path: Path) -> Curves:
    """What a ``trainer_state.json`` holds.

    Raises:
        UsageError: it is too large, cannot be read, or is no such file.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UsageError(f"{path} has {size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} are read")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise UsageError(f"{path} has no list log_history, which transformers' trainer writes there")

    by_step: dict[int, dict[str, float]] = {}
    left_out = 0
    for logged in history:
        if not isinstance(logged, dict) or not is_step(logged.get("step")):
            continue
        found = measurements(logged)
        finite = {key: value for key, value in found.items() if math.isfinite(value)}
        left_out += len(found) - len(finite)
        # What was logged in training and what was measured on held-out prompts are rows of one step.
        by_step.setdefault(logged["step"], {}).update(finite)
    rows = [{"step": step, **by_step[step]} for step in sorted(by_step) if by_step[step]]
    return Curves(path, thinned(with_few_rewards(rows)), left_out)


def is_step(value: Any) -> bool:
    """Whether a value can be the number of an update."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def measurements(logged: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of one logged row by preferl's names; a number that no float can hold is infinite."""
    found = {}
    for prefix, split in (("", "train"), ("eval_", "dev")):
        for name, theirs in NAMES.items():
            key = next((prefix + key for key in theirs if is_number(logged.get(prefix + key))), None)
            # KTO calls its reference point kl too; beside a reward it is the KL.
            if key is not None and (name != "kl_per_token" or f"{prefix}reward" in logged):
                found[f"{split}/{name}"] = as_float(logged[key])
        for key, value in logged.items():
            match = OF_ONE_REWARD.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
            if match and is_number(value):
                found[f"{split}/reward/{match[1]}"] = as_float(value)
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: float) -> float:
    """A number as a float; an integer that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def with_few_rewards(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows with the first few reward functions alone."""
    names = list(dict.fromkeys(key.split("/", 1)[1] for row in rows for key in row if "/reward/" in key))
    dropped = {f"{split}/{name}" for name in names[MAX_REWARDS:] for split in ("train", "dev")}
    return [{key: value for key, value in row.items() if key not in dropped} for row in rows]


def thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most `MAX_ROWS` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= MAX_ROWS:
        return rows
    return [rows[i * (len(rows) - 1) // (MAX_ROWS - 1)] for i in range(MAX_ROWS)]


def place_of(curves: Curves, model: Path) -> str:
    """The file's place from the model's folder, as ``checkpoint-500/trainer_state.json``."""
    return os.path.relpath(curves.path.resolve(), model.resolve())
