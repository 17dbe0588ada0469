"""Simulated annotators: a utility r*(prompt, response) and a way to turn two utilities into a label.

A utility is named ``world``, ``sentiment``, ``length``, ``keyword:<word>[,<word>]``, a reward model's
directory or ``module:function`` (TRL's signature ``f(prompts, completions, **columns) -> list[float]``).
Labels are drawn from Bradley-Terry on r* (``stochastic``) or follow the larger utility (``deterministic``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preferl.data.records import Prompt
from preferl.judging.scorers import Scorer
from preferl.runs.errors import UsageError


@dataclass(frozen=True)
class Judgement:
    """Labels of a batch of pairs. ``first_wins_N`` is z = 1; ``probability_N`` is P(first is preferred)."""

    first_wins_N: np.ndarray
    probability_N: np.ndarray
    utility_a_N: np.ndarray
    utility_b_N: np.ndarray


@dataclass(frozen=True)
class Annotator:
    """Labels pairs of responses to one prompt.

    Example:
        >>> annotator = Annotator("world", world_utility, "stochastic")
        >>> annotator(["What is 2 + 2?"], ["4."], ["5."], np.random.default_rng(0)).first_wins_N
        array([ True])
    """

    name: str
    utility: Scorer
    mode: str = "stochastic"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in ("stochastic", "deterministic"):
            raise UsageError(f"label mode '{self.mode}' is unknown; use stochastic or deterministic")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses_a: Sequence[str],
        responses_b: Sequence[str],
        rng: np.random.Generator,
        finished_a: Sequence[bool] | None = None,
        finished_b: Sequence[bool] | None = None,
    ) -> Judgement:
        """z ~ Bernoulli(sigma(scale * (r*(a) - r*(b)))), or z = [r*(a) > r*(b)] with ties by a fair coin."""
        a = np.asarray(self.utility(prompts, responses_a, finished=finished_a), dtype=np.float64)
        b = np.asarray(self.utility(prompts, responses_b, finished=finished_b), dtype=np.float64)
        gap = self.scale * (a - b)
        coin = rng.random(len(gap))
        if self.mode == "stochastic":
            probability = np.exp(-np.logaddexp(0, -gap))
        else:
            probability = np.where(gap == 0, 0.5, (gap > 0).astype(np.float64))
        return Judgement(coin < probability, probability, a, b)
