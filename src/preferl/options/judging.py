"""What a judge is and how it is asked: its options, and the text that names one.

judge:runs/sft                                            a causal model of a directory or the Hub
judge:http://localhost:8000/v1#my-model                   a model behind an OpenAI-compatible endpoint
judge:http://localhost:8000/v1#my-model?aspect=concision  either, with fields of `JudgeConfig`
majority(judge:http://…#a, judge:http://…#b)              several as a jury; or mean(…)
"""

import dataclasses
import difflib
import json
import re
import typing
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from preferl.runs.errors import UsageError
from preferl.runs.ranges import (
    Count,
    ErrorRate,
    Finite,
    Natural,
    NonNegative,
    Range,
    RangedOptions,
    Seed,
    Share,
    check_ranges,
)

PREFIX = "judge:"
JURY = re.compile(rf"(majority|mean)\(\s*({PREFIX}.+)\)", re.DOTALL)
NEXT_JUDGE = re.compile(rf",\s*(?={PREFIX})")  # a comma may stand inside of criteria
ASPECTS = {
    "helpfulness": "it does what the prompt asks, completely and correctly, and is useful to who asked",
    "correctness": "what it states is true and its reasoning holds",
    "concision": "it says what is needed in few words, without repetition, preamble or filler",
    "coherence": "it is clear, well ordered and hangs together",
    "honesty": "it claims no more than it can know, admits doubt, and does not flatter",
    "harmlessness": "it helps nobody to do harm, and is neither abusive nor needlessly preachy",
}
NOWHERE = "none"  # as the folder of replies
LEAVE_OUT = "null"  # as an option's value: the parameter is not sent
SECRET = re.compile(r"api.?key|authorization|password|secret", re.IGNORECASE)


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
    ask: str | None = None
    """``pairwise``: which of two responses is better; ``pointwise``: how good each is; None: what the place
    is used to."""
    mode: str = "verdict"
    """``verdict``: a written verdict; ``logprob``: the probability of the answer."""
    critique_first: bool = False
    """Asks for a short critique before the verdict."""
    label_mode: str = "stochastic"
    """Pairs: ``stochastic`` draws the label from the probability, ``deterministic`` takes the likelier."""
    unparsable: str = "error"
    """Nothing readable on a pair or response: ``error``, or ``skip`` (left out and counted)."""
    max_unusable: Share = 0.5
    """Largest share of requests without a readable answer, from the 20th on; more ends the run."""
    scale_low: int = 1
    """Worst score of pointwise judging."""
    scale_high: int = 10
    """Best score of pointwise judging."""
    max_tokens: Count = 512
    """Longest reply; one that reaches it is unparsable."""
    temperature: NonNegative = 0.0
    """Of the reply; 0 is greedy."""
    seed: Seed | None = None
    """Makes the delimiters' codes and draws repeatable; sent to an endpoint where the temperature is above 0.
    None: fresh codes."""
    batch_size: Count = 16
    """Rows of one forward pass of a local judge."""
    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key; None: no key is sent."""
    timeout: Annotated[float, Range(1e-3)] = 60.0
    """Seconds without a byte from the endpoint before an attempt counts as failed."""
    retries: Natural = 4
    """Further attempts after status 408, 5xx or a broken connection."""
    backoff: NonNegative = 1.0
    """Seconds before the second attempt; then doubled, or what the server asks for."""
    patience: NonNegative = 900.0
    """Seconds without any reply for which an endpoint's rate limit is waited for."""
    parallel: Count = 8
    """Most requests to the endpoint at a time; fewer while it asks to slow down."""
    token_limit_field: str = "max_tokens"
    """The endpoint's name of the reply limit; OpenAI's newer models want ``max_completion_tokens``."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of every request beside or instead of the usual ones; None leaves one out."""
    prices: tuple[float, float] | None = None
    """Price of a million tokens of the requests and of the replies."""
    replies: str | None = None
    """Folder in which an endpoint's replies are kept; None: the stage's own, ``none``: nowhere."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.criteria is None and self.aspect not in ASPECTS:
            raise UsageError(
                f"judge: aspect '{self.aspect}' has no stock criteria; use {', '.join(ASPECTS)}, or say in "
                f"'criteria' what a good response is"
            )
        words: dict[str, tuple[str | None, ...]] = {
            "ask": (None, "pairwise", "pointwise"),
            "mode": ("verdict", "logprob"),
            "label_mode": ("stochastic", "deterministic"),
            "unparsable": ("error", "skip"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                known = " or ".join(word for word in allowed if word)
                raise UsageError(f"judge: {name} is '{getattr(self, name)}'; use {known}")
        if self.scale_high <= self.scale_low:
            raise UsageError(
                f"judge: scale_high is {self.scale_high}; it must be above scale_low, {self.scale_low}"
            )
        for name in self.parameters:
            if SECRET.search(name):
                raise UsageError(
                    f"judge: the parameter '{name}' looks like a key, which would end up in files; put the "
                    f"key into an environment variable and name it in api_key_env"
                )
        if self.prices is not None and (len(self.prices) != 2 or min(self.prices) < 0):
            raise UsageError(
                f"judge: prices are {self.prices}; give two numbers from 0 on, of a million tokens of the "
                f"requests and of the replies"
            )


@dataclass(kw_only=True)
class JudgeOptions(RangedOptions):
    """Options of a stage for every judge that its other options name; what a judge's own text says takes
    precedence."""

    judge_parameters: dict[str, Any] | None = None
    """Parameters of every request to a judge's endpoint, beside or instead of the usual ones; null leaves one
    out: '{"temperature": null, "reasoning_effort": "low"}'."""
    judge_prices: list[NonNegative] | None = None
    """Price of a million tokens of requests to judges and of their replies: [2.5, 10]."""
    judge_replies: str | None = None
    """Folder in which replies of judges' endpoints are kept, which several commands may share; by default
    ``judge_replies`` in the stage's directory."""

    def how_judged(self, seed: int, **how: Any) -> JudgeConfig:
        """How the judges of this stage are asked, unless their own texts say otherwise."""
        if self.judge_prices is not None:
            how["prices"] = tuple(self.judge_prices)
        if self.judge_parameters is not None:
            how["parameters"] = dict(self.judge_parameters)
        return JudgeConfig(seed=seed, replies=self.judge_replies, **how)


@dataclass(kw_only=True)
class AnnotatorOptions(JudgeOptions):
    annotator: str = "world"
    """``world``, ``instructions``, ``sentiment``, ``length``, ``keyword:<words>``, ``judge:<model>``, a
    reward model, ``module:function`` or a mixture of them; ``majority(judge:…, judge:…)`` is a jury."""
    label_mode: str = "stochastic"
    """``stochastic``: Bradley-Terry on the annotator's utility; ``deterministic``: the larger one wins."""
    label_scale: NonNegative = 1.0
    """Multiplies utilities before Bradley-Terry: larger means fewer errors."""
    error_rate: ErrorRate = 0.0
    """Probability, 0 to 0.5, that a label is turned round by mistake."""
    position_bias: Finite = 0.0
    """Added to the utility of the response that is shown first."""
    tie_policy: str = "coin"
    """Responses within ``tie_width``: a ``coin`` decides, they share a place (``tie``), or they are left out
    (``skip``)."""
    tie_width: NonNegative = 0.0
    """Largest difference of utilities that the annotator cannot tell."""


@dataclass(frozen=True)
class JudgeSpec:
    """Where a judge is: a model's directory or Hub name (``model`` None), or a base URL and its model."""

    location: str
    model: str | None
    config: JudgeConfig


def names_judge(text: str) -> bool:
    """Whether an option's text is a judge or a jury, and nothing else beside it."""
    return text.startswith(PREFIX) or jury_of(text) is not None


def jury_of(text: str) -> tuple[str, list[str]] | None:
    """How a jury decides, and the texts of its judges; None where the text names no jury."""
    found = JURY.fullmatch(text.strip())
    judges = [judge.strip() for judge in NEXT_JUDGE.split(found[2])] if found else []
    # Where a comma stands in a name, something else than judges is among them: members of an ensemble.
    if found is None or any("," in judge.partition("?")[0] for judge in judges):
        return None
    return found[1], judges


def check_judge(text: str) -> None:
    """Refuses a judge's or a jury's text that cannot be meant, before anything is loaded.

    Raises:
        UsageError: as of `parse_judge`.
    """
    jury = jury_of(text)
    for judge in jury[1] if jury else [text]:
        parse_judge(judge)


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
    config = config or JudgeConfig()
    kinds, changes = typing.get_type_hints(JudgeConfig), {}
    parameters = dict(config.parameters)
    for key, text in urllib.parse.parse_qsl(options, keep_blank_values=True):
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1, 0) or ["aspect"]
            raise UsageError(
                f"judge: no option '{key}' in '{spec}'; did you mean '{near[0]}'? A parameter of the server "
                f'goes into parameters={{"{key}": …}}'
            )
        if key == "parameters":
            parameters |= object_of_text(text)
        elif key in ("temperature", "max_tokens") and text == LEAVE_OUT:
            parameters[key] = None
        elif key == "prices":
            changes[key] = tuple(option_value(key, part, float) for part in text.split(","))
        else:
            changes[key] = option_value(key, text, kinds[key])
    return JudgeSpec(location, model, dataclasses.replace(config, parameters=parameters, **changes))


def object_of_text(text: str) -> dict[str, Any]:
    """The value of ``parameters`` in a judge's text."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"judge: parameters is '{text}', which is no JSON ({error}); write "
            f'parameters={{"temperature": null, "reasoning_effort": "low"}}'
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"judge: parameters is '{text}'; it must be a JSON object, as {{\"top_p\": 1}}")
    return found


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
