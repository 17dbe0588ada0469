"""A directory of adapter weights, as peft saves it, stands for its base model with them merged in."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import find_adapter_config_file

from preferl.models.hub import check_hub
from preferl.runs.errors import UsageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHOLE_WEIGHTS = "model*.safetensors"
IN_PEFT = "base_model.model."  # in front of every name of the base's


@dataclass(frozen=True)
class Adapter:
    """Adapter weights at ``source`` (a directory or a Hub name), whose files lie in ``directory``, and the
    ``base`` model that they are of."""

    source: str
    directory: Path
    base: str

    @property
    def has_tokenizer(self) -> bool:
        return (self.directory / "tokenizer_config.json").exists()

    def shapes(self) -> dict[str, list[int]]:
        """The shapes of the adapter's tensors by the names that their places have in the base; empty for a
        Hub name, whose weights are loaded later."""
        weights = self.directory / WEIGHTS
        if not weights.exists():
            return {}
        with safe_open(weights, framework="pt") as tensors:
            names = list(tensors.keys())
            return {name.removeprefix(IN_PEFT): tensors.get_slice(name).get_shape() for name in names}


def stands_on(directory: str, base: str) -> bool:
    """Whether a stage's directory holds an adapter of this base, by its name.

    Args:
        directory: of a stage.
        base: the directory or Hub name of a model.
    """
    path = Path(directory) / "adapter"
    adapter = find_adapter(str(path)) if (path / CONFIG).exists() else None
    return adapter is not None and Path(adapter.base).resolve() == Path(base).resolve()


def find_adapter(source: str) -> Adapter | None:
    """The adapter at a directory or Hub name; None where a whole model, or nothing, is there.

    Raises:
        UsageError: it does not name its base, its weights are pickled, or the Hub does not give it.
    """
    check_hub(source)
    try:
        found = find_adapter_config_file(source)
    except OSError:  # no name of anything: whoever loads it says so
        return None
    if found is None:
        return None
    directory = Path(found).parent
    if Path(source).is_dir():
        if any(directory.glob(WHOLE_WEIGHTS)):
            return None
        if not (directory / WEIGHTS).exists():
            raise UsageError(
                f"'{source}' has an {CONFIG} and no {WEIGHTS}; save the adapter with safetensors, which is "
                f"peft's default"
            )
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(source).base_model_name_or_path
    if not base:
        raise UsageError(
            f"'{source}' holds adapter weights and does not say of which model; write its directory or Hub "
            f"name into {directory / CONFIG} as base_model_name_or_path"
        )
    return Adapter(source, directory, str(base))


def merge(model: Any, adapter: Adapter) -> Any:
    """The base model with adapter weights added to its own: an ordinary model.

    Raises:
        UsageError: they are of a kind that cannot be added, or some are missing.
    """
    from peft import PeftConfig, PeftModel

    config: Any = PeftConfig.from_pretrained(adapter.source)
    if config.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        config.task_type = None  # a language model's, on the trunk of a reward model that starts from it
    for name, shape in adapter.shapes().items():
        rows = model.get_input_embeddings().weight.shape[0]
        if name.endswith("embed_tokens.weight") and shape[0] != rows:
            # It came with tokens of its own.
            model.resize_token_embeddings(shape[0], mean_resizing=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, adapter.source, config=config)
    missing = next((str(w.message) for w in told if "missing adapter keys" in str(w.message)), None)
    if missing:
        raise UsageError(f"the adapter '{adapter.source}' is not whole: {missing}")
    if not hasattr(adapted, "merge_and_unload"):
        raise UsageError(
            f"'{adapter.source}' is a {config.peft_type.value} adapter, which cannot be merged into its "
            f"base; take LoRA weights, or the base"
        )
    with quiet_peft():
        return adapted.merge_and_unload().requires_grad_(True)  # peft froze the base


def fused_layers(model: torch.nn.Module) -> list[str]:
    """Names of linear layers whose weights are read past them: those of a state-space mixer that go into one
    kernel with its scan (its steps', and the last), which would not see LoRA weights on them."""
    return [
        f"{name}.{layer}"
        for name, mixer in model.named_modules()
        for layer in ("dt_proj", "out_proj")
        if hasattr(mixer, "A_log") and hasattr(mixer, layer)
    ]


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """peft asks transformers for an attribute by its old name, and tells what it sets by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module is `Conv1D`")
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match any targeted module")
        yield
