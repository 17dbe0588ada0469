"""Reward functions of a person's own, called as TRL 1.16 calls them.

``f(prompts, completions, completion_ids=…, trainer_state=…, log_extra=…, log_metric=…, **columns)`` returns a
number or None for each completion. Prompts and completions are messages where the data set's prompts are
messages, texts where they are texts; ``**columns`` are all other columns of the rows. preferl adds
``finished`` (whether each response ended by itself) and ``lengths`` (tokens, the end included). A function
that names only some of these gets only those.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preferl.data.records import Prompt, UserTurn
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.plugins import load_object

ARGUMENTS = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("finished", "lengths"),
)


class RewardFunction:
    """A function as a scorer.

    Args:
        function: what is called.
        name: what it is called in messages and logs; by default its own name.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None):
        if not callable(function):
            raise UsageError(f"'{name}' is not a function: f(prompts, completions, **columns) is needed")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._call = accept_columns(function)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Scores of texts; a completion is handed on as the data set writes its prompt.

        Raises:
            UsageError: the function raised, returned another number of scores, or something that is no
                number.
        """
        given = {"log_extra": _ignored, "log_metric": _ignored, "trainer_state": None} | columns
        # As the data set has them: a user's turn that we made of a text is a text again, and a completion is
        # a message where its prompt is messages.
        asked = [prompt.text if isinstance(prompt, UserTurn) else prompt for prompt in prompts]
        written: list[Any] = []
        for prompt, text in zip(asked, completions, strict=True):
            message = [{"role": "assistant", "content": text}]
            written.append(text if isinstance(prompt, str) else message)
        try:
            scores = self._call(prompts=asked, completions=written, **given)
            scores = [None if score is None else float(score) for score in scores]
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the reward function '{self.name}' failed: {type(error).__name__}: {error} (--debug shows "
                f"where)"
            ) from error
        if len(scores) != len(written):
            raise UsageError(
                f"the reward function '{self.name}' returned {len(scores)} scores for {len(written)} "
                f"responses; it must return one number, or None, for each"
            )
        return scores


def load_function(name: str) -> RewardFunction:
    """The function ``module:function``, looked up in the current folder too.

    Raises:
        UsageError: it cannot be imported, or is no function.
    """
    return RewardFunction(load_object(name, "reward function"), name)


def check_columns(columns: Mapping[str, Any]) -> None:
    """A data set's column must not stand in for an argument of reward functions.

    Raises:
        UsageError: one does.
    """
    taken = [name for name in columns if name in ARGUMENTS]
    if taken:
        raise UsageError(
            f"the data set has a column '{taken[0]}', which reward functions are given by preferl under that "
            f"name; rename the column"
        )


def accept_columns(function: Callable[..., Any]) -> Callable[..., Any]:
    """Passes a function only the columns that it can take."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none that Python can read
        return function
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function

    def call(prompts: Any, completions: Any, **columns: Any) -> Any:
        known = {k: v for k, v in columns.items() if k in parameters}
        return function(prompts=prompts, completions=completions, **known)

    return call


def _ignored(name: str, value: Any) -> None:
    """What ``log_extra`` and ``log_metric`` do where nothing is logged."""


class RewardLog:
    """What reward functions log while they score: columns beside samples, and numbers."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.numbers: dict[str, list[float]] = {}

    def extra(self, column: str, values: list[Any]) -> None:
        """``log_extra``: a column with a value for each completion."""
        self.columns.setdefault(column, []).extend(values)

    def metric(self, name: str, value: float) -> None:
        """``log_metric``: a number of the batch."""
        self.numbers.setdefault(name, []).append(float(value))

    def means(self) -> dict[str, float]:
        """The mean of every number, over all processes."""
        both: dict[str, list[float]] = {}
        for numbers in distributed.all_gather(self.numbers):
            for name, values in numbers.items():
                both.setdefault(name, []).extend(values)
        return {name: sum(values) / len(values) for name, values in both.items()}

    def rows(self, count: int) -> list[dict[str, Any]]:
        """The columns of each of ``count`` completions; of several processes each has logged its own rows."""
        names = max(distributed.all_gather(list(self.columns)), key=len)
        rows: list[dict[str, Any]] = [{} for _ in range(count)]
        for name in names:
            column = distributed.gather_rows(self.columns.get(name, []))
            # A column that was not logged for every completion cannot say whose its values are.
            if len(column) == count:
                for row, value in zip(rows, column, strict=True):
                    row[name] = value
        return rows
