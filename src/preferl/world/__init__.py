"""The embedded world: a toy assistant whose prompts, responses and true reward are all known.

A response is content (right, wrong, missing) in a style (concise, verbose, hedged, flattering, bulleted,
refusing, padded with keywords). The facts and sentences are in ``facts.yaml``; docs/world.md shows examples.
"""

from preferl.world.gold import ASPECTS, BOUNDS, WEIGHTS, gold_reward, parse, well_formed
from preferl.world.prompts import FAMILIES, SPLITS, WorldPrompt, find, knows, shuffled_prompts
from preferl.world.responses import CONTENTS, STYLES, respond, sft_corpus

__all__ = [
    "ASPECTS",
    "BOUNDS",
    "CONTENTS",
    "FAMILIES",
    "SPLITS",
    "STYLES",
    "WEIGHTS",
    "WorldPrompt",
    "find",
    "gold_reward",
    "knows",
    "parse",
    "respond",
    "sft_corpus",
    "shuffled_prompts",
    "well_formed",
]
