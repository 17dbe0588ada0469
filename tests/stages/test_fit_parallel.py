"""sft, reward and dpo under torchrun: several processes train as one, fail as one, and go on as they would
have gone on. Processes on the CPU (gloo)."""

import dataclasses
import json
from collections import Counter

import pytest
from safetensors.torch import load_file

from equal_runs import equal_runs
from parallel import assert_same, forked, torchrun
from preferl.data.records import SPLITS
from preferl.stages import dpo, reward, sft

NOUNS = ("apple", "river", "house", "stone", "cloud")

# Runs ``preferl`` with a loss that breaks down in the second process, in its eighth update.
BREAKS_DOWN = """
import os, sys
from preferl import cli
from preferl.stages import dpo

batch_loss, calls = dpo.batch_loss, []

def breaks_down(*arguments):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) > 7:
        raise RuntimeError("the second process has no memory left")
    return batch_loss(*arguments)

dpo.batch_loss = breaks_down
sys.exit(cli.main())
"""


def row(number: int) -> dict:
    """A demonstration and a pair in one, of different lengths."""
    noun = NOUNS[number % len(NOUNS)]
    return {
        "prompt": f"Tell me of {noun} {number}." + " Take your time." * (number % 4),
        "chosen": f"Thanks, the {noun} is nice." + " It is round." * (number % 3),
        "rejected": f"Shut up! The {noun} is bad.",
        "split": SPLITS[number % len(SPLITS)],
    }


@pytest.fixture
def options(tmp_path, policy_directory, monkeypatch):
    """Nine updates on batches of seven rows, in micro-batches of three."""
    monkeypatch.chdir(tmp_path)
    pairs = [row(i) for i in range(80)]
    texts = [{"prompt": p["prompt"], "completion": p["chosen"], "split": p["split"]} for p in pairs]
    for name, rows in (("pairs", pairs), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "output_dir": "one",
        "model_name_or_path": str(policy_directory),
        "dataset_name": "pairs.jsonl",
        "max_steps": 9,
        "train_batch_size": 7,
        "micro_batch_size": 3,
        "num_evals": 3,
        "save_every": 2,
        "learning_rate": 3e-4,
        "num_threads": 1,
        "device": "cpu",
    }


def several(stage: str, config, processes: int = 2):
    """What that many processes made, without a warning."""
    done = forked(stage, processes, dataclasses.replace(config, output_dir="several"))
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr, done.stderr
    return done


def moved(policy_directory, stage) -> float:
    start, end = (load_file(path / "model.safetensors") for path in (policy_directory, stage / "model"))
    return max(float((start[key] - end[key]).abs().max()) for key in start)


@pytest.mark.slow
def test_sft_trains_as_one(options, tmp_path, policy_directory, capsys):
    """Rows of different numbers of tokens: the count of the whole batch divides the loss."""
    options |= {"dataset_name": "texts.jsonl", "check_samples": 5, "response_length": 6}
    config = sft.SftConfig(**options)
    one = sft.run(config)
    done = several("sft", config)
    assert done.stdout.count("sft: ") == capsys.readouterr().out.count("sft: ")
    assert_same(one, tmp_path / "several")
    assert moved(policy_directory, one) > 1e-4


@pytest.mark.slow
def test_reward_trains_as_one(options, tmp_path):
    """Three processes, of which one has no row of some batches; adapters, and the best weights are kept."""
    options |= {"train_batch_size": 2, "lora_r": 2, "weight_average": 0.5, "num_evals": 9}
    config = reward.RewardConfig(**options)
    one = reward.run(config)
    several("reward", config, processes=3)
    assert (one / "adapter" / "adapter_model.safetensors").exists()
    assert_same(one, tmp_path / "several")


@pytest.mark.slow
def test_kto_trains_as_one(options, tmp_path, policy_directory):
    """The reference point is of the rows of all processes."""
    config = dpo.DpoConfig(**options, loss_type="kto", check_samples=0)
    one = dpo.run(config)
    several("dpo", config)
    assert_same(one, tmp_path / "several")
    assert moved(policy_directory, one) > 1e-4


@pytest.mark.slow
def test_ratings_train_as_one(options, tmp_path):
    """Rows with different numbers of ratings: their count over the whole batch divides the loss."""
    rows = []
    for i in range(80):
        pair = row(i)
        ratings = {"kind": float(i // 4 % 3), "brief": None if i % 5 == 0 else float(i // 4 % 2)}
        rated = {"completion": pair["chosen"], "ratings": ratings}
        rows.append({"prompt": pair["prompt"], "split": pair["split"], **rated})
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    options |= {"dataset_name": "ratings.jsonl", "reward_mixture": "1*kind - 0.5*brief", "num_evals": 9}
    config = reward.RewardConfig(**options)
    one = reward.run(config)
    several("reward", config, processes=3)
    assert_same(one, tmp_path / "several")


@pytest.mark.slow
def test_dpo_trains_fails_and_goes_on_as_one(options, tmp_path, policy_directory):
    config = dpo.DpoConfig(**options, check_samples=5, response_length=6)
    one = dpo.run(config)
    whole = tmp_path / "several"
    several("dpo", config)
    assert_same(one, whole)
    assert moved(policy_directory, one) > 1e-4

    (tmp_path / "broken.py").write_text(BREAKS_DOWN)
    config = dataclasses.replace(config, output_dir="parts")
    done = torchrun("dpo", 2, config, program=("broken.py",))
    assert done.returncode != 0
    assert done.stderr.count("error: RuntimeError: the second process has no memory left") == 1
    assert done.stderr.count("preferl: error") == 1, done.stderr
    assert not (tmp_path / "parts" / "DONE").exists()
    assert sorted(path.name for path in (tmp_path / "parts" / "state").iterdir()) == ["step_4", "step_6"]

    done = forked("dpo", 2, config)
    assert done.returncode == 0, done.stderr
    assert Counter(done.stdout.splitlines())["dpo: goes on after step 6"] == 1
    equal_runs(tmp_path / "parts", whole)
