"""Prompts to a Rollout: sample, score, reference log-probabilities, values, token-level rewards.

One RL step is read in three files: ``stages/rl.py`` (the loop), this one, ``maths/policy.py``.
"""

import dataclasses
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
        if self.clip is not None:
            score_B = score_B.clamp(-self.clip, self.clip)
        score_B = score_B - self.length_penalty * samples.mask_BT.sum(-1)
        penalty = self.missing_eos_penalty
        instead_B = torch.full_like(score_B, -penalty) if self.replace_missing_eos else score_B - penalty
        return torch.where(samples.finished_B, score_B, instead_B)


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
    shaping: Shaping,
    group_size: int = 1,
) -> Rollout:
    """Samples ``group_size`` responses to each prompt and scores them.

    Raises:
        UsageError: the scorer returned another number of scores than it was given, or a non-finite one.
    """
    prompts = [prompt for prompt in prompts for _ in range(group_size)]
    prompt_tokens = [tokens for tokens in prompt_tokens for _ in range(group_size)]
    samples, completions = sample_texts(engine, tokenizer, prompt_tokens, sampling, generator)
    lengths = samples.mask_BT.sum(-1).tolist()
    scores = scorer(prompts, completions, finished=samples.finished_B.tolist(), lengths=lengths)
    check_scores(scores, completions)
    score_B = torch.tensor(scores, dtype=torch.float32)
    shaped_B = shaping(score_B, samples)
    ref_logp_BT = learner.reference_logprobs(samples)
    kl_BT = samples.logp_BT - ref_logp_BT
    return Rollout(
        samples=samples,
        prompts=prompts,
        completions=completions,
        ref_logp_BT=ref_logp_BT,
        value_BT=learner.values(samples),
        score_B=score_B,
        shaped_B=shaped_B,
        reward_BT=token_level_reward(shaped_B, kl_BT, samples.mask_BT, kl_coef),
        group_size=group_size,
    )


def sample_texts(
    engine: SamplingEngine,
    tokenizer: Any,
    prompt_tokens: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Samples, list[str]]:
    """Samples one response to each prompt: the tokens, cut at stop texts, and what they say."""
    samples = cut_at_stop(engine.sample(prompt_tokens, sampling, generator), tokenizer)
    return samples, decode(tokenizer, samples)


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


def cut_at_stop(samples: Samples, tokenizer: Any) -> Samples:
    """Ends every response after the token with which one of ``sampling.stop_texts`` is complete.

    The text stays in, as a full stop would; what follows is as if it had not been sampled, and the response
    counts as finished. The probability of what is left is unchanged: stopping looks only at the past.
    """
    texts = samples.sampling.stop_texts
    if not texts:
        return samples
    mask_BT, finished_B = samples.mask_BT.clone(), samples.finished_B.clone()
    for row, (tokens, length) in enumerate(
        zip(samples.response_BT.tolist(), samples.mask_BT.sum(-1).tolist(), strict=True)
    ):
        if not any(text in tokenizer.decode(tokens[:length]) for text in texts):
            continue
        # The shortest prefix with a stop text in it; whether there is one only ever turns true.
        low, high = 1, length
        while low < high:
            middle = (low + high) // 2
            found = any(text in tokenizer.decode(tokens[:middle]) for text in texts)
            low, high = (low, middle) if found else (middle + 1, high)
        mask_BT[row, low:] = 0
        finished_B[row] = True
    width = int(mask_BT.sum(-1).max())
    tokens_BS = samples.tokens_BS.clone()
    after_BT = mask_BT == 0
    tokens_BS[:, samples.prompt_width :][after_BT] = samples.sampling.suppressed[0]
    return dataclasses.replace(
        samples,
        tokens_BS=tokens_BS[:, : samples.prompt_width + width],
        mask_BT=mask_BT[:, :width],
        logp_BT=samples.logp_BT.masked_fill(after_BT, 0.0)[:, :width],
        finished_B=finished_B,
    )


def response_logits(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """``logits_BTV`` (float32): column t is the distribution from which response token t was drawn.

    Only the columns that predict the response go through the vocabulary. Suppressed ids are impossible
    here as they were while sampling.
    """
    return response_outputs(model, samples)[0]


def response_outputs(
    model: PreTrainedModel, samples: Samples, states: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``logits_BTV`` as above and, where asked for, ``states_BTD``: the last hidden states behind them."""
    device, width = model.device, samples.mask_BT.shape[1]
    attention_BS = samples.attention_BS.to(device)
    outputs = model(
        input_ids=samples.tokens_BS.to(device),
        attention_mask=attention_BS,
        position_ids=positions(attention_BS),
        use_cache=False,
        logits_to_keep=width + 1,
        **({"output_hidden_states": True} if states else {}),
    )
    logits_BTV = outputs.logits[:, :-1].float()
    states_BTD = outputs.hidden_states[-1][:, -width - 1 : -1] if states else None
    if not samples.sampling.suppressed:
        return logits_BTV, states_BTD
    ban_V = torch.zeros(logits_BTV.shape[-1], device=logits_BTV.device)
    ban_V[list(samples.sampling.suppressed)] = IMPOSSIBLE
    return logits_BTV + ban_V, states_BTD


def policy_logprobs(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses under ``model``, 0 outside the mask; gradients flow."""
    return logprobs_of(response_logits(model, samples), samples)


def logprobs_of(logits_BTV: torch.Tensor, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses from ``response_logits``, 0 outside the mask."""
    device = logits_BTV.device
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
