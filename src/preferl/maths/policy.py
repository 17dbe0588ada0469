"""Advantages and policy losses. ``_BT`` tensors are sequences by response tokens.

A mask is 1 on real tokens, EOS included, and real tokens stand at the start of a row; whatever masked cells
hold changes nothing. Losses are per token: the caller divides by a global count.
"""

import torch


def response_logprobs(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, temperature: float) -> torch.Tensor:
    """``logp_BT``: log softmax(logits / temperature) of each token.

    Column t of the logits is the distribution from which token t was drawn: the shift by one lies with
    whoever cuts the logits (``sampling.rollout.response_logits``).

    Raises:
        ValueError: shapes differ or the temperature is not above 0.
    """
    if logits_BTV.shape[:-1] != tokens_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit tokens {tuple(tokens_BT.shape)}")
    scaled_BTV = _at_temperature(logits_BTV, temperature)
    picked_BT = scaled_BTV.gather(-1, tokens_BT[..., None])[..., 0]
    return picked_BT - scaled_BTV.logsumexp(-1)


def entropy(logits_BTV: torch.Tensor, temperature: float) -> torch.Tensor:
    """``entropy_BT`` in nats of softmax(logits / temperature).

    Raises:
        ValueError: the temperature is not above 0.
    """
    logp_BTV = _at_temperature(logits_BTV, temperature).log_softmax(-1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1)


def masked_sum(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """``sum_B`` over the real tokens of each row."""
    _same_shape(x_BT, mask_BT)
    return x_BT.masked_fill(mask_BT == 0, 0.0).sum(-1)


def masked_mean(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over all real tokens, a scalar.

    Raises:
        ValueError: shapes differ or there is no real token.
    """
    count = mask_BT.sum()
    if count == 0:
        raise ValueError("the mask has no real token, so there is no mean")
    return masked_sum(x_BT, mask_BT).sum() / count


def whiten(x_BT: torch.Tensor, mask_BT: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Scales to population sd 1 over the mask, and to mean 0 unless ``shift_mean`` is off; 0 outside.

    Where all values are equal the sd is 0 and the deviations stay 0.
    """
    mean = masked_mean(x_BT, mask_BT)
    deviation_BT = (x_BT - mean).masked_fill(mask_BT == 0, 0.0)
    sd = masked_mean(deviation_BT**2, mask_BT).sqrt()
    scale = torch.where(sd > 1e-8 * (1 + mean.abs()), 1 / sd.clamp(min=1e-30), torch.zeros_like(sd))
    out_BT = deviation_BT * scale
    return out_BT if shift_mean else (out_BT + mean).masked_fill(mask_BT == 0, 0.0)


def token_level_reward(
    score_B: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """``reward_BT``: -kl_coef * kl on every real token, plus the score on the last (Ziegler et al. 2019).

    With kl = k1 = log pi - log pi_ref and detached rewards this is an unbiased gradient of
    E[score] - kl_coef * KL(pi || pi_ref).

    Raises:
        ValueError: shapes differ or a row has no real token to carry its score.
    """
    _same_shape(kl_BT, mask_BT)
    length_B = mask_BT.sum(-1)
    if bool((length_B == 0).any()):
        raise ValueError("a response has no token: its score has no place; every response needs one token")
    reward_BT = (-kl_coef * kl_BT).masked_fill(mask_BT == 0, 0.0)
    rows = torch.arange(len(score_B), device=score_B.device)
    reward_BT = reward_BT.clone()
    reward_BT[rows, length_B - 1] += score_B
    return reward_BT


def gae(
    reward_BT: torch.Tensor, value_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, and V = 0 after the last real
    token, whether it is EOS or the length limit.

    Returns:
        ``advantage_BT`` and ``return_BT`` = advantage + value, both 0 in masked cells.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(reward_BT, value_BT, mask_BT)
    reward_BT = reward_BT.masked_fill(mask_BT == 0, 0.0)
    value_BT = value_BT.masked_fill(mask_BT == 0, 0.0)
    advantage_BT = torch.zeros_like(value_BT)
    carry_B = next_value_B = torch.zeros_like(value_BT[:, 0])
    for t in reversed(range(value_BT.shape[1])):
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        carry_B = delta_B + gamma * lam * carry_B
        advantage_BT[:, t] = carry_B
        next_value_B = value_BT[:, t]
    return advantage_BT, advantage_BT + value_BT


def returns_to_go(reward_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """``return_BT``: sum_l gamma^l r_{t+l}; 0 in masked cells."""
    return gae(reward_BT, torch.zeros_like(reward_BT), mask_BT, gamma, 1.0)[0]


def rloo_advantage(reward_BG: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean of the *other* samples of the group (Ahmadian et al. 2024, eq. 9).

    Raises:
        ValueError: groups of one sample, which have no others.
    """
    G = reward_BG.shape[-1]
    if G < 2:
        raise ValueError(f"groups have {G} sample; leaving one out needs at least 2")
    return (reward_BG - reward_BG.mean(-1, keepdim=True)) * (G / (G - 1))


def grpo_advantage(reward_BG: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """Reward minus the group's mean, divided by its population sd (Shao et al. 2024, section 4.1.2).

    ``scale=False`` leaves the division out, which makes the objective unbiased (Liu et al. 2025). Groups
    whose rewards are all equal get 0.
    """
    centred_BG = reward_BG - reward_BG.mean(-1, keepdim=True)
    if not scale:
        return centred_BG
    sd_B1 = centred_BG.pow(2).mean(-1, keepdim=True).sqrt()
    # Rounding leaves a tiny sd where the rewards are equal.
    equal_B1 = reward_BG.amax(-1, keepdim=True) == reward_BG.amin(-1, keepdim=True)
    return torch.where(equal_B1, torch.zeros_like(centred_BG), centred_BG / sd_B1.clamp(min=1e-30))


def clipped_policy_loss(
    logp_BT: torch.Tensor, old_logp_BT: torch.Tensor, advantage_BT: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """``loss_BT`` = -min(ratio * A, clip(ratio, 1 - e, 1 + e) * A) (Schulman et al. 2017, eq. 7).

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(logp_BT, old_logp_BT, advantage_BT)
    ratio_BT = (logp_BT - old_logp_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    return -torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)


def clipped_value_loss(
    value_BT: torch.Tensor, old_value_BT: torch.Tensor, return_BT: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """``loss_BT`` = 1/2 max((v - R)^2, (clip(v, old - e, old + e) - R)^2), as in Ziegler et al.'s code.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(value_BT, old_value_BT, return_BT)
    clipped_BT = torch.minimum(torch.maximum(value_BT, old_value_BT - cliprange), old_value_BT + cliprange)
    return 0.5 * torch.maximum((value_BT - return_BT) ** 2, (clipped_BT - return_BT) ** 2)


def explained_variance(
    value_BT: torch.Tensor, return_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """1 - Var(return - value) / Var(return) over the real tokens; 0 where returns do not vary."""
    _same_shape(value_BT, return_BT, mask_BT)

    def variance(x_BT: torch.Tensor) -> torch.Tensor:
        return masked_mean((x_BT - masked_mean(x_BT, mask_BT)) ** 2, mask_BT)

    total = variance(return_BT)
    return torch.where(total > 0, 1 - variance(return_BT - value_BT) / total.clamp(min=1e-30), total)


def _at_temperature(logits_BTV: torch.Tensor, temperature: float) -> torch.Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return logits_BTV / temperature


def _same_shape(*tensors: torch.Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(f"shapes differ: {', '.join(map(str, sorted(shapes)))}; they must be equal")
