"""Options of ``preferl reward``."""

from dataclasses import dataclass

from preferl.options.learning import ComparisonOptions
from preferl.options.shared import LoraOptions, SamplingOptions, SplitOption, StageOptions, TemplateOptions
from preferl.runs.ranges import Count, Decay, NonNegative, Several


@dataclass(kw_only=True)
class RewardConfig(
    ComparisonOptions, LoraOptions, SamplingOptions, SplitOption, TemplateOptions, StageOptions
):
    """Options of the reward stage."""

    output_dir: str = "runs/reward"
    """Where the stage is written."""
    model_name_or_path: str = "runs/sft"
    """What it starts from: the SFT stage, or any encoder, decoder or reward model."""
    dataset_name: str = "runs/collect"
    """Preferences: a collect stage, a Hub name (``name`` or ``name:config``), local files, or preferl's own
    pairs (``world:analysis``, ``world:demonstration``)."""
    also_train_on: str | None = None
    """A second data set whose training comparisons are added, as ``world:analysis``: ten pairs about
    helpfulness, safety and accuracy, which every audit scores."""
    reference_policy: str | None = None
    """Normalise on samples of this policy; without it on the responses of the training pairs."""
    reward_mixture: str | None = None
    """Of ratings by attribute: the reward that they make, as ``0.7*helpfulness + 0.3*correctness``, or
    ``bt``: the weights that explain the pairs of ``mixture_dataset_name`` best. Without it the model rates,
    and whatever takes a reward of it names a mixture (``runs/rm#0.7*helpfulness+0.3*correctness``)."""
    mixture_dataset_name: str | None = None
    """``reward_mixture bt``: a data set of pairs."""
    pooling: str = "last"
    """What a new head reads: the ``last`` real token, or the ``mean`` of all of them."""
    lora_dropout: Decay = 0.0
    """Dropout before LoRA's weights."""
    num_members: Count = 1
    """Members of an ensemble, each with a seed of its own, in ``member-0/``, ``member-1/``, …"""
    max_length: Several = 512
    """Longest (prompt + response) in tokens; a prompt loses its oldest tokens first."""
    adam_beta2: Decay = 0.99
    """Decay of AdamW's second moment."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay."""
    train_embeddings: bool = True
    """Train the input embeddings too; without, a small model remembers less of a small data set."""
    audit: bool = True
    """Write ``audit.json``: intervals, calibration, biases, baselines, disagreements."""
    max_eval_pairs: Count = 10_000
    """Most pairs of the eval split that are scored."""
    normalise_samples: Several = 1024
    """Most reference samples for mean and standard deviation."""
