"""A pad token that is not EOS: which one, and how much a model grows for it; alike in every role."""

import importlib.util
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preferl.models import load
from preferl.models.critic import critic_from_policy
from preferl.models.reward import load_reward_model
from preferl.models.special_tokens import PAD
from preferl.models.storage import Weights
from preferl.runs.errors import UsageError
from preferl.stages import rl
from small_models import TEXTS

CPU = torch.device("cpu")


def save(path, tokenizer, rows=None, tied=True):
    """A language model whose pad token is its EOS, with so many rows; by default one for each token."""
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def own_tokenizer():
    """A tokenizer that knows of no padding, which a test may change."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|eos|>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


def rows_of(model):
    return model.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize(
    "name", ["<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unused0>", "[unused1]", "[PAD]"]
)
def test_a_token_in_reserve_pads_and_nothing_grows(tmp_path, own_tokenizer, name):
    own_tokenizer.add_special_tokens({"additional_special_tokens": ["<|other|>", name]})
    path = save(tmp_path / "m", own_tokenizer)
    model, tokenizer = load.load_policy(path, CPU)
    assert tokenizer.pad_token == name
    assert rows_of(model) == len(own_tokenizer)
    reward, _ = load_reward_model(path, CPU, True)
    assert model.config.pad_token_id == reward.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("name", ["<|image_pad|>", "<|im_start|>", "<padding_of_words>", "<|keypad_down|>x"])
def test_a_token_that_may_stand_for_something_does_not_pad(tmp_path, own_tokenizer, name):
    own_tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    _, tokenizer = load.load_policy(save(tmp_path / "m", own_tokenizer), CPU)
    assert tokenizer.pad_token == PAD


def test_a_token_of_the_chat_template_does_not_pad(tmp_path, own_tokenizer):
    own_tokenizer.add_special_tokens({"additional_special_tokens": ["<unused0>"]})
    own_tokenizer.chat_template = "<unused0>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    _, tokenizer = load.load_policy(save(tmp_path / "m", own_tokenizer), CPU)
    assert tokenizer.pad_token == PAD


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_stay_multiples_of_64_and_tied_weights_tied(tmp_path, own_tokenizer, tied):
    count = len(own_tokenizer)
    own_tokenizer.add_tokens([f"word{i}" for i in range(-count % 64)])
    path = save(tmp_path / "m", own_tokenizer, tied=tied)
    before = LlamaForCausalLM.from_pretrained(path).get_input_embeddings().weight
    model, tokenizer = load.load_policy(path, CPU)
    assert len(tokenizer) == len(before) + 1
    assert rows_of(model) == len(before) + 64
    output = model.get_output_embeddings().weight
    assert (output is model.get_input_embeddings().weight) == tied
    assert output.shape == model.get_input_embeddings().weight.shape
    # New rows are the same wherever they are made: the mean of the others.
    again, reward = load.load_policy(path, CPU)[0], load_reward_model(path, CPU, True)[0]
    for other in (model, again, reward, critic_from_policy(path, CPU)):
        weight = other.get_input_embeddings().weight
        assert torch.equal(weight[: len(before)], before)
        torch.testing.assert_close(weight[len(before) :], before.mean(0).expand(64, -1))


def test_a_spare_row_takes_the_new_token(tmp_path, own_tokenizer):
    path = save(tmp_path / "m", own_tokenizer, rows=len(own_tokenizer) + 10)
    model, tokenizer = load.load_policy(path, CPU)
    assert tokenizer.pad_token == PAD
    assert rows_of(model) == len(own_tokenizer) + 10


def test_a_pad_token_of_its_own_stays(tmp_path, policy_directory):
    model, tokenizer = load.load_policy(str(policy_directory), CPU)
    assert tokenizer.pad_token == AutoTokenizer.from_pretrained(policy_directory).pad_token
    assert rows_of(model) == len(tokenizer)


def test_rows_that_are_trained_stay_so(tmp_path, own_tokenizer):
    path = save(tmp_path / "m", own_tokenizer)
    model, _ = load.load_policy(path, CPU, weights=Weights.TRAINED)
    assert model.get_input_embeddings().weight.requires_grad
    frozen, _ = load.load_policy(path, CPU)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("value_model", ["policy", "head"])
@pytest.mark.parametrize("lora_r", [0, 2])
def test_ppo_from_a_model_whose_pad_token_is_eos(tmp_path, own_tokenizer, value_model, lora_r):
    """Policy, critic and reference have a row for the same pad token."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Tell me {'more ' * (i % 4)}{i}."} for i in range(40)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = rl.run(
        rl.RlConfig(
            output_dir=str(tmp_path / "rl"),
            model_name_or_path=save(tmp_path / "m", own_tokenizer),
            dataset_name=str(prompts),
            reward_model="length",
            value_model=value_model,
            lora_r=lora_r,
            num_iterations=1,
            batch_size=8,
            response_length=6,
            eval_every=0,
            num_threads=1,
            device="cpu",
        )
    )
    saved = AutoTokenizer.from_pretrained(path / "model")
    assert saved.pad_token_id != saved.eos_token_id


# ---------------------------------------------------------------------------------------------- other formats


def test_gguf_without_its_package_and_folders_of_several_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"no tokenizer could be loaded from .*a\.gguf"):
        load.load_policy(str(tmp_path / "a.gguf"), CPU)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    for name in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(UsageError, match=r"a GGUF file, .*pip install preferl\[gguf\]"):
            load.load_policy(str(name), CPU)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"2 GGUF files \(a.gguf, b.gguf\); give the path of one"):
        load.load_policy(str(tmp_path), CPU)
