"""Simulated annotators: a utility r*(prompt, response) and a way to turn two utilities into a label.

A utility is named ``world``, ``sentiment``, ``length``, ``keyword:<word>[,<word>]``, a reward model's
directory or ``module:function`` (TRL's signature ``f(prompts, completions, **columns) -> list[float]``).
Labels are drawn from Bradley-Terry on r* (``stochastic``) or follow the larger utility (``deterministic``).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from preferl.data import world
from preferl.data.records import Prompt, prompt_text
from preferl.judging.scorers import Scorer, load_scorer
from preferl.runs.errors import UsageError


def length_utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
    """Characters of the response / 100: the classic hackable reward."""
    return [len(text) / 100 for text in completions]


def world_utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
    """The embedded world's gold reward."""
    return [world.gold_reward(prompt_text(p), c) for p, c in zip(prompts, completions, strict=True)]


def keyword_utility(words: str) -> Scorer:
    """Share of the comma-separated words that occur in the response, whole words, any case."""
    wanted = [w.strip().lower() for w in words.split(",") if w.strip()]
    if not wanted:
        raise UsageError("the keyword annotator needs words: keyword:please,thanks")

    def utility(prompts: Sequence[Prompt], completions: Sequence[str], **c: Any) -> list[float]:
        found = [set(re.findall(r"[\w']+", text.lower())) for text in completions]
        return [sum(w in words_in for w in wanted) / len(wanted) for words_in in found]

    return utility


def sentiment_utility() -> Scorer:
    """VADER's compound sentiment (Hutto & Gilbert 2014), -1 to 1, times 4: BT labels of useful noise."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()

    def utility(prompts: Sequence[Prompt], completions: Sequence[str], **c: Any) -> list[float]:
        return [4.0 * analyser.polarity_scores(text)["compound"] for text in completions]

    return utility


def load_utility(name: str, device: torch.device) -> Scorer:
    """The utility function of an annotator's name.

    Raises:
        UsageError: no annotator, directory or function of that name.
    """
    fixed: dict[str, Callable[[], Scorer]] = {
        "length": lambda: length_utility,
        "world": lambda: world_utility,
        "sentiment": sentiment_utility,
    }
    if name in fixed:
        return fixed[name]()
    if name.startswith("keyword:"):
        return keyword_utility(name.removeprefix("keyword:"))
    try:
        return load_scorer(name, device)
    except UsageError as error:
        raise UsageError(
            f"annotator '{name}' is none of {', '.join(sorted(fixed))}, keyword:<words>, "
            f"and no scorer: {error}"
        ) from error


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
