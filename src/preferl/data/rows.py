"""One row to one record and back: every shape that is read, and every defect that a row can have.

Preferences: hh-rlhf's implicit prompt (``chosen`` and ``rejected`` are whole dialogues that share everything
but the last turn; texts or messages), TRL's explicit columns (``prompt``, ``chosen``, ``rejected``, optional
``margin``; texts or messages, the responses with or without the prompt's messages repeated before them).
Rankings: ``prompt``, ``responses`` (2 or more) and ``ranks`` (1 is best, equal is a tie) or ``scores``; or
``prompt``, ``response_a``, ``response_b`` and ``z`` (1, -1, 0 for a tie) with an optional ``strength``; or
lists in ``chosen`` and ``rejected`` (RM-Bench, RewardBench 2). Other layouts become these (``layouts``).
Rated responses: ``prompt``, ``completion`` (or both as ``messages``) and ``label`` (true or false) or
``ratings``. Demonstrations: ``messages``, ``prompt`` + ``completion``, ``text``. Prompts: ``prompt``. Beside
a prompt or messages ``system`` is the system's message. Messages come in every dialect of ``dialects``.

A defect is a ``RowError`` with a kind; what happens then is the reader's business (``formats.POLICY``).
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from preferl.data import dialects
from preferl.data.dialects import SPEAKER, turns_of
from preferl.data.files import RowError
from preferl.data.records import (
    Comparison,
    DataError,
    Demonstration,
    Messages,
    Pair,
    Prompt,
    PromptRecord,
    Rated,
    per_response,
    ranks_of_scores,
)

# Columns that decide how a row reads back: provenance must not be written under these names.
PAIR_COLUMNS = ("prompt", "system", "chosen", "rejected", "margin")
RANKING_COLUMNS = ("prompt", "system", "responses", "ranks", "scores", "response_a", "response_b", "z")
# A strength of 1 to 3 (slightly, clearly, much better: half of a 7-point scale) is a margin in thirds.
STRENGTHS = 3
RATED_COLUMNS = ("prompt", "system", "completion", "messages", "label", "ratings")
OTHER_COLUMNS = ("prompt", "system", "completion", "messages", "text", "chosen", "rejected")


# ----------------------------------------------------------------------------------------- rows to records


def to_pair(row: dict[str, Any]) -> Comparison:
    """A comparison of two: a row with ``chosen`` and ``rejected``, and ``prompt`` unless it is implicit.

    Raises:
        RowError: the row has a defect.
    """
    chosen, rejected = _value(row, "chosen"), row.get("rejected")
    if "rejected" in row and rejected in (None, []):
        # As in the splits for generation of data sets that were made pairs of (train_gen).
        raise RowError("no_rejected", "there is a chosen response and no rejected one")
    _value(row, "rejected")
    if "prompt" in row:
        prompt, sides = _answered(row, {"chosen": chosen, "rejected": rejected})
        chosen, rejected = sides
    else:
        prompt, chosen, rejected = _implicit(chosen, rejected)
        prompt = _with_system(prompt, row)
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise RowError("empty_response", f"{column} is empty")
    if chosen == rejected:
        raise RowError("identical_pair", "chosen and rejected are the same")
    return Pair(prompt, chosen, rejected, _margin(row), _rest(row, *PAIR_COLUMNS)).comparison()


def to_ranking(row: dict[str, Any]) -> Comparison:
    """A row with ``responses`` and ``ranks`` or ``scores``, with ``response_a``, ``response_b`` and ``z``, or
    with lists in ``chosen`` and ``rejected``.

    Raises:
        RowError: the row has a defect.
    """
    if "responses" not in row and "chosen" in row:
        row = _better_and_worse(row)
    columns = _rest(row, *RANKING_COLUMNS)
    if "responses" not in row and "response_a" in row:
        prompt, responses, ranks, scores = _outcome(row)
        columns.pop("margin", None)
    else:
        prompt, responses, ranks, scores = _places(row)
    if len(responses) < 2:
        raise RowError("bad_ranking", f"{len(responses)} responses; a ranking has 2 or more")
    if any(not text.strip() for text in responses):
        raise RowError("empty_response", "a response is empty")
    rank_of: dict[str, int] = {}
    for text, rank in zip(responses, ranks, strict=True):
        if rank_of.setdefault(text, rank) != rank:
            raise RowError("identical_pair", "two equal responses have different ranks")
    return Comparison(prompt, responses, ranks, scores, columns, per_response(columns, len(responses)))


Places = tuple[Prompt, list[str], list[int], list[float] | None]


def _outcome(row: dict[str, Any]) -> Places:
    """Prompt, responses, ranks and scores of ``response_a``, ``response_b`` and ``z``."""
    sides = {name: _value(row, name) for name in ("response_a", "response_b")}
    prompt, responses = _answered(row, sides)
    z = _number(_value(row, "z"), "z", "bad_ranking")
    if z not in (1, 0, -1):
        raise RowError("bad_ranking", f"z is {z:g}; it must be 1 (a is better), -1 (b is) or 0 (a tie)")
    ranks = {1: [1, 2], -1: [2, 1], 0: [1, 1]}[int(z)]
    margin = _margin(row)
    if margin is None or z == 0:
        return prompt, responses, ranks, None
    return prompt, responses, ranks, [margin, 0.0] if z == 1 else [0.0, margin]


def _places(row: dict[str, Any]) -> Places:
    """Prompt, responses, ranks and scores of ``responses`` with ``ranks`` or ``scores``."""
    named = {f"responses {i}": response for i, response in enumerate(_list(row, "responses"), 1)}
    prompt, responses = _answered(row, named)
    scores = None
    if row.get("scores") is not None:
        scores = [_number(s, "scores", "bad_ranking") for s in _list(row, "scores")]
    if row.get("ranks") is not None:
        ranks = _whole_ranks([_number(r, "ranks", "bad_ranking") for r in _list(row, "ranks")])
    elif scores is not None:
        ranks = ranks_of_scores(scores)
    else:
        raise RowError("missing_column", "has neither 'ranks' nor 'scores' for its responses")
    for column, values in (("ranks", ranks), ("scores", scores)):
        if values is not None and len(values) != len(responses):
            raise RowError("bad_ranking", f"{len(responses)} responses but {len(values)} {column}")
    if scores is not None:
        for i, j in itertools.permutations(range(len(ranks)), 2):
            if ranks[i] < ranks[j] and scores[i] < scores[j]:
                raise RowError("bad_ranking", "ranks and scores disagree: a better rank has a lower score")
    return prompt, responses, ranks, scores


def _whole_ranks(ranks: list[float]) -> list[int]:
    """Ranks as they are where they are whole numbers from 1, else the places that they give."""
    if all(rank >= 1 and rank == int(rank) for rank in ranks):
        return [int(rank) for rank in ranks]
    return ranks_of_scores([-rank for rank in ranks])


def _better_and_worse(row: dict[str, Any]) -> dict[str, Any]:
    """Lists in ``chosen`` and ``rejected`` as a ranking of two places.

    In RM-Bench a response's place in its list is its ``style``, from concise to elaborate.
    """
    better, worse = (
        [value] if isinstance(value := _value(row, side), str) else _list(row, side)
        for side in ("chosen", "rejected")
    )
    ranking = {"responses": better + worse, "ranks": [1] * len(better) + [2] * len(worse)}
    if len(better) == len(worse) > 1:
        ranking["style"] = [*range(len(better)), *range(len(worse))]
    return _rest(row, "chosen", "rejected") | ranking


def to_demonstration(row: dict[str, Any]) -> Demonstration:
    """A row with ``messages``, ``prompt`` + ``completion``, ``chosen`` + ``rejected``, or ``text``.

    A plain text has an empty prompt.

    Raises:
        RowError: the row has a defect.
    """
    # Tables fill the columns that a row does not have with null, so null decides nothing here.
    forms = ("messages", "completion", "chosen", "text")
    there = [column for column in forms if column in row]
    filled = [column for column in there if row[column] is not None]
    form = (filled or there or ["text"])[0]
    if form == "messages":
        given = _value(row, "messages")
        messages = _messages(given, "messages")
        if isinstance(given, list) and isinstance(given[-1], dict) and given[-1].get("weight") == 0:
            raise RowError(
                "called_bad", "the weight of its last message is 0, so that nothing learns from it"
            )
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RowError("bad_role_order", "messages must end with the assistant's turn after a user's")
        prompt, response = _with_system(_prompt(messages[:-1]), row), _said(messages[-1], "messages")
        columns = _rest(row, "messages", "system")
    elif form == "completion":
        prompt, (response,) = _answered(row, {"completion": _value(row, "completion")})
        columns = _rest(row, "prompt", "system", "completion")
    elif form == "chosen":
        pair = to_pair(row)
        return Demonstration(pair.prompt, pair.best(), _rest(row, *PAIR_COLUMNS))
    else:
        prompt, response = "", _value(row, "text")
        if not isinstance(response, str):
            raise RowError("wrong_type", f"text is a {type(response).__name__}, not a text")
        columns = _rest(row, "text")
        written = dialects.inverted(response) or dialects.in_marks(response)
        if written is not None and len(written[1]) > 1 and written[1][-1]["role"] == "assistant":
            return to_demonstration({"messages": written[1], **columns})
    if not response.strip():
        raise RowError("empty_response", "the response is empty")
    return Demonstration(prompt, response, columns)


def to_rated(row: dict[str, Any]) -> Rated:
    """A row with ``prompt`` and ``completion``, and ``label`` (good or bad: TRL's unpaired preferences) or
    ``ratings`` (a number for each attribute).

    Raises:
        RowError: the row has a defect.
    """
    if row.get("completion") is None and "messages" in row:
        messages = _whole_dialogue(_value(row, "messages"), "messages")
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RowError("bad_role_order", "messages must end with the assistant's turn after a user's")
        prompt, response = _with_system(_prompt(messages[:-1]), row), _said(messages[-1], "messages")
    else:
        prompt, (response,) = _answered(row, {"completion": _value(row, "completion")})
    if not response.strip():
        raise RowError("empty_response", "the response is empty")
    good, ratings = row.get("label"), row.get("ratings")
    if good is not None and not isinstance(good, bool):
        raise RowError("bad_ranking", f"label is {good!r:.40}; it must be true (good) or false (bad)")
    if ratings is not None and not isinstance(ratings, dict):
        raise RowError("wrong_type", f"ratings is a {type(ratings).__name__}; it must name attributes")
    if good is None and not ratings:
        empty = any(name in row and row[name] is None for name in ("label", "ratings"))
        kind = "unlabelled" if empty else "missing_column"
        raise RowError(kind, "has neither 'label' nor 'ratings' for its response")
    # Tables fill an attribute that a row does not have with null.
    numbers = {
        name: _number(value, f"ratings.{name}", "bad_ranking")
        for name, value in (ratings or {}).items()
        if value is not None
    }
    return Rated(prompt, response, numbers, good, _rest(row, *RATED_COLUMNS))


def to_prompt(row: dict[str, Any]) -> PromptRecord:
    """A row with ``prompt``.

    Raises:
        RowError: the row has a defect.
    """
    return PromptRecord(_with_system(_prompt(_value(row, "prompt")), row), _rest(row, "prompt", "system"))


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError("missing_column", f"has no column '{column}'")
    if row[column] is None:
        raise RowError("null_value", f"{column} is null")
    return row[column]


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in used}


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = _value(row, column)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{column} is a {type(value).__name__}, not a list")
    return value


def _number(value: Any, column: str, kind: str) -> float:
    """A finite number.

    Raises:
        RowError: of this kind.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(kind, f"{column} is a {type(value).__name__}, not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise RowError(kind, f"{column} is {number}; it must be a finite number")
    return number


def _margin(row: dict[str, Any]) -> float | None:
    """The column ``margin``, else ``strength`` in thirds where it is 1, 2 or 3."""
    if row.get("margin") is None:
        strength = row.get("strength")
        if isinstance(strength, int) and not isinstance(strength, bool) and 1 <= strength <= STRENGTHS:
            return strength / STRENGTHS
        return None
    number = _number(row["margin"], "margin", "bad_margin")
    if number < 0:
        raise RowError("bad_margin", f"margin is {number}; it must be a finite number, 0 or more")
    return number


def _prompt(value: Any) -> Prompt:
    """A prompt that a response can follow: a text, or messages ending with the user's turn (or with what a
    tool answered). A text that writes such messages down is read as them."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty_prompt", "prompt is empty")
        value = _opened(value) or value
        if isinstance(value, str):
            return value
    messages = _messages(value, "prompt")
    if not any(m["content"].strip() for m in messages):
        raise RowError("empty_prompt", "prompt has no message with text")
    if messages[-1]["role"] not in ("user", "tool"):
        raise RowError(
            "bad_role_order", f"prompt ends with the {messages[-1]['role']}'s turn, not the user's"
        )
    return messages


def _opened(text: str) -> list[Any] | None:
    """The messages that a text writes down, up to where the response begins; None where it is any other."""
    written = dialects.spelt_out(text)
    if written is None:
        return None
    how, turns = written
    if how == "lists in text":
        return turns
    before = dialects.without_opening(turns)
    # Without an open turn of the assistant marks may be the words of somebody who asks about them.
    if dialects.is_marked(how) and before is turns:
        return None
    return before if before and before[-1]["role"] == "user" else None


def _with_system(prompt: Prompt, row: Mapping[str, Any]) -> Prompt:
    """A prompt with what stands in the column ``system`` before it; where there is such a column all prompts
    are dialogues."""
    if "system" not in row:
        return prompt
    text = row["system"]
    if isinstance(text, dict):  # a message
        text = next((text[key] for key in dialects.SAID if key in text), text)
    if isinstance(text, list):
        text = dialects.text_of(text, "system")
    if text is not None and not isinstance(text, str):
        raise RowError("wrong_type", f"system is a {type(text).__name__}, not a text")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = text or ""
    if not text.strip():
        return messages
    if messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"].strip() != text.strip():
            raise RowError("bad_role_order", "the messages begin with another system message than system")
        return messages
    return [{"role": "system", "content": text}, *messages]


def _answered(row: Mapping[str, Any], responses: Mapping[str, Any]) -> tuple[Prompt, list[str]]:
    """The prompt of a row and the texts of its responses, by the names of their columns."""
    given = _value(row, "prompt")
    prompt = _prompt(given)
    spelt = isinstance(given, str) and isinstance(prompt, list) and dialects.messages_in(given) is None
    values = {column: _dialogue_after(value, prompt) for column, value in responses.items()}
    for column, value in values.items():
        prompt = _prompt_before(prompt, value, column)
    texts = [_response(value, column, prompt) for column, value in values.items()]
    if spelt:  # the template's end of turn, or the space behind a mark, is layout too
        texts = [dialects.without_end(text).strip() for text in texts]
    return _with_system(prompt, row), texts


def _dialogue_after(value: Any, prompt: Prompt) -> Any:
    """A response's text as messages where it writes down a whole dialogue about the prompt."""
    written = dialects.spelt_out(value) if isinstance(value, str) else None
    if written is None:
        return value
    turns = turns_of(written[1], "response")
    if turns[-1]["role"] != "assistant":
        return value
    if written[0] == "lists in text" or (len(turns) == 1 and written[0].startswith("the template")):
        return turns
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    about = any(turn["role"] == "user" and turn["content"].strip() == asked.strip() for turn in turns)
    return turns if about else value


def _prompt_before(prompt: Prompt, response: Any, column: str) -> Prompt:
    """The messages before a response, where ``prompt`` is only the text of one of them.

    Some chat data sets hold the dialogue in ``chosen`` and its first or last question once more in
    ``prompt``.
    """
    if isinstance(prompt, list) or not isinstance(response, list) or len(response) < 2:
        return prompt
    messages = _prompt(_messages(response, column)[:-1])
    assert isinstance(messages, list)
    asked = [m["content"].strip() for m in messages if m["role"] == "user"]
    if prompt.strip() not in (asked[0], asked[-1]):
        raise RowError("different_prompts", f"{column} answers another prompt than the column prompt")
    return messages


def _messages(value: Any, column: str) -> Messages:
    """Messages whose roles alternate, user first, after at most one system message."""
    messages = turns_of(value, column)
    dialects.check_order(messages, column)
    return messages


def _response(value: Any, column: str, prompt: Prompt) -> str:
    """A response's text; messages must hold one assistant turn, or repeat the prompt and add one."""
    if isinstance(value, str):
        return value
    turns = turns_of(value, column)
    if isinstance(prompt, list) and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    elif len(turns) > 1:
        raise RowError("different_prompts", f"{column} answers another prompt than the column prompt")
    if [m["role"] for m in turns] != ["assistant"]:
        raise RowError("bad_role_order", f"{column} must be one assistant message after the prompt")
    return _said(turns[0], column)


def _said(message: Mapping[str, Any], column: str) -> str:
    """The text of a response's message.

    Raises:
        RowError: it holds more than text, which no response of ours can.
    """
    more = [key for key in ("tool_calls", "reasoning_content") if key in message]
    if more:
        raise RowError(
            "tools_in_response",
            f"{column} has {' and '.join(more)} beside its text; only texts are responses",
        )
    return message["content"]


def _implicit(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """Prompt and responses of two whole dialogues that share everything but the last turn."""
    dialogues = [_whole_dialogue(chosen, "chosen"), _whole_dialogue(rejected, "rejected")]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong_type", "chosen and rejected must both be texts or both be messages")
    for column, dialogue in zip(("chosen", "rejected"), dialogues, strict=True):
        if len(dialogue) < 2 or dialogue[-1]["role"] != "assistant":
            raise RowError(
                "bad_role_order",
                f"{column} must end with the assistant's turn after a user's, or have a prompt",
            )
    before = dialects.before_last(dialogues, "chosen and rejected")
    first, second = (_said(turns[-1], "chosen or rejected") for turns in dialogues)
    return _prompt(before), first, second


def _whole_dialogue(value: Any, column: str) -> Messages:
    """A dialogue that holds its prompt, as messages or as text that writes them down."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty_response", f"{column} is empty")
        written = dialects.spelt_out(value)
        if written is None:
            raise RowError(
                "missing_column",
                f"has no column 'prompt', and {column} is no dialogue that starts with '\\n\\nHuman:'",
            )
        return _messages(written[1], column)
    return _messages(value, column)


# ----------------------------------------------------------------------------------------- records to rows


def explicit_row(record: Pair) -> dict[str, Any]:
    """A row in TRL's explicit columns: ``prompt``, ``chosen``, ``rejected``."""
    sides = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    return sides | _beside_pair(record)


def implicit_row(record: Pair) -> dict[str, Any]:
    """A row of two whole dialogues as messages; a plain prompt is written as the user's turn."""
    prompt = _turns_of(record.prompt)
    chosen = [*prompt, {"role": "assistant", "content": record.chosen}]
    rejected = [*prompt, {"role": "assistant", "content": record.rejected}]
    return {"chosen": chosen, "rejected": rejected} | _beside_pair(record)


def hh_row(record: Pair) -> dict[str, Any]:
    """A row of two whole dialogues as hh-rlhf's texts, which do not keep white space around turns.

    Raises:
        DataError: it cannot hold the record.
    """
    before = _hh_prompt(_turns_of(record.prompt), (record.chosen, record.rejected)) + "\n\nAssistant: "
    dialogues = {"chosen": before + record.chosen, "rejected": before + record.rejected}
    return dialogues | _beside_pair(record)


def _turns_of(prompt: Prompt) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _beside_pair(record: Pair) -> dict[str, Any]:
    margin = {} if record.margin is None else {"margin": record.margin}
    return margin | provenance(record.columns, PAIR_COLUMNS)


def _hh_prompt(prompt: Messages, responses: Iterable[str]) -> str:
    names = {role: name for name, role in SPEAKER.items()}
    if any(m["role"] not in names for m in prompt):
        raise DataError("hh-rlhf's layout has no system turn; write the explicit layout instead")
    for text in [*responses, *(m["content"] for m in prompt)]:
        if any(f"\n\n{name}:" in text for name in SPEAKER):
            raise DataError(
                "a text holds '\\n\\nHuman:' or '\\n\\nAssistant:' and would read back as turns; write the "
                "explicit layout instead"
            )
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in prompt)


def ranking_row(record: Comparison) -> dict[str, Any]:
    """A row with ``prompt``, ``responses``, ``ranks`` and, where known, ``scores``."""
    scores = {} if record.scores is None else {"scores": record.scores}
    extra = provenance(record.columns, RANKING_COLUMNS)
    return {"prompt": record.prompt, "responses": record.responses, "ranks": record.ranks, **scores, **extra}


def outcome_row(record: Comparison) -> dict[str, Any]:
    """A row with ``prompt``, ``response_a``, ``response_b``, ``z`` (1: a is better, -1, 0: a tie) and, where
    known, ``margin``.

    Raises:
        DataError: it is not a ranking of two.
    """
    if len(record.responses) != 2:
        raise DataError(
            f"a ranking of {len(record.responses)} responses is no comparison of two; write rankings or pairs"
        )
    rank_a, rank_b = record.ranks
    if rank_a == rank_b:
        z = 0
    else:
        z = 1 if rank_a < rank_b else -1
    row: dict[str, Any] = {
        "prompt": record.prompt,
        "response_a": record.responses[0],
        "response_b": record.responses[1],
        "z": z,
    }
    if record.scores is not None and z != 0:
        row["margin"] = abs(record.scores[0] - record.scores[1])
    return row | provenance(record.columns, (*RANKING_COLUMNS, "margin"))


def demonstration_row(record: Demonstration) -> dict[str, Any]:
    """A row with ``prompt`` and ``completion``; where there is no prompt, with ``text``."""
    extra = provenance(record.columns, OTHER_COLUMNS)
    if record.prompt == "":
        return {"text": record.response, **extra}
    return {"prompt": record.prompt, "completion": record.response, **extra}


def rated_row(record: Rated) -> dict[str, Any]:
    """A row with ``prompt``, ``completion`` and, where known, ``label`` and ``ratings``."""
    label = {} if record.good is None else {"label": record.good}
    ratings = {"ratings": record.ratings} if record.ratings else {}
    beside = provenance(record.columns, RATED_COLUMNS)
    return {"prompt": record.prompt, "completion": record.response, **label, **ratings, **beside}


def prompt_row(record: PromptRecord) -> dict[str, Any]:
    """A row with ``prompt``."""
    return {"prompt": record.prompt, **provenance(record.columns, OTHER_COLUMNS)}


def provenance(columns: Mapping[str, Any], reserved: tuple[str, ...]) -> dict[str, Any]:
    """Columns for writing: ``source_`` goes before a name that would change how the row reads back."""
    out: dict[str, Any] = {}
    for column, value in columns.items():
        name = column
        while name in reserved or name in out:
            name = f"source_{name}"
        out[name] = value
    return out
