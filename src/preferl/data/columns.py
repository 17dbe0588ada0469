"""The columns of a data set: what they hold in all rows, and what their names say."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preferl.data import dialects, winners
from preferl.data.layouts import BAD, GOOD, MISSING, alternatives, at, filled, key_of, parsed_columns, top
from preferl.data.records import DataError
from preferl.data.winners import Winner


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SIDES = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
WORDS_FOR_SIDES = {"first": 0, "second": 1, "left": 0, "right": 1}
# Words of the names of columns that hold responses, that say how good they are, and that hold what others
# say.
RESPONSE = words(
    "response responses answer answers completion completions output outputs reply replies generation "
    "generations "
    "candidate candidates summary summaries chosen rejected conversation conversations messages continuation "
    "assistant ref option hypothesis story conv dialog dialogue chat"
)
LABEL = words(
    "winner win wins won pick picked chosen selected pref prefs preferred preference preferences better "
    "safer best choice vote votes "
    "label labels verdict "
    "judgement judgment rank ranks ranking score scores rating ratings thumb thumbs feedback upvotes "
    "likes grade "
    "overall helpfulness helpful harmlessness harmless correctness coherence quality honesty "
    "truthfulness reward "
    "rewards desirable annotation strength z kto accepted approved accept reject correct incorrect good bad "
    "passed honest harmless truthful useful"
)
# What responses are rated by, where several numbers stand beside one.
ATTRIBUTES = words(
    "verbosity complexity conciseness safety toxicity relevance accuracy coverage fluency consistency depth "
    "creativity clarity detail"
)
SPEAKERS = words(
    "system history context instruction input persona document passage article background prefix prefill"
)
# Two words for the better and the worse of two responses, in the names of their columns.
OPPOSITES = (
    *(("chosen", "rejected"), ("chosen", "reject"), ("accepted", "rejected"), ("accept", "reject")),
    *(("preferred", "dispreferred"), ("preferred", "rejected"), ("preferred", "non preferred")),
    *(("better", "worse"), ("best", "worst"), ("winning", "losing"), ("win", "lose"), ("winner", "loser")),
    *(("won", "lost"), ("good", "bad"), ("positive", "negative"), ("pos", "neg"), ("w", "l")),
    *(("desirable", "undesirable"), ("desired", "undesired"), ("correct", "incorrect"), ("right", "wrong")),
    *(("favored", "unfavored"), ("aligned", "misaligned")),
)
# Words that make a column a remark about another one: response_model, score_reason, label_mode.
ABOUT = words(
    "model models id ids idx uuid hash source sources name names type length len tokens token lang "
    "language reason "
    "reasons explanation rationale rationales critique comment time timestamp date url seed mode scale "
    "rate error users status annotators policy policies "
    "prompt version format position shown coin width bias statement elaboration severity category"
)
# Columns that preferl's own commands write beside pairs and rankings.
OURS = words(
    "annotator annotator_kind annotators source split prompt_split selection p_chosen finished gold "
    "gold_chosen "
    "gold_rejected strength margin tied judgements item judgement both_bad flagged reason probability place "
    "reward_model num_generations style seen category family"
)
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

    def is_prose(self) -> bool:
        """Whether its texts are sentences rather than words for a class: most have several words, and they
        differ."""
        several = sum(len(str(value).split()) > 3 for value in self.values)
        return len(self.values) > 1 and several * 2 > len(self.values)


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
        ("messages", lambda v: dialects.is_message(v) or dialects.exchange(v) is not None),
        ("mappings", lambda v: isinstance(v, Mapping)),
    ):
        if all(fits(item) for item in value):
            return name
    return "list"


def words_of(column: str) -> list[str]:
    """The words of a column's name: ``responseA`` and ``Response-A`` are response and a."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", column)]


def opposites(columns: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of columns whose names differ in words for better and worse alone: ``good_answer``,
    ``bad_answer``."""
    by_words = {" ".join(words_of(column)): column for column in columns}
    found = []
    for better, worse in OPPOSITES:
        for text, column in by_words.items():
            other = re.sub(rf"\b{better}\b", worse, text)
            if other != text and other in by_words and by_words[other] != column:
                found.append((column, by_words[other]))
    return list(dict.fromkeys(found))


def counted(columns: Collection[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Sets of columns whose names differ in one place alone, where they count: a, b; 0, 1; 1, 2, 3; first,
    second.

    Each as the words of the name without that place, and the columns in order.
    """
    places: dict[tuple[Any, ...], dict[int, str]] = {}
    for column in columns:
        words = words_of(column)
        for i, word in enumerate(words):
            number = WORDS_FOR_SIDES.get(word, SIDES.index(word) if word in SIDES else None)
            kind = "words of order" if word in WORDS_FOR_SIDES else "letters"
            if word.isdigit():
                number, kind = int(word), "numbers"
            if number is not None:
                stem = (tuple(words[:i]), tuple(words[i + 1 :]), kind)
                places.setdefault(stem, {}).setdefault(number, column)
    found = []
    # A name that counts by letters or numbers may have a first and a second besides (first_turn_response_a).
    by_letters: set[str] = set()
    for (*_, kind), members in places.items():
        if kind != "words of order" and len(members) > 1:
            by_letters |= set(members.values())
    for (before, behind, kind), members in places.items():
        if kind == "words of order" and by_letters & set(members.values()):
            continue
        first = min(members)
        if (
            len(members) >= 2
            and first in (0, 1)
            and sorted(members) == list(range(first, first + len(members)))
        ):
            found.append(((*before, *behind), tuple(members[i] for i in sorted(members))))
    return found


def is_nan(value: Any) -> bool:
    """Whether it is what tables write for a number that is missing."""
    return isinstance(value, float) and math.isnan(value)


def holds_prompt(value: Any) -> bool:
    """Whether a response is a whole dialogue: several messages, or a text that writes such down."""
    if isinstance(value, str):
        written = dialects.spelt_out(value)
        return written is not None and len(written[1]) > 1
    messages = dialects.messages_in(value) if isinstance(value, list) else None
    return messages is not None and len(messages) > 1


def paths_in(given: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    """Every path that ``--columns`` names, as ``layouts.parsed_columns`` gives it."""
    texts = [text for value in given.values() for text in ((value,) if isinstance(value, str) else value)]
    return [path for text in texts for part in alternatives(text) for path in part]


def no_column(option: str, name: str, path: str, columns: Collection[str]) -> DataError:
    """Says that a data set has no column that an option names, and which it has."""
    return DataError(f"{option}: data set '{name}' has no column '{path}'; it has {in_words(columns)}")


def in_words(columns: Collection[str]) -> str:
    return ", ".join(sorted(columns)) or "none"


class Columns:
    """All rows of a data set, column by column, with what a person said about them.

    Args:
        name: of the data set, for messages.
        rows: all that could be read.
        options: what a person said.

    Raises:
        DataError: a column that is named is not there.
    """

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], options: Options):
        self.name, self.rows, self.options = name, rows, options
        self.given = parsed_columns(options.columns)
        self.winner = winners.parsed(options.winner) if options.winner else None
        self.columns: dict[str, Column] = {}
        for row in rows:
            for column, value in row.items():
                self.columns.setdefault(column, Column()).add(value)
        self._check_given()

    def spelt(self, name: str) -> str | None:
        """The column of a name, whatever its case and what stands between its words (``Response A``); None
        where there is none, or several."""
        if name in self.columns:
            return name
        plain = "".join(words_of(name))
        found = [column for column in self.columns if "".join(words_of(column)) == plain]
        return found[0] if len(found) == 1 else None

    def spells_otherwise(self) -> bool:
        """Whether some column has capitals, spaces or hyphens in its name, which no layout's has."""
        return any(re.search(r"[A-Z \-]", column) for column in self.columns)

    def with_given(self, **roles: str) -> str:
        """``--columns`` with what a person gave and these besides: advice that can be followed as it is."""
        given = {role: "+".join(self.listed(role)) for role in self.given} | roles
        if "unused" in roles and "unused" in self.given:
            given["unused"] = "+".join(dict.fromkeys([*self.listed("unused"), *roles["unused"].split("+")]))
        text = ",".join(f"{role}={path.replace(' + ', '+')}" for role, path in given.items())
        return f"--columns '{text}'" if re.search(r"[\s|()\[\]]", text) else f"--columns {text}"

    def listed(self, role: str) -> tuple[str, ...]:
        value = self.given.get(role, ())
        return (value,) if isinstance(value, str) else value

    def _check_given(self) -> None:
        for path in paths_in(self.given):
            self._need(path, "--columns")
        for path in self.winner.columns if self.winner else ():
            if not self.exists(path) and not self.exists(f"ratings.{path}"):
                self._need(path, "--winner")

    def _need(self, path: str, option: str) -> None:
        if not self.exists(path):
            raise no_column(option, self.name, path, self.columns)

    def all_columns(self) -> str:
        return in_words(self.columns)

    def with_parts(self) -> str:
        """All columns, with what is inside those that have parts."""
        names = []
        for column, what in sorted(self.columns.items()):
            parts: dict[str, None] = {}
            for row in self.rows if what.holds("mapping", "mappings") else ():
                value = row.get(column)
                for item in value if isinstance(value, list) else [value]:
                    parts |= dict.fromkeys(item) if isinstance(item, Mapping) else {}
            inside = "[]" if what.holds("mappings") else ""
            names.append(
                column + (f" (with {', '.join(f'{column}{inside}.{p}' for p in parts)})" if parts else "")
            )
        return ", ".join(names) or "none"

    def exists(self, path: str) -> bool:
        if path in self.columns:
            return True
        if top(path) not in self.columns or top(path) == path:
            return False
        if "[]" in path and not any(isinstance(at(row, path.split("[]")[0]), list) for row in self.rows):
            return False
        return any(at(row, path) is not MISSING for row in self.rows)

    def has_shape(self, path: str, shape: str) -> bool:
        """Whether every value that is filled has a shape, and there is one."""
        values = [v for row in self.rows if (v := filled(row, path)) is not MISSING and v is not None]
        if shape == "bool":
            return bool(values) and all(
                isinstance(v, bool) or str(v).strip().lower() in (*GOOD, *BAD) for v in values
            )
        if shape == "messages":
            return bool(values) and all(dialects.messages_in(v) is not None for v in values)
        if shape == "answer":  # no dialogue that holds its prompt
            return bool(values) and not any(holds_prompt(v) for v in values)
        return bool(values) and all(type_of(v) == shape for v in values)

    def has_values(self, column: str) -> bool:
        return column in self.columns and self.columns[column].filled > 0

    def are_numbers(self, members: Sequence[str]) -> bool:
        return all(
            self.columns[c].values
            and all(winners.number_in(v) is not None or is_nan(v) for v in self.columns[c].values)
            for c in members
        )

    def are_hot(self, members: Sequence[str]) -> bool:
        return all({winners.number_in(v) for v in self.columns[c].values} <= {0.0, 1.0} for c in members)

    def seen(self, winner: Winner) -> list[Counter[Any]]:
        """All values of the winner's columns; lists as tuples."""
        seen: list[Counter[Any]] = [Counter() for _ in winner.columns]
        for row in self.rows:
            for counter, path in zip(seen, winner.columns, strict=True):
                value = at(row, path)
                if value is MISSING or value is None or value == "" or is_nan(value):
                    continue
                try:
                    counter[tuple(value) if isinstance(value, list) else value] += 1
                except TypeError:  # a list of lists, a mapping
                    counter[key_of(value)] += 1
        return seen
