"""Responses to read, side by side: which are shown, and what stands with each."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from preferl.reporting.formats import cut_text, finite, marked
from preferl.reporting.measures import NAMES, Stages, main_measure, summary_of

FEW = 5  # drawn at random, before the extremes
MOST = 100  # of a page, which folds all but the first ten
MOST_TURNS = 12  # of a dialogue, the last ones
WHO = {"reference": "SFT model", "policy": "policy"}


def examples(stages: Stages, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with both responses: five drawn by a seed, the extremes, then others that were drawn."""
    if "evaluate" not in stages:
        return []
    rows = stages["evaluate"].samples
    key = main_measure(summary_of(stages))
    gains = {i: gain for i, row in enumerate(rows) if (gain := gain_of(row, key)) is not None}
    ratios = {i: ratio for i, row in enumerate(rows) if (ratio := finite(row.get("kl"))) is not None}
    by_gain = sorted(gains, key=gains.__getitem__)
    wanted = [(i, f"largest gain in {NAMES[key]}") for i in by_gain[::-1][:2] if gains[i] > 0]
    wanted += [(i, f"largest loss of {NAMES[key]}") for i in by_gain[:2] if gains[i] < 0]
    if ratios:
        wanted.append((max(ratios, key=ratios.__getitem__), "furthest from the SFT model"))

    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    drawn = [(i, "drawn at random") for i in order]
    picked: dict[int, str] = {}
    for i, why in drawn[:FEW] + wanted + drawn[FEW:]:
        picked.setdefault(i, why)
    return [example(rows[i], why, gains.get(i)) for i, why in list(picked.items())[:MOST]]


def gain_of(row: Mapping[str, Any], key: str) -> float | None:
    """What the policy's response has more than the SFT model's; None where one of them has no number."""
    after, before = finite(row.get(f"policy_{key}")), finite(row.get(f"reference_{key}"))
    return None if after is None or before is None else after - before


def example(row: Mapping[str, Any], why: str, gain: float | None) -> dict[str, Any]:
    """What the page shows of a row, and by what it can be sorted."""
    texts = {who: cut_text(row[who]).strip() or "(empty)" for who in WHO}
    return {
        "why": why,
        "prompt": cut_text(row["prompt"]),
        "turns": turns_of(row.get("turns", ())),
        "responses": [
            {
                "who": name,
                "text": texts[who],
                "finished": row.get(f"{who}_finished", True),
                "numbers": numbers_of(row, who),
            }
            for who, name in WHO.items()
        ],
        "gain": gain,
        "log_ratio": finite(row.get("kl")),
        "length": len(row["policy"]),
        "cut": not row.get("policy_finished", True),
    }


def turns_of(turns: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Who said what, the last turns of a long dialogue."""
    said = [(str(turn["role"]), cut_text(str(turn["content"]))) for turn in turns]
    left_out = len(said) - MOST_TURNS
    if left_out <= 0:
        return said
    return [("…", f"{left_out} earlier turns"), *said[-MOST_TURNS:]]


def numbers_of(row: Mapping[str, Any], who: str) -> list[tuple[str, str, bool]]:
    """The name and the value of every number of a response, and whether it is none. A response has a reward
    and a log-ratio; only means of them are gains and a KL."""
    measures = [key for key in NAMES if key == "score" or f"{who}_{key}" in row]
    found = [(NAMES[key], *marked(row.get(f"{who}_{key}"))) for key in measures]
    return found + ([("log π/π_ref", *marked(row.get("kl")))] if who == "policy" else [])
