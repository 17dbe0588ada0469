"""Random templates and random dialogues: prompt and response are built again here, piece by piece, without
Jinja and without a tokenizer's rules for special tokens, and have to be the same.

``PREFERL_FUZZ=2000`` tries as many; 200 by default.
"""

import os
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from templates import THOUGHTS
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from preferl.data.tokens import example_ids, prompt_ids, scored_ids

SUITE = 200  # in the suite always the same ones
EXAMPLES = int(os.environ.get("PREFERL_FUZZ", str(SUITE)))
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]


@dataclass(frozen=True)
class Rules:
    """What a template does."""

    bos: bool
    trims: bool
    system: str  # own turn, first: before all turns, last: behind the last user's text, refused, silent
    thoughts: str  # kept, earlier: dropped from all but the last answer, all: from every one
    end: str  # what ends a turn
    newline: bool  # behind it
    opens: bool  # generation opens a thought, which no rendering of a dialogue has


def jinja(rules: Rules) -> str:
    """The template."""
    answer = "m['content']"
    if rules.thoughts != "kept":
        where = "" if rules.thoughts == "all" else " and not loop.last"
        answer = f"(m['content'].split('</think>')[-1] if m['role'] == 'assistant'{where} else m['content'])"
    content = f"({answer} | trim)" if rules.trims else answer
    end = f"{{{{ '{rules.end}' }}}}" + ("{{ '\n' }}" if rules.newline else "")
    parts = ["{{ bos_token }}"] if rules.bos else []
    found = "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    if rules.system == "refused":
        parts.append("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    elif rules.system in ("first", "last"):
        parts.append(found)
    if rules.system == "first":
        parts.append("{{ system }}")
    parts.append("{% for m in messages %}")
    turn = "{{ '<|' + m['role'] + '|>' }}{{ " + content + " }}"
    if rules.system == "last":
        turn += "{% if m['role'] == 'user' and loop.index0 == ns.last %}{{ '\n' + system }}{% endif %}"
        parts.insert(
            -1,
            "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
            "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}",
        )
    turn += end
    if rules.system != "own":
        turn = "{% if m['role'] != 'system' %}" + turn + "{% endif %}"
    parts += [turn, "{% endfor %}{% if add_generation_prompt %}<|assistant|>"]
    parts += ["<think>"] if rules.opens else []
    return "".join([*parts, "{% endif %}"])


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(THOUGHTS)
    tokenizer.chat_template = template
    return tokenizer


IDS = {token: i for i, token in enumerate([*SPECIAL, *LETTERS, *THOUGHTS])}


def characters(text: str) -> list[int]:
    """A content: marks of thoughts are tokens, everything else is characters."""
    ids: list[int] = []
    while text:
        mark = next((m for m in THOUGHTS if text.startswith(m)), text[0])
        ids.append(IDS[mark])
        text = text[len(mark) :]
    return ids


def expected(rules: Rules, messages: list[dict[str, str]], generate: bool) -> list[int]:
    """The dialogue's ids."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages[1:] if system is not None else list(messages)
    if system and rules.system in ("refused", "silent"):
        turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
    elif system is not None and rules.system == "own":
        turns = list(messages)
    ids = [IDS["<s>"]] if rules.bos else []
    if rules.system == "first":
        ids += characters(system or "")
    users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    for i, turn in enumerate(turns):
        text = turn["content"]
        dropped = rules.thoughts == "all" or (rules.thoughts == "earlier" and i < len(turns) - 1)
        if turn["role"] == "assistant" and dropped:
            text = text.split("</think>")[-1]
        ids += [IDS[f"<|{turn['role']}|>"], *characters(text.strip() if rules.trims else text)]
        if rules.system == "last" and i == users[-1]:
            ids += characters("\n" + (system or ""))
        ids += [IDS[rules.end]] + [IDS["\n"]] * rules.newline
    if generate:
        ids += [IDS["<|assistant|>"]] + [IDS["<think>"]] * rules.opens
    return ids


def learnt(rules: Rules, messages: list[dict[str, str]], response: str) -> list[int]:
    """The response's ids: what the template writes behind the prompt; its own text where the template writes
    no such thing."""
    opened = rules.opens and response.startswith("<think>")  # once is enough
    own = (rules.opens and not opened) or (rules.thoughts == "all" and "</think>" in response)
    text = response.strip() if rules.trims and not own else response
    return [*characters(text.removeprefix("<think>") if opened else text), IDS[rules.end]]


RULES = st.builds(
    Rules,
    bos=st.booleans(),
    trims=st.booleans(),
    system=st.sampled_from(["own", "first", "last", "refused", "silent"]),
    thoughts=st.sampled_from(["kept", "earlier", "all"]),
    end=st.sampled_from(["</s>", "<|end|>"]),
    newline=st.booleans(),
    opens=st.booleans(),
)
PIECES = [*SPECIAL, "<|", "|>", "end", "a", "B", " ", "\n", "{{", "'", "1"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
THOUGHT = st.one_of(CONTENT, st.builds("<think>{}</think>{}".format, CONTENT, CONTENT))


@st.composite
def dialogues(draw):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(CONTENT)})
    for _ in range(draw(st.integers(0, 2))):
        messages.append({"role": "user", "content": draw(CONTENT)})
        messages.append({"role": "assistant", "content": draw(THOUGHT)})
    return [*messages, {"role": "user", "content": draw(CONTENT)}]


@settings(max_examples=EXAMPLES, derandomize=EXAMPLES == SUITE, deadline=None)
@given(RULES, dialogues(), THOUGHT, st.booleans())
def test_a_random_template_is_read_as_it_writes(rules, messages, response, finished):
    tokenizer = tokenizer_with(jinja(rules))
    asked = expected(rules, messages, generate=True)
    assert prompt_ids(tokenizer, messages) == asked
    prompt, ids = example_ids(tokenizer, messages, response, finished)
    right = learnt(rules, messages, response)
    assert prompt == asked
    assert ids == (right if finished else right[:-1])
    whole = expected(rules, [*messages, {"role": "assistant", "content": response}], generate=False)
    behind = 1 + rules.newline
    assert scored_ids(tokenizer, messages, response, finished, None) == (
        whole if finished else whole[:-behind]
    )
