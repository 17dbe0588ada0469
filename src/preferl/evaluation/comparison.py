"""Two policies' responses to the same prompts: differences and win rates, by category and at equal length."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from preferl.data.types import Measures
from preferl.evaluation.features import SIGNS, UNFINISHED, sign_shares
from preferl.statistics import paired_bootstrap, wilson_interval
from preferl.statistics.intervals import (
    Estimate,
    hierarchical_win_rate,
    length_controlled_win_rate,
    paired_hierarchical_bootstrap,
    proportion,
)

LEAST_IN_CATEGORY = 5  # prompts
KL_DRIFT_PER_TOKEN = 0.1  # nats beyond which a policy counts as significantly drifted


def compare(a_PA: np.ndarray, b_PB: np.ndarray, category_P: Sequence[str | None] = ()) -> Measures:
    """a against b: the difference of their means and how often a wins, a tie half, with 95 % intervals.

    Every response of a is compared with every one of b to the same prompt. With one response of each the
    difference has the paired bootstrap's interval and the win rate Wilson's; with several, prompts are
    resampled and responses within them. ``by_category`` has a row for each category of at least
    ``LEAST_IN_CATEGORY`` prompts.
    """
    single = a_PA.shape[1] == b_PB.shape[1] == 1
    wins = int(outcomes(a_PA, b_PB, tie=0).sum())
    ties = int((a_PA[:, :, None] == b_PB[:, None, :]).sum())
    if single:
        difference = paired_bootstrap(a_PA[:, 0], b_PB[:, 0])
        rate = proportion(wins + ties / 2, len(a_PA))
    else:
        difference = paired_hierarchical_bootstrap(a_PA, b_PB)
        rate = hierarchical_win_rate(a_PA, b_PB)
    row = difference.named("difference") | rate.named("win_rate")
    row |= {"wins": wins, "ties": ties, "n": a_PA.shape[0] * a_PA.shape[1] * b_PB.shape[1]}
    rows = []
    for category in sorted({c for c in category_P if c is not None}):
        inside_P = np.array([c == category for c in category_P])
        if inside_P.sum() >= LEAST_IN_CATEGORY:
            part = compare(a_PA[inside_P], b_PB[inside_P])
            rows.append({"category": category, "prompts": int(inside_P.sum()), **part})
    return row | ({"by_category": rows} if len(rows) > 1 else {})


def outcomes(a_PA: np.ndarray, b_PB: np.ndarray, tie: float = 0.5) -> np.ndarray:
    """``won_PAB``: 1 where a's response is better, 0 where b's is, ``tie`` where they are equal."""
    a_PA1, b_P1B = a_PA[:, :, None], b_PB[:, None, :]
    return (a_PA1 > b_P1B) + tie * (a_PA1 == b_P1B)


def at_equal_length(
    a_PA: np.ndarray, b_PB: np.ndarray, length_PA: np.ndarray, length_PB: np.ndarray
) -> Measures:
    """The length-controlled win rate of a over b (Dubois et al. 2024); lengths in tokens."""
    won_PAB = outcomes(a_PA, b_PB)

    def of_every_comparison(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, won_PAB.shape).ravel()

    found = length_controlled_win_rate(
        won_PAB.ravel(),
        of_every_comparison(length_PA[:, :, None]),
        of_every_comparison(length_PB[:, None, :]),
        group_N=of_every_comparison(np.arange(len(a_PA))[:, None, None]),  # comparisons of one prompt
    )
    row = Estimate(found.rate, found.low, found.high).named("length_controlled_win_rate")
    effect = found.length_effect
    return row | {"length_effect": effect and list(effect), "length_control_left_out": found.reason}


def signs(
    a: Sequence[str],
    b: Sequence[str],
    group_size: int = 1,
    ended: tuple[Sequence[bool], Sequence[bool]] | None = None,
    known: Mapping[str, Callable[[str], bool]] = SIGNS,
) -> list[Measures]:
    """How often each sign of gaming shows in two lots of responses, with Wilson's intervals.

    The ``group_size`` responses to one prompt resemble each other: the intervals count them as one.

    Args:
        a: responses of the policy.
        b: those of the reference.
        group_size: responses to each prompt.
        ended: whether each of a's and of b's ended by itself, for the sign `UNFINISHED`.
        known: the signs.

    Example:
        >>> rows = signs(["Great question! Paris.", "Paris."], ["Paris.", "Paris."])
        >>> rows[0]["sign"], rows[0]["policy"], rows[0]["reference"]
        ('sycophancy', 0.5, 0.0)
    """
    shares_a, shares_b = sign_shares(a, known), sign_shares(b, known)
    if ended is not None:
        shares_a[UNFINISHED], shares_b[UNFINISHED] = (1 - float(np.mean(each)) for each in ended)
    rows = []
    for sign in shares_a:
        row: Measures = {"sign": sign}
        row |= _share(shares_a[sign], len(a) // group_size).named("policy")
        row |= _share(shares_b[sign], len(b) // group_size).named("reference")
        rows.append(row)
    return rows


def _share(share: float, prompts: int) -> Estimate:
    return Estimate(share, *wilson_interval(share * prompts, prompts))
