"""What a sampling engine is, and what it returns.

An engine turns prompts into responses *and the log-probabilities with which it drew them*: behaviour
log-probabilities and sampling parameters travel with the tokens, never recomputed under other settings.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from preferl.sampling.samples import Samples, Sampling


class SamplingEngine(Protocol):
    """Anything that samples: the cached engine here, or a serving engine elsewhere. ``version`` is stamped on
    what it samples; the learner counts it up with each update."""

    version: int

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator
    ) -> Samples: ...
