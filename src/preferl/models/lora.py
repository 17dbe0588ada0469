"""LoRA weights for a language model, by name: several sets on one frozen base, one active at a time."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from preferl.models.adapters import CONFIG as ADAPTER_FILE
from preferl.models.adapters import quiet_peft
from preferl.models.load import model_directory, refuse_nonfinite
from preferl.models.passes import layers_without_lora
from preferl.models.reward import ADAPTER_NOTES
from preferl.runs.errors import UsageError

POLICY = "policy"


def lora_policy(model: PreTrainedModel, base: str, r: int, alpha: float) -> Any:
    """The language model with trainable LoRA weights (Hu et al. 2021) named ``policy`` on every linear layer
    of its trunk. Fresh ones change nothing, bit for bit."""
    from peft import get_peft_model

    with quiet_peft():
        adapted = get_peft_model(model, lora_config(model, r, alpha), adapter_name=POLICY)
    adapted.peft_config[POLICY].base_model_name_or_path = model_directory(base)
    return adapted.eval()


def lora_config(model: Any, r: int, alpha: float) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=r,
        lora_alpha=int(alpha),
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=layers_without_lora(model) or None,
        task_type="CAUSAL_LM",
    )


def merged(adapted: Any) -> PreTrainedModel:
    """The model with its active LoRA weights added into the base: an ordinary language model again."""
    with quiet_peft():
        return adapted.merge_and_unload()


@contextlib.contextmanager
def using(adapted: Any, name: str) -> Iterator[None]:
    """Switches to the LoRA weights ``name`` for the length of the context."""
    trainable, before = trainable_parameters(adapted), adapted.active_adapter
    adapted.set_adapter(name)
    set_trainable(adapted, trainable)
    try:
        yield
    finally:
        adapted.set_adapter(before)
        set_trainable(adapted, trainable)


@contextlib.contextmanager
def without(adapted: Any) -> Iterator[None]:
    """Switches all LoRA weights off for the length of the context: the base, bit for bit."""
    trainable = trainable_parameters(adapted)
    try:
        with adapted.disable_adapter():
            yield
    finally:
        set_trainable(adapted, trainable)


def trainable_parameters(adapted: Any) -> set[int]:
    return {id(p) for p in adapted.parameters() if p.requires_grad}


def set_trainable(adapted: Any, trainable: set[int]) -> None:
    """peft freezes what it switches away from; what was trainable stays so."""
    for parameter in adapted.parameters():
        parameter.requires_grad_(id(parameter) in trainable)


class TrunkOnAdapter:
    """The trunk of a base model under one set of its LoRA weights, called as any trunk is."""

    def __init__(self, adapted: Any, name: str):
        self.adapted, self.name = adapted, name

    @property
    def config(self) -> Any:
        return self.adapted.config

    @property
    def device(self) -> torch.device:
        return self.adapted.device

    def get_base_model(self) -> PreTrainedModel:
        return self.adapted.get_base_model().base_model

    def __call__(self, **inputs: Any) -> Any:
        with using(self.adapted, self.name):
            return self.get_base_model()(**inputs)


class HeadOnAdapter(torch.nn.Module):
    """A scalar head on a base model that wears one set of LoRA weights: a reward model or a critic that needs
    no trunk of its own. It is read as any decoder with a ``score`` head is."""

    def __init__(self, adapted: Any, name: str, head: torch.nn.Linear, reward_mean: float):
        super().__init__()
        self.score, self.name = head, name
        # In a list, so that the base does not count as this module's own weights.
        self._trunk = [TrunkOnAdapter(adapted, name)]
        self.reward_mean = reward_mean

    @property
    def config(self) -> Any:
        return self

    @property
    def device(self) -> torch.device:
        return self.score.weight.device

    @property
    def base_model(self) -> TrunkOnAdapter:
        return self._trunk[0]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The head's and its LoRA weights, the base's not."""
        yield from super().named_parameters(*args, **kwargs)
        for key, parameter in self.base_model.adapted.named_parameters():
            if f".{self.name}." in key:
                yield key, parameter


def on_one_base(
    model: PreTrainedModel, base: str, reward_directory: str, r: int, alpha: float
) -> tuple[Any, HeadOnAdapter, HeadOnAdapter]:
    """The language model with LoRA weights for the policy, a reward model's as it was saved, and a trainable
    copy of those for the critic.

    Returns:
        The adapted model (its policy active), the reward model and the critic.

    Raises:
        UsageError: the reward model is no directory of LoRA weights on this base, or pools by the mean.
    """
    from peft import PeftConfig, set_peft_model_state_dict

    places = (Path(reward_directory) / "adapter", Path(model_directory(reward_directory)))
    source = next((place for place in places if (place / ADAPTER_FILE).exists()), None)
    if source is None:
        raise UsageError(
            f"share_base: '{reward_directory}' holds no LoRA weights; train the reward model with "
            f"`preferl reward --lora_r 8 --model_name_or_path {base}`"
        )
    saved, notes = PeftConfig.from_pretrained(str(source)), json.loads((source / ADAPTER_NOTES).read_text())
    own, theirs = model_directory(base), str(saved.base_model_name_or_path)
    if Path(own).resolve() != Path(theirs).resolve():
        raise UsageError(
            f"share_base: the reward model's base is '{theirs}', the policy's '{own}'; they must be one"
        )
    if notes["pooling"] != "last":
        raise UsageError("share_base: the reward model must read the last token (reward --pooling last)")
    adapted = lora_policy(model, base, r, alpha)
    tensors = load_file(source / "adapter_model.safetensors")
    head_name = next(name for name in tensors if name.endswith("score.weight"))
    weight_1D = tensors.pop(head_name)
    heads = []
    for name in ("reward", "critic"):
        with quiet_peft():
            adapted.add_adapter(name, lora_config(model, saved.r, saved.lora_alpha))
            outcome = set_peft_model_state_dict(adapted, tensors, adapter_name=name)
        if outcome.unexpected_keys:
            raise UsageError(
                f"share_base: {outcome.unexpected_keys[0]} of '{reward_directory}' has no place in '{base}'"
            )
        head = torch.nn.Linear(weight_1D.shape[1], 1, bias=False)
        with torch.no_grad():
            head.weight.copy_(weight_1D)
        heads.append(HeadOnAdapter(adapted, name, head.to(model.device), notes["reward_mean"]))
    adapted.set_adapter(POLICY)
    for key, parameter in adapted.named_parameters():
        parameter.requires_grad_(f".{POLICY}." in key or ".critic." in key)
    reward, critic = heads
    reward.score.requires_grad_(False)
    for part in (adapted, reward.score):
        refuse_nonfinite(part, reward_directory)
    return adapted.eval(), reward, critic
