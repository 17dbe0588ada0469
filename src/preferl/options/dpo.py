"""Options of ``preferl dpo``."""

from dataclasses import dataclass

from preferl.options.learning import FitOptions, KtoOptions
from preferl.options.shared import (
    DataOptions,
    LoraOptions,
    SamplingOptions,
    SplitOption,
    StageOptions,
    TemplateOptions,
)
from preferl.runs.ranges import Count, ErrorRate, Natural, Positive, Several


@dataclass(kw_only=True)
class DpoConfig(
    KtoOptions,
    FitOptions,
    LoraOptions,
    SamplingOptions,
    DataOptions,
    SplitOption,
    TemplateOptions,
    StageOptions,
):
    """Options of the dpo stage."""

    output_dir: str = "runs/dpo"
    """Where the stage is written."""
    model_name_or_path: str = "runs/sft"
    """The policy to start from."""
    ref_model: str | None = None
    """The reference; by default a frozen copy of the policy at its start."""
    dataset_name: str = "runs/collect"
    """Preferences: a collect stage, a Hub name (``name`` or ``name:config``), or local files; for ``kto``
    responses with a ``label`` too."""
    loss_type: str = "sigmoid"
    """``sigmoid`` (DPO), ``ipo`` (Azar et al. 2023), or ``kto`` (Ethayarajh et al. 2024), which learns from
    single responses called good or bad; of pairs it makes one of each."""
    beta: Positive = 0.1
    """Strength of the KL penalty to the reference: the implicit reward is beta times the log-ratio; ``ipo``
    drives log-ratios 1 / (2 beta) nats apart, ``kto`` values a response by sigma of beta times its distance
    to the reference point."""
    label_smoothing: ErrorRate = 0.0
    """Probability that a label is wrong, 0 to 0.5 (with ``sigmoid`` this is cDPO; ``kto`` has none)."""
    max_length: Several = 512
    """Longest (prompt + response) in tokens; what is too long loses the oldest half of the room from its
    prompt, then the end of its responses."""
    micro_batch_size: Count = 32
    """Pairs (two sequences each; ``kto``: responses) in one forward and backward pass; a smaller one saves
    memory and changes nothing."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    eval_pairs: Natural = 512
    """Most dev pairs of such a measurement."""
    check_samples: Natural = 256
    """Responses sampled afterwards to dev prompts: how far the policy went, and whether they end with EOS."""
