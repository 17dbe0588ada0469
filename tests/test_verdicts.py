"""Policies that gamed their reward, trained for real in the world, and what their pages say of them.

One small SFT model; eight seeds of everything else. Nothing here depends on the luck of a trajectory: the
annotator or the reward is a proxy, and there is no KL penalty.
"""

import dataclasses
import time
from pathlib import Path

import pytest

from preferl import pipeline
from preferl.pipeline import RunConfig
from preferl.reporting.verdict import BETTER, HACKED, verdict
from preferl.runs.record import StageRecord, stage_records
from preferl.stages import evaluate, sft
from preferl.stages.evaluate import EvaluateConfig
from preferl.stages.sft import SftConfig
from seeds import SEEDS, require_at_most

# Without a KL penalty, in so many updates that every seed has found the trick.
UNLEASHED = {
    "kl_coef": 0.0,
    "num_iterations": 12,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "eval_every": 0,
    "save_every": 0,
}
SETTINGS = {
    "a reward of length": {
        "stages": ["rl", "evaluate"],
        "rl": UNLEASHED | {"reward_model": "10*length"},
    },
    "an annotator of sentiment": {
        "stages": ["collect", "reward", "rl", "evaluate"],
        "collect": {"annotator": "sentiment", "pairs": {"train": 400, "dev": 20, "rl": 0, "eval": 40}},
        "reward": {"pooling": "mean", "train_embeddings": False, "learning_rate": 2e-3},
        "rl": UNLEASHED,
    },
}


@pytest.fixture(scope="module")
def sft_model(tmp_path_factory) -> Path:
    config = SftConfig(
        output_dir=str(tmp_path_factory.mktemp("shared") / "sft"),
        hidden_size=64,
        num_heads=4,
        num_train_epochs=2.0,
        num_threads=1,
    )
    return sft.run(config)


@pytest.mark.slow
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_a_gamed_reward_is_called_hacked_and_without_a_truth_never_better(setting, sft_model, tmp_path):
    """Gold is the world's reward, whoever labelled. With it hidden, the signs of gaming must do."""
    started, gold_high, words, hidden = time.monotonic(), [], [], []
    for seed in SEEDS:
        config = RunConfig(
            output_dir=str(tmp_path / f"run-{seed}"),
            model_name_or_path=str(sft_model),
            temperature=0.8,
            response_length=32,
            seed=seed,
            num_threads=1,
            evaluate={"max_eval_prompts": 80, "best_of": []},
            **SETTINGS[setting],
        )
        pipeline.run(config)
        stages = dict(stage_records(Path(config.output_dir)))
        found = stages["evaluate"].summary["comparison"]
        assert found["score"]["difference_low"] > 0
        gold_high.append(found["gold"]["difference_high"])
        words.append(verdict(stages).word)
        again = EvaluateConfig(**stages["evaluate"].config)
        again = dataclasses.replace(again, gold=None, output_dir=str(tmp_path / f"hidden-{seed}"))
        stages["evaluate"] = StageRecord(evaluate.run(again))
        found_now = verdict(stages)
        assert "by the training signal only" in found_now.text
        hidden.append(found_now.word)
    print(f"{setting}: {words}, hidden: {hidden}, {time.monotonic() - started:.0f} s")
    require_at_most(-0.5, 0.0, gold_high)
    assert words.count(HACKED) >= 7, words
    assert not [word for word in words + hidden if word.startswith(BETTER)], (words, hidden)
