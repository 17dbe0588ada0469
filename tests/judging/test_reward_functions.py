"""Functions of a person's own, called as TRL calls them: what they may return, what they may do, and what is
said where they fail."""

import asyncio
import time

import numpy as np
import pytest
import torch

from preferl.data.records import UserTurn
from preferl.judging.reward_functions import RewardFunction, RewardLog
from preferl.judging.scorers import Ensemble, Mixture, as_scorer
from preferl.runs.errors import UsageError

PROMPTS = ["one", "two", "three"]
TEXTS = ["a", "bb", "ccc"]


def lengths(prompts, completions, **columns):
    return [len(text) for text in completions]


async def later(prompts, completions, **columns):
    await asyncio.sleep(0.05)
    return [float(len(text)) for text in completions]


class Caller:
    async def __call__(self, prompts, completions, **columns):
        return [1.0 for _ in completions]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1, 2.5, None], [1.0, 2.5, None]),
        ((True, False, np.bool_(True)), [1.0, 0.0, 1.0]),
        (torch.tensor([1, 2, 3]), [1.0, 2.0, 3.0]),
        (torch.tensor([0.5, 1.5, 2.5], requires_grad=True), [0.5, 1.5, 2.5]),
        (torch.ones(3, dtype=torch.bfloat16), [1.0] * 3),
        (np.array([1, 2, 3], dtype=np.int8), [1.0, 2.0, 3.0]),
        (np.array([True, False, True]), [1.0, 0.0, 1.0]),
        ([np.float32(0.5), torch.tensor(2.0), 3], [0.5, 2.0, 3.0]),
        (iter([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        (torch.tensor([[1.0], [2.0], [3.0]]), [1.0, 2.0, 3.0]),
        (np.array([[1], [2], [3]]), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 0.0, 3.0]).to_sparse(), [1.0, 0.0, 3.0]),
    ],
)
def test_what_a_function_may_return(returned, expected):
    assert RewardFunction(lambda prompts, completions, **_: returned)(PROMPTS, TEXTS) == expected


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"returned 1\.0 for 3 responses; it must return a list"),
        (None, r"returned None for 3 responses"),
        (torch.tensor(1.0), r"returned 1\.0 for 3 responses"),
        ([1.0], "returned 1 scores for 3 responses"),
        ("123", r"returned '123' for 3 responses"),
        ({"a": 1, "b": 2, "c": 3}, r"returned \{.*\} for 3 responses; it must return a list"),
        ([1.0, "2", 3.0], r"returned '2' for row 1, the response 'bb'; it must return a number, or None"),
        ([1.0, 2.0, [3.0, 4.0]], r"returned \[3\.0, 4\.0\] for row 2, the response 'ccc'"),
        ({1.0, 2.0, 3.0}, r"returned \{1\.0, 2\.0, 3\.0\} for 3 responses; it must return a list"),
        ([1.0, 10**400, 2.0], r"returned 1000+ for row 1, the response 'bb'"),
        (torch.ones(3, 2), r"returned \[1\.0, 1\.0\] for row 0"),
    ],
)
def test_what_it_may_not_return_is_named_with_its_row(returned, message):
    def odd(prompts, completions, **columns):
        return returned

    with pytest.raises(UsageError, match=f"'odd' {message}"):
        RewardFunction(odd)(PROMPTS, TEXTS)


@pytest.mark.parametrize("function", [later, Caller()])
def test_coroutines_are_awaited_in_a_notebooks_loop_too(function):
    scorer = RewardFunction(function, "f")
    assert scorer.is_async
    alone = scorer(PROMPTS, TEXTS)

    async def notebook():
        return scorer(PROMPTS, TEXTS)

    assert asyncio.run(notebook()) == alone == ([1.0, 2.0, 3.0] if function is later else [1.0] * 3)


class OwnEnd(BaseException):
    """What a library may raise past ``except Exception``."""


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("no answer"), SystemExit(0), KeyError("x"), AssertionError()),
        *(asyncio.CancelledError(), GeneratorExit(), OwnEnd("over")),
    ],
)
def test_one_that_raises_is_named_with_the_row_and_the_response(error):
    def picky(prompts, completions, answer, **columns):
        for text, right in zip(completions, answer, strict=True):
            if text == "bb" and right == "B":
                raise error
        return [0.0] * len(completions)

    with pytest.raises(UsageError) as caught:
        RewardFunction(picky)(PROMPTS, TEXTS, answer=["A", "B", "C"])
    text = str(caught.value)
    assert f"'picky' failed at row 1, the response 'bb': {type(error).__name__}" in text
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is error


def test_one_that_fails_only_on_a_whole_batch_names_no_row():
    def at_once(prompts, completions, **columns):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [1.0]

    with pytest.raises(UsageError, match=r"'at_once' failed: RuntimeError: too many"):
        RewardFunction(at_once)(PROMPTS, TEXTS)


def test_ctrl_c_outside_of_the_command_line_is_the_persons():
    def stopped(prompts, completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardFunction(stopped)(PROMPTS, TEXTS)


def test_columns_reach_it_and_completions_are_as_prompts_are():
    seen = {}

    def look(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
        return [0.0] * len(prompts)

    messages = [{"role": "user", "content": "Hello?"}]
    RewardFunction(look)([messages, UserTurn("plain")], ["Hi.", "text"], answer=["x", "y"], level=[1, 2])
    assert seen["prompts"] == [messages, "plain"]
    assert seen["completions"] == [[{"role": "assistant", "content": "Hi."}], "text"]
    assert (seen["answer"], seen["columns"]["level"]) == (["x", "y"], [1, 2])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda completions: [len(text) for text in completions], [1.0, 2.0, 3.0]),
        (lambda answer, lengths: [int(a) + n for a, n in zip(answer, lengths, strict=True)], [5.0, 7.0, 9.0]),
        (lambda trainer_state, prompts: [trainer_state.global_step] * len(prompts), [0.0] * 3),
    ],
)
def test_a_function_gets_what_it_names_and_no_more(function, expected):
    columns = {"answer": ["1", "2", "3"], "lengths": [4, 5, 6], "level": [0, 0, 0]}
    assert RewardFunction(function)(PROMPTS, TEXTS, **columns) == expected


def test_what_it_asks_for_and_is_not_given_is_named_with_what_there_is():
    def strict(completions, gold, level=3):
        return [0.0] * len(completions)

    with pytest.raises(UsageError, match=r"'strict' asks for gold, which it is not .*\(answer, level\)"):
        RewardFunction(strict)(PROMPTS, TEXTS, answer=["A", "B", "C"], level=[1, 2, 3])


def test_a_class_is_no_function():
    with pytest.raises(UsageError, match="'m:Caller' is a class"):
        RewardFunction(Caller, "m:Caller")


def test_what_a_function_does_to_its_lists_reaches_nobody_else():
    messages = [{"role": "user", "content": "Hello?"}]
    answers = [{"text": "A"}, {"text": "B"}, {"text": "C"}]

    def spoils(prompts, completions, answer, **columns):
        prompts[0][0]["content"] = "spoilt"
        answer[0]["text"] = "spoilt"
        answer.pop()
        completions.clear()
        return [1.0, 2.0, 3.0]

    def reads(prompts, completions, answer, **columns):
        assert prompts[0] == [{"role": "user", "content": "Hello?"}]
        return [float(a["text"] in "ABC") for a in answer]

    mixture = as_scorer([spoils, reads], torch.device("cpu"))
    assert mixture([messages, "two", "three"], TEXTS, answer=answers) == [2.0, 3.0, 4.0]
    assert (messages[0]["content"], len(answers), answers[0]["text"]) == ("Hello?", 3, "A")


@pytest.mark.parametrize(
    ("door", "value", "message"),
    [
        ("log_extra", [object()] * 3, r"logs 'it' as \[<object.*, which cannot be written as JSON"),
        (
            "log_extra",
            [1],
            r"logs the column 'it' as \[1\]; it must be a list with a value for each of the 3",
        ),
        ("log_extra", 5, "logs the column 'it' as 5"),
        ("log_metric", {1, 2}, "logs 'it' as .*cannot be written as JSON"),
    ],
)
def test_what_cannot_be_logged_is_refused(door, value, message):
    def logs(prompts, completions, **columns):
        columns[door]("it", value)
        return [0.0] * len(completions)

    with pytest.raises(UsageError, match=f"'logs' {message}"):
        RewardFunction(logs)(PROMPTS, TEXTS)


def test_arrays_and_tensors_are_logged_as_lists():
    def logs(prompts, completions, log_extra, log_metric, **columns):
        log_extra("a", np.arange(3))
        log_extra("t", [torch.tensor(1.5)] * 3)
        log_metric("m", torch.tensor(2.0))
        return [0.0] * len(completions)

    log = RewardLog()
    RewardFunction(logs)(PROMPTS, TEXTS, log_extra=log.extra, log_metric=log.metric)
    assert (log.columns, log.numbers["m"]) == ({"a": [0, 1, 2], "t": [1.5] * 3}, [2.0])


def test_several_functions_with_weights_and_none_for_rows_that_do_not_apply():
    def some(prompts, completions, **columns):
        return [None, 10.0, None]

    mixture = as_scorer([lengths, some, later], torch.device("cpu"), [1.0, 0.5, 2.0])
    assert mixture(PROMPTS, TEXTS) == [3.0, 11.0, 9.0]
    assert mixture.last_parts["some"] == [None, 10.0, None]


def wait_for(seconds, name):
    def slow(prompts, completions, log_extra, log_metric, **columns):
        time.sleep(seconds)
        log_extra("who", [name] * len(completions))
        log_metric("mean", seconds)
        return [seconds] * len(completions)

    scorer = RewardFunction(slow, name)
    scorer.last_seconds = 5.0  # as of a call before
    return scorer


@pytest.mark.parametrize("together", ["mixture", "ensemble"])
def test_slow_functions_run_in_parallel_and_log_in_their_order(together):
    parts = {f"f{i}": wait_for(seconds, f"f{i}") for i, seconds in enumerate((1.2, 0.8, 0.4))}
    parts["quick"] = RewardFunction(lengths, "quick")
    scorer = Ensemble(parts) if together == "ensemble" else Mixture({n: (1.0, p) for n, p in parts.items()})
    log = RewardLog()
    started = time.perf_counter()
    scores = scorer(PROMPTS, TEXTS, log_extra=log.extra, log_metric=log.metric)
    assert time.perf_counter() - started < 2.2  # 2.4 one after the other
    expected = np.array([3.4, 4.4, 5.4])
    np.testing.assert_allclose(scores, expected / (4 if together == "ensemble" else 1))
    assert list(scorer.last_parts) == ["f0", "f1", "f2", "quick"]
    assert log.columns["who"] == ["f0"] * 3 + ["f1"] * 3 + ["f2"] * 3
    assert log.numbers["mean"] == [1.2, 0.8, 0.4]
    assert log.numbers["seconds/f0"][0] == pytest.approx(1.2, abs=0.5)
    assert set(log.numbers) == {"mean", "seconds/f0", "seconds/f1", "seconds/f2", "seconds/quick"}


def test_the_failure_of_one_in_a_thread_is_its_own():
    def broken(prompts, completions, **columns):
        raise SystemExit(3)

    parts = {"a": wait_for(0.1, "a"), "broken": RewardFunction(broken, "broken")}
    parts["broken"].last_seconds = 5.0
    with pytest.raises(UsageError, match="'broken' failed at row 0, the response 'a': SystemExit: 3"):
        Mixture({name: (1.0, part) for name, part in parts.items()})(PROMPTS, TEXTS)
