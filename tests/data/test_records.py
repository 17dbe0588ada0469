"""Records: keys of prompts, and splits that stay where they are."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preferl.data.records import (
    Demonstration,
    Pair,
    PromptRecord,
    dialogue_text,
    prompt_key,
    prompt_text,
)

HELLO = [{"role": "user", "content": "Hello"}]
DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
]
PINNED_SPLITS = ["eval", "eval", "eval", "rl", "train", "rl"]
TEXTS = st.text(max_size=8)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}),
    max_size=3,
)


def test_records_cannot_be_changed():
    for record in (PromptRecord("p"), Demonstration("p", "r"), Pair("p", "a", "b")):
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, "x")


def test_columns_are_not_shared_between_records():
    assert PromptRecord("p").columns is not PromptRecord("p").columns


def test_every_record_shows_an_example():
    for record in (PromptRecord, Demonstration, Pair):
        assert f"{record.__name__}(" in (record.__doc__ or "")


def test_prompt_text_is_what_the_user_said_last():
    assert prompt_text("Once upon a time") == "Once upon a time"
    assert prompt_text(DIALOGUE) == "How are you?"
    assert prompt_text([*HELLO, {"role": "assistant", "content": "Hi!"}]) == "Hello"


def test_dialogue_text_names_the_speakers_of_several_turns():
    assert dialogue_text("Once") == "Once"
    assert dialogue_text(HELLO) == "Hello"
    assert dialogue_text(DIALOGUE).startswith("system: Be kind.\n\nuser: Hello\n\nassistant: Hi!")


def test_key_ignores_other_keys_of_messages_and_their_order():
    assert prompt_key(HELLO) == prompt_key([{"content": "Hello", "name": "Ann", "role": "user"}])


@pytest.mark.parametrize("text", ['[["user", "Hello"]]', "[]", "text:[]", "text:x", "[INST] x"])
def test_no_text_has_the_key_of_another_prompt(text):
    others = [HELLO, [], "[]", "x", "text:x", "text:text:x", '[["user", "Hello"]]', "[INST] x"]
    assert [o for o in others if o != text and prompt_key(o) == prompt_key(text)] == []


@given(TEXTS | MESSAGES, TEXTS | MESSAGES)
def test_keys_are_equal_for_equal_prompts_only(first, second):
    assert (prompt_key(first) == prompt_key(second)) == (first == second)
