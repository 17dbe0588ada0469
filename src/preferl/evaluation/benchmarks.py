"""Published scores of benchmarks, beside the accuracy on pairs that the audit gives for any data.

RewardBench 2 (Malik et al. 2025): a prompt of an ordinary subset counts where the right response scores above
all wrong ones (shared first places count by their share); Ties has a rule of its own; the score is the mean
over the subsets. RM-Bench (Liu et al. 2025): easy, normal and hard by domain, the mean over the domains.
JudgeBench (Tan et al. 2025): the share of pairs, by source. A tie of the scores never counts as right.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preferl.data.records import Pair, prompt_key
from preferl.data.types import Measures
from preferl.evaluation.scored import ScoredPairs
from preferl.statistics import wilson_interval

REWARD_BENCH_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
TIES = "Ties"
RM_BENCH = ("chat", "math", "code", "safety")
JUDGE_BENCH = ("response_model", "pair_id", "source")


@dataclass
class Item:
    """One prompt of a benchmark: the scores of its right and of its wrong responses, by text, and the columns
    of its row."""

    columns: Mapping[str, Any]
    right: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """The lowest score of a right response less the highest of a wrong one."""
        return min(self.right.values()) - max(self.wrong.values())

    @property
    def spread(self) -> float:
        """The highest score of a right response less the lowest."""
        return max(self.right.values()) - min(self.right.values())


def benchmark_score(scored: ScoredPairs, level: float = 0.95) -> Measures | None:
    """The score of the benchmark that the pairs are of, by its published rule; None where they are of none.

    Returns:
        ``benchmark``, ``score`` (None where a part of it cannot be had), ``rule``, and ``rows`` with
        ``category``, ``prompts``, ``score`` and, where it is a share of prompts, ``low`` and ``high``.
    """
    pairs = scored.pairs
    if all("num_correct" in p.columns and isinstance(p.columns.get("subset"), str) for p in pairs):
        return reward_bench_2(items_of(scored), level)
    if all({"style_chosen", "style_rejected", "domain"} <= p.columns.keys() for p in pairs):
        return rm_bench(scored)
    if all(set(JUDGE_BENCH) <= p.columns.keys() for p in pairs):
        return judge_bench(scored, level)
    return None


def items_of(scored: ScoredPairs) -> list[Item]:
    """The prompts of pairs with the scores of their responses. A row is known by its id, where it has one."""
    found: dict[Hashable, Item] = {}
    scores = zip(scored.score_chosen_N.tolist(), scored.score_rejected_N.tolist(), strict=True)
    for pair, (chosen, rejected) in zip(scored.pairs, scores, strict=True):
        item = found.setdefault(_row_of(pair), Item(pair.columns))
        item.right[pair.chosen] = chosen
        item.wrong[pair.rejected] = rejected
    return list(found.values())


def _row_of(pair: Pair) -> Hashable:
    columns = pair.columns
    return str(columns.get("id")), str(columns.get("subset")), prompt_key(pair.prompt)


# ------------------------------------------------------------------------------------------- RewardBench 2


def reward_bench_2(items: Sequence[Item], level: float) -> Measures:
    """RewardBench 2's score; ``rewardbench/utils.py`` of its authors is the published rule."""
    of_subset: dict[str, list[Item]] = {}
    for item in items:
        of_subset.setdefault(item.columns["subset"], []).append(item)
    rows: list[Measures] = []
    for subset in sorted(of_subset, key=lambda name: (name == TIES, name)):
        row: Measures = {"category": subset, "prompts": len(of_subset[subset])}
        if subset == TIES:
            row |= ties(of_subset[subset])
        else:
            won_N = np.array([best_of_all(item) for item in of_subset[subset]])
            row |= _share(won_N, level)
        rows.append(row)
    missing = [name for name in REWARD_BENCH_2 if name not in of_subset]
    known = [row["score"] for row in rows if row["score"] is not None]
    whole = not missing and len(known) == len(rows)
    ordinary_N = np.array([best_of_all(i) for i in items if i.columns["subset"] != TIES])
    found: Measures = {
        "benchmark": "RewardBench 2",
        "score": float(np.mean(known)) if whole else None,
        "rule": "best of 4: a prompt counts where the right response beats all wrong ones; Ties: .6 "
        "accuracy, .4 margins; the mean over subsets",
        "rows": rows,
    }
    if len(ordinary_N):
        found["prompts_right"] = _share(ordinary_N, level) | {"prompts": len(ordinary_N)}
    if not whole:
        found["missing"] = missing or [row["category"] for row in rows if row["score"] is None]
    return found


def best_of_all(item: Item) -> float:
    """1 where the right response scores above all wrong ones; of several that share the first place, its
    share of it."""
    best = max(*item.right.values(), *item.wrong.values())
    right = sum(score == best for score in item.right.values())
    first = right + sum(score == best for score in item.wrong.values())
    return right / first


def ties(items: Sequence[Item]) -> Measures:
    """The score of Ties: prompts with several right responses (``tied:N``), each beside one of the same kind
    with one right response (``ref:N``).

    .3 times the share of tied prompts whose right responses all score above all wrong ones, the same of ref
    prompts, .2 times the share of those with both in which right and wrong are further apart than the right
    ones among each other, .2 times the same where the ref prompt's margin is that large too, and .01 times
    the mean of tanh(smaller margin / spread - 1), which decides between equals.
    """
    of_kind: dict[str, dict[str, Item]] = {"tied": {}, "ref": {}}
    for item in items:
        kind, _, number = str(item.columns.get("id")).partition(":")
        if kind in of_kind:
            of_kind[kind][number] = item
    tied, ref = of_kind["tied"], of_kind["ref"]
    accuracy = {
        kind: float(np.mean([item.margin > 0 for item in found.values()])) if found else None
        for kind, found in of_kind.items()
    }
    both = [number for number in tied if number in ref]
    parts: Measures = {"accuracy_tied": accuracy["tied"], "accuracy_ref": accuracy["ref"]}
    if not both:
        return {"score": None, **parts, "reason": "no prompt has both a tied and a ref row"}
    spread_N = np.array([tied[number].spread for number in both])
    margin_N = np.array([tied[number].margin for number in both])
    smaller_N = np.minimum(margin_N, [ref[number].margin for number in both])
    with np.errstate(divide="ignore", invalid="ignore"):  # right responses that all score the same
        closeness_N = np.nan_to_num(np.tanh(smaller_N / spread_N - 1), nan=0.0)
    preferred, hard = float((margin_N > spread_N).mean()), float((smaller_N > spread_N).mean())
    assert accuracy["tied"] is not None
    assert accuracy["ref"] is not None
    score = 0.3 * accuracy["tied"] + 0.3 * accuracy["ref"] + 0.2 * preferred + 0.2 * hard
    score += 0.01 * float(closeness_N.mean())
    return {"score": score, **parts, "margin_preferred": preferred, "margin_preferred_hard": hard}


# ----------------------------------------------------------------------------------------------- the others


def rm_bench(scored: ScoredPairs) -> Measures:
    """RM-Bench's score: hard where the right response is plainer than the wrong one, normal where they are of
    one style, easy where it is more elaborate; the mean of the three in each domain."""
    right_N = scored.gap_N > 0
    style_N = np.array(
        [np.sign(p.columns["style_chosen"] - p.columns["style_rejected"]) for p in scored.pairs]
    )
    domain_N = np.array([domain_of(str(pair.columns["domain"])) for pair in scored.pairs])
    rows: list[Measures] = []
    levels: dict[str, list[float]] = {"hard": [], "normal": [], "easy": []}
    for domain in np.unique(domain_N):
        row: Measures = {"category": str(domain)}
        inside_N = domain_N == domain
        prompts = {prompt_key(scored.pairs[i].prompt) for i in np.flatnonzero(inside_N)}
        row["prompts"] = len(prompts)
        for name, sign in (("hard", -1), ("normal", 0), ("easy", 1)):
            cell_N = right_N[inside_N & (style_N == sign)]
            row[name] = float(cell_N.mean()) if len(cell_N) else None
            if row[name] is not None:
                levels[name].append(row[name])
        three = [row[name] for name in levels]
        row["score"] = None if None in three else float(np.mean(three))
        rows.append(row)
    missing = [name for name in RM_BENCH if name not in domain_N]
    known = [row["score"] for row in rows if row["score"] is not None]
    whole = not missing and len(known) == len(rows)
    found: Measures = {
        "benchmark": "RM-Bench",
        "score": float(np.mean(known)) if whole else None,
        "rule": "the mean of hard, normal and easy in each domain, the mean over domains; a tie is wrong",
        "rows": rows,
        **{name: float(np.mean(values)) if values else None for name, values in levels.items()},
    }
    return found if whole else found | {"missing": missing}


def domain_of(name: str) -> str:
    """RM-Bench's domain of a row: ``safety-refuse`` and ``safety-response`` are of safety.

    Example:
        >>> domain_of("safety-refuse")
        'safety'
    """
    return next((domain for domain in RM_BENCH if name.startswith(domain)), name)


def judge_bench(scored: ScoredPairs, level: float) -> Measures:
    """JudgeBench's score of a reward model: the share of pairs, and the same by source."""
    right_N = (scored.gap_N > 0).astype(float)
    source_N = np.array([str(pair.columns["source"]) for pair in scored.pairs])
    rows = [
        {"category": str(source), "prompts": int((source_N == source).sum())}
        | _share(right_N[source_N == source], level)
        for source in np.unique(source_N)
    ]
    rule = "the share of pairs whose better response scores higher; a tie is wrong"
    return {"benchmark": "JudgeBench", "score": float(right_N.mean()), "rule": rule, "rows": rows}


def _share(won_N: np.ndarray, level: float) -> Measures:
    """A share of prompts with Wilson's interval."""
    low, high = wilson_interval(float(won_N.sum()), len(won_N), level)
    return {"score": float(won_N.mean()), "low": low, "high": high}
