"""How far a policy may go, and what is clipped: only what was asked for, or what a reward model says."""

import dataclasses
import json

import pytest
import torch

from preferl import cli
from preferl.learning.meter import Meter
from preferl.models import load
from preferl.runs.errors import DivergedError
from preferl.stages import reward, rl
from trainers import trainer_for, whole

CPU = torch.device("cpu")
PROMPTS = [{"prompt": f"Tell me of thing {i}."} for i in range(40)]


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


@pytest.fixture
def config(tmp_path, policy_directory, prompts_file):
    """A policy that goes far: a large rate, and a penalty too small to hold it."""
    return rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model="length",
        dataset_name=str(prompts_file),
        algorithm="rloo",
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        kl_coef=1e-4,
        max_kl=1.0,
        num_iterations=12,
        batch_size=32,
        response_length=8,
        missing_eos_penalty=0.0,
        eval_every=0,
        save_every=1,
        num_threads=1,
        device="cpu",
    )


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_policy_that_goes_too_far_ends_the_run_and_leaves_its_last_good_weights(config, tmp_path, capsys):
    with pytest.raises(DivergedError, match=r"above the first batch's, and max_kl is 1;") as caught:
        rl.run(config)
    message = str(caught.value)
    for advice in ("Raise kl_coef (0.0001)", "lower learning_rate (0.002)", "--max_kl none"):
        assert advice in message
    rows = metrics(tmp_path / "rl")
    assert all(row["train/kl"] <= rows[0]["train/kl"] + 1.0 for row in rows)
    assert len(rows) < config.num_iterations
    # The batch that went too far was drawn after the last logged update: the weights before it were good.
    good = len(rows) - 1
    assert f"those after iteration {good}, are in {tmp_path / 'rl' / 'last_good' / 'model'}" in message
    shorter = dataclasses.replace(config, num_iterations=good, output_dir=str(tmp_path / "shorter"))
    wanted, kept = (
        load.load_policy(str(place), CPU)[0]
        for place in (rl.run(shorter), tmp_path / "rl" / "last_good" / "model")
    )
    assert load.weights_hash(wanted) == load.weights_hash(kept)
    # Another command takes them by name.
    further = dataclasses.replace(
        config, model_name_or_path=str(tmp_path / "rl" / "last_good" / "model"), num_iterations=1,
        max_kl="none", output_dir=str(tmp_path / "further"),
    )  # fmt: skip
    assert (rl.run(further) / "DONE").exists()
    assert not (tmp_path / "rl" / "DONE").exists()


def test_the_advice_is_by_how_it_got_so_far(config, tmp_path):
    """A coefficient is felt one batch later: of a single iteration that went too far only the rate helps."""
    leap = dataclasses.replace(config, learning_rate=2e-2, output_dir=str(tmp_path / "leap"))
    with pytest.raises(DivergedError) as caught:
        rl.run(leap)
    assert "It went there in one iteration: give learning_rate 0.004 (now 0.02), and" in str(caught.value)
    assert "kl_coef" not in str(caught.value)
    kept = rl.run(dataclasses.replace(leap, learning_rate=0.0, num_iterations=3), fresh=True)
    assert (kept / "DONE").exists()


def test_without_checkpoints_the_last_good_weights_are_those_of_the_start(config, tmp_path):
    with pytest.raises(DivergedError, match="those that it started from"):
        rl.run(dataclasses.replace(config, save_every=0))
    assert not (tmp_path / "rl" / "last_good").exists()


def test_the_guard_counts_from_the_first_batch(config, encoder_directory, tokenizer, tmp_path):
    """A reference of other weights is far away at the start, which is nobody's fault."""
    from small_models import make_language_model

    other = make_language_model("llama", tokenizer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    load.save(other, tokenizer, tmp_path / "other")
    still = dataclasses.replace(
        config, ref_model=str(tmp_path / "other"), learning_rate=0.0, num_iterations=2, max_kl=1.0
    )
    rows = metrics(rl.run(still))
    assert min(row["train/kl"] for row in rows) > 1.5


def test_without_a_penalty_it_is_an_alarm_and_none_is_neither(config, tmp_path, capsys):
    path = rl.run(dataclasses.replace(config, kl_coef=0.0))
    alarm = json.loads((path / "summary.json").read_text())["alarms"]["far"]
    assert "max_kl is 1: no penalty holds the policy" in alarm["text"]
    assert len(metrics(path)) == config.num_iterations
    free = rl.run(dataclasses.replace(config, max_kl="none", output_dir=str(tmp_path / "free")))
    assert max(row["train/kl"] for row in metrics(free)) > 1.0
    assert "far" not in json.loads((free / "summary.json").read_text())["alarms"]


def test_the_command_ends_with_4(config, tmp_path, policy_directory, prompts_file, capsys):
    given = {
        "model_name_or_path",
        "reward_model",
        "dataset_name",
        "output_dir",
        "algorithm",
        "learning_rate",
        "kl_coef",
        "num_iterations",
        "batch_size",
        "response_length",
        "num_threads",
        "device",
    }
    flags = [text for name in sorted(given) for text in (f"--{name}", str(getattr(config, name)))]
    assert cli.main(["rl", *flags, "--max_kl", "0.01", "--warmup_ratio", "0"]) == 4
    assert "max_kl is 0.01" in capsys.readouterr().err
    assert cli.main(["rl", *flags, "--max_kl", "none", "--warmup_ratio", "0", "--fresh"]) == 0


# --------------------------------------------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def reward_directory(tmp_path_factory, policy_directory):
    place = tmp_path_factory.mktemp("reward")
    rows = [{"prompt": f"Tell {i}.", "chosen": "Thanks, yes.", "rejected": "No."} for i in range(20)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = reward.RewardConfig(
        model_name_or_path=str(policy_directory), dataset_name=str(place / "pairs.jsonl"), audit=False,
        output_dir=str(place / "rm"), max_steps=1, num_evals=1, device="cpu", num_threads=1,
    )  # fmt: skip
    return reward.run(config)


@pytest.mark.parametrize(
    ("spec", "given", "clip"),
    [
        ("{rm}", None, 10.0),
        ("0.7*{rm} + 0.3*min({rm})", None, 10.0),
        ("length", None, 0.0),
        ("0.7*{rm} + 0.3*length", None, 0.0),
        ("length", 3.0, 3.0),
        ("{rm}", 0.0, 0.0),
    ],
)
def test_only_what_a_reward_model_says_is_clipped(spec, given, clip, config, reward_directory, capsys):
    name = spec.format(rm=reward_directory)
    once = dataclasses.replace(config, reward_model=name, reward_clip=given, num_iterations=1)
    path = rl.run(once)
    chosen = json.loads((path / "manifest.json").read_text())["chosen"]
    assert chosen.get("reward_clip", given) == clip
    assert chosen["cliprange_value"] == (0.2 if "{rm}" in spec and "length" not in spec else 0.0)
    assert (f"scores are clipped to ±{clip:g}" in capsys.readouterr().out) == bool(clip)


def test_a_reward_of_ones_own_counts_in_full(config, tmp_path, monkeypatch):
    (tmp_path / "guard_rewards.py").write_text(
        "def large(completions):\n    return [1000.0 + len(text) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    once = dataclasses.replace(config, reward_model="guard_rewards:large", num_iterations=1, max_kl="none")
    row = metrics(rl.run(once))[0]
    assert row["train/objective"] == pytest.approx(row["train/reward"], abs=1e-2)
    cut = dataclasses.replace(once, reward_clip=10.0, output_dir=str(tmp_path / "cut"))
    assert metrics(rl.run(cut))[0]["train/objective"] == pytest.approx(10, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "learns"),
    [({"cliprange_value": 0.0}, True), ({"cliprange_value": 0.2}, False)],
)
def test_values_follow_returns_that_grow_by_more_than_a_point_a_batch(options, learns, config):
    """A value that has moved by a point towards a return far above it is still drawn there; with the clip
    that is usual elsewhere it has no gradient left."""
    ppo = dataclasses.replace(config, algorithm="ppo", value_model="policy", **options)
    trainer = trainer_for(ppo, lambda prompts, completions, **columns: [20.0] * len(completions))
    learner = trainer.learner
    batch = learner.prepare(trainer.collect())
    minibatch = whole(learner, batch)
    value_BT = (batch.rollout.value_BT + 1).requires_grad_()
    learner.value_loss(batch, minibatch, minibatch.rows, value_BT, Meter()).backward()
    real_BT = batch.rollout.samples.mask_BT != 0
    assert (value_BT.grad[real_BT] < 0).all() == learns
    assert (value_BT.grad == 0).all() == (not learns)
