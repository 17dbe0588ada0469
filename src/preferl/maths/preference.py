"""Losses on preferences, one per row, in nats unless said otherwise.

B rows, K candidates of one prompt. Arguments are scores, or log-probabilities summed over the response.
sigma is the logistic function; log sigma is computed as ``logsigmoid``, so no difference of scores overflows.
"""

import math

import torch
from torch.nn.functional import logsigmoid

from preferl.maths.checks import require_same_shape


def bradley_terry_loss(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    margin_B: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigma(chosen - rejected - margin) (Bradley & Terry 1952; Stiennon et al. 2020, section 3.4).

    Args:
        chosen_B: scores of the preferred responses.
        rejected_B: scores of the others.
        margin_B: subtracted inside sigma (Touvron et al. 2023, eq. 2).
        label_smoothing: probability e that a label is wrong. With x = chosen - rejected - margin the loss is
            -(1 - e) log sigma(x) - e log sigma(-x).

    Returns:
        ``loss_B``.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``label_smoothing`` is not in [0, 0.5].
    """
    if margin_B is None:
        margin_B = torch.zeros_like(chosen_B)
    require_same_shape(chosen_B=chosen_B, rejected_B=rejected_B, margin_B=margin_B)
    _require_smoothing(label_smoothing)
    return _smoothed_logistic(chosen_B - rejected_B - margin_B, label_smoothing)


def plackett_luce_loss(score_BK: torch.Tensor, mask_BK: torch.Tensor | None = None) -> torch.Tensor:
    """-log P(ranking) = sum_k logsumexp(s_k ... s_K) - s_k (Plackett 1975; Xia et al. 2008, ListMLE).

    Each place is a softmax over the candidates that are left.

    Args:
        score_BK: scores, columns best first.
        mask_BK: 1 where there is a candidate; what the other cells hold changes nothing.

    Returns:
        ``loss_B``; the Bradley-Terry loss for two candidates, 0 for fewer.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    if mask_BK is None:
        mask_BK = torch.ones_like(score_BK)
    require_same_shape(score_BK=score_BK, mask_BK=mask_BK)
    absent_BK = mask_BK == 0
    # A large negative number and not -inf: the gradient through a tail of -inf would be NaN.
    masked_BK = score_BK.masked_fill(absent_BK, torch.finfo(score_BK.dtype).min / 4)
    # Cumulated from the last place to the first: column k is over the candidates k ... K that are left.
    left_BK = masked_BK.flip(-1).logcumsumexp(-1).flip(-1)
    return (left_BK - masked_BK).masked_fill(absent_BK, 0.0).sum(-1)


def balanced_pairwise_loss(
    score_BK: torch.Tensor,
    mask_BK: torch.Tensor | None = None,
    rank_BK: torch.Tensor | None = None,
    margin_BKK: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean Bradley-Terry loss over the ordered pairs of a ranking (Ouyang et al. 2022, eq. 1).

    Args:
        score_BK: scores, columns best first.
        mask_BK: 1 where there is a candidate; what the other cells hold changes nothing.
        rank_BK: ranks, smaller is better; pairs of equal rank are left out. Default: the column's number.
        margin_BKK: subtracted inside sigma; row i, column j for i preferred to j.
        label_smoothing: probability that the order of a pair is wrong; as in ``bradley_terry_loss``.

    Returns:
        ``loss_B``; 0 where no pair is ordered.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``label_smoothing`` is not in [0, 0.5].
    """
    score_BK, ordered_BKK = _ordered(score_BK, mask_BK, rank_BK)
    _require_smoothing(label_smoothing)
    gap_BKK = score_BK[..., :, None] - score_BK[..., None, :]
    if margin_BKK is not None:
        require_same_shape(gap_BKK=gap_BKK, margin_BKK=margin_BKK)
        gap_BKK = gap_BKK - margin_BKK
    loss_BKK = _smoothed_logistic(gap_BKK, label_smoothing) * ordered_BKK
    return loss_BKK.sum((-2, -1)) / ordered_BKK.sum((-2, -1)).clamp(min=1)


def ordered_pairs(
    score_BK: torch.Tensor, mask_BK: torch.Tensor | None = None, rank_BK: torch.Tensor | None = None
) -> torch.Tensor:
    """``ordered_BKK``: whether candidate i (row) is ranked before candidate j (column).

    Arguments and errors as in ``balanced_pairwise_loss``.
    """
    return _ordered(score_BK, mask_BK, rank_BK)[1]


def rao_kupper_ranking_loss(
    score_BK: torch.Tensor, mask_BK: torch.Tensor, rank_BK: torch.Tensor, tie_margin: float
) -> torch.Tensor:
    """Mean ``rao_kupper_loss`` over all pairs of a ranking, tied ones too.

    Returns:
        ``loss_B``; 0 where there are fewer than two candidates.

    Raises:
        ValueError: as in ``rao_kupper_loss``.
    """
    require_same_shape(score_BK=score_BK, mask_BK=mask_BK, rank_BK=rank_BK)
    score_BK, both_BKK = _unordered(score_BK, mask_BK)
    outcome_BKK = (rank_BK[..., None, :] - rank_BK[..., :, None]).sign()
    first_BKK = score_BK[..., :, None].expand_as(outcome_BKK)
    loss_BKK = rao_kupper_loss(first_BKK, first_BKK.transpose(-2, -1), outcome_BKK, tie_margin) * both_BKK
    return loss_BKK.sum((-2, -1)) / both_BKK.sum((-2, -1)).clamp(min=1)


def centre_penalty(score_BK: torch.Tensor, mask_BK: torch.Tensor) -> torch.Tensor:
    """Mean squared sum of two scores over the pairs of a ranking: holds scores near 0, which Bradley-Terry
    leaves free (Eisenstein et al. 2023, eq. 2).

    Returns:
        ``penalty_B``; 0 where there are fewer than two candidates.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    require_same_shape(score_BK=score_BK, mask_BK=mask_BK)
    score_BK, both_BKK = _unordered(score_BK, mask_BK)
    sum_BKK = score_BK[..., :, None] + score_BK[..., None, :]
    return (sum_BKK**2 * both_BKK).sum((-2, -1)) / both_BKK.sum((-2, -1)).clamp(min=1)


def rao_kupper_loss(
    score_a_B: torch.Tensor, score_b_B: torch.Tensor, outcome_B: torch.Tensor, tie_margin: float
) -> torch.Tensor:
    """-log P(outcome) with ties (Rao & Kupper 1967), their theta = exp(m), m the tie margin.

    P(a wins) = sigma(a - b - m), P(b wins) = sigma(b - a - m), and a tie takes the rest:
    P(tie) = (exp(2m) - 1) sigma(a - b - m) sigma(b - a - m).

    Args:
        score_a_B: scores of the first responses.
        score_b_B: scores of the second responses.
        outcome_B: 1 where the first won, -1 where the second did, 0 for a tie.
        tie_margin: m > 0.

    Returns:
        ``loss_B``.

    Raises:
        ValueError: shapes differ, a tensor is empty, an outcome is not 1, 0 or -1, or ``tie_margin`` is not
            above 0.
    """
    require_same_shape(score_a_B=score_a_B, score_b_B=score_b_B, outcome_B=outcome_B)
    _require_positive("tie_margin", tie_margin, "else a tie has probability 0")
    if not bool(((outcome_B == 1) | (outcome_B == 0) | (outcome_B == -1)).all()):
        raise ValueError("outcome_B holds a value other than 1 (first won), 0 (tie) and -1 (second won)")
    gap_B = score_a_B - score_b_B
    win_B, lose_B = logsigmoid(gap_B - tie_margin), logsigmoid(-gap_B - tie_margin)
    # log(exp(2m) - 1) without overflow.
    log_factor = 2 * tie_margin + math.log(-math.expm1(-2 * tie_margin))
    tie_B = log_factor + win_B + lose_B
    return -torch.where(outcome_B == 1, win_B, torch.where(outcome_B == -1, lose_B, tie_B))


def dpo_loss(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigma(beta * (log-ratio chosen - log-ratio rejected)) (Rafailov et al. 2023, eq. 7).

    Arguments are log-probabilities summed over the response. ``label_smoothing`` e is cDPO's (Mitchell 2023):
    -(1 - e) log sigma(x) - e log sigma(-x).

    Returns:
        ``loss_B``.

    Raises:
        ValueError: shapes differ, a tensor is empty, ``beta`` is not above 0, or ``label_smoothing`` is not
            in [0, 0.5].
    """
    _require_positive("beta", beta, "else the loss says nothing about the pair")
    _require_smoothing(label_smoothing)
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B)
    return _smoothed_logistic(beta * gap_B, label_smoothing)


def ipo_loss(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """(log-ratio chosen - log-ratio rejected - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17), in nats squared.

    Arguments are log-probabilities summed over the response, as the paper has them, not means.
    ``label_smoothing`` e weighs the loss of the swapped pair, (gap + 1 / (2 beta))^2, by e and this by 1 - e.

    Returns:
        ``loss_B``.

    Raises:
        ValueError: shapes differ, a tensor is empty, ``beta`` is not above 0, or ``label_smoothing`` is not
            in [0, 0.5].
    """
    _require_positive("beta", beta, "the target of the gap is 1 / (2 beta)")
    _require_smoothing(label_smoothing)
    gap_B = _log_ratio_gap(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B)
    target = 1 / (2 * beta)
    return (1 - label_smoothing) * (gap_B - target) ** 2 + label_smoothing * (gap_B + target) ** 2


def kto_loss(
    policy_B: torch.Tensor,
    ref_B: torch.Tensor,
    good_B: torch.Tensor,
    reference_point: torch.Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """lambda_y - v(x, y) (KTO; Ethayarajh et al. 2024, section 4.1).

    With r the log-ratio of the response and z0 the reference point that is
    lambda_D (1 - sigma(beta (r - z0))) for a good response, lambda_U (1 - sigma(beta (z0 - r))) for a bad
    one.

    Args:
        policy_B: log-probabilities summed over the response.
        ref_B: those of the reference.
        good_B: 1 where the response is called good, 0 where bad.
        reference_point: z0, in nats (``kto_reference_point``); no gradient flows into it.
        beta: steepness around z0.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        ``loss_B``, from 0 to the response's weight.

    Raises:
        ValueError: shapes differ, a tensor is empty, ``beta`` is not above 0, or a label is not 0 or 1.
    """
    _require_positive("beta", beta, "else the loss says nothing about the response")
    require_same_shape(policy_B=policy_B, ref_B=ref_B, good_B=good_B)
    if not bool(((good_B == 1) | (good_B == 0)).all()):
        raise ValueError("good_B holds a value other than 1 (good) and 0 (bad)")
    if isinstance(reference_point, torch.Tensor):
        reference_point = reference_point.detach()
    above_B = beta * (policy_B - ref_B - reference_point)
    # 1 - sigma(x) is sigma(-x), which loses no digits where sigma(x) is near 1.
    good_loss_B = desirable_weight * torch.sigmoid(-above_B)
    bad_loss_B = undesirable_weight * torch.sigmoid(above_B)
    return torch.where(good_B == 1, good_loss_B, bad_loss_B)


def kto_reference_point(policy_B: torch.Tensor, ref_B: torch.Tensor) -> torch.Tensor:
    """z0 = max(0, mean of log-ratios) over prompts with responses to other prompts: an estimate of
    KL(pi || pi_ref) that is biased but never negative (Ethayarajh et al. 2024, section 4.1).

    Args:
        policy_B: log-probabilities of responses to other prompts than theirs, summed over the response.
        ref_B: those of the reference.

    Returns:
        A number in nats, without a gradient.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    require_same_shape(policy_B=policy_B, ref_B=ref_B)
    return (policy_B - ref_B).detach().mean().clamp(min=0)


def kto_weights(
    good: int, bad: int, desirable_weight: float | None = None, undesirable_weight: float | None = None
) -> tuple[float, float]:
    """lambda_D and lambda_U so that lambda_D n_D / (lambda_U n_U) lies in [1, 4/3] (Ethayarajh et al. 2024,
    section 4.2): what is not given is 1, and the rarer label's is raised as far as that needs.

    Example: with 100 good and 400 bad responses (4.0, 1.0), with 400 and 100 (1.0, 3.0).

    Args:
        good: n_D, how many responses are called good.
        bad: n_U.
        desirable_weight: lambda_D where a person gives it; what is given stays.
        undesirable_weight: lambda_U likewise.

    Raises:
        ValueError: a count is negative.
    """
    if good < 0 or bad < 0:
        raise ValueError(f"{good} good and {bad} bad responses: a count is negative")
    balanced = desirable_weight is not None and undesirable_weight is not None
    if balanced or not good or not bad:  # of one label there is nothing to weigh against
        return _one_if_none(desirable_weight), _one_if_none(undesirable_weight)
    ratio = _one_if_none(desirable_weight) * good / (_one_if_none(undesirable_weight) * bad)
    wanted = min(max(ratio, 1.0), 4 / 3)
    # Where both are free the rarer label's weight is raised: lowering the other would only slow learning.
    raise_desirable = undesirable_weight is not None or (desirable_weight is None and ratio < wanted)
    if raise_desirable:
        undesirable = _one_if_none(undesirable_weight)
        return wanted * undesirable * bad / good, undesirable
    desirable = _one_if_none(desirable_weight)
    return desirable, desirable * good / (wanted * bad)


def rating_loss(predicted_BK: torch.Tensor, rating_BK: torch.Tensor, mask_BK: torch.Tensor) -> torch.Tensor:
    """Squared errors of the ratings that a response has, summed over its attributes (Wang et al. 2024,
    section 4).

    Args:
        predicted_BK: of K attributes.
        rating_BK: what they are rated; what masked cells hold, NaN too, changes nothing.
        mask_BK: 1 where there is a rating.

    Returns:
        ``loss_B``, in ratings squared; 0 where there is none. The caller divides by the number of ratings.

    Raises:
        ValueError: shapes differ or a tensor is empty.
    """
    require_same_shape(predicted_BK=predicted_BK, rating_BK=rating_BK, mask_BK=mask_BK)
    # The masked cells are filled before the square: a NaN times 0 would still be NaN, in the gradient too.
    error_BK = predicted_BK - torch.where(mask_BK != 0, rating_BK, predicted_BK.detach())
    return error_BK.masked_fill(mask_BK == 0, 0.0).square().sum(-1)


def rebel_loss(
    logp_a_B: torch.Tensor,
    logp_b_B: torch.Tensor,
    old_logp_a_B: torch.Tensor,
    old_logp_b_B: torch.Tensor,
    reward_a_B: torch.Tensor,
    reward_b_B: torch.Tensor,
    eta: float,
) -> torch.Tensor:
    """((log-ratio a - log-ratio b) / eta - (reward a - reward b))^2 (Gao et al. 2024, algorithm 1).

    Log-probabilities are sums over the response; "old" ones are those of the policy that sampled a and b.

    Returns:
        ``loss_B``, in reward squared.

    Raises:
        ValueError: shapes differ, a tensor is empty, or ``eta`` is not above 0.
    """
    _require_positive("eta", eta, "the log-ratio is divided by it")
    require_same_shape(
        logp_a_B=logp_a_B,
        logp_b_B=logp_b_B,
        old_logp_a_B=old_logp_a_B,
        old_logp_b_B=old_logp_b_B,
        reward_a_B=reward_a_B,
        reward_b_B=reward_b_B,
    )
    gap_B = (logp_a_B - old_logp_a_B) - (logp_b_B - old_logp_b_B)
    return (gap_B / eta - (reward_a_B - reward_b_B)) ** 2


def _ordered(
    score_BK: torch.Tensor, mask_BK: torch.Tensor | None, rank_BK: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, 0 where there is no candidate, and which candidate is ranked before which."""
    if mask_BK is None:
        mask_BK = torch.ones_like(score_BK)
    if rank_BK is None:
        rank_BK = torch.arange(score_BK.shape[-1], device=score_BK.device).expand_as(score_BK)
    require_same_shape(score_BK=score_BK, mask_BK=mask_BK, rank_BK=rank_BK)
    present_BK = mask_BK != 0
    ordered_BKK = rank_BK[..., :, None] < rank_BK[..., None, :]
    ordered_BKK = ordered_BKK & present_BK[..., :, None] & present_BK[..., None, :]
    return score_BK.masked_fill(~present_BK, 0.0), ordered_BKK


def _unordered(score_BK: torch.Tensor, mask_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, 0 where there is no candidate, and every pair of candidates once."""
    present_BK = mask_BK != 0
    both_BKK = present_BK[..., :, None] & present_BK[..., None, :]
    return score_BK.masked_fill(~present_BK, 0.0), both_BKK.triu(1)


def _smoothed_logistic(gap_B: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    if label_smoothing == 0:
        return -logsigmoid(gap_B)
    return -(1 - label_smoothing) * logsigmoid(gap_B) - label_smoothing * logsigmoid(-gap_B)


def _log_ratio_gap(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
) -> torch.Tensor:
    require_same_shape(
        policy_chosen_B=policy_chosen_B,
        policy_rejected_B=policy_rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
    )
    return (policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B)


def _one_if_none(weight: float | None) -> float:
    return 1.0 if weight is None else weight


def _require_positive(name: str, value: float, why: str) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value} and must be above 0: {why}")


def _require_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing} and must lie in [0, 0.5]: it is an error rate"
        )
