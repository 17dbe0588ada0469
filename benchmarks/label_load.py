"""Twenty annotators at once: does every item get exactly its judgements, and how long does a submit take?

Starts ``preferl label`` on a fresh database and lets as many people as asked judge until nothing is left,
each in a process-wide connection of his own, thinking for a moment between items. Prints one table.

    python benchmarks/label_load.py                      # 20 people, 2,000 items, overlap 3
    python benchmarks/label_load.py --db postgresql://…  # the same on an empty PostgreSQL database
"""

import argparse
import http.client
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from sqlalchemy import select

from preferl.data.files import write_rows
from preferl.label.accounts import Accounts
from preferl.label.judgements import read_judgements
from preferl.label.schema import items, open_database

PREFERL = [sys.executable, "-m", "preferl", "label"]


class Server:
    """``preferl label`` in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, db: str, options: list[str]):
        self.folder, self.db, self.options = folder, db, options
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Returns as soon as it listens."""
        command = [*PREFERL, "--db", self.db, "--port", str(self.port), *self.options]
        environment = os.environ | {"XDG_CONFIG_HOME": str(self.folder)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"open http://127\.0\.0\.1:(\d+)/", line)
            if found:
                self.port = int(found[1])
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        while True:
            try:
                Person(self.port).request("GET", "/health")
                return
            except OSError:
                time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Person:
    """One annotator's browser: a connection and a cookie."""

    def __init__(self, port: int):
        self.port = port
        self.connection: http.client.HTTPConnection | None = None
        self.cookie = ""

    def request(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, body and where it leads.

        Raises:
            OSError: no answer came.
        """
        headers = {"cookie": self.cookie} if self.cookie else {}
        if form is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            self.connection.request(method, path, urlencode(form) if form is not None else None, headers)
            answer = self.connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.connection = None
            raise OSError(str(error)) from error
        given = answer.headers.get("set-cookie")
        if given:
            self.cookie = given.split(";")[0]
        return answer.status, body, answer.headers.get("location", "")

    def enter(self, token: str) -> None:
        status, _, _ = self.request("POST", f"/link/{token}", {})
        assert status == 303, status
        self.request("POST", "/consent", {})


def form_on(page: str) -> dict[str, str] | None:
    """The hidden fields of the item on a page; None where nothing is left."""
    found = re.search(r'name="assignment" value="(\d+)".*?name="nonce" value="([^"]+)"', page, re.DOTALL)
    return {"assignment": found[1], "nonce": found[2]} if found else None


def write_items(path: Path, count: int) -> None:
    texts = [f"Prompt {i}: say something of a usual length about this subject." for i in range(count)]
    write_rows(path, [{"prompt": t, "chosen": f"A {t} " * 5, "rejected": f"B {t} " * 5} for t in texts])


def invite(db: str, count: int) -> list[str]:
    """Links for ``count`` new people."""
    database = open_database(db)
    accounts = Accounts(database)
    tokens = [accounts.link(accounts.add(f"person {i:02d}").id) for i in range(count)]
    database.close()
    return tokens


def work(person: Person, think: float, seed: int, times: dict[str, list[float]], statuses: Counter) -> None:
    """Judges until nothing is left."""
    rng = random.Random(seed)

    def timed(method: str, path: str, form: dict[str, str] | None = None) -> str:
        began = time.perf_counter()
        try:
            status, body, _ = person.request(method, path, form)
        except OSError:  # an idle connection was closed: once more, as browsers do
            status, body, _ = person.request(method, path, form)
        times[path].append(time.perf_counter() - began)
        statuses[status] += 1
        return body

    while form := form_on(timed("GET", "/label")):
        time.sleep(rng.expovariate(1 / think) if think else 0)
        timed("POST", "/judgements", form | {"choice": str(rng.randint(-3, 3))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between item and answer")
    parser.add_argument("--db", help="database instead of a fresh SQLite file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db = arguments.db or str(folder / "label.sqlite")
        write_items(folder / "items.jsonl", arguments.items)
        options = ["--items", str(folder / "items.jsonl"), "--overlap", str(arguments.overlap)]
        server = Server(folder, db, [*options, "--gold_share", "0", "--repeat_share", "0"])
        server.start()
        people = [Person(server.port) for _ in range(arguments.people)]
        for person, token in zip(people, invite(db, len(people)), strict=True):
            person.enter(token)
        times: dict[str, list[float]] = {"/label": [], "/judgements": []}
        statuses: Counter[int] = Counter()
        threads = [
            threading.Thread(target=work, args=(person, arguments.think, i, times, statuses))
            for i, person in enumerate(people)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        server.kill()
        report(db, arguments, seconds, times, statuses)


def report(
    db: str, arguments: argparse.Namespace, seconds: float, times: dict[str, list[float]], statuses: Counter
) -> None:
    database = open_database(db)
    with database.read() as connection:
        found = read_judgements(connection)
        known = list(connection.scalars(select(items.c.id)))
    database.close()
    counts = Counter(j.item_id for j in found)
    exact = sum(counts[item] == arguments.overlap for item in known)
    twice = sum(n > 1 for n in Counter((j.item_id, j.annotator_id) for j in found).values())
    print(f"{arguments.people} people, {len(known)} items, overlap {arguments.overlap}, {seconds:.0f} s")
    print(f"judgements              {len(found)} ({len(found) / seconds:.0f} a second)")
    print(f"items with exactly {arguments.overlap}    {exact} of {len(known)}")
    print(f"judged twice by one     {twice}")
    print(f"answers 5xx             {sum(n for status, n in statuses.items() if status >= 500)}")
    print(f"other statuses          {dict(sorted(statuses.items()))}")
    for path, name in (("/judgements", "submit"), ("/label", "next item")):
        p50, p95, p99 = np.percentile(np.array(times[path]) * 1000, [50, 95, 99])
        print(f"{name:<10} ms           p50 {p50:.1f}   p95 {p95:.1f}   p99 {p99:.1f}")


if __name__ == "__main__":
    main()
