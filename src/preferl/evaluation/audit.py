"""The audit of a reward model: accuracy, calibration, biases, baselines and where it contradicts the labels.

Scores are at the scale of the loss, so that score(chosen) - score(rejected) is a log-odds. Every function
returns plain dictionaries without NaN. A number with its interval is ``{"value", "low", "high"}``; where the
data do not determine it the three are None and ``reason`` says why. Pairs of one prompt are one cluster:
intervals are Wilson's where every prompt has one pair, at the effective sample size or by resampling prompts
elsewhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from preferl.data.records import Pair, Prompt, dialogue_text, prompt_text
from preferl.data.splits import normalised
from preferl.data.types import Measures, Scorer
from preferl.evaluation.accuracy import (
    CATEGORY_COLUMNS,
    accuracy_by_category,
    accuracy_by_margin,
    accuracy_by_section,
    accuracy_by_style,
    accuracy_with_interval,
)
from preferl.evaluation.baselines import baselines
from preferl.evaluation.benchmarks import benchmark_score
from preferl.evaluation.bias import bias_audit
from preferl.evaluation.calibration import calibration, score_summary
from preferl.evaluation.columns import is_number
from preferl.evaluation.pairs import ANALYSIS_PAIRS, DEMONSTRATION_PAIRS, UNSEEN_PAIRS
from preferl.evaluation.scored import ScoredPairs, scores_of, those_read
from preferl.judging.judges import PairwiseJudge
from preferl.judging.reward_functions import accept_columns
from preferl.judging.scorers import reward_models, unread_rows
from preferl.statistics.calibration import (
    clustered_proportion,
)
from preferl.statistics.intervals import undefined


def audit(
    scored: ScoredPairs,
    train_pairs: Sequence[Pair] = (),
    seen: ScoredPairs | None = None,
    member_score_chosen_MN: np.ndarray | None = None,
    member_score_rejected_MN: np.ndarray | None = None,
    category_column: str | None = None,
    phrases: Mapping[str, Sequence[str]] | None = None,
    disagreement_count: int = 20,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Measures:
    """Everything there is data for; ``left_out`` says what is missing and why.

    Args:
        scored: held-out pairs with scores.
        train_pairs: what the baselines learn from; needs no scores.
        seen: training pairs with scores (some of them will do), for calibration on seen pairs.
        member_score_chosen_MN: scores of M members of an ensemble, for the same pairs.
        member_score_rejected_MN: the same, of the rejected responses.
        category_column: the column that names a pair's category; found among the usual names where None.
        phrases: more phrase lists, added to `features.PHRASES`.
        disagreement_count: most rows of ``disagreements``.
        level: confidence of all intervals.
        resamples: of the bootstrap over prompts.
        seed: of bootstrap and orientation.
    """
    bootstrap = {"level": level, "resamples": resamples, "seed": seed}
    report: Measures = {
        "accuracy": accuracy_with_interval(scored, **bootstrap),
        "calibration": calibration(scored, seen, **bootstrap),
        "by_margin": accuracy_by_margin(scored, level=level),
        "by_category": accuracy_by_category(scored, category_column, level),
        "by_style": accuracy_by_style(scored, level),
        "bias": bias_audit(scored, phrases, **bootstrap),
        "disagreements": disagreements(scored, disagreement_count),
    }
    left_out = {}
    report["by_section"] = accuracy_by_section(report["by_category"])
    benchmark = benchmark_score(scored, level)
    if benchmark is not None:
        report["benchmark"] = benchmark
    for name in ("by_style", "by_section"):
        if report[name] is None:
            del report[name]
    if report["by_category"] is None:
        del report["by_category"]
        left_out["by_category"] = (
            f"no column {category_column or ' / '.join(CATEGORY_COLUMNS)} tells pairs apart"
        )
    if train_pairs:
        report["baselines"] = baselines(train_pairs, scored, **bootstrap)
    else:
        left_out["baselines"] = "no training pairs to learn from"
    if member_score_chosen_MN is not None and member_score_rejected_MN is not None:
        report["members"] = member_agreement(
            scored, member_score_chosen_MN, member_score_rejected_MN, level=level
        )
    else:
        left_out["members"] = "no scores of ensemble members"
    return report | {"left_out": left_out}


def audit_scorer(
    scorer: Scorer,
    unseen: ScoredPairs,
    train_pairs: Sequence[Pair],
    scale: float = 1.0,
    seed: int = 0,
    category_column: str | None = None,
    most_seen: int = 1000,
    phrases: Mapping[str, Sequence[str]] | None = None,
) -> Measures:
    """`audit` of a scorer and of its members, on seen and unseen pairs, and on preferl's own pairs.

    ``scale`` brings scores to the scale of the loss, where a difference is a log-odds; those of ``unseen``
    are there already. ``phrases`` are more lists of them.
    """
    seen_pairs = train_pairs[:most_seen]
    seen = None
    if seen_pairs:
        seen = those_read(seen_pairs, *scores_of(scorer, seen_pairs), scale)
    members = list(reward_models(scorer).values())
    of_members = {}
    if len(members) > 1:
        scores_M2N = np.array([scores_of(member, unseen.pairs) for member in members]) * scale
        of_members = {
            "member_score_chosen_MN": scores_M2N[:, 0],
            "member_score_rejected_MN": scores_M2N[:, 1],
        }
    found = audit(
        unseen,
        train_pairs,
        seen,
        category_column=category_column,
        phrases=phrases,
        seed=seed,
        **of_members,
    )
    return found | {
        "demonstration": score_pairs(scorer, train_pairs=train_pairs),
        "analysis": score_pairs(scorer, ANALYSIS_PAIRS + UNSEEN_PAIRS, train_pairs=train_pairs),
    }


def score_pairs(
    scorer: Scorer,
    pairs: Sequence[Pair] = DEMONSTRATION_PAIRS + UNSEEN_PAIRS,
    level: float = 0.95,
    train_pairs: Sequence[Pair] = (),
) -> Measures:
    """Mean score of preferred and of rejected responses, margin and accuracy, for seen and unseen pairs.

    Example:
        >>> score_pairs(lambda prompts, completions: [-len(c) for c in completions])["unseen"]["accuracy"]
        {'value': 1.0, 'low': 0.5101091635454027, 'high': 1.0}

    Returns:
        ``seen`` and ``unseen`` by the pairs' own column (None where there are no such pairs),
        ``by_category`` and ``rows``, of which ``trained_on`` says whether ``train_pairs`` hold them.
    """
    if isinstance(scorer, PairwiseJudge):
        score_N2 = np.stack(scores_of(scorer, pairs), axis=1)
    else:
        # Chosen and rejected of a pair stand one after the other, so that the scores fold back into two
        # columns.
        prompts: list[Prompt] = []
        completions: list[str] = []
        for pair in pairs:
            prompts += [pair.prompt, pair.prompt]
            completions += [pair.chosen, pair.rejected]
        scores = accept_columns(scorer)(
            prompts=prompts, completions=completions, finished=[True] * len(completions)
        )
        score_N2 = np.asarray(scores, dtype=np.float64).reshape(-1, 2)
    if unread_rows(scorer) or isinstance(scorer, PairwiseJudge):
        scored = those_read(pairs, score_N2[:, 0], score_N2[:, 1])
        pairs = scored.pairs
        score_N2 = np.stack([scored.score_chosen_N, scored.score_rejected_N], axis=1)
    scored = ScoredPairs(pairs, score_N2[:, 0], score_N2[:, 1])
    seen_N = np.array([bool(pair.columns.get("seen")) for pair in pairs])
    trained = {(normalised(p.prompt), p.chosen, p.rejected) for p in train_pairs}
    rows = []
    for pair, score_2 in zip(pairs, score_N2, strict=True):
        row = {
            "prompt": prompt_text(pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "category": pair.columns.get("category"),
            "seen": bool(pair.columns.get("seen")),
            "trained_on": (normalised(pair.prompt), pair.chosen, pair.rejected) in trained,
            "score_chosen": float(score_2[0]),
            "score_rejected": float(score_2[1]),
        }
        rows.append(row)
    return {
        "seen": score_summary(scored.where(seen_N), level) if seen_N.any() else None,
        "unseen": score_summary(scored.where(~seen_N), level) if not seen_N.all() else None,
        "by_category": accuracy_by_category(scored, "category", level),
        "rows": rows,
    }


def disagreements(scored: ScoredPairs, count: int = 20) -> list[Measures]:
    """Pairs whose rejected response scores higher, the clearest first."""
    rows = []
    for i in np.argsort(scored.gap_N, kind="stable")[:count]:
        if scored.gap_N[i] >= 0:
            break
        pair = scored.pairs[i]
        label = {name: pair.columns.get(name) for name in ("gold_chosen", "gold_rejected", "p_chosen")}
        rows.append(
            {
                "index": int(i),
                "prompt": dialogue_text(pair.prompt),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "score_chosen": float(scored.score_chosen_N[i]),
                "score_rejected": float(scored.score_rejected_N[i]),
                **{name: value for name, value in label.items() if is_number(value)},
            }
        )
    return rows


def member_agreement(
    scored: ScoredPairs, score_chosen_MN: np.ndarray, score_rejected_MN: np.ndarray, level: float = 0.95
) -> Measures:
    """How far members of an ensemble agree, and whether their agreement means anything.

    A tie agrees half with a preference. ``unanimous`` pairs are those that all members order alike; on them
    accuracy is that of the common order, on ``divided`` ones that of ``scored``.
    """
    chosen_MN = np.asarray(score_chosen_MN, dtype=np.float64)
    rejected_MN = np.asarray(score_rejected_MN, dtype=np.float64)
    members, n = chosen_MN.shape if chosen_MN.ndim == 2 else (0, 0)
    if rejected_MN.shape != chosen_MN.shape or n != len(scored.pairs) or members < 2:
        raise ValueError(
            f"member scores have shapes {chosen_MN.shape} and {rejected_MN.shape}; two members or more and "
            f"{len(scored.pairs)} pairs are needed"
        )
    # 1 where a member prefers the chosen response, 0 where the rejected one, 0.5 at a tie; two members agree
    # on a pair by 1 minus the difference of that.
    prefer_MN = (1 + np.sign(chosen_MN - rejected_MN)) / 2
    agree_MM = 1 - np.abs(prefer_MN[:, None] - prefer_MN[None]).mean(-1)
    unanimous_N = (prefer_MN == prefer_MN[0]).all(0)
    groups: Measures = {}
    for name, inside_N, correct_N in (
        ("unanimous", unanimous_N, prefer_MN[0]),
        ("divided", ~unanimous_N, scored.correct_N),
    ):
        accuracy = undefined(f"no pair is {name}")
        if inside_N.any():
            accuracy = clustered_proportion(correct_N[inside_N], scored.prompt_N[inside_N], level).json()
        groups[name] = {"pairs": int(inside_N.sum()), "share": float(inside_N.mean()), "accuracy": accuracy}
    return {
        "members": members,
        "member_accuracy": prefer_MN.mean(1).tolist(),
        "agreement": agree_MM.tolist(),
        "mean_agreement": float(agree_MM[np.triu_indices(members, 1)].mean()),
        "mean_score_sd": float(np.concatenate([chosen_MN, rejected_MN], axis=1).std(0, ddof=1).mean()),
        "mean_gap_sd": float((chosen_MN - rejected_MN).std(0, ddof=1).mean()),
        **groups,
    }
