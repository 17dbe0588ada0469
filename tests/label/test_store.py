"""Claims, judgements, skips and undo, on SQLite and on PostgreSQL."""

import dataclasses
import threading
from collections import Counter

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DBAPIError

from preferl.data.records import Comparison
from preferl.label import schema
from preferl.label.answers import Answer, Refused
from preferl.label.schema import assignments, events, items, open_database
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from projects import FIRST, SECOND, judge_all, judgements, nonce, pairs, people, plain, triples

# --------------------------------------------------------------------------------------------------- schema


def test_migrations_make_the_tables_that_the_code_knows(store):
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    assert ScriptDirectory.from_config(schema.alembic_config()).get_current_head() == schema.HEAD


def test_a_database_of_a_newer_version_is_left_alone(store):
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="update preferl"):
        open_database(store.database.url)


@pytest.mark.parametrize("change", [delete(events), update(events).values(ranks=[2, 1])])
def test_nobody_changes_or_deletes_what_was_said(store, accounts, change):
    store.add_items(pairs(1))
    judge_all(store, *people(accounts, 1))
    with pytest.raises(DBAPIError, match="only appended"), store.database.write() as connection:
        connection.execute(change)
    assert len(judgements(store)) == 1


@pytest.mark.parametrize("url", ["mysql://a/b", "://", "sqlite://", "sqlite:///:memory:"])
def test_databases_that_cannot_be_used_are_refused(url):
    with pytest.raises(UsageError, match="--db"):
        open_database(url)


def test_a_password_in_a_url_is_not_shown():
    with pytest.raises(UsageError) as error:
        open_database("postgresql://me:hush@127.0.0.1:1/x?connect_timeout=2")
    assert "hush" not in str(error.value)
    assert "cannot be used" in str(error.value)


def test_the_file_of_a_project_is_its_owner_s_alone(tmp_path):
    open_database(str(tmp_path / "a" / "label.sqlite")).close()
    assert (tmp_path / "a" / "label.sqlite").stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path):
    (tmp_path / "x.sqlite").write_text("This is no database, but a text that is long enough to be read." * 20)
    with pytest.raises(UsageError, match="cannot be used"):
        open_database(str(tmp_path / "x.sqlite"))


# ---------------------------------------------------------------------------------------------------- items


def test_items_are_added_once(store):
    assert store.add_items(pairs(3)) == (3, 0)
    turned = [dataclasses.replace(item, responses=item.responses[::-1]) for item in pairs(4)]
    assert store.add_items(turned) == (1, 3)


def test_everybody_judges_each_item_once_and_no_item_more_than_overlap(store, accounts):
    plain(store, overlap=3)
    store.add_items(pairs(10) + triples(2))
    ids = people(accounts, 5)

    def answer(claim):
        return FIRST if len(claim.shown) == 2 else Answer(ranks=[1, 1, 3])

    done = {person: judge_all(store, person, answer) for person in ids}
    assert sum(map(len, done.values())) == 36
    found = judgements(store)
    assert Counter(j.item_id for j in found) == dict.fromkeys(range(1, 13), 3)
    assert max(Counter((j.item_id, j.annotator_id) for j in found).values()) == 1
    assert store.progress().left == 0


def test_an_item_is_kept_for_whom_it_was_given_to(store, accounts):
    plain(store)
    store.add_items(pairs(2))
    ann, bob = people(accounts, 2)
    first = store.claim(ann)
    assert store.claim(ann) == first  # a reload shows the same
    other = store.claim(bob)
    assert other.item_id != first.item_id
    assert store.claim(accounts.add("third").id) is None


def test_people_at_once_never_get_the_same_slot(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(30))
    ids = people(accounts, 6)
    failures = []

    def work(person):
        try:
            judge_all(store, person)
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(Counter(j.item_id for j in judgements(store)).values()) == {2}
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(events)) == 60


# ------------------------------------------------------------------------------------------------ judgements


def test_what_is_stored_is_in_the_items_own_order(store, accounts):
    plain(store)
    store.add_items(pairs(20))
    (ann,) = people(accounts, 1)
    claims = judge_all(store, ann, lambda claim: SECOND)
    assert {tuple(claim.order) for claim in claims} == {(0, 1), (1, 0)}
    for claim, found in zip(claims, judgements(store), strict=True):
        # The second that was shown won, by 3.
        winner = claim.order[1]
        assert found.ranks[winner] == 1
        assert found.strength == (3 if winner == 0 else -3)
        assert claim.shown == [
            [f"First of {claim.item_id - 1}.", f"Second of {claim.item_id - 1}."][i] for i in claim.order
        ]


def test_the_order_of_responses_is_another_for_another_person(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(30))
    ann, bob = people(accounts, 2)
    orders = [{c.item_id: c.order for c in judge_all(store, person)} for person in (ann, bob)]
    assert 5 < sum(orders[0][item] != orders[1][item] for item in orders[0]) < 25


def test_the_same_nonce_is_one_judgement(store, accounts):
    plain(store)
    store.add_items(pairs(2))
    (ann,) = people(accounts, 1)
    claim = store.claim(ann)
    first = store.submit(ann, claim.id, nonce(1), FIRST)
    assert store.submit(ann, claim.id, nonce(1), SECOND) == first
    assert [j.ranks for j in judgements(store)] == [[1, 2] if claim.order[0] == 0 else [2, 1]]
    with pytest.raises(Refused, match="answered already"):
        store.submit(ann, claim.id, nonce(2), SECOND)
    other = store.claim(ann)
    with pytest.raises(Refused, match="another item"):
        store.submit(ann, other.id, nonce(1), FIRST)


def test_others_items_cannot_be_judged(store, accounts):
    plain(store)
    store.add_items(pairs(2))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    for attempt in (
        lambda: store.submit(bob, claim.id, nonce(1), FIRST),
        lambda: store.renew(bob, claim.id),
    ):
        with pytest.raises(Refused) as refused:
            attempt()
        assert refused.value.status == 404
    assert judgements(store) == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(ranks=[1]),
        Answer(ranks=[1, 3], strength=1),
        Answer(ranks=[0, 1], strength=1),
        Answer(ranks=[1, 2]),
        Answer(ranks=[1, 2], strength=4),
        Answer(ranks=[1, 2], strength=-1),
        Answer(ranks=[1, 1], strength=1),
        Answer(ranks=[1, 2], strength=0),
        Answer(ranks=[1, 2], strength=1, both_bad=True),
        Answer(ranks=[1, 2], strength=1, reason="x" * 2001),
    ],
)
def test_answers_that_do_not_fit_are_refused(store, accounts, answer):
    store.add_items(pairs(1))
    (ann,) = people(accounts, 1)
    claim = store.claim(ann)
    with pytest.raises(Refused) as refused:
        store.submit(ann, claim.id, nonce(1), answer)
    assert refused.value.status == 422
    assert store.claim(ann).id == claim.id


def test_ties_in_rankings_share_the_best_place(store, accounts):
    store.add_items(triples(1))
    (ann,) = people(accounts, 1)
    claim = store.claim(ann)
    store.submit(ann, claim.id, nonce(1), Answer(ranks=[2, 3, 3]))
    (found,) = judgements(store)
    assert [found.ranks[i] for i in claim.order] == [1, 2, 2]


def test_both_bad_is_a_tie_with_a_mark(store, accounts):
    store.add_items(pairs(1))
    (ann,) = people(accounts, 1)
    store.submit(ann, store.claim(ann).id, nonce(1), Answer(ranks=[1, 1], strength=0, both_bad=True))
    (found,) = judgements(store)
    assert (found.ranks, found.strength, found.both_bad) == ([1, 1], 0, True)


def test_a_skipped_item_goes_to_somebody_else_and_does_not_come_back(store, accounts):
    plain(store)
    store.add_items(pairs(1))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    store.submit(ann, claim.id, nonce(1), Answer(flagged=True, reason="odd"))
    assert store.claim(ann) is None
    judge_all(store, bob)
    assert [(j.annotator, j.ranks is None, j.reason) for j in judgements(store)] == [
        ("person 0", True, "odd"),
        ("person 1", False, ""),
    ]


# ------------------------------------------------------------------------------------------------------ undo


def test_undo_opens_the_last_answer_again_and_keeps_both(store, accounts):
    plain(store)
    store.add_items(pairs(3))
    (ann,) = people(accounts, 1)
    claims = []
    for i in range(2):
        claims.append(store.claim(ann))
        store.submit(ann, claims[i].id, nonce(i), dataclasses.replace(FIRST, reason=f"reason {i}"))
    third = store.claim(ann)
    assert store.undo(ann, nonce("u1")) == claims[1].id
    assert store.undo(ann, nonce("u1")) == claims[1].id  # a repeated post takes back one answer
    again = store.claim(ann)
    assert (again.id, again.answer.reason, again.answer.strength) == (claims[1].id, "reason 1", 2)
    assert again.answer.ranks == [1, 2]
    assert store.undo(ann, nonce("u2")) == claims[0].id
    with pytest.raises(Refused, match="taken back"):
        store.submit(ann, claims[0].id, nonce(0), FIRST)
    store.submit(ann, claims[0].id, nonce(5), SECOND)
    store.submit(ann, claims[1].id, nonce(6), SECOND)
    assert store.claim(ann).id == third.id
    assert [j.id for j in judgements(store)] == [5, 6]
    with store.database.read() as connection:
        kinds = connection.scalars(select(events.c.kind).order_by(events.c.id)).all()
    assert kinds == ["judge", "judge", "undo", "undo", "judge", "judge"]


def test_there_is_nothing_to_undo_at_first(store, accounts):
    store.add_items(pairs(1))
    (ann,) = people(accounts, 1)
    assert store.undo(ann, nonce("u")) is None


def test_a_skip_can_be_undone_unless_the_item_is_gone(store, accounts):
    plain(store)
    store.add_items(pairs(1))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    store.submit(ann, claim.id, nonce(1), Answer())
    store.undo(ann, nonce("u1"))
    assert store.claim(ann).id == claim.id
    assert store.claim(bob) is None
    store.submit(ann, claim.id, nonce(2), Answer())
    judge_all(store, bob)
    with pytest.raises(Refused, match="somebody else"):
        store.undo(ann, nonce("u2"))
    assert Counter(j.item_id for j in judgements(store) if j.ranks) == {claim.item_id: 1}


# ---------------------------------------------------------------------------------------------------- leases


def test_a_lease_that_ran_out_gives_the_item_to_somebody_else(store, accounts, clock):
    plain(store, lease_seconds=60)
    store.add_items(pairs(1))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    clock.now += 50
    store.renew(ann, claim.id)
    clock.now += 50
    assert store.claim(bob) is None
    clock.now += 20
    theirs = store.claim(bob)
    assert theirs is not None
    assert theirs.item_id == claim.item_id
    with pytest.raises(Refused, match="not open"):
        store.renew(ann, claim.id)
    with pytest.raises(Refused, match="somebody else"):
        store.submit(ann, claim.id, nonce(1), FIRST)
    store.submit(bob, theirs.id, nonce(2), FIRST)
    assert [j.annotator for j in judgements(store)] == ["person 1"]


def test_a_late_answer_counts_while_the_slot_is_free(store, accounts, clock):
    plain(store, lease_seconds=60)
    store.add_items(pairs(1))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    clock.now += 100
    theirs = store.claim(bob)
    store.submit(bob, theirs.id, nonce(1), Answer())
    store.submit(ann, claim.id, nonce(2), FIRST)
    assert [j.annotator for j in judgements(store) if j.ranks] == ["person 0"]
    assert store.progress().left == 0


def test_an_expired_item_can_be_claimed_again(store, accounts, clock):
    plain(store, lease_seconds=60)
    store.add_items(pairs(2))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    clock.now += 100
    store.claim(bob)
    again = store.claim(ann)
    assert again is not None
    judge_all(store, ann)
    assert again.item_id in {j.item_id for j in judgements(store)} or claim.item_id == again.item_id


# ---------------------------------------------------------------------------------- gold, repeats, order


def test_gold_items_are_mixed_in_once_for_everybody_and_take_no_slot(store, accounts):
    store.configure(gold_share=0.3, repeat_share=0.0, overlap=1)
    store.add_items(pairs(40))
    gold = [Comparison(f"Gold {i}?", ["Right.", "Wrong."], [1, 2]) for i in range(6)]
    store.add_items(gold, gold=True)
    ids = people(accounts, 2)
    for person in ids:
        for i in range(20):
            claim = store.claim(person)
            store.submit(person, claim.id, nonce(person, i), FIRST)
    counts = Counter((j.annotator_id, j.purpose) for j in judgements(store))
    for person in ids:
        assert 2 <= counts[person, "gold"] <= 6
    assert store.progress().left == 40 - sum(counts[person, "label"] for person in ids)


def test_repeats_come_later_and_turned_round(store, accounts):
    store.configure(gold_share=0.0, repeat_share=0.5, repeat_gap=3)
    store.add_items(pairs(30) + triples(10))
    (ann,) = people(accounts, 1)
    shown = []
    for i in range(40):
        claim = store.claim(ann)
        shown.append((claim.item_id, claim.shown))
        answer = FIRST if len(claim.shown) == 2 else Answer(ranks=[1, 2, 3])
        store.submit(ann, claim.id, nonce(i), answer)
    first = {}
    repeats = 0
    for place, (item, texts) in enumerate(shown):
        if item in first:
            repeats += 1
            before, texts_before = first[item]
            assert place - before > 3
            assert texts == texts_before[::-1]
        else:
            first[item] = place, texts
    assert 10 <= repeats <= 25
    assert max(Counter(item for item, _ in shown).values()) == 2


def test_informative_items_come_first_and_some_at_random(store, accounts):
    plain(store, selection="informative", random_share=0.25, overlap=1)
    store.add_items(pairs(60))
    store.set_scores({item: float(item) for item in range(1, 61)})
    (ann,) = people(accounts, 1)
    claims = []
    for i in range(24):
        claims.append(store.claim(ann))
        store.submit(ann, claims[i].id, nonce(i), FIRST)
    with store.database.read() as connection:
        rows = connection.execute(select(assignments).order_by(assignments.c.id)).all()
    best = [row.item_id for row in rows if row.selected == "informative"]
    assert best == sorted(best, reverse=True)
    assert 2 <= sum(row.selected == "random" for row in rows) <= 12


def test_items_that_were_begun_are_finished_first(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(50))
    ann, bob = people(accounts, 2)
    for i in range(5):
        store.submit(ann, store.claim(ann).id, nonce("a", i), FIRST)
    for i in range(5):
        store.submit(bob, store.claim(bob).id, nonce("b", i), FIRST)
    with store.database.read() as connection:
        assert set(connection.scalars(select(items.c.taken))) == {0, 2}


def test_simulated_annotators_take_no_slot(store, accounts):
    plain(store)
    store.add_items(pairs(3))
    sim = accounts.add("sim", kind="sim")
    answers = [(item, FIRST) for item in (1, 2, 3)]
    assert store.record(sim.id, answers) == 3
    assert store.record(sim.id, answers) == 0
    assert store.progress().left == 3
    judge_all(store, *people(accounts, 1))
    assert Counter(j.purpose for j in judgements(store)) == {"sim": 3, "label": 3}


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "changes",
    [
        {"overlap": 0},
        {"gold_share": 1.5},
        {"repeat_share": -0.1},
        {"random_share": float("nan")},
        {"lease_seconds": 0},
        {"selection": "clever"},
        {"repeat_gap": -1},
    ],
)
def test_settings_out_of_range_are_refused(store, changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        store.configure(**changes)
    assert store.project().overlap == 1


def test_overlap_cannot_fall_below_what_was_judged(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(1))
    for person in people(accounts, 2):
        judge_all(store, person)
    with pytest.raises(UsageError, match="overlap"):
        store.configure(overlap=1)
    assert store.configure(overlap=3).overlap == 3
    assert store.progress().left == 1


def test_the_seed_is_fixed_once_there_are_items(store):
    store.configure(seed=3)
    store.add_items(pairs(1))
    assert store.configure(seed=3, overlap=2).seed == 3
    with pytest.raises(UsageError, match="seed is 3"):
        store.configure(seed=4)


def test_all_judgements_of_an_item_count_as_what_the_first_was(store, accounts):
    """Begun items are finished first, whatever the next person's turn would have been."""
    plain(store, selection="informative", random_share=0.5, overlap=2)
    store.add_items(pairs(30))
    store.set_scores({i: float(i) for i in range(1, 31)})
    for person in people(accounts, 2):
        judge_all(store, person)
    tags = {}
    for j in judgements(store):
        tags.setdefault(j.item_id, set()).add(j.selected)
    assert all(len(found) == 1 for found in tags.values())
    assert {next(iter(found)) for found in tags.values()} == {"random", "informative"}


def test_without_a_score_nothing_is_informative(store, accounts):
    plain(store, selection="informative", random_share=0.0)
    store.add_items(pairs(3))
    judge_all(store, *people(accounts, 1))
    assert {j.selected for j in judgements(store)} == {"random"}


def test_a_skip_is_kept_after_the_lease(store, accounts, clock):
    plain(store, lease_seconds=60)
    store.add_items(pairs(1))
    ann, bob = people(accounts, 2)
    claim = store.claim(ann)
    clock.now += 100
    judge_all(store, bob)
    store.submit(ann, claim.id, nonce(1), Answer(flagged=True, reason="odd"))
    assert [j.reason for j in judgements(store) if j.flagged] == ["odd"]


def test_time_away_after_the_lease_does_not_count(store, accounts, clock):
    plain(store, lease_seconds=60)
    store.add_items(pairs(1))
    (ann,) = people(accounts, 1)
    store.claim(ann)
    clock.now += 100_000
    claim = store.claim(ann)
    clock.now += 5
    store.submit(ann, claim.id, nonce(1), FIRST)
    assert judgements(store)[0].seconds < 6


def test_settings_are_remembered(store, clock):
    store.configure(title="Which is kinder?", overlap=4)
    assert Store(store.database, clock).project().title == "Which is kinder?"
