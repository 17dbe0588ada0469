"""Advantages, token rewards and policy losses. B sequences, T response tokens, G samples of one group.

A mask is 1 on real tokens, EOS included, and 0 elsewhere; whatever masked cells hold changes nothing. Losses
are per token: the caller masks them and divides by a global count of tokens.
"""

import torch

from preferl.maths.checks import require_same_shape


def response_logprobs(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, temperature: float) -> torch.Tensor:
    """``logp_BT``: log softmax(logits / temperature) of each token, in nats.

    Column t of the logits is the distribution from which token t was drawn: the shift by one lies with
    whoever cuts the logits (``sampling.logprobs.distributions``).

    Raises:
        ValueError: shapes do not fit, a tensor is empty, or the temperature is not above 0.
    """
    if logits_BTV.shape[:-1] != tokens_BT.shape or logits_BTV.numel() == 0:
        raise ValueError(
            f"logits_BTV {tuple(logits_BTV.shape)} do not fit tokens_BT {tuple(tokens_BT.shape)}: "
            f"there must be one distribution for each token, and at least one token"
        )
    scaled_BTV = _at_temperature(logits_BTV, temperature)
    picked_BT = scaled_BTV.gather(-1, tokens_BT[..., None])[..., 0]
    return picked_BT - scaled_BTV.logsumexp(-1)


def entropy(logits_BTV: torch.Tensor, temperature: float) -> torch.Tensor:
    """``entropy_BT`` = -sum p log p of softmax(logits / temperature), in nats; impossible tokens add 0.

    Raises:
        ValueError: the tensor is empty or the temperature is not above 0.
    """
    require_same_shape(logits_BTV=logits_BTV)
    logp_BTV = _at_temperature(logits_BTV, temperature).log_softmax(-1)
    # -inf would turn 0 * log 0 into NaN, in the value and in the gradient.
    return -(logp_BTV.exp() * logp_BTV.clamp(min=torch.finfo(logp_BTV.dtype).min)).sum(-1)


def masked_sum(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """``sum_B`` over the real tokens of each row.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    require_same_shape(x_BT=x_BT, mask_BT=mask_BT)
    return x_BT.masked_fill(mask_BT == 0, 0.0).sum(-1)


def masked_mean(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over all real tokens, a scalar.

    Raises:
        ValueError: shapes differ or there is no real token.
    """
    total_B = masked_sum(x_BT, mask_BT)
    count = (mask_BT != 0).sum()
    if count == 0:
        raise ValueError("the mask has no real token, so there is no mean")
    return total_B.sum() / count


def whiten(x_BT: torch.Tensor, mask_BT: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """(x - mean) / sd over the real tokens, population sd; 0 in masked cells.

    With ``shift_mean=False`` the mean is added back, so deviations change and the mean does not. Where all
    values are equal their deviations stay 0.

    Raises:
        ValueError: shapes differ or there is no real token.
    """
    mean = masked_mean(x_BT, mask_BT)
    deviation_BT = (x_BT - mean).masked_fill(mask_BT == 0, 0.0)
    variance = masked_mean(deviation_BT**2, mask_BT)
    scaled_BT = _divide_by_sd(deviation_BT, variance, mean)
    return scaled_BT if shift_mean else (scaled_BT + mean).masked_fill(mask_BT == 0, 0.0)


def token_level_reward(
    score_B: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """``reward_BT``: -kl_coef * kl on every real token, plus the score on the last (Ziegler et al. 2019).

    With kl = k1 = log pi - log pi_ref, detached, the policy gradient of these rewards is that of
    E[score] - kl_coef * KL(pi || pi_ref), without bias.

    Raises:
        ValueError: shapes do not fit, a tensor is empty, or a row has no real token to carry its score.
    """
    require_same_shape(kl_BT=kl_BT, mask_BT=mask_BT)
    if score_B.shape != kl_BT.shape[:1]:
        raise ValueError(
            f"score_B {tuple(score_B.shape)} does not fit kl_BT {tuple(kl_BT.shape)}: one per row"
        )
    real_BT = mask_BT != 0
    if not bool(real_BT.any(-1).all()):
        row = int((~real_BT.any(-1)).nonzero()[0])
        raise ValueError(
            f"response {row} has no real token, so its score has no place; it needs at least one"
        )
    position_T = torch.arange(mask_BT.shape[-1], device=mask_BT.device)
    last_B1 = (position_T * real_BT).amax(-1, keepdim=True)
    reward_BT = (-kl_coef * kl_BT).masked_fill(~real_BT, 0.0)
    return torch.where(position_T == last_B1, reward_BT + score_B[:, None], reward_BT)


def gae(
    reward_BT: torch.Tensor, value_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t, where t counts real
    tokens and V = 0 after the last of them, whether it is EOS or the length limit.

    Returns:
        ``advantage_BT`` and ``return_BT`` = advantage + value, both 0 in masked cells.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``gamma`` or ``lam`` is not in [0, 1].
    """
    require_same_shape(reward_BT=reward_BT, value_BT=value_BT, mask_BT=mask_BT)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma is {gamma} and lam is {lam}; both must lie in [0, 1]")
    real_BT = mask_BT != 0
    advantage_BT = torch.zeros_like(value_BT)
    # From the end to the start. After the last real token nothing is expected any more: value and advantage
    # are 0 there, and a masked cell hands on unchanged what stands after it.
    next_advantage_B = next_value_B = torch.zeros_like(value_BT[:, 0])
    for t in reversed(range(value_BT.shape[1])):
        real_B, value_B = real_BT[:, t], value_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_B
        next_advantage_B = torch.where(real_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)
        next_value_B = torch.where(real_B, value_B, next_value_B)
        advantage_BT[:, t] = next_advantage_B
    advantage_BT = advantage_BT.masked_fill(~real_BT, 0.0)
    return advantage_BT, (advantage_BT + value_BT).masked_fill(~real_BT, 0.0)


def returns_to_go(reward_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """``return_BT``: sum_l gamma^l r_{t+l} over real tokens; 0 in masked cells.

    It is what ``gae`` gives without a critic and with lambda = 1.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``gamma`` is not in [0, 1].
    """
    return gae(reward_BT, torch.zeros_like(reward_BT), mask_BT, gamma, 1.0)[0]


def rloo_advantage(reward_BG: torch.Tensor) -> torch.Tensor:
    """``advantage_BG``: reward minus the mean of the *other* samples of the group, RLOO (Kool et al. 2019;
    Ahmadian et al. 2024).

    Raises:
        ValueError: the tensor is empty or groups have one sample.
    """
    _require_groups(reward_BG)
    G = reward_BG.shape[-1]
    return (reward_BG - reward_BG.mean(-1, keepdim=True)) * (G / (G - 1))


def grpo_advantage(reward_BG: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """``advantage_BG``: reward minus the group's mean, divided by its population sd (Shao et al. 2024,
    section 4.1.2); 0 where all rewards of a group are equal.

    ``scale=False`` leaves the division out, because it changes the objective (Liu et al. 2025, "Dr. GRPO").

    Raises:
        ValueError: the tensor is empty or groups have one sample.
    """
    _require_groups(reward_BG)
    mean_B1 = reward_BG.mean(-1, keepdim=True)
    centred_BG = reward_BG - mean_B1
    if not scale:
        return centred_BG
    return _divide_by_sd(centred_BG, centred_BG.pow(2).mean(-1, keepdim=True), mean_B1)


def clipped_policy_loss(
    logp_BT: torch.Tensor,
    old_logp_BT: torch.Tensor,
    advantage_BT: torch.Tensor,
    cliprange: float,
    dual_clip: float | None = None,
) -> torch.Tensor:
    """``loss_BT`` = -min(ratio * A, clip(ratio, 1 - e, 1 + e) * A) (Schulman et al. 2017, eq. 7).

    Where A < 0 that grows without bound in the ratio; ``dual_clip`` c > 1 bounds it by -c * A (Ye et al.
    2020, eq. 5). Whole responses are a column of their own: ``_B1`` tensors of summed log-probabilities.

    Raises:
        ValueError: shapes differ, a tensor is empty, ``cliprange`` is not above 0 or ``dual_clip`` not
            above 1.
    """
    require_same_shape(logp_BT=logp_BT, old_logp_BT=old_logp_BT, advantage_BT=advantage_BT)
    _require_cliprange(cliprange)
    ratio_BT = (logp_BT - old_logp_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    gain_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if dual_clip is not None:
        if not dual_clip > 1:
            raise ValueError(
                f"dual_clip is {dual_clip} and must be above 1, the ratio of an unchanged policy"
            )
        floor_BT = torch.maximum(gain_BT, dual_clip * advantage_BT)
        gain_BT = torch.where(advantage_BT < 0, floor_BT, gain_BT)
    return -gain_BT


def clipped_value_loss(
    value_BT: torch.Tensor, old_value_BT: torch.Tensor, return_BT: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """``loss_BT`` = 1/2 max((v - R)^2, (clip(v, old - e, old + e) - R)^2), as in Ziegler et al.'s code.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``cliprange`` is not above 0.
    """
    require_same_shape(value_BT=value_BT, old_value_BT=old_value_BT, return_BT=return_BT)
    _require_cliprange(cliprange)
    clipped_BT = torch.minimum(torch.maximum(value_BT, old_value_BT - cliprange), old_value_BT + cliprange)
    return 0.5 * torch.maximum((value_BT - return_BT) ** 2, (clipped_BT - return_BT) ** 2)


def explained_variance(
    value_BT: torch.Tensor, return_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """1 - Var(return - value) / Var(return) over the real tokens, a scalar; 0 where returns do not vary.

    1 is a perfect critic, 0 one that is no better than a constant; worse ones are negative.

    Raises:
        ValueError: shapes differ or there is no real token.
    """
    require_same_shape(value_BT=value_BT, return_BT=return_BT, mask_BT=mask_BT)
    mean = masked_mean(return_BT, mask_BT)
    total = masked_mean((return_BT - mean) ** 2, mask_BT)
    error_BT = return_BT - value_BT
    unexplained = masked_mean((error_BT - masked_mean(error_BT, mask_BT)) ** 2, mask_BT)
    constant = _is_rounding(total, mean)
    return torch.where(constant, torch.zeros_like(total), 1 - unexplained / total.masked_fill(constant, 1.0))


def _divide_by_sd(deviation: torch.Tensor, variance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    constant = _is_rounding(variance, mean)
    return (deviation / variance.masked_fill(constant, 1.0).sqrt()).masked_fill(constant, 0.0)


def _is_rounding(variance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Whether the sd is 0 up to rounding: subtracting a mean leaves a few units in its last place."""
    return variance <= (4 * torch.finfo(variance.dtype).eps * mean) ** 2


def _at_temperature(logits_BTV: torch.Tensor, temperature: float) -> torch.Tensor:
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature} and must be above 0; greedy decoding has no log-probs"
        )
    return logits_BTV / temperature


def _require_groups(reward_BG: torch.Tensor) -> None:
    require_same_shape(reward_BG=reward_BG)
    if reward_BG.shape[-1] < 2:
        raise ValueError(
            f"reward_BG {tuple(reward_BG.shape)}: a baseline needs at least 2 samples in a group"
        )


def _require_cliprange(cliprange: float) -> None:
    if not cliprange > 0:
        raise ValueError(f"cliprange is {cliprange} and must be above 0, else nothing is learned")
