"""kill -9 again and again while people submit: is a judgement that was acknowledged ever lost or doubled?

Eight writers judge as fast as they can; the server is killed at random moments and started again. A writer
whose submit got no answer sends the same form again, as a browser's reload does. In the end every
acknowledged nonce must be in the database exactly once, and the database must be intact.

    python benchmarks/label_crash.py                     # 200 kills, 8 writers
    python benchmarks/label_crash.py --kills 10
"""

import argparse
import random
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from label_load import Person, Server, form_on, invite, write_items
from preferl.label.judgements import read_judgements
from preferl.label.schema import assignments, events, items, open_database


def write(person: Person, stop: threading.Event, acknowledged: list[tuple[str, str]], odd: Counter) -> None:
    """Judges; notes every submit that the server confirmed."""
    form = None
    while not stop.is_set():
        try:
            if form is None:
                status, page, _ = person.request("GET", "/label")
                form = form_on(page)
                if form is None:
                    odd[f"page {status}"] += 1
                    return
            status, _, where = person.request("POST", "/judgements", form | {"choice": "2"})
        except OSError:
            time.sleep(0.05)  # the server is down: the same form again
            continue
        if (status, where) == (303, "/label"):
            acknowledged.append((form["assignment"], form["nonce"]))
        else:
            odd[f"submit {status}"] += 1
        form = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db = str(folder / "label.sqlite")
        write_items(folder / "items.jsonl", 500 * arguments.kills)
        options = ["--gold_share", "0", "--repeat_share", "0", "--overlap", "2"]
        server = Server(folder, db, ["--items", str(folder / "items.jsonl"), *options])
        server.start()
        server.options = []
        people = [Person(server.port) for _ in range(arguments.writers)]
        for person, token in zip(people, invite(db, len(people)), strict=True):
            person.enter(token)
        stop, acknowledged, odd = threading.Event(), [], Counter()
        threads = [threading.Thread(target=write, args=(p, stop, acknowledged, odd)) for p in people]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for _ in range(arguments.kills):
            time.sleep(rng.uniform(0.05, 0.6))
            server.kill()
            server.start()
        time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
        server.kill()
        seconds = time.perf_counter() - began
        lost, doubled, broken = check(db, acknowledged)
    print(f"{arguments.kills} kills, {arguments.writers} writers, {seconds:.0f} s")
    print(f"acknowledged judgements {len(acknowledged)}")
    print(f"lost                    {lost}")
    print(f"doubled                 {doubled}")
    print(f"other answers           {dict(odd)}")
    print(f"database                {broken or 'intact'}")
    raise SystemExit(bool(lost or doubled or broken or odd))


def check(db: str, acknowledged: list[tuple[str, str]]) -> tuple[int, int, str]:
    """Acknowledged judgements that are missing, that count twice, and what is wrong with the database."""
    with sqlite3.connect(db) as plain:
        (integrity,) = plain.execute("PRAGMA integrity_check").fetchone()
        foreign = plain.execute("PRAGMA foreign_key_check").fetchall()
    database = open_database(db)
    with database.read() as connection:
        stored = Counter(
            (str(row.assignment_id), row.nonce)
            for row in connection.execute(select(events.c.assignment_id, events.c.nonce))
        )
        counting = Counter(
            (j.item_id, j.annotator_id) for j in read_judgements(connection) if j.ranks is not None
        )
        held = dict(
            connection.execute(
                select(assignments.c.item_id, func.count())
                .where(assignments.c.slot.is_not(None))
                .group_by(assignments.c.item_id)
            ).all()
        )
        taken = dict(connection.execute(select(items.c.id, items.c.taken)).all())
    database.close()
    lost = sum(stored[pair] == 0 for pair in acknowledged)
    doubled = sum(n > 1 for n in stored.values()) + sum(n > 1 for n in counting.values())
    doubled += len(acknowledged) - len(set(acknowledged))
    problems = [] if integrity == "ok" else [integrity]
    problems += [f"{len(foreign)} broken references"] if foreign else []
    problems += (
        ["slots and counts differ"] if any(held.get(item, 0) != n for item, n in taken.items()) else []
    )
    return lost, doubled, ", ".join(problems)


if __name__ == "__main__":
    main()
