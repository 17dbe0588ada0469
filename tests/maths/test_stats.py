"""Intervals, calibration and text statistics, checked by hand or by simulation."""

import subprocess
import sys

import numpy as np
import pytest

from preferl.maths import stats


def test_wilson_is_the_published_interval():
    low, high = stats.wilson_interval(6, 6)
    assert (round(low, 2), round(high, 2)) == (0.61, 1.0)
    low, high = stats.wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    with pytest.raises(ValueError, match="no interval"):
        stats.wilson_interval(1, 0)
    with pytest.raises(ValueError, match="no interval"):
        stats.wilson_interval(5, 4)


def test_mean_interval_by_hand():
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.30265 * 1 / 3**0.5, abs=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert stats.mean_interval([5.0]) == (5.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one value"):
        stats.mean_interval([])


def test_paired_bootstrap_pairs_and_repeats():
    rng = np.random.default_rng(0)
    common = 100 * rng.normal(size=300)
    a, b = common + 0.5 + 0.1 * rng.normal(size=300), common
    mean, low, high = stats.paired_bootstrap(a, b)
    assert mean == pytest.approx((a - b).mean())
    assert 0.47 < low < mean < high < 0.53
    assert stats.paired_bootstrap(a, b) == (mean, low, high)
    with pytest.raises(ValueError, match="equally long"):
        stats.paired_bootstrap(a, b[:-1])


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_paired_bootstrap_of_many_items_is_the_normal_interval(level, z):
    a_N = np.random.default_rng(4).normal(size=500)
    mean, low, high = stats.paired_bootstrap(a_N, np.zeros(500), level=level)
    half = z * a_N.std() / 500**0.5
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_paired_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        x = rng.normal(0.3, 1.0, size=60)
        _, low, high = stats.paired_bootstrap(x, np.zeros(60), resamples=500, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_calibration_error_by_hand():
    prob, label = [0.05, 0.05, 0.95, 0.95], [0, 1, 1, 1]
    assert stats.expected_calibration_error(prob, label) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert stats.expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    # Certainty belongs to the last bin, where these two gaps cancel.
    assert stats.expected_calibration_error([0.95, 1.0], [1.0, 0.95]) == pytest.approx(0)
    with pytest.raises(ValueError, match="must lie in"):
        stats.expected_calibration_error([1.2], [1])
    with pytest.raises(ValueError, match="equally long"):
        stats.expected_calibration_error([0.5], [1, 0])


@pytest.mark.parametrize(("n", "expected"), [(1000, 0.031), (5000, 0.014)])
def test_calibration_error_of_a_perfect_model_is_not_zero(n, expected):
    """Score differences of sd 2, each pair oriented at random: what binning noise alone gives."""
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(100):
        p_N = 1 / (1 + np.exp(-rng.normal(0, 2, n)))
        errors.append(stats.expected_calibration_error(p_N, rng.random(n) < p_N))
    assert np.mean(errors) == pytest.approx(expected, abs=0.0015)


def test_an_overconfident_model_is_found_out():
    rng = np.random.default_rng(3)
    gap_N = rng.normal(0, 2, 20_000)
    label_N = rng.random(20_000) < 1 / (1 + np.exp(-gap_N))
    assert stats.expected_calibration_error(1 / (1 + np.exp(-3 * gap_N)), label_N) > 0.1


def test_bayes_accuracy():
    assert stats.bayes_accuracy([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    with pytest.raises(ValueError, match="at least one value"):
        stats.bayes_accuracy([])


def test_repetition_and_distinct():
    assert stats.repetition("a b c a b c") == pytest.approx(1 - 3 / 4)
    assert stats.repetition("a b c d") == 0
    assert stats.repetition("short") == 0
    assert stats.distinct_n(["a b", "a b"], 2) == pytest.approx(0.5)
    assert stats.distinct_n([], 2) == 0
    assert stats.distinct_n(["a a", "a b"], 1) == pytest.approx(2 / 4)
    assert stats.repetition("No no NO", n=1) == pytest.approx(2 / 3)
    assert stats.distinct_n(["a b c"], 3) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.wilson_interval(1, 2, level=95), "level is 95"),
        (lambda: stats.mean_interval([1, 2], level=1.0), "level is 1.0"),
        (lambda: stats.mean_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: stats.mean_interval([0.0, np.nan]), r"a_N\[1\] is not a finite number"),
        (lambda: stats.paired_bootstrap([], []), "at least one value"),
        (lambda: stats.paired_bootstrap([1, 2], [1, np.inf]), r"b_N\[1\] is not a finite number"),
        (lambda: stats.paired_bootstrap([1, 2], [1, 2], resamples=0), "resamples is 0"),
        (lambda: stats.expected_calibration_error([0.5], [2]), r"label_N\[0\] is 2"),
        (lambda: stats.expected_calibration_error([np.nan], [1]), "not a finite number"),
        (lambda: stats.expected_calibration_error([0.5], [1], bins=0), "bins is 0"),
        (lambda: stats.bayes_accuracy([0.5, -0.1]), r"prob_N\[1\] is -0.1"),
        (lambda: stats.repetition("a b", n=0), "n is 0"),
    ],
)
def test_bad_input_says_what_and_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_load_nothing_heavy():
    heavy = ("torch", "scipy", "statsmodels", "pandas", "matplotlib")
    code = f"import preferl.maths.stats, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
