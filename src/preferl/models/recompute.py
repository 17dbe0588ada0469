"""Activation checkpointing: of a layer only its input is kept, and the rest is made again for the gradient
(Chen et al. 2016, arXiv 1604.06174).

transformers recomputes only layers in training mode, and models are kept in evaluation mode here, so that no
dropout is on. So the layers alone are put into training mode, not what is in them, and what dropout a layer
has of its own is 0 as long as the context lasts. The gradient is the same.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from preferl.models import passes
from preferl.runs.errors import UsageError


@contextlib.contextmanager
def recomputing(*models: Any, on: bool = True) -> Iterator[None]:
    """Passes of these models keep only what goes into each layer, as long as the context lasts; backward
    passes belong inside it too. None and what is no model of transformers are passed over.

    Raises:
        UsageError: the family of a model cannot do it.
    """
    with contextlib.ExitStack() as stack:
        for model in models if on else ():
            if hasattr(passes.base_of(model), "supports_gradient_checkpointing"):
                stack.enter_context(_recomputing(model))
        yield


@contextlib.contextmanager
def _recomputing(model: Any) -> Iterator[None]:
    base = passes.base_of(model)
    with warnings.catch_warnings():
        # transformers renames it; the old name is in every version that is supported.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        try:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UsageError(
                f"gradient_checkpointing: transformers cannot make the activations of a "
                f"{passes.text_config(base).model_type} model again; leave it out"
            ) from error
        layers = [part for part in base.modules() if getattr(part, "gradient_checkpointing", False)]
        before = [_dropouts(layer) for layer in layers]
        modes = [layer.training for layer in layers]
        for layer, dropouts in zip(layers, before, strict=True):
            layer.training = True  # not .train(), which would reach the dropout inside
            vars(layer).update(dict.fromkeys(dropouts, 0.0))
        try:
            yield
        finally:
            for layer, dropouts, mode in zip(layers, before, modes, strict=True):
                vars(layer).update(dropouts)
                layer.training = mode
            base.gradient_checkpointing_disable()


def _dropouts(layer: torch.nn.Module) -> dict[str, float]:
    """The probabilities that a layer drops with itself, by the names of its attributes."""
    return {
        name: value for name, value in vars(layer).items() if "dropout" in name and isinstance(value, float)
    }
