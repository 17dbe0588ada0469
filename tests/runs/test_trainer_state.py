"""What is read of another trainer's ``trainer_state.json``, and what a bad one does."""

import json

import pytest

from preferl.runs.errors import UsageError
from preferl.runs.trainer_state import MAX_REWARDS, MAX_ROWS, find_trainer_state, read_curves


def write(folder, history, name="trainer_state.json"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(history if isinstance(history, str) else json.dumps({"log_history": history}))
    return path


def test_rows_are_read_by_what_trainers_call_them(tmp_path):
    history = [
        {"step": 1, "reward": 1, "kl": 0.0, "completions/mean_length": 9.0, "entropy": 3.0, "loss": 0.1,
         "completions/clipped_ratio": 0.2, "rewards/a/mean": 0.5, "rewards/b/mean": 0.5, "epoch": 0.1},
        {"step": 1, "eval_reward": 2.0, "eval_loss": 0.3, "eval_runtime": 1.0},
        {"step": 2, "reward": 1.5, "kl": 0.2, "completion_length": 10.0},
        {"step": 2, "train_runtime": 5.0},
    ]  # fmt: skip
    curves = read_curves(write(tmp_path, history))
    assert curves.rows == [
        {"step": 1, "train/reward": 1.0, "train/kl_per_token": 0.0, "train/length": 9.0,
         "train/clipped_ratio": 0.2, "train/entropy": 3.0, "train/loss": 0.1, "train/reward/a": 0.5,
         "train/reward/b": 0.5, "dev/reward": 2.0, "dev/loss": 0.3},
        {"step": 2, "train/reward": 1.5, "train/kl_per_token": 0.2, "train/length": 10.0},
    ]  # fmt: skip
    assert curves.left_out == 0


@pytest.mark.parametrize(
    ("row", "found"),
    [
        # TRL's old PPO and RLOO: a KL per response
        ({"objective/scores": 1.0, "objective/kl": 9.0}, {"train/reward": 1.0, "train/kl": 9.0}),
        ({"loss": 0.6, "rewards/accuracies": 0.7, "rewards/margins": 0.1},
         {"train/loss": 0.6, "train/accuracy": 0.7, "train/margin": 0.1}),  # DPO
        ({"loss": 0.5, "kl": 0.3}, {"train/loss": 0.5}),  # KTO's reference point is no KL of ours
    ],
)  # fmt: skip
def test_other_trainers_names(tmp_path, row, found):
    assert read_curves(write(tmp_path, [row | {"step": 3}])).rows == [{"step": 3, **found}]


def test_numbers_that_are_none_are_left_out_and_counted(tmp_path):
    bad = '[{"step": 1, "reward": NaN, "kl": 1e999, "loss": %s, "entropy": 1.0},' % ("9" * 400)
    more = (
        '{"step": true, "reward": 1}, {"step": -1, "reward": 1}, {"step": "2", "reward": 1}, 7, null, {},'
        '{"step": 2, "reward": "high", "loss": [1], "entropy": null, "kl": true}]'
    )
    curves = read_curves(write(tmp_path, '{"log_history": ' + bad + more + "}"))
    assert curves.rows == [{"step": 1, "train/entropy": 1.0}]
    assert curves.left_out == 3


def test_a_long_training_is_thinned_and_rewards_are_few(tmp_path):
    rewards = {f"rewards/f{i}/mean": 1.0 for i in range(30)} | {"rewards/<b>/mean": 1.0}
    history = [{"step": i, "reward": i} | rewards for i in range(3 * MAX_ROWS)]
    rows = read_curves(write(tmp_path, history)).rows
    assert len(rows) == MAX_ROWS
    assert [rows[0]["step"], rows[-1]["step"]] == [0, 3 * MAX_ROWS - 1]
    assert [key for key in rows[0] if "/reward/" in key] == [f"train/reward/f{i}" for i in range(MAX_REWARDS)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"log_history": {}}',
        '{"best_metric": null}',
        "[" * 100_000,
        '{"a": %s}' % ("9" * 5000),
    ],
)
def test_what_is_no_trainers_file_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match=r"trainer_state\.json"):
        read_curves(write(tmp_path, text))


def test_one_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("preferl.runs.trainer_state.MAX_BYTES", 10)
    with pytest.raises(UsageError, match="at most"):
        read_curves(write(tmp_path, [{"step": 1, "reward": 1.0}]))


def test_the_file_is_the_models_own_or_of_the_newest_checkpoint_near(tmp_path):
    model = tmp_path / "out" / "final"
    model.mkdir(parents=True)
    assert find_trainer_state(model) is None
    (model / "trainer_state.json").mkdir()  # no file
    beside = write(model.parent / "checkpoint-900", [])
    write(model.parent / "checkpoint-1000x", [])
    assert find_trainer_state(model) == beside
    write(model / "checkpoint-90", [])
    newest = write(model / "checkpoint-100", [])
    assert find_trainer_state(model) == newest
    (model / "trainer_state.json").rmdir()
    own = write(model, [])
    assert find_trainer_state(model) == own
    # Another checkpoint's curves would go on beyond a checkpoint.
    (model.parent / "checkpoint-500").mkdir()
    assert find_trainer_state(model.parent / "checkpoint-500") is None
