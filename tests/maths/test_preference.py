"""Preference losses against published values, the formulas written out again, and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preferl.maths.preference import (
    balanced_pairwise_loss,
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    rebel_loss,
)

FINITE = st.floats(-20, 20)


def d(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gap", "loss"), [(0, 0.6931471805599453), (1, 0.31326168751822286), (-2, 2.1269280110429727)]
)
def test_bradley_terry_golden(gap, loss):
    assert bradley_terry_loss(d(gap), d(0.0)).item() == pytest.approx(loss, abs=1e-15)


@pytest.mark.parametrize(("gap", "loss"), [(1000, 0.0), (-1000, 1000.0)])
def test_bradley_terry_far_out_stays_finite(gap, loss):
    chosen = d(gap).requires_grad_()
    value = bradley_terry_loss(chosen, d(0.0))
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_margin_is_subtracted_from_the_gap():
    assert bradley_terry_loss(d(1.0), d(0.0), d(1 / 3)).item() == pytest.approx(0.41437008685, abs=1e-10)


@given(FINITE, st.floats(0, 0.5))
def test_label_smoothing_mixes_the_swapped_pair(gap, e):
    expected = (1 - e) * math.log1p(math.exp(-gap)) + e * math.log1p(math.exp(gap))
    assert bradley_terry_loss(d(gap), d(0.0), None, e).item() == pytest.approx(expected, abs=1e-9)


def test_plackett_luce_golden():
    assert plackett_luce_loss(d(1, 0, -1)[None]).item() == pytest.approx(0.7208676519626, abs=1e-12)


def test_balanced_pairwise_golden():
    assert balanced_pairwise_loss(d(1, 0, -1)[None]).item() == pytest.approx(0.25115046202647, abs=1e-12)


@given(FINITE, FINITE)
def test_rankings_of_two_are_bradley_terry(a, b):
    pair, expected = d(a, b)[None], bradley_terry_loss(d(a), d(b)).item()
    assert plackett_luce_loss(pair).item() == pytest.approx(expected, abs=1e-9)
    assert balanced_pairwise_loss(pair).item() == pytest.approx(expected, abs=1e-9)


def test_plackett_luce_probabilities_of_all_rankings_sum_to_one():
    import itertools

    scores = [0.3, -1.2, 2.0, 0.1]
    losses = [plackett_luce_loss(d(*order)[None]).item() for order in itertools.permutations(scores)]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("loss", [plackett_luce_loss, balanced_pairwise_loss])
@pytest.mark.parametrize("junk", [0.0, 1e6, -1e6])
def test_padding_of_a_ranking_changes_nothing(loss, junk):
    short = d(1, 0, -1)[None].requires_grad_()
    padded = d(1, 0, -1, junk)[None].requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0]])
    a, b = loss(short), loss(padded, mask)
    a.sum().backward()
    b.sum().backward()
    assert a.item() == pytest.approx(b.item(), abs=1e-12)
    torch.testing.assert_close(padded.grad[:, :3], short.grad)
    assert padded.grad[0, 3] == 0


def test_equal_ranks_are_no_pair():
    score, rank = d(2, 1, 0)[None], torch.tensor([[0, 0, 1]])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert balanced_pairwise_loss(score, None, rank).item() == pytest.approx(expected)
    assert balanced_pairwise_loss(score, None, torch.zeros_like(rank)).item() == 0


@given(FINITE, st.floats(0.01, 3))
def test_rao_kupper_outcomes_sum_to_one(gap, margin):
    total = sum(math.exp(-rao_kupper_loss(d(gap), d(0.0), d(z), margin).item()) for z in (1, 0, -1))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_rao_kupper_without_margin_is_refused():
    with pytest.raises(ValueError, match="tie_margin"):
        rao_kupper_loss(d(0.0), d(0.0), d(0), 0.0)


def test_dpo_golden():
    assert dpo_loss(d(1.0), d(0.0), d(0.0), d(0.0), 0.1).item() == pytest.approx(0.6443966601, abs=1e-10)


def test_ipo_golden():
    assert ipo_loss(d(1.0), d(0.0), d(0.0), d(0.0), 0.1).item() == pytest.approx(16.0)


@pytest.mark.parametrize(("eta", "loss"), [(1.0, 0.49), (0.5, 0.16)])
def test_rebel_golden(eta, loss):
    zero = d(0.0)
    assert rebel_loss(d(0.3), zero, zero, zero, d(1.0), zero, eta).item() == pytest.approx(loss)


def test_offline_dpo_on_the_population_recovers_the_optimum():
    """Minimising DPO over all pairs of a small space gives pi* = pi_ref exp(r / beta) / Z."""
    torch.manual_seed(0)
    beta, n = 0.5, 6
    reward, ref_logits = torch.randn(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    ref = ref_logits.log_softmax(-1)
    logits = ref_logits.clone().requires_grad_()
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    i, j = i.flatten(), j.flatten()
    preferred = torch.sigmoid(reward[i] - reward[j])
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        logp = logits.log_softmax(-1)
        loss = (preferred * dpo_loss(logp[i], logp[j], ref[i], ref[j], beta)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimum = (ref + reward / beta).log_softmax(-1)
    logp = logits.detach().log_softmax(-1)
    assert (logp.exp() * (logp - optimum)).sum() < 1e-8


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: bradley_terry_loss(x[0], x[1], x[2].detach(), 0.1),
        lambda x: plackett_luce_loss(x.T),
        lambda x: balanced_pairwise_loss(x.T),
        lambda x: rao_kupper_loss(x[0], x[1], torch.tensor([1, 0, -1]), 0.4),
        lambda x: dpo_loss(x[0], x[1], x[2].detach(), x[3].detach(), 0.3, 0.1),
        lambda x: ipo_loss(x[0], x[1], x[2].detach(), x[3].detach(), 0.3),
        lambda x: rebel_loss(x[0], x[1], x[2].detach(), x[3].detach(), d(1, 2, 3), d(0, 1, 5), 0.7),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    torch.manual_seed(1)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    free = [0, 1] if "detach" in str(loss.__code__.co_names) else range(4)
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    step = 1e-5
    for row in free:
        for column in range(3):
            shift = torch.zeros_like(x)
            shift[row, column] = step
            numeric = (loss(x + shift).sum() - loss(x - shift).sum()) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        bradley_terry_loss(d(1, 2), d(1.0))
    with pytest.raises(ValueError, match="label_smoothing"):
        bradley_terry_loss(d(1.0), d(1.0), None, 0.7)
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(d(1.0), d(1.0), d(1.0), d(1.0), 0.0)
