"""Model families with tiny configurations and random weights, built on the spot with a tokenizer of theirs.

Weights are drawn wide (initializer_range 0.2), so that a wrong position or mask moves log-probabilities by
far more than rounding does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
GEMMA = HEADS | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", HEADS),
    "qwen2": ("Qwen2", HEADS),
    "qwen3": ("Qwen3", HEADS | {"head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", HEADS | EXPERTS | {"head_dim": 8}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA),
    "phi3": ("Phi3", HEADS),
    "mistral": ("Mistral", HEADS | {"sliding_window": 8}),
    "mixtral": ("Mixtral", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {"n_head": 4, "n_positions": 128}),
    "gpt_neox": ("GPTNeoX", {"num_attention_heads": 4, "intermediate_size": 64}),
    "opt": ("OPT", {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", {"num_attention_heads": 4, "multi_query": True}),
    "falcon_alibi": ("Falcon", {"num_attention_heads": 4, "alibi": True, "multi_query": False}),
    "bloom": ("Bloom", {"n_head": 4}),
    "olmo2": ("Olmo2", HEADS),
    "smollm3": ("SmolLM3", HEADS),
    "lfm2": ("Lfm2", HEADS | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "mamba": ("Mamba", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("Mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "jamba": (
        "Jamba",
        HEADS
        | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
        | {"use_mamba_kernels": False},
    ),
    "rwkv": ("Rwkv", {"attention_hidden_size": 32, "intermediate_size": 64, "context_length": 128}),
    "falcon_mamba": ("FalconMamba", {"state_size": 8, "time_step_rank": 4}),
    "recurrent_gemma": (
        "RecurrentGemma",
        HEADS | {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "phimoe": ("Phimoe", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "ctrl": ("CTRL", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 128}),
    "zamba2": (
        "Zamba2",
        {
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "layers_block_type": ["linear_attention", "hybrid"],
        }
        | {"mamba_d_state": 8, "n_mamba_heads": 8, "chunk_size": 8},
    ),
    "granite": ("Granite", HEADS),
    "cohere": ("Cohere", HEADS),
    "qwen3_next": (
        "Qwen3Next",
        HEADS
        | EXPERTS
        | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
}
"""Causal language models: the prefix of their classes and what their configuration needs beside SIZE."""

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2, "max_position_embeddings": 128}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"num_attention_heads": 4, "intermediate_size": 64}),
    "roberta": ("Roberta", {"num_attention_heads": 4, "intermediate_size": 64, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "deberta": ("Deberta", {"num_attention_heads": 4, "intermediate_size": 64, "pooler_hidden_size": 32}),
    "deberta_v2": (
        "DebertaV2",
        {"num_attention_heads": 4, "intermediate_size": 64, "type_vocab_size": 0, "position_buckets": 16}
        | {"relative_attention": True, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 32}
        | {"legacy": False},
    ),
    "modernbert": (
        "ModernBert",
        {"num_attention_heads": 4, "intermediate_size": 64, "global_attn_every_n_layers": 2}
        | {"local_attention": 16},
    ),
}
"""Encoders, as masked language models."""


def character_tokenizer(
    encoder: bool = False, pair: str = "[CLS] $A [SEP] $B [SEP]"
) -> PreTrainedTokenizerFast:
    """One token for each printable character; EOS, or for an encoder what stands around a pair of texts."""
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if encoder else {"eos_token": "<eos>"}
    vocabulary = {token: number for number, token in enumerate([*names.values(), *LETTERS])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    if encoder:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair=pair,
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def decoder(name: str, seed: int = 0) -> PreTrainedModel:
    """A causal language model of a family."""
    prefix, options = DECODERS[name]
    tokenizer = character_tokenizer()
    options = options | {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    suffix = "LMHeadModel" if prefix in ("GPT2", "CTRL") else "ForCausalLM"
    config = "Gemma3Text" if prefix == "Gemma3" else prefix
    return _build(config, prefix + suffix, options, tokenizer, seed)


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
WITH_VISION: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3_with_vision": ("Gemma3", GEMMA, {}, {"mm_tokens_per_image": 4}),
    "llama4_with_vision": (
        "Llama4",
        HEADS
        | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
        | {"attention_chunk_size": 16},
        {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        {"image_token_index": 5},
    ),
    "mistral3_with_vision": (
        "Mistral3",
        HEADS | {"model_type": "mistral", "head_dim": 8},
        {"model_type": "pixtral", "head_dim": 8},
        {"image_token_index": 5},
    ),
}
"""Models that also see pictures, whose text configuration is nested: the prefix of their classes, and what
text, vision and whole need beside SIZE and VISION."""


def with_vision(name: str, seed: int = 0) -> PreTrainedModel:
    """A model that also sees pictures."""
    prefix, text, vision, whole = WITH_VISION[name]
    tokenizer = character_tokenizer()
    text = SIZE | text | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    made = getattr(transformers, f"{prefix}Config")
    config = made(text_config=text, vision_config=VISION | vision, **whole)
    torch.manual_seed(seed)
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()


def encoder(name: str, seed: int = 0) -> PreTrainedModel:
    """A masked language model of a family, as the Hub has it: no pooler, no classifier."""
    prefix, options = ENCODERS[name]
    return _build(prefix, prefix + "ForMaskedLM", options, character_tokenizer(encoder=True), seed)


def _build(config: str, model: str, options: dict[str, Any], tokenizer: Any, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    options = SIZE | options | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if config == "DistilBert":  # its size has names of its own, and the usual ones point to them
        options = {
            key: value for key, value in options.items() if key not in ("hidden_size", "num_hidden_layers")
        }
    made: Callable[..., Any] = getattr(transformers, f"{config}Config")
    return getattr(transformers, model)(made(**options)).eval()


def save_decoder(path: Path, name: str, seed: int = 0) -> Path:
    made = with_vision(name, seed) if name in WITH_VISION else decoder(name, seed)
    made.save_pretrained(path)
    character_tokenizer().save_pretrained(path)
    return path


PAIRS = {
    "bert": "[CLS] $A [SEP] $B:1 [SEP]:1",
    "roberta": "[CLS] $A [SEP] [SEP] $B [SEP]",
}
"""What families put around a pair of texts, where it is not CLS, SEP and SEP of one kind."""


def save_encoder(path: Path, name: str, seed: int = 0) -> Path:
    encoder(name, seed).save_pretrained(path)
    character_tokenizer(encoder=True, pair=PAIRS.get(name, "[CLS] $A [SEP] $B [SEP]")).save_pretrained(path)
    return path
