"""Statistics of scores of pairs: intervals over clusters, calibration, partial correlation, excess.

On NumPy arrays of N pairs; nothing here loads torch. Pairs of one prompt are one cluster: they are not
independent, so whole prompts are resampled or summed. Which response of a pair comes first is arbitrary, so
correlations and regressions of differences go through the origin: swapping a pair's sides flips the signs
of all its differences and changes no result.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from preferl.statistics.checks import finite_row, require_level, require_same_length, unit_row
from preferl.statistics.intervals import FEW, Estimate


class UndefinedStatistic(ValueError):
    """The data do not determine the number; the message says why."""


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of predicted probabilities [low, high): mean prediction against observed share.

    Example: ``ReliabilityBin(0.7, 0.8, 120, 0.75, 0.73, 0.65, 0.80)``.
    """

    low: float
    high: float
    count: int
    mean_probability: float
    observed: float
    observed_low: float
    observed_high: float


@dataclass(frozen=True)
class Coefficient:
    """A regression coefficient with its interval and two-sided p-value.

    Example: ``Coefficient(1.02, 0.93, 1.11, 1e-9)``.
    """

    value: float
    low: float
    high: float
    p_value: float


def cluster_bootstrap(
    value_N: ArrayLike, cluster_N: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean with a percentile bootstrap interval that resamples whole clusters (Davison & Hinkley 1997, 3.8).

    Returns (mean, low, high). The mean is over values, so a large cluster weighs more. Fewer than ``FEW``
    clusters have Student's interval with the variance over clusters (Cochran 1977, 6.5), and (-inf, inf)
    where all values are equal, as one is.

    Raises:
        ValueError: rows are empty, of different length or not finite, ``level`` is not in (0, 1), or there
            are no resamples.
    """
    value_N, cluster_N = finite_row("value_N", value_N), _cluster_row(cluster_N, value_N)
    require_level(level)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    sum_C, count_C = np.bincount(cluster_N, weights=value_N), np.bincount(cluster_N)
    mean, n = float(value_N.mean()), len(count_C)
    if n == 1 or (n < FEW and np.ptp(value_N) == 0):
        return Estimate(mean, -np.inf, np.inf)
    if n < FEW:
        from scipy import stats

        residual_C = sum_C - mean * count_C
        error = np.sqrt((residual_C**2).sum() * n / (n - 1)) / len(value_N)
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * error)
        return Estimate(mean, mean - half, mean + half)
    rng = np.random.default_rng(seed)
    # In blocks, so that many clusters do not make a huge table of indices.
    block = max(1, 1_000_000 // n)
    mean_R = np.empty(resamples)
    for start in range(0, resamples, block):
        draw_RC = rng.integers(0, n, (min(block, resamples - start), n))
        mean_R[start : start + block] = sum_C[draw_RC].sum(-1) / count_C[draw_RC].sum(-1)
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high))


def clustered_proportion(success_N: ArrayLike, cluster_N: ArrayLike, level: float = 0.95) -> Estimate:
    """Proportion with Wilson's interval at the effective sample size of clustered trials.

    Returns (proportion, low, high). The trials count as N / deff, where deff >= 1 is the variance of the
    proportion over clusters divided by that of independent trials (Kish 1965; Dean & Pagano 2015). Where
    every cluster has one trial this is Wilson's interval. Where all trials agree, or there are fewer than
    ``FEW`` clusters, the data do not say how alike the trials of one cluster are: they count as one trial
    (N^2 / sum of squared cluster sizes in all).

    Raises:
        ValueError: rows are empty or of different length, a success lies outside [0, 1], or ``level`` is
            not in (0, 1).
    """
    success_N, cluster_N = unit_row("success_N", success_N), _cluster_row(cluster_N, success_N)
    require_level(level)
    n, clusters, proportion = len(success_N), int(cluster_N.max()) + 1, float(success_N.mean())
    effective = float(n)
    if clusters < n:
        residual_C = np.bincount(cluster_N, weights=success_N - proportion)
        independent = n * proportion * (1 - proportion)
        if independent > 0 and clusters >= FEW:
            spread = float((residual_C**2).sum()) * clusters / (clusters - 1)
            effective = n / max(1.0, spread / independent)
        else:
            effective = n**2 / float((np.bincount(cluster_N) ** 2).sum())
    effective = max(1.0, effective)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(proportion * effective, effective, alpha=1 - level, method="wilson")
    return Estimate(proportion, float(np.asarray(low)), float(np.asarray(high)))


def partial_correlation(
    x_N: ArrayLike,
    y_N: ArrayLike,
    control_NK: ArrayLike | None = None,
    cluster_N: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Correlation of two differences, the controls' share taken out: (correlation, low, high).

    Regress x and y on the controls without intercept and correlate the residuals through the origin. That
    is the ordinary partial correlation of the data in which every pair stands in both orders. A control
    column of ones, where differences are chosen - rejected, is the label.

    The interval is Fisher's z with a variance from influence functions summed over clusters (as in a
    sandwich estimator), so it needs neither normal nor independent pairs.

    Raises:
        UndefinedStatistic: x or y is 0 in every pair or follows from the controls, or there are too few
            clusters for an interval.
        ValueError: rows are empty, of different length or not finite, or ``level`` is not in (0, 1).
    """
    x_N, y_N = finite_row("x_N", x_N), finite_row("y_N", y_N)
    require_same_length(x_N=x_N, y_N=y_N)
    require_level(level)
    n = len(x_N)
    cluster_N = np.arange(n) if cluster_N is None else _cluster_row(cluster_N, x_N)
    control_NK = np.empty((n, 0)) if control_NK is None else np.asarray(control_NK, dtype=np.float64)
    if control_NK.ndim != 2 or len(control_NK) != n or not np.isfinite(control_NK).all():
        raise ValueError(f"control_NK has shape {control_NK.shape}; it must be {n} rows of finite values")
    clusters, controls = int(cluster_N.max()) + 1, control_NK.shape[1]
    if clusters < controls + 4:
        raise UndefinedStatistic(f"{clusters} prompts are too few for a correlation with an interval")
    x_N, y_N = _residual("x", x_N, control_NK), _residual("y", y_N, control_NK)
    r = float(np.clip((x_N * y_N).mean(), -1, 1))
    if 1 - r * r < 1e-12:
        return Estimate(r, r, r)
    # The influence of a pair on r; that on the regression on controls vanishes to first order.
    influence_C = np.bincount(cluster_N, weights=x_N * y_N - r / 2 * (x_N**2 + y_N**2))
    variance = float((influence_C**2).sum()) / n**2 * clusters / (clusters - 1)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, clusters - 1 - controls)) * np.sqrt(variance) / (1 - r * r)
    return Estimate(r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)))


def logistic_coefficients(
    x_NK: ArrayLike, label_N: ArrayLike, cluster_N: ArrayLike, level: float = 0.95
) -> tuple[Coefficient, ...]:
    """Maximum-likelihood logistic regression, errors robust to clusters (Liang & Zeger 1986), no intercept.

    Differences of two responses have no intercept: a pair with no difference is even. With the score gap as
    only column its coefficient is the calibration slope (Cox 1958; 1 for a calibrated model, below 1 for an
    overconfident one). A second column asks what the labels know that the score does not.

    Args:
        x_NK: differences of a pair, K columns.
        label_N: 1 where the first response is preferred, 0 where the second is, or the probability.
        cluster_N: which pairs belong together.
        level: confidence.

    Raises:
        UndefinedStatistic: the columns explain every label without a rest, or one another.
        ValueError: rows are of different length, not finite, or a label lies outside [0, 1].
    """
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import (
        ConvergenceWarning,
        HessianInversionWarning,
        PerfectSeparationError,
        PerfectSeparationWarning,
    )

    label_N = unit_row("label_N", label_N)
    cluster_N = _cluster_row(cluster_N, label_N)
    x_NK = np.asarray(x_NK, dtype=np.float64)
    if x_NK.ndim != 2 or len(x_NK) != len(label_N) or not np.isfinite(x_NK).all():
        raise ValueError(f"x_NK has shape {x_NK.shape}; it must be {len(label_N)} rows of finite values")
    scale_K = np.sqrt((x_NK**2).mean(0))
    clusters = int(cluster_N.max()) + 1
    if not scale_K.all() or np.linalg.matrix_rank(x_NK / scale_K, tol=1e-8) < x_NK.shape[1]:
        raise UndefinedStatistic("a column is 0 in every pair or follows from the others")
    if clusters < x_NK.shape[1] + 3:
        raise UndefinedStatistic(f"{clusters} prompts are too few for a regression")
    with warnings.catch_warnings(), np.errstate(over="ignore", under="ignore"):
        for category in (ConvergenceWarning, HessianInversionWarning, PerfectSeparationWarning):
            warnings.simplefilter("error", category)
        try:
            fit = Logit(label_N, x_NK / scale_K).fit(
                disp=0, maxiter=100, cov_type="cluster", cov_kwds={"groups": cluster_N}
            )
        except (
            ConvergenceWarning,
            HessianInversionWarning,
            PerfectSeparationError,
            PerfectSeparationWarning,
            np.linalg.LinAlgError,
        ) as error:
            raise UndefinedStatistic("the differences explain every label without a rest") from error
    bounds_K2 = np.asarray(fit.conf_int(1 - level))
    if not (np.isfinite(bounds_K2).all() and np.isfinite(fit.pvalues).all()):
        raise UndefinedStatistic("the differences explain every label without a rest")
    # Back from columns of mean square 1; a p-value has no unit.
    value_K, low_K, high_K = fit.params / scale_K, bounds_K2[:, 0] / scale_K, bounds_K2[:, 1] / scale_K
    return tuple(
        Coefficient(float(value_K[k]), float(low_K[k]), float(high_K[k]), float(fit.pvalues[k]))
        for k in range(len(scale_K))
    )


def excess_preference(
    gap_N: ArrayLike, feature_N: ArrayLike, label_N: ArrayLike, cluster_N: ArrayLike, level: float = 0.95
) -> Coefficient:
    """How much more often a model prefers the side with more of a feature than the labels do.

    Mean of P(side with more) - label(side with more) over the pairs that differ in the feature, where
    P = sigma(s * gap). s is the calibration slope where the gap predicts the labels, so that confidence
    alone is not taken for a preference, and 1 elsewhere. Negative: the labels reward it more. The variance
    is summed over clusters and includes that of s (a score test with one nuisance parameter; Cox & Hinkley
    1974, 9.3).

    Args:
        gap_N: score differences of a pair, as log-odds.
        feature_N: differences of the feature, same orientation.
        label_N: 1 where the first response is preferred, or the probability.
        cluster_N: which pairs belong together.
        level: confidence.

    Raises:
        UndefinedStatistic: no pair differs in the feature, the gap is 0 in every pair or explains every
            label without a rest, or there are too few clusters.
        ValueError: rows are of different length, not finite, or a label lies outside [0, 1].
    """
    gap_N, feature_N = finite_row("gap_N", gap_N), finite_row("feature_N", feature_N)
    label_N, cluster_N = unit_row("label_N", label_N), _cluster_row(cluster_N, label_N)
    require_same_length(gap_N=gap_N, feature_N=feature_N, label_N=label_N)
    require_level(level)
    side_N = np.sign(feature_N)
    differing = int(np.abs(side_N).sum())
    if not differing:
        raise UndefinedStatistic("no pair differs in the feature")
    (slope,) = logistic_coefficients(gap_N[:, None], label_N, cluster_N, level)
    scale = slope.value if slope.low > 0 else 1.0
    prob_N = np.exp(-np.logaddexp(0, -scale * gap_N))
    if slope.low > 0:
        # Fitting s makes sum (prob - label) * gap zero; this term changes the variance, not the mean.
        weight_N = prob_N * (1 - prob_N)
        side_N = side_N - gap_N * (weight_N * side_N * gap_N).sum() / (weight_N * gap_N**2).sum()
    sum_C = np.bincount(cluster_N, weights=(prob_N - label_N) * side_N)
    excess, clusters = float(sum_C.sum()) / differing, len(sum_C)
    error = float(np.sqrt((sum_C**2).sum() * clusters / (clusters - 1))) / differing
    if error == 0:
        raise UndefinedStatistic("the model's probabilities are the labels")
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, clusters - 1)) * error
    return Coefficient(
        excess, excess - half, excess + half, 2 * float(t.sf(abs(excess) / error, clusters - 1))
    )


def holm(p_value_N: ArrayLike) -> np.ndarray:
    """p-values corrected for having looked at N of them (Holm 1979); ``statsmodels`` runs the garbage
    collector for this, which takes longer than the rest of an audit.

    Raises:
        ValueError: no p-values, or one outside [0, 1].
    """
    p_value_N = unit_row("p_value_N", p_value_N)
    order_N = np.argsort(p_value_N)
    corrected_N = np.empty_like(p_value_N)
    rising_N = np.maximum.accumulate(p_value_N[order_N] * np.arange(len(order_N), 0, -1))
    corrected_N[order_N] = np.minimum(rising_N, 1)
    return corrected_N


def expected_calibration_error(prob_N: ArrayLike, label_N: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b / N |mean label - mean probability| over equal-width bins (Naeini et al. 2015; Guo et al.
    2017, eq. 3).

    For pairs the caller orients each by a seeded coin, so that both labels occur. It is not 0 for a perfect
    model: with 10 bins about 0.03 at 1,000 items and 0.014 at 5,000.

    Raises:
        ValueError: the rows are empty or of different length, a probability or label is outside [0, 1], or
            there are no bins.
    """
    prob_N, label_N = unit_row("prob_N", prob_N), unit_row("label_N", label_N)
    require_same_length(prob_N=prob_N, label_N=label_N)
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
    prob_N = unit_row("prob_N", prob_N)
    return float(np.maximum(prob_N, 1 - prob_N).mean())


def reliability_curve(
    prob_N: ArrayLike,
    label_N: ArrayLike,
    bins: int = 10,
    level: float = 0.95,
    cluster_N: ArrayLike | None = None,
) -> list[ReliabilityBin]:
    """Observed share of label 1 in equal-width bins of the predicted probability; empty bins are left out.

    The bins are those of ``expected_calibration_error`` (Guo et al. 2017, fig. 1). Observed shares
    carry Wilson's interval, at the effective sample size where pairs come in clusters.

    Raises:
        ValueError: rows are empty or of different length, a probability or label lies outside [0, 1], there
            are no bins, or ``level`` is not in (0, 1).
    """
    prob_N, label_N = unit_row("prob_N", prob_N), unit_row("label_N", label_N)
    require_same_length(prob_N=prob_N, label_N=label_N)
    bin_N = _bins(prob_N, bins)
    cluster_N = np.arange(len(prob_N)) if cluster_N is None else _cluster_row(cluster_N, prob_N)
    curve = []
    for b in np.unique(bin_N):
        inside_N = bin_N == b
        observed = clustered_proportion(label_N[inside_N], cluster_N[inside_N], level)
        mean = float(prob_N[inside_N].mean())
        curve.append(ReliabilityBin(b / bins, (b + 1) / bins, int(inside_N.sum()), mean, *observed))
    return curve


def calibration_error_floor(prob_N: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of a perfect model with these predictions, by the normal approximation.

    sum_b sqrt(2 / pi * sum_{i in b} p_i (1 - p_i)) / N: what chance alone gives at this number of pairs.

    Raises:
        ValueError: no probabilities, one outside [0, 1], or there are no bins.
    """
    prob_N = unit_row("prob_N", prob_N)
    variance_bins = np.bincount(_bins(prob_N, bins), weights=prob_N * (1 - prob_N), minlength=bins)
    return float(np.sqrt(2 / np.pi * variance_bins).sum() / len(prob_N))


def _bins(prob_N: np.ndarray, bins: int) -> np.ndarray:
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    return np.minimum((prob_N * bins).astype(int), bins - 1)


def _residual(name: str, value_N: np.ndarray, control_NK: np.ndarray) -> np.ndarray:
    """What the controls do not explain, at mean square 1."""
    square = float((value_N**2).mean())
    if square == 0:
        raise UndefinedStatistic(f"{name} is 0 in every pair")
    residual_N = value_N / np.sqrt(square)
    if control_NK.shape[1]:
        scale_K = np.sqrt((control_NK**2).mean(0))
        control_NK = control_NK / np.where(scale_K > 0, scale_K, 1)
        residual_N = residual_N - control_NK @ np.linalg.lstsq(control_NK, residual_N, rcond=None)[0]
    rest = float((residual_N**2).mean())
    if rest < 1e-20:
        raise UndefinedStatistic(f"{name} follows from the controls")
    return residual_N / np.sqrt(rest)


def _cluster_row(cluster_N: ArrayLike, like_N: ArrayLike) -> np.ndarray:
    """Clusters numbered from 0 without gaps."""
    numbered_N = np.unique(np.asarray(cluster_N), return_inverse=True)[1].reshape(-1)
    require_same_length(values=np.asarray(like_N), clusters=numbered_N)
    return numbered_N
