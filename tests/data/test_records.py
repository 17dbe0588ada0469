"""Records: keys of prompts, and splits that stay where they are."""

import dataclasses
import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preferl.data.records import (
    SPLITS,
    DataError,
    Demonstration,
    Pair,
    PromptRecord,
    SplitFractions,
    dialogue_text,
    prompt_key,
    prompt_text,
    split_for,
    split_of,
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
    for record in (PromptRecord("p"), Demonstration("p", "r"), Pair("p", "a", "b"), SplitFractions()):
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


# -------------------------------------------------------------------------------------------------- splits


def test_splits_never_move():
    """Pinned: a change here would put prompts that trained something into the reported numbers."""
    prompts = ["Once upon a time", "What is 2 + 2?", "", "Grüße, 世界 🌍", HELLO, DIALOGUE]
    assert [split_of(p, SplitFractions()) for p in prompts] == PINNED_SPLITS
    assert prompt_key(HELLO) == '[["user", "Hello"]]'


def test_split_is_the_place_of_a_blake2_hash():
    """The definition, written once more: 64 bits of BLAKE2b as a number in [0, 1), cut by the fractions."""
    bounds = (0.5, 0.6, 0.85, 1.0)
    for i in range(200):
        digest = hashlib.blake2b(f"prompt {i}".encode(), digest_size=8).hexdigest()
        place = int(digest, 16) / 2**64
        expected = next(name for name, bound in zip(SPLITS, bounds, strict=True) if place < bound)
        assert split_of(f"prompt {i}", SplitFractions()) == expected


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.25, 0.15), (0.1, 0.2, 0.3, 0.4)])
def test_splits_have_their_shares(shares):
    n = 20_000
    drawn = [split_of(f"prompt {i}", SplitFractions(*shares)) for i in range(n)]
    for name, share in zip(SPLITS, shares, strict=True):
        assert abs(drawn.count(name) / n - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_a_share_of_zero_gets_nothing_and_a_share_of_one_everything():
    only_rl = SplitFractions(0.0, 0.0, 1.0, 0.0)
    assert {split_of(f"prompt {i}", only_rl) for i in range(500)} == {"rl"}


@given(TEXTS)
def test_every_text_has_a_split_also_with_half_a_surrogate(text):
    assert split_of(text + "\ud800", SplitFractions()) in SPLITS


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5, 0.5, 0.5), (0.5, 0.1, 0.25, 0.1), (1.2, -0.2, 0.0, 0.0), (math.nan, 0.1, 0.25, 0.15)],
)
def test_fractions_that_are_no_shares_are_refused(shares):
    with pytest.raises(DataError, match="sum to 1"):
        SplitFractions(*shares)


def test_own_split_wins_if_it_is_one_of_ours():
    assert split_of("Once upon a time", SplitFractions()) == PINNED_SPLITS[0]
    for name in SPLITS:
        assert split_for("Once upon a time", {"split": name}, SplitFractions()) == name
    for other in ("test", "validation", None, 3, ["eval"]):
        assert split_for("Once upon a time", {"split": other}, SplitFractions()) == PINNED_SPLITS[0]
    assert split_for("Once upon a time", {}, SplitFractions()) == PINNED_SPLITS[0]
