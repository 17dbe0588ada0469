"""Options of ``preferl evaluate``."""

from dataclasses import dataclass, field

from preferl.options.judging import JudgeOptions
from preferl.options.shared import (
    DataOptions,
    PhraseOptions,
    SamplingOptions,
    SplitOption,
    StageOptions,
    TemplateOptions,
)
from preferl.runs.ranges import Count, Several


@dataclass(kw_only=True)
class EvaluateConfig(
    PhraseOptions, JudgeOptions, SamplingOptions, DataOptions, SplitOption, TemplateOptions, StageOptions
):
    """Options of the evaluate stage."""

    output_dir: str = "runs/evaluate"
    """Where the stage is written."""
    model_name_or_path: str = "runs/rl"
    """The policy that is evaluated."""
    ref_model: str = "runs/sft"
    """The policy it is compared with, and the reference of the KL."""
    reward_model: str = "runs/reward"
    """The reward: a reward model's directory, or ``module:function``."""
    gold: str | None = None
    """The truth, where one is known: a reward that neither trained nor labelled, as ``world``."""
    held_out_reward: str | None = None
    """A second reward, such as a model of other pairs or another seed, that nothing was trained against."""
    judge: str | None = None
    """A language model that compares the policies' responses: ``judge:<model>``, ``judge:<url>#<model>``; or
    several as a jury, ``majority(judge:…, judge:…)``."""
    max_eval_prompts: Several = 512
    """Most eval prompts."""
    num_generations: Count = 1
    """Responses of each policy to each prompt."""
    best_of: list[Count] = field(default_factory=lambda: [4, 16])
    """N of best-of-N from the reference policy, picked by the reward."""
    best_of_prompts: Several = 128
    """Eval prompts of the pool, on which best-of-N and the optimum are measured."""
    pool_size: Count | None = None
    """Responses of the reference policy to each of them; by default as many as the largest N."""
