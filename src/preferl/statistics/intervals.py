"""Intervals of proportions, means, differences and win rates, on NumPy arrays of N items."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from preferl.statistics.checks import finite_row, finite_table, require_level, require_same_length, unit_row

# Items below which a percentile bootstrap is much too narrow (of five normal values it covers 80 %, of two
# half): Student's and Wilson's intervals stand in for it.
FEW = 30


class Estimate(NamedTuple):
    """A value with its interval: one type, two layouts in JSON, and its text.

    Example: ``Estimate(0.52, 0.47, 0.57)``. A bound is infinite where one value says nothing about the
    spread; all three are None where the data do not determine them.
    """

    value: float | None
    low: float | None
    high: float | None

    def named(self, name: str) -> dict[str, Any]:
        """``name``, ``name_low`` and ``name_high``: beside other measurements in one row."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def json(self) -> dict[str, Any]:
        """``value``, ``low`` and ``high``: a measurement by itself; an infinite bound is None."""

        def known(bound: float | None) -> float | None:
            return bound if bound is not None and math.isfinite(bound) else None

        return {"value": self.value, "low": known(self.low), "high": known(self.high)}

    @classmethod
    def read(cls, row: Mapping[str, Any], name: str | None = None) -> "Estimate":
        """What ``named`` wrote under a name, or without one what ``json`` wrote.

        Raises:
            KeyError: the row does not have it.
        """
        if name is None:
            return cls(row["value"], row["low"], row["high"])
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"])

    def text(self, form: str | Callable[[float], str] = ".2f", missing: str = "–") -> str:
        """``0.52 [0.47, 0.57]``; an unknown bound is an ellipsis, no value is ``missing``. ``form`` is a
        format, or writes a number."""
        if self.value is None:
            return missing
        return f"{_written(self.value, form)} {self.ends(form)}"

    def ends(self, form: str | Callable[[float], str] = ".2f") -> str:
        """``[0.47, 0.57]``."""
        # A callable writes for pages, where the two ends stay on one line.
        comma = ", " if isinstance(form, str) else ",\u00a0"
        return f"[{_written(self.low, form)}{comma}{_written(self.high, form)}]"


def _written(number: float | None, form: str | Callable[[float], str]) -> str:
    if number is None or not math.isfinite(number):
        return "…"
    return format(number, form) if isinstance(form, str) else form(number)


def undefined(reason: str) -> dict[str, Any]:
    """The JSON of an estimate that the data do not determine, with the reason."""
    return Estimate(None, None, None).json() | {"reason": reason}


def proportion(wins: float, n: int, level: float = 0.95) -> Estimate:
    """A share of trials with Wilson's interval; see ``wilson_interval``."""
    return Estimate(wins / n, *wilson_interval(wins, n, level))


def wilson_interval(wins: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): (low, high).

    Args:
        wins: successes; a tie may count half.
        n: trials.
        level: confidence.

    Raises:
        ValueError: no trials, wins outside [0, n], or ``level`` not in (0, 1).
    """
    require_level(level)
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(
            f"{wins} wins of {n} trials have no interval: wins lie in [0, n] and n is at least 1"
        )
    from statsmodels.stats.proportion import proportion_confint

    interval = np.asarray(proportion_confint(wins, n, alpha=1 - level, method="wilson"))
    return float(interval[0]), float(interval[1])


def mean_interval(a_N: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean with Student's t interval (Student 1908): (mean, low, high).

    One value says nothing about the spread: its interval is (-inf, inf).

    Raises:
        ValueError: no values, not one row of finite values, or ``level`` not in (0, 1).
    """
    require_level(level)
    a_N = finite_row("a_N", a_N)
    mean = float(a_N.mean())
    if len(a_N) == 1:
        return Estimate(mean, -np.inf, np.inf)
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, len(a_N) - 1) * a_N.std(ddof=1) / np.sqrt(len(a_N)))
    return Estimate(mean, mean - half, mean + half)


def mean_share(share_N: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of shares or probabilities: Student's interval, or of fewer than ``FEW`` Wilson's with them as
    trials, which stays in [0, 1] and has an end for one value too.

    Raises:
        ValueError: no values, one outside [0, 1], or ``level`` not in (0, 1).
    """
    share_N = unit_row("share_N", share_N)
    if len(share_N) < FEW:
        return proportion(float(share_N.sum()), len(share_N), level)
    return mean_interval(share_N, level)


def paired_bootstrap(
    a_N: ArrayLike, b_N: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of a - b over the same items with a percentile bootstrap interval (Efron 1979): (mean, low, high).

    Items are resampled, so that what makes an item hard for both cancels. Fewer than ``FEW`` have Student's
    interval, and (-inf, inf) where all differences are equal: one, or several, say nothing of the spread
    then. Equal arguments give equal intervals.

    Raises:
        ValueError: the rows are empty, of different length or not finite, ``level`` is not in (0, 1), or
            there are no resamples.
    """
    require_level(level)
    a_N, b_N = finite_row("a_N", a_N), finite_row("b_N", b_N)
    require_same_length(a_N=a_N, b_N=b_N)
    _require_resamples(resamples)
    gap_N = a_N - b_N
    mean, n = float(gap_N.mean()), len(gap_N)
    if n < FEW:
        return _mean_of_few(gap_N, level)
    rng = np.random.default_rng(seed)
    # In blocks, so that many items do not make a huge table of indices.
    block = max(1, 2_000_000 // n)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    means = np.concatenate([gap_N[rng.integers(0, n, (size, n))].mean(-1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high))


def paired_hierarchical_bootstrap(
    a_PA: ArrayLike, b_PB: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over prompts of mean_A a - mean_B b with a two-level percentile bootstrap: (mean, low, high).

    P prompts, A responses of one model and B of the other to each. A resample draws prompts, and within each
    drawn prompt the responses of either model, all with replacement (Davison & Hinkley 1997, 3.8). With one
    response each this is ``paired_bootstrap``. With more it errs on the wide side: a prompt's mean carries
    the luck of its responses already, which drawing them again adds once more (at most sqrt(2) times the
    width, where responses differ much more than prompts). Fewer than ``FEW`` prompts have the interval
    that ``paired_bootstrap`` gives few items.

    Raises:
        ValueError: the tables are empty, not finite or of different numbers of prompts, ``level`` is not in
            (0, 1), or there are no resamples.
    """
    require_level(level)
    a_PA, b_PB = finite_table("a_PA", a_PA), finite_table("b_PB", b_PB)
    require_same_length(a_PA=a_PA, b_PB=b_PB)

    def mean_gap(p: int, count_DA: np.ndarray, count_DB: np.ndarray) -> np.ndarray:
        return count_DA @ a_PA[p] / a_PA.shape[1] - count_DB @ b_PB[p] / b_PB.shape[1]

    sizes = len(a_PA), a_PA.shape[1], b_PB.shape[1]
    gap_P = a_PA.mean(-1) - b_PB.mean(-1)
    if len(gap_P) < FEW:
        _require_resamples(resamples)
        return _mean_of_few(gap_P, level)
    low, high = _hierarchical_interval(mean_gap, sizes, level, resamples, seed)
    return Estimate(float(gap_P.mean()), low, high)


def hierarchical_win_rate(
    a_PA: ArrayLike, b_PB: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over prompts of the share of the A * B comparisons that a wins, ties half: (rate, low, high).

    The interval is that of ``paired_hierarchical_bootstrap``: prompts are resampled, and responses within
    them. Where that has no width, because all comparisons agree (a wins all, loses all or ties all), or there
    are fewer than ``FEW`` prompts, it is Wilson's, with the P prompts as trials.

    Raises:
        ValueError: the tables are empty, not finite or of different numbers of prompts, ``level`` is not in
            (0, 1), or there are no resamples.
    """
    require_level(level)
    a_PA, b_PB = finite_table("a_PA", a_PA), finite_table("b_PB", b_PB)
    require_same_length(a_PA=a_PA, b_PB=b_PB)

    def won_AB(p: int) -> np.ndarray:
        a_A1 = a_PA[p][:, None]
        return (a_A1 > b_PB[p]) + 0.5 * (a_A1 == b_PB[p])

    def win_rate(p: int, count_DA: np.ndarray, count_DB: np.ndarray) -> np.ndarray:
        won_DB = count_DA @ won_AB(p)
        return (won_DB * count_DB).sum(-1) / (count_DA.shape[1] * count_DB.shape[1])

    prompts = len(a_PA)
    rate = float(np.mean([won_AB(p).mean() for p in range(prompts)]))
    sizes = prompts, a_PA.shape[1], b_PB.shape[1]
    if prompts < FEW:
        _require_resamples(resamples)
        return Estimate(rate, *wilson_interval(rate * prompts, prompts, level))
    low, high = _hierarchical_interval(win_rate, sizes, level, resamples, seed)
    if low == high:
        low, high = wilson_interval(rate * prompts, prompts, level)
    return Estimate(rate, low, high)


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
    require_level(level)
    won_N = unit_row("won_N", won_N)
    length_a_N, length_b_N = finite_row("length_a_N", length_a_N), finite_row("length_b_N", length_b_N)
    group_N = np.arange(len(won_N)) if group_N is None else np.asarray(group_N)
    require_same_length(won_N=won_N, length_a_N=length_a_N, length_b_N=length_b_N, group_N=group_N)
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


def _mean_of_few(gap_N: np.ndarray, level: float) -> Estimate:
    """Student's interval, unbounded where the values are equal: it would have no width."""
    if np.ptp(gap_N) == 0:
        return Estimate(float(gap_N.mean()), -np.inf, np.inf)
    return mean_interval(gap_N, level)


def _require_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")


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
    _require_resamples(resamples)
    prompts, a, b = sizes
    rng = np.random.default_rng(seed)
    # In blocks of S resamples, so that many prompts or responses do not make a huge table.
    block = max(1, min(32_000_000 // prompts, 4_000_000 // max(a, b)))
    sum_R = np.zeros(resamples)
    for start in range(0, resamples, block):
        sum_S = sum_R[start : start + block]  # a view: what is added here is added there
        # Prompt by prompt, all its draws together: matrices instead of a loop over resamples. A prompt that
        # a resample draws twice has its responses drawn anew each time.
        for p, times_S in enumerate(_drawn(rng, len(sum_S), prompts).T):
            draws = int(times_S.sum())
            value_D = statistic(p, _drawn(rng, draws, a), _drawn(rng, draws, b))
            # Each of the D values goes to the resample that drew the prompt.
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
        # Row r counts in the numbers r * n to r * n + n - 1, so one bincount serves all rows.
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
