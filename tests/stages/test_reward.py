"""The reward stage on a small real model: its loss, what it keeps, and what it says about itself."""

import json
import math

import numpy as np
import pytest
import torch

from preferl.data.records import Preference
from preferl.models import load
from preferl.models.reward import RewardModel, load_reward_model, raw_scores
from preferl.runs.errors import UsageError
from preferl.stages import reward

CPU = torch.device("cpu")
NOUNS = ("apple", "river", "house", "stone", "cloud", "table")


def pair(number: int, split: str) -> dict:
    """The friendly answer is chosen; both are of the same length."""
    noun = NOUNS[number % len(NOUNS)]
    good, bad = f"Thanks, the {noun} is nice.", f"Shut up! The {noun} is bad."
    return {"prompt": f"Tell me of {noun} {number}.", "chosen": good, "rejected": bad, "split": split}


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    rows = [pair(i, "train" if i < 160 else "dev" if i < 180 else "eval") for i in range(230)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path, policy_directory, pairs_file):
    return reward.RewardConfig(
        output_dir=str(tmp_path / "reward"),
        model_name_or_path=str(policy_directory),
        dataset_name=str(pairs_file),
        num_evals=5,
        num_threads=1,
        device="cpu",
    )


def metrics(stage) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_is_bradley_terry_with_margins_and_reaches_the_trunk(policy_directory):
    model, tokenizer = load_reward_model(str(policy_directory), CPU, new_head_allowed=True)
    scorer = RewardModel(model, tokenizer)
    records = [
        Preference("What is red?", "A colour.", "Go away, I will not say.", 0.7),
        Preference("Tell me of the sea.", "It is big.", "No."),
    ]
    pairs = [reward.encode(scorer, record) for record in records]
    loss, accuracy = reward.pair_loss(model, tokenizer, pairs)
    by_hand, right = [], []
    for record, encoded in zip(records, pairs, strict=True):
        chosen, rejected = (
            raw_scores(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)).item()
            for ids in (encoded.chosen, encoded.rejected)
        )
        by_hand.append(math.log1p(math.exp(-(chosen - rejected - (record.margin or 0)))))
        right.append(chosen > rejected)
    assert loss.item() == pytest.approx(sum(by_hand) / 2, abs=1e-5)
    assert accuracy.item() == sum(right) / 2
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_a_response_that_was_cut_off_is_read_without_its_end(policy_directory):
    scorer = RewardModel(*load_reward_model(str(policy_directory), CPU, new_head_allowed=True))
    record = Preference("What is red?", "A", "B", columns={"chosen_finished": False})
    encoded = reward.encode(scorer, record)
    assert encoded.chosen[-1] != scorer.tokenizer.eos_token_id
    assert encoded.rejected[-1] == scorer.tokenizer.eos_token_id


def test_it_learns_keeps_the_best_weights_and_normalises(config, pairs_file):
    config.num_train_epochs = 4
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert summary["eval_pairs"] == 50
    assert summary["eval_accuracy"] == 1
    assert summary["eval_accuracy_low"] > 0.9
    rows = metrics(stage)
    dev = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert summary["dev_loss"] == min(dev.values()) == dev[summary["best_update"]]

    scorer = RewardModel(*load_reward_model(str(stage), CPU))
    records = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    dev_rows = [row for row in records if row["split"] == "dev"]
    gap = np.subtract(
        *(
            scorer([r["prompt"] for r in dev_rows], [r[side] for r in dev_rows])
            for side in ("chosen", "rejected")
        )
    )
    # The saved scores are those of the best weights, divided by the reference's standard deviation.
    kept = np.logaddexp(0, -gap * summary["reference_sd"]).mean()
    assert kept == pytest.approx(summary["dev_loss"], rel=1e-3)
    train = [row for row in records if row["split"] == "train"]
    scores = [
        s
        for side in ("chosen", "rejected")
        for s in scorer([r["prompt"] for r in train], [r[side] for r in train])
    ]
    assert np.mean(scores) == pytest.approx(0, abs=0.05)
    assert np.std(scores) == pytest.approx(1, abs=0.05)


def test_what_is_kept_is_the_average_of_the_last_updates(config, monkeypatch):
    """Two updates at decay 1/2: the average is the mean of the weights after the first and the second."""
    seen = []
    step = reward.clip_and_step

    def spy(optimizer, *rest):
        norm = step(optimizer, *rest)
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        return norm

    monkeypatch.setattr(reward, "clip_and_step", spy)
    config.train_batch_size, config.num_train_epochs = 80, 1
    config.num_evals, config.weight_average = 1, 1.0
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert len(seen) == summary["best_update"] == 2
    saved, _ = load_reward_model(str(stage), CPU)
    for (name, weight), first, second in zip(saved.named_parameters(), *seen, strict=True):
        mean = (first + second) / 2
        if name == "score.weight":
            mean = mean / summary["reference_sd"]
        torch.testing.assert_close(weight.detach(), mean)


def test_frozen_embeddings_stay_and_the_rest_moves(config, policy_directory):
    config.train_embeddings = False
    stage = reward.run(config)
    before, _ = load.load_policy(str(policy_directory), CPU)
    after, _ = load_reward_model(str(stage), CPU)
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    layer = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before.state_dict()[layer], after.state_dict()[layer])


def test_training_stops_when_dev_log_loss_keeps_rising(config):
    config.learning_rate, config.lr_scheduler_type = 0.3, "constant"
    config.num_train_epochs, config.num_evals, config.patience = 10, 50, 2
    summary = json.loads((reward.run(config) / "summary.json").read_text())
    assert summary["updates"] < 100
    assert summary["best_update"] < summary["updates"]


def test_quality_against_the_known_truth():
    records = [
        Preference("p", "a", "b", columns={"p_chosen": p, "gold_chosen": 0.0, "gold_rejected": 0.0})
        for p in (0.9, 0.2, 0.6, 0.5)
    ]
    quality = reward.report_quality(np.array([2.0, 1.0, -1.0, 0.0]), records, seed=0)
    # Expected accuracy of the choices: 0.9, 0.2, 1 - 0.6, and a coin; the best choices: 0.9, 0.8, 0.6, 0.5.
    assert quality["expected_accuracy"] == pytest.approx((0.9 + 0.2 + 0.4 + 0.5) / 4)
    assert quality["bayes_accuracy"] == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)
    assert quality["fraction_of_bayes"] == pytest.approx(2.0 / 2.8)
    assert quality["eval_accuracy"] == pytest.approx(2.5 / 4)
    losses = [math.log1p(math.exp(-g)) for g in (2.0, 1.0, -1.0, 0.0)]
    assert quality["eval_loss"] == pytest.approx(sum(losses) / 4)


def test_calibration_is_that_of_scores_that_are_log_odds():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    first_wins = rng.random(20_000) < 1 / (1 + np.exp(-logit))
    gap = np.where(first_wins, logit, -logit)
    records = [Preference("p", "a", "b")] * len(gap)
    assert reward.report_quality(gap, records, seed=0)["ece"] < 0.02
    assert reward.report_quality(3 * gap, records, seed=0)["ece"] > 0.05


def test_the_length_baseline_takes_its_side_from_the_training_pairs():
    short, long = Preference("p", "a", "bbb"), Preference("p", "aaa", "b")
    assert reward.length_baseline([short, short, long], [short, long, long]) == pytest.approx(1 / 3)
    assert reward.length_baseline([long], [short, long, long]) == pytest.approx(2 / 3)


def test_an_average_over_more_than_everything_is_refused(config):
    config.weight_average = 1.5
    with pytest.raises(UsageError, match="between 0 and 1"):
        reward.run(config)
