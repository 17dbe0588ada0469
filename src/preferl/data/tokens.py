"""From prompts and responses to token ids: templates, response masks, padding, batches.

A prompt is plain text or a list of messages. Messages go through the tokenizer's chat template; plain text
is tokenised as it is. A response is plain text followed by EOS, unless it was cut off.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from preferl.data.records import DataError, Messages, Prompt, dialogue_text

# Used where a tokenizer brings no template. The newline after the role keeps the first word of the answer
# a token of its own in byte-level vocabularies; an answer ends with EOS, as in training, wherever it stands.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message['role']] }}:\n"
    "{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' and eos_token else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ready for a response to follow.

    Special tokens typed inside a message (``<|assistant|>`` in a user's text) are spelt out as ordinary
    characters: a person's text never opens another role's turn.
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt, split_special_tokens=True)["input_ids"])
    specials = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    if not any(token in message["content"] for message in prompt for token in specials):
        text = in_template(tokenizer, prompt)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # Rare path: template and contents are tokenised apart, so that only the template makes special ids.
    marks = [f"\ue000{i}\ue001" for i in range(len(prompt))]
    shell = [{**message, "content": mark} for message, mark in zip(prompt, marks, strict=True)]
    rest, ids = in_template(tokenizer, shell), []
    for message, mark in zip(prompt, marks, strict=True):
        if mark not in rest:
            raise DataError(
                f"the chat template of '{tokenizer.name_or_path}' leaves a message out or changes its text, "
                f"and a message here holds one of its special tokens; mend chat_template, or that row"
            )
        before, rest = rest.split(mark, 1)
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += tokenizer(message["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + list(tokenizer(rest, add_special_tokens=False)["input_ids"])


def in_template(tokenizer: Any, messages: Messages) -> str:
    """A dialogue as the model's chat template writes it, up to where the response begins. Templates are
    programs that a model brings; transformers runs them in a sandbox.

    Raises:
        DataError: the template fails, or does what the sandbox forbids.
    """
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' fails on {dialogue_text(messages)[:80]!r}: "
            f"{type(error).__name__}: {error}; mend chat_template in the model's directory, or that row"
        ) from error


def response_ids(tokenizer: Any, response: str, finished: bool = True) -> list[int]:
    """Token ids of a response, EOS included unless the response was cut off."""
    ids = tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if finished else list(ids)


def scored_ids(
    tokenizer: Any, prompt: Prompt, response: str, finished: bool, max_length: int | None
) -> list[int]:
    """Token ids of (prompt, response) as a reward model reads them.

    Decoders read prompt, response, EOS; encoders (tokenizers with CLS and SEP) a pair of segments. Over
    ``max_length`` the prompt loses its oldest tokens, then the response its last, or its first where the
    tokenizer truncates on the left.
    """
    if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        first, second = (
            prompt_ids_plain(tokenizer, prompt),
            response_ids(tokenizer, response, False),
        )
        front, between, behind = segment_frame(tokenizer)
        framing = len(front) + len(between) + len(behind)
        room = None if max_length is None else max(max_length - framing - len(second), 0)
        first = first if room is None else first[len(first) - min(room, len(first)) :]
        ids = [*front, *first, *between, *second]
        limit = len(ids) if max_length is None else max_length - len(behind)
        return [*ids[:limit], *behind]
    first, second = prompt_ids(tokenizer, prompt), response_ids(tokenizer, response, finished)
    if max_length is not None and len(first) + len(second) > max_length:
        if tokenizer.truncation_side == "left":  # as the model was trained: all but BOS may go
            begins = isinstance(prompt, str) and first[:1] == [tokenizer.bos_token_id]
            return first[:begins] + (first + second)[begins - max_length :]
        first = first[max(len(first) - max(max_length - len(second), 0), 0) :]
    ids = first + second
    return ids if max_length is None else ids[:max_length]


def segment_frame(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """What an encoder's tokenizer puts in front of a pair of texts, between them and behind them: CLS, SEP
    and SEP, or as many of each as its family has (RoBERTa's two between)."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
    whole = tokenizer("a", "b")["input_ids"]
    starts = range(len(whole) - len(first) - len(second) + 1)
    start = next((i for i in starts if whole[i : i + len(first)] == first), None)
    if start is not None:
        rest = whole[start + len(first) :]
        after = next((i for i in range(len(rest)) if rest[i : i + len(second)] == second), None)
        if after is not None:
            return whole[:start], rest[:after], rest[after + len(second) :]
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id], [tokenizer.sep_token_id]


def prompt_ids_plain(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A prompt's ids without special tokens, for encoders."""
    if isinstance(prompt, str):
        text = prompt
    else:
        text = "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as ``ids_BS`` (int64) and ``mask_BS`` (int64, 1 on real tokens), padded on ``side``."""
    width = max(len(row) for row in rows)
    ids_BS = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BS = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids_BS[i, place] = torch.tensor(row, dtype=torch.long)
        mask_BS[i, place] = 1
    return ids_BS, mask_BS


def positions(mask_BS: torch.Tensor) -> torch.Tensor:
    """Position of every real token in its row; pads get 0 (absolute embeddings refuse -1)."""
    return (mask_BS.cumsum(-1) - 1).clamp(min=0)


def length_buckets(
    lengths: Sequence[int], batch_size: int, rng: random.Random, window: int = 16
) -> Iterator[list[int]]:
    """Shuffled batches of row numbers whose lengths are close, so that little is padded.

    Rows are shuffled, sorted by length inside windows of ``window`` batches, and the batches shuffled
    again: every epoch sees every row once.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * window):
        part = sorted(order[start : start + batch_size * window], key=lambda i: lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    yield from batches


def endless_buckets(lengths: Sequence[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """``length_buckets``, epoch after epoch, each in an order of its own."""
    while True:
        yield from length_buckets(lengths, batch_size, rng)
