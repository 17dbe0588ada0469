"""Reward models: any encoder or decoder of transformers with one scalar output.

score(x, y) = ``logits[:, 0]`` of ``AutoModelForSequenceClassification(num_labels=1)``, minus ``reward_mean``
from its configuration. Decoders read the last real token (EOS where the response is finished), mean-pooled
models all of them. A directory of LoRA weights stands for its base model with them merged in.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from preferl.data.records import Prompt, UserTurn
from preferl.data.tokens import Extent, coder_of, pad, parts_that_fit, reads_segments, scored_ids
from preferl.models import heads
from preferl.models.adapters import Adapter, find_adapter, quiet_peft
from preferl.models.attributes import (
    attribute_logits,
    attributes_of,
    chosen_mixture,
    collapse,
    name_attributes,
    split_mixture,
)
from preferl.models.load import (
    CPU,
    known_configuration,
    load_adapted,
    load_pretrained,
    load_tokenizer,
    max_positions,
    model_directory,
    named_failures,
    reads_dialogue,
    refuse_nonfinite,
    refuse_to_quantise,
    sizes_of,
    source_of,
)
from preferl.models.lora import ADAPTER_NOTES, save_adapter, with_lora
from preferl.models.mean_pooling import MeanPooledRewardModel, mean_pooled
from preferl.models.offload import Offload
from preferl.models.passes import TOLERANCE, base_of, takes
from preferl.models.shapes import forward_tokens
from preferl.models.special_tokens import ensure_eos_token, ensure_pad_token
from preferl.models.storage import Weights, is_quantised, share_weights
from preferl.models.twins import has_twin, scoring_twin
from preferl.options.shared import LoraOptions
from preferl.runs import devices
from preferl.runs.errors import UsageError
from preferl.runs.progress import say

POOLINGS = ("last", "mean")
MOSTLY = 0.5  # of a model's weights in common with another: they stand on one base


def load_reward_model(
    name_or_path: str,
    device: torch.device,
    new_head_allowed: bool = False,
    pooling: str = "last",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = Weights.FROZEN,
) -> tuple[PreTrainedModel, Any]:
    """A scalar-head model in evaluation mode and its tokenizer; ``weights``: how they are kept.

    With ``new_head_allowed`` the directory may hold a language model: its trunk is kept and a head with
    standard deviation 1/sqrt(d + 1) is added (Stiennon et al. 2020, appendix B.1), on the last real token or,
    with ``pooling`` ``mean``, on the mean of all of them. A saved reward model keeps the pooling it has. Of a
    model with several heads the one that its mixture makes of them is loaded (``models.attributes``).

    Raises:
        UsageError: weights are missing that would otherwise load as random numbers, the pooling is unknown,
            or a model of several attributes has no mixture.
    """
    check_pooling(pooling)
    name_or_path, mixture = split_mixture(name_or_path)
    source = Path(model_directory(name_or_path))
    adapter = find_adapter(str(source))
    if adapter is not None:
        refuse_to_quantise(adapter, weights)
        model, tokenizer = _load_adapter(adapter, device, new_head_allowed, mixture)
        return model.requires_grad_(weights is Weights.TRAINED), tokenizer
    if saved_attributes(name_or_path):
        model, tokenizer = _load_heads(name_or_path, weights)
        collapse(model, scalar_head(model), chosen_mixture(model.config, mixture, name_or_path))
        return ready(model, tokenizer, device)
    if mixture is not None:
        raise UsageError(
            f"'{name_or_path}' has one score, which '#{mixture}' cannot be made of; leave it out"
        )
    tokenizer = load_tokenizer(name_or_path, chat_template_kwargs)
    saved = saved_pooling(source)
    if new_head_allowed and pooling == "last" and saved is None:
        twin = _twin_of(name_or_path)
        if twin is not None:
            if weights is Weights.IN_4BIT:
                raise UsageError(
                    f"load_in_4bit: the reward model on '{name_or_path}' is of a family that its weights are "
                    f"moved to, and not loaded as; leave load_in_4bit out"
                )
            return ready(twin, tokenizer, device)
        refuse_family_without_scores(name_or_path)
    if new_head_allowed and pooling == "mean" and saved is None:
        model: PreTrainedModel = mean_pooled(load_trunk(name_or_path, weights, device))
    elif new_head_allowed and saved not in (None, pooling):
        raise UsageError(f"'{name_or_path}' is a reward model with {saved} pooling; give --pooling {saved}")
    else:
        stored = heads.stored_head(str(source))
        model, missing = load_pretrained(
            AutoModelForSequenceClassification,
            name_or_path,
            new_head_allowed or heads.has_layers(stored),
            weights,
            device,
            num_labels=1,
        )
        note = heads.restore_head(model, stored)
        name, head = _named_head(model)
        if note is not None:
            say(f"'{name_or_path}': {note}")
        elif f"{name}.weight" in missing:
            torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    return ready(model, tokenizer, device)


def load_trunk(
    name_or_path: str, weights: Weights = Weights.TRAINED, device: torch.device = CPU
) -> PreTrainedModel:
    """A model without a head. Of a family whose plain class writes text too (Llama 4 with pictures) it is the
    part of its language model that reads text."""
    trunk, _ = load_pretrained(AutoModel, name_or_path, True, weights, device)
    if trunk.get_output_embeddings() is None:
        return trunk
    language_model, _ = load_pretrained(AutoModelForCausalLM, name_or_path, False, weights, device)
    return next(part for part in language_model.children() if isinstance(part, PreTrainedModel))


@torch.no_grad()
def refuse_read_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """A head may read the last column of a batch, whatever stands there (XLNet's), and layers may mix padding
    in (FNet, ConvBERT). Tried on two texts of unlike length.

    Raises:
        UsageError: the shorter text has another score where padding follows it, or the model cannot be run.
    """
    if not coder_of(tokenizer).knows_letters:
        return
    rows = [scored_ids(tokenizer, "a", answer, True, None) for answer in ("b", "b b b b")]
    what = f"the reward model '{model.name_or_path}' fails on a text of {len(rows[1])} tokens"
    with named_failures(what, "its family in transformers cannot read it; look at config.json"):
        together, alone = (
            float(raw_scores(model, *pad(part, tokenizer.pad_token_id, "right"))[0])
            for part in (rows, rows[:1])
        )
    if abs(together - alone) > TOLERANCE * max(1.0, abs(alone)):
        raise UsageError(
            f"'{model.name_or_path}' ({model.config.model_type}) gives a text another score where padding "
            f"follows it: {alone:.4g} alone, {together:.4g} in a batch. Its layers or its head read padding; "
            f"take a reward model of another family"
        )


def ready(model: PreTrainedModel, tokenizer: Any, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """A model as scores are asked of it, and its tokenizer: with padding, in evaluation mode, and knowing
    behind which token a pair's second text begins where the encoder reads it by embeddings of its own."""
    if not reads_segments(tokenizer):
        ensure_eos_token(tokenizer, model)
    ensure_pad_token(tokenizer, model)
    types = tokenizer("a", "b").get("token_type_ids") if takes(model, "token_type_ids") else None
    if types and max(types) and getattr(model.config, "type_vocab_size", 0) > 1:
        model.segment_separator = tokenizer.sep_token_id
    refuse_read_padding(model.eval(), tokenizer)
    return model.to(device).eval(), tokenizer


def check_pooling(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise UsageError(f"pooling '{pooling}' is unknown; use {' or '.join(POOLINGS)}")


def configuration(name_or_path: str) -> Any:
    """A model's configuration.

    Raises:
        UsageError: it cannot be loaded.
    """
    fix = "give a directory written by save_pretrained (safetensors), a stage directory or a Hub name"
    with named_failures(f"no model could be loaded from '{name_or_path}'", fix):
        source, gguf = source_of(name_or_path)
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)


def saved_attributes(name_or_path: str) -> list[str]:
    """The names of a saved reward model's heads, where it has several; none of anything else."""
    if find_adapter(model_directory(name_or_path)) is not None:
        return []
    config = configuration(name_or_path)
    classifies = (config.architectures or [""])[0].endswith("ForSequenceClassification")
    mean_pooling = config.model_type == MeanPooledRewardModel.config_class.model_type
    return attributes_of(config) if classifies or mean_pooling else []


def _load_heads(name_or_path: str, weights: Weights) -> tuple[PreTrainedModel, Any]:
    """A saved model with all its heads, and its tokenizer."""
    tokenizer = load_tokenizer(name_or_path)
    model, _ = load_pretrained(AutoModelForSequenceClassification, name_or_path, weights=weights)
    return model, tokenizer


def load_attribute_model(
    name_or_path: str, device: torch.device, weights: Weights = Weights.FROZEN
) -> tuple[PreTrainedModel, Any]:
    """A saved model with one head an attribute in evaluation mode, and its tokenizer.

    Raises:
        UsageError: it cannot be loaded, or has one score.
    """
    name_or_path, _ = split_mixture(name_or_path)
    if not saved_attributes(name_or_path):
        raise UsageError(f"'{name_or_path}' is no reward model with several attributes")
    return ready(*_load_heads(name_or_path, weights), device)


def new_attribute_model(
    name_or_path: str, device: torch.device, attributes: Sequence[str], pooling: str = "last"
) -> tuple[PreTrainedModel, Any]:
    """A model with a new regression head for each attribute, on the trunk of a language model, an encoder or
    a reward model, and its tokenizer; a saved model of these attributes goes on with its own heads."""
    check_pooling(pooling)
    name_or_path, _ = split_mixture(name_or_path)
    if saved_attributes(name_or_path) == list(attributes):
        return load_attribute_model(name_or_path, device, Weights.TRAINED)
    model, tokenizer = _with_new_heads(name_or_path, len(attributes), pooling)
    name_attributes(model.config, attributes)
    return ready(model, tokenizer, device)


def _with_new_heads(name_or_path: str, num_labels: int, pooling: str) -> tuple[PreTrainedModel, Any]:
    """A model with a new linear layer for so many labels on the trunk of any model, and its tokenizer."""
    adapter = find_adapter(model_directory(name_or_path))
    if adapter is not None:
        return load_adapted(adapter, lambda base: _with_new_heads(base, num_labels, pooling))
    tokenizer = load_tokenizer(name_or_path)
    if pooling == "mean":
        return mean_pooled(load_trunk(name_or_path), num_labels), tokenizer
    twin = _twin_of(name_or_path, num_labels)
    if twin is not None:
        return twin, tokenizer
    refuse_family_without_scores(name_or_path)
    model, _ = load_pretrained(
        AutoModelForSequenceClassification,
        name_or_path,
        new_head=True,
        num_labels=num_labels,
        ignore_mismatched_sizes=True,  # the head of a model with other labels is not kept
    )
    head = scalar_head(model)
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    return model, tokenizer


def _twin_of(name_or_path: str, num_labels: int = 1) -> PreTrainedModel | None:
    """A model with a new head of a family that computes what a family without scores does (``twins.py``),
    which is said; None where there is no such family."""
    family = family_without_scores(name_or_path)
    if family is None or not has_twin(configuration(name_or_path)):
        return None
    model = scoring_twin(name_or_path, num_labels)
    say(
        f"'{name_or_path}' is a {family} model, of which transformers has no class with a head that scores: "
        f"the reward model is kept as a {model.config.model_type} without attention, which computes the same "
        f"and which transformers loads"
    )
    return model


def saved_pooling(source: Path) -> str | None:
    """How a saved reward model pools; None for a language model, an encoder's trunk or a Hub name."""
    if not (source / "config.json").exists():
        return None
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except ValueError:  # whoever loads the model says what is wrong with it
        return None
    if config.get("model_type") == MeanPooledRewardModel.config_class.model_type:
        return "mean"
    architectures = config.get("architectures") or [""]
    return "last" if architectures[0].endswith("ForSequenceClassification") else None


def _load_adapter(
    adapter: Adapter, device: torch.device, new_head_allowed: bool, mixture: str | None
) -> tuple[PreTrainedModel, Any]:
    """The base model of a directory of LoRA weights with them merged in, and its mean score: ours with notes
    of it, anybody's else with the score as it comes."""
    notes = adapter_notes(adapter)
    num_labels = 1

    def load_base(name: str) -> tuple[PreTrainedModel, Any]:
        nonlocal num_labels
        model, tokenizer = load_reward_model(name, device, True, notes["pooling"], None, Weights.TRAINED)
        head, _ = _named_head(model)
        # Trained heads are copies, whose names peft leaves as they are.
        rows = [shape[0] for key, shape in adapter.shapes().items() if key.endswith(f"{head}.weight")]
        if not (rows or new_head_allowed or saved_pooling(Path(model_directory(name)))):
            raise UsageError(
                f"neither it nor the adapter has a head that makes a score ({head}), which would be random"
            )
        num_labels = rows[0] if rows else 1
        return (model, tokenizer) if num_labels == 1 else _with_new_heads(name, num_labels, notes["pooling"])

    model, tokenizer = load_adapted(adapter, load_base)
    model.config.reward_mean = notes["reward_mean"]
    if num_labels > 1:
        collapse(model, scalar_head(model), chosen_mixture(model.config, mixture, adapter.source))
    elif mixture is not None:
        raise UsageError(
            f"'{adapter.source}' has one score, which '#{mixture}' cannot be made of; leave it out"
        )
    return ready(model, tokenizer, device)


def load_beside(
    name_or_path: str, device: torch.device, beside: torch.nn.Module
) -> tuple[PreTrainedModel, Any]:
    """As ``load_reward_model``, with weights in common with another frozen model wherever they are equal. A
    stage that trained LoRA weights on the very same base gives that base with its adapter on it, instead of
    the model in which they are merged: its scores are the same to rounding."""
    found = _load_on_base(name_or_path, device, beside)
    if found is not None:
        return found
    model, tokenizer = load_reward_model(name_or_path, device)
    share_weights(beside, model)
    return model, tokenizer


def _load_on_base(name_or_path: str, device: torch.device, beside: Any) -> tuple[PreTrainedModel, Any] | None:
    """The base of a stage's adapter with it on it; None where there is none, or its base is another model
    than ``beside``."""
    directory = Path(name_or_path) / "adapter"
    adapter = find_adapter(str(directory)) if (directory / ADAPTER_NOTES).exists() else None
    if adapter is None or not _looks_like(adapter.base, beside):
        return None
    notes = adapter_notes(adapter)
    quantised = bool(notes.get("load_in_4bit"))
    if quantised != is_quantised(base_of(beside)):
        return None
    weights = Weights.IN_4BIT if quantised else Weights.FROZEN
    model, _ = load_reward_model(adapter.base, device, True, notes["pooling"], None, weights)
    if share_weights(beside, model) < MOSTLY:
        return None
    from peft import PeftModel

    tokenizer = load_tokenizer(name_or_path)
    with quiet_peft():
        adapted: Any = PeftModel.from_pretrained(model, str(directory))
    refuse_nonfinite(adapted, name_or_path)
    adapted.config.reward_mean = notes["reward_mean"]
    model.name_or_path = name_or_path
    return adapted.to(device).eval(), tokenizer


def _looks_like(name_or_path: str, other: Any) -> bool:
    """Whether a model has the sizes of another; what is cheap is asked before weights are read."""
    config = known_configuration(name_or_path)
    return config is not None and sizes_of(config) == sizes_of(other.config)


def adapter_notes(adapter: Adapter) -> dict[str, Any]:
    """What preferl wrote beside a reward model's adapter; of anybody else's, that its score is as it comes.

    Raises:
        UsageError: the notes cannot be read.
    """
    own = adapter.directory / ADAPTER_NOTES
    if not own.exists():
        return {"pooling": "last", "reward_mean": 0.0}
    with named_failures(f"the notes {own} could not be read", "give a directory as preferl wrote it"):
        return json.loads(own.read_text(encoding="utf-8"))


def with_new_adapter(model: Any, name: str, lora: LoraOptions, dropout: float = 0.0) -> Any:
    """A reward model or critic with new LoRA weights, whose head is trained as it is."""
    return with_lora(model, name, lora, dropout, parts_on_trunk(model))


def save_reward_adapter(adapted: Any, path: Path, pooling: str) -> None:
    """Writes LoRA weights and head, and beside them what ``load_reward_model`` needs to put them together."""
    save_adapter(adapted, path, pooling=pooling, reward_mean=reward_mean(adapted))


@contextlib.contextmanager
def lora_dropout(model: torch.nn.Module) -> Iterator[None]:
    """LoRA's dropout is on, for the passes that train; everywhere else models are in evaluation mode."""
    layers = [layer for name, layer in model.named_modules() if ".lora_dropout." in name]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def parts_on_trunk(model: PreTrainedModel) -> list[str]:
    """Names of the modules that a task puts on the trunk: head, pooler, what lies between. They are new where
    the trunk is a language model's."""
    trunk = model.base_model
    children = [(name, part) for name, part in model.named_children() if part is not trunk]
    parts = [name for name, part in children if next(part.parameters(), None) is not None]
    pooled = getattr(trunk, "pooler", None) is not None and not isinstance(model, MeanPooledRewardModel)
    return [f"{model.base_model_prefix}.pooler", *parts] if pooled else parts


def scalar_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer that makes the score: the last one on the trunk.

    Raises:
        UsageError: there is none.
    """
    return _named_head(model)[1]


def _named_head(model: Any) -> tuple[str, torch.nn.Linear]:
    inner = base_of(model)
    found = [
        (f"{part}.{name}".rstrip("."), layer)
        for part in parts_on_trunk(inner)
        for name, layer in inner.get_submodule(part).named_modules()
        # Where LoRA trains a copy of a head, the copy counts.
        if isinstance(layer, torch.nn.Linear) and "original_module" not in name.split(".")
    ]
    if not found:
        raise UsageError(f"{type(inner).__name__} has no linear layer on its trunk that makes a score")
    return found[-1]


def is_decoder(model: PreTrainedModel) -> bool:
    """Decoders carry a bare ``score`` head on the trunk's last hidden state.

    A mean-pooled decoder is one too: its score is the mean of what the head says at every position.
    """
    head = getattr(base_of(model), "score", None)
    # Where LoRA trains a copy of a head, peft wraps both.
    return isinstance(getattr(head, "original_module", head), torch.nn.Linear)


def raw_scores(model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Scores ``score_B`` (float32, mean not subtracted) of right-padded rows; gradients flow."""
    return attribute_logits(model, ids_BS, mask_BS)[:, 0]


def reward_mean(model: PreTrainedModel) -> float:
    """Mean score on reference samples, subtracted from every raw score."""
    return float(getattr(model.config, "reward_mean", 0.0))


def fold_normalisation(model: PreTrainedModel, mean: float, sd: float) -> None:
    """Rescales the head so that raw scores of this mean and sd become scores of mean 0, sd 1.

    The scale goes into the head's weights. A head with a bias takes the mean too; one without keeps it in
    the configuration as ``reward_mean``, so other tools read the same score up to a constant.

    Raises:
        UsageError: the scores do not vary.
    """
    if not sd > 0:
        raise UsageError(
            f"reward scores have standard deviation {sd}: nothing to normalise. The responses that they are "
            f"of are all alike to it; leave --reference_policy out to take those of the training pairs, or "
            f"train the reward model for longer"
        )
    head = scalar_head(model)
    with torch.no_grad():
        head.weight.div_(sd)
        if head.bias is not None:
            head.bias.sub_(mean).div_(sd)
            model.config.reward_mean = 0.0
        else:
            model.config.reward_mean = mean / sd


class RewardModel:
    """A reward model as a function of texts, with a tokenizer of its own.

    Texts and not token ids are its input, so that policy and reward model may use different tokenizers.

    Example:
        >>> rm = RewardModel.load("runs/demo/reward")
        >>> rm(["What is 2 + 2?"], ["4."], finished=[True])
        [0.83]
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, batch_size: int = 128, max_length: int | None = None
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        limits = [limit for limit in (max_positions(model), max_length) if limit]
        self.max_length = min(limits, default=None)
        self.offload: Offload | None = None
        self.read = self.cut = 0  # how many responses, and how many of them were longer than max_length

    @classmethod
    def load(cls, name_or_path: str, device: str = "auto") -> Self:
        """A reward model from a stage's directory, a model directory or a Hub name.

        Raises:
            UsageError: there is no such reward model or device.
        """
        return cls(*load_reward_model(name_or_path, devices.chosen_device(device)))

    @property
    def name(self) -> str:
        """What it is called in messages: where it came from."""
        return str(getattr(self.model, "name_or_path", "") or "reward model")

    def encode(self, prompt: Prompt, completion: str, finished: bool = True) -> list[int]:
        """Token ids of a prompt and a completion, cut to ``max_length``; counts what was cut."""
        if isinstance(prompt, UserTurn) and prompt.by_template and not reads_dialogue(self.tokenizer):
            prompt = prompt.text  # another model's template made a turn of it
        ids = scored_ids(self.tokenizer, prompt, completion, finished, None)
        self.read += 1
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        self.cut += 1
        return scored_ids(self.tokenizer, prompt, completion, finished, self.max_length)

    def passes(self, lengths: Sequence[int]) -> list[slice]:
        """Where rows of these lengths, in this order, are cut into passes without a gradient."""
        extents = [Extent((length,)) for length in lengths]
        return parts_that_fit(extents, self.batch_size, forward_tokens(self.model))

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Normalised scores; a response that was cut off is read without EOS."""
        if self.offload is not None:
            with self.offload.present(self.model):
                return self._scores(prompts, completions, finished)
        return self._scores(prompts, completions, finished)

    def _scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool] | None
    ) -> list[float]:
        ends = [True] * len(prompts) if finished is None else finished
        rows = [self.encode(p, c, bool(f)) for p, c, f in zip(prompts, completions, ends, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        device, mean = self.model.device, reward_mean(self.model)
        for place in self.passes([len(rows[i]) for i in order]):
            part = order[place]
            ids_BS, mask_BS = pad([rows[i] for i in part], self.tokenizer.pad_token_id, "right")
            score_B = raw_scores(self.model, ids_BS.to(device), mask_BS.to(device)) - mean
            for i, score in zip(part, score_B.tolist(), strict=True):
                scores[i] = score
        return scores


def refuse_family_without_scores(name_or_path: str) -> None:
    """Raises:
    UsageError: transformers has no class for a reward model of this family.
    """
    family = family_without_scores(name_or_path)
    if family is not None:
        raise UsageError(
            f"'{name_or_path}' is a {family} model, and transformers has no class of that family with a head "
            f"that scores the last token, so that nothing but preferl could load the reward model; give "
            f"--pooling mean, which preferl saves under an architecture of its own, or start from a model of "
            f"another family"
        )


def family_without_scores(name_or_path: str) -> str | None:
    """The family of a model for which transformers has no class with a head that scores; None where it has
    one, or where there is no model."""
    config = known_configuration(name_or_path)
    if config is None or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    return config.model_type
