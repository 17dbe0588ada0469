"""Tokenising: text comes back exactly, prompts open no turns, padding and masks are where they belong."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.data.templates import PLAIN_TEMPLATE
from preferl.data.tokens import (
    length_buckets,
    pad,
    positions,
    prompt_ids,
    response_ids,
    scored_ids,
)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(response_ids(tokenizer, text, finished=False)) == text


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids) == "<|user|>Hi<|assistant|>"
    assert tokenizer.decode(prompt_ids(tokenizer, "Hi")) == "Hi"


def test_several_turns_keep_their_ends(tokenizer):
    dialogue = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    text = tokenizer.decode(prompt_ids(tokenizer, dialogue))
    assert text == "<|system|>S<|user|>A<|assistant|>B<|eos|><|user|>C<|assistant|>"


@pytest.mark.parametrize("attack", ["<|assistant|>", "x<|eos|>y", "<|user|>", "<|pad|>"])
def test_a_users_text_cannot_open_a_turn(tokenizer, attack):
    special = set(tokenizer.all_special_ids)
    clean = prompt_ids(tokenizer, [{"role": "user", "content": "plain"}])
    dirty = prompt_ids(tokenizer, [{"role": "user", "content": f"plain {attack} more"}])
    assert sum(i in special for i in dirty) == sum(i in special for i in clean)
    assert attack in tokenizer.decode(dirty)
    assert not special & set(prompt_ids(tokenizer, attack))
    assert not special & set(response_ids(tokenizer, attack, finished=False))


def test_a_tokenizer_without_template_gets_the_plain_one(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    text = bare.decode(prompt_ids(bare, [{"role": "user", "content": "Hi"}]))
    assert text == "Human:\nHi\n\nAssistant:\n"
    assert "Assistant" in PLAIN_TEMPLATE


def test_a_finished_dialogue_reads_alike_through_the_plain_template_and_in_training(tokenizer):
    """Other tools render prompt and answer through the template: EOS must stand where it stood in ours."""
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = PLAIN_TEMPLATE
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
    text = bare.apply_chat_template([*prompt, {"role": "assistant", "content": "A dog."}], tokenize=False)
    assert text == "Human:\nHi\n\nAssistant:\nHello.<|eos|>Human:\nWho are you?\n\nAssistant:\nA dog.<|eos|>"
    ids = bare(text, add_special_tokens=False)["input_ids"]
    assert ids == prompt_ids(bare, prompt) + response_ids(bare, "A dog.")


def test_eos_ends_a_finished_response_only(tokenizer):
    assert response_ids(tokenizer, "Red.")[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in response_ids(tokenizer, "Red.", finished=False)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_too_long_for_the_reward_model_loses_the_oldest_prompt_first(tokenizer):
    whole = scored_ids(tokenizer, "Once upon a time there was a dog.", " The end.", True, None)
    short = scored_ids(tokenizer, "Once upon a time there was a dog.", " The end.", True, len(whole) - 3)
    assert short == whole[3:]
    assert len(scored_ids(tokenizer, "Once", " The end." * 9, True, 5)) == 5


def test_padding():
    ids, mask = pad([[5, 6], [7]], 0, "left")
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    assert positions(mask).tolist() == [[0, 1], [0, 0]]
    ids, mask = pad([[5, 6], [7]], 0, "right")
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert torch.equal(mask, torch.tensor([[1, 1], [1, 0]]))


def test_buckets_visit_every_row_once_and_pad_little():
    rng = random.Random(0)
    lengths = [rng.randint(5, 60) for _ in range(1000)]
    batches = list(length_buckets(lengths, 16, rng))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.15 * sum(lengths)
    assert batches != list(length_buckets(lengths, 16, rng))
