"""What passes between those who write texts and those who judge them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Scorer = Callable[..., list[float]]
# Named numbers, with their intervals and counts beside them, as they are written as JSON.
Measures = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """Labels of a batch of pairs. ``first_wins_N`` is z = 1; ``probability_N`` is P(first is preferred);
    ``tied_N`` where the annotator could not tell; ``kept_N`` is False where there is no label: nothing else
    means anything there."""

    first_wins_N: np.ndarray
    probability_N: np.ndarray
    utility_a_N: np.ndarray
    utility_b_N: np.ndarray
    tied_N: np.ndarray
    kept_N: np.ndarray
