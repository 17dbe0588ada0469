"""Simulated annotators: a utility r*(prompt, response) and a way to turn two utilities into a label.

A utility is any scorer of ``scorers.py``; where two responses are compared, a language model can label, too.
Labels are drawn from Bradley-Terry on r* (``stochastic``) or follow the larger utility (``deterministic``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preferl.data.records import Prompt
from preferl.data.types import Judgement, Scorer
from preferl.judging.judges import PairwiseJudge
from preferl.judging.juries import load_pairwise_judge
from preferl.judging.scorers import load_scorer, scored
from preferl.options.judging import AnnotatorOptions, names_judge
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.ranges import ErrorRate, Finite, NonNegative, check_ranges
from preferl.statistics.labels import label_probability, preference_probability

TIE_POLICIES = ("coin", "tie", "skip")


@dataclass(frozen=True)
class Annotator:
    """Labels pairs of responses to one prompt.

    Example:
        >>> annotator = Annotator("world", WorldUtility(), "stochastic")
        >>> annotator(["What is 2 + 2?"], ["4."], ["5."], np.random.default_rng(0)).first_wins_N
        array([ True])
    """

    name: str
    utility: Scorer
    mode: str = "stochastic"
    scale: NonNegative = 1.0
    error_rate: ErrorRate = 0.0
    position_bias: Finite = 0.0
    tie_policy: str = "coin"
    tie_width: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, value, known in (
            ("label mode", self.mode, ("stochastic", "deterministic")),
            ("tie policy", self.tie_policy, TIE_POLICIES),
        ):
            if value not in known:
                raise UsageError(f"{name} '{value}' is unknown; use {' or '.join(known)}")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses_a: Sequence[str],
        responses_b: Sequence[str],
        rng: np.random.Generator,
        finished_a: Sequence[bool] | None = None,
        finished_b: Sequence[bool] | None = None,
    ) -> Judgement:
        """z ~ Bernoulli(sigma(scale * (r*(a) - r*(b)))), or z = [r*(a) > r*(b)] with ties by a fair coin.

        ``position_bias`` adds to the first response's utility, ``error_rate`` turns a label round;
        ``probability_N`` is what an annotator without either would say, `label_probability` counts them.
        """
        a = self.utilities(prompts, responses_a, finished_a)
        b = self.utilities(prompts, responses_b, finished_b)
        coin, slip = rng.random((2, len(a)))
        first_wins = coin < self.probability(a, b, self.position_bias)
        slipped = slip < self.error_rate
        return Judgement(
            first_wins_N=first_wins ^ slipped,
            probability_N=self.probability(a, b),
            utility_a_N=a,
            utility_b_N=b,
            tied_N=self.tied(a, b),
            kept_N=~np.isnan(a - b),
        )

    def utilities(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool] | None = None
    ) -> np.ndarray:
        """``utility_N`` of responses; finite, or NaN where a judge wrote nothing readable and skips such.

        Raises:
            UsageError, DivergedError: as of ``scorers.scored``, with the annotator's name.
        """
        try:
            return scored(self.utility, prompts, responses, finished=finished)
        except DivergedError as error:
            raise DivergedError(f"the annotator '{self.name}': {error}") from error

    def probability(self, a_N: np.ndarray, b_N: np.ndarray, bias: float = 0.0) -> np.ndarray:
        """P(first is preferred) from two utilities, ``bias`` added to the first."""
        return preference_probability(
            a_N - b_N, self.scale, self.mode == "deterministic", self.coin_width, bias
        )

    def label_probability(self, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        """P(the label prefers the first) in either order of the two, with errors and position bias."""
        return label_probability(
            a_N - b_N,
            self.scale,
            self.mode == "deterministic",
            self.coin_width,
            self.error_rate,
            self.position_bias,
        )

    @property
    def coin_width(self) -> float:
        """The difference of utilities within which a coin decides."""
        return self.tie_width if self.tie_policy == "coin" else 0.0

    def tied(self, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        """Whether the utilities are too close for this annotator to tell apart (never with ``coin``)."""
        return (np.abs(a_N - b_N) <= self.tie_width) & (self.tie_policy != "coin")

    def rank(self, utility_K: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Places of K responses shown in this order, 1 the best.

        Stochastic: Gumbel noise on the scaled utilities and sorting, which is Plackett-Luce, so that any two
        are ordered as Bradley-Terry has it (Yellott 1977). With probability 2 * ``error_rate`` the order is a
        random one (two responses: ``error_rate`` turns them round). Neighbours whose utilities differ by at
        most ``tie_width`` share a place with ``tie_policy`` ``tie``; with ``coin`` chance orders them.
        """
        first_K = np.arange(len(utility_K)) == 0
        felt_K = self.scale * (utility_K + self.position_bias * first_K)
        # Drawn in every mode, so that the same generator goes on alike whatever the annotator is.
        noise_K, shuffle_K = rng.gumbel(size=len(felt_K)), rng.random(len(felt_K))
        if self.mode == "stochastic":
            felt_K = felt_K + noise_K
        slipped = rng.random() < 2 * self.error_rate
        # From best to worst, or at random; equal ones in random order (lexsort's last key comes first).
        order = np.lexsort((shuffle_K, shuffle_K if slipped else -felt_K))
        ranks = [0] * len(order)
        for place, i in enumerate(order):
            ranks[i] = place + 1
            if place and (self.tie_policy == "tie" or self.coin_width):
                before = order[place - 1]
                if abs(utility_K[i] - utility_K[before]) <= self.tie_width:
                    ranks[i] = ranks[before]
        if self.coin_width:
            # By the shared places first, then by chance: every response has a place of its own.
            for place, i in enumerate(np.lexsort((shuffle_K, ranks))):
                ranks[i] = place + 1
        return ranks


def load_annotator(
    options: AnnotatorOptions, seed: int, device: torch.device, pairwise: bool = True
) -> Annotator | PairwiseJudge:
    """Who labels: a language model that compares two responses, or a simulated annotator with a utility.

    ``pairwise``: responses are compared two at a time; a language model that ranks more of them is asked for
    a score of each, as its utility. ``seed`` is the judge's.

    Raises:
        UsageError: there is no such annotator, or the options do not fit it.
    """
    if names_judge(options.annotator) and pairwise:
        slips = (options.error_rate, options.position_bias, options.tie_width, options.label_scale)
        if slips != (0, 0, 0, 1):
            raise UsageError(
                "error_rate, position_bias, tie_width and label_scale belong to simulated annotators; "
                "a judge errs by itself"
            )
        how = options.how_judged(seed, label_mode=options.label_mode, unparsable="skip")
        return load_pairwise_judge(options.annotator, device, how)
    return Annotator(
        options.annotator,
        load_scorer(options.annotator, device, options.how_judged(seed, unparsable="skip")),
        options.label_mode,
        options.label_scale,
        options.error_rate,
        options.position_bias,
        options.tie_policy,
        options.tie_width,
    )
