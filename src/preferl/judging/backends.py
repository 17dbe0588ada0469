"""Where a judge's words come from: a local language model, or an endpoint (``endpoints.py``).

Text comes from ``transformers.generate``, not from preferl's own engine: that one draws by inverse CDF and
has no greedy mode.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from transformers import GenerationConfig

from preferl.data.records import Messages
from preferl.data.tokens import pad, prompt_ids, response_ids
from preferl.judging.endpoints import EndpointBackend
from preferl.judging.replies import CUT_OFF, Reply, Usage
from preferl.maths.policy import response_logprobs
from preferl.models.load import freeze, load_policy, max_positions
from preferl.models.passes import last_logits
from preferl.models.special_tokens import stop_ids
from preferl.options.judging import JudgeConfig, JudgeSpec
from preferl.runs.checkpoint import Parts
from preferl.runs.devices import derived_seed
from preferl.runs.errors import UsageError

KEPT_AT_ONCE = 128  # requests that are answered between two writes
K = TypeVar("K", bound=Hashable)


class Backend(Protocol):
    """A language model that answers chats. ``usage`` counts its replies and their tokens."""

    usage: Usage

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[Reply]:
        """A reply to each chat; one that reached ``max_tokens`` has a problem."""
        ...

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[Reply]:
        """Replies with ``logprobs``, log p(choice | chat) in nats."""
        ...


class LocalBackend:
    """A causal language model in this process.

    Its own generation settings (top-k, repetition penalty, …) are removed: replies are greedy, or drawn
    from softmax(logits / temperature), with random numbers of these very chats and of how often they were
    asked before.
    """

    def __init__(self, model: Any, tokenizer: Any, config: JudgeConfig):
        self.model: Any = freeze(model)
        self.tokenizer, self.config = tokenizer, config
        self.usage = Usage()
        self.asked: Counter[int] = Counter()
        self.stops = stop_ids(model, tokenizer)
        self.model.generation_config = GenerationConfig(
            pad_token_id=tokenizer.pad_token_id, eos_token_id=self.stops
        )

    @torch.no_grad()
    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[Reply]:
        rows, replies = self._fitting(messages, max_tokens)
        greedy = {"do_sample": False}
        draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        device, own = self.model.device, derived_seed(self.config.seed or 0, "judge", [*rows.values()])
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(own, self.asked[own]))
            self.asked[own] += 1
            for part, ids_BS, mask_BS in self._batches(rows):
                out_BS = self.model.generate(
                    input_ids=ids_BS,
                    attention_mask=mask_BS,
                    max_new_tokens=max_tokens,
                    **(draw if temperature > 0 else greedy),
                )
                for i, ids in zip(part, out_BS[:, ids_BS.shape[1] :].tolist(), strict=True):
                    text = self.tokenizer.decode(ids, skip_special_tokens=True)
                    end = next((i for i, token in enumerate(ids) if token in self.stops), None)
                    length = len(ids) if end is None else end + 1
                    cut = CUT_OFF if end is None else None
                    replies[i] = Reply(text, cut, None, len(rows[i]), length)
        return self._counted(replies)

    @torch.no_grad()
    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[Reply]:
        """Teacher-forced: the sum over all tokens of each choice, whatever would follow it."""
        endings = [response_ids(self.tokenizer, choice, finished=False) for choice in choices]
        longest = max(len(ending) for ending in endings)
        chats, replies = self._fitting(messages, longest)
        # A choice's last token is only predicted, never read: choices of one token share one row. Each chat
        # has a row for each prefix.
        prefixes = sorted({tuple(ending[:-1]) for ending in endings})
        rows: dict[tuple[int, int], list[int]] = {}
        for chat, chat_ids in chats.items():
            for number, prefix in enumerate(prefixes):
                rows[chat, number] = [*chat_ids, *prefix]
        logp = {chat: [0.0] * len(choices) for chat in chats}
        for part, ids_BS, mask_BS in self._batches(rows):
            logits_BTV = last_logits(self.model, ids_BS, mask_BS, longest)[0].float()
            for (chat, number), logits_TV in zip(part, logits_BTV, strict=True):
                for j, ending in enumerate(endings):
                    if tuple(ending[:-1]) == prefixes[number]:
                        # The last columns predict the choice: the one before it, and all of its prefix.
                        tokens_1T = torch.tensor([ending], device=logits_TV.device)
                        logp_1T = response_logprobs(logits_TV[None, -len(ending) :], tokens_1T, 1.0)
                        logp[chat][j] = float(logp_1T.sum())
        for chat, row in logp.items():
            replies[chat] = Reply("", None, tuple(row), len(chats[chat]), 0)
        return self._counted(replies)

    def _fitting(self, messages: list[Messages], room: int) -> tuple[dict[int, list[int]], dict[int, Reply]]:
        """Tokens of the chats that fit, and what is said of the others, by number.

        Raises:
            UsageError: none fits.
        """
        rows = dict(enumerate(self._rows(messages)))
        limit, longest = max_positions(self.model), max(map(len, rows.values()), default=0)
        if limit is None or longest + room <= limit:
            return rows, {}
        # Cutting would take the instructions or a delimiter away.
        fitting = {i: ids for i, ids in rows.items() if len(ids) + room <= limit}
        if not fitting:
            raise UsageError(
                f"judge: a request of {longest} tokens and {room} for the reply exceed the judging model's "
                f"{limit} positions; lower max_tokens or take a model with a longer context"
            )
        words = f"too long for the judge's context: with {room} for the reply more than {limit} tokens"
        return fitting, {i: Reply("", words, None, 0, 0) for i in rows.keys() - fitting.keys()}

    def _counted(self, replies: dict[int, Reply]) -> list[Reply]:
        in_order = [replies[i] for i in sorted(replies)]
        for reply in in_order:
            self.usage.add(reply, was_kept=False)
        return in_order

    def _rows(self, messages: list[Messages]) -> list[list[int]]:
        return [prompt_ids(self.tokenizer, chat) for chat in messages]

    def _batches(self, rows: Mapping[K, list[int]]) -> Iterator[tuple[list[K], torch.Tensor, torch.Tensor]]:
        """Keys of rows, ``ids_BS`` and ``mask_BS``, left-padded: the last column is every row's last
        token."""
        order = sorted(rows, key=lambda key: len(rows[key]))
        for start in range(0, len(order), self.config.batch_size):
            part = order[start : start + self.config.batch_size]
            ids_BS, mask_BS = pad([rows[key] for key in part], self.tokenizer.pad_token_id, "left")
            yield part, ids_BS.to(self.model.device), mask_BS.to(self.model.device)


class KeptReplies:
    """A local model whose answers are kept: what was asked before an interruption is not asked again. They
    are kept together as they were asked, because what shares a batch decides the last bits.

    Args:
        backend: what answers.
        parts: where answers are kept, under a hash of what was asked.
    """

    def __init__(self, backend: Backend, parts: Parts):
        self.backend, self.parts = backend, parts
        self.usage = Usage()

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[Reply]:
        def ask(part: list[Messages]) -> list[Reply]:
            return self.backend.complete(part, max_tokens, temperature)

        return self._kept(messages, ask, "complete", max_tokens, temperature)

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[Reply]:
        def ask(part: list[Messages]) -> list[Reply]:
            return self.backend.choice_logprobs(part, choices)

        return self._kept(messages, ask, "choice_logprobs", *choices)

    def _kept(
        self, messages: list[Messages], ask: Callable[[list[Messages]], list[Reply]], *how: object
    ) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(messages), KEPT_AT_ONCE):

            def answer(part: list[Messages] = messages[start : start + KEPT_AT_ONCE]) -> Any:
                return {}, {"answers": [dataclasses.asdict(reply) for reply in ask(part)]}

            text = json.dumps([*how, messages[start : start + KEPT_AT_ONCE]])
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            for kept in self.parts.get(f"judge-{name}", answer)[1]["answers"]:
                logprobs = kept.pop("logprobs")
                replies.append(Reply(**kept, logprobs=None if logprobs is None else tuple(logprobs)))
        for reply in replies:
            self.usage.add(reply, was_kept=False)
        return replies


def load_backend(spec: JudgeSpec, device: torch.device) -> Backend:
    """The endpoint, or the local model on ``device``.

    Raises:
        UsageError: the model cannot be loaded or the key's variable is not set.
    """
    if spec.model is not None:
        return EndpointBackend(spec.location, spec.model, spec.config)
    return LocalBackend(*load_policy(spec.location, device), spec.config)
