"""What a training step needs of memory, computed from configurations before anything is loaded.

Parameters are counted on a model built on the meta device, where weights take no memory. Of a transformer
layer a pass keeps, for each token and the gradient, these numbers (counted with hooks on what autograd saves;
D width, Q width of all heads, F width inside the MLP, S length of the row, r LoRA's rank):

    both norms: their input, it divided, it scaled    6 D      (frozen norms: 4 D)
    queries, keys, values, what attention gives       4 Q      (keys and values repeated for every head)
    gate, its activation, up, their product           4 F
    a row of the mask                                   S
    what LoRA's first matrices give                   r for each linear layer

of four bytes each; under autocast what linear layers read and give has two, and weights have a copy of two.
With ``gradient_checkpointing`` it is D for each layer, and all of the above for one. Of logits at most
``LOGITS_BYTES`` are there at once, four times: logits, their softmax, both gradients.
"""

import dataclasses
import functools
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
from preferl.models.output_head import LOGITS_BYTES
from preferl.runs.memory import GIB, MIB

SMALL = 10_000_000
"""A model of fewer parameters is never planned for: whatever batch it has fits."""
MOST_TOKENS = 1 << 20
"""``micro_batch_tokens`` where a pass needs no bound."""
CPU_PASS_BYTES = 1 * GIB
"""Activations of a pass on a CPU at most, where one row has fewer: larger passes are no faster there."""
FORWARD_BYTES = 256 * MIB
"""Of a pass without a gradient, beside the weights."""
CACHE_BYTES = {"cpu": 1 * GIB, "cuda": 8 * GIB}
"""Keys and values of a sampling policy at most, where one row has fewer."""


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

    def lora(self, r: int) -> int:
        """Parameters of LoRA weights of this rank on every linear layer."""
        return sum(count * r * (inputs + outputs) for (inputs, outputs), count in self.linear)

    def kept_per_token(self, length: int, lora_r: int = 0, autocast: bool = False) -> int:
        """Bytes that one layer keeps of each token for the gradient."""
        norms = 4 if lora_r else 6
        of_lora = lora_r * sum(count for _, count in self.linear) // max(self.layers, 1)
        if autocast:  # norms stay float32; each of five linear layers casts what it reads
            return 4 * norms * self.width + 2 * (
                5 * self.width + 4 * self.attention + 4 * self.inner + length
            )
        kept = norms * self.width + 4 * self.attention + 4 * self.inner + length + of_lora
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
    import json

    config = kind.from_dict(json.loads(text))
    layers, width, attention, kv, inner, vocabulary = sizes(config)
    model = on_meta(config)
    head = model.get_output_embeddings()
    linear: dict[tuple[int, int], int] = {}
    for part in model.modules():
        if isinstance(part, torch.nn.Linear) and part is not head:
            key = (part.in_features, part.out_features)
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
    with torch.device("meta"), quiet_transformers():
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


# ------------------------------------------------------------------------------------------------ what it takes


@dataclass(frozen=True)
class Role:
    """A model and its part in a stage.

    Args:
        name: ``policy``, ``reference``, ``reward``, ``critic``.
        config: of its model in transformers.
        trained: whether it has gradients and an optimiser.
        logits: whether it says something over the vocabulary; else it has a scalar head.
        copies: of what is trained, kept beside it: the best weights so far, their average.
        owns_base: whether its weights are its own; else they are those of another role.
    """

    name: str
    config: Any
    trained: bool = False
    logits: bool = True
    copies: int = 0
    owns_base: bool = True


@dataclass(frozen=True)
class Work:
    """What a stage sends through its roles.

    Args:
        row_tokens: padded tokens of the longest row that cannot be cut further (a pair has two sequences).
        length: tokens of its longest sequence.
        batch_tokens: padded tokens of a batch, at most.
        cached_tokens: whose keys and values a policy keeps while it samples; 0 where none samples.
    """

    row_tokens: int
    length: int
    batch_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Levers:
    """What makes a step take less memory."""

    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool | None = None
    lora_r: int = 0
    load_in_4bit: bool = False
    optim: str = "adamw"

    @classmethod
    def of(cls, options: Any) -> "Levers":
        """Those of a stage's options."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: getattr(options, name) for name in names if hasattr(options, name)})


@dataclass(frozen=True)
class Needs:
    """Bytes of one role."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    cache: float

    @property
    def kept(self) -> float:
        """What is there all the time."""
        return self.weights + self.optimiser


NF4_BYTES = 4.127 / 8  # of a weight: four bits, and its share of twice quantised scales (arXiv 2305.14314)
MOMENTS_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
}  # of a trained weight; 8-bit: a byte each, and scales of 256


def needs(role: Role, work: Work, levers: Levers, dtype: torch.dtype, tokens: int, recompute: bool) -> Needs:
    """What a role takes in a stage whose passes have so many padded tokens."""
    shape = shape_of(role.config)
    lora = levers.lora_r if role.trained else 0
    own = shape.parameters
    if not role.logits and not shape.tied and shape.vocabulary:
        own -= shape.embeddings  # a scalar head stands where the output layer was
    weights = 4.0 * own
    if levers.load_in_4bit and (lora or not role.trained):
        weights -= (4.0 - NF4_BYTES) * shape.in_linear
    trained = (shape.lora(lora) if lora else own) if role.trained else 0
    weights = (weights if role.owns_base else 0.0) + (4.0 * trained if lora else 0.0)
    weights += 4.0 * role.copies * trained
    if dtype != torch.float32 and role.trained and not lora:
        weights += 2.0 * shape.in_linear  # autocast keeps a copy of what has gradients, for the pass
    activations = 0.0
    if role.trained:
        activations = pass_bytes(shape, tokens, work.length, lora, dtype, recompute)
        activations += head_bytes(shape, tokens, bool(lora), role.logits)
    sampled = work.cached_tokens if role.name == "policy" else 0
    width = 4 if dtype == torch.float32 else 2
    return Needs(
        weights=weights,
        gradients=4.0 * trained,
        optimiser=MOMENTS_BYTES.get(levers.optim, 8.0) * trained,
        activations=activations,
        cache=float(sampled * shape.cache_per_token(width)),
    )


def pass_bytes(
    shape: Shape, tokens: int, length: int, lora_r: int, dtype: torch.dtype, recompute: bool
) -> float:
    """Activations of the layers of a pass that are kept for its gradient."""
    of_layer = float(shape.kept_per_token(length, lora_r, dtype != torch.float32)) * tokens
    if recompute:
        return shape.layers * 4.0 * shape.width * tokens + of_layer
    return shape.layers * of_layer


def head_bytes(shape: Shape, tokens: int, lora: bool, logits: bool) -> float:
    """What the head of a pass takes: logits by parts, and the gradient of an output layer before it is
    added."""
    if not logits:
        return 12.0 * shape.width * tokens
    at_once = 4.0 * min(4.0 * tokens * shape.vocabulary, LOGITS_BYTES)
    return at_once + (0.0 if lora else 4.0 * shape.embeddings)
