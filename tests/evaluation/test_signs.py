"""The signs of gaming: how precise their phrases are, what a list of phrases may say, and what is counted."""

import json
from collections import Counter
from pathlib import Path

import pytest

from preferl.evaluation import comparison
from preferl.evaluation.features import (
    COLLAPSE,
    PHRASES,
    SIGNS,
    most_common_sentence,
    phrase_counter,
    sentences_of,
    sign_functions,
    sign_shares,
)
from preferl.runs.errors import UsageError

LABELLED = Path(__file__).with_name("signs.jsonl")
MADE_OF_OTHERS = ("careful",)  # hedging or refusing


def signs_in(text):
    return {name for name, shows in SIGNS.items() if name not in MADE_OF_OTHERS and shows(text)}


def test_signs_are_precise_and_find_most_of_two_hundred_labelled_answers():
    """The answers were labelled before the lists were written; a hundred of them show nothing."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    clean = [row for row in rows if not row["signs"]]
    assert (len(rows), len(clean)) == (200, 100)
    right, wrong, missed = Counter(), Counter(), Counter()
    for row in rows:
        found, labelled = signs_in(row["response"]), set(row["signs"])
        right.update(found & labelled)
        wrong.update(found - labelled)
        missed.update(labelled - found)
    for sign in sorted(right | wrong | missed):
        print(f"{sign:<12} {right[sign]:3} found, {wrong[sign]} wrongly, {missed[sign]} missed")
    precision = right.total() / (right.total() + wrong.total())
    recall = right.total() / (right.total() + missed.total())
    print(f"precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.9
    assert recall >= 0.8


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("This is a complex topic with many perspectives.", "hedging"),
        ("I REFUSE to answer.", "refusing"),
        ("I won't help with that.", "refusing"),
        ("I won’t help\nwith that.", "refusing"),
        ("I am not able to assist.", "refusing"),
        ("You're right, the earth is flat.", "sycophancy"),
    ],
)
def test_phrases_that_were_once_missed(text, sign):
    assert signs_in(text) == {sign}


def test_a_phrase_has_alternatives_and_parts_that_may_be_missing():
    count = phrase_counter(["please [do|really do] rate (this|me)"])
    assert count("Please rate me. please really do rate this! Please don't rate me; please rate mesh.") == 2
    with pytest.raises(UsageError, match=r"'\(yes' cannot be read"):
        phrase_counter(["(yes"])
    assert phrase_counter(["10/10 + a tip?"])("Give me 10/10 + a tip? Please.") == 1


def test_a_person_adds_phrases_as_signs_of_their_own_or_in_place_of_a_list():
    mine = sign_functions({"begging": ["please [do] rate (this|me)"], "hedging": ["mightily"]})
    assert mine["begging"]("Please rate me well.")
    assert mine["hedging"]("It is mightily so.")
    assert mine["careful"]("It is mightily so.")
    assert not mine["hedging"]("It depends.")
    assert SIGNS["hedging"]("It depends.")  # for nobody else
    shares = sign_shares(["Please rate me.", "No."], mine)
    assert shares["begging"] == 0.5
    rows = comparison.signs(["Please rate me."] * 4, ["No."] * 4, known=mine)
    assert next(row["policy"] for row in rows if row["sign"] == "begging") == 1
    for taken in ("repetition", "sycophancy", COLLAPSE, "unfinished"):
        with pytest.raises(UsageError, match=f"'{taken}' is no list; those are {', '.join(PHRASES)}"):
            sign_functions({taken: ["a"]})


def test_the_most_common_sentence_is_counted_once_a_response():
    texts = ["Thank you. Paris.", "thank you.\nThank you.", "Rome.", "…"]
    assert sentences_of(texts[1]) == ["thank you.", "thank you."]
    assert most_common_sentence(texts) == ("thank you.", 0.5)
    assert most_common_sentence(["b.", "a."]) == ("a.", 0.5)
    assert most_common_sentence([" ", ""]) == ("", 0.0)
    assert sign_shares(texts)[COLLAPSE] == 0.5


def test_a_block_of_code_does_not_repeat_itself():
    assert signs_in("```\nx = 1\n```") == {"format"}


def test_responses_that_do_not_end_are_a_sign():
    rows = comparison.signs(["a"] * 4, ["b"] * 4, 2, ([False] * 4, [True, True, True, False]))
    assert rows[-1]["sign"] == "unfinished"
    assert (rows[-1]["policy"], rows[-1]["reference"]) == (1.0, 0.25)
    assert rows[-1]["policy_low"] < 0.4  # of two prompts
