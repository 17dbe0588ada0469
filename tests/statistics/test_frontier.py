"""Reward against KL: by enumeration of subsets, of a discrete space, and of curves on a grid."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from preferl.statistics.frontier import (
    best_of_n_weights,
    break_even_queries,
    effective_sample_size,
    fit_over_optimization,
    tilt_kl,
    tilt_weights,
)


def curve(form, alpha, beta, kl_N):
    """Gao et al. 2023, one point at a time."""
    values = []
    for kl in kl_N:
        d = math.sqrt(kl)
        values.append(d * (alpha - beta * d) if form == "best_of_n" else d * (alpha - beta * math.log(d)))
    return np.array(values)


# -- best of n


def picked_by_enumeration(score_K, n):
    """Every subset of n is as likely; its highest scores share."""
    share_K, subsets = [Fraction(0)] * len(score_K), 0
    for subset in itertools.combinations(range(len(score_K)), n):
        subsets += 1
        best = [i for i in subset if score_K[i] == max(score_K[j] for j in subset)]
        for i in best:
            share_K[i] += Fraction(1, len(best))
    return [float(share / subsets) for share in share_K]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_best_of_n_weights_are_those_of_all_subsets(n):
    score_PK = np.array(
        [
            [0.3, -1.0, 2.0, 0.1, 5.0, -3.0, 1.0],
            [1.0, 0.0, 1.0, 1.0, 2.0, 2.0, 0.0],
            [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
            [0.0, 9.0, 9.0, 9.0, -1.0, -1.0, 0.0],
        ]
    )
    expected_PK = [picked_by_enumeration(score_K, n) for score_K in score_PK]
    np.testing.assert_allclose(best_of_n_weights(score_PK, n), expected_PK, rtol=1e-12, atol=1e-15)


def test_best_of_all_is_the_maximum_and_best_of_one_the_mean():
    score_PK = np.random.default_rng(0).normal(size=(5, 8))
    assert (best_of_n_weights(score_PK, 8) == (score_PK == score_PK.max(-1, keepdims=True))).all()
    np.testing.assert_allclose(best_of_n_weights(score_PK, 1), np.full((5, 8), 1 / 8))


@pytest.mark.parametrize("n", [1, 2, 16, 500, 1023, 1024])
def test_best_of_n_weights_stay_exact_with_many_responses(n):
    score_K = np.random.default_rng(1).permutation(1024)
    weight_K = best_of_n_weights(score_K[None], n)[0]
    expected_K = [Fraction(math.comb(int(s), n - 1), math.comb(1024, n)) for s in score_K]
    np.testing.assert_allclose(weight_K, [float(w) for w in expected_K], rtol=1e-11, atol=1e-300)
    assert weight_K.sum() == pytest.approx(1, abs=1e-12)


def test_best_of_n_estimates_another_value_of_the_picked_response_without_bias():
    """Mean over data sets of the estimate against best-of-3 drawn anew; score and value correlate."""
    rng = np.random.default_rng(2)
    score_PK = rng.normal(size=(20_000, 6))
    value_PK = 0.6 * score_PK + 0.8 * rng.normal(size=score_PK.shape)
    estimate_P = (best_of_n_weights(score_PK, 3) * value_PK).sum(-1)
    # E max of three standard normals is 3 / (2 sqrt(pi)).
    error = estimate_P.std() / len(estimate_P) ** 0.5
    assert abs(estimate_P.mean() - 0.6 * 1.5 / math.sqrt(math.pi)) < 4 * error < 0.02


# -- the optimum of the KL-regularised objective


def optimum(p_V, score_V, beta):
    tilted_V = [p * math.exp(s / beta) for p, s in zip(p_V, score_V, strict=True)]
    return np.array(tilted_V) / sum(tilted_V)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_tilted_samples_of_the_reference_are_the_optimum(beta):
    rng = np.random.default_rng(3)
    p_V, score_V, value_V = rng.dirichlet(np.full(9, 5.0)), rng.normal(size=9), rng.normal(size=9)
    best_V = optimum(p_V, score_V, beta)
    kl = best_V @ np.log(best_V / p_V)
    token_PK = rng.choice(9, size=(3, 200_000), p=p_V)
    weight_PK = tilt_weights(score_V[token_PK], beta)
    ratio_V = best_V / p_V
    for estimate_P, truth, influence_V in (
        ((weight_PK * score_V[token_PK]).sum(-1), best_V @ score_V, ratio_V * (score_V - best_V @ score_V)),
        ((weight_PK * value_V[token_PK]).sum(-1), best_V @ value_V, ratio_V * (value_V - best_V @ value_V)),
        (tilt_kl(weight_PK), kl, ratio_V * (np.log(ratio_V) - kl) - ratio_V + 1),
    ):
        error = np.sqrt(p_V @ influence_V**2 / 200_000)
        assert (np.abs(estimate_P - truth) < 4 * error).all()
        assert error < 0.02
    # K / size tends to E_ref[(pi* / pi_ref)^2].
    size = 200_000 / (best_V**2 / p_V).sum()
    assert effective_sample_size(weight_PK) == pytest.approx([size] * 3, rel=0.03)


def test_tilt_by_hand():
    weight_PK = tilt_weights([[0.0, math.log(3)], [7.0, 7.0]], 1.0)
    np.testing.assert_allclose(weight_PK, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(tilt_weights([[0.0, math.log(3)]], 0.5), [[0.1, 0.9]])
    assert tilt_kl(weight_PK) == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0])
    assert effective_sample_size(weight_PK) == pytest.approx([1 / 0.625, 2])
    assert effective_sample_size([[3.0, 9.0], [1e200, 1e200]]) == pytest.approx([1 / 0.625, 2])


def test_tilt_goes_to_the_best_response_and_to_the_reference():
    score_PK = [[-1e6, 1e6, 3.0, 0.0]]
    assert (tilt_weights(score_PK, 1e-300) == [[0, 1, 0, 0]]).all()
    assert tilt_kl([[0.0, 1.0, 0.0, 0.0]]) == pytest.approx([math.log(4)])
    assert effective_sample_size([[0.0, 1.0, 0.0, 0.0]]) == pytest.approx([1])
    np.testing.assert_allclose(tilt_weights(score_PK, 1e15), [[0.25] * 4])


@pytest.mark.parametrize("n", [2, 4, 16])
def test_kl_of_best_of_n_weights_is_log_n_minus_its_share(n):
    """With many different responses log n - (n - 1) / n (Stiennon et al. 2020) is exact."""
    kl = tilt_kl(best_of_n_weights(np.arange(4096.0)[None], n))
    assert kl == pytest.approx([math.log(n) - (n - 1) / n], abs=0.005)


# -- over-optimisation


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 0.2), (0.4, 0.31), (2.0, 0.6)])
def test_a_curve_without_noise_is_found_and_turns_where_it_is_highest(form, alpha, beta):
    kl_N = np.array([0.3, 1.0, 2.0, 5.0, 9.0, 20.0])
    fit = fit_over_optimization(kl_N, curve(form, alpha, beta, kl_N), form)
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), rel=1e-9)
    assert (fit.r_squared, fit.points, fit.largest_kl, fit.level) == (pytest.approx(1), 6, 20, 0.95)
    assert (fit.alpha_error, fit.beta_error) == pytest.approx((0, 0), abs=1e-9)
    assert fit(kl_N) == pytest.approx(curve(form, alpha, beta, kl_N))
    turning = alpha / (2 * beta) if form == "best_of_n" else math.exp(alpha / beta - 1)
    assert fit.turning_distance == pytest.approx(turning)
    assert fit.turning_kl == pytest.approx(turning**2)
    assert (fit.turning_low, fit.turning_high) == pytest.approx((turning**2, turning**2))
    assert fit.observed == (turning**2 <= 20)
    grid = turning**2 * np.linspace(0.01, 4, 100_001)
    assert grid[np.argmax(fit(grid))] == pytest.approx(turning**2, rel=1e-3)


def test_rl_turns_whatever_the_sign_of_alpha():
    """alpha depends on the unit of d: only beta says whether d (alpha - beta log d) bends down."""
    kl_N = np.array([0.05, 0.2, 0.5, 1.0])
    fit = fit_over_optimization(kl_N, curve("rl", -0.1, 1.0, kl_N), "rl")
    grid = np.linspace(1e-4, 2, 100_001)
    assert fit.turning_kl == pytest.approx(grid[np.argmax(curve("rl", -0.1, 1.0, grid))], abs=1e-4)
    assert fit.observed


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_curve_that_keeps_rising_does_not_turn(form):
    kl_N = np.linspace(1, 30, 12)
    noise_N = 0.01 * np.random.default_rng(4).normal(size=12)
    fit = fit_over_optimization(kl_N, curve(form, 1.0, -0.05, kl_N) + noise_N, form)
    assert fit.beta_high < 0
    assert (fit.turning_distance, fit.turning_kl, fit.turning_low, fit.turning_high) == (None,) * 4
    assert not fit.observed


def test_best_of_n_that_falls_from_the_start_has_no_turning_point():
    kl_N = np.linspace(1, 30, 12)
    fit = fit_over_optimization(kl_N, curve("best_of_n", -0.2, 0.05, kl_N), "best_of_n")
    assert (fit.turning_kl, fit.turning_distance, fit.observed) == (None, None, False)
    assert (fit.turning_low, fit.turning_high) == (0, 0)


def test_a_turning_point_too_uncertain_is_bounded_on_one_side():
    """Almost straight: it turns late or never, but not early."""
    kl_N = np.linspace(0.5, 10, 15)
    noise_N = 0.05 * np.random.default_rng(5).normal(size=15)
    fit = fit_over_optimization(kl_N, curve("best_of_n", 1.0, 0.005, kl_N) + noise_N, "best_of_n")
    assert fit.beta_low < 0 < fit.beta_high
    assert fit.turning_low is not None
    assert 10 < fit.turning_low < 10_000
    assert fit.turning_high is None
    assert not fit.observed


def test_errors_are_those_of_least_squares_by_hand():
    """Two columns without a constant: the inverse of X'X written out."""
    rng = np.random.default_rng(6)
    kl_N = np.array([0.5, 1.0, 3.0, 7.0, 12.0])
    gain_N = curve("rl", 1.0, 0.4, kl_N) + 0.1 * rng.normal(size=5)
    fit = fit_over_optimization(kl_N, gain_N, "rl", level=0.9)
    d = np.sqrt(kl_N)
    x, y = d, -d * np.log(d)
    xx, xy, yy = x @ x, x @ y, y @ y
    determinant = xx * yy - xy**2
    alpha = (yy * (x @ gain_N) - xy * (y @ gain_N)) / determinant
    beta = (xx * (y @ gain_N) - xy * (x @ gain_N)) / determinant
    rest = ((gain_N - alpha * x - beta * y) ** 2).sum()
    errors = math.sqrt(rest / 3 * yy / determinant), math.sqrt(rest / 3 * xx / determinant)
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta))
    assert (fit.alpha_error, fit.beta_error) == pytest.approx(errors)
    t = 2.353363  # two-sided 90 %, three degrees of freedom
    assert (fit.alpha_low, fit.alpha_high) == pytest.approx(
        (alpha - t * errors[0], alpha + t * errors[0]), abs=1e-5
    )
    assert (fit.beta_low, fit.beta_high) == pytest.approx(
        (beta - t * errors[1], beta + t * errors[1]), abs=1e-5
    )
    assert fit.r_squared == pytest.approx(1 - rest / (len(gain_N) * np.var(gain_N)))
    assert fit_over_optimization(kl_N, np.ones(len(kl_N)), "rl").r_squared == 0
    assert fit == fit_over_optimization(kl_N, gain_N, "rl", level=0.9)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(form):
    """8 points and noise of .1; the bounds are 4 binomial errors about 95 %."""
    alpha, beta = (1.0, 0.12) if form == "best_of_n" else (1.0, 0.45)
    turning = (alpha / (2 * beta)) ** 2 if form == "best_of_n" else math.exp(2 * (alpha / beta - 1))
    kl_N, rng, hits = np.linspace(1, 30, 8), np.random.default_rng(7), np.zeros(3)
    for _ in range(300):
        fit = fit_over_optimization(kl_N, curve(form, alpha, beta, kl_N) + 0.1 * rng.normal(size=8), form)
        high = math.inf if fit.turning_high is None else fit.turning_high
        assert fit.turning_low is not None
        hits += [
            fit.alpha_low <= alpha <= fit.alpha_high,
            fit.beta_low <= beta <= fit.beta_high,
            fit.turning_low <= turning <= high,
        ]
    assert (hits / 300 > 0.90).all()
    assert (hits / 300 < 0.99).all()


def noisy(form, alpha, beta, kl_N, scatter=0.05, seed=8):
    noise_N = scatter * np.random.default_rng(seed).normal(size=len(kl_N))
    return fit_over_optimization(kl_N, curve(form, alpha, beta, kl_N) + noise_N, form)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_where_a_curve_goes_is_told_from_noisy_points(form):
    near, far, straight = (1.4, 0.5, -0.05) if form == "rl" else (0.5, 0.1, -0.01)
    turning = (1 / (2 * near)) ** 2 if form == "best_of_n" else math.exp(2 * (1 / near - 1))
    # Measured on both sides of it, the turning point is named, with an interval inside of what was measured.
    around_N = np.linspace(0.1 * turning, 12 * turning, 25)
    fit = noisy(form, 1.0, near, around_N, scatter=0.02)
    assert fit.course == "turns"
    assert fit.turning_low < turning < fit.turning_high <= 12 * turning
    # Measured behind it only, it lies before the first point: the curve has not "only fallen".
    behind_N = np.linspace(3 * turning, 40 * turning, 25)
    fit = noisy(form, 1.0, near, behind_N, scatter=0.02)
    assert fit.alpha > 0
    assert fit.course == "before"
    # Measured before it only, there is nothing to name.
    late = (1 / (2 * far)) ** 2 if form == "best_of_n" else math.exp(2 * (1 / far - 1))
    fit = noisy(form, 1.0, far, np.linspace(0.01 * late, 0.4 * late, 25), scatter=0.02)
    assert fit.course == "undetermined"
    assert noisy(form, 1.0, straight, np.linspace(1, 30, 25)).course == "rises"
    assert noisy(form, -1.0, 0.1, np.linspace(1, 30, 25)).course == "falls"
    assert noisy(form, 0.0, 0.0, np.linspace(1, 30, 25)).course == "no fit"


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_curve_that_rises_at_first_is_never_said_to_only_fall(form):
    """Whatever was measured: a positive slope at the start and a fall from there exclude each other."""
    rng = np.random.default_rng(9)
    courses = set()
    for _ in range(300):
        kl_N = np.sort(rng.uniform(0.1, 60, 12))
        alpha, beta = rng.uniform(-1, 2), rng.uniform(-0.1, 1)
        fit = fit_over_optimization(kl_N, curve(form, alpha, beta, kl_N) + 0.1 * rng.normal(size=12), form)
        courses.add(fit.course)
        if fit.course == "falls":
            assert fit.alpha <= 0
            assert (fit(kl_N) < 0).all()
        if fit.course == "turns":
            assert kl_N[0] <= fit.turning_kl <= fit.turning_high <= kl_N[-1]
    assert {"turns", "falls", "before", "undetermined"} <= courses


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_several_runs_have_an_interval_between_runs(form):
    """Six runs whose curves differ: taking their points for independent is too sure of the turning point."""
    alpha, beta = (1.0, 0.12) if form == "best_of_n" else (1.0, 0.45)
    turning = (alpha / (2 * beta)) ** 2 if form == "best_of_n" else math.exp(2 * (alpha / beta - 1))
    rng, hits = np.random.default_rng(10), {"runs": 0, "points": 0}
    kl_N, run_N = np.tile(np.linspace(1, 30, 60), 6), np.repeat(np.arange(6), 60)
    for _ in range(200):
        own_N = rng.normal(1, 0.15, 6)[run_N]
        gain_N = own_N * alpha * np.sqrt(kl_N) + curve(form, 0.0, beta, kl_N) + 0.05 * rng.normal(size=360)
        for name, groups in (("runs", run_N), ("points", None)):
            fit = fit_over_optimization(kl_N, gain_N, form, group_N=groups)
            high = math.inf if fit.turning_high is None else fit.turning_high
            hits[name] += fit.turning_low <= turning <= high
    assert hits["runs"] / 200 > 0.88
    assert hits["points"] / 200 < 0.8


def test_errors_between_runs_are_those_of_the_sandwich_by_hand():
    rng = np.random.default_rng(11)
    kl_N, run_N = np.array([1.0, 4.0, 9.0, 2.0, 6.0, 12.0, 1.5, 7.0]), np.array([0, 0, 0, 1, 1, 1, 2, 2])
    gain_N = curve("best_of_n", 1.0, 0.2, kl_N) + 0.2 * rng.normal(size=8)
    fit = fit_over_optimization(kl_N, gain_N, "best_of_n", group_N=run_N)
    x_N2 = np.stack([np.sqrt(kl_N), -kl_N], -1)
    bread = np.linalg.inv(x_N2.T @ x_N2)
    rest_N = gain_N - x_N2 @ (bread @ x_N2.T @ gain_N)
    meat = sum(np.outer(s, s) for s in (x_N2[run_N == g].T @ rest_N[run_N == g] for g in range(3)))
    error_2 = np.sqrt(np.diag(bread @ meat @ bread) * (3 / 2) * (7 / 6))
    assert (fit.alpha_error, fit.beta_error) == pytest.approx(tuple(error_2))
    assert fit.alpha_high - fit.alpha == pytest.approx(4.302653 * error_2[0])  # Student's with 2 degrees


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_points_without_kl_say_nothing(form):
    kl_N = np.array([0.5, 1.0, 3.0, 7.0])
    gain_N = curve(form, 1.0, 0.2, kl_N) + np.array([0.1, -0.1, 0.05, 0.0])
    fit = fit_over_optimization(kl_N, gain_N, form)
    assert fit == fit_over_optimization([0.0, *kl_N, -0.01], [0.0, *gain_N, 0.02], form)
    assert fit.points == 4
    assert (fit([0.0, -0.5]) == 0).all()


# -- cost


def test_break_even():
    assert break_even_queries(1000.0, 1.0, 5.0) == 250
    assert 1000 + 1 * 251 < 5 * 251
    assert break_even_queries(0.0, 1.0, 5.0) == 0
    assert break_even_queries(1000.0, 5.0, 5.0) is None
    assert break_even_queries(0.0, 6.0, 5.0) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n_weights([[1.0, 2.0]], 0), "n is 0"),
        (lambda: best_of_n_weights([[1.0, 2.0]], 3), "n is 3.* all 2 responses"),
        (lambda: best_of_n_weights([1.0, 2.0], 1), r"score_PK has shape \(2,\)"),
        (lambda: best_of_n_weights([[1.0, 2.0], [np.nan, 0.0]], 1), r"score_PK\[1, 0\] is not a finite"),
        (lambda: best_of_n_weights(np.empty((3, 0)), 1), r"shape \(3, 0\)"),
        (lambda: tilt_weights([[1.0]], 0.0), "beta is 0.0"),
        (lambda: tilt_weights([[1.0]], math.inf), "beta is inf"),
        (lambda: tilt_weights([[math.inf]], 1.0), r"score_PK\[0, 0\]"),
        (lambda: tilt_kl([[0.5, 0.5], [0.5, 0.4]]), "row 1 of weight_PK sums to 0.9"),
        (lambda: tilt_kl([[1.5, -0.5]]), r"weight_PK\[0, 1\] is -0.5"),
        (lambda: effective_sample_size([[1.0], [0.0]]), "row 1 of weight_PK has no weight"),
        (lambda: fit_over_optimization([1, 2, 3], [1, 2, 3], "ppo"), "form 'ppo' is unknown"),
        (lambda: fit_over_optimization([1, 2, 0, -1], [1, 2, 3, 4], "rl"), "2 points lie above KL 0"),
        (lambda: fit_over_optimization([1, 1, 1], [1, 2, 3], "rl"), "all points lie at KL 1"),
        (lambda: fit_over_optimization([2, 2, 2], [1, 2, 3], "best_of_n"), "all points lie at KL 2"),
        (lambda: fit_over_optimization([1, 2, 3], [0, 0, 0], "rl"), "gain_N is 0 at every KL"),
        (lambda: fit_over_optimization([1, 2, 3], [1, 2], "rl"), "equally long"),
        (lambda: fit_over_optimization([1, 2, 3], [1, 2, 1], "rl", group_N=[0, 0, 1]), "2 runs are too few"),
        (lambda: fit_over_optimization([1, 2, np.nan], [1, 2, 3], "rl"), r"kl_N\[2\] is not a finite"),
        (lambda: fit_over_optimization([1, 2, 3], [1, 2, 3], "rl", level=95), "level is 95"),
        (lambda: break_even_queries(-1.0, 1.0, 2.0), "training is -1.0"),
        (lambda: break_even_queries(1.0, 1.0, math.inf), "other_per_query is inf"),
    ],
)
def test_bad_input_says_what_and_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_frontier_loads_nothing_heavy():
    heavy = ("torch", "scipy", "statsmodels", "pandas", "matplotlib")
    code = f"import preferl.statistics.frontier, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
