"""The RL loop on a small real model: what must not move does not, what must move does."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from preferl import cli
from preferl.learning.algorithms import ALGORITHMS, Batch
from preferl.models import load
from preferl.models.critic import token_values
from preferl.runs.errors import DivergedError, UsageError
from preferl.sampling.samples import rows_of
from preferl.stages import rl
from seeds import SEEDS, require_at_least, require_at_most
from trainers import backward, flat_gradient, trainer_for


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": f"What is the colour of thing {i}? {'Tell me more. ' * (i % 4)}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward_module(tmp_path, monkeypatch):
    """Reward functions in a module of the current folder, as a user would write them."""
    (tmp_path / "my_rewards.py").write_text(
        "def vowels(prompts, completions, **columns):\n"
        "    return [sum(c in 'aeiou' for c in t) / 5 for t in completions]\n"
        "def nothing(prompts, completions):\n"
        "    return [0.0] * len(prompts)\n"
        "def broken(prompts, completions):\n"
        "    return [float('nan')] * len(prompts)\n"
        "def steps(completions, trainer_state):\n"
        "    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_rewards"


@pytest.fixture
def config(tmp_path, policy_directory, prompts_file, reward_module):
    return rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model=f"{reward_module}:vowels",
        dataset_name=str(prompts_file),
        num_iterations=4,
        batch_size=16,
        num_mini_batches=2,
        micro_batch_size=5,
        response_length=10,
        eval_prompts=4,
        num_threads=1,
        device="cpu",
    )


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


NAMES = {
    "train/reward",
    "train/kl",
    "train/kl_se",
    "train/kl_k3",
    "train/entropy",
    "train/clip_fraction",
    "train/approx_kl",
    "train/explained_variance",
    "train/value_loss",
    "train/length",
    "train/eos_rate",
    "tokens_per_second",
    "kl_coef",
    "train/policy_loss",
    "learning_rate",
    "train/gold",
}


def test_a_run_writes_models_metrics_and_samples(config, policy_directory):
    path = rl.run(dataclasses.replace(config, gold="length"))
    rows = [row for row in metrics(path) if row["step"]]
    assert len(rows) == 4
    assert rows[0].keys() >= NAMES
    assert rows[0]["train/kl"] == pytest.approx(0, abs=1e-3)
    assert max(row["train/first_ratio_error"] for row in rows) < 1e-4
    assert rows[-1]["train/kl"] != 0
    assert {"dev/reward", "dev/kl"} <= rows[0].keys()
    summary = json.loads((path / "summary.json").read_text())
    assert summary["forward_passes"]["policy"] == 4 * 16
    assert summary["forward_passes"]["policy_update"] == 3 * 4 * 16 * 2
    assert (path / "value_model" / "model.safetensors").exists()
    assert json.loads((path / "samples.jsonl").read_text().splitlines()[0])["iteration"] == 1
    trained, _ = load.load_policy(str(path), torch.device("cpu"))
    start, _ = load.load_policy(str(policy_directory), torch.device("cpu"))
    assert load.weights_hash(trained) != load.weights_hash(start)
    assert (path / "DONE").exists()


def test_a_reward_function_knows_the_step_on_training_and_on_held_out_prompts(config):
    config = dataclasses.replace(
        config, reward_model="my_rewards:steps", num_iterations=2, eval_every=1, kl_coef=0.0, algorithm="rloo"
    )
    rl.run(config)
    rows = metrics(Path(config.output_dir))
    assert [row["dev/reward"] for row in rows] == [0.0, 0.5, 1.0]  # the first before any step
    assert [row["train/reward"] for row in rows[1:]] == [0.5, 1.0]


def without_clock(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def test_the_same_command_gives_the_same_numbers(config, tmp_path):
    first = rl.run(config)
    second = rl.run(dataclasses.replace(config, output_dir=str(tmp_path / "again")))
    assert without_clock(metrics(first)) == without_clock(metrics(second))
    other = rl.run(dataclasses.replace(config, seed=1, output_dir=str(tmp_path / "other")))
    assert without_clock(metrics(first)) != without_clock(metrics(other))


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_reward_rises(config, algorithm):
    gains = []
    for seed in SEEDS:
        more = dataclasses.replace(
            config,
            algorithm=algorithm,
            num_mini_batches=0,
            num_iterations={"ppo": 6, "rebel": 12}.get(algorithm, 16),
            batch_size=32,
            micro_batch_size=32,
            response_length=8,
            # So that REBEL's steps are as large as the others': its own choice keeps the policy near.
            rebel_eta=8.0,
            kl_coef=0.01,
            max_kl="none",
            learning_rate=1e-2,
            missing_eos_penalty=0.0,
            eval_every=0,
            save_every=0,
            lr_scheduler_type="constant",
            seed=seed,
            output_dir=f"{config.output_dir}-{seed}",
        )
        rows = metrics(rl.run(more))
        assert ("train/value_loss" in rows[0]) == (algorithm == "ppo")
        reward = [row["train/reward"] for row in rows]
        gains.append((sum(reward[-2:]) - sum(reward[:2])) / 2)
    require_at_least(0.2, 0.05, gains)


def test_a_large_kl_coefficient_holds_the_policy(config):
    base = dataclasses.replace(
        config,
        algorithm="rloo",
        num_mini_batches=0,
        num_iterations=12,
        learning_rate=1e-2,
        eval_every=0,
        save_every=0,
        missing_eos_penalty=0.0,
    )

    def moved(coef: float, seed: int) -> float:
        out = f"{config.output_dir}-{coef}-{seed}"
        run = rl.run(dataclasses.replace(base, kl_coef=coef, seed=seed, output_dir=out))
        return metrics(run)[-1]["train/kl_exact"]

    require_at_most(0.65, 0.85, [moved(5.0, seed) / moved(0.0, seed) for seed in SEEDS])


def build(config):
    """Learner and rollout as ``run`` makes them."""
    trainer = trainer_for(dataclasses.replace(config, batch_size=12))
    return trainer.learner, trainer.collect()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio_level": "response"},
        {"value_model": "head"},
        {"algorithm": "rloo"},
        {"algorithm": "grpo"},
        {"algorithm": "rebel"},
        {"algorithm": "online_dpo", "num_generations": 4},
        {"algorithm": "rloo", "kl_in": "loss"},
        {"algorithm": "grpo", "kl_in": "loss", "kl_estimator": "k3"},
        {"algorithm": "reinforce", "kl_in": "loss", "kl_estimator": "exact", "loss_average": "sum"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "ppo",
)
def test_accumulated_gradients_are_those_of_the_whole_batch(config, options):
    found = []
    for micro in (12, 5, 1):
        torch.manual_seed(0)
        learner, rollout = build(dataclasses.replace(config, micro_batch_size=micro, **options))
        backward(learner, learner.prepare(rollout))
        found.append([flat_gradient(learner.models.policy)])
        if learner.models.critic is not None:
            found[-1].append(flat_gradient(learner.models.critic))
    assert found[0][0].abs().max() > 1e-4
    for parts in found[1:]:
        for part, whole in zip(parts, found[0], strict=True):
            torch.testing.assert_close(part, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-3)


def test_nothing_in_the_padding_moves_the_gradient(config):
    """Values, rewards and old log-probabilities outside the mask may be anything."""
    learner, rollout = build(config)
    batch = learner.prepare(rollout)
    outside = rollout.samples.mask_BT == 0
    backward(learner, batch)
    clean = flat_gradient(learner.models.policy).clone()
    learner.forget_gradients()
    junk = dataclasses.replace(
        rollout,
        samples=dataclasses.replace(
            rollout.samples, logp_BT=rollout.samples.logp_BT.masked_fill(outside, 3.0)
        ),
        value_BT=rollout.value_BT.masked_fill(outside, 1e3),
    )
    second = learner.prepare(junk)
    backward(
        learner,
        Batch(
            junk,
            second.advantage_BT.masked_fill(outside, 7.0),
            second.return_BT.masked_fill(outside, 7.0),
            second.score_PG,
        ),
    )
    torch.testing.assert_close(flat_gradient(learner.models.policy), clean, atol=1e-7, rtol=1e-5)


def test_advantages_carry_no_gradient_and_the_reference_none(config):
    learner, rollout = build(config)
    for value in (rollout.reward_BT, rollout.value_BT, rollout.ref_logp_BT, rollout.samples.logp_BT):
        assert not value.requires_grad
    learner.update(rollout)
    assert all(p.grad is None for p in learner.models.reference.parameters())


def plus(rollout, constant):
    """The rollout with a constant added to every score."""
    shifted = dataclasses.replace(rollout, reward_BT=rollout.reward_BT.clone())
    last = rollout.samples.mask_BT.sum(-1) - 1
    shifted.reward_BT[torch.arange(len(last)), last] += constant
    return shifted


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
def test_a_constant_reward_leaves_the_first_update_alone(config, algorithm):
    """PPO: with lambda 1, whitened advantages and a separate critic. A group's mean takes it away always."""
    base = dataclasses.replace(config, lam=1.0, algorithm=algorithm)
    learner, rollout = build(base)
    plain = learner.prepare(rollout).advantage_BT
    moved = learner.prepare(plus(rollout, 100.0)).advantage_BT
    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)


def test_a_wrong_behaviour_probability_is_found_before_the_update(config):
    learner, rollout = build(config)
    before = load.weights_hash(learner.models.policy)
    wrong = dataclasses.replace(
        rollout, samples=dataclasses.replace(rollout.samples, logp_BT=rollout.samples.logp_BT + 0.01)
    )
    with pytest.raises(DivergedError, match="sampling and training disagree"):
        learner.update(wrong)
    assert load.weights_hash(learner.models.policy) == before


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "rebel"])
def test_non_finite_losses_stop_before_the_update_and_name_the_sample(config, algorithm):
    learner, rollout = build(dataclasses.replace(config, algorithm=algorithm, micro_batch_size=2))
    before = load.weights_hash(learner.models.policy)
    broken = dataclasses.replace(rollout, reward_BT=rollout.reward_BT.clone())
    broken.reward_BT[10, 0] = float("nan")
    # Whitening or a group's mean spreads the NaN, so that any sample of its batch or group may come first.
    with pytest.raises(DivergedError, match=r"loss is not finite; .* prompt .* response .* score"):
        learner.update(broken)
    assert load.weights_hash(learner.models.policy) == before


def test_a_reward_function_that_fails_is_named(config, reward_module):
    with pytest.raises(DivergedError, match=":broken' returned nan"):
        rl.run(dataclasses.replace(config, reward_model=f"{reward_module}:broken"))
    with pytest.raises(UsageError, match="cannot be imported"):
        rl.run(dataclasses.replace(config, reward_model=f"{reward_module}:absent"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("algorithm", "ppoo"),
        ("kl_controller", "magic"),
        ("num_mini_batches", -1),
        ("num_mini_batches", 17),
        ("num_generations", 3),
        ("kl_in", "somewhere"),
        ("kl_estimator", "k4"),
        ("ratio_level", "sentence"),
        ("loss_average", "mean"),
        ("dual_clip", 0.5),
        ("value_model", "none"),
        ("kl_coef", -1.0),
        ("eval_split", "x"),
        ("baseline", "median"),
        ("preference_labels", "firm"),
    ],
)
def test_options_that_cannot_work_are_refused(config, option, value):
    with pytest.raises(UsageError, match=str(value)):
        rl.run(dataclasses.replace(config, **{option: value}))


def test_the_adaptive_controller_moves_the_coefficient(config):
    rows = metrics(
        rl.run(dataclasses.replace(config, kl_controller="adaptive", kl_target=50.0, kl_horizon=100.0))
    )
    coefs = [row["kl_coef"] for row in rows if row["step"]]
    assert coefs[0] == 0.1  # by default, of a model that preferl initialised
    assert coefs[-1] < coefs[0]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_other_families_train_too(config, kind, tokenizer, tmp_path):
    from small_models import make_language_model

    load.save(make_language_model(kind, tokenizer), tokenizer, tmp_path / kind)
    rows = metrics(
        rl.run(dataclasses.replace(config, model_name_or_path=str(tmp_path / kind), num_iterations=2))
    )
    assert rows[-1]["train/first_ratio_error"] < 1e-4


def test_values_come_from_the_critic_at_the_positions_of_the_response(config):
    learner, rollout = build(config)
    critic = learner.models.critic
    torch.nn.init.normal_(critic.score.weight)
    samples = rollout.samples
    values = learner.values(samples)
    with torch.no_grad():
        for row in range(3):
            one = rows_of(samples, torch.tensor([row]))
            expected = token_values(critic, one.tokens_BS, one.attention_BS, one.prompt_width)[0]
            torch.testing.assert_close(values[row, : len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert values[samples.mask_BT == 0].abs().max() == 0
    assert values.abs().max() > 0.01


def test_fresh_samples_and_slow_iterations_are_shown(config, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(rl.time, "perf_counter", lambda: now)
    collect, measure = rl.Trainer.collect, rl.Trainer.measure

    def slow_collect(self, log=None):
        nonlocal now
        now += 40.0 if self.state.iteration == 6 else 2.0
        return collect(self, log)

    def slow_measure(self, *arguments):  # is no part of an iteration
        nonlocal now
        now += 1000.0
        return measure(self, *arguments)

    monkeypatch.setattr(rl.Trainer, "collect", slow_collect)
    monkeypatch.setattr(rl.Trainer, "measure", slow_measure)
    path = rl.run(dataclasses.replace(config, num_iterations=7, eval_every=1, save_every=1))
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "median" in line] == [
        "rl: iteration 6 took 40 s (40 s of them sampling and scoring), the median of the 5 before it 2 s"
    ]
    starts = [line for line in said if re.match(r" +rl  \d/7  reward \S+  What is the colour", line)]
    assert [line.split()[1] for line in starts] == ["1/7", "1/7", "7/7", "7/7"]
    assert len(set(starts)) == 4
    assert sum(line.startswith("           → ") for line in said) == 4
    first = json.loads((path / "samples.jsonl").read_text().splitlines()[0])
    assert f"reward {first['reward']:.3g}  {first['prompt'].split('?')[0]}" in starts[0]


def test_the_algorithm_of_contributing_is_a_file_of_a_person(config, tmp_path, monkeypatch, capsys):
    """The example of CONTRIBUTING.md, as it stands there, runs, with an option of its own."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?Algorithm\(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "raft.py").write_text(code[1])
    options = {
        "algorithm": "raft:raft",
        "raft_keep": 2,
        "num_iterations": 2,
        "batch_size": 16,
        **{name: getattr(config, name) for name in ("model_name_or_path", "reward_model", "dataset_name")},
        "response_length": 8,
        "num_threads": 1,
        "output_dir": str(tmp_path / "raft"),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert cli.main(["rl", *flags]) == 0
    rows = metrics(tmp_path / "raft")
    assert rows[-1]["train/kl"] != 0
    assert yaml.safe_load((tmp_path / "raft" / "config.yaml").read_text())["raft_keep"] == 2
    assert cli.main(["rl", *flags, "--algorithm=raft:absent"]) == 2
    assert "algorithm 'raft:absent' cannot be imported" in capsys.readouterr().err
