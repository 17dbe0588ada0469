"""Utilities by name: functions of (prompt, response) that need no model.

They are TRL's reward functions, ``f(prompts, completions, **columns) -> list[float]``, and serve as rewards,
as what an annotator judges by, and as parts of mixtures.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from preferl import world
from preferl.data.records import Prompt, prompt_text
from preferl.data.types import Scorer
from preferl.judging.instructions import InstructionUtility
from preferl.runs.errors import UsageError


class NotSampled(UsageError):
    """A reward reads what is known only of responses that preferl sampled, such as their tokens."""


def length_utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
    """Characters of the response / 100: the classic hackable reward."""
    return [len(text) / 100 for text in completions]


def token_utility(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    lengths: Sequence[int] | None = None,
    **columns: Any,
) -> list[float]:
    """Tokens of the response / 100, EOS included: nothing but length.

    Raises:
        NotSampled: the number of tokens is not known, because the response was not sampled here.
    """
    if lengths is None:
        raise NotSampled(
            "the reward 'tokens' counts sampled tokens; for texts that preferl did not sample use 'length'"
        )
    return [length / 100 for length in lengths]


def concise_utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
    """Minus the words of the response / 10."""
    return [-len(text.split()) / 10 for text in completions]


class WorldUtility:
    """The embedded world's gold reward, or what one aspect of it contributes (``world.ASPECTS``).

    Raises:
        UsageError: there is no such aspect; called with a prompt that is none of the world's.
    """

    def __init__(self, aspect: str | None = None):
        if aspect is not None and aspect not in world.ASPECTS:
            raise UsageError(f"world:{aspect} is unknown; the world's aspects are {', '.join(world.ASPECTS)}")
        self.aspect = aspect

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        self.check(prompts)
        return [
            world.gold_reward(prompt_text(p), c, self.aspect)
            for p, c in zip(prompts, completions, strict=True)
        ]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that have no gold reward, before any response to them is sampled.

        Raises:
            UsageError: the first that is not of the world.
        """
        for prompt in prompts:
            if not world.knows(prompt_text(prompt)):
                raise UsageError(
                    f"the reward 'world' is the embedded world's truth, and {prompt_text(prompt)[:80]!r} is "
                    f"not one of its prompts: name another reward or annotator (your own module:function, "
                    f"judge:…, a reward model), or take the world's prompts (--dataset_name world)"
                )


def keyword_utility(words: str) -> Scorer:
    """Share of the comma-separated words that occur in the response, whole words, any case."""
    wanted = [w.strip().lower() for w in words.split(",") if w.strip()]
    if not wanted:
        raise UsageError("the keyword annotator needs words: keyword:please,thanks")

    def share(text: str) -> float:
        there = set(re.findall(r"[\w']+", text.lower()))
        return sum(word in there for word in wanted) / len(wanted)

    def utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        return [share(text) for text in completions]

    return utility


def sentiment_utility() -> Scorer:
    """VADER's compound sentiment (Hutto & Gilbert 2014), -1 to 1, times 4: BT labels of useful noise."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()

    def utility(prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        return [4.0 * analyser.polarity_scores(text)["compound"] for text in completions]

    return utility


TRUTHS = ("world", "instructions")  # by what a response is, not by what somebody thinks of it
# Name -> function of what follows the colon (None where nothing does).
NAMED: dict[str, Callable[[str | None], Scorer]] = {
    "length": lambda rest: length_utility,
    "tokens": lambda rest: token_utility,
    "concise": lambda rest: concise_utility,
    "world": WorldUtility,
    "instructions": InstructionUtility,
    "sentiment": lambda rest: sentiment_utility(),
    "keyword": lambda rest: keyword_utility(rest or ""),
}


def named_utility(name: str) -> Scorer | None:
    """The utility called ``length``, ``world:helpful``, ``keyword:please``, …; None for another name.

    Raises:
        UsageError: the name is known and what follows it is not.
    """
    head, _, rest = name.partition(":")
    return NAMED[head](rest or None) if head in NAMED else None
