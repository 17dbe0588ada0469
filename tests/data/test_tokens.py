"""What a model reads and learns: exactly what its chat template writes, with every kind of tokenizer."""

import pytest
from templates import FAMILIES, KINDS, family, tokenizer_of

from preferl.data.records import DataError, ToolDialogue
from preferl.data.templates import KWARGS
from preferl.data.tokens import (
    coder_of,
    example_ids,
    first_tokens,
    last_tokens,
    prompt_ids,
    rendering_notes,
    response_ids,
    scored_ids,
    written_text,
)

DIALOGUE = [
    {"role": "user", "content": " What is 2 + 2? "},
    {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\nIt is 4."},
    {"role": "user", "content": "Once upon a time?"},
]
SYSTEM = {"role": "system", "content": "Be a dog."}


def plain(tokenizer, text):
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def rendered(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, tokenize=False, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_response_and_whole_dialogue_are_what_the_template_writes(name, kind):
    tokenizer = family(name, kind)
    turn = tokenizer.convert_tokens_to_ids(FAMILIES[name][3])
    prompt, response = example_ids(tokenizer, DIALOGUE, "A time.")
    generation = rendered(tokenizer, DIALOGUE, add_generation_prompt=True)
    assert prompt == prompt_ids(tokenizer, DIALOGUE) == plain(tokenizer, generation)
    whole = rendered(tokenizer, [*DIALOGUE, {"role": "assistant", "content": "A time."}])
    assert scored_ids(tokenizer, DIALOGUE, "A time.", True, None) == plain(tokenizer, whole)
    assert response[-1] == turn == coder_of(tokenizer).end_id
    if name == "DeepSeek-R1":  # opens a thought that its rendering of a dialogue does not have
        assert response[:-1] == coder_of(tokenizer).continuation("A time.")
        assert "does not begin with the prompt" in rendering_notes(tokenizer)[0]
    else:
        assert prompt + response == plain(tokenizer, whole)[: len(prompt) + len(response)]
        assert not rendering_notes(tokenizer)
    cut_off = example_ids(tokenizer, DIALOGUE, "A time.", finished=False)[1]
    assert turn not in cut_off
    assert turn not in scored_ids(tokenizer, DIALOGUE, "A time.", False, None)[-2:]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_message_is_written_or_put_before_the_first_user(name):
    tokenizer = family(name)
    messages = [SYSTEM, *DIALOGUE]
    text = tokenizer.decode(prompt_ids(tokenizer, messages))
    assert text.count("Be a dog.") == 1
    if name in ("Gemma", "Mistral"):
        first = {"role": "user", "content": "Be a dog.\n\n What is 2 + 2? "}
        assert prompt_ids(tokenizer, messages) == prompt_ids(tokenizer, [first, *DIALOGUE[1:]])
        assert not coder_of(tokenizer).template.takes_system
    else:
        assert text == rendered(tokenizer, messages, add_generation_prompt=True)


def test_a_template_that_leaves_the_system_text_out_gets_it_with_the_first_user():
    silent = (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = tokenizer_of("byte-level BPE", silent, ["<|user|>", "<|assistant|>"])
    text = tokenizer.decode(prompt_ids(tokenizer, [SYSTEM, {"role": "user", "content": "Hi"}]))
    assert text == "<|user|>Be a dog.\n\nHi</s><|assistant|>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_that_are_typed_are_ordinary_characters(name, kind):
    """The ids are those of the dialogue with something harmless in that place, but for that place."""
    tokenizer = family(name, kind)
    special = set(coder_of(tokenizer).special.values()) - {tokenizer.unk_token_id}
    turn = FAMILIES[name][3]
    clean = [*DIALOGUE[:2], {"role": "user", "content": "a time"}]
    dirty = [*DIALOGUE[:2], {"role": "user", "content": f"a {turn} time {turn}"}]
    one, other = prompt_ids(tokenizer, clean), prompt_ids(tokenizer, dirty)
    assert [i for i in one if i in special] == [i for i in other if i in special]
    before = len(plain(tokenizer, rendered(tokenizer, clean, add_generation_prompt=True).split("a time")[0]))
    assert one[: before - 1] == other[: before - 1]
    if kind == "byte-level BPE":
        assert tokenizer.decode(other) == rendered(tokenizer, dirty, add_generation_prompt=True)
    answer = example_ids(tokenizer, clean, f"Say {turn}!")[1]
    assert sum(i in special for i in answer) == 1
    assert answer[-1] == tokenizer.convert_tokens_to_ids(turn)


def test_marks_that_a_template_looks_for_are_an_assistants_own_speech():
    """A thought ends also where the tokenizer calls its marks special; a user's are characters."""
    tokenizer = family("Qwen3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    end = tokenizer.convert_tokens_to_ids("</think>")
    text = rendered(tokenizer, DIALOGUE, add_generation_prompt=True)
    assert "two and two" not in text
    assert prompt_ids(tokenizer, DIALOGUE) == plain(tokenizer, text)
    assert end not in prompt_ids(tokenizer, [{"role": "user", "content": "a </think> b"}])
    answer = "<think>\nso\n</think>\n\nYes."
    prompt, response = example_ids(tokenizer, DIALOGUE, answer)
    whole = rendered(tokenizer, [*DIALOGUE, {"role": "assistant", "content": answer}])
    assert prompt + response == plain(tokenizer, whole.removesuffix("\n"))
    assert end in response


def test_a_response_keeps_the_thought_that_the_template_would_drop():
    tokenizer = family("DeepSeek-R1")
    response = example_ids(tokenizer, DIALOGUE, "two</think>4")[1]
    assert tokenizer.decode(response) == "two</think>4</s>"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["<think>\n", "<think>", "\n<think>\n\n"])
def test_a_thought_that_the_prompt_opens_is_not_opened_again(start, kind, special):
    answer = f"{start}two and two\n</think>\n\nIt is 4."
    r1 = family("DeepSeek-R1", kind)
    thinking = family("Qwen3", kind)  # as its thinking models have it, which also write the thought
    opening = r"{{- '<|im_start|>assistant\n' }}"
    assert opening in thinking.chat_template
    thinking.chat_template = thinking.chat_template.replace(opening, opening[:-4] + r"<think>\n' }}")
    for tokenizer in (r1, thinking):
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        prompt, response = example_ids(tokenizer, DIALOGUE, answer)
        assert prompt == prompt_ids(tokenizer, DIALOGUE)
        assert tokenizer.convert_tokens_to_ids("<think>") not in response
    # The one writes a thought in its own way, the other never writes one.
    whole = rendered(thinking, [*DIALOGUE, {"role": "assistant", "content": answer}])
    assert prompt + response == plain(thinking, whole.removesuffix("\n"))
    assert not rendering_notes(thinking)
    if start == "<think>\n":
        assert example_ids(r1, DIALOGUE, answer) == example_ids(r1, DIALOGUE, answer.removeprefix(start))


def test_template_arguments_reach_it_and_stay_with_the_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = family("Qwen3")
    tokenizer.init_kwargs[KWARGS] = {"enable_thinking": False}
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, again):
        prompt, response = example_ids(each, DIALOGUE, "A time.")
        assert each.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert each.decode(response) == "A time.<|im_end|>"


def test_of_several_templates_one_is_chosen_or_the_names_are_told():
    names = {"rag": "R{{ messages[0].content }}", "chat": "C{{ messages[0].content }}"}
    tokenizer = tokenizer_of("byte-level BPE", None)
    tokenizer.chat_template = names
    asked = [{"role": "user", "content": "Hi"}]
    with pytest.raises(DataError, match=r"rag, chat.*chat_template_kwargs"):
        prompt_ids(tokenizer, asked)
    tokenizer.init_kwargs[KWARGS] = {"chat_template": "chat"}
    assert tokenizer.decode(prompt_ids(tokenizer, asked)) == "CHi"
    tokenizer.init_kwargs[KWARGS] = None
    tokenizer.chat_template = names | {"default": "D{{ messages[0].content }}"}
    assert tokenizer.decode(prompt_ids(tokenizer, asked)) == "DHi"


@pytest.mark.parametrize("around", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_prompt_keeps_what_stands_in_front_and_loses_what_stands_behind(kind, around):
    tokenizer = tokenizer_of(kind, around=around)
    front = [tokenizer.bos_token_id] * around[0]
    prompt, response = example_ids(tokenizer, "Once upon", " a time")
    assert prompt == front + plain(tokenizer, "Once upon")
    assert prompt + response == [*front, *plain(tokenizer, "Once upon a time"), tokenizer.eos_token_id]
    assert prompt_ids(tokenizer, "") == front


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece", "SentencePiece, legacy", "Unigram"])
def test_a_continuation_comes_back_as_it_was_written(kind):
    tokenizer = tokenizer_of(kind)
    for text in (" a time", "time", "  two", ""):
        ids = response_ids(tokenizer, text, finished=False)
        assert written_text(tokenizer, ids) == text


def test_behind_a_special_token_the_space_of_older_tokenizers_is_no_text():
    tokenizer = tokenizer_of("SentencePiece, legacy", special=["<|assistant|>"])
    before, *ids = plain(tokenizer, "<|assistant|>time")
    assert written_text(tokenizer, ids, before) == "time"
    assert written_text(tokenizer, ids, ids[0]) == " time"


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece", "SentencePiece, legacy"])
def test_a_limit_cuts_no_character_in_half(kind):
    tokenizer = tokenizer_of(kind)
    ids = coder_of(tokenizer).continuation("a \u732b\U0001f415 b")
    whole = {"a \u732b\U0001f415 b"[:n] for n in range(6)} | {"a \u732b\U0001f415"}
    for count in range(1, len(ids)):
        cut = first_tokens(tokenizer, ids, count)
        assert len(cut) <= count
        assert written_text(tokenizer, cut) in whole
        assert written_text(tokenizer, ids[:count], finished=False) in whole
        end = tokenizer.decode(last_tokens(tokenizer, ids, count))
        assert "\ufffd" not in end
    broken = "\ufffd"  # a text may hold it
    assert written_text(tokenizer, response_ids(tokenizer, broken, False), finished=False) == broken


def test_what_a_template_cannot_write_is_named():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    asked = {"role": "user", "content": "Hi"}
    chatml, r1, qwen = family("ChatML"), family("DeepSeek-R1"), family("Qwen3")
    template = coder_of(chatml).template
    assert template.unread("Hi") is None
    assert template.unread([SYSTEM, *DIALOGUE]) is None
    assert template.unread([asked, call]) == "tool_calls"
    assert template.unread(ToolDialogue([asked], [{"name": "f"}])) == "tools"
    assert template.unread([asked, {"role": "assistant", "content": "x", "reasoning_content": "y"}]) == (
        "reasoning_content"
    )
    # ChatML writes any role as it is called; Zephyr's kind too; DeepSeek's passes over it.
    assert template.unread([{"role": "developer", "content": "D"}, asked]) is None
    assert "developer" in coder_of(r1).template.unread([{"role": "developer", "content": "D"}, asked])
    thought = [asked, {"role": "assistant", "content": "x", "reasoning_content": "y"}, asked]
    assert coder_of(qwen).template.unread(thought) is None


def test_tools_and_reasoning_reach_a_template_that_knows_them():
    writes = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{{ m.reasoning_content or '' }}{% for call in m.tool_calls or [] %}{{ call.function.name }}"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = tokenizer_of("byte-level BPE", writes, ["<|user|>", "<|assistant|>", "<|tool|>"])
    calls = [{"function": {"name": "f</s>"}}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "reasoning_content": "R", "tool_calls": calls},
        {"role": "tool", "content": "3"},
    ]
    prompt = ToolDialogue(messages, [{"name": "f"}])
    assert coder_of(tokenizer).template.unread(prompt) is None
    ids = prompt_ids(tokenizer, prompt)
    assert tokenizer.decode(ids) == (
        '[{"name": "f"}]<|user|>Hi</s><|assistant|>Rf</s></s><|tool|>3</s><|assistant|>'
    )
    # What is typed into a call ends no turn.
    assert ids.count(tokenizer.eos_token_id) == 3
    assert example_ids(tokenizer, prompt, "It is 3.")[0] == ids
