"""The audit of a reward model: accuracy, calibration, biases, baselines and where it contradicts the labels.

Scores are at the scale of the loss, so that score(chosen) - score(rejected) is a log-odds. Every function
returns plain dictionaries without NaN. A number with its interval is ``{"value", "low", "high"}``; where the
data do not determine it the three are None and ``reason`` says why. Pairs of one prompt are one cluster:
intervals are Wilson's where every prompt has one pair, at the effective sample size or by resampling prompts
elsewhere.

A response's features are counted, not judged. For each, four questions:
1. ``correlation``: do score and feature go together? (through the origin: the order of a pair is arbitrary)
2. ``given_label``, ``given_label_and_length``: still so between pairs whose gold reward, or label, is the
   same? Against a gold reward this is bias; against labels alone it may be quality that the label shows only
   in part.
3. ``model_prefers_more``, ``labels_prefer_more``: how often does each take the side with more of it? A good
   model is more decided than noisy labels, so a difference alone is no bias.
4. ``excess``: P(side with more), as the model states it, minus what the labels say. This one decides
   ``verdict``, with p-values corrected for the number of features (Holm 1979). The model's confidence is
   set right first, so a weak model often counts as ``under-rewarded``: the labels hold more of the feature
   than its noisy scores show, however strong their ``correlation`` with it is. Features of one text go
   together: where longer answers are over-rewarded, so may be lists.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from preferl.data.records import Preference, dialogue_text, prompt_key, prompt_text
from preferl.judging.features import feature_functions
from preferl.judging.pairs import ANALYSIS_PAIRS, DEMONSTRATION_PAIRS, UNSEEN_PAIRS
from preferl.judging.scored import Row, ScoredPairs, estimate, oriented, scores_of
from preferl.judging.scorers import Scorer, accept_columns, reward_models
from preferl.maths import calibration as maths
from preferl.maths import stats

LENGTH_FEATURES = ("characters", "words")
CATEGORY_COLUMNS = ("subset", "category", "family", "aspect", "selection", "source")
REWARDBENCH_SECTIONS = {
    section: subsets.split()
    for section, subsets in {
        "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
        "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst "
        "llmbar-adver-GPTOut llmbar-adver-manual",
        "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond "
        "donotanswer",
        "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
    }.items()
}
MIN_DIFFERING = 10
"""Fewest pairs that must differ in a feature before anything is estimated about it."""


def audit(
    scored: ScoredPairs,
    train_pairs: Sequence[Preference] = (),
    seen: ScoredPairs | None = None,
    member_score_chosen_MN: np.ndarray | None = None,
    member_score_rejected_MN: np.ndarray | None = None,
    category_column: str | None = None,
    phrases: Mapping[str, Sequence[str]] | None = None,
    disagreement_count: int = 20,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
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
    report: Row = {
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
    train_pairs: Sequence[Preference],
    scale: float = 1.0,
    seed: int = 0,
    category_column: str | None = None,
    most_seen: int = 1000,
) -> Row:
    """`audit` of a scorer and of its members, on seen and unseen pairs, and on preferl's own pairs.

    ``scale`` brings scores to the scale of the loss, where a difference is a log-odds; those of ``unseen``
    are there already.
    """
    seen_pairs = train_pairs[:most_seen]
    seen = None
    if seen_pairs:
        chosen_N, rejected_N = scores_of(scorer, seen_pairs)
        seen = ScoredPairs(seen_pairs, chosen_N * scale, rejected_N * scale)
    members = list(reward_models(scorer).values())
    of_members = {}
    if len(members) > 1:
        scores_M2N = np.array([scores_of(member, unseen.pairs) for member in members]) * scale
        of_members = {
            "member_score_chosen_MN": scores_M2N[:, 0],
            "member_score_rejected_MN": scores_M2N[:, 1],
        }
    found = audit(unseen, train_pairs, seen, category_column=category_column, seed=seed, **of_members)
    return found | {
        "demonstration": score_pairs(scorer),
        "analysis": score_pairs(scorer, ANALYSIS_PAIRS + UNSEEN_PAIRS),
    }


def accuracy_with_interval(
    scored: ScoredPairs, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Row:
    """Share of pairs whose chosen response scores higher (a tie counts half), and log-loss, with intervals.

    Log-loss is -log sigma(gap), which at the scale of the loss is what training minimises. Accuracy's
    interval is Wilson's where every prompt has one pair and resamples prompts elsewhere.
    """
    prompt_N, correct_N = scored.prompt_N, scored.correct_N
    prompts = int(prompt_N.max()) + 1
    # Where all pairs agree, resampling would give an interval of no width.
    resampled = prompts < len(correct_N) and 0 < correct_N.mean() < 1
    if resampled:
        accuracy = maths.cluster_bootstrap(correct_N, prompt_N, level, resamples, seed)
    else:
        accuracy = maths.clustered_proportion(correct_N, prompt_N, level)
    loss_N = np.logaddexp(0, -scored.gap_N)
    return {
        "pairs": len(correct_N),
        "prompts": prompts,
        "ties": int((scored.gap_N == 0).sum()),
        "level": level,
        "accuracy": estimate(*accuracy),
        "accuracy_interval": "bootstrap over prompts" if resampled else "Wilson",
        "log_loss": estimate(*maths.cluster_bootstrap(loss_N, prompt_N, level, resamples, seed)),
    }


def score_summary(scored: ScoredPairs, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Row:
    """Mean score of preferred and of rejected responses, mean margin and accuracy."""
    margin = maths.cluster_bootstrap(scored.gap_N, scored.prompt_N, level, resamples, seed)
    return {
        "pairs": len(scored.pairs),
        "mean_chosen": float(scored.score_chosen_N.mean()),
        "mean_rejected": float(scored.score_rejected_N.mean()),
        "mean_margin": estimate(*margin),
        "accuracy": scored.accuracy(level),
    }


def calibration(
    scored: ScoredPairs,
    seen: ScoredPairs | None = None,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """Scores of unseen and seen pairs, reliability curve, calibration error and slope on the unseen ones.

    ``ece_floor`` is what a perfect model
    would show at this number of pairs. ``slope`` is 1 for a calibrated model and below 1 for an
    overconfident one.
    """
    summary = {"level": level, "resamples": resamples, "seed": seed}
    gap_N, prompt_N = scored.gap_N, scored.prompt_N
    prob_N, label_N = oriented(gap_N, seed)
    curve = maths.reliability_curve(prob_N, label_N, bins, level, prompt_N)
    return {
        "unseen": score_summary(scored, **summary),
        "seen": score_summary(seen, **summary) if seen else None,
        "reliability": [asdict(row) for row in curve],
        "ece": stats.expected_calibration_error(prob_N, label_N, bins),
        "ece_floor": maths.calibration_error_floor(prob_N, bins),
        "slope": _defined(lambda: _coefficient(_slope(scored, level))),
    }


def accuracy_by_margin(scored: ScoredPairs, bins: int = 5, level: float = 0.95) -> Row:
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


def accuracy_by_category(scored: ScoredPairs, column: str | None = None, level: float = 0.95) -> Row | None:
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


def accuracy_by_style(scored: ScoredPairs, level: float = 0.95) -> list[Row] | None:
    """Accuracy where the better response is plainer than the worse one (hard), as elaborate (normal) or more
    elaborate (easy), by the columns ``style_chosen`` and ``style_rejected`` (RM-Bench, Liu et al. 2025).

    None where a pair lacks them.
    """
    styles = [tuple(p.columns.get(f"style_{side}") for side in ("chosen", "rejected")) for p in scored.pairs]
    if not all(isinstance(a, int) and isinstance(b, int) for a, b in styles):
        return None
    names = {-1: "hard", 0: "normal", 1: "easy"}
    return _by_value(scored, [names[int(np.sign(a - b))] for a, b in styles], level)


def accuracy_by_section(by_category: Row | None) -> list[Row] | None:
    """RewardBench's four sections from its subsets (Lambert et al. 2024): means over pairs, except that
    mathematics weighs as much as all code together. None where the categories are not RewardBench's."""
    known = {row["category"]: row for row in by_category["rows"]} if by_category else {}
    rows = []
    for section, subsets in REWARDBENCH_SECTIONS.items():
        found = [known[subset] for subset in subsets if subset in known]
        if not found:
            continue
        code = sum(row["pairs"] for row in found if row["category"].startswith("hep-"))
        weight = [code if row["category"] == "math-prm" and code else row["pairs"] for row in found]
        accuracy = np.average([row["accuracy"]["value"] for row in found], weights=weight)
        pairs = sum(row["pairs"] for row in found)
        rows.append({"section": section, "subsets": len(found), "pairs": pairs, "accuracy": float(accuracy)})
    return rows or None


def _by_value(scored: ScoredPairs, values: Sequence[str], level: float) -> list[Row]:
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


def score_pairs(
    scorer: Scorer, pairs: Sequence[Preference] = DEMONSTRATION_PAIRS + UNSEEN_PAIRS, level: float = 0.95
) -> Row:
    """Mean score of preferred and of rejected responses, margin and accuracy, for seen and unseen pairs.

    Example:
        >>> score_pairs(lambda prompts, completions: [-len(c) for c in completions])["unseen"]["accuracy"]
        {'value': 1.0, 'low': 0.5101091635454027, 'high': 1.0}

    Returns:
        ``seen`` and ``unseen`` (None where there are no such pairs), ``by_category`` and ``rows``.
    """
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    completions = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = accept_columns(scorer)(
        prompts=prompts, completions=completions, finished=[True] * len(completions)
    )
    score_N2 = np.asarray(scores, dtype=np.float64).reshape(-1, 2)
    scored = ScoredPairs(pairs, score_N2[:, 0], score_N2[:, 1])
    seen_N = np.array([bool(pair.columns.get("seen")) for pair in pairs])
    return {
        "seen": score_summary(scored.where(seen_N), level) if seen_N.any() else None,
        "unseen": score_summary(scored.where(~seen_N), level) if not seen_N.all() else None,
        "by_category": accuracy_by_category(scored, "category", level),
        "rows": [
            {
                "prompt": prompt_text(pair.prompt),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "category": pair.columns.get("category"),
                "seen": bool(pair.columns.get("seen")),
                "score_chosen": float(chosen),
                "score_rejected": float(rejected),
            }
            for pair, (chosen, rejected) in zip(pairs, score_N2, strict=True)
        ],
    }


def bias_audit(
    scored: ScoredPairs,
    phrases: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """What the scores have to do with features of the text, and whether labels reward them as much."""
    prompt_N, gap_N = scored.prompt_N, scored.gap_N
    control, control_NK, label_N = _label_controls(scored)
    length_N = np.array([len(p.chosen) - len(p.rejected) for p in scored.pairs], dtype=np.float64)

    def correlation(feature_N: np.ndarray, *controls: np.ndarray) -> Row:
        columns_NK = np.column_stack(controls) if controls else None
        return _defined(
            lambda: estimate(*maths.partial_correlation(gap_N, feature_N, columns_NK, prompt_N, level))
        )

    rows = []
    for name, count in feature_functions(phrases).items():
        chosen_N, rejected_N = (
            np.array([count(text) for text in texts], dtype=np.float64)
            for texts in ([p.chosen for p in scored.pairs], [p.rejected for p in scored.pairs])
        )
        feature_N = chosen_N - rejected_N
        differs_N = feature_N != 0
        row: Row = {
            "feature": name,
            "mean_chosen": float(chosen_N.mean()),
            "mean_rejected": float(rejected_N.mean()),
            "differing": int(differs_N.sum()),
        }
        if row["differing"] < MIN_DIFFERING:
            reason = f"{row['differing']} pairs differ in it; {MIN_DIFFERING} are needed"
            rows.append(row | {"verdict": None, "reason": reason})
            continue
        row["correlation"] = correlation(feature_N)
        row["given_label"] = correlation(feature_N, control_NK)
        if name not in LENGTH_FEATURES:
            row["given_label_and_length"] = correlation(feature_N, control_NK, length_N)
        toward_N = (np.sign(gap_N) * np.sign(feature_N))[differs_N]
        model_N, labels_N = (1 + toward_N) / 2, (feature_N > 0)[differs_N].astype(np.float64)
        inside_N = prompt_N[differs_N]
        row["model_prefers_more"] = estimate(*maths.clustered_proportion(model_N, inside_N, level))
        row["labels_prefer_more"] = estimate(*maths.clustered_proportion(labels_N, inside_N, level))
        difference = maths.cluster_bootstrap(model_N - labels_N, inside_N, level, resamples, seed)
        row["difference"] = estimate(*difference)
        row["excess"] = _defined(
            lambda f=feature_N: _coefficient(maths.excess_preference(gap_N, f, label_N, prompt_N, level))
        )
        rows.append(row)
    _judge(rows, level)
    over = [row["feature"] for row in rows if row["verdict"] == "over-rewarded"]
    return {"control": control, "features": rows, "over_rewarded": over, "position": position(scored, level)}


def position(scored: ScoredPairs, level: float = 0.95) -> Row:
    """How often the first response shown was preferred, from ``chosen_position`` (0 = first)."""
    shown = [p.columns.get("chosen_position") for p in scored.pairs]
    known_N = np.array([not isinstance(place, bool) and place in (0, 1) for place in shown])
    if not known_N.any():
        return {"pairs": 0, "first_wins": _undefined("no pair has a column chosen_position of 0 or 1")}
    first_N = np.array([place == 0 for place, known in zip(shown, known_N, strict=True) if known])
    share = maths.clustered_proportion(first_N, scored.prompt_N[known_N], level)
    return {"pairs": int(known_N.sum()), "first_wins": estimate(*share)}


def baselines(
    train_pairs: Sequence[Preference],
    scored: ScoredPairs,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """Length and words alone against the reward model, on the same held-out pairs.

    ``shared_prompts`` counts held-out prompts that occur in training; it should be 0.
    """
    train_keys = {prompt_key(p.prompt) for p in train_pairs}
    rows = []
    for name, fit in (("length", fit_length), ("bag of words", fit_bag_of_words)):
        try:
            gap_N, detail = fit(train_pairs, scored.pairs)
        except maths.UndefinedStatistic as error:
            nothing = _undefined(str(error))
            rows.append({"baseline": name, "accuracy": nothing, "model_minus_baseline": nothing})
            continue
        correct_N = (gap_N > 0) + 0.5 * (gap_N == 0)
        accuracy = maths.clustered_proportion(correct_N, scored.prompt_N, level)
        gain_N = scored.correct_N - correct_N
        gain = maths.cluster_bootstrap(gain_N, scored.prompt_N, level, resamples, seed)
        row = {"accuracy": estimate(*accuracy), "model_minus_baseline": estimate(*gain)}
        rows.append({"baseline": name} | row | detail)
    return {
        "train_pairs": len(train_pairs),
        "shared_prompts": len(train_keys & {prompt_key(p.prompt) for p in scored.pairs}),
        "rows": rows,
    }


def fit_length(train: Sequence[Preference], held_out: Sequence[Preference]) -> tuple[np.ndarray, Row]:
    """Gaps of always preferring the longer, or the shorter, response, as training labels have it."""
    wins = sum(int(np.sign(len(p.chosen) - len(p.rejected))) for p in train)
    sign = 1.0 if wins >= 0 else -1.0
    gap_N = np.array([len(p.chosen) - len(p.rejected) for p in held_out], dtype=np.float64)
    return sign * gap_N, {"prefers": "longer" if sign > 0 else "shorter"}


def fit_bag_of_words(
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    inverse_penalties: Sequence[float] = (0.3, 3, 30),
) -> tuple[np.ndarray, Row]:
    """Gaps of a logistic regression on differences of TF-IDF vectors, without intercept.

    The L2 penalty is chosen by 3-fold cross-validation over the training prompts, so that the baseline is
    not weak for want of tuning.

    Raises:
        UndefinedStatistic: there are fewer than two training pairs, or no words in them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    texts = [p.chosen for p in train] + [p.rejected for p in train]
    if len(train) < 2 or not any(re.search(r"\w", text) for text in texts):
        raise maths.UndefinedStatistic("a bag of words needs two training pairs or more, with words in them")
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit(texts)

    def differences(pairs: Sequence[Preference]) -> Any:
        chosen, rejected = ([p.chosen for p in pairs], [p.rejected for p in pairs])
        return (vectorizer.transform(chosen) - vectorizer.transform(rejected)).tocsr()

    # Without intercept a pair's order does not matter to the loss; two classes are needed all the same.
    x_NV, label_N = differences(train), np.arange(len(train)) % 2
    x_NV = x_NV.multiply((2 * label_N - 1)[:, None]).tocsr()
    prompts = [prompt_key(p.prompt) for p in train]

    def fit(inverse_penalty: float, rows: Any) -> Any:
        model = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=1000)
        return model.fit(x_NV[rows], label_N[rows])

    best = inverse_penalties[len(inverse_penalties) // 2]
    if len(set(prompts)) >= 30:
        loss = dict.fromkeys(inverse_penalties, 0.0)
        for fit_rows, test_rows in GroupKFold(3).split(x_NV, groups=prompts):
            for inverse_penalty in inverse_penalties:
                log_odds_N = fit(inverse_penalty, fit_rows).decision_function(x_NV[test_rows])
                loss[inverse_penalty] += float(
                    np.logaddexp(0, -log_odds_N * (2 * label_N[test_rows] - 1)).sum()
                )
        best = min(loss, key=loss.__getitem__)
    model = fit(best, np.arange(len(train)))
    gap_N = np.asarray(model.decision_function(differences(held_out)), dtype=np.float64)
    return gap_N, {"words": len(vectorizer.vocabulary_), "inverse_penalty": best}


def disagreements(scored: ScoredPairs, count: int = 20) -> list[Row]:
    """Pairs whose rejected response scores higher, the clearest first."""
    rows = []
    for i in np.argsort(scored.gap_N, kind="stable")[:count]:
        if scored.gap_N[i] >= 0:
            break
        pair = scored.pairs[i]
        known = {
            c: v for c in ("gold_chosen", "gold_rejected", "p_chosen") if _is_number(v := pair.columns.get(c))
        }
        rows.append(
            {
                "index": int(i),
                "prompt": dialogue_text(pair.prompt),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "score_chosen": float(scored.score_chosen_N[i]),
                "score_rejected": float(scored.score_rejected_N[i]),
                **known,
            }
        )
    return rows


def member_agreement(
    scored: ScoredPairs, score_chosen_MN: np.ndarray, score_rejected_MN: np.ndarray, level: float = 0.95
) -> Row:
    """How far members of an ensemble agree, and whether their agreement means anything.

    A tie agrees half with a preference. ``unanimous`` pairs are those that all members order alike; on them
    accuracy is that of the common order, on ``divided`` ones that of ``scored``.
    """
    chosen_MN, rejected_MN = (np.asarray(s, dtype=np.float64) for s in (score_chosen_MN, score_rejected_MN))
    members, n = chosen_MN.shape if chosen_MN.ndim == 2 else (0, 0)
    if rejected_MN.shape != chosen_MN.shape or n != len(scored.pairs) or members < 2:
        raise ValueError(
            f"member scores have shapes {chosen_MN.shape} and {rejected_MN.shape}; two members or more and "
            f"{len(scored.pairs)} pairs are needed"
        )
    prefer_MN = (1 + np.sign(chosen_MN - rejected_MN)) / 2
    agree_MM = 1 - np.abs(prefer_MN[:, None] - prefer_MN[None]).mean(-1)
    unanimous_N = (prefer_MN == prefer_MN[0]).all(0)
    groups: Row = {}
    for name, inside_N, correct_N in (
        ("unanimous", unanimous_N, prefer_MN[0]),
        ("divided", ~unanimous_N, scored.correct_N),
    ):
        accuracy = _undefined(f"no pair is {name}")
        if inside_N.any():
            accuracy = estimate(
                *maths.clustered_proportion(correct_N[inside_N], scored.prompt_N[inside_N], level)
            )
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


def _judge(rows: list[Row], level: float) -> None:
    """Adds ``verdict`` to every row, with Holm's correction over the features that have an excess."""
    tested = [row for row in rows if row.get("excess", {}).get("value") is not None]
    corrected = maths.holm([row["excess"]["p_value"] for row in tested]).tolist() if tested else []
    for row, p_value in zip(tested, corrected, strict=True):
        row["excess"]["p_holm"] = p_value
        sign = "over-rewarded" if row["excess"]["value"] > 0 else "under-rewarded"
        row["verdict"] = sign if p_value < 1 - level else "none"
    for row in rows:
        row.setdefault("verdict", None)


def _label_controls(scored: ScoredPairs) -> tuple[str, np.ndarray, np.ndarray]:
    """What stands for the label: its name, the control column chosen - rejected, and P(chosen)."""
    n = len(scored.pairs)
    p_N = _column(scored.pairs, "p_chosen")
    label_N = np.ones(n) if p_N is None or p_N.min() < 0 or p_N.max() > 1 else p_N
    chosen_N, rejected_N = (_column(scored.pairs, f"gold_{side}") for side in ("chosen", "rejected"))
    if chosen_N is not None and rejected_N is not None and (chosen_N != rejected_N).any():
        return "gold reward", chosen_N - rejected_N, label_N
    # Chosen - rejected of a label that is 1 or 0: the constant 1.
    return "label", np.ones(n), label_N


def _tells_apart(pairs: Sequence[Preference], column: str) -> bool:
    values = [pair.columns.get(column) for pair in pairs]
    return all(isinstance(value, str) for value in values) and 2 <= len(set(values)) <= 100


def _clearness(scored: ScoredPairs) -> tuple[str, np.ndarray]:
    chosen_N, rejected_N = (_column(scored.pairs, f"gold_{side}") for side in ("chosen", "rejected"))
    p_N, margin_N = _column(scored.pairs, "p_chosen"), _row([p.margin for p in scored.pairs])
    for basis, clear_N in (
        (
            "gold reward gap",
            None if chosen_N is None or rejected_N is None else np.abs(chosen_N - rejected_N),
        ),
        ("label probability", None if p_N is None else np.abs(2 * p_N - 1)),
        ("label margin", None if margin_N is None else np.abs(margin_N)),
    ):
        if clear_N is not None and np.ptp(clear_N) > 0:
            return basis, clear_N
    return "score gap", np.abs(scored.gap_N)


def _column(pairs: Sequence[Preference], name: str) -> np.ndarray | None:
    return _row([p.columns.get(name) for p in pairs])


def _row(values: Sequence[Any]) -> np.ndarray | None:
    """The values as numbers, or None unless all of them are finite numbers."""
    return np.array(values, dtype=np.float64) if all(map(_is_number, values)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _slope(scored: ScoredPairs, level: float) -> maths.Coefficient:
    label_N = _label_controls(scored)[2]
    return maths.logistic_coefficients(scored.gap_N[:, None], label_N, scored.prompt_N, level)[0]


def _coefficient(found: maths.Coefficient) -> Row:
    return estimate(found.value, found.low, found.high) | {"p_value": found.p_value}


def _undefined(reason: str) -> Row:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _defined(estimate: Callable[[], Row]) -> Row:
    try:
        return estimate()
    except maths.UndefinedStatistic as error:
        return _undefined(str(error))
