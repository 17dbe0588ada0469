"""Dialogues in the ways in which data sets write them, read as messages.

Messages carry ``role`` and ``content``, ShareGPT's ``from`` and ``value``, Gemini's ``role`` and ``parts``
and the like, or are exchanges with a key for each side (Capybara's ``input`` and ``output``); a content may
be a list of parts of text; a list of messages may come as JSON text or as Python's repr of it. Text may hold
a dialogue too: with marks as hh-rlhf's (``\\n\\nHuman:``) or guanaco's (``### Human:``), or as a model's
template writes it, with the special tokens spelt out.
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
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
# What a message may carry beside its text; chat templates know these keys.
CARRIED = ("tool_calls", "tool_call_id", "reasoning_content", "name")
# Under which keys messages say who speaks and what; the first that is there counts.
SAID_BY = ("role", "from", "speaker", "sender")
SAID = ("content", "value", "text", "parts", "message")
# Keys of an exchange: what was asked, and what was answered.
EXCHANGES = (
    *(("input", "output"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt")),
    *(("human", "bot"), ("user", "bot")),
)
SPEAKER = {"Human": "user", "Assistant": "assistant"}


def messages_in(value: Any) -> list[Any] | None:
    """The list of messages that a value holds, also as JSON text, as Python's repr, or as one message; None
    where it holds none."""
    if isinstance(value, dict) and is_message(value):
        return [value]
    if isinstance(value, str):
        value = literal(value)
    if not isinstance(value, list) or not value:
        return None
    if all(is_message(item) for item in value):
        return value
    exchanges = [exchange(item) for item in value]
    if any(found is None for found in exchanges):
        return None
    return [turn for found in exchanges if found is not None for turn in found]


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(k in value for k in SAID_BY) and any(k in value for k in SAID)


def keys_not_read(value: Any) -> set[str]:
    """The keys of a list's messages of which nothing is read, where they hold something."""
    messages = value if isinstance(value, list) else [value]
    known = {*SAID_BY, *SAID, *CARRIED, "thinking", "reasoning"}
    return {
        key
        for message in messages
        if is_message(message)
        for key, held in message.items()
        if key not in known and held not in (None, "", [], {})
    }


def exchange(value: Any) -> Messages | None:
    """The two turns of an exchange, as ``{"input": …, "output": …}``; None where it is none."""
    if not isinstance(value, dict):
        return None
    for asked, answered in EXCHANGES:
        if asked in value and answered in value:
            return [
                {"role": "user", "content": value[asked]},
                {"role": "assistant", "content": value[answered]},
            ]
    return None


def alternating(value: Any, column: str) -> Messages:
    """The turns of a list of texts, which the user and the assistant say in turn (LIMA, UltraChat).

    Raises:
        RowError: it is no list of texts.
    """
    texts = literal(value) if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RowError("wrong_type", f"{column} is no list of texts, the user's and the assistant's in turn")
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


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
    if found is None and isinstance(value, str) and (written := spelt_out(value)) is not None:
        found = written[1]
    if found is None:
        if not isinstance(value, list):
            raise RowError("wrong_type", f"{column} is a {type(value).__name__}, not a text or messages")
        if not value:
            raise RowError("empty_prompt", f"{column} holds no message")
        raise RowError("wrong_type", f"{column} holds something that is no message with role and content")
    return [message_of(message, column) for message in found]


def message_of(message: dict[str, Any], column: str) -> dict[str, Any]:
    """One message in our names."""
    said_by = next(key for key in SAID_BY if key in message)
    content = next(key for key in SAID if key in message)
    role = message[said_by]
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise RowError("wrong_type", f"{column}: role {role!r:.40} is none of {', '.join(ROLES)}")
    carried = {key: message[key] for key in CARRIED if message.get(key)}
    thought = next((message[key] for key in ("thinking", "reasoning") if message.get(key)), None)
    if thought is not None:
        carried.setdefault("reasoning_content", thought)
    if known != "tool":
        carried.pop("name", None)
    text = message[content]
    if text is None and "tool_calls" in carried:
        text = ""
    if text is None:
        raise RowError("null_value", f"{column}: a {role} message has a null content")
    return {"role": known, "content": text_of(text, column), **carried}


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


@dataclass(frozen=True)
class Marks:
    """How turns are marked in a text.

    Args:
        name: as it is said. mark: matches what stands before a turn; its group names who speaks. strict:
            whether the sides must speak in turn, the user first: where a mark is easily a word of somebody.
    """

    name: str
    mark: re.Pattern[str]
    strict: bool = True


MARKS = (
    Marks("Human: and Assistant:", re.compile(r"(?:^|\n\n)(Human|Assistant):"), strict=False),
    Marks("### Human: and ### Assistant:", re.compile(r"\s*###[ ]?(Human|User|Assistant):")),
    Marks("USER: and ASSISTANT:", re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT):")),
    Marks("lines of Human: and Assistant:", re.compile(r"(?:^|\n)(Human|Assistant):")),
    Marks("lines of User: and Assistant:", re.compile(r"(?:^|\n)(User|Assistant):")),
)
OPENINGS = ("Human:", "Assistant:", "User:", "USER:", "###")


def in_marks(text: str) -> tuple[str, Messages] | None:
    """The marks of turns that a text has, and the turns; white space around turns is layout, not content.
    None where it does not begin with one."""
    if not text.lstrip().startswith(OPENINGS):
        return None
    found = [(m.name, turns) for m in MARKS if (turns := _turns_between(text, m)) is not None]
    # Marks that leave a single turn may stand beside those that tell its parts.
    return next((entry for entry in found if len(entry[1]) > 1), found[0] if found else None)


def _turns_between(text: str, marks: Marks) -> Messages | None:
    found = list(marks.mark.finditer(text))
    if not found or text[: found[0].start()].strip():
        return None
    # A turn goes from its mark to the next one's.
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    turns: Messages = []
    for mark, end in zip(found, ends, strict=True):
        said = text[mark.end() : end].strip()
        turns.append({"role": ROLES[mark[1].lower()], "content": said.removesuffix("</s>").rstrip()})
    if len(turns) == 1 and turns[0]["role"] != "user":
        return None
    in_turn = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if marks.strict and (len(turns) < 2 or [turn["role"] for turn in turns] != in_turn):
        return None
    return turns


def is_marked(how: str) -> bool:
    """Whether it is marks by which a text writes a dialogue down (``spelt_out``)."""
    return any(how == marks.name for marks in MARKS)


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
    r"|<\|[a-z][\w▁]*\|>|<｜[\w▁]+｜>|</s>|<(?:bos|eos)>"
)
# Marks of turns that are said wherever they are left in a text.
LEFT_MARKS = re.compile(
    r"###[ ]?(?:Instruction|Response|Human|User|Assistant)\b|(?:^|\s)ASSISTANT:|\n(?:Human|Assistant): "
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
    if (marked := in_marks(text)) is not None:
        return marked
    if (written := inverted(text)) is not None:
        return f"the template of {written[0]}", written[1]
    return None


def how_written(text: str) -> str | None:
    """How a text writes a dialogue down, where it is read as one."""
    if not text.lstrip().startswith(("[", "<", *OPENINGS)):
        return None
    found = spelt_out(text)
    if found is None or (is_marked(found[0]) and found[1][-1]["role"] != "assistant"):
        return None
    return found[0]
