"""Records to files and back: nothing changes, nothing is lost, an old file stays whole."""

import json
import os

import pytest
from example_rows import GOOD, HH, NICE, RUDE, USER, load_pairs, pair_of, write
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from preferl.data import formats, rows
from preferl.data.records import DataError, Demonstration, Pair, PromptRecord

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
        lambda prompt, answers, margin, columns: Pair(prompt, answers[0], answers[1], margin, columns),
        prompts,
        ANSWERS,
        MARGINS,
        COLUMNS,
    )


round_trip = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("layout", ["explicit", "implicit"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@given(records=st.lists(pairs(dialogues()), min_size=1, max_size=4))
@round_trip
def test_preferences_come_back(tmp_path, ending, layout, records):
    path = tmp_path / f"a{ending}"
    formats.write(path, records, layout)
    assert load_pairs(str(path))[0] == records


@given(records=st.lists(pairs(WORDS), min_size=1, max_size=4))
@round_trip
def test_plain_prompts_come_back(tmp_path, records):
    formats.write(tmp_path / "a.jsonl", records)
    assert load_pairs(str(tmp_path / "a.jsonl"))[0] == records


# Texts made of the pieces that hh-rlhf's layout is made of, too.
MARKED = st.lists(
    st.sampled_from(["Human:", "Assistant:", "\n", "\n\n", " ", "x"]) | WORDS, min_size=1, max_size=5
)
MARKED_TEXTS = MARKED.map("".join).filter(str.strip)


@given(turns=st.lists(MARKED_TEXTS, min_size=3, max_size=5), system=st.booleans())
@settings(max_examples=300, deadline=None)
def test_hh_layout_keeps_all_but_white_space_around_turns_or_refuses(turns, system):
    turns = turns if len(turns) % 2 else turns[1:]  # the prompt ends with the user's turn
    *contents, chosen, rejected = turns
    roles = ["user", "assistant"] * len(contents)
    prompt = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    assume(chosen.strip() != rejected.strip() and prompt[-1]["role"] == "user")
    if system:
        prompt.insert(0, {"role": "system", "content": "Be kind."})
    bare = Pair([{**m, "content": m["content"].strip()} for m in prompt], chosen.strip(), rejected.strip())
    if system or any(mark in text for text in turns for mark in ("\n\nHuman:", "\n\nAssistant:")):
        with pytest.raises(DataError, match=r"hh-rlhf's layout|would read back as turns"):
            rows.hh_row(Pair(prompt, chosen, rejected))
    else:
        assert pair_of(rows.hh_row(Pair(prompt, chosen, rejected))) == bare


def test_hh_layout_refuses_what_would_read_back_as_something_else(tmp_path):
    system = [{"role": "system", "content": "Be kind."}, USER]
    with pytest.raises(DataError, match="no system turn"):
        formats.write(tmp_path / "a.jsonl", [Pair(system, "a", "b")], "hh")
    for text in ("x\n\nHuman: y", "\n\nAssistant: y"):
        with pytest.raises(DataError, match="would read back as turns"):
            formats.write(tmp_path / "a.jsonl", [Pair([USER], text, "b")], "hh")
    assert list(tmp_path.iterdir()) == []


def test_hh_file_is_byte_for_byte_the_original_form(tmp_path):
    formats.write(tmp_path / "a.jsonl", [pair_of(HH)], "hh")
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["chosen"] == HH["chosen"].replace("Hi! \n", "Hi!\n")


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(DataError, match="use explicit, implicit, hh"):
        formats.write(tmp_path / "a.jsonl", [pair_of(GOOD)], "trl")


UNICODE = 'Grüße, 世界 🌍\u2028 \x00 \\ " \r\n'


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_record_comes_back_from_every_kind_of_file(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    pairs = [Pair([USER], UNICODE, "b", 0.5, {"n": 1}), Pair([USER], "a", "b", 1.0, {"n": 2})]
    formats.write(path, pairs)
    assert load_pairs(str(path))[0] == pairs
    formats.write(path, pairs, "implicit")
    assert load_pairs(str(path))[0] == pairs
    shown = [Demonstration(UNICODE, "r", {"n": 1}), Demonstration("p", UNICODE, {"n": 2})]
    formats.write(path, shown)
    assert formats.load(str(path), "demonstration")[0] == shown
    texts = [Demonstration("", UNICODE, {"n": 1}), Demonstration("", "b", {"n": 2})]
    formats.write(path, texts)
    assert formats.detect(str(path)) == "text"
    assert formats.load(str(path), "demonstration")[0] == texts
    prompts = [PromptRecord([USER, NICE, USER], {"tags": ["a", "b"]}), PromptRecord([USER], {"tags": []})]
    formats.write(path, prompts)
    assert formats.load(str(path), "prompt")[0] == prompts


def test_parquet_keeps_columns_that_the_first_row_lacks(tmp_path):
    records = [Pair("p", "a", "b"), Pair("q", "a", "b", 1.0, {"annotator": "ann"})]
    formats.write(tmp_path / "a.parquet", records)
    back = load_pairs(str(tmp_path / "a.parquet"))[0]
    assert [r.margin for r in back] == [None, 1.0]
    assert [r.columns for r in back] == [{"annotator": None}, {"annotator": "ann"}]


def test_parquet_of_texts_and_pairs_reads_back(tmp_path):
    records = [Demonstration("", "a story"), Demonstration("p", "r")]
    formats.write(tmp_path / "a.parquet", records)
    back = formats.load(str(tmp_path / "a.parquet"), "demonstration")[0]
    assert [(r.prompt, r.response) for r in back] == [("", "a story"), ("p", "r")]


@pytest.mark.parametrize("columns", [({"x": {}}, {}), ({"x": 1}, {"x": "s"}), ({"x": 2**80}, {})])
def test_parquet_that_cannot_hold_the_rows_says_so_and_leaves_the_old_file(tmp_path, columns):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=r"write \.jsonl instead"):
        formats.write(path, [PromptRecord("p", c) for c in columns])
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    assert path.read_bytes() == b"old"


def test_jsonl_that_cannot_hold_the_rows_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old")
    for bad in (PromptRecord("\ud800"), PromptRecord("p", {"x": object()})):
        with pytest.raises(DataError, match="cannot hold the rows"):
            formats.write(path, [bad])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        formats.write(path, [PromptRecord("p")])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_bytes() == b"old"


def test_writing_makes_folders_replaces_and_repeats_byte_for_byte(tmp_path):
    first, second = tmp_path / "new" / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    formats.write(first, [PromptRecord("old")])
    for path in (first, second):
        formats.write(path, [PromptRecord("p")])
    assert formats.load(str(first), "prompt")[0] == [PromptRecord("p")]
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == b"\0\0\0\0"  # gzip's time stamp


def test_unknown_endings_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(DataError, match=r"must end with \.jsonl, \.jsonl\.gz or \.parquet"):
        formats.write(tmp_path / "new" / "a.csv", [PromptRecord("p")])
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
    formats.write(path, [Demonstration("p", "r", clash)])
    back = formats.load(str(path), "demonstration")[0][0]
    assert (back.prompt, back.response) == ("p", "r")
    assert sorted(map(str, back.columns.values())) == sorted(map(str, clash.values()))
    assert back.columns["source_messages"] == [USER, RUDE]
    formats.write(path, [Pair("p", "a", "b", None, {"margin": 9, "chosen": "c"})])
    pair = load_pairs(str(path))[0][0]
    assert (pair.chosen, pair.margin, pair.columns) == ("a", None, {"source_margin": 9, "source_chosen": "c"})
    formats.write(path, [PromptRecord("p", {"text": "t"})])
    assert formats.detect(str(path)) == "prompt"


# ------------------------------------------------------------------------------------------------- convert


@pytest.mark.parametrize("layout", ["explicit", "implicit", "hh"])
def test_convert_preferences(tmp_path, layout):
    name, out = write(tmp_path / "a.jsonl", HH, {**HH, "chosen": HH["rejected"]}), tmp_path / "b.jsonl.gz"
    report = formats.convert(name, out, layout)
    assert (report.kept, report.left_out) == (1, {"identical_pair": 1})
    assert load_pairs(str(out))[0] == [pair_of(HH)]


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


# --------------------------------------------------------------------------------------- writing for datasets


def test_what_is_written_loads_with_datasets(tmp_path):
    """TRL reads our files through ``datasets``: the same columns, margins as numbers."""
    import datasets

    for ending, kind in ((".jsonl", "json"), (".jsonl.gz", "json"), (".parquet", "parquet")):
        path = tmp_path / f"a{ending}"
        formats.write(path, [Pair([USER], "Hi!", "What?", 0.5, {"annotator": "ann"})])
        loaded = datasets.load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded[0] == {
            "prompt": [USER],
            "chosen": "Hi!",
            "rejected": "What?",
            "margin": 0.5,
            "annotator": "ann",
        }
