"""The last step of a language model, from hidden states to logits, taken apart from the pass before it.

Logits of many tokens over a large vocabulary are the largest tensor of a step. Whoever needs only a number
for each token asks for hidden states and sends them through the head some tokens at a time. What a family
does behind its head (a soft cap, a scale) is tried on the model itself, once; one whose logits cannot be
rebuilt from its states to rounding is not taken apart.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from preferl.data.tokens import positions
from preferl.models import passes
from preferl.runs.progress import say

# Most bytes of logits (float32) that are in memory at once; a pass with no more is not taken apart.
LOGITS_BYTES = 32 << 20
# Of the largest logit: products of the same numbers in another order.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Head:
    """``logits_NV`` (float32) of ``states_ND``; ``vocabulary`` is V, ``behind`` what follows the layer."""

    layer: torch.nn.Linear
    behind: Callable[[torch.Tensor], torch.Tensor]

    @property
    def vocabulary(self) -> int:
        return self.layer.out_features

    def __call__(self, states_ND: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        with torch.autocast(states_ND.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return self.behind(F.linear(states_ND.float(), layer.weight.float(), bias))


def head_for(model: Any, tokens: int) -> Head | None:
    """The head of a model where the logits of so many tokens are too many to be in memory at once; None where
    they are not, or where it cannot be taken apart, which is said once."""
    vocabulary = passes.vocabulary_size(model)
    if vocabulary is None or tokens <= tokens_at_once(vocabulary):
        return None
    if model not in _heads:
        _heads[model] = _try_heads(model)
        if _heads[model] is None:
            say(
                f"a {passes.text_config(model).model_type} model cannot be taken apart before its logits: "
                f"those of all response tokens of a micro-batch are in memory at once"
            )
    return _heads[model]


_heads: "WeakKeyDictionary[Any, Head | None]" = WeakKeyDictionary()


def last_states(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, keep: int, states: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``outputs_BKD``: what the head reads in the last columns of left-padded rows; and ``states_BKD``, as
    ``passes.last_logits`` gives them."""
    passes.respects_left_padding(model)  # what it tries, once, are whole passes
    with states_before(model) as seen:
        return passes.last_columns(model, ids_BS, mask_BS, keep, lambda _: seen[0], states)


def tokens_at_once(vocabulary: int) -> int:
    """How many tokens' logits are in memory at once."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


def by_parts(
    head: Head, states_ND: torch.Tensor, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``value_N``: what ``compute`` makes of states and of their places among all N, some at a time. Logits
    that it makes are made once more for the gradient, and not kept for it."""
    values = []
    place_N = torch.arange(len(states_ND), device=states_ND.device)
    for place_n in place_N.split(tokens_at_once(head.vocabulary)):
        states_nD = states_ND[place_n]
        if states_nD.requires_grad:
            values.append(checkpoint(compute, states_nD, place_n, use_reentrant=False))
        else:
            values.append(compute(states_nD, place_n))
    return torch.cat(values)


@contextlib.contextmanager
def states_before(model: Any) -> Iterator[list[torch.Tensor]]:
    """While the context lasts, a pass of the model leaves what its head would have read in the list, and
    makes logits of the last column only."""
    seen: list[torch.Tensor] = []

    def keep(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(arguments[0])
        return (arguments[0][:, -1:], *arguments[1:])

    handle = output_embeddings(model).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def output_embeddings(model: Any) -> Any:
    """The layer from hidden states to the vocabulary; None where a model has none."""
    find = getattr(passes.base_of(model), "get_output_embeddings", None)
    return None if find is None else find()


@torch.no_grad()
def _try_heads(model: Any) -> Head | None:
    layer = output_embeddings(model)
    if type(layer) is not torch.nn.Linear:  # none, or one that adapters are on and that they are taken off
        return None
    ids_1S = torch.tensor(passes.probe_rows(model, (7,)), device=model.device)
    mask_1S = torch.ones_like(ids_1S)
    with torch.autocast(model.device.type, enabled=False):
        whole = passes.call(model, ids_1S, mask_1S, positions(mask_1S)).logits[0].float()
        with states_before(model) as seen:
            passes.call(model, ids_1S, mask_1S, positions(mask_1S))
        if len(seen) != 1 or seen[0].shape[:2] != ids_1S.shape:
            return None
        for behind in _candidates(model):
            head = Head(layer, behind)
            rebuilt = head(seen[0][0])
            if rebuilt.shape == whole.shape:
                error = float((rebuilt - whole).abs().max())
                if error <= TOLERANCE * max(1.0, float(whole.abs().max())):
                    return head
    return None


def _candidates(model: Any) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """What families do behind the layer, by the names that their configurations have for it."""
    config = passes.text_config(model)
    yield lambda logits_NV: logits_NV
    for name in ("final_logit_softcapping", "logits_soft_cap"):  # Gemma 2, RecurrentGemma
        cap = getattr(config, name, None)
        if cap:
            yield lambda logits_NV, cap=cap: torch.tanh(logits_NV / cap) * cap
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        factor = getattr(config, name, None)
        if factor:
            yield lambda logits_NV, factor=factor: logits_NV * factor
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor:
        yield lambda logits_NV: logits_NV / divisor
