"""Where a response ends, what is never drawn, and what of a model has to be mended before it can be saved."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BertTokenizerFast, LlamaConfig, LlamaForCausalLM

import preferl
from preferl.data.records import ToolDialogue, UserTurn
from preferl.data.templates import KWARGS
from preferl.models import load
from preferl.models.special_tokens import stop_ids
from preferl.models.tiny import CHAT_TEMPLATE, train_tokenizer
from preferl.runs.errors import UsageError
from preferl.sampling.policy import Policy

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|system|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CPU = torch.device("cpu")


def saved(path, tokenizer, rows=None, **settings):
    """A random small Llama with these generation settings in its file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    file = path / "generation_config.json"
    if settings:
        given = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id} | settings
        file.write_text(json.dumps(given))
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def tokenizer():
    made = train_tokenizer(["Once upon a time there was a dog."], 300)
    made.chat_template = TEMPLATE
    return made


def settings_of(path):
    return json.loads((path / "generation_config.json").read_text())


def test_every_eos_id_and_the_turns_end_stop_a_response_and_are_kept(tmp_path, tokenizer):
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|system|>"])
    name = saved(tmp_path / "m", tokenizer, eos_token_id=[tokenizer.eos_token_id, user])
    policy = Policy.load(name, "cpu")
    stops = [tokenizer.eos_token_id, user, end]
    out = policy.respond(["Once"] * 300, response_length=60)
    assert out.samples.sampling.stop == tuple(stops)
    ends = {ids[-1] for ids, finished in zip(out.completion_ids, out.finished, strict=True) if finished}
    assert ends == set(stops)
    for ids, text, finished in zip(out.completion_ids, out.completions, out.finished, strict=True):
        assert not set(ids[:-1]) & set(stops)
        assert finished == (ids[-1] in stops)
        assert "<|user|>" not in text
    assert "end with any of <|eos|>, <|user|>, <|system|>" in policy.notes[0]
    policy.save(tmp_path / "again")
    assert settings_of(tmp_path / "again")["eos_token_id"] == stops
    assert stop_ids(*load.load_policy(str(tmp_path / "again"), CPU)) == stops


def test_an_id_of_the_class_defaults_ends_nothing(tmp_path, tokenizer):
    """Without generation settings the ids are the configuration's, which may be of any token."""
    tokenizer.chat_template = None
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=70,
        )
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load.load_policy(str(tmp_path), CPU)
    assert stop_ids(*loaded) == [tokenizer.eos_token_id]


def test_a_pad_token_that_is_an_eos_id_may_be_drawn_as_an_end(tmp_path, tokenizer):
    ids = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    policy = Policy.load(saved(tmp_path, tokenizer, eos_token_id=ids), "cpu")
    out = policy.respond(["Once"] * 300, response_length=60)
    ends = {ids[-1] for ids, finished in zip(out.completion_ids, out.finished, strict=True) if finished}
    assert tokenizer.pad_token_id in ends
    assert out.samples.sampling.suppressed == ()


def test_ids_without_text_are_never_drawn_and_that_is_said(tmp_path, tokenizer):
    policy = Policy.load(saved(tmp_path, tokenizer, rows=len(tokenizer) + 300), "cpu")
    out = policy.respond(["Once"] * 40, response_length=20)
    assert int(out.samples.tokens_BS.max()) < len(tokenizer)
    assert torch.allclose(policy.logprobs(out.samples), out.samples.logp_BT, atol=1e-4)
    assert any("300 of the model's ids" in note for note in policy.notes)


def test_settings_that_could_not_be_saved_are_mended_and_said(tmp_path, tokenizer):
    name = saved(tmp_path / "m", tokenizer, do_sample=False, temperature=0.6, top_p=0.9, top_k=20)
    policy = Policy.load(name, "cpu")
    policy.save(tmp_path / "again")
    AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert "temperature 0.6" in policy.notes[0]
    assert settings_of(tmp_path / "again")["eos_token_id"] == [tokenizer.eos_token_id, 4]


def bert_tokenizer(path):
    letters = [chr(code) for code in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(vocab=str(path / "vocab.txt"))


def test_a_tokenizer_without_eos_ends_with_sep_or_a_new_token(tmp_path, tokenizer):
    policy = Policy.load(saved(tmp_path, bert_tokenizer(tmp_path)), "cpu")
    assert policy.tokenizer.eos_token == "[SEP]"
    assert "responses end with [SEP]" in policy.notes[0]
    out = policy.respond(["ab"], response_length=5)
    assert out.samples.sampling.stop == (policy.tokenizer.sep_token_id,)
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    other = Policy.load(saved(tmp_path / "bare", tokenizer), "cpu")
    assert other.tokenizer.eos_token == "<|eos|>"


def test_template_arguments_are_kept_with_the_model(tmp_path, tokenizer):
    name = saved(tmp_path / "m", tokenizer)
    policy = Policy.load(name, "cpu", chat_template_kwargs={"enable_thinking": False})
    policy.save(tmp_path / "again")
    assert load.load_tokenizer(str(tmp_path / "again")).init_kwargs[KWARGS] == {"enable_thinking": False}
    with pytest.raises(UsageError, match="tokenize"):
        load.load_tokenizer(name, {"tokenize": True})


ROWS = [{"prompt": f"Name fruit {i}", "chosen": "apple", "rejected": "stone"} for i in range(20)]


def source_of(rows, **options):
    return preferl.load_dataset(rows, verbose=False, **options)


def test_plain_prompts_are_turns_to_a_model_with_a_template_of_its_own(tokenizer):
    source = source_of(ROWS)
    read = load.read_by(source, [tokenizer])
    assert all(isinstance(pair.prompt, UserTurn) for pair in read.train.pairs)
    assert sum("read as the user's turn" in note for note in read.notes) == 1
    assert {name: len(part.pairs) for name, part in read.parts.items()} == {
        name: len(part.pairs) for name, part in source.parts.items()
    }
    bare = load.read_by(source_of(ROWS, as_dialogue=False), [tokenizer])
    assert all(isinstance(pair.prompt, str) for pair in bare.train.pairs)
    assert not load.reads_dialogue(tokenizer)  # what was asked for stays with the model


@pytest.mark.parametrize("template", [None, load.PLAIN_TEMPLATE, CHAT_TEMPLATE])
def test_to_other_models_they_stay_texts(tokenizer, template):
    tokenizer.chat_template = template
    source = source_of(ROWS)
    assert load.read_by(source, [tokenizer]) is source


def test_texts_are_never_turns(tokenizer):
    texts = [{"text": "Once upon a time there was a dog. " * 4 + str(i)} for i in range(20)]
    for asked in (None, True):
        read = load.read_by(source_of(texts, as_dialogue=asked), [tokenizer])
        assert all(isinstance(record.prompt, str) for record in read.train.prompts)


def test_rows_that_a_template_cannot_write_are_left_out_and_counted(tokenizer):
    rows = []
    for i in range(20):
        asked = [{"role": "user", "content": f"Q{i}"}]
        rows.append({"prompt": asked, "completion": "A", "tools": [{"name": "f"}] if i % 2 else []})
    source = source_of(rows)
    assert any(isinstance(d.prompt, ToolDialogue) for d in source.train.demonstrations)
    read = load.read_by(source, [tokenizer])
    left = [d for name in ("train", "dev", "eval") for d in read[name].demonstrations]
    assert len(left) == 10
    assert any("left out" in note and "does not write tools" in note for note in read.notes)
