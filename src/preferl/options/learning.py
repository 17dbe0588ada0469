"""How models are trained: passes, updates, algorithms."""

from dataclasses import dataclass

from preferl.options.judging import JudgeOptions
from preferl.options.shared import DataOptions, LoraOptions, OptimOptions, SamplingOptions
from preferl.runs.errors import UsageError
from preferl.runs.ranges import (
    Bound,
    Count,
    ErrorRate,
    Finite,
    Natural,
    NonNegative,
    Positive,
    RangedOptions,
    Share,
)


@dataclass(kw_only=True)
class FitOptions(OptimOptions):
    num_train_epochs: Positive = 1.0
    """Passes over the training rows."""
    max_steps: Count | None = None
    """Stop after so many updates, whatever the epochs say; the schedule of the learning rate ends there."""
    train_batch_size: Count | None = None
    """Rows in one update; by default by the model at hand (docs/models.md)."""
    micro_batch_size: Count = 64
    """Most rows in one forward and backward pass; a smaller one saves memory and changes nothing."""
    micro_batch_tokens: Count | None = None
    """Most padded tokens in such a pass, one row apart; by default a power of two for which there is memory
    (docs/algorithms.md), kept in ``manifest.json``."""
    gradient_checkpointing: bool | None = None
    """Keep only what goes into each layer, and make the rest again for the gradient: a third slower, a
    fraction of the memory, the same gradient. By default where it would not fit otherwise."""
    num_evals: Count = 10
    """How often held-out rows are measured, the last time at the end."""
    save_every: Natural | None = None
    """Updates between checkpoints, from which the same command goes on if interrupted; by default about ten
    a run, fewer where writing them would take over a tenth of its time; 0 for none."""

    @property
    def rows_read(self) -> int | None:
        """Rows that all updates read, repeated ones too; None where the data decides."""
        return None if self.max_steps is None else self.max_steps * self.train_batch_size


@dataclass(kw_only=True)
class ComparisonOptions(FitOptions, DataOptions):
    """What the losses and their loop need."""

    loss: str = "auto"
    """``bradley_terry`` (every pair for itself), ``balanced`` (all pairs of a ranking together, their mean),
    ``margin`` (balanced, minus margins), ``plackett_luce`` or ``rao_kupper`` (with ties). ``auto``: balanced
    where there are rankings of three or more, else bradley_terry; ratings have a regression instead."""
    margin_scale: Finite = 1.0
    """``margin``: multiplies the margins of the data; 0 is the binarised comparison."""
    tie_margin: Positive = 0.5
    """``rao_kupper``: the difference of scores (nats) within which a tie is likely."""
    label_smoothing: ErrorRate = 0.0
    """Probability that a label is wrong, 0 to 0.5 (``bradley_terry``, ``balanced``, ``margin``)."""
    center_rewards_coefficient: NonNegative = 0.0
    """Weight of the squared sum of a pair's scores, which holds them near 0 (TRL's name; 0.01 is usual)."""
    member_share: Share = 1.0
    """Share of the training prompts that each member of an ensemble sees."""
    max_train_comparisons: Count | None = None
    """Use at most so many training comparisons, the first ones of a seeded order."""
    weight_average: Share = 0.15
    """Share of the updates over which the weights that are evaluated and kept are averaged; 0 for none."""
    patience: Count = 4
    """Stop after so many measurements without a lower dev log-loss."""


@dataclass(kw_only=True)
class KtoOptions(SamplingOptions):
    """What the loss needs."""

    beta: Positive = 0.1
    """Steepness around the reference point: a response's value is sigma(beta (log-ratio - z0))."""
    desirable_weight: Positive | None = None
    """``kto``: weight of good responses. By default 1, or what brings desirable_weight · n_good over
    undesirable_weight · n_bad into [1, 4/3], the paper's range."""
    undesirable_weight: Positive | None = None
    """``kto``: weight of bad responses, likewise."""
    micro_batch_size: Count = 32
    """Responses in one forward pass."""
    micro_batch_tokens: Count | None = None
    """Most padded tokens in one forward and backward pass, one row apart; by default a power of two for
    which there is memory (docs/algorithms.md), kept in ``manifest.json``."""


@dataclass(kw_only=True)
class ModelOptions(LoraOptions, JudgeOptions):
    """Which models play which part."""

    model_name_or_path: str = "runs/sft"
    """The policy to start from."""
    ref_model: str | None = None
    """The reference of the KL; by default the frozen policy as it starts."""
    reward_model: str = "runs/reward"
    """The reward: a reward model's directory, ``module:function``, or a mixture of such (docs/data.md)."""
    value_model: str = "auto"
    """The critic of ppo: a copy of the ``reward`` model, a copy of the ``policy`` with a new head, or a
    ``head`` on the policy's own trunk. ``auto``: the reward model where it reads all tokens
    (``pooling: mean``), else the policy."""


@dataclass(kw_only=True)
class UpdateOptions(OptimOptions):
    """How a batch of responses becomes updates of the policy. 0 or ``auto``: the algorithm's own default."""

    algorithm: str = "ppo"
    """``ppo``, ``reinforce``, ``rloo``, ``grpo``, ``rebel``, ``online_dpo``, or ``module:row`` of your
    own."""
    num_generations: Natural = 0
    """Responses to each prompt: k of RLOO, G of GRPO (usually 4), 2 or more for REBEL and online DPO."""
    num_ppo_epochs: Natural = 0
    """Passes over each batch (usually ppo 2, rebel 4, online_dpo 2, others 1)."""
    num_mini_batches: Natural = 0
    """Minibatches, and so updates, in each pass (usually ppo 4, others 1)."""
    micro_batch_size: Count = 128
    """Most sequences in one forward and backward pass; a smaller one saves memory and changes nothing."""
    micro_batch_tokens: Count | None = None
    """Most padded tokens in such a pass, one group of responses apart; by default a power of two for which
    there is memory (docs/algorithms.md), kept in ``manifest.json``."""
    gradient_checkpointing: bool | None = None
    """Keep only what goes into each layer, and make the rest again for the gradient: a third slower, a
    fraction of the memory, the same gradient. By default where it would not fit otherwise."""
    kl_coef: NonNegative | None = None
    """Weight of the KL to the reference (the beta of online DPO); by default by the model at hand
    (docs/models.md)."""
    kl_in: str = "reward"
    """``reward``: k1 of every token is subtracted from the reward, an unbiased gradient. ``loss``: an
    estimate is added to the loss (``kl_estimator``)."""
    kl_estimator: str = "auto"
    """In the reward ``k1``. In the loss ``k2`` of whole responses (unbiased), or per token ``k2_token``,
    ``k3`` or ``exact`` over the vocabulary (biased by a few per cent: docs/algorithms.md)."""
    cliprange: Bound = 0.2
    """Clip of the probability ratio."""
    dual_clip: NonNegative = 0.0
    """PPO's second clip, of the ratio where the advantage is negative (3 is usual); 0 for none."""
    ratio_level: str = "token"
    """``token``, or ``response``: one ratio, one clip and one advantage for each response."""
    target_kl: NonNegative = 0.0
    """Stop a batch's updates when the policy has moved this far from the one that sampled (nats per token,
    0.01 to 0.05 is usual); 0 for never."""
    cliprange_value: NonNegative | None = None
    """Clip of the value's change in a batch, in the reward's units; 0 for none. By default 0.2 where only
    reward models score, a fifth of their scores' standard deviation, and none where anything else has a say:
    where returns grow faster than values may move, a critic never learns them."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    gamma: Share = 1.0
    """Discount."""
    whiten_advantages: bool | None = None
    """Normalise advantages over the batch to mean 0, sd 1; unset: ppo does, with the KL in the reward."""
    loss_average: str = "auto"
    """``tokens`` (each counts alike), ``responses`` (a mean over each response first: GRPO as published,
    kinder to long wrong answers) or ``sum`` (a sum over each response: Dr. GRPO). Usually tokens, grpo
    responses."""


@dataclass(kw_only=True)
class PpoOptions(RangedOptions):
    lam: Share = 0.95
    """PPO: GAE's lambda."""
    whiten_rewards: bool = False
    """PPO: scale token rewards to sd 1 over the batch, their mean kept (TRL's meaning)."""


@dataclass(kw_only=True)
class ReinforceOptions(RangedOptions):
    baseline: str = "batch"
    """REINFORCE: the mean return of the ``batch``, or a ``running`` mean of the batches before."""
    baseline_decay: Share = 0.9
    """REINFORCE: decay of the running mean."""

    def check(self) -> None:
        if self.baseline not in ("batch", "running"):
            raise UsageError(f"baseline '{self.baseline}' is unknown; use batch or running")


@dataclass(kw_only=True)
class GrpoOptions:
    scale_rewards: bool = True
    """GRPO: divide by the group's standard deviation, as published; it changes the objective."""


@dataclass(kw_only=True)
class RebelOptions(RangedOptions):
    rebel_eta: NonNegative = 0.0
    """REBEL: the step; 0 for 1 / sd of the difference of two rewards, as the first batch has it."""


@dataclass(kw_only=True)
class OnlineDpoOptions:
    preference_labels: str = "soft"
    """Online DPO: ``soft`` (both outcomes, weighted by their Bradley-Terry probability), ``sampled`` (drawn
    from it) or ``hard`` (the higher score wins)."""

    def check(self) -> None:
        if self.preference_labels not in ("soft", "sampled", "hard"):
            raise UsageError(
                f"preference_labels '{self.preference_labels}' is unknown; use soft, sampled or hard"
            )
