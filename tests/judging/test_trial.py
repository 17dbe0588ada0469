"""Reward functions are tried before anything is loaded."""

import sys

import pytest

from preferl import cli
from preferl.data.files import write_rows
from preferl.data.sources import load_source
from preferl.judging.scorers import functions_named
from preferl.judging.trial import functions_of, try_out
from preferl.models import load
from preferl.options.evaluate import EvaluateConfig
from preferl.runs.errors import UsageError

FUNCTIONS = """
called = []

def exact(completions, answer, **columns):
    called.append((completions, answer))
    return [float(said == right) for said, right in zip(completions, answer)]

def solved(completions, solution):
    return [0.0 for _ in completions]

def three(completions, **columns):
    return [0.0, 1.0, 2.0]

def far(completions, **columns):
    return [float(said[999]) for said in completions]

def tokens(completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Questions with answers; the current folder has a module of reward functions."""
    (tmp_path / "tried_rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_rows(tmp_path / "rows.jsonl", [{"question": f"What is {i}?", "answer": str(i)} for i in range(40)])
    yield str(tmp_path / "rows.jsonl")
    sys.modules.pop("tried_rewards", None)


def test_a_function_is_called_once_with_rows_and_their_columns(rows):
    options = EvaluateConfig(reward_model="0.5*tried_rewards:exact + 0.5*length", gold="tried_rewards:tokens")
    functions = functions_of(options)
    assert set(functions) == {"tried_rewards:exact", "tried_rewards:tokens"}
    # What reads tokens cannot be tried: there are none yet.
    try_out(functions, load_source(rows))
    (call,) = sys.modules["tried_rewards"].called
    assert call[0] == ["I do not know."] * 2
    assert len(call[1]) == 2


def test_what_is_no_function_of_ones_own_is_left_alone():
    options = EvaluateConfig(
        reward_model="instructions:fulfilled", gold="world:helpful", held_out_reward="length"
    )
    assert functions_of(options) == {}
    judges = ("judge:http://127.0.0.1:1/v1#m", "mean(judge:http://a:1/v1#m, judge:http://b:1/v1#m)")
    for judge in (*judges, f"0.5*{judges[0]} + 0.5*length"):
        assert functions_of(EvaluateConfig(reward_model=judge)) == {}


def test_functions_are_found_inside_of_what_is_put_together():
    text = "0.3*mean(my:a, my:b) + 0.7*my_other.module:c"
    assert functions_named(text) == ["my:a", "my:b", "my_other.module:c"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("tried_rewars:exact", "No module named 'tried_rewars'"),
        ("tried_rewards:exakt", "has no attribute 'exakt'"),
        ("tried_rewards:solved", "asks for solution, which it is not given"),
        ("tried_rewards:three", "returned 3 scores for 2 responses"),
        ("tried_rewards:far", "IndexError"),
    ],
)
def test_a_run_refuses_it_before_its_first_stage(rows, tmp_path, capsys, function, said):
    out = tmp_path / "run"
    flags = ["--dataset_name", rows, "--rl.reward_model", function, "--output_dir", str(out)]
    assert cli.main(["run", *flags, "--num_threads", "1", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    called = function.endswith((":three", ":far"))
    assert ("tried on the first 2 prompts" in error) == called
    assert not (out / "sft").exists()


@pytest.mark.parametrize("command", ["rl", "best_of", "evaluate"])
def test_a_stage_refuses_it_before_a_model_is_loaded(
    rows, tmp_path, capsys, policy_directory, command, monkeypatch
):
    monkeypatch.setattr(load, "load_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    flags = ["--dataset_name", rows, "--reward_model", "tried_rewards:solved", "--device", "cpu"]
    model = ["--model_name_or_path", str(policy_directory), "--output_dir", str(tmp_path / "s")]
    reference = ["--ref_model", str(policy_directory)] if command == "evaluate" else []
    assert cli.main([command, *flags, *model, *reference]) == 2
    assert "asks for solution" in capsys.readouterr().err


def test_a_function_that_does_is_no_hindrance(rows):
    with pytest.raises(UsageError, match="nothing was trained"):
        try_out(functions_of(EvaluateConfig(reward_model="tried_rewards:three")), load_source(rows))
    try_out(functions_of(EvaluateConfig(reward_model="tried_rewards:exact")), load_source(rows))
