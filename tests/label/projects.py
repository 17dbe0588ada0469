"""Small projects, and people who work on them."""

from preferl.data.records import Ranking
from preferl.label.judgements import read_judgements
from preferl.label.store import Answer

FIRST, SECOND = Answer(ranks=[1, 2], strength=2), Answer(ranks=[2, 1], strength=-3)


def pairs(count):
    return [Ranking(f"Prompt {i}?", [f"First of {i}.", f"Second of {i}."], [1, 1]) for i in range(count)]


def triples(count):
    return [Ranking(f"Rank {i}?", [f"{word} of {i}." for word in "ABC"], [1, 1, 1]) for i in range(count)]


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
