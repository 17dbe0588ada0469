"""Prompts to texts: what collect, evaluate and the checks after a stage need of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.data.records import Prompt
from preferl.data.tokens import prompt_ids
from preferl.models.load import max_positions
from preferl.runs.config import SamplingOptions
from preferl.runs.errors import UsageError
from preferl.sampling.engine import SamplingEngine
from preferl.sampling.samples import Samples, Sampling, cut_at_stop, decode, rows_of


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


@dataclass(frozen=True)
class Responses:
    """One response to each prompt. ``lengths`` counts tokens, EOS included."""

    prompts: list[Prompt]
    completions: list[str]
    finished: list[bool]
    lengths: list[int]
    samples: Samples

    def rows(self, rows: Sequence[int]) -> "Responses":
        """Some of them, by number."""
        return Responses(
            *([values[i] for i in rows] for values in (self.prompts, self.completions)),
            *([values[i] for i in rows] for values in (self.finished, self.lengths)),
            samples=rows_of(self.samples, torch.tensor(rows)),
        )

    @property
    def eos_rate(self) -> float:
        return sum(self.finished) / len(self.finished)

    @property
    def mean_length(self) -> float:
        return sum(self.lengths) / len(self.lengths)


def sampling_for(tokenizer: Any, options: SamplingOptions) -> Sampling:
    """The sampling parameters of a stage: pad is never drawn, EOS ends a response.

    Raises:
        UsageError: temperature or length make no sense.
    """
    if not options.temperature > 0:
        raise UsageError(f"temperature is {options.temperature}; it must be above 0")
    if "" in options.stop_sequences:
        raise UsageError("stop_sequences holds an empty text, which would end every response at once")
    if options.response_length < 1:
        raise UsageError(f"response_length is {options.response_length}; it must be at least 1")
    return Sampling(
        temperature=options.temperature,
        response_length=options.response_length,
        suppressed=(tokenizer.pad_token_id,),
        stop=(tokenizer.eos_token_id,),
        stop_texts=tuple(options.stop_sequences),
    )


def fitting_prompt_ids(
    tokenizer: Any, prompts: Sequence[Prompt], model: PreTrainedModel, response_length: int
) -> list[list[int]]:
    """Token ids of prompts; where prompt and response exceed the model's positions the prompt loses its
    oldest tokens.

    Raises:
        UsageError: the model has no room for a response of this length.
    """
    limit = max_positions(model)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    if limit is None:
        return rows
    room = limit - response_length
    if room < 1:
        raise UsageError(
            f"response_length {response_length} leaves no room in the model's {limit} positions; lower it"
        )
    return [row[-room:] for row in rows]


def generate(
    engine: SamplingEngine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
    group_size: int = 1,
) -> Responses:
    """Samples ``group_size`` responses to each prompt, as text; those of one prompt stand together."""
    prompts = [prompt for prompt in prompts for _ in range(group_size)]
    prompt_tokens = [tokens for tokens in prompt_tokens for _ in range(group_size)]
    samples, completions = sample_texts(engine, tokenizer, prompt_tokens, sampling, generator)
    return Responses(
        prompts=prompts,
        completions=completions,
        finished=samples.finished_B.tolist(),
        lengths=samples.mask_BT.sum(-1).tolist(),
        samples=samples,
    )
