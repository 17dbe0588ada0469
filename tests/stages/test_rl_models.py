"""Who plays which part: LoRA policies, value heads, one base, other tokenizers, other families, bf16."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from preferl.data.records import PromptRecord
from preferl.learning import models
from preferl.models import load
from preferl.models.critic import token_values
from preferl.models.reward import RewardModel, load_reward_model
from preferl.runs.errors import UsageError
from preferl.sampling.cached import CachedEngine
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Sampling
from preferl.stages import reward, rl
from small_models import write_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"Tell me of thing {i}. {'Please. ' * (i % 5)}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def lora_reward(tmp_path_factory, policy_directory, pairs_file):
    """A reward model of LoRA weights on the policy's own base."""
    path = tmp_path_factory.mktemp("reward")
    return reward.run(
        reward.RewardConfig(
            output_dir=str(path / "reward"),
            model_name_or_path=str(policy_directory),
            dataset_name=str(pairs_file),
            lora_r=4,
            learning_rate=5e-3,
            num_evals=2,
            audit=False,
            num_threads=1,
            device="cpu",
        )
    )


@pytest.fixture
def config(tmp_path, policy_directory, prompts_file, lora_reward):
    return rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(policy_directory),
        reward_model=str(lora_reward),
        dataset_name=str(prompts_file),
        num_iterations=2,
        batch_size=16,
        learning_rate=1e-3,
        response_length=10,
        eval_prompts=4,
        num_threads=1,
        device="cpu",
    )


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def trained(path):
    return load.load_policy(str(path), CPU)[0]


def test_lora_trains_the_policy_and_its_reference_is_the_base(config, policy_directory):
    path = rl.run(dataclasses.replace(config, lora_r=4, learning_rate=1e-2))
    rows, summary = rows_of(path), json.loads((path / "summary.json").read_text())
    assert rows[1]["train/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[2]["train/kl"] != 0
    assert rows[2]["train/first_ratio_error"] < 1e-4
    assert summary["memory"]["reference"] == {"weights_mib": 0, "training_mib": 0}
    policy, base = trained(path), trained(policy_directory)
    assert load.weights_hash(policy) != load.weights_hash(base)
    assert (path / "adapter" / "adapter_model.safetensors").exists()
    # What was not adapted is the base's, and what was is merged into an ordinary model.
    assert torch.equal(policy.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert policy.state_dict().keys() == base.state_dict().keys()


def test_a_fresh_lora_policy_is_the_base_and_its_reference_stays_so(config, policy_directory):
    loaded, tokenizer, _ = models.load_models(dataclasses.replace(config, lora_r=4), False, CPU)
    samples = CachedEngine(loaded.policy, tokenizer.pad_token_id).sample(
        [[10, 11], [12, 13, 14, 15]], Sampling(1.0, 6, (tokenizer.pad_token_id,), ()), torch.Generator()
    )
    base = policy_logprobs(trained(policy_directory), samples)
    with torch.no_grad():
        assert torch.equal(policy_logprobs(loaded.policy, samples), base)
        for parameter in loaded.trained()["policy"].values():
            parameter.add_(0.1)
        assert not torch.allclose(policy_logprobs(loaded.policy, samples), base)
        assert torch.equal(policy_logprobs(loaded.reference, samples), base)


def test_a_value_head_learns_on_the_policys_trunk(config):
    path = rl.run(dataclasses.replace(config, value_model="head", num_iterations=3))
    rows, summary = rows_of(path), json.loads((path / "summary.json").read_text())
    assert not (path / "value_model").exists()
    assert rows[-1]["train/value_loss"] >= 0
    assert rows[-1]["train/explained_variance"] != 0
    assert summary["memory"]["value"]["weights_mib"] < 0.001 < summary["memory"]["policy"]["weights_mib"]
    assert summary["forward_passes"]["critic_update"] == 0


def test_the_value_head_reads_the_state_before_each_token(config):
    loaded, _, _ = models.load_models(dataclasses.replace(config, value_model="head"), True, CPU)
    torch.nn.init.normal_(loaded.value_head.weight)
    engine = CachedEngine(loaded.policy, 0)
    samples = engine.sample([[10, 11], [12, 13, 14, 15]], Sampling(1.0, 6, (0,), ()), torch.Generator())
    values = loaded.values(samples)
    with torch.no_grad():
        hidden = loaded.policy.model(
            input_ids=samples.tokens_BS[:1, 2:], attention_mask=samples.attention_BS[:1, 2:]
        ).last_hidden_state
        expected = loaded.value_head(hidden[:, 1:-1])[0, :, 0]
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=1e-4)


def test_one_base_carries_policy_reference_reward_and_critic(config, lora_reward, policy_directory):
    """The scores are those of the reward model as loaded by itself, and training moves two of the four."""
    shared = dataclasses.replace(config, lora_r=4, learning_rate=1e-2, value_model="reward")
    loaded, _, scorer = models.load_models(shared, True, CPU)
    texts = ["It is red.", "I do not know what that is, sorry.", "No!"]
    prompts = ["What is it?"] * 3
    alone = RewardModel(*load_reward_model(str(lora_reward), CPU))
    assert scorer(prompts, texts) == pytest.approx(alone(prompts, texts), abs=1e-4)
    trained_by_role = [set(map(id, parameters.values())) for parameters in loaded.trained().values()]
    assert len(trained_by_role[0]) == len(trained_by_role[1]) - 1  # the critic has a head
    assert not trained_by_role[0] & trained_by_role[1]
    # Beside the policy's base and adapter the others are adapters, and a head.
    used = models.memory(loaded, scorer)
    assert used["reference"]["weights_mib"] == 0
    assert used["reward"]["weights_mib"] < 0.2 * used["policy"]["weights_mib"]
    assert used["value"]["weights_mib"] < 0.2 * used["policy"]["weights_mib"]

    path = rl.run(shared)
    rows, summary = rows_of(path), json.loads((path / "summary.json").read_text())
    assert rows[1]["train/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[2]["train/first_ratio_error"] < 1e-4
    assert rows[2]["train/kl"] != 0
    assert {"reference", "reward model reward"} <= summary["frozen_hashes"].keys()
    whole = json.loads(
        (rl.run(dataclasses.replace(config, output_dir=config.output_dir + "2")) / "summary.json").read_text()
    )
    used, usual = (sum(sum(role.values()) for role in s["memory"].values()) for s in (summary, whole))
    assert used < 0.4 * usual
    assert load.weights_hash(trained(path)) != load.weights_hash(trained(policy_directory))
    # The critic is written as an ordinary model, and the base that all stood on is in it.
    critic = load_reward_model(str(path / "value_model"), CPU)[0]
    embeddings = trained(policy_directory).get_input_embeddings().weight
    assert torch.equal(critic.get_input_embeddings().weight, embeddings)


def test_the_critic_on_the_base_moves_and_the_reward_model_does_not(config):
    shared = dataclasses.replace(config, lora_r=4, learning_rate=1e-2, value_model="reward")
    loaded, tokenizer, scorer = models.load_models(shared, True, CPU)
    shared = rl.with_defaults(shared, loaded, scorer)
    prompts = [PromptRecord("Tell me."), PromptRecord("Say it.")]
    learner = rl.learner_for(shared, loaded, prompts, torch.float32)
    before = rl.frozen_hashes(loaded, scorer)
    critic = [p.detach().clone() for p in loaded.trained()["critic"].values()]
    engine = CachedEngine(loaded.policy, tokenizer.pad_token_id)
    trainer = rl.Trainer(
        shared,
        Policy(loaded.policy, tokenizer, torch.float32, engine),
        learner,
        scorer,
        gold=None,
        held_out=[],
    )
    trainer.iterate(1)
    assert rl.frozen_hashes(loaded, scorer) == before
    moved = [not torch.equal(a, b) for a, b in zip(loaded.trained()["critic"].values(), critic, strict=True)]
    assert all(moved)


def test_models_are_written_merged_and_the_base_stays_for_the_others(config, lora_reward):
    """Merging adds to weights of a model's own: the reference and the reward model read what they read."""
    loaded, tokenizer, scorer = models.load_models(
        dataclasses.replace(config, lora_r=4, value_model="reward"), True, CPU
    )
    with torch.no_grad():
        for parameters in loaded.trained().values():
            for parameter in parameters.values():
                parameter.add_(0.1)
    before = rl.frozen_hashes(loaded, scorer)
    prompts, texts = ["What is it?"] * 2, ["It is red.", "No!"]
    scores = scorer(prompts, texts)
    directory = Path(config.output_dir)
    loaded.save(tokenizer, directory, config.model_name_or_path)
    assert rl.frozen_hashes(loaded, scorer) == before
    assert scorer(prompts, texts) == scores


@pytest.mark.parametrize("value_model", ["auto", "policy"])
def test_a_reward_model_on_other_weights_is_loaded_by_itself(config, encoder_directory, capsys, value_model):
    """A critic from the policy stands on the policy's base; the reward model has weights of its own."""
    own = dataclasses.replace(
        config, lora_r=4, reward_model=str(encoder_directory), value_model=value_model, num_iterations=1
    )
    summary = json.loads((rl.run(own) / "summary.json").read_text())
    assert summary["memory"]["reward"]["weights_mib"] > 0.5 * summary["memory"]["policy"]["weights_mib"]
    assert summary["memory"]["value"]["weights_mib"] < 0.2 * summary["memory"]["policy"]["weights_mib"]
    assert "stands on other weights than the policy" in capsys.readouterr().out


def test_a_critic_with_lora_stands_on_the_reward_model_that_it_starts_from(
    config, policy_directory, tmp_path
):
    """One that was trained as a whole has weights of its own; the critic adds an adapter to them."""
    model, tokenizer = load_reward_model(str(policy_directory), CPU, new_head_allowed=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    load.save(model, tokenizer, tmp_path / "whole" / "model")
    own = dataclasses.replace(config, lora_r=4, reward_model=str(tmp_path / "whole"), value_model="reward")
    loaded, _, scorer = models.load_models(own, True, CPU)
    used = models.memory(loaded, scorer)
    assert used["reward"]["weights_mib"] > 0.5 * used["policy"]["weights_mib"]
    assert used["value"]["weights_mib"] < 0.2 * used["policy"]["weights_mib"]
    samples = CachedEngine(loaded.policy, 0).sample(
        [[10, 11], [12, 13, 14, 15]], Sampling(1.0, 6, (0,), ()), torch.Generator()
    )
    with torch.no_grad():
        value_BT = loaded.values(samples)
        scored = scorer.model
        expected_BT = token_values(scored, samples.tokens_BS, samples.attention_BS, samples.prompt_width)
    torch.testing.assert_close(value_BT, expected_BT, atol=1e-5, rtol=1e-5)


def test_without_lora_the_reward_models_base_is_the_reference(config):
    """The policy's weights move; the frozen copy that the KL is to carries the reward model's adapter too."""
    loaded, _, scorer = models.load_models(config, True, CPU)
    used = models.memory(loaded, scorer)
    assert used["reference"]["weights_mib"] == pytest.approx(used["policy"]["weights_mib"], rel=0.01)
    assert used["reward"]["weights_mib"] < 0.2 * used["policy"]["weights_mib"]
    assert used["value"]["weights_mib"] > 0.7 * used["policy"]["weights_mib"]
    assert all(p.requires_grad for p in loaded.critic.parameters())


def test_policy_and_reward_model_may_have_different_tokenizers(config, encoder_directory):
    """A BERT with a WordPiece vocabulary scores a byte-level Llama; the critic starts from the policy."""
    path = rl.run(dataclasses.replace(config, reward_model=str(encoder_directory)))
    rows = rows_of(path)
    assert all(abs(row["train/reward"]) < 100 for row in rows[1:])
    with pytest.raises(UsageError, match="no decoder over the policy's tokens"):
        rl.run(
            dataclasses.replace(
                config,
                reward_model=str(encoder_directory),
                value_model="reward",
                output_dir=config.output_dir + "2",
            )
        )


def test_a_reference_of_its_own(config, policy_directory, tmp_path):
    """The KL is to ``ref_model``, so the first batch of a policy that has moved has one."""
    first = rl.run(dataclasses.replace(config, learning_rate=1e-2))
    second = rl.run(
        dataclasses.replace(
            config,
            model_name_or_path=str(first),
            ref_model=str(policy_directory),
            output_dir=str(tmp_path / "second"),
        )
    )
    assert rows_of(second)[1]["train/kl_exact"] > 0.01


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("algorithm", ["ppo", "rebel"])
def test_absolute_and_rotary_positions_with_prompts_of_very_different_lengths(
    config, kind, algorithm, tokenizer, tmp_path
):
    """Left padding of up to 60 tokens beside none: sampling and training agree about every probability."""
    from small_models import make_language_model

    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a" if i % 2 else "Tell me everything of it, please! " * 3} for i in range(60)]
    path.write_text(
        "".join(json.dumps(row | {"prompt": f"{row['prompt']}{i}"}) + "\n" for i, row in enumerate(rows))
    )
    load.save(make_language_model(kind, tokenizer), tokenizer, tmp_path / kind)
    out = rl.run(
        dataclasses.replace(
            config, model_name_or_path=str(tmp_path / kind), algorithm=algorithm, dataset_name=str(path)
        )
    )
    found = rows_of(out)
    assert abs(found[1]["train/kl"]) < 1e-3
    assert max(row["train/first_ratio_error"] for row in found[1:]) < 1e-4


def test_bf16_stays_within_its_bounds(config):
    """The bounds of docs/algorithms.md: ratio before the first update, KL of the first batch."""
    path = rl.run(dataclasses.replace(config, dtype="bfloat16", num_iterations=3))
    rows = rows_of(path)
    assert max(row["train/first_ratio_error"] for row in rows[1:]) < 0.3
    assert abs(rows[1]["train/kl"]) < 0.3
    assert rows[-1]["train/kl"] != 0
    assert next(trained(path).parameters()).dtype == torch.float32
