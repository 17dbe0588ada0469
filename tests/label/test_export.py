"""What comes out of a project: every layout, aggregation, and back in through the readers of data sets."""

import json

import pytest

from preferl.cli import main
from preferl.data import formats
from preferl.data.records import Comparison
from preferl.label import export
from preferl.label.answers import Answer
from preferl.label.schema import open_database
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from projects import judge_all, nonce, pairs, people, plain, triples


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "label.sqlite")


def own(*ranks, strength=None, **said):
    """An answer in the item's own order."""

    def answer(claim):
        shown = [ranks[i] for i in claim.order]
        signed = strength if strength is None or claim.order[0] == 0 else -strength
        return Answer(ranks=shown, strength=signed, **said)

    return answer


@pytest.fixture
def judged(store, accounts):
    """Three pairs (by 2, by -1, a tie) and a ranking with a tie."""
    plain(store)
    items = [*pairs(3), *triples(1)]
    items[0].columns["source"] = "old"
    store.add_items(items)
    answers = {
        1: own(1, 2, strength=2, reason="because"),
        2: own(2, 1, strength=-1),
        3: own(1, 1, strength=0, both_bad=True),
        4: own(2, 1, 1),
    }
    judge_all(store, accounts.add("Ann").id, lambda claim: answers[claim.item_id](claim))
    return store


def by_prompt(rows):
    return {row.prompt if hasattr(row, "prompt") else row["prompt"]: row for row in rows}


@pytest.mark.parametrize("layout", ["explicit", "implicit", "hh"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_pairs_read_back(judged, tmp_path, layout, ending):
    path = tmp_path / f"labels{ending}"
    # Two decided pairs, and the two of the ranking that are no tie.
    assert export.write(judged, path, layout) == 4
    found = [pair for record in formats.load(str(path)).records for pair in record.pairs()]
    texts = {(pair.chosen, pair.rejected) for pair in found}
    assert texts == {
        ("First of 0.", "Second of 0."),
        ("Second of 1.", "First of 1."),
        ("B of 0.", "A of 0."),
        ("C of 0.", "A of 0."),
    }
    pair = next(pair for pair in found if pair.chosen == "First of 0.")
    assert pair.margin == pytest.approx(2 / 3)
    assert pair.columns["annotator"] == "Ann"
    assert pair.columns["reason"] == "because"
    assert pair.columns["source_source"] == "old"
    assert {pair.columns["shown_at_chosen"], pair.columns["shown_at_rejected"]} == {1, 2}


def test_rankings_read_back_with_ties(judged, tmp_path):
    path = tmp_path / "labels.jsonl"
    assert export.write(judged, path, "ranking") == 4
    found = by_prompt(formats.load(str(path), kind="ranking")[0])
    assert found["Prompt 2?"].ranks == [1, 1]
    assert found["Prompt 2?"].columns["both_bad"] is True
    assert found["Rank 0?"].ranks == [3, 1, 1]
    assert found["Prompt 1?"].ranks == [2, 1]
    assert found["Prompt 1?"].scores == pytest.approx([0, 1 / 3])


def test_comparisons_read_back_with_z(store, accounts, tmp_path):
    plain(store)
    store.add_items(pairs(2))
    judge_all(store, *people(accounts, 1), own(2, 1, strength=-3))
    path = tmp_path / "labels.jsonl"
    export.write(store, path, "comparison")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["z"] for row in rows} == {-1}
    assert rows[0]["margin"] == 1
    assert all(r.ranks == [2, 1] for r in formats.load(str(path), kind="ranking")[0])


def test_the_command_writes_what_reward_reads(judged, tmp_path, capsys):
    out = tmp_path / "labels.jsonl"
    assert main(["label", "export", str(out), "--db", str(tmp_path / "label.sqlite")]) == 0
    assert capsys.readouterr().out.strip() == f"{out}: 4 rows"
    assert formats.detect(str(out)) == "preference"
    assert main(["label", "export", str(out), "--db", str(tmp_path / "label.sqlite"), "--layout", "csv"]) == 2
    assert main(["label", "export", str(tmp_path / "x.txt"), "--db", str(tmp_path / "label.sqlite")]) == 3
    assert main(["label", "export", str(out), "--db", str(tmp_path / "none.sqlite")]) == 2
    assert "there is no project" in capsys.readouterr().err


def test_gold_and_repeats_are_left_out(store, accounts):
    store.configure(gold_share=0.5, repeat_share=0.5, repeat_gap=1)
    store.add_items(pairs(10))
    store.add_items([Comparison(f"Gold {i}?", ["a", "b"], [1, 2]) for i in range(5)], gold=True)
    (ann,) = people(accounts, 1)
    for i in range(15):
        store.submit(ann, store.claim(ann).id, nonce(i), Answer(ranks=[1, 2], strength=1))
    found = export.records(store)
    prompts = [r.prompt for r in found]
    assert len(set(prompts)) == len(prompts) < 15
    assert not any(prompt.startswith("Gold") for prompt in prompts)


def test_nothing_judged_is_no_file(store, tmp_path):
    store.add_items(pairs(1))
    with pytest.raises(UsageError, match="no judgement"):
        export.write(store, tmp_path / "x.jsonl", "explicit")
    assert not (tmp_path / "x.jsonl").exists()
    for choice in ({"aggregate": "mean"}, {"kind": "robot"}):
        with pytest.raises(UsageError, match="unknown"):
            export.records(store, **choice)


def test_people_and_simulated_annotators_are_told_apart(judged, accounts):
    sim = accounts.add("sim", kind="sim")
    judged.record(sim.id, [(1, Answer(ranks=[2, 1], strength=-1))])
    assert {r.columns["annotator_kind"] for r in export.records(judged)} == {"human"}
    (found,) = export.records(judged, kind="sim")
    assert (found.columns["annotator"], found.ranks) == ("sim", [2, 1])
    assert len(export.records(judged, kind="all")) == 5


# ----------------------------------------------------------------------------------------------- aggregation


def project(url, answers_of_items, items):
    """Each item's answers, one person each."""
    store = Store(open_database(url))
    plain(store, overlap=max(map(len, answers_of_items)))
    store.add_items(items)
    from preferl.label.accounts import Accounts

    ids = people(Accounts(store.database), max(map(len, answers_of_items)))
    for number, person in enumerate(ids):
        judge_all(store, person, lambda claim, n=number: answers_of_items[claim.item_id - 1][n](claim))
    return store


def test_the_majority_decides(url):
    store = project(
        url,
        [
            [own(1, 2, strength=3), own(1, 2, strength=1), own(2, 1, strength=-1)],
            [own(1, 2, strength=1), own(1, 2, strength=1), own(2, 1, strength=-3)],
            [own(1, 2, strength=1), own(2, 1, strength=-1), own(1, 1, strength=0)],
            [own(1, 1, strength=0), own(1, 1, strength=0), own(1, 2, strength=3)],
        ],
        pairs(4),
    )
    found = by_prompt(export.records(store, "majority"))
    assert found["Prompt 0?"].ranks == [1, 2]
    assert found["Prompt 0?"].scores == pytest.approx([1 / 3, 0])
    # Two weak votes beat a strong one; the mean strength, which is against them, is no margin.
    assert (found["Prompt 1?"].ranks, found["Prompt 1?"].scores) == ([1, 2], None)
    assert found["Prompt 2?"].ranks == [1, 1]
    assert found["Prompt 3?"].ranks == [1, 1]  # most said tie
    assert found["Prompt 0?"].columns["judgements"] == 3
    assert found["Prompt 0?"].columns["annotators"] == "person 0, person 1, person 2"


def test_rankings_are_put_together_by_mean_place(url):
    store = project(url, [[own(1, 2, 3), own(2, 1, 3), own(1, 3, 2)]], triples(1))
    for how in ("majority", "dawid_skene"):
        (found,) = export.records(store, how)
        assert found.ranks == [1, 2, 3], how


def test_opposite_rankings_are_a_tie(url):
    store = project(url, [[own(1, 2, 2), own(3, 1, 1)]], triples(1))
    (found,) = export.records(store, "majority")
    assert found.ranks == [1, 1, 1]


def test_careless_annotators_are_outweighed(url):
    """Two careful people and five who take what is shown first; the truth alternates."""

    def careful(claim):
        good = claim.item_id % 2 == 0
        return own(*((1, 2) if good else (2, 1)), strength=1 if good else -1)(claim)

    def careless(claim):
        return Answer(ranks=[1, 2], strength=1)

    store = project(url, [[careful, careful, *[careless] * 5]] * 80, pairs(80))
    truth = {f"Prompt {i}?": [1, 2] if (i + 1) % 2 == 0 else [2, 1] for i in range(80)}
    majority = by_prompt(export.records(store, "majority"))
    assert sum(majority[p].ranks == truth[p] for p in truth) < 74
    weighed = by_prompt(export.records(store, "dawid_skene"))
    assert sum(weighed[p].ranks == truth[p] for p in truth) >= 78
    assert all(0.5 < r.columns["probability"] <= 1 for r in weighed.values())
