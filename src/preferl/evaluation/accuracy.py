"""How often a scorer prefers the response that was preferred: of all pairs, by margin, category and style."""

from collections.abc import Sequence

import numpy as np

from preferl.data.records import Pair
from preferl.data.types import Measures
from preferl.evaluation.columns import column, numbers
from preferl.evaluation.scored import ScoredPairs
from preferl.statistics.calibration import cluster_bootstrap

CATEGORY_COLUMNS = ("subset", "category", "family", "aspect", "selection", "source")
REWARDBENCH_SECTIONS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst "
    "llmbar-adver-GPTOut llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}
"""Section -> its subsets, separated by spaces."""


def accuracy_with_interval(
    scored: ScoredPairs, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Measures:
    """Share of pairs whose chosen response scores higher (a tie counts half), and log-loss, with intervals.

    Log-loss is -log sigma(gap), which at the scale of the loss is what training minimises. Accuracy's
    interval is Wilson's, at the effective number of pairs where prompts have several; that of the log-loss
    resamples prompts.
    """
    prompt_N, correct_N = scored.prompt_N, scored.correct_N
    prompts = int(prompt_N.max()) + 1
    loss_N = np.logaddexp(0, -scored.gap_N)
    return {
        "pairs": len(correct_N),
        "prompts": prompts,
        "ties": int((scored.gap_N == 0).sum()),
        "level": level,
        "accuracy": scored.accuracy(level),
        "accuracy_interval": "Wilson over prompts" if prompts < len(correct_N) else "Wilson",
        "log_loss": cluster_bootstrap(loss_N, prompt_N, level, resamples, seed).json(),
    }


def accuracy_by_margin(scored: ScoredPairs, bins: int = 5, level: float = 0.95) -> Measures:
    """Accuracy in bins of how clear a pair is.

    Clear by the gap in gold reward, the label's probability (|2p - 1|) or the label's margin, whichever is
    known of every pair and varies, else by the model's own score gap. Bins hold about equally many pairs;
    a basis of few distinct values has one bin a value. ``low`` and ``high`` of a bin are the smallest and
    largest value in it.
    """
    basis, clear_N = _clearness(scored)
    distinct = np.unique(clear_N)
    if len(distinct) <= bins:
        bin_N = np.searchsorted(distinct, clear_N)
    else:
        edges = np.unique(np.quantile(clear_N, np.linspace(0, 1, bins + 1)[1:-1]))
        bin_N = np.searchsorted(edges, clear_N, side="right")
    rows = []
    for b in np.unique(bin_N):
        inside_N = bin_N == b
        rows.append(
            {
                "low": float(clear_N[inside_N].min()),
                "high": float(clear_N[inside_N].max()),
                "pairs": int(inside_N.sum()),
                "accuracy": scored.accuracy(level, inside_N),
            }
        )
    return {"basis": basis, "rows": rows}


def accuracy_by_category(
    scored: ScoredPairs, column: str | None = None, level: float = 0.95
) -> Measures | None:
    """Accuracy by a column's values, as in RewardBench (Lambert et al. 2024).

    Without ``column`` it is the first of `CATEGORY_COLUMNS` that names every pair and tells pairs apart.
    None where there is no such column. ``mean_of_categories`` weighs every category alike.
    """
    found = column if column else next((c for c in CATEGORY_COLUMNS if _tells_apart(scored.pairs, c)), None)
    values = [pair.columns.get(found) for pair in scored.pairs] if found else []
    if all(value is None for value in values):
        return None
    rows = _by_value(scored, ["(none)" if value is None else str(value) for value in values], level)
    mean = float(np.mean([row["accuracy"]["value"] for row in rows]))
    return {"column": found, "rows": rows, "mean_of_categories": mean}


def accuracy_by_style(scored: ScoredPairs, level: float = 0.95) -> list[Measures] | None:
    """Accuracy where the better response is plainer than the worse one (hard), as elaborate (normal) or more
    elaborate (easy), by the columns ``style_chosen`` and ``style_rejected`` (RM-Bench, Liu et al. 2025).

    None where a pair lacks them.
    """
    names = []
    for pair in scored.pairs:
        better, worse = pair.columns.get("style_chosen"), pair.columns.get("style_rejected")
        if not (isinstance(better, int) and isinstance(worse, int)):
            return None
        more_elaborate = int(np.sign(better - worse))
        names.append({-1: "hard", 0: "normal", 1: "easy"}[more_elaborate])
    return _by_value(scored, names, level)


def accuracy_by_section(by_category: Measures | None) -> list[Measures] | None:
    """RewardBench's four sections from its subsets (Lambert et al. 2024): means over pairs, except that
    mathematics weighs as much as all code together. None where the categories are not RewardBench's."""
    known = {row["category"]: row for row in by_category["rows"]} if by_category else {}
    rows = []
    for section, subsets in REWARDBENCH_SECTIONS.items():
        found = [known[subset] for subset in subsets.split() if subset in known]
        if not found:
            continue
        # The one subset of mathematics weighs what those of code weigh together, where there are such.
        code = sum(row["pairs"] for row in found if row["category"].startswith("hep-"))
        weight = [code if row["category"] == "math-prm" and code else row["pairs"] for row in found]
        accuracy = np.average([row["accuracy"]["value"] for row in found], weights=weight)
        pairs = sum(row["pairs"] for row in found)
        rows.append({"section": section, "subsets": len(found), "pairs": pairs, "accuracy": float(accuracy)})
    return rows or None


def _by_value(scored: ScoredPairs, values: Sequence[str], level: float) -> list[Measures]:
    value_N = np.array(values)
    rows = []
    for value in np.unique(value_N):
        inside_N = value_N == value
        rows.append(
            {
                "category": str(value),
                "pairs": int(inside_N.sum()),
                "accuracy": scored.accuracy(level, inside_N),
                "mean_margin": float(scored.gap_N[inside_N].mean()),
            }
        )
    return rows


def _tells_apart(pairs: Sequence[Pair], column: str) -> bool:
    values = [pair.columns.get(column) for pair in pairs]
    return all(isinstance(value, str) for value in values) and 2 <= len(set(values)) <= 100


def _clearness(scored: ScoredPairs) -> tuple[str, np.ndarray]:
    """What says how clear a pair is, and how clear each is by it: the first that is known and varies."""
    chosen_N, rejected_N = column(scored.pairs, "gold_chosen"), column(scored.pairs, "gold_rejected")
    p_N, margin_N = column(scored.pairs, "p_chosen"), numbers([p.margin for p in scored.pairs])
    known: dict[str, np.ndarray] = {}
    if chosen_N is not None and rejected_N is not None:
        known["gold reward gap"] = np.abs(chosen_N - rejected_N)
    if p_N is not None:
        known["label probability"] = np.abs(2 * p_N - 1)
    if margin_N is not None:
        known["label margin"] = np.abs(margin_N)
    for basis, clear_N in known.items():
        if np.ptp(clear_N) > 0:
            return basis, clear_N
    return "score gap", np.abs(scored.gap_N)
