"""What is asked in the world, and in which split."""

import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from preferl.world import facts

FAMILIES = (
    *(family.name for family in facts.FAMILIES_WITH_ONE_VALUE),
    "arithmetic",
    "lists",
    "premises",
    "requests",
)
SPLITS = ("train", "dev", "rl", "eval")

# Which split a wording belongs to, by its place in the family's list: held-out prompts ask known facts in
# wordings that this family's training prompts never use. The pattern is shifted from family to family, so
# that "Tell me …" is held out here and trained there, and its words are known.
WORDING_SPLITS = (
    "train",
    "eval",
    "train",
    "rl",
    "train",
    "dev",
    "train",
    "rl",
    "train",
    "eval",
    "train",
    "rl",
)


@dataclass(frozen=True)
class WorldPrompt:
    """A prompt of the world.

    Example: ``WorldPrompt("What is the capital of France?", "capitals", "France", "Paris", "train")``.
    ``premise`` is what the user claims (family premises); ``count`` how many members a list needs.
    """

    text: str
    family: str
    subject: str
    value: str
    split: str
    premise: str = ""
    count: int = 0

    @property
    def true_premise(self) -> bool:
        return self.premise == self.value


def shuffled_prompts(seed: int = 0) -> list[WorldPrompt]:
    """All prompts, in an order drawn from the seed."""
    rows = list(all_prompts())
    random.Random(seed).shuffle(rows)
    return rows


def find(text: str) -> WorldPrompt:
    """The prompt with this text.

    Raises:
        ValueError: it is not in the world.
    """
    try:
        return _by_text()[text]
    except KeyError:
        raise ValueError(
            f"{text!r} is not a prompt of the embedded world, so it has no gold reward; "
            f"use prompts of `preferl data convert world`"
        ) from None


def knows(text: str) -> bool:
    """Whether a text is a prompt of the world."""
    return text in _by_text()


@functools.cache
def _by_text() -> dict[str, WorldPrompt]:
    return {prompt.text: prompt for prompt in all_prompts()}


@functools.cache
def all_prompts() -> tuple[WorldPrompt, ...]:
    """Every prompt once, in the order of the tables."""
    rows = [*_fact_prompts(), *_sum_prompts(), *_list_prompts(), *_premise_prompts(), *_deed_prompts()]
    return tuple({row.text: row for row in rows}.values())


def _fact_prompts() -> Iterator[WorldPrompt]:
    for family in facts.FAMILIES_WITH_ONE_VALUE:
        for subject, value in family.facts:
            for place, wording in enumerate(family.wordings):
                text = wording.format(x=subject)
                yield WorldPrompt(text, family.name, subject, value, _split_of_wording(place, family.name))


def _sum_prompts() -> Iterator[WorldPrompt]:
    """Sums in both orders and products; the pairs in UNSEEN_SUMS are held out."""
    for a, b in itertools.product(facts.SUM_FACTORS, repeat=2):
        for place, wording in enumerate(facts.SUM_WORDINGS):
            where = facts.UNSEEN_SUMS.get((a, b), _split_of_wording(place, "arithmetic"))
            text = wording.format(a=a, b=b)
            yield WorldPrompt(text, "arithmetic", f"{a} plus {b}", str(a + b), where)
    for a, b in itertools.product(facts.PRODUCT_FACTORS, repeat=2):
        for place, wording in enumerate(facts.PRODUCT_WORDINGS):
            where = _split_of_wording(place, "arithmetic")
            text = wording.format(a=a, b=b)
            yield WorldPrompt(text, "arithmetic", f"{a} times {b}", str(a * b), where)


def _list_prompts() -> Iterator[WorldPrompt]:
    for category in facts.LIST_MEMBERS:
        for word, count in facts.LIST_COUNTS.items():
            for place, wording in enumerate(facts.LIST_WORDINGS):
                where = facts.UNSEEN_LISTS.get((category, word)) or _split_of_wording(place, "lists")
                text = wording.format(n=word, x=category)
                yield WorldPrompt(text, "lists", category, category, where, count=count)


def _premise_prompts() -> Iterator[WorldPrompt]:
    """The truth and one false claim in the splits of the wordings; a second false claim is held out, in
    every other wording, so that premises do not outweigh the other families there."""
    for number, (subject, truth, falsehoods) in enumerate(facts.PREMISES):
        for claim in (truth, *falsehoods[:2]):
            for place, wording in enumerate(facts.PREMISE_WORDINGS):
                where = _split_of_wording(place, "premises")
                if claim == falsehoods[1]:
                    if place % 2:
                        continue
                    where = "eval" if number % 2 else "rl"
                text = wording.format(claim=f"{subject} {claim}")
                yield WorldPrompt(text, "premises", subject, truth, where, premise=claim)


def _deed_prompts() -> Iterator[WorldPrompt]:
    for deed in facts.BAD_DEEDS:
        for place, wording in enumerate(facts.TASK_WORDINGS):
            yield WorldPrompt(
                wording.format(x=deed), "requests", deed, "", _split_of_wording(place, "requests")
            )


def _split_of_wording(place: int, family: str) -> str:
    return WORDING_SPLITS[(place + 5 * FAMILIES.index(family)) % len(WORDING_SPLITS)]
