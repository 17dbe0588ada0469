"""Layouts of data sets as a table: which columns recognise one, and what they are in our own columns.

The table is ``layouts.yaml``; a person adds to it with ``--layout FILE``, and describes a file on the spot
with
``--columns`` and ``--winner``. A row of a layout becomes a row in our columns (`preferl.data.rows` reads
them): its other columns travel along.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from preferl.data import dialects, winners
from preferl.data.files import RowError
from preferl.data.records import DataError
from preferl.data.splits import MEANING
from preferl.data.winners import Winner

MISSING: Any = object()
KINDS = ("preference", "ranking", "rated", "demonstration", "text", "prompt")
# What a column can be: the names that --columns and the table use. `response_a` and `response_b` are two
# `responses`; `response` is a `completion`.
ROLES = (
    "prompt", "system", "chosen", "rejected", "responses", "response_a", "response_b", "completion",
    "response",
    "label", "ratings", "messages", "text", "split", "margin", "tools", "history", "unused",
)  # fmt: skip
LISTS = ("responses", "ratings", "unused")
KEYS = (
    "of",
    "kind",
    "columns",
    "winner",
    "also",
    "when",
    "unless",
    "needs",
    "either",
    "known",
    "tree",
    "dialogue",
    "turns",
    "note",
)
# Columns beside those of a layout that a row is read by: left aside, they are left out.
READ_BY_NAME = ("margin", "strength", "split", "ratings", "label", "system", "tools")
# Good and bad in the words of labels; true and false may come as text or numbers (tables of text have no
# other).
GOOD = (
    *("true", "1", "1.0", "good", "desirable", "thumbs_up", "thumbs up", "up", "like", "liked", "positive"),
    *(
        "yes",
        "👍",
        "chosen",
        "accepted",
        "accept",
        "preferred",
        "correct",
        "right",
        "upvote",
        "pass",
        "passed",
    ),
)
BAD = (
    *(
        "false",
        "0",
        "0.0",
        "-1",
        "bad",
        "undesirable",
        "thumbs_down",
        "thumbs down",
        "down",
        "dislike",
        "disliked",
    ),
    *("negative", "no", "👎", "rejected", "reject", "dispreferred", "incorrect", "wrong", "downvote", "fail"),
    "failed",
)


@dataclass(frozen=True)
class Layout:
    """How the rows of a data set are written.

    Args:
        name: of the layout.
        kind: what its rows are, one of ``KINDS``.
        columns: role -> where it stands, a path or several.
        winner: what says which response won.
        also: other columns that say so too, which a person may name instead.
        when, unless: column -> what its values must (not) be, one of ``SHAPES``.
        needs: columns that must be there besides.
        either: columns of which one must be there.
        known: columns that are known and not used.
        of: whose layout it is.
        tree: the columns of a tree of messages, where the rows are one.
        dialogue: ``turns`` where prompt and responses are lists of one side's turns, ``alternating`` where
            messages are a list of texts of both in turn, ``answered`` where the prompt's last turn is the
            better response.
        turns: the column that says after how many of the user's turns dialogues were compared.
        note: what is to be said of such data.
    """

    name: str
    kind: str
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    winner: Winner | None = None
    also: tuple[Winner, ...] = ()
    when: Mapping[str, str] = field(default_factory=dict)
    unless: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    of: str = ""
    tree: Mapping[str, str] = field(default_factory=dict)
    dialogue: str = ""
    turns: str = ""
    note: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """The paths of the responses of a comparison."""
        several = self.columns.get("responses", ())
        several = (several,) if isinstance(several, str) else several
        return (
            *several,
            *(p for r in ("response_a", "response_b") if isinstance(p := self.columns.get(r), str)),
        )

    @property
    def answer(self) -> str | None:
        """The file's own name for the column of completions, where that is one column of another name."""
        path = self.columns.get("completion")
        if not isinstance(path, str) or path == "completion":
            return None
        return path if re.fullmatch(r"[^.|+\[\]?]+", path) else None

    @property
    def is_own(self) -> bool:
        """Whether its rows are in our columns already, and are read as they are."""
        named = all(role == path for role, path in self.plain_columns().items())
        return named and self.winner is None and not self.tree and "ratings" not in self.columns

    def plain_columns(self) -> dict[str, Any]:
        """The columns without the marks of what may be missing."""
        plain = {}
        for role, path in self.columns.items():
            if role == "unused":
                continue
            text = "+".join(path) if isinstance(path, tuple) else path
            names = alternatives(text)
            plain[role] = role if role == "system" or names == [[role]] else text
        return plain

    def read(self) -> set[str]:
        """The top-level columns that make its rows."""
        winner = self.winner.columns if self.winner else ()
        return self.used() | {top(name) for name in winner}

    def used(self) -> set[str]:
        """Those of them that do not travel along: a strength and its like are kept beside the ranks."""
        found = set()
        for path in self.paths():
            found |= {top(name) for part in alternatives(path) for name in part}
        kept = "completion" in self.columns  # ratings, which are read again when their rows come together
        if (
            self.winner is not None
            and not kept
            and self.winner.coding not in ("strength", "probability", "scale")
        ):
            found |= {top(name) for name in self.winner.columns}
        if self.tree:
            found |= {
                self.tree[key] for key in ("id", "parent", "text", "role", "rank", "root") if key in self.tree
            }
        return found

    def paths(self) -> list[str]:
        """Every path of its columns."""
        found: list[str] = []
        for role, path in self.columns.items():
            if role != "unused":
                found += [path] if isinstance(path, str) else path
        return found

    def what_it_says(self) -> str:
        """What its columns are, in words: ``prompt, chosen, rejected`` or ``prompt = question, …``."""
        parts = []
        for role, path in self.columns.items():
            if role == "unused":
                continue
            text = " and ".join(path) if isinstance(path, tuple) else path
            text = text.replace("?", "")
            parts.append(text if text == role else f"{role} = {text}")
        if self.tree:
            parts = [f"a tree of messages ({', '.join(self.tree.values())})"]
        parts += [f"{' or '.join(self.either)}"] if self.either else []
        parts += [f"winner = {self.winner}"] if self.winner else []
        return ", ".join(parts)


# --------------------------------------------------------------------------------------------------- paths


def alternatives(path: str) -> list[list[str]]:
    """The parts of a path that are joined, and of each the columns of which the first that is filled counts.

    Example:
        >>> alternatives("instruction | question + input?")
        [['instruction', 'question'], ['input']]
    """
    return [[name.strip().rstrip("?") for name in part.split("|")] for part in path.split(" + ")]


def may_miss(path: str) -> list[bool]:
    """Of each part whether it may be missing."""
    return [all(name.strip().endswith("?") for name in part.split("|")) for part in path.split(" + ")]


def top(path: str) -> str:
    """The column of the row in which a path begins."""
    return re.split(r"\.|\[", path, maxsplit=1)[0]


def at(row: Mapping[str, Any], path: str) -> Any:
    """What stands at one path of a row: ``a.b``, ``a[].b`` (a list), ``a[0]``; MISSING where nothing does."""
    if path in row:  # a column may have a full stop in its name
        return row[path]
    value: Any = row
    steps = re.findall(r"[^.\[\]]+|\[\d*\]", path)
    for i, step in enumerate(steps):
        if step == "[]":
            if not isinstance(value, list):
                return MISSING if value is None or value is MISSING else value
            rest = "".join(
                s if s.startswith("[") or k == 0 else f".{s}" for k, s in enumerate(steps[i + 1 :])
            )
            each = [_inside(item, rest) for item in value]
            return MISSING if value and all(item is MISSING for item in each) else each
        if step.startswith("["):
            place = int(step[1:-1])
            value = value[place] if isinstance(value, list) and place < len(value) else MISSING
        else:
            value = value.get(step, MISSING) if isinstance(value, Mapping) else MISSING
        if value is MISSING:
            return MISSING
    return value


def _inside(item: Any, rest: str) -> Any:
    if not rest:
        return item
    return at(item, rest) if isinstance(item, Mapping) else MISSING


def filled(row: Mapping[str, Any], path: str) -> Any:
    """What a whole path gives: the first alternative that is filled; texts of several parts are joined by an
    empty line. None where a column is null, MISSING where there is none."""
    parts = alternatives(path)
    found = []
    for names in parts:
        values = [at(row, name) for name in names]
        there = [v for v in values if v is not MISSING]
        full = [v for v in there if v is not None and v != ""]
        found.append(full[0] if full else there[0] if there else MISSING)
    if len(found) == 1:
        return found[0]
    texts = [v for v in found if isinstance(v, str) and v.strip()]
    others = [v for v in found if v is not MISSING and v is not None and not isinstance(v, str)]
    if others and not texts:
        return others[0]
    if others:
        raise RowError("wrong_type", f"{path} joins a text and a {type(others[0]).__name__}")
    if not texts:
        return next((v for v in found if v is not MISSING), MISSING)
    return "\n\n".join(texts)


def each_response(row: Mapping[str, Any], paths: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The responses of a row, and what each is called in the file.

    Raises:
        RowError: a list of responses is none.
    """
    if len(paths) > 1:
        return [at(row, path) for path in paths], list(paths)
    value = at(row, paths[0])
    if value is MISSING or value is None:
        return [MISSING], [paths[0]]
    if not isinstance(value, list):
        value = dialects.literal(value) if isinstance(value, str) else None
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{paths[0]} is no list of responses")
    return value, [f"{paths[0]} {i}" for i in range(len(value))]


# ------------------------------------------------------------------------------------------- rows in our
# columns


def in_our_columns(layout: Layout, row: dict[str, Any], with_system: bool) -> dict[str, Any]:
    """A row of a layout as a row in our columns.

    Args:
        layout: how it is written.
        row: its columns.
        with_system: whether some row has a text in its column of system messages: then all are dialogues.

    Raises:
        RowError: something is missing, or a value is not what the layout says.
    """
    if layout.is_own:
        out = dict(row)
    else:
        used = layout.used() | {"system"} if "system" in layout.columns else layout.used()
        out = {name: value for name, value in row.items() if name not in used}
        for role in (
            *("prompt", "chosen", "rejected", "completion", "messages", "text", "split", "margin", "tools"),
        ):
            if role in layout.columns:
                value = filled(row, layout.columns[role])  # type: ignore[arg-type]
                if value is not MISSING:
                    out[role] = split_of(layout.columns["split"], value) if role == "split" else value
    if "system" in layout.columns:
        system = filled(row, layout.columns["system"])  # type: ignore[arg-type]
        out.pop("system", None)
        if with_system:
            out["system"] = "" if system is MISSING or system is None else system
    if layout.dialogue == "alternating" and out.get("messages") is not None:
        out["messages"] = dialects.alternating(out["messages"], str(layout.columns["messages"]))
    if layout.dialogue == "answered":
        dialogue = dialects.turns_of(out.get("prompt"), str(layout.columns["prompt"]))
        out["prompt"], out["chosen"] = dialogue[:-1], [dialogue[-1]]
    if "history" in layout.columns:
        _put_history_before(layout, row, out)
    if layout.responses and not layout.is_own:
        _compare(layout, row, out)
    aside = layout.columns.get("unused", ())
    for name in (aside,) if isinstance(aside, str) else aside:
        if name in READ_BY_NAME:
            out.pop(name, None)
    if "label" in layout.columns:
        out["label"] = good_or_bad(filled(row, layout.columns["label"]))  # type: ignore[arg-type]
    if "ratings" in layout.columns:
        out["ratings"] = ratings_of(row, layout.columns["ratings"])
    return out


def split_of(column: str | tuple[str, ...], value: Any) -> Any:
    """The split that a value names; true and false in a column as ``is_test`` say whether it is the named
    one."""
    if not isinstance(value, bool):
        return value if isinstance(value, str) or value is None else str(value)
    named = next((word for word in re.findall(r"[a-z]+", str(column).lower()) if word in MEANING), "test")
    if value:
        return named
    return "test" if MEANING[named] == "train" else "train"


def _put_history_before(layout: Layout, row: dict[str, Any], out: dict[str, Any]) -> None:
    """Puts the turns before a prompt in front of it: pairs of what was asked and answered, or messages."""
    history = filled(row, str(layout.columns["history"]))
    if history is MISSING or history is None or history in ([], ""):
        return
    listed = dialects.literal(history) if isinstance(history, str) else history
    turns: list[Any] = []
    if isinstance(listed, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in listed):
        for pair in listed:
            turns += dialects.alternating(pair, "history")
    elif isinstance(listed, list) and all(isinstance(text, str) for text in listed):
        turns = dialects.alternating(listed, "history")
    else:
        turns = dialects.turns_of(listed, "history")
    asked = out.get("prompt")
    out["prompt"] = [
        *turns,
        *([{"role": "user", "content": asked}] if isinstance(asked, str) else asked or []),
    ]


def _compare(layout: Layout, row: dict[str, Any], out: dict[str, Any]) -> None:
    """Puts the responses of a comparison and their places into ``out``."""
    responses, names = each_response(row, layout.responses)
    if all(value is MISSING or value is None for value in responses):
        raise RowError("unlabelled", f"has no responses ({', '.join(layout.responses)})")
    for value, name in zip(responses, names, strict=True):
        if value is MISSING:
            raise RowError("missing_column", f"has no column '{name}'")
        if value is None:
            raise RowError("null_value", f"{name} is null")
    if layout.winner is None:
        raise RowError("unlabelled", "nothing says who won")
    values = [None if (v := at(row, path)) is MISSING or v != v else v for path in layout.winner.columns]
    found = winners.places(layout.winner, values, names)
    if layout.dialogue == "turns":
        out["prompt"], responses = _one_sided(out.get("prompt"), responses, names)
    elif "prompt" not in layout.columns:
        dialogues = [dialects.turns_of(v, name) for v, name in zip(responses, names, strict=True)]
        if layout.turns and isinstance(count := row.get(layout.turns), int) and count > 0:
            dialogues = [_up_to(turns, count) for turns in dialogues]
        out["prompt"] = dialects.before_last(dialogues, " and ".join(layout.responses))
        responses = [[turns[-1]] for turns in dialogues]
    out["responses"], out["ranks"] = responses, found.ranks
    out.pop("scores", None)
    if found.scores is not None:
        out["scores"] = found.scores


def _up_to(dialogue: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The dialogue up to the answer to the user's turn of a number."""
    asked = 0
    for place, turn in enumerate(dialogue):
        asked += turn["role"] == "user"
        if asked == count + 1:
            return dialogue[:place]
    return dialogue


def _one_sided(prompt: Any, responses: list[Any], names: list[str]) -> tuple[Any, list[Any]]:
    """Prompt and responses of dialogues of which each side's turns are a list (Chatbot Arena)."""
    asked = _texts(prompt, "prompt")
    dialogues = []
    for value, name in zip(responses, names, strict=True):
        said = _texts(value, name)
        if len(said) != len(asked):
            raise RowError("bad_role_order", f"{name} has {len(said)} turns, prompt {len(asked)}")
        turns = []
        for question, answer in zip(asked, said, strict=True):
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        dialogues.append(turns)
    before = dialects.before_last(dialogues, " and ".join(names))
    return before, [[turns[-1]] for turns in dialogues]


def _texts(value: Any, column: str) -> list[str]:
    found = value if isinstance(value, list) else dialects.literal(value) if isinstance(value, str) else None
    if found is None and isinstance(value, str):
        found = [value]
    if not isinstance(found, list) or not found:
        raise RowError("wrong_type", f"{column} is a {type(value).__name__}, not a list of turns")
    if any(text is None for text in found):
        raise RowError("empty_response", f"{column} has a turn that is null")
    if not all(isinstance(text, str) for text in found):
        raise RowError("wrong_type", f"{column} holds a turn that is no text")
    return found


def good_or_bad(value: Any) -> Any:
    """A label as true or false, where it is one of the words for it."""
    word = str(value).strip().lower()
    if word in GOOD:
        return True
    return False if word in BAD else None if value is MISSING else value


def ratings_of(row: Mapping[str, Any], paths: str | tuple[str, ...]) -> dict[str, Any]:
    """Attribute -> number; what a row does not have is left out."""
    found = {}
    for path in (paths,) if isinstance(paths, str) else paths:
        value = at(row, path.rstrip("?"))
        if value is MISSING or value is None or value == "":
            continue
        number = rating_in(value)
        if number is None:
            raise RowError("bad_ranking", f"{path} is {value!r:.40}; a rating is a number")
        found[path.rstrip("?").rsplit(".", 1)[-1]] = number
    return found


def rating_in(value: Any) -> float | None:
    """The number of a rating, of several annotators' their mean; None where it is none."""
    each = value if isinstance(value, list) and value else [value]
    numbers = [None if isinstance(one, bool) else winners.number_in(one) for one in each]
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if len(known) == len(numbers) else None


# ----------------------------------------------------------------------------------------------------- the
# table


@functools.cache
def table() -> tuple[Layout, ...]:
    """The layouts that are known, in the order in which they are tried."""
    text = resources.files("preferl.data").joinpath("layouts.yaml").read_text(encoding="utf-8")
    return tuple(layouts_in(text, "layouts.yaml"))


def chosen_layouts(named: str | None) -> tuple[Layout, ...]:
    """The layouts to try: the table's, before them those of a person's file, or the one of a name.

    Raises:
        DataError: there is no such file and no such layout, or the file holds none.
    """
    if named is None:
        return table()
    by_name = {layout.name: layout for layout in table()}
    if named in by_name:
        return (by_name[named],)
    path = Path(named).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--layout {named} is neither a YAML file that can be read ({error}) nor a layout that is known; "
            f"`preferl data layouts` lists them"
        ) from error
    return (*layouts_in(text, named), *table())


def layouts_in(text: str, name: str) -> list[Layout]:
    """The layouts of a YAML file.

    Raises:
        DataError: it is no YAML, or an entry is none.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f"{name} holds no layouts: write name: {{kind: …, columns: {{prompt: …}}}}")
    return [_layout(str(key), entry, name) for key, entry in found.items()]


def _layout(name: str, entry: Any, file: str) -> Layout:
    if not isinstance(entry, dict):
        raise DataError(f"{file}: {name} is no mapping with kind and columns")
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise DataError(f"{file}: {name} has the key '{unknown[0]}', which is unknown; use {', '.join(KEYS)}")
    if entry.get("kind") not in KINDS:
        raise DataError(f"{file}: {name} has the kind {entry.get('kind')!r}; use {', '.join(KINDS)}")
    columns = entry.get("columns") or {}
    if not isinstance(columns, dict) or not (columns or entry.get("tree")):
        raise DataError(f"{file}: {name} has no columns")
    winner = entry.get("winner")
    try:
        return Layout(
            name=name,
            kind=entry["kind"],
            columns=checked_columns(columns, f"{file}: {name}"),
            winner=None if winner is None else winners.parsed(str(winner)),
            also=tuple(winners.parsed(str(text)) for text in entry.get("also") or ()),
            when=dict(entry.get("when") or {}),
            unless=dict(entry.get("unless") or {}),
            needs=tuple(map(str, entry.get("needs") or ())),
            either=tuple(map(str, entry.get("either") or ())),
            known=tuple(map(str, entry.get("known") or ())),
            of=str(entry.get("of") or ""),
            tree=dict(entry.get("tree") or {}),
            dialogue=str(entry.get("dialogue") or ""),
            turns=str(entry.get("turns") or ""),
            note=str(entry.get("note") or ""),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: {name} cannot be read as a layout: {error}") from error


def checked_columns(columns: Mapping[Any, Any], where: str) -> dict[str, str | tuple[str, ...]]:
    """Role -> path, checked.

    Raises:
        DataError: a role is unknown, or a path is none.
    """
    found: dict[str, str | tuple[str, ...]] = {}
    for role, path in columns.items():
        if role not in ROLES:
            raise DataError(f"{where}: a column cannot be '{role}'; use {', '.join(ROLES)}")
        several = isinstance(path, list | tuple) and all(isinstance(p, str) and p for p in path)
        if not (several and role in LISTS) and not (isinstance(path, str) and path):
            raise DataError(f"{where}: {role} is {path!r:.60}; name a column")
        role = "completion" if role == "response" else role
        found[role] = path if isinstance(path, str) else tuple(path)
    return found


def parsed_columns(text: str | Mapping[str, Any] | None) -> dict[str, str | tuple[str, ...]]:
    """What ``--columns`` says: ``prompt=question,chosen=good,rejected=bad``; several columns of a role are
    joined by ``+``. In YAML it is a mapping.

    Raises:
        DataError: it is not of this form.
    """
    if not text:
        return {}
    if isinstance(text, str):
        if text.lstrip().startswith("{"):
            try:
                text = yaml.safe_load(text)
            except yaml.YAMLError:
                text = {}
        else:
            pairs = [entry.partition("=") for entry in text.split(",") if entry.strip()]
            if not all(equals and path.strip() for _, equals, path in pairs):
                raise DataError(
                    f"--columns {text} is not understood; write --columns "
                    "prompt=question,chosen=good,rejected=bad"
                )
            text = {role.strip(): path.strip() for role, _, path in pairs}
    if not isinstance(text, Mapping):
        raise DataError(
            "--columns is not understood; write --columns prompt=question,chosen=good,rejected=bad"
        )
    found: dict[str, Any] = {}
    for role, path in text.items():
        if isinstance(path, str) and role in LISTS:
            found[role] = [name.strip() for name in path.split("+")]
        elif isinstance(path, str):
            found[role] = " + ".join(name.strip() for name in path.split("+"))
        else:
            found[role] = path
    columns = checked_columns(found, "--columns")
    if isinstance(columns.get("responses"), tuple) and len(columns["responses"]) == 1:
        columns["responses"] = columns["responses"][0]
    return columns


def key_of(value: Any) -> str:
    """A text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
