"""One policy: a language model that writes responses to prompts and says how likely responses are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from preferl.data.records import Prompt, PromptRecord, columns_of
from preferl.data.tokens import last_tokens, prompt_ids
from preferl.models import load, special_tokens
from preferl.models.lora import with_lora
from preferl.models.offload import CPU, Offload
from preferl.models.shapes import forward_tokens
from preferl.models.storage import Weights
from preferl.options.shared import LoraOptions, SamplingOptions
from preferl.runs import devices
from preferl.runs.errors import DivergedError, UsageError
from preferl.sampling.cached import CachedEngine
from preferl.sampling.engine import SamplingEngine
from preferl.sampling.logprobs import in_microbatches, policy_logprobs
from preferl.sampling.samples import Samples, Sampling, cut_at_stop, decode, rows_of


@dataclass(frozen=True)
class Responses:
    """One response to each prompt. ``lengths`` counts tokens, EOS included; ``columns`` are the other columns
    of the prompts' rows."""

    prompts: list[Prompt]
    completions: list[str]
    finished: list[bool]
    lengths: list[int]
    samples: Samples
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def rows(self, rows: Sequence[int]) -> "Responses":
        """Some of them, by number."""

        def some(column: list[Any]) -> list[Any]:
            return [column[i] for i in rows]

        return Responses(
            prompts=some(self.prompts),
            completions=some(self.completions),
            finished=some(self.finished),
            lengths=some(self.lengths),
            samples=rows_of(self.samples, torch.tensor(rows)),
            columns={name: some(column) for name, column in self.columns.items()},
        )

    @property
    def completion_ids(self) -> list[list[int]]:
        """Token ids of each response, EOS included."""
        rows = zip(self.samples.response_BT.tolist(), self.lengths, strict=True)
        return [tokens[:length] for tokens, length in rows]

    @property
    def eos_rate(self) -> float:
        return sum(self.finished) / len(self.finished)

    @property
    def mean_length(self) -> float:
        return sum(self.lengths) / len(self.lengths)


class Policy:
    """A causal language model with its tokenizer.

    Example:
        >>> policy = Policy.load("runs/demo/sft")
        >>> policy.respond(["What is 2 + 2?"], n=2, seed=0, response_length=8).completions
        ['4.', 'It is 4.']

    Args:
        model: a causal language model of transformers, or one with adapters of peft.
        tokenizer: its tokenizer, with a pad token that is not EOS (``special_tokens.ensure_pad_token``).
        dtype: to compute in; weights stay as they are.
        engine: what samples; by default a ``CachedEngine`` on the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        dtype: torch.dtype = torch.float32,
        engine: SamplingEngine | None = None,
    ):
        self.model, self.tokenizer, self.dtype, self.engine = model, tokenizer, dtype, engine
        self.offload = Offload(CPU, False)
        self.prompts_read = self.prompts_cut = 0  # how many there were, and how many did not fit

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        weights: Weights = Weights.FROZEN,
    ) -> Self:
        """A policy from a stage's directory, a model directory or a Hub name, in evaluation mode.

        Args:
            name_or_path: where it is.
            device: where it computes.
            dtype: to compute in.
            chat_template_kwargs: what its chat template is given besides messages, as ``enable_thinking``; by
                default what is kept with the model.
            weights: how they are kept: as they are stored, where they are not trained.

        Raises:
            UsageError: there is no such model, device or dtype.
        """
        place = device if isinstance(device, torch.device) else devices.chosen_device(device)
        kind = dtype if isinstance(dtype, torch.dtype) else devices.chosen_dtype(dtype, str(place))
        return cls(*load.load_policy(name_or_path, place, chat_template_kwargs, weights), kind)

    def train_lora(self, name_or_path: str, options: LoraOptions) -> None:
        """Puts trainable LoRA weights on the model, where options ask for them.

        Args:
            name_or_path: what the model was loaded by.
            options: rank, scale and layers.
        """
        if options.lora_r:
            self.model = with_lora(self.model, name_or_path, options)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def sampling(self, options: SamplingOptions) -> Sampling:
        """How tokens are drawn with these options: pad never, nor an id without text; every EOS id and the
        token with which the chat template ends a turn end a response.

        Raises:
            UsageError: a stop text makes no sense.
        """
        if "" in options.stop_sequences:
            raise UsageError("stop_sequences holds an empty text, which would end every response at once")
        return Sampling(
            temperature=options.temperature,
            response_length=options.response_length,
            suppressed=self._suppressed,
            stop=self._stop,
            stop_texts=tuple(options.stop_sequences),
        )

    @cached_property
    def _stop(self) -> tuple[int, ...]:
        return tuple(special_tokens.stop_ids(self.model, self.tokenizer))

    @cached_property
    def _suppressed(self) -> tuple[int, ...]:
        pad_id = self.tokenizer.pad_token_id
        # A pad token that is one of a model's EOS ids (Qwen's instruct models) may be drawn, as an end.
        pad = () if pad_id in self._stop else (pad_id,)
        return (*pad, *special_tokens.ids_without_text(self.model, self.tokenizer))

    @property
    def notes(self) -> list[str]:
        """What was mended or is unusual about the model, in sentences."""
        return load.notes_of(self.model, self.tokenizer)

    def prompt_tokens(self, prompts: Sequence[Prompt], response_length: int) -> list[list[int]]:
        """Token ids of prompts; where prompt and response exceed the model's positions the prompt loses its
        oldest tokens.

        Raises:
            UsageError: the model has no room for a response of this length.
        """
        limit = load.max_positions(self.model)
        rows = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        if limit is None:
            return rows
        room = limit - response_length
        if room < 1:
            raise UsageError(
                f"response_length {response_length} leaves no room in the model's {limit} positions; lower it"
            )
        self.prompts_read += len(rows)
        self.prompts_cut += sum(len(row) > room for row in rows)
        return [last_tokens(self.tokenizer, row, room) for row in rows]

    def respond(
        self,
        prompts: Sequence[Prompt | PromptRecord],
        n: int = 1,
        seed: int | torch.Generator = 0,
        options: SamplingOptions | None = None,
        **changes: Any,
    ) -> Responses:
        """Samples ``n`` responses to each prompt; those of one prompt stand together.

        Args:
            prompts: texts, lists of messages, or records of such with the other columns of their rows.
            n: responses to each.
            seed: of the random numbers, or the generator that draws them (it moves on).
            options: temperature, length, stop texts, batch size; by default those of ``SamplingOptions``.
            **changes: options by name, as ``temperature=0.7``.

        Raises:
            UsageError: an option makes no sense, or the model has no room for so long a response.
            DivergedError: a token's probability is no number.
        """
        options = replace(options or SamplingOptions(), **changes)
        sampling = self.sampling(options)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        records = [p if isinstance(p, PromptRecord) else PromptRecord(p) for p in prompts]
        # Each prompt is encoded once, then stands n times in a row: everything below is of the repeated rows.
        tokens = self.prompt_tokens([record.prompt for record in records], options.response_length)
        asked, asked_tokens = repeated(records, n), repeated(tokens, n)
        samples = self.sampler(options).sample(asked_tokens, sampling, generator)
        if not bool(samples.logp_BT.isfinite().all()):
            raise DivergedError(
                f"the policy '{self.model.name_or_path}' gives tokens probabilities that are not finite "
                f"numbers: its weights have grown until its activations overflow; lower the learning rate, "
                f"or take an earlier model"
            )
        samples = cut_at_stop(samples, self.tokenizer)
        return Responses(
            prompts=[record.prompt for record in asked],
            completions=decode(self.tokenizer, samples),
            finished=samples.finished_B.tolist(),
            lengths=samples.mask_BT.sum(-1).tolist(),
            samples=samples,
            columns=columns_of(asked),
        )

    def sampler(self, options: SamplingOptions) -> SamplingEngine:
        """The engine that samples."""
        if self.engine is not None:
            return self.engine
        pad_id, batch_size = self.tokenizer.pad_token_id, options.sampling_batch_size
        return CachedEngine(self.model, pad_id, batch_size, self.dtype)

    def logprobs(
        self,
        samples: Samples,
        batch_size: int = 128,
        length_B: torch.Tensor | None = None,
        tokens: int | None = None,
    ) -> torch.Tensor:
        """``logp_BT`` (float32, on the CPU) of responses under this policy, in nats; 0 outside the mask.

        At the temperature at which they were drawn; no gradients. At most ``batch_size`` rows and ``tokens``
        padded tokens (by default what ``models.plan`` allows) at once, of like ``length_B`` (by default the
        response's).
        """

        def compute(part: Samples) -> torch.Tensor:
            return policy_logprobs(self.model, part)

        tokens = forward_tokens(self.model) if tokens is None else tokens
        with self.offload.present(self.model):
            return in_microbatches(samples, compute, batch_size, self.device, self.dtype, length_B, tokens)

    def save(self, path: Path) -> None:
        """Writes the model and its tokenizer, as ``save_pretrained`` does."""
        load.save(self.model, self.tokenizer, path)


def repeated(rows: Sequence[Any], n: int) -> list[Any]:
    """Every row n times, those of one row together."""
    return [row for row in rows for _ in range(n)]
