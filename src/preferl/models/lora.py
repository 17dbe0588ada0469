"""LoRA weights on a frozen base (Hu et al. 2021), for whatever role a model plays.

Several models that stand on one base share its weights in memory and each have adapters of their own
(``models.storage``): policy, reference, reward model and critic take little more than one of them (Santacroce
et al. 2023). What is saved is the trained adapter, and beside it an ordinary model with the adapter merged
in.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.models import load
from preferl.models.adapters import quiet_peft
from preferl.models.load import model_directory
from preferl.models.passes import base_of, is_linear, layers_without_lora
from preferl.models.storage import (
    Weights,
    as_trained,
    dequantised,
    is_quantised,
    own_weights,
    require_bitsandbytes,
    twin,
)
from preferl.options.shared import LoraOptions
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import whole_directory
from preferl.runs.progress import say

ADAPTER_NOTES = "preferl.json"
ALL = "all-linear"


def weights_for(options: LoraOptions) -> Weights:
    """How the weights of a model that is trained with these options are kept."""
    if options.load_in_4bit:
        return Weights.IN_4BIT
    return Weights.FROZEN if options.lora_r else Weights.TRAINED


def check_options(options: LoraOptions) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if options.load_in_4bit and not options.lora_r:
        raise UsageError(
            "load_in_4bit quantises the weights, which cannot be trained then: give --lora_r 16 as well "
            "(LoRA weights on the quantised model), or leave load_in_4bit out"
        )
    if options.lora_target_modules and not options.lora_r:
        raise UsageError("lora_target_modules is of LoRA weights, of which there are none: give --lora_r too")
    if options.load_in_4bit:
        require_bitsandbytes("load_in_4bit")


def with_lora(
    model: PreTrainedModel, base: str, options: LoraOptions, dropout: float = 0.0, parts: Sequence[str] = ()
) -> Any:
    """The model with trainable LoRA weights on the linear layers of its trunk. Fresh ones change nothing, bit
    for bit.

    Args:
        model: the base, which is frozen.
        base: the name that it was loaded by.
        options: rank, scale and layers.
        dropout: before LoRA's weights.
        parts: names of modules on the trunk that are trained as they are: a new head.

    Raises:
        UsageError: there are no such layers.
    """
    untouched = [
        f"{part}.{name}".rstrip(".")
        for part in parts
        for name, layer in model.get_submodule(part).named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    for part in parts:
        as_trained(model.get_submodule(part))
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets(model, options),
        exclude_modules=untouched + layers_without_lora(model) or None,
        modules_to_save=list(parts) or None,
        task_type=None if parts else "CAUSAL_LM",
    )
    with quiet_peft():
        adapted = get_peft_model(model, config)
    # peft knows no name of a new model, and no stage directories.
    adapted.peft_config["default"].base_model_name_or_path = model_directory(base)
    return adapted.eval()


def targets(model: torch.nn.Module, options: LoraOptions) -> str | list[str]:
    """The layers that get LoRA weights: those named, else all linear ones.

    Raises:
        UsageError: the model has no layer of a name.
    """
    if not options.lora_target_modules:
        return ALL
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    for wanted in options.lora_target_modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise UsageError(
                f"lora_target_modules names '{wanted}', and the model has no linear layer that is called so; "
                f"there are {', '.join(known)}"
            )
    return list(options.lora_target_modules)


def merged(adapted: Any) -> PreTrainedModel:
    """The model with its LoRA weights added into weights of its own: an ordinary model again. Whoever shared
    the base keeps it as it was."""
    own_weights(adapted)
    with quiet_peft():
        return adapted.merge_and_unload()


def trained_copy(adapted: Any) -> Any:
    """Another model on the same base, with copies of the adapters, and of what was trained beside them, that
    train by themselves."""

    def own(name: str) -> bool:
        return ".lora_" in name or ".modules_to_save." in name

    copied = twin(adapted, own)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(own(name))
    return copied


def describe(model: torch.nn.Module) -> str:
    """How many parameters a model has, and how many of them train, in a few words."""
    whole = load.parameter_count(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{whole:,} parameters" + (f", {trained:,} trained" if trained < whole else "")


def has_adapter(model: Any) -> bool:
    """Whether adapters of peft are on a model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def save_trained(model: Any, tokenizer: Any, path: Path, base: str) -> PreTrainedModel:
    """Writes a language model that was trained as ``model/``; where LoRA weights were, they stand beside it
    as ``adapter/`` and are merged in it. A quantised base is loaded once more as it was, and merged with
    them.

    Args:
        model: the language model, or one with adapters on it.
        tokenizer: its tokenizer.
        path: the stage's directory.
        base: the name that it was loaded by.

    Returns:
        What was written as ``model/``.
    """
    if not has_adapter(model):
        distributed.write(lambda: load.save(model, tokenizer, path / "model"))
        return model
    distributed.write(lambda: save_adapter(model, path / "adapter"))
    whole = ordinary(model, path / "adapter", base, lambda: load.load_policy(base, model.device)[0])
    distributed.write(lambda: load.save(whole, tokenizer, path / "model"))
    return whole


def ordinary(
    adapted: Any, adapter: Path, base: str, load_base: Callable[[], PreTrainedModel]
) -> PreTrainedModel:
    """The ordinary model that LoRA weights and their base make together.

    Args:
        adapted: the model with the adapter on it.
        adapter: where the adapter was saved.
        base: the name of what it is on.
        load_base: loads that, unquantised; called where the base in memory is quantised.
    """
    if is_quantised(base_of(adapted)):
        from peft import PeftModel

        whole: Any = load_base()
        stored = "as it is stored"
        if is_quantised(whole):  # there is no other
            whole, stored = dequantised(whole), "with its weights dequantised"
        say(
            f"what was trained, and sampled in training, is the quantised '{base}' with its adapter; model/ "
            f"is the adapter merged into '{base}' {stored}"
        )
        with quiet_peft():
            adapted = PeftModel.from_pretrained(whole, str(adapter))
    return merged(adapted).eval()


def save_adapter(adapted: Any, path: Path, **notes: Any) -> None:
    """Writes LoRA weights, what is trained beside them, and notes on how they were trained."""
    notes["load_in_4bit"] = is_quantised(base_of(adapted))
    with whole_directory(path) as directory:
        # Embeddings are those of the base; without a word peft would ask the Hub whether they are.
        adapted.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / ADAPTER_NOTES).write_text(json.dumps(notes) + "\n", encoding="utf-8")
