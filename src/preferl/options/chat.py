"""Options of ``preferl chat`` and ``preferl serve``."""

from dataclasses import dataclass
from typing import Annotated

from preferl.options.shared import DeviceOptions, TemplateOptions
from preferl.runs.ranges import Count, Positive, Range, RangedOptions


@dataclass(kw_only=True)
class ChatConfig(TemplateOptions, DeviceOptions):
    """Options of a dialogue."""

    prompt: str | None = None
    """Answer this once and exit; standard output then holds the answer alone. So it is with what comes on
    standard input where that is no terminal."""
    system: str | None = None
    """The system's message, in front of every dialogue."""
    reward_model: str | None = None
    """Shows the reward of each answer: a reward model's directory, ``module:function`` or a mixture; by
    default that of a run, where one is named."""
    preferences: str = "preferences.jsonl"
    """The file to which ``/better a`` and ``/better b`` add a pair."""
    temperature: Positive | None = None
    """Sampling temperature; by default that with which the model's run or stage samples, else 1."""
    response_length: Count | None = None
    """Most tokens of an answer; by default as the model's run or stage has it, else 256."""


@dataclass(kw_only=True)
class ServeConfig(RangedOptions):
    """Options of the server."""

    port: Annotated[int, Range(1, 65535)] = 8000
    """Port of 127.0.0.1 to listen at."""
    device: str = "auto"
    """Where the model computes, as ``transformers serve`` takes it: ``auto``, ``cpu``, ``cuda:0``."""
    dtype: str = "auto"
    """What it computes in: ``auto`` (as the weights are stored), ``float32``, ``bfloat16``, ``float16``."""
