"""Pairs of preferl's own (``world/pairs.jsonl``) as records: small sets that show what a reward model has
learnt."""

from preferl.data.records import Pair
from preferl.world.facts import pair_rows


def own_pairs(name: str) -> tuple[Pair, ...]:
    """The pairs of one set: ``demonstration`` (six), ``analysis`` (ten) or ``unseen`` (four).

    The column ``seen`` says which ones a demonstration trains on and which it only ranks. A model that was
    trained on other data has seen none of them.
    """
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
