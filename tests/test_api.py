"""preferl from Python: objects in, objects out."""

import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers.utils.logging as transformers_logging

import preferl
from preferl.models import load
from preferl.runs.record import StageRecord
from preferl.stages import reward as reward_stage
from small_models import make_language_model

ROWS = [
    {
        "prompt": f"What is {i} + 1?",
        "chosen": f"{i + 1}.",
        "rejected": f"It may be {i + 2}.",
        "answer": str(i + 1),
    }
    for i in range(40)
]
QUICK = {"max_steps": 4, "train_batch_size": 8, "seed": 0, "num_threads": 1, "verbose": False}
RL = {
    "num_iterations": 2,
    "batch_size": 8,
    "response_length": 6,
    "seed": 0,
    "num_threads": 1,
    "verbose": False,
}


@pytest.fixture
def model(tokenizer):
    """A new one for each test, so that one that changes it is found."""
    return preferl.Policy(make_language_model("llama", tokenizer), tokenizer)


@pytest.fixture(scope="module")
def scorer(tokenizer):
    policy = preferl.Policy(make_language_model("llama", tokenizer), tokenizer)
    return preferl.train_reward(policy, ROWS, audit=False, **QUICK)


def has_answer(completions, answer, **_):
    return [float(right in text) for text, right in zip(completions, answer, strict=True)]


def files_of(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_five_lines_from_rows_to_a_policy(model, tmp_path, monkeypatch, capsys):
    """A reward model on a list of dicts, PPO with a lambda that reads a column as the second reward; nothing
    on the disk but a temporary folder, which is gone afterwards."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen = []

    def right(completions, answer, **columns):
        seen.extend(answer)
        return has_answer(completions, answer)

    data = preferl.load_dataset(ROWS, verbose=False)
    reward = preferl.train_reward(model, data, **QUICK)
    rewards = [reward.model, lambda completions, answer, **_: right(completions, answer)]
    policy = preferl.train_rl(model, data, rewards, reward_weights=[1.0, 2.0], **RL)
    found = preferl.evaluate(
        policy.model, model, data, reward.model, response_length=6, verbose=False, num_threads=1
    )

    assert "train/reward" in policy.metrics[-1]
    assert set(seen) <= {row["answer"] for row in ROWS}
    assert len(seen) > 16
    assert found.win_rate == found.summary["comparison"]["score"]["win_rate"]
    assert 0 <= found.win_rate <= 1
    assert found.kl == found.summary["policies"]["policy"]["kl"]
    assert len(reward.model(["What is 3 + 1?"], ["4."])) == 1
    completions = policy.model.respond(["What is 3 + 1?"], n=3, response_length=6).completions
    assert len(completions) == 3
    assert files_of(tmp_path / "here") == {}
    assert capsys.readouterr().out == ""
    assert len(list((tmp_path / "temporary").iterdir())) == 3  # one for each result
    del policy, reward, rewards, found
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_script_without_a_main_guard(tmp_path, policy_directory):
    """A plain Python program, in which any warning is an error."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import preferl
        assert "torch" not in sys.modules
        rows = {ROWS[:12]!r}
        reward = preferl.train_reward({str(policy_directory)!r}, rows, max_steps=2, audit=False)
        prompts = [row["prompt"] for row in rows]
        rewards = [reward.model, lambda completions, **_: [-len(text) / 100 for text in completions]]
        policy = preferl.train_rl(
            {str(policy_directory)!r}, prompts, rewards, num_iterations=1, batch_size=4, response_length=4
        )
        print("ended with", sorted(policy.metrics[-1])[-1])
        """)
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "ended with" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_every_public_name_is_there():
    assert set(preferl.__all__) <= set(dir(preferl))
    for name in preferl.__all__:
        assert getattr(preferl, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'train_ppo'"):
        preferl.train_ppo  # noqa: B018


def state_of_everything():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "verbosity": transformers_logging.get_verbosity(),
        "bars": transformers_logging.is_progress_bar_enabled(),
        "path": list(sys.path),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


def test_nothing_global_changes(model):
    """Seeds, threads, logging, paths; and the model that was handed over is what it was."""
    model.model.train()
    weights, flags = load.weights_hash(model.model), [p.requires_grad for p in model.model.parameters()]
    before = state_of_everything()
    settings = QUICK | {"seed": 7}
    result = preferl.train_reward(model, ROWS, audit=False, **settings)
    preferl.train_rl(model, ROWS, result.model, **RL)
    preferl.train_sft(model, ROWS, **settings)
    preferl.train_dpo(model, ROWS, **settings)
    after = state_of_everything()
    assert {name for name in before if before[name] != after[name]} == set()
    assert load.weights_hash(model.model) == weights
    assert [p.requires_grad for p in model.model.parameters()] == flags
    assert model.model.training


def test_it_is_what_the_command_does(model, tmp_path):
    """The same rows, model and options as files and flags: the same weights and numbers."""
    file, start = tmp_path / "pairs.jsonl", tmp_path / "start"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model.save(start)
    called = preferl.train_reward(model, ROWS, **QUICK)
    options = {name: value for name, value in QUICK.items() if name != "verbose"}
    path = reward_stage.run(
        reward_stage.RewardConfig(
            model_name_or_path=str(start),
            dataset_name=str(file),
            output_dir=str(tmp_path / "reward"),
            **options,
        )
    )
    command = StageRecord(path)
    assert [row["train/loss"] for row in called.metrics] == [row["train/loss"] for row in command.metrics]
    assert load.weights_hash(called.model.model) == load.weights_hash(
        reward_stage.load_reward_model(str(path), torch.device("cpu"))[0]
    )


# ---------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        tuple(ROWS),
        (row for row in ROWS),
        datasets.Dataset.from_list(ROWS),
    ],
    ids=["list", "tuple", "generator", "Dataset"],
)
def test_rows_however_they_are_given(data):
    source = preferl.load_dataset(data, verbose=False)
    parts = (source.train, source.dev, source.eval)
    assert sum(len(part.pairs) for part in parts) == 40
    assert all(part.pairs for part in parts)
    assert {p.columns["answer"] for part in parts for p in part.prompts} == {r["answer"] for r in ROWS}
    assert source.train.prompts == source.prompts


@pytest.mark.parametrize("kind", [dict, datasets.DatasetDict])
def test_splits_however_they_are_given(kind):
    rows = {"train": ROWS[:30], "validation": ROWS[30:34], "test": ROWS[34:]}
    if kind is datasets.DatasetDict:
        rows = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in rows.items()})
    source = preferl.load_dataset(rows, verbose=False)
    assert [len(part.pairs) for part in (source.train, source.dev, source.eval)] == [30, 4, 6]


def test_texts_are_prompts():
    source = preferl.load_dataset([f"Say {i}." for i in range(20)], verbose=False)
    assert sum(len(part.prompts) for part in (source.train, source.dev, source.eval)) == 20


def test_what_was_read_is_said(capsys):
    preferl.load_dataset([*ROWS, {"prompt": "What?", "chosen": "", "rejected": "b", "answer": ""}])
    said = capsys.readouterr().out
    assert "40 of 41 rows used" in said
    assert "split:" in said


def test_prompts_of_a_data_set_are_all_trained_on(model):
    data = preferl.load_dataset(ROWS, verbose=False)
    result = preferl.train_rl(model, data.prompts, has_answer, **RL)
    assert not any("dev/reward" in row for row in result.metrics)
    assert [row["step"] for row in result.metrics] == [1, 2]


def test_collected_comparisons_are_a_data_set(model):
    def shorter(completions, **_):
        return [-float(len(text)) for text in completions]

    counts = {"train": 12, "dev": 4, "rl": 0, "eval": 4}
    asked = [f"Say {i}." for i in range(20)]
    options = {"label_mode": "deterministic", "response_length": 6, "verbose": False}
    found = preferl.collect(model, asked, shorter, pairs=counts, **options)
    assert [len(found.data[name].pairs) for name in ("train", "dev", "eval")] == [12, 4, 4]
    for pair in found.data.train.pairs:
        assert len(pair.chosen) <= len(pair.rejected)
    trained = preferl.train_dpo(model, found, **QUICK)
    assert trained.summary["pairs"] == 12


# --------------------------------------------------------------------------------------- rewards, algorithms


def test_rewards_are_added_up_by_their_weights(model):
    def one(completions, **_):
        return [1.0] * len(completions)

    def length(completions, **_):
        return [float(len(text)) for text in completions]

    settings = RL | {"missing_eos_penalty": 0.0, "reward_clip": 0.0}
    result = preferl.train_rl(model, ROWS, [one, length], reward_weights=[3.0, 0.5], **settings)
    for row in result.samples:
        assert row["reward"] == pytest.approx(3.0 + 0.5 * len(row["response"]), rel=1e-5)


def test_an_algorithm_of_ones_own(model):
    used = []

    def reward_of_group(rollout, options, state, generator):
        used.append(rollout.group_size)
        score_PG = preferl.learning.algorithms.total_reward(rollout)
        return preferl.learning.algorithms.over_tokens(score_PG - score_PG.mean(), rollout)

    row = preferl.Algorithm(
        loss=preferl.learning.algorithms.policy_gradient_loss, advantage=reward_of_group, several_passes=False
    )
    result = preferl.train_rl(model, ROWS, has_answer, algorithm=row, **RL)
    assert used == [1, 1]
    assert result.summary["iterations"] == 2


# ------------------------------------------------------------------------------------------ results on disk


def test_the_same_call_again_is_finished(model, tmp_path):
    """The same objects: nothing is done again. Others: an error; fresh=True does it anew."""
    calls = []
    usual = QUICK | {"output_dir": tmp_path / "reward", "audit": False}
    first = preferl.train_reward(model, ROWS, callbacks=[lambda step, metrics: calls.append(step)], **usual)
    assert calls == [row["step"] for row in first.metrics]
    before = files_of(tmp_path / "reward")
    again = preferl.train_reward(model, ROWS, callbacks=[lambda step, metrics: calls.append(-1)], **usual)
    assert -1 not in calls
    assert again.metrics == first.metrics
    assert files_of(tmp_path / "reward") == before
    with pytest.raises(preferl.UsageError, match=r"finished with other options .*dataset_name.*fresh=True"):
        preferl.train_reward(model, ROWS[:30], **usual)
    preferl.train_reward(model, ROWS[:30], fresh=True, **usual)
    assert files_of(tmp_path / "reward") != before


def test_another_function_is_another_reward(model, tmp_path):
    """A cell that is edited and run again: what the function does decides, not what it is called."""
    usual = RL | {"output_dir": tmp_path / "rl"}
    preferl.train_rl(model, ROWS, lambda completions, **_: [1.0] * len(completions), **usual)
    preferl.train_rl(model, ROWS, lambda completions, **_: [1.0] * len(completions), **usual)
    with pytest.raises(preferl.UsageError, match=r"other options .*reward_model"):
        preferl.train_rl(model, ROWS, lambda completions, **_: [2.0] * len(completions), **usual)


def test_what_a_function_refers_to_is_part_of_it(model, tmp_path):
    def constant(value):
        return lambda completions, **_: [value] * len(completions)

    usual = RL | {"output_dir": tmp_path / "rl"}
    preferl.train_rl(model, ROWS, constant(1.0), **usual)
    preferl.train_rl(model, ROWS, constant(1.0), **usual)
    with pytest.raises(preferl.UsageError, match=r"other options .*reward_model"):
        preferl.train_rl(model, ROWS, constant(2.0), **usual)


def test_a_function_without_a_fingerprint_is_never_the_same(model, tmp_path):
    """It refers to what cannot be told from another, as a connection: it runs, and is not reused."""
    numbers = (float(i) for i in range(1000))
    usual = RL | {"output_dir": tmp_path / "rl"}

    def counted(completions, **_):
        return [next(numbers) for _ in completions]

    preferl.train_rl(model, ROWS, counted, **usual)
    with pytest.raises(preferl.UsageError, match=r"other options .*reward_model"):
        preferl.train_rl(model, ROWS, counted, **usual)


def test_a_result_is_saved_where_it_is_kept(scorer, tmp_path):
    kept = scorer.save(tmp_path / "kept")
    asked = (["What is 3 + 1?"], ["4."])
    assert preferl.RewardModel.load(str(kept))(*asked) == scorer.model(*asked)
    assert files_of(kept) == files_of(scorer.path)
    assert StageRecord(kept).config["learning_rate"] == 1e-3  # what was chosen for it
    assert StageRecord(kept).summary == scorer.summary
    with pytest.raises(preferl.UsageError, match="nothing is overwritten"):
        scorer.save(tmp_path / "kept")


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model is a int; give a name, a Policy"),
        ({"data": 3}, "data is a int; give a name, rows"),
        ({"data": {"train": 3}}, "a dict whose values are no rows"),
        ({"data": [3, 4]}, "row 1: is of type int, not an object with columns"),
        ({"data": [{"promt": "a", "chosen": "b"}]}, "has the columns chosen, promt"),
        ({"data": "no/such/file.jsonl"}, "no file or folder here"),
        ({"learning_rte": 1.0}, "no option learning_rte; did you mean learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; its type is float"),
        ({"loss": "dpo"}, "loss 'dpo' is unknown"),
        ({"model": "no/such/model"}, "no/such/model"),
        ({"split": "best"}, "no split 'best'"),
        ({"pooling": "max"}, "pooling 'max' is unknown"),
    ],
)
def test_errors_speak_of_arguments(model, change, message):
    arguments = {"model": model, "data": ROWS, **QUICK, **change}
    with pytest.raises((preferl.UsageError, preferl.DataError)) as raised:
        preferl.train_reward(arguments.pop("model"), arguments.pop("data"), **arguments)
    assert message in str(raised.value)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_funcs": 3}, "reward_funcs holds a int"),
        ({"reward_funcs": [has_answer], "reward_weights": [1.0, 2.0]}, "1 parts and reward_weights 2"),
        ({"algorithm": "a2c"}, "algorithm 'a2c' is unknown"),
        ({"algorithm": 3}, "algorithm is a int"),
        ({"reward_funcs": lambda completions, **_: [1.0]}, "returned 1 scores for 3 responses"),
        ({"reward_funcs": lambda completions, **_: 1 / 0}, "ZeroDivisionError"),
        ({"reward_funcs": lambda completions, **_: [None] * len(completions)}, "all of them returned None"),
        ({"max_rows": 3}, "max_rows: the data set is loaded already"),
    ],
)
def test_errors_of_rl_speak_of_arguments(model, change, message):
    data = preferl.load_dataset(ROWS, verbose=False)
    arguments = {"reward_funcs": has_answer, **RL, **change}
    with pytest.raises(preferl.UsageError) as raised:
        preferl.train_rl(model, data, arguments.pop("reward_funcs"), **arguments)
    assert message in str(raised.value)
    assert "--" not in str(raised.value)


def test_a_failing_function_shows_where(model):
    """What the function raised is the cause, with its own traceback."""

    def broken(completions, **_):
        raise KeyError("answers")

    with pytest.raises(preferl.UsageError, match="KeyError: 'answers'") as raised:
        preferl.train_rl(model, ROWS, broken, **RL)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_model_of_transformers_needs_its_tokenizer(model):
    with pytest.raises(preferl.UsageError, match="tokenizer="):
        preferl.train_sft(model.model, ROWS, **QUICK)
    result = preferl.train_sft(model.model, ROWS, tokenizer=model.tokenizer, **QUICK)
    assert result.summary["updates"] == 4


def test_several_processes_need_a_directory(model, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(preferl.UsageError, match="give output_dir"):
        preferl.train_sft(model, ROWS, **QUICK)
