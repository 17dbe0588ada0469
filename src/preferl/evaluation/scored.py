"""Pairs with their scores, and the few figures that say how good a scorer is on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from preferl.data.records import (
    DataError,
    Pair,
    Prompt,
    Rated,
    columns_of,
    known_probability,
    prompt_key,
)
from preferl.data.types import Measures, Scorer
from preferl.judging.judges import PairwiseJudge
from preferl.judging.reward_functions import RewardFunction, check_columns
from preferl.judging.scorers import parts_of, scored
from preferl.statistics import bayes_accuracy, expected_calibration_error
from preferl.statistics.calibration import clustered_proportion
from preferl.statistics.intervals import Estimate


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with their scores, at the scale of the loss.

    Example: ``ScoredPairs([Pair("2 + 2?", "4.", "5.")], np.array([1.3]), np.array([-0.2]))``.
    """

    pairs: Sequence[Pair]
    score_chosen_N: np.ndarray
    score_rejected_N: np.ndarray

    def __post_init__(self) -> None:
        for name in ("score_chosen_N", "score_rejected_N"):
            score_N = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, score_N)
            if score_N.shape != (len(self.pairs),) or not len(self.pairs):
                raise ValueError(f"{name} has shape {score_N.shape} for {len(self.pairs)} pairs")
            if not np.isfinite(score_N).all():
                raise ValueError(f"{name}[{int(np.argmin(np.isfinite(score_N)))}] is not a finite number")

    @cached_property
    def gap_N(self) -> np.ndarray:
        """The log-odds that the chosen response is preferred."""
        return self.score_chosen_N - self.score_rejected_N

    @cached_property
    def correct_N(self) -> np.ndarray:
        """1 where the chosen response scores higher, 0.5 at a tie."""
        return (1 + np.sign(self.gap_N)) / 2

    @cached_property
    def prompt_N(self) -> np.ndarray:
        """Which pairs share a prompt, numbered from 0."""
        return prompt_numbers(self.pairs)

    def accuracy(self, level: float = 0.95, mask_N: np.ndarray | None = None) -> Measures:
        """Accuracy, of all pairs or of some, with the interval that it has everywhere: pairs of one prompt
        share its luck."""
        mask_N = np.ones(len(self.pairs), dtype=bool) if mask_N is None else mask_N
        return clustered_proportion(self.correct_N[mask_N], self.prompt_N[mask_N], level).json()

    def where(self, mask_N: np.ndarray) -> "ScoredPairs":
        kept = [pair for pair, keep in zip(self.pairs, mask_N, strict=True) if keep]
        return ScoredPairs(kept, self.score_chosen_N[mask_N], self.score_rejected_N[mask_N])


def prompt_numbers(rows: Sequence[Pair | Rated]) -> np.ndarray:
    """``prompt_N``: which rows share a prompt, numbered from 0."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(prompt_key(row.prompt), len(number)) for row in rows])


def scores_of(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected responses; equal responses are scored once.

    A judge of pairs is asked about each of them, with the chosen response first or second by a coin of its
    seed; the scores are then P(chosen) and P(rejected). NaN where a judge wrote nothing readable and skips
    such.

    Raises:
        UsageError, DivergedError: as of ``judging.scorers.scored``.
    """
    if isinstance(scorer, PairwiseJudge):
        return _compared(scorer, pairs)
    if any(isinstance(part, RewardFunction) for _, part in parts_of(scorer)):
        return _by_function(scorer, pairs)
    # A response is known by its prompt, its text and whether it is finished. Chosen and rejected of a pair
    # stand one after the other, so that the scores fold back into two columns.
    keys: list[tuple[str, str, Any]] = []
    prompt_of: dict[tuple[str, str, Any], Prompt] = {}
    for p in pairs:
        asked = prompt_key(p.prompt)
        chosen = asked, p.chosen, p.columns.get("finished_chosen", True)
        rejected = asked, p.rejected, p.columns.get("finished_rejected", True)
        keys += [chosen, rejected]
        prompt_of |= {chosen: p.prompt, rejected: p.prompt}
    distinct = list(prompt_of)
    scores = scored(
        scorer,
        [prompt_of[key] for key in distinct],
        [text for _, text, _ in distinct],
        finished=[finished for _, _, finished in distinct],
    )
    score_of = dict(zip(distinct, scores, strict=True))
    score_N2 = np.array([score_of[key] for key in keys], dtype=np.float64).reshape(-1, 2)
    return score_N2[:, 0], score_N2[:, 1]


def _by_function(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Scores by a function of a person's own, which also reads the other columns of a pair's row: so no
    response stands for an equal one of another row. Chosen and rejected stand one after the other."""
    twice = [pair for pair in pairs for _ in range(2)]
    columns = columns_of(twice)
    ends = ("finished_chosen", "finished_rejected")
    finished = [pair.columns.get(end, True) for pair in pairs for end in ends]
    for end in ends:
        columns.pop(end, None)
    check_columns(columns)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    score_N2 = scored(scorer, [p.prompt for p in twice], texts, finished=finished, **columns).reshape(-1, 2)
    return score_N2[:, 0], score_N2[:, 1]


def _compared(judge: PairwiseJudge, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """P(chosen) and P(rejected) by a judge that must not know them by their places: where only one of the
    two orders can be read, a place would win."""
    flip_N = np.random.default_rng(judge.config.seed or 0).random(len(pairs)) < 0.5
    sides = [
        (p.rejected, p.chosen) if flip else (p.chosen, p.rejected)
        for p, flip in zip(pairs, flip_N, strict=True)
    ]
    first_N = judge.probabilities([p.prompt for p in pairs], *map(list, zip(*sides, strict=True)))
    chosen_N = np.where(flip_N, 1 - first_N, first_N)
    return chosen_N, 1 - chosen_N


def those_read(
    pairs: Sequence[Pair], chosen_N: np.ndarray, rejected_N: np.ndarray, scale: float = 1.0
) -> ScoredPairs:
    """The pairs of which both responses have a score; a judge leaves others out.

    Raises:
        DataError: none has.
    """
    read_N = ~np.isnan(chosen_N + rejected_N)
    if not read_N.any():
        raise DataError(
            f"no score could be read for any of {len(pairs)} pairs; look at what the judge replies"
        )
    kept = [pair for pair, read in zip(pairs, read_N, strict=True) if read]
    return ScoredPairs(kept, chosen_N[read_N] * scale, rejected_N[read_N] * scale)


def accuracy_of(gap_N: np.ndarray) -> float:
    """Share of pairs in which the chosen response scores higher; a tie counts half."""
    return float(((gap_N > 0) + 0.5 * (gap_N == 0)).mean())


def oriented(gap_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """P(first is preferred) and whether it was, with each pair turned by a seeded coin.

    ``gap_N`` is score(chosen) - score(rejected); with the chosen response always first there would be only
    one label.
    """
    flip_N = np.random.default_rng(seed).random(len(gap_N)) < 0.5
    return np.exp(-np.logaddexp(0, np.where(flip_N, gap_N, -gap_N))), ~flip_N


def quality_of(gap_N: np.ndarray, pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out pairs; against r* where the annotator has one.

    ``gap_N`` is score(chosen) - score(rejected) at the scale of the loss, where it is a log-odds. With
    p = P(first is preferred) known, the expected accuracy of the scorer's choice is p where it prefers the
    first and 1 - p elsewhere; the best possible is E[max(p, 1 - p)].
    """
    scored = ScoredPairs(pairs, gap_N, np.zeros_like(gap_N))
    accuracy = Estimate.read(scored.accuracy())
    quality: dict[str, Any] = {
        "pairs": len(gap_N),
        "prompts": len(np.unique(scored.prompt_N)),
        **accuracy.named("accuracy"),
        "loss": float(np.logaddexp(0, -gap_N).mean()),
    }
    known = [known_probability(pair) for pair in pairs]
    if all(p is not None for p in known):
        p_N = np.array(known, dtype=np.float64)
        # The scorer is right with p where it prefers the first, with 1 - p where the second, by a coin at a
        # tie.
        right_N = np.full(len(gap_N), 0.5)
        right_N[gap_N > 0] = p_N[gap_N > 0]
        right_N[gap_N < 0] = 1 - p_N[gap_N < 0]
        quality["expected_accuracy"] = float(right_N.mean())
        quality["bayes_accuracy"] = bayes_accuracy(p_N)
        quality["fraction_of_bayes"] = quality["expected_accuracy"] / quality["bayes_accuracy"]
    quality["ece"] = expected_calibration_error(*oriented(gap_N, seed))
    return quality
