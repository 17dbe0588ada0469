"""Single responses that were rated or called good or bad, put together as comparisons by their prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from preferl.data.records import Comparison, Rated, prompt_key, ranks_of_scores

MOST_TOGETHER = 9  # responses in one ranking, as in those that are read


def labelled_comparisons(rated: Sequence[Rated]) -> list[Comparison]:
    """Good against bad responses, of every prompt that has both. A response that is called both takes no
    part.

    Of a prompt with more than nine responses each is compared once: the k-th good one with the k-th bad one
    from the end.
    """
    labelled = [row for row in rated if row.good is not None]
    return comparisons_by(labelled, lambda row: float(bool(row.good)), margins=False)


def comparisons_by(
    rated: Sequence[Rated], score: Callable[[Rated], float | None], margins: bool = True
) -> list[Comparison]:
    """The responses to each prompt ranked by a number, where they have several numbers.

    Args:
        rated: rows, in any order.
        score: of a row; None leaves it out.
        margins: whether differences of the numbers say how clearly one is better.
    """
    of_prompt: dict[str, list[tuple[float, Rated]]] = {}
    for row in rated:
        number = score(row)
        if number is not None:
            of_prompt.setdefault(prompt_key(row.prompt), []).append((number, row))
    found = []
    for scored in of_prompt.values():
        scored = _without_contradictions(scored)
        if len({number for number, _ in scored}) < 2:
            continue
        found += [_comparison(group, margins) for group in _groups(scored)]
    return found


def _without_contradictions(scored: Sequence[tuple[float, Rated]]) -> list[tuple[float, Rated]]:
    """Each text once, and none that has two numbers."""
    numbers: dict[str, set[float]] = {}
    first: dict[str, tuple[float, Rated]] = {}
    for number, row in scored:
        numbers.setdefault(row.response, set()).add(number)
        first.setdefault(row.response, (number, row))
    return [one for text, one in first.items() if len(numbers[text]) == 1]


def _groups(scored: list[tuple[float, Rated]]) -> list[list[tuple[float, Rated]]]:
    """All responses together; where they are too many for one ranking, pairs of the best and the worst, the
    second best and the second worst, and so on."""
    if len(scored) <= MOST_TOGETHER:
        return [scored]
    order = sorted(scored, key=lambda one: -one[0])
    half = len(order) // 2
    pairs = [[better, worse] for better, worse in zip(order[:half], order[::-1], strict=False)]
    return [pair for pair in pairs if pair[0][0] > pair[1][0]]


def _comparison(group: Sequence[tuple[float, Rated]], margins: bool) -> Comparison:
    rows = [row for _, row in group]
    scores = [number for number, _ in group]
    columns: dict[str, Any] = {}
    each = []
    shared = [name for name in rows[0].columns if all(name in row.columns for row in rows)]
    for name in shared:
        values = [row.columns[name] for row in rows]
        if name == "finished" or any(value != values[0] for value in values):
            columns[name] = values
            each.append(name)
        else:
            columns[name] = values[0]
    return Comparison(
        prompt=rows[0].prompt,
        responses=[row.response for row in rows],
        ranks=ranks_of_scores(scores),
        scores=scores if margins else None,
        columns=columns,
        each=tuple(each),
    )
