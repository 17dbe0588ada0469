"""Random layouts through the reader: never a traceback, never a row whose meaning was changed in silence.

``PREFERL_FUZZ=2000`` tries more of them than the suite does.
"""

import contextlib
import io
import json
import os
from pathlib import Path

from hypothesis import HealthCheck, given, note, settings
from layout_grammar import Case, cases, said

from preferl import cli
from preferl.data import formats
from preferl.data.columns import Options
from preferl.data.files import Table
from preferl.data.records import Comparison, DataError, Demonstration, Rated

SUITE = 200  # in the suite always the same ones
THROUGH_THE_COMMAND = 10
EXAMPLES = int(os.environ.get("PREFERL_FUZZ", str(SUITE)))


@settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == SUITE,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_a_layout_is_read_as_it_is_meant_or_refused(case: Case):
    note(repr(case))
    options = Options(**case.options)
    loaded, refusal = None, ""
    try:
        loaded = formats.load(Table(case.rows), options=options)
    except DataError as error:
        refusal = str(error)
    if loaded is None:
        # What a person has said all about is read; a column that must not be passed over is refused.
        assert not case.complete or (case.suspicious or "nothing") in refusal, refusal
        assert "--" in refusal
        return
    if case.suspicious:  # read as a rating, a label or a split, where that is what it is
        assert case.suspicious in used_columns(loaded), loaded.report.notes
    else:
        assert_means(loaded.records, case)
    assert loaded.report.notes[0].startswith("read as ")


@settings(
    max_examples=THROUGH_THE_COMMAND,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_the_command_says_the_same_and_writes_what_was_meant(tmp_path: Path, case: Case):
    note(repr(case))
    path, out = tmp_path / "rows.jsonl", tmp_path / "ours.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in case.rows), encoding="utf-8"
    )
    out.unlink(missing_ok=True)
    said, wrong = io.StringIO(), io.StringIO()
    options = [word for name, value in case.options.items() for word in (f"--{name}", value)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = cli.main(["data", "convert", str(path), str(out), *options])
    if code != 0:
        assert code == 3, wrong.getvalue()
        assert "a defect" not in wrong.getvalue()
        assert not case.complete or (case.suspicious or "nothing") in wrong.getvalue(), wrong.getvalue()
        assert "--" in wrong.getvalue()
        return
    assert "read as " in said.getvalue()
    if not case.suspicious:
        assert_means(formats.load(str(out)).records, case)


def used_columns(loaded) -> str:
    """What the first sentence says before it comes to what is not used."""
    return loaded.report.notes[0].split("; not used:")[0]


def assert_means(records, case: Case) -> None:
    kinds = {type(record) for record in records}
    if case.pairs or case.ties:
        assert kinds == {Comparison}
        pairs = [pair for record in records for pair in record.pairs()]
        assert {(said(p.prompt), p.chosen, p.rejected) for p in pairs} == case.pairs
        assert len(pairs) == len(case.pairs)
        assert sum(len(set(record.ranks)) == 1 for record in records) == case.ties
    elif case.labels:
        assert kinds == {Rated}
        assert {(said(r.prompt), r.response, r.good) for r in records} == case.labels
    else:
        assert kinds == {Demonstration}
        assert {(said(r.prompt), r.response) for r in records} == case.shown
