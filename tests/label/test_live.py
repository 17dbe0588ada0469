"""Beside the pages, with small real models: simulated annotators, items from a policy, refits."""

import dataclasses
import json
import random

import numpy as np
import pytest
from sqlalchemy import select

from preferl import world
from preferl.cli import main
from preferl.data.records import Comparison, DataError
from preferl.judging.scorers import Ensemble
from preferl.label import live
from preferl.label.accounts import Accounts
from preferl.label.judgements import Item, read_items
from preferl.label.schema import items
from preferl.runs.errors import UsageError
from preferl.runs.record import StageRecord
from projects import FIRST, judge_all, judgements, pairs, people, plain, triples

NOUNS = ("apple", "river", "house", "stone", "cloud", "table")


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "label.sqlite")


def friendly(count):
    """Pairs of which the first is the friendlier one."""
    made = []
    for i in range(count):
        noun = NOUNS[i % len(NOUNS)]
        texts = [f"Thanks, the {noun} is nice.", f"Shut up! The {noun} is bad."]
        made.append(Comparison(f"Tell me of {noun} {i}.", texts, [1, 1]))
    return made


def prefer_first(claim):
    """The item's own first response, wherever it is shown."""
    return FIRST if claim.order[0] == 0 else dataclasses.replace(FIRST, ranks=[2, 1], strength=-2)


# -------------------------------------------------------------------------------------------------- simulate


def simulate(store, **options):
    live.simulate(live.SimulateConfig(device="cpu", num_threads=1, **options), store)


def test_a_simulated_annotator_goes_by_its_utility(store):
    store.add_items(
        [Comparison(f"Say {i}.", [f"{i}", f"{i} and much more of it"], [1, 1]) for i in range(20)]
    )
    store.add_items([Comparison("Rank.", ["aa", "a", "aaa"], [1, 1, 1])])
    simulate(store, annotator="length", label_mode="deterministic")
    found = {j.item_id: j for j in judgements(store)}
    assert all(found[i].ranks == [2, 1] and found[i].strength == -3 for i in range(1, 21))
    assert found[21].ranks == [2, 3, 1]
    assert {(j.kind, j.purpose, j.annotator) for j in found.values()} == {("sim", "sim", "simulated")}
    assert store.progress().left == 21


def test_it_goes_on_where_it_stopped(store):
    store.add_items(pairs(10))
    simulate(store, annotator="length", count=4)
    assert len(judgements(store)) == 4
    simulate(store, annotator="length")
    assert len(judgements(store)) == 10
    simulate(store, annotator="length")
    assert len(judgements(store)) == 10


def test_its_errors_and_strengths_are_those_that_were_asked_for(store):
    rows = []
    for number, prompt in enumerate(world.shuffled_prompts()[:300]):
        rng = random.Random(number)
        texts = [world.respond(prompt, *kind, rng) for kind in (("right", "concise"), ("wrong", "hedged"))]
        rows.append(Comparison(prompt.text, texts, [1, 1]))
    store.add_items(rows)
    simulate(store, name="sure", annotator="world", label_mode="deterministic")
    simulate(store, name="slips", annotator="world", label_mode="deterministic", error_rate=0.3)
    by_name = {}
    for j in judgements(store):
        by_name.setdefault(j.annotator, []).append(j)
    assert all(j.ranks == [1, 2] and j.strength == 3 for j in by_name["sure"])
    wrong = np.mean([j.ranks == [2, 1] for j in by_name["slips"]])
    assert wrong == pytest.approx(0.3, abs=0.08)
    # It is sure of nothing that it says against its own utility.
    assert {abs(j.strength) for j in by_name["slips"] if j.ranks == [2, 1]} == {1}


def test_ties_within_the_width(store):
    store.add_items([Comparison("Say.", ["abc", "abd"], [1, 1])])
    simulate(store, annotator="length", tie_policy="tie", tie_width=0.5)
    (found,) = judgements(store)
    assert (found.ranks, found.strength) == ([1, 1], 0)


def test_what_cannot_be_simulated_is_refused(store, accounts):
    store.add_items(pairs(1))
    accounts.add("Ann")
    for options, words in (
        ({"name": "Ann", "annotator": "length"}, "is a person"),
        ({"annotator": "length", "tie_policy": "skip"}, "coin or tie"),
        ({"annotator": "nobody"}, "nobody"),
    ):
        with pytest.raises(UsageError, match=words):
            simulate(store, **options)
    assert judgements(store) == []
    assert main(["label", "simulate", "--db", "/nowhere/x.sqlite"]) == 2


# ------------------------------------------------------------------------------------------------------ feed


def test_items_are_sampled_from_the_policy_until_there_are_enough(store, policy_directory, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Prompt {i}?", "split": "rl"}) for i in range(30)]
    prompts.write_text("\n".join(lines))
    config = live.FeedConfig(
        model_name_or_path=str(policy_directory), dataset_name=str(prompts), split="rl", num_generations=3,
        ahead=12, batch=5, response_length=6, once=True, device="cpu", num_threads=1,
    )  # fmt: skip
    live.feed(config, store)
    with store.database.read() as connection:
        found = list(read_items(connection).values())
    assert len(found) >= 12
    assert all(2 <= len(item.responses) <= 3 and all(item.responses) for item in found)
    assert {item.columns["policy"] for item in found} == {str(policy_directory)}
    live.feed(config, store)
    with store.database.read() as connection:
        assert len(read_items(connection)) == len(found)
    store.configure(overlap=1, gold_share=0.0, repeat_share=0.0)
    claim = store.claim(Accounts(store.database).add("Ann").id)
    assert claim.prompt.startswith("Prompt ")
    with pytest.raises(DataError, match="no split 'hard'; it has"):
        live.feed(dataclasses.replace(config, split="hard"), store)


def test_a_policy_that_writes_nothing_new_is_said_to(store, policy_directory, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Only one?", "split": "train"}) + "\n")
    monkeypatch.setattr(live, "MOST_BARREN", 3)
    config = live.FeedConfig(
        model_name_or_path=str(policy_directory), dataset_name=str(prompts), temperature=1e-3,
        response_length=4, once=True, device="cpu", num_threads=1,
    )  # fmt: skip
    with pytest.raises(UsageError, match="nothing new"):
        live.feed(config, store)


# ----------------------------------------------------------------------------------------------------- refit


@pytest.mark.slow
def test_reward_models_are_refitted_and_score_what_is_left(store, accounts, policy_directory, tmp_path):
    plain(store, selection="informative", random_share=0.0)
    store.add_items(friendly(80))
    ann, bob = people(accounts, 2)
    for i in range(60):
        claim = store.claim(ann)
        store.submit(ann, claim.id, f"a-nonce-{i}", prefer_first(claim))
    config = live.RefitConfig(
        model_name_or_path=str(policy_directory), output_dir=str(tmp_path / "runs"), once=True,
        num_members=2, num_evals=2, audit=False, device="cpu", num_threads=1, num_train_epochs=4.0,
    )  # fmt: skip
    live.refit(config, store)
    folder = tmp_path / "runs" / "refit-000060"
    assert (folder / "reward" / "DONE").exists()
    with store.database.read() as connection:
        scored = dict(connection.execute(select(items.c.id, items.c.score)).all())
        untouched = set(connection.scalars(select(items.c.id).where(items.c.taken == 0)))
    assert {item for item, score in scored.items() if score is not None} == untouched
    assert len(untouched) == 20
    # The pages take them up while they run: the most uncertain first.
    order = []
    for i in range(5):
        claim = store.claim(bob)
        order.append(claim.item_id)
        store.submit(bob, claim.id, f"b-nonce-{i}", prefer_first(claim))
    assert order == sorted(untouched, key=lambda item: -scored[item])[:5]


@pytest.mark.slow
def test_a_reward_model_learns_what_people_said(store, accounts, policy_directory, tmp_path):
    """The file of ``preferl label export`` is what ``preferl reward --dataset_name`` reads."""
    plain(store)
    store.add_items(friendly(260))
    (ann,) = people(accounts, 1)
    judge_all(store, ann, prefer_first)
    out, stage = tmp_path / "labels.jsonl", tmp_path / "reward"
    assert main(["label", "export", str(out), "--db", str(tmp_path / "label.sqlite")]) == 0
    options = {
        "model_name_or_path": policy_directory, "dataset_name": out, "output_dir": stage,
        "num_train_epochs": 4, "num_evals": 3, "device": "cpu", "num_threads": 1,
    }  # fmt: skip
    assert main(["reward", *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert StageRecord(stage).summary["eval/accuracy"] > 0.9


def test_disagreement_is_that_of_differences(store):
    """Members that differ by a constant say the same about a pair."""
    members = {
        "a": lambda prompts, completions, **columns: [float(len(text)) for text in completions],
        "b": lambda prompts, completions, **columns: [float(len(text)) + 7 for text in completions],
        "c": lambda prompts, completions, **columns: [3.0 * len(text) for text in completions],
    }
    found = [
        Item(1, "p", ["xx", "xxxx"], {}, None),
        Item(2, "p", ["x", "xx", "xxxxx"], {}, None),
    ]
    same = live.disagreement(Ensemble({k: members[k] for k in "ab"}), found)
    assert same == pytest.approx({1: 0.0, 2: 0.0})
    scores = live.disagreement(Ensemble({k: members[k] for k in "ac"}), found)
    assert scores == pytest.approx({1: 2.0, 2: 4.0})
    assert live.disagreement(Ensemble(members), []) == {}


def test_refit_needs_judgements_and_an_ensemble(store, policy_directory):
    store.add_items(friendly(3) + triples(1))
    config = live.RefitConfig(model_name_or_path=str(policy_directory), once=True, device="cpu")
    with pytest.raises(UsageError, match="no judgement to train on"):
        live.refit(config, store)
    with pytest.raises(UsageError, match="num_members"):
        live.refit(dataclasses.replace(config, num_members=1), store)
