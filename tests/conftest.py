"""Small real models, made from configurations with the real libraries; nothing is downloaded."""

import os
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from preferl.models import tiny

TEXTS = [
    "What is the capital of France? Paris is the capital of France.",
    "Name two colours. Red and blue. I may be wrong, but the sky is blue today.",
    "Once upon a time there was a little dog. The dog was happy and played in the sun.",
]


def pytest_collection_modifyitems(items):
    """The longest test first, so that the other processes have something to do beside it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models gain nothing from threads, and results repeat."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 300)


def make_language_model(kind: str, tokenizer):
    """A language model with two layers and dropout where the family has it, in evaluation mode."""
    torch.manual_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            intermediate_size=64,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            **size,
            **ids,
        )
        return LlamaForCausalLM(config).eval()
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.2,
            **ids,
        )
        return GPT2LMHeadModel(config).eval()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        **size,
        **ids,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen3"])
def language_model(request, tokenizer):
    return make_language_model(request.param, tokenizer)


@pytest.fixture(scope="session")
def policy_directory(tmp_path_factory, tokenizer) -> Path:
    """A saved Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("policy")
    make_language_model("llama", tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory) -> Path:
    """A saved BERT classifier with a WordPiece tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=0,
    )
    path = tmp_path_factory.mktemp("encoder")
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder PREFERL_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("PREFERL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("PREFERL_DATA names no folder with real data")
    return Path(root)
