"""Sizes of models from their configurations alone, and how many tokens a pass without a gradient may have.

Parameters are counted on a model built on the meta device, where weights take no memory. Of a transformer
layer a pass keeps, for each token and the gradient, these numbers (counted with hooks on what autograd saves;
D width, Q width of all heads, F width inside the MLP, S length of the row, r LoRA's rank):

    both norms: their input, it divided, it scaled    6 D      (frozen norms: 4 D)
    queries, keys, values, what attention gives       4 Q      (keys and values repeated for every head)
    gate, its activation, up, their product           4 F      (an MLP without a gate: 2 F)
    a row of the mask                                   S
    what LoRA's first matrices give                   r for each linear layer

of four bytes each; under autocast what linear layers read and give has two.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from preferl.models.load import least_parameters, quiet_transformers
from preferl.models.passes import is_linear
from preferl.runs.memory import GIB, MIB

SMALL = 10_000_000
"""A model of fewer parameters is never planned for: whatever batch it has fits."""
MOST_TOKENS = 1 << 20
"""``micro_batch_tokens`` where a pass needs no bound."""
FORWARD_BYTES = 256 * MIB
"""Of a pass without a gradient, beside the weights."""
CACHE_BYTES = {"cpu": GIB // 2, "cuda": 8 * GIB}
"""Keys and values (float32) of a sampling policy at most, where one row has fewer."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer. ``linear`` counts its linear layers by (inputs, outputs), head left out."""

    layers: int
    width: int
    attention: int
    kv: int
    inner: int
    vocabulary: int
    tied: bool
    parameters: int
    linear: tuple[tuple[tuple[int, int], int], ...]

    @property
    def in_linear(self) -> int:
        """Parameters of its linear layers."""
        return sum(count * inputs * outputs for (inputs, outputs), count in self.linear)

    @property
    def embeddings(self) -> int:
        """Parameters of the input embeddings, and as many of an output layer of its own."""
        return self.vocabulary * self.width

    @property
    def is_gated(self) -> bool:
        """Whether two layers read what goes into the MLP; so it is taken to be where none can be told."""
        return dict(self.linear).get((self.width, self.inner), 2 * self.layers) >= 2 * self.layers

    def lora(self, r: int) -> int:
        """Parameters of LoRA weights of this rank on every linear layer."""
        return sum(count * r * (inputs + outputs) for (inputs, outputs), count in self.linear)

    def kept_per_token(self, length: int, lora_r: int = 0, autocast: bool = False) -> int:
        """Bytes that one layer keeps of each token for the gradient."""
        norms, mlp = 4 if lora_r else 6, (4 if self.is_gated else 2) * self.inner
        of_lora = lora_r * sum(count for _, count in self.linear) // max(self.layers, 1)
        if autocast:  # norms stay float32; each of five linear layers casts what it reads
            return 4 * norms * self.width + 2 * (5 * self.width + 4 * self.attention + mlp + length)
        kept = norms * self.width + 4 * self.attention + mlp + length + of_lora
        return 4 * kept

    def cache_per_token(self, width: int = 4) -> int:
        """Bytes of keys and values of one token, in numbers of ``width`` bytes."""
        return 2 * self.layers * self.kv * width


def sizes(config: Any) -> tuple[int, int, int, int, int, int]:
    """Layers, width, width of all heads, of keys, inside the MLP, vocabulary; from a configuration alone."""
    text = config.get_text_config()

    def size(default: int, *names: str) -> int:
        found = (getattr(text, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), default)

    width = size(1, "hidden_size", "d_model")
    heads = size(1, "num_attention_heads")
    head = size(max(width // heads, 1), "head_dim")
    experts = size(1, "num_experts_per_tok", "moe_topk")
    inner = experts * size(4 * width, "moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
    layers = size(1, "num_hidden_layers")
    kv = size(heads, "num_key_value_heads") * head
    return layers, width, heads * head, kv, inner, size(1, "vocab_size")


def shape_of(config: Any) -> Shape:
    """The sizes of a model of this configuration, its parameters counted on the meta device."""
    return _shape_of(type(config), config.to_json_string(use_diff=False))


@functools.lru_cache(maxsize=32)
def _shape_of(kind: type, text: str) -> Shape:
    config = kind.from_dict(json.loads(text))
    layers, width, attention, kv, inner, vocabulary = sizes(config)
    model = on_meta(config)
    head = model.get_output_embeddings()
    linear: dict[tuple[int, int], int] = {}
    for part in model.modules():
        if is_linear(part) and part is not head:
            key = (part.weight.shape[1], part.weight.shape[0])
            linear[key] = linear.get(key, 0) + 1
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    return Shape(
        layers, width, attention, kv, inner, vocabulary, tied,
        sum(p.numel() for p in model.parameters()),
        tuple(linear.items()),
    )  # fmt: skip


def on_meta(config: Any) -> Any:
    """A model of a configuration without weights: a language model where the family has one."""
    kind = AutoModel
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = AutoModelForCausalLM
    elif type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        kind = AutoModelForSequenceClassification
    # Weights that are drawn, if nowhere, must not move the random numbers of the stage.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_transformers():
        return kind.from_config(config, trust_remote_code=False)


# ---------------------------------------------------------------------------------- passes without a gradient


def forward_tokens(model: Any) -> int | None:
    """Most padded tokens of a pass of a model without a gradient; None of a small one, and of one without a
    configuration."""
    config = getattr(model, "config", None)
    if is_small(config):
        return None
    _, width, attention, _, inner, _ = sizes(config)
    # Of one layer at a time: the residual stream and what was added to it, attention, the MLP.
    return floor_power(FORWARD_BYTES / (4 * (4 * width + 4 * attention + 3 * inner)))


def cache_tokens(model: Any) -> int | None:
    """Most tokens whose keys and values a sampling policy keeps; None of a small one, and of one without a
    configuration."""
    config = getattr(model, "config", None)
    if is_small(config):
        return None
    layers, _, _, kv, _, _ = sizes(config)
    return floor_power(CACHE_BYTES.get(model.device.type, CACHE_BYTES["cpu"]) / (4 * 2 * layers * kv))


def is_small(config: Any) -> bool:
    """Whether whatever batch a model of this configuration has fits; so it is of one that has none."""
    return not hasattr(config, "get_text_config") or least_parameters(config) < SMALL


def floor_power(most: float) -> int:
    """The largest power of two that is no more; 1 at least, ``MOST_TOKENS`` at most."""
    return 1 << min(max(int(most).bit_length() - 1, 0), MOST_TOKENS.bit_length() - 1)
