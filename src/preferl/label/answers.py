"""What an annotator says, from the order of the page into the item's own order and back.

A page shows an item's responses in an order of its own: ``order[p]`` is the response at position ``p``.
Answers speak of positions; what is stored speaks of responses, so that it means the same whoever gave it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

MOST_REASON = 2000
STRENGTHS = range(-3, 4)


class Refused(Exception):
    """A request that cannot be done; says why. ``status`` is HTTP's."""

    def __init__(self, reason: str, status: int = 409):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an annotator says, in the order that the page showed: place of each response, 1 the best.

    For pairs ``strength`` is 3 (the first shown is much better) to -3. ``ranks`` None means skipped.

    Example: ``Answer(ranks=[1, 2], strength=2, reason="the second is wrong")``.
    """

    ranks: list[int] | None = None
    strength: int | None = None
    both_bad: bool = False
    flagged: bool = False
    reason: str = ""


def to_columns(answer: Answer, order: Sequence[int]) -> dict[str, Any]:
    """An answer as an event's columns, in the item's own order.

    Raises:
        Refused: it does not fit the item.
    """
    # Forms send line ends as CRLF; no database of ours holds NUL.
    reason = answer.reason.replace("\r\n", "\n").replace("\0", "").strip()
    if len(reason) > MOST_REASON:
        raise Refused(f"the reason has {len(reason)} characters; at most {MOST_REASON} are kept", 422)
    columns: dict[str, Any] = {"reason": reason, "flagged": answer.flagged}
    if answer.ranks is None:
        return columns
    places = competition_ranks(answer.ranks, len(order))
    if answer.both_bad and len(set(places)) > 1:
        raise Refused("responses that are both bad share a place", 422)
    place_of = dict(zip(order, places, strict=True))
    columns |= {"ranks": [place_of[i] for i in range(len(order))], "both_bad": answer.both_bad}
    if len(order) == 2:
        strength = checked_strength(answer.strength, places)
        columns["strength"] = strength if order[0] == 0 else -strength
    elif answer.strength is not None:
        raise Refused("only pairs have a strength", 422)
    return columns


def to_answer(event: Row, order: Sequence[int]) -> Answer:
    """A stored judgement as the page showed it: what ``to_columns`` made its columns of."""
    turned = order[0] != 0
    return Answer(
        ranks=[event.ranks[i] for i in order],
        strength=event.strength if event.strength is None or not turned else -event.strength,
        both_bad=event.both_bad,
        flagged=event.flagged,
        reason=event.reason,
    )


def competition_ranks(ranks: Sequence[int], K: int) -> list[int]:
    """Places 1 to K without gaps that say nothing (standard competition ranking): 1, 3, 3 becomes 1, 2, 2."""
    if len(ranks) != K or not all(1 <= rank <= K for rank in ranks):
        raise Refused(f"give each of the {K} responses a place from 1 to {K}", 422)
    return [1 + sum(other < rank for other in ranks) for rank in ranks]


def checked_strength(strength: int | None, places: Sequence[int]) -> int:
    """A pair's strength, which must say the same as its places."""
    if strength is None or strength not in STRENGTHS:
        raise Refused("strength must lie between -3 and 3", 422)
    if (strength > 0) != (places[0] < places[1]) or (strength < 0) != (places[0] > places[1]):
        raise Refused("strength and places contradict each other", 422)
    return strength
