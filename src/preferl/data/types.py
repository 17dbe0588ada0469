"""What passes between those who write texts and those who judge them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from preferl.runs.errors import UsageError

Scorer = Callable[..., list[float]]


def check_scores(scores: Sequence[float], completions: Sequence[str]) -> None:
    """A score is a finite number for every response, or the run stops: never a silent 0."""
    if len(scores) != len(completions):
        raise UsageError(
            f"the reward function returned {len(scores)} scores for {len(completions)} responses; "
            f"it must return one number for each"
        )
    for score, completion in zip(scores, completions, strict=True):
        if score is None or not abs(float(score)) < float("inf"):
            raise UsageError(
                f"the reward function returned {score!r} for the response {completion[:80]!r}; "
                f"it must return a finite number"
            )


@dataclass(frozen=True)
class Judgement:
    """Labels of a batch of pairs. ``first_wins_N`` is z = 1; ``probability_N`` is P(first is preferred);
    ``tied_N`` where the annotator could not tell."""

    first_wins_N: np.ndarray
    probability_N: np.ndarray
    utility_a_N: np.ndarray
    utility_b_N: np.ndarray
    tied_N: np.ndarray
