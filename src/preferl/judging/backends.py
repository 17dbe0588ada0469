"""Where a judge's words come from: a local language model, or an endpoint that speaks OpenAI's chat API.

Text comes from ``transformers.generate``, not from preferl's own engine: that one draws by inverse CDF and
has no greedy mode.
"""

import concurrent.futures
import dataclasses
import difflib
import hashlib
import http.client
import json
import math
import os
import threading
import typing
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
import torch
from transformers import GenerationConfig

from preferl.data.records import Messages
from preferl.data.tokens import pad, prompt_ids, response_ids
from preferl.maths.policy import response_logprobs
from preferl.models.load import freeze, load_policy, max_positions, stop_ids
from preferl.models.passes import last_logits
from preferl.runs.checkpoint import Parts
from preferl.runs.devices import derived_seed
from preferl.runs.errors import UsageError
from preferl.runs.ranges import Count, Natural, NonNegative, Range, Seed, check_ranges

PREFIX = "judge:"
CUT_OFF = "\n[cut off]"  # ends a reply that reached its limit: half a reply holds no verdict
TOP_LOGPROBS = 20  # the most that OpenAI and vLLM return unless told otherwise
MAX_WAIT_S = 60.0
KEPT_AT_ONCE = 128  # requests that are answered between two writes
T = TypeVar("T")
ASPECTS = {
    "helpfulness": "it does what the prompt asks, completely and correctly, and is useful to who asked",
    "correctness": "what it states is true and its reasoning holds",
    "concision": "it says what is needed in few words, without repetition, preamble or filler",
    "coherence": "it is clear, well ordered and hangs together",
    "honesty": "it claims no more than it can know, admits doubt, and does not flatter",
    "harmlessness": "it helps nobody to do harm, and is neither abusive nor needlessly preachy",
}


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How a judge is asked. Example: ``JudgeConfig(aspect="concision", mode="logprob")``.

    Raises:
        UsageError: a value makes no sense, or an aspect without a stock text has no ``criteria``.
    """

    aspect: str = "helpfulness"
    """Name of what is judged: a key of ``ASPECTS``, or any name with ``criteria`` of its own."""
    criteria: str | None = None
    """What a good response is, as the end of "a response is good if …"; None: the aspect's stock text."""
    mode: str = "verdict"
    """``verdict``: a written verdict; ``logprob``: the probability of the answer."""
    critique_first: bool = False
    """Asks for a short critique before the verdict."""
    label_mode: str = "stochastic"
    """Pairs: ``stochastic`` draws the label from the probability, ``deterministic`` takes the likelier."""
    unparsable: str = "error"
    """Nothing readable on a pair or response: ``error``, or ``skip`` (pair left out, score NaN)."""
    scale_low: int = 1
    """Worst score of pointwise judging."""
    scale_high: int = 10
    """Best score of pointwise judging."""
    max_tokens: Count = 512
    """Longest reply; one that reaches it is unparsable."""
    temperature: NonNegative = 0.0
    """Of the reply; 0 is greedy."""
    seed: Seed | None = None
    """Makes the delimiters' codes (and draws of a local model) repeatable; None: fresh codes."""
    batch_size: Count = 16
    """Rows of one forward pass of a local judge."""
    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key; None: no key is sent."""
    timeout: Annotated[float, Range(1e-3)] = 60.0
    """Seconds without a byte from the endpoint before an attempt counts as failed."""
    retries: Natural = 4
    """Further attempts after status 408, 429, 5xx or a broken connection."""
    backoff: NonNegative = 1.0
    """Seconds before the second attempt; then doubled, or what the server asks for, 60 at most."""
    parallel: Count = 8
    """Requests to the endpoint at a time."""
    token_limit_field: str = "max_tokens"
    """The endpoint's name of the reply limit; OpenAI's newer models want ``max_completion_tokens``."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.criteria is None and self.aspect not in ASPECTS:
            raise UsageError(
                f"judge: aspect '{self.aspect}' has no stock criteria; use {', '.join(ASPECTS)}, or say in "
                f"'criteria' what a good response is"
            )
        words = {
            "mode": ("verdict", "logprob"),
            "label_mode": ("stochastic", "deterministic"),
            "unparsable": ("error", "skip"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"judge: {name} is '{getattr(self, name)}'; use {' or '.join(allowed)}")
        if self.scale_high <= self.scale_low:
            raise UsageError(
                f"judge: scale_high is {self.scale_high}; it must be above scale_low, {self.scale_low}"
            )


@dataclass(frozen=True)
class JudgeSpec:
    """Where a judge is: a model's directory or Hub name (``model`` None), or a base URL and its model."""

    location: str
    model: str | None
    config: JudgeConfig


def parse_judge(spec: str, config: JudgeConfig | None = None) -> JudgeSpec:
    """Reads ``judge:<directory or Hub name>`` or ``judge:<base URL>#<model>``, each with ``?key=value&…``.

    The keys are the fields of `JudgeConfig` and take precedence over ``config``.

    Raises:
        UsageError: the text is no such thing, a key is unknown, or a value does not fit.
    """
    rest = spec.removeprefix(PREFIX)
    if rest.startswith(("http://", "https://")):
        location, _, tail = rest.partition("#")
        model, _, options = tail.partition("?")
        check_url(location, model)
    else:
        location, _, options = rest.partition("?")
        model = None
    if not spec.startswith(PREFIX) or not location:
        raise UsageError(
            f"'{spec}' names no judge; write judge:<model directory or Hub name> or "
            f"judge:http://host:port/v1#<model>, optionally with ?aspect=concision&mode=logprob"
        )
    kinds, changes = typing.get_type_hints(JudgeConfig), {}
    for key, text in urllib.parse.parse_qsl(options, keep_blank_values=True):
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1, 0) or ["aspect"]
            raise UsageError(f"judge: no option '{key}' in '{spec}'; did you mean '{near[0]}'?")
        changes[key] = option_value(key, text, kinds[key])
    return JudgeSpec(location, model, dataclasses.replace(config or JudgeConfig(), **changes))


def option_value(key: str, text: str, kind: Any) -> Any:
    """The text of a spec's option as its field's type."""
    plain = next(k for k in (bool, int, float, str) if k is kind or k in typing.get_args(kind))
    try:
        return {"true": True, "false": False}[text.lower()] if plain is bool else plain(text)
    except (KeyError, ValueError) as error:
        wanted = "true or false" if plain is bool else f"of type {plain.__name__}"
        raise UsageError(f"judge: {key} is '{text}'; it must be {wanted}") from error


def check_url(url: str, model: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        host, secret, _ = parts.hostname, parts.password or parts.username, parts.port
    except ValueError as error:
        raise UsageError(f"judge: '{url}' is no URL: {error}; write http://host:port/v1#<model>") from error
    if secret is not None:
        raise UsageError(
            f"judge: the URL of {host} holds a user or password, which would end up in logs; "
            f"put the key into an environment variable and name it in api_key_env"
        )
    if not host or not model or any(c.isspace() or not c.isascii() for c in url):
        raise UsageError(f"judge: '{url}#{model}' needs a host and a model: http://host:port/v1#<model>")


class Backend(Protocol):
    """A language model that answers chats."""

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[str]:
        """A reply to each chat; one that reached ``max_tokens`` ends with the line ``[cut off]``."""
        ...

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[list[float]]:
        """log p(choice | chat) in nats, a row for each chat; -inf where it is not known to be likely."""
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
        self.asked: Counter[int] = Counter()
        self.stops = stop_ids(model, tokenizer)
        self.model.generation_config = GenerationConfig(
            pad_token_id=tokenizer.pad_token_id, eos_token_id=self.stops
        )

    @torch.no_grad()
    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[str]:
        rows = self._rows(messages, max_tokens)
        greedy = {"do_sample": False}
        draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        replies = [""] * len(rows)
        device, own = self.model.device, derived_seed(self.config.seed or 0, "judge", rows)
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
                    replies[i] = text if any(stop in ids for stop in self.stops) else text + CUT_OFF
        return replies

    @torch.no_grad()
    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[list[float]]:
        """Teacher-forced: the sum over all tokens of each choice, whatever would follow it."""
        endings = [response_ids(self.tokenizer, choice, finished=False) for choice in choices]
        longest = max(len(ending) for ending in endings)
        # A choice's last token is only predicted, never read: choices of one token share one row. Each chat
        # has a row for each prefix, chat after chat.
        prefixes = sorted({tuple(ending[:-1]) for ending in endings})
        rows: list[list[int]] = []
        for chat_ids in self._rows(messages, longest):
            rows += [[*chat_ids, *prefix] for prefix in prefixes]
        logp = [[0.0] * len(choices) for _ in messages]
        for part, ids_BS, mask_BS in self._batches(rows):
            logits_BTV = last_logits(self.model, ids_BS, mask_BS, longest)[0].float()
            for i, logits_TV in zip(part, logits_BTV, strict=True):
                chat, number = divmod(i, len(prefixes))
                for j, ending in enumerate(endings):
                    if tuple(ending[:-1]) == prefixes[number]:
                        # The last columns predict the choice: the one before it, and all of its prefix.
                        tokens_1T = torch.tensor([ending], device=logits_TV.device)
                        logp_1T = response_logprobs(logits_TV[None, -len(ending) :], tokens_1T, 1.0)
                        logp[chat][j] = float(logp_1T.sum())
        return logp

    def _rows(self, messages: list[Messages], room: int) -> list[list[int]]:
        rows = [prompt_ids(self.tokenizer, chat) for chat in messages]
        limit, longest = max_positions(self.model), max(map(len, rows), default=0)
        if limit is not None and longest + room > limit:
            # Cutting would take the instructions or a delimiter away.
            raise UsageError(
                f"judge: a request of {longest} tokens and {room} for the reply exceed the judging model's "
                f"{limit} positions; lower max_tokens or take a model with a longer context"
            )
        return rows

    def _batches(self, rows: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Row numbers, ``ids_BS`` and ``mask_BS``, left-padded: the last column is every row's last token."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.config.batch_size):
            part = order[start : start + self.config.batch_size]
            ids_BS, mask_BS = pad([rows[i] for i in part], self.tokenizer.pad_token_id, "left")
            yield part, ids_BS.to(self.model.device), mask_BS.to(self.model.device)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class EndpointBackend:
    """An OpenAI-compatible chat endpoint: ``POST <base URL>/chat/completions``.

    Raises:
        UsageError: the key's variable is not set, the endpoint refuses or keeps failing, or its answer is
            not what the protocol says. Messages name URL, status and the server's words, never the key.
    """

    def __init__(self, base_url: str, model: str, config: JudgeConfig):
        parts = urllib.parse.urlsplit(base_url)
        self.url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
        self.model, self.config = model, config
        self._key = None
        if config.api_key_env is not None:
            self._key = os.environ.get(config.api_key_env, "").strip()
            if not self._key or not (self._key.isascii() and self._key.isprintable()):
                raise UsageError(
                    f"judge: the environment variable {config.api_key_env} holds no usable API key; set it"
                )
        self._opener = urllib.request.build_opener(NoRedirect)

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[str]:
        replies = []
        for choice in self._ask_all(messages, max_tokens, {"temperature": temperature}):
            content = choice["message"].get("content")  # null where a server put all into another field
            cut = choice.get("finish_reason") == "length"
            replies.append((content if isinstance(content, str) else "") + (CUT_OFF if cut else ""))
        return replies

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[list[float]]:
        """From the first token's ``top_logprobs``: a choice must be one token, spaces around it aside."""
        extra = {"temperature": 1.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        rows = []
        for choice in self._ask_all(messages, 1, extra):
            try:
                top = choice["logprobs"]["content"][0]["top_logprobs"]
                known = [(str(t["token"]).strip(), float(t["logprob"])) for t in top]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UsageError(
                    f"judge: {self.url} returned no top_logprobs for model '{self.model}'; "
                    f"use mode=verdict, or a server that returns log-probabilities"
                ) from error
            row = []
            for text in choices:
                # With and without a space before it are two tokens and one answer.
                found = [logp for token, logp in known if token == text]
                row.append(float(np.logaddexp.reduce(found)) if found else -math.inf)
            rows.append(row)
        return rows

    def _ask_all(
        self, messages: list[Messages], max_tokens: int, extra: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The first choice of every answer, in order; the first failure stops the rest."""
        stop = threading.Event()
        base = {"model": self.model, self.config.token_limit_field: max_tokens, **extra}
        with concurrent.futures.ThreadPoolExecutor(self.config.parallel) as pool:
            futures = [pool.submit(self._post, base | {"messages": chat}, stop) for chat in messages]
            try:
                done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _post(self, body: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        problem, attempts = "", 0
        while not stop.is_set():
            pause = self.config.backoff * 2**attempts
            try:
                with self._opener.open(request, timeout=self.config.timeout) as answer:
                    return self._first_choice(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"answered status {error.code}: {self._words(error)}"
                    asked = error.headers.get("Retry-After", "")
                    pause = max(pause, float(asked) if asked.isdecimal() else 0.0)
                if error.code not in (408, 429) and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                problem = f"gave no answer: {getattr(error, 'reason', None) or error or type(error).__name__}"
            attempts += 1
            if attempts > self.config.retries or stop.wait(min(pause, MAX_WAIT_S)):
                break
        times = f" ({attempts} attempts)" if attempts else ""
        raise UsageError(
            f"judge: {self.url} {self._shown(problem)}{times}; check the URL, that the server runs and "
            f"serves model '{self.model}', and the key (api_key_env={self.config.api_key_env})"
        )

    def _first_choice(self, data: bytes) -> dict[str, Any]:
        try:
            choice = json.loads(data)["choices"][0]
            choice["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UsageError(
                f"judge: {self.url} answered status 200, but with no chat completion: "
                f"{self._shown(data[:200].decode('utf-8', 'replace'))!r}; is the base URL right (…/v1)?"
            ) from error
        return choice

    def _words(self, error: urllib.error.HTTPError) -> str:
        try:
            return error.read(2000).decode("utf-8", "replace").strip()[:300] or str(error.reason)
        except (OSError, http.client.HTTPException):
            return str(error.reason)

    def _shown(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class KeptReplies:
    """A backend whose answers are kept: what was asked before an interruption is not asked, and paid, again.

    Args:
        backend: what answers.
        parts: where answers are kept, under a hash of what was asked.
    """

    def __init__(self, backend: Backend, parts: Parts):
        self.backend, self.parts = backend, parts

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[str]:
        def ask(part: list[Messages]) -> list[str]:
            return self.backend.complete(part, max_tokens, temperature)

        return self._kept(messages, ask, "complete", max_tokens, temperature)

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[list[float]]:
        def ask(part: list[Messages]) -> list[list[float]]:
            return self.backend.choice_logprobs(part, choices)

        return self._kept(messages, ask, "choice_logprobs", *choices)

    def _kept(
        self, messages: list[Messages], ask: Callable[[list[Messages]], list[T]], *how: object
    ) -> list[T]:
        answers: list[T] = []
        for start in range(0, len(messages), KEPT_AT_ONCE):

            def answer(part: list[Messages] = messages[start : start + KEPT_AT_ONCE]) -> Any:
                return {}, {"answers": ask(part)}

            text = json.dumps([*how, messages[start : start + KEPT_AT_ONCE]])
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            answers += self.parts.get(f"judge-{name}", answer)[1]["answers"]
        return answers


def load_backend(spec: JudgeSpec, device: torch.device) -> Backend:
    """The endpoint, or the local model on ``device``.

    Raises:
        UsageError: the model cannot be loaded or the key's variable is not set.
    """
    if spec.model is not None:
        return EndpointBackend(spec.location, spec.model, spec.config)
    return LocalBackend(*load_policy(spec.location, device), spec.config)
