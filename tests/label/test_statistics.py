"""The lead's numbers, on projects small enough to count by hand."""

import pytest

from preferl.data.records import Comparison
from preferl.label import statistics
from preferl.label.answers import Answer
from preferl.label.queue import order_for
from projects import FIRST, judge_all, nonce, pairs, people, plain, triples


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "label.sqlite")


def own(strength):
    """An answer that prefers the item's own first response by ``strength``, wherever it is shown."""

    def answer(claim):
        shown = strength if claim.order[0] == 0 else -strength
        return Answer(ranks=[1 + (shown < 0), 1 + (shown > 0)], strength=shown)

    return answer


def row_of(store, name):
    return next(row for row in statistics.dashboard(store)["annotators"] if row["name"] == name)


def test_nothing_judged_is_said_to_be_undefined(store):
    store.add_items(pairs(3))
    found = statistics.dashboard(store)
    assert found["progress"]["item_count"] == 3
    assert found["agreement"]["alpha_nominal"] == "no item has two judgements yet"
    assert found["annotators"] == []


def test_agreement_of_people_who_agree_and_of_one_who_does_not(store, accounts):
    plain(store, overlap=3)
    store.add_items(pairs(20))
    ann, bob, eve = people(accounts, 3)
    for person, sign in ((ann, 1), (bob, 1), (eve, -1)):
        judge_all(store, person, lambda c, sign=sign: own(sign * (2 if c.item_id % 2 else -1))(c))
    found = statistics.dashboard(store)["agreement"]
    # Of three pairs of people one agrees everywhere; about half of all answers are 1, whatever order the
    # file had: alpha = 1 - (2/3) / (30/59).
    assert found["same_choice"] == pytest.approx(1 / 3)
    assert found["alpha_nominal"] == pytest.approx(1 - (2 / 3) / (30 / 59), abs=0.05)
    assert found["fleiss"] == pytest.approx(1 - (2 / 3) / 0.5, abs=0.05)
    assert found["cohen"] == pytest.approx((1 - 1 - 1) / 3, abs=0.05)
    assert found["units"] == 20
    assert row_of(store, "person 0")["kappa"] == pytest.approx(0, abs=0.05)
    assert row_of(store, "person 2")["kappa"] == pytest.approx(-1, abs=0.1)


def test_agreement_does_not_hang_on_the_order_of_the_file(store, accounts):
    """Files hold the response that was chosen before first: to agree with it is no answer by chance."""
    plain(store, overlap=2)
    store.add_items(pairs(40))
    for person, wrong in zip(people(accounts, 2), ((), (7, 21)), strict=True):
        judge_all(store, person, lambda c, wrong=wrong: own(-2 if c.item_id in wrong else 2)(c))
    found = statistics.dashboard(store)["agreement"]
    assert found["same_choice"] == 0.95
    for name in ("alpha_nominal", "fleiss", "cohen"):
        assert found[name] == pytest.approx(0.9, abs=0.03), name
    assert found["alpha_ordinal"] > 0.85


def test_ties_everywhere_have_no_alpha(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(5))
    for person in people(accounts, 2):
        judge_all(store, person, own(0))
    found = statistics.dashboard(store)["agreement"]
    assert "same answer everywhere" in found["alpha_nominal"]
    assert found["same_choice"] == 1


def test_a_ranking_is_one_observation(store, accounts):
    """The pairs of one ranking hang together: nine responses in the order of the page are no proof."""
    store.add_items([Comparison("Rank?", [f"{i}." for i in range(9)], [1] * 9)])
    (ann,) = people(accounts, 1)
    judge_all(store, ann, lambda claim: Answer(ranks=list(range(1, 10))))
    found = row_of(store, "person 0")["first_wins"]
    assert (found["share"], found["total"], found["biased"]) == (1.0, 1, False)


def test_a_position_bias_is_seen(store, accounts):
    plain(store, overlap=2)
    store.add_items(pairs(40))
    lazy, fair = people(accounts, 2)
    judge_all(store, lazy)  # always the first that is shown
    judge_all(store, fair, own(1))
    biased = row_of(store, "person 0")["first_wins"]
    assert (biased["share"], biased["biased"]) == (1.0, True)
    honest = row_of(store, "person 1")["first_wins"]
    assert not honest["biased"]
    assert honest["low"] < 0.5 < honest["high"]


def test_flips_on_repeats_and_gold(store, accounts):
    store.configure(gold_share=0.2, repeat_share=0.4, repeat_gap=2)
    store.add_items(pairs(80))
    gold = [Comparison(f"Gold {i}?", ["Right.", "Wrong."], [1, 2]) for i in range(8)]
    store.add_items(gold, gold=True)
    position, content = people(accounts, 2)
    for i in range(30):
        claim = store.claim(position)
        store.submit(position, claim.id, nonce(0, i), FIRST)
        claim = store.claim(content)
        store.submit(content, claim.id, nonce(1, i), own(1)(claim))
    first, second = (row_of(store, f"person {i}") for i in (0, 1))
    assert first["flips"]["share"] == 1.0  # who goes by position says the opposite when turned round
    assert second["flips"]["share"] == 0.0
    assert second["gold"]["share"] == 1.0
    assert first["gold"]["share"] < 1.0
    assert second["gold"]["total"] >= 2


def test_time_is_capped_where_somebody_went_away(store, accounts, clock):
    plain(store, idle_seconds=60)
    store.add_items(pairs(3))
    (ann,) = people(accounts, 1)
    for i, pause in enumerate((10, 20, 5000)):
        claim = store.claim(ann)
        clock.now += pause
        store.submit(ann, claim.id, nonce(i), FIRST)
    found = statistics.dashboard(store)["progress"]
    assert found["median_seconds"] == pytest.approx(20, abs=0.1)
    assert found["per_hour"] == pytest.approx(3 / (90 / 3600), rel=0.01)
    assert found["last_hour"] == 1
    assert found["last_day"] == 3


def test_simulated_annotators_are_kept_apart(store, accounts):
    plain(store)
    store.add_items(pairs(10))
    judge_all(store, *people(accounts, 1), own(2))
    before = statistics.dashboard(store)
    sim = accounts.add("sim", kind="sim")

    def shown(item, strength):
        """An answer in the order in which the item is shown to this annotator."""
        strength = strength if order_for(0, item, sim.id, 2)[0] == 0 else -strength
        return item, Answer(ranks=[1 + (strength < 0), 1 + (strength > 0)], strength=strength)

    store.record(sim.id, [shown(i, 1) for i in range(1, 9)] + [shown(i, -1) for i in (9, 10)])
    after = statistics.dashboard(store)
    for name in ("agreement", "annotators", "progress"):
        assert before[name] == after[name]
    (row,) = after["simulated"]
    assert (row["judged"], row["same"]["share"], row["same"]["total"]) == (10, 0.8, 10)


def test_what_was_taken_back_does_not_count(store, accounts):
    plain(store)
    store.add_items(triples(1))
    (ann,) = people(accounts, 1)
    judge_all(store, ann, lambda claim: Answer(ranks=[1, 2, 3], flagged=True, reason="first"))
    store.undo(ann, nonce("u"))
    assert statistics.dashboard(store)["flags"] == []
    claim = store.claim(ann)
    store.submit(ann, claim.id, nonce(2), Answer(ranks=[1, 1, 2], flagged=True, reason="second"))
    found = statistics.dashboard(store)
    assert [flag["reason"] for flag in found["flags"]] == ["second"]
    assert found["annotators"][0]["ties"]["share"] == pytest.approx(1 / 3)


def test_random_and_informative_items_stand_side_by_side(store, accounts):
    plain(store, selection="informative", random_share=0.5)
    store.add_items(pairs(20))
    store.set_scores({i: i / 20 for i in range(1, 21)})
    judge_all(store, *people(accounts, 1))
    rows = statistics.dashboard(store)["selection"]
    assert [row["selected"] for row in rows] == ["random", "informative"]
    assert sum(row["judgements"] for row in rows) == 20
