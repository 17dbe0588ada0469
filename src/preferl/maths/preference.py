"""Losses on preferences. All take scores or summed log-probabilities and return one loss per row.

sigma is the logistic function; log sigma is computed as ``logsigmoid``, so no difference of scores overflows.
"""

import torch
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    margin_B: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigma(chosen - rejected - margin) (Bradley & Terry 1952; Stiennon et al. 2020, eq. 1).

    Args:
        chosen_B: scores of the preferred responses.
        rejected_B: scores of the others.
        margin_B: subtracted inside sigma (Touvron et al. 2023, eq. 2).
        label_smoothing: probability e that a label is wrong: (1 - e) * loss + e * loss of the swapped pair.

    Returns:
        ``loss_B`` in nats.

    Raises:
        ValueError: shapes differ, or ``label_smoothing`` is not in [0, 0.5].
    """
    _same_shape(chosen_B, rejected_B, *([] if margin_B is None else [margin_B]))
    gap_B = chosen_B - rejected_B
    if margin_B is not None:
        gap_B = gap_B - margin_B
    return _smoothed(gap_B, label_smoothing)


def plackett_luce_loss(score_BK: torch.Tensor, mask_BK: torch.Tensor | None = None) -> torch.Tensor:
    """-log P(ranking) under Plackett-Luce: each place is a softmax over what is left (Plackett 1975).

    Args:
        score_BK: scores, columns best first.
        mask_BK: 1 where there is a candidate; rankings of different lengths are padded at the end.

    Returns:
        ``loss_B`` in nats; for K = 2 it is the Bradley-Terry loss.

    Raises:
        ValueError: shapes differ.
    """
    if mask_BK is None:
        mask_BK = torch.ones_like(score_BK)
    _same_shape(score_BK, mask_BK)
    real_BK = mask_BK.bool()
    # A large negative number and not -inf: the cumulative logsumexp of a padded tail keeps a gradient of 0.
    masked_BK = score_BK.masked_fill(~real_BK, torch.finfo(score_BK.dtype).min / 4)
    rest_BK = masked_BK.flip(-1).logcumsumexp(-1).flip(-1)
    return ((rest_BK - masked_BK) * real_BK).sum(-1)


def balanced_pairwise_loss(
    score_BK: torch.Tensor,
    mask_BK: torch.Tensor | None = None,
    rank_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean Bradley-Terry loss over the pairs of a ranking (Ouyang et al. 2022, eq. 1: weight 1 / C(K, 2)).

    Args:
        score_BK: scores, columns best first.
        mask_BK: 1 where there is a candidate.
        rank_BK: ranks, smaller is better; pairs of equal rank are left out. Default: the column's number.

    Returns:
        ``loss_B`` in nats; 0 where no pair is ordered.

    Raises:
        ValueError: shapes differ.
    """
    K = score_BK.shape[-1]
    if mask_BK is None:
        mask_BK = torch.ones_like(score_BK)
    if rank_BK is None:
        rank_BK = torch.arange(K, device=score_BK.device).expand_as(score_BK)
    _same_shape(score_BK, mask_BK, rank_BK)
    real_BK = mask_BK.bool()
    better_BKK = rank_BK[:, :, None] < rank_BK[:, None, :]
    better_BKK = better_BKK & real_BK[:, :, None] & real_BK[:, None, :]
    clean_BK = score_BK.masked_fill(~real_BK, 0.0)
    loss_BKK = -logsigmoid(clean_BK[:, :, None] - clean_BK[:, None, :]) * better_BKK
    return loss_BKK.sum((-2, -1)) / better_BKK.sum((-2, -1)).clamp(min=1)


def rao_kupper_loss(
    score_a_B: torch.Tensor, score_b_B: torch.Tensor, outcome_B: torch.Tensor, tie_margin: float
) -> torch.Tensor:
    """-log P(outcome) with ties (Rao & Kupper 1967), theta = exp(tie_margin).

    P(a wins) = sigma(a - b - m), P(b wins) = sigma(b - a - m), and a tie takes the rest,
    P(tie) = (e^2m - 1) sigma(a - b - m) sigma(b - a - m).

    Args:
        score_a_B: scores of the first responses.
        score_b_B: scores of the second responses.
        outcome_B: 1 where the first won, -1 where the second did, 0 for a tie.
        tie_margin: m > 0.

    Raises:
        ValueError: shapes differ, or ``tie_margin`` is not above 0 (a tie would be impossible).
    """
    _same_shape(score_a_B, score_b_B, outcome_B)
    if not tie_margin > 0:
        raise ValueError(f"tie_margin is {tie_margin}; it must be above 0, or ties have probability 0")
    gap_B = score_a_B - score_b_B
    win_B, lose_B = logsigmoid(gap_B - tie_margin), logsigmoid(-gap_B - tie_margin)
    scale = torch.as_tensor(2 * tie_margin, dtype=gap_B.dtype, device=gap_B.device).expm1().log()
    tie_B = scale + win_B + lose_B
    return -torch.where(outcome_B > 0, win_B, torch.where(outcome_B < 0, lose_B, tie_B))


def dpo_loss(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigma(beta * (log-ratio chosen - log-ratio rejected)) (Rafailov et al. 2023, eq. 7).

    Log-probabilities are sums over the response. ``label_smoothing`` is cDPO's (Mitchell 2023).

    Raises:
        ValueError: shapes differ, ``beta`` is not above 0 or ``label_smoothing`` not in [0, 0.5].
    """
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return _smoothed(beta * gap_B, label_smoothing)


def ipo_loss(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """(log-ratio gap - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17); log-probabilities are sums.

    Raises:
        ValueError: shapes differ or ``beta`` is not above 0.
    """
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return (gap_B - 1 / (2 * beta)) ** 2


def rebel_loss(
    logp_a_B: torch.Tensor,
    logp_b_B: torch.Tensor,
    old_logp_a_B: torch.Tensor,
    old_logp_b_B: torch.Tensor,
    reward_a_B: torch.Tensor,
    reward_b_B: torch.Tensor,
    eta: float,
) -> torch.Tensor:
    """((log-ratio a - log-ratio b) / eta - (reward a - reward b))^2 (Gao et al. 2024, eq. 2).

    Raises:
        ValueError: shapes differ or ``eta`` is not above 0.
    """
    _same_shape(logp_a_B, logp_b_B, old_logp_a_B, old_logp_b_B, reward_a_B, reward_b_B)
    if not eta > 0:
        raise ValueError(f"eta is {eta}; it must be above 0")
    gap_B = (logp_a_B - old_logp_a_B) - (logp_b_B - old_logp_b_B)
    return (gap_B / eta - (reward_a_B - reward_b_B)) ** 2


def _smoothed(gap_B: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 0.5]")
    if label_smoothing == 0:
        return -logsigmoid(gap_B)
    return -(1 - label_smoothing) * logsigmoid(gap_B) - label_smoothing * logsigmoid(-gap_B)


def _log_ratio_gap(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    _same_shape(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B)
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    return (policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B)


def _same_shape(*tensors: torch.Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(f"shapes differ: {', '.join(map(str, sorted(shapes)))}; they must be equal")
