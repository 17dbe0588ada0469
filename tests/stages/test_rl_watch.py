"""What a run watches, refuses and survives: alarms, KL placements, shaping, outliers, interruptions."""

import dataclasses
import json
import math

import pytest
import torch

from equal_runs import equal_runs
from exact import PAD, tabular_task, train, trainer_for, with_outlier
from exact_settings import FAST
from preferl.learning import algorithms, monitor
from preferl.learning.algorithms import NoState
from preferl.learning.rollout import Shaping
from preferl.maths.kl import best_objective
from preferl.models import load
from preferl.runs import checkpoint
from preferl.runs.errors import UsageError
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Samples, Sampling, cut_at_stop
from preferl.stages import rl
from seeds import SEEDS, require_at_least, require_at_most


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def summary(path):
    return json.loads((path / "summary.json").read_text())


REWARDS = """
import pathlib

def vowels(prompts, completions, **columns):
    return [sum(c in "aeiou" for c in t) / 5 for t in completions]

def constant(prompts, completions, **columns):
    return [0.7] * len(prompts)

def large(prompts, completions, **columns):
    return [30.0 + len(t) for t in completions]

def consonants(prompts, completions, **columns):
    return [-v for v in vowels(prompts, completions)]

def stops_once(prompts, completions, **columns):
    calls = pathlib.Path("calls")
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) == 6:
        raise KeyboardInterrupt
    return vowels(prompts, completions)
"""


@pytest.fixture
def config(tmp_path, policy_directory, monkeypatch):
    (tmp_path / "watch_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"prompt": f"What is thing {i}?"} for i in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model="watch_rewards:vowels",
        dataset_name=str(tmp_path / "prompts.jsonl"),
        num_iterations=4,
        batch_size=16,
        response_length=8,
        eval_prompts=4,
        missing_eos_penalty=0.0,
        num_threads=1,
        device="cpu",
    )


# ------------------------------------------------------------------------------------------------- alarms


def test_a_reward_without_variance_and_responses_that_never_end_raise_alarms(config, capsys):
    path = rl.run(dataclasses.replace(config, reward_model="watch_rewards:constant", num_iterations=2))
    found = summary(path)["alarms"]
    assert found["zero_reward_variance"] | {"text": ""} == {"first": 1, "count": 2, "text": ""}
    assert "truncated" in found
    assert metrics(path)[1]["alarms"] == ["truncated", "zero_reward_variance"]
    said = capsys.readouterr()
    assert (said.out + said.err).count("nothing to learn from") == 1


def test_rewards_beyond_the_clip_raise_an_alarm(config):
    large = dataclasses.replace(config, reward_model="watch_rewards:large", num_iterations=1)
    path = rl.run(dataclasses.replace(large, reward_clip=10.0))
    assert "reward_clip of 10" in summary(path)["alarms"]["clipped"]["text"]
    assert "clipped" not in summary(rl.run(dataclasses.replace(large, output_dir="free")))["alarms"]


def a_rollout(task=None):
    task = task or tabular_task(0)
    trainer = trainer_for(task, FAST["rloo k=4"].config(0, task.coef))
    return trainer, trainer.collect()


def test_a_kl_below_zero_beyond_noise_raises_an_alarm():
    """As a truncated sampler or another reference would give: the reference likes every token better."""
    trainer, rollout = a_rollout()
    honest = monitor.describe(rollout, trainer.learner, None, 0.5)
    assert "negative_kl" not in monitor.alarms(rollout, honest, None, None)
    mask = rollout.samples.mask_BT
    shifted = dataclasses.replace(rollout, ref_logp_BT=rollout.ref_logp_BT + 0.1 * mask)
    row = monitor.describe(shifted, trainer.learner, None, 0.5)
    assert row["kl"] < 0
    assert "negative_kl" in monitor.alarms(shifted, row, None, None)


def test_an_objective_above_the_best_possible_raises_an_alarm():
    trainer, rollout = a_rollout()
    row = monitor.describe(rollout, trainer.learner, None, 0.5)
    best = (1.0, 0.05)
    assert "above_best" not in monitor.alarms(
        rollout, row | {"objective": 1.1, "objective_se": 0.05}, best, None
    )
    assert "above_best" in monitor.alarms(rollout, row | {"objective": 1.5, "objective_se": 0.05}, best, None)


@pytest.mark.parametrize(
    ("changes", "known"),
    [({}, True), ({"ref_model": "another"}, False), ({"kl_controller": "adaptive"}, False)],
)
def test_the_best_possible_is_known_where_the_first_batch_is_the_references_own(changes, known):
    """Of another reference, or at a coefficient that moves, a batch of the policy's bounds nothing."""
    task = tabular_task(0)
    trainer = trainer_for(task, FAST["rloo k=4"].config(0, 3.0))
    trainer.config = dataclasses.replace(trainer.config, **changes)
    trainer.iterate(1)
    assert (trainer.state.optimum is not None) == known


def test_the_best_possible_objective_is_that_of_the_enumerated_optimum():
    task = tabular_task(0)
    p = task.ref_logp_XN[0].exp()
    draws = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    value, error, size = best_objective(task.score_XN[0][draws], task.coef)
    assert abs(value - task.best) < 4 * error
    assert 0 < error < 0.02
    assert 0 < size < 200_000


def test_empty_responses_raise_an_alarm():
    trainer, rollout = a_rollout()
    row = monitor.describe(rollout, trainer.learner, None, 0.5)
    assert "empty" in monitor.alarms(dataclasses.replace(rollout, completions=[" "] * 64), row, None, None)
    assert "empty" not in monitor.alarms(
        dataclasses.replace(rollout, completions=["a"] * 64), row, None, None
    )


def test_a_reward_that_no_longer_agrees_with_the_annotator_raises_an_alarm():
    assert monitor.accuracy_alarm(60, 100, 85, 100)
    assert not monitor.accuracy_alarm(80, 100, 85, 100)
    assert not monitor.accuracy_alarm(0, 0, 85, 100)


def test_the_rewards_accuracy_is_measured_on_fresh_pairs(config):
    """A reward that is the annotator agrees always, its opposite never; ties of the annotator say nothing.
    The truth is no annotator, and stands in for one only where none is named."""
    vowels, consonants = "watch_rewards:vowels", "watch_rewards:consonants"
    for reward, gold, annotator, expected in (
        (vowels, vowels, None, 1.0),
        (consonants, vowels, None, 0.0),
        (vowels, consonants, vowels, 1.0),
        (vowels, None, consonants, 0.0),
    ):
        path = rl.run(
            dataclasses.replace(
                config,
                reward_model=reward,
                gold=gold,
                annotator=annotator,
                check_reward_every=2,
                check_reward_pairs=20,
                output_dir="run",
            ),
            fresh=True,
        )
        rows = [row for row in metrics(path) if "dev/reward_accuracy" in row]
        assert [row["step"] for row in rows] == [0, 2, 4]
        assert all(row["dev/reward_accuracy"] == expected for row in rows)
        assert all(0 < row["dev/reward_accuracy_pairs"] <= 20 for row in rows)


# --------------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("place", "estimator", "reason"),
    [
        ("reward", "k2", "next to no gradient"),
        ("reward", "k3", "next to no gradient"),
        ("reward", "exact", "pushes no token"),
        ("loss", "k1", "expected gradient of k1 in the loss is 0"),
    ],
)
def test_kl_placements_that_do_not_regularise_are_refused_with_the_reason(config, place, estimator, reason):
    with pytest.raises(UsageError, match=reason):
        rl.run(dataclasses.replace(config, kl_in=place, kl_estimator=estimator))


@pytest.mark.parametrize("estimator", ["k2", "k2_token", "k3", "exact"])
def test_a_kl_in_the_loss_holds_the_policy(config, estimator):
    base = dataclasses.replace(
        config,
        algorithm="rloo",
        kl_in="loss",
        kl_estimator=estimator,
        num_iterations=8,
        learning_rate=3e-3,
        eval_every=0,
        save_every=0,
    )

    def moved(coef, seed):
        out = f"{coef}-{seed}"
        rows = metrics(rl.run(dataclasses.replace(base, kl_coef=coef, seed=seed, output_dir=out)))
        assert "train/kl_loss" in rows[-1]
        return rows[-1]["train/kl_exact"]

    require_at_most(0.65, 0.85, [moved(5.0, seed) / moved(0.0, seed) for seed in SEEDS])


def test_every_estimator_of_the_kl_is_reported_with_its_error():
    """On a table that has moved: k1, k3 and the exact sum agree with enumeration within four errors."""
    task = tabular_task(1)
    trainer = trainer_for(task, dataclasses.replace(FAST["rloo k=4"].config(0, task.coef), batch_size=2048))
    with torch.no_grad():
        trainer.learner.models.policy.table.add_(
            torch.randn(
                trainer.learner.models.policy.table.shape, generator=torch.Generator().manual_seed(3)
            ),
            alpha=0.8,
        )
    rollout = trainer.collect()
    row = monitor.describe(rollout, trainer.learner, None, task.coef)
    logp = task.logprobs(trainer.learner.models.policy)
    true = float((logp.exp() * (logp - task.ref_logp_XN)).sum())
    length = float((logp.exp() * task.all.mask_BT.sum(-1)).sum())
    assert true > 0.1
    for name in ("kl", "kl_k3", "kl_exact"):
        assert abs(row[name] - true) < 4 * row[name + "_se"], name
        assert row[name + "_se"] > 0
    assert abs(row["kl_per_token"] - true / length) < 4 * row["kl_per_token_se"]
    # The exact sum leaves out the noise of the tokens drawn.
    several = trainer.learner.exact_kl(rollout.samples)
    assert monitor.standard_error(several) < row["kl_se"]
    assert float(several.mean()) == pytest.approx(true, abs=4 * monitor.standard_error(several))


# ---------------------------------------------------------------------------------------------- shaping


def made(finished, lengths):
    mask = torch.tensor([[1] * n + [0] * (4 - n) for n in lengths])
    return Samples(
        torch.zeros((len(lengths), 5), dtype=torch.long), torch.ones((len(lengths), 1), dtype=torch.long),
        mask, torch.zeros(mask.shape), torch.tensor(finished), Sampling(1.0, 4, (PAD,), (1,)), 0,
    )  # fmt: skip


def test_scores_are_clipped_penalised_for_length_and_for_a_missing_eos():
    score, samples = torch.tensor([3.0, -20.0, 20.0]), made([True, False, True], [1, 4, 2])
    assert Shaping()(score, samples).tolist() == [3, -20, 20]
    assert Shaping(clip=5.0)(score, samples).tolist() == [3, -5, 5]
    assert Shaping(length_penalty=0.5)(score, samples).tolist() == [2.5, -22, 19]
    assert Shaping(missing_eos_penalty=2.0)(score, samples).tolist() == [3, -22, 20]
    replaced = Shaping(missing_eos_penalty=2.0, replace_missing_eos=True)
    assert replaced(score, samples).tolist() == [3, -2, 20]


def test_stop_sequences_end_a_response_where_their_text_is_complete(tokenizer):
    texts = ["Yes. No. Maybe", "never ends", "a.b"]
    rows = [tokenizer(t)["input_ids"] for t in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    samples = Samples(
        torch.cat([torch.full((3, 1), 9), tokens], 1), torch.ones((3, 1), dtype=torch.long), mask,
        -torch.rand(mask.shape), torch.tensor([False, False, False]),
        Sampling(1.0, width, (tokenizer.pad_token_id,), (tokenizer.eos_token_id,), (". ", ".b")), 0,
    )  # fmt: skip
    cut = cut_at_stop(samples, tokenizer)
    kept = [
        tokenizer.decode([t for t, m in zip(row, mask, strict=True) if m])
        for row, mask in zip(cut.response_BT.tolist(), cut.mask_BT.tolist(), strict=True)
    ]
    assert kept[0].startswith("Yes. ")
    assert ". " not in kept[0][: len(kept[0]) - 4]
    assert kept[1:] == ["never ends", "a.b"]
    assert cut.finished_B.tolist() == [True, False, True]
    assert not cut.logp_BT[cut.mask_BT == 0].any()
    assert (cut.response_BT[cut.mask_BT == 0] == tokenizer.pad_token_id).all()
    length = int(cut.mask_BT[0].sum())
    assert torch.equal(cut.logp_BT[0, :length], samples.logp_BT[0, :length])
    with pytest.raises(UsageError, match="empty text"):
        Policy(None, tokenizer).sampling(rl.RlConfig(stop_sequences=[""]))


# ---------------------------------------------------------------------------------------------- updates


def test_updates_stop_when_the_policy_has_moved_too_far(config):
    base = dataclasses.replace(config, num_ppo_epochs=6, num_mini_batches=1, learning_rate=5e-3)
    free = metrics(rl.run(dataclasses.replace(base, output_dir="free")))
    held = metrics(rl.run(dataclasses.replace(base, target_kl=1e-3)))
    assert all(row["updates"] == 6 for row in free[1:])
    assert all(1 <= row["updates"] < 6 for row in held[1:])


def test_the_running_baseline_follows_the_returns(config):
    task = tabular_task(0)
    trainer = trainer_for(task, FAST["reinforce, running baseline"].config(0, task.coef))
    means = []
    for iteration in range(1, 4):
        _, rollout = trainer.iterate(iteration)
        means.append(float(rollout.reward_BT.sum(-1).mean()))
    expected = 0.9 * (0.9 * means[0] + 0.1 * means[1]) + 0.1 * means[2]
    assert trainer.state.algorithm.baseline == pytest.approx(expected, rel=1e-5)
    advantage, returns = algorithms.baseline_advantage(
        rollout, trainer.config, algorithms.RunningBaseline(5.0), trainer.state.generator
    )
    mask = rollout.samples.mask_BT
    torch.testing.assert_close(advantage, (returns - 5.0) * mask)


def test_labels_are_drawn_as_bradley_and_terry_say():
    """Gumbel noise on two scores: the first wins with probability sigma of their difference."""
    task = tabular_task(0)
    trainer = trainer_for(task, FAST["online_dpo, sampled labels"].config(0, task.coef))
    rollout = trainer.collect()
    n = 100_000
    pairs = dataclasses.replace(
        rollout,
        shaped_B=torch.tensor([0.8, 0.0]).repeat(n),
    )
    score_P2 = algorithms.annotated_score(pairs, trainer.config, NoState(), trainer.state.generator)
    won = (score_P2[:, 0] > score_P2[:, 1]).float().mean()
    p = 1 / (1 + math.exp(-0.8))
    assert abs(float(won) - p) < 4 * (p * (1 - p) / n) ** 0.5


# ---------------------------------------------------------------------------------------------- outliers


def step_of(task, clip, size):
    """The change of the first update's weights, and its gradients by sample, with one reward of ``size``."""
    options = {"learning_rate": 0.1, "batch_size": 64, "reward_clip": clip, "max_grad_norm": 1.0}
    config = dataclasses.replace(FAST["rloo k=4"].config(0, task.coef), **options)
    scorer = task.scorer if size is None else with_outlier(task, 1, size)
    trainer = trainer_for(task, config, scorer=scorer)
    policy = trainer.learner.models.policy
    before = policy.table.detach().clone()
    rollout = trainer.collect()
    advantage = trainer.learner.prepare(rollout).advantage_BT[:, 0]
    trainer.learner.update(rollout)
    return (policy.table.detach() - before), advantage


def test_one_outlier_cannot_blow_up_an_update_when_rewards_are_clipped():
    """D8: within twice the update without it; the other groups' advantages untouched, and in its own group
    only their common baseline moves."""
    task = tabular_task(0)
    plain, advantage = step_of(task, 10.0, None)
    clipped, with_outlier = step_of(task, 10.0, 1e6)
    assert clipped.norm() <= 2 * plain.norm()
    torch.testing.assert_close(with_outlier[4:], advantage[4:])
    assert (with_outlier[4:].sign() == advantage[4:].sign()).all()
    _, unclipped = step_of(task, 0.0, 1e6)
    assert unclipped.abs().max() > 1e4 * advantage.abs().max()


def test_training_recovers_from_an_outlier():
    """The same F with and without one reward of 1e6; without the clip Adam's moments remember it."""
    usual, lost, lost_unclipped = [], [], []
    for seed in SEEDS:
        task = tabular_task(seed)
        config = dataclasses.replace(FAST["rloo k=4"].config(seed, task.coef, 2560), reward_clip=10.0)
        free = dataclasses.replace(config, reward_clip=0.0)
        plain = train(task, config, every=80).final
        usual.append(plain)
        lost.append(plain - train(task, config, every=80, scorer=with_outlier(task, 5)).final)
        lost_unclipped.append(plain - train(task, free, every=80, scorer=with_outlier(task, 5)).final)
    require_at_least(0.8, 0.7, usual)
    require_at_most(0.02, 0.05, lost)
    require_at_least(0.1, 0.0, lost_unclipped)


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("algorithm", ["ppo", "rebel"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(config, algorithm, tmp_path, monkeypatch):
    """Killed in the fifth iteration, the same command goes on after the fourth: weights, metrics, samples."""
    base = dataclasses.replace(
        config,
        algorithm=algorithm,
        reward_model="watch_rewards:stops_once",
        gold="watch_rewards:vowels",
        num_iterations=6,
        save_every=2,
        eval_every=3,
        kl_controller="adaptive",
        kl_target=0.01,
        kl_horizon=100,
        check_reward_every=3,
    )
    (tmp_path / "calls").write_text("x" * 100)  # never reaches the sixth call: a whole run
    whole = rl.run(dataclasses.replace(base, output_dir="whole"))
    (tmp_path / "calls").write_text("")
    with pytest.raises(KeyboardInterrupt):
        rl.run(dataclasses.replace(base, output_dir="parts"))
    parts = tmp_path / "parts"
    last = max(row["step"] for row in metrics(parts))
    kept = {path.name for path in (parts / "state").iterdir()}
    assert kept == {f"step_{step}" for step in range(2, last + 1, 2)}
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "rew')  # a line that was being written
    rl.run(dataclasses.replace(base, output_dir="parts"))
    assert clean(metrics(parts)) == clean(metrics(whole))
    assert (parts / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    for name in ("model", *(["value_model"] if algorithm == "ppo" else [])):
        file = f"{name}/model.safetensors"
        assert (parts / file).read_bytes() == (whole / file).read_bytes()
    assert summary(parts)["forward_passes"] == summary(whole)["forward_passes"]
    assert not (parts / "state").exists()


def test_other_options_start_anew_only_where_that_is_asked_for(config, tmp_path, policy_directory):
    base = dataclasses.replace(
        config, reward_model="watch_rewards:stops_once", save_every=2, num_iterations=6
    )
    with pytest.raises(KeyboardInterrupt):
        rl.run(base)
    assert (tmp_path / "rl" / "state").exists()
    other = dataclasses.replace(base, learning_rate=1e-3)
    with pytest.raises(UsageError, match=r"unfinished and was begun with other options.*learning_rate"):
        rl.run(other)
    path = rl.run(other, fresh=True)
    assert [row["step"] for row in metrics(path)] == list(range(7))


def test_more_iterations_extend_a_run_to_the_same_bytes(config, tmp_path):
    base = dataclasses.replace(
        config,
        reward_model="watch_rewards:stops_once",
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        num_iterations=6,
        save_every=2,
    )
    longer = dataclasses.replace(base, num_iterations=8)
    (tmp_path / "calls").write_text("x" * 100)
    whole = rl.run(dataclasses.replace(longer, output_dir="whole"))
    (tmp_path / "calls").write_text("")
    with pytest.raises(KeyboardInterrupt):
        rl.run(dataclasses.replace(base, output_dir="parts"))
    linear = dataclasses.replace(longer, output_dir="parts", lr_scheduler_type="linear")
    stored = dataclasses.asdict(base)
    assert "ends where the run ends" in rl.why_not_longer(stored, dataclasses.asdict(linear))
    assert "can only grow" in rl.why_not_longer(stored, stored | {"max_steps": 5})
    parts = rl.run(dataclasses.replace(longer, output_dir="parts"))
    equal_runs(parts, whole)


def clean(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def test_a_checkpoint_holds_no_pickle_and_appears_whole(tmp_path):
    tensors = {"a": torch.arange(3), "b/c": torch.rand(2, 2, dtype=torch.float64)}
    checkpoints = checkpoint.Checkpoints(tmp_path / "state", 20, 1)
    for step in (3, 5, 7):
        checkpoints.save(step, tensors, {"x": 0.1 + 0.2, "none": None})
    (tmp_path / "state" / ".step_9.tmp").mkdir()
    found = checkpoint.latest(tmp_path / "state")
    assert found is not None
    assert found.step == 7
    assert found.values == {"x": 0.1 + 0.2, "none": None}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    files = {path.name for path in (tmp_path / "state" / "step_7").iterdir()}
    assert files == {"tensors.safetensors", "values.json", "contents.json"}
    assert {path.name for path in (tmp_path / "state").glob("step_*")} == {"step_5", "step_7"}
    assert checkpoint.latest(tmp_path / "none") is None


def test_weights_of_a_policy_and_its_memory(config):
    path = rl.run(config)
    used = summary(path)["memory"]
    model, _ = load.load_policy(str(path), torch.device("cpu"))
    size = 4 * load.parameter_count(model) / 2**20
    assert used["policy"] == {"weights_mib": pytest.approx(size), "training_mib": pytest.approx(3 * size)}
    assert used["reference"] == {"weights_mib": pytest.approx(size), "training_mib": 0}
    assert used["reward"] == {"weights_mib": 0, "training_mib": 0}  # a Python function
    assert used["value"]["training_mib"] == pytest.approx(3 * used["value"]["weights_mib"])
