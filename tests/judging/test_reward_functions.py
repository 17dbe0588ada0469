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


@pytest.mark.parametrize("error", [ValueError("no answer"), SystemExit(0), KeyError("x"), AssertionError()])
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
