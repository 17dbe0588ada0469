"""Intervals, calibration and text statistics, on NumPy arrays of N items; nothing here loads torch."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def paired_hierarchical_bootstrap(
    a_PA: ArrayLike, b_PB: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over prompts of mean_A a - mean_B b with a two-level percentile bootstrap: (mean, low, high).

    P prompts, A responses of one model and B of the other to each. A resample draws prompts, and within each
    drawn prompt the responses of either model, all with replacement (Davison & Hinkley 1997, 3.8). With one
    response each this is ``paired_bootstrap``. With more it errs on the wide side: a prompt's mean carries
    the luck of its responses already, which drawing them again adds once more (at most sqrt(2) times the
    width, where responses differ much more than prompts). One prompt says nothing about the spread: its
    interval is (-inf, inf).

    Raises:
        ValueError: the tables are empty, not finite or of different numbers of prompts, ``level`` is not in
            (0, 1), or there are no resamples.
    """
    _require_level(level)
    a_PA, b_PB = _finite_table("a_PA", a_PA), _finite_table("b_PB", b_PB)
    _require_same_length(a_PA=a_PA, b_PB=b_PB)

    def mean_gap(p: int, count_DA: np.ndarray, count_DB: np.ndarray) -> np.ndarray:
        return count_DA @ a_PA[p] / a_PA.shape[1] - count_DB @ b_PB[p] / b_PB.shape[1]

    sizes = len(a_PA), a_PA.shape[1], b_PB.shape[1]
    low, high = _hierarchical_interval(mean_gap, sizes, level, resamples, seed)
    mean = float((a_PA.mean(-1) - b_PB.mean(-1)).mean())
    return (mean, -np.inf, np.inf) if len(a_PA) == 1 else (mean, low, high)


def hierarchical_win_rate(
    a_PA: ArrayLike, b_PB: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over prompts of the share of the A * B comparisons that a wins, ties half: (rate, low, high).

    The interval is that of ``paired_hierarchical_bootstrap``: prompts are resampled, and responses within
    them. Where that has no width, because all comparisons agree (a wins all, loses all or ties all) or there
    is one prompt, it is Wilson's, with the P prompts as trials.

    Raises:
        ValueError: the tables are empty, not finite or of different numbers of prompts, ``level`` is not in
            (0, 1), or there are no resamples.
    """
    _require_level(level)
    a_PA, b_PB = _finite_table("a_PA", a_PA), _finite_table("b_PB", b_PB)
    _require_same_length(a_PA=a_PA, b_PB=b_PB)

    def won_AB(p: int) -> np.ndarray:
        a_A1 = a_PA[p][:, None]
        return (a_A1 > b_PB[p]) + 0.5 * (a_A1 == b_PB[p])

    def win_rate(p: int, count_DA: np.ndarray, count_DB: np.ndarray) -> np.ndarray:
        won_DB = count_DA @ won_AB(p)
        return (won_DB * count_DB).sum(-1) / (count_DA.shape[1] * count_DB.shape[1])

    prompts = len(a_PA)
    rate = float(np.mean([won_AB(p).mean() for p in range(prompts)]))
    sizes = prompts, a_PA.shape[1], b_PB.shape[1]
    low, high = _hierarchical_interval(win_rate, sizes, level, resamples, seed)
    if prompts == 1 or low == high:
        low, high = wilson_interval(rate * prompts, prompts, level)
    return rate, low, high


@dataclass(frozen=True)
class LengthControlled:
    """A win rate between answers of equal length, with its interval.

    ``length_effect`` is (value, low, high) of the log-odds per unit of tanh(length difference / its standard
    deviation): above 0 where the longer answer wins more often. It is None, and the rate the plain one, where
    ``reason`` says why length could not be controlled for.

    Example: ``LengthControlled(0.52, 0.47, 0.57, (0.9, 0.6, 1.2), None)``.
    """

    rate: float
    low: float
    high: float
    length_effect: tuple[float, float, float] | None
    reason: str | None


def length_controlled_win_rate(
    won_N: ArrayLike,
    length_a_N: ArrayLike,
    length_b_N: ArrayLike,
    group_N: ArrayLike | None = None,
    level: float = 0.95,
) -> LengthControlled:
    """What a would win at equal lengths (Dubois et al. 2024, "Length-controlled AlpacaEval", section 3).

    Logistic regression of the outcome on a constant theta and tanh(length_a - length_b, divided by its
    standard deviation over all comparisons); the rate is sigma(theta). Unlike AlpacaEval there is no term
    for a prompt's difficulty, and no penalty. The errors are robust to groups (Liang & Zeger 1986) and so
    need no binary outcomes; the interval is Student's with groups - 1 degrees of freedom, on the logit scale.

    Where the regression has no finite answer, the rate is the plain one, its interval Wilson's with the
    groups as trials, and ``reason`` says so.

    Args:
        won_N: 1 where a won, 0 where it lost, 0.5 for a tie, or the probability.
        length_a_N: length of a's answer, in any unit.
        length_b_N: length of b's answer.
        group_N: which comparisons belong together, such as a prompt's; without it each stands alone.
        level: confidence.

    Raises:
        ValueError: rows are empty, of different length or not finite, an outcome lies outside [0, 1], or
            ``level`` is not in (0, 1).
    """
    _require_level(level)
    won_N = _unit_row("won_N", won_N)
    length_a_N, length_b_N = _finite_row("length_a_N", length_a_N), _finite_row("length_b_N", length_b_N)
    group_N = np.arange(len(won_N)) if group_N is None else np.asarray(group_N)
    _require_same_length(won_N=won_N, length_a_N=length_a_N, length_b_N=length_b_N, group_N=group_N)
    group_N = np.unique(group_N, return_inverse=True)[1].reshape(-1)
    groups = int(group_N.max()) + 1
    gap_N = length_a_N - length_b_N
    x_N = np.tanh(gap_N / (gap_N.std() or 1.0))
    fit = _no_length_control(won_N, x_N, groups) or _length_regression(won_N, x_N, group_N)
    if isinstance(fit, str):
        rate = float(won_N.mean())
        low, high = wilson_interval(rate * groups, groups, level)
        return LengthControlled(rate, low, high, None, fit)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, groups - 1))
    theta, theta_error, effect, effect_error = fit
    return LengthControlled(
        rate=_sigmoid(theta),
        low=_sigmoid(theta - half * theta_error),
        high=_sigmoid(theta + half * theta_error),
        length_effect=(effect, effect - half * effect_error, effect + half * effect_error),
        reason=None,
    )


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


def _hierarchical_interval(
    statistic: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    sizes: tuple[int, ...],
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Percentiles of the mean of a prompt's statistic over drawn prompts with drawn responses.

    ``statistic(p, count_DA, count_DB)`` has D values of prompt p, given how often each response is drawn.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    prompts, a, b = sizes
    rng = np.random.default_rng(seed)
    # In blocks, so that many prompts or responses do not make a huge table.
    block = max(1, min(32_000_000 // prompts, 4_000_000 // max(a, b)))
    sum_R = np.zeros(resamples)
    for start in range(0, resamples, block):
        sum_S = sum_R[start : start + block]
        # Prompt by prompt, all its draws together: matrices instead of a loop over resamples.
        for p, times_S in enumerate(_drawn(rng, len(sum_S), prompts).T):
            draws = int(times_S.sum())
            value_D = statistic(p, _drawn(rng, draws, a), _drawn(rng, draws, b))
            owner_D = np.repeat(np.arange(len(sum_S)), times_S)
            sum_S += np.bincount(owner_D, weights=value_D, minlength=len(sum_S))
    low, high = np.quantile(sum_R / prompts, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _drawn(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """``count_DN``: how often each of n items comes up in n picks with replacement, ``draws`` times over."""
    count_DN = np.empty((draws, n), dtype=np.int32)
    block = max(1, 2_000_000 // n)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        index = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        count_DN[start : start + size] = np.bincount(index.ravel(), minlength=size * n).reshape(size, n)
    return count_DN


def _no_length_control(won_N: np.ndarray, x_N: np.ndarray, groups: int) -> str | None:
    """Why a logistic regression on a constant and x has no finite answer, or no interval."""
    if np.ptp(x_N) < 1e-6:
        return "the difference of lengths is the same in every comparison"
    if groups < 5:
        return f"{groups} groups are too few for a regression"
    if np.ptp(won_N) == 0:
        return "every comparison has the same outcome"
    # A tie counts on both sides. The likelihood has a maximum where the sides overlap (Silvapulle 1981).
    won, lost = x_N[won_N > 0], x_N[won_N < 1]
    if won.min() >= lost.max() or lost.min() >= won.max():
        return "the length alone tells wins from losses"
    return None


def _length_regression(
    won_N: np.ndarray, x_N: np.ndarray, group_N: np.ndarray
) -> tuple[float, float, float, float] | str:
    """theta, its error, the effect of length, its error; or why there are none."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Any of statsmodels' warnings means that what it returns is no answer.
        warnings.simplefilter("error")
        try:
            fit = GLM(won_N, np.stack([np.ones_like(x_N), x_N], -1), family=Binomial()).fit(
                maxiter=100, tol=1e-10, cov_type="cluster", cov_kwds={"groups": group_N}
            )
        except (Warning, np.linalg.LinAlgError, ValueError) as error:
            return f"the regression has no answer: {error}"
    if not fit.converged or not np.isfinite(fit.bse).all():
        return "the regression does not converge"
    if fit.bse.min() < 1e-9:
        return "the outcomes do not vary between groups"
    return float(fit.params[0]), float(fit.bse[0]), float(fit.params[1]), float(fit.bse[1])


def _sigmoid(x: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -x)))


def _finite_row(name: str, values: ArrayLike) -> np.ndarray:
    row_N = np.asarray(values, dtype=np.float64)
    if row_N.ndim != 1 or row_N.size == 0:
        raise ValueError(f"{name} has shape {row_N.shape}; it must be one row of at least one value")
    if not np.isfinite(row_N).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(row_N)))}] is not a finite number")
    return row_N


def _finite_table(name: str, values: ArrayLike) -> np.ndarray:
    table_PK = np.asarray(values, dtype=np.float64)
    if table_PK.ndim != 2 or table_PK.size == 0:
        raise ValueError(
            f"{name} has shape {table_PK.shape}; it must be prompts by responses, at least one each"
        )
    if not np.isfinite(table_PK).all():
        row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(table_PK)))
        raise ValueError(f"{name}[{row}, {column}] is not a finite number")
    return table_PK


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
