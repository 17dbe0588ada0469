"""The rows of a data set as rows in our columns: what only several of them together tell.

Rows of one prompt that rate single responses become one ranking, messages of a tree become rankings of the
answers to each prompt, and a prompt that every response repeats comes off the responses.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preferl.data import dialects
from preferl.data.columns import is_nan
from preferl.data.files import Row, RowError
from preferl.data.layouts import MISSING, Layout, at, in_our_columns, key_of, rating_in
from preferl.data.recognise import Recognised, is_grouped

# Shorter prompts may well begin their responses.
SHORTEST_REPEATED = 8
RESPONSES = ("chosen", "rejected", "completion", "responses")


@dataclass
class Derived:
    """Rows in our columns (or what was wrong with one), what they are called, and what is to be said."""

    rows: list[Row]
    unit: str = "rows"
    notes: list[str] = field(default_factory=list)


def derived(rows: Sequence[Row], found: Recognised) -> Derived:
    """Rows of a layout as rows in our columns."""
    layout = found.layout
    if layout.tree:
        return of_trees(rows, layout)
    ours = [_row(row, found) for row in rows]
    if is_grouped(layout):
        return grouped(ours, layout)
    return Derived(ours, notes=without_repeated_prompts(ours))


def _row(row: Row, found: Recognised) -> Row:
    if isinstance(row.value, RowError):
        return row
    layout = found.layout
    try:
        value: Any = in_our_columns(layout, row.value, found.with_system)
        if layout.is_own:
            refuse_unlabelled(layout, value)
    except RowError as error:
        value = error
    return Row(row.where, value, row.split, row.file)


def refuse_unlabelled(layout: Layout, row: Mapping[str, Any]) -> None:
    """Refuses a row that nobody has labelled, among others that are.

    Raises:
        RowError: it has no responses, or nothing that says who won.
    """
    if layout.kind == "preference" and row.get("chosen") is None and row.get("rejected") is None:
        raise RowError("unlabelled", "has neither chosen nor rejected")
    if "z" in layout.needs and row.get("z") is None:
        raise RowError("unlabelled", "has no z, so nothing says who won")
    outcome = "response_a" in row  # another of our layouts, which is read row by row
    if layout.either and not outcome and all(row.get(name) is None for name in layout.either):
        raise RowError("unlabelled", f"has no {' and no '.join(layout.either)}")


# ------------------------------------------------------------------------------------------- repeated prompts


def without_repeated_prompts(rows: list[Row]) -> list[str]:
    """Takes the prompt off the responses of rows, in place, where every response of every row begins with the
    whole prompt of its row; says so, or how many do."""
    texts = [row.value for row in rows if isinstance(row.value, dict)]
    texts = [row for row in texts if isinstance(row.get("prompt"), str) and _responses(row)]
    repeating = [row for row in texts if all(_repeats(row["prompt"], r) for r in _responses(row))]
    # Where longer prompts stand in front of their responses, short ones that do are no accident.
    if not any(len(row["prompt"].strip()) >= SHORTEST_REPEATED for row in repeating):
        return []
    if len(repeating) < len(texts):
        return [
            f"the responses of {len(repeating)} of {len(texts)} rows begin with the whole prompt; they "
            "are left so"
        ]
    for row in texts:
        prompt = row["prompt"]
        for name in RESPONSES:
            if isinstance(value := row.get(name), str):
                row[name] = value.removeprefix(prompt)
            elif isinstance(value, list) and name == "responses":
                row[name] = [r.removeprefix(prompt) if isinstance(r, str) else r for r in value]
    return [f"all responses begin with the whole prompt, which was taken off them ({len(texts)} rows)"]


def _responses(row: Mapping[str, Any]) -> list[str]:
    found: list[Any] = []
    for name in RESPONSES:
        value = row.get(name)
        found += (
            value if isinstance(value, list) and name == "responses" else [] if value is None else [value]
        )
    return found if all(isinstance(value, str) for value in found) else []


def _repeats(prompt: str, response: str) -> bool:
    return bool(prompt.strip()) and response.startswith(prompt) and response != prompt


# --------------------------------------------------------------------------------------------------- grouping


def grouped(rows: Sequence[Row], layout: Layout) -> Derived:
    """Rows that rate single responses as one ranking for each prompt (of each split)."""
    groups: dict[str, list[Row]] = {}
    found = []
    for row in rows:
        if isinstance(row.value, RowError):
            found.append(row)
        else:
            key = key_of(
                [row.value.get("prompt"), row.value.get("system"), row.value.get("split"), row.split]
            )
            groups.setdefault(key, []).append(row)
    for members in groups.values():
        try:
            value: Any = ranking_of([m.value for m in members if isinstance(m.value, dict)], layout)
        except RowError as error:
            value = error
        found.append(Row(members[0].where, value, members[0].split, members[0].file))
    # In the order of the file, whatever went wrong
    order = {row.where: i for i, row in enumerate(rows)}
    found.sort(key=lambda row: order[row.where])
    note = (
        f"{len(rows)} rows with ratings make {len(groups)} prompts; the better rating ({layout.winner}) wins"
    )
    return Derived(found, "prompts", [note])


def ranking_of(members: Sequence[dict[str, Any]], layout: Layout) -> dict[str, Any]:
    """Rows of one prompt as a ranking by a weighted sum of their ratings."""
    assert layout.winner is not None
    weights = layout.winner.weights or ()
    responses, scores, last = [], [], members[0]
    for row in members:
        score = 0.0
        for weight, path in zip(weights, layout.winner.columns, strict=True):
            value = at(row, path)
            number = None if value is MISSING else rating_in(value)
            if number is None and (value is MISSING or is_missing(value)):
                raise RowError("unlabelled", f"{path} is missing for a response")
            if number is None:
                raise RowError("bad_ranking", f"{path} is {value!r:.40}; a rating is a number")
            score += weight * number
        if "completion" not in row or row["completion"] is None:
            raise RowError("missing_column", "has no response")
        responses.append(row["completion"])
        scores.append(score)
    if len(responses) < 2:
        raise RowError("single_response", "its prompt has one response, so there is nothing to compare")
    used = {"prompt", "completion", "responses", "ranks", "scores"}
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in members for name in row):
        values = [row.get(name) for row in members]
        if name not in used:
            columns[name] = values[0] if all(v == values[0] for v in values) else values
    return columns | {"prompt": last.get("prompt"), "responses": responses, "scores": scores}


# ------------------------------------------------------------------------------------------------------ trees


def of_trees(rows: Sequence[Row], layout: Layout) -> Derived:
    """Messages of trees as rankings of the answers to each prompt."""
    tree = layout.tree
    bad = [row for row in rows if isinstance(row.value, RowError)]
    good = [row for row in rows if isinstance(row.value, dict)]
    if "root" in tree:
        found = [out for row in good for out in _from_root(row, tree)]
        what = f"{len(good)} trees"
    else:
        found = _from_messages(good, tree)
        what = f"{len(good)} messages"
    return Derived([*bad, *found], "prompts", [f"{what} have {len(found)} prompts that are answered"])


def _from_root(row: Row, tree: Mapping[str, str]) -> Iterable[Row]:
    """The rankings in a row that holds a whole tree."""
    assert isinstance(row.value, dict)
    waiting: list[tuple[Any, list[dict[str, Any]]]] = [(row.value.get(tree["root"]), [])]
    while waiting:
        node, before = waiting.pop()
        if not isinstance(node, dict):
            yield Row(
                row.where,
                RowError("wrong_type", f"{tree['root']} is no tree of messages"),
                row.split,
                row.file,
            )
            continue
        path = [*before, _turn(node, tree)]
        replies = node.get(tree["replies"]) or []
        if isinstance(replies, list):
            answers = [r for r in replies if isinstance(r, dict)]
            if answers and path[-1]["role"] not in ("assistant", "gpt"):
                yield Row(row.where, _answers(path, answers, tree), row.split, row.file)
            waiting += [(reply, path) for reply in reversed(answers)]


def _from_messages(rows: Sequence[Row], tree: Mapping[str, str]) -> list[Row]:
    """The rankings in rows that are messages, each with its parent's name."""
    by_id: dict[Any, Row] = {}
    children: dict[Any, list[Row]] = {}
    for row in rows:
        assert isinstance(row.value, dict)
        by_id[str(row.value.get(tree["id"]))] = row
        parent = row.value.get(tree["parent"])
        if not is_missing(parent):
            children.setdefault(str(parent), []).append(row)
    found = []
    for name, answers in children.items():
        values = [a.value for a in answers if isinstance(a.value, dict)]
        where, split = answers[0].where, answers[0].split
        path: list[dict[str, Any]] = []
        at_id: str | None = name
        value: Any = None
        while at_id is not None:
            node = by_id.get(at_id)
            if node is None or len(path) > len(rows):
                value = RowError("broken_tree", f"the message before it, {at_id}, is not in the data set")
                break
            assert isinstance(node.value, dict)
            path.insert(0, _turn(node.value, tree))
            parent = node.value.get(tree["parent"])
            at_id = None if is_missing(parent) else str(parent)
        if value is None and path[-1]["role"] in ("assistant", "gpt"):
            continue  # what people say to an answer is no answer
        found.append(Row(where, value or _answers(path, values, tree), split, answers[0].file))
    return found


def is_missing(value: Any) -> bool:
    """Whether a column of a table says nothing in a row."""
    return value is None or value == "" or is_nan(value)


def _turn(node: Mapping[str, Any], tree: Mapping[str, str]) -> dict[str, Any]:
    return {"role": node.get(tree["role"]), "content": node.get(tree["text"])}


def _answers(
    path: list[dict[str, Any]], answers: Sequence[Mapping[str, Any]], tree: Mapping[str, str]
) -> Any:
    """The ranking of the answers to a prompt, of those that have a rank."""
    ranked = [(a.get(tree["text"]), a.get(tree["rank"])) for a in answers]
    ranked = [(text, rank) for text, rank in ranked if not is_missing(rank)]
    if not ranked:
        return RowError("unlabelled", "no answer has a rank")
    if len(ranked) < 2:
        return RowError("single_response", "one answer has a rank, so there is nothing to compare")
    return {"prompt": path, "responses": [text for text, _ in ranked], "ranks": [rank for _, rank in ranked]}


# --------------------------------------------------------------------------------------- text that is no text


def dialect_notes(rows: Sequence[Row]) -> list[str]:
    """What texts of rows were read as messages, and which hold special tokens that were left in them."""
    read: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    left = marked = 0
    for row in rows:
        if not isinstance(row.value, dict):
            continue
        values = [row.value.get(name) for name in ("prompt", "messages", "text", *RESPONSES)]
        texts = [text for value in values for text in _flat(value)]
        hows = {how for text in texts if (how := dialects.how_written(text))}
        for how in hows:
            read[how] += 1
        plain = [text for text in texts if not dialects.how_written(text)]
        if any(how.startswith("the template") for how in hows):  # its end of turn comes off the responses
            plain = [dialects.without_end(text) for text in plain]
        left += any(map(dialects.holds_special, plain))
        marked += any(dialects.LEFT_MARKS.search(text) for text in plain)
        for key in {key for value in values for key in dialects.keys_not_read(value)}:
            keys[key] += 1
    notes = [
        f"dialogues written as {how} were read as messages in {n} rows" for how, n in sorted(read.items())
    ]
    if marked:
        notes.append(
            f"texts of {marked} rows hold marks of turns (### Instruction:, ASSISTANT: and the like), "
            f"which stay as they are"
        )
    if keys:
        named = ", ".join(f"{key} ({count} rows)" for key, count in sorted(keys.items()))
        notes.append(f"keys of messages that are not used: {named}")
    if left:
        notes.append(
            f"texts of {left} rows hold special tokens of a chat template, spelt out; they stay as they are"
        )
    return notes


def _flat(value: Any) -> list[str]:
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str)]
    return [value] if isinstance(value, str) else []
