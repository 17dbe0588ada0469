"""Gates on what training reaches: a quantile and the worst of several seeds, never one trajectory.

Sampling turns a rounding error into another response, and a few updates later the run is another one: on
another processor a seed is another draw. So seven of eight seeds must reach what is usual, all of them what
is tolerable, and a failure prints every seed.
"""

import math
from collections.abc import Sequence

SEEDS = range(8)
SHARE = 7 / 8


def require_at_least(usual: float, worst: float, found: Sequence[float]) -> None:
    """``found`` has a figure of each seed, in order: seven eighths reach ``usual`` and all reach ``worst``.

    Raises:
        AssertionError: they do not; it names the worst seed and prints all.
    """
    gate(usual, worst, found, [figure >= usual for figure in found], min(found), min(found) >= worst)


def require_at_most(usual: float, worst: float, found: Sequence[float]) -> None:
    """The same from above: seven eighths stay at or below ``usual`` and all at or below ``worst``.

    Raises:
        AssertionError: they do not; it names the worst seed and prints all.
    """
    gate(usual, worst, found, [figure <= usual for figure in found], max(found), max(found) <= worst)


def gate(
    usual: float, worst: float, found: Sequence[float], passed: Sequence[bool], extreme: float, held: bool
) -> None:
    assert len(found) >= len(SEEDS), f"{len(found)} seeds are too few for a quantile"
    needed = math.ceil(SHARE * len(found))
    message = (
        f"{sum(passed)} of {len(found)} seeds pass {usual}, {needed} must; the worst, seed "
        f"{found.index(extreme)}, is {extreme:.4g}, allowed is {worst}; all: "
        + " ".join(f"{figure:.3f}" for figure in found)
    )
    assert sum(passed) >= needed, message
    assert held, message
