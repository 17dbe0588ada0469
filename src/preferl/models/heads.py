"""Heads that a published reward model has and its class in transformers has not: a bias, or several layers.

Its class would leave such weights out without a word, or draw a head of its own.
"""

from typing import Any

import torch
from safetensors import safe_open

from preferl.models.hub import weight_files

HEAD = "score"  # what decoders call it


def stored_head(source: str) -> dict[str, torch.Tensor]:
    """The weights of a decoder's head as they are stored, by what stands behind ``score.`` in their names;
    empty where there are none, or no files.

    Args:
        source: a directory or Hub name.
    """
    tensors = {}
    for file in weight_files(source):
        with safe_open(file, framework="pt") as weights:
            for name in list(weights.keys()):
                if name.startswith(f"{HEAD}."):
                    tensors[name.removeprefix(f"{HEAD}.")] = weights.get_tensor(name).float()
    return tensors


def has_layers(head: dict[str, torch.Tensor]) -> bool:
    """Whether a stored head is a sequence of layers."""
    return "weight" not in head and any(name.split(".")[0].isdigit() for name in head)


def layered_head(head: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    """Linear layers with a ReLU between each and the next, at the places where their weights say that they
    are: ``score.0`` and ``score.2`` are those of Qwen2.5-Math-RM and its like. Weights do not say what stands
    between them."""
    layers: list[torch.nn.Module] = []
    for place in sorted({int(name.split(".")[0]) for name in head}):
        weight, bias = head[f"{place}.weight"], head.get(f"{place}.bias")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers += [torch.nn.ReLU()] * (place - len(layers)) + [linear]
    return torch.nn.Sequential(*layers)


def restore_head(model: Any, head: dict[str, torch.Tensor]) -> str | None:
    """Puts what is stored of a head and was not loaded into the model.

    A bias becomes the mean that is subtracted from every score.

    Returns:
        What is to be said about it.
    """
    if has_layers(head):
        model.score = layered_head(head)
        return "its head has several linear layers, read with a ReLU between each and the next"
    loaded = getattr(model, HEAD, None)
    if isinstance(loaded, torch.nn.Linear) and loaded.bias is None and "bias" in head:
        model.config.reward_mean = getattr(model.config, "reward_mean", 0.0) - float(head["bias"])
    return None
