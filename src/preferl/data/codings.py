"""The coding of what says who won, found from all the values of its columns (``winners`` has what each
means).

A coding that all values leave no doubt about is taken; where several fit, a person is shown the values and
asked.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from preferl.data.records import DataError
from preferl.data.winners import (
    NUMBERED,
    RANKS,
    SCORES,
    Winner,
    number_in,
    numbered_from,
    order_of,
    show,
    word_place,
)

# Names by which a column says that it holds an order, or a place.
ORDERS = re.compile(r"rank|order|sort", re.IGNORECASE)
INDICES = re.compile(r"_id|idx|index|choice|winner|better|best|safer|preferred|chosen", re.IGNORECASE)


def found(winner: Winner, seen: list[Counter[Any]], responses: Sequence[str]) -> Winner:
    """A winner with its coding, found from all the values of its columns.

    Args:
        winner: whose coding is perhaps not known.
        seen: the values of each column, and how often.
        responses: what the responses are called in the file, as ``response_0``.

    Raises:
        DataError: the values fit no coding or several; it shows them and names the options.
    """
    if winner.coding is not None:
        return _with_range(winner, seen)
    fits = _fitting(winner, seen, responses)
    if len(fits) == 1:
        return _with_range(fits[0], seen)
    held = "; ".join(f"{c} holds {show(v)}" for c, v in zip(winner.columns, seen, strict=True))
    if not fits:
        raise DataError(
            f"{held}: no coding of a winner fits{_on_a_scale(winner, seen)}; name another column or its "
            f"coding with --winner COLUMN:CODING (docs/data.md)"
        )
    options = " or ".join(f"--winner '{option}'" for option in fits)
    raise DataError(f"{held}: that can mean several things; say which with {options}")


def _on_a_scale(winner: Winner, seen: list[Counter[Any]]) -> str:
    """What a person can say of numbers that may be a scale from one response to the other."""
    numbers = [n for value in seen[0] if (n := number_in(value)) is not None]
    if len(seen) > 1 or not numbers or len(numbers) < len(seen[0]) or min(numbers) < 0 or max(numbers) <= 2:
        return ""
    column, most = winner.columns[0], max(numbers)
    return (
        f"; if they go from one response to the other, give both ends: --winner "
        f"'{column}:scale(1..{most:g})' where {most:g} says that b is much better, --winner "
        f"'{column}:scale({most:g}..1)' where it says that a is"
    )


def _with_range(winner: Winner, seen: list[Counter[Any]]) -> Winner:
    """A strength whose range is not given goes as far as the strongest of the file."""
    if winner.coding != "strength" or winner.low is not None:
        return winner
    numbers = [abs(n) for value in seen[0] if (n := number_in(value)) is not None]
    most = max(numbers, default=1.0) or 1.0
    return replace(winner, low=-most, high=most)


def _fitting(winner: Winner, seen: list[Counter[Any]], responses: Sequence[str]) -> list[Winner]:
    """Every coding that all values of the columns fit."""
    if len(winner.columns) > 1:
        return _of_several(winner, seen, responses)
    values = list(seen[0])
    if not values:
        return []
    if any(isinstance(value, tuple) for value in values):
        each = [n for value in values if isinstance(value, tuple) for n in value]
        words = _words(winner, each, responses)
        orders = all(order_of(list(value), responses) for value in values if isinstance(value, tuple))
        if words and orders and len(responses) > 1:
            order = [replace(winner, coding="order")]
            return order if ORDERS.search(",".join(winner.columns)) else [*order, *words]
        return words or _of_lists(winner, each)
    numbers = [number_in(value) for value in values]
    if any(n is None for n in numbers):
        orders = len(responses) > 2 and all(order_of(value, responses) for value in values)
        return _words(winner, values, responses) or ([replace(winner, coding="order")] if orders else [])
    held = {n for n in numbers if n is not None}
    boolean = all(
        isinstance(value, bool) or str(value).strip().lower() in ("true", "false") for value in values
    )
    K = max(len(responses), 2)
    if not boolean and min(held) < 0:
        sides = [replace(winner, coding="strength", side=side) for side in "ab"]
        return sides if K == 2 else []
    if boolean:
        return [replace(winner, coding="flag", side=side) for side in "ab"]
    whole = _whole(winner, held, K, responses) if all(n == int(n) for n in held) else []
    if whole:
        return whole
    if K == 2 and max(held) <= 1:
        return [replace(winner, coding="probability", side=side) for side in "ab"]
    if K == 2 and min(n for n in held if n) >= 1 and max(held) <= 2:
        scale = [replace(winner, coding="scale", low=1.0, high=2.0)]
        # Strengths in halves look the same where none is negative, and so do ties among them.
        if 0 not in held and min(held) < 1.5 < max(held) and any(n * 2 != int(n * 2) for n in held):
            return scale
        return [*scale, *(replace(winner, coding="strength", side=side) for side in "ab")]
    return []


def _words(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> list[Winner]:
    """The coding of words, where all are words for a response or for a tie.

    Numbers in words (``model_1``) leave no doubt where the responses' names count too, or where they name the
    last of responses that count by letters.
    """
    places = [word_place(value, responses) for value in values]
    if not places or any(place is None for place in places):
        return []
    counted = [value for value in values if NUMBERED.fullmatch(str(value).strip().lower())]
    by_names = any(numbered_from(responses))
    if counted and not by_names and max(place or 0 for place in places) < len(responses) - 1:
        return []
    return [replace(winner, coding="word")]


def _whole(winner: Winner, held: set[float], K: int, responses: Sequence[str]) -> list[Winner]:
    """The codings of places that whole numbers fit."""
    from_zero, from_one = numbered_from(responses)
    index0, index1 = replace(winner, coding="index0"), replace(winner, coding="index1")
    zero_fits, one_fits = max(held) < K, min(held) >= 1 and max(held) <= K
    named_so = bool(INDICES.search(winner.columns[0]))
    from_zero = from_zero or all(name.startswith("#") for name in responses)  # places in a list
    if zero_fits and from_zero and named_so and 0 in held:  # 1 alone may be a place from 1 on
        return [index0]
    # A 0 beside them may be a tie, or the first place of those that count from 0 and call a tie 2.
    if from_one and one_fits and (named_so or (K == 2 and 2 in held)):
        return [index1]
    fits = [index0] if zero_fits else []
    fits += [index1] if one_fits else []
    fits += [replace(winner, coding="flag", side="a")] if held <= {0, 1} and K == 2 else []
    if K == 2 and {0, 2} <= held <= {0, 1, 2}:
        fits += [index1, replace(index0, tie="2")]
    return fits


def _of_lists(winner: Winner, values: list[Any]) -> list[Winner]:
    """A number for each response: ranks or scores, by the column's name."""
    if not values or any(number_in(value) is None for value in values):
        return []
    if all(isinstance(value, bool) for value in values):  # true is better, whatever the column is called
        return [replace(winner, coding="scores")]
    return _ranks_or_scores(winner, winner.columns[0])


def _ranks_or_scores(winner: Winner, name: str) -> list[Winner]:
    last = name.rsplit(".", 1)[-1]
    ranks, scores = replace(winner, coding="rank"), replace(winner, coding="scores")
    if RANKS.search(last):
        return [ranks]
    return [scores] if SCORES.search(last) else [ranks, scores]


def _of_several(winner: Winner, seen: list[Counter[Any]], responses: Sequence[str]) -> list[Winner]:
    held = [number_in(value) for values in seen for value in values]
    if any(n is None for n in held):  # of several annotators, perhaps
        return _words(winner, [value for values in seen for value in values], responses)
    K, count = len(responses), len(winner.columns)
    hot = set(held) <= {0.0, 1.0}
    if hot and count in (K, K + 1):
        return [replace(winner, coding="onehot")]
    return _ranks_or_scores(winner, winner.columns[0]) if count == K else []
