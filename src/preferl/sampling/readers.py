"""What a model says next about rows that grow by a token a step: from a cache, or by reading them again."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import Cache, DynamicCache, StaticCache

from preferl.data.tokens import positions
from preferl.models.passes import last_logits, takes


class Reader(Protocol):
    """Reads A rows. ``read`` takes the next columns of all of them and gives ``logits_AV`` behind the last
    one; ``keep`` drops all rows but those numbered."""

    def read(self, inputs_AN: torch.Tensor) -> torch.Tensor: ...

    def keep(self, rows: torch.Tensor) -> None: ...


class CachedReader:
    """Reads every token once: what came of it stays in a cache of transformers.

    Args:
        model: a causal language model.
        attention_BS: 1 on all columns that there can be but left padding.
        cache: an empty one.
    """

    def __init__(self, model: Any, attention_BS: torch.Tensor, cache: Cache):
        self.model, self.attention_AS, self.cache = model, attention_BS, cache
        # Masks and positions of all columns that there can be, so that a step only has to cut its own out.
        self.position_AS = positions(attention_BS)
        self.has_positions = takes(model, "position_ids")
        # State spaces call what they remember by a name of their own.
        self.name = "past_key_values" if takes(model, "past_key_values") else "cache_params"
        self.width = 0

    def read(self, inputs_AN: torch.Tensor) -> torch.Tensor:
        place = slice(self.width, self.width + inputs_AN.shape[1])
        self.width = place.stop
        more: dict[str, Any] = {self.name: self.cache}
        if self.has_positions:
            more["position_ids"] = self.position_AS[:, place]
        return self.model(
            input_ids=inputs_AN,
            attention_mask=self.attention_AS[:, : place.stop],
            use_cache=True,
            logits_to_keep=1,
            **more,
        ).logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        self.attention_AS, self.position_AS = self.attention_AS[rows], self.position_AS[rows]
        self.cache.reorder_cache(rows)


class WholeReader:
    """Reads all of a row again for each of its tokens: slower, and right for whatever has a forward pass."""

    def __init__(self, model: Any, attention_BS: torch.Tensor):
        self.model, self.attention_AS = model, attention_BS
        self.ids_AN = attention_BS.new_zeros((len(attention_BS), 0))

    def read(self, inputs_AN: torch.Tensor) -> torch.Tensor:
        self.ids_AN = torch.cat([self.ids_AN, inputs_AN], dim=1)
        mask_AN = self.attention_AS[:, : self.ids_AN.shape[1]]
        return last_logits(self.model, self.ids_AN, mask_AN, 1)[0][:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        self.ids_AN, self.attention_AS = self.ids_AN[rows], self.attention_AS[rows]


class TypedCache(StaticCache):
    """A static cache of one dtype. Under autocast keys come in float32 (rotated) and values in bfloat16, and
    a static cache allocates both as the first keys are."""

    def __init__(self, dtype: torch.dtype, **options: Any):
        super().__init__(**options)
        self.kept_dtype = dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.kept_dtype
        return super().update(key_states.to(dtype), value_states.to(dtype), *args, **options)


MakeReader = Callable[[Any, torch.Tensor, torch.dtype], Reader]


def static(model: Any, attention_BS: torch.Tensor, dtype: torch.dtype) -> Reader:
    cache = TypedCache(dtype, config=model.config, max_cache_len=attention_BS.shape[1])
    return CachedReader(model, attention_BS, cache)


def dynamic(model: Any, attention_BS: torch.Tensor, dtype: torch.dtype) -> Reader:
    return CachedReader(model, attention_BS, DynamicCache(config=model.config))


def whole(model: Any, attention_BS: torch.Tensor, dtype: torch.dtype) -> Reader:
    return WholeReader(model, attention_BS)
