"""Reward functions of a person's own, called as TRL 1.16 calls them.

``f(prompts, completions, completion_ids=…, trainer_state=…, log_extra=…, log_metric=…, **columns)`` returns a
number or None for each completion. Prompts and completions are messages where the data set's prompts are
messages, texts where they are texts; ``**columns`` are all other columns of the rows. preferl adds
``finished`` (whether each response ended by itself) and ``lengths`` (tokens, the end included). A function
that names only some of these gets only those. Asynchronous functions are awaited; among several, those that
take longer than a second run in parallel, and each call's time is logged (``seconds/NAME``).
"""

import asyncio
import copy
import functools
import inspect
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from preferl.data.records import Prompt, UserTurn
from preferl.judging.utilities import NotSampled
from preferl.runs import distributed, signals
from preferl.runs.errors import Interrupted, UsageError
from preferl.runs.plugins import load_object

ARGUMENTS = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("finished", "lengths"),
)
OF_SAMPLED = ("completion_ids", "lengths")
SLOW_S = 1.0  # of a call: a function that took longer runs beside the others the next time
SEARCH_S = 10.0  # for finding the row at which a function fails


class Progress(NamedTuple):
    """How far a run is: steps done, of how many."""

    step: int = 0
    steps: int = 0

    def trainer_state(self) -> Any:
        """The same as functions written for TRL read it."""
        # Imported for those functions alone: with it comes the whole of transformers' trainer.
        from transformers import TrainerState

        return TrainerState(global_step=self.step, max_steps=self.steps)


class RewardFunction:
    """A function as a scorer.

    Args:
        function: what is called.
        name: what it is called in messages and logs; by default its own name.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None):
        if inspect.isclass(function) or not callable(function):
            raise UsageError(
                f"'{name or function}' is {'a class' if inspect.isclass(function) else 'no function'}: "
                f"f(prompts, completions, **columns), or an object that is called like it, is needed"
            )
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.last_seconds = 0.0
        # An object that is called as a function may be asynchronous in its method.
        called = function if inspect.isroutine(function) else type(function).__call__
        self.is_async = inspect.iscoroutinefunction(called)
        self._call = accept_columns(function)
        self._required = required_arguments(function)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Scores of texts; a completion is handed on as the data set writes its prompt.

        Raises:
            UsageError: the function raised (``SystemExit`` too), returned another number of scores, or
                something that is no number; the row is named.
        """
        # Where nothing is trained the state is that before the first step.
        given = {"log_extra": _ignored, "log_metric": _ignored, "trainer_state": Progress()} | columns
        if isinstance(given["trainer_state"], Progress):
            given["trainer_state"] = given["trainer_state"].trainer_state()
        # As the data set has them: a user's turn that we made of a text is a text again, and a completion is
        # a message where its prompt is messages.
        asked = [prompt.text if isinstance(prompt, UserTurn) else prompt for prompt in prompts]
        written: list[Any] = []
        for prompt, text in zip(asked, completions, strict=True):
            message = [{"role": "assistant", "content": text}]
            written.append(text if isinstance(prompt, str) else message)
        given = {"prompts": asked, "completions": written} | given
        self.check_arguments(given)
        # What a function does to its lists is its own affair: others, and later batches, get theirs whole.
        given["log_extra"] = functools.partial(self._logged, given["log_extra"], len(written))
        given["log_metric"] = functools.partial(self._logged, given["log_metric"], None)
        given = {name: copy.deepcopy(v) if isinstance(v, list) else v for name, v in given.items()}
        started = time.perf_counter()
        returned = self._called(given)
        self.last_seconds = time.perf_counter() - started
        given["log_metric"](f"seconds/{self.name}", self.last_seconds)
        return self._numbers(returned, written)

    @property
    def columns(self) -> list[str]:
        """The columns of rows without which it cannot be called."""
        return [name for name in self._required if name not in ARGUMENTS]

    def check_arguments(self, given: Mapping[str, Any]) -> None:
        """What it is called with, by name, is enough for it.

        Raises:
        UsageError: the function asks for something that it is not given.
        NotSampled: for tokens of responses that were not sampled here.
        """
        missing = [name for name in self._required if name not in given]
        if missing and all(name in OF_SAMPLED for name in missing):
            raise NotSampled(
                f"the reward function '{self.name}' asks for {', '.join(missing)}, which is known only of "
                f"responses that preferl sampled"
            )
        if missing:
            columns = ", ".join(name for name in given if name not in ARGUMENTS) or "none"
            raise UsageError(
                f"the reward function '{self.name}' asks for {', '.join(missing)}, which it is not given: it "
                f"gets {', '.join(ARGUMENTS)} and the rows' other columns ({columns}), by these names; "
                f"rename the argument or the column, or give it a default"
            )

    def _logged(self, log: Callable[[str, Any], None], count: int | None, name: str, value: Any) -> None:
        """``log_extra`` and ``log_metric`` as the function calls them: arrays and tensors are lists, and what
        cannot be written down is refused.

        Args:
            log: where it goes.
            count: the values that a column must have, one for each completion; None for a number.
            name: of the column or the number.
            value: what is logged.

        Raises:
            UsageError: a value is none of JSON, or there is another number of them.
        """
        plain = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(plain, list | tuple):
            plain = [one.tolist() if hasattr(one, "tolist") else one for one in plain]
        try:
            json.dumps(plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"the reward function '{self.name}' logs '{name}' as {value!r:.80}, which cannot be written "
                f"as JSON ({error}); log numbers, texts and lists of them"
            ) from error
        if count is not None and (not isinstance(plain, list) or len(plain) != count):
            raise UsageError(
                f"the reward function '{self.name}' logs the column '{name}' as {value!r:.80}; it must be a "
                f"list with a value for each of the {count} completions"
            )
        log(str(name), plain)

    @property
    def is_slow(self) -> bool:
        """Whether it is worth a thread of its own beside other functions."""
        return self.is_async or self.last_seconds > SLOW_S

    def _called(self, given: dict[str, Any]) -> Any:
        """What the function returns; a coroutine's result.

        Raises:
            UsageError: it raised, or asked the program to end.
        """
        try:
            return self._run(given)
        except (UsageError, Interrupted):
            raise
        except KeyboardInterrupt as error:
            # The command line turns Ctrl+C into another exception, so this one is the function's.
            if not signals.are_handled() or signals.pending():
                raise
            raise self._failure(given, error) from error
        except BaseException as error:  # SystemExit, a cancelled coroutine, classes of its own
            raise self._failure(given, error) from error

    def _run(self, given: dict[str, Any]) -> Any:
        returned = self._call(**given)
        if inspect.isawaitable(returned):
            return in_a_loop_of_its_own(returned)
        return returned

    def _failure(self, given: dict[str, Any], error: BaseException) -> UsageError:
        """What a function that raised is reported as, with the first row at which it does so alone."""
        place = ""
        deadline, rows = time.perf_counter() + SEARCH_S, len(given["completions"])
        for row, completion in enumerate(given["completions"]):
            if time.perf_counter() > deadline:
                break
            try:
                self._run({name: of_one(name, value, row, rows) for name, value in given.items()})
            except BaseException as again:  # noqa: BLE001 - it is being told
                place = f" at row {row}, the response {completion!r:.120}" if same(again, error) else ""
                break
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return UsageError(
            f"the reward function '{self.name}' failed{place}: {said} (--debug shows where; a run goes on "
            f"from its last checkpoint)"
        )

    def _numbers(self, returned: Any, written: Sequence[Any]) -> list[float | None]:
        """A list, tensor or array as numbers, None where the function says nothing.

        Raises:
            UsageError: there is another number of them, or one is no number.
        """
        if hasattr(returned, "detach"):  # a tensor, on whatever device
            returned = returned.detach().cpu()
            returned = returned.to_dense() if returned.layout != torch.strided else returned
        if tuple(getattr(returned, "shape", ())) == (len(written), 1):  # logits of a model with one label
            returned = returned.reshape(-1) if hasattr(returned, "reshape") else returned
        if hasattr(returned, "tolist"):
            returned = returned.tolist()
        # A set has no order, in which its numbers could belong to responses.
        if isinstance(returned, str | bytes | Mapping | AbstractSet) or not isinstance(returned, Iterable):
            raise UsageError(
                f"the reward function '{self.name}' returned {returned!r:.80} for {len(written)} responses; "
                f"it must return a list with one number, or None, for each"
            )
        values = list(returned)
        if len(values) != len(written):
            raise UsageError(
                f"the reward function '{self.name}' returned {len(values)} scores for {len(written)} "
                f"responses; it must return one number, or None, for each"
            )
        scores: list[float | None] = []
        for row, value in enumerate(values):
            if value is None:
                scores.append(None)
                continue
            try:
                if isinstance(value, str | bytes):
                    raise TypeError("a text is no number")
                scores.append(float(value))
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise UsageError(
                    f"the reward function '{self.name}' returned {value!r:.80} for row {row}, the response "
                    f"{written[row]!r:.120}; it must return a number, or None"
                ) from error
        return scores


def in_a_loop_of_its_own(awaitable: Awaitable[Any]) -> Any:
    """The result of a coroutine. In a notebook this thread has a loop that runs already, so another thread
    waits for it."""

    async def result() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(result())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, result()).result()


def of_one(name: str, value: Any, row: int, rows: int) -> Any:
    """An argument for one row alone: columns are lists with a value for each row. Nothing is logged."""
    if name in ("log_extra", "log_metric"):
        return _ignored
    return [value[row]] if isinstance(value, list) and len(value) == rows else value


def same(one: BaseException, other: BaseException) -> bool:
    """Whether two exceptions are of one kind."""
    return type(one) is type(other)


def scores_of_each(
    scorers: Mapping[str, Any],
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Mapping[str, Any],
) -> dict[str, list[float | None]]:
    """The scores of several scorers. Functions that are slow or asynchronous run in threads beside the
    others; what they log is logged in the order in which they are given, whoever ends first.

    Raises:
        UsageError: as of the first scorer that fails.
    """
    slow = [name for name, scorer in scorers.items() if isinstance(scorer, RewardFunction) and scorer.is_slow]
    if len(scorers) < 2 or not slow:
        return {name: list(score(prompts, completions, **columns)) for name, score in scorers.items()}
    waiting: dict[str, Future[Any]] = {}
    logged: dict[str, list[tuple[str, str, Any]]] = {name: [] for name in slow}
    found: dict[str, list[float | None]] = {}
    with ThreadPoolExecutor(len(slow), thread_name_prefix="reward") as pool:
        for name in slow:
            own = dict(columns)
            for door in ("log_extra", "log_metric"):
                own[door] = functools.partial(_remember, logged[name], door)
            waiting[name] = pool.submit(scorers[name], prompts, completions, **own)
        for name, scorer in scorers.items():
            if name not in waiting:
                found[name] = list(scorer(prompts, completions, **columns))
        for name in slow:
            found[name] = list(waiting[name].result())
    for name in slow:
        for door, key, value in logged[name]:
            columns.get(door, _ignored)(key, value)
    return {name: found[name] for name in scorers}


def _remember(logged: list[tuple[str, str, Any]], door: str, key: str, value: Any) -> None:
    logged.append((door, key, value))


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
    """Passes a function only the arguments that it names."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none that Python can read
        return function
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function

    def call(**given: Any) -> Any:
        return function(**{name: value for name, value in given.items() if name in parameters})

    return call


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """The arguments without which a function cannot be called by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in parameters if p.kind not in several and p.default is p.empty]


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
