"""Layouts of public data sets, the general mapping, codings, and what is said or refused."""

import dataclasses
import json

import pytest
from published_rows import becomes, published, read

from preferl.data import formats, layouts, sources, winners
from preferl.data.columns import Options
from preferl.data.files import RowError, Table
from preferl.data.records import Comparison, DataError, PromptRecord, Rated

PAGE = published()
ASK = "Name fruit number {}."


def pair_rows(count=6, **columns):
    """Rows of a prompt and two responses of which an apple is better, first in every second row."""
    rows = []
    for i in range(count):
        sides = ("An apple.", "A stone.") if i % 2 == 0 else ("A stone.", "An apple.")
        extra = {name: value(i % 2 == 0) for name, value in columns.items()}
        rows.append({"prompt": ASK.format(i), "response_a": sides[0], "response_b": sides[1], **extra})
    return rows


def pairs_of(rows, **options):
    records, report, _ = formats.load(Table(rows), options=Options(**options))
    return [(p.prompt, p.chosen, p.rejected) for r in records for p in r.pairs()], report


def refused(rows, **options):
    with pytest.raises(DataError) as caught:
        formats.load(Table(rows), options=Options(**options))
    return str(caught.value)


def apples(count=6):
    return [(ASK.format(i), "An apple.", "A stone.") for i in range(count)]


# ------------------------------------------------------------------------------------------------ the table


def test_the_page_has_a_row_of_every_layout():
    assert {name for name, _, _ in PAGE} == {layout.name for layout in layouts.table()}


@pytest.mark.parametrize(("name", "rows", "told"), PAGE, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(PAGE)])
def test_rows_become_what_the_page_says(name, rows, told):
    records, report = read(rows)
    assert becomes(records) == told
    assert f"({name}" in report.notes[0]
    # What is not known of a layout, and looks like a label, is no longer passed over.
    if report.kind in ("preference", "ranking", "rated"):
        with pytest.raises(DataError, match="zz_vote"):
            read([{**row, "zz_vote": i} for i, row in enumerate(rows, 1)])


@pytest.mark.parametrize(("name", "rows", "told"), PAGE, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(PAGE)])
def test_what_is_converted_reads_back_without_a_word_of_help(name, rows, told, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = formats.convert(str(path), tmp_path / "b.jsonl").kind
    again = formats.load(str(tmp_path / "b.jsonl"))
    assert becomes(again.records) == told
    assert again.report.kind == kind


def test_the_answers_of_a_tree_have_the_whole_path_as_prompt():
    rows = [
        {"message_id": "1", "parent_id": None, "text": "Hello", "role": "prompter", "rank": None},
        {"message_id": "2", "parent_id": "1", "text": "Hi!", "role": "assistant", "rank": 0.0},
        {"message_id": "3", "parent_id": "1", "text": "What?", "role": "assistant", "rank": 1.0},
        {"message_id": "4", "parent_id": "2", "text": "A fruit?", "role": "prompter", "rank": None},
        {"message_id": "5", "parent_id": "4", "text": "A fig.", "role": "assistant", "rank": 1.0},
        {"message_id": "6", "parent_id": "4", "text": "A pear.", "role": "assistant", "rank": 0.0},
        {"message_id": "7", "parent_id": "9", "text": "Lost.", "role": "assistant", "rank": 0.0},
    ]
    records, report = read(rows)
    told = "[user] Hello → Hi! > What?; [user] Hello [assistant] Hi! [user] A fruit? → A pear. > A fig."
    assert becomes(records) == told
    assert report.left_out == {"broken_tree": 1}


def test_a_persons_layout_comes_first(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "mine: {kind: ranking, columns: {prompt: q.text, responses: [left, right]}, winner: 'won:flag(1=b)'}"
    )
    rows = [{"q": {"text": "p"}, "left": "A stone.", "right": "An apple.", "won": 1}]
    found, report = pairs_of(rows, layout=str(file))
    assert found == [("p", "An apple.", "A stone.")]
    assert "(mine)" in report.notes[0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1", "is no YAML"),
        ("[1]", "holds no layouts"),
        ("a: {kind: pairs}", "has the kind 'pairs'"),
        ("a: {kind: ranking, colums: {}}", "the key 'colums'"),
        ("a: {kind: ranking}", "has no columns"),
        ("a: {kind: ranking, columns: {question: q}}", "cannot be 'question'"),
        ("a: {kind: ranking, columns: {prompt: 3}}", "prompt is 3"),
        ("a: {kind: ranking, columns: {prompt: q}, winner: 'w:coin'}", "coding 'coin' is unknown"),
    ],
)
def test_a_layout_that_is_none_is_named(tmp_path, text, what):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert what in refused([{"prompt": "p"}], layout=str(file))


def test_a_layout_that_is_not_there_is_named():
    assert "preferl data layouts" in refused([{"prompt": "p"}], layout="no_such")


# ------------------------------------------------------------------------------------------- the general
# mapping


def test_columns_under_other_names():
    rows = [{"ask": {"text": ASK.format(i)}, "good": "An apple.", "bad": "A stone."} for i in range(6)]
    assert pairs_of(rows, columns="prompt=ask.text,chosen=good,rejected=bad")[0] == apples()
    assert pairs_of(rows, columns={"prompt": "ask.text", "chosen": "good", "rejected": "bad"})[0] == apples()


@pytest.mark.parametrize(
    ("winner", "value"),
    [
        ("w:index0", lambda first: 0 if first else 1),
        ("w", lambda first: 1 if first else 2),
        ("w:index1", lambda first: 1.0 if first else "2"),
        ("w:flag(1=a)", bool),
        ("w:flag(1=b)", lambda first: int(not first)),
        ("w:strength(-3..3, negative=a)", lambda first: -2 if first else 3),
        ("w:strength(positive=a)", lambda first: 0.5 if first else -0.25),
        ("w", lambda first: "model_a" if first else "model_b"),
        ("w", lambda first: "A>B" if first else "B>>A"),
        ("w", lambda first: "response_a" if first else "response_b"),
        ("w:probability(a)", lambda first: 0.51 if first else 0.49),
        ("w:probability(b)", lambda first: 0 if first else 1),
        ("w", lambda first: 1.2 if first else 1.9),
        ("w:scores", lambda first: [2, 1] if first else [1, 2]),
        ("w:rank", lambda first: [1.5, 2.5] if first else [1, 0]),
    ],
)
def test_codings_of_one_column(winner, value):
    assert pairs_of(pair_rows(w=value), winner=winner)[0] == apples()


def test_codings_of_several_columns():
    hot = pair_rows(won_a=int, won_b=lambda first: int(not first), tie=lambda first: 0)
    assert pairs_of(hot, winner="won_a,won_b,tie:onehot")[0] == apples()
    scored = pair_rows(s1=lambda first: 2.5 if first else 1, s2=lambda first: 1 if first else 3)
    assert pairs_of(scored, winner="s1,s2:scores")[0] == apples()
    votes = pair_rows(
        n1=lambda first: 1 if first else 2, n2=lambda first: 2, n3=lambda first: 1 if first else 2
    )
    assert pairs_of(votes, winner="n1,n2,n3:index1")[0] == apples()


def test_a_strength_is_a_margin_and_zero_a_tie():
    rows = pair_rows(3, w=lambda first: -1 if first else 0)
    records, report, _ = formats.load(Table(rows), options=Options(winner="w:strength(-3..3, negative=a)"))
    assert [r.pairs()[0].margin for r in records if r.pairs()] == pytest.approx([1 / 3, 1 / 3])
    assert report.ties == 1
    assert ", 1 of them ties" in report.summary()


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (lambda first: 0 if first else 1, ["winner:index0", "winner:flag(1=a)"]),
        (bool, ["winner:flag(1=a)", "winner:flag(1=b)"]),
        (lambda first: -2 if first else 1, ["winner:strength(negative=a)", "winner:strength(negative=b)"]),
        (lambda first: 0.3 if first else 0.9, ["winner:probability(a)", "winner:probability(b)"]),
    ],
)
def test_what_can_mean_several_things_is_asked_and_the_answer_taken(value, options):
    rows = pair_rows(winner=value)
    message = refused(rows)
    assert all(f"--winner '{option}'" in message for option in options)
    readings = [pairs_of(rows, winner=option)[0] for option in options]
    assert readings[0] != readings[1]


@pytest.mark.parametrize(
    ("winner", "value"),
    [("w:index0", 2), ("w:index1", 1.2), ("w:flag", 2), ("w:strength(-3..3, negative=a)", -100),
     ("w:word", "model_c"),
     ("w:probability(a)", 1.5), ("w:scale(1..2)", 3), ("w:index0", "first?")],
)  # fmt: skip
def test_a_value_outside_its_coding_shows_what_the_column_holds(winner, value):
    rows = pair_rows(5, w=lambda first: 1 if winner != "w:word" else "a")
    rows[3]["w"] = value
    message = refused(rows, winner=winner)
    assert "row 4" in message
    assert repr(value) in message
    assert "holds" in message
    assert "--bad_rows skip" in message
    skipped = formats.load(Table(rows), policy={"*": "skip"}, options=Options(winner=winner))
    assert skipped.report.left_out == {"bad_ranking": 1}


def test_ratings_of_one_prompt_are_a_ranking():
    rows = [
        {"prompt": "p", "response": t, "helpfulness": h, "verbosity": v}
        for t, h, v in (("a", 4, 4), ("b", 3, 0))
    ]
    rows.append({"prompt": "alone", "response": "c", "helpfulness": 1, "verbosity": 1})
    records, report, _ = formats.load(Table(rows))
    assert records[0] == Rated("p", "a", {"helpfulness": 4.0, "verbosity": 4.0}, None, {})
    assert any("--winner helpfulness" in note for note in report.notes)
    (record,) = formats.load(Table(rows), options=Options(winner="helpfulness")).records
    assert (record.ranks, record.scores) == ([1, 2], [4.0, 3.0])
    by_sum = formats.load(Table(rows), options=Options(winner="0.5*helpfulness + -1*verbosity"))
    assert (by_sum.records[0].ranks, by_sum.records[0].scores) == ([2, 1], [-2.0, 1.5])
    assert by_sum.report.left_out == {"single_response": 1}


def test_a_list_of_responses_with_numbers_beside():
    rows = [{"question": "p", "candidates": ["a", "b", "c"], "ratings": [1, 3, 2]}]
    (record,) = formats.load(Table(rows)).records
    assert (record.ranks, record.scores) == ([3, 1, 2], [1.0, 3.0, 2.0])


# --------------------------------------------------------------------------------- what is said, what is
# refused


@pytest.mark.parametrize(
    ("column", "values", "looks", "advice"),
    [
        ("vote", [0, 1], "a rating or a label", "--winner vote"),
        ("fold", ["train", "test"], "a split", "--columns split=fold"),
        ("response_c", ["x", "y"], "another response", "--columns"),
        ("history", ["x", "y"], "another speaker", "--columns prompt=history+prompt"),
    ],
)
def test_what_looks_as_if_it_counted_is_not_passed_over(column, values, looks, advice):
    rows = [
        {"prompt": ASK.format(i), "chosen": "An apple.", "rejected": "A stone.", column: values[i % 2]}
        for i in range(4)
    ]
    message = refused(rows)
    assert looks in message
    assert column in message
    assert advice in message
    assert pairs_of(rows, columns=f"unused={column}")[0] == apples(4)


def test_advice_can_be_followed():
    rows = [
        {"prompt": ASK.format(i), "chosen": "a", "rejected": "b", "fold": ("train", "test")[i % 2]}
        for i in range(12)
    ]
    source = sources.load_source(Table(rows), columns="split=fold")
    assert len(source.eval.comparisons) == 6
    rows = [{"prompt": "Fruit?", "chosen": "a", "rejected": "b", "history": "We spoke."}]
    assert pairs_of(rows, columns="prompt=history+prompt")[0] == [("We spoke.\n\nFruit?", "a", "b")]


def test_the_whole_file_decides():
    rows = [{"prompt": ASK.format(i)} for i in range(25)]
    rows += [{"prompt": ASK.format(i), "chosen": "An apple.", "rejected": "A stone."} for i in range(6)]
    found, report = pairs_of(rows)
    assert found == apples()
    assert report.left_out == {"unlabelled": 25}


def test_one_row_gives_all_their_system_message():
    rows = [{"system": s, "prompt": "Fruit?", "completion": "A fig."} for s in ("", "Be kind.")]
    records, _ = read(rows)
    assert becomes(records) == "[user] Fruit? → A fig.; [system] Be kind. [user] Fruit? → A fig."


def test_labels_that_disagree_are_said_and_either_can_be_taken():
    rows = [
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": i}
        for i in (0, 1)
    ]
    found, report = pairs_of(rows)
    assert found == [("p", "a", "b")] * 2
    assert any("safer_response_id says otherwise in 1 of 2 rows" in note for note in report.notes)
    assert pairs_of(rows, winner="safer_response_id")[0] == [("p", "a", "b"), ("p", "b", "a")]


def test_what_is_called_bad_is_not_imitated_whatever_is_asked():
    rows = [{"prompt": ASK.format(i), "completion": "x", "label": i < 2} for i in range(5)]
    loaded = formats.load(Table(rows), "demonstration")
    assert (len(loaded.records), loaded.report.left_out) == (2, {"called_bad": 3})


def test_comparisons_can_be_read_as_prompts_and_demonstrations():
    rows = pair_rows(4, winner=lambda first: "a" if first else "b")
    shown = formats.load(Table(rows), "demonstration").records
    assert [(d.prompt, d.response) for d in shown] == [(ASK.format(i), "An apple.") for i in range(4)]
    asked = formats.load(Table(rows), "prompt").records
    assert [type(record) for record in asked] == [PromptRecord] * 4


def test_rows_that_nothing_is_known_of_say_how_they_can_be_read():
    message = refused([{"ask": "?", "one": "a", "two": "b", "pick": "one"}])
    assert "--columns prompt=COLUMN,response_a=COLUMN,response_b=COLUMN with --winner COLUMN" in message
    rows = [{"ask": "?", "one": "a", "two": "b", "pick": "one"}]
    assert pairs_of(rows, columns="prompt=ask,response_a=one,response_b=two", winner="pick")[0] == [
        ("?", "a", "b")
    ]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"columns": "prompt"}, "is not understood"),
        ({"columns": "who=prompt"}, "cannot be 'who'"),
        ({"columns": "prompt=ask"}, "no column 'ask'"),
        ({"columns": "response_a=chosen"}, "name both"),
        ({"winner": "vote"}, "no column 'vote'"),
        ({"winner": "chosen:coin"}, "coding 'coin' is unknown"),
        ({"winner": "chosen:strength"}, "negative=a or negative=b"),
        ({"winner": "chosen:strength(loud)"}, "'loud' is not understood"),
        ({"winner": "0.7*chosen+x*rejected"}, "is no weight*COLUMN"),
        ({"winner": ":word"}, "names no column"),
    ],
)
def test_options_that_cannot_be_are_named(options, what):
    assert what in refused([{"prompt": "p", "chosen": "a", "rejected": "b"}], **options)


def test_a_winner_prints_as_it_is_written():
    for text in (
        "w:strength(-3..3, negative=a)",
        "a,b,c:onehot",
        "w:flag(1=b)",
        "w:index0(tie=2)",
        "w:scale(1..2)",
    ):
        assert str(winners.parsed(text)) == text
    assert dataclasses.replace(winners.parsed("w"), coding="word").columns == ("w",)
    with pytest.raises(RowError, match="3 responses"):
        winners.places(winners.parsed("w:flag"), [1], ["a", "b", "c"])
    assert isinstance(Comparison("p", ["a", "b"], [1, 2]), Comparison)
