"""Everything that an endpoint may answer instead of a verdict, from a real server on this machine."""

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import numpy as np
import pytest

from judge_server import QUICK, Body, more_good, parts_of, reply, serving
from preferl.data.records import DataError
from preferl.judging.answers import complaint_of, duration, seconds_asked
from preferl.judging.judges import JudgeCounts
from preferl.judging.replies import Usage
from preferl.runs.errors import UsageError


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def compare(judge: Any, pairs: int = 4) -> Any:
    """Pairs of which the first response is always the better one, "bad 0" against "good 0"."""
    numbers = range(pairs)
    good, bad = [f"good {i}" for i in numbers], [f"bad {i}" for i in numbers]
    return judge([f"prompt {i}" for i in numbers], good, bad, np.random.default_rng(0))


def about(number: int, answer: Any) -> Any:
    """A server that says ``answer`` to whatever is asked about one prompt, and judges the others."""

    def behaviour(body: Body, n: int) -> Any:
        asked = parts_of(body["messages"][0]["content"])["PROMPT"] == f"prompt {number}"
        return answer if asked else more_good(body, n)

    return behaviour


AZURE = error(
    "The response was filtered due to the prompt triggering our content management policy.",
    code="content_filter",
    param="prompt",
    innererror={"code": "ResponsibleAIPolicyViolation"},
)
OF_ONE_PAIR = {
    "Azure's filter": ((400, {}, AZURE), "refused"),
    "a policy": ((400, {}, error("no", code="content_policy_violation")), "refused"),
    "OpenAI's flag": (
        (400, {}, error("Invalid prompt: your prompt was flagged", code="invalid_prompt")),
        "refused",
    ),
    "moderation": (
        (403, {}, error("Your chosen model requires moderation and your input was flagged")),
        "refused",
    ),
    "a filter in a 200": ((200, {}, error("blocked", code="content_filter")), "refused"),
    "a filter that cuts": (reply("A is", "content_filter"), "cut_off"),
    "a refusal": ((200, {}, {"choices": [{"message": {"content": None, "refusal": "I can't."}}]}), "refused"),
    "OpenAI's context": (
        (400, {}, error("Please reduce the length.", code="context_length_exceeded")),
        "refused",
    ),
    "vLLM's context": (
        (400, {}, {"object": "error", "message": "maximum context length is 4096 tokens"}),
        "refused",
    ),
    "llama.cpp's context": ((500, {}, error("the request exceeds the available context size")), "refused"),
    "too large": ((413, {}, b"<html>Request Entity Too Large</html>"), "refused"),
    "larger than a minute": ((429, {}, error("Request too large on tokens per min (TPM)")), "refused"),
    "nothing": (reply(""), "empty"),
    "null": (reply(None), "empty"),
    "spaces": (reply(" \n\n"), "empty"),
    "only thoughts": (
        (200, {}, {"choices": [{"message": {"content": "", "reasoning_content": "Hm. VERDICT: A"}}]}),
        "empty",
    ),
    "legal reasons": ((451, {}, b"Unavailable For Legal Reasons"), "refused"),
    "no choices": ((200, {}, {"choices": []}), "refused"),
    "cut off": (reply("VERDICT: A", "length"), "cut_off"),
    "no verdict": (reply("Both are fine, I would say."), None),
}


@pytest.mark.parametrize(("answer", "kind"), OF_ONE_PAIR.values(), ids=OF_ONE_PAIR.keys())
def test_what_is_wrong_with_one_pair_counts_against_that_pair(answer, kind):
    with serving(about(2, answer)) as server:
        judge = server.judge(options="?unparsable=skip")
        judged = compare(judge)
        assert judged.kept_N.tolist() == [True, True, False, True]
        assert judged.probability_N[judged.kept_N].tolist() == [1.0] * 3
        expected = {"judged": 4, "asked": 8, "unparsable": 2, "dropped": 1, "first": 3, "second": 3}
        assert judged.counts == JudgeCounts(**expected, **({kind: 2} if kind else {}))
        assert judge.examples[0]["prompt"] == "prompt 2"
        with pytest.raises(
            DataError, match=r"1 of 4 got no readable verdict; for example: .+unparsable=skip"
        ):
            compare(server.judge())


def test_a_refusal_for_an_unknown_reason_counts_where_others_are_answered():
    with serving(about(2, (400, {}, error("no surrogates allowed")))) as server:
        judged = compare(server.judge(options="?unparsable=skip&parallel=1"))
        assert judged.kept_N.tolist() == [True, True, False, True]
    with serving(about(0, (422, {}, {"detail": "hm"}))) as server:  # also where it comes first
        judged = compare(server.judge(options="?unparsable=skip&parallel=1"))
        assert judged.kept_N.tolist() == [False, True, True, True]
    with serving(lambda body, n: (400, {}, error("hm"))) as server:
        with pytest.raises(UsageError, match="status 400: hm; check the URL"):
            compare(server.judge(options="?unparsable=skip&parallel=1"), 20)
        assert len(server.bodies) == 3


OF_ALL = {
    "a wrong key": ((401, {}, error("Incorrect API key")), "status 401: Incorrect API key; check .* the key"),
    "a wrong model": (
        (404, {}, error("The model `m` does not exist")),
        "status 404: The model .*serves model",
    ),
    "no credit": ((429, {}, error("You exceeded your quota", code="insufficient_quota")), "no credit left"),
    "no payment": ((402, {}, error("Insufficient credits")), "no credit left"),
    "no credit, in a 200": ((200, {}, error("Insufficient credits", code=402)), "no credit left"),
    "a page": ((200, {}, b"<html>Welcome</html>"), "no chat completion: '<html>Welcome"),
    "a redirect": ((301, {"Location": "https://elsewhere/"}, b""), "status 301"),
    "forbidden": ((403, {}, error("Country not supported")), "status 403"),
    "a temperature": (
        (400, {}, error("Unsupported value: 'temperature' does not support 0.0", param="temperature")),
        r"""leave the parameter out: --judge_parameters '{"temperature": null}'""",
    ),
    "the limit's name": (
        (
            400,
            {},
            error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                code="unsupported_parameter",
            ),
        ),
        r"add token_limit_field=max_completion_tokens to the judge",
    ),
    "extra": (
        (
            422,
            {},
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs"}]},
        ),
        r"""--judge_parameters '{"temperature": null}'""",
    ),
}


@pytest.mark.parametrize(("answer", "says"), OF_ALL.values(), ids=OF_ALL.keys())
def test_what_is_wrong_with_every_pair_ends_the_run_at_once(answer, says):
    with serving(lambda body, n: answer) as server:
        with pytest.raises(UsageError, match=says):
            compare(server.judge(options="?unparsable=skip&parallel=2"), 50)
        assert len(server.bodies) <= 4


def test_a_parameter_that_is_refused_is_left_out_as_the_error_says_and_others_are_added():
    def reasoning_model(body: Body, n: int) -> Any:
        for name in ("temperature", "max_tokens"):
            if name in body:
                return 400, {}, error(f"Unsupported parameter: '{name}' is not supported.", param=name)
        return more_good(body, n)

    with serving(reasoning_model) as server:
        options = ""
        for _ in range(2):
            with pytest.raises(UsageError) as caught:
                compare(server.judge(options=f"?{options}"))
            told = re.search(r"\?(parameters=\S+)$", str(caught.value))[1]
            options += ("&" if options else "") + told
        assert compare(server.judge(options=f"?{options}")).kept_N.all()
        server.bodies.clear()
        added = '?parameters={"temperature":null,"max_tokens":null,"reasoning_effort":"low","top_p":0.5}'
        compare(server.judge(options=added))
        assert {key for body in server.bodies for key in body} == {
            "model",
            "messages",
            "reasoning_effort",
            "top_p",
        }
        assert compare(server.judge(options="?temperature=null&max_tokens=null")).kept_N.all()


def test_the_seed_goes_along_where_the_reply_is_drawn():
    with serving(more_good) as server:
        compare(server.judge(options="?seed=7&temperature=0.5"))
        assert {body["seed"] for body in server.bodies} == {7}
        server.bodies.clear()
        compare(server.judge(options="?seed=7"))
        assert all("seed" not in body for body in server.bodies)


# Waiting


def quota(per_window: int, window: float, refusal: Any) -> Any:
    """A server that answers so many requests in each window of time."""
    lock, opened, used = threading.Lock(), [time.monotonic()], [0]

    def behaviour(body: Body, n: int) -> Any:
        with lock:
            if time.monotonic() - opened[0] > window:
                opened[0], used[0] = time.monotonic(), 0
            used[0] += 1
            if used[0] > per_window:
                return refusal
        return more_good(body, n)

    return behaviour


BUSY = {
    "plain": (429, {}, error("Rate limit reached")),
    "seconds": (429, {"Retry-After": "0.2"}, error("Rate limit reached")),
    "in words": (429, {}, error("Rate limit reached. Please try again in 200ms. Visit …")),
    "in a 200": (200, {}, error("Rate limit exceeded", code=429)),
    "without the word error": (200, {}, {"detail": "Too many requests", "status": 429}),
    "in a choice": (200, {}, {"choices": [{"error": {"code": 429, "message": "too many requests"}}]}),
    "overloaded": (503, {}, error("The engine is currently overloaded, please try again later")),
    "Anthropic's": (529, {}, error("Overloaded", type="overloaded_error")),
}


@pytest.mark.parametrize("refusal", BUSY.values(), ids=BUSY.keys())
def test_a_quota_is_waited_for(refusal):
    """More refusals than ``retries``, and still every pair is judged, once."""
    with serving(quota(6, 0.4, refusal)) as server:
        judged = compare(server.judge(options="?retries=1&backoff=0.1"), 10)
        assert judged.probability_N.tolist() == [1.0] * 10
        assert judged.counts.unparsable == 0
        assert 20 < len(server.bodies) < 80  # it asks no faster than it is answered


def test_requests_at_a_time_fall_and_climb_again():
    active: list[int] = []

    def behaviour(body: Body, n: int) -> Any:
        active.append(server.active)
        time.sleep(0.02)
        return (429, {"Retry-After": "0"}, error("slow down")) if 8 <= n < 16 else more_good(body, n)

    with serving(behaviour) as server:
        assert compare(server.judge(options="?parallel=8"), 60).kept_N.all()
    assert max(active[:8]) > 4
    assert min(active[18:30]) <= 4
    assert max(active[-40:]) > 6


def test_patience_ends_and_says_what_was_asked_for():
    with serving(lambda body, n: (429, {"Retry-After": "3600"}, error("come tomorrow"))) as server:
        began = time.monotonic()
        with pytest.raises(
            UsageError, match=r"429: come tomorrow; it asks to wait for 3600 s more.*patience=900"
        ):
            compare(server.judge())
        assert time.monotonic() - began < 5
    with (
        serving(lambda body, n: (429, {}, error("busy"))) as server,
        pytest.raises(UsageError, match=r"longer than patience=0\.5"),
    ):
        compare(server.judge(options="?patience=0.5&backoff=0.1"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20", 20),
        ("0.5", 0.5),
        ("20s", 20),
        ("1m30s", 90),
        ("6m0s", 360),
        ("350ms", 0.35),
        ("2 minutes", 120),
        ("1h", 3600),
        ("1m2.5s", 62.5),
        ("200 milliseconds", 0.2),
        ("soon", None),
        ("", None),
        ("20 before", None),
    ],
)
def test_a_time_to_wait_is_read_in_every_form(text, seconds):
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_dates_are_times_to_wait():
    later = datetime.now(UTC) + timedelta(seconds=60)
    for text in (
        format_datetime(later, usegmt=True),
        later.isoformat(),
        str(later.timestamp()),
        f"{later.timestamp() * 1000:.0f}",
    ):
        assert duration(text) == pytest.approx(60, abs=2)
    assert duration("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, error("try again in 3s"), 7),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, error("x"), 1.5),
        ({}, error("Please try again in 1m2.3s. Visit https://x"), 62.3),
        ({}, error("Rate limit. Retry after 30 seconds."), 30),
        ({}, error("wait 20 seconds before"), 20),
        ({}, error("quota", details=[{"@type": "RetryInfo", "retryDelay": "17s"}]), 17),
        ({"x-ratelimit-reset-requests": "1m30s", "x-ratelimit-reset-tokens": "2s"}, error("x"), 90),
        (
            {
                "x-ratelimit-reset-requests": "1m30s",
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-tokens": "2s",
                "x-ratelimit-remaining-tokens": "0",
            },
            error("x"),
            2,
        ),
        ({"Retry-After": "soon"}, error("x"), None),
        ({}, error("x"), None),
    ],
)
def test_the_time_to_wait_is_found_in_headers_and_words(headers, body, seconds):
    response = httpx2.Response(429, headers=headers, content=json.dumps(body).encode())
    found = seconds_asked(response, complaint_of(response).words)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_one_request_that_always_fails_counts_where_others_are_answered():
    with serving(about(1, (500, {}, b"CUDA error"))) as server:
        judged = compare(server.judge(options="?unparsable=skip&retries=1"))
        assert judged.kept_N.tolist() == [True, False, True, True]
        assert judged.counts.refused == 2


# Too much that is unusable


def test_more_unusable_replies_than_a_share_end_the_run():
    def mostly_silent(body: Body, n: int) -> Any:
        return reply("I cannot decide.") if n % 4 else more_good(body, n)

    with serving(mostly_silent) as server:
        with pytest.raises(DataError) as caught:
            compare(server.judge(options="?unparsable=skip"), 2000)
        assert 200 < len(server.bodies) < 1000  # far from the 4,000 of the whole
        text = str(caught.value)
        assert "more than max_unusable=0.5" in text
        assert "'I cannot decide.'" in text
        compare(server.judge(options="?unparsable=skip&max_unusable=0.9"), 100)


# What it costs


def test_tokens_and_cost_are_counted_from_the_replies():
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}

    def metered(body: Body, n: int) -> Any:
        status, headers, answer = more_good(body, n)
        return status, headers, answer | ({"usage": usage} if n else {})

    with serving(metered) as server:
        judge = server.judge(options="?prices=2.5,10")
        compare(judge)
    assert judge.backend.usage == Usage(replies=8, prompt_tokens=700, completion_tokens=49, unmetered=1)
    report = judge.report()
    assert (report["prompt_tokens"], report["without_token_counts"]) == (700, 1)
    assert report["cost"] == pytest.approx((2.5 * 700 + 10 * 49) / 1e6, abs=1e-6)


def test_a_secret_among_the_parameters_is_refused():
    with serving(more_good) as server, pytest.raises(UsageError, match="api_key_env"):
        server.judge(options='?parameters={"api_key":"sk-1"}')
    with serving(more_good) as server, pytest.raises(UsageError, match="no JSON"):
        server.judge(options="?parameters={temperature}")


def test_parts_of_a_reply_are_its_text():
    def in_parts(body: Body, n: int) -> Any:
        text = more_good(body, n)[2]["choices"][0]["message"]["content"]
        return 200, {}, {"choices": [{"message": {"content": [{"type": "text", "text": text}]}}]}

    with serving(in_parts) as server:
        assert compare(server.judge(config=QUICK)).kept_N.all()


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "redacted_thinking"])
def test_thoughts_among_the_parts_are_none_of_it(kind):
    def in_parts(body: Body, n: int) -> Any:
        text = more_good(body, n)[2]["choices"][0]["message"]["content"]
        other = {"A": "VERDICT: B", "B": "VERDICT: A"}[text.strip()[-1]]
        parts = [{"type": "text", "text": text}, {"type": kind, "text": f"\n{other}"}]
        return 200, {}, {"choices": [{"message": {"content": parts}}]}

    with serving(in_parts) as server:
        assert compare(server.judge(config=QUICK)).probability_N.tolist() == [1.0] * 4


def test_a_server_that_begins_without_choices_is_asked_again():
    with serving(lambda body, n: (200, {}, {"choices": []}) if n < 3 else more_good(body, n)) as server:
        assert compare(server.judge(config=QUICK)).probability_N.tolist() == [1.0] * 4


def test_a_model_without_log_probabilities_is_asked_for_a_verdict_instead():
    def refuses(body: Body, n: int) -> Any:
        if "logprobs" in body:
            return 400, {}, error("logprobs is not supported with this model", param="logprobs")
        return more_good(body, n)

    with serving(refuses) as server:
        with pytest.raises(UsageError, match="use mode=verdict"):
            compare(server.judge(options="?mode=logprob"))
        assert compare(server.judge(options="?mode=verdict")).kept_N.all()


def test_a_reply_that_ends_in_its_thoughts_says_so():
    with serving(about(2, reply("<think>Hm.\nVERDICT: A"))) as server:
        judge = server.judge(options="?unparsable=skip")
        compare(judge)
        assert "it ends in its <think>" in judge.examples[0]["reply"]
