"""Intervals, calibration and text statistics, on NumPy arrays; nothing here loads torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def wilson_interval(wins: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        wins: successes; a tie may count half.
        n: trials.
        level: confidence.

    Raises:
        ValueError: no trials, or wins outside [0, n].
    """
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(f"{wins} wins of {n} trials have no interval")
    from statsmodels.stats.proportion import proportion_confint

    interval = np.asarray(proportion_confint(wins, n, alpha=1 - level, method="wilson"))
    return float(interval[0]), float(interval[1])


def mean_interval(a_N: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean with Student's t interval: (mean, low, high); the interval of one value is the value.

    Raises:
        ValueError: no values.
    """
    a_N = np.asarray(a_N, dtype=np.float64)
    if a_N.size == 0:
        raise ValueError("no values, no mean")
    mean = float(a_N.mean())
    if a_N.size == 1:
        return mean, mean, mean
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, a_N.size - 1) * a_N.std(ddof=1) / np.sqrt(a_N.size))
    return mean, mean - half, mean + half


def paired_bootstrap(
    a_N: ArrayLike, b_N: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over the same items with a percentile bootstrap interval (Efron 1979).

    Returns:
        (mean, low, high).

    Raises:
        ValueError: the arrays are empty or of different length.
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a_N.shape != b_N.shape or a_N.ndim != 1 or a_N.size == 0:
        raise ValueError(
            f"a paired bootstrap needs two equal rows of values, not {a_N.shape} and {b_N.shape}"
        )
    gap_N = a_N - b_N
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In blocks, so that many items do not make a huge table of indices.
    block = max(1, 2_000_000 // gap_N.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = gap_N[rng.integers(0, gap_N.size, (count, gap_N.size))].mean(-1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(gap_N.mean()), float(low), float(high)


def expected_calibration_error(prob_N: ArrayLike, label_N: ArrayLike, bins: int = 10) -> float:
    """Mean |accuracy - confidence| over equal-width bins of the probability, weighted by their size.

    For pairs the caller orients each by a seeded coin, so that both labels occur (Naeini et al. 2015).

    Raises:
        ValueError: the arrays are empty or of different length, or a probability is outside [0, 1].
    """
    prob_N, label_N = np.asarray(prob_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    if prob_N.shape != label_N.shape or prob_N.size == 0:
        raise ValueError(f"{prob_N.size} probabilities for {label_N.size} labels")
    if prob_N.min() < 0 or prob_N.max() > 1:
        raise ValueError("a probability is outside [0, 1]")
    bin_N = np.minimum((prob_N * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_N, weights=label_N - prob_N, minlength=bins)
    return float(np.abs(gaps).sum() / prob_N.size)


def bayes_accuracy(prob_N: ArrayLike) -> float:
    """E[max(p, 1 - p)]: the best accuracy that anything can expect against labels drawn with P = p."""
    prob_N = np.asarray(prob_N, dtype=np.float64)
    if prob_N.size == 0:
        raise ValueError("no probabilities, no accuracy")
    return float(np.maximum(prob_N, 1 - prob_N).mean())


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred in it before: 0 for a text that never repeats itself."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams of all texts / all their n-grams (Li et al. 2016); 0 where there are none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
