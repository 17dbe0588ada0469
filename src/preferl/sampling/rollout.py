"""Prompts to a Rollout: sample, score, reference log-probabilities, values, token-level rewards.

One RL step is read in three files: ``stages/rl.py`` (the loop), this one, ``maths/policy.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from preferl.data.chat import positions
from preferl.data.records import Prompt
from preferl.maths.policy import response_logprobs, token_level_reward
from preferl.runs.errors import UsageError
from preferl.sampling.engine import Samples, Sampling, SamplingEngine

# Stands for log 0 where a number has to stay finite through a gradient.
IMPOSSIBLE = -1e9

Scorer = Callable[..., list[float]]


@dataclass(frozen=True)
class Rollout:
    """Everything an update needs; nothing in it carries a gradient.

    ``score_B`` is what the scorer gave; ``reward_BT`` is -kl_coef * k1 on every token plus score, and
    minus the missing-EOS penalty, on the last real token. ``group_B`` numbers the prompt of each row.

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
    reward_BT: torch.Tensor
    group_B: torch.Tensor


class Learner(Protocol):
    """What a rollout asks of the training side."""

    def reference_logprobs(self, samples: Samples) -> torch.Tensor: ...

    def values(self, samples: Samples) -> torch.Tensor: ...


def collect(
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[Sequence[int]],
    engine: SamplingEngine,
    learner: Learner,
    scorer: Scorer,
    tokenizer: Any,
    sampling: Sampling,
    generator: torch.Generator,
    kl_coef: float,
    missing_eos_penalty: float,
    columns: dict[str, list[Any]] | None = None,
) -> Rollout:
    """Samples one response to each prompt and scores it. A prompt given G times forms a group of G.

    Raises:
        UsageError: the scorer returned another number of scores than it was given, or a non-finite one.
    """
    samples = engine.sample(prompt_tokens, sampling, generator)
    completions = decode(tokenizer, samples)
    scores = scorer(list(prompts), completions, finished=samples.finished_B.tolist(), **(columns or {}))
    check_scores(scores, completions)
    score_B = torch.tensor(scores, dtype=torch.float32)
    ref_logp_BT = learner.reference_logprobs(samples)
    kl_BT = samples.logp_BT - ref_logp_BT
    penalised_B = score_B - missing_eos_penalty * (~samples.finished_B)
    mask_BT = samples.mask_BT
    return Rollout(
        samples=samples,
        prompts=list(prompts),
        completions=completions,
        ref_logp_BT=ref_logp_BT,
        value_BT=learner.values(samples),
        score_B=score_B,
        reward_BT=token_level_reward(penalised_B, kl_BT, mask_BT, kl_coef),
        group_B=group_numbers(prompt_tokens),
    )


def decode(tokenizer: Any, samples: Samples) -> list[str]:
    """Responses as text, EOS and padding left out; other special tokens stay visible."""
    ends = set(samples.sampling.stop) | set(samples.sampling.suppressed)
    rows = [
        [token for token, real in zip(tokens, mask, strict=True) if real and token not in ends]
        for tokens, mask in zip(samples.response_BT.tolist(), samples.mask_BT.tolist(), strict=True)
    ]
    return tokenizer.batch_decode(rows, skip_special_tokens=False)


def check_scores(scores: Sequence[float], completions: Sequence[str]) -> None:
    """A score is a finite number for every response, or the run stops: never a silent 0."""
    if len(scores) != len(completions):
        raise UsageError(
            f"the reward function returned {len(scores)} scores for {len(completions)} responses; "
            f"it must return one number for each"
        )
    for score, completion in zip(scores, completions, strict=True):
        if score is None or not abs(float(score)) < float("inf"):
            raise UsageError(
                f"the reward function returned {score!r} for the response {completion[:80]!r}; "
                f"it must return a finite number"
            )


def group_numbers(prompt_tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """``group_B``: equal prompts share a number."""
    seen: dict[tuple[int, ...], int] = {}
    return torch.tensor([seen.setdefault(tuple(row), len(seen)) for row in prompt_tokens])


def response_logits(
    model: PreTrainedModel,
    tokens_BS: torch.Tensor,
    attention_BS: torch.Tensor,
    prompt_width: int,
    suppressed: Sequence[int],
) -> torch.Tensor:
    """``logits_BTV`` (float32): column t is the distribution from which response token t was drawn.

    Only the columns that predict the response go through the vocabulary. Suppressed ids are impossible
    here as they were while sampling.
    """
    width = tokens_BS.shape[1] - prompt_width
    logits_BTV = model(
        input_ids=tokens_BS,
        attention_mask=attention_BS,
        position_ids=positions(attention_BS),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]
    logits_BTV = logits_BTV.float()
    if not suppressed:
        return logits_BTV
    ban_V = torch.zeros(logits_BTV.shape[-1], device=logits_BTV.device)
    ban_V[list(suppressed)] = IMPOSSIBLE
    return logits_BTV + ban_V


def policy_logprobs(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses under ``model``, 0 outside the mask; gradients flow."""
    device = model.device
    logits_BTV = response_logits(
        model,
        samples.tokens_BS.to(device),
        samples.attention_BS.to(device),
        samples.prompt_width,
        samples.sampling.suppressed,
    )
    logp_BT = response_logprobs(logits_BTV, samples.response_BT.to(device), samples.sampling.temperature)
    return logp_BT.masked_fill(samples.mask_BT.to(device) == 0, 0.0)


def rows_of(samples: Samples, rows: torch.Tensor) -> Samples:
    """Some rows of ``samples``, with the padding that only the others needed cut away."""
    prompt_mask, mask = samples.prompt_mask_BP[rows], samples.mask_BT[rows]
    P, prompt = samples.prompt_width, int(prompt_mask.sum(-1).max())
    response = int(mask.sum(-1).max())
    return Samples(
        tokens_BS=samples.tokens_BS[rows, P - prompt : P + response],
        prompt_mask_BP=prompt_mask[:, P - prompt :],
        mask_BT=mask[:, :response],
        logp_BT=samples.logp_BT[rows, :response],
        finished_B=samples.finished_B[rows],
        sampling=samples.sampling,
        version=samples.version,
    )
