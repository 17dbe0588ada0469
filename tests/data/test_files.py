"""Where rows come from: every kind of file, folders, Hub names, and the real data sets."""

import gzip
import itertools
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from example_rows import HH, NICE, USER, load_pairs, write

from preferl.data import containers, files, formats
from preferl.data.records import DataError, Demonstration, PromptRecord

TWICE = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Umm.\n\nAssistant: Hi!",
    "rejected": "\n\nHuman: Hello\n\nAssistant: Hi!",
}


# --------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path, ending):
    name = write(tmp_path / f"a{ending}", b"\xef\xbb\xbf" + b'{"prompt": "p\\u2028"}\r', "", {"prompt": "q"})
    assert formats.load(name, "prompt")[0] == [PromptRecord("p\u2028"), PromptRecord("q")]


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path):
    name = write(tmp_path / "a.jsonl", '{"prompt": "one\u2028two\u0085three"}')
    assert formats.load(name, "prompt")[0] == [PromptRecord("one\u2028two\u0085three")]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_json_arrays_and_json_lines_named_json(tmp_path, ending):
    array = write(tmp_path / f"a{ending}", json.dumps([{"prompt": "p"}, {"prompt": "q"}], indent=1))
    lines = write(tmp_path / f"b{ending}", {"prompt": "p"}, {"prompt": "q"})
    for name in (array, lines):
        assert [r.prompt for r in formats.load(name, "prompt")[0]] == ["p", "q"]
    bad = write(tmp_path / f"c{ending}", [{"prompt": "p"}, 3])
    with pytest.raises(DataError, match=r"row 2: is of type int.*not_an_object"):
        formats.load(bad, "prompt")


@pytest.mark.parametrize(
    "text", [b"[1, 2", b'[{"prompt": "caf\xe9"}]', b"[" * 100_000, b'{"data": []}', b"3"]
)
def test_json_files_that_hold_no_rows(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.json' (is not UTF-8 JSON|holds one)"):
        formats.load(write(tmp_path / "a.json", text), "prompt")


ROWS = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(3)]


@pytest.mark.parametrize(
    "value",
    [
        {"version": 1, "data": ROWS},
        {"prompt": ["p0", "p1", "p2"], "chosen": ["c"] * 3, "rejected": ["r"] * 3},
        {key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]},
        {"features": [], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]},
    ],
)
def test_json_that_other_programs_write_around_rows(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    assert [row.value for row in files.file_rows(path)] == ROWS


def test_json_with_an_array_for_each_split_and_objects_over_several_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS[:2], "test": ROWS[2:]}))
    read = list(containers.read_rows(str(path)))
    assert [(row.split, row.value) for row in read] == list(
        zip(["train", "train", "test"], ROWS, strict=True)
    )
    assert read[2].where == f"{path}[test]: row 1"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert [row.value for row in files.file_rows(path)] == ROWS
    path.write_text(json.dumps({"hidden_size": 3, "names": ["a"]}))
    with pytest.raises(DataError, match=r"no array of rows.*name the file that is"):
        list(files.file_rows(path))


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonlines", "A.JSONL"])
def test_other_names_of_json_lines(tmp_path, name):
    write(tmp_path / name, *ROWS)
    assert [row.value for row in containers.read_rows(str(tmp_path / name))] == ROWS
    assert [row.value for row in containers.read_rows(str(tmp_path))] == ROWS


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_utf16_is_named_as_such(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes("prompt,chosen,rejected\na,b,c\n".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        list(files.file_rows(path))


def test_plain_text_is_cut_at_empty_lines(tmp_path):
    name = write(tmp_path / "a.txt", "", "First:", "Speak.", " ", "", "\tAll:", "Speak, speak!\r", "")
    records = formats.load(name, "demonstration")[0]
    assert [r.response for r in records] == ["First:\nSpeak.", "\tAll:\nSpeak, speak!"]
    assert all(r.prompt == "" for r in records)
    assert [r.where for r in containers.read_rows(name)] == [f"{name}:2", f"{name}:6"]


def test_plain_text_is_cut_at_end_of_text_marks_if_it_has_some(tmp_path):
    name = write(tmp_path / "a.txt.gz", "Once.", "", "The end.", "<|endoftext|>", "Twice.", "<|endoftext|>")
    assert [r.response for r in formats.load(name, "demonstration")[0]] == ["Once.\n\nThe end.", "Twice."]


def test_plain_text_in_another_encoding(tmp_path):
    name = write(tmp_path / "a.txt", "One.", "", b"caf\xe9", "", "Two.")
    report = formats.load(name, "demonstration", {"wrong_encoding": "skip"})[1]
    assert report.examples == {
        "wrong_encoding": [f"{name}:3: is not UTF-8 (invalid continuation byte at byte 3)"]
    }


def test_parquet_from_elsewhere(tmp_path):
    """Messages as structs, several row groups, a defect named by its row."""
    table = pyarrow.table({"messages": [[USER, NICE]] * 2500 + [None], "n": list(range(2501))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    records, report, _ = formats.load(str(tmp_path / "a.parquet"), "demonstration", {"null_value": "skip"})
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
            formats.load(str(tmp_path / name), "prompt")


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"of no kind that preferl reads; the kinds are \.jsonl"):
        formats.load(str(tmp_path / "a.pkl"), "prompt")


def test_a_folder_is_its_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", {"prompt": "2"})
    write(tmp_path / "a.jsonl.gz", {"prompt": "1"})
    files.write_rows(tmp_path / "c.parquet", [{"prompt": "3"}])
    write(tmp_path / "README.md", "no rows")
    (tmp_path / "d.jsonl.77.tmp").write_text("half a fi")
    assert [r.prompt for r in formats.load(str(tmp_path), "prompt")[0]] == ["1", "2", "3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file of data"):
        formats.load(str(tmp_path / "empty"), "prompt")


def test_a_stage_is_what_lies_in_its_data_folder(tmp_path):
    write(tmp_path / "manifest.json", "{}")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", {"prompt": "1"})
    assert formats.validate(str(tmp_path)).kept == 1
    (tmp_path / "model").mkdir()
    write(tmp_path / "model" / "manifest.json", "{}")
    with pytest.raises(DataError, match=r"holds no file of data"):
        formats.validate(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "./missing", "/no/such/folder", "~/no-such-folder", "a/b/c"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is no file or folder here; check the path"):
        formats.load(name, "prompt")


# ----------------------------------------------------------------------------------------------- Hub names


def test_hub_names_are_found_in_the_offline_folder(tmp_path, monkeypatch):
    for name in ("pref", "lm"):
        (tmp_path / name).mkdir()
    write(tmp_path / "pref" / "hh_helpful_base.train.jsonl.gz", HH)
    write(tmp_path / "pref" / "hh_helpful_base.test.jsonl.gz", HH)
    write(tmp_path / "pref" / "hh_harmless_base.train.jsonl.gz", {**HH, "kind": "harmless"})
    write(tmp_path / "lm" / "tinystories_5k.jsonl.gz", {"text": "Once."})
    monkeypatch.setenv("PREFERL_DATA", str(tmp_path))
    assert len(load_pairs("Anthropic/hh-rlhf:helpful-base")[0]) == 2
    harmless = load_pairs("Anthropic/hh-rlhf:harmless-base")[0]
    assert [r.columns for r in harmless] == [{"kind": "harmless"}]
    assert formats.detect("roneneldan/TinyStories") == "text"


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
    records, report = load_pairs(f"Anthropic/hh-rlhf:{part}")
    assert (report.read, report.left_out) == (read, {"bad_role_order": twice})
    assert len(records) == report.kept == read - twice
    assert formats.validate(f"Anthropic/hh-rlhf:{part}").left_out == report.left_out
    for record in records:
        assert isinstance(record.prompt, list)
        assert record.prompt[0]["role"] == record.prompt[-1]["role"] == "user"
    assert all(text == text.strip() for r in records for text in (r.chosen, r.rejected))


def test_hh_prompts_are_the_common_prefix(real_data):
    """Against the data's own description: everything up to the last Assistant mark of the common prefix."""
    path = real_data / "pref" / "hh_helpful_base.test.jsonl.gz"
    records = iter(load_pairs(str(path))[0])
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            both = zip(row["chosen"], row["rejected"], strict=False)
            prefix = "".join(a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], both))
            cut = prefix.rindex("\n\nAssistant:") + len("\n\nAssistant:")
            if any("\n\nAssistant:" in row[side][cut:] for side in ("chosen", "rejected")):
                continue  # one side speaks twice
            record = next(records)
            assert (record.chosen, record.rejected) == (
                row["chosen"][cut:].strip(),
                row["rejected"][cut:].strip(),
            )
            assert isinstance(record.prompt, list)
            words = " ".join(m["content"] for m in record.prompt).split()
            assert words == prefix[:cut].replace("\n\nHuman:", " ").replace("\n\nAssistant:", " ").split()
    assert next(records, None) is None


def test_hh_survives_every_layout(real_data, tmp_path):
    records = load_pairs("Anthropic/hh-rlhf:harmless-base", limit=300)[0]
    for layout in formats.PAIR_LAYOUTS:
        for ending in (".jsonl.gz", ".parquet"):
            formats.write(tmp_path / f"a{ending}", records, layout)
            assert load_pairs(str(tmp_path / f"a{ending}"))[0] == records


def test_tinystories_are_texts(real_data):
    records, report, _ = formats.load("roneneldan/TinyStories", "demonstration")
    assert formats.detect("roneneldan/TinyStories") == "text"
    assert (report.read, report.kept, report.left_out) == (4782, 4782, {})
    assert all(r.prompt == "" for r in records)
    assert all(set(r.columns) == {"source"} for r in records)
    assert sum(len(r.response) for r in records) > 3_900_000


def test_other_real_files(real_data):
    assert len(formats.load(str(real_data / "prompts" / "arena_hard_v0.1.jsonl.gz"), "prompt")[0]) == 500
    assert len(formats.load(str(real_data / "lm" / "tinyshakespeare.txt.gz"), "demonstration")[0]) == 7222
    report = formats.validate(str(real_data / "sentiment" / "pros_cons.jsonl.gz"))
    assert (report.read, report.left_out) == (41199, {"empty_response": 8})


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("bench/llmbar", "ranking", 416),
        ("formats/sharegpt_dpo_demo", "preference", 293),
        ("prompts/vicuna_bench", "prompt", 60),
        ("prompts/xstest", "prompt", 450),
        ("sentiment/rt_polarity.test", "text", 868),
        ("sft/gpteacher_codegen", "demonstration", None),
        ("sft/gsm8k_train", "demonstration", 7473),
        ("noncommercial/alpaca_5000", "demonstration", None),
        ("noncommercial/alpacaeval_gpt4_pairs", "ranking", None),
    ],
)
def test_layouts_of_real_files(real_data, name, kind, kept):
    report = formats.load(str(real_data / f"{name}.jsonl.gz")).report
    assert report.kind == kind
    assert report.kept == (kept or report.kept)
    assert report.kept > 0.9 * report.read
