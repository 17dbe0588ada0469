"""Small projects, people who work on them, and a server of their pages."""

import contextlib
import socket
import threading
import time

from preferl.data.records import Comparison
from preferl.label.answers import Answer
from preferl.label.judgements import read_judgements

PASSWORD = "correct horse battery"
FIRST, SECOND = Answer(ranks=[1, 2], strength=2), Answer(ranks=[2, 1], strength=-3)


def pairs(count):
    return [Comparison(f"Prompt {i}?", [f"First of {i}.", f"Second of {i}."], [1, 1]) for i in range(count)]


def triples(count):
    return [Comparison(f"Rank {i}?", [f"{word} of {i}." for word in "ABC"], [1, 1, 1]) for i in range(count)]


def people(accounts, count):
    return [accounts.add(f"person {i}").id for i in range(count)]


def nonce(*parts):
    return "-".join(["a-nonce", *map(str, parts)])


def judge_all(store, person, answer=lambda claim: FIRST):
    """Judges until nothing is left; returns the claims."""
    claims = []
    while claim := store.claim(person):
        store.submit(person, claim.id, nonce(person, claim.id, len(claims)), answer(claim))
        claims.append(claim)
    return claims


def judgements(store):
    with store.database.read() as connection:
        return read_judgements(connection)


def plain(store, **changes):
    """Without gold items and repeats."""
    return store.configure(gold_share=0.0, repeat_share=0.0, **changes)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(store, accounts, **options):
    """The pages at a port of this machine; yields their address."""
    import uvicorn

    from preferl.label.app import create_app
    from preferl.label.dependencies import Options

    app = create_app(store, accounts, Options(secret="s" * 32, **options))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join(timeout=10)
