"""How much of a batch is read in one forward and backward pass.

A batch's denominators are known before any of its passes, so that how it is cut changes nothing but rounding.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from preferl.data.tokens import Extent, parts_that_fit
from preferl.models.shapes import floor_power
from preferl.runs import distributed
from preferl.runs.progress import say

T = TypeVar("T")


class PassOptions(Protocol):
    """At most so many rows, and padded tokens where that is not None, in one pass."""

    micro_batch_size: int
    micro_batch_tokens: int | None


class MicroBatches:
    """Cuts batches into passes, and makes them smaller once where a GPU's memory runs out.

    Args:
        options: the most that a pass may have.
        units: rows of ``micro_batch_size`` that one ``Extent`` stands for.
    """

    def __init__(self, options: PassOptions, units: int = 1):
        self.rows = max(options.micro_batch_size // units, 1)
        self.tokens = options.micro_batch_tokens
        self.halved = False
        self.record: Callable[[int], None] = lambda tokens: None
        self._largest = 0  # padded tokens of a pass that can be cut further

    def parts(self, extents: Sequence[Extent]) -> list[slice]:
        """Where rows in this order are cut."""
        parts = parts_that_fit(extents, self.rows, self.tokens)
        self._largest = max(
            (padded(extents[part]) for part in parts if part.stop - part.start > 1), default=0
        )
        return parts

    def accumulated(self, accumulate: Callable[[], T], forget: Callable[[], None]) -> T:
        """What ``accumulate`` gives, which adds up a batch's gradient. Where a GPU has no room for it, the
        first time, gradients are forgotten and it is done again in passes of half the size.

        Raises:
            torch.OutOfMemoryError: a second time; or where several processes train, or one row is too much.
        """
        try:
            return accumulate()
        except torch.OutOfMemoryError:
            if self.halved or not self._largest or distributed.world_size() > 1:
                raise
        # Outside of the handler: the error holds the frames, and they the tensors.
        forget()
        self.halved = True
        self.tokens = floor_power(self._largest / 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(
            f"the GPU's memory ran out in a pass of {self._largest:,} tokens; micro_batch_tokens is "
            f"{self.tokens:,} from here on, and the gradient the same"
        )
        self.record(self.tokens)
        return accumulate()


def padded(extents: Sequence[Extent]) -> int:
    """Padded tokens of a pass over rows."""
    widths = [max(column) for column in zip(*(extent.widths for extent in extents), strict=True)]
    return sum(extent.sequences for extent in extents) * sum(widths)
