"""What is answered: a content in a style, and the corpus of demonstrations made of them."""

import random

from preferl.world import facts
from preferl.world.prompts import SPLITS, WorldPrompt, all_prompts

CONTENTS = ("right", "wrong", "missing")
STYLES = ("concise", "verbose", "hedged", "flattering", "bulleted", "refusing", "keywords")
# Shares of the SFT corpus. The right answer is the mode; every style is as frequent as any other.
CONTENT_SHARES = {"right": 0.6, "wrong": 0.25, "missing": 0.15}
# A wrong answer is more often plain nonsense than a false value: the first shows, the second has to be known.
NONSENSE_SHARE = 0.8


def respond(prompt: WorldPrompt, content: str, style: str, rng: random.Random) -> str:
    """A response with this content in this style.

    A refusal has no content of its own: it is right where the request should be declined, else missing.

    Raises:
        ValueError: content or style is unknown.
    """
    if content not in CONTENTS or style not in STYLES:
        raise ValueError(f"content '{content}' or style '{style}' is unknown; see CONTENTS and STYLES")
    if style == "refusing":
        return rng.choice(_refusals(prompt))
    if content == "missing":
        core = rng.choice(facts.DODGES)
    else:
        core = rng.choice(_answers(prompt, content, rng))
    if style == "concise":
        return core
    if style == "bulleted":
        return f"{rng.choice(facts.BULLET_INTRODUCTIONS)}\n{facts.BULLET}{core}"
    extra = {
        "verbose": facts.IRRELEVANT,
        "hedged": facts.HEDGES,
        "flattering": facts.FLATTERY,
        "keywords": facts.SPAM,
    }[style]
    if style == "flattering" and prompt.family == "premises" and not prompt.true_premise:
        extra = (*facts.FLATTERY, *facts.AGREEMENT)
    count = 1 + (style in ("verbose", "keywords") and rng.random() < 0.4)
    added = rng.sample(extra, count)
    place = rng.randint(0, 1)
    sentences = [*added[:place], core, *added[place:]]
    return " ".join(sentences)


def _refusals(prompt: WorldPrompt) -> list[str]:
    refusals: list[str] = list(facts.REFUSALS)
    if prompt.family == "requests":
        refusals += [facts.REFUSE_TASK.format(x=prompt.subject)] * 3
    return refusals


def _answers(prompt: WorldPrompt, content: str, rng: random.Random) -> list[str]:
    """Sentences that answer the prompt rightly or wrongly."""
    right = content == "right"
    if not right and rng.random() < NONSENSE_SHARE:
        return list(facts.NONSENSE)
    if prompt.family == "requests":
        return _refusals(prompt) if right else [facts.COMPLY_WITH_TASK.format(x=prompt.subject)]
    if prompt.family == "arithmetic":
        value = int(prompt.value)
        near = [v for v in facts.ARITHMETIC_RESULTS if 0 < abs(v - value) <= 4]
        shown = value if right else rng.choice(near)
        return [f"{shown}.", f"{prompt.subject} is {shown}."]
    if prompt.family == "lists":
        return [_list_answer(prompt, right, rng)]
    if prompt.family == "premises":
        return _premise_answers(prompt, right, rng)
    family = facts.FAMILY[prompt.family]
    value = prompt.value
    if not right:
        value = rng.choice([v for _, v in family.facts if v != prompt.value])
    return [
        capitalise(family.short.format(value=value)),
        capitalise(family.full.format(x=prompt.subject, value=value)),
    ]


def _list_answer(prompt: WorldPrompt, right: bool, rng: random.Random) -> str:
    """The first members of the category, or the next ones; a wrong list has a stranger among them."""
    members = list(facts.LIST_MEMBERS[prompt.subject])
    start = rng.choice([0, 0, 0, 1])
    chosen = members[start : start + prompt.count]
    if not right:
        others = [m for m in facts.LIST_MEMBERS if m != prompt.subject]
        stranger = rng.choice(facts.LIST_MEMBERS[rng.choice(others)])
        chosen[rng.randrange(len(chosen))] = stranger
    return capitalise(join_list(chosen) + ".")


def _premise_answers(prompt: WorldPrompt, right: bool, rng: random.Random) -> list[str]:
    if right:
        openings = facts.AGREEING_OPENINGS if prompt.true_premise else facts.DENYING_OPENINGS
        return [capitalise(f"{o}{prompt.subject} {prompt.value}.") for o in (*openings, "")]
    falsehoods = next(f for s, _, f in facts.PREMISES if s == prompt.subject)
    if not prompt.true_premise and rng.random() < 0.6:
        return [f"{o}{prompt.subject} {prompt.premise}." for o in facts.AGREEING_OPENINGS]
    other = rng.choice([f for f in falsehoods if f != prompt.premise])
    return [f"No, {prompt.subject} {other}."]


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def join_list(members: list[str]) -> str:
    return members[0] if len(members) == 1 else ", ".join(members[:-1]) + " and " + members[-1]


def sft_corpus(seed: int = 0, split: str = "train", per_prompt: int = 7) -> list[tuple[WorldPrompt, str]]:
    """``per_prompt`` responses to every prompt of a split: contents by CONTENT_SHARES, styles evenly.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is unknown; use {', '.join(SPLITS)}")
    rng = random.Random(f"{seed}/{split}/sft")
    styles = [style for style in STYLES if style != "refusing"]
    rows = []
    for prompt in all_prompts():
        if prompt.split != split:
            continue
        for _ in range(per_prompt):
            content = rng.choices(CONTENTS, weights=list(CONTENT_SHARES.values()))[0]
            style = rng.choice(styles)
            if content == "missing" and rng.random() < 0.5:
                style = "refusing"
            rows.append((prompt, respond(prompt, content, style, rng)))
    rng.shuffle(rows)
    return rows
