"""Columns that are known by their names: ``response_a`` and ``response_b`` are two responses to the
``question``, ``winner`` says which is better."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from preferl.data import winners
from preferl.data.columns import (
    ABOUT,
    ATTRIBUTES,
    LABEL,
    OURS,
    RESPONSE,
    Columns,
    counted,
    opposites,
    words_of,
)
from preferl.data.layouts import Layout, at, filled, key_of, top
from preferl.data.records import DataError
from preferl.data.winners import Winner

PROMPTS = (
    *("prompt", "instruction", "question", "query", "input", "context", "history", "post", "conversation"),
    "problem",
)
# Words of longer names of a prompt's column (user_prompt), and what may hold it where no name tells.
PROMPT_WORDS = {"prompt", "question", "instruction", "query", "problem"}
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
KEYS_OF_TEXTS = ("text", "response", "answer", "completion", "content", "output", "generation")
COMPLETIONS = ("completion", "response", "answer", "output", "reply", "generation", "summary")


class ByNames(Columns):
    """The columns of a data set, and the layout that their names give."""

    def by_names(self) -> Layout | None:
        """A layout out of the names of columns, and of what a person said; None where nothing is compared."""
        responses = self._responses()
        pair = self._pair() if responses is None else None
        prompt = self._prompt((*(responses or ()), *(pair or ())))
        extra = {
            role: path for role, path in self.given.items() if role in ("system", "split", "margin", "unused")
        }
        extra = {**self.system(), **extra}
        if pair is not None:
            return self._of_pair(pair, prompt, extra)
        if responses is None:
            return self._single_by_names(prompt, extra)
        dialogues = all(self.has_shape(path, "messages") for path in responses) and len(responses) > 1
        whole = dialogues and not any(self.has_shape(path, "answer") for path in responses)
        if prompt is None and not dialogues:
            self._need_prompt(responses)
        takes_prompt = (
            prompt is not None and prompt not in responses and ("prompt" in self.given or not whole)
        )
        columns = {"prompt": prompt} if takes_prompt and prompt is not None else {}
        columns |= {"responses": responses if len(responses) > 1 else next(iter(responses)), **extra}
        winner = self.winner or self._winner_by_name(responses)
        return Layout("", "ranking", columns, winner)

    def _need_prompt(self, responses: Sequence[str]) -> NoReturn:
        many = [c for c in self.columns if self._may_ask(c, responses)]
        several = f" ({' or '.join(many)})" if many else ""
        if not many:
            texts = [
                c for c, what in self.columns.items() if what.holds("text", "messages") and c not in responses
            ]
            many = [c for c in texts if self.columns[c].is_prose() and not ABOUT & set(words_of(c))]
        example = self.with_given(prompt=many[0] if many else "COLUMN")
        raise DataError(
            f"data set '{self.name}' has the responses {' and '.join(responses)}, and no column is "
            f"known as their prompt{several}; name it: {example} (columns: {self.all_columns()})"
        )

    def _prompt(self, taken: Sequence[str]) -> str | None:
        """The path of the prompt: what was named, else a name of ``PROMPTS``, else the one column of a longer
        name (``user_prompt``), else the one that holds messages; beside responses a text."""
        if "prompt" in self.given:
            return str(self.given["prompt"])
        aside = {*taken, *self.listed("unused")}
        for name in PROMPTS:
            column = self.spelt(name)
            if column is None or column in aside or not self.has_values(column):
                continue
            if self.columns[column].holds("mapping"):
                continue
            more = self.spelt("input") if name in ("instruction", "question") else None
            joined = more is not None and more not in aside and self.columns[more].holds("text")
            return f"{column} + {more}" if joined else column
        if not taken:
            return None
        longer = [c for c in self.columns if self._may_ask(c, taken)]
        if longer:
            return longer[0] if len(longer) == 1 else None
        messages = [c for c, what in self.columns.items() if c not in aside and what.holds("messages")]
        if len(messages) == 1:
            return messages[0]
        texts = [c for c in map(self.spelt, ("text", "title")) if c is not None and c not in aside]
        return texts[0] if texts else None

    def _may_ask(self, column: str, taken: Sequence[str]) -> bool:
        """Whether a column is called like a prompt and more, and holds what a prompt can be."""
        words = set(words_of(column))
        if not PROMPT_WORDS & words or (ABOUT - {"prompt"}) & words or column in taken:
            return False
        return self.columns[column].holds("text", "messages") and column not in self.listed("unused")

    def _pair(self) -> tuple[str, str] | None:
        """The columns of the better and of the worse response: what was named, else names that are
        opposites."""
        if "chosen" in self.given and "rejected" in self.given:
            return str(self.given["chosen"]), str(self.given["rejected"])
        roles = {"responses", "completion", "messages", "text", "chosen", "rejected", "label", "ratings"}
        if roles & self.given.keys() or self.winner is not None:
            return None
        aside = self.listed("unused")
        found = [
            (better, worse)
            for better, worse in opposites(self.columns)
            if self._are_responses(better, worse) and better not in aside and worse not in aside
        ]
        if len(found) > 1:
            ways = [self.with_given(chosen=better, rejected=worse) for better, worse in found]
            raise DataError(
                f"data set '{self.name}' has several pairs of a better and a worse response; name one: "
                f"{' or '.join(ways)}"
            )
        return found[0] if found else None

    def _are_responses(self, *columns: str) -> bool:
        kinds = [next(iter(self.columns[c].types), "") for c in columns]
        same = all(self.columns[c].holds("text", "messages") for c in columns) or set(kinds) == {"texts"}
        return same and not any(ABOUT & set(words_of(c)) for c in columns)

    def _of_pair(self, pair: tuple[str, str], prompt: str | None, extra: Mapping[str, Any]) -> Layout:
        """A better and a worse response, with their prompt unless they are dialogues that hold it."""
        columns = {"chosen": pair[0], "rejected": pair[1], **extra}
        whole = not self.has_shape(pair[0], "answer")
        if prompt is None and not whole:
            self._need_prompt(pair)
        if prompt is not None and ("prompt" in self.given or not whole):
            columns = {"prompt": prompt, **columns}
        lists = all(self.exists(c) and self.has_shape(c, "texts") for c in pair)
        return Layout("", "ranking" if lists else "preference", columns)

    def system(self) -> dict[str, str | tuple[str, ...]]:
        """The column of system messages beside a prompt, where there is one of texts."""
        aside = self.listed("unused")
        spelt = [c for c in map(self.spelt, SYSTEM) if c is not None]
        names = [c for c in spelt if c not in aside]
        texts = {"text", "texts", "messages", "mappings", "mapping"}  # parts of a text, a message
        return {"system": names[0]} if names and not self.columns[names[0]].types.keys() - texts else {}

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
        paired = {column for pair in opposites(self.columns) for column in pair}
        aside = {*self.listed("unused"), *paired}
        lists = [] if families else [p for p in self._lists() if top(p) not in aside]
        found = [*families, *((path,) for path in lists)]
        if len(found) > 1:
            raise DataError(
                f"data set '{self.name}' has several sets of responses: "
                f"{'; '.join(' and '.join(f) for f in found)}; "
                f"name one: {' or '.join(self.with_given(responses='+'.join(f)) for f in found)}"
            )
        return found[0] if found else None

    def _families(self) -> list[tuple[str, ...]]:
        """Columns of texts whose names count: ``response_a`` and ``response_b``."""
        found = []
        for stem, members in counted(self.columns):
            words = set(stem)
            texts = all(self.columns[column].holds("text", "messages") for column in members)
            sides = {"chosen", "rejected"} & words  # several worse ones beside a better one
            if RESPONSE & words and not (ABOUT | LABEL) & words and texts and not sides:
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
                or {"chosen", "rejected", "conversation", "conversations", "dialogue", "dialog", "messages"}
                & words
            ):
                continue
            if what.holds("texts"):
                found.append(column)
            elif what.holds("mappings", "mapping"):
                # A list of mappings, or the mapping of lists that `datasets` makes of one
                inside = "[]." if what.holds("mappings") else "."
                paths = [f"{column}{inside}{key}" for key in KEYS_OF_TEXTS]
                paths = [p for p in paths if self.exists(p)]
                listed = inside == "[]." or (bool(paths) and bool(self._numbers_beside(paths[0])))
                found += paths[:1] if listed else []
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
        counting = {c for members in groups for c in members if self.are_numbers(members)}
        inside = {c for w in ways for c in w.columns} | counting
        if len(responses) == 1 and re.search(r"\[\]|\.", responses[0]):
            ways += [Winner((path,)) for path in self._numbers_beside(responses[0])]
        for column in self.columns:
            words = set(words_of(column))
            plausible = LABEL & words and not ABOUT - {"id"} & words and column not in taken | inside
            what = self.columns[column]
            sides = what.holds("texts") and self._are_words_for(responses, column)
            if what.is_prose() and not self._says_a_response(responses, column):
                continue
            if (
                plausible
                and what.filled
                and (sides or not what.holds("mapping", "mappings", "messages", "texts"))
            ):
                ways.append(Winner((column,)))
        if len(ways) == 1:
            self._refuse_steps(responses, ways[0])
            return ways[0]
        which = " and ".join(responses)
        if not ways:
            raise DataError(
                f"data set '{self.name}' has the responses {which}, and nothing that is known to say which "
                f"is better; name it: --winner COLUMN (columns: {self.with_parts()}); docs/data.md has the "
                f"codings. Prompts alone are read with --dataset_format prompt"
            )
        options = " or ".join(self._this_winner(way, ways) for way in ways)
        raise DataError(
            f"data set '{self.name}' has the responses {which}, and several columns that may say which is "
            f"better; name one: {options}"
        )

    def _this_winner(self, way: Winner, ways: Sequence[Winner]) -> str:
        """The options by which one of several columns says who won, and the others do not."""
        others = [column for other in ways if other is not way for column in other.columns]
        aside = [top(c) if c not in self.columns else c for c in others]
        aside = [c for c in dict.fromkeys(aside) if c not in map(top, way.columns) and c not in way.columns]
        more = f" {self.with_given(unused='+'.join(aside))}" if aside else ""
        return f"--winner {','.join(way.columns)}{more}"

    def _says_a_response(self, responses: tuple[str, ...], column: str) -> bool:
        """Whether a column repeats the text of a response."""
        for row in self.rows:
            texts = [at(row, path) for path in responses]
            texts = texts[0] if len(texts) == 1 and isinstance(texts[0], list) else texts
            if row.get(column) not in (None, "", *texts):
                return False
        return True

    def _are_words_for(self, responses: tuple[str, ...], column: str) -> bool:
        """Whether a column of lists of texts (of several annotators) names responses in all of them."""
        said = {word for row in self.rows if isinstance(value := row.get(column), list) for word in value}
        return len(responses) > 1 and all(winners.word_place(word, responses) is not None for word in said)

    def _refuse_steps(self, responses: tuple[str, ...], winner: Winner) -> None:
        """Refuses a list of texts of which each is true or false: they may be the steps of one answer.

        Raises:
            DataError: it is one.
        """
        said = [
            n for values in self.seen(winner) for value in values if isinstance(value, tuple) for n in value
        ]
        if len(responses) > 1 or not said or any(n not in (0, 1) for n in said):
            return
        column = ",".join(winner.columns)
        named = column.rsplit(".", 1)[-1]
        if winners.RANKS.search(named) or winners.SCORES.search(named):
            return
        raise DataError(
            f"data set '{self.name}' has a list {', '.join(responses)} and in {column} true or false for "
            "each: steps of one answer (process supervision, on which preferl does not train), or several "
            f"answers, some of them right; answers are compared with --winner {column}:scores, prompts alone "
            f"are read with --dataset_format prompt"
        )

    def _numbers_beside(self, path: str) -> list[str]:
        """The numbers inside each entry of a list of responses that say how good it is."""
        if "[]" not in path:  # a mapping of lists
            column = path.rsplit(".", 1)[0]
            beside = {
                key for row in self.rows if isinstance(value := at(row, column), Mapping) for key in value
            }
            lists = [f"{column}.{key}" for key in sorted(beside) if LABEL & set(words_of(key))]
            return [p for p in lists if self.has_shape(p, "numbers")]
        column = path.split("[]")[0]
        entries = [item for row in self.rows if isinstance(value := row.get(column), list) for item in value]
        numbers: dict[str, bool] = {}
        for entry in entries:
            for key, value in entry.items() if isinstance(entry, Mapping) else ():
                numbers[key] = numbers.get(key, False) or winners.number_in(value) is not None
        places = [key for key, there in numbers.items() if there and LABEL & set(words_of(key))]
        return [f"{column}[].{k}" for k in places if winners.RANKS.search(k) or winners.SCORES.search(k)]

    def _completion(self, prompt: str | None) -> str | None:
        """The column of single responses: a name of ``COMPLETIONS``, else the one whose name ends in such a
        word (``model_response``)."""
        aside = {prompt, *self.listed("unused")}
        names = [c for c in map(self.spelt, COMPLETIONS) if c is not None and self.has_values(c)]
        names = [c for c in names if c not in aside]
        if names:
            return names[0]
        longer = [c for c in self.columns if words_of(c)[-1:] and words_of(c)[-1] in COMPLETIONS]
        longer = [c for c in longer if c not in aside and self.columns[c].holds("text", "messages")]
        return longer[0] if len(longer) == 1 else None

    def _single_by_names(self, prompt: str | None, extra: Mapping[str, Any]) -> Layout | None:
        """Single responses with numbers or a label, by the names of the columns; without either
        demonstrations where a person named the response."""
        if {"chosen", "rejected", "text"} & self.given.keys():
            return None
        if "messages" in self.given:
            if "label" not in self.given:
                return None
            return Layout("", "rated", {**extra, **{r: self.given[r] for r in ("messages", "label")}})
        completion = self.given.get("completion") or self._completion(prompt)
        if completion is not None and prompt is None:
            prompt = self._prompt((str(completion),))
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
            return replace(layout, kind="demonstration") if "completion" in self.given else None
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
        # The other ratings of a layout are known; who names one does not want to hear of them.
        rated = layout.columns.get("ratings", ()) if layout.name else ()
        others = [path.rstrip("?") for path in ((rated,) if isinstance(rated, str) else rated)]
        known = (*layout.known, *(top(path) for path in others if path not in nested))
        return replace(layout, kind="ranking", columns=columns, winner=kept, either=(), when={}, known=known)

    def _labels(self, taken: Collection[Any]) -> list[str]:
        aside = {*taken, *self.listed("unused"), *OURS}
        found = []
        for column in self.columns:
            words = set(words_of(column))
            rates = bool((LABEL | ATTRIBUTES) & words) and not ABOUT & words
            if rates and column not in aside and self.has_values(column):
                found.append(column)
        return found
