"""The few records that everything passes around.

A prompt is plain text or a list of messages; a response is plain text. Whatever else a row held travels
along in ``columns``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preferl.statistics.labels import label_probability

Messages = list[dict[str, str]]
Prompt = str | Messages
SPLITS = ("train", "dev", "rl", "eval")


class DataError(ValueError):
    """A data set cannot be used as it is; says where, why and what to do."""


class UserTurn(list):
    """A plain-text prompt of a data set that is read as the user's turn of a dialogue: messages, which
    remember the ``text`` that the data set has. ``by_template``: since the model that answers has a chat
    template, and not because somebody asked for it."""

    def __init__(self, text: str, by_template: bool = False):
        super().__init__([{"role": "user", "content": text}])
        self.text, self.by_template = text, by_template


class ToolDialogue(list):
    """Messages with the ``tools`` that the assistant may call (JSON schemas, as chat templates take them)."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], tools: list[Any]):
        super().__init__(messages)
        self.tools = tools


@dataclass(frozen=True)
class PromptRecord:
    """A prompt with the other columns of its row, which reward functions see.

    Example: ``PromptRecord("What is 2 + 2?", {"answer": "4"})``.
    """

    prompt: Prompt
    columns: dict[str, Any] = field(default_factory=dict)


def columns_of(records: Sequence["PromptRecord | Pair"]) -> dict[str, list[Any]]:
    """Every column that some record has, with a value for each (None where a record has none)."""
    names = dict.fromkeys(name for record in records for name in record.columns)
    return {name: [record.columns.get(name) for record in records] for name in names}


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a response worth imitating.

    Example: ``Demonstration([{"role": "user", "content": "What is 2 + 2?"}], "4.")``.
    """

    prompt: Prompt
    response: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """K >= 2 responses to one prompt and their places: 1 is best, equal ranks are a tie. A pair is K = 2.

    Args:
        prompt: what they answer.
        responses: the K texts.
        ranks: the place of each.
        scores: ratings that the ranks come from, where there are any; their differences are margins.
        columns: what else the row held.
        each: names of the columns that hold one value for each response, as ``finished``.

    Example: ``Comparison("What is 2 + 2?", ["5.", "4.", "It is 4."], [3, 1, 1])``.
    """

    prompt: Prompt
    responses: list[str]
    ranks: list[int]
    scores: list[float] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    each: tuple[str, ...] = ()

    def best(self) -> str:
        """The response of the best rank, the first of several."""
        return self.responses[self.ranks.index(min(self.ranks))]

    def values(self, name: str, default: Any) -> list[Any]:
        """A column's value for each response, or the default for all where there is no such column."""
        return self.columns[name] if name in self.each else [default] * len(self.responses)

    def pairs(self) -> list["Pair"]:
        """Every ordered pair, with the difference of scores as its margin; ties make none."""
        K = range(len(self.responses))
        return [self._pair(i, j) for i in K for j in K if self.ranks[i] < self.ranks[j]]

    def _pair(self, better: int, worse: int) -> "Pair":
        columns: dict[str, Any] = {}
        for name, value in self.columns.items():
            if name in self.each:
                columns |= {f"{name}_chosen": value[better], f"{name}_rejected": value[worse]}
            else:
                columns[name] = value
        return Pair(
            prompt=self.prompt,
            chosen=self.responses[better],
            rejected=self.responses[worse],
            margin=None if self.scores is None else self.scores[better] - self.scores[worse],
            columns=columns,
        )


def per_response(columns: Mapping[str, Any], K: int) -> tuple[str, ...]:
    """The columns that hold a list as long as the responses: one value for each of them."""
    return tuple(name for name, value in columns.items() if isinstance(value, list) and len(value) == K)


@dataclass(frozen=True)
class Pair:
    """Two responses of a comparison, one preferred: how losses and measures see it. ``margin`` says how
    clearly (None: not known).

    Example: ``Pair("What is 2 + 2?", "4.", "5.", None, {"annotator": "world"})``.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def comparison(self) -> Comparison:
        """Itself as K = 2: a margin is a difference of scores, ``…_chosen`` and ``…_rejected`` one column."""
        columns: dict[str, Any] = {}
        each = []
        for name, value in self.columns.items():
            stem, _, _ = name.rpartition("_")
            both = f"{stem}_chosen", f"{stem}_rejected"
            folds = name in both and set(both) <= self.columns.keys() and stem not in self.columns
            if folds:
                columns[stem] = [self.columns[end] for end in both]
                each.append(stem)
            else:
                columns[name] = value
        scores = None if self.margin is None else [self.margin, 0.0]
        responses = [self.chosen, self.rejected]
        return Comparison(self.prompt, responses, [1, 2], scores, columns, tuple(dict.fromkeys(each)))


@dataclass(frozen=True)
class Rated:
    """One response with numbers by attribute, or called good or bad.

    Example: ``Rated("What is 2 + 2?", "4.", {"helpfulness": 3.0}, None)`` or
    ``Rated("What is 2 + 2?", "5.", {}, False)``.
    """

    prompt: Prompt
    response: str
    ratings: dict[str, float] = field(default_factory=dict)
    good: bool | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """Responses to one prompt that nobody has compared yet, with whether each ended by itself."""

    prompt: Prompt
    responses: list[str]
    finished: list[bool]


def known_probability(pair: Pair) -> float | None:
    """P(the label prefers what it did) by the annotator's true utility and its errors, or None where that is
    not known.

    The column ``p_chosen``, else what ``gold_chosen`` and ``gold_rejected`` give with ``label_scale`` (or
    ``label_mode`` deterministic), ``label_error_rate``, ``label_position_bias`` with ``label_shown``, and
    ``label_coin_width`` (`preferl.statistics.labels.label_probability`).
    """
    columns = pair.columns
    own = columns.get("p_chosen")
    if isinstance(own, float):
        return own
    deterministic = columns.get("label_mode") == "deterministic"
    scale = 1.0 if deterministic else columns.get("label_scale")
    numbers = [columns.get("gold_chosen"), columns.get("gold_rejected"), scale]
    if not all(isinstance(x, int | float) for x in numbers):
        return None
    better, worse, scale = map(float, numbers)  # type: ignore[arg-type]
    p = label_probability(
        better - worse,
        scale,
        deterministic,
        coin_width=columns.get("label_coin_width", 0.0),
        error_rate=columns.get("label_error_rate", 0.0),
        position_bias=columns.get("label_position_bias", 0.0),
        shown=columns.get("label_shown", 2),
    )
    return float(p)


def ranks_of_scores(scores: Sequence[float]) -> list[int]:
    """Places by score, the largest first; equal scores share the best of their places (1, 2, 2, 4)."""
    return [1 + sum(other > score for other in scores) for score in scores]


def prompt_key(prompt: Prompt) -> str:
    """A text that is equal for equal prompts and for no others."""
    if isinstance(prompt, str):
        # The key of messages starts with a bracket, that of a text never does.
        return f"text:{prompt}" if prompt.startswith(("[", "text:")) else prompt
    return json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)


def prompt_text(prompt: Prompt) -> str:
    """The prompt to show: the text, or the user's last turn of a dialogue."""
    if isinstance(prompt, str):
        return prompt
    return next(m["content"] for m in reversed(prompt) if m["role"] == "user")


def dialogue_text(prompt: Prompt) -> str:
    """The whole prompt to show, one paragraph a turn."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)
