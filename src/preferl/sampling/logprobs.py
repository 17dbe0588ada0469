"""Log-probabilities of responses under a model: the only place that shifts by one."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from preferl.maths.policy import response_logprobs
from preferl.models.passes import last_logits
from preferl.runs import distributed
from preferl.runs.devices import autocast
from preferl.runs.errors import DivergedError
from preferl.sampling.samples import Samples, rows_of

# Stands for log 0 where a number has to stay finite through a gradient.
IMPOSSIBLE = -1e9


def response_logits(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """``logits_BTV`` (float32): column t is the distribution from which response token t was drawn.

    Only the columns that predict the response go through the vocabulary. Suppressed ids are impossible
    here as they were while sampling.
    """
    return response_outputs(model, samples)[0]


def response_outputs(
    model: PreTrainedModel, samples: Samples, states: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``logits_BTV`` as above and, where asked for, ``states_BTD``: the last hidden states behind them."""
    device, width = model.device, samples.mask_BT.shape[1]
    logits_BKV, states_BKD = last_logits(
        model, samples.tokens_BS.to(device), samples.attention_BS.to(device), width + 1, states
    )
    logits_BTV = logits_BKV[:, :-1].float()
    states_BTD = None if states_BKD is None else states_BKD[:, :-1]
    if not samples.sampling.suppressed:
        return logits_BTV, states_BTD
    ban_V = torch.zeros(logits_BTV.shape[-1], device=logits_BTV.device)
    ban_V[list(samples.sampling.suppressed)] = IMPOSSIBLE
    return logits_BTV + ban_V, states_BTD


def policy_logprobs(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses under ``model``, 0 outside the mask; gradients flow."""
    return logprobs_of(response_logits(model, samples), samples)


def logprobs_of(logits_BTV: torch.Tensor, samples: Samples) -> torch.Tensor:
    """``logp_BT`` of the sampled responses from ``response_logits``, 0 outside the mask."""
    device = logits_BTV.device
    logp_BT = response_logprobs(logits_BTV, samples.response_BT.to(device), samples.sampling.temperature)
    return logp_BT.masked_fill(samples.mask_BT.to(device) == 0, 0.0)


@torch.no_grad()
def in_microbatches(
    samples: Samples,
    compute: Callable[[Samples], torch.Tensor],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    length_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """``compute`` of all rows, ``size`` of like length at a time, gathered on the CPU as one ``_BT`` tensor.

    Of several processes each computes its own rows, and all get all of them.

    Args:
        samples: B responses of at most T tokens.
        compute: some rows to a ``_BT`` tensor of theirs.
        size: rows in one forward pass.
        device: where autocast applies.
        dtype: to compute in.
        length_B: what makes rows alike; by default the length of their responses.

    Returns:
        ``out_BT`` (float32), 0 outside the mask.

    Raises:
        DivergedError: a number is NaN or infinite.
    """
    out_BT = torch.zeros(samples.mask_BT.shape)
    length_B = samples.mask_BT.sum(-1) if length_B is None else length_B
    order = distributed.shard(length_B.argsort())
    for rows in order.split(size) if len(order) else ():
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
