"""What an endpoint of OpenAI's chat API says, in all its dialects: a reply, something about this request,
about the moment, or about every request; and for how long it asks to wait.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from preferl.judging.replies import CUT_OFF, Reply

SHOWN = 300  # characters of a server's words

# finish_reason of OpenAI's API and of what others put through it.
CUT = ("length", "max_tokens", "model_length")
FILTERED = ("content_filter", "safety", "prohibited_content", "recitation", "blocklist", "refusal")
FILTER_CODES = re.compile(r"content_?filter|content_?policy|responsible_?ai|moderation|safety", re.IGNORECASE)
FILTER_WORDS = re.compile(
    r"content (management |usage )?(policy|policies|filter)|filtered due to|was flagged|"
    r"safety (system|filter|polic)|requires moderation|blocked by .{0,40}(filter|polic|safety)",
    re.IGNORECASE,
)
CONTEXT_CODES = re.compile(r"context_length|exceed_context|string_above_max|input_too_long", re.IGNORECASE)
CONTEXT_WORDS = re.compile(
    r"context (length|window|size)|maximum (sequence|prompt|input) length|(prompt|input|request|message)s? "
    r"(is|are|was|too) (too )?(long|large)|too many (input )?tokens|reduce the length|exceeds? the .{0,30}"
    r"(tokens|context)",
    re.IGNORECASE,
)
SPENT = re.compile(
    r"insufficient_quota|insufficient.{0,20}(credit|balance|funds)|billing|payment", re.IGNORECASE
)
BUSY = re.compile(
    r"rate.?limit|too many requests|quota|overload|capacity|try again|unavailable", re.IGNORECASE
)
WRONG = re.compile(
    r"no such model|\bmodel\b.{0,60}(not exist|not found|not available)|unsupported|not supported|unknown|"
    r"unrecognized|unexpected|not permitted|invalid (value|type|model)|extra inputs|missing|api.?key",
    re.IGNORECASE,
)
DURATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hours?)(?![a-z])"
)
UNITS = {"ms": 1e-3, "milli": 1e-3, "h": 3600.0, "m": 60.0, "s": 1.0}  # the first that begins a unit
IN_WORDS = re.compile(
    r"(?:try again|retry|wait|reset)[^.\d]{0,40}((?:\d+(?:\.\d+)?\s*[a-z]*\s*)+)", re.IGNORECASE
)


class PairRefused(Exception):
    """The endpoint answers, but not this request."""


class WrongForAll(Exception):
    """No request of this kind will be answered."""


class SlowDown(Exception):
    """The endpoint asks to come again later: after ``seconds``, where it says so."""

    def __init__(self, words: str, seconds: float | None):
        super().__init__(words)
        self.seconds = seconds


class Broken(SlowDown):
    """No answer came, or one that says that the server failed."""


class NoCompletion(Broken):
    """Status 200, and no chat completion: another service, or a proxy's page."""


class Suspect(Exception):
    """A request was refused: for what it says, or all would be. ``named``: the words name what is wrong with
    all of them, where none was answered yet."""

    def __init__(self, words: str, named: bool = False):
        super().__init__(words)
        self.named = named


@dataclass(frozen=True)
class Complaint:
    """What an endpoint says instead of a reply."""

    status: int
    code: str
    words: str
    parameter: str = ""


def judged(complaint: Complaint, seconds: float | None) -> Exception:
    """What a complaint is about: this request, this moment, or every request."""
    status, code, words = complaint.status, complaint.code, complaint.words
    about = f"answered status {status}: {words}"
    text = f"{code} {words}"
    if status == 401:
        return WrongForAll(about)
    spent = SPENT.search(code) or (SPENT.search(words) and seconds is None)
    if status == 402 or (status in (403, 429) and spent):
        return WrongForAll(f"{about}. The account has no credit left")
    if FILTER_CODES.search(code) or (status < 500 and status != 429 and FILTER_WORDS.search(words)):
        return PairRefused(f"refused by a content filter: {words}")
    too_long = CONTEXT_CODES.search(code) or CONTEXT_WORDS.search(words)
    if status in (400, 413, 422, 500) and (too_long or status == 413):
        return PairRefused(f"too long for the judge's context: {words}")
    if status == 429 and re.search(r"request too large", words, re.IGNORECASE):
        return PairRefused(f"larger than the rate limit of a minute: {words}")
    if status == 429 or (status in (503, 529) and BUSY.search(text)):
        return SlowDown(about, seconds)
    if status in (408, 409, 425) or status >= 500:
        return Broken(about, seconds)
    if status < 400 or status in (404, 405, 410):
        return WrongForAll(about)
    its_texts = complaint.parameter.startswith(("messages", "prompt", "input"))
    named = bool(complaint.parameter or WRONG.search(text)) and not its_texts
    return Suspect(about, named=named and status != 403)


def reply_of(answer: Mapping[str, Any]) -> Reply:
    """A kept answer as a reply, with what is wrong with it."""
    if "refused" in answer:
        return Reply("", answer["words"], None, 0, 0)
    usage = answer.get("usage") or {}
    tokens = [
        n if isinstance(n, int) else None for n in map(usage.get, ("prompt_tokens", "completion_tokens"))
    ]
    text, finish = answer["content"], answer.get("finish_reason")
    problem = None
    if finish in CUT:
        problem = CUT_OFF
    elif finish in FILTERED:
        problem = "cut off by a content filter"
    elif answer.get("refusal"):
        problem = f"the model refused: {answer['refusal'][:SHOWN]}"
    elif not text.strip():
        problem = "empty" + (", all was thoughts; raise max_tokens" if answer.get("thought") else "")
    return Reply(text, problem, None, *tokens)


def top_of(choice: Mapping[str, Any]) -> list[list[Any]] | None:
    """The first token's alternatives with their log-probabilities; None where there are none."""
    try:
        return [[t["token"], t["logprob"]] for t in choice["logprobs"]["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError):
        return None


def complaint_of(response: httpx2.Response) -> Complaint | None:
    """The error in a response, also in one of status 200; None where it holds none."""
    try:
        whole = response.json()
    except (ValueError, RecursionError):
        whole = None
    found: Any = whole
    if isinstance(whole, list) and whole and isinstance(whole[0], dict):  # Google's
        found = whole[0]
    error: Any = found.get("error") if isinstance(found, dict) else None
    if error is None and response.is_success:
        choices = found.get("choices") if isinstance(found, dict) else None
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        error = first.get("error")
        if error is None and isinstance(found, dict) and "choices" not in found and _fails(found):
            error = found  # {"detail": …, "status": 504}
        if error is None:
            return None
    if error is None and isinstance(found, dict):
        error = found  # {"message": …} or {"detail": …}
    status = response.status_code
    if not isinstance(error, dict):
        words = error if isinstance(error, str) else response.text.strip() or response.reason_phrase
        return Complaint(status_in(words) if response.is_success else status, "", words[:SHOWN])
    inner = error.get("innererror") if isinstance(error.get("innererror"), dict) else {}
    codes = [error.get(name) for name in ("code", "type", "status", "status_code")] + [inner.get("code")]
    code = " ".join(str(part) for part in codes if part is not None)
    words = error.get("message") or error.get("detail") or error.get("msg") or json.dumps(error)
    words = words if isinstance(words, str) else json.dumps(words)
    if response.is_success:
        numbers = [int(n) for n in re.findall(r"\b[45]\d\d\b", code)]
        status = numbers[0] if numbers else status_in(f"{code} {words}")
    metadata = error.get("metadata") if isinstance(error.get("metadata"), dict) else {}
    raw = metadata.get("raw")
    words = f"{words} ({raw})" if isinstance(raw, str) and raw != words else words
    for detail in error.get("details") or []:
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        words = f"{words} (retry in {delay})" if delay else words
    parameter = error.get("param")
    return Complaint(status, code, words[:SHOWN].strip(), parameter if isinstance(parameter, str) else "")


def _fails(found: Mapping[str, Any]) -> bool:
    """Whether something that is no reply names the status of an error."""
    return any(re.fullmatch(r"[45]\d\d", str(found.get(name))) for name in ("status", "code", "status_code"))


def status_in(text: str) -> int:
    """The status that an error inside a 200 stands for."""
    if FILTER_CODES.search(text) or FILTER_WORDS.search(text) or CONTEXT_WORDS.search(text):
        return 400
    return 429 if re.search(r"rate.?limit|too many requests|quota", text, re.IGNORECASE) else 503


def seconds_asked(response: httpx2.Response, words: str) -> float | None:
    """For how long a response asks to wait: by ``Retry-After`` (seconds, a date), in its words, or by when a
    limit that is used up is reset; None where it does not say."""
    headers = response.headers
    milliseconds = headers.get("retry-after-ms", "")
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    asked = duration(headers.get("retry-after", ""))
    if asked is not None:
        return asked
    found = IN_WORDS.search(words)
    if found is not None:
        asked = duration(found[1].strip())
        if asked is not None:
            return asked
    resets = []
    for name, text in headers.items():
        if "ratelimit" not in name or "reset" not in name:
            continue
        remaining = headers.get(name.replace("reset", "remaining"))
        seconds = duration(text)
        if seconds is not None and (remaining is None or remaining.strip() in ("0", "0.0")):
            resets.append(seconds)
    return max(resets, default=None)


def duration(text: str) -> float | None:
    """Seconds from now: ``20``, ``1m30s``, ``350ms``, a date of HTTP or ISO, or a time since 1970 in seconds
    or milliseconds; None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        number = float(text)
        if number > 1e11:
            number /= 1000
        return max(number - time.time(), 0.0) if number > 1e8 else number
    parts = DURATION.findall(text.lower())
    if parts and not DURATION.sub("", text.lower()).strip(" ,and"):
        seconds = 0.0
        for number, unit in parts:
            seconds += float(number) * next(
                factor for start, factor in UNITS.items() if unit.startswith(start)
            )
        return seconds
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return None
    return max(when.timestamp() - time.time(), 0.0)
