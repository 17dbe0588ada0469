"""Whether a scorer's margins are the log-odds that they should be, on pairs it has seen and on others."""

from dataclasses import asdict

from preferl.data.types import Measures
from preferl.evaluation.columns import coefficient, defined, label_controls
from preferl.evaluation.scored import ScoredPairs, oriented
from preferl.statistics import expected_calibration_error
from preferl.statistics.calibration import (
    Coefficient,
    calibration_error_floor,
    cluster_bootstrap,
    logistic_coefficients,
    reliability_curve,
)


def score_summary(scored: ScoredPairs, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Measures:
    """Mean score of preferred and of rejected responses, mean margin and accuracy."""
    margin = cluster_bootstrap(scored.gap_N, scored.prompt_N, level, resamples, seed)
    return {
        "pairs": len(scored.pairs),
        "mean_chosen": float(scored.score_chosen_N.mean()),
        "mean_rejected": float(scored.score_rejected_N.mean()),
        "mean_margin": margin.json(),
        "accuracy": scored.accuracy(level),
    }


def calibration(
    scored: ScoredPairs,
    seen: ScoredPairs | None = None,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Measures:
    """Scores of unseen and seen pairs, reliability curve, calibration error and slope on the unseen ones.

    ``ece_floor`` is what a perfect model
    would show at this number of pairs. ``slope`` is 1 for a calibrated model and below 1 for an
    overconfident one.
    """
    summary = {"level": level, "resamples": resamples, "seed": seed}
    gap_N, prompt_N = scored.gap_N, scored.prompt_N
    prob_N, label_N = oriented(gap_N, seed)
    curve = reliability_curve(prob_N, label_N, bins, level, prompt_N)
    return {
        "unseen": score_summary(scored, **summary),
        "seen": score_summary(seen, **summary) if seen else None,
        "reliability": [asdict(row) for row in curve],
        "ece": expected_calibration_error(prob_N, label_N, bins),
        "ece_floor": calibration_error_floor(prob_N, bins),
        "slope": defined(lambda: coefficient(_slope(scored, level))),
    }


def _slope(scored: ScoredPairs, level: float) -> Coefficient:
    label_N = label_controls(scored)[2]
    return logistic_coefficients(scored.gap_N[:, None], label_N, scored.prompt_N, level)[0]
