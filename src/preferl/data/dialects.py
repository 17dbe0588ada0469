"""Dialogues in the ways in which data sets write them, read as messages.

Messages carry ``role`` and ``content`` or ShareGPT's ``from`` and ``value``; a content may be a list of parts
of text; a list of messages may come as JSON text or as Python's repr of it. Text may hold a dialogue too:
with
hh-rlhf's marks (``\\n\\nHuman:``), or as a model's template writes it, with the special tokens spelt out.
"""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preferl.data.files import RowError
from preferl.data.records import Messages

# What data sets call those who speak.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
# What a message may carry beside its text; chat templates know these keys.
CARRIED = ("tool_calls", "tool_call_id", "reasoning_content", "name")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKER = {"Human": "user", "Assistant": "assistant"}


def messages_in(value: Any) -> list[Any] | None:
    """The list of messages that a value holds, also as JSON text, as Python's repr, or as one message; None
    where it holds none."""
    if isinstance(value, dict) and is_message(value):
        return [value]
    if isinstance(value, str):
        value = literal(value)
    if isinstance(value, list) and value and all(is_message(item) for item in value):
        return value
    return None


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )


def literal(text: str) -> Any:
    """The list that a text writes down, in JSON or in Python; None where it does not."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    try:
        found = json.loads(stripped)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in somebody's text
                found = ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, list) else None


def turns_of(value: Any, column: str) -> Messages:
    """Messages in any order of roles, in our names: ``role``, ``content`` and what tools need.

    Raises:
        RowError: it is no list of messages, a role is unknown, or a content is no text.
    """
    found = messages_in(value)
    if found is None:
        if not isinstance(value, list):
            raise RowError("wrong_type", f"{column} is a {type(value).__name__}, not a text or messages")
        if not value:
            raise RowError("empty_prompt", f"{column} holds no message")
        raise RowError("wrong_type", f"{column} holds something that is no message with role and content")
    return [message_of(message, column) for message in found]


def message_of(message: dict[str, Any], column: str) -> dict[str, Any]:
    """One message in our names."""
    said_by, content = ("role", "content") if "role" in message else ("from", "value")
    role = message[said_by]
    if not isinstance(role, str) or role not in ROLES:
        raise RowError("wrong_type", f"{column}: role {role!r:.40} is none of {', '.join(ROLES)}")
    carried = {key: message[key] for key in CARRIED if message.get(key)}
    if ROLES[role] != "tool":
        carried.pop("name", None)
    text = message[content]
    if text is None and "tool_calls" in carried:
        text = ""
    if text is None:
        raise RowError("null_value", f"{column}: a {role} message has a null content")
    return {"role": ROLES[role], "content": text_of(text, column), **carried}


def text_of(content: Any, column: str) -> str:
    """A content's text; parts of text are joined.

    Raises:
        RowError: a part is something else, as an image; it is named.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError("wrong_type", f"{column}: a content is a {type(content).__name__}, not a text")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise RowError(
                "not_text", f"{column}: a content has a part of type {kind!r:.40}; only text is read"
            )
        texts.append(text)
    return "".join(texts)


def check_order(messages: Messages, column: str) -> None:
    """Refuses turns out of order: after at most one system (or developer) message user and assistant
    alternate, user first; what tools answer stands between two turns of the assistant.

    Raises:
        RowError: a turn is not due.
    """
    first = 1 if messages and messages[0]["role"] in ("system", "developer") else 0
    due = ("user",)
    for number, message in enumerate(messages[first:], first + 1):
        role = message["role"]
        if role not in due:
            raise RowError(
                "bad_role_order", f"{column}: message {number} is by the {role}, due is the {due[0]}"
            )
        due = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}[role]


def in_marks(text: str) -> Messages | None:
    """The turns of a text with hh-rlhf's marks; white space around turns is layout, not content. None
    where it does not begin with one."""
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    # A turn goes from its mark to the next one's.
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns: Messages = []
    for mark, end in zip(marks, ends, strict=True):
        turns.append({"role": SPEAKER[mark[1]], "content": text[mark.end() : end].strip()})
    return turns


# ------------------------------------------------------------------------------------------ templated text


@dataclass(frozen=True)
class Written:
    """How a family of templates writes a turn.

    Args:
        name: of the family.
        begin: matches what stands before a turn's text; its group names the role.
        end: what stands behind it.
    """

    name: str
    begin: re.Pattern[str]
    end: str


WRITTEN = (
    Written("ChatML", re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),
    Written("Llama 3", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    Written("Gemma", re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),
    Written("Phi", re.compile(r"<\|(system|user|assistant)\|>\n"), "<|end|>"),
    Written("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n"), "</s>"),
    Written("TÜLU", re.compile(r"<\|(system|user|assistant)\|>\n"), "<|endoftext|>"),
)
BEGINS = re.compile(r"^\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*")
LLAMA_2 = re.compile(
    r"(?:<s>)?\s*\[INST\] ?(?:<<SYS>>\n(?P<system>.*?)\n<</SYS>>\n\n)?(?P<user>.*?) ?\[/INST\] ?"
    r"(?P<assistant>.*?)(?:</s>|(?=<s>)|$)",
    re.DOTALL,
)
SPECIAL = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:start_header_id|end_header_id|eot_id|begin_of_text)\|>"
    r"|<(?:start|end)_of_turn>|<\|(?:system|user|assistant|end|endoftext)\|>|\[/?INST\]|<</?SYS>>"
)


def holds_special(text: str) -> bool:
    """Whether a model's special tokens are spelt out in a text."""
    return bool(SPECIAL.search(text))


def inverted(text: str) -> tuple[str, Messages] | None:
    """The family of templates that wrote a text, and the turns in it; the last may be empty, where the
    response is to begin. None where no family has written all of it."""
    if not holds_special(text):
        return None
    for family in WRITTEN:
        if (turns := _turns_in(text, family)) is not None:
            return family.name, turns
    turns = _turns_of_llama_2(text)
    return None if turns is None else ("Llama 2", turns)


def _turns_in(text: str, family: Written) -> Messages | None:
    start = BEGINS.match(text)
    position = start.end() if start else 0
    turns: Messages = []
    while position < len(text):
        head = family.begin.match(text, position)
        if head is None or head[1] not in ROLES:
            return None
        end = text.find(family.end, head.end())
        content = text[head.end() : end if end >= 0 else len(text)]
        if family.begin.search(content) or (end < 0 and holds_special(content)):
            return None  # a turn that does not end is another family's, or damaged
        turns.append({"role": ROLES[head[1]], "content": content.strip() if end >= 0 else content})
        if end < 0:
            break
        position = end + len(family.end)
        position += len(text[position:]) - len(text[position:].lstrip("\n"))
        if not text[position:].strip():
            break
    complete = bool(turns) and (turns[-1]["role"] == "assistant" or text.rstrip().endswith(family.end))
    return turns if complete else None


def _turns_of_llama_2(text: str) -> Messages | None:
    position, turns = 0, []
    while position < len(text) and text[position:].strip():
        found = LLAMA_2.match(text, position)
        if found is None or found.end() == position:
            return None
        if found["system"]:
            turns.append({"role": "system", "content": found["system"].strip()})
        turns.append({"role": "user", "content": found["user"].strip()})
        turns.append({"role": "assistant", "content": found["assistant"].strip()})
        position = found.end()
    if not turns or any(holds_special(turn["content"]) for turn in turns):
        return None
    return turns


def without_end(response: str) -> str:
    """A response without the special token that a template writes behind it."""
    stripped = response.rstrip()
    for mark in (*dict.fromkeys(family.end for family in WRITTEN), "<eos>", "<|end_of_text|>"):
        if stripped.endswith(mark):
            return stripped.removesuffix(mark).rstrip()
    return response


def without_opening(turns: Messages) -> Messages:
    """Turns without a last one of the assistant that is empty: there the response begins."""
    opens = bool(turns) and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip()
    return turns[:-1] if opens else turns


def before_last(dialogues: Sequence[Messages], column: str) -> Messages:
    """What dialogues share before their last turns.

    Raises:
        RowError: one does not end with the assistant's turn, or they share it not.
    """
    for turns in dialogues:
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise RowError(
                "bad_role_order",
                f"{column} must end with the assistant's turn after a user's, or have a prompt",
            )
    if any(turns[:-1] != dialogues[0][:-1] for turns in dialogues):
        raise RowError("different_prompts", f"{column} answer different prompts")
    return dialogues[0][:-1]


def spelt_out(text: str) -> tuple[str, Messages | list[Any]] | None:
    """How a text writes a dialogue down, and the dialogue; None where it is any other text."""
    if (found := messages_in(text)) is not None:
        return "lists in text", found
    if (turns := in_marks(text)) is not None and (len(turns) > 1 or turns[0]["role"] == "user"):
        return "Human: and Assistant:", turns
    if (written := inverted(text)) is not None:
        return f"the template of {written[0]}", written[1]
    return None


def how_written(text: str) -> str | None:
    """How a text writes a dialogue down, where it is read as one."""
    if not text.lstrip().startswith(("[", "<", "Human:", "Assistant:")):
        return None
    found = spelt_out(text)
    if found is None or (found[0].startswith("Human") and found[1][-1]["role"] != "assistant"):
        return None
    return found[0]
