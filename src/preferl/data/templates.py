"""The chat template that a model brings: how it writes a dialogue, and what of a dialogue it can write.

A template is a program (Jinja, run in transformers' sandbox). What it does is found out by running it: on
the dialogue itself, and once on short ones with marks for contents, which show how it ends a turn, which
tokens it puts around contents, and whether it takes a system message.
"""

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes

from preferl.data.records import DataError, Messages, Prompt, ToolDialogue, dialogue_text

# Used where a tokenizer brings no template. The newline after the role keeps the first word of the answer
# a token of its own in byte-level vocabularies; an answer ends with EOS, as in training, wherever it stands.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message['role']] }}:\n"
    "{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' and eos_token else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
# Of a tokenizer's configuration: what its template is given besides the messages.
KWARGS = "chat_template_kwargs"
# What apply_chat_template is given by us.
RESERVED = (
    *("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
)
MARK = "\ue000\ue001\ue000"  # a content that no template writes by itself
USUAL_ROLES = ("system", "user", "assistant")
# Keys of a message that say something beside its content.
SPEAKING_KEYS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
# Methods with which templates look for marks inside a content.
SEARCHES = ("split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "replace")


class ChatTemplate:
    """What a tokenizer's chat template does.

    Args:
        tokenizer: of transformers; ``chat_template_kwargs`` in its configuration are handed to the template.

    ``counts`` says how often something had to be done that a person should know of: ``system_merged``
    dialogues whose system text went into the first user turn, ``unlike_generation`` responses whose full
    rendering does not begin with the prompt's.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = weakref.ref(tokenizer)  # which keeps this template as long as it lives
        self.kwargs: dict[str, Any] = dict(tokenizer.init_kwargs.get(KWARGS) or {})
        self.counts: Counter[str] = Counter()

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer()

    def source(self, tools: bool = False) -> str:
        """The template's text, of several the one that is named, ``tool_use`` for tools, or ``default``.

        Raises:
            DataError: there are several, and none of these.
        """
        templates, name = self.tokenizer.chat_template, self.kwargs.get("chat_template")
        if templates is None:
            return PLAIN_TEMPLATE
        if isinstance(templates, str):
            return str(name) if name and "{" in str(name) else templates
        if name in templates:
            return templates[name]
        if name and "{" in str(name):
            return str(name)
        if name is None and tools and "tool_use" in templates:
            return templates["tool_use"]
        if name is None and "default" in templates:
            return templates["default"]
        if name is None and len(templates) == 1:
            return next(iter(templates.values()))
        asked = "none of them is called default" if name is None else f"none is called '{name}'"
        raise DataError(
            f"'{self.tokenizer.name_or_path}' has several chat templates ({', '.join(templates)}) and "
            f'{asked}; choose one with --{KWARGS} \'{{"chat_template": "{next(iter(templates))}"}}\''
        )

    def write(self, messages: Messages, answered: bool = False) -> str:
        """A dialogue as the template writes it, up to where the assistant begins; or, ``answered``, with the
        assistant's answer as its last message, and how its turn ends.

        Raises:
            DataError: the template fails, or does what the sandbox forbids.
        """
        tools = getattr(messages, "tools", None) or None
        rest = {name: value for name, value in self.kwargs.items() if name != "chat_template"}
        try:
            return self.tokenizer.apply_chat_template(
                [message | {"content": message.get("content") or ""} for message in messages],
                chat_template=self.source(bool(tools)),
                tools=tools,
                tokenize=False,
                add_generation_prompt=not answered,
                **rest,
            )
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the chat template of '{self.tokenizer.name_or_path}' fails on "
                f"{dialogue_text(messages)[:80]!r}: {type(error).__name__}: {error}; mend chat_template in "
                f"the model's directory, or that row"
            ) from error

    def readable(self, messages: Messages) -> Messages:
        """The dialogue with its system text in front of the first user's, where the template refuses a system
        message or leaves it out; else as it is."""
        if not any(m["role"] == "system" for m in messages) or self.takes_system:
            return messages
        first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
        if first is None:
            return messages
        self.counts["system_merged"] += 1
        return alike(messages, merged_system(messages, first))

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message is written at all."""
        try:
            written = self.write([{"role": "system", "content": MARK}, {"role": "user", "content": "x"}])
        except DataError:
            return False
        return MARK in written

    @cached_property
    def ending(self) -> str:
        """What stands behind an assistant's answer that is the last message: the end of its turn."""
        try:
            text = self.write(
                [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}], answered=True
            )
        except DataError:
            return ""
        return text.rpartition(MARK)[2] if MARK in text else ""

    @cached_property
    def shell(self) -> str:
        """All that the template writes around the contents of a dialogue of two turns, and the end of a
        third."""
        turns: Messages = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
        if self.takes_system:
            turns = [{"role": "system", "content": MARK}, *turns]
        try:
            return self.write(turns).replace(MARK, " ") + self.ending
        except DataError:
            return self.ending

    @cached_property
    def searched(self) -> frozenset[str]:
        """Texts that the template looks for inside contents, as Qwen3's does for ``</think>``: the arguments
        of ``split`` and its like, and what ``in`` asks for."""
        found: set[str] = set()
        try:
            tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
                re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.source())
            )
        except jinja2.TemplateError:  # whoever runs it says what is wrong with it
            return frozenset()
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr) and call.node.attr in SEARCHES:
                found |= {arg.value for arg in call.args if isinstance(arg, nodes.Const)}
        for compare in tree.find_all(nodes.Compare):
            if isinstance(compare.expr, nodes.Const) and any(op.op in ("in", "notin") for op in compare.ops):
                found.add(compare.expr.value)
        return frozenset(text for text in found if isinstance(text, str))

    def unread(self, prompt: Prompt) -> str | None:
        """What of a dialogue the template would pass over or cannot write, in words; None where it writes all
        of it. Of an ordinary dialogue (system, user, assistant with texts) nothing is asked."""
        if isinstance(prompt, str):
            return None
        tools = getattr(prompt, "tools", None)
        keys = sorted({key for message in prompt for key in SPEAKING_KEYS if message.get(key)})
        roles = sorted({message["role"] for message in prompt} - set(USUAL_ROLES))
        if not (tools or keys or roles or any(message.get("content") is None for message in prompt)):
            return None
        text = self.source(bool(tools))
        if tools and "tools" not in text:
            return "tools"
        for key in keys:
            if key not in text:
                return key
        marked = [
            m | {"content": f"{MARK}{i}{MARK}"} if m.get("content") else m for i, m in enumerate(prompt)
        ]
        try:
            written = self.write(alike(prompt, marked))
        except DataError as error:
            return f"the role {' or '.join(roles)}" if roles else str(error)
        for i, message in enumerate(marked):
            if message["role"] in roles and message.get("content") and f"{MARK}{i}{MARK}" not in written:
                return f"the role {message['role']}"
        return None


def alike(prompt: Messages, messages: Messages, tools: list[Any] | None = None) -> Messages:
    """Other messages with the tools of a prompt, or others."""
    tools = getattr(prompt, "tools", None) if tools is None else tools
    return messages if tools is None else ToolDialogue(messages, tools)


def merged_system(messages: Messages, first: int) -> Messages:
    """Messages whose system texts stand before the text of the user's turn number ``first``."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system" and m.get("content"))
    text = messages[first]["content"]
    turn = messages[first] | {"content": f"{system}\n\n{text}" if system else text}
    rows = [turn if i == first else message for i, message in enumerate(messages)]
    return [message for message in rows if message["role"] != "system"]


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A message's value with every text in it changed, however deep it lies."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): with_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(inner, change) for inner in value]
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Every text inside a message's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*texts_in(key), *texts_in(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
