"""Columns that a person names and that are not there, before any row is read."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from preferl.data import formats
from preferl.data.columns import Options
from preferl.data.named_columns import may_have
from preferl.data.records import DataError

ROWS = [
    {"question": f"What is {i}?", "good": f"It is {i}.", "bad": "No.", "meta": {"who": "a"}} for i in range(9)
]
TABLE = "question;good;bad;meta\n" + "".join(f"What is {i}?;It is {i}.;No.;a\n" for i in range(9))
WRONG = Options(columns="prompt=nope,chosen=good,rejected=bad")
RIGHT = Options(columns="prompt=question,chosen=good,rejected=bad")


def jsonl() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(params=["jsonl", "jsonl.gz", "json", "csv", "parquet", "folder"])
def file(request, tmp_path):
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif request.param == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl().encode()))
    elif request.param == "folder":
        path.mkdir()
        (path / "train.jsonl").write_text(jsonl())
    else:
        path.write_text({"jsonl": jsonl(), "json": json.dumps(ROWS), "csv": TABLE}[request.param])
    return str(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (WRONG, "--columns: data set .* has no column 'nope'; it has bad, good, meta, question"),
        (Options(winner="nope"), "--winner: data set .* has no column 'nope'; it has bad, good"),
        (Options(columns="promt=question"), "a column cannot be 'promt'"),
        (Options(winner="good:codex"), "codex"),
    ],
)
def test_a_wrong_column_is_refused_before_a_row_is_read(file, options, words, monkeypatch):
    def read(name):
        pytest.fail(f"{name} is read")

    monkeypatch.setattr(formats, "read_rows", read)
    with pytest.raises(DataError, match=words):
        formats.load(file, options=options)


def test_a_right_one_is_read_as_before(file):
    assert len(formats.load(file, options=RIGHT).records) == 9


def test_nothing_is_refused_that_a_row_may_have(tmp_path):
    file = tmp_path / "rows.jsonl"
    late = {"a.b": 1, "größe": 2, "x&y": 3, "meta": {"who": "a"}}
    file.write_text(jsonl() + json.dumps(late).replace("&", "\\u0026") + "\n")
    for path in ("a.b", "größe", "x&y", "meta.who", "meta", "question"):
        assert may_have(file, path), path
    # A text that speaks of a column is none, nor is a part of a name.
    file.write_text(json.dumps({"text": 'the key "prompt" is in quotes', "question_2": "?"}) + "\n")
    assert not may_have(file, "prompt")
    assert not may_have(file, "question")
    table = tmp_path / "rows.csv"
    table.write_text("a,,b\n1,2,3\n")
    assert may_have(table, "column_2")
