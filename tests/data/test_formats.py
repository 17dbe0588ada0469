"""Data sets to records and back: every shape, every defect under every policy, every kind of file."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preferl.data import files, formats, rows
from preferl.data.records import DataError, Demonstration, Preference, PromptRecord

GOOD = {"prompt": "What is 2 + 2?", "chosen": "4.", "rejected": "5."}
USER = {"role": "user", "content": "Hello"}
NICE = {"role": "assistant", "content": "Hi!"}
RUDE = {"role": "assistant", "content": "What?"}
HH = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi! \n\nHuman: Who are you?\n\nAssistant: A helper.",
    "rejected": "\n\nHuman: Hello\n\nAssistant: Hi! \n\nHuman: Who are you?\n\nAssistant:  Guess.\n",
}


def write(path: Path, *lines: object) -> str:
    """A file of lines: bytes and texts as they are, everything else as JSON."""
    raw = [
        x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines
    ]
    text = b"\n".join(raw) + b"\n"
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return str(path)


def without(row: dict, column: str) -> dict:
    return {k: v for k, v in row.items() if k != column}


# --------------------------------------------------------------------------------------- shapes of preferences


def test_explicit_row_keeps_texts_margin_and_provenance():
    row = {**GOOD, "chosen": " 4.\n", "margin": 1, "annotator": "ann", "scores": {"a": [1]}}
    expected = Preference(GOOD["prompt"], " 4.\n", "5.", 1.0, {"annotator": "ann", "scores": {"a": [1]}})
    record = rows.to_preference(row)
    assert record == expected
    assert isinstance(record.margin, float)


def test_margin_may_be_absent_or_null():
    assert rows.to_preference(GOOD).margin is None
    assert rows.to_preference({**GOOD, "margin": None}).margin is None
    assert rows.to_preference({**GOOD, "margin": 0}).margin == 0.0


def test_hh_dialogues_share_their_prompt():
    record = rows.to_preference({**HH, "source": "hh"})
    assert record.prompt == [USER, NICE, {"role": "user", "content": "Who are you?"}]
    assert (record.chosen, record.rejected, record.columns) == ("A helper.", "Guess.", {"source": "hh"})


def test_hh_roles_inside_a_line_are_text():
    text = "\n\nHuman: Say Human: twice.\nAssistant: no\n\nAssistant: "
    record = rows.to_preference({"chosen": text + "a", "rejected": text + "b"})
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
    record = rows.to_preference(row)
    assert (record.prompt, record.chosen, record.rejected) == (prompt, "Hi!", "What?")


def test_system_message_stays_in_the_prompt():
    system = {"role": "system", "content": "Be kind."}
    record = rows.to_preference({"chosen": [system, USER, NICE], "rejected": [system, USER, RUDE]})
    assert record.prompt == [system, USER]


# ------------------------------------------------------------------------- shapes of demonstrations and prompts


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
    with pytest.raises(DataError, match=r"columns answer, question; preferl reads chosen \+ rejected"):
        formats.detect(write(tmp_path / "a.jsonl", {"question": "?", "answer": "!"}))


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
    ("null_value", {**GOOD, "rejected": [{**NICE, "content": None}]}),
    ("wrong_type", {**GOOD, "prompt": 3}),
    ("wrong_type", {**GOOD, "chosen": True}),
    ("wrong_type", {**GOOD, "rejected": {"role": "assistant", "content": "x"}}),
    ("wrong_type", {**GOOD, "chosen": ["4."]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": "assistant"}]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": "tool", "content": "x"}]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": ["user"], "content": "x"}]}),
    ("wrong_type", {**GOOD, "chosen": [{"role": "assistant", "content": ["x"]}]}),
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


def test_every_kind_has_a_case_and_a_default():
    assert {kind for kind, _ in DEFECTS} == set(formats.POLICY)
    assert {kind for kind, rule in formats.POLICY.items() if rule == "skip"} == SKIPPED


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
def test_error_names_place_kind_and_fix(tmp_path, kind, line):
    name = write(tmp_path / "a.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(DataError) as caught:
        formats.load_preferences(name, {kind: "error"})
    message = str(caught.value)
    assert message.startswith(f"{name}:3: ")
    assert f"({kind})" in message
    assert "--bad_rows skip" in message
    assert len(message) < 400 + len(name)


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
@pytest.mark.parametrize("rule", ["kind", "*"])
def test_skip_leaves_out_and_counts(tmp_path, kind, line, rule):
    name = write(tmp_path / "a.jsonl", GOOD, line, {**GOOD, "chosen": "Four."})
    records, report = formats.load_preferences(name, {kind if rule == "kind" else "*": "skip"})
    assert [r.chosen for r in records] == ["4.", "Four."]
    assert (report.read, report.kept, report.left_out) == (3, 2, {kind: 1})
    assert report.examples[kind][0].startswith(f"{name}:2: ")
    assert "2 of 3 rows used; left out 1 (1 " in report.summary()


@pytest.mark.parametrize(("kind", "line"), DEFECTS, ids=IDS)
def test_default_policy(tmp_path, kind, line):
    name = write(tmp_path / "a.jsonl", GOOD, line)
    if kind in SKIPPED:
        assert formats.load_preferences(name)[1].left_out == {kind: 1}
    else:
        with pytest.raises(DataError, match=kind):
            formats.load_preferences(name)


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
    assert len(formats.load_demonstrations(name, {"*": "skip"})[0]) == 1


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
        formats.load_preferences(write(tmp_path / "a.jsonl", GOOD), policy)


def test_exactly_half_left_out_is_allowed_and_more_is_not(tmp_path):
    same = {**GOOD, "rejected": "4."}
    assert len(formats.load_preferences(write(tmp_path / "a.jsonl", GOOD, same))[0]) == 1
    with pytest.raises(DataError, match=r"more than half .* 1 of 3 rows used.*2 identical pair"):
        formats.load_preferences(write(tmp_path / "b.jsonl", GOOD, same, same))


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        formats.load_prompts(write(tmp_path / "a.jsonl", "", " "))


def test_limit_counts_rows_and_does_not_look_further(tmp_path):
    name = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "rejected": "4."}, GOOD, "{oops")
    records, report = formats.load_preferences(name, limit=3)
    assert (len(records), report.read, report.kept) == (2, 3, 2)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(rows.ROLES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
ANY_ROW = st.dictionaries(st.sampled_from([*rows.PREFERENCE_COLUMNS, *rows.OTHER_COLUMNS]), JSON)


@given(ANY_ROW)
def test_a_row_is_a_record_or_a_known_defect(row):
    for convert in (rows.to_preference, rows.to_demonstration, rows.to_prompt):
        try:
            convert(row)
        except files.RowError as error:
            assert error.kind in formats.POLICY


# --------------------------------------------------------------------------------------------- round trips

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
ANSWERS = st.tuples(WORDS, WORDS).filter(lambda pair: pair[0] != pair[1])
COLUMNS = st.dictionaries(st.sampled_from(["source", "größe"]), WORDS | st.integers(0, 99).map(str))
MARGINS = st.none() | st.floats(0, 10)


@st.composite
def dialogues(draw):
    texts = draw(st.lists(WORDS, min_size=1, max_size=3).filter(lambda t: len(t) % 2 == 1))
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]
    return [{"role": "system", "content": draw(WORDS)}, *turns] if draw(st.booleans()) else turns


def pairs(prompts):
    return st.builds(
        lambda prompt, answers, margin, columns: Preference(prompt, *answers, margin, columns),
        prompts, ANSWERS, MARGINS, COLUMNS,
    )  # fmt: skip


round_trip = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("layout", ["explicit", "implicit"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@given(records=st.lists(pairs(dialogues()), min_size=1, max_size=4))
@round_trip
def test_preferences_come_back(tmp_path, ending, layout, records):
    path = tmp_path / f"a{ending}"
    formats.write_preferences(path, records, layout)
    assert formats.load_preferences(str(path))[0] == records


@given(records=st.lists(pairs(WORDS), min_size=1, max_size=4))
@round_trip
def test_plain_prompts_come_back(tmp_path, records):
    formats.write_preferences(tmp_path / "a.jsonl", records)
    assert formats.load_preferences(str(tmp_path / "a.jsonl"))[0] == records


@given(records=st.lists(pairs(dialogues()), min_size=1, max_size=3))
@round_trip
def test_hh_layout_keeps_all_but_white_space_around_turns_or_refuses(tmp_path, records):
    path = tmp_path / "a.jsonl"
    try:
        formats.write_preferences(path, records, "hh")
    except DataError:
        texts = [m["content"] for r in records for m in r.prompt] + [
            t for r in records for t in (r.chosen, r.rejected)
        ]
        systems = any(m["role"] == "system" for r in records for m in r.prompt)
        assert systems or any(rows.TURN.search(text) for text in texts)
        return
    back = (
        formats.load_preferences(str(path), {"identical_pair": "skip"})[0]
        if len({r.chosen.strip() == r.rejected.strip() for r in records} - {True}) == 1
        and not any(r.chosen.strip() == r.rejected.strip() for r in records)
        else None
    )
    if back is not None:
        stripped = [
            Preference(
                [{**m, "content": m["content"].strip()} for m in r.prompt],
                r.chosen.strip(), r.rejected.strip(), r.margin, r.columns,
            )
            for r in records
        ]  # fmt: skip
        assert back == stripped


def test_hh_layout_refuses_what_would_read_back_as_something_else(tmp_path):
    system = [{"role": "system", "content": "Be kind."}, USER]
    with pytest.raises(DataError, match="no system turn"):
        formats.write_preferences(tmp_path / "a.jsonl", [Preference(system, "a", "b")], "hh")
    for text in ("x\n\nHuman: y", "Assistant: y"):
        with pytest.raises(DataError, match="would read back as turns"):
            formats.write_preferences(tmp_path / "a.jsonl", [Preference([USER], text, "b")], "hh")
    assert list(tmp_path.iterdir()) == []


def test_hh_file_is_byte_for_byte_the_original_form(tmp_path):
    formats.write_preferences(tmp_path / "a.jsonl", [rows.to_preference(HH)], "hh")
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["chosen"] == HH["chosen"].replace("Hi! \n", "Hi!\n")


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(DataError, match="use explicit, implicit, hh"):
        formats.write_preferences(tmp_path / "a.jsonl", [rows.to_preference(GOOD)], "trl")


UNICODE = 'Grüße, 世界 🌍\u2028 \x00 \\ " \r\n'


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_record_comes_back_from_every_kind_of_file(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    pairs = [Preference([USER], UNICODE, "b", 0.5, {"n": 1}), Preference([USER], "a", "b", 1.0, {"n": 2})]
    formats.write_preferences(path, pairs)
    assert formats.load_preferences(str(path))[0] == pairs
    formats.write_preferences(path, pairs, "implicit")
    assert formats.load_preferences(str(path))[0] == pairs
    shown = [Demonstration(UNICODE, "r", {"n": 1}), Demonstration("p", UNICODE, {"n": 2})]
    formats.write_demonstrations(path, shown)
    assert formats.load_demonstrations(str(path))[0] == shown
    texts = [Demonstration("", UNICODE, {"n": 1}), Demonstration("", "b", {"n": 2})]
    formats.write_demonstrations(path, texts)
    assert formats.detect(str(path)) == "text"
    assert formats.load_demonstrations(str(path))[0] == texts
    prompts = [PromptRecord([USER, NICE, USER], {"tags": ["a", "b"]}), PromptRecord([USER], {"tags": []})]
    formats.write_prompts(path, prompts)
    assert formats.load_prompts(str(path))[0] == prompts


def test_parquet_keeps_columns_that_the_first_row_lacks(tmp_path):
    records = [Preference("p", "a", "b"), Preference("q", "a", "b", 1.0, {"annotator": "ann"})]
    formats.write_preferences(tmp_path / "a.parquet", records)
    back = formats.load_preferences(str(tmp_path / "a.parquet"))[0]
    assert [r.margin for r in back] == [None, 1.0]
    assert [r.columns for r in back] == [{"annotator": None}, {"annotator": "ann"}]


def test_parquet_of_texts_and_pairs_reads_back(tmp_path):
    records = [Demonstration("", "a story"), Demonstration("p", "r")]
    formats.write_demonstrations(tmp_path / "a.parquet", records)
    back = formats.load_demonstrations(str(tmp_path / "a.parquet"))[0]
    assert [(r.prompt, r.response) for r in back] == [("", "a story"), ("p", "r")]


@pytest.mark.parametrize("columns", [({"x": {}}, {}), ({"x": 1}, {"x": "s"}), ({"x": 2**80}, {})])
def test_parquet_that_cannot_hold_the_rows_says_so_and_leaves_the_old_file(tmp_path, columns):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=r"write \.jsonl instead"):
        formats.write_prompts(path, [PromptRecord("p", c) for c in columns])
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    assert path.read_bytes() == b"old"


def test_jsonl_that_cannot_hold_the_rows_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old")
    for bad in (PromptRecord("\ud800"), PromptRecord("p", {"x": object()})):
        with pytest.raises(DataError, match="cannot hold the rows"):
            formats.write_prompts(path, [bad])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        formats.write_prompts(path, [PromptRecord("p")])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_bytes() == b"old"


def test_writing_makes_folders_replaces_and_repeats_byte_for_byte(tmp_path):
    first, second = tmp_path / "new" / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    formats.write_prompts(first, [PromptRecord("old")])
    for path in (first, second):
        formats.write_prompts(path, [PromptRecord("p")])
    assert formats.load_prompts(str(first))[0] == [PromptRecord("p")]
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == b"\0\0\0\0"  # gzip's time stamp


def test_unknown_endings_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(DataError, match=r"must end with \.jsonl, \.jsonl\.gz or \.parquet"):
        formats.write_prompts(tmp_path / "new" / "a.csv", [PromptRecord("p")])
    assert list(tmp_path.iterdir()) == []


def test_provenance_never_replaces_a_records_own_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    clash = {
        "prompt": "OTHER",
        "source_prompt": "THIRD",
        "messages": [USER, RUDE],
        "text": "t",
        "chosen": "c",
    }
    formats.write_demonstrations(path, [Demonstration("p", "r", clash)])
    back = formats.load_demonstrations(str(path))[0][0]
    assert (back.prompt, back.response) == ("p", "r")
    assert sorted(map(str, back.columns.values())) == sorted(map(str, clash.values()))
    assert back.columns["source_messages"] == [USER, RUDE]
    formats.write_preferences(path, [Preference("p", "a", "b", None, {"margin": 9, "chosen": "c"})])
    pair = formats.load_preferences(str(path))[0][0]
    assert (pair.chosen, pair.margin, pair.columns) == ("a", None, {"source_margin": 9, "source_chosen": "c"})
    formats.write_prompts(path, [PromptRecord("p", {"text": "t"})])
    assert formats.detect(str(path)) == "prompt"


# ------------------------------------------------------------------------------------------------- convert


@pytest.mark.parametrize("layout", ["explicit", "implicit", "hh"])
def test_convert_preferences(tmp_path, layout):
    name, out = write(tmp_path / "a.jsonl", HH, {**HH, "chosen": HH["rejected"]}), tmp_path / "b.jsonl.gz"
    report = formats.convert(name, out, layout)
    assert (report.kept, report.left_out) == (1, {"identical_pair": 1})
    assert formats.load_preferences(str(out))[0] == [rows.to_preference(HH)]


@pytest.mark.parametrize(
    ("row", "written"),
    [
        ({"prompt": "p", "n": 1}, {"prompt": "p", "n": 1}),
        ({"text": "t", "n": 1}, {"text": "t", "n": 1}),
        ({"messages": [USER, NICE]}, {"prompt": [USER], "completion": "Hi!"}),
    ],
)
def test_convert_the_others(tmp_path, row, written):
    formats.convert(write(tmp_path / "a.jsonl", row), tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == written


def test_convert_takes_a_policy(tmp_path):
    name = write(tmp_path / "a.jsonl", GOOD, "{oops")
    with pytest.raises(DataError, match="invalid_json"):
        formats.convert(name, tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()
    assert formats.convert(name, tmp_path / "b.jsonl", policy={"*": "skip"}).kept == 1


# --------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path, ending):
    name = write(tmp_path / f"a{ending}", b"\xef\xbb\xbf" + b'{"prompt": "p\\u2028"}\r', "", {"prompt": "q"})
    assert formats.load_prompts(name)[0] == [PromptRecord("p\u2028"), PromptRecord("q")]


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path):
    name = write(tmp_path / "a.jsonl", '{"prompt": "one\u2028two\u0085three"}')
    assert formats.load_prompts(name)[0] == [PromptRecord("one\u2028two\u0085three")]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_json_arrays_and_json_lines_named_json(tmp_path, ending):
    array = write(tmp_path / f"a{ending}", json.dumps([{"prompt": "p"}, {"prompt": "q"}], indent=1))
    lines = write(tmp_path / f"b{ending}", {"prompt": "p"}, {"prompt": "q"})
    for name in (array, lines):
        assert [r.prompt for r in formats.load_prompts(name)[0]] == ["p", "q"]
    bad = write(tmp_path / f"c{ending}", [{"prompt": "p"}, 3])
    with pytest.raises(DataError, match=r"row 2: is a JSON int.*not_an_object"):
        formats.load_prompts(bad)


@pytest.mark.parametrize(
    "text", [b"[1, 2", b'[{"prompt": "caf\xe9"}]', b"[" * 100_000, b'{"data": []}', b"3"]
)
def test_json_files_that_hold_no_rows(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.json' (is not UTF-8 JSON|holds one)"):
        formats.load_prompts(write(tmp_path / "a.json", text))


def test_plain_text_is_cut_at_empty_lines(tmp_path):
    name = write(tmp_path / "a.txt", "", "First:", "Speak.", " ", "", "\tAll:", "Speak, speak!\r", "")
    records = formats.load_demonstrations(name)[0]
    assert [r.response for r in records] == ["First:\nSpeak.", "\tAll:\nSpeak, speak!"]
    assert {r.prompt for r in records} == {""}
    assert [r.where for r in files.read_rows(name)] == [f"{name}:2", f"{name}:6"]


def test_plain_text_is_cut_at_end_of_text_marks_if_it_has_some(tmp_path):
    name = write(tmp_path / "a.txt.gz", "Once.", "", "The end.", "<|endoftext|>", "Twice.", "<|endoftext|>")
    assert [r.response for r in formats.load_demonstrations(name)[0]] == ["Once.\n\nThe end.", "Twice."]


def test_plain_text_in_another_encoding(tmp_path):
    name = write(tmp_path / "a.txt", "One.", "", b"caf\xe9", "", "Two.")
    report = formats.load_demonstrations(name, {"wrong_encoding": "skip"})[1]
    assert report.examples == {
        "wrong_encoding": [f"{name}:3: is not UTF-8 (invalid continuation byte at byte 3)"]
    }


def test_parquet_from_elsewhere(tmp_path):
    """Messages as structs, several row groups, a defect named by its row."""
    table = pyarrow.table({"messages": [[USER, NICE]] * 2500 + [None], "n": list(range(2501))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    records, report = formats.load_demonstrations(str(tmp_path / "a.parquet"), {"null_value": "skip"})
    assert records[-1] == Demonstration([USER], "Hi!", {"n": 2499})
    assert report.examples["null_value"] == [f"{tmp_path}/a.parquet: row 2501: messages is null"]


def test_parquet_with_bytes_that_are_no_text(tmp_path):
    data = pyarrow.py_buffer(b"onecaf\xe9two")
    offsets = pyarrow.array([0, 3, 7, 10], pyarrow.int32()).buffers()[1]
    column = pyarrow.StringArray.from_buffers(3, offsets, data)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "a.parquet")
    report = formats.validate(str(tmp_path / "a.parquet"))
    assert (report.kept, report.left_out) == (2, {"wrong_encoding": 1})
    assert report.examples["wrong_encoding"][0].startswith(f"{tmp_path}/a.parquet: row 2: ")


def test_damaged_files_are_named(tmp_path):
    whole = gzip.compress(b'{"prompt": "p"}\n' * 1000)
    damaged = {
        "cut.jsonl.gz": whole[:-12],
        "changed.jsonl.gz": whole[:15] + b"\xff\xff\xff" + whole[18:],
        "other.jsonl.gz": b"no gzip",
        "other.parquet": b"no parquet",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}' is no whole (gzip|parquet) file.*fetch it again"):
            formats.load_prompts(str(tmp_path / name))


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"of no kind that preferl reads; the kinds are \.jsonl"):
        formats.load_prompts(str(tmp_path / "a.pkl"))


def test_a_folder_is_its_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", {"prompt": "2"})
    write(tmp_path / "a.jsonl.gz", {"prompt": "1"})
    files.write_rows(tmp_path / "c.parquet", [{"prompt": "3"}])
    write(tmp_path / "README.md", "no rows")
    (tmp_path / "d.jsonl.77.tmp").write_text("half a fi")
    assert [r.prompt for r in formats.load_prompts(str(tmp_path))[0]] == ["1", "2", "3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .jsonl"):
        formats.load_prompts(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "./missing", "/no/such/folder", "~/no-such-folder", "a/b/c"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(DataError, match="is no file or folder here; check the path"):
        formats.load_prompts(name)


# ----------------------------------------------------------------------------------------------- Hub names


def test_hub_names_are_found_in_the_offline_folder(tmp_path, monkeypatch):
    for name in ("pref", "lm"):
        (tmp_path / name).mkdir()
    write(tmp_path / "pref" / "hh_helpful_base.train.jsonl.gz", HH)
    write(tmp_path / "pref" / "hh_helpful_base.test.jsonl.gz", HH)
    write(tmp_path / "pref" / "hh_harmless_base.train.jsonl.gz", {**HH, "kind": "harmless"})
    write(tmp_path / "lm" / "tinystories_5k.jsonl.gz", {"text": "Once."})
    monkeypatch.setenv("PREFERL_DATA", str(tmp_path))
    assert len(formats.load_preferences("Anthropic/hh-rlhf:helpful-base")[0]) == 2
    harmless = formats.load_preferences("Anthropic/hh-rlhf:harmless-base")[0]
    assert [r.columns for r in harmless] == [{"kind": "harmless"}]
    assert formats.detect("roneneldan/TinyStories") == "text"


def test_without_the_network_the_error_says_what_to_do(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    monkeypatch.delenv("PREFERL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        formats.load_preferences("Anthropic/hh-rlhf:helpful-base")
    assert "Couldn't reach the Hub; check the name, the network, or set PREFERL_DATA" in str(caught.value)
    assert "long story" not in str(caught.value)


def test_a_hub_data_set_is_read_without_its_code(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return datasets.DatasetDict(
            {"test": datasets.Dataset.from_list([HH]), "train": datasets.Dataset.from_list([TWICE])}
        )

    monkeypatch.delenv("PREFERL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records, report = formats.load_preferences("org/name:some/folder")
    assert records == [rows.to_preference(HH)]
    assert report.examples["bad_role_order"][0].startswith("org/name:some/folder[train] row 1: ")
    assert calls == [(("org/name",), {"data_dir": "some/folder"})]


# ---------------------------------------------------------------------------------------- writing for datasets


def test_what_is_written_loads_with_datasets(tmp_path):
    """TRL reads our files through ``datasets``: the same columns, margins as numbers."""
    import datasets

    for ending, kind in ((".jsonl", "json"), (".jsonl.gz", "json"), (".parquet", "parquet")):
        path = tmp_path / f"a{ending}"
        formats.write_preferences(path, [Preference([USER], "Hi!", "What?", 0.5, {"annotator": "ann"})])
        loaded = datasets.load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded[0] == {
            "prompt": [USER], "chosen": "Hi!", "rejected": "What?", "margin": 0.5, "annotator": "ann",
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------- real data


@pytest.fixture
def real_data(monkeypatch):
    folder = os.environ.get("PREFERL_DATA") or Path(__file__).parents[3] / "shared" / "data"
    if not (Path(folder) / "pref").is_dir():
        pytest.skip("PREFERL_DATA has no real data")
    monkeypatch.setenv("PREFERL_DATA", str(folder))
    return Path(folder)


@pytest.mark.parametrize(("part", "read", "twice"), [("helpful-base", 1729, 5), ("harmless-base", 1723, 4)])
def test_hh_rows_are_all_kept_but_those_where_one_side_speaks_twice(real_data, part, read, twice):
    records, report = formats.load_preferences(f"Anthropic/hh-rlhf:{part}")
    assert (report.read, report.left_out) == (read, {"bad_role_order": twice})
    assert len(records) == report.kept == read - twice
    assert formats.validate(f"Anthropic/hh-rlhf:{part}").left_out == report.left_out
    assert all(r.prompt[0]["role"] == r.prompt[-1]["role"] == "user" for r in records)
    assert all(text == text.strip() for r in records for text in (r.chosen, r.rejected))


def test_hh_prompts_are_the_common_prefix(real_data):
    """Against the data's own description: everything up to the last Assistant mark of the common prefix."""
    path = real_data / "pref" / "hh_helpful_base.test.jsonl.gz"
    records = iter(formats.load_preferences(str(path))[0])
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            prefix = os.path.commonprefix([row["chosen"], row["rejected"]])
            cut = prefix.rindex("\n\nAssistant:") + len("\n\nAssistant:")
            if any("\n\nAssistant:" in row[side][cut:] for side in ("chosen", "rejected")):
                continue  # one side speaks twice
            record = next(records)
            assert (record.chosen, record.rejected) == (
                row["chosen"][cut:].strip(),
                row["rejected"][cut:].strip(),
            )
            words = " ".join(m["content"] for m in record.prompt).split()
            assert words == prefix[:cut].replace("\n\nHuman:", " ").replace("\n\nAssistant:", " ").split()
    assert next(records, None) is None


def test_hh_survives_every_layout(real_data, tmp_path):
    records = formats.load_preferences("Anthropic/hh-rlhf:harmless-base", limit=300)[0]
    for layout in rows.LAYOUTS:
        for ending in (".jsonl.gz", ".parquet"):
            formats.write_preferences(tmp_path / f"a{ending}", records, layout)
            assert formats.load_preferences(str(tmp_path / f"a{ending}"))[0] == records


def test_tinystories_are_texts(real_data):
    records, report = formats.load_demonstrations("roneneldan/TinyStories")
    assert formats.detect("roneneldan/TinyStories") == "text"
    assert (report.read, report.kept, report.left_out) == (4782, 4782, {})
    assert {r.prompt for r in records} == {""}
    assert all(set(r.columns) == {"source"} for r in records)
    assert sum(len(r.response) for r in records) > 3_900_000


def test_other_real_files(real_data):
    assert len(formats.load_prompts(str(real_data / "prompts" / "arena_hard_v0.1.jsonl.gz"))[0]) == 500
    assert len(formats.load_demonstrations(str(real_data / "lm" / "tinyshakespeare.txt.gz"))[0]) == 7222
    report = formats.validate(str(real_data / "sentiment" / "pros_cons.jsonl.gz"))
    assert (report.read, report.left_out) == (41199, {"empty_response": 8})
    with pytest.raises(DataError, match="columns answer, question"):
        formats.detect(str(real_data / "sft" / "gsm8k_train.jsonl.gz"))
