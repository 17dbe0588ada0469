"""Pairs of preferl's own (``world/pairs.jsonl``): small sets that show what a reward model has learnt.

The column ``seen`` says which ones a demonstration trains on and which it only ranks. A model that was
trained on other data has seen none of them.
"""

from preferl.data.records import Pair
from preferl.world.facts import pair_rows


def _pairs(name: str) -> tuple[Pair, ...]:
    """The pairs of one set, as records."""
    found = []
    for row in pair_rows():
        if row["set"] == name:
            prompt = [{"role": "user", "content": row["prompt"]}]
            columns = {
                "category": row["category"],
                "seen": row["seen"],
                "source": "preferl demonstration pairs",
            }
            found.append(Pair(prompt, row["chosen"], row["rejected"], None, columns))
    return tuple(found)


DEMONSTRATION_PAIRS = _pairs("demonstration")
UNSEEN_PAIRS = _pairs("unseen")
ANALYSIS_PAIRS = _pairs("analysis")
