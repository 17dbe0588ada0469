"""Families of which transformers has no class that scores, and whose models are models of a family that has
one: the reward model is then of that family, so that any program which uses transformers loads it.

A Mamba 2 is a Zamba 2 (Glorioso et al. 2024) without its shared attention layers: the same mixer between the
same norms, with the same weights under other names.
"""

import re
from typing import Any

import torch
from transformers import (
    AutoModel,
    Mamba2Config,
    PreTrainedModel,
    Zamba2Config,
    Zamba2ForSequenceClassification,
)

from preferl.models.load import load_pretrained

# The two clip time steps from below, Mamba 2 at 0 and Zamba 2 at a number of which it takes a logarithm.
SMALLEST_STEP = 1e-30
ANY_LENGTH = 1_000_000_000  # of positions, which neither has; transformers wants a number
NAMES = {
    r"^embeddings\.": "model.embed_tokens.",
    r"^norm_f\.": "model.final_layernorm.",
    r"^(layers\.\d+)\.norm\.": r"model.\1.input_layernorm.",
    r"^(layers\.\d+)\.mixer\.": r"model.\1.mamba.",
}


def has_twin(config: Any) -> bool:
    """Whether a configuration is one of a Mamba 2 that a Zamba 2 computes too."""
    return (
        isinstance(config, Mamba2Config)
        and config.layer_norm_epsilon == 1e-5  # Zamba 2 fixes that of its mixers, and the others
        and config.hidden_act == "silu"
        and config.use_conv_bias
        and tuple(config.time_step_limit) == (0.0, float("inf"))
    )


def scoring_twin(name_or_path: str, num_labels: int = 1) -> PreTrainedModel:
    """A model with a new head for so many labels, on the trunk of a language model that has a twin.

    Args:
        name_or_path: the language model.
        num_labels: of the head.
    """
    trunk, _ = load_pretrained(AutoModel, name_or_path, new_head=True)
    own = trunk.config
    config = Zamba2Config(
        vocab_size=own.vocab_size,
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_hidden_layers,
        layers_block_type=["linear_attention"] * own.num_hidden_layers,
        max_position_embeddings=ANY_LENGTH,
        mamba_d_state=own.state_size,
        mamba_d_conv=own.conv_kernel,
        mamba_expand=own.expand,
        mamba_ngroups=own.n_groups,
        n_mamba_heads=own.num_heads,
        chunk_size=own.chunk_size,
        add_bias_linear=own.use_bias,
        time_step_min=SMALLEST_STEP,
        rms_norm_eps=own.layer_norm_epsilon,
        num_attention_heads=1,
        use_cache=False,  # nothing is written, and without attention transformers cannot count what is in one
        pad_token_id=own.pad_token_id,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        num_labels=num_labels,
    )
    model = Zamba2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    weights = {"score.weight": model.score.weight.detach()}
    for name, tensor in trunk.state_dict().items():
        for pattern, other in NAMES.items():
            name = re.sub(pattern, other, name)
        weights[name] = tensor
    model.load_state_dict(weights)
    model.config.name_or_path = model.name_or_path = own.name_or_path
    return model
