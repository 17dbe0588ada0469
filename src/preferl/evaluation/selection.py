"""Which pairs of responses are worth a label: those of one length and form, and a reward model's mistakes."""

from collections.abc import Sequence

import numpy as np

from preferl.evaluation.features import FEATURES, FORM

LENGTH_TOLERANCE = 0.1


def matched(first: str, second: str) -> bool:
    """Whether two responses differ by at most a tenth of the longer one's characters, and not in their form.

    Neither length nor lists, headings, bold type or code can explain a preference between them, so labels on
    such pairs teach a reward model something else (Chen et al. 2024, ODIN, on why it would learn length).

    Example:
        >>> matched("Paris, in France.", "Lyon, in France."), matched("Paris.", "It is Paris, I think.")
        (True, False)
    """
    longer = max(len(first), len(second))
    if abs(len(first) - len(second)) > LENGTH_TOLERANCE * longer:
        return False
    return all(FEATURES[name](first) == FEATURES[name](second) for name in FORM)


def most_contradictory(excess_K: np.ndarray, pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The pair of responses on which a reward model contradicts an annotator most.

    ``excess_K`` is the reward model's score minus the annotator's utility, each in units of its own standard
    deviation; the pair is the one with the largest difference of it: a response that the reward model likes
    and the annotator does not, beside one of which the opposite holds.

    Example:
        >>> most_contradictory(np.array([0.1, 2.0, -1.0]), [(0, 1), (0, 2), (1, 2)])
        (1, 2)
    """
    return max(pairs, key=lambda pair: abs(excess_K[pair[0]] - excess_K[pair[1]]))
