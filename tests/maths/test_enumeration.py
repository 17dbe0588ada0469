"""What policy gradients estimate, with expectations taken exactly over every sequence of a small space.

A tabular policy over 4 tokens, one of them EOS, and up to 3 steps has 40 sequences. The objective is
J = E[score] - coef * KL(pi || pi_ref); its gradient is computed in NumPy from the definition.
"""

import itertools

import numpy as np
import pytest
import torch

from preferl.maths import kl, policy, preference

EOS, V, T, COEF = 0, 4, 3, 0.5
RNG = np.random.default_rng(7)


def sequences():
    """Every response: it ends with EOS or at the length limit."""
    for length in range(1, T + 1):
        for head in itertools.product(range(1, V), repeat=length - 1):
            yield (*head, EOS)
    yield from itertools.product(range(1, V), repeat=T)


SEQUENCES = list(sequences())
STATES = sorted({y[:t] for y in SEQUENCES for t in range(len(y))})
N, S = len(SEQUENCES), len(STATES)
# Padding repeats token 3 in state 0: reading it would give wrong gradients there.
TOKENS_NT = torch.tensor([[*y, *[3] * (T - len(y))] for y in SEQUENCES])
STATE_NT = torch.tensor(
    [[*[STATES.index(y[:t]) for t in range(len(y))], *[0] * (T - len(y))] for y in SEQUENCES]
)
MASK_NT = torch.tensor([[1] * len(y) + [0] * (T - len(y)) for y in SEQUENCES])
TABLE_SV, REF_SV = RNG.normal(size=(2, S, V))
SCORE_N = RNG.normal(size=N)
WRONG_S = RNG.normal(size=S)


# --------------------------------------------------------------------------- the definition, without torch


def log_softmax(table_SV):
    return table_SV - np.logaddexp.reduce(table_SV, axis=-1, keepdims=True)


def logp_of(table_SV):
    """log pi(y) of every sequence."""
    logp_SV = log_softmax(table_SV)
    return np.array([sum(logp_SV[STATES.index(y[:t]), y[t]] for t in range(len(y))) for y in SEQUENCES])


def gradient_of_logp(table_SV):
    """d log pi(y) / d table = [token] - pi(. | state), summed over the steps of y."""
    p_SV, out_NSV = np.exp(log_softmax(table_SV)), np.zeros((N, S, V))
    for n, y in enumerate(SEQUENCES):
        for t, token in enumerate(y):
            state = STATES.index(y[:t])
            out_NSV[n, state, token] += 1
            out_NSV[n, state] -= p_SV[state]
    return out_NSV


LOGP_N, REF_LOGP_N, SCORE_FUNCTION_NSV = logp_of(TABLE_SV), logp_of(REF_SV), gradient_of_logp(TABLE_SV)
P_N = np.exp(LOGP_N)
KL = float((P_N * (LOGP_N - REF_LOGP_N)).sum())


def gradient_of_mean(value_N):
    """Gradient of E[value] where value does not depend on the policy."""
    return np.einsum("n,n,nsv->sv", P_N, value_N, SCORE_FUNCTION_NSV)


GRADIENT_OF_SCORE = gradient_of_mean(SCORE_N)
# The derivative of log pi inside the KL has mean 0.
GRADIENT_OF_KL = gradient_of_mean(LOGP_N - REF_LOGP_N)
GRADIENT_OF_J = GRADIENT_OF_SCORE - COEF * GRADIENT_OF_KL


def relative_error(gradient_SV, exact_SV):
    return np.abs(gradient_SV - exact_SV).max() / np.abs(exact_SV).max()


# ------------------------------------------------------------------------------ what the package estimates


def logprobs(table_SV):
    return policy.response_logprobs(table_SV[STATE_NT], TOKENS_NT, 1.0)


REF_NT = logprobs(torch.tensor(REF_SV))


def expected_ascent(loss_of):
    """-gradient of E[loss], the samples' probabilities held fixed as sampling holds them."""
    table_SV = torch.tensor(TABLE_SV, requires_grad=True)
    loss_N = loss_of(logprobs(table_SV))
    (torch.tensor(P_N) * loss_N).sum().backward()
    assert table_SV.grad is not None
    return -table_SV.grad.numpy()


def policy_gradient(advantage_NT):
    def loss(logp_NT):
        loss_NT = policy.clipped_policy_loss(logp_NT, logp_NT.detach(), advantage_NT, 0.2)
        return policy.masked_sum(loss_NT, MASK_NT)

    return expected_ascent(loss)


def token_rewards(kind="k1"):
    kl_NT = kl.kl_estimate(logprobs(torch.tensor(TABLE_SV)), REF_NT, kind)
    return policy.token_level_reward(torch.tensor(SCORE_N), kl_NT, MASK_NT, COEF)


def test_the_space_is_complete():
    assert N == 40
    assert P_N.sum() == pytest.approx(1, abs=1e-14)
    ours_N = policy.masked_sum(logprobs(torch.tensor(TABLE_SV)), MASK_NT)
    np.testing.assert_allclose(ours_N, LOGP_N, rtol=1e-14)


def test_k1_in_the_reward_gives_the_exact_gradient():
    advantage_NT = policy.returns_to_go(token_rewards(), MASK_NT, 1.0)
    assert relative_error(policy_gradient(advantage_NT), GRADIENT_OF_J) < 1e-14


def test_a_critic_of_any_quality_does_not_bias_lambda_one():
    value_NT = torch.tensor(WRONG_S)[STATE_NT]
    advantage_NT, _ = policy.gae(token_rewards(), value_NT, MASK_NT, 1.0, 1.0)
    assert relative_error(policy_gradient(advantage_NT), GRADIENT_OF_J) < 1e-14


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_a_perfect_critic_does_not_bias_any_lambda(lam):
    """V(s) = E[rewards from s on]; with a wrong critic a lambda below 1 is biased."""
    reward_NT = token_rewards()
    to_go_NT = policy.returns_to_go(reward_NT, MASK_NT, 1.0).numpy()
    value_S = np.zeros(S)
    for state in range(S):
        here_NT = (STATE_NT.numpy() == state) & (MASK_NT.numpy() == 1)
        weight_NT = P_N[:, None] * here_NT
        value_S[state] = (weight_NT * to_go_NT).sum() / weight_NT.sum()
    advantage_NT, _ = policy.gae(reward_NT, torch.tensor(value_S)[STATE_NT], MASK_NT, 1.0, lam)
    assert relative_error(policy_gradient(advantage_NT), GRADIENT_OF_J) < 1e-13
    wrong_NT, _ = policy.gae(reward_NT, torch.tensor(value_S + WRONG_S)[STATE_NT], MASK_NT, 1.0, lam)
    assert relative_error(policy_gradient(wrong_NT), GRADIENT_OF_J) > 1e-3


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_other_estimators_in_the_reward_follow_another_gradient(kind):
    """E[k3] is the KL, but detached its gradient lacks a term; k2 is not even the KL."""
    advantage_NT = policy.returns_to_go(token_rewards(kind), MASK_NT, 1.0)
    assert relative_error(policy_gradient(advantage_NT), GRADIENT_OF_J) > 1e-2


def kl_in_the_loss(kind, per_token):
    """Ascent direction of E[-score] + coef * estimate in the loss; only the KL's part of it."""

    def loss(logp_NT):
        if per_token:
            return policy.masked_sum(kl.kl_estimate(logp_NT, REF_NT, kind), MASK_NT)
        logp_N, ref_N = policy.masked_sum(logp_NT, MASK_NT), policy.masked_sum(REF_NT, MASK_NT)
        return kl.kl_estimate(logp_N, ref_N, kind)

    return -expected_ascent(loss)


def test_k2_of_whole_responses_in_the_loss_gives_the_exact_gradient():
    assert relative_error(kl_in_the_loss("k2", per_token=False), GRADIENT_OF_KL) < 1e-14


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_k2_and_k3_of_tokens_in_the_loss_do_not(kind):
    estimated = GRADIENT_OF_SCORE - COEF * kl_in_the_loss(kind, per_token=True)
    assert relative_error(estimated, GRADIENT_OF_J) > 1e-2


@pytest.mark.parametrize("per_token", [True, False])
def test_k1_in_the_loss_has_no_expected_gradient(per_token):
    assert np.abs(kl_in_the_loss("k1", per_token)).max() < 1e-15


def test_k3_of_whole_responses_in_the_loss_is_the_gradient_of_the_other_kl():
    """d/d table of KL(pi_ref || pi) = -E_ref[d log pi]."""
    other = -np.einsum("n,nsv->sv", np.exp(REF_LOGP_N), SCORE_FUNCTION_NSV)
    assert relative_error(kl_in_the_loss("k3", per_token=False), other) < 1e-13
    assert relative_error(other, GRADIENT_OF_KL) > 1e-2


def test_every_unbiased_way_to_the_kl_meets_at_the_same_number():
    table_SV = torch.tensor(TABLE_SV)
    logp_NT, exact_NT = logprobs(table_SV), kl.kl_exact(table_SV[STATE_NT], torch.tensor(REF_SV)[STATE_NT])
    for estimate_NT in (
        kl.kl_estimate(logp_NT, REF_NT, "k1"),
        kl.kl_estimate(logp_NT, REF_NT, "k3"),
        exact_NT,
    ):
        assert (P_N * policy.masked_sum(estimate_NT, MASK_NT).numpy()).sum() == pytest.approx(KL, rel=1e-13)
    k2_N = policy.masked_sum(kl.kl_estimate(logp_NT, REF_NT, "k2"), MASK_NT).numpy()
    assert abs((P_N * k2_N).sum() - KL) > 1e-2


# -------------------------------------------------------------------------------------------------- groups


def group_gradient(advantage):
    """Expected gradient of mean_g advantage_g log pi(y_g) over all groups of two."""
    value_N = SCORE_N - COEF * (LOGP_N - REF_LOGP_N)
    pairs = np.array(list(itertools.product(range(N), repeat=2)))
    advantage_PG = advantage(torch.tensor(value_N[pairs])).numpy()
    weight_P = P_N[pairs].prod(-1)
    return np.einsum("p,pg,pgsv->sv", weight_P, advantage_PG, SCORE_FUNCTION_NSV[pairs]) / 2


def test_rloo_gives_the_exact_gradient():
    assert relative_error(group_gradient(policy.rloo_advantage), GRADIENT_OF_J) < 1e-13


def test_grpo_without_scaling_gives_it_up_to_a_factor():
    """The sample is in its own baseline: (G - 1) / G of the gradient, same direction."""
    unscaled = group_gradient(lambda reward_BG: policy.grpo_advantage(reward_BG, scale=False))
    assert relative_error(2 * unscaled, GRADIENT_OF_J) < 1e-13


def test_grpo_with_scaling_points_elsewhere():
    scaled = group_gradient(policy.grpo_advantage)
    along = (scaled * GRADIENT_OF_J).sum() / (GRADIENT_OF_J**2).sum()
    assert along > 0
    assert relative_error(scaled / along, GRADIENT_OF_J) > 1e-2


# ------------------------------------------------------------------------------------------------ optimum


OPTIMUM_N = REF_LOGP_N + SCORE_N / COEF - np.logaddexp.reduce(REF_LOGP_N + SCORE_N / COEF)
ALL_PAIRS = np.array(list(itertools.combinations(range(N), 2)))


def test_the_distance_to_the_best_objective_is_the_kl_to_the_optimum():
    """J* - J(pi) = coef * KL(pi || pi*), with J the mean sum of token rewards."""
    best = COEF * np.logaddexp.reduce(REF_LOGP_N + SCORE_N / COEF)
    reached = (P_N * token_rewards().sum(-1).numpy()).sum()
    assert best - reached == pytest.approx(COEF * (P_N * (LOGP_N - OPTIMUM_N)).sum(), rel=1e-13)


def fit(loss_of):
    """Minimises loss_of(log pi of every sequence) over all distributions on the sequences."""
    logits_N = torch.tensor(REF_LOGP_N, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits_N], max_iter=1000, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(logits_N.log_softmax(-1))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits_N.detach().log_softmax(-1).numpy()


def kl_to_optimum(logp_N):
    return float((np.exp(logp_N) * (logp_N - OPTIMUM_N)).sum())


def test_dpo_on_the_population_of_labels_recovers_the_optimum():
    a, b = torch.tensor(ALL_PAIRS).unbind(-1)
    ref_N, score_N = torch.tensor(REF_LOGP_N), torch.tensor(SCORE_N)
    first = torch.sigmoid(score_N[a] - score_N[b])

    def loss(logp_N):
        won = preference.dpo_loss(logp_N[a], logp_N[b], ref_N[a], ref_N[b], COEF)
        lost = preference.dpo_loss(logp_N[b], logp_N[a], ref_N[b], ref_N[a], COEF)
        return (first * won + (1 - first) * lost).mean()

    assert kl_to_optimum(REF_LOGP_N) > 0.1
    assert abs(kl_to_optimum(fit(loss))) < 1e-8


def test_rebel_recovers_the_optimum():
    """With the reference as the sampling policy and eta = 1 / coef, and 0 loss there."""
    a, b = torch.tensor(ALL_PAIRS).unbind(-1)
    ref_N, score_N = torch.tensor(REF_LOGP_N), torch.tensor(SCORE_N)

    def loss(logp_N):
        return preference.rebel_loss(
            logp_N[a], logp_N[b], ref_N[a], ref_N[b], score_N[a], score_N[b], 1 / COEF
        ).mean()

    assert loss(torch.tensor(OPTIMUM_N)).item() == pytest.approx(0, abs=1e-20)
    assert abs(kl_to_optimum(fit(loss))) < 1e-8


def test_best_of_n_stays_below_its_bound():
    """Exactly, for distinct scores: P(best is y) = F(y)^n - F(below y)^n."""
    order = np.argsort(SCORE_N)
    upto = np.cumsum(P_N[order])
    for n in (1, 2, 4, 16, 64):
        best = upto**n - np.concatenate([[0], upto[:-1]]) ** n
        held = best > 0
        exact = (best[held] * np.log(best[held] / P_N[order][held])).sum()
        assert exact <= kl.best_of_n_kl_bound(n) + 1e-12


# ------------------------------------------------------------------------------------- KTO at a given z0


@pytest.mark.parametrize("reference_point", [0.0, 0.8])
def test_ktos_loss_and_gradient_are_those_of_the_definition(reference_point):
    """Every response y with a probability in the data and a probability of being called good: the expected
    loss by NumPy, its gradient by the chain rule with d log pi / d table, against autograd."""
    beta, desirable, undesirable = 0.6, 1.3, 0.8
    rng = np.random.default_rng(3)
    data_N, good_N = rng.dirichlet(np.ones(N)), rng.random(N)
    z_N = beta * (LOGP_N - REF_LOGP_N - reference_point)
    sigma_N = 1 / (1 + np.exp(-z_N))
    loss = (data_N * (good_N * desirable * (1 - sigma_N) + (1 - good_N) * undesirable * sigma_N)).sum()
    slope_N = beta * sigma_N * (1 - sigma_N)
    pull_N = data_N * slope_N * ((1 - good_N) * undesirable - good_N * desirable)
    gradient = np.einsum("n,nsv->sv", pull_N, SCORE_FUNCTION_NSV)

    table_SV = torch.tensor(TABLE_SV, requires_grad=True)
    logp_NT = table_SV.log_softmax(-1)[STATE_NT].gather(-1, TOKENS_NT[..., None])[..., 0]
    logp_N = (logp_NT * MASK_NT).sum(-1)
    reference_N = torch.tensor(REF_LOGP_N)
    ours = torch.zeros((), dtype=torch.float64)
    for label, share_N in ((1, good_N), (0, 1 - good_N)):
        label_N = torch.full((N,), label)
        loss_N = preference.kto_loss(
            logp_N, reference_N, label_N, reference_point, beta, desirable, undesirable
        )
        ours = ours + (torch.tensor(data_N * share_N) * loss_N).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss, abs=1e-14)
    np.testing.assert_allclose(table_SV.grad.numpy(), gradient, atol=1e-14)
