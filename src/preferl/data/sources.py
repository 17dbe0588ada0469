"""A data set by name, ready for every stage: demonstrations, prompts and preferences, split by prompt.

Each stage loads the source for itself; splits come from a hash of the prompt, so all stages agree without
handing files around. ``world`` is the embedded world; everything else is read by ``formats``.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from preferl import world
from preferl.data import formats
from preferl.data.files import write_rows
from preferl.data.records import (
    SPLITS,
    Comparison,
    DataError,
    Demonstration,
    Pair,
    Prompt,
    PromptRecord,
    SplitFractions,
    UserTurn,
    prompt_key,
    split_for,
)

# Columns that name what kind of prompt a row has; the first that tells the rows apart is taken.
PROMPT_CATEGORIES = ("category", "subset", "family", "task")
MOST_CATEGORIES = 40

Record = TypeVar("Record", Demonstration, Comparison)


@dataclass(frozen=True)
class Source:
    """What a data set offers.

    ``demonstrations`` and ``comparisons`` map a split to records, ``prompts`` a split to distinct prompts.
    ``notes`` says in sentences what was read and what was left out. ``well_formed`` tells, of (prompt,
    response), whether a response is one of the data set's language, where that is known.
    """

    name: str
    prompts: dict[str, list[PromptRecord]]
    demonstrations: dict[str, list[Demonstration]]
    comparisons: dict[str, list[Comparison]]
    notes: list[str] = field(default_factory=list)
    categories: dict[str, str] = field(default_factory=dict)
    well_formed: Callable[[str, str], bool] | None = None

    def pairs(self, split: str) -> list[Pair]:
        """Every ordered pair of the comparisons of a split."""
        return [pair for comparison in self.comparisons[split] for pair in comparison.pairs()]

    def category(self, prompt: Prompt) -> str | None:
        """What kind of prompt it is, where the data set says so."""
        return self.categories.get(prompt_key(prompt))

    def references(self, split: str) -> dict[str, str]:
        """The data set's own response to each prompt of a split (the first one), by ``prompt_key``."""
        found: dict[str, str] = {}
        for d in self.demonstrations[split]:
            if d.response.strip() and not d.columns.get("passage"):
                found.setdefault(prompt_key(d.prompt), d.response)
        return found

    def need(self, kind: str, split: str) -> list:
        """The records of a kind in a split.

        Raises:
            DataError: there are none.
        """
        found = self.pairs(split) if kind == "pairs" else getattr(self, kind)[split]
        if not found:
            raise DataError(
                f"data set '{self.name}' has no {kind} in the split '{split}' "
                f"({'; '.join(self.notes)}); give more rows, or a data set that has them"
            )
        return found


def load_source(
    name: str,
    dataset_format: str = "auto",
    max_rows: int | None = None,
    opening_words: int = 12,
    max_response_words: int | None = None,
    max_prompt_words: int | None = None,
    as_dialogue: bool = False,
    bad_rows: str = "default",
    seed: int = 0,
) -> Source:
    """Reads a data set and splits it by prompt.

    Args:
        name: ``world``, a stage's directory (its ``data/``), a Hub name, a file or a folder.
        dataset_format: ``auto``, or one of ``formats.KINDS``.
        max_rows: read at most this many rows.
        opening_words: a plain text is cut into prompt and response after so many words.
        max_response_words: a plain text's response ends with the last sentence that fits.
        max_prompt_words: leave longer prompts out.
        as_dialogue: read a plain-text prompt as the user's turn.
        bad_rows: ``default``, ``skip`` or ``error``.
        seed: of the embedded world.

    Raises:
        DataError: no such data set, rows that the policy does not allow, or an option it does not know.
    """
    if name == "world":
        return world_source(seed)
    if dataset_format not in ("auto", *formats.KINDS):
        known = ", ".join(formats.KINDS)
        raise DataError(f"dataset_format '{dataset_format}' is unknown; use auto, {known}")
    if bad_rows not in ("default", "skip", "error"):
        raise DataError(f"bad_rows '{bad_rows}' is unknown; use default, skip or error")
    kind = formats.detect(name) if dataset_format == "auto" else dataset_format
    policy = {} if bad_rows == "default" else {"*": bad_rows}
    records, report, _ = formats.load(name, kind, policy, max_rows)
    comparisons: list[Comparison] = []
    notes = [report.summary()]
    if kind in ("preference", "ranking"):
        comparisons = records
        demonstrations = [Demonstration(c.prompt, c.best(), c.columns) for c in comparisons]
    elif kind == "prompt":
        demonstrations = [Demonstration(r.prompt, "", r.columns) for r in records]
    elif kind == "rated":
        demonstrations = [
            Demonstration(r.prompt, r.response, r.columns) for r in records if r.good is not False
        ]
        notes.append(
            f"{len(demonstrations)} of {len(records)} rated responses are demonstrations; the others are "
            f"called bad"
        )
    else:
        demonstrations = records
    if kind == "text":
        whole = len(demonstrations)
        cuts = [passages(d, opening_words, max_response_words) for d in demonstrations]
        demonstrations = [d for cut in cuts for d in cut]
        notes.append(
            f"{whole} texts in {len(demonstrations)} passages; left out {sum(not cut for cut in cuts)} "
            f"texts: no sentence ends in the words after the opening"
        )
    if max_prompt_words is not None:
        fitting = [d for d in demonstrations if word_count(d.prompt) <= max_prompt_words]
        notes.append(
            f"left out {len(demonstrations) - len(fitting)} of {len(demonstrations)} rows: "
            f"prompt over {max_prompt_words} words"
        )
        demonstrations = fitting
        comparisons = [c for c in comparisons if word_count(c.prompt) <= max_prompt_words]
    if as_dialogue:
        demonstrations = [dialogue(d) for d in demonstrations]
        comparisons = [dialogue(c) for c in comparisons]
    split_rows = by_split(demonstrations)
    return Source(
        name=name,
        prompts={
            split: distinct_prompts(d for d in rows if not d.columns.get("passage"))
            for split, rows in split_rows.items()
        },
        demonstrations={s: [] for s in SPLITS} if kind == "prompt" else split_rows,
        comparisons=by_split(comparisons),
        notes=notes,
        categories=categories_of(demonstrations),
    )


def categories_of(rows: Sequence[Demonstration]) -> dict[str, str]:
    """Prompt -> category, by the first of ``PROMPT_CATEGORIES`` that every row has and that varies."""
    for column in PROMPT_CATEGORIES:
        values = [d.columns.get(column) for d in rows]
        if all(isinstance(v, str) and v for v in values) and 2 <= len(set(values)) <= MOST_CATEGORIES:
            return {prompt_key(d.prompt): str(v) for d, v in zip(rows, values, strict=True)}
    return {}


def world_source(seed: int = 0) -> Source:
    """The embedded world: its SFT corpus, and its prompts in four splits."""
    prompts: dict[str, list[PromptRecord]] = {split: [] for split in SPLITS}
    categories = {}
    for prompt in world.shuffled_prompts(seed):
        message: Prompt = [{"role": "user", "content": prompt.text}]
        prompts[prompt.split].append(PromptRecord(message))
        categories[prompt_key(message)] = prompt.family
    demonstrations: dict[str, list[Demonstration]] = {split: [] for split in SPLITS}
    for split in ("train", "dev", "eval"):
        for prompt, response in world.sft_corpus(seed, split=split):
            message = [{"role": "user", "content": prompt.text}]
            demonstrations[split].append(Demonstration(message, response, {}))
    count = sum(map(len, prompts.values()))
    note = f"the embedded world: {count} prompts, {len(demonstrations['train'])} demonstrations"
    return Source(
        "world",
        prompts,
        demonstrations,
        {s: [] for s in SPLITS},
        [note],
        categories=categories,
        well_formed=world.well_formed,
    )


def opening(text: Demonstration, opening_words: int, max_response_words: int | None) -> Demonstration | None:
    """Cuts a plain text into its first words (the prompt) and what follows (the response).

    With ``max_response_words`` the response ends with the last sentence that fits. None where nothing is
    left. White space is kept: prompt + response is a prefix of the text.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text.response)]
    if len(ends) <= opening_words:
        return None
    cut = ends[opening_words - 1]
    if max_response_words is None:
        return Demonstration(text.response[:cut], text.response[cut:].rstrip(), text.columns)
    window = text.response[cut : ends[min(opening_words + max_response_words, len(ends)) - 1]]
    sentences = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s|$)", window)]
    if not sentences:
        return None
    return Demonstration(text.response[:cut], window[: sentences[-1]], text.columns)


def passages(text: Demonstration, opening_words: int, max_response_words: int | None) -> list[Demonstration]:
    """A text as demonstrations one after the other, so that all of it is learnt from.

    Only the first is an opening (``passage`` 0) and so a prompt for sampling; the others stay in its split.
    """
    found, rest, split = [], text, None
    while (piece := opening(rest, opening_words, max_response_words)) is not None:
        split = split or split_for(piece.prompt, text.columns, SplitFractions())
        columns = text.columns | {"split": split, "passage": len(found)}
        found.append(Demonstration(piece.prompt, piece.response, columns))
        remainder = rest.response[len(piece.prompt) + len(piece.response) :].lstrip()
        rest = Demonstration("", remainder, text.columns)
    return found


def dialogue(record: Record) -> Record:
    """A record whose plain-text prompt became the user's turn."""
    if not isinstance(record.prompt, str):
        return record
    return dataclasses.replace(record, prompt=UserTurn(record.prompt))


def word_count(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt.split())
    return sum(len(message["content"].split()) for message in prompt)


def by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by the split of their prompt; a row's own ``split`` column wins."""
    out: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        out[split_for(record.prompt, record.columns, SplitFractions())].append(record)
    return out


def distinct_prompts(records: Iterable[Demonstration]) -> list[PromptRecord]:
    """Each prompt once, in the order in which they came, with the columns of its first row."""
    seen: dict[str, PromptRecord] = {}
    for record in records:
        seen.setdefault(prompt_key(record.prompt), PromptRecord(record.prompt, record.columns))
    return list(seen.values())


def write_world(out: Path, seed: int = 0) -> list[Path]:
    """Writes prompts, demonstrations and labelled pairs as JSON Lines; returns the paths.

    Pairs are two responses to one prompt made like the demonstrations, labelled by Bradley-Terry on r*.
    """
    prompts = world.shuffled_prompts(seed)
    asked = [{"prompt": world_message(p.text), "family": p.family, "split": p.split} for p in prompts]
    shown = [
        {"prompt": world_message(p.text), "completion": response, "family": p.family, "split": name}
        for name in ("train", "dev")
        for p, response in world.sft_corpus(seed, name)
    ]
    files = {"prompts": asked, "demonstrations": shown, "preferences": list(_world_pairs(seed))}
    paths = [out / f"{name}.jsonl" for name in files]
    for path, rows in zip(paths, files.values(), strict=True):
        write_rows(path, rows)
    return paths


def _world_pairs(seed: int) -> Iterator[dict[str, object]]:
    """Two pairs a prompt, where the two responses differ."""
    rng = random.Random(f"{seed}/pairs")
    for name in world.SPLITS:
        responses: dict[world.WorldPrompt, list[str]] = {}
        for prompt, response in world.sft_corpus(seed, name, per_prompt=4):
            responses.setdefault(prompt, []).append(response)
        for prompt, (a, b, c, d) in responses.items():
            yield from (
                _world_pair(prompt, *pair, rng.random()) for pair in ((a, b), (c, d)) if len(set(pair)) > 1
            )


def _world_pair(prompt: world.WorldPrompt, a: str, b: str, u: float) -> dict[str, object]:
    """A row in which ``a`` is preferred with probability σ(r*(a) − r*(b)), decided by ``u`` in [0, 1)."""
    gold_a, gold_b = world.gold_reward(prompt.text, a), world.gold_reward(prompt.text, b)
    p_a = 1 / (1 + math.exp(gold_b - gold_a))
    first = u < p_a
    return {
        "prompt": world_message(prompt.text),
        "chosen": a if first else b,
        "rejected": b if first else a,
        "family": prompt.family,
        "split": prompt.split,
        "annotator": "world",
        "gold_chosen": gold_a if first else gold_b,
        "gold_rejected": gold_b if first else gold_a,
        "p_chosen": p_a if first else 1 - p_a,
    }


def world_message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
