"""Reward against KL: what the reference could reach at a price, and where more of it over-optimises.

P prompts, K responses of the reference to each, N points of a curve. KL in nats, from the reference (the
SFT model). On NumPy arrays; nothing here loads torch.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from preferl.statistics.checks import finite_row, finite_table, require_level, require_same_length

DRAWS = 10_000
MIN_EFFECTIVE_SAMPLES = 30  # below this an estimate of the optimum is too low
MIN_R_SQUARED = 0.5  # of a curve; below it nothing is said about where it turns

# The two terms of a curve at distance d: the gain is alpha * first - beta * second.
TERMS = {
    "best_of_n": lambda d_N: (d_N, d_N**2),
    "rl": lambda d_N: (d_N, d_N * np.log(np.where(d_N > 0, d_N, 1.0))),
}
# The distance at which the curve of beta > 0 is highest; one that falls from the start is highest at 0.
PEAKS = {
    "best_of_n": lambda alpha, beta: np.maximum(alpha, 0) / (2 * beta),
    "rl": lambda alpha, beta: np.exp(alpha / beta - 1),
}


def best_of_n_weights(score_PK: ArrayLike, n: int) -> np.ndarray:
    """``weight_PK``: the chance that a response is the one picked when n of the K are drawn without
    replacement and the highest score is taken.

    sum_K weight * value is an unbiased estimate of the value of best-of-n, of the score itself or of any
    other measure of the picked response (Nakano et al. 2021, appendix I; Gao et al. 2023): the response of
    rank m from below is picked with C(m - 1, n - 1) / C(K, n). Equal scores share evenly. Rows sum to 1.

    Raises:
        ValueError: the scores are no table of finite values, or n is not in [1, K].
    """
    score_PK = finite_table("score_PK", score_PK)
    k = score_PK.shape[1]
    if not 1 <= n <= k:
        raise ValueError(f"n is {n}; best-of-n draws between 1 and all {k} responses of a prompt")
    # 1. The chance of each rank, from the lowest to the highest.
    #    C(m, n) / C(K, n) for m = K, K - 1, ..., 1 as a running product: no factorial, no cancellation.
    m_K = np.arange(k, 0, -1)
    all_below_K = np.cumprod(np.append(1.0, np.maximum(m_K - n, 0)[:-1] / m_K[:-1]))
    picked_K = (all_below_K * n / m_K)[::-1]
    # 2. Every run of equal scores of a prompt has a number, counted on through all prompts.
    order_PK = np.argsort(score_PK, axis=-1)
    sorted_PK = np.take_along_axis(score_PK, order_PK, -1)
    new_PK = np.ones(score_PK.shape, dtype=bool)
    new_PK[:, 1:] = sorted_PK[:, 1:] != sorted_PK[:, :-1]
    tie_PK = np.cumsum(new_PK).reshape(score_PK.shape) - 1
    # 3. Equal scores share the chance of their ranks, and each response gets its share in its own place.
    sum_T = np.bincount(tie_PK.ravel(), weights=np.tile(picked_K, len(score_PK)))
    share_T = sum_T / np.bincount(tie_PK.ravel())
    weight_PK = np.empty_like(score_PK)
    np.put_along_axis(weight_PK, order_PK, share_T[tie_PK], -1)
    return weight_PK


def tilt_weights(score_PK: ArrayLike, beta: float) -> np.ndarray:
    """``weight_PK``: softmax(score / beta) over a prompt's K responses.

    Self-normalised importance weights from the reference to the optimum of E[score] - beta * KL, pi* =
    pi_ref exp(score / beta) / Z (Rafailov et al. 2023, eq. 4). sum_K weight * value estimates the mean of a
    value under pi*; the bias is of order 1 / K and large where ``effective_sample_size`` is small.

    Raises:
        ValueError: the scores are no table of finite values, or beta is not above 0.
    """
    score_PK = finite_table("score_PK", score_PK)
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta is {beta}; it must be a finite number above 0")
    with np.errstate(over="ignore", under="ignore"):
        weight_PK = np.exp((score_PK - score_PK.max(-1, keepdims=True)) / beta)
    return weight_PK / weight_PK.sum(-1, keepdims=True)


def effective_sample_size(weight_PK: ArrayLike) -> np.ndarray:
    """``size_P``: (sum w)^2 / sum w^2 (Kish 1965), between 1 and K; the weights' scale does not matter.

    Raises:
        ValueError: the weights are no table of finite values, one is negative, or a row has none above 0.
    """
    scaled_PK = _weights(weight_PK)
    scaled_PK = scaled_PK / scaled_PK.max(-1, keepdims=True)
    return scaled_PK.sum(-1) ** 2 / (scaled_PK**2).sum(-1)


def tilt_kl(weight_PK: ArrayLike) -> np.ndarray:
    """``kl_P``: sum_K w log(K w), an estimate of KL(pi*‖pi_ref) in nats from weights on K samples of pi_ref.

    K samples cannot show more than log K, so the estimate is too low where the true KL comes near that. Of
    ``best_of_n_weights`` it is the KL of best-of-n.

    Raises:
        ValueError: the weights are no table of finite values, one is negative, or a row does not sum to 1.
    """
    share_PK = _weights(weight_PK)
    sum_P = share_PK.sum(-1)
    if not np.allclose(sum_P, 1, rtol=0, atol=1e-6):
        where = int(np.argmax(np.abs(sum_P - 1)))
        raise ValueError(
            f"row {where} of weight_PK sums to {sum_P[where]:g}; the weights of a prompt sum to 1"
        )
    # At 0 the logarithm is of 1, so that 0 log 0 = 0.
    ratio_PK = np.where(share_PK > 0, share_PK * share_PK.shape[1], 1.0)
    return (share_PK * np.log(ratio_PK)).sum(-1)


@dataclass(frozen=True)
class OverOptimization:
    """A fitted curve of gain against d = sqrt(KL): d (alpha - beta d) for best-of-n, d (alpha - beta log d)
    for RL.

    ``low`` and ``high`` bound an interval of confidence ``level``. Turning points are KLs in nats: where the
    curve is highest and more optimisation starts to cost. ``turning_low`` or ``turning_high`` is None where
    that end is not bounded: too many curves that fit as well rise without end.

    Example: ``fit_over_optimization([1, 4, 9, 16], [.8, 1.3, 1.4, 1.1], "best_of_n").turning_kl`` is 7.59.
    """

    form: str
    alpha: float
    alpha_error: float
    alpha_low: float
    alpha_high: float
    beta: float
    beta_error: float
    beta_low: float
    beta_high: float
    r_squared: float
    """1 - residual / total sum of squares about the mean; below 0 where the gains' mean fits better than the
    curve, which has to go through the origin. 0 where all gains are equal."""
    points: int
    smallest_kl: float
    largest_kl: float
    turning_low: float | None
    turning_high: float | None
    level: float

    def __call__(self, kl_N: ArrayLike) -> np.ndarray:
        """``value_N``: the curve's gain at these KLs; 0 at KL 0 and, for estimates below 0, there too."""
        first_N, second_N = TERMS[self.form](_distance(kl_N))
        return self.alpha * first_N - self.beta * second_N

    @property
    def turning_kl(self) -> float | None:
        """KL at which the curve is highest; None where it does not turn (beta <= 0), falls from the start
        (best-of-n with alpha <= 0), or turns further out than a float can say."""
        kl = float(_peak_kl(self.form, np.array([self.alpha]), np.array([self.beta]))[0])
        return kl if 0 < kl < math.inf else None

    @property
    def turning_distance(self) -> float | None:
        """sqrt(``turning_kl``): alpha / (2 beta) for best-of-n, exp(alpha / beta - 1) for RL."""
        return None if self.turning_kl is None else math.sqrt(self.turning_kl)

    @property
    def observed(self) -> bool:
        """Whether the curve turns within the measured KLs; elsewhere a turning point is extrapolated."""
        return self.turning_kl is not None and self.smallest_kl <= self.turning_kl <= self.largest_kl

    @property
    def course(self) -> str:
        """Where the curve goes, as far as the points determine it.

        ``turns``: it is highest within the measured KLs, the upper end of the interval included; ``before``:
        it is highest below the smallest of them; ``falls``: it is below 0 from the start on; ``rises``: it
        has no turning point; ``undetermined``: it turns behind them, or perhaps; ``no fit``: the curve is
        not theirs.
        """
        if self.r_squared < MIN_R_SQUARED:
            return "no fit"
        if self.alpha <= 0 and (self([self.smallest_kl, self.largest_kl]) < 0).all():
            return "falls"
        if self.turning_kl is None:
            return "rises"
        if self.turning_kl < self.smallest_kl:
            return "before"
        if self.observed and self.turning_high is not None and self.turning_high <= self.largest_kl:
            return "turns"
        return "undetermined"


def fit_over_optimization(
    kl_N: ArrayLike,
    gain_N: ArrayLike,
    form: str,
    level: float = 0.95,
    seed: int = 0,
    group_N: ArrayLike | None = None,
) -> OverOptimization:
    """Fits gain against KL by least squares (Gao, Schulman & Hilton 2023, "Scaling laws for reward model
    overoptimization", section 3.1).

    Intervals of the coefficients are Student's; the turning point's is the percentile interval of draws
    from the coefficients' t distribution. Both describe independent scatter about the curve: checkpoints of
    one run share their luck, and another run may differ by more. Where ``group_N`` says which run each point
    is of, they are between runs: the errors of Liang & Zeger (1986) with as many degrees of freedom as there
    are runs, less one.

    Points at KL 0 are left out: both terms are 0 there, whatever the coefficients, and the SFT model's gain
    of 0 over itself is no evidence of a good fit.

    Args:
        kl_N: KL from the SFT model; estimates below 0 count as 0.
        gain_N: reward minus that of the SFT model.
        form: "best_of_n" or "rl".
        level: confidence.
        seed: of the draws.
        group_N: the run that each point is of, as integers.

    Raises:
        ValueError: another form, rows of different length or not finite, fewer than three points above KL 0
            or all at one KL, fewer than three runs, a gain of 0 everywhere, or ``level`` not in (0, 1).
    """
    if form not in TERMS:
        raise ValueError(f"form '{form}' is unknown; use {' or '.join(TERMS)}")
    require_level(level)
    kl_N, gain_N = finite_row("kl_N", kl_N), finite_row("gain_N", gain_N)
    require_same_length(kl_N=kl_N, gain_N=gain_N)
    run_N = None
    if group_N is not None:
        run_N = np.asarray(group_N)
        require_same_length(kl_N=kl_N, group_N=run_N)
        run_N = np.unique(run_N[kl_N > 0], return_inverse=True)[1]
    kl_N, gain_N = kl_N[kl_N > 0], gain_N[kl_N > 0]
    n = len(kl_N)
    if n < 3:
        raise ValueError(f"{n} points lie above KL 0; a curve of two coefficients needs at least 3")
    if not gain_N.any():
        raise ValueError("gain_N is 0 at every KL; there is no curve to fit")
    # 1. Least squares on the curve's two terms. They differ by orders of magnitude where KLs are large or
    #    small, so each is brought to norm 1 first and its coefficient back after.
    first_N, second_N = TERMS[form](_distance(kl_N))
    term_N2 = np.stack([first_N, -second_N], -1)
    scale_2 = np.linalg.norm(term_N2, axis=0)
    if not scale_2.all() or np.linalg.matrix_rank(term_N2 / scale_2, tol=1e-8) < 2:
        raise ValueError(f"all points lie at KL {kl_N[0]:g}; a curve needs at least two different ones")
    q_N2, r_22 = np.linalg.qr(term_N2 / scale_2)
    inverse_22 = np.linalg.inv(r_22) / scale_2[:, None]
    coef_2 = inverse_22 @ (q_N2.T @ gain_N)
    residual_N = gain_N - term_N2 @ coef_2
    if run_N is None:
        spread_22, degrees = _independent_errors(inverse_22, residual_N), n - 2
    else:
        spread_22, degrees = _errors_between_runs(inverse_22, q_N2, residual_N, run_N)
    error_2 = np.linalg.norm(spread_22, axis=1)
    from scipy.stats import t

    half_2 = float(t.ppf(0.5 + level / 2, degrees)) * error_2
    # 2. The turning point is a ratio of the coefficients and has no simple error: curves that fit as well are
    #    drawn (both coefficients share one error of the scatter, hence one chi-square), each with its peak.
    rng = np.random.default_rng(seed)
    t_D2 = rng.standard_normal((DRAWS, 2)) * np.sqrt(degrees / rng.chisquare(degrees, (DRAWS, 1)))
    low, high = _peak_interval(form, coef_2 + t_D2 @ spread_22.T, level)
    total = float(((gain_N - gain_N.mean()) ** 2).sum())
    return OverOptimization(
        form=form,
        alpha=float(coef_2[0]),
        alpha_error=float(error_2[0]),
        alpha_low=float(coef_2[0] - half_2[0]),
        alpha_high=float(coef_2[0] + half_2[0]),
        beta=float(coef_2[1]),
        beta_error=float(error_2[1]),
        beta_low=float(coef_2[1] - half_2[1]),
        beta_high=float(coef_2[1] + half_2[1]),
        r_squared=float(1 - (residual_N**2).sum() / total) if total else 0.0,
        points=n,
        smallest_kl=float(kl_N.min()),
        largest_kl=float(kl_N.max()),
        turning_low=low,
        turning_high=high,
        level=level,
    )


def break_even_queries(training: float, per_query: float, other_per_query: float) -> float | None:
    """Number of queries above which training once is cheaper: training + per_query q < other_per_query q.

    All costs in one unit (FLOPs, seconds or money). None where it never is: a query costs no less.

    Raises:
        ValueError: a cost is negative or not finite.
    """
    for name, cost in (
        ("training", training),
        ("per_query", per_query),
        ("other_per_query", other_per_query),
    ):
        if not 0 <= cost < math.inf:
            raise ValueError(f"{name} is {cost}; a cost is a finite number of at least 0")
    saved = other_per_query - per_query
    return training / saved if saved > 0 else None


def _independent_errors(inverse_22: np.ndarray, residual_N: np.ndarray) -> np.ndarray:
    """A root of the coefficients' covariance, of scatter that is independent from point to point."""
    return math.sqrt(float((residual_N**2).sum()) / (len(residual_N) - 2)) * inverse_22


def _errors_between_runs(
    inverse_22: np.ndarray, q_N2: np.ndarray, residual_N: np.ndarray, run_N: np.ndarray
) -> tuple[np.ndarray, int]:
    """A root of the coefficients' covariance between runs (the sandwich), and its degrees of freedom."""
    n, runs = len(residual_N), int(run_N.max()) + 1
    if runs < 3:
        raise ValueError(f"{runs} runs are too few for an interval between runs; it needs at least 3")
    # A run's pull on the coefficients is the sum of its points', whose luck it shares.
    pull_R2 = np.zeros((runs, 2))
    np.add.at(pull_R2, run_N, q_N2 * residual_N[:, None])
    small = runs / (runs - 1) * (n - 1) / (n - 2)  # few runs
    value_2, vector_22 = np.linalg.eigh(pull_R2.T @ pull_R2 * small)
    return inverse_22 @ (vector_22 * np.sqrt(np.maximum(value_2, 0))), runs - 1


def _distance(kl_N: ArrayLike) -> np.ndarray:
    return np.sqrt(np.maximum(np.asarray(kl_N, dtype=np.float64), 0))


def _peak_kl(form: str, alpha_D: np.ndarray, beta_D: np.ndarray) -> np.ndarray:
    """KL >= 0 at which a curve is highest; infinite where beta <= 0, as it then rises in the end."""
    with np.errstate(over="ignore", under="ignore"):
        peak_D = PEAKS[form](alpha_D, np.where(beta_D > 0, beta_D, 1.0)) ** 2
    return np.where(beta_D > 0, peak_D, np.inf)


def _peak_interval(form: str, coef_D2: np.ndarray, level: float) -> tuple[float | None, float | None]:
    """Percentiles of the KL at which drawn curves are highest; None for an end that is not bounded."""
    # Order statistics, since a mean of two neighbours is not a number where both are infinite.
    peak_D = np.sort(_peak_kl(form, coef_D2[:, 0], coef_D2[:, 1]))
    low = float(peak_D[math.floor((1 - level) / 2 * (DRAWS - 1))])
    high = float(peak_D[math.ceil((1 + level) / 2 * (DRAWS - 1))])
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def _weights(values: ArrayLike) -> np.ndarray:
    weight_PK = finite_table("weight_PK", values)
    if (weight_PK < 0).any():
        row, column = np.argwhere(weight_PK < 0)[0]
        raise ValueError(f"weight_PK[{row}, {column}] is {weight_PK[row, column]}; a weight is at least 0")
    if not weight_PK.any(-1).all():
        raise ValueError(f"row {int(np.argmin(weight_PK.any(-1)))} of weight_PK has no weight above 0")
    return weight_PK
