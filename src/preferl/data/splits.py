"""Which rows train, which choose between models, and which are reported.

A data set's own splits are kept; what is missing beside its training rows comes out of these. A data set
without splits is divided by a hash of the prompt, so that a prompt has one split in every file and every
command, whatever rows stand around it, and shares are near, not exact.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from preferl.data.records import SPLITS, DataError, Prompt, dialogue_text

SHARES = (0.8, 0.1, 0.1)  # train, dev, eval
FEWEST = 10  # prompts that can be divided
ENOUGH_PROMPTS = 30  # of an evaluation
FINAL = " .!?…,;:。！？，；：؟"  # what ends a prompt and does not make it another
# What data sets call their splits; the first word counts, as in train_sft or test-00000-of-00002.
MEANING = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "eval",
    "testing": "eval",
    "heldout": "eval",
    "held": "eval",
    "holdout": "eval",
    "eval": "eval",
    "evaluation": "eval",
    "rl": "rl",
}


def too_few(prompts: int) -> str:
    """Says that an evaluation on so few prompts can tell next to nothing; empty where there are enough."""
    if not 0 < prompts < ENOUGH_PROMPTS:
        return ""
    return (
        f"{prompts} prompts are too few to tell all but large gains from chance: evaluate on "
        f"{ENOUGH_PROMPTS} or more (more rows, or a larger share of them for eval: "
        f"--split_shares '[0.6,0.1,0.3]')"
    )


@dataclass(frozen=True)
class Splits:
    """The split of every row: ``train``, ``dev``, ``rl``, ``eval``, or another name of the data set's own.

    ``on_train`` are those that have no rows of their own: they are measured on what trains. ``how`` says in
    words what divided the rows, ``keeps_own`` whether the data set itself did.
    """

    names: list[str]
    how: str
    on_train: tuple[str, ...] = ()
    keeps_own: bool = True


def meaning(name: str | None) -> str | None:
    """Our split for a data set's own name, or None where it says nothing to us.

    Example:
        >>> meaning("validation"), meaning("train_prefs"), meaning("harmless")
        ('dev', 'train', None)
    """
    words = re.findall(r"[a-z]+", name.lower()) if name else []
    return MEANING.get(words[0]) if words else None


def split_of_file(name: str) -> str | None:
    """The split that a file's name tells, as ``pairs.train.jsonl.gz``; None where it tells none, or two.

    A name of the Hub's is the split's own: ``test_prefs-00000-of-00001.parquet`` is of ``test_prefs``.
    """
    shard = re.fullmatch(r"([A-Za-z]\w*)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.\w+", name)
    if shard and meaning(shard[1]):
        return shard[1]
    found = {MEANING[word]: word for word in re.findall(r"[a-z]+", name.lower()) if word in MEANING}
    return next(iter(found.values())) if len(found) == 1 else None


def normalised(prompt: Prompt) -> str:
    """A prompt without what does not make it another: case, white space, the code of a character, final
    punctuation (where it is not all that there is)."""
    text = " ".join(unicodedata.normalize("NFKC", dialogue_text(prompt)).casefold().split())
    return text.rstrip(FINAL) or text


def place_of(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def check_shares(shares: Sequence[float]) -> None:
    """Refuses shares that are none.

    Raises:
        DataError: there are not three of them, or they do not sum to 1.
    """
    fine = len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9 and shares[0] > 0
    if not fine:  # NaN too
        raise DataError(
            f"split_shares is {list(shares)}; give the shares of train, dev and eval, which sum to 1 and of "
            f"which the first is above 0"
        )


def divide(
    keys: Sequence[str],
    own: Sequence[str | None],
    shares: Sequence[float] = SHARES,
    complete: bool = False,
    unit: str = "prompt",
) -> Splits:
    """The split of every row.

    Args:
        keys: what decides, a text for each row: equal keys come into one split.
        own: the split that the data set gives each row, under its own name.
        shares: of train, dev and eval, where it gives none.
        complete: nothing is missing, whatever is not there (what preferl itself has written).
        unit: what a key is of, in words.
    """
    raw = {name for name in own if name}
    known = {meaning(name) for name in raw} - {None}
    if not known or (len(raw) == 1 and not complete):
        return by_hash(keys, shares, unit)
    names = [(meaning(name) or name) if name else "train" for name in own]
    training = list(dict.fromkeys(key for key, name in zip(keys, names, strict=True) if name == "train"))
    missing = [name for name in ("dev", "eval") if name not in names and training and not complete]
    if not missing:
        return Splits(names, "its own")
    if len(training) < FEWEST:
        how = f"its own; {len(training)} {unit}s are too few to take {' and '.join(missing)} out of"
        return Splits(names, how, tuple(missing))
    taken = drawn(training, {"dev": 0.1, "eval": 0.1}, missing)
    names = [taken.get(key, name) if name == "train" else name for key, name in zip(keys, names, strict=True)]
    return Splits(names, f"its own, {' and '.join(missing)} out of its train {unit}s by a hash")


def by_hash(keys: Sequence[str], shares: Sequence[float], unit: str) -> Splits:
    """Divides rows that have no splits."""
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < FEWEST:
        how = f"{len(distinct)} {unit}s are too few to divide: all of them train"
        return Splits(["train"] * len(keys), how, ("dev", "eval"), keeps_own=False)
    wanted = {"dev": shares[1], "eval": shares[2]}
    taken = drawn(distinct, wanted, [name for name, share in wanted.items() if share])
    names = [taken.get(key, "train") for key in keys]
    return Splits(names, f"by a hash of the {unit}", keeps_own=False)


def drawn(keys: Sequence[str], shares: dict[str, float], wanted: Collection[str]) -> dict[str, str]:
    """Key -> split of those that leave train: the last places are eval's, those before dev's. Each wanted
    split gets at least one key, of those that are left the one with the largest hash."""
    place = {key: place_of(key) for key in keys}
    found: dict[str, str] = {}
    for key in keys:
        if place[key] >= 1 - shares["eval"]:
            name = "eval"
        elif place[key] >= 1 - shares["eval"] - shares["dev"]:
            name = "dev"
        else:
            continue
        if name in wanted:
            found[key] = name
    for name in wanted:
        if name not in found.values():
            found[max(keys, key=lambda key: (key not in found, place[key]))] = name
    return found


def counts(splits: Splits) -> str:
    """How many rows each split has: ``241 train, 28 dev, 31 eval``."""
    number = Counter(splits.names)
    order = [*(name for name in SPLITS if number[name]), *sorted(number.keys() - set(SPLITS))]
    return ", ".join(f"{number[name]:,} {name}" for name in order)
