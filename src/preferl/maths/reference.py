"""The formulas of the papers in float64 NumPy: slow, one row at a time, to be read and to be typed along.

It imports nothing of the package: the tests hold the package against it. Functions carry the names and
keywords of what they check.
"""

import math

import numpy as np


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, dtype=np.float64))


def rows(*arrays):
    return zip(*(np.asarray(a, dtype=np.float64) for a in arrays), strict=True)


# ------------------------------------------------------------------------------------------- preferences


def bradley_terry_loss(chosen_B, rejected_B, margin_B=None, label_smoothing=0.0):
    margin_B = np.zeros(len(chosen_B)) if margin_B is None else margin_B
    e = label_smoothing
    return np.array(
        [
            -(1 - e) * log_sigmoid(w - lose - m) - e * log_sigmoid(-(w - lose - m))
            for w, lose, m in rows(chosen_B, rejected_B, margin_B)
        ]
    )


def plackett_luce_loss(score_BK, mask_BK=None):
    mask_BK = np.ones_like(score_BK) if mask_BK is None else mask_BK
    losses = []
    for score_K, mask_K in rows(score_BK, mask_BK):
        left = [s for s, m in zip(score_K, mask_K, strict=True) if m]
        loss = 0.0
        while left:
            loss += np.logaddexp.reduce(left) - left[0]
            left = left[1:]
        losses.append(loss)
    return np.array(losses)


def balanced_pairwise_loss(score_BK, mask_BK=None, rank_BK=None, margin_BKK=None, label_smoothing=0.0):
    score_BK = np.asarray(score_BK, dtype=np.float64)
    mask_BK = np.ones_like(score_BK) if mask_BK is None else mask_BK
    rank_BK = np.tile(np.arange(score_BK.shape[1]), (len(score_BK), 1)) if rank_BK is None else rank_BK
    if margin_BKK is None:
        margin_BKK = np.zeros((*score_BK.shape, score_BK.shape[1]))
    losses = []
    for score_K, mask_K, rank_K, margin_KK in rows(score_BK, mask_BK, rank_BK, margin_BKK):
        there = [k for k in range(len(score_K)) if mask_K[k]]
        total, pairs = 0.0, [(i, j) for i in there for j in there if rank_K[i] < rank_K[j]]
        for i, j in pairs:
            x = score_K[i] - score_K[j] - margin_KK[i, j]
            total -= (1 - label_smoothing) * log_sigmoid(x) + label_smoothing * log_sigmoid(-x)
        losses.append(total / len(pairs) if pairs else 0.0)
    return np.array(losses)


def _pairs_of_rows(score_BK, mask_BK):
    for score_K, mask_K in rows(score_BK, mask_BK):
        there = [k for k in range(len(score_K)) if mask_K[k]]
        yield score_K, [(i, j) for i in there for j in there if i < j]


def rao_kupper_ranking_loss(score_BK, mask_BK, rank_BK, tie_margin):
    losses = []
    for (score_K, pairs), rank_K in zip(_pairs_of_rows(score_BK, mask_BK), rank_BK, strict=True):
        outcomes = [(rank_K[i] < rank_K[j]) * 1 - (rank_K[i] > rank_K[j]) * 1 for i, j in pairs]
        first, second = [score_K[i] for i, _ in pairs], [score_K[j] for _, j in pairs]
        losses.append(rao_kupper_loss(first, second, outcomes, tie_margin).mean() if pairs else 0.0)
    return np.array(losses)


def centre_penalty(score_BK, mask_BK):
    return np.array(
        [
            sum((score_K[i] + score_K[j]) ** 2 for i, j in pairs) / len(pairs) if pairs else 0.0
            for score_K, pairs in _pairs_of_rows(score_BK, mask_BK)
        ]
    )


def rao_kupper_loss(score_a_B, score_b_B, outcome_B, tie_margin):
    losses = []
    theta = math.exp(tie_margin)
    for a, b, outcome in rows(score_a_B, score_b_B, outcome_B):
        a, b = math.exp(a), math.exp(b)
        win, lose = a / (a + theta * b), b / (b + theta * a)
        losses.append(-math.log({1: win, -1: lose, 0: 1 - win - lose}[int(outcome)]))
    return np.array(losses)


def dpo_loss(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta, label_smoothing=0.0):
    reward_w = [beta * (p - r) for p, r in rows(policy_chosen_B, ref_chosen_B)]
    reward_l = [beta * (p - r) for p, r in rows(policy_rejected_B, ref_rejected_B)]
    return bradley_terry_loss(reward_w, reward_l, label_smoothing=label_smoothing)


def kto_loss(policy_B, ref_B, good_B, reference_point, beta, desirable_weight=1.0, undesirable_weight=1.0):
    losses = []
    for p, r, good in rows(policy_B, ref_B, good_B):
        reward, sign = p - r, 1 if good else -1
        weight = desirable_weight if good else undesirable_weight
        value = weight / (1 + math.exp(-beta * sign * (reward - reference_point)))
        losses.append(weight - value)
    return np.array(losses)


def ipo_loss(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta, label_smoothing=0.0):
    losses = []
    for pw, pl, rw, rl in rows(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B):
        right, swapped = (pw - rw) - (pl - rl), (pl - rl) - (pw - rw)
        loss = (1 - label_smoothing) * (right - 0.5 / beta) ** 2
        losses.append(loss + label_smoothing * (swapped - 0.5 / beta) ** 2)
    return np.array(losses)


def rebel_loss(logp_a_B, logp_b_B, old_logp_a_B, old_logp_b_B, reward_a_B, reward_b_B, eta):
    all_rows = rows(logp_a_B, logp_b_B, old_logp_a_B, old_logp_b_B, reward_a_B, reward_b_B)
    return np.array(
        [((a - b - (old_a - old_b)) / eta - (ra - rb)) ** 2 for a, b, old_a, old_b, ra, rb in all_rows]
    )


# ---------------------------------------------------------------------------------------------- policies


def response_logprobs(logits_BTV, tokens_BT, temperature):
    logits_BTV = np.asarray(logits_BTV, dtype=np.float64)
    out_BT = np.zeros(np.shape(tokens_BT))
    for (b, t), token in np.ndenumerate(np.asarray(tokens_BT)):
        scaled_V = logits_BTV[b, t] / temperature
        out_BT[b, t] = scaled_V[token] - np.logaddexp.reduce(scaled_V)
    return out_BT


def entropy(logits_BTV, temperature):
    logits_BTV = np.asarray(logits_BTV, dtype=np.float64)
    out_BT = np.zeros(logits_BTV.shape[:-1])
    for b, t in np.ndindex(*out_BT.shape):
        scaled_V = logits_BTV[b, t] / temperature
        p_V = np.exp(scaled_V - np.logaddexp.reduce(scaled_V))
        out_BT[b, t] = -sum(p * math.log(p) for p in p_V if p > 0)
    return out_BT


def gae(reward_BT, value_BT, mask_BT, gamma, lam):
    """Equation 16 as a double sum, not as a recursion."""
    advantage_BT, return_BT = np.zeros(np.shape(mask_BT)), np.zeros(np.shape(mask_BT))
    for b, (reward_T, value_T, mask_T) in enumerate(rows(reward_BT, value_BT, mask_BT)):
        real = [t for t in range(len(mask_T)) if mask_T[t]]
        value = [value_T[t] for t in real] + [0.0]
        delta = [reward_T[t] + gamma * value[i + 1] - value[i] for i, t in enumerate(real)]
        for i, t in enumerate(real):
            advantage_BT[b, t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(real)))
            return_BT[b, t] = advantage_BT[b, t] + value[i]
    return advantage_BT, return_BT


def returns_to_go(reward_BT, mask_BT, gamma):
    out_BT = np.zeros(np.shape(mask_BT))
    for b, (reward_T, mask_T) in enumerate(rows(reward_BT, mask_BT)):
        real = [t for t in range(len(mask_T)) if mask_T[t]]
        for i, t in enumerate(real):
            out_BT[b, t] = sum(gamma ** (j - i) * reward_T[real[j]] for j in range(i, len(real)))
    return out_BT


def token_level_reward(score_B, kl_BT, mask_BT, kl_coef):
    out_BT = np.zeros(np.shape(mask_BT))
    for b, (score, kl_T, mask_T) in enumerate(rows(score_B, kl_BT, mask_BT)):
        real = [t for t in range(len(mask_T)) if mask_T[t]]
        for t in real:
            out_BT[b, t] = -kl_coef * kl_T[t]
        out_BT[b, real[-1]] += score
    return out_BT


def rloo_advantage(reward_BG):
    return np.array(
        [
            [r - np.mean([other for j, other in enumerate(group) if j != i]) for i, r in enumerate(group)]
            for group in reward_BG
        ]
    )


def grpo_advantage(reward_BG, scale=True):
    return np.array(
        [[(r - np.mean(group)) / (np.std(group) if scale else 1.0) for r in group] for group in reward_BG]
    )


def whiten(x_BT, mask_BT, shift_mean=True):
    x_BT, real_BT = np.asarray(x_BT, dtype=np.float64), np.asarray(mask_BT) != 0
    values = [float(x) for x in x_BT[real_BT]]
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    out_BT = np.zeros(x_BT.shape)
    for b, t in zip(*np.nonzero(real_BT), strict=True):
        out_BT[b, t] = (x_BT[b, t] - mean) / sd + (0 if shift_mean else mean)
    return out_BT


def masked_sum(x_BT, mask_BT):
    return np.array(
        [math.fsum(x for x, m in zip(x_T, mask_T, strict=True) if m) for x_T, mask_T in rows(x_BT, mask_BT)]
    )


def masked_mean(x_BT, mask_BT):
    return float(masked_sum(x_BT, mask_BT).sum() / np.count_nonzero(mask_BT))


def explained_variance(value_BT, return_BT, mask_BT):
    real_BT = np.asarray(mask_BT) != 0
    value, target = np.asarray(value_BT)[real_BT], np.asarray(return_BT)[real_BT]
    return float(1 - np.var(target - value) / np.var(target))


def clipped_policy_loss(logp_BT, old_logp_BT, advantage_BT, cliprange, dual_clip=None):
    out_BT = np.zeros(np.shape(logp_BT))
    for where in np.ndindex(*out_BT.shape):
        ratio = math.exp(np.asarray(logp_BT)[where] - np.asarray(old_logp_BT)[where])
        advantage = np.asarray(advantage_BT)[where]
        inside = min(max(ratio, 1 - cliprange), 1 + cliprange)
        gain = min(ratio * advantage, inside * advantage)
        if dual_clip is not None and advantage < 0:
            gain = max(gain, dual_clip * advantage)
        out_BT[where] = -gain
    return out_BT


def clipped_value_loss(value_BT, old_value_BT, return_BT, cliprange):
    out_BT = np.zeros(np.shape(value_BT))
    for where in np.ndindex(*out_BT.shape):
        value, old, target = (np.asarray(a)[where] for a in (value_BT, old_value_BT, return_BT))
        inside = min(max(value, old - cliprange), old + cliprange)
        out_BT[where] = 0.5 * max((value - target) ** 2, (inside - target) ** 2)
    return out_BT


# ---------------------------------------------------------------------------------------------------- KL


def kl_exact(logits_BTV, ref_logits_BTV):
    logits_BTV, ref_BTV = np.asarray(logits_BTV, float), np.asarray(ref_logits_BTV, float)
    out_BT = np.zeros(logits_BTV.shape[:-1])
    for where in np.ndindex(*out_BT.shape):
        logp_V = logits_BTV[where] - np.logaddexp.reduce(logits_BTV[where])
        ref_V = ref_BTV[where] - np.logaddexp.reduce(ref_BTV[where])
        out_BT[where] = sum(math.exp(p) * (p - q) for p, q in zip(logp_V, ref_V, strict=True) if p > -np.inf)
    return out_BT


def kl_estimate(logp, ref_logp, kind):
    ratio = np.exp(np.asarray(ref_logp, dtype=np.float64) - np.asarray(logp, dtype=np.float64))
    return {"k1": -np.log(ratio), "k2": np.log(ratio) ** 2 / 2, "k3": ratio - 1 - np.log(ratio)}[kind]


# ------------------------------------------------------------------------------------ finite differences


def central_difference(function, x, step=1e-5):
    """Gradient of a scalar function of an array."""
    x = np.asarray(x, dtype=np.float64)
    gradient = np.zeros(x.shape)
    for where in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[where] += step
        down[where] -= step
        gradient[where] = (function(up) - function(down)) / (2 * step)
    return gradient
