"""How likely a simulated annotator's label is: what the best possible accuracy against labels is made of."""

import numpy as np
from numpy.typing import ArrayLike


def preference_probability(
    gap_N: ArrayLike,
    scale: float = 1.0,
    deterministic: bool = False,
    coin_width: float = 0.0,
    bias: float = 0.0,
) -> np.ndarray:
    """P(first is preferred) by differences of utilities: sigma(scale * (gap + bias)) (Bradley & Terry 1952).

    Args:
        gap_N: utility of the first response minus that of the second.
        scale: multiplies utilities; larger means fewer errors.
        deterministic: the larger utility wins, equal ones by a fair coin.
        coin_width: a fair coin decides where utilities differ by at most this; 0 for nowhere.
        bias: added to the first response's utility.

    Returns:
        ``p_N``.
    """
    gap_N = np.asarray(gap_N, dtype=np.float64)
    felt_N = scale * (gap_N + bias)
    if deterministic:
        p_N = np.where(felt_N == 0, 0.5, (felt_N > 0).astype(np.float64))
    else:
        p_N = np.exp(-np.logaddexp(0, -felt_N))
    return np.where(np.abs(gap_N) <= coin_width, 0.5, p_N) if coin_width > 0 else p_N


def label_probability(
    gap_N: ArrayLike,
    scale: float = 1.0,
    deterministic: bool = False,
    coin_width: float = 0.0,
    error_rate: float = 0.0,
    position_bias: float = 0.0,
    shown: int = 2,
) -> np.ndarray:
    """P(the label says that the first is better), to one who sees the two texts and not their places.

    With probability ``error_rate`` a label is turned round, and of ``shown`` responses in random order the
    one that stands first has ``position_bias`` added to its utility: either of the two does with
    probability 1 / shown. Of rankings with shared places (``tie``) this leaves out that a third response
    can tie two that the annotator tells apart; for two responses it is exact.

    Args:
        gap_N: utility of the first response minus that of the second.
        scale: as in `preference_probability`, as are ``deterministic`` and ``coin_width``.
        deterministic: the larger utility wins.
        coin_width: a fair coin decides where utilities differ by at most this.
        error_rate: 0 to 0.5.
        position_bias: added to the utility of the response that is shown first.
        shown: responses that were shown together, 2 or more.

    Returns:
        ``p_N``; max(p, 1 - p) is the best accuracy that can be expected against such labels.
    """
    how = {"scale": scale, "deterministic": deterministic, "coin_width": coin_width}
    p_N = preference_probability(gap_N, **how)
    if position_bias:
        when_first_N = preference_probability(gap_N, bias=position_bias, **how)
        when_second_N = preference_probability(gap_N, bias=-position_bias, **how)
        p_N = (when_first_N + when_second_N + (shown - 2) * p_N) / shown
    return p_N + error_rate * (1 - 2 * p_N) if error_rate else p_N
