"""Columns that a layout does not use although they look as if they counted."""

from preferl.data import winners
from preferl.data.columns import ABOUT, LABEL, OURS, RESPONSE, SPEAKERS, Columns, words_of
from preferl.data.layouts import BAD, GOOD, Layout
from preferl.data.records import DataError
from preferl.data.splits import meaning


def refuse_suspicious(data: Columns, layout: Layout, unused: list[str]) -> None:
    found = [(c, why) for c in unused if (why := _suspicion(data, layout, c))]
    if not found:
        return
    column, why = found[0]
    every = "+".join(c for c, _ in found)
    more = f" (likewise {', '.join(f'{c}: {w}' for c, w in found[1:])})" if found[1:] else ""
    raise DataError(
        f"data set '{data.name}' would be read as {layout.kind} by {layout.what_it_says()}, and the column "
        f"'{column}' would not be used, which looks like {why}{more}; {_advice(layout, column, why)}, or "
        f"leave it aside with --columns unused={every}"
    )


def _advice(layout: Layout, column: str, why: str) -> str:
    """The option with which such a column is used."""
    if why == "a split":
        return f"use it with --columns split={column}"
    if why == "another speaker":
        before = f"put it before the prompt with --columns system={column}"
        return f"{before}, or join it: --columns prompt={column}+prompt"
    if why == "another response":
        return f"say what it is: --columns completion={column} or responses={column}+OTHER (docs/data.md)"
    if layout.kind in ("rated", "demonstration") and "completion" in layout.columns:
        good = f"--columns label={column} where it calls them good or bad"
        return f"compare the responses to a prompt by it with --winner {column}, or use {good}"
    if layout.responses:
        return f"let it say who won with --winner {column}"
    return (
        f"name what it speaks of: --columns responses=A+B --winner {column}, or completion=A,label={column}"
    )


def _suspicion(data: Columns, layout: Layout, column: str) -> str | None:
    """What a column that is not used looks like; None where it is any other."""
    what, words = data.columns[column], words_of(column)
    if is_ours(column) or words[:1] == ["generator"]:
        return None
    if (
        what.holds("text")
        and len(what.values) <= 8
        and {meaning(str(v)) for v in what.values} & {"train", "dev", "eval"}
        and all(meaning(str(v)) for v in what.values)
    ):
        return "a split" if column != "split" else None
    if layout.kind == "prompt" and _has_a_twin(data, column):
        return "another response"
    if column == "split" or ABOUT & set(words) or not words:
        return None
    if layout.kind in ("preference", "ranking") and {"chosen", "rejected"} & set(words) and len(words) > 1:
        return None  # a remark about one of the two
    if layout.is_own and layout.kind in ("preference", "ranking") and what.holds("numbers"):
        return None  # a number for each response of a ranking that has its places
    if RESPONSE & set(words) and what.holds("text", "texts", "messages", "mappings"):
        # A reference answer beside a whole pair, or to a prompt alone, is what a reward may ask for.
        if column == "answer" and {"chosen", "rejected"} <= layout.columns.keys():
            return None
        return None if layout.kind == "prompt" and column in ("answer", "completion") else "another response"
    if LABEL & set(words) and _is_verdict(data, column):
        return "a rating or a label"
    if (
        set(words) <= SPEAKERS | {"prompt"}
        and what.holds("text", "messages", "texts")
        and layout.kind != "text"
    ):
        return "another speaker"
    return None


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
