"""Prompts to a Rollout: sample, score, reference log-probabilities, values, token-level rewards.

One RL step is sample → score → shape → advantages → update → measure. It is read in three files:
``stages/rl.py`` (the loop, and what is measured), ``learning/rollout.py`` (sample, score, shape) and
``learning/learner.py`` (advantages, update).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from preferl.data.records import Prompt, PromptRecord
from preferl.data.types import Scorer
from preferl.judging.scorers import score_responses
from preferl.maths.policy import token_level_reward
from preferl.options.shared import SamplingOptions
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Samples


@dataclass(frozen=True)
class Shaping:
    """What becomes of a score before it is a reward, in this order.

    ``clip`` bounds its size. ``length_penalty`` is subtracted for every token. A response without EOS loses
    ``missing_eos_penalty`` (TRL), or with ``replace_missing_eos`` gets minus the penalty as its score
    (Ziegler et al. 2019; Huang et al. 2024), whatever the scorer said.
    """

    clip: float | None = None
    length_penalty: float = 0.0
    missing_eos_penalty: float = 0.0
    replace_missing_eos: bool = False

    def __call__(self, score_B: torch.Tensor, samples: Samples) -> torch.Tensor:
        """``shaped_B`` from ``score_B``."""
        # Clipped first: the bound is the score's alone, and the penalties count in full.
        if self.clip is not None:
            score_B = score_B.clamp(-self.clip, self.clip)
        score_B = score_B - self.length_penalty * samples.mask_BT.sum(-1)
        penalty = self.missing_eos_penalty
        unfinished_B = torch.full_like(score_B, -penalty) if self.replace_missing_eos else score_B - penalty
        return torch.where(samples.finished_B, score_B, unfinished_B)


@dataclass(frozen=True)
class Rollout:
    """Everything an update needs; nothing in it carries a gradient.

    ``score_B`` is what the scorer gave, ``shaped_B`` what ``Shaping`` made of it; ``reward_BT`` is -kl_coef *
    k1 on every token plus the shaped score on the last real token. Rows g * G to g * G + G - 1 are the
    ``group_size`` G responses to one prompt.

    Example (one response of two tokens, kl_coef 0.1)::

        score_B [0.8]   logp_BT [[-1.0, -0.2]]   ref_logp_BT [[-1.5, -0.2]]
        reward_BT [[-0.05, 0.8]]
    """

    samples: Samples
    prompts: list[Prompt]
    completions: list[str]
    ref_logp_BT: torch.Tensor
    value_BT: torch.Tensor
    score_B: torch.Tensor
    shaped_B: torch.Tensor
    reward_BT: torch.Tensor
    group_size: int


class ForwardPasses(Protocol):
    """What a rollout asks of the training side."""

    def reference_logprobs(self, samples: Samples) -> torch.Tensor: ...

    def values(self, samples: Samples) -> torch.Tensor: ...


def collect(
    policy: Policy,
    prompts: Sequence[PromptRecord],
    scorer: Scorer,
    passes: ForwardPasses,
    options: SamplingOptions,
    generator: torch.Generator,
    kl_coef: float,
    shaping: Shaping,
    group_size: int = 1,
    **reward_arguments: Any,
) -> Rollout:
    """Samples ``group_size`` responses to each prompt and scores them.

    Args:
        policy: what samples.
        prompts: with the other columns of their rows.
        scorer: the reward.
        passes: reference log-probabilities and values.
        options: temperature, length, stop texts.
        generator: draws the tokens.
        kl_coef: weight of k1 in the reward; 0 where the KL stands elsewhere.
        shaping: what becomes of a score.
        group_size: responses to each prompt.
        **reward_arguments: what reward functions are given besides, as ``trainer_state``.

    Raises:
        UsageError: the scorer returned another number of scores than it was given, or a non-finite one.
    """
    # Sample. The log-probabilities come with the tokens, as they were when each was drawn: nothing that is
    # computed later could stand for them, since the policy moves.
    responses = policy.respond(prompts, group_size, generator, options)
    samples = responses.samples
    # Score: one number for a whole response, from whatever the reward is.
    score_B = torch.tensor(score_responses(scorer, responses, **reward_arguments), dtype=torch.float32)
    # Shape: bounds and penalties first, then down to tokens. Each token pays for its own step away from the
    # reference, so that credit for the KL is exact; only the score has to wait for the last token.
    shaped_B = shaping(score_B, samples)
    ref_logp_BT = passes.reference_logprobs(samples)
    kl_BT = samples.logp_BT - ref_logp_BT
    reward_BT = token_level_reward(shaped_B, kl_BT, samples.mask_BT, kl_coef)
    # What the critic expects of these tokens before it learns from them: the learner needs it for the
    # advantages, and to clip the values' change.
    value_BT = passes.values(samples)
    return Rollout(
        samples=samples,
        prompts=responses.prompts,
        completions=responses.completions,
        ref_logp_BT=ref_logp_BT,
        value_BT=value_BT,
        score_B=score_B,
        shaped_B=shaped_B,
        reward_BT=reward_BT,
        group_size=group_size,
    )
