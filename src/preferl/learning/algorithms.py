"""What an algorithm is: how it values what was sampled, and its loss. A row of ``ALGORITHMS`` and pure
functions.

An algorithm values the tokens of a response (``advantage``) or whole responses (``score``), and gives a loss
of every token or of every pair of responses to one prompt. Sampling, the KL, minibatches, memory,
checkpoints, alarms and the report come with the row. Its own options are a dataclass, its own state another;
it sees nothing else.

Rows of a person's own: ``--algorithm my_module:raft`` (CONTRIBUTING.md shows one), or ``register_algorithm``.
All rows here, except where docs/algorithms.md says so, have the same optimum: pi_ref(y|x) exp(score /
kl_coef), normalised.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from preferl.learning.rollout import Rollout
from preferl.maths import preference
from preferl.maths.policy import (
    clipped_policy_loss,
    gae,
    grpo_advantage,
    masked_sum,
    returns_to_go,
    rloo_advantage,
    whiten,
)
from preferl.options.learning import (
    GrpoOptions,
    OnlineDpoOptions,
    PpoOptions,
    RebelOptions,
    ReinforceOptions,
    UpdateOptions,
)
from preferl.runs.errors import UsageError
from preferl.runs.objects import object_of
from preferl.runs.plugins import load_object

# ------------------------------------------------------------------------------------ what an algorithm reads


@dataclass(frozen=True)
class Batch:
    """A rollout and what the algorithm makes of it. ``_BT`` tensors are 0 outside the mask; ``score_PG`` has
    a row for each prompt."""

    rollout: Rollout
    advantage_BT: torch.Tensor
    return_BT: torch.Tensor
    score_PG: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """What a loss reads: some rows of a batch, with their log-probabilities under the policy as it is now.

    With ``ratio_level`` response the ``_BT`` tensors have one column, the sum over each response.
    ``weight_B`` is what a token of each row counts in the minibatch's mean. For losses over pairs,
    ``score_PG`` has the scores of the rows' groups (else it has no rows), and ``pairs`` counts those of the
    whole minibatch.
    """

    logp_BT: torch.Tensor
    old_logp_BT: torch.Tensor
    ref_logp_BT: torch.Tensor
    advantage_BT: torch.Tensor
    mask_BT: torch.Tensor
    score_PG: torch.Tensor
    weight_B: torch.Tensor
    pairs: int
    kl_coef: float

    @property
    def group_size(self) -> int:
        return self.score_PG.shape[1]

    def in_groups(self, x_BT: torch.Tensor) -> torch.Tensor:
        """``x_PG``: sums over each response, one row per prompt."""
        return masked_sum(x_BT, self.mask_BT).reshape(-1, self.group_size)


def as_one_action(micro: MicroBatch) -> MicroBatch:
    """Each response as a single action: log-probabilities summed, the advantage of its first state."""

    def whole(x_BT: torch.Tensor) -> torch.Tensor:
        return masked_sum(x_BT, micro.mask_BT)[:, None]

    return dataclasses.replace(
        micro,
        logp_BT=whole(micro.logp_BT),
        old_logp_BT=whole(micro.old_logp_BT),
        ref_logp_BT=whole(micro.ref_logp_BT),
        advantage_BT=micro.advantage_BT[:, :1],
        mask_BT=torch.ones_like(micro.mask_BT[:, :1]),
    )


class OverTokens:
    """A loss of every token, ``loss_BT``; its mean over a minibatch is weighted by ``loss_average``."""

    compares = False

    def unit(self, group_size: int) -> int:
        """Rows that must stay together in minibatches and micro-batches."""
        return 1

    def reduce(self, loss_BT: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The micro-batch's share of the minibatch's loss, and what each row lost."""
        row_loss_B = masked_sum(loss_BT, micro.mask_BT)
        return (row_loss_B * micro.weight_B).sum(), row_loss_B.detach()


OVER_TOKENS = OverTokens()


class OverPairs:
    """A loss of every pair of responses to one prompt, ``loss_N``; its mean is over all pairs."""

    compares = True

    def unit(self, group_size: int) -> int:
        """Rows that must stay together in minibatches and micro-batches."""
        return group_size

    def reduce(self, loss_N: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The micro-batch's share of the minibatch's loss, and what each pair lost."""
        return loss_N.sum() / micro.pairs, loss_N.detach()


@dataclass
class NoState:
    """An algorithm that remembers nothing from one batch to the next."""


Valued = tuple[torch.Tensor, torch.Tensor]
Options = Any  # UpdateOptions and the algorithm's own


def no_advantage(rollout: Rollout, options: Options, state: Any, generator: torch.Generator) -> Valued:
    """Of an algorithm that values whole responses: no token has an advantage."""
    nothing_BT = torch.zeros(rollout.samples.mask_BT.shape)
    return nothing_BT, nothing_BT


def total_score(rollout: Rollout, options: Options, state: Any, generator: torch.Generator) -> torch.Tensor:
    """``score_PG``: each response's summed token rewards."""
    return total_reward(rollout)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Args:
        loss: (micro-batch, options) to the loss of each token, or of each pair (``over``).
        advantage: (rollout, options, state, generator) to ``(advantage_BT, return_BT)``; returns are what a
            critic learns. The generator draws whatever is random.
        score: (the same) to ``score_PG``: what each response is worth, one row per prompt.
        over: what the loss is of: ``OverTokens()`` or ``OverPairs()``.
        options: a dataclass of the algorithm's own options; they become options of ``preferl rl``.
        state: a dataclass of plain numbers that it remembers; saved with every checkpoint.
        critic: it needs values.
        several_passes: the loss allows more than one update on a batch.
        kl_in_reward: False where the loss holds the KL itself.
        whiten: advantages are whitened unless an option says otherwise.

    The rest are the defaults of options left at 0 or ``auto``.
    """

    loss: Callable[[MicroBatch, Options], torch.Tensor]
    advantage: Callable[[Rollout, Options, Any, torch.Generator], Valued] = no_advantage
    score: Callable[[Rollout, Options, Any, torch.Generator], torch.Tensor] = total_score
    over: OverTokens | OverPairs = OVER_TOKENS
    options: type | None = None
    state: type = NoState
    critic: bool = False
    several_passes: bool = True
    kl_in_reward: bool = True
    whiten: bool = False
    generations: int = 1
    least_generations: int = 1
    epochs: int = 1
    mini_batches: int = 1
    average: str = "tokens"

    def group_size(self, options: UpdateOptions) -> int:
        """Responses to each prompt."""
        return options.num_generations or self.generations

    def passes(self, options: UpdateOptions) -> tuple[int, int]:
        """Epochs over a batch, and minibatches in each."""
        return options.num_ppo_epochs or self.epochs, options.num_mini_batches or self.mini_batches

    def loss_average(self, options: UpdateOptions) -> str:
        """How tokens are weighted in the mean of the loss."""
        return self.average if options.loss_average == "auto" else options.loss_average

    def whitens(self, options: UpdateOptions) -> bool:
        """Whether advantages are whitened. Dividing them by their sd, but not the KL that stands beside them
        in the loss, would change the coefficient."""
        if options.whiten_advantages is not None:
            return options.whiten_advantages
        return self.whiten and options.kl_in == "reward"


# ----------------------------------------------------------------------------------------------------- tokens


def total_reward(rollout: Rollout) -> torch.Tensor:
    """``reward_PG``: each response's summed token rewards, one row per prompt."""
    return masked_sum(rollout.reward_BT, rollout.samples.mask_BT).reshape(-1, rollout.group_size)


def over_tokens(advantage_PG: torch.Tensor, rollout: Rollout) -> Valued:
    """Every token of a response gets its advantage."""
    mask_BT = rollout.samples.mask_BT
    return advantage_PG.reshape(-1, 1) * mask_BT, total_reward(rollout).reshape(-1, 1) * mask_BT


def policy_gradient_loss(micro: MicroBatch, options: Options) -> torch.Tensor:
    """-log pi * advantage of each token."""
    return -micro.logp_BT * micro.advantage_BT


def clipped_loss(micro: MicroBatch, options: Options) -> torch.Tensor:
    """PPO's clipped surrogate; before the first update of a batch its gradient is the policy gradient."""
    return clipped_policy_loss(
        micro.logp_BT, micro.old_logp_BT, micro.advantage_BT, options.cliprange, options.dual_clip or None
    )


def gae_advantage(rollout: Rollout, options: Options, state: NoState, generator: torch.Generator) -> Valued:
    """Generalised advantage estimates from the critic's values. A response as one action has no steps to
    discount, so its advantage is return minus the value of the prompt (lambda = 1)."""
    mask_BT, reward_BT = rollout.samples.mask_BT, rollout.reward_BT
    if options.whiten_rewards:
        reward_BT = whiten(reward_BT, mask_BT, shift_mean=False)
    lam = options.lam if options.ratio_level == "token" else 1.0
    return gae(reward_BT, rollout.value_BT, mask_BT, options.gamma, lam)


@dataclass
class RunningBaseline:
    """The mean return of the batches so far."""

    baseline: float | None = None


def baseline_advantage(
    rollout: Rollout, options: Options, state: RunningBaseline, generator: torch.Generator
) -> Valued:
    """REINFORCE (Williams 1992): reward to go minus the mean return of this batch, or of those before it."""
    mask_BT = rollout.samples.mask_BT
    return_BT = returns_to_go(rollout.reward_BT, mask_BT, options.gamma)
    mean = float(return_BT[:, 0].mean())
    # The first batch has none before it and is its own baseline. Later ones are measured by the running mean
    # as it was before them: a baseline that holds the batch's own returns is not independent of its tokens.
    before = mean if state.baseline is None else state.baseline
    baseline = mean if options.baseline == "batch" else before
    decay = options.baseline_decay
    if state.baseline is None:
        state.baseline = mean
    else:
        state.baseline = decay * state.baseline + (1 - decay) * mean
    return (return_BT - baseline) * mask_BT, return_BT


def leave_one_out_advantage(
    rollout: Rollout, options: Options, state: NoState, generator: torch.Generator
) -> Valued:
    """RLOO: a response's total reward minus the mean of the other responses to its prompt."""
    return over_tokens(rloo_advantage(total_reward(rollout)), rollout)


def group_advantage(rollout: Rollout, options: Options, state: NoState, generator: torch.Generator) -> Valued:
    """GRPO: a response's total reward against its group's mean, in the group's standard deviations."""
    return over_tokens(grpo_advantage(total_reward(rollout), options.scale_rewards), rollout)


# ------------------------------------------------------------------------------------------------------ pairs


def pairs_of_group(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of both members of every pair of a group."""
    first, second = torch.triu_indices(size, size, 1)
    return first, second


@dataclass
class RebelStep:
    """REBEL's step eta, once it is known."""

    eta: float | None = None


def scaled_reward(
    rollout: Rollout, options: Options, state: RebelStep, generator: torch.Generator
) -> torch.Tensor:
    """REBEL compares total rewards; they hold the KL, measured where the responses were sampled. In units of
    1 / eta, so that the difference of two is the step of their log-ratios."""
    reward_PG = total_reward(rollout)
    if state.eta is None:
        a, b = pairs_of_group(rollout.group_size)
        spread = float((reward_PG[:, a] - reward_PG[:, b]).pow(2).mean().sqrt())
        state.eta = options.rebel_eta or (1 / spread if spread else 1.0)
    return state.eta * reward_PG


def rebel_loss(micro: MicroBatch, options: Options) -> torch.Tensor:
    """REBEL over all pairs of a group, times eta squared: (log-ratio a - log-ratio b - eta (r_a - r_b))^2."""
    a, b = pairs_of_group(micro.group_size)
    logp_PG, old_PG = micro.in_groups(micro.logp_BT), micro.in_groups(micro.old_logp_BT)
    return preference.rebel_loss(
        logp_PG[:, a].flatten(),
        logp_PG[:, b].flatten(),
        old_PG[:, a].flatten(),
        old_PG[:, b].flatten(),
        micro.score_PG[:, a].flatten(),
        micro.score_PG[:, b].flatten(),
        eta=1.0,
    )


def annotated_score(
    rollout: Rollout, options: Options, state: NoState, generator: torch.Generator
) -> torch.Tensor:
    """What an annotator goes by: the score. With Gumbel noise on it the higher one wins as often as
    Bradley and Terry say, in every pair of a group (Yellott 1977)."""
    score_B = rollout.shaped_B
    if options.preference_labels == "sampled":
        uniform_B = torch.rand(score_B.shape, generator=generator, dtype=torch.float64)
        score_B = score_B - uniform_B.clamp(min=1e-300).log().neg().log().float()
    return score_B.reshape(-1, rollout.group_size)


def online_dpo_loss(micro: MicroBatch, options: Options) -> torch.Tensor:
    """DPO on pairs just sampled, with the reward in the annotator's place (Guo et al. 2024)."""
    a, b = pairs_of_group(micro.group_size)
    logp_PG, ref_PG = micro.in_groups(micro.logp_BT), micro.in_groups(micro.ref_logp_BT)
    logp_a, logp_b = logp_PG[:, a], logp_PG[:, b]
    ref_a, ref_b = ref_PG[:, a], ref_PG[:, b]
    gap_PN = micro.score_PG[:, a] - micro.score_PG[:, b]
    soft = options.preference_labels == "soft"
    # P(a is preferred): both outcomes are losses, weighted by how probable each is. Hard labels (and drawn
    # ones, whose noise is in the scores already) are 1 or 0, a tie one half.
    first_PN = torch.sigmoid(gap_PN) if soft else (gap_PN.sign() + 1) / 2
    won_PN = preference.dpo_loss(logp_a, logp_b, ref_a, ref_b, micro.kl_coef)
    lost_PN = preference.dpo_loss(logp_b, logp_a, ref_b, ref_a, micro.kl_coef)
    return (first_PN * won_PN + (1 - first_PN) * lost_PN).flatten()


# -------------------------------------------------------------------------------------------------- the table

GROUP = {"generations": 4, "least_generations": 2}
PAIRS = {"generations": 2, "least_generations": 2, "over": OverPairs()}

ALGORITHMS = {
    "ppo": Algorithm(
        clipped_loss,
        gae_advantage,
        options=PpoOptions,
        critic=True,
        epochs=2,
        mini_batches=4,
        whiten=True,
    ),
    "reinforce": Algorithm(
        policy_gradient_loss,
        baseline_advantage,
        options=ReinforceOptions,
        state=RunningBaseline,
        several_passes=False,
    ),
    "rloo": Algorithm(clipped_loss, leave_one_out_advantage, **GROUP),
    "grpo": Algorithm(clipped_loss, group_advantage, options=GrpoOptions, **GROUP, average="responses"),
    "rebel": Algorithm(
        rebel_loss, score=scaled_reward, options=RebelOptions, state=RebelStep, **PAIRS, epochs=4
    ),
    "online_dpo": Algorithm(
        online_dpo_loss,
        score=annotated_score,
        options=OnlineDpoOptions,
        **PAIRS,
        epochs=2,
        kl_in_reward=False,
    ),
}


def register_algorithm(name: str, algorithm: Algorithm) -> None:
    """Adds a row to the table, for as long as the program runs.

    Raises:
        UsageError: the name is taken.
    """
    if name in ALGORITHMS and ALGORITHMS[name] is not algorithm:
        raise UsageError(f"there is an algorithm '{name}' already; take another name")
    ALGORITHMS[name] = algorithm


def find_algorithm(name: str) -> Algorithm:
    """The row of a name: one of the table, or ``module:row`` of a person's own.

    Raises:
        UsageError: there is none.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" in name:
        found = object_of(name) or load_object(name, "algorithm")
        if isinstance(found, Algorithm):
            return found
        raise UsageError(f"algorithm '{name}' is a {type(found).__name__}, not an Algorithm")
    raise UsageError(f"algorithm '{name}' is unknown; use {', '.join(ALGORITHMS)}, or module:row of your own")


def pair_count(rows: int, group_size: int) -> int:
    """Pairs of responses to one prompt among so many rows of whole groups."""
    return rows // group_size * math.comb(group_size, 2)
