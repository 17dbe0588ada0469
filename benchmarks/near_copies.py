"""How long near-copies take among many prompts: ``python benchmarks/near_copies.py [10000 50000 100000]``.

Prompts are as long as people's (20 to 120 words of a vocabulary of 20,000, drawn by Zipf's law); one in fifty
of the eval split is one of the train split with a word changed. docs/data.md promises 100,000 in a minute.
"""

import random
import sys
import time

from preferl.data import copies

WORDS = 20_000


def made(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Prompts and their splits, a tenth of them eval's."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(WORDS)]
    weights = [1 / (i + 10) for i in range(WORDS)]
    prompts: list[str] = []
    splits: list[str] = []
    for i in range(count):
        split = "eval" if i % 10 == 9 else "train"
        if split == "eval" and i % 500 == 499:
            words = prompts[draw.randrange(0, i - i % 10)].split()
            words[draw.randrange(len(words))] = "changed"
        else:
            words = draw.choices(vocabulary, weights, k=draw.randint(20, 120))
        prompts.append(" ".join(words))
        splits.append(split)
    return prompts, splits


def main() -> None:
    for count in map(int, sys.argv[1:] or ("10000", "50000", "100000")):
        prompts, splits = made(count)
        begin = time.perf_counter()
        found = copies.across_splits(prompts, splits, "always")
        seconds = time.perf_counter() - begin
        print(f"{count:>7,} prompts: {seconds:6.1f} s; {'; '.join(found.sentences())[:140]}")


if __name__ == "__main__":
    main()
