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
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
AT_ONCE = 2_000  # prompts, whose shingles fit into the processor's cache
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
    distinct = dict.fromkeys(prompt for prompts in of_split.values() for prompt in prompts)
    long = [prompt for prompt in distinct if len(prompt.split()) >= FEWEST_WORDS]
    if not long:
        return found, 0
    place_of = {prompt: place for place, prompt in enumerate(long)}
    band_NB = bands(long)
    crowded: set[str] = set()
    for first, other in pairs:
        ours = [place_of[prompt] for prompt in of_split[first] if prompt in place_of]
        theirs = [
            place_of[prompt]
            for prompt in of_split[other]
            if prompt in place_of and prompt not in of_split[first]
        ]
        for place, candidates in candidates_of(band_NB, ours, theirs).items():
            if len(candidates) >= MOST_CANDIDATES:
                crowded.add(long[place])
            original = first_near(long[place], [long[i] for i in candidates[:MOST_CANDIDATES]])
            if original is not None:
                found.setdefault((first, other), {})[long[place]] = original
    return found, len(crowded)


def candidates_of(band_NB: np.ndarray, ours: Sequence[int], theirs: Sequence[int]) -> dict[int, list[int]]:
    """Place of theirs -> places of ours with which it shares a band, in the order of the bands and of ours;
    at most ``MOST_CANDIDATES`` of a band."""
    found: dict[int, dict[int, None]] = {}
    for band_N in band_NB.T:
        shared = np.intersect1d(band_N[ours], band_N[theirs])
        if not len(shared):
            continue
        bucket_of: dict[int, list[int]] = {}
        for place in (ours[int(i)] for i in np.flatnonzero(np.isin(band_N[ours], shared))):
            bucket = bucket_of.setdefault(int(band_N[place]), [])
            if len(bucket) < MOST_CANDIDATES:
                bucket.append(place)
        for place in (theirs[int(i)] for i in np.flatnonzero(np.isin(band_N[theirs], shared))):
            found.setdefault(place, {}).update(dict.fromkeys(bucket_of[int(band_N[place])]))
    return {place: list(found[place]) for place in theirs if place in found}


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


def bands(prompts: Sequence[str]) -> np.ndarray:
    """The bands of the MinHash signatures of prompts, [N, B] numbers of 64 bits: two prompts with an equal
    band are candidates. The permutations are datasketch's; they are applied to many prompts at once."""
    from datasketch import MinHash

    a_P, b_P = np.asarray(MinHash(num_perm=BANDS * ROWS_OF_A_BAND, scheme="affine32").permutations)
    signature_NP = np.empty((len(prompts), BANDS * ROWS_OF_A_BAND), np.uint32)
    hash_of: dict[str, int] = {}  # of a word
    for start in range(0, len(prompts), AT_ONCE):
        shingle_S, first_N = hashed_shingles(prompts[start : start + AT_ONCE], hash_of)
        place_N = slice(start, start + len(first_N))
        for k in range(len(a_P)):
            signature_NP[place_N, k] = np.minimum.reduceat(shingle_S * a_P[k] + b_P[k], first_N)
    band_NB = np.zeros((len(prompts), BANDS), np.uint64)
    for row in range(ROWS_OF_A_BAND):
        band_NB = mixed(band_NB + signature_NP[:, row::ROWS_OF_A_BAND][:, :BANDS])
    return band_NB


def hashed_shingles(prompts: Sequence[str], hash_of: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of prompts as numbers of 32 bits, one prompt's after the other's [S], and where each
    prompt's begin [N].

    Args:
        prompts: each of ``WORDS`` words or more.
        hash_of: word -> number, which grows.
    """
    numbers: list[int] = []
    lengths: list[int] = []
    for prompt in prompts:
        words = prompt.split()
        lengths.append(len(words))
        for word in words:
            number = hash_of.get(word)
            if number is None:
                number = hash_of[word] = int.from_bytes(
                    hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
                )
            numbers.append(number)
    word_W = np.array(numbers, np.uint64)
    count = len(word_W) - WORDS + 1
    shingle_W = np.zeros(count, np.uint64)
    for k in range(WORDS):
        shingle_W = mixed(shingle_W + word_W[k : k + count])
    length_N = np.array(lengths)
    begin_N = np.concatenate([[0], np.cumsum(length_N)[:-1]])
    # Shingles that begin in one prompt and end in the next are none.
    of_prompt = np.arange(count) - np.repeat(begin_N, length_N)[:count]
    inside = of_prompt <= np.repeat(length_N, length_N)[:count] - WORDS
    first_N = np.concatenate([[0], np.cumsum(length_N - WORDS + 1)[:-1]])
    return (shingle_W[inside] >> np.uint64(32)).astype(np.uint32), first_N


def mixed(number: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, each with all of its bits spread over all others (the finalizer of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ (number >> np.uint64(33))) * np.uint64(factor)
    return number ^ (number >> np.uint64(33))


def excerpt(prompt: str, letters: int = 60) -> str:
    """A prompt in a line."""
    return prompt if len(prompt) <= letters else f"{prompt[: letters - 1]}…"
