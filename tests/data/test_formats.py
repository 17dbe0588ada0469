"""Formats: every layout read, every defect named, nothing left out in silence, round trips."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preferl.data import formats
from preferl.data.records import DataError, Demonstration, Preference, PromptRecord

DIALOGUE = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: How are you?\n\nAssistant:"
USER = [{"role": "user", "content": "What is 2 + 2?"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q?", "chosen": "a", "rejected": "b"}, "Q?"),
        ({"prompt": USER, "chosen": "a", "rejected": "b"}, USER),
        ({"prompt": USER, "chosen": said("a"), "rejected": said("b")}, USER),
        ({"prompt": USER, "chosen": USER + said("a"), "rejected": USER + said("b")}, USER),
        ({"chosen": USER + said("a"), "rejected": USER + said("b")}, USER),
        (
            {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"},
            [
                {"role": "user", "content": "Hi there"},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "How are you?"},
            ],
        ),
    ],
)
def test_every_layout_of_pairs(row, prompt):
    pair = formats.to_preference(row | {"source": "me"})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (prompt, "a", "b", None)
    assert pair.columns == {"source": "me"}


def test_a_marker_inside_a_line_is_no_turn():
    text = "\n\nHuman: Write 'Human:' and Assistant: twice\n\nAssistant: "
    pair = formats.to_preference({"chosen": text + "yes", "rejected": text + "no"})
    assert pair.prompt == [{"role": "user", "content": "Write 'Human:' and Assistant: twice"}]


DEFECTS = [
    ({"prompt": "q", "chosen": "a"}, "missing_column"),
    ({"chosen": "just text", "rejected": "other text"}, "missing_column"),
    ({"prompt": "q", "chosen": None, "rejected": "b"}, "null_value"),
    ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "null_value"),
    ({"prompt": "q", "chosen": 3, "rejected": "b"}, "wrong_type"),
    ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong_type"),
    ({"prompt": ["hi"], "chosen": "a", "rejected": "b"}, "wrong_type"),
    ({"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"}, "wrong_type"),
    ({"prompt": "q", "chosen": True, "rejected": "b"}, "wrong_type"),
    ({"chosen": "x", "rejected": USER}, "wrong_type"),
    ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty_prompt"),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty_prompt"),
    ({"prompt": "q", "chosen": "", "rejected": "b"}, "empty_response"),
    ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "empty_response"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical_pair"),
    ({"chosen": DIALOGUE + " a", "rejected": DIALOGUE.replace("Hi", "Ho") + " b"}, "different_prompts"),
    ({"prompt": USER + said("x"), "chosen": "a", "rejected": "b"}, "bad_role_order"),
    ({"prompt": USER + USER, "chosen": "a", "rejected": "b"}, "bad_role_order"),
    ({"prompt": USER, "chosen": USER, "rejected": "b"}, "bad_role_order"),
    ({"chosen": DIALOGUE + " a\n\nHuman: more", "rejected": DIALOGUE + " b"}, "bad_role_order"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "bad_margin"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "bad_margin"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, "bad_margin"),
]
GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(("row", "kind"), DEFECTS)
def test_every_defect_has_its_kind_and_its_policy(tmp_path, row, kind):
    path = write(tmp_path / "rows.jsonl", [GOOD, row, GOOD])
    if formats.POLICY[kind] == "error":
        with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*\({kind}\)"):
            formats.load_preferences(path)
    records, report = formats.load_preferences(path, {"*": "skip"})
    assert len(records) == report.kept == 2
    assert report.left_out == {kind: 1}
    assert "rows.jsonl:2" in report.summary()
    with pytest.raises(DataError, match=kind):
        formats.load_preferences(path, {kind: "error"})
    assert formats.validate(path).left_out == {kind: 1}


def test_lines_that_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, b"{broken", b"[1]", b"\xff\xfe", good, good, good]) + b"\n\n")
    report = formats.validate(str(path))
    assert report.left_out == {"invalid_json": 1, "not_an_object": 1, "wrong_encoding": 1}
    assert (report.read, report.kept) == (7, 4)
    for line, kind in ((2, "invalid_json"), (3, "not_an_object"), (4, "wrong_encoding")):
        assert report.examples[kind][0].startswith(f"{path}:{line}: ")


def test_more_than_half_left_out_is_an_error(tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD, GOOD | {"chosen": ""}, GOOD | {"chosen": ""}])
    with pytest.raises(DataError, match="more than half"):
        formats.load_preferences(path)


def test_no_rows_no_file_no_columns(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        formats.load_preferences(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="check the path"):
        formats.load_preferences(str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match=r"holds no .*jsonl"):
        (tmp_path / "folder").mkdir()
        formats.load_preferences(str(tmp_path / "folder"))
    with pytest.raises(DataError, match="columns foo"):
        formats.detect(write(tmp_path / "foo.jsonl", [{"foo": 1}]))
    with pytest.raises(DataError, match="row policy"):
        formats.load_preferences(write(tmp_path / "ok.jsonl", [GOOD]), {"typo": "skip"})


def test_a_torn_gzip_file_is_named(tmp_path):
    whole = gzip.compress(json.dumps(GOOD).encode() * 50)
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no whole gzip"):
        formats.load_preferences(str(tmp_path / "torn.jsonl.gz"))


def test_a_hub_name_without_network_says_what_to_do(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="PREFERL_DATA"):
        formats.load_preferences("someone/something")


def test_a_hub_data_set_is_read_split_by_split(monkeypatch):
    import datasets

    asked = []

    def load(repository, data_dir=None):
        asked.append((repository, data_dir))
        rows = datasets.Dataset.from_list([GOOD])
        return datasets.DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("PREFERL_DATA", raising=False)
    records, _ = formats.load_preferences("Anthropic/hh-rlhf:helpful-base")
    assert len(records) == 2
    assert asked == [("Anthropic/hh-rlhf", "helpful-base")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": USER + said("4.")}, Demonstration(USER, "4.", {})),
        ({"prompt": "q", "completion": "a", "id": 7}, Demonstration("q", "a", {"id": 7})),
        ({"prompt": USER, "completion": said("a")}, Demonstration(USER, "a", {})),
        ({"text": "Once upon a time."}, Demonstration("", "Once upon a time.", {})),
    ],
)
def test_demonstrations(row, expected):
    assert formats.to_demonstration(row) == expected


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"chosen": "x", "rejected": "y"}, "preference"),
        ({"messages": []}, "demonstration"),
        ({"prompt": "x", "completion": "y"}, "demonstration"),
        ({"text": "x"}, "text"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_detection(tmp_path, columns, kind):
    assert formats.detect(write(tmp_path / "rows.jsonl", [columns])) == kind


def test_plain_text_is_one_text_a_paragraph(tmp_path):
    (tmp_path / "t.txt").write_text("first line\nsecond line\n\n\nnext text\n", encoding="utf-8")
    records, _ = formats.load_demonstrations(str(tmp_path / "t.txt"))
    assert [r.response for r in records] == ["first line\nsecond line", "next text"]


TEXT = st.text(min_size=1, max_size=30).filter(
    lambda t: t.strip() == t and "Human:" not in t and "Assistant:" not in t
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(["explicit", "implicit", "hh"]),
    st.sampled_from(["jsonl", "jsonl.gz", "parquet"]),
)
def test_round_trips(tmp_path, prompt, chosen, rejected, layout, ending):
    surrogates = any("\ud800" <= c <= "\udfff" for c in prompt + chosen + rejected)
    if chosen == rejected or surrogates:
        return
    messages = [{"role": "user", "content": prompt}]
    record = Preference(messages, chosen, rejected, 0.5, {"annotator": "me"})
    path = tmp_path / f"out.{ending}"
    formats.write_preferences(path, [record], layout)
    assert formats.load_preferences(str(path))[0] == [record]


def test_folders_json_arrays_and_limits(tmp_path):
    write(tmp_path / "b.jsonl", [GOOD | {"n": 2}])
    (tmp_path / "a.json").write_text(json.dumps([GOOD | {"n": 0}, GOOD | {"n": 1}]))
    records, _ = formats.load_preferences(str(tmp_path))
    assert [r.columns["n"] for r in records] == [0, 1, 2]
    assert len(formats.load_preferences(str(tmp_path), None, 2)[0]) == 2


def test_prompts_and_demonstrations_round_trip(tmp_path):
    formats.write_prompts(tmp_path / "p.jsonl", [PromptRecord("q", {"k": 1})])
    assert formats.load_prompts(str(tmp_path / "p.jsonl"))[0] == [PromptRecord("q", {"k": 1})]
    formats.write_demonstrations(tmp_path / "d.parquet", [Demonstration(USER, "4.", {"k": "v"})])
    assert formats.load_demonstrations(str(tmp_path / "d.parquet"))[0] == [
        Demonstration(USER, "4.", {"k": "v"})
    ]
    with pytest.raises(DataError, match="must end with"):
        formats.write_prompts(tmp_path / "p.csv", [])


def test_convert_between_layouts(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": USER, "chosen": "a", "rejected": "b"}])
    formats.convert(source, tmp_path / "out.jsonl", "hh")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row == {
        "chosen": "\n\nHuman: What is 2 + 2?\n\nAssistant: a",
        "rejected": "\n\nHuman: What is 2 + 2?\n\nAssistant: b",
    }


def test_what_hh_cannot_hold_is_refused():
    with pytest.raises(DataError, match="system"):
        formats.preference_row(Preference([{"role": "system", "content": "s"}, *USER], "a", "b"), "hh")
    with pytest.raises(DataError, match="read back as turns"):
        formats.preference_row(Preference(USER, "a\n\nHuman: x", "b"), "hh")
    with pytest.raises(DataError, match="layout"):
        formats.preference_row(Preference(USER, "a", "b"), "csv")


def test_real_human_preferences(real_data, monkeypatch):
    monkeypatch.setenv("PREFERL_DATA", str(real_data))
    records, report = formats.load_preferences("Anthropic/hh-rlhf:helpful-base")
    assert report.read == 1729
    assert report.kept > 1600
    assert report.kept + sum(report.left_out.values()) == report.read
    assert all(r.prompt[-1]["role"] == "user" and r.chosen.strip() for r in records)
    assert 0.55 < sum(len(r.chosen) > len(r.rejected) for r in records) / len(records) < 0.63


def test_real_stories(real_data, monkeypatch):
    monkeypatch.setenv("PREFERL_DATA", str(real_data))
    records, report = formats.load_demonstrations("roneneldan/TinyStories")
    assert report.kept == 4782
    assert formats.detect("roneneldan/TinyStories") == "text"
    assert sum(len(r.response.split()) for r in records) > 700_000
