"""Preference losses: probabilities that sum to one, symmetries, the limit of statistics, and errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.maths.preference import (
    balanced_pairwise_loss,
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    kto_weights,
    plackett_luce_loss,
    rao_kupper_loss,
    rebel_loss,
)

SCORE = st.floats(-20, 20)
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def d(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@PROPERTY
@given(SCORE, SCORE, st.floats(-3, 3), st.floats(-50, 50))
def test_either_of_two_is_preferred_and_only_the_difference_counts(a, b, margin, shift):
    won = bradley_terry_loss(d(a), d(b), d(margin)).exp() ** -1
    lost = bradley_terry_loss(d(b), d(a), d(-margin)).exp() ** -1
    assert (won + lost).item() == pytest.approx(1, abs=1e-12)
    moved = bradley_terry_loss(d(a + shift), d(b + shift), d(margin))
    assert moved.item() == pytest.approx(bradley_terry_loss(d(a), d(b), d(margin)).item(), abs=1e-9)


@PROPERTY
@given(SCORE, st.floats(0, 2), st.floats(0, 0.5))
def test_label_smoothing_mixes_both_labels_at_one_margin(gap, margin, e):
    x = gap - margin
    expected = (1 - e) * math.log1p(math.exp(-x)) + e * math.log1p(math.exp(x))
    assert bradley_terry_loss(d(gap), d(0.0), d(margin), e).item() == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(SCORE, SCORE)
def test_rankings_of_two_are_bradley_terry(a, b):
    pair, expected = d(a, b)[None], bradley_terry_loss(d(a), d(b)).item()
    assert plackett_luce_loss(pair).item() == pytest.approx(expected, abs=1e-12)
    assert balanced_pairwise_loss(pair).item() == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_plackett_luce_probabilities_of_all_rankings_sum_to_one(scores):
    orders_BK = torch.tensor(list(itertools.permutations(scores)), dtype=torch.float64)
    assert (-plackett_luce_loss(orders_BK)).exp().sum().item() == pytest.approx(1, abs=1e-11)


def test_equal_ranks_are_no_pair():
    score, rank = d(2, 1, 0)[None], torch.tensor([[0, 0, 1]])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert balanced_pairwise_loss(score, None, rank).item() == pytest.approx(expected)
    assert balanced_pairwise_loss(score, None, torch.zeros_like(rank)).item() == 0


@PROPERTY
@given(SCORE, st.floats(1e-6, 5))
def test_rao_kupper_outcomes_sum_to_one_and_mirror(gap, margin):
    loss = {z: rao_kupper_loss(d(gap), d(0.0), d(z), margin).item() for z in (1, 0, -1)}
    assert sum(math.exp(-x) for x in loss.values()) == pytest.approx(1, abs=1e-12)
    assert rao_kupper_loss(d(0.0), d(gap), d(-1), margin).item() == pytest.approx(loss[1])
    assert rao_kupper_loss(d(0.0), d(gap), d(0), margin).item() == pytest.approx(loss[0], abs=1e-12)


def test_a_wider_margin_makes_ties_likelier():
    losses = [rao_kupper_loss(d(0.5), d(0.0), d(0), m).item() for m in (0.1, 0.5, 1.0, 3.0)]
    assert losses == sorted(losses, reverse=True)


def test_dpo_is_bradley_terry_on_implicit_rewards_and_starts_at_log_two():
    logp = d(-3.0, -7.0), d(-4.0, -1.0)
    assert dpo_loss(*logp, *logp, 0.1).tolist() == pytest.approx([math.log(2)] * 2)
    assert ipo_loss(*logp, *logp, 0.5).tolist() == [1.0, 1.0]


def test_dpo_sums_and_never_averages_over_the_response():
    """Twice the log-ratio is twice the implicit reward, whatever the length."""
    zero = d(0.0)
    once, twice = dpo_loss(d(1.0), zero, zero, zero, 0.1), dpo_loss(d(2.0), zero, zero, zero, 0.1)
    assert twice.expm1().item() == pytest.approx(once.expm1().item() ** 2)


def test_maximum_likelihood_reaches_the_limit_of_statistics():
    """A well-specified model of d parameters loses d / (2n) nats: 2n * excess / d -> 1."""
    rng = np.random.default_rng(0)
    size, n, scores = 16, 1000, []
    truth = rng.normal(size=size)
    truth *= 2 / np.linalg.norm(truth)  # differences of sd 2
    population = torch.tensor(rng.normal(size=(20_000, size)))

    def population_loss(weight):
        p = torch.sigmoid(population @ torch.tensor(truth))
        gap, zero = population @ weight, torch.zeros(len(population), dtype=torch.float64)
        won, lost = bradley_terry_loss(gap, zero), bradley_terry_loss(zero, gap)
        return (p * won + (1 - p) * lost).mean().item()

    best = population_loss(torch.tensor(truth))
    for _ in range(40):
        x = rng.normal(size=(n, size))
        sign = np.where(rng.random(n) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)
        chosen = torch.tensor(x * sign[:, None])
        weight = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-9)

        def closure(optimizer=optimizer, weight=weight, chosen=chosen):
            optimizer.zero_grad()
            loss = bradley_terry_loss(chosen @ weight, torch.zeros(n, dtype=torch.float64)).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        scores.append(2 * n * (population_loss(weight.detach()) - best) / size)
    # One replication has sd sqrt(2 / d) = 0.35, the mean of 40 has 0.056.
    assert 0.83 < np.mean(scores) < 1.2


ONE, TWO, EMPTY = d(1.0), d(1, 2), d()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bradley_terry_loss(TWO, ONE), r"chosen_B \(2,\), rejected_B \(1,\)"),
        (lambda: bradley_terry_loss(TWO, TWO, ONE), r"margin_B \(1,\)"),
        (lambda: bradley_terry_loss(EMPTY, EMPTY), "nothing to compute on"),
        (lambda: bradley_terry_loss(ONE, ONE, None, 0.7), "label_smoothing is 0.7"),
        (lambda: bradley_terry_loss(ONE, ONE, None, -0.1), "label_smoothing is -0.1"),
        (lambda: plackett_luce_loss(TWO[None], ONE[None]), "mask_BK"),
        (lambda: plackett_luce_loss(EMPTY[None]), "nothing to compute on"),
        (lambda: balanced_pairwise_loss(TWO[None], None, ONE[None]), "rank_BK"),
        (lambda: rao_kupper_loss(TWO, TWO, ONE, 0.1), "outcome_B"),
        (lambda: rao_kupper_loss(ONE, ONE, d(0.5), 0.1), "outcome_B holds"),
        (lambda: rao_kupper_loss(ONE, ONE, d(0), 0.0), "tie_margin is 0.0"),
        (lambda: dpo_loss(TWO, TWO, TWO, ONE, 0.1), "ref_rejected_B"),
        (lambda: dpo_loss(ONE, ONE, ONE, ONE, 0.0), "beta is 0.0"),
        (lambda: dpo_loss(ONE, ONE, ONE, ONE, math.nan), "beta is nan"),
        (lambda: dpo_loss(ONE, ONE, ONE, ONE, 0.1, 0.6), "label_smoothing"),
        (lambda: ipo_loss(ONE, ONE, ONE, ONE, -1.0), "beta is -1.0"),
        (lambda: kto_loss(ONE, ONE, ONE, 0.0, 0.0), "beta is 0.0"),
        (lambda: kto_loss(ONE, ONE, 2 * ONE, 0.0, 1.0), "other than 1"),
        (lambda: kto_loss(ONE, ONE, TWO, 0.0, 1.0), "good_B"),
        (lambda: kto_reference_point(ONE, TWO), "ref_B"),
        (lambda: kto_weights(-1, 3), "negative"),
        (lambda: ipo_loss(ONE, TWO, ONE, ONE, 1.0), "policy_rejected_B"),
        (lambda: rebel_loss(ONE, ONE, ONE, ONE, ONE, TWO, 1.0), "reward_b_B"),
        (lambda: rebel_loss(ONE, ONE, ONE, ONE, ONE, ONE, 0.0), "eta is 0.0"),
    ],
)
def test_bad_input_says_what_and_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kto_at_the_reference_costs_half_its_weight_and_far_away_all_or_nothing():
    """A policy that is its reference has z0 = 0 and r = 0: sigma(0) = 1/2 on both sides."""
    logp, good = d(-3.0, -7.0), torch.tensor([1, 0])
    assert kto_loss(logp, logp, good, 0.0, 0.1, 3.0, 5.0).tolist() == [1.5, 2.5]
    far = d(1e4, 1e4, -1e4, -1e4).requires_grad_()
    loss = kto_loss(far, torch.zeros_like(far), torch.tensor([1, 0, 1, 0]), 0.0, 1.0)
    assert loss.tolist() == [0, 1, 1, 0]
    loss.sum().backward()
    assert far.grad.isfinite().all()


def test_the_reference_point_is_a_mean_that_is_never_negative_and_passes_no_gradient():
    policy = d(-1.0, -2.0, -6.0).requires_grad_()
    reference = d(-2.0, -4.0, -3.0)
    found = kto_reference_point(policy, reference)
    assert found.item() == 0
    found = kto_reference_point(policy[:2], reference[:2])
    assert found.item() == 1.5
    assert not found.requires_grad
    # Also one that a caller left in the graph stays a constant of the loss.
    point = (policy[:1] - reference[:1]).mean()
    kto_loss(policy[1:2], reference[1:2], torch.tensor([1]), point, 1.0).sum().backward()
    assert policy.grad.tolist()[0] == 0


@pytest.mark.parametrize(
    ("counts", "given", "expected"),
    [
        ((100, 400), (None, None), (4.0, 1.0)),
        ((400, 100), (None, None), (1.0, 3.0)),
        ((110, 100), (None, None), (1.0, 1.0)),
        ((100, 400), (2.0, None), (2.0, 0.5)),
        ((400, 100), (None, 6.0), (1.5, 6.0)),
        ((400, 100), (1.0, 1.0), (1.0, 1.0)),
        ((7, 0), (None, None), (1.0, 1.0)),
        ((0, 7), (None, 2.0), (1.0, 2.0)),
    ],
)
def test_weights_balance_the_labels_and_what_is_given_stays(counts, given, expected):
    assert kto_weights(*counts, *given) == pytest.approx(expected)


@PROPERTY
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0.1, 10))
def test_derived_weights_are_in_the_papers_range(good, bad, weight):
    for given_weights in ((None, None), (weight, None), (None, weight)):
        desirable, undesirable = kto_weights(good, bad, *given_weights)
        assert 1 - 1e-9 <= desirable * good / (undesirable * bad) <= 4 / 3 + 1e-9
        if given_weights == (None, None):
            assert min(desirable, undesirable) == pytest.approx(1)
