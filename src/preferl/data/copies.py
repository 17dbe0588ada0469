"""Rows and prompts that a data set holds more than once: repeated rows, files that repeat other files, and
prompts that stand in two splits, as they are or nearly.

Two prompts are copies where their normalised texts are equal (``splits.normalised``), near-copies where the
Jaccard index of their sets of five words in a row is at least .8. Candidates for near-copies come out of
MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3); each is then compared exactly, so that none is named that is none.
"""

import functools
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from preferl.data.containers import own_split
from preferl.data.files import Row
from preferl.data.records import Comparison, Demonstration, PromptRecord, Rated, prompt_key
from preferl.data.splits import meaning

WORDS = 5  # of a shingle
FEWEST_WORDS = 8  # a shorter prompt has too few shingles to be nearly another
NEAR = 0.8  # Jaccard index of two sets of shingles
MOST_PROMPTS = 100_000  # that are compared unless a person asks for more: about a minute
# A near-copy of index .8 is a candidate with probability 1 - (1 - .8^6)^21 = .998, one of .5 with .28.
BANDS, ROWS_OF_A_BAND = 21, 6
MOST_CANDIDATES = 100  # of one prompt; a template with one word changed makes all prompts candidates
# What must not share prompts: what trains with what is measured, and what chooses with what is reported.
APART = (("train", "dev"), ("train", "eval"), ("rl", "dev"), ("rl", "eval"), ("dev", "eval"))


# --------------------------------------------------------------------------------------------- repeated rows


def repeated_files(records: Sequence[Any], rows: Sequence[Row]) -> dict[str, int]:
    """The files whose records all stand in the other files too, with how many they have.

    RM-Bench's folder has a file for each domain and one with all of them. A file of another split is no
    other file: a copy of train in test is a leak, not a repetition. A file that tells no split repeats those
    that do.
    """
    keys_of: dict[str, set[Hashable]] = {}
    splits_of: dict[str, set[str | None]] = {}
    count: Counter[str] = Counter()
    for record, row in zip(records, rows, strict=True):
        keys_of.setdefault(row.file, set()).add(key_of(record))
        splits_of.setdefault(row.file, set()).add(meaning(own_split(row)))
        count[row.file] += 1
    kept = [file for file in keys_of if file]
    repeated: dict[str, int] = {}
    # Those that tell no split first, of these the largest: the file of everything goes, its parts stay.
    for file in sorted(kept, key=lambda file: (splits_of[file] != {None}, -count[file])):
        others: set[Hashable] = set()
        for other in kept:
            if other != file and splits_of[file] in ({None}, splits_of[other]):
                others |= keys_of[other]
        if keys_of[file] <= others:
            kept.remove(file)
            repeated[file] = count[file]
    return repeated


def repeated_rows(records: Sequence[Any], rows: Sequence[Row]) -> tuple[int, str]:
    """How many records an earlier row holds too, and an example in words."""
    first: dict[Hashable, Row] = {}
    count, example = 0, ""
    for record, row in zip(records, rows, strict=True):
        before = first.setdefault(key_of(record), row)
        if before is not row:
            count += 1
            example = example or f"{row.where} repeats {before.where}"
    return count, example


def key_of(record: Any) -> Hashable:
    """What is equal for records that say the same, whatever other columns their rows have."""
    said: Any
    match record:
        case Comparison():
            said = sorted(zip(record.responses, record.ranks, strict=True))
        case Rated():
            said = [record.response, record.good, sorted(record.ratings.items())]
        case Demonstration():
            said = record.response
        case PromptRecord():  # one prompt may have several answers
            said = record.columns
        case _:
            raise TypeError(f"a {type(record).__name__} is no record")
    text = json.dumps([prompt_key(record.prompt), said], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# ---------------------------------------------------------------------------------- prompts in two splits


@dataclass
class Shared:
    """The prompts of a split that another has too.

    Args:
        of, other: the names of the splits.
        prompts: how many different ones ``of`` has.
        equal, near: how many of these are in ``other``, as they are or nearly.
        example: a near-copy and what it is of, or a prompt that is equal.
    """

    of: str
    other: str
    prompts: int
    equal: int = 0
    near: int = 0
    example: str = ""

    def sentence(self) -> str:
        """Says so."""
        text = f"prompts in two splits: of {self.prompts:,} of {self.of} "
        parts = [f"{self.equal:,} are in {self.other} too"] if self.equal else []
        parts += [f"{self.near:,} are nearly in {self.other}"] if self.near else []
        return f"{text}{' and '.join(parts)} (for example {self.example})"


@dataclass
class Found:
    """What comparing the splits found: what they share, and what was not compared, in sentences."""

    shared: list[Shared] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        return [shared.sentence() for shared in self.shared] + self.unsure


def across_splits(prompts: Sequence[str], splits: Sequence[str], near_copies: str = "auto") -> Found:
    """The prompts that stand in two splits.

    Args:
        prompts: normalised, one for each row.
        splits: of the rows.
        near_copies: ``auto`` looks for them among up to ``MOST_PROMPTS``, ``always`` among more too.
    """
    of_split: dict[str, dict[str, None]] = {}
    for prompt, split in zip(prompts, splits, strict=True):
        of_split.setdefault(split, {})[prompt] = None
    found = Found()
    pairs = [(a, b) for a, b in APART if a in of_split and b in of_split]
    if not pairs:
        return found
    count = len(set(prompts))
    nearly: dict[tuple[str, str], dict[str, str]] = {}
    if near_copies == "always" or (near_copies == "auto" and count <= MOST_PROMPTS):
        nearly, crowded = near_between(of_split, pairs)
        if crowded:
            found.unsure.append(
                f"near-copies: {crowded:,} prompts resemble more than {MOST_CANDIDATES:,} others each, and "
                f"were compared with so many"
            )
    elif near_copies == "auto":
        found.unsure.append(
            f"near-copies were not looked for among {count:,} prompts; --near_copies always does"
        )
    for other, of in pairs:
        equal = [prompt for prompt in of_split[of] if prompt in of_split[other]]
        near = nearly.get((other, of), {})
        if not equal and not near:
            continue
        example = f"'{excerpt(equal[0])}'" if equal else ""
        if near:
            copy, original = next(iter(near.items()))
            example = f"'{excerpt(copy)}' and '{excerpt(original)}'"
        found.shared.append(Shared(of, other, len(of_split[of]), len(equal), len(near), example))
    return found


def contained(prompts: Sequence[str], own: Sequence[str | None]) -> list[str]:
    """The splits of the data set's own all of whose prompts are another's too, in sentences.

    Args:
        prompts: normalised, one for each row.
        own: what the data set calls the split of each row.
    """
    of_split: dict[str, set[str]] = {}
    for prompt, name in zip(prompts, own, strict=True):
        if name:
            of_split.setdefault(name, set()).add(prompt)
    sentences = []
    for name, other in itertools.permutations(of_split, 2):
        mine, theirs = of_split[name], of_split[other]
        if mine < theirs or (mine == theirs and name < other):
            what = "part of" if mine < theirs else "the same as"
            sentences.append(
                f"the split {name} is {what} the split {other}: all of its {len(mine):,} prompts are in both"
            )
    return sentences


def near_between(
    of_split: dict[str, dict[str, None]], pairs: Sequence[tuple[str, str]]
) -> tuple[dict[tuple[str, str], dict[str, str]], int]:
    """(split, other split) -> prompts of the other that are near-copies of one of the first (and are not in
    it as they are), each with that one; and how many prompts have too many candidates to compare all."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    bands_of = {prompt: bands for prompts in of_split.values() for prompt, bands in banded(prompts)}
    crowded: set[str] = set()
    for first in dict.fromkeys(a for a, _ in pairs):
        buckets: dict[bytes, list[str]] = {}
        for prompt in of_split[first]:
            for band in bands_of.get(prompt, ()):
                buckets.setdefault(band, []).append(prompt)
        for other in (b for a, b in pairs if a == first):
            for prompt in of_split[other]:
                if prompt in of_split[first] or prompt not in bands_of:
                    continue
                candidates: dict[str, None] = {}
                for band in bands_of[prompt]:
                    candidates |= dict.fromkeys(buckets.get(band, ())[:MOST_CANDIDATES])
                if len(candidates) >= MOST_CANDIDATES:
                    crowded.add(prompt)
                original = first_near(prompt, list(candidates)[:MOST_CANDIDATES])
                if original is not None:
                    found.setdefault((first, other), {})[prompt] = original
    return found, len(crowded)


def first_near(prompt: str, candidates: Sequence[str]) -> str | None:
    """The first candidate that is a near-copy of a prompt."""
    own = shingles(prompt)
    for candidate in candidates:
        other = shingles(candidate)
        if len(own & other) >= NEAR * len(own | other):
            return candidate
    return None


@functools.lru_cache(maxsize=4096)
def shingles(prompt: str) -> frozenset[str]:
    """The sets of five words in a row of a normalised prompt.

    Example:
        >>> sorted(shingles("one two three four five six"))
        ['one two three four five', 'two three four five six']
    """
    words = prompt.split()
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))


def banded(prompts: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    """The bands of the MinHash signature of each prompt that is long enough to have near-copies: two prompts
    with an equal band are candidates."""
    from datasketch import MinHash

    empty = MinHash(num_perm=BANDS * ROWS_OF_A_BAND, hashfunc=zlib.crc32)
    for prompt in prompts:
        if len(prompt.split()) < FEWEST_WORDS:
            continue
        signature = empty.copy()
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles(prompt)])
        value_NR = signature.hashvalues.astype("uint32").reshape(BANDS, ROWS_OF_A_BAND)
        # The number of the band is part of it, so that bands of different places are never equal.
        yield prompt, [bytes([number]) + value_R.tobytes() for number, value_R in enumerate(value_NR)]


def excerpt(prompt: str, letters: int = 60) -> str:
    """A prompt in a line."""
    return prompt if len(prompt) <= letters else f"{prompt[: letters - 1]}…"
