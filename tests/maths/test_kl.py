"""KL estimates, exact values and controllers against published numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preferl.maths.kl import (
    AdaptiveKL,
    FixedKL,
    best_objective,
    best_of_n_kl_bound,
    kl_estimate,
    kl_exact,
)

P, Q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)


@pytest.mark.parametrize(("kind", "mean"), [("k1", 0.143841), ("k2", 0.161213742), ("k3", 0.143841)])
def test_expected_estimates_golden(kind, mean):
    assert (P * kl_estimate(P.log(), Q.log(), kind)).sum().item() == pytest.approx(mean, abs=1e-6)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative(logp, ref):
    a, b = torch.tensor(logp, dtype=torch.float64), torch.tensor(ref, dtype=torch.float64)
    assert kl_estimate(a, b, "k2") >= 0
    assert kl_estimate(a, b, "k3") >= 0


def test_exact_kl_of_equal_models_is_zero_and_a_constant_on_logits_does_nothing():
    torch.manual_seed(0)
    logits, ref = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    assert kl_exact(logits, logits).abs().max() == 0
    torch.testing.assert_close(kl_exact(logits + 3, ref - 1), kl_exact(logits, ref))


def test_exact_kl_is_infinite_where_the_reference_forbids_what_the_policy_does():
    logits, ref = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, -torch.inf]]])
    assert kl_exact(logits, ref).item() == math.inf


def test_unknown_estimator_and_shapes_are_refused():
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(P, Q, "k4")
    with pytest.raises(ValueError, match="shapes differ"):
        kl_estimate(P, Q[:1], "k1")
    with pytest.raises(ValueError, match="shapes differ"):
        kl_exact(P, Q[:1])


@pytest.mark.parametrize(("n", "bound"), [(1, 0.0), (4, 0.636294), (16, 1.835089), (64, 3.174508)])
def test_best_of_n_bound_golden(n, bound):
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-6)


def test_best_of_n_bound_is_the_kl_of_a_continuous_space():
    """With many equally likely items the KL of the best of n comes to log n - (n - 1) / n."""
    n, m = 4, 200_000
    rank = torch.arange(1, m + 1, dtype=torch.float64)
    p = (rank / m) ** n - ((rank - 1) / m) ** n
    assert (p * (p * m).log()).sum().item() == pytest.approx(best_of_n_kl_bound(n), abs=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl_bound(0)


@pytest.mark.parametrize(("kl", "coef"), [(12.0, 0.202048), (6.3, 0.200512), (6.0, 0.2)])
def test_adaptive_controller_golden(kl, coef):
    controller = AdaptiveKL(0.2, 6.0, 10_000)
    controller.update(kl, 512)
    assert controller.coef == pytest.approx(coef, abs=1e-9)


@pytest.mark.parametrize(("kl", "factor"), [(1e9, 1.02), (0.0, 0.98), (-5.0, 0.98), (7.2, 1.02), (6.6, 1.01)])
def test_adaptive_controller_moves_by_at_most_a_fifth_of_the_batch_over_the_horizon(kl, factor):
    controller = AdaptiveKL(0.3, 6.0, 1000)
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(0.3 * factor, rel=1e-12)


def test_controllers_keep_their_state():
    controller, other = AdaptiveKL(0.2, 6.0, 1000), AdaptiveKL(9.0, 6.0, 1000)
    controller.update(0.0, 100)
    other.load_state_dict(controller.state_dict())
    assert other.coef == controller.coef < 0.2
    other.update(10.0, 100)
    controller.update(10.0, 100)
    assert other.coef == controller.coef


def test_a_fixed_coefficient_stays():
    fixed, other = FixedKL(0.1), FixedKL(0.0)
    fixed.update(1000.0, 100)
    other.load_state_dict(fixed.state_dict())
    assert fixed.coef == other.coef == 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FixedKL(-0.1), "coefficient is -0.1"),
        (lambda: AdaptiveKL(0.0, 6.0, 10), "coefficient 0.0"),
        (lambda: AdaptiveKL(0.1, 0.0, 10), "target 0.0"),
        (lambda: AdaptiveKL(0.1, 6.0, -1), "horizon -1"),
        (lambda: AdaptiveKL(0.1, 6.0, 100).update(math.nan, 10), "mean KL of the batch is nan"),
        (lambda: AdaptiveKL(0.1, 6.0, 100).update(1.0, 500), "horizon must be above 100"),
    ],
)
def test_controllers_refuse_what_would_turn_the_penalty_around(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_controller_that_is_overshot_pushes_back():
    controller = AdaptiveKL(0.1, 6.0, 100)
    kl = 20.0
    for _ in range(2000):
        controller.update(kl, 10)
        kl += 0.05 * (2 / controller.coef - kl)  # a policy whose KL falls as the coefficient grows
    assert math.isclose(kl, 6.0, rel_tol=0.05)


def test_the_best_objective_is_that_of_the_tilted_reference():
    """coef * log E exp(score / coef), by hand; large scores do not overflow; constants stay."""
    score_N = torch.tensor([0.0, 1.0, 2.0, 2.0])
    value, error, size = best_objective(score_N, 0.5)
    weight_N = np.exp(score_N.double().numpy() / 0.5)
    assert value == pytest.approx(0.5 * np.log(weight_N.mean()), rel=1e-12)
    assert size == pytest.approx(weight_N.sum() ** 2 / (weight_N**2).sum(), rel=1e-12)
    assert error == pytest.approx(0.5 * weight_N.std(ddof=1) / weight_N.mean() / 2, rel=1e-6)
    assert best_objective(torch.full((8,), 1000.0), 0.1) == (pytest.approx(1000.0), 0.0, pytest.approx(8.0))
    for scores, coef in ((score_N, 0.0), (score_N[:1], 0.5)):
        with pytest.raises(ValueError, match="must be above 0"):
            best_objective(scores, coef)
