"""Intervals over clusters, calibration and partial correlation, against formulas and by simulation."""

import numpy as np
import pytest
from scipy import stats as distributions

from preferl.statistics import expected_calibration_error, wilson_interval
from preferl.statistics.calibration import (
    UndefinedStatistic,
    calibration_error_floor,
    cluster_bootstrap,
    clustered_proportion,
    excess_preference,
    holm,
    logistic_coefficients,
    partial_correlation,
    reliability_curve,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def clustered_normal(rng, clusters, size, common):
    """Values of mean 0.3 whose share ``common`` of the variance is the cluster's."""
    cluster_N = np.repeat(np.arange(clusters), size)
    shared = np.sqrt(common) * rng.normal(size=clusters)[cluster_N]
    return 0.3 + shared + np.sqrt(1 - common) * rng.normal(size=clusters * size), cluster_N


# -- intervals over clusters


def test_cluster_bootstrap_covers_the_truth_where_one_over_pairs_does_not():
    rng = np.random.default_rng(0)
    hits, naive_hits = 0, 0
    for trial in range(200):
        value_N, cluster_N = clustered_normal(rng, clusters=40, size=8, common=0.6)
        mean, low, high = cluster_bootstrap(value_N, cluster_N, resamples=300, seed=trial)
        assert mean == pytest.approx(value_N.mean())
        hits += low <= 0.3 <= high
        _, low, high = cluster_bootstrap(value_N, np.arange(len(value_N)), resamples=300, seed=trial)
        naive_hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.985
    assert naive_hits / 200 < 0.75


def test_cluster_bootstrap_is_wide_by_the_spread_of_cluster_means():
    """Equal clusters: half width z sd(cluster means) / sqrt(clusters)."""
    value_N, cluster_N = clustered_normal(np.random.default_rng(1), clusters=400, size=5, common=0.5)
    mean, low, high = cluster_bootstrap(value_N, cluster_N + 17, level=0.9, resamples=4000)
    half = 1.64485 * value_N.reshape(400, 5).mean(-1).std() / 20
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.08)
    assert cluster_bootstrap(value_N, cluster_N, seed=3) == cluster_bootstrap(value_N, cluster_N, seed=3)


def test_cluster_bootstrap_weighs_values_not_clusters():
    assert cluster_bootstrap([1.0, 1.0, 1.0, 5.0], [0, 0, 0, 1])[0] == 2
    # Whatever prompts are drawn, the mean of ones is one.
    assert cluster_bootstrap(np.ones(33), [0, 0, 0, *range(30)]) == (1, 1, 1)
    assert cluster_bootstrap([1.0, 2.0], ["a", "a"]) == (1.5, -np.inf, np.inf)
    with pytest.raises(ValueError, match="resamples is 0"):
        cluster_bootstrap([1.0, 2.0], [0, 1], resamples=0)
    with pytest.raises(ValueError, match="equally long"):
        cluster_bootstrap([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="level is 95"):
        cluster_bootstrap([1.0, 2.0], [0, 1], level=95)


def test_clustered_proportion_of_single_trials_is_wilsons():
    success = [1.0] * 37 + [0.0] * 13
    low, high = wilson_interval(37, 50)
    assert clustered_proportion(success, range(50)) == pytest.approx((0.74, low, high))
    # Every trial entered three times, as one cluster each: no new information.
    assert clustered_proportion(np.repeat(success, 3), np.repeat(np.arange(50), 3)) == pytest.approx(
        (0.74, low, high), abs=0.003
    )
    # All alike: the clusters count, not the trials.
    assert clustered_proportion([1.0] * 12, [0] * 4 + [1] * 4 + [2] * 4) == pytest.approx(
        (1.0, *wilson_interval(3, 3))
    )


def test_clustered_proportion_covers_the_truth():
    rng = np.random.default_rng(2)
    hits, naive_hits = 0, 0
    for _ in range(400):
        value_N, cluster_N = clustered_normal(rng, clusters=60, size=5, common=0.7)
        truth = distributions.norm.sf(0, 0.3, 1)
        _, low, high = clustered_proportion(value_N > 0, cluster_N)
        hits += low <= truth <= high
        _, low, high = clustered_proportion(value_N > 0, np.arange(len(value_N)))
        naive_hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98
    assert naive_hits / 400 < 0.85


# -- partial correlation


def both_orders(*columns):
    """Every pair in both orders: the means of all differences are 0."""
    return [np.concatenate([column, -column]) for column in columns]


def correlation_of_residuals(x, y, *controls):
    design = np.column_stack([np.ones(len(x)), *controls])
    x_rest = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    y_rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return np.corrcoef(x_rest, y_rest)[0, 1]


@pytest.mark.parametrize("controls", [0, 1, 2])
def test_partial_correlation_is_that_of_residuals_with_pairs_in_both_orders(controls):
    rng = np.random.default_rng(controls)
    z_NK = rng.normal(size=(80, controls)) * [1, 1e5][:controls] + 0.5
    x_N = 3 + z_NK @ np.ones(controls) + rng.normal(size=80)
    y_N = 1e-4 * (x_N - z_NK @ np.ones(controls) + 2 * rng.normal(size=80))
    value, low, high = partial_correlation(x_N, y_N, z_NK)
    x, y, *z = both_orders(x_N, y_N, *z_NK.T)
    assert value == pytest.approx(correlation_of_residuals(x, y, *z), abs=1e-9)
    assert low < value < high
    # Which side is first changes nothing.
    flip_N = rng.choice([-1.0, 1.0], size=80)
    flipped = partial_correlation(x_N * flip_N, y_N * flip_N, z_NK * flip_N[:, None])
    assert flipped == pytest.approx((value, low, high), abs=1e-9)


def test_controlling_for_the_label_is_ordinary_correlation_of_chosen_minus_rejected():
    rng = np.random.default_rng(5)
    x_N = 1 + rng.normal(size=60)
    y_N = 2 + x_N + rng.normal(size=60)
    assert partial_correlation(x_N, y_N, np.ones((60, 1)))[0] == pytest.approx(np.corrcoef(x_N, y_N)[0, 1])


def test_interval_of_normal_data_is_fishers():
    """Fisher 1924: z = atanh r has standard error 1 / sqrt(n - 3 - controls)."""
    rng = np.random.default_rng(6)
    n = 4000
    z_N = rng.normal(size=n)
    x_N, y_N = z_N + rng.normal(size=n), -z_N + rng.normal(size=n)
    y_N += 0.5 * (x_N - z_N)
    value, low, high = partial_correlation(x_N, y_N, z_N[:, None])
    half = 1.95996 / np.sqrt(n - 4)
    assert (np.arctanh(value) - np.arctanh(low)) == pytest.approx(half, rel=0.08)
    assert (np.arctanh(high) - np.arctanh(value)) == pytest.approx(half, rel=0.08)
    assert low < 0.5 / np.sqrt(1.25) < high
    # Without the control the sign turns: covariance -1 + 0.5, variances 2 and 1 + 1 + 0.25.
    assert partial_correlation(x_N, y_N)[2] < 0


def test_interval_covers_the_truth_for_clusters_and_uneven_spread():
    rng = np.random.default_rng(7)
    hits, naive_hits = 0, 0
    for _ in range(300):
        cluster_N = np.repeat(np.arange(80), 4)
        spread_N = rng.choice([0.3, 2.0], size=80)[cluster_N]
        common = rng.normal(size=(2, 80))[:, cluster_N] * spread_N
        x_N, y_N = common + 0.5 * rng.normal(size=(2, 320))
        low, high = partial_correlation(x_N, y_N, cluster_N=cluster_N)[1:]
        hits += low <= 0 <= high
        low, high = partial_correlation(x_N, y_N)[1:]
        naive_hits += low <= 0 <= high
    assert 0.9 <= hits / 300 <= 0.98
    assert naive_hits / 300 < 0.8


def test_undefined_correlations_say_why():
    x_N = np.arange(10.0)
    with pytest.raises(UndefinedStatistic, match="y is 0 in every pair"):
        partial_correlation(x_N, np.zeros(10))
    with pytest.raises(UndefinedStatistic, match="x follows from the controls"):
        partial_correlation(np.full(10, 3.0), x_N, np.ones((10, 1)))
    with pytest.raises(UndefinedStatistic, match="2 prompts are too few"):
        partial_correlation(x_N, x_N, cluster_N=np.arange(10) % 2)
    with pytest.raises(ValueError, match="control_NK has shape"):
        partial_correlation(x_N, x_N, np.ones((3, 1)))
    assert partial_correlation(x_N, -2 * x_N) == (-1, -1, -1)


# -- logistic regression


def newton(x_NK, label_N, steps=50):
    """Logistic regression by Newton's method, with the sandwich of independent rows."""
    beta = np.zeros(x_NK.shape[1])
    for _ in range(steps):
        p_N = sigmoid(x_NK @ beta)
        hessian = (x_NK * (p_N * (1 - p_N))[:, None]).T @ x_NK
        beta = beta + np.linalg.solve(hessian, x_NK.T @ (label_N - p_N))
    return beta, hessian, label_N - p_N


def test_logistic_coefficients_are_newtons_with_a_sandwich_over_clusters():
    rng = np.random.default_rng(8)
    clusters, n = 100, 300
    cluster_N = np.repeat(np.arange(clusters), 3)
    x_NK = rng.normal(size=(n, 2)) * [1, 1000] + rng.normal(size=(clusters, 2))[cluster_N] * [1, 1000]
    label_N = (rng.random(n) < sigmoid(x_NK @ [1.0, -5e-4])).astype(float)
    fitted = logistic_coefficients(x_NK, label_N, cluster_N)
    beta, hessian, residual_N = newton(x_NK, label_N)
    score_CK = np.array([(residual_N[cluster_N == c] @ x_NK[cluster_N == c]) for c in range(clusters)])
    bread = np.linalg.inv(hessian)
    se = np.sqrt(np.diag(bread @ score_CK.T @ score_CK @ bread))
    for i, coefficient in enumerate(fitted):
        assert coefficient.value == pytest.approx(beta[i], rel=1e-5)
        # statsmodels multiplies by the usual small-sample factors.
        assert coefficient.high - coefficient.value == pytest.approx(1.95996 * se[i], rel=0.02)
        log_p = np.log(2 * distributions.norm.sf(abs(beta[i] / se[i])))
        assert np.log(coefficient.p_value) == pytest.approx(log_p, rel=0.04)


def test_calibration_slope_of_an_overconfident_model():
    rng = np.random.default_rng(9)
    gap_N = rng.normal(size=4000)
    label_N = rng.random(4000) < sigmoid(gap_N)
    for factor in (1, 2.5):
        (slope,) = logistic_coefficients(factor * gap_N[:, None], label_N, np.arange(4000))
        assert slope.low < 1 / factor < slope.high
        assert slope.value == pytest.approx(1 / factor, rel=0.1)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_labels_that_the_differences_determine_have_no_slope(scale):
    gap_N = scale * np.linspace(0.1, 3, 50)
    with pytest.raises(UndefinedStatistic, match="without a rest"):
        logistic_coefficients(gap_N[:, None], np.ones(50), np.arange(50))
    with pytest.raises(UndefinedStatistic, match="follows from the others"):
        logistic_coefficients(np.column_stack([gap_N, 2 * gap_N]), np.ones(50), np.arange(50))
    with pytest.raises(UndefinedStatistic, match="is 0 in every pair"):
        logistic_coefficients(np.zeros((50, 1)), np.ones(50), np.arange(50))


# -- calibration


def test_reliability_curve_by_hand():
    curve = reliability_curve([0.05, 0.0, 0.31, 0.39, 0.35, 1.0], [0, 1, 1, 0, 0, 1], bins=10)
    assert [(b.low, b.count) for b in curve] == [(0, 2), (0.3, 3), (0.9, 1)]
    assert curve[1].mean_probability == pytest.approx(0.35)
    assert curve[1].observed == pytest.approx(1 / 3)
    assert (curve[1].observed_low, curve[1].observed_high) == pytest.approx(wilson_interval(1, 3))
    clustered = reliability_curve([0.31, 0.39, 0.35], [1, 0, 0], cluster_N=[4, 4, 4])
    assert clustered[0].observed_high > curve[1].observed_high
    with pytest.raises(ValueError, match="bins is 0"):
        reliability_curve([0.5], [1], bins=0)


def test_reliability_curve_holds_the_calibration_error():
    rng = np.random.default_rng(10)
    prob_N, label_N = rng.random(500), rng.random(500) < 0.4
    for bins in (5, 10):
        curve = reliability_curve(prob_N, label_N, bins)
        error = sum(b.count * abs(b.observed - b.mean_probability) for b in curve) / 500
        assert error == pytest.approx(expected_calibration_error(prob_N, label_N, bins))


def test_calibration_error_of_a_perfect_model_is_the_floor():
    rng = np.random.default_rng(11)
    prob_N = sigmoid(rng.normal(size=800))
    errors = [expected_calibration_error(prob_N, rng.random(800) < prob_N) for _ in range(300)]
    assert calibration_error_floor(prob_N) == pytest.approx(np.mean(errors), rel=0.04)
    assert calibration_error_floor([0.0, 1.0]) == 0


# -- excess preference


def simulated_preferences(rng, n, bias=0.0, confidence=1.0, noise=0.0):
    """Labels reward quality and a little the feature; the score adds ``bias`` for it."""
    quality_N, feature_N = rng.normal(size=n), rng.integers(-3, 4, size=n).astype(float)
    utility_N = quality_N + 0.3 * feature_N
    label_N = (rng.random(n) < sigmoid(utility_N)).astype(float)
    gap_N = confidence * (utility_N + bias * feature_N + noise * rng.normal(size=n))
    return gap_N, feature_N, label_N


def test_excess_preference_of_a_calibrated_model_by_hand():
    """Slope 1 by construction (a pair counts once with each label in its share), so nothing is rescaled."""
    gap_N = np.log([3.0, 3.0, 3.0, 3.0, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    label_N = np.array([1, 1, 1, 0, 0, 0, 0, 1.0])
    feature_N = np.array([2, 2, 2, 0, 0, 5, -1, -1.0])
    # P - label on the side with more: 3 * (0.75 - 1), 0.25 - 0, then sides turned: 0.75 - 1 and 0.75 - 0.
    excess = excess_preference(gap_N, feature_N, label_N, np.arange(8))
    assert excess.value == pytest.approx((3 * -0.25 + 0.25 - 0.25 + 0.75) / 6)


@pytest.mark.parametrize("confidence", [0.3, 1.0, 3.0])
def test_an_unbiased_model_is_not_accused_whatever_its_confidence(confidence):
    rng = np.random.default_rng(12)
    p_values = [
        excess_preference(
            *simulated_preferences(rng, 400, confidence=confidence), np.arange(400) // 2
        ).p_value
        for _ in range(200)
    ]
    # Uniform p-values: neither too many small ones nor too few.
    assert distributions.kstest(p_values, "uniform").pvalue > 0.01


def test_confidence_changes_no_excess():
    gap_N, feature_N, label_N = simulated_preferences(np.random.default_rng(16), 600, bias=0.2)
    once, thrice = (excess_preference(c * gap_N, feature_N, label_N, range(600)) for c in (1, 3))
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx(
        (once.value, once.low, once.high), abs=1e-5
    )


def test_interval_of_an_excess_is_as_wide_as_excesses_spread():
    """Where the feature is most of the utility, fitting the slope takes most of the spread away."""
    rng = np.random.default_rng(17)
    found = []
    for _ in range(300):
        feature_N = rng.normal(size=300)
        gap_N = 1.5 * feature_N + 0.5 * rng.normal(size=300)
        label_N = rng.random(300) < sigmoid(gap_N)
        found.append(excess_preference(gap_N, feature_N, label_N, range(300)))
    spread = np.std([excess.value for excess in found])
    assert np.mean([excess.high - excess.value for excess in found]) == pytest.approx(1.96 * spread, rel=0.12)


def test_excess_preference_has_the_sign_of_the_bias():
    rng = np.random.default_rng(13)
    over = excess_preference(*simulated_preferences(rng, 3000, bias=0.3), np.arange(3000))
    under = excess_preference(*simulated_preferences(rng, 3000, bias=-0.3), np.arange(3000))
    assert over.low > 0.03
    assert under.high < -0.03
    assert max(over.p_value, under.p_value) < 1e-6
    # Turning pairs around changes nothing.
    gap_N, feature_N, label_N = simulated_preferences(rng, 500, bias=0.3)
    flip_N = rng.choice([-1.0, 1.0], size=500)
    turned = excess_preference(
        gap_N * flip_N, feature_N * flip_N, np.where(flip_N > 0, label_N, 1 - label_N), range(500)
    )
    assert turned.value == pytest.approx(excess_preference(gap_N, feature_N, label_N, range(500)).value)


def test_a_score_that_is_nothing_but_the_feature_is_accused():
    """Its slope on labels that ignore the feature is about 0, which must not hide it."""
    rng = np.random.default_rng(14)
    feature_N = rng.normal(size=1000)
    excess = excess_preference(feature_N, feature_N, rng.random(1000) < 0.5, np.arange(1000))
    assert excess.low > 0.1


def test_undefined_excess_says_why():
    ones = np.ones(20)
    with pytest.raises(UndefinedStatistic, match="no pair differs"):
        excess_preference(ones, 0 * ones, ones, range(20))
    with pytest.raises(UndefinedStatistic, match="without a rest"):
        excess_preference(ones, ones, ones, range(20))
    with pytest.raises(UndefinedStatistic, match="0 in every pair"):
        excess_preference(0 * ones, ones, ones, range(20))


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_value_N = np.random.default_rng(15).random(12) ** 4
    p_value_N[3] = p_value_N[7]
    expected_N = np.asarray(multipletests(p_value_N, method="holm")[1])
    assert holm(p_value_N) == pytest.approx(expected_N)
    # By hand: 3 * 0.01, 2 * 0.02, and never less than one before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
