"""Layouts that no table lists: names that are opposites, other spellings, codings in words and orders,
dialogues in other dialects. Each kind is read as it is meant, or refused by advice that works as it is
written."""

import json

import pytest
from published_rows import becomes, read

from preferl.data import dialects, formats
from preferl.data.columns import Options, counted, opposites
from preferl.data.files import RowError, Table
from preferl.data.records import DataError, Demonstration, Rated
from preferl.data.winners import order_of, word_place

GOOD, BAD = "An apple grows on a tree.", "A stone lies on the ground."
ROWS = 6


def ask(i):
    return f"Please tell me about thing {i}."


def user(i):
    return {"role": "user", "content": ask(i)}


def answer(text):
    return {"role": "assistant", "content": text}


def rows_of(make, count=ROWS):
    """Rows of which the even ones have the good response first."""
    return [make(i, *((GOOD, BAD) if i % 2 == 0 else (BAD, GOOD))) for i in range(count)]


def said(prompt):
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def assert_good_won(rows, **options):
    records, report = read(rows, options=Options(**options))
    pairs = [pair for record in records for pair in record.pairs()]
    assert [(said(p.prompt), p.chosen, p.rejected) for p in pairs] == [
        (ask(i), GOOD, BAD) for i in range(len(rows))
    ], report.notes
    return report


def refused(rows, **options):
    with pytest.raises(DataError) as error:
        read(rows, options=Options(**options))
    return str(error.value)


# ---------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("better", "worse"),
        ("preferred", "dispreferred"),
        ("positive", "negative"),
        ("chosen_response", "rejected_response"),
        ("win_answer", "lose_answer"),
        ("good_reply", "bad_reply"),
        ("accepted_reply", "rejected_reply"),
        ("Preferred Output", "Non-preferred Output"),
        ("y_w", "y_l"),
    ],
)
def test_columns_whose_names_are_opposites_are_a_pair(better, worse):
    rows = [{"instruction": ask(i), better: GOOD, worse: BAD, "model": "m"} for i in range(ROWS)]
    report = assert_good_won(rows)
    assert report.notes[0].startswith("read as preference by ")
    assert f"chosen = {better}, rejected = {worse}" in report.notes[0]


def test_opposites_are_found_by_whole_words():
    assert opposites(["good_x", "bad_x", "goodness", "badness"]) == [("good_x", "bad_x")]
    assert opposites(["chosen", "rejected", "chosen_score"]) == [("chosen", "rejected")]


def test_two_pairs_of_opposites_are_asked_about_and_either_can_be_named():
    rows = [
        {
            "prompt": ask(i),
            "good": GOOD,
            "bad": BAD,
            "better_summary": "Short it is.",
            "worse_summary": "Long it is.",
        }
        for i in range(ROWS)
    ]
    message = refused(rows)
    assert "several pairs" in message
    assert "--columns chosen=good,rejected=bad" in message
    aside = "chosen=good,rejected=bad,unused=better_summary+worse_summary"
    assert_good_won(rows, columns=aside)


def test_dialogues_of_a_pair_hold_their_prompt():
    rows = [
        {"chosen_conversations": [user(i), answer(GOOD)], "rejected_conversations": [user(i), answer(BAD)]}
        for i in range(ROWS)
    ]
    assert_good_won(rows)


def test_one_response_and_a_list_of_worse_ones():
    records, _ = read([{"prompt": ask(0), "chosen": GOOD, "rejected": [BAD, "A brick."]}])
    assert becomes(records) == f"{ask(0)} → {GOOD} > {BAD} = A brick."


def test_a_score_that_says_the_opposite_of_a_pair_is_said():
    rows = [
        {"prompt": ask(i), "chosen": GOOD, "rejected": BAD, "score_chosen": i, "score_rejected": 3}
        for i in range(6)
    ]
    assert "score_chosen is lower than score_rejected in 3 of 6 rows" in assert_good_won(rows).notes


def test_a_prompt_that_no_name_tells_is_asked_for_by_its_own_name():
    rows = [{"提示": ask(i), "chosen": GOOD, "rejected": BAD} for i in range(ROWS)]
    assert "name it: --columns prompt=提示 " in refused(rows)
    assert_good_won(rows, columns="prompt=提示")


# ------------------------------------------------------------------------------------------------ spellings


def test_names_count_in_any_case_and_with_any_sign_between_words():
    assert_good_won([{"Prompt": ask(i), "Chosen": GOOD, "Rejected": BAD} for i in range(ROWS)])
    table = rows_of(
        lambda i, a, b: {"Prompt": ask(i), "Response A": a, "Response B": b, "Preference": "AB"[i % 2]}
    )
    assert_good_won(table)
    (shown, *_), _ = read([{"INSTRUCTION": ask(0), "RESPONSE": GOOD, "SOURCE": "s"}])
    assert shown == Demonstration(ask(0), GOOD, {"SOURCE": "s"})


def test_two_columns_of_one_name_in_other_spellings_are_neither():
    assert "Prompt" in refused([{"Prompt": ask(0), "PROMPT": ask(1), "Chosen": GOOD, "Rejected": BAD}] * 2)


def test_names_that_count_twice_are_counted_by_their_letters():
    names = [
        "first_turn_response_a",
        "first_turn_response_b",
        "second_turn_response_a",
        "second_turn_response_b",
    ]
    assert [members for _, members in counted(names)] == [tuple(names[:2]), tuple(names[2:])]
    assert [members for _, members in counted(["first_answer", "second_answer"])] == [
        ("first_answer", "second_answer")
    ]


# -------------------------------------------------------------------------------------------------- codings


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A is better", "B is better"),
        ("A-is-clearly-better", "B-is-slightly-better"),
        ("model_1", "model_2"),
        ("Response 1", "Response 2"),
        ("a", ["b", "b", "a"]),
        (["response_a"], ["response_b"]),
    ],
)
def test_words_for_the_better_response(first, second):
    rows = rows_of(
        lambda i, a, b: {
            "prompt": ask(i),
            "response_a": a,
            "response_b": b,
            "verdict": (first, second)[i % 2],
        }
    )
    assert_good_won(rows)


def test_a_number_alone_does_not_say_from_where_it_counts():
    """model_1 may be the first of 1 and 2, and the second of 0 and 1."""
    rows = [
        {"prompt": ask(i), "response_a": GOOD, "response_b": BAD, "winner": "model_1"} for i in range(ROWS)
    ]
    assert "no coding of a winner fits" in refused(rows)
    assert word_place("model_1", ["response_0", "response_1"]) == 1
    assert word_place("model_1", ["response_1", "response_2"]) == 0


@pytest.mark.parametrize("order", [["b", "a", "c"], "B>A>C", "B > A > C", "b,a,c"])
def test_an_order_of_several_responses(order):
    rows = [
        {"prompt": ask(i), "response_a": BAD, "response_b": GOOD, "response_c": "A brick.", "ranking": order}
        for i in range(ROWS)
    ]
    records, report = read(rows)
    assert records[0].ranks == [2, 1, 3]
    assert "ranking:order" in report.notes[0]


def test_what_is_an_order_and_what_is_none():
    names = ["a", "b", "c"]
    assert order_of("B > A = C", names) == [2, 1, 2]
    assert order_of(["c", "b", "a"], names) == [3, 2, 1]
    assert order_of("A>B", names) is order_of(["a", "a", "b"], names) is order_of(7, names) is None
    rows = [{"prompt": ask(0), "response_a": GOOD, "response_b": BAD, "choice": ["a", "b"]}] * 2
    message = refused(rows)  # of two annotators, or one order
    assert "'choice:order'" in message
    assert "'choice:word'" in message


def test_a_winner_that_is_the_name_or_the_text_of_the_better_one():
    models = ("gpt", "llama")
    named = rows_of(
        lambda i, a, b: (
            {"prompt": ask(i), "response_a": a, "response_b": b, "winner": "gpt"}
            | {"model_a": models[i % 2], "model_b": models[1 - i % 2]}
        )
    )
    assert "winner,model_a,model_b:named" in assert_good_won(named).notes[0]
    quoted = rows_of(lambda i, a, b: {"prompt": ask(i), "response_a": a, "response_b": b, "winner": GOOD})
    assert_good_won(quoted)
    listed = rows_of(
        lambda i, a, b: (
            {"prompt": ask(i), "winner": "gpt"}
            | {"responses": [{"model": models[i % 2], "text": a}, {"model": models[1 - i % 2], "text": b}]}
        )
    )
    assert_good_won(listed)
    either = [{**row, "model_a": "gpt", "model_b": "gpt"} for row in named]
    assert "no coding of a winner fits" in refused(either)


def test_a_scale_from_one_response_to_the_other_is_named_with_both_ends():
    rows = rows_of(
        lambda i, a, b: {"prompt": ask(i), "response_a": a, "response_b": b, "preference": (1, 7)[i % 2]}
    )
    message = refused(rows)
    assert "--winner 'preference:scale(1..7)'" in message
    assert_good_won(rows, winner="preference:scale(1..7)")
    turned = [{**row, "preference": 8 - row["preference"]} for row in rows]
    assert_good_won(turned, winner="preference:scale(7..1)")


def test_a_scale_and_strengths_without_a_negative_one_look_the_same():
    rows = rows_of(
        lambda i, a, b: {
            "prompt": ask(i),
            "response_a": a,
            "response_b": b,
            "preference": (1.0, 2.0, 1.0, 2.0, 1.0, 1.5)[i],
        }
    )
    message = refused(rows)
    for way in ("scale(1..2)", "strength(negative=a)", "strength(negative=b)"):
        assert f"--winner 'preference:{way}'" in message
    assert read(rows, options=Options(winner="preference:scale(1..2)"))[1].ties == 1
    assert read(rows, options=Options(winner="preference:strength(negative=b)"))[1].ties == 0


def test_a_number_that_is_missing_leaves_its_row_out():
    rows = rows_of(
        lambda i, a, b: (
            {"prompt": ask(i), "response_a": a, "response_b": b}
            | {"score_a": (5.0, 1.0)[i % 2], "score_b": 3.0 if i != 4 else float("nan")}
        )
    )
    records, report = read(rows)
    assert (len(records), report.left_out) == (5, {"unlabelled": 1})


@pytest.mark.parametrize("column", ["chosen", "best"])
def test_a_place_in_a_list_counts_from_zero_where_zero_is_there(column):
    rows = rows_of(lambda i, a, b: {"prompt": ask(i), "responses": [a, b], column: i % 2})
    assert_good_won(rows)


def test_steps_of_an_answer_are_not_several_answers():
    """TRL's stepwise supervision; what the error names as other readings works."""
    rows = [{"prompt": ask(i), "completions": [GOOD, BAD], "labels": [True, False]} for i in range(ROWS)]
    message = refused(rows)
    assert "process supervision" in message
    assert_good_won(rows, winner="labels:scores")
    asked, _, _ = formats.load(Table(rows), "prompt")
    assert [record.prompt for record in asked] == [ask(i) for i in range(ROWS)]


def test_one_of_several_labels_is_named_with_what_leaves_the_others_aside():
    rows = rows_of(
        lambda i, a, b: (
            {"prompt": ask(i), "response_a": a, "response_b": b}
            | {"overall": "AB"[i % 2], "helpful": "A", "honest": "tie"}
        )
    )
    message = refused(rows)
    assert "--winner overall --columns unused=helpful+honest" in message
    assert_good_won(rows, winner="overall", columns="unused=helpful+honest")


def test_mappings_of_lists_are_lists_of_mappings():
    """As `datasets` keeps a sequence of mappings (ELI5)."""
    rows = rows_of(
        lambda i, a, b: {
            "title": ask(i),
            "answers": {"a_id": ["x", "y"], "text": [a, b], "score": [(9, 1), (1, 9)][i % 2]},
        }
    )
    rows = [{**row, "answers": {**row["answers"], "score": list(row["answers"]["score"])}} for row in rows]
    assert_good_won(rows)


# ----------------------------------------------------------------------------------- labels of one response


@pytest.mark.parametrize(
    ("good", "bad"),
    [("👍", "👎"), ("chosen", "rejected"), ("accept", "reject"), (1, -1), ("correct", "wrong")],
)
def test_words_for_good_and_bad_responses(good, bad):
    rows = [
        {"prompt": ask(i), "completion": (GOOD, BAD)[i % 2], "label": (good, bad)[i % 2]} for i in range(ROWS)
    ]
    records, _ = read(rows)
    assert records == [Rated(ask(i), (GOOD, BAD)[i % 2], {}, i % 2 == 0, {}) for i in range(ROWS)]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("kto_tag", True, False),
        ("rating", "5 stars", "1 star"),
        ("quality", "high", "poor"),
        ("is_correct", True, False),
    ],
)
def test_no_bad_response_is_imitated_because_of_the_name_of_its_label(column, good, bad):
    rows = [
        {"query": ask(i), "response": (GOOD, BAD)[i % 2], column: (good, bad)[i % 2]} for i in range(ROWS)
    ]
    refusal, records = None, []
    try:
        records, _ = read(rows)
    except DataError as error:
        refusal = str(error)
    if refusal is not None:
        assert f"unused={column}" in refusal
    else:
        assert [record.good for record in records] == [i % 2 == 0 for i in range(ROWS)]


def test_dialogues_that_are_called_good_or_bad():
    whole = [[user(i), answer((GOOD, BAD)[i % 2])] for i in range(ROWS)]
    for columns in (("messages", "label"), ("conversations", "kto_tag"), ("completion", "label")):
        records, _ = read([{columns[0]: turns, columns[1]: i % 2 == 0} for i, turns in enumerate(whole)])
        assert [(said(r.prompt), r.good) for r in records] == [(ask(i), i % 2 == 0) for i in range(ROWS)]
    odd = [{"messages": turns, "accepted": i % 2 == 0} for i, turns in enumerate(whole)]
    message = refused(odd)
    assert "--columns messages=messages,label=accepted" in message
    assert [r.good for r in read(odd, options=Options(columns="messages=messages,label=accepted"))[0]] == [
        i % 2 == 0 for i in range(ROWS)
    ]


def test_rows_without_a_label_among_others_are_left_out():
    rows = [{"prompt": ask(i), "completion": GOOD, "label": None if i == 2 else True} for i in range(ROWS)]
    assert read(rows)[1].left_out == {"unlabelled": 1}


# ------------------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "User", "content": "Q"}, {"role": "ASSISTANT", "content": "A"}],
        [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}],
        [{"speaker": "human", "text": "Q"}, {"speaker": "AI", "text": "A"}],
        [{"input": "Q", "output": "A"}],
        [{"human": "Q", "assistant": "A"}],
    ],
)
def test_dialects_of_messages(turns):
    records, _ = read([{"conversation": turns}] * 2)
    assert becomes(records[:1]) == "[user] Q → A"
    assert read([{"conversation": json.dumps(turns)}] * 2)[0] == records


def test_texts_that_both_sides_say_in_turn():
    records, _ = read([{"data": ["Q", "A", "Again?", "B"], "id": "1"}])
    assert becomes(records) == "[user] Q [assistant] A [user] Again? → B"
    with pytest.raises(RowError, match="no list of texts"):
        dialects.alternating(["Q", 3], "data")


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Q### Assistant: A",
        "### Human: Q\n### Assistant: A",
        "Human: Q\n\nAssistant: A",
        "Human: Q\nAssistant: A",
        "User: Q\nAssistant: A",
        "USER: Q ASSISTANT: A</s>",
    ],
)
def test_marks_of_turns(text):
    records, report = read([{"text": text}])
    assert becomes(records) == "[user] Q → A"
    assert any("were read as messages in 1 rows" in note for note in report.notes)


def test_marks_that_cannot_be_read_are_said():
    alpaca = "Below is an instruction.\n\n### Instruction:\nQ\n\n### Response:\nA"
    records, report = read([{"text": alpaca}])
    assert records[0].response == alpaca
    assert "texts of 1 rows hold marks of turns" in " ".join(report.notes)
    plain = [{"text": "A human: nobody. User: is a word, and so is Assistant: here."}]
    assert not any("marks" in note or "messages" in note for note in read(plain)[1].notes)


@pytest.mark.parametrize("end", ["</s>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>"])
def test_an_end_of_sequence_that_is_spelt_out_is_said(end):
    _, report = read([{"prompt": ask(0), "chosen": GOOD + end, "rejected": BAD + end}])
    assert "texts of 1 rows hold special tokens of a chat template, spelt out" in " ".join(report.notes)


def test_an_end_of_turn_that_is_taken_off_is_not_said_to_stay():
    opened = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    records, report = read(
        [{"prompt": opened, "chosen": GOOD + "<|im_end|>\n", "rejected": BAD + "<|im_end|>"}]
    )
    assert records[0].best() == GOOD
    assert "stay as they are" not in " ".join(report.notes)


def test_thoughts_and_weights_of_messages_are_not_passed_over():
    thinking = [
        {"messages": [user(0), {**answer(GOOD), "thinking": "Hm."}]},
        {"messages": [user(1), answer(GOOD)]},
    ]
    assert read(thinking)[1].left_out == {"tools_in_response": 1}
    weighted = [{"messages": [user(0), {**answer(GOOD), "weight": 0}]}, {"messages": [user(1), answer(GOOD)]}]
    assert read(weighted)[1].left_out == {"called_bad": 1}
    _, report = read([{"messages": [user(0), {**answer(GOOD), "mood": "glad"}]}])
    assert "keys of messages that are not used: mood (1 rows)" in report.notes


def test_a_system_message_in_parts_and_turns_before_the_prompt():
    parts = [{"system": [{"text": "Be kind."}], "messages": [user(0), answer(GOOD)]}]
    assert read(parts)[0][0].prompt[0] == {"role": "system", "content": "Be kind."}
    gemini = {
        "systemInstruction": {"parts": [{"text": "Be kind."}]},
        "contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}],
    }
    assert becomes(read([gemini])[0]) == "[system] Be kind. [user] Q → A"
    before = [{"instruction": "Q", "input": "", "output": "A", "history": [["Hello.", "Hi!"]]}]
    assert becomes(read(before)[0]) == "[user] Hello. [assistant] Hi! [user] Q → A"
    told = [{"instruction": "Q", "output": "A", "history": "They said hello."}]
    assert "'history' would not be used" in refused(told)


def test_dialogues_are_compared_up_to_the_turn_that_was_judged():
    """mt_bench_human_judgments: both turns stand in every row, and `turn` says of which it speaks."""
    second = [{"role": "user", "content": "More?"}, answer("The same to both.")]
    rows = [
        {"model_a": "m", "model_b": "n", "winner": "model_a", "turn": 1}
        | {
            f"conversation_{side}": [user(i), answer(text), *second]
            for side, text in (("a", GOOD), ("b", BAD))
        }
        for i in range(ROWS)
    ]
    assert_good_won(rows)


# ---------------------------------------------------------------------------------------- what is not used


@pytest.mark.parametrize(
    ("column", "values", "looks"),
    [
        ("images", ["a.png", "b.png"], "seen or heard"),
        ("document", ["One long text.", "Another long text."], "another speaker"),
        ("set", ["train", "heldout"], "a split"),
        ("is_test", [False, True], "a split"),
        ("fold", [0, 1], "a split"),
        ("full_response", ["One.", "Two."], "another response"),
    ],
)
def test_more_that_looks_as_if_it_counted(column, values, looks):
    rows = [{"prompt": ask(i), "chosen": GOOD, "rejected": BAD, column: values[i % 2]} for i in range(ROWS)]
    message = refused(rows)
    assert f"'{column}' would not be used, which looks like " in message
    assert looks in message
    assert_good_won(rows, columns=f"unused={column}")


def test_the_place_of_the_better_response_is_not_passed_over_where_the_responses_are_not_known():
    rows = rows_of(lambda i, a, b: {"prompt": ask(i), "x": a, "y": b, "better_response_id": i % 2})
    assert "'better_response_id' would not be used" in refused(rows)
    assert_good_won(rows, columns="response_a=x,response_b=y", winner="better_response_id:index0")


def test_numbers_name_no_split():
    rows = [{"prompt": ask(i), "chosen": GOOD, "rejected": BAD, "split": i % 2} for i in range(ROWS)]
    assert "--columns unused=split" in refused(rows)
    assert_good_won(rows, columns="unused=split")


def test_a_column_of_true_and_false_can_name_a_split():
    rows = [{"prompt": ask(i), "chosen": GOOD, "rejected": BAD, "is_test": i > 3} for i in range(ROWS)]
    records, _ = read(rows, options=Options(columns="split=is_test"))
    assert [record.columns["split"] for record in records] == ["train"] * 4 + ["test"] * 2


def test_sentences_under_the_name_of_a_label_are_a_response():
    """CarperAI/openai_summarize_tldr."""
    rows = [{"prompt": ask(i), "label": f"{GOOD} {i}"} for i in range(ROWS)]
    assert "--columns completion=label" in refused(rows)
    records, _ = read(rows, options=Options(columns="completion=label"))
    assert [record.response for record in records] == [f"{GOOD} {i}" for i in range(ROWS)]


def test_advice_repeats_what_was_given():
    rows = [
        {
            "ask": ask(i),
            "chosen": GOOD,
            "rejected": BAD,
            "document": "Some text.",
            "response_c": f"One more {i}.",
        }
        for i in range(ROWS)
    ]
    message = refused(rows, columns="prompt=ask")
    assert "--columns prompt=ask,unused=document+response_c" in message
    assert_good_won(rows, columns="prompt=ask,unused=document+response_c")


def test_margins_that_are_none_can_be_left_aside():
    rows = [{"prompt": ask(i), "chosen": GOOD, "rejected": BAD, "margin": -1.0} for i in range(ROWS)]
    assert "--columns unused=margin" in refused(rows)
    assert_good_won(rows, columns="unused=margin")


def test_a_reference_answer_is_no_response():
    for reference in ({"answer": 3}, {"answer_key": "B"}, {"answers": {"text": ["A fig."]}}):
        records, report = read([{"question": ask(i), **reference} for i in range(ROWS)])
        assert report.kind == "prompt"
        assert records[0].prompt == ask(0)


def test_columns_with_parts_are_shown_with_them():
    rows = [{"question": {"problem": ask(i), "truth": "3"}, "note": "x"} for i in range(ROWS)]
    assert "question (with question.problem, question.truth)" in refused(rows)
    assert len(read(rows, options=Options(columns="prompt=question.problem"))[0]) == ROWS


def test_the_other_ratings_of_a_layout_are_known_where_one_is_named():
    """What the note on HelpSteer's rows says works as it is written."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rows = [
        {"prompt": ask(i), "response": text} | dict.fromkeys(names, score)
        for i in range(ROWS)
        for text, score in ((GOOD, 4), (BAD, 1))
    ]
    assert "--winner helpfulness" in read(rows)[1].notes[1]
    records, _ = read(rows, options=Options(winner="helpfulness"))
    assert [pair.chosen for record in records for pair in record.pairs()] == [GOOD] * ROWS
    missing = [row | {"helpfulness": float("nan")} if i == 0 else row for i, row in enumerate(rows)]
    assert read(missing, options=Options(winner="helpfulness"))[1].left_out == {"unlabelled": 1}


def test_ratings_that_no_layout_knows_are_named_with_what_leaves_the_others_aside():
    rows = [
        {"instruction": ask(i), "reply": text, "kindness_score": 5 - k, "overall_score": 2 + k}
        for i in range(ROWS)
        for k, text in enumerate((GOOD, BAD))
    ]
    (_, note, *_) = read(rows)[1].notes
    assert "--winner kindness_score --columns unused=overall_score" in note
    records, _ = read(rows, options=Options(winner="kindness_score", columns="unused=overall_score"))
    assert [pair.chosen for record in records for pair in record.pairs()] == [GOOD] * ROWS


def test_several_worse_responses_in_columns_of_their_own():
    rows = [
        {
            "prompt": ask(i),
            "chosen": GOOD,
            "rejected_1": f"{BAD} {i}",
            "rejected_2": f"A brick lies there, {i}.",
        }
        for i in range(ROWS)
    ]
    assert "--columns chosen=chosen,rejected=rejected_1" in refused(rows)
    assert "'rejected_2' would not be used" in refused(rows, columns="chosen=chosen,rejected=rejected_1")


def test_lists_of_right_and_wrong_answers():
    """TruthfulQA."""
    rows = [
        {"question": ask(i), "correct_answers": [GOOD, "It is an apple."], "incorrect_answers": [BAD]}
        for i in range(ROWS)
    ]
    records, _ = read(rows)
    assert becomes(records[:1]) == f"{ask(0)} → {GOOD} = It is an apple. > {BAD}"


def test_columns_that_fit_nothing_are_taken_for_what_they_hold():
    texts = [{"inputs": ask(i), "targets": f"{GOOD} {i}"} for i in range(ROWS)]
    assert "--columns prompt=inputs,completion=targets" in refused(texts)
    records, _ = read(texts, options=Options(columns="prompt=inputs,completion=targets"))
    assert records[0] == Demonstration(ask(0), f"{GOOD} 0", {})
    assert "--columns text=inputs" in refused([{"inputs": ask(i)} for i in range(ROWS)])


def test_ranks_of_a_tree_that_a_table_wrote():
    """pandas writes NaN where a message has no rank or no parent."""
    nan = float("nan")
    rows = [
        {"message_id": "1", "parent_id": nan, "text": ask(0), "role": "prompter", "rank": nan},
        {"message_id": "2", "parent_id": "1", "text": BAD, "role": "assistant", "rank": 1.0},
        {"message_id": "3", "parent_id": "1", "text": GOOD, "role": "assistant", "rank": 0.0},
        {"message_id": "4", "parent_id": "1", "text": "Unranked.", "role": "assistant", "rank": nan},
    ]
    assert becomes(read(rows)[0]) == f"[user] {ask(0)} → {GOOD} > {BAD}"


def test_several_annotators_in_words():
    votes = [("a", "b", "a"), ("b", "b", "tie")]
    rows = rows_of(
        lambda i, a, b: (
            {"prompt": ask(i), "response_a": a, "response_b": b}
            | {f"vote_by_{k}": vote for k, vote in enumerate(votes[i % 2], 1)}
        )
    )
    assert_good_won(rows, winner="vote_by_1,vote_by_2,vote_by_3")


def test_leaving_rows_out_is_advised_only_where_most_are_whole():
    good = {"prompt": ask(0), "chosen": GOOD, "rejected": BAD}
    bad = {"prompt": [{"role": "nobody", "content": "x"}], "chosen": GOOD, "rejected": BAD}
    assert "leave such rows out with --bad_rows skip" in refused([good, good, bad])
    message = refused([good, bad, bad])
    assert "2 of 3 rows have a defect" in message
    assert "--bad_rows" not in message


def test_ratings_of_several_annotators_are_their_mean():
    """HelpSteer2's disagreements."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rows = [{"prompt": ask(0), "response": GOOD} | {name: [4, 4, 3.5] for name in names}]
    records, report = read(rows)
    assert records[0].ratings["helpfulness"] == pytest.approx(11.5 / 3)
    assert "where several people rated, as in helpfulness, it is their mean" in report.notes[1]


def test_a_dialogue_inside_a_column_is_named_by_its_path():
    rows = [{"record": {"messages": [user(i), answer(GOOD)], "id": i}} for i in range(ROWS)]
    assert "--columns messages=record.messages" in refused(rows)
    assert len(read(rows, options=Options(columns="messages=record.messages"))[0]) == ROWS


def test_short_prompts_come_off_where_longer_ones_do():
    rows = [
        {"prompt": prompt, "chosen": f"{prompt} {GOOD}", "rejected": f"{prompt} {BAD}"}
        for prompt in ("Hello?", ask(0))
    ]
    assert [record.best() for record in read(rows)[0]] == [f" {GOOD}"] * 2
    assert [record.best() for record in read(rows[:1])[0]] == [f"Hello? {GOOD}"]
