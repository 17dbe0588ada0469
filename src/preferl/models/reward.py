"""Reward models: any encoder or decoder of transformers with one scalar output.

score(x, y) = ``logits[:, 0]`` of ``AutoModelForSequenceClassification(num_labels=1)``, minus ``reward_mean``
from its configuration. Decoders read the last real token (EOS where the response is finished), mean-pooled
models all of them. A directory of LoRA weights stands for its base model with them merged in.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from preferl.data.records import Prompt, UserTurn
from preferl.data.tokens import pad, positions, reads_segments, scored_ids
from preferl.models.load import (
    ensure_eos_token,
    ensure_pad_token,
    load_pretrained,
    load_tokenizer,
    max_positions,
    model_directory,
    named_failures,
    reads_dialogue,
    refuse_nonfinite,
)
from preferl.models.mean_pooling import MeanPooledRewardModel, mean_pooled
from preferl.runs import devices
from preferl.runs.errors import UsageError
from preferl.runs.files import whole_directory

HEADS = ("score", "classifier")
POOLINGS = ("last", "mean")
ADAPTER_FILE, ADAPTER_NOTES = "adapter_config.json", "preferl.json"


def load_reward_model(
    name_or_path: str,
    device: torch.device,
    new_head_allowed: bool = False,
    pooling: str = "last",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A scalar-head model in evaluation mode and its tokenizer.

    With ``new_head_allowed`` the directory may hold a language model: its trunk is kept and a head with
    standard deviation 1/sqrt(d + 1) is added (Stiennon et al. 2020, appendix B.1), on the last real token or,
    with ``pooling`` ``mean``, on the mean of all of them. A saved reward model keeps the pooling it has.

    Raises:
        UsageError: weights are missing that would otherwise load as random numbers, or the pooling is
            unknown.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"pooling '{pooling}' is unknown; use {' or '.join(POOLINGS)}")
    source = Path(model_directory(name_or_path))
    if (source / ADAPTER_FILE).exists():
        return _load_adapter(source, device)
    tokenizer = load_tokenizer(name_or_path, chat_template_kwargs)
    saved_pooling = _saved_pooling(source)
    if new_head_allowed and pooling == "mean" and saved_pooling is None:
        trunk, _ = load_pretrained(AutoModel, name_or_path, ("pooler",))
        model: PreTrainedModel = mean_pooled(trunk)
    elif new_head_allowed and saved_pooling not in (None, pooling):
        raise UsageError(
            f"'{name_or_path}' is a reward model with {saved_pooling} pooling; give --pooling {saved_pooling}"
        )
    else:
        allowed = HEADS if new_head_allowed else ()
        model, missing = load_pretrained(
            AutoModelForSequenceClassification, name_or_path, allowed, num_labels=1
        )
        if missing:
            weight = scalar_head(model).weight
            torch.nn.init.normal_(weight, std=(weight.shape[-1] + 1) ** -0.5)
    if not reads_segments(tokenizer):
        ensure_eos_token(tokenizer, model)
    ensure_pad_token(tokenizer, model)
    return model.to(device).eval(), tokenizer


def _saved_pooling(source: Path) -> str | None:
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


def _load_adapter(source: Path, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """The base model of a directory of LoRA weights with them merged in, and its mean score."""
    from peft import PeftConfig, PeftModel

    fix = "give a directory that preferl reward --lora_r wrote"
    with named_failures(f"no LoRA weights could be loaded from '{source}'", fix):
        base = PeftConfig.from_pretrained(str(source)).base_model_name_or_path
        notes = json.loads((source / ADAPTER_NOTES).read_text(encoding="utf-8"))
        model, tokenizer = load_reward_model(str(base), device, True, notes["pooling"])
    with named_failures(f"no LoRA weights could be loaded from '{source}'", fix), quiet_peft():
        merged = PeftModel.from_pretrained(model, str(source)).merge_and_unload()
    refuse_nonfinite(merged, str(source))
    merged.config.reward_mean = notes["reward_mean"]
    return merged.to(device).eval(), tokenizer


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """peft asks transformers for an attribute by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def with_lora(model: PreTrainedModel, base: str, r: int, alpha: float, dropout: float) -> Any:
    """The model with trainable LoRA weights (Hu et al. 2021) on every linear layer and a trainable head."""
    from peft import LoraConfig, get_peft_model

    head = next(name for name in HEADS if hasattr(model, name))
    config = LoraConfig(
        r=r,
        lora_alpha=int(alpha),
        lora_dropout=dropout,
        target_modules="all-linear",
        exclude_modules=[head],
        modules_to_save=[head],
    )
    with quiet_peft():
        adapted = get_peft_model(model, config)
    # peft knows no name of a new model, and no stage directories.
    adapted.peft_config["default"].base_model_name_or_path = model_directory(base)
    return adapted.eval()


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


def save_adapter(adapted: Any, path: Path, pooling: str) -> None:
    """Writes LoRA weights and head, and beside them what ``load_reward_model`` needs to put them together."""
    notes = {"pooling": pooling, "reward_mean": reward_mean(adapted)}
    with whole_directory(path) as directory:
        # Embeddings are those of the base; without a word peft would ask the Hub whether they are.
        adapted.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / ADAPTER_NOTES).write_text(json.dumps(notes) + "\n", encoding="utf-8")


def scalar_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer that makes the score."""
    for name in HEADS:
        head = getattr(model, name, None)
        if hasattr(head, "modules_to_save"):  # LoRA trains a copy
            head = head.modules_to_save["default"]
        if isinstance(head, torch.nn.Linear):
            return head
        if head is not None and isinstance(getattr(head, "out_proj", None), torch.nn.Linear):
            return head.out_proj
    raise UsageError(f"{type(model).__name__} has no linear scalar head that preferl knows")


def is_decoder(model: PreTrainedModel) -> bool:
    """Decoders carry a bare ``score`` head on the trunk's last hidden state.

    A mean-pooled decoder is one too: its score is the mean of what the head says at every position.
    """
    return isinstance(getattr(model, "score", None), torch.nn.Linear)


def raw_scores(model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Scores ``score_B`` (float32, mean not subtracted) of right-padded rows; gradients flow."""
    if isinstance(model, MeanPooledRewardModel) or not is_decoder(model):
        return model(input_ids=ids_BS, attention_mask=mask_BS).logits[:, 0].float()
    hidden_BSD = model.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
    last_B = mask_BS.sum(-1) - 1
    rows = torch.arange(len(ids_BS), device=ids_BS.device)
    return model.score(hidden_BSD[rows, last_B])[:, 0].float()


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

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Normalised scores; a response that was cut off is read without EOS."""
        ends = [True] * len(prompts) if finished is None else finished
        rows = [self.encode(p, c, bool(f)) for p, c, f in zip(prompts, completions, ends, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        device, mean = self.model.device, reward_mean(self.model)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            ids_BS, mask_BS = pad([rows[i] for i in part], self.tokenizer.pad_token_id, "right")
            score_B = raw_scores(self.model, ids_BS.to(device), mask_BS.to(device)) - mean
            for i, score in zip(part, score_B.tolist(), strict=True):
                scores[i] = score
        return scores


def critic_from_reward_model(
    reward_model: PreTrainedModel, reward_tokenizer: Any, policy_tokenizer: Any
) -> PreTrainedModel | None:
    """A trainable copy of a reward model that reads the policy's tokens, or None where it cannot.

    The value of a prefix starts out as the reward model's score of it (the published default: a critic
    from scratch costs the policy its first updates).
    """
    same_tokens = reward_tokenizer.get_vocab() == policy_tokenizer.get_vocab()
    if not (same_tokens and is_decoder(reward_model)):
        return None
    return copy.deepcopy(reward_model).requires_grad_(True).eval()


def critic_from_policy(name_or_path: str, device: torch.device) -> PreTrainedModel:
    """A critic on the SFT model's trunk with a zero head: the first values are 0."""
    model, _ = load_pretrained(AutoModelForSequenceClassification, name_or_path, ("score",), num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    return model.to(device).eval()


def token_values(
    critic: PreTrainedModel, tokens_BS: torch.Tensor, mask_BS: torch.Tensor, prompt_width: int
) -> torch.Tensor:
    """``value_BT``: column t is the value of the state in which response token t is chosen.

    That state is prompt and response tokens before t, so it is read at position P - 1 + t.
    """
    hidden_BSD = critic.base_model(
        input_ids=tokens_BS,
        attention_mask=mask_BS,
        position_ids=positions(mask_BS),
        use_cache=False,
    ).last_hidden_state
    states_BTD = hidden_BSD[:, prompt_width - 1 : -1]
    return critic.score(states_BTD)[..., 0].float() - reward_mean(critic)
