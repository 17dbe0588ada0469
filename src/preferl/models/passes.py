"""How a model of any family is called: with the arguments that it takes, and with padding that it respects.

Rows are left-padded, so that column t is response token t in each. A family may have no argument for
positions (ALiBi, state spaces), and one whose layers carry a state from token to token may let padding into
it. What a family does is tried on the model itself, once; no list of names says it. Where padding on the left
changes anything, rows are moved to the left for the pass and back after it: behind the real tokens of a
causal model padding changes nothing.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from preferl.data.tokens import pad, positions
from preferl.models.adapters import fused_layers
from preferl.models.load import max_positions

# Of the largest output; what padding that is not respected does is of its order.
TOLERANCE = 1e-3


def last_logits(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, keep: int, states: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a causal language model says in the last columns of left-padded rows; gradients flow.

    Args:
        model: the language model, or one that adapters of peft are on.
        ids_BS: token ids on the model's device; padding may also stand at the end of rows.
        mask_BS: 1 on real tokens.
        keep: how many columns, K; the first of them is no padding in any row.
        states: whether the last hidden states are wanted too.

    Returns:
        ``logits_BKV`` in the dtype of the pass, and ``states_BKD`` or None.
    """
    return last_columns(model, ids_BS, mask_BS, keep, lambda outputs: outputs.logits, states)


def last_columns(
    model: Any,
    ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    keep: int,
    read: Callable[[Any], torch.Tensor],
    states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``values_BKX``, the last columns of what ``read`` takes from a pass's outputs, and ``states_BKD``; as
    ``last_logits`` otherwise."""
    more: dict[str, Any] = {"output_hidden_states": True} if states else {}
    if respects_left_padding(model):
        outputs = call(model, ids_BS, mask_BS, positions(mask_BS), logits_to_keep=keep, **more)
        states_BKD = outputs.hidden_states[-1][:, -keep:] if states else None
        return read(outputs)[:, -keep:], states_BKD
    column_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device) - first_column(mask_BS)[:, None]
    column_BK = column_BS[:, -keep:]
    moved_ids_BS, moved_mask_BS = moved_left(ids_BS, mask_BS)
    # Rows of unlike length read their columns at unlike places: all from the earliest of these on are asked.
    first = int(column_BK.min())
    kept = ids_BS.shape[1] - first
    outputs = call(model, moved_ids_BS, moved_mask_BS, positions(moved_mask_BS), logits_to_keep=kept, **more)
    values_BKX = columns_of(read(outputs)[:, -kept:], column_BK - first)
    states_BKD = columns_of(outputs.hidden_states[-1], column_BK) if states else None
    return values_BKX, states_BKD


def hidden_states(trunk: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``hidden_BSD``: the last hidden states of left-padded rows, column for column; gradients flow.

    Args:
        trunk: a model without a head.
        ids_BS: token ids on its device.
        mask_BS: 1 on real tokens.
    """
    if respects_left_padding(trunk):
        return call(trunk, ids_BS, mask_BS, positions(mask_BS)).last_hidden_state
    column_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device) - first_column(mask_BS)[:, None]
    moved_ids_BS, moved_mask_BS = moved_left(ids_BS, mask_BS)
    hidden_BSD = call(trunk, moved_ids_BS, moved_mask_BS, positions(moved_mask_BS)).last_hidden_state
    return columns_of(hidden_BSD, column_BS.clamp(min=0))


def call(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, position_BS: torch.Tensor, **options: Any
) -> Any:
    """One pass without a cache, with those of the arguments that the model takes."""
    if takes(model, "position_ids"):  # else its positions come of the mask, or it has none
        options["position_ids"] = position_BS
    if takes(model, "use_cache"):
        options["use_cache"] = False
    return model(input_ids=ids_BS, attention_mask=mask_BS, **options)


def segments(model: Any, ids_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an encoder is told besides token ids: ``token_type_ids``, 1 behind the first separator, where its
    tokenizer says so."""
    separator = getattr(model, "segment_separator", None)
    if separator is None:
        return {}
    is_separator_BS = (ids_BS == separator).long()
    before_BS = is_separator_BS.cumsum(-1) - is_separator_BS
    return {"token_type_ids": (before_BS > 0).long()}


def takes(model: Any, argument: str) -> bool:
    """Whether a model's forward pass names this argument."""
    inner = base_of(model)
    return argument in inspect.signature(getattr(inner, "forward", inner)).parameters


def base_of(model: Any) -> Any:
    """The model that adapters of peft are on; one without adapters is its own."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def first_column(mask_BS: torch.Tensor) -> torch.Tensor:
    """``column_B``: where the first real token of each row stands."""
    return mask_BS.argmax(-1)


def moved_left(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded rows as right-padded ones: token ids and mask."""
    width = ids_BS.shape[1]
    source_BS = torch.arange(width, device=ids_BS.device) + first_column(mask_BS)[:, None]
    inside_BS = source_BS < width
    source_BS = source_BS.clamp(max=width - 1)
    return ids_BS.gather(1, source_BS), mask_BS.gather(1, source_BS) * inside_BS


def columns_of(values_BSD: torch.Tensor, column_BK: torch.Tensor) -> torch.Tensor:
    """``values_BKD``: of each row the columns that are its own."""
    rows_B1 = torch.arange(len(column_BK), device=column_BK.device)[:, None]
    return values_BSD[rows_B1, column_BK]


_respecting: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


def respects_left_padding(model: Any) -> bool:
    """Whether a row says the same with padding in front of it as without; tried once for each model. One
    whose configuration names no vocabulary, such as a table, cannot be tried, and is taken to."""
    if vocabulary_size(model) is None:
        return True
    if model not in _respecting:
        _respecting[model] = _try_left_padding(model)
    return _respecting[model]


@torch.no_grad()
def _try_left_padding(model: Any) -> bool:
    long, short = probe_rows(model, (12, 7))
    if len(long) == len(short):
        return True  # no room for padding
    ids_BS, mask_BS = (t.to(model.device) for t in pad([long, short], probe_pad(model), "left"))
    with torch.autocast(model.device.type, enabled=False):
        together = call(model, ids_BS, mask_BS, positions(mask_BS))[0][1, -len(short) :]
        alone_1S = ids_BS[1:, -len(short) :]
        alone = call(model, alone_1S, torch.ones_like(alone_1S), positions(torch.ones_like(alone_1S)))[0][0]
    error, largest = (together - alone).abs().max(), alone.abs().max().clamp(min=1)
    return not bool(error > TOLERANCE * largest)  # numbers that are none are told where they are used


def probe_room(model: Any, wanted: int) -> int:
    """How many tokens there may be behind the rows of a trial: fewer where the model has few positions."""
    return min(wanted, max(1, (max_positions(model) or 1000) // 2))


def probe_rows(model: Any, lengths: tuple[int, ...], room: int = 0) -> list[list[int]]:
    """Rows of random tokens with which to try what a model does; always the same ones.

    Where the model has fewer positions than a row and ``room`` tokens behind it, the row is cut.
    """
    longest = max(1, (max_positions(model) or 1000) - room)
    lengths = tuple(min(length, longest) for length in lengths)
    size = text_config(model).vocab_size
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(size, (length,), generator=generator).tolist() for length in lengths]


def probe_pad(model: Any) -> int:
    """An id for padding: the model's own, or any."""
    pad_id = text_config(model).pad_token_id
    return 0 if pad_id is None else pad_id


def text_config(model: Any) -> Any:
    """The configuration of what reads text, which may be nested in that of a model of several kinds of
    input."""
    return model.config.get_text_config()


def vocabulary_size(model: Any) -> int | None:
    """How many columns a model's logits have; None where it has no configuration that says so."""
    return getattr(text_config(model), "vocab_size", None) if hasattr(model, "config") else None


@torch.no_grad()
def state_size(model: Any) -> int:
    """Width of the last hidden states, D; where a family projects them it is not the configuration's
    ``hidden_size``. Tried on one token."""
    ids_11 = torch.tensor([probe_rows(model, (1,))[0]], device=model.device)
    mask_11 = torch.ones_like(ids_11)
    outputs = call(model, ids_11, mask_11, positions(mask_11), output_hidden_states=True)
    last = outputs.last_hidden_state if "last_hidden_state" in outputs else outputs.hidden_states[-1]
    return last.shape[-1]


def is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, GPT-2's own kind included."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def layers_without_lora(model: Any) -> list[str]:
    """Names of linear layers that LoRA weights must leave as they are: those that a kernel reads past, and
    those that return more than a product (routers of mixtures of experts). Tried on one token."""
    own = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and type(layer).forward is not torch.nn.Linear.forward
    }
    more: list[str] = []
    hooks = []
    for name, layer in own.items():

        def look(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            if not isinstance(output, torch.Tensor) and name not in more:
                more.append(name)

        hooks.append(layer.register_forward_hook(look))
    try:
        if own:
            state_size(model)
    finally:
        for hook in hooks:
            hook.remove()
    return fused_layers(model) + more
