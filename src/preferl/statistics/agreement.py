"""Agreement between annotators, and one answer out of several; NumPy arrays of A annotators and U units.

Answers are numbers; NaN where an annotator did not see a unit. An estimate that is undefined raises
``Undefined`` with the reason in words.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


class Undefined(ValueError):
    """An estimate that the data do not define; the message says why."""


def krippendorff_alpha(answer_AU: ArrayLike, level: Literal["nominal", "ordinal"]) -> float:
    """Krippendorff's alpha (2011): 1 is perfect agreement, 0 what chance gives.

    Args:
        answer_AU: answers, NaN where there is none.
        level: ``nominal`` (any two different answers disagree equally) or ``ordinal``.

    Raises:
        Undefined: no unit has two answers, or all answers are the same.
    """
    import krippendorff

    answer_AU = np.asarray(answer_AU, dtype=np.float64)
    shared_U = (~np.isnan(answer_AU)).sum(0) >= 2
    if not shared_U.any():
        raise Undefined("no item has two judgements yet")
    answer_AU = answer_AU[:, shared_U]
    if len(np.unique(answer_AU[~np.isnan(answer_AU)])) < 2:
        raise Undefined("everybody gave the same answer everywhere, so chance cannot be told from agreement")
    return float(krippendorff.alpha(reliability_data=answer_AU, level_of_measurement=level))


def fleiss_kappa(answer_AU: ArrayLike) -> float:
    """Fleiss' kappa (1971) over the units with as many answers as the most frequent number of answers.

    Raises:
        Undefined: no unit has two answers, or all answers are the same.
    """
    answer_AU = np.asarray(answer_AU, dtype=np.float64)
    count_U = (~np.isnan(answer_AU)).sum(0)
    if not (count_U >= 2).any():
        raise Undefined("no item has two judgements yet")
    counts, frequency = np.unique(count_U[count_U >= 2], return_counts=True)
    kept_AU = answer_AU[:, count_U == counts[np.argmax(frequency)]]
    values = np.unique(kept_AU[~np.isnan(kept_AU)])
    if len(values) < 2:
        raise Undefined("everybody gave the same answer everywhere, so chance cannot be told from agreement")
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    return float(kappa(np.stack([(kept_AU == value).sum(0) for value in values], axis=1)))


def cohen_kappa(first_U: ArrayLike, second_U: ArrayLike) -> float:
    """Cohen's kappa (1960) of two annotators, over the units that both answered.

    Raises:
        Undefined: they share no unit, or both always gave one and the same answer.
    """
    first_U, second_U = np.asarray(first_U, dtype=np.float64), np.asarray(second_U, dtype=np.float64)
    both_U = ~np.isnan(first_U) & ~np.isnan(second_U)
    if not both_U.any():
        raise Undefined("they share no item")
    first_U, second_U = first_U[both_U], second_U[both_U]
    values = np.unique(np.concatenate([first_U, second_U]))
    if len(values) < 2:
        raise Undefined("both always gave the same answer")
    from statsmodels.stats.inter_rater import cohens_kappa

    # A row for each answer of the first: how often the second gave each answer to the same units.
    table = []
    for answer in values:
        beside_it = second_U[first_U == answer]
        table.append([(beside_it == other).sum() for other in values])
    # Without its variance, whose rounding can go below 0.
    return float(cohens_kappa(np.asarray(table), return_results=False))  # type: ignore[arg-type]


@dataclass(frozen=True)
class DawidSkene:
    """Posterior over the C true answers of each unit, and P(annotator says d | truth is c)."""

    values_C: np.ndarray
    posterior_UC: np.ndarray
    confusion_ACC: np.ndarray
    prior_C: np.ndarray
    log_likelihood: float


def dawid_skene(
    answer_AU: ArrayLike, smoothing: float = 1.0, rounds: int = 200, tolerance: float = 1e-8
) -> DawidSkene:
    """Dawid and Skene's (1979) model of annotators with error rates of their own, fitted by EM.

    Starts from each unit's shares of answers. ``smoothing`` pseudo-answers are spread over each row of a
    confusion matrix, and half of them stand on its diagonal, so that an annotator with few answers is
    taken for a fair one.

    Raises:
        Undefined: there is no answer at all.
    """
    answer_AU = np.asarray(answer_AU, dtype=np.float64)
    given_AU = ~np.isnan(answer_AU)
    if not given_AU.any():
        raise Undefined("there are no judgements")
    values_C = np.unique(answer_AU[given_AU])
    C = len(values_C)
    said_AUC = (answer_AU[:, :, None] == values_C).astype(np.float64)
    votes_UC = said_AUC.sum(0)
    posterior_UC = (votes_UC + 1e-12) / (votes_UC + 1e-12).sum(-1, keepdims=True)
    extra_CC = smoothing * (0.5 * np.eye(C) + 0.5 / C)
    before = -np.inf
    for _ in range(rounds):
        # M: given what the truth probably is, how frequent each answer is and who confuses which.
        prior_C = posterior_UC.sum(0) + smoothing / C
        prior_C = prior_C / prior_C.sum()
        confusion_ACC = np.einsum("uc,aud->acd", posterior_UC, said_AUC) + extra_CC
        confusion_ACC /= confusion_ACC.sum(-1, keepdims=True)
        # E: given who confuses which, what the truth probably is; in logarithms, for many annotators.
        joint_UC = np.log(prior_C) + np.einsum("aud,acd->uc", said_AUC, np.log(confusion_ACC))
        top_U1 = joint_UC.max(-1, keepdims=True)
        total_U1 = top_U1 + np.log(np.exp(joint_UC - top_U1).sum(-1, keepdims=True))
        posterior_UC = np.exp(joint_UC - total_U1)
        likelihood = float(total_U1.sum())
        if abs(likelihood - before) < tolerance * max(1.0, abs(likelihood)):
            break
        before = likelihood
    return DawidSkene(values_C, posterior_UC, confusion_ACC, prior_C, likelihood)
