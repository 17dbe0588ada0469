"""A judge behind an endpoint that speaks OpenAI's chat API, and what becomes of everything it may answer.

An answer is a reply, or it says something about this one request (a content filter, a context that is too
long), about the moment (a rate limit, an overload, a broken connection), or about every request (a wrong key,
model or parameter). The first two count, the third is waited for, the last ends the run at once. Replies are
kept on disk as they come in (``replies.py``), so whatever ends a run loses none that was paid for.
"""

import dataclasses
import json
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from preferl.data.records import Messages
from preferl.judging.answers import (
    FILTERED,
    SHOWN,
    WRONG,
    Broken,
    NoCompletion,
    PairRefused,
    SlowDown,
    Suspect,
    WrongForAll,
    complaint_of,
    judged,
    reply_of,
    seconds_asked,
    top_of,
)
from preferl.judging.replies import Reply, ReplyStore, Usage, key_of
from preferl.options.judging import NOWHERE, JudgeConfig
from preferl.runs import signals
from preferl.runs.errors import Interrupted, UsageError
from preferl.runs.progress import say

TEXTS = ("text", "output_text")  # parts of a reply that are its text
TOP_LOGPROBS = 20  # the most that OpenAI and vLLM return unless told otherwise
MOST_PAUSE_S = 60.0  # where the server does not say for how long
SAID_FROM_S = 5.0  # pauses that are said
SUSPECTS = 3  # requests refused for no known reason, before any reply: the next would be refused too
POLL_S = 0.2
KEY = 16  # characters of a key that tell it from the others of a run
SETTLE_S = 3.0  # for requests that are under way when the rest is given up


class Gate:
    """How many requests are under way: halved where the endpoint asks to slow down, one more after as many
    replies as there are places, and none before a pause is over.

    Args:
        most: requests at a time.
        config: backoff and patience.
        stop: set where nobody waits any more.
    """

    def __init__(self, most: int, config: JudgeConfig, stop: threading.Event):
        self.limit, self.most, self.config, self.stop = most, most, config, stop
        self.under_way, self.replies, self.since_growth = 0, 0, 0
        self.pauses = 0  # one after the other, without a reply between them
        self.not_before = self.last_cut = 0.0
        self.refused_since: float | None = None
        self._changed = threading.Condition()

    def enter(self) -> float:
        """Waits for a place; returns when it was given."""
        with self._changed:
            while not self.stop.is_set():
                now = time.monotonic()
                if self.under_way < self.limit and now >= self.not_before:
                    break
                self._changed.wait(min(POLL_S, max(self.not_before - now, 0.01)))
            self.under_way += 1
            return time.monotonic()

    def leave(self) -> None:
        with self._changed:
            self.under_way -= 1
            self._changed.notify_all()

    def replied(self) -> None:
        with self._changed:
            self.replies += 1
            self.pauses, self.refused_since = 0, None
            self.since_growth += 1
            if self.since_growth >= self.limit and self.limit < self.most:
                self.limit, self.since_growth = self.limit + 1, 0

    def slow(self, entered: float, asked: float | None) -> tuple[float, float, bool]:
        """Fewer requests at a time, and a pause for all.

        Args:
            entered: when the request that was refused got its place.
            asked: the pause that the endpoint asks for, in seconds.

        Returns:
            The seconds to wait from now on, for how long no reply has come by then, and whether this is the
            first to hear of it: requests that were under way together are refused together.
        """
        with self._changed:
            now = time.monotonic()
            if self.refused_since is None:
                self.refused_since = now
            first = entered >= self.last_cut
            if first:
                self.limit, self.since_growth, self.last_cut = max(1, self.limit // 2), 0, now
                self.pauses += 1
            pause = asked
            if pause is None:
                pause = min(self.config.backoff * 2 ** (self.pauses - 1), MOST_PAUSE_S)
            self.not_before = max(self.not_before, now + pause)
            return self.not_before - now, self.not_before - self.refused_since, first


class EndpointBackend:
    """An OpenAI-compatible chat endpoint: ``POST <base URL>/chat/completions``.

    Args:
        base_url: as ``http://localhost:8000/v1``.
        model: its name there.
        config: how it is asked.

    Raises:
        UsageError: the key's variable is not set, the endpoint refuses or keeps failing, or its answer is
            not what the protocol says. Messages name URL, status and the server's words, never the key.
    """

    def __init__(self, base_url: str, model: str, config: JudgeConfig):
        parts = urllib.parse.urlsplit(base_url)
        self.url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
        self.model, self.config = model, config
        named = config.replies not in (None, NOWHERE)
        self.store = ReplyStore(Path(str(config.replies)).expanduser()) if named else None
        self.usage = Usage()
        self.counted: dict[str, None] = {}  # beginnings of keys of replies that are in ``usage``, each once
        self.told = 0  # how many of them ``keys`` has told
        self.answered: set[tuple[str, ...]] = set()  # parameters of requests that were answered
        self._key = None
        if config.api_key_env is not None:
            self._key = os.environ.get(config.api_key_env, "").strip()
            if not self._key or not (self._key.isascii() and self._key.isprintable()):
                raise UsageError(
                    f"judge: the environment variable {config.api_key_env} holds no usable API key; set it"
                )

    def complete(self, messages: list[Messages], max_tokens: int, temperature: float) -> list[Reply]:
        usual = {self.config.token_limit_field: max_tokens, "temperature": temperature}
        if temperature > 0 and self.config.seed is not None:
            usual["seed"] = self.config.seed
        return [reply_of(answer) for answer in self._ask_all(messages, usual)]

    def choice_logprobs(self, messages: list[Messages], choices: Sequence[str]) -> list[Reply]:
        """From the first token's ``top_logprobs``: a choice must be one token, spaces around it aside."""
        usual = {self.config.token_limit_field: 1, "temperature": 1.0}
        usual |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        replies = []
        for answer in self._ask_all(messages, usual):
            reply = reply_of(answer)
            if answer.get("finish_reason") in FILTERED or "refused" in answer:
                replies.append(reply)
                continue
            try:
                known = [(str(token).strip(), float(logprob)) for token, logprob in answer["top"]]
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"judge: {self.url} returned no top_logprobs for model '{self.model}'; "
                    f"use mode=verdict, or a server that returns log-probabilities"
                ) from error
            row = []
            for text in choices:
                # With and without a space before it are two tokens and one answer.
                found = [logp for token, logp in known if token == text]
                row.append(float(np.logaddexp.reduce(found)) if found else -np.inf)
            replies.append(Reply(reply.text, None, tuple(row), reply.prompt_tokens, reply.completion_tokens))
        return replies

    # ------------------------------------------------------------------------------------- many requests

    def _ask_all(self, messages: list[Messages], usual: dict[str, Any]) -> list[dict[str, Any]]:
        """An answer to every chat, in order; what is kept, or asked twice here, is not asked again.

        Raises:
            UsageError: the endpoint will answer none of them, or no more.
            Interrupted: a signal asks to stop; the replies so far are kept.
        """
        bodies = [self.body(chat, usual) for chat in messages]
        keys = [key_of(self.url, body, self.config.seed) for body in bodies]
        answers: dict[str, dict[str, Any]] = {}
        missing: dict[str, dict[str, Any]] = {}
        if self.store is not None:
            self.store.tidy()
        for key, body in zip(keys, bodies, strict=True):
            if key in answers or key in missing:
                continue
            kept = self.store.get(key) if self.store is not None else None
            if kept is None:
                missing[key] = body
            else:
                answers[key] = kept
        for key, answer in answers.items():
            self.count(key, answer, was_kept=True)
        if answers:
            self.answered |= {tuple(sorted(body)) for body in bodies}
        if missing:
            answers |= Asking(self, missing).run()
        return [answers[key] for key in keys]

    def body(self, chat: Messages, usual: dict[str, Any]) -> dict[str, Any]:
        """A request: the usual parameters, with those of the options beside or instead of them."""
        body = {"model": self.model, "messages": chat, **usual, **self.config.parameters}
        return {name: value for name, value in body.items() if value is not None}

    def keep(self, key: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        if self.store is not None:
            self.store.put(key, body, answer)

    def count(self, key: str, answer: dict[str, Any], was_kept: bool) -> None:
        """Adds a reply to ``usage``, unless it was asked for before."""
        if key[:KEY] not in self.counted:
            self.counted[key[:KEY]] = None
            self.usage.add(reply_of(answer), was_kept)

    def keys(self, whole: bool) -> list[str]:
        """What is in ``usage``: all of it, or what came to it since the last time."""
        found = list(self.counted)[0 if whole else self.told :]
        self.told = len(self.counted)
        return found

    def restore_keys(self, keys: Sequence[str]) -> None:
        """Adds what ``keys`` told in an earlier process."""
        self.counted |= dict.fromkeys(keys)
        self.told = len(self.counted)

    def shown(self, text: str) -> str:
        """A server's words, without the key that it may have repeated."""
        return text.replace(self._key, "***") if self._key else text

    # -------------------------------------------------------------------------------------- one request

    def client(self) -> httpx2.Client:
        """A redirect is not followed: it would carry the key to another host."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx2.Client(
            headers=headers,
            timeout=self.config.timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=self.config.parallel),
        )

    def post(self, client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
        """One attempt.

        Returns:
            The answer as it is kept: ``content``, ``finish_reason``, ``refusal``, ``top`` and ``usage``.

        Raises:
            PairRefused, WrongForAll, SlowDown, Broken, NoCompletion, Suspect: as their names say.
        """
        try:
            response = client.post(self.url, content=json.dumps(body))
        except httpx2.TransportError as error:
            words = f"gave no answer: {str(error) or type(error).__name__}"
            if isinstance(error, httpx2.TimeoutException):
                words = f"gave no answer: timed out after {self.config.timeout:g} s"
            raise Broken(words, None) from error
        except httpx2.HTTPError as error:
            raise Broken(f"gave no readable answer: {error or type(error).__name__}", None) from error
        complaint = complaint_of(response)
        if complaint is not None:
            complaint = dataclasses.replace(complaint, words=self.shown(complaint.words))
            raise judged(complaint, seconds_asked(response, complaint.words))
        return self.answer_in(response)

    def answer_in(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            whole = response.json()
            if isinstance(whole, dict) and not whole.get("choices", True):
                words = f"but with no chat completion: {response.text[:200]!r}"
                raise Broken(f"answered status {response.status_code}, {words}", None)
            choice = whole["choices"][0]
            message = choice["message"]
            content = message.get("content")
            finish = choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise NoCompletion(
                f"answered status {response.status_code}, but with no chat completion: "
                f"{response.text[:200]!r}; is the base URL right (…/v1)?",
                None,
            ) from error
        if isinstance(content, list):  # parts, of which the texts are the reply, and others are thoughts
            parts = [part for part in content if isinstance(part, dict)]
            content = "".join(part.get("text") or "" for part in parts if part.get("type", "text") in TEXTS)
        usage = whole.get("usage") if isinstance(whole.get("usage"), dict) else {}
        answer = {
            "content": content if isinstance(content, str) else "",
            "finish_reason": finish.lower() if isinstance(finish, str) else None,
            "usage": {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")},
        }
        if isinstance(message.get("refusal"), str):
            answer["refusal"] = message["refusal"]
        if message.get("reasoning_content") or message.get("reasoning"):
            answer["thought"] = True
        top = top_of(choice)
        return answer | ({"top": top} if top is not None else {})

    def failure(self, words: str) -> UsageError:
        """The error that ends the run, with what to do."""
        kept = ""
        if self.store is not None and self.usage.replies:
            kept = f" {self.usage.replies} replies are kept: the same command asks only for the rest."
        parameter = self._refused_parameter(words)
        if parameter is not None:
            return UsageError(f"judge: {self.url} {words}; {parameter}{kept}")
        return UsageError(
            f"judge: {self.url} {words}; check the URL, that the server runs and serves model "
            f"'{self.model}', and the key (api_key_env={self.config.api_key_env}).{kept}"
        )

    def _refused_parameter(self, words: str) -> str | None:
        """What to write where the server names a parameter that it does not take."""
        if not WRONG.search(words) or not re.search(r"status (400|422)", words):
            return None
        limit = self.config.token_limit_field
        if limit != "max_completion_tokens" and "max_completion_tokens" in words:
            return (
                "it wants the reply's limit under another name: add token_limit_field=max_completion_tokens "
                f"to the judge, as in judge:…#{self.model}?token_limit_field=max_completion_tokens"
            )
        if self.config.mode == "logprob" and re.search(r"\b(top_)?logprobs\b", words):
            return (
                "it tells no log-probabilities, which mode=logprob needs; use mode=verdict, or another server"
            )
        for name in [limit, "temperature", "seed", *self.config.parameters]:
            if re.search(rf"\b{re.escape(name)}\b", words):
                return (
                    f"leave the parameter out: --judge_parameters '{{\"{name}\": null}}' "
                    f"(or give it another value there), or in the judge's own text "
                    f'?parameters={{"{name}":null}}'
                )
        return None


class Asking:
    """All requests of one call, by threads; the first that no other could follow ends them."""

    def __init__(self, backend: EndpointBackend, bodies: Mapping[str, dict[str, Any]]):
        self.backend, self.bodies = backend, bodies
        self.waiting = list(reversed(bodies.items()))
        self.answers: dict[str, dict[str, Any]] = {}
        self.refused = 0  # for a reason that may be this request's or everybody's
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self.gate = Gate(backend.config.parallel, backend.config, self.stop)
        self._lock = threading.Lock()
        self._news = threading.Event()

    def run(self) -> dict[str, dict[str, Any]]:
        """Answers by key."""
        with self.backend.client() as client:
            # Daemons: whoever is told to stop does not wait for a server that says nothing.
            for _ in range(min(self.backend.config.parallel, len(self.bodies))):
                threading.Thread(target=self._work, args=(client,), daemon=True).start()
            try:
                while self.error is None and len(self.answers) < len(self.bodies):
                    self._news.wait(POLL_S)
                    self._news.clear()
                    if signals.pending() and self.backend.store is not None:
                        raise Interrupted(f"interrupted while a judge was asked; {signals.GOES_ON}")
            finally:
                self.stop.set()
                # What was sent is paid: its reply is worth a moment, whatever ends the rest.
                end = time.monotonic() + SETTLE_S
                while self.gate.under_way and time.monotonic() < end:
                    time.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.answers

    def _work(self, client: httpx2.Client) -> None:
        while not self.stop.is_set():
            with self._lock:
                if not self.waiting:
                    return
                key, body = self.waiting.pop()
            try:
                answer = self._answer(client, body)
                if answer is None:
                    return
                # Also after a stop: it was paid for.
                if answer.get("refused") in (None, "filter"):
                    self.backend.keep(key, body, answer)
                with self._lock:
                    self.answers[key] = answer
                    self.backend.count(key, answer, was_kept=False)
            except BaseException as error:  # noqa: BLE001 - it is raised again where ``run`` waits
                self._fail(error)
            self._news.set()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
        self.stop.set()
        self._news.set()

    def _answer(self, client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request, as often as it has to be sent; None where nobody waits any more.

        Raises:
            UsageError: nothing more can be expected of the endpoint.
        """
        backend, config = self.backend, self.backend.config
        parameters, attempts, replies_before = tuple(sorted(body)), 0, self.gate.replies
        while not self.stop.is_set():
            entered = self.gate.enter()
            try:
                if self.stop.is_set():
                    return None
                answer = backend.post(client, body)
            except PairRefused as error:
                self.gate.replied()
                kind = "filter" if "content filter" in str(error) else "other"
                return {"refused": kind, "words": str(error)}
            except WrongForAll as error:
                raise backend.failure(backend.shown(str(error))) from error
            except Suspect as error:
                # Where others are answered, this one is refused for what it says.
                proven = parameters in backend.answered
                if proven or not (error.named or self._are_all_refused()):
                    return {"refused": "other", "words": str(error)}
                raise backend.failure(str(error)) from error
            except Broken as error:
                attempts += 1
                words = backend.shown(str(error))
                if isinstance(error, NoCompletion) and parameters not in backend.answered:
                    raise backend.failure(words) from error
                if attempts > config.retries:
                    if self.gate.replies > replies_before:
                        return {"refused": "other", "words": f"{words} ({attempts} attempts)"}
                    raise backend.failure(f"{words} ({attempts} attempts)") from error
                pause = min(config.backoff * 2 ** (attempts - 1), MOST_PAUSE_S)
                if error.seconds is not None:
                    pause = max(pause, min(error.seconds, config.patience))
                self.stop.wait(pause)
            except SlowDown as error:
                self._wait(error, entered)
            else:
                self.gate.replied()
                backend.answered.add(parameters)
                return answer
            finally:
                self.gate.leave()
        return None

    def _wait(self, error: SlowDown, entered: float) -> None:
        """Makes all wait; what is left is waited for in ``Gate.enter``."""
        config, words = self.backend.config, str(error)
        pause, without, first = self.gate.slow(entered, error.seconds)
        if without > config.patience:
            raise self.backend.failure(
                f"{words}; it asks to wait for {pause:.0f} s more, and no reply would have come for "
                f"{without:.0f} s by then, longer than patience={config.patience:g}"
            ) from error
        if first and pause >= SAID_FROM_S:
            say(
                f"judge: {self.backend.url} {words[:SHOWN]}; waits {pause:.0f} s, then {self.gate.limit} "
                f"requests at a time"
            )

    def _are_all_refused(self) -> bool:
        """Whether so many requests were refused, and none answered, that the others would be too."""
        with self._lock:
            self.refused += 1
            return self.refused >= min(SUSPECTS, len(self.bodies))
