"""What a data set is: its layout, found from all of its rows, and what of it is not used.

A layout of the table comes first; else columns are known by their names and codings by all their values. What
is found is said, and a column that is not used although it looks like a comparison, a rating, a label,
another speaker or a split is an error that names the option which settles it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preferl.data import codings, winners
from preferl.data.by_names import ByNames
from preferl.data.columns import Options, counted, opposites
from preferl.data.layouts import MISSING, Layout, alternatives, at, chosen_layouts, filled, may_miss, top
from preferl.data.records import DataError
from preferl.data.unused import refuse_suspicious
from preferl.data.winners import Winner

# What of our own layouts says who won, and by how much.
OWN_PLACES = {
    "comparison": ("z", "margin", "strength"),
    "ranking": ("ranks", "scores"),
    "rated": ("ratings", "label"),
}


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
        DataError: none fits, several do, a column that is named is not there, or one is not used that
        looks as
            if it should be.
    """
    return _Reader(name, rows, options, kinds).result()


def _items(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


class _Reader(ByNames):
    def __init__(
        self, name: str, rows: Sequence[Mapping[str, Any]], options: Options, kinds: Collection[str]
    ):
        super().__init__(name, rows, options)
        self.kinds = kinds

    def result(self) -> Recognised:
        layout = self._layout()
        notes, held = [layout.note] if layout.note else [], ""
        if layout.winner is not None:
            held = "; ".join(
                f"{path} holds {winners.show(values)}"
                for path, values in zip(layout.winner.columns, self.seen(layout.winner), strict=True)
            )
        if layout.winner is not None and not is_grouped(layout):
            layout = self._with_coding(layout)
            notes += self._disagreements(layout)
        if layout.kind == "rated":
            notes += self._rating_notes(layout)
        notes += self._contradictions(layout)
        if layout.kind == "ranking" and "completion" not in layout.columns and layout.winner is not None:
            self._check_values(layout)
        used = layout.read() | {top(p) for p in self.listed("unused")} | {"split"}
        used |= set(
            OWN_PLACES.get(layout.name, ("margin", "strength") if layout.kind == "preference" else ())
        )
        used |= {*layout.paths(), *(layout.winner.columns if layout.winner else ()), *self.listed("unused")}
        # What is not filled in any row says nothing.
        unused = [c for c, column in self.columns.items() if c not in used and column.filled]
        if self.options.dataset_format == "auto":
            self._refuse_numbered_splits()
            refuse_suspicious(self, layout, [c for c in unused if c not in layout.known])
        system = layout.columns.get("system")
        with_system = isinstance(system, str) and any(
            bool(
                text.strip()
                if isinstance(text := filled(row, system), str)
                else isinstance(text, list | dict) and text
            )
            for row in self.rows
        )
        return Recognised(layout, tuple(unused), with_system, tuple(notes), held)

    def _refuse_numbered_splits(self) -> None:
        """Refuses a column ``split`` of numbers, which name no split.

        Raises:
            DataError: there is one.
        """
        column = self.columns.get("split")
        settled = "split" in self.given or "split" in self.listed("unused")
        if column is not None and column.holds("number", "bool") and not settled:
            raise DataError(
                f"data set '{self.name}' has a column 'split' that holds {winners.show(column.values)}, "
                f"which name no split; leave it aside with {self.with_given(unused='split')}, or write "
                f"train, dev and test"
            )

    def _layout(self) -> Layout:
        layouts = chosen_layouts(self.options.layout)
        # What other columns single out comes before names, which would make a rating of a score.
        early = [x for x in layouts if x.kind in ("preference", "ranking", "rated") or x.needs]
        compares = bool({"preference", "ranking", "rated", "demonstration"} & set(self.kinds))
        for layout in (*early, *([None] if compares else []), *(x for x in layouts if x not in early)):
            found = self.by_names() if layout is None else self._fitted(self._respelt(layout))
            if found is not None and found.kind in self.kinds:
                return found
        raise DataError(self._nothing_fits())

    def _respelt(self, layout: Layout) -> Layout:
        """A layout of others with its columns as this data set spells them: ``Prompt``, ``Response A``."""
        if layout.name in OWN_PLACES or layout.tree or not self.spells_otherwise():
            return layout

        def respelt(path: str) -> str:
            parts = re.split(r"( \| | \+ )", path)
            for i in range(0, len(parts), 2):
                name = top(parts[i].rstrip("?"))
                parts[i] = (self.spelt(name) or name) + parts[i][len(name) :]
            return "".join(parts)

        def winner(named: Winner) -> Winner:
            return replace(named, columns=tuple(map(respelt, named.columns)))

        columns = {
            role: respelt(path) if isinstance(path, str) else tuple(map(respelt, path))
            for role, path in layout.columns.items()
        }
        return replace(
            layout,
            columns=columns,
            winner=winner(layout.winner) if layout.winner else None,
            also=tuple(map(winner, layout.also)),
            when={respelt(path): shape for path, shape in layout.when.items()},
            unless={respelt(path): shape for path, shape in layout.unless.items()},
            needs=tuple(map(respelt, layout.needs)),
            either=tuple(map(respelt, layout.either)),
            known=tuple(map(respelt, layout.known)),
            turns=respelt(layout.turns) if layout.turns else "",
        )

    def _fitted(self, layout: Layout) -> Layout | None:
        """A layout of the table with what a person said, where the rows are written so; else None."""
        extra = ("system", "split", "margin", "unused")
        if any(role not in layout.columns and role not in extra for role in self.given):
            return None
        system = {} if "system" in layout.columns or layout.tree else self.system()
        layout = replace(layout, columns={**system, **layout.columns, **self.given})
        if self.winner is not None:
            if (overridden := self._overridden(layout, self.winner)) is None:
                return None
            layout = overridden
        for path in layout.paths():
            for names, optional in zip(alternatives(path), may_miss(path), strict=True):
                if not optional and not any(self.exists(name) for name in names):
                    return None
            there = any(self.exists(name) for names in alternatives(path) for name in names)
            if not there and (not all(may_miss(path)) or path == layout.columns.get("prompt")):
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
        asked = layout.columns.get("prompt")
        if layout.kind == "prompt" and isinstance(asked, str) and self._is_mapping(asked):
            return None
        columns = self._there(layout.columns)
        answer = columns.get("completion")
        if layout.kind == "demonstration" and isinstance(answer, str) and self._are_numbers_alone(answer):
            return None  # the number of a right answer, which nobody says
        history = columns.get("history")
        if isinstance(history, str) and self.columns[history].holds("text"):
            del columns["history"]  # a text, of which nothing says whose turns are in it
        return replace(layout, columns=columns)

    def _is_mapping(self, path: str) -> bool:
        """Whether a column holds things with parts of their own, of which the path names none."""
        return any(
            name in self.columns and self.columns[name].holds("mapping")
            for part in alternatives(path)
            for name in part
        )

    def _are_numbers_alone(self, path: str) -> bool:
        names = [name for part in alternatives(path) for name in part if name in self.columns]
        return bool(names) and all(self.columns[name].holds("number", "bool") for name in names)

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
            # Without its own label a file is no data set of this layout, whatever its other columns are
            # called.
            if layout.winner is not None and not all(map(self.exists, layout.winner.columns)):
                return None
            same = [w for w in known if w.columns == winner.columns and winner.coding is None]
            return replace(layout, winner=same[0] if same else winner)
        if layout.kind == "rated":
            return self.grouped(layout, winner)
        return None

    def _perhaps(self) -> str:
        """What the columns can be by what they hold, as options."""
        free = {c: what for c, what in self.columns.items() if c not in self.listed("unused")}
        messages = [c for c, what in free.items() if what.holds("messages")]
        inside = {
            f"{c}.{key}"
            for c in free
            for row in self.rows
            if isinstance(v := row.get(c), Mapping)
            for key in v
        }
        messages += [path for path in sorted(inside) if self.has_shape(path, "messages")]
        texts = [c for c, what in free.items() if what.holds("text") and what.is_prose()]
        if len(messages) == 1 and not self.given:
            return f" (a dialogue: --columns messages={messages[0]})"
        if len(texts) == 1 and not self.given:
            return f" (a text: --columns text={texts[0]})"
        if len(texts) == 2 and not self.given:
            return f" (a prompt and its answer: --columns prompt={texts[0]},completion={texts[1]})"
        return ""

    def _nothing_fits(self) -> str:
        return (
            f"data set '{self.name}' has the columns {self.with_parts()}, which fit no layout; "
            f"say what they are{self._perhaps()}, as --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN, "
            "or "
            "--columns prompt=COLUMN,response_a=COLUMN,response_b=COLUMN with --winner COLUMN "
            "(docs/data.md; "
            f"`preferl data layouts` lists what is known)"
        )

    def _names(self, layout: Layout) -> list[str]:
        path, *more = layout.responses
        if more:
            return list(layout.responses)
        lengths = [len(v) for row in self.rows if isinstance(v := at(row, path), list)]
        return [f"{path} {i}" for i in range(max(lengths, default=2))]

    def _with_coding(self, layout: Layout) -> Layout:
        assert layout.winner is not None
        if (naming := self._naming(layout)) is not None:
            return replace(layout, winner=naming)
        names = self._names(layout)
        if len(layout.responses) == 1:  # their numbers in a list are no names
            names = [f"#{chr(97 + i % 26)}" for i in range(len(names))]
        return replace(layout, winner=codings.found(layout.winner, self.seen(layout.winner), names))

    def _naming(self, layout: Layout) -> Winner | None:
        """A winner that gives not a place but what another column says of the better response: its text, or
        the name of its model."""
        assert layout.winner is not None
        winner, K = layout.winner, len(layout.responses)
        if winner.coding is not None or len(winner.columns) > 1:
            return None
        families = [members for _, members in counted(self.columns) if len(members) == K > 1]
        inside = layout.responses[0].split("[]")[0]
        if K == 1:
            keys = {key for row in self.rows for item in _items(row.get(inside)) for key in item}
            families = [(f"{inside}[].{key}",) for key in sorted(keys)] or [(inside,)]
        for family in families:
            named = replace(winner, columns=(*winner.columns, *family), coding="named")
            fits = [self._names_one(named, row) for row in self.rows]
            if any(fits) and all(fit is not False for fit in fits):
                return named
        return None

    def _names_one(self, winner: Winner, row: Mapping[str, Any]) -> bool | None:
        """Whether a row's winner is what just one of the columns behind it holds; None where it says
        nothing."""
        won, *names = [at(row, path) for path in winner.columns]
        if won is MISSING or won is None or won == "":
            return None
        names = names[0] if len(names) == 1 and isinstance(names[0], list) else names
        tie = isinstance(won, str) and won.strip().lower() in winners.TIES
        return None if tie else isinstance(won, str) and names.count(won) == 1

    def _contradictions(self, layout: Layout) -> list[str]:
        """In how many rows the better response of a pair has the lower of two scores."""
        notes = []
        for better, worse in opposites(self.columns):
            if not self.are_numbers([better, worse]) or layout.kind != "preference":
                continue
            numbers = [
                (winners.number_in(row.get(better)), winners.number_in(row.get(worse))) for row in self.rows
            ]
            lower = sum(1 for a, b in numbers if a is not None and b is not None and a < b)
            if lower:
                notes.append(f"{better} is lower than {worse} in {lower:,} of {len(numbers):,} rows")
        return notes

    def _check_values(self, layout: Layout) -> None:
        """Nothing is checked here that a row's reading does not: only a column that says nothing at all."""
        assert layout.winner is not None
        if not any(self.seen(layout.winner)):
            raise DataError(
                f"data set '{self.name}': {', '.join(layout.winner.columns)} is empty in every row, so "
                "nothing says "
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
                f"who won is read from {', '.join(layout.winner.columns)}; {', '.join(other.columns)} "
                "says otherwise in "
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
        means = [n for n in names if n in self.columns and "numbers" in self.columns[n].types]
        if means:
            return [
                f"each response has ratings ({', '.join(names)}); where several people rated, as in "
                f"{means[0]}, it is their mean"
            ]
        example = f"0.7*{names[0]}+0.3*{names[1]}" if len(names) > 1 else names[0]
        if not layout.name and len(names) > 1:
            return [
                f"each response has ratings ({', '.join(names)}); comparisons of a prompt's responses are "
                f"made by naming one, --winner {names[0]} {self.with_given(unused='+'.join(names[1:]))}"
            ]
        return [
            f"each response has ratings ({', '.join(names)}); comparisons of a prompt's responses are "
            "made by naming one, "
            f"--winner {names[0]}" + (f", or a weighted sum, --winner '{example}'" if len(names) > 1 else "")
        ]
