"""What a judge replied, and the folder in which an endpoint's replies are kept, so that none is paid twice.

A reply is a file ``ab/abcdef….json`` under the SHA-256 of what was asked: the URL, the model, all parameters,
the seed and the messages. It holds the request's body and the answer, never a header, so no key. Files appear
whole or not at all, and several processes may share a folder.
"""

import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferl.runs.files import naming

FOLDER = "judge_replies"  # in a stage's directory
FORMAT = 1
CUT_OFF = "cut off at its limit (max_tokens)"  # a problem: half a reply holds no verdict
STRAY_S = 3600.0  # a file that was begun so long ago is not being written any more


@dataclass(frozen=True)
class Reply:
    """One reply of a judge.

    Attributes:
        text: what it wrote.
        problem: why nothing can be read from it, in words (``cut off``, ``empty``, …); None: it is whole.
        logprobs: log p in nats of each choice that was asked for, -inf where it is not known to be likely.
        prompt_tokens: of the request; None where the endpoint does not say.
        completion_tokens: of the reply, thoughts included.
    """

    text: str
    problem: str | None = None
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass
class Usage:
    """What replies cost: requests that were answered, and their tokens. ``unmetered`` are those of which the
    endpoint did not say; ``kept`` those that were read from disk (they are among ``replies``)."""

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    kept: int = 0

    def add(self, reply: Reply, was_kept: bool) -> None:
        self.replies += 1
        self.kept += was_kept
        self.unmetered += reply.completion_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0

    def cost(self, prices: tuple[float, float] | None) -> float | None:
        """In the unit of ``prices``, of a million tokens each; None where there are none."""
        if prices is None:
            return None
        return (prices[0] * self.prompt_tokens + prices[1] * self.completion_tokens) / 1e6


@dataclass
class ReplyStore:
    """Replies on disk.

    Args:
        folder: where they lie; made with the first.
        own: nobody else writes into it, so that what was left half-written by a kill is removed.
    """

    folder: Path
    own: bool = False
    _tidied: bool = field(default=False, init=False)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to what has this key; None where it is not there, or damaged: then it is asked again."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and found.get("format") == FORMAT and found.get("key") == key
        answer = found.get("answer") if whole else None
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keeps an answer; it is on the disk when this returns."""
        path = self._path(key)
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"format": FORMAT, "key": key, "asked": asked, "answer": answer}
            # A name of its own: another process may write the same reply at this moment.
            number, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
            try:
                with open(number, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def tidy(self) -> None:
        """Removes what a killed process left half-written."""
        if self._tidied:
            return
        self._tidied = True
        for path in self.folder.glob("*/*.tmp"):
            try:
                stray = self.own or time.time() - path.stat().st_mtime > STRAY_S
                if stray:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process was faster

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def key_of(url: str, body: dict[str, Any], seed: int | None) -> str:
    """SHA-256 of what decides a reply: where it is asked for, the whole request, and the seed."""
    text = json.dumps([url, body, seed], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
