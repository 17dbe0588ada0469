"""Options of ``preferl rl``."""

from dataclasses import dataclass
from typing import Literal

from preferl.options.learning import (
    GrpoOptions,
    ModelOptions,
    OnlineDpoOptions,
    PpoOptions,
    RebelOptions,
    ReinforceOptions,
    UpdateOptions,
)
from preferl.options.shared import (
    DataOptions,
    PhraseOptions,
    SamplingOptions,
    SplitOption,
    StageOptions,
    TemplateOptions,
)
from preferl.runs.ranges import Count, Finite, Natural, NonNegative, Positive, Share


@dataclass(kw_only=True)
class RlConfig(
    PpoOptions,
    ReinforceOptions,
    GrpoOptions,
    RebelOptions,
    OnlineDpoOptions,
    UpdateOptions,
    ModelOptions,
    PhraseOptions,
    SamplingOptions,
    DataOptions,
    SplitOption,
    TemplateOptions,
    StageOptions,
):
    """Options of the rl stage."""

    output_dir: str = "runs/rl"
    """Where the stage is written."""
    gold: str | None = None
    """The truth, where one is known: a reward that is only watched, never trained on."""
    annotator: str | None = None
    """Who labelled the reward model's pairs: the reward's accuracy on fresh pairs is checked against it; by
    default against ``gold``."""
    num_iterations: Count = 50
    """Iterations: one batch of episodes each."""
    batch_size: Count | None = None
    """Episodes (responses) in one iteration; by default by the model at hand (docs/models.md)."""
    kl_controller: str = "fixed"
    """``fixed``, or ``adaptive`` (Ziegler et al. 2019) towards ``kl_target``."""
    kl_target: Positive = 6.0
    """Adaptive KL: nats per response to aim at."""
    kl_horizon: Positive = 10_000
    """Adaptive KL: episodes over which the coefficient reacts."""
    max_kl: Positive | Literal["none"] = 30.0
    """Where there is a penalty (``kl_coef`` above 0) the run ends when the KL is so many nats per response
    above the first batch's; without one an alarm is raised. ``none``: neither."""
    reward_clip: NonNegative | None = None
    """Scores are clipped to plus and minus this; 0 for none. By default 10 standard deviations of a reward
    model, and none where anything else has a say in the score."""
    length_penalty: NonNegative = 0.0
    """Subtracted from the score for every token of the response."""
    missing_eos_penalty: Finite = 1.0
    """Subtracted from the score of a response that did not end with EOS."""
    replace_missing_eos: bool = False
    """Such a response gets minus the penalty as its score instead, whatever the reward says."""
    learning_rate: NonNegative | None = None
    """Peak learning rate of the policy; by default by the model at hand (docs/models.md)."""
    critic_learning_rate: NonNegative | None = None
    """Peak learning rate of the critic; by default the policy's where that is given, else by the model at
    hand."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    warmup_ratio: Share = 0.02
    """Fraction of the updates during which the learning rate rises from 0."""
    adam_epsilon: Positive = 1e-5
    """AdamW's epsilon."""
    eval_every: Natural = 1
    """Iterations between measurements on held-out prompts; 0 for none."""
    eval_prompts: Natural = 64
    """Held-out prompts of such a measurement."""
    eval_split: str = "dev"
    """The split they come from: ``dev`` or ``eval``."""
    check_reward_every: Natural = 10
    """With an ``annotator`` or ``gold``: iterations between checks of the reward's accuracy on fresh pairs; 0
    for none."""
    check_reward_pairs: Count = 128
    """Pairs of such a check."""
    max_steps: Count | None = None
    """Stop after so many iterations, whatever ``num_iterations`` says; the learning rate's schedule ends
    there."""
    save_every: Natural | None = None
    """Iterations between checkpoints, from which the same command goes on if interrupted; by default about
    ten a run, fewer where writing them would take over a tenth of its time; 0 for none."""

    @property
    def iterations(self) -> int:
        """Iterations of the run."""
        return self.num_iterations if self.max_steps is None else self.max_steps
