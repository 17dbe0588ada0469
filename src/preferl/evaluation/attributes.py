"""How well a reward model with one head an attribute rates, attribute by attribute."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from preferl.data.rated import comparisons_by
from preferl.data.records import Pair, Rated, prompt_key
from preferl.data.types import Measures
from preferl.evaluation.scored import prompt_numbers
from preferl.statistics.calibration import UndefinedStatistic, clustered_proportion, partial_correlation
from preferl.statistics.intervals import undefined


def attribute_measures(
    names: Sequence[str],
    predicted_NK: np.ndarray,
    rating_NK: np.ndarray,
    rows: Sequence[Rated],
    level: float = 0.95,
) -> list[Measures]:
    """Each attribute's predictions against held-out ratings.

    Args:
        names: of the K attributes.
        predicted_NK: on the scale of the ratings.
        rating_NK: NaN where a response has none.
        rows: the N responses.
        level: confidence of all intervals.

    Returns:
        For each attribute ``attribute``, ``responses`` (with a rating), ``correlation`` (Pearson's, interval
        over prompts), ``root_mean_squared_error``, and ``agreement``: of ``pairs`` of responses to one prompt
        with different ratings the share that is predicted in that order, a tie counting half.
    """
    found = []
    for k, name in enumerate(names):
        there_N = np.isfinite(rating_NK[:, k])
        rated = [row for row, there in zip(rows, there_N, strict=True) if there]
        predicted_N, rating_N = predicted_NK[there_N, k], rating_NK[there_N, k]
        measures: Measures = {"attribute": name, "responses": len(rated)}
        if rated:
            error = float(np.sqrt(np.square(predicted_N - rating_N).mean()))
            measures["root_mean_squared_error"] = error
        measures["correlation"] = _correlation(predicted_N, rating_N, rated, level)
        found.append(measures | _agreement(name, predicted_N, rated, level))
    return found


def _correlation(
    predicted_N: np.ndarray, rating_N: np.ndarray, rated: Sequence[Rated], level: float
) -> dict[str, Any]:
    if not rated:
        return undefined("no held-out rating")
    try:
        # With a column of ones as control it is the ordinary correlation, of what differs from the mean.
        ones_N1 = np.ones((len(rated), 1))
        return partial_correlation(predicted_N, rating_N, ones_N1, prompt_numbers(rated), level).json()
    except UndefinedStatistic as error:
        return undefined(str(error))


def _agreement(name: str, predicted_N: np.ndarray, rated: Sequence[Rated], level: float) -> Measures:
    prediction: dict[tuple[str, str], float] = {}
    for row, value in zip(rated, predicted_N, strict=True):
        prediction[prompt_key(row.prompt), row.response] = float(value)
    pairs = [pair for c in comparisons_by(rated, lambda row: row.ratings[name]) for pair in c.pairs()]
    if not pairs:
        return {"pairs": 0, "agreement": undefined("no two responses to one prompt are rated differently")}
    gaps = []
    for pair in pairs:
        asked = prompt_key(pair.prompt)
        gaps.append(prediction[asked, pair.chosen] - prediction[asked, pair.rejected])
    return {"pairs": len(pairs), "agreement": agreement(np.array(gaps), pairs, level)}


def agreement(gap_N: np.ndarray, pairs: Sequence[Pair], level: float = 0.95) -> dict[str, Any]:
    """Share of pairs whose chosen response is rated higher, a tie counting half, with its interval."""
    return clustered_proportion((1 + np.sign(gap_N)) / 2, prompt_numbers(pairs), level).json()


def agreement_of_heads(
    names: Sequence[str],
    chosen_NK: np.ndarray,
    rejected_NK: np.ndarray,
    pairs: Sequence[Pair],
    level: float = 0.95,
) -> list[Measures]:
    """Each attribute's agreement with labelled pairs, as if it were the reward."""
    return [
        {
            "attribute": name,
            "pairs": len(pairs),
            "agreement": agreement(chosen_NK[:, k] - rejected_NK[:, k], pairs, level),
        }
        for k, name in enumerate(names)
    ]
