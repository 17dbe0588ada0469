"""A data set by name, ready for every stage: demonstrations, prompts and preferences, split by prompt.

Each stage loads the source for itself; splits come from a hash of the prompt, so all stages agree without
handing files around. ``world`` is the embedded world; everything else is read by ``formats``.
"""

from dataclasses import dataclass, field

from preferl.data import formats, world
from preferl.data.records import (
    DataError,
    Demonstration,
    Preference,
    Prompt,
    SplitFractions,
    prompt_key,
    prompt_text,
    split_for,
)

SPLITS = ("train", "dev", "rl", "eval")


@dataclass(frozen=True)
class Source:
    """What a data set offers.

    ``demonstrations`` and ``preferences`` map a split to records, ``prompts`` a split to distinct prompts;
    ``notes`` says in sentences what was read and what was left out.
    """

    name: str
    prompts: dict[str, list[Prompt]]
    demonstrations: dict[str, list[Demonstration]]
    preferences: dict[str, list[Preference]]
    notes: list[str] = field(default_factory=list)


def load_source(
    name: str,
    dataset_format: str = "auto",
    max_rows: int | None = None,
    opening_words: int = 12,
    max_prompt_words: int | None = None,
    bad_rows: str = "default",
    fractions: SplitFractions = SplitFractions(),  # noqa: B008 - frozen
) -> Source:
    """Reads a data set and splits it by prompt.

    Raises:
        DataError: no such data set, rows that the policy does not allow, or an empty result.
    """
    if name == "world":
        return world_source()
    kind = formats.detect(name) if dataset_format == "auto" else dataset_format
    policy = {} if bad_rows == "default" else {"*": bad_rows}
    preferences: list[Preference] = []
    demonstrations: list[Demonstration] = []
    if kind == "preference":
        preferences, report = formats.load_preferences(name, policy, max_rows)
        demonstrations = [Demonstration(p.prompt, p.chosen, p.columns) for p in preferences]
        prompts = [p.prompt for p in preferences]
    elif kind in ("demonstration", "text"):
        demonstrations, report = formats.load_demonstrations(name, policy, max_rows)
        if kind == "text":
            demonstrations = [d for d in map(opening(opening_words), demonstrations) if d]
        prompts = [d.prompt for d in demonstrations]
    elif kind == "prompt":
        records, report = formats.load_prompts(name, policy, max_rows)
        prompts = [r.prompt for r in records]
    else:
        raise DataError(
            f"dataset_format '{kind}' is unknown; use auto, preference, demonstration, text or prompt"
        )
    notes = [report.summary()]

    def fits(prompt: Prompt) -> bool:
        return max_prompt_words is None or words(prompt) <= max_prompt_words

    long = sum(not fits(p) for p in prompts)
    if long:
        notes.append(f"left out {long} of {len(prompts)} rows: prompt over {max_prompt_words} words")
    source = Source(
        name=name,
        prompts=split_prompts([p for p in prompts if fits(p)], fractions),
        demonstrations=by_split([d for d in demonstrations if fits(d.prompt)], fractions),
        preferences=by_split([p for p in preferences if fits(p.prompt)], fractions),
        notes=notes,
    )
    empty = [s for s in SPLITS if not source.prompts[s]]
    if empty:
        raise DataError(
            f"data set '{name}' gives no prompts for the split(s) {', '.join(empty)}: "
            f"{sum(map(len, source.prompts.values()))} distinct prompts are too few; add rows"
        )
    return source


def world_source(seed: int = 0) -> Source:
    """The embedded world: its SFT corpus, and its prompts in four splits."""
    prompts: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    for prompt in world.prompts(seed):
        prompts[world.split(prompt)].append([{"role": "user", "content": prompt.text}])
    demonstrations: dict[str, list[Demonstration]] = {split: [] for split in SPLITS}
    for split in ("train", "dev"):
        for prompt, response in world.sft_corpus(seed, split=split):
            message = [{"role": "user", "content": prompt.text}]
            demonstrations[split].append(Demonstration(message, response, {}))
    count = sum(map(len, prompts.values()))
    return Source("world", prompts, demonstrations, {s: [] for s in SPLITS},
                  [f"the embedded world: {count} prompts, {len(demonstrations['train'])} demonstrations"])


def opening(count: int):
    """Splits a plain text after ``count`` words into prompt and response; None where it is shorter."""

    def cut(record: Demonstration) -> Demonstration | None:
        text, end = record.response, 0
        for _ in range(count):
            start = end
            while start < len(text) and text[start].isspace():
                start += 1
            end = start
            while end < len(text) and not text[end].isspace():
                end += 1
        if not text[end:].strip():
            return None
        return Demonstration(text[:end], text[end:], record.columns)

    return cut


def words(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt.split())
    return sum(len(m["content"].split()) for m in prompt)


def split_prompts(prompts: list[Prompt], fractions: SplitFractions) -> dict[str, list[Prompt]]:
    """Distinct prompts by split, in the order in which they came."""
    out: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for prompt in prompts:
        key = prompt_key(prompt)
        if key not in seen:
            seen.add(key)
            out[split_for(prompt, {}, fractions)].append(prompt)
    return out
