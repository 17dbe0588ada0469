"""What the labels of pairs are made of, as columns of numbers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from preferl.data.records import Pair
from preferl.data.types import Measures
from preferl.evaluation.scored import ScoredPairs
from preferl.statistics.calibration import Coefficient, UndefinedStatistic
from preferl.statistics.intervals import Estimate, undefined


def column(pairs: Sequence[Pair], name: str) -> np.ndarray | None:
    """A column of the pairs as numbers, or None unless all of them are finite numbers."""
    return numbers([pair.columns.get(name) for pair in pairs])


def numbers(values: Sequence[Any]) -> np.ndarray | None:
    """The values as numbers, or None unless all of them are finite numbers."""
    return np.array(values, dtype=np.float64) if all(map(is_number, values)) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label_controls(scored: ScoredPairs) -> tuple[str, np.ndarray, np.ndarray]:
    """What stands for the label: its name, the control column chosen - rejected, and P(chosen)."""
    n = len(scored.pairs)
    p_N = column(scored.pairs, "p_chosen")
    label_N = np.ones(n) if p_N is None or p_N.min() < 0 or p_N.max() > 1 else p_N
    chosen_N, rejected_N = column(scored.pairs, "gold_chosen"), column(scored.pairs, "gold_rejected")
    if chosen_N is not None and rejected_N is not None and (chosen_N != rejected_N).any():
        return "gold reward", chosen_N - rejected_N, label_N
    # Chosen - rejected of a label that is 1 or 0: the constant 1.
    return "label", np.ones(n), label_N


def coefficient(found: Coefficient) -> Measures:
    """The JSON of a regression coefficient."""
    return Estimate(found.value, found.low, found.high).json() | {"p_value": found.p_value}


def defined(measure: Callable[[], Measures]) -> Measures:
    """What is measured, or that the data do not determine it, with the reason."""
    try:
        return measure()
    except UndefinedStatistic as error:
        return undefined(str(error))
