"""What a sampling engine is, and what it returns.

An engine turns prompts into responses *and the log-probabilities with which it drew them*: behaviour
log-probabilities and sampling parameters travel with the tokens, never recomputed under other settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: softmax(logits / temperature), with ``suppressed`` ids (pad) impossible.

    ``stop`` ids (EOS) end a response, and so do ``stop_texts`` (``rollout.cut_at_stop``). No top-k or top-p:
    a truncated distribution makes KL negative.
    """

    temperature: float
    response_length: int
    suppressed: tuple[int, ...]
    stop: tuple[int, ...]
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Responses from an engine. B sequences, P prompt columns, T response columns, S = P + T.

    Prompts are left-padded, so column t of every ``_BT`` tensor is response token t. ``mask_BT`` counts
    EOS once and nothing after it.

    Example (P = 2, T = 3; row 0 stopped by EOS = 1 at once, row 1 was cut off)::

        tokens_BS   = [[0, 7, 1, 0, 0], [5, 6, 8, 9, 4]]     0 is pad
        prompt_mask_BP = [[0, 1], [1, 1]]
        mask_BT     = [[1, 0, 0], [1, 1, 1]]
        logp_BT     = [[-0.7, 0, 0], [-1.2, -0.1, -2.0]]
        finished_B  = [True, False]
        version     = 0                                       the learner's update count when sampled
    """

    tokens_BS: torch.Tensor
    prompt_mask_BP: torch.Tensor
    mask_BT: torch.Tensor
    logp_BT: torch.Tensor
    finished_B: torch.Tensor
    sampling: Sampling
    version: int

    @property
    def prompt_width(self) -> int:
        return self.prompt_mask_BP.shape[1]

    @property
    def attention_BS(self) -> torch.Tensor:
        return torch.cat([self.prompt_mask_BP, self.mask_BT], dim=1)

    @property
    def response_BT(self) -> torch.Tensor:
        return self.tokens_BS[:, self.prompt_width :]


class SamplingEngine(Protocol):
    """Anything that samples: the cached engine here, or a serving engine elsewhere. ``version`` is stamped on
    what it samples; the learner counts it up with each update."""

    version: int

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator
    ) -> Samples: ...
