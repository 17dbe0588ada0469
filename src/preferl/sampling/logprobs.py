"""Log-probabilities of responses under a model: the only place that shifts by one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from preferl.data.tokens import parts_that_fit
from preferl.maths.kl import kl_exact
from preferl.maths.policy import entropy, response_logprobs
from preferl.models.output_head import Head, by_parts, head_for, last_states
from preferl.models.passes import last_logits
from preferl.runs import distributed
from preferl.runs.devices import autocast
from preferl.runs.errors import DivergedError
from preferl.sampling.samples import Samples, rows_of

# Stands for log 0 where a number has to stay finite through a gradient.
IMPOSSIBLE = -1e9

# Of some tokens: takes theirs out of a tensor of all tokens.
Pick = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Distributions:
    """The distributions from which the tokens of responses were drawn, under a model. Suppressed ids are
    impossible in them as they were while sampling; gradients flow.

    Args:
        samples: B responses of at most T tokens.
        outputs_BTX: logits (float32), or the hidden states of which ``head`` makes logits: of some tokens at
            a time, and for the gradient once more.
        head: None where ``outputs_BTX`` are logits.
        states_BTD: the last hidden states, where they were asked for.
    """

    samples: Samples
    outputs_BTX: torch.Tensor
    head: Head | None = None
    states_BTD: torch.Tensor | None = None

    def logprobs(self) -> torch.Tensor:
        """``logp_BT`` of the sampled tokens in nats, 0 outside the mask."""
        temperature = self.samples.sampling.temperature
        token_BT = self.samples.response_BT.to(self.outputs_BTX.device)
        return self._each(lambda logits, pick: response_logprobs(logits, pick(token_BT), temperature))

    def entropy(self) -> torch.Tensor:
        """``entropy_BT`` in nats, 0 outside the mask."""
        temperature = self.samples.sampling.temperature
        return self._each(lambda logits, _: entropy(logits, temperature))

    def kl_to(self, other: "Distributions") -> torch.Tensor:
        """``kl_BT``: KL(self || other) over the whole vocabulary in nats, 0 outside the mask."""
        temperature = self.samples.sampling.temperature

        def kl(logits: torch.Tensor, pick: Pick) -> torch.Tensor:
            return kl_exact(logits / temperature, other.logits(pick(other.outputs_BTX)) / temperature)

        return self._each(kl)

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits (float32) over the vocabulary, of some of ``outputs_BTX``."""
        if self.head is None:
            return outputs
        return without_suppressed(self.head(outputs), self.samples)

    def _each(self, statistic: Callable[[torch.Tensor, Pick], torch.Tensor]) -> torch.Tensor:
        """``value_BT``: what ``statistic`` makes of the logits of tokens, and of what it picks for them."""
        mask_BT = self.samples.mask_BT.to(self.outputs_BTX.device)
        if self.head is None:
            return statistic(self.outputs_BTX, lambda of_BT: of_BT).masked_fill(mask_BT == 0, 0.0)

        place_N = mask_BT.flatten().nonzero()[:, 0]  # of real tokens among all

        def compute(outputs_nD: torch.Tensor, number_n: torch.Tensor) -> torch.Tensor:
            return statistic(self.logits(outputs_nD), lambda of_BT: of_BT.flatten(0, 1)[place_N[number_n]])

        value_N = by_parts(self.head, self.outputs_BTX.flatten(0, 1)[place_N], compute)
        zeros = torch.zeros(mask_BT.numel(), device=mask_BT.device)
        return zeros.index_put((place_N,), value_N).view(mask_BT.shape)


def distributions(model: Any, samples: Samples, states: bool = False) -> Distributions:
    """What a model says where the tokens of responses were drawn: column t is the distribution from which
    response token t came. Only these columns go through the vocabulary, and of many only some at a time.

    Args:
        model: a causal language model, adapters of peft on it or not.
        samples: B responses of at most T tokens.
        states: whether the last hidden states are wanted too.
    """
    device, keep = model.device, samples.mask_BT.shape[1] + 1
    ids_BS, mask_BS = samples.tokens_BS.to(device), samples.attention_BS.to(device)
    head = head_for(model, samples.mask_BT.numel())
    if head is not None:
        outputs_BKX, states_BKD = last_states(model, ids_BS, mask_BS, keep, states)
    else:
        outputs_BKX, states_BKD = last_logits(model, ids_BS, mask_BS, keep, states)
        outputs_BKX = without_suppressed(outputs_BKX.float(), samples)
    states_BTD = None if states_BKD is None else states_BKD[:, :-1]
    return Distributions(samples, outputs_BKX[:, :-1], head, states_BTD)


def without_suppressed(logits: torch.Tensor, samples: Samples) -> torch.Tensor:
    """Logits in which suppressed ids are impossible."""
    if not samples.sampling.suppressed:
        return logits
    ban_V = torch.zeros(logits.shape[-1], device=logits.device)
    ban_V[list(samples.sampling.suppressed)] = IMPOSSIBLE
    return logits + ban_V


def policy_logprobs(model: Any, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses under ``model``, 0 outside the mask; gradients flow."""
    return distributions(model, samples).logprobs()


@torch.no_grad()
def in_microbatches(
    samples: Samples,
    compute: Callable[[Samples], torch.Tensor],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    length_B: torch.Tensor | None = None,
    tokens: int | None = None,
) -> torch.Tensor:
    """``compute`` of all rows, ``size`` of like length at a time, gathered on the CPU as one ``_BT`` tensor.

    Of several processes each computes its own rows, and all get all of them.

    Args:
        samples: B responses of at most T tokens.
        compute: some rows to a ``_BT`` tensor of theirs.
        size: most rows in one forward pass.
        device: where autocast applies.
        dtype: to compute in.
        length_B: what makes rows alike; by default the length of their responses.
        tokens: most padded tokens in one forward pass.

    Returns:
        ``out_BT`` (float32), 0 outside the mask.

    Raises:
        DivergedError: a number is NaN or infinite.
    """
    out_BT = torch.zeros(samples.mask_BT.shape)
    length_B = samples.mask_BT.sum(-1) if length_B is None else length_B
    order = distributed.shard(length_B.argsort())
    for place in parts_that_fit(samples.extents(order), size, tokens):
        rows = order[place]
        part = rows_of(samples, rows)
        with autocast(device, dtype):
            value_BT = compute(part).float().cpu() * part.mask_BT
        out_BT[rows, : value_BT.shape[1]] = value_BT
    distributed.all_reduce(out_BT)
    if not bool(out_BT.isfinite().all()):
        raise DivergedError(
            "a model's log-probabilities or values of responses are not finite numbers: its weights have "
            "grown until its activations overflow; lower the learning rate, or take an earlier model"
        )
    return out_BT
