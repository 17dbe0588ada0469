"""The reward stage on a small real model: its loss, what it keeps, and what it says about itself."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch

from preferl.data.records import SPLITS, Comparison, DataError, Pair, PromptRecord
from preferl.data.sources import Part, Source
from preferl.evaluation.scored import quality_of
from preferl.judging.scorers import load_scorer
from preferl.learning import comparisons, fit
from preferl.models import load
from preferl.models.reward import RewardModel, load_reward_model
from preferl.models.storage import Weights
from preferl.reporting.verdict import verdict
from preferl.runs.errors import UsageError
from preferl.runs.record import StageRecord
from preferl.sampling.policy import Policy
from preferl.stages import reward
from preferl.statistics.intervals import Estimate

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


def scored_by_new_model(*rankings: Comparison, policy_directory):
    model, tokenizer = load_reward_model(
        str(policy_directory), CPU, new_head_allowed=True, weights=Weights.TRAINED
    )
    scorer = RewardModel(model, tokenizer)
    encoded = [comparisons.encode(scorer, ranking, random.Random(0)) for ranking in rankings]
    return scorer, comparisons.scores_of_batch(model, tokenizer, encoded)


THREE = Comparison(
    "What is red?", ["No.", "A colour.", "It is the colour of blood."], [3, 1, 2], [0.5, 4.0, 3.0]
)
TWO = Comparison("Tell me of the sea.", ["It is big.", "Go away."], [1, 2])
TIED = Comparison("Tell me of the sky.", ["It is blue.", "It is high.", "No."], [1, 1, 2])


def test_a_batch_holds_every_response_once_with_its_place(policy_directory):
    scorer, scored = scored_by_new_model(THREE, TWO, TIED, policy_directory=policy_directory)
    assert scored.mask_GK.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert scored.rank_GK.tolist() == [[1, 2, 3], [1, 2, 0], [1, 1, 2]]
    best_first = [["A colour.", "It is the colour of blood.", "No."], TWO.responses]
    for g, (ranking, responses) in enumerate(zip((THREE, TWO), best_first, strict=True)):
        alone = scorer([ranking.prompt] * len(responses), responses)
        assert scored.score_GK[g, : len(responses)].tolist() == pytest.approx(alone, abs=1e-5)
    assert scored.margin_GKK[0].tolist() == [[0, 1, 3.5], [-1, 0, 2.5], [-3.5, -2.5, 0]]
    assert scored.margin_GKK[1].abs().sum() == 0


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("name", sorted(comparisons.LOSSES))
def test_every_loss_is_its_formula_and_reaches_the_whole_trunk(name, policy_directory):
    rankings = [THREE, TWO] if name == "plackett_luce" else [THREE, TWO, TIED]
    scorer, scored = scored_by_new_model(*rankings, policy_directory=policy_directory)
    config = reward.RewardConfig(margin_scale=0.4, tie_margin=0.7, center_rewards_coefficient=0.1)
    loss, sums = comparisons.batch_loss(name, scored, config)
    by_hand, centre, right = [], [], []
    for g, ranking in enumerate(rankings):
        K = len(ranking.responses)
        s = scored.score_GK[g, :K].tolist()
        rank = scored.rank_GK[g, :K].tolist()
        all_pairs = [(i, j) for i in range(K) for j in range(i + 1, K)]
        ordered = [(i, j) for i, j in all_pairs if rank[i] < rank[j]]
        right += [s[i] > s[j] for i, j in ordered]
        centre.append(sum((s[i] + s[j]) ** 2 for i, j in all_pairs) / len(all_pairs))
        if name == "plackett_luce":
            terms = [math.log(sum(math.exp(x) for x in s[k:])) - s[k] for k in range(K)]
            by_hand.append(sum(terms))
        elif name == "rao_kupper":
            theta, total = math.exp(0.7), 0.0
            for i, j in all_pairs:
                a, b = math.exp(s[i]), math.exp(s[j])
                win, lose = a / (a + theta * b), b / (b + theta * a)
                total -= math.log(win if rank[i] < rank[j] else 1 - win - lose)
            by_hand.append(total / len(all_pairs))
        else:
            margin = 0.4 * scored.margin_GKK[g] if name == "margin" else torch.zeros(K, K)
            by_hand.append(
                sum(softplus(s[j] - s[i] + float(margin[i, j])) for i, j in ordered) / len(ordered)
            )
    assert loss.item() == pytest.approx(sum(by_hand) + 0.1 * sum(centre), abs=1e-5)
    assert sums["train/accuracy"] == (sum(right), len(right))
    loss.backward()
    still = [n for n, p in scorer.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_label_smoothing_is_the_probability_of_a_wrong_label(policy_directory):
    _, scored = scored_by_new_model(TWO, policy_directory=policy_directory)
    gap = (scored.score_GK[0, 0] - scored.score_GK[0, 1]).item()
    loss, _ = comparisons.batch_loss("bradley_terry", scored, reward.RewardConfig(label_smoothing=0.2))
    assert loss.item() == pytest.approx(0.8 * softplus(-gap) + 0.2 * softplus(gap), abs=1e-5)


def test_a_response_that_was_cut_off_is_read_without_its_end(policy_directory):
    scorer = RewardModel(*load_reward_model(str(policy_directory), CPU, new_head_allowed=True))
    pair = Pair("What is red?", "A", "B", columns={"finished_chosen": False, "finished_rejected": True})
    encoded = comparisons.encode(scorer, pair.comparison(), random.Random(0))
    assert encoded.rows[0][-1] != scorer.tokenizer.eos_token_id
    assert encoded.rows[1][-1] == scorer.tokenizer.eos_token_id


def source_of(rankings) -> Source:
    return Source("x", {split: Part() for split in SPLITS} | {"train": Part(comparisons=rankings)})


def test_each_loss_gets_the_comparisons_that_it_can_learn_from():
    all_tied = Comparison("p", ["a", "b"], [1, 1])
    source = source_of([THREE, TIED, all_tied])

    def shapes(loss):
        name, rankings, notes = comparisons.comparisons_for(reward.RewardConfig(loss=loss), source)
        return name, [len(r.responses) for r in rankings], " ".join(notes)

    assert shapes("auto")[:2] == shapes("balanced")[:2] == ("balanced", [3, 3])
    assert shapes("bradley_terry")[:2] == ("bradley_terry", [2, 2, 2, 2, 2])
    assert shapes("rao_kupper")[:2] == ("rao_kupper", [3, 3, 2])
    assert "left out 1 comparisons: all responses tie" in shapes("balanced")[2]
    assert "1 rankings have ties" in shapes("plackett_luce")[2]
    assert "margins that loss balanced does not use" in shapes("balanced")[2]
    assert shapes("margin")[2].count("margins") == 0
    pairs = comparisons.comparisons_for(reward.RewardConfig(), source_of([TWO]))
    assert pairs[0] == "bradley_terry"
    with pytest.raises(DataError, match="no margin, strength or scores"):
        comparisons.comparisons_for(reward.RewardConfig(loss="margin"), source_of([TWO]))
    with pytest.raises(DataError, match="no comparison"):
        comparisons.comparisons_for(reward.RewardConfig(), source_of([all_tied]))


@pytest.fixture(scope="module")
def rankings_file(tmp_path_factory):
    """Friendly before neutral before rude; neutral ones tie now and then."""
    rows = []
    for i in range(150):
        noun = NOUNS[i % len(NOUNS)]
        responses = [f"Thanks, the {noun} is nice.", f"The {noun} is there.", f"Shut up! The {noun} is bad."]
        split = "train" if i < 100 else "dev" if i < 115 else "eval"
        scores = [2.0, 1.0, 0.0] if i % 3 else [1.0, 1.0, 0.0]
        rows.append(
            {"prompt": f"Tell me of {noun} {i}.", "responses": responses, "scores": scores, "split": split}
        )
    path = tmp_path_factory.mktemp("rankings") / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", sorted(comparisons.LOSSES))
def test_every_loss_learns_rankings(name, config, rankings_file):
    config.dataset_name, config.loss, config.num_train_epochs = str(rankings_file), name, 4
    summary = json.loads((reward.run(config) / "summary.json").read_text())
    assert summary["loss_name"] == name
    assert summary["eval/accuracy"] > 0.95


def test_mean_pooling_learns_and_reloads_under_a_name_of_its_own(config):
    config.pooling, config.num_train_epochs = "mean", 2
    stage = reward.run(config)
    assert json.loads((stage / "summary.json").read_text())["eval/accuracy"] > 0.95
    assert json.loads((stage / "model" / "config.json").read_text())["model_type"] == "preferl-mean-pooled"
    scorer = RewardModel(*load_reward_model(str(stage), CPU))
    prompts, texts = ["Tell me of apple 3.", "Hello"], ["Thanks, the apple is nice.", "No."]
    together = scorer(prompts, texts)
    for prompt, text, score in zip(prompts, texts, together, strict=True):
        ids = torch.tensor([scorer.encode(prompt, text)])
        with torch.no_grad():
            hidden = scorer.model.model(input_ids=ids).last_hidden_state[0]
            by_hand = (hidden @ scorer.model.score.weight[0]).mean() - scorer.model.config.reward_mean
        assert score == pytest.approx(by_hand.item(), abs=1e-5)
    again = dataclasses.replace(config, output_dir=config.output_dir + "-2", model_name_or_path=str(stage))
    with pytest.raises(UsageError, match="mean pooling"):
        reward.run(dataclasses.replace(again, pooling="last"))
    reward.run(again)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_lora_trains_little_and_adapter_and_merged_model_agree(config, policy_directory, pooling):
    config.lora_r, config.learning_rate, config.num_train_epochs, config.pooling = 4, 5e-3, 4, pooling
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert summary["trained_parameters"] < summary["parameters"] / 2
    assert summary["eval/accuracy"] > 0.95
    merged = RewardModel(*load_reward_model(str(stage), CPU))
    rebuilt = RewardModel(*load_reward_model(str(stage / "adapter"), CPU))
    prompts, texts = ["Tell me of apple 3.", "Hello"], ["Thanks, the apple is nice.", "Shut up!"]
    assert rebuilt(prompts, texts) == pytest.approx(merged(prompts, texts), abs=1e-4)
    before, _ = load.load_policy(str(policy_directory), CPU)
    trunk = merged.model.model
    assert torch.equal(before.get_input_embeddings().weight, trunk.get_input_embeddings().weight)


def test_lora_dropout_is_on_in_training_and_nowhere_else(config, pairs_file):
    """What is measured and normalised while training are the scores of the model that is saved."""
    config = dataclasses.replace(config, lora_r=4, learning_rate=1e-2, weight_average=0.0, num_evals=1)
    runs = {}
    for dropout in (0.0, 0.5):
        own = dataclasses.replace(config, lora_dropout=dropout, output_dir=config.output_dir + str(dropout))
        runs[dropout] = reward.run(own)
    losses = {dropout: [row["train/loss"] for row in metrics(stage)] for dropout, stage in runs.items()}
    assert losses[0.0][1:] != losses[0.5][1:]
    scorer = RewardModel(*load_reward_model(str(runs[0.5]), CPU))
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    chosen, rejected = (
        np.array(scorer([r["prompt"] for r in rows], [r[side] for r in rows]))
        for side in ("chosen", "rejected")
    )
    split = np.array([row["split"] for row in rows])
    summary = json.loads((runs[0.5] / "summary.json").read_text())
    gap = (chosen - rejected)[split == "dev"] * summary["reference_sd"]
    assert np.logaddexp(0, -gap).mean() == pytest.approx(summary["dev/loss"], rel=1e-3)
    reference = np.concatenate([chosen, rejected])[np.tile(split == "train", 2)]
    assert (reference.mean(), reference.std()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))


def test_encoders_learn_from_their_own_tokenizer(config, encoder_directory):
    config.model_name_or_path, config.num_train_epochs = str(encoder_directory), 4
    stage = reward.run(config)
    assert json.loads((stage / "summary.json").read_text())["eval/accuracy"] > 0.95


def test_an_ensemble_has_members_of_its_own_and_is_their_mean(config, tmp_path):
    config.num_members, config.member_share = 2, 0.8
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert len(summary["eval/member_accuracies"]) == 2
    members = [RewardModel(*load_reward_model(str(stage / f"member-{m}"), CPU)) for m in range(2)]
    assert load.weights_hash(members[0].model) != load.weights_hash(members[1].model)
    prompts, texts = ["Tell me of apple 3."], ["Thanks, the apple is nice."]
    first, second = (member(prompts, texts)[0] for member in members)
    assert load_scorer(str(stage), CPU)(prompts, texts) == [pytest.approx((first + second) / 2)]
    assert load_scorer(f"min({stage})", CPU)(prompts, texts) == [pytest.approx(min(first, second))]
    spread = abs(first - second) / 2
    assert load_scorer(f"mean-2sd({stage})", CPU)(prompts, texts) == [
        pytest.approx((first + second) / 2 - 2 * spread)
    ]
    trained = [
        json.loads((stage / f"member-{m}" / "summary.json").read_text())["comparisons"] for m in range(2)
    ]
    assert all(80 < count < 160 for count in trained)


def test_an_interrupted_ensemble_goes_on_at_its_member(config, monkeypatch):
    config.num_members = 2
    train, calls = reward.train, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(reward, "train", once)
    with pytest.raises(KeyboardInterrupt):
        reward.run(config)
    reward.run(config)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("loss", "hinge", "unknown; use auto"),
        ("weight_average", 1.5, "between 0 and 1"),
        ("label_smoothing", 0.7, "between 0 and 0.5"),
        ("tie_margin", 0, "above 0"),
        ("num_members", 0, "1 or more"),
        ("pooling", "max", "last or mean"),
    ],
)
def test_options_that_cannot_work_are_refused(config, option, value, message):
    setattr(config, option, value)
    with pytest.raises(UsageError, match=message):
        reward.run(config)


def test_it_learns_keeps_the_best_weights_and_normalises(config, pairs_file):
    config.num_train_epochs = 4
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    assert summary["eval/pairs"] == 50
    assert summary["eval/accuracy"] == 1
    assert summary["eval/accuracy_low"] > 0.9
    rows = metrics(stage)
    dev = {row["step"]: row["dev/loss"] for row in rows if "dev/loss" in row}
    assert summary["dev/loss"] == min(dev.values()) == dev[summary["best_update"]]

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
    assert kept == pytest.approx(summary["dev/loss"], rel=1e-3)
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
    step = fit.clip_and_step

    def spy(optimizer, *rest):
        norm = step(optimizer, *rest)
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        return norm

    monkeypatch.setattr(fit, "clip_and_step", spy)
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
        Pair("p", "a", "b", columns={"p_chosen": p, "gold_chosen": 0.0, "gold_rejected": 0.0})
        for p in (0.9, 0.2, 0.6, 0.5)
    ]
    quality = quality_of(np.array([2.0, 1.0, -1.0, 0.0]), records, seed=0)
    # Expected accuracy of the choices: 0.9, 0.2, 1 - 0.6, and a coin; the best choices: 0.9, 0.8, 0.6, 0.5.
    assert quality["expected_accuracy"] == pytest.approx((0.9 + 0.2 + 0.4 + 0.5) / 4)
    assert quality["bayes_accuracy"] == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)
    assert quality["fraction_of_bayes"] == pytest.approx(2.0 / 2.8)
    assert quality["accuracy"] == pytest.approx(2.5 / 4)
    losses = [math.log1p(math.exp(-g)) for g in (2.0, 1.0, -1.0, 0.0)]
    assert quality["loss"] == pytest.approx(sum(losses) / 4)


def test_calibration_is_that_of_scores_that_are_log_odds():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    first_wins = rng.random(20_000) < 1 / (1 + np.exp(-logit))
    gap = np.where(first_wins, logit, -logit)
    records = [Pair("p", "a", "b")] * len(gap)
    assert quality_of(gap, records, seed=0)["ece"] < 0.02
    assert quality_of(3 * gap, records, seed=0)["ece"] > 0.05


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"max_steps": 20, "num_evals": 20}, None),
        ({"max_steps": None}, {"max_steps": None, "num_train_epochs": 3.0, "num_evals": 30}, None),
        ({}, {"max_steps": 20}, "raise num_evals in the same proportion"),
        ({}, {"max_steps": 20, "num_evals": 20, "weight_average": 0.1}, "weight_average 0.1 is a share"),
        ({}, {"max_steps": 20, "num_evals": 20, "num_members": 2}, "members that are finished"),
        ({}, {"max_steps": 20, "num_evals": 20, "lr_scheduler_type": "linear"}, "ends where the run ends"),
        (
            {"max_steps": None},
            {"max_steps": None, "num_train_epochs": 1.5, "num_evals": 15},
            "raise num_evals in the same proportion",
        ),
    ],
)
def test_a_longer_run_must_have_measured_at_the_same_updates(before, after, reason):
    """The best of the measured weights are kept."""
    usual = {"max_steps": 10, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_average": 0.0}
    stored, options = (dataclasses.asdict(reward.RewardConfig(**usual | given)) for given in (before, after))
    stored |= {name: options[name] for name in ("weight_average", "num_members", "lr_scheduler_type")}
    why = reward.why_not_longer(stored, options)
    assert why is None if reason is None else reason in why


def test_the_last_weights_are_measured_beside_the_kept_ones(config):
    config.learning_rate, config.lr_scheduler_type = 0.3, "constant"
    config.num_train_epochs, config.num_evals, config.patience = 10, 50, 2
    stage = reward.run(config)
    summary = json.loads((stage / "summary.json").read_text())
    measured = {row["step"]: row for row in metrics(stage) if "dev/loss" in row}
    best, last = measured[summary["best_update"]], measured[max(measured)]
    assert summary["best_update"] < max(measured)
    for name in ("loss", "accuracy"):
        assert summary[f"dev/{name}"] == best[f"dev/{name}"]
        assert summary[f"dev/final_{name}"] == last[f"dev/{name}"]
    assert summary["dev/final_loss"] > summary["dev/loss"]


def test_a_reward_model_that_may_be_no_better_than_chance_or_length_is_said_to_be(config, tmp_path, capsys):
    """Labels by the toss of a coin teach nothing; the better of the other rows is known by its words."""
    rng = random.Random(0)
    rows = [pair(i, "train" if i < 60 else "dev" if i < 80 else "eval") for i in range(140)]
    for row in rows:
        if rng.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    tossed = tmp_path / "tossed.jsonl"
    tossed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = reward.run(dataclasses.replace(config, dataset_name=str(tossed)))
    said = capsys.readouterr().out
    assert "warning: on these pairs the reward model cannot be told from chance" in said
    found = verdict({"reward": StageRecord(stage)})
    assert "But on these pairs the reward model cannot be told from chance." in found.text
    good = reward.run(dataclasses.replace(config, output_dir=str(tmp_path / "good")))
    assert "cannot be told from" not in capsys.readouterr().out
    assert "But" not in verdict({"reward": StageRecord(good)}).text


def test_a_reward_model_is_held_against_the_rule_of_length():
    quality = {"accuracy": 0.69, "accuracy_low": 0.59, "accuracy_high": 0.77}
    quality |= Estimate(-0.01, -0.09, 0.08).named("length_baseline_gain")
    (doubt,) = reward.doubts(quality, "shorter")
    assert doubt.endswith(
        "cannot be told from preferring the shorter response (difference -1.0% [-9.0%, +8.0%])"
    )
    assert not reward.doubts(quality | Estimate(0.1, 0.02, 0.2).named("length_baseline_gain"), "shorter")


def test_how_often_is_measured_changes_nothing_that_trains(config, tmp_path):
    config.num_evals = 1
    seldom = [(row["train/loss"], row["grad_norm"]) for row in metrics(reward.run(config))]
    often = dataclasses.replace(config, num_evals=10, output_dir=str(tmp_path / "often"))
    assert [(row["train/loss"], row["grad_norm"]) for row in metrics(reward.run(often))] == seldom


def test_mean_scores_of_preferred_and_rejected_are_logged(config, pairs_file):
    """Of held-out pairs by the saved model, its normalisation undone."""
    config.num_evals, config.weight_average = 1, 0.0
    stage = reward.run(config)
    summary, last = json.loads((stage / "summary.json").read_text()), metrics(stage)[-1]
    scorer = load_scorer(str(stage), CPU)
    dev = [pair(i, "dev") for i in range(160, 180)]
    for side in ("chosen", "rejected"):
        scores = scorer(
            [row["prompt"] for row in dev], [row[side] for row in dev], finished=[True] * len(dev)
        )
        raw = np.mean(scores) * summary["reference_sd"] + summary["reference_mean"]
        assert last[f"dev/score_{side}"] == pytest.approx(raw, abs=1e-4)
    gaps = [row["train/score_chosen"] - row["train/score_rejected"] for row in metrics(stage)]
    assert gaps[-1] > gaps[0]


def test_training_scores_are_means_over_ordered_pairs():
    """Of 3 > 1 = 1 (two ordered pairs) and 0 > -2 (one), with what stands in the padding left out."""
    scored = comparisons.Scored(
        torch.tensor([[3.0, 1.0, 0.5], [0.0, -2.0, 99.0]]),
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
        torch.tensor([[1, 2, 2], [1, 2, 0]]),
        torch.zeros(2, 3, 3),
    )
    _, sums = comparisons.batch_loss("balanced", scored, reward.RewardConfig())
    assert sums["train/accuracy"] == (3, 3)
    assert sums["train/score_chosen"] == (pytest.approx(3 + 3 + 0), 3)
    assert sums["train/score_rejected"] == (pytest.approx(1 + 0.5 - 2), 3)


def test_preferls_own_pairs_are_trained_on_by_one_option(config, tmp_path):
    """All audits score them; which of them were trained on is known from the training pairs."""
    config.max_length = 64
    alone = json.loads((reward.run(config) / "audit.json").read_text())
    assert not any(row["trained_on"] for row in alone["analysis"]["rows"])
    more = dataclasses.replace(config, also_train_on="world:analysis", output_dir=str(tmp_path / "more"))
    stage = reward.run(more)
    summary = json.loads((stage / "summary.json").read_text())
    assert (summary["comparisons"], summary["train_pairs"], summary["eval/pairs"]) == (170, 170, 50)
    assert any("10 comparisons of world:analysis" in note for note in summary["notes"])
    rows = json.loads((stage / "audit.json").read_text())["analysis"]["rows"]
    assert [row["trained_on"] for row in rows] == [True] * 10 + [False] * 4
    own = dataclasses.replace(
        config,
        dataset_name="world:demonstration",
        num_train_epochs=30,
        train_batch_size=6,
        output_dir=str(tmp_path / "own"),
    )
    summary = json.loads((reward.run(own) / "summary.json").read_text())
    assert (summary["comparisons"], summary["eval/pairs"]) == (6, 4)
    assert metrics(tmp_path / "own")[-1]["train/accuracy"] == 1


def test_simple_rules_stand_beside_the_accuracy_with_and_without_an_audit(config, tmp_path):
    with_audit = json.loads((reward.run(config) / "summary.json").read_text())
    bare = dataclasses.replace(config, audit=False, output_dir=str(tmp_path / "bare"))
    without = json.loads((reward.run(bare) / "summary.json").read_text())
    for name in ("length", "bag_of_words"):
        for end in ("", "_low", "_high"):
            key = f"eval/{name}_baseline_accuracy{end}"
            assert with_audit[key] == without[key]
    # The friendly answer is told by its words in all 50 held-out pairs, by its length in none but by chance.
    assert with_audit["eval/bag_of_words_baseline_accuracy"] == 1
    assert 0.9 < with_audit["eval/bag_of_words_baseline_accuracy_low"] < 1


def test_a_member_of_few_prompts_has_one_at_least():
    rankings = [Pair(f"p{i}", "a", "b").comparison() for i in range(2)]
    source = Source("mine", {split: Part(comparisons=rankings) for split in SPLITS})
    for seed in range(20):
        config = reward.RewardConfig(member_share=0.05, seed=seed)
        assert 1 <= len(comparisons.comparisons_for(config, source)[1]) <= 2


@pytest.mark.parametrize(("prompts", "samples"), [(1, 32), (3, 33), (32, 32), (40, 40)])
def test_few_prompts_are_answered_several_times_to_normalise(prompts, samples, policy_directory):
    """The mean and sd of scores are over 32 samples at least; a single one would have no sd."""
    asked = [PromptRecord(f"What is {i}?") for i in range(prompts)]
    source = Source("mine", {split: Part(prompts=asked) for split in SPLITS})
    seen = []

    def length(prompts, completions, finished):
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    config = reward.RewardConfig(response_length=6)
    mean, sd = reward.reference_scores(config, length, source, Policy.load(str(policy_directory), CPU))
    assert len(seen) == samples
    assert (mean, sd) == pytest.approx((np.mean([len(t) for t in seen]), np.std([len(t) for t in seen])))
    assert sd > 0
