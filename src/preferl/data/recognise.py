"""What a data set is: its layout, found from all of its rows, and what of it is not used.

A layout of the table comes first; else columns are known by their names (``response_a`` and ``response_b`` are
two responses, ``winner`` says who won) and codings by all their values. What is found is said, and a column
that is not used although it looks like a comparison, a rating, a label, another speaker or a split is an error
that names the option which settles it.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preferl.data import dialects, winners
from preferl.data.layouts import (
    BAD,
    GOOD,
    MISSING,
    Layout,
    alternatives,
    at,
    chosen_layouts,
    filled,
    key_of,
    may_miss,
    parsed_columns,
    top,
)
from preferl.data.records import DataError
from preferl.data.splits import meaning
from preferl.data.winners import Winner

PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "context",
    "history",
    "post",
    "conversation",
    "problem",
)
SIDES = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
WORDS_FOR_SIDES = {"first": 0, "second": 1, "left": 0, "right": 1}
RESPONSE = frozenset(
    [
        "response",
        "responses",
        "answer",
        "answers",
        "completion",
        "completions",
        "output",
        "outputs",
        "reply",
        "replies",
        "generation",
        "generations",
        "candidate",
        "candidates",
        "summary",
        "summaries",
        "chosen",
        "rejected",
        "conversation",
        "conversations",
        "messages",
        "continuation",
        "assistant",
        "ref",
        "option",
        "hypothesis",
        "story",
    ]
)
LABEL = frozenset(
    [
        "winner",
        "win",
        "wins",
        "won",
        "preferred",
        "preference",
        "preferences",
        "better",
        "safer",
        "best",
        "choice",
        "vote",
        "votes",
        "label",
        "labels",
        "verdict",
        "judgement",
        "judgment",
        "rank",
        "ranks",
        "ranking",
        "score",
        "scores",
        "rating",
        "ratings",
        "thumb",
        "thumbs",
        "feedback",
        "upvotes",
        "likes",
        "grade",
        "overall",
        "helpfulness",
        "helpful",
        "harmlessness",
        "harmless",
        "correctness",
        "coherence",
        "quality",
        "honesty",
        "truthfulness",
        "reward",
        "desirable",
        "annotation",
        "strength",
        "z",
    ]
)
SPEAKERS = frozenset(["system", "history", "context", "instruction", "input", "persona"])
# Words that make a column a remark about another one: response_model, score_reason, label_mode.
ABOUT = frozenset(
    [
        "model",
        "models",
        "id",
        "ids",
        "idx",
        "uuid",
        "hash",
        "source",
        "sources",
        "name",
        "names",
        "type",
        "length",
        "len",
        "tokens",
        "token",
        "lang",
        "language",
        "reason",
        "reasons",
        "explanation",
        "rationale",
        "rationales",
        "critique",
        "comment",
        "time",
        "timestamp",
        "date",
        "url",
        "seed",
        "mode",
        "scale",
        "rate",
        "error",
        "prompt",
        "version",
        "format",
        "position",
        "shown",
        "coin",
        "width",
        "bias",
        "statement",
        "elaboration",
        "severity",
        "category",
    ]
)
# Columns that preferl's own commands write beside pairs and rankings.
OURS = frozenset(
    [
        "annotator",
        "annotator_kind",
        "annotators",
        "source",
        "split",
        "prompt_split",
        "selection",
        "p_chosen",
        "finished",
        "gold",
        "gold_chosen",
        "gold_rejected",
        "strength",
        "margin",
        "tied",
        "judgements",
        "item",
        "judgement",
        "both_bad",
        "flagged",
        "reason",
        "probability",
        "place",
        "reward_model",
        "num_generations",
        "style",
        "seen",
        "category",
        "family",
    ]
)
# What of our own layouts says who won, and by how much.
OWN_PLACES = {
    "comparison": ("z", "margin", "strength"),
    "ranking": ("ranks", "scores"),
    "rated": ("ratings", "label"),
}
MOST_VALUES = 300


@dataclass(frozen=True)
class Options:
    """How a person says that a data set is to be read; see ``runs.config.ReadOptions``."""

    dataset_format: str = "auto"
    columns: str | Mapping[str, Any] | None = None
    winner: str | None = None
    layout: str | None = None


@dataclass
class Column:
    """What a column holds in all rows: how often it is filled, with what types, and its scalars."""

    filled: int = 0
    types: Counter[str] = field(default_factory=Counter)
    values: Counter[Any] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        if value is None or value == "" or value == [] or value == {}:
            return
        self.filled += 1
        self.types[type_of(value)] += 1
        if isinstance(value, bool | int | float | str) and (
            len(self.values) < MOST_VALUES or value in self.values
        ):
            # 1 and True are equal as keys, and must not be here
            self.values[value if not isinstance(value, bool) else str(value)] += 1

    def holds(self, *types: str) -> bool:
        return self.filled > 0 and all(kind in types for kind in self.types)


@dataclass(frozen=True)
class Recognised:
    """A layout with what was found in the rows.

    Args:
        layout: how they are written, with the coding of its winner.
        unused: the columns that travel along.
        with_system: whether a column of system messages has a text.
        notes: what else is to be said.
        held: what the winner's columns hold, in words.
    """

    layout: Layout
    unused: tuple[str, ...] = ()
    with_system: bool = False
    notes: tuple[str, ...] = ()
    held: str = ""

    def sentence(self) -> str:
        """What the rows were read as."""
        layout = self.layout
        named = f" ({layout.name}{f', as {layout.of}' if layout.of else ''})" if layout.name else ""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        what = "ratings, grouped by prompt," if is_grouped(layout) else ""
        return f"read as {layout.kind} by {what + ' ' if what else ''}{layout.what_it_says()}{named}{unused}"


def is_grouped(layout: Layout) -> bool:
    """Whether ratings of single responses become rankings of their prompts."""
    return layout.kind == "ranking" and "completion" in layout.columns


def type_of(value: Any) -> str:
    """What a value is, in the words of ``when``."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "messages" if dialects.is_message(value) else "mapping"
    if not isinstance(value, list):
        return type(value).__name__
    for name, fits in (
        ("texts", lambda v: isinstance(v, str)),
        ("numbers", lambda v: winners.number_in(v) is not None and not isinstance(v, str)),
        ("messages", dialects.is_message),
        ("mappings", lambda v: isinstance(v, Mapping)),
    ):
        if all(fits(item) for item in value):
            return name
    return "list"


# ------------------------------------------------------------------------------------------------- recognising


def recognised(
    name: str, rows: Sequence[Mapping[str, Any]], options: Options, kinds: Collection[str]
) -> Recognised:
    """The layout of rows.

    Args:
        name: of the data set, for messages.
        rows: all that could be read.
        options: what a person said.
        kinds: of the layouts that may be found.

    Raises:
        DataError: none fits, several do, a column that is named is not there, or one is not used that looks as
            if it should be.
    """
    return _Reader(name, rows, options, kinds).result()


class _Reader:
    def __init__(
        self, name: str, rows: Sequence[Mapping[str, Any]], options: Options, kinds: Collection[str]
    ):
        self.name, self.rows, self.options, self.kinds = name, rows, options, kinds
        self.given = parsed_columns(options.columns)
        self.winner = winners.parsed(options.winner) if options.winner else None
        self.columns: dict[str, Column] = {}
        for row in rows:
            for column, value in row.items():
                self.columns.setdefault(column, Column()).add(value)
        self._check_given()

    def result(self) -> Recognised:
        layout = self._layout()
        notes, held = [layout.note] if layout.note else [], ""
        if layout.winner is not None:
            held = "; ".join(
                f"{path} holds {winners.show(values)}"
                for path, values in zip(layout.winner.columns, self._seen(layout.winner), strict=True)
            )
        if layout.winner is not None and not is_grouped(layout):
            layout = self._with_coding(layout)
            notes += self._disagreements(layout)
        if layout.kind == "rated":
            notes += self._rating_notes(layout)
        if layout.kind == "ranking" and "completion" not in layout.columns and layout.winner is not None:
            self._check_values(layout)
        used = layout.read() | {top(p) for p in self._listed("unused")} | {"split"}
        used |= set(
            OWN_PLACES.get(layout.name, ("margin", "strength") if layout.kind == "preference" else ())
        )
        # What is not filled in any row says nothing.
        unused = [c for c, column in self.columns.items() if c not in used and column.filled]
        if self.options.dataset_format == "auto":
            self._refuse_suspicious(layout, [c for c in unused if c not in layout.known])
        system = layout.columns.get("system")
        with_system = isinstance(system, str) and any(
            isinstance(text := filled(row, system), str) and bool(text.strip()) for row in self.rows
        )
        return Recognised(layout, tuple(unused), with_system, tuple(notes), held)

    # ------------------------------------------------------------------------------------- what was asked for

    def _listed(self, role: str) -> tuple[str, ...]:
        value = self.given.get(role, ())
        return (value,) if isinstance(value, str) else value

    def _check_given(self) -> None:
        paths = [
            p
            for role in self.given
            for text in self._listed(role)
            for part in alternatives(text)
            for p in part
        ]
        for path in paths:
            self._need(path, "--columns")
        for path in self.winner.columns if self.winner else ():
            if not self.exists(path) and not self.exists(f"ratings.{path}"):
                self._need(path, "--winner")

    def _need(self, path: str, option: str) -> None:
        if not self.exists(path):
            raise DataError(
                f"{option}: data set '{self.name}' has no column '{path}'; it has {self.all_columns()}"
            )

    def all_columns(self) -> str:
        return ", ".join(sorted(self.columns)) or "none"

    def exists(self, path: str) -> bool:
        if path in self.columns:
            return True
        if top(path) not in self.columns or top(path) == path:
            return False
        return any(at(row, path) is not MISSING for row in self.rows)

    # ----------------------------------------------------------------------------------------- finding a layout

    def _layout(self) -> Layout:
        layouts = chosen_layouts(self.options.layout)
        early = [x for x in layouts if x.kind in ("preference", "ranking", "rated")]
        for layout in (*early, None, *(x for x in layouts if x not in early)):
            found = self._by_names() if layout is None else self._fitted(layout)
            if found is not None and found.kind in self.kinds:
                return found
        raise DataError(self._nothing_fits())

    def _fitted(self, layout: Layout) -> Layout | None:
        """A layout of the table with what a person said, where the rows are written so; else None."""
        extra = ("system", "split", "margin", "unused")
        if any(role not in layout.columns and role not in extra for role in self.given):
            return None
        system = {} if "system" in layout.columns or layout.tree else self._system()
        layout = replace(layout, columns={**system, **layout.columns, **self.given})
        if self.winner is not None:
            if (overridden := self._overridden(layout, self.winner)) is None:
                return None
            layout = overridden
        for path in layout.paths():
            for names, optional in zip(alternatives(path), may_miss(path), strict=True):
                if not optional and not any(self.exists(name) for name in names):
                    return None
            if not any(self.exists(name) for names in alternatives(path) for name in names):
                if not all(may_miss(path)) or path == layout.columns.get("prompt"):
                    return None
        needed = [*layout.needs, *(layout.winner.columns if layout.winner else ())]
        needed += [layout.tree[key] for key in ("id", "parent", "root") if key in layout.tree]
        needed += [layout.tree["rank"]] if "id" in layout.tree else []
        if not all(self.exists(path) for path in needed):
            return None
        if (
            layout.tree
            and "root" in layout.tree
            and not self.exists(f"{layout.tree['root']}.{layout.tree['replies']}")
        ):
            return None
        if layout.either and not any(self.exists(path) for path in layout.either):
            return None
        if not all(self.has_shape(path, shape) for path, shape in layout.when.items()):
            return None
        if any(self.has_shape(path, shape) for path, shape in layout.unless.items()):
            return None
        return replace(layout, columns=self._there(layout.columns))

    def _there(self, columns: Mapping[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        """The paths without the columns that are not there."""
        found: dict[str, str | tuple[str, ...]] = {}
        for role, path in columns.items():
            if isinstance(path, tuple):
                found[role] = tuple(p.rstrip("?") for p in path if self.exists(p.rstrip("?")))
                continue
            parts = [[name for name in names if self.exists(name)] for names in alternatives(path)]
            if any(parts):
                found[role] = " + ".join(" | ".join(names) for names in parts if names)
        return found

    def _overridden(self, layout: Layout, winner: Winner) -> Layout | None:
        """A layout with the winner that a person named, or None where it can have none."""
        known = [w for w in (layout.winner, *layout.also) if w is not None]
        if layout.responses:
            # Without its own label a file is no data set of this layout, whatever its other columns are called.
            if layout.winner is not None and not all(map(self.exists, layout.winner.columns)):
                return None
            same = [w for w in known if w.columns == winner.columns and winner.coding is None]
            return replace(layout, winner=same[0] if same else winner)
        if layout.kind == "rated":
            return self._grouped(layout, winner)
        return None

    def _grouped(self, layout: Layout, winner: Winner) -> Layout:
        """Ratings of single responses as rankings by one of them, or by a weighted sum."""
        nested = tuple(c if self.exists(c) else f"ratings.{c}" for c in winner.columns)
        weights = winner.weights or (1.0,) * len(nested)
        columns = {role: path for role, path in layout.columns.items() if role not in ("ratings", "label")}
        kept = replace(winner, columns=nested, coding="scores", weights=weights)
        return replace(layout, kind="ranking", columns=columns, winner=kept, either=(), when={})

    def has_shape(self, path: str, shape: str) -> bool:
        """Whether every value that is filled has a shape, and there is one."""
        values = [v for row in self.rows if (v := filled(row, path)) is not MISSING and v is not None]
        if shape == "bool":
            return bool(values) and all(
                isinstance(v, bool) or str(v).strip().lower() in (*GOOD, *BAD) for v in values
            )
        if shape == "messages":
            return bool(values) and all(dialects.messages_in(v) is not None for v in values)
        return bool(values) and all(type_of(v) == shape for v in values)

    # --------------------------------------------------------------------------------------- columns by their names

    def _by_names(self) -> Layout | None:
        """A layout out of the names of columns, and of what a person said; None where nothing is compared."""
        responses = self._responses()
        prompt = self.given.get("prompt") or next((c for c in PROMPTS if self._filled(c)), None)
        extra = {
            role: path for role, path in self.given.items() if role in ("system", "split", "margin", "unused")
        }
        extra = {**self._system(), **extra}
        if responses is None:
            return self._rated_by_names(prompt, extra)
        dialogues = all(self._holds(path, "messages") for path in responses) and len(responses) > 1
        if prompt is None and not dialogues:
            raise DataError(
                f"data set '{self.name}' has the responses {' and '.join(responses)}, and no column is known as "
                f"their prompt; name it with --columns prompt=COLUMN (columns: {self.all_columns()})"
            )
        columns = {"prompt": prompt} if prompt is not None and prompt not in responses else {}
        columns |= {"responses": responses if len(responses) > 1 else responses[0], **extra}
        winner = self.winner or self._winner_by_name(responses)
        return Layout("", "ranking", columns, winner)

    def _system(self) -> dict[str, str | tuple[str, ...]]:
        """The column of system messages beside a prompt, where there is one of texts."""
        aside = self._listed("unused")
        names = [c for c in ("system", "system_prompt") if c not in aside and c in self.columns]
        return {"system": name for name in names[:1] if not self.columns[name].types.keys() - {"text"}}

    def _filled(self, column: str) -> bool:
        return column in self.columns and self.columns[column].filled > 0

    def _holds(self, path: str, shape: str) -> bool:
        return self.has_shape(path, shape)

    def _responses(self) -> tuple[str, ...] | None:
        """The paths of responses to one prompt: what was named, else columns that count them, else a list."""
        if "responses" in self.given:
            return self._listed("responses")
        if "response_a" in self.given or "response_b" in self.given:
            sides = tuple(str(self.given[r]) for r in ("response_a", "response_b") if r in self.given)
            if len(sides) < 2:
                raise DataError("--columns names one of response_a and response_b; name both")
            return sides
        if {"chosen", "rejected", "completion", "messages", "text"} & self.given.keys():
            return None
        families = [f for f in self._families() if f[0] not in self._listed("unused")]
        lists = [] if families else [p for p in self._lists() if top(p) not in self._listed("unused")]
        found = [*families, *((path,) for path in lists)]
        if len(found) > 1:
            raise DataError(
                f"data set '{self.name}' has several sets of responses: {'; '.join(' and '.join(f) for f in found)}; "
                f"name one: --columns responses={'+'.join(found[0])}"
            )
        return found[0] if found else None

    def _families(self) -> list[tuple[str, ...]]:
        """Columns of texts whose names differ in a letter or a number alone: ``response_a``, ``response_b``."""
        return [
            members
            for stem, members in counted(self.columns)
            if RESPONSE & set(stem) and not ABOUT & set(stem) and not LABEL & set(stem)
            and all(self.columns[c].holds("text", "messages") for c in members)
        ]  # fmt: skip

    def _lists(self) -> list[str]:
        """Lists of responses: of texts, or of objects with a text."""
        found = []
        for column, what in self.columns.items():
            words = set(words_of(column))
            if (
                not RESPONSE & words
                or ABOUT & words
                or {"chosen", "rejected", "conversation", "messages"} & words
            ):
                continue
            if what.holds("texts"):
                found.append(column)
            elif what.holds("mappings"):
                keys = ("text", "response", "answer", "completion", "content", "output", "generation")
                inside = [k for k in keys if self.exists(f"{column}[].{k}")]
                found += [f"{column}[].{inside[0]}"] if inside else []
        return found

    def _winner_by_name(self, responses: tuple[str, ...]) -> Winner:
        """What says who won, by its name and its values; an error where that is not one column."""
        taken = {top(path) for path in responses} | set(self._listed("unused"))
        groups = [
            members
            for stem, members in counted(self.columns)
            if LABEL & set(stem) and not ABOUT - {"model"} & set(stem)
        ]
        ways: list[Winner] = []
        for members in groups:
            if len(members) == max(len(responses), 2) and self._numeric(members):
                ties = [c for c in self.columns if c not in members and "tie" in words_of(c)]
                ways.append(Winner((*members, *ties[:1]) if self._hot(members) else members))
        inside = {c for w in ways for c in w.columns} | {c for m in groups for c in m}
        if len(responses) == 1 and "[]" in responses[0]:
            ways += [Winner((path,)) for path in self._numbers_beside(responses[0])]
        for column in self.columns:
            words = set(words_of(column))
            plausible = LABEL & words and not ABOUT - {"id"} & words and column not in taken | inside
            if (
                plausible
                and self._filled(column)
                and not self.columns[column].holds("mapping", "mappings", "messages", "texts")
            ):
                ways.append(Winner((column,)))
        if len(ways) == 1:
            return ways[0]
        which = " and ".join(responses)
        if not ways:
            raise DataError(
                f"data set '{self.name}' has the responses {which}, and nothing that is known to say which is better; "
                f"name it: --winner COLUMN (columns: {self.all_columns()}); docs/data.md has the codings. Prompts alone "
                f"are read with --dataset_format prompt"
            )
        options = " or ".join(f"--winner {','.join(w.columns)}" for w in ways)
        raise DataError(
            f"data set '{self.name}' has the responses {which}, and several columns that may say which is better; "
            f"name one: {options}"
        )

    def _numeric(self, members: Sequence[str]) -> bool:
        return all(
            self.columns[c].filled and all(winners.number_in(v) is not None for v in self.columns[c].values)
            for c in members
        )

    def _hot(self, members: Sequence[str]) -> bool:
        return all({winners.number_in(v) for v in self.columns[c].values} <= {0.0, 1.0} for c in members)

    def _numbers_beside(self, path: str) -> list[str]:
        """The numbers inside each entry of a list of responses that say how good it is."""
        column = path.split("[]")[0]
        keys = dict.fromkeys(
            k for row in self.rows if isinstance(row.get(column), list) for item in row[column] if isinstance(item, Mapping) for k in item
        )  # fmt: skip
        return [f"{column}[].{key}" for key in keys if (winners.RANKS.search(key) or winners.SCORES.search(key)) and LABEL & set(words_of(key))
                and any(isinstance(n, int | float) for row in self.rows if isinstance(v := at(row, f"{column}[].{key}"), list) for n in v)]  # fmt: skip

    def _rated_by_names(self, prompt: Any, extra: Mapping[str, Any]) -> Layout | None:
        """Single responses with numbers or a label, by the names of the columns."""
        if {"chosen", "rejected", "messages", "text"} & self.given.keys():
            return None
        completion = self.given.get("completion")
        names = [
            c
            for c in ("completion", "response", "answer", "output", "reply", "generation", "summary")
            if self._filled(c) and c != prompt
        ]
        completion = completion or (names[0] if names else None)
        if prompt is None or completion is None:
            return None
        columns: dict[str, Any] = {"prompt": prompt, "completion": completion, **extra}
        layout = Layout("", "rated", columns)
        if self.winner is not None:
            return self._grouped(layout, self.winner)
        label = self.given.get("label")
        labels = [c for c in self._labels(taken=(prompt, completion)) if self.has_shape(c, "bool")]
        ratings = self._listed("ratings") or tuple(
            c for c in self._labels(taken=(prompt, completion)) if c not in labels and self._numeric([c])
        )
        if label is None and len(labels) > 1:
            raise DataError(
                f"data set '{self.name}' has several labels of its responses: {', '.join(labels)}; name one: "
                f"--columns label={labels[0]}"
            )
        if label is not None or labels:
            return replace(layout, columns=columns | {"label": label or labels[0]})
        if not ratings:
            return None
        layout = replace(layout, columns=columns | {"ratings": tuple(ratings)})
        prompts = Counter(key_of(filled(row, str(prompt))) for row in self.rows)
        if len(ratings) == 1 and "ratings" not in self.given and max(prompts.values(), default=0) > 1:
            return self._grouped(layout, Winner(tuple(ratings)))
        return layout

    def _labels(self, taken: Collection[Any]) -> list[str]:
        return [
            c for c in self.columns
            if LABEL & set(words_of(c)) and not ABOUT & set(words_of(c)) and c not in (*taken, *self._listed("unused"), *OURS)
            and self._filled(c)
        ]  # fmt: skip

    def _nothing_fits(self) -> str:
        return (
            f"data set '{self.name}' has the columns {self.all_columns()}, which fit no layout; "
            f"say what they are, as --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN, or "
            f"--columns prompt=COLUMN,response_a=COLUMN,response_b=COLUMN with --winner COLUMN (docs/data.md; "
            f"`preferl data layouts` lists what is known)"
        )

    # ------------------------------------------------------------------------------------------------- who won

    def _seen(self, winner: Winner) -> list[Counter[Any]]:
        """All values of the winner's columns; lists as tuples."""
        seen: list[Counter[Any]] = [Counter() for _ in winner.columns]
        for row in self.rows:
            for counter, path in zip(seen, winner.columns, strict=True):
                value = at(row, path)
                if value is MISSING or value is None or value == "":
                    continue
                try:
                    counter[tuple(value) if isinstance(value, list) else value] += 1
                except TypeError:  # a list of lists, a mapping
                    counter[key_of(value)] += 1
        return seen

    def _names(self, layout: Layout) -> list[str]:
        paths = layout.responses
        if len(paths) > 1:
            return list(paths)
        lengths = [len(v) for row in self.rows if isinstance(v := at(row, paths[0]), list)]
        return [f"{paths[0]} {i}" for i in range(max(lengths, default=2))]

    def _with_coding(self, layout: Layout) -> Layout:
        assert layout.winner is not None
        names = self._names(layout)
        if len(layout.responses) == 1:  # their numbers in a list are no names
            names = [f"#{chr(97 + i % 26)}" for i in range(len(names))]
        return replace(layout, winner=winners.found(layout.winner, self._seen(layout.winner), names))

    def _check_values(self, layout: Layout) -> None:
        """Nothing is checked here that a row's reading does not: only a column that says nothing at all."""
        assert layout.winner is not None
        if not any(self._seen(layout.winner)):
            raise DataError(
                f"data set '{self.name}': {', '.join(layout.winner.columns)} is empty in every row, so nothing says "
                f"which response is better; name another column with --winner"
            )

    def _disagreements(self, layout: Layout) -> list[str]:
        """How often another label of the layout says something else than the one that is used."""
        found, names = [], self._names(layout)
        for other in layout.also:
            if (
                layout.winner is None
                or other.columns == layout.winner.columns
                or not all(map(self.exists, other.columns))
            ):
                continue
            different, both = 0, 0
            for row in self.rows:
                try:
                    ours, theirs = (
                        winners.places(
                            w, [None if (v := at(row, p)) is MISSING else v for p in w.columns], names
                        ).ranks
                        for w in (layout.winner, other)
                    )
                except winners.RowError:
                    continue
                both += 1
                different += ours != theirs
            found.append(
                f"who won is read from {', '.join(layout.winner.columns)}; {', '.join(other.columns)} says otherwise in "
                f"{different} of {both} rows (--winner {','.join(other.columns)} takes that)"
            )
        return found

    def _rating_notes(self, layout: Layout) -> list[str]:
        ratings = layout.columns.get("ratings")
        if ratings is None:
            return []
        names = [
            top(p.rstrip("?")) if "." not in p else p.rstrip("?")
            for p in ((ratings,) if isinstance(ratings, str) else ratings)
        ]
        example = f"0.7*{names[0]}+0.3*{names[1]}" if len(names) > 1 else names[0]
        return [
            f"each response has ratings ({', '.join(names)}); comparisons of a prompt's responses are made by naming one, "
            f"--winner {names[0]}" + (f", or a weighted sum, --winner '{example}'" if len(names) > 1 else "")
        ]

    # ------------------------------------------------------------------------------------------- what is not used

    def _refuse_suspicious(self, layout: Layout, unused: list[str]) -> None:
        found = [(c, why) for c in unused if (why := self._suspicion(layout, c))]
        if not found:
            return
        column, why = found[0]
        every = "+".join(c for c, _ in found)
        more = f" (likewise {', '.join(f'{c}: {w}' for c, w in found[1:])})" if found[1:] else ""
        raise DataError(
            f"data set '{self.name}' would be read as {layout.kind} by {layout.what_it_says()}, and the column "
            f"'{column}' would not be used, which looks like {why}{more}; {self._advice(layout, column, why)}, or "
            f"leave it aside with --columns unused={every}"
        )

    def _advice(self, layout: Layout, column: str, why: str) -> str:
        """The option with which such a column is used."""
        if why == "a split":
            return f"use it with --columns split={column}"
        if why == "another speaker":
            return f"put it before the prompt with --columns system={column}, or join it: --columns prompt={column}+prompt"
        if why == "another response":
            return f"say what it is with --columns, as completion={column} or responses={column}+OTHER (docs/data.md)"
        if layout.kind in ("rated", "demonstration") and "completion" in layout.columns:
            good = f"--columns label={column} where it calls them good or bad"
            return f"compare the responses to a prompt by it with --winner {column}, or use {good}"
        if layout.responses:
            return f"let it say who won with --winner {column}"
        return f"name what it speaks of with --columns responses=A+B --winner {column}, or completion=A,label={column}"

    def _suspicion(self, layout: Layout, column: str) -> str | None:
        """What a column that is not used looks like; None where it is any other."""
        what, words = self.columns[column], words_of(column)
        if (
            column in OURS
            or column.startswith(("source_", "label_"))
            or words[:1] in (["gold"], ["finished"], ["generator"])
        ):
            return None
        if (
            what.holds("text")
            and len(what.values) <= 8
            and {meaning(str(v)) for v in what.values} & {"train", "dev", "eval"}
        ):
            if all(meaning(str(v)) for v in what.values):
                return "a split" if column != "split" else None
        if column == "split" or ABOUT & set(words) or not words:
            return None
        if (
            layout.kind in ("preference", "ranking")
            and {"chosen", "rejected"} & set(words)
            and len(words) > 1
        ):
            return None  # a remark about one of the two
        if layout.is_own and layout.kind in ("preference", "ranking") and what.holds("numbers"):
            return None  # a number for each response of a ranking that has its places
        if RESPONSE & set(words) and what.holds("text", "texts", "messages", "mappings"):
            # To a prompt alone a text that answers it is what a reward may ask for.
            return (
                None if layout.kind == "prompt" and column in ("answer", "completion") else "another response"
            )
        if LABEL & set(words) and self._is_verdict(column):
            return "a rating or a label"
        if (
            set(words) <= SPEAKERS | {"prompt"}
            and what.holds("text", "messages", "texts")
            and layout.kind != "text"
        ):
            return "another speaker"
        return None

    def _is_verdict(self, column: str) -> bool:
        """Whether a column's values can be ratings or labels: numbers, truth values, words for a side or for
        good and bad."""
        what = self.columns[column]
        if what.holds("number", "bool", "numbers"):
            return True
        if not what.holds("text"):
            return False
        sides = ["a", "b"]
        return all(
            winners._word_place(v, sides) is not None or str(v).strip().lower() in (*GOOD, *BAD, "safe", "unsafe")
            or winners.number_in(v) is not None
            for v in what.values
        )  # fmt: skip


def would_count(column: str) -> bool:
    """Whether a column of this name could be taken for a response, a label, a rating or another speaker."""
    words = set(words_of(column))
    if (
        column in OURS
        or column.startswith(("source_", "label_"))
        or words_of(column)[:1] in (["gold"], ["finished"])
    ):
        return False
    return not ABOUT & words and bool((RESPONSE | LABEL) & words or words <= SPEAKERS)


def words_of(column: str) -> list[str]:
    """The words of a column's name: ``responseA`` and ``Response-A`` are response and a."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", column)]


def counted(columns: Collection[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Sets of columns whose names differ in one place alone, where they count: a, b; 0, 1; 1, 2, 3; first, second.

    Each as the words of the name without that place, and the columns in order.
    """
    places: dict[tuple[Any, ...], dict[int, str]] = {}
    for column in columns:
        words = words_of(column)
        for i, word in enumerate(words):
            number = WORDS_FOR_SIDES.get(word, SIDES.index(word) if word in SIDES else None)
            kind = "words"
            if word.isdigit():
                number, kind = int(word), "numbers"
            if number is not None:
                stem = (tuple(words[:i]), tuple(words[i + 1 :]), kind)
                places.setdefault(stem, {}).setdefault(number, column)
    found = []
    for (before, behind, _), members in places.items():
        first = min(members)
        if (
            len(members) >= 2
            and first in (0, 1)
            and sorted(members) == list(range(first, first + len(members)))
        ):
            found.append(((*before, *behind), tuple(members[i] for i in sorted(members))))
    return found
