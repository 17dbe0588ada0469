"""The summary of a run in Markdown: what it holds, and that nothing in it is markup."""

import pytest

from preferl.reporting.markdown import cell, summary
from preferl.reporting.page import Section, Table, Verdict


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+0.61 [+0.28, +0.94]", "+0.61 [+0.28, +0.94]"),
        ("a | b\nc", r"a \| b c"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("![x](https://example.com/x.png)", r"![x]\(https://example.com/x.png)"),
        ("**bold** `code` _it_ # ~~gone~~", r"\*\*bold\*\* \`code\` \_it\_ \# \~\~gone\~\~"),
    ],
)
def test_cells_are_text(text, shown):
    assert cell(text) == shown


def test_it_has_the_verdict_the_numbers_and_the_first_tables():
    tables = [Table("Win rates", ["by", "win rate"], [["gold", "64 % [54 %, 73 %]"]], "A tie is half a win.")]
    responses = Table("The same prompts", ["prompt"], [["What?"]])
    sections = [Section("Did it work?", [], [*tables, responses]), Section("What it cost", [], tables)]
    text = summary("run", Verdict("Better", "good", "It gained."), [("gain", "+0.61", "points")], sections)
    assert text.splitlines()[0] == "## run: Better"
    assert "| gain | +0.61 | points |" in text
    assert "| gold | 64 % [54 %, 73 %] |" in text
    assert text.count("**Win rates**") == 1  # the cost is on the page
    assert "What?" not in text
