"""Columns that a layout does not use although they look as if they counted."""

from preferl.data import winners
from preferl.data.columns import (
    ABOUT,
    LABEL,
    OPPOSITES,
    OURS,
    RESPONSE,
    SPEAKERS,
    Column,
    Columns,
    words_of,
)
from preferl.data.layouts import BAD, GOOD, Layout
from preferl.data.records import DataError
from preferl.data.splits import MEANING, meaning

SPLIT_WORDS = {"split", "set", "partition", "fold", "subset", "phase"}
SEEN_OR_HEARD = {"image", "images", "video", "videos", "audio", "audios"}
REFERENCE = {"key", "expected", "reference", "correct", "final", "gold", "true", "ground"}
WINNING = {"winner", "better", "safer", "best", "preferred", "chosen", "choice"}
WORSE = {word for _, worse in OPPOSITES for word in worse.split()}
SIDES = {word for pair in OPPOSITES for side in pair for word in side.split()}


def _of_a_side(layout: Layout, words: list[str]) -> bool:
    """Whether the words of a name make it a remark about the better or the worse response:
    ``chosen_score``."""
    sides = {"chosen", "rejected"}
    for role in ("chosen", "rejected"):
        sides |= SIDES & set(words_of(str(layout.columns.get(role, ""))))
    return bool(sides & set(words)) and len(words) > 1


def refuse_suspicious(data: Columns, layout: Layout, unused: list[str]) -> None:
    found = [(c, why) for c in unused if (why := _suspicion(data, layout, c))]
    if not found:
        return
    column, why = found[0]
    every = data.with_given(unused="+".join(c for c, _ in found))
    more = f" (likewise {', '.join(f'{c}: {w}' for c, w in found[1:])})" if found[1:] else ""
    raise DataError(
        f"data set '{data.name}' would be read as {layout.kind} by {layout.what_it_says()}, and the column "
        f"'{column}' would not be used, which looks like {why}{more}; {_advice(data, layout, found)}"
        f"leave it aside with {every}"
    )


def _advice(data: Columns, layout: Layout, found: list[tuple[str, str]]) -> str:
    """The options with which such a column is used, and an "or"; empty where there are none."""
    column, why = found[0]
    if why == "a split":
        numbers = data.columns[column].holds("number")
        return "" if numbers else f"use it with {data.with_given(split=column)}, or "
    if why == "another speaker":
        asked = layout.columns.get("prompt")
        ways = [f"put it before the prompt with {data.with_given(system=column)}"]
        if isinstance(asked, str) and "|" not in asked:
            ways.append(f"join it: {data.with_given(prompt=f'{column}+{asked}')}")
        return f"{', or '.join(ways)}, or "
    if why == "another response":
        return _advice_on_responses(data, layout, [c for c, reason in found if reason == why])
    if layout.kind in ("rated", "demonstration") and "completion" in layout.columns:
        ways = (
            [f"compare the responses to a prompt by it with --winner {column}"]
            if data.are_numbers([column])
            else []
        )
        if data.has_shape(column, "bool"):
            ways.insert(0, f"let it call them good or bad with {data.with_given(label=column)}")
        return f"{', or '.join(ways)}, or " if ways else ""
    if layout.kind == "demonstration" and "messages" in layout.columns and data.has_shape(column, "bool"):
        messages = str(layout.columns["messages"])
        return f"let it call them good or bad with {data.with_given(messages=messages, label=column)}, or "
    if layout.responses and data.winner is None:
        return f"let it say who won with --winner {column}, or "
    if layout.kind == "preference" and {"chosen", "rejected"} <= layout.columns.keys():
        prompt = _named_prompt(layout)
        both = data.with_given(**prompt, responses=f"{layout.columns['chosen']}+{layout.columns['rejected']}")
        return f"let it say which of the two won with {both} --winner {column}, or "
    return ""


def _named_prompt(layout: Layout) -> dict[str, str]:
    """The prompt's column as a role, where its name does not say that it is one."""
    asked = layout.columns.get("prompt")
    return {"prompt": asked} if isinstance(asked, str) and asked != "prompt" else {}


def _advice_on_responses(data: Columns, layout: Layout, columns: list[str]) -> str:
    """What columns of responses can be, beside the prompt that was found."""
    prompt = _named_prompt(layout)
    if layout.kind == "prompt" and len(columns) == 1 and WORSE & set(words_of(columns[0])):
        return ""
    if layout.kind == "prompt" and len(columns) == 1:
        return f"say that it answers the prompt with {data.with_given(**prompt, completion=columns[0])}, or "
    if layout.kind == "prompt":
        responses = "+".join(columns)
        ways = [
            f"say which is better with {data.with_given(**prompt, chosen=columns[0], rejected=columns[1])}",
            f"what says so with {data.with_given(**prompt, responses=responses)} and --winner COLUMN",
        ]
        return f"{', or '.join(ways)}, or "
    if layout.kind == "demonstration" and "messages" not in layout.columns and len(columns) == 1:
        answer = str(layout.columns.get("completion", ""))
        pairs = data.with_given(**prompt, chosen=answer, rejected=columns[0]) if answer else ""
        return f"say that it is the worse of two with {pairs}, or " if pairs else ""
    return ""


def _suspicion(data: Columns, layout: Layout, column: str) -> str | None:
    """What a column that is not used looks like; None where it is any other."""
    what, words = data.columns[column], words_of(column)
    if is_ours(column) or words[:1] == ["generator"]:
        return None
    if _is_split(what, words):
        return "a split" if column != "split" else None
    if SEEN_OR_HEARD & set(words) and not ABOUT & set(words) and what.filled:
        return "what is to be seen or heard beside the text"
    if layout.kind == "prompt" and _has_a_twin(data, column):
        return "another response"
    if column == "split" or not words:
        return None
    if set(words) <= SPEAKERS | {"prompt"} and set(words) & SPEAKERS and _can_be_said(layout, what):
        return "another speaker"
    places = {"id", "idx", "index"} & set(words) and WINNING & set(words)
    if places and layout.kind not in ("preference", "ranking") and _is_place(what):
        return "a rating or a label"
    if ABOUT & set(words):
        return None
    if layout.kind == "prompt" and what.holds("text") and LABEL & set(words) and what.is_prose():
        return "another response"
    if layout.kind in ("preference", "ranking") and _of_a_side(layout, words) and not what.is_prose():
        return None  # a remark about one of the two
    if layout.is_own and layout.kind in ("preference", "ranking") and what.holds("numbers"):
        return None  # a number for each response of a ranking that has its places
    if layout.kind == "prompt" and "answer" in words and REFERENCE & set(words):
        return None
    if RESPONSE & set(words) and what.holds("text", "texts", "messages", "mappings", "mapping"):
        # A reference answer beside a whole pair, or to a prompt alone, is what a reward may ask for.
        if column == "answer" and {"chosen", "rejected"} <= layout.columns.keys():
            return None
        if layout.kind == "prompt" and column in ("answer", "answers", "completion"):
            return None
        return "another response"
    graded = layout.kind == "demonstration" and _is_class(what)
    if LABEL & set(words) and (_is_verdict(data, column) or graded):
        return "a rating or a label"
    return None


def _is_split(what: Column, words: list[str]) -> bool:
    """Whether a column tells splits: by its values alone, by some of them where it is called like one, or by
    true and false where its name is a split's (``is_test``)."""
    told = {meaning(str(value)) for value in what.values}
    if what.holds("text") and len(what.values) <= 8 and told & {"train", "dev", "eval"}:
        return None not in told or bool(SPLIT_WORDS & set(words))
    if what.holds("bool"):
        return set(words) <= {"is", "in", "for", "set", "split"} | MEANING.keys() and bool(
            MEANING.keys() & set(words)
        )
    return (
        what.holds("number")
        and len(words) == 1
        and words[0] in ("fold", "partition")
        and len(what.values) <= 20
    )


def _is_place(what: Column) -> bool:
    """Whether a column can hold the places of the better of few responses: ``better_response_id``."""
    numbers = [winners.number_in(value) for value in what.values]
    return all(number is not None and -1 <= number <= 9 for number in numbers)


def _is_class(what: Column) -> bool:
    """Whether a column holds few different texts of few words, as grades are."""
    texts = list(what.values)
    return (
        what.holds("text") and 2 <= len(texts) <= 8 and len(texts) * 2 <= what.filled and not what.is_prose()
    )


def _can_be_said(layout: Layout, what: Column) -> bool:
    """Whether a column's values can be what somebody says before the prompt."""
    return what.holds("text", "messages", "texts", "list", "mapping", "mappings") and layout.kind != "text"


def _has_a_twin(data: Columns, column: str) -> bool:
    """Whether another column has the same name but for its last letter or digit (modelA and modelB), and both
    hold texts that differ."""
    others = [
        other
        for other in data.columns
        if other != column and len(other) == len(column) and other[:-1] == column[:-1] and len(column) > 1
    ]
    return data.columns[column].holds("text") and any(
        data.columns[other].holds("text")
        and set(data.columns[other].values) != set(data.columns[column].values)
        for other in others
    )


def _is_verdict(data: Columns, column: str) -> bool:
    """Whether a column's values can be ratings or labels: numbers, truth values, words for a side or for
    good and bad."""
    what = data.columns[column]
    if what.holds("number", "bool", "numbers"):
        return True
    if not what.holds("text"):
        return False
    sides = ["a", "b"]
    return all(
        winners.word_place(v, sides) is not None or str(v).strip().lower() in (*GOOD, *BAD, "safe", "unsafe")
        or winners.number_in(v) is not None
        for v in what.values
    )  # fmt: skip


def is_ours(column: str) -> bool:
    """Whether it is a column that preferl's own commands write beside pairs and rankings."""
    named = column in OURS or column.startswith(("source_", "label_"))
    return named or words_of(column)[:1] in (["gold"], ["finished"])


def would_count(column: str) -> bool:
    """Whether a column of this name could be taken for a response, a label, a rating or another speaker."""
    words = set(words_of(column))
    return not is_ours(column) and not ABOUT & words and bool((RESPONSE | LABEL) & words or words <= SPEAKERS)
