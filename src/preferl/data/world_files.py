"""The embedded world as files of a person's own would be: prompts, demonstrations, labelled pairs."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preferl import world
from preferl.data.files import write_rows


def write_world(out: Path, seed: int = 0) -> list[Path]:
    """Writes prompts, demonstrations and labelled pairs as JSON Lines; returns the paths.

    Pairs are two responses to one prompt made like the demonstrations, labelled by Bradley-Terry on r*.
    """
    prompts = world.shuffled_prompts(seed)
    asked = [{"prompt": world_message(p.text), "family": p.family, "split": p.split} for p in prompts]
    demonstrations: list[dict[str, Any]] = []
    for name in ("train", "dev"):
        for p, response in world.sft_corpus(seed, name):
            row = {"prompt": world_message(p.text), "completion": response, "family": p.family}
            demonstrations.append(row | {"split": name})
    paths = world_files(out)
    for path, rows in zip(paths, (asked, demonstrations, list(_world_pairs(seed))), strict=True):
        write_rows(path, rows)
    return paths


def world_files(out: Path) -> list[Path]:
    """What ``write_world`` writes into a folder."""
    return [out / f"{name}.jsonl" for name in ("prompts", "demonstrations", "preferences")]


def _world_pairs(seed: int) -> Iterator[dict[str, object]]:
    """Two pairs a prompt, where the two responses differ."""
    rng = random.Random(f"{seed}/pairs")
    for name in world.SPLITS:
        responses: dict[world.WorldPrompt, list[str]] = {}
        for prompt, response in world.sft_corpus(seed, name, per_prompt=4):
            responses.setdefault(prompt, []).append(response)
        for prompt, (a, b, c, d) in responses.items():
            for first, second in ((a, b), (c, d)):
                if first != second:
                    yield _world_pair(prompt, first, second, rng.random())


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
