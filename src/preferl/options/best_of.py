"""Options of ``preferl best_of``."""

from dataclasses import dataclass
from typing import Annotated

from preferl.options.judging import JudgeOptions
from preferl.options.shared import DataOptions, SamplingOptions, SplitOption, StageOptions, TemplateOptions
from preferl.runs.ranges import Count, Finite, Natural, Range


@dataclass(kw_only=True)
class BestOfConfig(JudgeOptions, SamplingOptions, DataOptions, SplitOption, TemplateOptions, StageOptions):
    """Options of the best_of stage."""

    output_dir: str = "runs/best_of"
    """Where the stage is written."""
    model_name_or_path: str = "runs/sft"
    """The policy that writes the responses."""
    reward_model: str = "runs/reward"
    """The reward that chooses: a reward model's directory, ``module:function``, or a mixture."""
    gold: str | None = None
    """An annotator's utility that is only watched, never chosen by (``world``, ``sentiment``, …)."""
    num_generations: Count = 16
    """Responses to each prompt: the N of best-of-N."""
    keep: Count = 1
    """Most responses kept of each prompt: the best ones, all different."""
    min_score: Finite | None = None
    """Responses with a lower reward are rejected, and with them prompts that have no other."""
    top_fraction: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Of the prompts keep this share, those whose best response has the highest reward (1 keeps all)."""
    max_prompts: Count | None = None
    """Most prompts to train on, drawn by the seed; by default all of them."""
    dev_prompts: Natural = 64
    """Most prompts of the split ``dev``, for the held-out loss of what is trained on this."""
