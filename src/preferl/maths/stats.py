"""Intervals, calibration and text statistics, on NumPy arrays of N items; nothing here loads torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def wilson_interval(wins: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): (low, high).

    Args:
        wins: successes; a tie may count half.
        n: trials.
        level: confidence.

    Raises:
        ValueError: no trials, wins outside [0, n], or ``level`` not in (0, 1).
    """
    _require_level(level)
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(
            f"{wins} wins of {n} trials have no interval: wins lie in [0, n] and n is at least 1"
        )
    from statsmodels.stats.proportion import proportion_confint

    interval = np.asarray(proportion_confint(wins, n, alpha=1 - level, method="wilson"))
    return float(interval[0]), float(interval[1])


def mean_interval(a_N: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean with Student's t interval (Student 1908): (mean, low, high).

    One value says nothing about the spread: its interval is (-inf, inf).

    Raises:
        ValueError: no values, not one row of finite values, or ``level`` not in (0, 1).
    """
    _require_level(level)
    a_N = _finite_row("a_N", a_N)
    mean = float(a_N.mean())
    if len(a_N) == 1:
        return mean, -np.inf, np.inf
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, len(a_N) - 1) * a_N.std(ddof=1) / np.sqrt(len(a_N)))
    return mean, mean - half, mean + half


def paired_bootstrap(
    a_N: ArrayLike, b_N: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over the same items with a percentile bootstrap interval (Efron 1979): (mean, low, high).

    Items are resampled, so that what makes an item hard for both cancels. One item says nothing about the
    spread: its interval is (-inf, inf). Equal arguments give equal intervals.

    Raises:
        ValueError: the rows are empty, of different length or not finite, ``level`` is not in (0, 1), or
            there are no resamples.
    """
    _require_level(level)
    a_N, b_N = _finite_row("a_N", a_N), _finite_row("b_N", b_N)
    _require_same_length(a_N=a_N, b_N=b_N)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    gap_N = a_N - b_N
    mean, n = float(gap_N.mean()), len(gap_N)
    if n == 1:
        return mean, -np.inf, np.inf
    rng = np.random.default_rng(seed)
    # In blocks, so that many items do not make a huge table of indices.
    block = max(1, 2_000_000 // n)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    means = np.concatenate([gap_N[rng.integers(0, n, (size, n))].mean(-1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


def expected_calibration_error(prob_N: ArrayLike, label_N: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b / N |mean label - mean probability| over equal-width bins (Naeini et al. 2015; Guo et al.
    2017, eq. 3).

    For pairs the caller orients each by a seeded coin, so that both labels occur. It is not 0 for a perfect
    model: with 10 bins about 0.03 at 1,000 items and 0.014 at 5,000.

    Raises:
        ValueError: the rows are empty or of different length, a probability or label is outside [0, 1], or
            there are no bins.
    """
    prob_N, label_N = _unit_row("prob_N", prob_N), _unit_row("label_N", label_N)
    _require_same_length(prob_N=prob_N, label_N=label_N)
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    bin_N = np.minimum((prob_N * bins).astype(int), bins - 1)
    gap_bins = np.bincount(bin_N, weights=label_N - prob_N, minlength=bins)
    return float(np.abs(gap_bins).sum() / len(prob_N))


def bayes_accuracy(prob_N: ArrayLike) -> float:
    """E[max(p, 1 - p)]: the best accuracy that anything can expect against labels drawn with P = p.

    Raises:
        ValueError: no probabilities, or one outside [0, 1].
    """
    prob_N = _unit_row("prob_N", prob_N)
    return float(np.maximum(prob_N, 1 - prob_N).mean())


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred in it before: 0 for a text that never repeats itself.

    Raises:
        ValueError: ``n`` is below 1.
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams of all texts / all their n-grams (Li et al. 2016); 0 where there are none.

    Raises:
        ValueError: ``n`` is below 1.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 word")
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _finite_row(name: str, values: ArrayLike) -> np.ndarray:
    row_N = np.asarray(values, dtype=np.float64)
    if row_N.ndim != 1 or row_N.size == 0:
        raise ValueError(f"{name} has shape {row_N.shape}; it must be one row of at least one value")
    if not np.isfinite(row_N).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(row_N)))}] is not a finite number")
    return row_N


def _unit_row(name: str, values: ArrayLike) -> np.ndarray:
    row_N = _finite_row(name, values)
    outside_N = (row_N < 0) | (row_N > 1)
    if outside_N.any():
        where = int(np.argmax(outside_N))
        raise ValueError(f"{name}[{where}] is {row_N[where]}; it must lie in [0, 1]")
    return row_N


def _require_same_length(**rows: np.ndarray) -> None:
    if len({len(row) for row in rows.values()}) > 1:
        listed = ", ".join(f"{name} {len(row)}" for name, row in rows.items())
        raise ValueError(f"rows are paired item by item and must be equally long: {listed}")


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a confidence level lies between 0 and 1")
