"""Advantages, rewards and losses of policies: symmetries, degenerate batches, precision, and errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.maths import policy as maths
from preferl.maths import reference

F64 = torch.float64
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
GROUPS = st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True)


def rows(*values):
    return torch.tensor(values, dtype=F64)


@PROPERTY
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_advantages_follow_the_definition_on_padded_batches(seed, gamma, lam, shift_mean):
    rng = np.random.default_rng(seed)
    reward_BT, value_BT, kl_BT = rng.normal(size=(3, 3, 6))
    mask_BT = (np.arange(6) < rng.integers(1, 7, size=(3, 1))).astype(int)
    mask_BT[0, :2] = 1  # one token alone has no spread to whiten
    score_B = rng.normal(size=3)
    reward, value, mask, kl = (torch.tensor(x) for x in (reward_BT, value_BT, mask_BT, kl_BT))
    checks = [
        (maths.gae(reward, value, mask, gamma, lam), reference.gae(reward_BT, value_BT, mask_BT, gamma, lam)),
        ([maths.returns_to_go(reward, mask, gamma)], [reference.returns_to_go(reward_BT, mask_BT, gamma)]),
        (
            [maths.token_level_reward(torch.tensor(score_B), kl, mask, 0.3)],
            [reference.token_level_reward(score_B, kl_BT, mask_BT, 0.3)],
        ),
        ([maths.whiten(reward, mask, shift_mean)], [reference.whiten(reward_BT, mask_BT, shift_mean)]),
        (
            [maths.explained_variance(value, reward, mask)],
            [reference.explained_variance(value_BT, reward_BT, mask_BT)],
        ),
        ([maths.rloo_advantage(reward)], [reference.rloo_advantage(reward_BT)]),
        ([maths.grpo_advantage(reward)], [reference.grpo_advantage(reward_BT)]),
    ]
    for ours, slow in checks:
        for a, b in zip(ours, slow, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-10, atol=1e-11)


def test_lambda_zero_is_one_step_and_lambda_one_is_the_whole_return():
    reward_BT, value_BT, mask_BT = rows([1, 2, 3]), rows([10, 20, 30]), torch.ones(1, 3)
    one_step, _ = maths.gae(reward_BT, value_BT, mask_BT, 1.0, 0.0)
    whole, return_BT = maths.gae(reward_BT, value_BT, mask_BT, 1.0, 1.0)
    assert one_step.tolist() == [[11, 12, -27]]
    assert whole.tolist() == [[-4, -15, -27]]
    assert return_BT.tolist() == [[6, 5, 3]]


@PROPERTY
@given(GROUPS, st.integers(-100, 100), st.floats(0.01, 100))
def test_group_advantages_sum_to_nothing_and_ignore_a_constant(group, shift, factor):
    group_BG = rows(group)
    rloo, grpo = maths.rloo_advantage(group_BG), maths.grpo_advantage(group_BG)
    assert rloo.sum().item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(maths.rloo_advantage(group_BG + shift), rloo, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maths.rloo_advantage(group_BG * factor), rloo * factor, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maths.grpo_advantage(group_BG * factor + shift), grpo, rtol=1e-7, atol=1e-7)
    unscaled = maths.grpo_advantage(group_BG, scale=False)
    torch.testing.assert_close(unscaled, rloo * (len(group) - 1) / len(group), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.1, 1e-20, 3e15])
@pytest.mark.parametrize("width", [2, 3, 7, 1000])
def test_equal_values_stay_without_advantage(value, width, dtype):
    """Subtracting a mean leaves rounding, which a division by its own sd would blow up to 1."""
    same_BT = torch.full((1, width), value, dtype=dtype)
    mask_BT = torch.ones_like(same_BT)
    assert not maths.grpo_advantage(same_BT).any()
    assert maths.whiten(same_BT, mask_BT).abs().max() <= 1e-6 * abs(value)
    torch.testing.assert_close(maths.whiten(same_BT, mask_BT, shift_mean=False), same_BT)
    assert maths.explained_variance(torch.randn(1, width, dtype=dtype), same_BT, mask_BT).item() == 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_reward_does_not_matter(scale):
    torch.manual_seed(0)
    x_BT, mask_BT = torch.randn(4, 5, dtype=F64), torch.ones(4, 5)
    torch.testing.assert_close(maths.whiten(scale * x_BT, mask_BT), maths.whiten(x_BT, mask_BT))
    torch.testing.assert_close(maths.grpo_advantage(scale * x_BT), maths.grpo_advantage(x_BT))


def test_small_real_differences_are_not_taken_for_rounding():
    group_BG = torch.tensor([[1000.0, 1000.01, 1000.02, 1000.05]])
    assert maths.grpo_advantage(group_BG).std(correction=0).item() == pytest.approx(1, rel=1e-4)


def test_whitened_values_have_mean_zero_and_population_sd_one():
    torch.manual_seed(0)
    x_BT, mask_BT = 5 + 3 * torch.randn(4, 6, dtype=F64), torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    real_N, kept_N = (
        maths.whiten(x_BT, mask_BT)[mask_BT],
        maths.whiten(x_BT, mask_BT, shift_mean=False)[mask_BT],
    )
    assert real_N.mean().item() == pytest.approx(0, abs=1e-14)
    assert real_N.std(correction=0).item() == pytest.approx(1, rel=1e-14)
    assert kept_N.mean().item() == pytest.approx(x_BT[mask_BT].mean().item())
    assert kept_N.std(correction=0).item() == pytest.approx(1, rel=1e-14)


def test_logprobs_are_those_of_the_softmax_at_the_temperature():
    torch.manual_seed(0)
    logits_BTV = torch.randn(2, 3, 5, dtype=F64)
    tokens_VBT = torch.arange(5)[:, None, None].expand(5, 2, 3)
    for temperature in (0.5, 1.0, 3.0):
        p = torch.stack([maths.response_logprobs(logits_BTV, x, temperature).exp() for x in tokens_VBT], -1)
        torch.testing.assert_close(p, torch.softmax(logits_BTV / temperature, -1))
    assert maths.entropy(torch.zeros(1, 1, 7), 0.3).item() == pytest.approx(math.log(7), rel=1e-6)


def test_explained_variance_of_good_useless_and_harmful_critics():
    return_BT, mask_BT = rows([1.0, 2.0, 3.0, 50.0]), torch.tensor([[1, 1, 1, 0]])
    assert maths.explained_variance(return_BT + 5, return_BT, mask_BT).item() == pytest.approx(1)
    assert maths.explained_variance(torch.zeros(1, 4, dtype=F64), return_BT, mask_BT).item() == pytest.approx(
        0
    )
    assert maths.explained_variance(-return_BT, return_BT, mask_BT).item() == pytest.approx(-3)


def test_an_infinite_value_clip_is_plain_squared_error():
    value_BT, old_BT, return_BT = rows([0.5, -3.0]), rows([0.2, 4.0]), rows([1.0, 2.0])
    loss_BT = maths.clipped_value_loss(value_BT, old_BT, return_BT, math.inf)
    torch.testing.assert_close(loss_BT, 0.5 * (value_BT - return_BT) ** 2)


def test_arguments_are_left_as_they_were():
    torch.manual_seed(0)
    x_BT, y_BT, mask_BT = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    before = x_BT.clone(), y_BT.clone()
    maths.gae(x_BT, y_BT, mask_BT, 1.0, 0.9)
    maths.whiten(x_BT, mask_BT)
    maths.token_level_reward(torch.ones(2), x_BT, mask_BT, 0.0)
    assert torch.equal(x_BT, before[0])
    assert torch.equal(y_BT, before[1])


X, Y, MASK = torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3)
NONE, LOGITS = torch.zeros(0, 3), torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maths.gae(X, Y, MASK, 1.0, 1.0), r"value_BT \(2, 4\)"),
        (lambda: maths.gae(NONE, NONE, NONE, 1.0, 1.0), "nothing to compute on"),
        (lambda: maths.gae(X[:, :0], X[:, :0], MASK[:, :0], 1.0, 1.0), "nothing to compute on"),
        (lambda: maths.gae(X, X, MASK, 1.1, 1.0), "gamma is 1.1"),
        (lambda: maths.gae(X, X, MASK, 1.0, -0.1), "lam is -0.1"),
        (lambda: maths.returns_to_go(Y, MASK, 1.0), "shapes differ"),
        (lambda: maths.rloo_advantage(torch.ones(3, 1)), "at least 2 samples"),
        (lambda: maths.grpo_advantage(torch.ones(3, 1), scale=False), "at least 2 samples"),
        (lambda: maths.grpo_advantage(NONE), "nothing to compute on"),
        (lambda: maths.whiten(X, torch.ones(2, 4)), "shapes differ"),
        (lambda: maths.whiten(X, 0 * MASK), "no real token"),
        (lambda: maths.masked_mean(X, 0 * MASK), "no real token"),
        (lambda: maths.masked_mean(Y, MASK), "shapes differ"),
        (lambda: maths.masked_sum(X[0], MASK), "shapes differ"),
        (lambda: maths.token_level_reward(torch.ones(1), X, MASK, 0.1), r"score_B \(1,\) does not fit"),
        (lambda: maths.token_level_reward(torch.ones(2, 1), X, MASK, 0.1), "does not fit"),
        (lambda: maths.token_level_reward(torch.ones(2), X, Y, 0.1), "shapes differ"),
        (
            lambda: maths.token_level_reward(torch.ones(2), X, torch.tensor([[1, 0, 0], [0, 0, 0]]), 0.1),
            "response 1 has no real token",
        ),
        (lambda: maths.clipped_policy_loss(X, X, Y, 0.2), "advantage_BT"),
        (lambda: maths.clipped_policy_loss(X, X, X, 0.0), "cliprange is 0.0"),
        (lambda: maths.clipped_policy_loss(X, X, X, 0.2, 1.0), "dual_clip is 1.0"),
        (lambda: maths.clipped_value_loss(X, Y, X, 0.2), "old_value_BT"),
        (lambda: maths.clipped_value_loss(X, X, X, -1), "cliprange is -1"),
        (lambda: maths.response_logprobs(LOGITS, torch.zeros(2, 4).long(), 1.0), "do not fit tokens_BT"),
        (lambda: maths.response_logprobs(LOGITS[:0], torch.zeros(0, 3).long(), 1.0), "at least one token"),
        (lambda: maths.response_logprobs(LOGITS, X.long(), 0.0), "temperature is 0.0"),
        (lambda: maths.entropy(LOGITS, -1.0), "temperature is -1.0"),
        (lambda: maths.explained_variance(X, Y, MASK), "return_BT"),
    ],
)
def test_bad_input_says_what_and_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()
