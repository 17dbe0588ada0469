"""Verdicts and scores as judges write them: through decoration, never from the reasoning before them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preferl.judging.verdicts import parse_score, parse_verdict

READ = {
    "VERDICT: A": 1.0,
    "critique\nVERDICT: B\n \n": 0.0,
    "**[[A]]**": 1.0,
    "Verdict: a.": 1.0,
    "```A```": 1.0,
    "Winner: Assistant B": 0.0,
    '{"verdict": "B"}': 0.0,
    'Thinking.\n```json\n{\n "reasoning": "A is better at {x}",\n "verdict": "B"\n}\n```': 0.0,
    "<verdict>B</verdict>": 0.0,
    "A is better.\n<verdict>\nB\n</verdict>": 0.0,
    "TIE": 0.5,
    "**Tie**": 0.5,
    "Verdict: Tie.": 0.5,
    "It's a tie.": 0.5,
    "[[A>>B]]": 1.0,
    "My final verdict is: [[B>A]]": 0.0,
    "[[A=B]]": 0.5,
    "VERDICT: [[A]]": 1.0,
    "```\nVERDICT: A\n```": 1.0,
    "   VERDICT: A": 1.0,
    "VERDICT: **A**": 1.0,
    "One is a fruit.\n**Final verdict: A**": 1.0,
    "A is better, I think.\n\nVERDICT: B": 0.0,
    "\\boxed{A}": 1.0,
    "- Verdict: B": 0.0,
    "> **Verdict:** B": 0.0,
    "### Verdict: A": 1.0,
    "Answer: A": 1.0,
    "The better response is A.": 1.0,
    "The better response is Response B": 0.0,
    "Response A is better.": 1.0,
    "A": 1.0,
    "b": 0.0,
    "Which?\nB": 0.0,
    "__VERDICT: A__": 1.0,
    "*Verdict*: A": 1.0,
    "**Verdict**\n\n**A**": 1.0,
    "<think>VERDICT: A</think>\nVERDICT: B": 0.0,
    "VERDICT — B": 0.0,
    "Verdict = A": 1.0,
    "(A)": 1.0,
    "'A'": 1.0,
    "FINAL ANSWER: B": 0.0,
    "Final Answer: [[A]]": 1.0,
    "Preferred response: A": 1.0,
    "Winner: Response A": 1.0,
    "VERDICT: TIE (both bad)": 0.5,
    "A wins.": 1.0,
    "Better: A": 1.0,
    "verdict:A": 1.0,
    "VERDICT: A!": 1.0,
    '"A"': 1.0,
    "`A`": 1.0,
    "The winner is Assistant A.": 1.0,
    "VERDICT: A\r\n": 1.0,
    "VERDICT: A \u2705": 1.0,
    "VERDICT: B</s>": 0.0,
    "VERDICT: B<|im_end|>": 0.0,
    "<b>VERDICT: A</b>": 1.0,
    "VERDICT:\u200b A": 1.0,
    "\uff36\uff25\uff32\uff24\uff29\uff23\uff34\uff1a\uff22": 0.0,  # full width
    "VERDICT: A\nVERDICT: A": 1.0,
    "Response A is better.\nVERDICT: B": 0.0,
}
UNREAD = [
    "",
    "VERDICT: C",
    "VERDICT: A or B",
    "VERDICT: A\nVERDICT: B\nVERDICT: TIE",
    "x\u2028VERDICT: A",
    "VERDICT: A\nI hope this helps!",
    "A is better in style, but B is right.",
    "Verdict: not A",
    "I cannot decide.",
    "VERDICT: A, B or TIE",
    "Options: A / B / TIE",
    "<think>VERDICT: A",
    "A is better at first.\nOn second thought I cannot decide between the two.",
    "VERDICT:",
    "VERDICT: A because it is short and B is not",
    "The verdict is unclear",
    "VERDICT: A/B",
    "So I would choose",
    "VERDICT: <A or B>",
    '{"verdict": "A", "winner": "B"}',
    '{"verdict": "A"} or so',
    "a\nb\nc",
    "It was a",
    "VERDICT: AB",
    "Neither A nor B is good",
    "Between A and B",
    "[A] vs [B]",
    "plan a\nplan\na",
    "VERDICT: " + "A" * 5000,
]
SCORES = {
    "SCORE: 1": 0.0,
    "fine\nSCORE: 10": 1.0,
    "**Score: 10/10**": 1.0,
    "Score: 5.5": 0.5,
    "7": 6 / 9,
    "Rating: [[10]]": 1.0,
    '{"score": 10}': 1.0,
    "<score>1</score>": 0.0,
    "x\n```\nScore: 10.\n```": 1.0,
    "[[10]]": 1.0,
    "x\n[[10]]": 1.0,
    "Score: 10 out of 10": 1.0,
    "Overall score: 10": 1.0,
    "The score is 10.": 1.0,
    "SCORE=10": 1.0,
}
NO_SCORES = [
    "SCORE: 0",
    "SCORE: 11",
    "SCORE: 7/5",
    "SCORE: seven",
    "SCORE: ٧",
    "SCORE: 7\nor so",
    "SCORE: " + "9" * 5000,
    "list\n7",
    "SCORE: 7-8",
    "",
    "10 apples",
    "SCORE: 1 or 10",
]


@pytest.mark.parametrize(("reply", "value"), READ.items())
def test_a_verdict_is_read_through_its_decoration(reply, value):
    assert parse_verdict(reply) == value
    for reasoning in ("At first I thought:\nVERDICT: A\nBut no.", "Response B is better.\nOr is it?"):
        # Lower case by itself is an answer only where it is all that was written.
        assert parse_verdict(f"{reasoning}\n{reply}") == (None if reply == "b" else value)


@pytest.mark.parametrize("reply", UNREAD)
def test_what_is_no_verdict_in_the_last_line_is_none(reply):
    assert parse_verdict(reply) is None


@pytest.mark.parametrize(("reply", "value"), SCORES.items())
def test_a_score_is_read_through_its_decoration(reply, value):
    assert parse_score(reply, 1, 10) == pytest.approx(value)


@pytest.mark.parametrize("reply", NO_SCORES)
def test_what_is_no_score_on_the_scale_is_none(reply):
    assert parse_score(reply, 1, 10) is None


@given(st.text(), st.sampled_from(["VERDICT: A", "VERDICT: B", "VERDICT: TIE"]), st.sampled_from("AB"))
def test_what_stands_before_the_last_line_decides_nothing(text, verdict, other):
    """Reasoning of any kind, also one that holds a verdict, and then a sentence: no verdict but the last."""
    ending = "I say so after some thought:"
    expected = parse_verdict(verdict)
    assert parse_verdict(f"{text}\nVERDICT: {other}\n{ending}\n{verdict}") in (expected, None)
    assert parse_verdict(f"{verdict}\n{ending}") is None


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_only_what_names_a_side_or_a_tie_is_a_verdict(text):
    value = parse_verdict(text)
    if value is not None:
        wide = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
        line = [part for part in text.translate(wide).lower().split("\n") if part.strip()][-1]
        assert {1.0: "a", 0.0: "b", 0.5: ""}[value] in line
