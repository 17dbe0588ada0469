"""Rows to records: every shape that is read, every defect under every policy."""

import pytest
from example_rows import GOOD, HH, NICE, RUDE, USER, load_pairs, pair_of, write
from hypothesis import given
from hypothesis import strategies as st

from preferl.data import dialects, files, formats, rows
from preferl.data.records import DataError, Demonstration, Pair, PromptRecord


def without(row: dict, column: str) -> dict:
    return {k: v for k, v in row.items() if k != column}


# -------------------------------------------------------------------------------------- shapes of preferences


def test_explicit_row_keeps_texts_margin_and_provenance():
    row = {**GOOD, "chosen": " 4.\n", "margin": 1, "annotator": "ann", "scores": {"a": [1]}}
    expected = Pair(GOOD["prompt"], " 4.\n", "5.", 1.0, {"annotator": "ann", "scores": {"a": [1]}})
    record = pair_of(row)
    assert record == expected
    assert isinstance(record.margin, float)


def test_margin_may_be_absent_or_null():
    assert pair_of(GOOD).margin is None
    assert pair_of({**GOOD, "margin": None}).margin is None
    assert pair_of({**GOOD, "margin": 0}).margin == 0.0


def test_hh_dialogues_share_their_prompt():
    record = pair_of({**HH, "source": "hh"})
    assert record.prompt == [USER, NICE, {"role": "user", "content": "Who are you?"}]
    assert (record.chosen, record.rejected, record.columns) == ("A helper.", "Guess.", {"source": "hh"})


def test_hh_roles_inside_a_line_are_text():
    text = "\n\nHuman: Say Human: twice.\nAssistant: no\n\nAssistant: "
    record = pair_of({"chosen": text + "a", "rejected": text + "b"})
    assert record.prompt == [{"role": "user", "content": "Say Human: twice.\nAssistant: no"}]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "p", "chosen": [NICE], "rejected": [RUDE]}, "p"),
        ({"prompt": [USER], "chosen": [NICE], "rejected": [RUDE]}, [USER]),
        ({"prompt": [USER], "chosen": "Hi!", "rejected": "What?"}, [USER]),
        ({"prompt": [USER], "chosen": [USER, NICE], "rejected": [USER, RUDE]}, [USER]),
        ({"prompt": " Hello\n", "chosen": [USER, NICE], "rejected": [USER, RUDE]}, [USER]),
        ({"chosen": [USER, NICE], "rejected": [USER, RUDE]}, [USER]),
        (
            {"prompt": [{**USER, "name": None}], "chosen": [{**USER, "x": 1}, NICE], "rejected": "What?"},
            [USER],
        ),
    ],
)
def test_messages_come_in_many_ways(row, prompt):
    record = pair_of(row)
    assert (record.prompt, record.chosen, record.rejected) == (prompt, "Hi!", "What?")


def test_system_message_stays_in_the_prompt():
    system = {"role": "system", "content": "Be kind."}
    record = pair_of({"chosen": [system, USER, NICE], "rejected": [system, USER, RUDE]})
    assert record.prompt == [system, USER]


# ----------------------------------------------------------------------- shapes of demonstrations and prompts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, NICE], "id": 1}, Demonstration([USER], "Hi!", {"id": 1})),
        (
            {"messages": [USER, NICE, USER, RUDE], "prompt": "Hello"},
            Demonstration([USER, NICE, USER], "What?", {"prompt": "Hello"}),
        ),
        ({"prompt": "2 + 2 =", "completion": " 4"}, Demonstration("2 + 2 =", " 4")),
        ({"prompt": [USER], "completion": [NICE]}, Demonstration([USER], "Hi!")),
        ({"prompt": "Hello", "completion": [USER, NICE]}, Demonstration([USER], "Hi!")),
        (
            {"text": "Once upon a time.\n", "source": "s"},
            Demonstration("", "Once upon a time.\n", {"source": "s"}),
        ),
        ({**GOOD, "margin": 0.5, "a": 1}, Demonstration(GOOD["prompt"], "4.", {"a": 1})),
        (
            {"text": "x", "prompt": None, "completion": None},
            Demonstration("", "x", {"prompt": None, "completion": None}),
        ),
    ],
)
def test_demonstrations(row, expected):
    assert rows.to_demonstration(row) == expected


def test_prompts():
    assert rows.to_prompt({"prompt": "p", "uid": 7}) == PromptRecord("p", {"uid": 7})
    assert rows.to_prompt({"prompt": [USER]}) == PromptRecord([USER])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (GOOD, "preference"),
        ({**HH, "messages": [], "prompt": "x"}, "preference"),
        ({"messages": [USER, NICE]}, "demonstration"),
        ({"prompt": "p", "completion": "c", "text": "t"}, "demonstration"),
        ({"text": "t", "prompt": "p"}, "text"),
        ({"prompt": "p"}, "prompt"),
    ],
)
def test_detect(tmp_path, row, kind):
    assert formats.detect(write(tmp_path / "a.jsonl", *["{oops"] * 30, row)) == kind


def test_detect_names_the_columns_that_it_does_not_know(tmp_path):
    with pytest.raises(
        DataError, match=r"columns ask, reply1, which fit no layout; .*--columns prompt=COLUMN"
    ):
        formats.detect(write(tmp_path / "a.jsonl", {"ask": "?", "reply1": "!"}))


def test_detect_without_a_good_row_says_what_the_first_is(tmp_path):
    with pytest.raises(DataError, match=r"no good row; .*a\.jsonl:1: is not JSON"):
        formats.detect(write(tmp_path / "a.jsonl", "{oops"))
    with pytest.raises(DataError, match="has no rows"):
        formats.detect(write(tmp_path / "b.jsonl"))


# ------------------------------------------------------------------------------------------------- defects

TWICE = {"chosen": "\n\nHuman: Hello\n\nAssistant: Umm.\n\nAssistant: Hi!", "rejected": HH["rejected"]}
DEFECTS = [
    ("invalid_json", '{"prompt": "p", '),
    ("invalid_json", '{"prompt": ' + "9" * 5000 + "}"),
    ("invalid_json", "[" * 100_000),
    ("wrong_encoding", b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}'),
    ("wrong_encoding", r'{"prompt": "p\ud83d", "chosen": "a", "rejected": "b"}'),
    ("wrong_encoding", r'{"prompt": "p", "chosen": "a", "rejected": "b", "note": ["\udc00"]}'),
    ("not_an_object", "[1, 2]"),
    ("not_an_object", '"text"'),
    ("not_an_object", "null"),
    ("missing_column", without(GOOD, "chosen")),
    ("missing_column", without(GOOD, "rejected")),
    ("missing_column", without(GOOD, "prompt")),
    ("missing_column", {**HH, "rejected": "Preface.\n\nHuman: Hello\n\nAssistant: x"}),
    ("null_value", {**GOOD, "prompt": None}),
    ("null_value", {**GOOD, "chosen": None}),
    ("no_rejected", {**GOOD, "rejected": None}),
    ("null_value", {**GOOD, "rejected": [{**NICE, "content": None}]}),
    ("wrong_type", {**GOOD, "prompt": 3}),
    ("wrong_type", {**GOOD, "chosen": True}),
    ("wrong_type", {**GOOD, "rejected": {"content": "x"}}),
    ("wrong_type", {**GOOD, "chosen": ["4."]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": "assistant"}]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": "narrator", "content": "x"}]}),
    ("bad_role_order", {**GOOD, "chosen": [{"role": "tool", "content": "x"}]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": ["user"], "content": "x"}]}),
    ("not_text", {**GOOD, "chosen": [{"role": "assistant", "content": ["x"]}]}),
    ("not_text", {**GOOD, "chosen": [{"role": "assistant", "content": [{"type": "image_url", "url": "x"}]}]}),
    ("unlabelled", {"prompt": "p"}),
    ("tools_in_response", {**GOOD, "chosen": [{**NICE, "tool_calls": [{"type": "function"}]}]}),
    ("tools_in_response", {**GOOD, "chosen": [{**NICE, "reasoning_content": "Hm."}]}),
    ("wrong_type", {"chosen": [USER, NICE], "rejected": HH["rejected"]}),
    ("empty_response", {**GOOD, "chosen": ""}),
    ("empty_response", {**GOOD, "rejected": " \n"}),
    ("empty_response", {**HH, "rejected": HH["rejected"].replace("Guess.", "")}),
    ("empty_response", {**HH, "chosen": ""}),
    ("empty_response", {"prompt": [USER], "chosen": [{**NICE, "content": " "}], "rejected": [RUDE]}),
    ("empty_prompt", {**GOOD, "prompt": " "}),
    ("empty_prompt", {**GOOD, "prompt": []}),
    ("empty_prompt", {**GOOD, "prompt": [{**USER, "content": ""}]}),
    ("empty_prompt", {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"}),
    ("identical_pair", {**GOOD, "rejected": "4."}),
    ("identical_pair", {"chosen": HH["chosen"], "rejected": HH["chosen"] + "\n"}),
    ("different_prompts", {**HH, "rejected": HH["rejected"].replace("Who", "What")}),
    ("different_prompts", {"prompt": "Bye", "chosen": [USER, NICE], "rejected": [USER, RUDE]}),
    (
        "different_prompts",
        {"prompt": [USER], "chosen": [NICE], "rejected": [{**USER, "content": "Bye"}, RUDE]},
    ),
    ("bad_role_order", TWICE),
    ("bad_role_order", {**HH, "chosen": HH["chosen"] + "\n\nHuman: Oh."}),
    ("bad_role_order", {**GOOD, "prompt": [USER, NICE]}),
    ("bad_role_order", {**GOOD, "prompt": [USER, {"role": "system", "content": "x"}, USER]}),
    ("bad_role_order", {**GOOD, "chosen": [USER]}),
    ("bad_role_order", {**GOOD, "prompt": [USER], "chosen": [USER]}),
    ("bad_role_order", {"chosen": [NICE], "rejected": [RUDE]}),
    ("bad_margin", {**GOOD, "margin": "1"}),
    ("bad_margin", {**GOOD, "margin": True}),
    ("bad_margin", {**GOOD, "margin": -0.5}),
    ("bad_margin", {**GOOD, "margin": float("nan")}),
    ("bad_margin", {**GOOD, "margin": float("inf")}),
    ("bad_margin", {**GOOD, "margin": 10**400}),
]
IDS = [f"{i}-{kind}" for i, (kind, _) in enumerate(DEFECTS)]
SKIPPED = {"empty_prompt", "empty_response", "identical_pair", "different_prompts", "bad_role_order"}
SKIPPED |= {"unlabelled", "tools_in_response", "no_rejected"}
# Of ratings, trees and rankings, which have pages of tests of their own.
OF_SEVERAL_ROWS = {"called_bad", "broken_tree", "single_response"}


def test_every_kind_has_a_case_and_a_default():
    # Rankings have a page of tests of their own.
    elsewhere = {"bad_ranking", "wrong_cells"}
    assert {kind for kind, _ in DEFECTS} == set(formats.POLICY) - elsewhere - OF_SEVERAL_ROWS
    assert {kind for kind, rule in formats.POLICY.items() if rule == "skip"} == SKIPPED | OF_SEVERAL_ROWS


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
def test_error_names_place_kind_and_fix(tmp_path, kind, line):
    name = write(tmp_path / "a.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(DataError) as caught:
        load_pairs(name, {kind: "error"})
    message = str(caught.value)
    assert message.startswith(f"{name}:3: ")
    assert f"({kind})" in message
    assert "--bad_rows skip" in message
    assert len(message) < 400 + len(name)


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
@pytest.mark.parametrize("rule", ["kind", "*"])
def test_skip_leaves_out_and_counts(tmp_path, kind, line, rule):
    name = write(tmp_path / "a.jsonl", GOOD, line, {**GOOD, "chosen": "Four."})
    records, report = load_pairs(name, {kind if rule == "kind" else "*": "skip"})
    assert [r.chosen for r in records] == ["4.", "Four."]
    assert (report.read, report.kept, report.left_out) == (3, 2, {kind: 1})
    assert report.examples[kind][0].startswith(f"{name}:2: ")
    assert "2 of 3 rows used; left out 1 (1 " in report.summary()


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
def test_default_policy(tmp_path, kind, line):
    name = write(tmp_path / "a.jsonl", GOOD, line)
    if kind in SKIPPED:
        assert load_pairs(name)[1].left_out == {kind: 1}
    else:
        with pytest.raises(DataError, match=kind):
            load_pairs(name)


def test_validate_counts_every_kind_and_never_stops(tmp_path):
    name = write(tmp_path / "a.jsonl", GOOD, *[line for _, line in DEFECTS])
    report = formats.validate(name)
    expected = {kind: sum(k == kind for k, _ in DEFECTS) for kind, _ in DEFECTS}
    assert report.left_out == expected
    assert (report.read, report.kept) == (len(DEFECTS) + 1, 1)
    places = [e for examples in report.examples.values() for e in examples]
    assert all(e.startswith(f"{name}:") for e in places)
    assert max(map(len, report.examples.values())) <= 5


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER]},
        {"messages": [USER, NICE, USER]},
        {"messages": []},
        {"prompt": "p", "completion": ""},
        {"prompt": None, "completion": "c"},
        {"completion": "c"},
        {"text": " "},
        {"text": None},
        {"text": ["x"]},
        {},
    ],
)
def test_defects_of_demonstrations_are_counted(tmp_path, row):
    name = write(tmp_path / "a.jsonl", {"messages": [USER, NICE]}, row)
    assert sum(formats.validate(name).left_out.values()) == 1
    assert len(formats.load(name, "demonstration", {"*": "skip"})[0]) == 1


def test_validate_of_a_file_without_a_good_row(tmp_path):
    report = formats.validate(write(tmp_path / "a.jsonl", "{oops", "[]"))
    assert (report.kept, report.left_out) == (0, {"invalid_json": 1, "not_an_object": 1})


def test_a_kind_wins_over_the_star_wherever_it_stands():
    for policy in (
        {"identical_pair": "error", "*": "skip"},
        {"*": "skip", "identical_pair": "error"},
    ):
        rules = formats.effective_policy(policy)
        assert rules.pop("identical_pair") == "error"
        assert set(rules.values()) == {"skip"}
    assert formats.effective_policy({}) == formats.POLICY


@pytest.mark.parametrize("policy", [{"identical": "skip"}, {"identical_pair": "drop"}, {"*": "ignore"}])
def test_unknown_policies_are_refused(tmp_path, policy):
    with pytest.raises(DataError, match="is unknown; kinds are invalid_json"):
        load_pairs(write(tmp_path / "a.jsonl", GOOD), policy)


def test_exactly_half_left_out_is_allowed_and_more_is_not(tmp_path):
    same = {**GOOD, "rejected": "4."}
    assert len(load_pairs(write(tmp_path / "a.jsonl", GOOD, same))[0]) == 1
    with pytest.raises(DataError, match=r"more than half .* 1 of 3 rows used.*2 identical pair"):
        load_pairs(write(tmp_path / "b.jsonl", GOOD, same, same))


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        formats.load(write(tmp_path / "a.jsonl", "", " "), "prompt")


def test_limit_counts_rows_and_does_not_look_further(tmp_path):
    name = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "rejected": "4."}, GOOD, "{oops")
    records, report = load_pairs(name, limit=3)
    assert (len(records), report.read, report.kept) == (2, 3, 2)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(sorted(dialects.ROLES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
ANY_ROW = st.dictionaries(st.sampled_from([*rows.PAIR_COLUMNS, *rows.OTHER_COLUMNS]), JSON)


@given(ANY_ROW)
def test_a_row_is_a_record_or_a_known_defect(row):
    for convert in (rows.to_pair, rows.to_demonstration, rows.to_prompt):
        kind = None
        try:
            convert(row)
        except files.RowError as error:
            kind = error.kind
        assert kind is None or kind in formats.POLICY
