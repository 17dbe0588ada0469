"""How a data set says which response won: the codings, how one is named, and what a row says by it
(``codings``: how one is found).

``--winner COLUMN[,COLUMN…][:CODING]``; the responses are called a, b, c … in their order:

| coding | the column holds |
|---|---|
| ``index0``, ``index1`` | the place of the better response, from 0 or 1 (then 0 and 1.5 tie two) |
| ``flag`` or ``flag(1=b)`` | 1 or true where a is better (or b), 0 or false where the other is |
| ``strength(-3..3, negative=a)`` | a signed strength; 0 is a tie, its size in the range's is the margin |
| ``word`` | ``a``, ``model_a``, ``A>B``, ``A is better``, ``tie`` and the like; the majority of a list |
| ``order`` | the responses from best to worst: ``["b", "a"]``, ``B>A>C`` |
| ``named`` | the value of the better one's column among those behind it, as ``winner,model_a,model_b`` |
| ``onehot`` | one column for each response, and perhaps one for a tie: the one that holds 1 |
| ``scores`` | a number for each response (a column each, a list, or inside each answer): more is better |
| ``rank`` | the same where less is better |
| ``probability(a)`` | the probability that a (or b) is better, 0 to 1; .5 is a tie |
| ``scale(1..2)`` | between 1 (a is better) and 2 (b is), or ``scale(7..1)``; the middle and 0 are a tie |

``tie=VALUE`` in the brackets (``index0(tie=2)``) names a value that means a tie. Ratings of single
responses, one or several rows a prompt, are named alone or as a weighted sum:
``0.7*helpfulness+0.3*correctness``.

Nothing is rounded: a value that a coding does not know is a defect of its row, shown with what the column
holds.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from preferl.data.files import RowError
from preferl.data.records import DataError, ranks_of_scores

CODINGS = (
    *("index0", "index1", "flag", "strength", "word", "order", "named", "onehot", "scores", "rank"),
    *("probability", "scale"),
)
TIES = (
    *(
        "both good",
        "both_good",
        "bothgood",
        "tie (both good)",
        "tie(both good)",
        "equally good",
        "no preference",
    ),
    *("tie", "tie (bothbad)", "tie(bothbad)", "tie (both bad)", "bothbad", "both_bad", "both bad", "both"),
    *("neither", "none", "draw", "equal", "same", "a=b", "b=a", "a==b", "a~b", "a≈b"),
)
FIRST = (
    *("a", "model_a", "response_a", "assistant_a", "answer_a", "output_a", "first", "left"),
    *("a>b", "a>>b", "b<a", "b<<a"),
)
SECOND = (
    *("b", "model_b", "response_b", "assistant_b", "answer_b", "output_b", "second", "right"),
    *("b>a", "b>>a", "a<b", "a<<b"),
)
# What stands before the letter or number of a response, and what behind it says that it is better.
OF_A_RESPONSE = r"(?:model|response|assistant|answer|output|completion|candidate|option|summary|text)"
NUMBERED = re.compile(rf"{OF_A_RESPONSE}[ _-]?(\d)")
BETTER = re.compile(
    rf"({OF_A_RESPONSE}?[ _-]?[a-z0-9])[ _-](?:is|was)[ _-]"
    r"(?:(?:clearly|slightly|much|significantly|somewhat|a[ _-]bit|marginally|far|strongly)[ _-])?"
    r"(?:better|preferred)"
)
# Names by which a column says that less, or more, of it is better.
RANKS = re.compile(r"rank|place|position", re.IGNORECASE)
SCORES = re.compile(r"score|rating|reward|grade|vote|like|help|quality|overall", re.IGNORECASE)


class Places(NamedTuple):
    """The ranks of a row's responses, and the scores that they come from where there are any."""

    ranks: list[int]
    scores: list[float] | None = None


@dataclass(frozen=True)
class Winner:
    """What says who won.

    Args:
        columns: paths of the columns.
        coding: one of ``CODINGS``; None where it is to be found.
        side: of what a flag's 1, a negative strength or a probability speaks: a or b.
        low, high: the range of a strength or a scale.
        weights: of the columns, where it is a sum of ratings.
        tie: a value that says that they are equal, where the coding has none of its own.
    """

    columns: tuple[str, ...]
    coding: str | None = None
    side: str | None = None
    low: float | None = None
    high: float | None = None
    weights: tuple[float, ...] | None = None
    tie: str | None = None

    def __str__(self) -> str:
        if self.weights is not None:
            return " + ".join(f"{w:g}*{c}" for w, c in zip(self.weights, self.columns, strict=True))
        text = ",".join(self.columns)
        if self.coding is None:
            return text
        inside = []
        if self.low is not None and self.high is not None:
            inside.append(f"{self.low:g}..{self.high:g}")
        if self.side is not None:
            inside.append({"flag": "1=", "strength": "negative="}.get(self.coding, "") + self.side)
        if self.tie is not None:
            inside.append(f"tie={self.tie}")
        return f"{text}:{self.coding}" + (f"({', '.join(inside)})" if inside else "")


def parsed(text: str) -> Winner:
    """A winner as a person names it.

    Example:
        >>> parsed("overall_preference:strength(-3..3, negative=a)").side
        'a'

    Raises:
        DataError: the coding is unknown, or what stands in its brackets.
    """
    text = text.strip()
    if "*" in text or re.search(r"\w\s*\+\s*\w", text):
        return _weighted(text)
    named = re.fullmatch(r"(?P<columns>.*?)(?::(?P<coding>[a-z]+[01]?)(?:\((?P<inside>[^()]*)\))?)?", text)
    assert named is not None  # everything matches: the coding can be left out
    columns = tuple(name.strip() for name in named["columns"].split(",") if name.strip())
    if not columns:
        raise DataError(f"--winner '{text}' names no column; write --winner COLUMN or --winner COLUMN:CODING")
    winner = Winner(columns, named["coding"])
    if winner.coding is not None and winner.coding not in CODINGS:
        raise DataError(f"--winner '{text}': coding '{winner.coding}' is unknown; use {', '.join(CODINGS)}")
    for part in (named["inside"] or "").split(","):
        winner = _with_parameter(winner, part.strip(), text)
    if winner.coding == "flag" and winner.side is None:
        winner = replace(winner, side="a")
    if winner.coding in ("strength", "probability") and winner.side is None:
        options = {"strength": "negative=a or negative=b", "probability": "a or b"}[winner.coding]
        raise DataError(f"--winner '{text}' does not say which response it speaks of: add ({options})")
    if winner.coding == "scale" and winner.low is None:
        winner = replace(winner, low=1.0, high=2.0)
    return winner


def _weighted(text: str) -> Winner:
    columns, weights = [], []
    for term in text.split("+"):
        found = re.fullmatch(r"\s*(?:(-?[\d.]+(?:e-?\d+)?)\s*\*)?\s*([^\s*]+)\s*", term)
        try:
            weight = float(found[1] or 1) if found else math.nan
        except ValueError:
            weight = math.nan
        if found is None or not math.isfinite(weight):
            raise DataError(
                f"--winner '{text}': '{term.strip()}' is no weight*COLUMN, as in "
                "0.7*helpfulness+0.3*correctness"
            )
        columns.append(found[2])
        weights.append(weight)
    return Winner(tuple(columns), "scores", weights=tuple(weights))


def _with_parameter(winner: Winner, part: str, text: str) -> Winner:
    if not part:
        return winner
    span = re.fullmatch(r"(-?[\d.]+)\s*\.\.\s*(-?[\d.]+)", part)
    side = re.fullmatch(r"(?:(?:negative|1|of)\s*=\s*)?([ab])", part)
    tie = re.fullmatch(r"tie\s*=\s*(.+)", part)
    if tie and winner.coding in ("index0", "index1", "flag", "word", "probability"):
        return replace(winner, tie=tie[1])
    if span and winner.coding in ("strength", "scale"):
        return replace(winner, low=float(span[1]), high=float(span[2]))
    opposite = re.fullmatch(r"(?:positive|0)\s*=\s*([ab])", part)
    if opposite and winner.coding in ("strength", "flag"):
        return replace(winner, side="b" if opposite[1] == "a" else "a")
    if side and winner.coding in ("strength", "flag", "probability"):
        return replace(winner, side=side[1])
    raise DataError(
        f"--winner '{text}': '{part}' is not understood; examples: flag(1=a), strength(-3..3, negative=a), "
        f"probability(a), scale(1..2)"
    )


# ------------------------------------------------------------------------------------------------ values


def number_in(value: Any) -> float | None:
    """A finite number, also as text (tables of text have no other) and as a truth value; else None."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("true", "false"):
            return float(word == "true")
        try:
            value = float(word)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return found if math.isfinite(found) else None


def show(values: Counter[Any]) -> str:
    """The values that a column holds, with how often: ``0 (6), 1 (5) and 3 others``."""
    most = values.most_common(8)
    more = len(values) - len(most)
    return ", ".join(f"{value!r:.40} ({n})" for value, n in most) + (f" and {more} others" if more else "")


# ---------------------------------------------------------------------------------------------- reading


def places(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    """The ranks of a row's responses.

    Args:
        winner: with its coding.
        values: what each of its columns holds in the row.
        responses: what the responses are called in the file; as many as there are.

    Raises:
        RowError: there is no label, or none of this coding.
    """
    if all(value is None or value == "" or value == [] for value in values):
        raise RowError("unlabelled", f"{', '.join(winner.columns)} says nothing about who won")
    if winner.tie is not None and all(_equals(value, winner.tie) for value in values):
        return _won_by(None, len(responses))
    read = READERS[winner.coding or ""]
    return read(winner, values, responses)


def _equals(value: Any, text: str) -> bool:
    number = number_in(text)
    return str(value).strip() == text or (number is not None and number_in(value) == number)


def _outside(winner: Winner, value: Any, means: str) -> RowError:
    return RowError("bad_ranking", f"{', '.join(winner.columns)} is {value!r:.60}; {means}")


def _won_by(place: int | None, K: int, margin: float | None = None) -> Places:
    """One response before the others; None for a tie."""
    if place is None:
        return Places([1] * K)
    ranks = [1 if i == place else 2 for i in range(K)]
    if margin is None:
        return Places(ranks)
    return Places(ranks, [margin if i == place else 0.0 for i in range(K)])


def _index(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    """By one column, or by the majority of several."""
    K, start = len(responses), int((winner.coding or "index0")[-1])
    votes: list[int | None] = []
    for value in values:
        if value is None or value == "":
            continue
        n = number_in(value)
        if start == 1 and K == 2 and n in (0, 1.5):
            votes.append(None)
        elif n is not None and n == int(n) and 0 <= n - start < K:
            votes.append(int(n) - start)
        else:
            raise _outside(winner, value, f"{winner.coding} takes {start} to {K - 1 + start}")
    ranked = Counter(votes).most_common(2)
    split = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    return _won_by(None if split else ranked[0][0], K)


def _flag(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    _need_two(winner, responses)
    n = number_in(values[0])
    if n not in (0, 1):
        raise _outside(winner, values[0], "a flag is 0 or 1, or false or true")
    return _won_by(0 if (n == 1) == (winner.side == "a") else 1, 2)


def _strength(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    _need_two(winner, responses)
    n, low, high = number_in(values[0]), winner.low or -1.0, winner.high or 1.0
    if n is None or not low <= n <= high:
        raise _outside(winner, values[0], f"its strengths go from {low:g} to {high:g}")
    if n == 0:
        return _won_by(None, 2)
    first = (n < 0) == (winner.side == "a")
    return _won_by(0 if first else 1, 2, abs(n) / max(-low, high))


def _word(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    said = [word for value in values for word in (value if isinstance(value, list | tuple) else [value])]
    said = [word for word in said if word is not None and word != ""]
    votes = Counter(word_place(value, responses) for value in said)
    if None in votes or not votes:
        raise _outside(winner, values[0], "words are a, b, model_a, A>B, tie and the like")
    ranked = votes.most_common(2)
    place = -1 if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]
    return _won_by(None if place is None or place < 0 else place, len(responses))


def word_place(value: Any, responses: Sequence[str]) -> int | None:
    """The place of the response that a word names; -1 for a tie, None where it names none."""
    if not isinstance(value, str):
        return None
    exact = [name for name in responses if name.strip() == value.strip()]
    if len(exact) == 1:
        return responses.index(exact[0])
    word = re.sub(r"\s*([<>=~≈]+)\s*", r"\1", value.strip().strip("[]").lower())
    if (better := BETTER.fullmatch(word)) is not None:
        word = re.sub(r"[ -]", "_", better[1])
        word = f"response_{word}" if word.isdigit() else word
    lower = [name.strip().lower() for name in responses]
    if lower.count(word) == 1:
        return lower.index(word)
    if word in TIES:
        return -1
    if word in FIRST:
        return 0
    if word in SECOND:
        return 1
    if (number := NUMBERED.fullmatch(word)) is not None:
        place = int(number[1]) - (0 if numbered_from(responses)[0] else 1)
        return place if 0 <= place < len(responses) else None
    letter = re.fullmatch(rf"{OF_A_RESPONSE}?[ _-]?([a-z])", word)
    place = ord(letter[1]) - ord("a") if letter else -1
    return place if letter and place < len(responses) else None


def numbered_from(responses: Sequence[str]) -> tuple[bool, bool]:
    """Whether the responses' names count from 0, or from 1."""
    ends = [re.search(r"(\d+)\D*$", name) for name in responses]
    numbers = [int(end[1]) for end in ends if end]
    whole = len(numbers) == len(responses) > 1
    return whole and numbers[0] == 0, whole and numbers[0] == 1


def order_of(value: Any, responses: Sequence[str]) -> list[int] | None:
    """The ranks of responses that a list, or a text with ``>`` and ``=`` between them, puts in order; None
    where it does not name each of them once.

    Example:
        >>> order_of("B > A = C", ["a", "b", "c"])
        [2, 1, 2]
    """
    groups = [[word] for word in value] if isinstance(value, list) else []
    if isinstance(value, str):
        groups = [part.split("=") for part in re.split(r">+", value.strip().strip("[]").replace(",", ">"))]
    ranks: dict[int, int] = {}
    for rank, group in enumerate(groups, 1):
        for word in group:
            place = word_place(word.strip() if isinstance(word, str) else word, responses)
            if place is None or place < 0 or place in ranks:
                return None
            ranks[place] = rank
    return [ranks[i] for i in range(len(responses))] if len(ranks) == len(responses) else None


def _order(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    ranks = order_of(values[0], responses)
    if ranks is None:
        raise _outside(winner, values[0], f"an order names each of the {len(responses)} responses once")
    return Places(ranks)


def _named(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    won, *names = values
    names = list(names[0]) if len(names) == 1 and isinstance(names[0], list | tuple) else names
    if len(names) != len(responses):
        raise RowError(
            "bad_ranking", f"{len(responses)} responses but {len(names)} names for {winner.columns[0]}"
        )
    if names.count(won) == 1:
        return _won_by(names.index(won), len(responses))
    if isinstance(won, str) and won.strip().lower() in TIES:
        return _won_by(None, len(responses))
    raise _outside(winner, won, f"it must be what one of {', '.join(winner.columns[1:])} holds")


def _onehot(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    numbers, K = [number_in(value) for value in values], len(responses)
    if (
        len(numbers) not in (K, K + 1)
        or any(n not in (0, 1) for n in numbers)
        or sum(n or 0 for n in numbers) != 1
    ):
        raise _outside(winner, tuple(values), "one of the columns must be 1 and the others 0")
    place = numbers.index(1)
    return _won_by(place if place < K else None, K)


def _scores(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    scores = _one_each(winner, values, responses)
    return Places(ranks_of_scores(scores), scores)


def _rank(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    return Places(ranks_of_scores([-rank for rank in _one_each(winner, values, responses)]))


def _one_each(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A number for each response."""
    each = list(values[0]) if len(values) == 1 and isinstance(values[0], list | tuple) else list(values)
    if len(each) != len(responses):
        raise RowError(
            "bad_ranking", f"{len(responses)} responses but {len(each)} values in {', '.join(winner.columns)}"
        )
    numbers = [number_in(value) for value in each]
    if any(value is None for value in each):
        raise RowError("unlabelled", f"{', '.join(winner.columns)} is null for a response")
    if any(n is None for n in numbers):
        raise _outside(winner, tuple(each), "a number is needed for each response")
    return [n for n in numbers if n is not None]


def _probability(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    _need_two(winner, responses)
    p = number_in(values[0])
    if p is None or not 0 <= p <= 1:
        raise _outside(winner, values[0], "a probability is between 0 and 1")
    if p == 0.5:
        return _won_by(None, 2)
    return _won_by(0 if (p > 0.5) == (winner.side == "a") else 1, 2)


def _scale(winner: Winner, values: Sequence[Any], responses: Sequence[str]) -> Places:
    _need_two(winner, responses)
    n = number_in(values[0])
    low = 0.0 if winner.low is None else winner.low
    high = 1.0 if winner.high is None else winner.high
    least, most = min(low, high), max(low, high)
    middle = (low + high) / 2
    if n is None or not (least <= n <= most or n == 0):
        raise _outside(winner, values[0], f"it is between {low:g} (a is better) and {high:g} (b is)")
    if n == middle or (n == 0 and least > 0):
        return _won_by(None, 2)
    return _won_by(0 if (n < middle) == (low < high) else 1, 2)


def _need_two(winner: Winner, responses: Sequence[str]) -> None:
    if len(responses) != 2:
        raise RowError("bad_ranking", f"{len(responses)} responses; {winner.coding} speaks of two")


READERS = {
    "index0": _index,
    "index1": _index,
    "flag": _flag,
    "strength": _strength,
    "word": _word,
    "order": _order,
    "named": _named,
    "onehot": _onehot,
    "scores": _scores,
    "rank": _rank,
    "probability": _probability,
    "scale": _scale,
}
