"""A project's items and what was said about them. Every method of ``Store`` is one transaction.

Answers are only ever appended, as events; which item is whose, and which event counts, is told in
``queue.py``, and how an answer is turned into an event's columns in ``answers.py``.
"""

import dataclasses
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from preferl.data.records import Comparison, prompt_key
from preferl.label import queue
from preferl.label.answers import Answer, Refused, to_answer, to_columns
from preferl.label.project import PROJECT_ID, Project, read_project
from preferl.label.schema import Database, assignments, events, items, settings
from preferl.runs.errors import UsageError


@dataclass(frozen=True)
class Claim:
    """An item in an annotator's hands. ``id`` is the assignment's, ``shown`` are the responses in the order
    of the page, ``answer`` is what was said before an undo."""

    id: int
    item_id: int
    prompt: Any
    shown: list[str]
    order: list[int]
    answer: Answer | None = None


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
    """What an annotator's page shows; ``claim`` None where nothing is left for them."""

    project: Project
    claim: Claim | None
    progress: Progress


class Store:
    """A project's items, assignments and events.

    ``clock`` gives Unix time; tests set their own.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self.database, self.clock = database, clock

    # -------------------------------------------------------------------------------------------- the project

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
            return read_project(connection)

    def configure(self, **changes: Any) -> Project:
        """Changes settings; returns what now is.

        Raises:
            UsageError: a value out of range, or an overlap below what items already have.
        """
        with self.database.write() as connection:
            before = read_project(connection)
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
            seed = read_project(connection).seed
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
                        "place": queue.chance(seed, key),
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

    def progress(self, annotator_id: int = 0) -> Progress:
        """Where an annotator and the project are."""
        with self.database.read() as connection:
            return progress_of(connection, read_project(connection), annotator_id)

    # --------------------------------------------------------------------------------------------- annotating

    def claim(self, annotator_id: int) -> Claim | None:
        """The annotator's open item, or a new one; None where nothing is left for them."""
        return self.view(annotator_id).claim

    def view(self, annotator_id: int) -> View:
        """All that an annotator's page shows: claims an item where none is open."""
        with self.database.write() as connection:
            project = read_project(connection)
            assignment = queue.current_or_next(connection, project, annotator_id, self.clock())
            claim = None if assignment is None else claim_of(connection, assignment)
            return View(project, claim, progress_of(connection, project, annotator_id))

    def renew(self, annotator_id: int, assignment_id: int) -> None:
        """A sign of life: the lease of an open item starts again.

        Raises:
            Refused: it is not this annotator's, or no longer open.
        """
        with self.database.write() as connection:
            assignment = queue.own_assignment(connection, annotator_id, assignment_id)
            queue.renew(connection, read_project(connection), assignment, self.clock())

    def submit(self, annotator_id: int, assignment_id: int, nonce: str, answer: Answer) -> int:
        """Appends a judgement or a skip; returns the event's id. The same nonce again changes nothing.

        Raises:
            Refused: the item is not this annotator's, was answered before, was given to somebody else after
                the lease ran out, or the answer does not fit it.
        """
        check_nonce(nonce)
        with self.database.write() as connection:
            assignment = queue.own_assignment(connection, annotator_id, assignment_id)
            before = event_of_nonce(connection, annotator_id, nonce)
            if before is not None:
                check_same_answer(connection, before, assignment_id)
                return before.id
            if assignment.state in ("done", "left"):
                raise Refused("this item is answered already; undo takes the answer back")
            now, skipped = self.clock(), answer.ranks is None
            event_id = append(
                connection,
                assignment_id=assignment_id,
                annotator_id=annotator_id,
                kind="skip" if skipped else "judge",
                nonce=nonce,
                seconds=max(now - assignment.opened_at, 0.0),
                at=now,
                **to_columns(answer, assignment.order),
            )
            if skipped:
                queue.finish_skipped(connection, assignment, event_id)
            else:
                queue.finish_judged(connection, read_project(connection), assignment, event_id)
            return event_id

    def undo(self, annotator_id: int, nonce: str) -> int | None:
        """Takes back the annotator's last answer that counts; its item is open again. None: there is none.

        Raises:
            Refused: the item was skipped and has gone to somebody else.
        """
        check_nonce(nonce)
        with self.database.write() as connection:
            before = event_of_nonce(connection, annotator_id, nonce)
            if before is not None:
                return before.assignment_id
            assignment = last_answered(connection, annotator_id)
            if assignment is None:
                return None
            now = self.clock()
            append(
                connection,
                assignment_id=assignment.id,
                annotator_id=annotator_id,
                kind="undo",
                nonce=nonce,
                undoes=assignment.event_id,
                seconds=0.0,
                at=now,
            )
            queue.reopen(connection, read_project(connection), assignment, now)
            return assignment.id

    def record(self, annotator_id: int, answers: Sequence[tuple[int, Answer]]) -> int:
        """Answers of a simulated annotator to items, beside the slots of people.

        Answers are in the order in which ``queue.order_for`` shows the item to this annotator, as a person's
        are.

        Returns:
            How many were new: it judges each item once.
        """
        with self.database.write() as connection:
            now, new, seed = self.clock(), 0, read_project(connection).seed
            own = select(assignments.c.item_id).where(assignments.c.annotator_id == annotator_id)
            known = set(connection.scalars(own))
            for item_id, answer in answers:
                if item_id in known or answer.ranks is None:
                    continue
                order = queue.order_for(seed, item_id, annotator_id, len(answer.ranks))
                assignment_id = queue.add_simulated(connection, item_id, annotator_id, order, now)
                event_id = append(
                    connection,
                    assignment_id=assignment_id,
                    annotator_id=annotator_id,
                    kind="judge",
                    nonce=f"sim-{item_id:08d}",
                    seconds=0.0,
                    at=now,
                    **to_columns(answer, order),
                )
                queue.change(connection, assignment_id, event_id=event_id)
                known.add(item_id)
                new += 1
        return new


# ------------------------------------------------------------------------------------------------------ items


def item_key(prompt: Any, responses: Sequence[str]) -> str:
    """A hash of an item's texts; the order of the responses does not matter."""
    digest = hashlib.sha256(prompt_key(prompt).encode("utf-8", "surrogatepass"))
    for response in sorted(responses):
        digest.update(b"\0" + response.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


ITEM = select(items).where(items.c.id == bindparam("item"))
LAST_JUDGEMENT = (
    select(events)
    .where(events.c.assignment_id == bindparam("assignment"), events.c.kind == "judge")
    .order_by(events.c.id.desc())
    .limit(1)
)


def claim_of(connection: Connection, assignment: Row) -> Claim:
    """An assignment with what its page shows."""
    item = connection.execute(ITEM, {"item": assignment.item_id}).one()
    # After an undo the page starts from what was said before.
    last = connection.execute(LAST_JUDGEMENT, {"assignment": assignment.id}).first()
    answer = None if last is None else to_answer(last, assignment.order)
    shown = [item.responses[i] for i in assignment.order]
    return Claim(assignment.id, item.id, item.prompt, shown, assignment.order, answer)


COUNT_ITEMS = select(func.count(), func.coalesce(func.sum(items.c.taken), 0))
COUNT_OPEN = (
    select(func.count())
    .select_from(assignments)
    .where(assignments.c.state == "open", assignments.c.slot.is_not(None))
)
COUNT_GOLD = select(func.count()).select_from(items).where(items.c.gold.is_not(None))


def progress_of(connection: Connection, project: Project, annotator_id: int) -> Progress:
    states = queue.count_states(connection, annotator_id)
    count, taken = connection.execute(COUNT_ITEMS).one()
    count -= connection.scalar(COUNT_GOLD) or 0
    left = count * project.overlap - int(taken) + (connection.scalar(COUNT_OPEN) or 0)
    return Progress(states.get("done", 0), states.get("left", 0), count, left)


# ----------------------------------------------------------------------------------------------------- events


def append(connection: Connection, **values: Any) -> int:
    result = connection.execute(insert(events).values(**values))
    return int(result.inserted_primary_key[0])  # type: ignore[index]


def check_nonce(nonce: str) -> None:
    if not 8 <= len(nonce) <= 64:
        raise Refused("nonce must have 8 to 64 characters", 422)


BY_NONCE = select(events.c.id, events.c.assignment_id).where(
    events.c.annotator_id == bindparam("annotator"), events.c.nonce == bindparam("nonce")
)


def event_of_nonce(connection: Connection, annotator_id: int, nonce: str) -> Row | None:
    """What was stored when this request came before."""
    return connection.execute(BY_NONCE, {"annotator": annotator_id, "nonce": nonce}).first()


def check_same_answer(connection: Connection, before: Row, assignment_id: int) -> None:
    """Raises Refused where a nonce that came before was for something else, or its answer is taken back."""
    if before.assignment_id != assignment_id:
        raise Refused("this nonce was used for another item", 422)
    if connection.scalar(select(events.c.id).where(events.c.undoes == before.id)):
        raise Refused("this answer was taken back; reload the page to give a new one")


def last_answered(connection: Connection, annotator_id: int) -> Row | None:
    """The assignment with the annotator's last answer that counts."""
    return connection.execute(
        select(assignments)
        .where(assignments.c.annotator_id == annotator_id, assignments.c.event_id.is_not(None))
        .order_by(assignments.c.event_id.desc())
        .limit(1)
    ).first()
