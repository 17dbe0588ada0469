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
    with pytest.raises(ValueError, match="paired"):
        stats.paired_bootstrap(a, b[:-1])


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
    with pytest.raises(ValueError, match="must lie in"):
        stats.expected_calibration_error([1.2], [1])
    with pytest.raises(ValueError, match="equally long"):
        stats.expected_calibration_error([0.5], [1, 0])


def test_a_perfect_models_calibration_error_at_5000_pairs():
    rng = np.random.default_rng(2)
    p = rng.uniform(size=5000)
    assert stats.expected_calibration_error(p, rng.uniform(size=5000) < p) == pytest.approx(0.014, abs=0.008)


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


def test_statistics_do_not_load_torch():
    code = "import preferl.maths.stats, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
