"""Rankings of several responses: every shape that is read, every defect, pairs of them, and round trips."""

import json

import pytest
from example_rows import GOOD, pair_of, write
from hypothesis import given
from hypothesis import strategies as st

from preferl.data import formats, rows, sources
from preferl.data.files import RowError
from preferl.data.records import Comparison, DataError, Pair, ranks_of_scores

RANKED = {"prompt": "What is 2 + 2?", "responses": ["5.", "4.", "It is 4."], "ranks": [3, 1, 1]}
JUDGED = {"prompt": "What is 2 + 2?", "response_a": "5.", "response_b": "4.", "z": -1}


def test_ranks_and_ties():
    record = rows.to_ranking({**RANKED, "annotator": "ann"})
    assert record == Comparison(
        "What is 2 + 2?", ["5.", "4.", "It is 4."], [3, 1, 1], None, {"annotator": "ann"}
    )
    assert [(p.chosen, p.rejected, p.margin) for p in record.pairs()] == [
        ("4.", "5.", None),
        ("It is 4.", "5.", None),
    ]


def test_scores_give_ranks_and_margins():
    record = rows.to_ranking({"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [2, 7, 7, 4.5]})
    assert record.ranks == [4, 1, 1, 3]
    margins = {(p.chosen, p.rejected): p.margin for p in record.pairs()}
    assert margins == {("b", "a"): 5, ("b", "d"): 2.5, ("c", "a"): 5, ("c", "d"): 2.5, ("d", "a"): 2.5}


def test_two_responses_and_an_outcome():
    assert rows.to_ranking(JUDGED).ranks == [2, 1]
    assert rows.to_ranking({**JUDGED, "z": 1}).ranks == [1, 2]
    tie = rows.to_ranking({**JUDGED, "z": 0, "strength": 2})
    assert (tie.ranks, tie.scores, tie.pairs()) == ([1, 1], None, [])
    strong = rows.to_ranking({**JUDGED, "strength": 2})
    assert strong.scores == [0.0, pytest.approx(2 / 3)]
    assert strong.pairs()[0].margin == pytest.approx(2 / 3)
    assert strong.columns == {"strength": 2}


@pytest.mark.parametrize(("strength", "margin"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0)])
def test_a_strength_is_a_margin_in_thirds_and_is_kept(strength, margin):
    pair = pair_of({**GOOD, "strength": strength})
    assert pair.margin == pytest.approx(margin)
    assert pair.columns == {"strength": strength}
    assert pair_of({**GOOD, "strength": strength, "margin": 0.1}).margin == 0.1


@pytest.mark.parametrize("strength", [0, 4, True, "2", 1.5, None])
def test_another_strength_is_no_margin(strength):
    assert pair_of({**GOOD, "strength": strength}).margin is None


def test_what_belongs_to_a_response_goes_with_it():
    record = Comparison(
        "p", ["a", "b"], [2, 1], None, {"finished": [True, False], "annotator": "ann"}, ("finished",)
    )
    (pair,) = record.pairs()
    assert pair.columns == {
        "annotator": "ann",
        "finished_chosen": False,
        "finished_rejected": True,
    }
    assert pair.comparison().columns == {"annotator": "ann", "finished": [False, True]}
    back = Pair("p", "a", "b", 0.5).comparison().pairs()
    assert [(p.chosen, p.rejected, p.margin) for p in back] == [("a", "b", 0.5)]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_places_are_those_of_a_competition(scores):
    ranks = ranks_of_scores(scores)
    assert ranks == [sum(other > score for other in scores) + 1 for score in scores]
    assert min(ranks) == 1
    assert all(
        (scores[i] > scores[j]) == (ranks[i] < ranks[j])
        for i in range(len(scores))
        for j in range(len(scores))
    )


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("null_value", {**JUDGED, "response_b": None}),
        ("wrong_type", {**RANKED, "responses": "4."}),
        ("wrong_type", {**RANKED, "ranks": 1}),
        ("wrong_type", {**RANKED, "responses": ["a", 3, "c"]}),
        ("empty_response", {**RANKED, "responses": ["a", " ", "c"]}),
        ("empty_prompt", {**RANKED, "prompt": ""}),
        ("identical_pair", {**RANKED, "responses": ["4.", "4.", "It is 4."]}),
        ("bad_ranking", {**RANKED, "ranks": [1, 2]}),
        ("bad_ranking", {**RANKED, "ranks": [1, 2, "3"]}),
        ("bad_ranking", {**RANKED, "ranks": [1, 2, float("nan")]}),
        ("bad_ranking", {**RANKED, "responses": ["a"], "ranks": [1]}),
        ("bad_ranking", {**RANKED, "ranks": [1, 2, 3], "scores": [1.0, 2.0, 3.0]}),
        ("bad_ranking", {**JUDGED, "z": 2}),
        ("bad_ranking", {**JUDGED, "z": "a"}),
        ("bad_margin", {**JUDGED, "margin": -1}),
    ],
)
def test_defects_are_named(tmp_path, kind, row):
    with pytest.raises(RowError) as caught:
        rows.to_ranking(row)
    assert caught.value.kind == kind
    good = JUDGED if "z" in row else RANKED
    name = write(tmp_path / "a.jsonl", good, row)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*\({kind}\)"):
        formats.load(name, "ranking", {kind: "error"})
    assert formats.validate(write(tmp_path / "b.jsonl", good, good, row)).left_out == {kind: 1}


def test_both_shapes_are_found_by_their_columns(tmp_path):
    assert formats.detect(write(tmp_path / "a.jsonl", RANKED)) == "ranking"
    assert formats.detect(write(tmp_path / "b.jsonl", JUDGED)) == "ranking"


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_what_is_written_reads_back(tmp_path, ending):
    records = [
        Comparison("p", ["a", "b", "c"], [2, 1, 2], None, {"annotator": "ann"}),
        Comparison([{"role": "user", "content": "q"}], ["x", "y"], [1, 2], None, {"annotator": "bea"}),
    ]
    if ending == ".parquet":
        records = records[:1]
    formats.write(tmp_path / f"r{ending}", records)
    assert formats.load(str(tmp_path / f"r{ending}"), "ranking")[0] == records


def test_conversion_to_pairs_and_to_rankings(tmp_path):
    ranked = write(tmp_path / "ranked.jsonl", RANKED)
    formats.convert(ranked, tmp_path / "same.jsonl")
    assert formats.load(str(tmp_path / "same.jsonl"), "ranking")[0] == [rows.to_ranking(RANKED)]
    formats.convert(ranked, tmp_path / "pairs.jsonl", "explicit")
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("4.", "5."), ("It is 4.", "5.")]
    formats.convert(str(tmp_path / "pairs.jsonl"), tmp_path / "two.jsonl", "ranking")
    two = formats.load(str(tmp_path / "two.jsonl"), "ranking")[0]
    assert [(r.responses, r.ranks) for r in two] == [(["4.", "5."], [1, 2]), (["It is 4.", "5."], [1, 2])]


def test_a_source_of_rankings_offers_their_pairs_too(tmp_path):
    named = [{**RANKED, "prompt": f"p{i}", "split": ("train", "dev", "eval")[i % 3]} for i in range(9)]
    source = sources.load_source(write(tmp_path / "a.jsonl", *named))
    assert [len(source[s].comparisons) for s in ("train", "dev", "rl", "eval")] == [3, 3, 0, 3]
    assert len(source["train"].pairs) == 6
    assert len(source["train"].prompts) == 3
    assert {d.response for d in source["train"].demonstrations} == {"4."}


# -------------------------------------------------------------------------------------- benchmarks' columns


def read(tmp_path, *lines):
    return formats.load(write(tmp_path / "a.jsonl", *lines)).records


def test_llmbar_names_the_better_output(tmp_path):
    row = {"subset": "Natural", "input": "2 + 2?", "output_1": "5.", "output_2": "4.", "label": 2}
    (record,) = read(tmp_path, row)
    assert record == Comparison("2 + 2?", ["5.", "4."], [2, 1], None, {"subset": "Natural"})


@pytest.mark.parametrize(
    ("preference", "ranks"), [(1, [1, 2]), (2.0, [2, 1]), (0, [1, 1]), (1.5, [1, 1]), (1.2, [1, 2])]
)
def test_alpaca_eval_has_instruction_context_and_draws(tmp_path, preference, ranks):
    row = {"instruction": "Sum up.", "input": "A text.", "output_1": "a", "output_2": "b"}
    (record,) = read(tmp_path, {**row, "preference": preference, "generator_1": "x"})
    assert (record.prompt, record.ranks) == ("Sum up.\n\nA text.", ranks)
    # Between 1 and 2 it is a degree, which is kept.
    assert record.columns == {"generator_1": "x", "preference": preference}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"preference": None}, "unlabelled"),
        ({"preference": 3}, "bad_ranking"),
        ({"output_2": ""}, "empty_response"),
    ],
)
def test_alpaca_eval_rows_without_a_verdict_have_a_defect(tmp_path, change, kind):
    row = {"instruction": "Sum up.", "output_1": "a", "output_2": "b", "preference": 1}
    assert formats.validate(write(tmp_path / "a.jsonl", row, row | change)).left_out == {kind: 1}


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    bare = {"prompt": "p", "responses": ["a", "b"]}
    assert formats.load(write(tmp_path / "a.jsonl", bare, bare, bare, RANKED)).report.left_out == {
        "unlabelled": 3
    }
    open_pair = {"prompt": "p", "response_a": "a", "response_b": "b"}
    assert formats.load(write(tmp_path / "b.jsonl", open_pair, JUDGED)).report.left_out == {"unlabelled": 1}


def test_a_ranking_may_have_many_responses_and_ranks_between(tmp_path):
    many = {"prompt": "p", "responses": list("abcdefghijklmn"), "ranks": [*range(1, 15)]}
    (record,) = read(tmp_path, many)
    assert len(record.pairs()) == 14 * 13 / 2
    between = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2.5, 0.5, 2.5]}
    assert read(tmp_path, between)[0].ranks == [2, 1, 2]


def test_rm_bench_lists_become_nine_pairs_with_styles(tmp_path):
    row = {"prompt": "p", "chosen": ["a", "bb", "ccc"], "rejected": ["x", "yy", "zzz"], "domain": "chat"}
    path = write(tmp_path / "bench.jsonl", row)
    assert formats.detect(path) == "ranking"
    source = sources.load_source(path)
    pairs = source.train.pairs
    assert len(pairs) == 9
    styles = {(p.chosen, p.rejected): (p.columns["style_chosen"], p.columns["style_rejected"]) for p in pairs}
    assert styles["a", "zzz"] == (0, 2)
    assert styles["ccc", "x"] == (2, 0)
    assert {p.columns["domain"] for p in pairs} == {"chat"}


def test_one_better_and_three_worse_responses():
    record = rows.to_ranking({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"]})
    assert (record.ranks, record.columns) == ([1, 2, 2, 2], {})
    assert {(p.chosen, p.rejected) for p in record.pairs()} == {("a", "b"), ("a", "c"), ("a", "d")}


def test_plain_prompts_are_read_as_dialogue_where_asked(tmp_path):
    path = write(tmp_path / "pairs.jsonl", GOOD)
    plain, chat = (sources.load_source(path, as_dialogue=on) for on in (False, True))
    found = [pair.prompt for pair in plain.train.pairs]
    assert found == ["What is 2 + 2?"]
    found = [pair.prompt for pair in chat.train.pairs]
    assert found == [[{"role": "user", "content": "What is 2 + 2?"}]]
    assert [d.prompt for d in chat.train.demonstrations] == found
