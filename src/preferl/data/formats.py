"""Hugging Face, TRL and hh-rlhf rows to records and back, with every row checked.

Read: hh-rlhf's implicit prompt (``chosen`` and ``rejected`` are whole dialogues), TRL's explicit columns
(``prompt``, ``chosen``, ``rejected``, optional ``margin``; texts or messages), ``messages``,
``prompt`` + ``completion``, ``text``, ``prompt``. Each kind of defect has a policy: ``error`` stops at the row
and names it, ``skip`` leaves it out and counts it. Nothing is left out silently.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from preferl.data.files import Row, RowError, read_rows
from preferl.data.records import DataError, Demonstration, Messages, Preference, Prompt, PromptRecord

# Damage stops the reading: something is wrong with the file. Rows that are whole but useless are left out.
POLICY = {
    "invalid_json": "error",
    "wrong_encoding": "error",
    "not_an_object": "error",
    "missing_column": "error",
    "null_value": "error",
    "wrong_type": "error",
    "bad_role_order": "error",
    "bad_margin": "error",
    "empty_prompt": "skip",
    "empty_response": "skip",
    "identical_pair": "skip",
    "different_prompts": "skip",
}
ROLES = ("system", "user", "assistant")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKER = {"Human": "user", "Assistant": "assistant"}
LAYOUTS = ("explicit", "implicit", "hh")

Record = TypeVar("Record")


@dataclass
class ReadReport:
    """What reading a data set met. ``left_out`` counts by kind, ``examples`` hold a place and a reason."""

    name: str
    read: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, where: str, error: RowError) -> None:
        self.left_out[error.kind] = self.left_out.get(error.kind, 0) + 1
        shown = self.examples.setdefault(error.kind, [])
        if len(shown) < 5:
            shown.append(f"{where}: {error}")

    def summary(self) -> str:
        """One sentence."""
        text = f"{self.name}: {self.kept} of {self.read} rows used"
        if self.left_out:
            counts = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in sorted(self.left_out.items()))
            first = next(iter(self.examples.values()))[0]
            text += f"; left out {sum(self.left_out.values())} ({counts}; for example {first})"
        return text


# -------------------------------------------------------------------------------------------------- reading


def load_preferences(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[Preference], ReadReport]:
    """Preference pairs of a data set; see ``load``."""
    return load(name, to_preference, policy, limit)


def load_demonstrations(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[Demonstration], ReadReport]:
    """Demonstrations of a data set; a plain text has an empty prompt. See ``load``."""
    return load(name, to_demonstration, policy, limit)


def load_prompts(
    name: str, policy: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[list[PromptRecord], ReadReport]:
    """Prompts of a data set; see ``load``."""
    return load(name, to_prompt, policy, limit)


def load(
    name: str,
    convert_row: Callable[[dict[str, Any]], Record],
    policy: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> tuple[list[Record], ReadReport]:
    """Reads and converts rows.

    Args:
        name: file, folder or Hub name.
        convert_row: a row to a record, or RowError.
        policy: ``error`` or ``skip`` by kind of defect, over ``POLICY``; ``*`` means every kind.
        limit: read at most so many rows.

    Raises:
        DataError: a row with a defect whose policy is ``error``, no row at all, or more than half left out.
    """
    rules = effective_policy(policy or {})
    report, records = ReadReport(name), []
    for row in read_rows(name):
        if limit is not None and report.read >= limit:
            break
        report.read += 1
        try:
            records.append(_converted(row, convert_row))
            report.kept += 1
        except RowError as error:
            if rules[error.kind] == "error":
                raise DataError(
                    f"{row.where}: {error} ({error.kind}); mend the row, or leave such rows out with "
                    f"--bad_rows skip"
                ) from error
            report.count(row.where, error)
    if report.read == 0:
        raise DataError(f"data set '{name}' has no rows")
    if report.kept * 2 < report.read:
        raise DataError(
            f"more than half of the rows cannot be used: {report.summary()}; "
            f"`preferl data validate {name}` lists them"
        )
    return records, report


def effective_policy(policy: Mapping[str, str]) -> dict[str, str]:
    """``POLICY`` with changes.

    Raises:
        DataError: an unknown kind or an unknown rule.
    """
    rules = dict(POLICY)
    for kind, rule in policy.items():
        if rule not in ("error", "skip") or (kind != "*" and kind not in POLICY):
            raise DataError(
                f"row policy {kind}: {rule} is unknown; kinds are {', '.join(POLICY)} or *, "
                f"rules are error and skip"
            )
        rules |= dict.fromkeys(POLICY, rule) if kind == "*" else {kind: rule}
    return rules


def detect(name: str) -> str:
    """``preference``, ``demonstration``, ``text`` or ``prompt``, from the columns of the first rows.

    Raises:
        DataError: the columns fit none of them.
    """
    columns: set[str] = set()
    for number, row in enumerate(read_rows(name)):
        if isinstance(row.value, dict):
            columns |= row.value.keys()
        if number >= 20:
            break
    for kind, needed in (
        ("preference", {"chosen", "rejected"}),
        ("demonstration", {"messages"}),
        ("demonstration", {"prompt", "completion"}),
        ("text", {"text"}),
        ("prompt", {"prompt"}),
    ):
        if needed <= columns:
            return kind
    raise DataError(
        f"data set '{name}' has the columns {', '.join(sorted(columns)) or 'none'}; preferl reads "
        f"chosen + rejected (+ prompt), messages, prompt + completion, text, or prompt"
    )


def validate(name: str) -> ReadReport:
    """Checks every row and counts every kind of defect; never stops at a bad row.

    Raises:
        DataError: there is no such data set, or its columns fit no format.
    """
    converters: dict[str, Callable[[dict[str, Any]], Any]] = {
        "preference": to_preference,
        "demonstration": to_demonstration,
        "text": to_demonstration,
        "prompt": to_prompt,
    }
    convert_row, report = converters[detect(name)], ReadReport(name)
    for row in read_rows(name):
        report.read += 1
        try:
            _converted(row, convert_row)
            report.kept += 1
        except RowError as error:
            report.count(row.where, error)
    return report


def _converted(row: Row, convert_row: Callable[[dict[str, Any]], Record]) -> Record:
    if isinstance(row.value, RowError):
        raise row.value
    return convert_row(row.value)


# ----------------------------------------------------------------------------------------- rows to records


def to_preference(row: dict[str, Any]) -> Preference:
    """A row with ``chosen`` and ``rejected``, and ``prompt`` unless it is implicit.

    Raises:
        RowError: the row has a defect.
    """
    chosen, rejected = _value(row, "chosen"), _value(row, "rejected")
    if "prompt" in row:
        prompt = _prompt(_value(row, "prompt"))
        chosen, rejected = _response(chosen, "chosen", prompt), _response(rejected, "rejected", prompt)
    else:
        prompt, chosen, rejected = _implicit(chosen, rejected)
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise RowError("empty_response", f"{column} is empty")
    if chosen == rejected:
        raise RowError("identical_pair", "chosen and rejected are the same")
    columns = _rest(row, "prompt", "chosen", "rejected", "margin")
    return Preference(prompt, chosen, rejected, _margin(row), columns)


def to_demonstration(row: dict[str, Any]) -> Demonstration:
    """A row with ``messages``, ``prompt`` + ``completion``, ``chosen`` pairs, or ``text``.

    Raises:
        RowError: the row has a defect.
    """
    if "messages" in row:
        messages = _messages(_value(row, "messages"), "messages")
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RowError("bad_role_order", "messages must end with the assistant's turn after a user's")
        prompt, response = _prompt(messages[:-1]), messages[-1]["content"]
        columns = _rest(row, "messages")
    elif "completion" in row:
        prompt = _prompt(_value(row, "prompt"))
        response = _response(_value(row, "completion"), "completion", prompt)
        columns = _rest(row, "prompt", "completion")
    elif "chosen" in row:
        pair = to_preference(row)
        return Demonstration(pair.prompt, pair.chosen, pair.columns)
    else:
        text = _value(row, "text")
        if not isinstance(text, str):
            raise RowError("wrong_type", f"text is a {type(text).__name__}, not a text")
        prompt, response, columns = "", text, _rest(row, "text")
    if not response.strip():
        raise RowError("empty_response", "the response is empty")
    return Demonstration(prompt, response, columns)


def to_prompt(row: dict[str, Any]) -> PromptRecord:
    """A row with ``prompt``.

    Raises:
        RowError: the row has a defect.
    """
    return PromptRecord(_prompt(_value(row, "prompt")), _rest(row, "prompt"))


def _value(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError("missing_column", f"has no column '{column}'")
    if row[column] is None:
        raise RowError("null_value", f"{column} is null")
    return row[column]


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in used}


def _margin(row: dict[str, Any]) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise RowError("bad_margin", f"margin is a {type(margin).__name__}, not a number")
    if not 0 <= margin < float("inf"):
        raise RowError("bad_margin", f"margin is {margin}; it must be a finite number, 0 or more")
    return float(margin)


def _prompt(value: Any) -> Prompt:
    """A prompt that a response can follow: a text, or messages ending with the user's turn."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty_prompt", "prompt is empty")
        return value
    messages = _messages(value, "prompt")
    if not messages or not any(m["content"].strip() for m in messages):
        raise RowError("empty_prompt", "prompt has no message with text")
    if messages[-1]["role"] != "user":
        raise RowError(
            "bad_role_order", f"prompt ends with the {messages[-1]['role']}'s turn, not the user's"
        )
    return messages


def _messages(value: Any, column: str) -> Messages:
    """Messages whose roles alternate, user first, after at most one system message."""
    if not isinstance(value, list):
        raise RowError(
            "wrong_type", f"{column} is a {type(value).__name__}, not a text or a list of messages"
        )
    messages = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise RowError("wrong_type", f"{column} holds something that is no message with role and content")
        role, content = message["role"], message["content"]
        if content is None:
            raise RowError("null_value", f"{column}: the content of a {role} message is null")
        if not isinstance(content, str) or role not in ROLES:
            raise RowError("wrong_type", f"{column}: role {role!r} or its content is not what is read here")
        messages.append({"role": role, "content": content})
    turns = [m["role"] for m in messages if m["role"] != "system"]
    systems = len(messages) - len(turns)
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if turns != expected or systems > 1 or (systems and messages[0]["role"] != "system"):
        order = ", ".join(m["role"] for m in messages)
        raise RowError("bad_role_order", f"{column}: roles are {order}; user and assistant must alternate")
    return messages


def _response(value: Any, column: str, prompt: Prompt) -> str:
    """A response's text; messages must hold one assistant turn, or repeat the prompt and add one."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{column} is a {type(value).__name__}, not a text or messages")
    known = len(prompt) if isinstance(prompt, list) and value[: len(prompt)] == prompt else 0
    rest = value[known:]
    if len(rest) != 1 or not isinstance(rest[0], dict) or rest[0].get("role") != "assistant":
        raise RowError("bad_role_order", f"{column} must be one assistant message")
    if not isinstance(rest[0].get("content"), str):
        raise RowError("wrong_type", f"{column}: the content of its message is not a text")
    return rest[0]["content"]


def _implicit(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """Prompt and responses of two whole dialogues that share everything but the last turn."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        first, second = _dialogue(chosen, "chosen"), _dialogue(rejected, "rejected")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        first, second = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    else:
        raise RowError("wrong_type", "chosen and rejected must both be texts or both be messages")
    for column, dialogue in (("chosen", first), ("rejected", second)):
        if len(dialogue) < 2 or dialogue[-1]["role"] != "assistant":
            raise RowError(
                "bad_role_order",
                f"{column} must end with the assistant's turn after a user's, or have a prompt",
            )
    if first[:-1] != second[:-1]:
        raise RowError("different_prompts", "chosen and rejected answer different prompts")
    return _prompt(first[:-1]), first[-1]["content"], second[-1]["content"]


def _dialogue(text: str, column: str) -> Messages:
    """hh-rlhf's text as messages; white space around turns is layout, not content."""
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise RowError(
            "missing_column",
            f"has no column 'prompt', and {column} is no dialogue that starts with '\\n\\nHuman:'",
        )
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [
        {"role": SPEAKER[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    return _messages(turns, column)


# ----------------------------------------------------------------------------------------- records to files


def preference_row(record: Preference, layout: str = "explicit") -> dict[str, Any]:
    """A row in TRL's explicit or implicit columns or in hh-rlhf's.

    Raises:
        DataError: the layout is unknown, or hh-rlhf cannot hold the record.
    """
    extra = dict(record.columns) | ({} if record.margin is None else {"margin": record.margin})
    if layout == "explicit":
        return {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected, **extra}
    if layout not in LAYOUTS:
        raise DataError(f"layout '{layout}' is unknown; use {', '.join(LAYOUTS)}")
    prompt = record.prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if layout == "implicit":
        sides = {
            side: [*prompt, {"role": "assistant", "content": getattr(record, side)}]
            for side in ("chosen", "rejected")
        }
        return {**sides, **extra}
    names = {"user": "Human", "assistant": "Assistant"}
    if any(m["role"] not in names for m in prompt):
        raise DataError("hh-rlhf's layout has no system turn; write the explicit layout instead")
    texts = [record.chosen, record.rejected, *(m["content"] for m in prompt)]
    if any(TURN.search(text) for text in texts):
        raise DataError("a text holds '\\n\\nHuman:' or '\\n\\nAssistant:' and would read back as turns")
    shared = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in prompt)
    return {
        side: f"{shared}\n\nAssistant: {getattr(record, side)}" for side in ("chosen", "rejected")
    } | extra


def write_preferences(path: Path, records: Iterable[Preference], layout: str = "explicit") -> None:
    """Writes .jsonl, .jsonl.gz or .parquet; an existing file is replaced in one step."""
    _write_rows(Path(path), [preference_row(record, layout) for record in records])


def write_demonstrations(path: Path, records: Iterable[Demonstration]) -> None:
    """Writes ``prompt`` and ``completion``; see ``write_preferences``."""
    rows = [{"prompt": r.prompt, "completion": r.response, **r.columns} for r in records]
    _write_rows(Path(path), rows)


def write_prompts(path: Path, records: Iterable[PromptRecord]) -> None:
    """Writes ``prompt``; see ``write_preferences``."""
    _write_rows(Path(path), [{"prompt": r.prompt, **r.columns} for r in records])


def convert(name: str, out: Path, layout: str = "explicit") -> ReadReport:
    """Reads any format and writes ours; rows are checked as in ``load``."""
    kind = detect(name)
    if kind == "preference":
        pairs, report = load_preferences(name)
        write_preferences(out, pairs, layout)
    elif kind == "prompt":
        prompts, report = load_prompts(name)
        write_prompts(out, prompts)
    else:
        demonstrations, report = load_demonstrations(name)
        write_demonstrations(out, demonstrations)
    return report


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(temporary, "wb") if path.name.endswith(".gz") else open(temporary, "wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
    else:
        raise DataError(f"'{path}' must end with .jsonl, .jsonl.gz or .parquet")
    os.replace(temporary, path)
