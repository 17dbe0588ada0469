"""Columns that are known by their names: ``response_a`` and ``response_b`` are two responses to the
``question``, ``winner`` says which is better."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from preferl.data import winners
from preferl.data.columns import ABOUT, ATTRIBUTES, LABEL, OURS, RESPONSE, Columns, counted, words_of
from preferl.data.layouts import Layout, filled, key_of, top
from preferl.data.records import DataError
from preferl.data.winners import Winner

PROMPTS = (
    *("prompt", "instruction", "question", "query", "input", "context", "history", "post", "conversation"),
    "problem",
)


class ByNames(Columns):
    """The columns of a data set, and the layout that their names give."""

    def by_names(self) -> Layout | None:
        """A layout out of the names of columns, and of what a person said; None where nothing is compared."""
        responses = self._responses()
        prompt = self.given.get("prompt") or next((c for c in PROMPTS if self.has_values(c)), None)
        extra = {
            role: path for role, path in self.given.items() if role in ("system", "split", "margin", "unused")
        }
        extra = {**self.system(), **extra}
        if responses is None:
            return self._rated_by_names(prompt, extra)
        dialogues = all(self.has_shape(path, "messages") for path in responses) and len(responses) > 1
        if prompt is None and not dialogues:
            raise DataError(
                f"data set '{self.name}' has the responses {' and '.join(responses)}, and no column is "
                f"known as their prompt; name it with --columns prompt=COLUMN (columns: {self.all_columns()})"
            )
        columns = {"prompt": prompt} if prompt is not None and prompt not in responses else {}
        (first, *more) = responses
        columns |= {"responses": responses if more else first, **extra}
        winner = self.winner or self._winner_by_name(responses)
        return Layout("", "ranking", columns, winner)

    def system(self) -> dict[str, str | tuple[str, ...]]:
        """The column of system messages beside a prompt, where there is one of texts."""
        aside = self.listed("unused")
        names = [c for c in ("system", "system_prompt") if c not in aside and c in self.columns]
        return {"system": names[0]} if names and not self.columns[names[0]].types.keys() - {"text"} else {}

    def _responses(self) -> tuple[str, ...] | None:
        """The paths of responses to one prompt: what was named, else columns that count them, else a list."""
        if "responses" in self.given:
            return self.listed("responses")
        if "response_a" in self.given or "response_b" in self.given:
            sides = tuple(str(self.given[r]) for r in ("response_a", "response_b") if r in self.given)
            if len(sides) < 2:
                raise DataError("--columns names one of response_a and response_b; name both")
            return sides
        if {"chosen", "rejected", "completion", "messages", "text"} & self.given.keys():
            return None
        families = [f for f in self._families() if f[0] not in self.listed("unused")]
        lists = [] if families else [p for p in self._lists() if top(p) not in self.listed("unused")]
        found = [*families, *((path,) for path in lists)]
        if len(found) > 1:
            raise DataError(
                f"data set '{self.name}' has several sets of responses: "
                f"{'; '.join(' and '.join(f) for f in found)}; "
                f"name one: --columns responses={'+'.join(found[0])}"
            )
        return found[0] if found else None

    def _families(self) -> list[tuple[str, ...]]:
        """Columns of texts whose names count: ``response_a`` and ``response_b``."""
        found = []
        for stem, members in counted(self.columns):
            words = set(stem)
            texts = all(self.columns[column].holds("text", "messages") for column in members)
            if RESPONSE & words and not (ABOUT | LABEL) & words and texts:
                found.append(members)
        return found

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
        taken = {top(path) for path in responses} | set(self.listed("unused"))
        groups = [
            members
            for stem, members in counted(self.columns)
            if LABEL & set(stem) and not ABOUT - {"model"} & set(stem)
        ]
        ways: list[Winner] = []
        for members in groups:
            if len(members) == max(len(responses), 2) and self.are_numbers(members):
                ties = [c for c in self.columns if c not in members and "tie" in words_of(c)]
                ways.append(Winner((*members, *ties[:1]) if self.are_hot(members) else members))
        inside = {c for w in ways for c in w.columns} | {c for m in groups for c in m}
        if len(responses) == 1 and "[]" in responses[0]:
            ways += [Winner((path,)) for path in self._numbers_beside(responses[0])]
        for column in self.columns:
            words = set(words_of(column))
            plausible = LABEL & words and not ABOUT - {"id"} & words and column not in taken | inside
            if (
                plausible
                and self.has_values(column)
                and not self.columns[column].holds("mapping", "mappings", "messages", "texts")
            ):
                ways.append(Winner((column,)))
        if len(ways) == 1:
            return ways[0]
        which = " and ".join(responses)
        if not ways:
            raise DataError(
                f"data set '{self.name}' has the responses {which}, and nothing that is known to say which "
                f"is better; name it: --winner COLUMN (columns: {self.all_columns()}); docs/data.md has the "
                f"codings. Prompts alone are read with --dataset_format prompt"
            )
        options = " or ".join(f"--winner {','.join(w.columns)}" for w in ways)
        raise DataError(
            f"data set '{self.name}' has the responses {which}, and several columns that may say which is "
            f"better; name one: {options}"
        )

    def _numbers_beside(self, path: str) -> list[str]:
        """The numbers inside each entry of a list of responses that say how good it is."""
        column = path.split("[]")[0]
        entries = [item for row in self.rows if isinstance(value := row.get(column), list) for item in value]
        numbers: dict[str, bool] = {}
        for entry in entries:
            for key, value in entry.items() if isinstance(entry, Mapping) else ():
                numbers[key] = numbers.get(key, False) or winners.number_in(value) is not None
        places = [key for key, there in numbers.items() if there and LABEL & set(words_of(key))]
        return [f"{column}[].{k}" for k in places if winners.RANKS.search(k) or winners.SCORES.search(k)]

    def _rated_by_names(self, prompt: Any, extra: Mapping[str, Any]) -> Layout | None:
        """Single responses with numbers or a label, by the names of the columns."""
        if {"chosen", "rejected", "messages", "text"} & self.given.keys():
            return None
        completion = self.given.get("completion")
        names = [
            c
            for c in ("completion", "response", "answer", "output", "reply", "generation", "summary")
            if self.has_values(c) and c != prompt
        ]
        completion = completion or (names[0] if names else None)
        if prompt is None or completion is None:
            return None
        columns: dict[str, Any] = {"prompt": prompt, "completion": completion, **extra}
        layout = Layout("", "rated", columns)
        if self.winner is not None:
            return self.grouped(layout, self.winner)
        label = self.given.get("label")
        labels = [c for c in self._labels(taken=(prompt, completion)) if self.has_shape(c, "bool")]
        ratings = self.listed("ratings") or tuple(
            c for c in self._labels(taken=(prompt, completion)) if c not in labels and self.are_numbers([c])
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
            return self.grouped(layout, Winner(tuple(ratings)))
        return layout

    def grouped(self, layout: Layout, winner: Winner) -> Layout:
        """Ratings of single responses as rankings by one of them, or by a weighted sum."""
        nested = tuple(c if self.exists(c) else f"ratings.{c}" for c in winner.columns)
        weights = winner.weights or (1.0,) * len(nested)
        columns = {role: path for role, path in layout.columns.items() if role not in ("ratings", "label")}
        kept = replace(winner, columns=nested, coding="scores", weights=weights)
        return replace(layout, kind="ranking", columns=columns, winner=kept, either=(), when={})

    def _labels(self, taken: Collection[Any]) -> list[str]:
        aside = {*taken, *self.listed("unused"), *OURS}
        found = []
        for column in self.columns:
            words = set(words_of(column))
            rates = bool((LABEL | ATTRIBUTES) & words) and not ABOUT & words
            if rates and column not in aside and self.has_values(column):
                found.append(column)
        return found
