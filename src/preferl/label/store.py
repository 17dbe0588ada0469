"""What happens to items and judgements: claiming, judging, skipping, undoing; every step is one transaction.

An item has ``overlap`` slots. A claim takes one and holds it for a lease; a judgement keeps it; a skip or a
lease that ran out gives it back. As a slot exists once (a unique index), an item gets exactly ``overlap``
judgements, by as many people. Beside these an annotator meets items of known answer (``gold``) and, turned
round, some of his own again (``repeat``).
"""

import dataclasses
import hashlib
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, select, update

from preferl.data.records import Comparison, prompt_key
from preferl.label.schema import Database, assignments, events, items, settings
from preferl.runs.errors import UsageError

MOST_REASON = 2000
PROJECT_ID = "id"  # beside the settings
STRENGTHS = range(-3, 4)


class Refused(Exception):
    """A request that cannot be done; says why. ``status`` is HTTP's."""

    def __init__(self, reason: str, status: int = 409):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Project:
    """How a project is labelled; kept in the database.

    Example: ``Project(overlap=3, selection="informative")``.
    """

    title: str = "Which response is better?"
    overlap: int = 1
    """Judgements of each item, by different people."""
    gold_share: float = 0.1
    """Share of an annotator's items with a known answer, while there are any he has not seen."""
    repeat_share: float = 0.05
    """Share of an annotator's items that he has judged before, now turned round."""
    repeat_gap: int = 10
    """Items between a judgement and its repeat, at least."""
    lease_seconds: float = 900.0
    """After so long without a sign of life an item is given to somebody else."""
    idle_seconds: float = 300.0
    """Longest time on an item that statistics count."""
    selection: str = "random"
    """``random``, or ``informative``: where a reward-model ensemble disagrees most."""
    random_share: float = 0.2
    """With ``informative``: share of items that are chosen at random all the same, for comparison."""
    markdown: bool = False
    """Show responses as (sanitised) Markdown."""
    guidelines: str = ""
    consent: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gold_share", "repeat_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("overlap", "lease_seconds", "idle_seconds"):
            if not getattr(self, name) >= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.repeat_gap >= 0:
            raise UsageError(f"repeat_gap is {self.repeat_gap}; it must be 0 or more")
        if self.selection not in ("random", "informative"):
            raise UsageError(f"selection '{self.selection}' is unknown; use random or informative")


@dataclass(frozen=True)
class Claim:
    """An item in an annotator's hands. ``shown`` are the responses in the order of the page."""

    id: int
    item_id: int
    prompt: Any
    shown: list[str]
    order: list[int]
    answer: "Answer | None" = None


@dataclass(frozen=True)
class Progress:
    """An annotator's own counts, and the project's: its items without a known answer, and judgements left,
    those in somebody's hands included."""

    judged: int
    skipped: int
    items: int
    left: int


@dataclass(frozen=True)
class View:
    """What an annotator's page shows; ``claim`` None where nothing is left for him."""

    project: Project
    claim: Claim | None
    progress: Progress


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


class Store:
    """A project's items, assignments and events.

    ``clock`` gives Unix time; tests set their own.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self.database, self.clock = database, clock

    # ------------------------------------------------------------------------------------------- the project

    def project_id(self) -> str:
        """A random name of this project, which sessions and drafts carry."""
        with self.database.write() as connection:
            found = connection.scalar(select(settings.c.value).where(settings.c.name == PROJECT_ID))
            if found is None:
                found = secrets.token_hex(8)
                connection.execute(insert(settings).values(name=PROJECT_ID, value=found))
            return found

    def project(self) -> Project:
        with self.database.read() as connection:
            return project_of(connection)

    def configure(self, **changes: Any) -> Project:
        """Changes settings; returns what now is.

        Raises:
            UsageError: a value out of range, or an overlap below what items already have.
        """
        with self.database.write() as connection:
            before = project_of(connection)
            project = dataclasses.replace(before, **changes)
            if project.seed != before.seed and connection.scalar(select(func.count()).select_from(items)):
                raise UsageError(
                    f"seed is {before.seed} and there are items: their order hangs on it; start a project of "
                    f"its own (--db) for another seed"
                )
            most = connection.scalar(select(func.max(assignments.c.slot))) or 0
            if project.overlap < most:
                raise UsageError(f"overlap {project.overlap} is below {most}, which some items have already")
            for name, value in changes.items():
                connection.execute(delete(settings).where(settings.c.name == name))
                connection.execute(insert(settings).values(name=name, value=value))
            return project

    def add_items(self, rankings: Iterable[Comparison], gold: bool = False) -> tuple[int, int]:
        """Adds items; those that are there already stay as they are. ``gold``: their ranks are the answer.

        Returns:
            How many were new, and how many were there before.
        """
        rows = []
        with self.database.write() as connection:
            seed = project_of(connection).seed
            known = set(connection.scalars(select(items.c.key)))
            read = 0
            for ranking in rankings:
                read += 1
                key = item_key(ranking.prompt, ranking.responses)
                if key in known:
                    continue
                known.add(key)
                rows.append(
                    {
                        "key": key,
                        "prompt": ranking.prompt,
                        "responses": ranking.responses,
                        "columns": ranking.columns,
                        "gold": ranking.ranks if gold else None,
                        "taken": 0,
                        "place": chance(seed, key),
                    }
                )
            if rows:
                connection.execute(insert(items), rows)
        return len(rows), read - len(rows)

    def set_scores(self, scores: dict[int, float]) -> None:
        """New scores of items, for informative selection: larger ones are labelled first."""
        if scores:
            rows = [{"item": item_id, "value": score} for item_id, score in scores.items()]
            statement = update(items).where(items.c.id == bindparam("item")).values(score=bindparam("value"))
            with self.database.write() as connection:
                connection.execute(statement, rows)

    # -------------------------------------------------------------------------------------------- annotating

    def claim(self, annotator_id: int) -> Claim | None:
        """The annotator's open item, or a new one; None where nothing is left for him."""
        return self.view(annotator_id).claim

    def view(self, annotator_id: int) -> View:
        """All that an annotator's page shows: claims an item where none is open."""
        with self.database.write() as connection:
            now = self.clock()
            project = project_of(connection)
            row = open_assignment(connection, annotator_id)
            if row is None:
                release_expired(connection, now)
                row = self.assign(connection, project, annotator_id, now)
            elif row.leased_until < now + project.lease_seconds / 2:
                # Who comes back after the lease begins anew, in the statistics of time too.
                opened = now if row.leased_until < now else row.opened_at
                change(connection, row.id, leased_until=now + project.lease_seconds, opened_at=opened)
            claim = None if row is None else claim_of(connection, row)
            return View(project, claim, progress_of(connection, project, annotator_id))

    def assign(self, connection: Connection, project: Project, annotator_id: int, now: float) -> Row | None:
        """Chooses what comes next for an annotator, and claims it."""
        states = dict(connection.execute(STATES, {"annotator": annotator_id}).all())
        count = states.get("done", 0) + states.get("left", 0)

        def falls(name: str, share: float) -> bool:
            return share > 0 and chance(project.seed, annotator_id, count, name) < share

        item, purpose, selected = None, "label", "random"
        if falls("gold", project.gold_share):
            item, purpose = next_gold(connection, annotator_id), "gold"
        if item is None and falls("repeat", project.repeat_share):
            item, purpose = next_repeat(connection, project, annotator_id), "repeat"
        if item is None:
            informative = project.selection == "informative" and not falls("random", project.random_share)
            selected = "informative" if informative else "random"
            item, purpose = next_item(connection, project, annotator_id, selected), "label"
            selected = how_selected(connection, item, selected) if item is not None else selected
        return None if item is None else take(connection, project, annotator_id, item, purpose, selected, now)

    def renew(self, annotator_id: int, assignment_id: int) -> None:
        """A sign of life: the lease of an open item starts again.

        Raises:
            Refused: it is not this annotator's, or no longer open.
        """
        with self.database.write() as connection:
            row = own_assignment(connection, annotator_id, assignment_id)
            if row.state != "open":
                raise Refused("this item is not open any more")
            until = self.clock() + project_of(connection).lease_seconds
            change(connection, row.id, leased_until=until)

    def submit(self, annotator_id: int, assignment_id: int, nonce: str, answer: Answer) -> int:
        """Appends a judgement or a skip; returns the event's id. The same nonce again changes nothing.

        Raises:
            Refused: the item is not this annotator's, was answered before, was given to somebody else after
                the lease ran out, or the answer does not fit it.
        """
        check_nonce(nonce)
        with self.database.write() as connection:
            row = own_assignment(connection, annotator_id, assignment_id)
            before = connection.execute(BY_NONCE, {"annotator": annotator_id, "nonce": nonce}).first()
            if before is not None:
                if before.assignment_id != assignment_id:
                    raise Refused("this nonce was used for another item", 422)
                if connection.scalar(select(events.c.id).where(events.c.undoes == before.id)):
                    raise Refused("this answer was taken back; reload the page to give a new one")
                return before.id
            if row.state in ("done", "left"):
                raise Refused("this item is answered already; undo takes the answer back")
            now = self.clock()
            values = checked(answer, row.order)
            if row.state == "expired" and answer.ranks is not None:
                regain(connection, project_of(connection), row)
            event_id = append(
                connection,
                assignment_id=row.id,
                annotator_id=annotator_id,
                kind="skip" if answer.ranks is None else "judge",
                nonce=nonce,
                seconds=max(now - row.opened_at, 0.0),
                at=now,
                **values,
            )
            if answer.ranks is None:
                give_back(connection, row.id)
            state = "left" if answer.ranks is None else "done"
            change(connection, row.id, state=state, event_id=event_id)
            return event_id

    def undo(self, annotator_id: int, nonce: str) -> int | None:
        """Takes back the annotator's last answer that counts; its item is open again. None: there is none.

        Raises:
            Refused: the item was skipped and has gone to somebody else.
        """
        check_nonce(nonce)
        with self.database.write() as connection:
            before = connection.execute(BY_NONCE, {"annotator": annotator_id, "nonce": nonce}).first()
            if before is not None:
                return before.assignment_id
            joined = assignments.join(events, events.c.id == assignments.c.event_id)
            row = connection.execute(
                select(assignments, events.c.id.label("last"), events.c.kind)
                .select_from(joined)
                .where(assignments.c.annotator_id == annotator_id)
                .order_by(events.c.id.desc())
                .limit(1)
            ).first()
            if row is None:
                return None
            now, project = self.clock(), project_of(connection)
            if row.kind == "skip":
                regain(connection, project, row)
            append(
                connection,
                assignment_id=row.id,
                annotator_id=annotator_id,
                kind="undo",
                nonce=nonce,
                undoes=row.last,
                seconds=0.0,
                at=now,
            )
            lease = now + project.lease_seconds
            change(connection, row.id, state="open", event_id=None, opened_at=now, leased_until=lease)
            return row.id

    def record(self, annotator_id: int, answers: Sequence[tuple[int, Answer]]) -> int:
        """Answers of a simulated annotator to items, beside the slots of people.

        Answers are in the order in which ``order_for`` shows the item to this annotator, as a person's are.

        Returns:
            How many were new: it judges each item once.
        """
        with self.database.write() as connection:
            now, new, seed = self.clock(), 0, project_of(connection).seed
            known = set(
                connection.scalars(
                    select(assignments.c.item_id).where(assignments.c.annotator_id == annotator_id)
                )
            )
            for item_id, answer in answers:
                if item_id in known or answer.ranks is None:
                    continue
                order = order_for(seed, item_id, annotator_id, len(answer.ranks))
                claim = {"item_id": item_id, "annotator_id": annotator_id, "purpose": "sim", "order": order}
                times = {"opened_at": now, "leased_until": now}
                result = connection.execute(
                    insert(assignments).values(**claim, **times, state="done", selected="random")
                )
                assignment_id = int(result.inserted_primary_key[0])  # type: ignore[index]
                event_id = append(
                    connection,
                    assignment_id=assignment_id,
                    annotator_id=annotator_id,
                    kind="judge",
                    nonce=f"sim-{item_id:08d}",
                    seconds=0.0,
                    at=now,
                    **checked(answer, order),
                )
                change(connection, assignment_id, event_id=event_id)
                known.add(item_id)
                new += 1
        return new

    def progress(self, annotator_id: int = 0) -> Progress:
        """Where an annotator and the project are."""
        with self.database.read() as connection:
            return progress_of(connection, project_of(connection), annotator_id)


# --------------------------------------------------------------------------------------------- transactions


# The statements that every page runs, built once: building one takes longer than running it.
SETTINGS = select(settings).where(settings.c.name != PROJECT_ID)
ITEM = select(items).where(items.c.id == bindparam("item"))
OWN = select(assignments).where(
    assignments.c.id == bindparam("assignment"), assignments.c.annotator_id == bindparam("annotator")
)
OPEN = (
    select(assignments)
    .where(assignments.c.annotator_id == bindparam("annotator"), assignments.c.state == "open")
    .order_by(assignments.c.opened_at.desc(), assignments.c.id.desc())
    .limit(1)
)
STATES = (
    select(assignments.c.state, func.count())
    .where(assignments.c.annotator_id == bindparam("annotator"))
    .group_by(assignments.c.state)
)
LATE = select(assignments.c.id).where(
    assignments.c.state == "open", assignments.c.leased_until < bindparam("now")
)
LAST_ANSWER = (
    select(events)
    .where(events.c.assignment_id == bindparam("assignment"), events.c.kind == "judge")
    .order_by(events.c.id.desc())
    .limit(1)
)
BY_NONCE = select(events.c.id, events.c.assignment_id).where(
    events.c.annotator_id == bindparam("annotator"), events.c.nonce == bindparam("nonce")
)
USED_SLOTS = select(assignments.c.slot).where(
    assignments.c.item_id == bindparam("item"), assignments.c.slot.is_not(None)
)
FIRST_SELECTED = (
    select(assignments.c.selected)
    .where(assignments.c.item_id == bindparam("item"), assignments.c.slot.is_not(None))
    .order_by(assignments.c.id)
    .limit(1)
)
FIRST_ORDER = select(assignments.c.order).where(
    assignments.c.item_id == bindparam("item"),
    assignments.c.annotator_id == bindparam("annotator"),
    assignments.c.purpose == "label",
)
COUNT_ITEMS = select(func.count(), func.coalesce(func.sum(items.c.taken), 0))
COUNT_OPEN = (
    select(func.count())
    .select_from(assignments)
    .where(assignments.c.state == "open", assignments.c.slot.is_not(None))
)
COUNT_GOLD = select(func.count()).select_from(items).where(items.c.gold.is_not(None))
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


def project_of(connection: Connection) -> Project:
    return Project(**{row.name: row.value for row in connection.execute(SETTINGS)})


def progress_of(connection: Connection, project: Project, annotator_id: int) -> Progress:
    states = dict(connection.execute(STATES, {"annotator": annotator_id}).all())
    count, taken = connection.execute(COUNT_ITEMS).one()
    count -= connection.scalar(COUNT_GOLD) or 0
    left = count * project.overlap - int(taken) + (connection.scalar(COUNT_OPEN) or 0)
    return Progress(states.get("done", 0), states.get("left", 0), count, left)


def item_key(prompt: Any, responses: Sequence[str]) -> str:
    """A hash of an item's texts; the order of the responses does not matter."""
    digest = hashlib.sha256(prompt_key(prompt).encode("utf-8", "surrogatepass"))
    for response in sorted(responses):
        digest.update(b"\0" + response.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def chance(*parts: Any) -> float:
    """A number in [0, 1) that is the same for the same parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def order_for(seed: int, item_id: int, annotator_id: int, count: int) -> list[int]:
    """Which response an annotator sees at each position."""
    order = list(range(count))
    random.Random(chance(seed, item_id, annotator_id, "order")).shuffle(order)
    return order


def open_assignment(connection: Connection, annotator_id: int) -> Row | None:
    """The item that this annotator opened last and has not answered."""
    return connection.execute(OPEN, {"annotator": annotator_id}).first()


def own_assignment(connection: Connection, annotator_id: int, assignment_id: int) -> Row:
    row = connection.execute(OWN, {"annotator": annotator_id, "assignment": assignment_id}).first()
    if row is None:
        raise Refused("there is no such item for you", 404)
    return row


def claim_of(connection: Connection, row: Row) -> Claim:
    item = connection.execute(ITEM, {"item": row.item_id}).one()
    # After an undo the page starts from what was said before.
    last = connection.execute(LAST_ANSWER, {"assignment": row.id}).first()
    answer = None
    if last is not None:
        turned = row.order[0] != 0
        answer = Answer(
            ranks=[last.ranks[i] for i in row.order],
            strength=last.strength if last.strength is None or not turned else -last.strength,
            both_bad=last.both_bad,
            flagged=last.flagged,
            reason=last.reason,
        )
    return Claim(row.id, item.id, item.prompt, [item.responses[i] for i in row.order], row.order, answer)


def change(connection: Connection, assignment_id: int, **values: Any) -> None:
    connection.execute(update(assignments).where(assignments.c.id == assignment_id).values(**values))


def release_expired(connection: Connection, now: float) -> None:
    """Gives back the slots of claims whose lease ran out."""
    late = connection.scalars(LATE, {"now": now}).all()
    for assignment_id in late:
        give_back(connection, assignment_id)
        change(connection, assignment_id, state="expired")


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


def count_taken(connection: Connection, item_id: int, by: int) -> None:
    connection.execute(update(items).where(items.c.id == item_id).values(taken=items.c.taken + by))


def free_slot(connection: Connection, project: Project, item_id: int) -> int | None:
    used = set(connection.scalars(USED_SLOTS, {"item": item_id}))
    return next((slot for slot in range(1, project.overlap + 1) if slot not in used), None)


def regain(connection: Connection, project: Project, row: Row) -> None:
    """A slot again for an assignment that had lost it."""
    if row.purpose != "label":
        return
    slot = free_slot(connection, project, row.item_id)
    if slot is None:
        raise Refused("this item has gone to somebody else in the meantime; go on with the next one")
    change(connection, row.id, slot=slot)
    count_taken(connection, row.item_id, 1)


def append(connection: Connection, **values: Any) -> int:
    result = connection.execute(insert(events).values(**values))
    return int(result.inserted_primary_key[0])  # type: ignore[index]


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


def next_item(connection: Connection, project: Project, annotator_id: int, selected: str) -> Row | None:
    """An item with a free slot that this annotator has not met."""
    values = {"annotator": annotator_id, "overlap": project.overlap}
    found = (connection.execute(statement, values).first() for statement in NEXT_ITEM[selected])
    return next((row for row in found if row is not None), None)


def how_selected(connection: Connection, item: Row, selected: str) -> str:
    """An item's judgements all count as what its first was; without a score nothing was known about it."""
    if item.taken:
        return connection.scalar(FIRST_SELECTED, {"item": item.id}) or selected
    return "random" if item.score is None else selected


def take(
    connection: Connection,
    project: Project,
    annotator_id: int,
    item: Row,
    purpose: str,
    selected: str,
    now: float,
) -> Row:
    """Claims an item; an expired claim of the same item is taken up again."""
    order = order_for(project.seed, item.id, annotator_id, len(item.responses))
    if purpose == "repeat":  # what was shown first comes last
        first = connection.execute(FIRST_ORDER, {"item": item.id, "annotator": annotator_id})
        order = first.scalar_one()[::-1]
    values: dict[str, Any] = {
        "slot": free_slot(connection, project, item.id) if purpose == "label" else None,
        "state": "open",
        "order": order,
        "selected": selected,
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


def check_nonce(nonce: str) -> None:
    if not 8 <= len(nonce) <= 64:
        raise Refused("nonce must have 8 to 64 characters", 422)


def checked(answer: Answer, order: Sequence[int]) -> dict[str, Any]:
    """An answer as an event's columns, in the item's own order.

    Raises:
        Refused: it does not fit the item.
    """
    # Forms send line ends as CRLF; no database of ours holds NUL.
    reason = answer.reason.replace("\r\n", "\n").replace("\0", "").strip()
    if len(reason) > MOST_REASON:
        raise Refused(f"the reason has {len(reason)} characters; at most {MOST_REASON} are kept", 422)
    values: dict[str, Any] = {"reason": reason, "flagged": answer.flagged}
    if answer.ranks is None:
        return values
    K = len(order)
    if len(answer.ranks) != K or not all(1 <= rank <= K for rank in answer.ranks):
        raise Refused(f"give each of the {K} responses a place from 1 to {K}", 422)
    # 1, 3, 3 becomes 1, 2, 2: what counts is the order.
    places = {rank: 1 + sum(other < rank for other in answer.ranks) for rank in answer.ranks}
    shown = [places[rank] for rank in answer.ranks]
    own = dict(zip(order, shown, strict=True))
    values |= {"ranks": [own[i] for i in range(K)], "both_bad": answer.both_bad}
    if answer.both_bad and len(set(shown)) > 1:
        raise Refused("responses that are both bad share a place", 422)
    if K == 2:
        strength = answer.strength
        if strength is None or strength not in STRENGTHS:
            raise Refused("strength must lie between -3 and 3", 422)
        if (strength > 0) != (shown[0] < shown[1]) or (strength < 0) != (shown[0] > shown[1]):
            raise Refused("strength and places contradict each other", 422)
        values["strength"] = strength if order[0] == 0 else -strength
    elif answer.strength is not None:
        raise Refused("only pairs have a strength", 422)
    return values
