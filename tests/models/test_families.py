"""Families of models: what preferl samples, scores, trains and saves of each is what plain transformers says.

Every comparison is with passes over single rows without padding, written here and not taken from preferl.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import families
import preferl
from families import DECODERS, ENCODERS, save_decoder, save_encoder
from preferl.models import load, passes
from preferl.models.critic import critic_from_policy, token_values
from preferl.models.lora import merged, with_lora
from preferl.models.reward import (
    RewardModel,
    fold_normalisation,
    load_reward_model,
    new_attribute_model,
    save_reward_adapter,
    with_new_adapter,
)
from preferl.models.storage import Weights
from preferl.options.shared import LoraOptions, SamplingOptions
from preferl.runs.errors import UsageError
from preferl.sampling import cached
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's

CPU = torch.device("cpu")
# Of unlike length, so that batches are padded; responses of them end at unlike tokens.
PROMPTS = ["abc", "What is the capital of France?", "x", "defghijkl"]
EVERY = [*DECODERS, "gemma3_with_vision"]
# What a cache cannot do here (Mamba's with padding, RWKV's of another kind) is sampled by whole passes.
# The steps of Zamba 2 are not quite those of its passes.
WITHOUT_CACHE = {"mamba", "falcon_mamba", "rwkv", "recurrent_gemma", "zamba2"}
# No class of transformers has a head that scores for them.
WITHOUT_SCORES = {"lfm2", "mamba", "rwkv", "falcon_mamba", "recurrent_gemma", "granite", "cohere"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directory of a family's language model, made once."""
    made = {}

    def directory(name):
        if name not in made:
            made[name] = save_decoder(tmp_path_factory.mktemp("families") / name, name)
        return str(made[name])

    return directory


def whole(auto_class, path):
    """The model at a path as plain transformers loads it, of which no weight is missing or left over."""
    model, info = auto_class.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def plain_logprobs(model, prompt_ids, response_ids, pad_id):
    """Log-probabilities of a response's tokens by one pass over the row alone; the pad is never drawn."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *response_ids]]), use_cache=False).logits[0].float()
    logits[:, pad_id] = -math.inf
    logp = logits.log_softmax(-1)
    return [float(logp[len(prompt_ids) + t - 1, token]) for t, token in enumerate(response_ids)]


# --------------------------------------------------------------------------------------- sampling and scoring


@pytest.mark.parametrize("name", EVERY)
def test_samples_have_the_probabilities_of_plain_passes(name, saved):
    policy, reference = Policy.load(saved(name), "cpu"), Policy.load(saved(name), "cpu")
    pad_id, size = policy.tokenizer.pad_token_id, len(policy.tokenizer)
    # One of eight ids ends a response, so that rows are dropped on the way.
    sampling = Sampling(1.0, 24, suppressed=(pad_id,), stop=tuple(range(1, size, 8)))
    prompts = [policy.tokenizer(prompt)["input_ids"] for prompt in PROMPTS for _ in range(2)]
    samples = policy.sampler(SamplingOptions()).sample(prompts, sampling, torch.Generator().manual_seed(1))
    lengths = samples.mask_BT.sum(-1).tolist()
    assert len(set(lengths)) > 3
    plain = AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32).eval()
    trained_BT = policy.logprobs(samples)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        response = samples.response_BT[row, :length].tolist()
        exact = torch.tensor(plain_logprobs(plain, prompt, response, pad_id))
        torch.testing.assert_close(samples.logp_BT[row, :length], exact, atol=1e-4, rtol=0)
        torch.testing.assert_close(trained_BT[row, :length], exact, atol=1e-4, rtol=0)
    kl_B = (trained_BT - reference.logprobs(samples)).sum(-1)
    assert not kl_B.any(), "a policy is off the reference that it is"


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_policy_is_the_one_that_was_loaded(name, saved, tmp_path):
    policy = Policy.load(saved(name), "cpu")
    policy.save(tmp_path / "model")
    ids = torch.tensor([policy.tokenizer("Is this so? Yes.")["input_ids"]])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32).eval()(ids).logits
        after = whole(AutoModelForCausalLM, tmp_path / "model")(ids).logits
    torch.testing.assert_close(after[..., : before.shape[-1]], before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(WITHOUT_CACHE))
def test_sampling_without_a_cache_is_said_once(name, saved, capsys):
    policy = Policy.load(saved(name), "cpu")
    for seed in (0, 1):
        policy.respond(["abc"], seed=seed, response_length=2)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("cannot be sampled from a cache") == 1
    assert "every token reads its whole sequence again" in said


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba2", "jamba", "qwen3_next"])
def test_a_cache_is_used_where_it_is_exact(name, saved):
    policy = Policy.load(saved(name), "cpu")
    make_reader, why_not = cached.find_reader(policy.model, policy.tokenizer.pad_token_id, torch.float32)
    assert make_reader in (cached.static, cached.dynamic)
    assert not why_not


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba2"])
def test_rows_that_are_moved_for_a_pass_say_the_same(name, saved, monkeypatch):
    """As for a family that lets padding on the left into its state."""
    policy = Policy.load(saved(name), "cpu")
    samples = policy.respond(PROMPTS, seed=1, response_length=12).samples
    ids_BS, mask_BS = samples.tokens_BS, samples.attention_BS
    width = samples.mask_BT.shape[1]
    found = []
    for respects in (True, False):
        monkeypatch.setitem(passes._respecting, policy.model, respects)
        with torch.no_grad():
            logits, states = passes.last_logits(policy.model, ids_BS, mask_BS, width + 1, states=True)
        real = torch.cat([torch.ones(len(mask_BS), 1), samples.mask_BT], dim=1)[..., None]
        found.append((logits * real, states * real))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


def test_a_family_that_lets_padding_into_its_state_is_found_out(saved):
    for name in ("llama", "gpt2", "mamba2"):
        assert passes.respects_left_padding(Policy.load(saved(name), "cpu").model)
    assert not passes.respects_left_padding(Policy.load(saved("rwkv"), "cpu").model)


@pytest.mark.parametrize(
    "name", ["gemma3", "gemma3_with_vision", "mamba2", "bloom", "qwen3_next", "rwkv", "ctrl"]
)
def test_a_critic_values_states_as_if_rows_were_alone(name, saved):
    critic = critic_from_policy(saved(name), CPU)
    assert not critic.score.weight.any()
    torch.nn.init.normal_(critic.score.weight)
    rows = [torch.arange(5, 17), torch.arange(30, 36)]
    ids_BS, mask_BS = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)
    for row, ids in enumerate(rows):
        ids_BS[row, 12 - len(ids) :] = ids
        mask_BS[row, 12 - len(ids) :] = 1
    with torch.no_grad():
        together = token_values(critic, ids_BS, mask_BS, 9)
        alone = [token_values(critic, ids[None], torch.ones_like(ids[None]), len(ids) - 3) for ids in rows]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mamba2", "bloom", "jamba", "gpt2", "phimoe"])
def test_lora_weights_train_on_any_family(name, saved, tmp_path):
    """Fresh ones change nothing; trained ones are sampled from, and merged, as they are."""
    model, tokenizer = load.load_policy(saved(name), CPU)
    ids = torch.tensor([tokenizer("Is this so? Yes.")["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits
    adapted = with_lora(model, saved(name), LoraOptions(lora_r=2, lora_alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, before, atol=0, rtol=0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        trained = adapted(ids).logits
    policy = Policy(adapted, tokenizer)
    samples = policy.respond(PROMPTS, seed=1, response_length=8).samples
    torch.testing.assert_close(policy.logprobs(samples), samples.logp_BT, atol=1e-4, rtol=0)
    load.save(merged(adapted), tokenizer, tmp_path / "model")
    with torch.no_grad():
        after = whole(AutoModelForCausalLM, tmp_path / "model")(ids).logits
    torch.testing.assert_close(after, trained, atol=1e-4, rtol=0)
    assert (trained - before).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama4_with_vision", "mistral3_with_vision"])
def test_a_model_that_sees_too_is_a_policy_and_a_critic_by_its_text_part(name, saved):
    """transformers has no plain trunk for the one, and no class for text alone for the other."""
    policy = Policy.load(saved(name), "cpu")
    prompts = [policy.tokenizer(text)["input_ids"] for text in PROMPTS]
    samples = policy.respond(PROMPTS, seed=1, response_length=8).samples
    for row, prompt_ids in enumerate(prompts):
        length = int(samples.mask_BT[row].sum())
        ids = samples.response_BT[row, :length].tolist()
        expected = plain_logprobs(policy.model, prompt_ids, ids, policy.tokenizer.pad_token_id)
        assert samples.logp_BT[row, :length].tolist() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(policy.logprobs(samples), samples.logp_BT, atol=1e-4, rtol=0)
    critic = critic_from_policy(saved(name), CPU)
    ids_BS = torch.arange(5, 17)[None]
    assert token_values(critic, ids_BS, torch.ones_like(ids_BS), 9).tolist() == [[0.0] * 3]
    assert (
        load_reward_model(saved(name), CPU, new_head_allowed=True, pooling="mean")[0].score.out_features == 1
    )


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_is_no_policy_although_transformers_loads_it_as_one(name, tmp_path):
    """It would learn each token from the token itself."""
    made = str(save_encoder(tmp_path / name, name))
    with pytest.raises(
        UsageError, match=rf"\({name}\) reads a token together with those after it.*preferl reward"
    ):
        load.load_policy(made, CPU)
    load_reward_model(made, CPU, new_head_allowed=True)


def test_a_family_without_a_class_that_writes_is_named(tmp_path):
    made = str(save_encoder(tmp_path / "m", "distilbert"))
    with pytest.raises(UsageError, match=r"of the family distilbert, .*no class that writes text"):
        load.load_policy(made, CPU)


def test_a_head_that_reads_padding_is_refused(tmp_path):
    tokenizer = families.character_tokenizer()
    size = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    model = XLNetForSequenceClassification(
        XLNetConfig(vocab_size=len(tokenizer), num_labels=1, **size, **ids)
    )
    load.save(model, tokenizer, tmp_path / "xlnet")
    assert load.max_positions(model) is None
    with pytest.raises(UsageError, match=r"\(xlnet\) gives a text another score where padding follows it"):
        load_reward_model(str(tmp_path / "xlnet"), CPU)


# --------------------------------------------------------------------------------------------------- training

PAIRS = [
    {"prompt": f"Question {i}? ", "chosen": f"The answer is {i}.", "rejected": f"No {i}.", "split": split}
    for i, split in enumerate(["train"] * 8 + ["dev"] * 4 + ["eval"] * 4)
]
DATA = [{"prompt": f"Question {i}? ", "split": split} for i, split in enumerate(["rl"] * 4 + ["dev"] * 2)]


def distinct(prompts, completions, **columns):
    return [float(len(set(text))) for text in completions]


@pytest.mark.parametrize("name", ["bloom", "mamba", "qwen3_next", "gemma3_with_vision"])
def test_training_at_rate_zero_changes_nothing(name, saved):
    found = preferl.train_sft(saved(name), PAIRS, learning_rate=0.0, max_steps=1, check_samples=2)
    ids = torch.tensor([AutoTokenizer.from_pretrained(saved(name))("Is this so? Yes.")["input_ids"]])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32).eval()(ids).logits
        after = whole(AutoModelForCausalLM, found.path / "model")(ids).logits
    torch.testing.assert_close(after[..., : before.shape[-1]], before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["falcon_alibi", "mamba", "jamba"])
def test_rl_logs_the_kl_of_plain_passes(name, saved, tmp_path):
    """Against a reference of other weights, for two iterations: the run's own check compares sampling with
    training."""
    other = save_decoder(tmp_path / "other", name, seed=1)
    found = preferl.train_rl(
        saved(name),
        DATA,
        reward_funcs=distinct,
        ref_model=str(other),
        algorithm="rloo",
        num_generations=2,
        num_iterations=2,
        batch_size=8,
        response_length=8,
        learning_rate=1e-4,
    )
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (saved(name), other)]
    tokenizer = AutoTokenizer.from_pretrained(saved(name))
    rows = [json.loads(line) for line in (found.path / "samples.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["iteration"] == 1]
    assert first
    for row in first:
        ids = tokenizer(row["response"])["input_ids"] + [tokenizer.eos_token_id] * row["finished"]
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        ours, theirs = (sum(plain_logprobs(m, prompt_ids, ids, tokenizer.pad_token_id)) for m in models)
        assert row["kl"] == pytest.approx(ours - theirs, abs=1e-3)
    whole(AutoModelForCausalLM, found.path / "model")


@pytest.mark.parametrize("name", sorted(set(EVERY) - WITHOUT_SCORES))
def test_a_reward_model_on_a_language_model_scores_as_transformers_does(name, saved, tmp_path):
    scorer = RewardModel(*load_reward_model(saved(name), CPU, new_head_allowed=True))
    fold_normalisation(scorer.model, 0.25, 2.0)
    load.save(scorer.model, scorer.tokenizer, tmp_path / "model")
    scores = RewardModel.load(str(tmp_path / "model"), "cpu")(["Is it so? "] * 2, ["Yes.", "No, it is not."])
    plain = whole(AutoModelForSequenceClassification, tmp_path / "model")
    for text, score in zip(["Yes.", "No, it is not."], scores, strict=True):
        ids = scorer.tokenizer("Is it so? " + text)["input_ids"] + [scorer.tokenizer.eos_token_id]
        with torch.no_grad():
            raw = float(plain(torch.tensor([ids])).logits[0, 0])
        assert score == pytest.approx(raw - plain.config.reward_mean, abs=1e-4)


@pytest.mark.parametrize("name", sorted(WITHOUT_SCORES))
def test_a_family_without_scores_says_what_works_and_it_does(name, saved, tmp_path):
    with pytest.raises(UsageError, match="--pooling mean"):
        load_reward_model(saved(name), CPU, new_head_allowed=True)
    scorer = RewardModel(*load_reward_model(saved(name), CPU, new_head_allowed=True, pooling="mean"))
    load.save(scorer.model, scorer.tokenizer, tmp_path / "model")
    scores = RewardModel.load(str(tmp_path / "model"), "cpu")(["Is it so? "] * 2, ["Yes.", "No, it is not."])
    trunk = AutoModel.from_pretrained(saved(name)).eval()
    for text, score in zip(["Yes.", "No, it is not."], scores, strict=True):
        ids = scorer.tokenizer("Is it so? " + text)["input_ids"] + [scorer.tokenizer.eos_token_id]
        with torch.no_grad():
            mean = trunk(torch.tensor([ids])).last_hidden_state[0].mean(0)
            assert score == pytest.approx(float(scorer.model.score(mean)), abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"n_groups": 2}, {"use_bias": True}, {"chunk_size": 4}])
def test_a_mamba_2_that_scores_is_a_zamba_2_bit_for_bit(options, tmp_path, monkeypatch, capsys):
    prefix, usual = DECODERS["mamba2"]
    monkeypatch.setitem(DECODERS, "mamba2", (prefix, usual | options))
    made = str(save_decoder(tmp_path / "m", "mamba2"))
    model, _ = load_reward_model(made, CPU, new_head_allowed=True)
    assert "kept as a zamba2 without attention" in capsys.readouterr().out
    ids_BS = torch.arange(5, 45).reshape(2, 20)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, 13:] = 0
    with torch.no_grad():
        own = AutoModel.from_pretrained(made)(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        twin = model.base_model(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    assert torch.equal(twin[mask_BS.bool()], own[mask_BS.bool()])
    heads, _ = new_attribute_model(made, CPU, ["helpful", "short"])
    assert heads.score.out_features == 2


def test_a_mamba_2_that_no_zamba_2_computes_says_what_works(tmp_path, monkeypatch):
    prefix, usual = DECODERS["mamba2"]
    monkeypatch.setitem(DECODERS, "mamba2", (prefix, usual | {"layer_norm_epsilon": 1e-3}))
    made = str(save_decoder(tmp_path / "m", "mamba2"))
    with pytest.raises(UsageError, match="--pooling mean"):
        load_reward_model(made, CPU, new_head_allowed=True)


def test_lora_weights_of_a_twin_are_put_on_it_again(saved, tmp_path):
    model, _ = load_reward_model(saved("mamba2"), CPU, new_head_allowed=True)
    adapted = with_new_adapter(model, saved("mamba2"), LoraOptions(lora_r=2, lora_alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        ids = torch.arange(5, 25)[None]
        before = adapted(ids).logits
        save_reward_adapter(adapted, tmp_path / "adapter", "last")
        after = load_reward_model(str(tmp_path / "adapter"), CPU)[0](ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoder_becomes_a_reward_model(name, lora, tmp_path):
    """New layers between trunk and head are trained and saved with it, with LoRA too."""
    start = str(save_encoder(tmp_path / "start", name))
    kept = Weights.FROZEN if lora else Weights.TRAINED
    model, tokenizer = load_reward_model(start, CPU, new_head_allowed=True, weights=kept)
    if lora:
        model = with_new_adapter(model, start, LoraOptions(lora_r=2, lora_alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    fold_normalisation(model, 0.5, 2.0)
    texts = ["Yes.", "No, it is not."]
    scores = RewardModel(model, tokenizer)(["Is it so?"] * 2, texts)
    if lora:
        save_reward_adapter(model, tmp_path / "adapter", "last")
        again = RewardModel.load(str(tmp_path / "adapter"), "cpu")(["Is it so?"] * 2, texts)
        assert again == pytest.approx(scores, abs=1e-4)
        model = model.merge_and_unload()
    load.save(model, tokenizer, tmp_path / "model")
    plain = whole(AutoModelForSequenceClassification, tmp_path / "model")
    for text, score in zip(texts, scores, strict=True):
        with torch.no_grad():
            # As cards have it: all that the tokenizer says of a pair.
            raw = float(plain(**tokenizer("Is it so?", text, return_tensors="pt")).logits[0, 0])
        assert score == pytest.approx(raw - getattr(plain.config, "reward_mean", 0.0), abs=1e-4)


# ---------------------------------------------------------------------------------------- adapter directories


def adapter_at(path, model, config, tokenizer):
    """An adapter with weights of its own, saved as peft saves it; returns the adapted model."""
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return adapted


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture
def lora_policy_directory(saved, tmp_path):
    """(directory of an adapter alone, its logits on a probe, the base)"""
    base = tmp_path / "base"
    save_decoder(base, "llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", **LORA)
    adapted = adapter_at(tmp_path / "lora", model, config, AutoTokenizer.from_pretrained(base))
    with torch.no_grad():
        logits = adapted(torch.tensor([[5, 6, 7, 8]])).logits
    return tmp_path / "lora", logits, base


def test_a_start_that_is_an_adapter_is_merged_and_said(lora_policy_directory, tmp_path, capsys):
    directory, logits, base = lora_policy_directory
    policy = Policy.load(str(directory), "cpu")
    assert f"merged into their base '{base}'" in " ".join(capsys.readouterr().out.split())
    policy.save(tmp_path / "model")
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    with torch.no_grad():
        after = whole(AutoModelForCausalLM, tmp_path / "model")(torch.tensor([[5, 6, 7, 8]])).logits
    torch.testing.assert_close(after, logits, atol=1e-4, rtol=0)


def test_training_goes_on_from_an_adapter(lora_policy_directory):
    directory, logits, _ = lora_policy_directory
    found = preferl.train_dpo(str(directory), PAIRS, learning_rate=0.0, max_steps=1, check_samples=2)
    with torch.no_grad():
        after = whole(AutoModelForCausalLM, found.path / "model")(torch.tensor([[5, 6, 7, 8]])).logits
    torch.testing.assert_close(after, logits, atol=1e-4, rtol=0)


def test_critic_and_reward_model_start_from_an_adapter_too(lora_policy_directory):
    directory, _, _ = lora_policy_directory
    adapted = AutoModelForCausalLM.from_pretrained(directory).eval()
    critic = critic_from_policy(str(directory), CPU)
    reward, _ = load_reward_model(str(directory), CPU, new_head_allowed=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        states = adapted.model(ids).last_hidden_state
        for model in (critic, reward):
            torch.testing.assert_close(model.base_model(ids).last_hidden_state, states, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="head that makes a score"):
        RewardModel.load(str(directory), "cpu")


def test_a_base_that_is_gone_is_named(lora_policy_directory):
    directory, _, base = lora_policy_directory
    base.rename(base.with_name("moved"))
    with pytest.raises(UsageError, match=str(base)):
        Policy.load(str(directory), "cpu")


def test_an_adapter_that_cannot_be_merged_is_refused_by_its_kind(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved("llama"))
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UsageError, match="PROMPT_TUNING"):
        Policy.load(str(tmp_path / "prompt"), "cpu")


# ------------------------------------------------------------------------------------ published reward models


def test_a_published_adapter_scores_as_peft_does(saved, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(saved("llama"), num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(saved("llama"))
    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA)
    adapted = adapter_at(tmp_path / "published", base, config, tokenizer)
    scores = RewardModel.load(str(tmp_path / "published"), "cpu")(["Is it so? "] * 2, ["Yes.", "No."])
    for text, score in zip(["Yes.", "No."], scores, strict=True):
        ids = tokenizer("Is it so? " + text)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            assert score == pytest.approx(float(adapted(torch.tensor([ids])).logits[0, 0]), abs=1e-4)


@pytest.mark.parametrize("answer", ["Yes.", "Yes, and so on. " * 6])
@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_truncates_on_the_left_keeps_the_end(bos, answer, saved, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(saved("llama"), num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved("llama"), truncation_side="left")
    if bos:
        tokenizer.bos_token = "~"  # any token serves that no text holds
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="~ $A", special_tokens=[("~", tokenizer.bos_token_id)]
        )
    load.save(model, tokenizer, tmp_path / "published")
    scorer = RewardModel(*load_reward_model(str(tmp_path / "published"), CPU), max_length=48)
    (score,) = scorer(["Is it so? " * 8], [answer])
    text = "Is it so? " * 8 + answer + tokenizer.eos_token
    inputs = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        exact = float(model(inputs["input_ids"]).logits[0, 0])
    assert score == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("kind", ["bias", "layers"])
def test_a_published_head_that_its_class_has_not(kind, saved, tmp_path, capsys):
    """As cards have it that build the head in code of their own: a bias, or two layers with a ReLU."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(saved("llama"), num_labels=1).eval()
    if kind == "bias":
        model.score = torch.nn.Linear(32, 1)
    else:
        model.score = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    tokenizer = AutoTokenizer.from_pretrained(saved("llama"))
    load.save(model, tokenizer, tmp_path / "published")
    scorer = RewardModel.load(str(tmp_path / "published"), "cpu")
    assert ("several linear layers" in " ".join(capsys.readouterr().out.split())) == (kind == "layers")
    scorer_scores = scorer(["Is it so? "] * 2, ["Yes.", "No, it is not."])
    load.save(scorer.model, tokenizer, tmp_path / "again")
    again = RewardModel.load(str(tmp_path / "again"), "cpu")(["Is it so? "] * 2, ["Yes.", "No, it is not."])
    for text, *scores in zip(["Yes.", "No, it is not."], scorer_scores, again, strict=True):
        ids = tokenizer("Is it so? " + text)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            exact = float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]))
        assert scores == pytest.approx([exact, exact], abs=1e-4)


def test_roberta_reads_as_many_tokens_as_it_has_positions_for(tmp_path):
    """Two fewer than its table has rows."""
    start = str(save_encoder(tmp_path / "start", "roberta"))
    model, tokenizer = load_reward_model(start, CPU, new_head_allowed=True)
    scorer = RewardModel(model, tokenizer)
    padding = model.roberta.embeddings.position_embeddings.padding_idx
    assert scorer.max_length == 128 - padding - 1
    (long,) = scorer(["word " * 100], ["answer " * 10])
    ids = tokenizer("word " * 100, "answer " * 10)["input_ids"]
    cut = len(ids) - scorer.max_length  # the oldest tokens of the prompt
    with torch.no_grad():
        exact = float(model(torch.tensor([ids[:1] + ids[1 + cut :]])).logits[0, 0])
    assert long == pytest.approx(exact, abs=1e-4)


def test_the_page_lists_what_is_tried():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in (*EVERY, *families.WITH_VISION, *ENCODERS):
        assert f"`{name}`" in page


def test_families_have_sizes_of_their_own():
    """Weights that a wrong position or mask moves by more than rounding does."""
    model = families.decoder("llama")
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.std() > 0.5


@pytest.fixture
def classifier(tmp_path):
    """(directory of a DeBERTa with labels bad and good, its head with a bias; what its card's snippet
    says)"""
    made = save_encoder(tmp_path / "trunk", "deberta_v2")
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(made, num_labels=2, **labels).eval()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.3, -0.7]))
    tokenizer = AutoTokenizer.from_pretrained(made)
    load.save(model, tokenizer, tmp_path / "classifier")
    with torch.no_grad():
        logits = model(**tokenizer("Is it so?", "Yes.", return_tensors="pt")).logits[0].tolist()
    return tmp_path / "classifier", logits


def test_a_classifier_of_two_labels_scores_by_the_label_that_is_named(classifier):
    path, (bad, good) = classifier
    for named, score in (("1*good", good), ("1*bad", bad), ("1*good-1*bad", good - bad)):
        scorer = RewardModel.load(f"{path}#{named}", "cpu")
        assert scorer(["Is it so?"], ["Yes."]) == pytest.approx([score], abs=1e-4)


def test_a_classifier_without_a_label_says_how_to_name_one(classifier):
    path, (bad, good) = classifier
    with pytest.raises(UsageError) as refused:
        RewardModel.load(str(path), "cpu")
    advice = [word.strip("',") for word in str(refused.value).split() if "#" in word]
    scores = [RewardModel.load(name, "cpu")(["Is it so?"], ["Yes."])[0] for name in advice]
    assert scores == pytest.approx([good, good - bad], abs=1e-4)


def test_a_published_adapter_with_two_labels_is_asked_for_one(saved, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(saved("llama"), num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(saved("llama"))
    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA)
    adapted = adapter_at(tmp_path / "published", base, config, tokenizer)
    with pytest.raises(UsageError, match="#1"):
        RewardModel.load(str(tmp_path / "published"), "cpu")
    (score,) = RewardModel.load(f"{tmp_path / 'published'}#1*LABEL_1", "cpu")(["Is it so? "], ["Yes."])
    ids = tokenizer("Is it so? Yes.")["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        assert score == pytest.approx(float(adapted(torch.tensor([ids])).logits[0, 1]), abs=1e-4)
