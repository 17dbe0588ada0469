"""Biases of a scorer: what its scores have to do with features of the text, beside what the labels reward.

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

from collections.abc import Mapping, Sequence

import numpy as np

from preferl.data.types import Measures
from preferl.evaluation.columns import coefficient, defined, label_controls
from preferl.evaluation.features import feature_functions
from preferl.evaluation.scored import ScoredPairs
from preferl.statistics.calibration import (
    cluster_bootstrap,
    clustered_proportion,
    excess_preference,
    holm,
    partial_correlation,
)
from preferl.statistics.intervals import undefined

LENGTH_FEATURES = ("characters", "words")
MIN_DIFFERING = 10
"""Fewest pairs that must differ in a feature before anything is estimated about it."""


def bias_audit(
    scored: ScoredPairs,
    phrases: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Measures:
    """What the scores have to do with features of the text, and whether labels reward them as much."""
    prompt_N, gap_N = scored.prompt_N, scored.gap_N
    control, control_NK, label_N = label_controls(scored)
    length_N = np.array([len(p.chosen) - len(p.rejected) for p in scored.pairs], dtype=np.float64)

    def correlation(feature_N: np.ndarray, *controls: np.ndarray) -> Measures:
        columns_NK = np.column_stack(controls) if controls else None
        return defined(lambda: partial_correlation(gap_N, feature_N, columns_NK, prompt_N, level).json())

    rows = []
    for name, count in feature_functions(phrases).items():
        chosen_N = np.array([count(p.chosen) for p in scored.pairs], dtype=np.float64)
        rejected_N = np.array([count(p.rejected) for p in scored.pairs], dtype=np.float64)
        feature_N = chosen_N - rejected_N
        differs_N = feature_N != 0
        row: Measures = {
            "feature": name,
            "mean_chosen": float(chosen_N.mean()),
            "mean_rejected": float(rejected_N.mean()),
            "differing": int(differs_N.sum()),
        }
        if row["differing"] < MIN_DIFFERING:
            reason = f"{row['differing']} pairs differ in it; {MIN_DIFFERING} are needed"
            rows.append(row | {"verdict": None, "reason": reason})
            continue
        # Do they go together, at all and beyond what label and length explain?
        row["correlation"] = correlation(feature_N)
        row["given_label"] = correlation(feature_N, control_NK)
        if name not in LENGTH_FEATURES:
            row["given_label_and_length"] = correlation(feature_N, control_NK, length_N)
        # How often does each take the side with more of it? 1 if so, 0 if not, 0.5 where the scores tie. The
        # labels take the chosen side.
        toward_more_N = (np.sign(gap_N) * np.sign(feature_N))[differs_N]
        model_N = (1 + toward_more_N) / 2
        labels_N = (feature_N > 0)[differs_N].astype(np.float64)
        inside_N = prompt_N[differs_N]
        row["model_prefers_more"] = clustered_proportion(model_N, inside_N, level).json()
        row["labels_prefer_more"] = clustered_proportion(labels_N, inside_N, level).json()
        difference = cluster_bootstrap(model_N - labels_N, inside_N, level, resamples, seed)
        row["difference"] = difference.json()
        # And how much more than the labels, which decides the verdict?
        row["excess"] = defined(
            lambda f=feature_N: coefficient(excess_preference(gap_N, f, label_N, prompt_N, level))
        )
        rows.append(row)
    _judge(rows, level)
    over = [row["feature"] for row in rows if row["verdict"] == "over-rewarded"]
    return {"control": control, "features": rows, "over_rewarded": over, "position": position(scored, level)}


def _judge(rows: list[Measures], level: float) -> None:
    """Adds ``verdict`` to every row, with Holm's correction over the features that have an excess."""
    tested = [row for row in rows if row.get("excess", {}).get("value") is not None]
    corrected = holm([row["excess"]["p_value"] for row in tested]).tolist() if tested else []
    for row, p_value in zip(tested, corrected, strict=True):
        row["excess"]["p_holm"] = p_value
        sign = "over-rewarded" if row["excess"]["value"] > 0 else "under-rewarded"
        row["verdict"] = sign if p_value < 1 - level else "none"
    for row in rows:
        row.setdefault("verdict", None)


def position(scored: ScoredPairs, level: float = 0.95) -> Measures:
    """How often the first response shown was preferred, from ``chosen_position`` (0 = first)."""
    places = [p.columns.get("chosen_position") for p in scored.pairs]
    known_N = np.array([not isinstance(place, bool) and place in (0, 1) for place in places])
    if not known_N.any():
        return {"pairs": 0, "first_wins": undefined("no pair has a column chosen_position of 0 or 1")}
    first_N = np.array([place == 0 for place, known in zip(places, known_N, strict=True) if known])
    share = clustered_proportion(first_N, scored.prompt_N[known_N], level)
    return {"pairs": int(known_N.sum()), "first_wins": share.json()}
