"""Who gets which item: what happens to one on its way through the hands of annotators, step by step.

An item has ``overlap`` slots: so many judgements are wanted, by as many people. Who is given the item has an
*assignment*, a row that says what for (``purpose``) and how it stands (``state``):

1. ``choose``: an annotator comes for the next item. Mostly that is one to ``label``, with a free slot; now
   and then one of known answer (``gold``), or, turned round, one of their own again (``repeat``).
2. ``take``: the assignment is ``open``. A label takes one of the slots; every assignment has a lease.
3. ``renew``: as long as the page is open it gives signs of life, and the lease begins again.
4. ``finish_judged``: the assignment is ``done``, and keeps its slot for good.
   ``finish_skipped``: it is ``left``, and the slot is free for somebody else.
   ``release_expired``: without a sign of life it is ``expired``, and the slot is free too. An answer that
   comes late still counts where a slot is left (``regain``).
5. ``reopen``: undo makes a done or left assignment open again.

As a slot exists once (a unique index), an item gets exactly ``overlap`` judgements, whatever people do at the
same time. Every function works within a transaction of its caller. The statements that every page runs are
built once, above the function that runs them: building one takes longer than running it.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, update

from preferl.label.answers import Refused
from preferl.label.project import Project
from preferl.label.schema import assignments, items


def current_or_next(connection: Connection, project: Project, annotator_id: int, now: float) -> Row | None:
    """The annotator's open assignment, or a new one; None where nothing is left for them."""
    assignment = open_assignment(connection, annotator_id)
    if assignment is not None:
        if assignment.leased_until < now + project.lease_seconds / 2:
            # Who comes back after the lease begins anew, in the statistics of time too.
            opened = now if assignment.leased_until < now else assignment.opened_at
            leased_until = now + project.lease_seconds
            change(connection, assignment.id, leased_until=leased_until, opened_at=opened)
        return assignment
    # What others left lying may be what this annotator gets.
    release_expired(connection, now)
    choice = choose(connection, project, annotator_id)
    return None if choice is None else take(connection, project, annotator_id, choice, now)


OPEN = (
    select(assignments)
    .where(assignments.c.annotator_id == bindparam("annotator"), assignments.c.state == "open")
    .order_by(assignments.c.opened_at.desc(), assignments.c.id.desc())
    .limit(1)
)


def open_assignment(connection: Connection, annotator_id: int) -> Row | None:
    """What this annotator opened last and has not answered."""
    return connection.execute(OPEN, {"annotator": annotator_id}).first()


OWN = select(assignments).where(
    assignments.c.id == bindparam("assignment"), assignments.c.annotator_id == bindparam("annotator")
)


def own_assignment(connection: Connection, annotator_id: int, assignment_id: int) -> Row:
    """Raises Refused where it is not this annotator's."""
    row = connection.execute(OWN, {"annotator": annotator_id, "assignment": assignment_id}).first()
    if row is None:
        raise Refused("there is no such item for you", 404)
    return row


STATES = (
    select(assignments.c.state, func.count())
    .where(assignments.c.annotator_id == bindparam("annotator"))
    .group_by(assignments.c.state)
)


def count_states(connection: Connection, annotator_id: int) -> dict[str, int]:
    """How many assignments of an annotator are open, done, left and expired."""
    return dict(connection.execute(STATES, {"annotator": annotator_id}).all())


# --------------------------------------------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Choice:
    """What an annotator gets next, what for, and how it was selected among the items to label."""

    item: Row
    purpose: str
    selected: str = "random"


def choose(connection: Connection, project: Project, annotator_id: int) -> Choice | None:
    """What comes next for an annotator; None where nothing is left for them."""
    states = count_states(connection, annotator_id)
    turn = states.get("done", 0) + states.get("left", 0)

    def falls(name: str, share: float) -> bool:
        # A coin of this turn: it falls the same however often the page is asked for.
        return share > 0 and chance(project.seed, annotator_id, turn, name) < share

    # Now and then an item of known answer: how often is this annotator right?
    if falls("gold", project.gold_share):
        item = next_gold(connection, annotator_id)
        if item is not None:
            return Choice(item, "gold")
    # Now and then an item of their own again: how often do they say the same?
    if falls("repeat", project.repeat_share):
        item = next_repeat(connection, project, annotator_id)
        if item is not None:
            return Choice(item, "repeat")
    # Else one to label. Some are random in informative projects too, or there were nothing to compare with.
    informative = project.selection == "informative" and not falls("random", project.random_share)
    selected = "informative" if informative else "random"
    item = next_item(connection, project, annotator_id, selected)
    return None if item is None else Choice(item, "label", how_selected(connection, item, selected))


# Whether the annotator has met an item.
MET = (
    select(assignments.c.id)
    .where(
        assignments.c.item_id == items.c.id,
        assignments.c.annotator_id == bindparam("annotator"),
        assignments.c.state != "expired",
    )
    .exists()
)
NEXT_GOLD = select(items).where(items.c.gold.is_not(None), ~MET).order_by(items.c.place).limit(1)


def next_gold(connection: Connection, annotator_id: int) -> Row | None:
    """An item of known answer that this annotator has not met."""
    return connection.execute(NEXT_GOLD, {"annotator": annotator_id}).first()


def next_repeat(connection: Connection, project: Project, annotator_id: int) -> Row | None:
    """An item that this annotator judged some time ago and has not met twice."""
    again = assignments.alias()
    twice = (
        select(again.c.id)
        .where(
            again.c.item_id == assignments.c.item_id,
            again.c.annotator_id == annotator_id,
            again.c.purpose == "repeat",
            again.c.state != "expired",
        )
        .exists()
    )
    rows = connection.execute(
        select(assignments.c.item_id, assignments.c.purpose, twice.label("twice"))
        .where(assignments.c.annotator_id == annotator_id, assignments.c.state == "done")
        .order_by(assignments.c.event_id.desc())
    ).all()
    old = [row.item_id for row in rows[project.repeat_gap :] if row.purpose == "label" and not row.twice]
    if not old:
        return None
    item_id = min(old, key=lambda item_id: chance(project.seed, annotator_id, item_id, "again"))
    return connection.execute(select(items).where(items.c.id == item_id)).first()


BEGUN = (items.c.taken > 0) & (items.c.taken < bindparam("overlap"))
ORDER = {
    "random": (items.c.place,),
    "informative": (items.c.score.is_(None), items.c.score.desc(), items.c.place),
}
# Items that were begun are finished first.
NEXT_ITEM = {
    selected: [
        select(items).where(items.c.gold.is_(None), free, ~MET).order_by(*order).limit(1)
        for free in (BEGUN, items.c.taken == 0)
    ]
    for selected, order in ORDER.items()
}


def next_item(connection: Connection, project: Project, annotator_id: int, selected: str) -> Row | None:
    """An item with a free slot that this annotator has not met."""
    values = {"annotator": annotator_id, "overlap": project.overlap}
    found = (connection.execute(statement, values).first() for statement in NEXT_ITEM[selected])
    return next((row for row in found if row is not None), None)


FIRST_SELECTED = (
    select(assignments.c.selected)
    .where(assignments.c.item_id == bindparam("item"), assignments.c.slot.is_not(None))
    .order_by(assignments.c.id)
    .limit(1)
)


def how_selected(connection: Connection, item: Row, selected: str) -> str:
    """An item's judgements all count as what its first was; without a score nothing was known about it."""
    if item.taken:
        return connection.scalar(FIRST_SELECTED, {"item": item.id}) or selected
    return "random" if item.score is None else selected


# ----------------------------------------------------------------------------------------------------- taking


def take(connection: Connection, project: Project, annotator_id: int, choice: Choice, now: float) -> Row:
    """Opens an assignment; one of the same item that expired is taken up again."""
    item, purpose = choice.item, choice.purpose
    if purpose == "repeat":
        order = turned_order(connection, item.id, annotator_id)
    else:
        order = order_for(project.seed, item.id, annotator_id, len(item.responses))
    values: dict[str, Any] = {
        "slot": free_slot(connection, project, item.id) if purpose == "label" else None,
        "state": "open",
        "order": order,
        "selected": choice.selected,
        "opened_at": now,
        "leased_until": now + project.lease_seconds,
    }
    key = {"item_id": item.id, "annotator_id": annotator_id, "purpose": purpose}
    same = and_(*(assignments.c[name] == value for name, value in key.items()))
    again = connection.execute(update(assignments).where(same).values(**values)).rowcount
    if not again:
        connection.execute(insert(assignments).values(**key, **values))
    if purpose == "label":
        count_taken(connection, item.id, 1)
    return connection.execute(select(assignments).where(same)).one()


def order_for(seed: int, item_id: int, annotator_id: int, count: int) -> list[int]:
    """Which response an annotator sees at each position."""
    order = list(range(count))
    random.Random(chance(seed, item_id, annotator_id, "order")).shuffle(order)
    return order


FIRST_ORDER = select(assignments.c.order).where(
    assignments.c.item_id == bindparam("item"),
    assignments.c.annotator_id == bindparam("annotator"),
    assignments.c.purpose == "label",
)


def turned_order(connection: Connection, item_id: int, annotator_id: int) -> list[int]:
    """The order of a repeat: what the annotator was shown first the first time comes last."""
    first = connection.execute(FIRST_ORDER, {"item": item_id, "annotator": annotator_id})
    return first.scalar_one()[::-1]


def chance(*parts: Any) -> float:
    """A number in [0, 1) that is the same for the same parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


# ----------------------------------------------------------------------------------------- what becomes of it


def renew(connection: Connection, project: Project, assignment: Row, now: float) -> None:
    """The lease begins again.

    Raises:
        Refused: the assignment is not open any more.
    """
    if assignment.state != "open":
        raise Refused("this item is not open any more")
    change(connection, assignment.id, leased_until=now + project.lease_seconds)


def finish_judged(connection: Connection, project: Project, assignment: Row, event_id: int) -> None:
    """The assignment keeps its slot, and points at the judgement that counts.

    Raises:
        Refused: its lease ran out, and all slots are somebody else's by now.
    """
    if assignment.state == "expired":
        regain(connection, project, assignment)
    change(connection, assignment.id, state="done", event_id=event_id)


def finish_skipped(connection: Connection, assignment: Row, event_id: int) -> None:
    """The slot is free for somebody else; the annotator does not get the item again."""
    give_back(connection, assignment.id)
    change(connection, assignment.id, state="left", event_id=event_id)


LATE = select(assignments.c.id).where(
    assignments.c.state == "open", assignments.c.leased_until < bindparam("now")
)


def release_expired(connection: Connection, now: float) -> None:
    """Gives back the slots of assignments whose lease ran out."""
    late = connection.scalars(LATE, {"now": now}).all()
    for assignment_id in late:
        give_back(connection, assignment_id)
        change(connection, assignment_id, state="expired")


def reopen(connection: Connection, project: Project, assignment: Row, now: float) -> None:
    """Undo: the assignment is open again, as if it had just been taken.

    Raises:
        Refused: it was skipped, and all slots are somebody else's by now.
    """
    if assignment.state == "left":
        regain(connection, project, assignment)
    lease = now + project.lease_seconds
    change(connection, assignment.id, state="open", event_id=None, opened_at=now, leased_until=lease)


def change(connection: Connection, assignment_id: int, **values: Any) -> None:
    connection.execute(update(assignments).where(assignments.c.id == assignment_id).values(**values))


# ------------------------------------------------------------------------------------------------------ slots

USED_SLOTS = select(assignments.c.slot).where(
    assignments.c.item_id == bindparam("item"), assignments.c.slot.is_not(None)
)


def free_slot(connection: Connection, project: Project, item_id: int) -> int | None:
    """The first of an item's slots that nobody holds."""
    used = set(connection.scalars(USED_SLOTS, {"item": item_id}))
    return next((slot for slot in range(1, project.overlap + 1) if slot not in used), None)


def give_back(connection: Connection, assignment_id: int) -> None:
    """Frees an item's slot, where the assignment holds one."""
    item_id = connection.scalar(
        select(assignments.c.item_id).where(
            assignments.c.id == assignment_id, assignments.c.slot.is_not(None)
        )
    )
    if item_id is not None:
        change(connection, assignment_id, slot=None)
        count_taken(connection, item_id, -1)


def regain(connection: Connection, project: Project, assignment: Row) -> None:
    """A slot again for an assignment that had lost it.

    Raises:
        Refused: all slots are somebody else's by now.
    """
    if assignment.purpose != "label":
        return
    slot = free_slot(connection, project, assignment.item_id)
    if slot is None:
        raise Refused("this item has gone to somebody else in the meantime; go on with the next one")
    change(connection, assignment.id, slot=slot)
    count_taken(connection, assignment.item_id, 1)


def count_taken(connection: Connection, item_id: int, by: int) -> None:
    connection.execute(update(items).where(items.c.id == item_id).values(taken=items.c.taken + by))


# --------------------------------------------------------------------------------------- simulated annotators


def add_simulated(
    connection: Connection, item_id: int, annotator_id: int, order: list[int], now: float
) -> int:
    """An assignment of a simulated annotator: done at once, without a slot. Returns its id."""
    result = connection.execute(
        insert(assignments).values(
            item_id=item_id,
            annotator_id=annotator_id,
            purpose="sim",
            state="done",
            order=order,
            selected="random",
            opened_at=now,
            leased_until=now,
        )
    )
    return int(result.inserted_primary_key[0])  # type: ignore[index]
