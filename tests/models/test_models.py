"""Models in and out: plain transformers loads what preferl writes, and scores mean what they say."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preferl.data.tokens import pad, scored_ids
from preferl.models import load, tiny
from preferl.models.critic import critic_from_policy, critic_from_reward_model, token_values
from preferl.models.reward import (
    RewardModel,
    fold_normalisation,
    is_decoder,
    load_reward_model,
    raw_scores,
    scalar_head,
)
from preferl.runs.errors import UsageError

CPU = torch.device("cpu")
PROMPTS = ["What is the capital of France?", "Name two colours.", "Hi"]
RESPONSES = ["Paris.", "Red and blue, and the sky is blue.", "The dog was happy."]


@pytest.fixture(params=["llama", "gpt2", "qwen3"])
def saved(request, tmp_path, tokenizer):
    """Directory of a saved language model of each family."""
    from small_models import make_language_model

    model = make_language_model(request.param, tokenizer)
    load.save(model, tokenizer, tmp_path / "lm")
    return tmp_path / "lm"


def test_policies_load_with_plain_transformers(saved):
    policy, tokenizer = load.load_policy(str(saved), CPU)
    again = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([tokenizer("What is red?")["input_ids"]])
    torch.testing.assert_close(again(ids).logits, policy(ids).logits)
    assert AutoTokenizer.from_pretrained(saved).pad_token_id == tokenizer.pad_token_id
    assert list(saved.glob("*.safetensors"))
    assert not list(saved.glob("*.bin"))
    assert not policy.training


def test_reward_models_load_with_plain_transformers_up_to_a_constant(saved, tmp_path):
    model, tokenizer = load_reward_model(str(saved), CPU, new_head_allowed=True)
    scorer = RewardModel(model, tokenizer)
    raw = np.array(scorer(PROMPTS, RESPONSES))
    fold_normalisation(model, float(raw.mean()), float(raw.std()))
    scores = np.array(scorer(PROMPTS, RESPONSES))
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)
    load.save(model, tokenizer, tmp_path / "rm")

    ours = RewardModel(*load_reward_model(str(tmp_path / "rm"), CPU))
    assert ours(PROMPTS, RESPONSES) == pytest.approx(scores.tolist(), abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert plain.config.num_labels == 1
    rows = [scored_ids(tokenizer, p, r, True, None) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    ids, mask = pad(rows, tokenizer.pad_token_id, "right")
    with torch.no_grad():
        logits = plain(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()
    constant = logits - scores
    assert constant.std() < 1e-5
    assert constant[0] == pytest.approx(plain.config.reward_mean, abs=1e-4)


def test_a_language_model_is_no_reward_model_unless_asked(saved):
    with pytest.raises(UsageError, match="would be random"):
        load_reward_model(str(saved), CPU)


def test_a_reward_model_is_no_policy(saved, tmp_path, tokenizer):
    model, _ = load_reward_model(str(saved), CPU, new_head_allowed=True)
    load.save(model, tokenizer, tmp_path / "rm")
    with pytest.raises(UsageError, match="it scores texts and writes none"):
        load.load_policy(str(tmp_path / "rm"), CPU)


def test_the_new_head_has_the_published_spread(saved):
    torch.manual_seed(0)
    model, _ = load_reward_model(str(saved), CPU, new_head_allowed=True)
    weight = scalar_head(model).weight
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.4)


def test_scores_do_not_depend_on_the_batch(saved):
    scorer = RewardModel(*load_reward_model(str(saved), CPU, new_head_allowed=True))
    together = scorer(PROMPTS, RESPONSES)
    alone = [scorer([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    cut = scorer(PROMPTS, RESPONSES, finished=[False] * 3)
    assert max(abs(a - b) for a, b in zip(together, cut, strict=True)) > 1e-4


def test_the_score_is_read_at_the_last_real_token(saved):
    model, tokenizer = load_reward_model(str(saved), CPU, new_head_allowed=True)
    ids, mask = pad([[5, 6, 7], [5, 6, 7, 8, 9]], tokenizer.pad_token_id, "right")
    with torch.no_grad():
        score = raw_scores(model, ids, mask)
        exact = raw_scores(model, ids[:1, :3], mask[:1, :3])
    assert score[0].item() == pytest.approx(exact[0].item(), abs=1e-5)


def test_encoders_score_pairs_of_segments(encoder_directory):
    model, tokenizer = load_reward_model(str(encoder_directory), CPU)
    assert not is_decoder(model)
    scorer = RewardModel(model, tokenizer)
    raw = np.array(scorer(PROMPTS, RESPONSES))
    fold_normalisation(model, float(raw.mean()), float(raw.std()))
    scores = np.array(scorer(PROMPTS, RESPONSES))
    assert (scores.mean(), scores.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert model.config.reward_mean == 0.0
    long = scorer(["word " * 200], ["answer " * 100])
    assert np.isfinite(long).all()


def test_constant_scores_cannot_be_normalised(saved):
    model, _ = load_reward_model(str(saved), CPU, new_head_allowed=True)
    with pytest.raises(UsageError, match="standard deviation"):
        fold_normalisation(model, 1.0, 0.0)


def test_the_critic_starts_as_the_reward_model(policy_directory, tokenizer):
    model, rm_tokenizer = load_reward_model(str(policy_directory), CPU, new_head_allowed=True)
    model.config.reward_mean = 0.25
    critic = critic_from_reward_model(load.freeze(model), rm_tokenizer, tokenizer)
    assert critic is not None
    assert all(p.requires_grad for p in critic.parameters())
    prompt, response = [5, 6, 7], [8, 9]
    tokens, mask = torch.tensor([prompt + response]), torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        value = token_values(critic, tokens, mask, 3)
        prefixes = [raw_scores(model, tokens[:, :n], mask[:, :n]).item() - 0.25 for n in (3, 4)]
    assert value[0].tolist() == pytest.approx(prefixes, abs=1e-5)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["newword"])
    assert critic_from_reward_model(model, rm_tokenizer, other) is None


def test_a_critic_from_the_policy_starts_at_zero(policy_directory):
    critic = critic_from_policy(str(policy_directory), CPU)
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert not token_values(critic, tokens, torch.ones_like(tokens), 2).any()


def test_a_tokenizer_whose_pad_is_eos_gets_a_pad_of_its_own(policy_directory, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(policy_directory)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(policy_directory)
    before = model.get_input_embeddings().weight.shape[0]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy, loaded = load.load_policy(str(tmp_path), CPU)
    assert loaded.pad_token_id != loaded.eos_token_id
    assert policy.get_input_embeddings().weight.shape[0] >= max(before, loaded.pad_token_id + 1)


def test_weights_hash_sees_any_change(policy_directory):
    model, _ = load.load_policy(str(policy_directory), CPU)
    first = load.weights_hash(model)
    assert load.weights_hash(model) == first
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert load.weights_hash(model) != first


@pytest.mark.parametrize("name", ["/nowhere/at/all", "tests"])
def test_what_is_no_model_is_named(name):
    with pytest.raises(UsageError, match=name):
        load.load_policy(name, CPU)


def test_pickled_weights_are_refused(policy_directory, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(policy_directory)
    AutoTokenizer.from_pretrained(policy_directory).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        load.load_policy(str(tmp_path), CPU)


def test_the_embedded_tiny_model(tokenizer):
    model = tiny.tiny_model(tiny.train_tokenizer(["a b c"], 2048))
    assert 0.5e6 < load.parameter_count(model) < 2e6
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert load.max_positions(model) == 512
