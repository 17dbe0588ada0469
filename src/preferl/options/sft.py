"""Options of ``preferl sft``."""

from dataclasses import dataclass

from preferl.options.learning import FitOptions
from preferl.options.shared import (
    DataOptions,
    LoraOptions,
    SamplingOptions,
    SplitOption,
    StageOptions,
    TemplateOptions,
)
from preferl.runs.ranges import Count, Decay, Natural, NonNegative, Positive, Several


@dataclass(kw_only=True)
class SftConfig(
    FitOptions, LoraOptions, SamplingOptions, DataOptions, SplitOption, TemplateOptions, StageOptions
):
    """Options of the sft stage."""

    output_dir: str = "runs/sft"
    """Where the stage is written."""
    model_name_or_path: str | None = None
    """Model to fine-tune; without it a small one is made from the sizes below."""
    vocab_size: Count = 2048
    """Tokens of the vocabulary of a new tokenizer."""
    hidden_size: Count = 160
    """Width of a new model."""
    num_layers: Count = 2
    """Layers of a new model."""
    num_heads: Count = 8
    """Attention heads of a new model."""
    max_length: Several = 512
    """Longest (prompt + response) in tokens; longer responses are cut, and then end without EOS."""
    lr_end_factor: NonNegative = 0.05
    """The learning rate decays to this fraction of its peak."""
    adam_beta2: Decay = 0.99
    """Decay of AdamW's second moment."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay."""
    num_train_epochs: Positive = 5.0
    """Passes over the training demonstrations."""
    eval_rows: Natural = 256
    """Held-out demonstrations for the loss."""
    check_samples: Natural = 256
    """Responses sampled afterwards, to see that they are well-formed and end with EOS."""
