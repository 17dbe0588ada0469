"""Comparisons and their pairs, and single responses that are rated."""

import pytest
from example_rows import GOOD, load_pairs, pair_of, write
from hypothesis import given
from hypothesis import strategies as st

from preferl.data import formats, rows, sources
from preferl.data.files import RowError
from preferl.data.records import Comparison, Pair, Rated

NAMES = st.sampled_from(
    ["a", "a_chosen", "a_rejected", "_chosen", "_rejected", "a_rejected_chosen", "a_chosen_rejected", "tags"]
)
COLUMNS = st.dictionaries(NAMES, st.one_of(st.integers(), st.lists(st.integers(), max_size=3)))


@given(COLUMNS, st.one_of(st.none(), st.floats(0, 5)))
def test_a_pair_is_a_comparison_of_two_and_back(columns, margin):
    pair = Pair("p", "x", "y", margin, columns)
    assert pair.comparison().pairs() == [pair]


def test_columns_of_a_response_go_with_it_into_pairs():
    columns = {"judge": "ann", "finished": [True, False, True], "tags": ["x", "y", "z"]}
    record = Comparison("p", ["a", "b", "c"], [2, 1, 2], [1.0, 4.0, 1.0], columns, ("finished",))
    assert record.values("finished", None) == [True, False, True]
    assert record.values("absent", 0) == [0, 0, 0]
    first, second = record.pairs()
    assert (first.chosen, first.rejected, first.margin) == ("b", "a", 3.0)
    assert first.columns == {
        "judge": "ann",
        "finished_chosen": False,
        "finished_rejected": True,
        "tags": ["x", "y", "z"],
    }
    assert second.columns["finished_rejected"] is True
    assert record.best() == "b"


def test_a_list_of_a_pair_that_happens_to_have_two_parts_stays_whole(tmp_path):
    """In a row with ``responses`` such a list is one value for each response; in a row of two it is not."""
    row = {**GOOD, "tags": ["maths", "easy"], "score_chosen": 2, "score_rejected": 1}
    assert pair_of(row).columns == {"tags": ["maths", "easy"], "score_chosen": 2, "score_rejected": 1}
    formats.convert(write(tmp_path / "a.jsonl", row), tmp_path / "b.jsonl")
    assert load_pairs(str(tmp_path / "b.jsonl"))[0] == [pair_of(row)]
    formats.convert(str(tmp_path / "b.jsonl"), tmp_path / "c.jsonl", "ranking")
    (record,) = formats.load(str(tmp_path / "c.jsonl")).records
    assert record.columns == {"tags": ["maths", "easy"], "score": [2, 1]}


KTO = {"prompt": "2 + 2?", "completion": "4.", "label": True, "source": "x"}
RATED = {"prompt": "2 + 2?", "completion": "4.", "ratings": {"helpfulness": 3, "verbosity": None}}


def test_single_responses_with_a_label_or_ratings(tmp_path):
    assert formats.detect(write(tmp_path / "a.jsonl", KTO, {**KTO, "label": False})) == "rated"
    assert formats.detect(write(tmp_path / "b.jsonl", RATED)) == "rated"
    # Any other label is a column like another.
    assert formats.detect(write(tmp_path / "c.jsonl", {**KTO, "label": "maths"})) == "demonstration"
    assert rows.to_rated(KTO) == Rated("2 + 2?", "4.", {}, True, {"source": "x"})
    assert rows.to_rated(RATED) == Rated("2 + 2?", "4.", {"helpfulness": 3.0}, None, {})
    for record in (rows.to_rated(KTO), rows.to_rated(RATED)):
        formats.write(tmp_path / "d.jsonl", [record])
        assert formats.load(str(tmp_path / "d.jsonl")).records == [record]
    formats.convert(str(tmp_path / "a.jsonl"), tmp_path / "e.jsonl")
    assert (tmp_path / "e.jsonl").read_text().count("label") == 2


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("bad_ranking", {**KTO, "label": 1}),
        ("bad_ranking", {**RATED, "ratings": {"helpfulness": "high"}}),
        ("wrong_type", {**RATED, "ratings": [3]}),
        ("missing_column", {"prompt": "p", "completion": "c"}),
        ("missing_column", {**RATED, "ratings": {}}),
        ("empty_response", {**KTO, "completion": " "}),
        ("empty_prompt", {**KTO, "prompt": ""}),
    ],
)
def test_defects_of_rated_rows_are_named(kind, row):
    with pytest.raises(RowError) as caught:
        rows.to_rated(row)
    assert caught.value.kind == kind


def test_what_is_called_bad_is_not_imitated(tmp_path):
    name = write(
        tmp_path / "a.jsonl",
        *({**KTO, "prompt": f"q{i}", "completion": f"a{i}", "label": i % 3 > 0} for i in range(12)),
    )
    source = sources.load_source(name)
    shown = {d.response for part in source.parts.values() for d in part.demonstrations}
    assert shown == {f"a{i}" for i in range(12) if i % 3}
    assert any("8 of 12 rated responses are demonstrations" in note for note in source.notes)


def test_every_kind_has_what_reads_and_what_writes_it(tmp_path):
    examples = {
        "preference": GOOD,
        "ranking": {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]},
        "rated": KTO,
        "demonstration": {"prompt": "p", "completion": "c"},
        "text": {"text": "Once."},
        "prompt": {"prompt": "p"},
    }
    assert examples.keys() == formats.KINDS.keys()
    for kind, row in examples.items():
        name = write(tmp_path / f"{kind}.jsonl", row)
        assert formats.detect(name) == kind
        for layout in formats.KINDS[kind].layouts:
            out = tmp_path / f"{kind}-{layout}.jsonl"
            assert formats.convert(name, out, layout).kept == 1
            assert formats.validate(str(out)).kept == 1
