"""The judgements that count, read out of the database: what statistics and exports start from."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from preferl.label.queue import chance
from preferl.label.schema import annotators, assignments, events, items


@dataclass(frozen=True, kw_only=True)
class StoredJudgement:
    """One answer that was not taken back. ``ranks`` and ``strength`` are in the item's own order, ``order``
    is how it was shown; ``ranks`` None is a skip."""

    id: int
    item_id: int
    annotator_id: int
    annotator: str
    kind: str
    purpose: str
    selected: str
    order: list[int]
    ranks: list[int] | None
    strength: int | None
    both_bad: bool
    flagged: bool
    reason: str
    seconds: float
    at: float

    def choices(self) -> Iterator[tuple[tuple[int, int], int]]:
        """Every pair of responses with 1 (the first is better), 0 (a tie) or -1."""
        ranks = self.ranks or []
        for i, j in itertools.combinations(range(len(ranks)), 2):
            yield (i, j), int(np.sign(ranks[j] - ranks[i]))


@dataclass(frozen=True)
class Item:
    """What was judged."""

    id: int
    prompt: Any
    responses: list[str]
    columns: dict[str, Any]
    gold: list[int] | None


def read_judgements(connection: Connection) -> list[StoredJudgement]:
    """All answers that count, in the order in which they came."""
    rows = connection.execute(
        select(
            events,
            assignments.c.item_id,
            assignments.c.purpose,
            assignments.c.selected,
            assignments.c.order,
            annotators.c.name,
            annotators.c.kind.label("annotator_kind"),
        )
        .join_from(assignments, events, events.c.id == assignments.c.event_id)
        .join(annotators, annotators.c.id == assignments.c.annotator_id)
        .order_by(events.c.id)
    )
    return [
        StoredJudgement(
            id=row.id,
            item_id=row.item_id,
            annotator_id=row.annotator_id,
            annotator=row.name,
            kind=row.annotator_kind,
            purpose=row.purpose,
            selected=row.selected,
            order=row.order,
            ranks=row.ranks,
            strength=row.strength,
            both_bad=row.both_bad,
            flagged=row.flagged,
            reason=row.reason,
            seconds=row.seconds,
            at=row.at,
        )
        for row in rows
    ]


def read_items(connection: Connection) -> dict[int, Item]:
    return {
        row.id: Item(row.id, row.prompt, row.responses, row.columns, row.gold)
        for row in connection.execute(select(items).order_by(items.c.id))
    }


def labels(judgements: Iterable[StoredJudgement], purpose: str = "label") -> list[StoredJudgement]:
    """The judgements that make the data set."""
    return [j for j in judgements if j.purpose == purpose and j.ranks is not None]


@dataclass(frozen=True)
class AnswerTable:
    """Answers of A annotators to U units, NaN where there is none."""

    annotators: list[str]
    units: list[tuple[int, int, int]]
    """Item, and the two places in it that were compared."""
    choice_AU: np.ndarray
    strength_AU: np.ndarray
    """Strengths of pairs only."""
    turn_U: np.ndarray
    """1, or -1 where the unit is turned round."""


def table_of(judgements: Sequence[StoredJudgement]) -> AnswerTable:
    """Judgements as answers to units: every two responses of an item are one.

    Half of the units, drawn by a hash, are turned round. Files hold the response that was chosen before
    first; without that, its place would pass for what annotators say anyway, and agreement for chance.
    """
    names = sorted({j.annotator for j in judgements})
    found = [(j, pair, choice) for j in judgements for pair, choice in j.choices()]
    units = sorted({(j.item_id, *pair) for j, pair, _ in found})
    row, column = {name: a for a, name in enumerate(names)}, {unit: u for u, unit in enumerate(units)}
    choice_AU = np.full((len(names), len(units)), np.nan)
    strength_AU = choice_AU.copy()
    for judgement, pair, choice in found:
        place = row[judgement.annotator], column[(judgement.item_id, *pair)]
        choice_AU[place] = choice
        if judgement.strength is not None:
            strength_AU[place] = judgement.strength
    turn_U = np.array([1 if chance("unit", *unit) < 0.5 else -1 for unit in units], dtype=np.float64)
    return AnswerTable(names, units, choice_AU * turn_U, strength_AU * turn_U, turn_U)
