"""Advantages and policy losses against published values, enumeration and plain loops."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.maths import policy as maths
from preferl.maths.kl import kl_estimate

F64 = torch.float64


def rows(*values):
    return torch.tensor(values, dtype=F64)


def slow_gae(reward, value, gamma, lam):
    """The definition, as a double sum over one unpadded sequence."""
    T = len(reward)
    delta = [reward[t] + gamma * (value[t + 1] if t + 1 < T else 0.0) - value[t] for t in range(T)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)]


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [(1.0, 0.95, [0.52675, 0.765, 0.7]), (0.9, 0.8, [0.17328, 0.574, 0.7])],
)
def test_gae_golden(gamma, lam, expected):
    reward, value = rows([-0.1, 0.2, 1]), rows([0.5, 0.4, 0.3])
    advantage, returns = maths.gae(reward, value, torch.ones(1, 3), gamma, lam)
    torch.testing.assert_close(advantage, rows(expected))
    torch.testing.assert_close(returns, advantage + value)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0.5, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
)
def test_gae_of_padded_batches_is_that_of_each_sequence(lengths, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    T = max(lengths) + 2
    mask = torch.zeros(len(lengths), T)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    junk = 1e6 * torch.randn(len(lengths), T, dtype=F64, generator=generator)
    reward = torch.where(mask > 0, torch.randn(len(lengths), T, dtype=F64, generator=generator), junk)
    value = torch.where(mask > 0, torch.randn(len(lengths), T, dtype=F64, generator=generator), junk)
    advantage, returns = maths.gae(reward, value, mask, gamma, lam)
    for i, length in enumerate(lengths):
        expected = slow_gae(reward[i, :length].tolist(), value[i, :length].tolist(), gamma, lam)
        assert advantage[i, :length].tolist() == pytest.approx(expected, abs=1e-9)
        assert not advantage[i, length:].any()
        assert not returns[i, length:].any()


def test_returns_to_go():
    out = maths.returns_to_go(rows([1.0, 2.0, 3.0, 9.0]), torch.tensor([[1, 1, 1, 0]]), 0.5)
    torch.testing.assert_close(out, rows([2.75, 3.5, 3.0, 0.0]))


def test_rloo_and_grpo_golden():
    group = rows([1, 2, 3, 6])
    torch.testing.assert_close(maths.rloo_advantage(group), rows([-8 / 3, -4 / 3, 0, 4]))
    grpo = maths.grpo_advantage(group)
    torch.testing.assert_close(grpo, rows([-1.069045, -0.534522, 0, 1.603567]), atol=1e-6, rtol=0)
    torch.testing.assert_close(maths.grpo_advantage(group, scale=False), rows([-2, -1, 0, 3]))
    assert not maths.grpo_advantage(rows([0.1, 0.1, 0.1])).any()


def test_rloo_does_not_move_with_a_constant():
    group = rows([1, 2, 3, 6])
    torch.testing.assert_close(maths.rloo_advantage(group + 100), maths.rloo_advantage(group))


def test_rloo_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        maths.rloo_advantage(rows([1.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "flat"),
    [(1.5, 1, -1.2, True), (0.5, 1, -0.5, False), (1.5, -1, 1.5, False), (0.5, -1, 0.8, True)],
)
def test_clipped_policy_loss_golden(ratio, advantage, loss, flat):
    logp = torch.tensor([[ratio]], dtype=F64).log().requires_grad_()
    out = maths.clipped_policy_loss(logp, torch.zeros(1, 1, dtype=F64), rows([advantage]), 0.2)
    out.sum().backward()
    assert out.item() == pytest.approx(loss)
    assert (logp.grad.item() == 0) is flat


def test_clipped_value_loss_golden():
    out = maths.clipped_value_loss(rows([0.5]), rows([0.2]), rows([1.0]), 0.2)
    assert out.item() == pytest.approx(0.18)


def test_whiten_uses_only_the_mask():
    x, mask = rows([1.0, 2.0, 3.0, 1e9], [4.0, 5.0, -1e9, 1e9]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    out = maths.whiten(x, mask)
    real = out[mask.bool()]
    assert real.mean().item() == pytest.approx(0, abs=1e-12)
    assert real.std(correction=0).item() == pytest.approx(1)
    assert not out[~mask.bool()].any()
    kept = maths.whiten(x, mask, shift_mean=False)[mask.bool()]
    assert kept.mean().item() == pytest.approx(3.0)
    assert not maths.whiten(torch.full((2, 4), 7.0), mask).any()


def test_score_lies_on_the_last_real_token():
    kl = rows([0.5, 0.1, 99.0], [0.2, 0.3, 0.4])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    out = maths.token_level_reward(torch.tensor([2.0, -1.0], dtype=F64), kl, mask, 0.1)
    torch.testing.assert_close(out, rows([-0.05, 1.99, 0.0], [-0.02, -0.03, -1.04]))


def test_a_response_without_tokens_has_no_place_for_its_score():
    with pytest.raises(ValueError, match="no real token"):
        maths.token_level_reward(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2), 0.1)


def test_logprobs_and_entropy_carry_the_temperature():
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 3, 5, dtype=F64), torch.randint(0, 5, (2, 3))
    p = torch.softmax(logits / 0.7, -1)
    expected = p.gather(-1, tokens[..., None])[..., 0].log()
    torch.testing.assert_close(maths.response_logprobs(logits, tokens, 0.7), expected)
    torch.testing.assert_close(maths.entropy(logits, 0.7), -(p * p.log()).sum(-1))
    with pytest.raises(ValueError, match="temperature"):
        maths.response_logprobs(logits, tokens, 0.0)


def test_explained_variance():
    returns, mask = rows([1.0, 2.0, 3.0, 50.0]), torch.tensor([[1, 1, 1, 0]])
    assert maths.explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert maths.explained_variance(returns + 5, returns, mask).item() == pytest.approx(1)
    assert maths.explained_variance(torch.zeros_like(returns), returns, mask).item() == pytest.approx(0)


def test_masked_means():
    x, mask = rows([1.0, 2.0, 1e9], [3.0, 1e9, 1e9]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert maths.masked_mean(x, mask).item() == pytest.approx(2)
    torch.testing.assert_close(maths.masked_sum(x, mask), torch.tensor([3.0, 3.0], dtype=F64))
    with pytest.raises(ValueError, match="no real token"):
        maths.masked_mean(x, torch.zeros_like(mask))


class Enumerated:
    """All sequences of two tokens over three symbols, with J = E[r] - beta KL and its exact gradient."""

    def __init__(self):
        torch.manual_seed(3)
        self.first = torch.randn(3, dtype=F64, requires_grad=True)
        self.second = torch.randn(3, 3, dtype=F64, requires_grad=True)
        self.ref_first, self.ref_second = torch.randn(3, dtype=F64), torch.randn(3, 3, dtype=F64)
        self.reward = torch.randn(9, dtype=F64)
        self.beta = 0.4
        self.sequences = list(itertools.product(range(3), repeat=2))

    def logps(self, first, second):
        a, b = first.log_softmax(-1), second.log_softmax(-1)
        return torch.stack([torch.stack([a[i], b[i, j]]) for i, j in self.sequences])

    def gradient(self, value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [self.first, self.second])])

    def exact(self):
        logp = self.logps(self.first, self.second)
        ref = self.logps(self.ref_first, self.ref_second)
        total = logp.sum(-1)
        return self.gradient((total.exp() * (self.reward - self.beta * (total - ref.sum(-1)))).sum())

    def expected(self, surrogate):
        """Gradient of E_old[surrogate], the expectation over samples taken exactly."""
        logp = self.logps(self.first, self.second)
        ref = self.logps(self.ref_first, self.ref_second)
        weight = logp.sum(-1).exp().detach()
        return self.gradient((weight * surrogate(logp, ref)).sum())


def test_k1_in_the_reward_is_the_gradient_of_the_objective():
    world = Enumerated()

    def surrogate(logp, ref):
        kl = kl_estimate(logp, ref, "k1").detach()
        reward = maths.token_level_reward(world.reward, kl, torch.ones(9, 2, dtype=torch.long), world.beta)
        advantage = maths.returns_to_go(reward, torch.ones(9, 2), 1.0)
        return -maths.clipped_policy_loss(logp, logp.detach(), advantage, 0.2).sum(-1)

    torch.testing.assert_close(world.expected(surrogate), world.exact(), atol=1e-12, rtol=0)


def test_k2_of_the_sequence_in_the_loss_is_exact_and_the_other_placements_are_not():
    world = Enumerated()
    reward_part = lambda logp: logp.sum(-1) * world.reward  # noqa: E731

    def sequence_k2(logp, ref):
        return reward_part(logp) - world.beta * kl_estimate(logp.sum(-1), ref.sum(-1), "k2")

    def token(kind):
        return lambda logp, ref: reward_part(logp) - world.beta * kl_estimate(logp, ref, kind).sum(-1)

    exact = world.exact()
    torch.testing.assert_close(world.expected(sequence_k2), exact, atol=1e-12, rtol=0)
    for kind in ("k1", "k2", "k3"):
        assert (world.expected(token(kind)) - exact).abs().max() > 1e-3, kind
