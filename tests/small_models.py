"""Small real language models, made from configurations with the real libraries."""

import json
from pathlib import Path

import torch
from transformers import (
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


def write_pairs(path: Path) -> Path:
    """Pairs of a polite and a rude answer, in three splits."""
    rows = [
        {
            "prompt": f"Tell me of thing {i}.",
            "chosen": f"Thanks, thing {i} is nice.",
            "rejected": f"No! Thing {i} is bad.",
            "split": "train" if i < 48 else "dev" if i < 56 else "eval",
        }
        for i in range(72)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_language_model(kind: str, tokenizer):
    """A language model with two layers and dropout where the family has it, in evaluation mode."""
    torch.manual_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        tiny.ORIGIN: tiny.NEW,  # what preferl takes by default is what suits so small a model
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
