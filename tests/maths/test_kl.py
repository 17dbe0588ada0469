"""KL estimates, exact values and controllers against published numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preferl.maths.kl import AdaptiveKL, FixedKL, best_of_n_kl_bound, kl_estimate, kl_exact

P, Q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)


def test_exact_kl_golden():
    assert kl_exact(P.log(), Q.log()).item() == pytest.approx(0.14384103622589, abs=1e-14)


@pytest.mark.parametrize(("kind", "mean"), [("k1", 0.143841), ("k2", 0.161213742), ("k3", 0.143841)])
def test_expected_estimates_golden(kind, mean):
    assert (P * kl_estimate(P.log(), Q.log(), kind)).sum().item() == pytest.approx(mean, abs=1e-6)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative(logp, ref):
    a, b = torch.tensor(logp, dtype=torch.float64), torch.tensor(ref, dtype=torch.float64)
    assert kl_estimate(a, b, "k2") >= 0
    assert kl_estimate(a, b, "k3") >= 0


def test_exact_kl_ignores_a_constant_and_impossible_tokens():
    logits = torch.tensor([[1.0, 2.0, float("-inf")]], dtype=torch.float64)
    ref = torch.tensor([[0.5, 0.5, float("-inf")]], dtype=torch.float64)
    value = kl_exact(logits, ref)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(kl_exact(logits + 3, ref - 1), value)


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


def test_controllers_keep_their_state():
    controller, fixed = AdaptiveKL(0.2, 6.0, 1000), FixedKL(0.1)
    controller.update(0.0, 100)
    fixed.update(1000.0, 100)
    other = AdaptiveKL(9.0, 6.0, 1000)
    other.load_state_dict(controller.state_dict())
    assert other.coef == controller.coef < 0.2
    assert fixed.coef == 0.1
    with pytest.raises(ValueError, match="above 0"):
        AdaptiveKL(0.1, 0.0, 10)


def test_a_controller_that_is_overshot_pushes_back():
    controller = AdaptiveKL(0.1, 6.0, 100)
    kl = 20.0
    for _ in range(2000):
        controller.update(kl, 10)
        kl += 0.05 * (2 / controller.coef - kl)  # a policy whose KL falls as the coefficient grows
    assert math.isclose(kl, 6.0, rel_tol=0.05)
