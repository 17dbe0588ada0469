"""Intervals, calibration and text statistics, checked by hand or by simulation."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize

from preferl.statistics import (
    bayes_accuracy,
    distinct_n,
    expected_calibration_error,
    mean_interval,
    paired_bootstrap,
    repetition,
    wilson_interval,
)
from preferl.statistics.calibration import cluster_bootstrap, clustered_proportion
from preferl.statistics.intervals import (
    FEW,
    hierarchical_win_rate,
    length_controlled_win_rate,
    paired_hierarchical_bootstrap,
    proportion,
)


def test_wilson_is_the_published_interval():
    low, high = wilson_interval(6, 6)
    assert (round(low, 2), round(high, 2)) == (0.61, 1.0)
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(1, 0)
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(5, 4)


def test_mean_interval_by_hand():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.30265 * 1 / 3**0.5, abs=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([5.0]) == (5.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_paired_bootstrap_pairs_and_repeats():
    rng = np.random.default_rng(0)
    common = 100 * rng.normal(size=300)
    a, b = common + 0.5 + 0.1 * rng.normal(size=300), common
    mean, low, high = paired_bootstrap(a, b)
    assert mean == pytest.approx((a - b).mean())
    assert 0.47 < low < mean < high < 0.53
    assert paired_bootstrap(a, b) == (mean, low, high)
    with pytest.raises(ValueError, match="equally long"):
        paired_bootstrap(a, b[:-1])


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_paired_bootstrap_of_many_items_is_the_normal_interval(level, z):
    a_N = np.random.default_rng(4).normal(size=500)
    mean, low, high = paired_bootstrap(a_N, np.zeros(500), level=level)
    half = z * a_N.std() / 500**0.5
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_paired_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        x = rng.normal(0.3, 1.0, size=60)
        _, low, high = paired_bootstrap(x, np.zeros(60), resamples=500, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


# -- several responses to a prompt


def two_level_reference(a_PA, b_PB, statistic, resamples, rng):
    """Prompts, then responses within them, one draw at a time."""
    a, b = a_PA.shape[1], b_PB.shape[1]
    mean_R = np.zeros(resamples)
    for r in range(resamples):
        for p in rng.integers(0, len(a_PA), len(a_PA)):
            mean_R[r] += statistic(a_PA[p, rng.integers(0, a, a)], b_PB[p, rng.integers(0, b, b)])
    return np.quantile(mean_R / len(a_PA), [0.025, 0.975])


def share_won(a_A, b_B):
    return sum((a > b) + 0.5 * (a == b) for a in a_A for b in b_B) / (len(a_A) * len(b_B))


def test_two_levels_with_one_response_are_the_paired_bootstrap():
    rng = np.random.default_rng(5)
    a_P, b_P = rng.normal(0.4, 1, 120), rng.exponential(0.5, 120)
    mean, low, high = paired_hierarchical_bootstrap(a_P[:, None], b_P[:, None], resamples=20_000)
    expected = paired_bootstrap(a_P, b_P, resamples=20_000)
    assert mean == pytest.approx(expected[0])
    assert (low, high) == pytest.approx(expected[1:], abs=0.012)


def test_two_levels_against_one_draw_at_a_time():
    rng = np.random.default_rng(6)
    a_PA = rng.normal(size=(FEW, 1)) + 2 * rng.exponential(size=(FEW, 4))
    b_PB = rng.normal(size=(FEW, 7))
    mean, low, high = paired_hierarchical_bootstrap(a_PA, b_PB, resamples=20_000)
    assert mean == pytest.approx(np.mean([a_PA[p].mean() - b_PB[p].mean() for p in range(FEW)]))
    expected = two_level_reference(a_PA, b_PB, lambda a, b: a.mean() - b.mean(), 4000, rng)
    # 4 standard errors of a 2.5 % quantile of 4,000 draws are 0.04 of the width.
    assert (low, high) == pytest.approx(expected, abs=0.04 * (high - low))
    assert paired_hierarchical_bootstrap(a_PA, b_PB, seed=3) == paired_hierarchical_bootstrap(
        a_PA, b_PB, seed=3
    )


@pytest.mark.parametrize(("a", "b"), [(1, 1), (8, 1), (4, 16)])
def test_two_levels_are_wide_by_prompts_and_by_responses(a, b):
    """Var = Var(gaps of prompts) / P + the mean population variance of responses / (A P), for a and b."""
    rng = np.random.default_rng(7)
    a_PA, b_PB = rng.normal(size=(300, a)), rng.normal(0, 2, size=(300, b))
    mean, low, high = paired_hierarchical_bootstrap(a_PA, b_PB, level=0.9, resamples=6000)
    variance = (a_PA.mean(-1) - b_PB.mean(-1)).var() + a_PA.var(-1).mean() / a + b_PB.var(-1).mean() / b
    half = 1.64485 * (variance / 300) ** 0.5
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_two_levels_cover_the_truth_at_least_as_often_as_they_say():
    rng = np.random.default_rng(8)
    hits = 0
    for trial in range(200):
        a_PA = rng.normal(0.3, 1, size=(40, 1)) + rng.normal(size=(40, 3))
        _, low, high = paired_hierarchical_bootstrap(a_PA, np.zeros((40, 2)), resamples=300, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 200 <= 0.995


def test_one_prompt_says_nothing_about_the_spread_of_prompts():
    assert paired_hierarchical_bootstrap([[1.0, 2.0]], [[1.0]]) == (0.5, -np.inf, np.inf)
    rate, low, high = hierarchical_win_rate([[1.0, 2.0]], [[1.0]])
    assert (rate, low, high) == pytest.approx((0.75, *wilson_interval(0.75, 1)))


def test_win_rate_of_responses_counts_every_comparison_and_half_a_tie():
    a_PA, b_PB = [[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]], [[2.0, 0.0], [0.0, 5.0]]
    # Of 6 comparisons each: 1 beats 0; 2 ties 2 and beats 0; 3 beats both. 0 ties 0 twice; 5 beats 0, ties 5.
    assert hierarchical_win_rate(a_PA, b_PB)[0] == pytest.approx((4.5 / 6 + 2.5 / 6) / 2)
    assert hierarchical_win_rate(b_PB, a_PA)[0] == pytest.approx(1 - (4.5 / 6 + 2.5 / 6) / 2)


def test_win_rate_interval_against_one_draw_at_a_time():
    rng = np.random.default_rng(9)
    a_PA = np.round(rng.normal(0.4, 1, size=(FEW, 1)) + rng.normal(size=(FEW, 4)))
    b_PB = np.round(rng.normal(size=(FEW, 2)))
    rate, low, high = hierarchical_win_rate(a_PA, b_PB, resamples=20_000)
    assert rate == pytest.approx(np.mean([share_won(*ab) for ab in zip(a_PA, b_PB, strict=True)]))
    expected = two_level_reference(a_PA, b_PB, share_won, 3000, rng)
    assert (low, high) == pytest.approx(expected, abs=0.05 * (high - low))


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_intervals_of_very_few_cover_the_truth(n):
    """A percentile bootstrap of two normal values covers their mean half the time, of three 75 %."""
    rng = np.random.default_rng(10)
    covered = np.zeros(3)
    for _ in range(1000):
        gap_N = rng.normal(1, 2, n)
        found = [paired_bootstrap(gap_N, np.zeros(n))]
        # Several values of each item that resemble each other, and unequally many of them.
        each_N = 1 + np.arange(n) % 2
        values = np.concatenate([rng.normal(gap, 0.3, k) for gap, k in zip(gap_N, each_N, strict=True)])
        found.append(cluster_bootstrap(values, np.repeat(np.arange(n), each_N)))
        found.append(paired_hierarchical_bootstrap(gap_N[:, None], rng.normal(0, 0.3, (n, 3))))
        covered += [low <= 1 <= high for _, low, high in found]
    # Student's interval is exact for the first; unequal clusters cost a little where they are two.
    assert (covered / 1000 >= [0.935, 0.90, 0.935]).all()


def test_a_few_equal_values_say_nothing_of_the_spread():
    """Student's interval would have no width, and a gain of 1 on three prompts would be certain."""
    unknown = (1.0, -np.inf, np.inf)
    assert paired_bootstrap([2.0] * 3, [1.0] * 3) == unknown
    assert paired_hierarchical_bootstrap([[2.0]] * 3, [[1.0]] * 3) == unknown
    assert cluster_bootstrap([1.0] * 4, [0, 0, 1, 2]) == unknown
    assert paired_bootstrap([2.0] * FEW, [1.0] * FEW) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("prompts", [2, 3, 6, 10])
def test_shares_of_very_few_prompts_count_a_prompt_once(prompts):
    """Whether a prompt is easy decides all of its comparisons: as many as one likes say no more than one."""
    rng = np.random.default_rng(11)
    covered = np.zeros(2)
    for _ in range(1000):
        won_P = (rng.random(prompts) < 0.7).astype(float)
        one = proportion(won_P.sum(), prompts)
        rate = hierarchical_win_rate(np.tile(won_P[:, None], 4), np.full((prompts, 2), 0.5))
        accuracy = clustered_proportion(np.repeat(won_P, 5), np.repeat(np.arange(prompts), 5))
        assert tuple(rate) == pytest.approx(tuple(one))
        assert tuple(accuracy) == pytest.approx(tuple(one))
        covered += [low <= 0.7 <= high for _, low, high in (rate, accuracy)]
    assert (covered / 1000 >= 0.9).all()


def test_win_rate_of_comparisons_that_all_agree_is_wilsons_over_prompts():
    low_PK, high_PK = np.zeros((20, 4)), np.ones((20, 3))
    assert hierarchical_win_rate(high_PK, low_PK) == (1, *wilson_interval(20, 20))
    assert hierarchical_win_rate(low_PK, high_PK, level=0.8) == (
        0,
        *wilson_interval(0, 20, level=0.8),
    )
    assert hierarchical_win_rate(low_PK, low_PK) == (0.5, *wilson_interval(10, 20))


# -- win rate at equal lengths


def logistic(x):
    return 1 / (1 + np.exp(-x))


def lengths_and_wins(rng, n, theta, effect):
    """Lengths of a mostly above those of b; P(a wins) by the model of the paper."""
    length_a_N, length_b_N = rng.poisson(160, n), rng.poisson(rng.uniform(60, 200, n))
    gap_N = length_a_N - length_b_N
    p_N = logistic(theta + effect * np.tanh(gap_N / gap_N.std()))
    return (rng.random(n) < p_N).astype(float), length_a_N, length_b_N


def test_win_rate_at_equal_lengths_by_hand():
    """Two lengths: the log-odds at equal lengths lie midway between those of longer and of shorter."""
    won_N = np.repeat([1.0, 0.0, 1.0, 0.0], [80, 20, 40, 60])
    length_a_N = np.repeat([30.0, 10.0], 100)
    rate = length_controlled_win_rate(won_N, length_a_N, np.full(200, 20.0))
    longer, shorter = np.log(0.8 / 0.2), np.log(0.4 / 0.6)
    theta, effect = (longer + shorter) / 2, (longer - shorter) / 2 / np.tanh(1)
    error = np.sqrt(1 / (0.8 * 0.2 * 100) + 1 / (0.4 * 0.6 * 100)) / 2
    half = 1.97196 * error * np.sqrt(200 / 198)  # Student's t of 199; Liang and Zeger's 2 coefficients of 200
    assert rate.rate == pytest.approx(logistic(theta))
    assert (rate.low, rate.high) == pytest.approx((logistic(theta - half), logistic(theta + half)), abs=1e-5)
    wide = half / np.tanh(1)
    assert rate.length_effect == pytest.approx((effect, effect - wide, effect + wide), abs=1e-4)
    assert rate.reason is None


def test_win_rate_at_equal_lengths_is_the_most_likely_one():
    """Against a general optimiser, with ties and soft outcomes."""
    rng = np.random.default_rng(10)
    won_N, length_a_N, length_b_N = lengths_and_wins(rng, 150, 0.4, 1.0)
    won_N[:30], won_N[30:50] = 0.5, rng.random(20)
    x_N = np.tanh((length_a_N - length_b_N) / np.std(length_a_N - length_b_N))

    def loss(coef):
        z_N = coef[0] + coef[1] * x_N
        return (won_N * np.logaddexp(0, -z_N) + (1 - won_N) * np.logaddexp(0, z_N)).sum()

    best = optimize.minimize(loss, [0.0, 0.0], method="BFGS").x
    rate = length_controlled_win_rate(won_N, length_a_N, length_b_N)
    assert rate.rate == pytest.approx(logistic(best[0]), abs=1e-5)
    assert rate.length_effect is not None
    assert rate.length_effect[0] == pytest.approx(best[1], abs=1e-4)


def test_length_is_not_quality():
    """Longer answers win and a's are longer: the plain rate flatters a, the controlled one does not."""
    won_N, length_a_N, length_b_N = lengths_and_wins(np.random.default_rng(11), 4000, -0.2, 2.0)
    rate = length_controlled_win_rate(won_N, length_a_N, length_b_N)
    assert rate.low < logistic(-0.2) < rate.high < 0.5 < won_N.mean() - 0.1
    assert rate.length_effect is not None
    assert rate.length_effect[1] < 2 < rate.length_effect[2]
    # In another unit of length, and seen from the other side.
    other = length_controlled_win_rate(1 - won_N, 7.3 * length_b_N, 7.3 * length_a_N)
    assert (other.rate, other.low, other.high) == pytest.approx((1 - rate.rate, 1 - rate.high, 1 - rate.low))


def test_length_controlled_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(12)
    hits = np.zeros(2)
    for _ in range(400):
        rate = length_controlled_win_rate(*lengths_and_wins(rng, 80, 0.3, 1.5))
        assert rate.length_effect is not None
        hits += [rate.low <= logistic(0.3) <= rate.high, rate.length_effect[1] < 1.5 < rate.length_effect[2]]
    assert (hits / 400 > 0.91).all()
    assert (hits / 400 < 0.99).all()


def test_the_same_model_twice_wins_half_whatever_its_lengths():
    rng = np.random.default_rng(13)
    quality, length = rng.normal(size=(2, 1500)), rng.lognormal(4, 0.7, size=(2, 1500))
    score = quality + length / 50
    rate = length_controlled_win_rate(score[0] > score[1], *length)
    assert rate.low < 0.5 < rate.high
    assert rate.rate == pytest.approx(0.5, abs=0.05)
    assert rate.length_effect is not None
    assert rate.length_effect[1] > 0


def test_comparisons_entered_twice_are_no_new_information():
    columns = lengths_and_wins(np.random.default_rng(14), 200, 0.3, 1.0)
    once = length_controlled_win_rate(*columns)
    twice = [np.tile(column, 3) for column in columns]
    grouped = length_controlled_win_rate(*twice, group_N=np.tile([f"prompt {i}" for i in range(200)], 3))
    assert (grouped.rate, grouped.low, grouped.high) == pytest.approx(
        (once.rate, once.low, once.high), abs=0.001
    )
    alone = length_controlled_win_rate(*twice)
    assert alone.high - alone.low < 0.65 * (once.high - once.low)


LENGTHS = np.arange(20.0)


@pytest.mark.parametrize(
    ("won_N", "length_N", "reason"),
    [
        (np.arange(20) % 4 == 0, np.full(20, 9.0), "the same in every comparison"),
        (np.arange(20) % 4 == 0, np.full(20, 10.0), "the same in every comparison"),
        (np.ones(20), LENGTHS, "the same outcome"),
        (np.zeros(20), LENGTHS, "the same outcome"),
        (np.full(20, 0.5), LENGTHS, "the same outcome"),
        (LENGTHS > 9, LENGTHS, "the length alone"),
        (LENGTHS < 4, LENGTHS, "the length alone"),
        # A tie at the border belongs to both sides and does not make them overlap.
        (np.repeat([0.0, 0.5, 1.0], [9, 1, 10]), LENGTHS, "the length alone"),
        # Overlap too small for arithmetic.
        (
            np.repeat([0.0, 1.0, 0.0, 1.0], [9, 1, 1, 9]),
            LENGTHS + 1e-13 * (LENGTHS == 10) - (LENGTHS == 10),
            "does not converge",
        ),
        # Soft outcomes exactly on a logistic curve: no scatter, so no interval.
        (logistic(0.3 + np.tanh((LENGTHS - 9) / LENGTHS.std())), LENGTHS, "no answer"),
    ],
)
def test_where_length_cannot_be_controlled_for_the_rate_is_the_plain_one(won_N, length_N, reason):
    won_N = np.asarray(won_N, dtype=float)
    rate = length_controlled_win_rate(won_N, length_N, np.full(20, 9.0), level=0.9)
    assert rate.length_effect is None
    assert rate.reason is not None
    assert reason in rate.reason
    assert (rate.rate, rate.low, rate.high) == pytest.approx(
        (won_N.mean(), *wilson_interval(won_N.sum(), 20, level=0.9))
    )


def test_without_control_the_groups_are_the_trials():
    group_N = np.repeat(np.arange(5), 4)
    rate = length_controlled_win_rate(np.ones(20), LENGTHS, np.full(20, 9.0), group_N)
    assert (rate.low, rate.high) == wilson_interval(5, 5)
    few = length_controlled_win_rate(LENGTHS % 2, LENGTHS, np.full(20, 9.0), group_N // 2)
    assert few.reason == "3 groups are too few for a regression"
    assert (few.low, few.high) == wilson_interval(1.5, 3)


def test_comparisons_in_both_orders_leave_no_scatter():
    """Each comparison and its mirror image in a group: half by construction, not by evidence."""
    won_N, length_a_N, length_b_N = lengths_and_wins(np.random.default_rng(15), 50, 0.5, 1.0)
    rate = length_controlled_win_rate(
        np.append(won_N, 1 - won_N),
        np.append(length_a_N, length_b_N),
        np.append(length_b_N, length_a_N),
        np.tile(np.arange(50), 2),
    )
    assert (rate.rate, rate.low, rate.high) == pytest.approx((0.5, *wilson_interval(25, 50)))
    assert rate.reason == "the outcomes do not vary between groups"


def test_one_overlap_is_enough_for_a_wide_interval():
    won_N = (LENGTHS > 9).astype(float)
    won_N[9], won_N[10] = 1, 0
    rate = length_controlled_win_rate(won_N, LENGTHS, np.full(20, 9.0))
    assert rate.reason is None
    assert rate.high - rate.low > 0.5


# -- calibration and text


def test_calibration_error_by_hand():
    prob, label = [0.05, 0.05, 0.95, 0.95], [0, 1, 1, 1]
    assert expected_calibration_error(prob, label) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    # Certainty belongs to the last bin, where these two gaps cancel.
    assert expected_calibration_error([0.95, 1.0], [1.0, 0.95]) == pytest.approx(0)
    with pytest.raises(ValueError, match="must lie in"):
        expected_calibration_error([1.2], [1])
    with pytest.raises(ValueError, match="equally long"):
        expected_calibration_error([0.5], [1, 0])


@pytest.mark.parametrize(("n", "expected"), [(1000, 0.031), (5000, 0.014)])
def test_calibration_error_of_a_perfect_model_is_not_zero(n, expected):
    """Score differences of sd 2, each pair oriented at random: what binning noise alone gives."""
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(100):
        p_N = 1 / (1 + np.exp(-rng.normal(0, 2, n)))
        errors.append(expected_calibration_error(p_N, rng.random(n) < p_N))
    assert np.mean(errors) == pytest.approx(expected, abs=0.0015)


def test_an_overconfident_model_is_found_out():
    rng = np.random.default_rng(3)
    gap_N = rng.normal(0, 2, 20_000)
    label_N = rng.random(20_000) < 1 / (1 + np.exp(-gap_N))
    assert expected_calibration_error(1 / (1 + np.exp(-3 * gap_N)), label_N) > 0.1


def test_bayes_accuracy():
    assert bayes_accuracy([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    with pytest.raises(ValueError, match="at least one value"):
        bayes_accuracy([])


def test_repetition_and_distinct():
    assert repetition("a b c a b c") == pytest.approx(1 - 3 / 4)
    assert repetition("a b c d") == 0
    assert repetition("short") == 0
    assert distinct_n(["a b", "a b"], 2) == pytest.approx(0.5)
    assert distinct_n([], 2) == 0
    assert distinct_n(["a a", "a b"], 1) == pytest.approx(2 / 4)
    assert repetition("No no NO", n=1) == pytest.approx(2 / 3)
    assert distinct_n(["a b c"], 3) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(1, 2, level=95), "level is 95"),
        (lambda: mean_interval([1, 2], level=1.0), "level is 1.0"),
        (lambda: mean_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: mean_interval([0.0, np.nan]), r"a_N\[1\] is not a finite number"),
        (lambda: paired_bootstrap([], []), "at least one value"),
        (lambda: paired_bootstrap([1, 2], [1, np.inf]), r"b_N\[1\] is not a finite number"),
        (lambda: paired_bootstrap([1, 2], [1, 2], resamples=0), "resamples is 0"),
        (
            lambda: paired_hierarchical_bootstrap([[1.0]], [[1.0], [2.0]]),
            "equally long: a_PA 1, b_PB 2",
        ),
        (lambda: paired_hierarchical_bootstrap([1.0], [[1.0]]), r"a_PA has shape \(1,\)"),
        (lambda: paired_hierarchical_bootstrap([[1.0]], [[1.0]], resamples=0), "resamples is 0"),
        (lambda: paired_hierarchical_bootstrap([[1.0]], [[1.0]], level=95), "level is 95"),
        (lambda: hierarchical_win_rate([[1.0]], [[np.nan]]), r"b_PB\[0, 0\] is not a finite"),
        (lambda: hierarchical_win_rate([[1.0]], np.empty((1, 0))), r"b_PB has shape \(1, 0\)"),
        (lambda: hierarchical_win_rate([[1.0]], [[1.0]], resamples=0), "resamples is 0"),
        (lambda: length_controlled_win_rate([1.5], [1], [1]), r"won_N\[0\] is 1.5"),
        (lambda: length_controlled_win_rate([1], [np.inf], [1]), r"length_a_N\[0\] is not a finite"),
        (lambda: length_controlled_win_rate([1], [1], [1, 2]), "equally long"),
        (lambda: length_controlled_win_rate([1, 0], [1, 2], [1, 2], [0]), "equally long"),
        (lambda: length_controlled_win_rate([1], [1], [1], level=0), "level is 0"),
        (lambda: expected_calibration_error([0.5], [2]), r"label_N\[0\] is 2"),
        (lambda: expected_calibration_error([np.nan], [1]), "not a finite number"),
        (lambda: expected_calibration_error([0.5], [1], bins=0), "bins is 0"),
        (lambda: bayes_accuracy([0.5, -0.1]), r"prob_N\[1\] is -0.1"),
        (lambda: repetition("a b", n=0), "n is 0"),
    ],
)
def test_bad_input_says_what_and_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_load_nothing_heavy():
    heavy = ("torch", "scipy", "statsmodels", "pandas", "matplotlib")
    code = f"import preferl.statistics, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
