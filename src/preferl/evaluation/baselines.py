"""What length and words alone would choose, on the same pairs."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from preferl.data.records import Pair, prompt_key
from preferl.data.types import Measures
from preferl.evaluation.scored import ScoredPairs
from preferl.statistics.calibration import (
    UndefinedStatistic,
    cluster_bootstrap,
    clustered_proportion,
)
from preferl.statistics.intervals import undefined


def baselines(
    train_pairs: Sequence[Pair],
    scored: ScoredPairs,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Measures:
    """Length and words alone against the reward model, on the same held-out pairs.

    ``shared_prompts`` counts held-out prompts that occur in training; it should be 0.
    """
    train_keys = {prompt_key(p.prompt) for p in train_pairs}
    rows = []
    for name, fit in (("length", fit_length), ("bag of words", fit_bag_of_words)):
        try:
            gap_N, detail = fit(train_pairs, scored.pairs)
        except UndefinedStatistic as error:
            nothing = undefined(str(error))
            rows.append({"baseline": name, "accuracy": nothing, "model_minus_baseline": nothing})
            continue
        correct_N = (gap_N > 0) + 0.5 * (gap_N == 0)
        accuracy = clustered_proportion(correct_N, scored.prompt_N, level)
        gain_N = scored.correct_N - correct_N
        gain = cluster_bootstrap(gain_N, scored.prompt_N, level, resamples, seed)
        row = {"accuracy": accuracy.json(), "model_minus_baseline": gain.json()}
        rows.append({"baseline": name} | row | detail)
    return {
        "train_pairs": len(train_pairs),
        "shared_prompts": len(train_keys & {prompt_key(p.prompt) for p in scored.pairs}),
        "rows": rows,
    }


def fit_length(train: Sequence[Pair], held_out: Sequence[Pair]) -> tuple[np.ndarray, Measures]:
    """Gaps of always preferring the longer, or the shorter, response, as training labels have it."""
    wins = sum(int(np.sign(len(p.chosen) - len(p.rejected))) for p in train)
    sign = 1.0 if wins >= 0 else -1.0
    gap_N = np.array([len(p.chosen) - len(p.rejected) for p in held_out], dtype=np.float64)
    return sign * gap_N, {"prefers": "longer" if sign > 0 else "shorter"}


def fit_bag_of_words(
    train: Sequence[Pair],
    held_out: Sequence[Pair],
    inverse_penalties: Sequence[float] = (0.3, 3, 30),
) -> tuple[np.ndarray, Measures]:
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
        raise UndefinedStatistic("a bag of words needs two training pairs or more, with words in them")
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit(texts)

    def differences(pairs: Sequence[Pair]) -> Any:
        chosen_NV = vectorizer.transform([p.chosen for p in pairs])
        rejected_NV = vectorizer.transform([p.rejected for p in pairs])
        return (chosen_NV - rejected_NV).tocsr()

    # Without intercept a pair's order does not matter to the loss; scikit-learn needs two classes all the
    # same, so every other pair is turned round: label 0 and the negative difference.
    label_N = np.arange(len(train)) % 2
    sign_N = 2 * label_N - 1
    x_NV = differences(train).multiply(sign_N[:, None]).tocsr()
    prompts = [prompt_key(p.prompt) for p in train]

    def fit(inverse_penalty: float, rows: Any) -> Any:
        model = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=1000)
        return model.fit(x_NV[rows], label_N[rows])

    # Few prompts cannot say which penalty is best; the middle one is taken.
    best = inverse_penalties[len(inverse_penalties) // 2]
    if len(set(prompts)) >= 30:
        loss = dict.fromkeys(inverse_penalties, 0.0)
        for fit_rows, test_rows in GroupKFold(3).split(x_NV, groups=prompts):
            for inverse_penalty in inverse_penalties:
                log_odds_N = fit(inverse_penalty, fit_rows).decision_function(x_NV[test_rows])
                loss[inverse_penalty] += float(np.logaddexp(0, -log_odds_N * sign_N[test_rows]).sum())
        best = min(loss, key=loss.__getitem__)
    model = fit(best, np.arange(len(train)))
    gap_N = np.asarray(model.decision_function(differences(held_out)), dtype=np.float64)
    return gap_N, {"words": len(vectorizer.vocabulary_), "inverse_penalty": best}
