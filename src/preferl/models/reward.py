"""Reward models: any encoder or decoder of transformers with one scalar output.

score(x, y) = ``logits[:, 0]`` of ``AutoModelForSequenceClassification(num_labels=1)``, minus ``reward_mean``
from its configuration. Decoders read the last real token (EOS where the response is finished).
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from preferl.data.chat import pad, scored_ids
from preferl.data.records import Prompt
from preferl.models.load import ensure_pad_token, load_pretrained, load_tokenizer, max_positions
from preferl.runs.errors import UsageError

HEADS = ("score", "classifier")


def load_reward_model(
    name_or_path: str, device: torch.device, new_head_allowed: bool = False
) -> tuple[PreTrainedModel, Any]:
    """A scalar-head model in evaluation mode and its tokenizer.

    With ``new_head_allowed`` the directory may hold a language model: its trunk is kept and a head with
    standard deviation 1/sqrt(d + 1) is added (Stiennon et al. 2020, appendix B.1).

    Raises:
        UsageError: weights are missing that would otherwise load as random numbers.
    """
    tokenizer = load_tokenizer(name_or_path)
    allowed = HEADS if new_head_allowed else ()
    model, missing = load_pretrained(AutoModelForSequenceClassification, name_or_path, allowed, num_labels=1)
    if missing:
        weight = scalar_head(model).weight
        torch.nn.init.normal_(weight, std=(weight.shape[-1] + 1) ** -0.5)
    ensure_pad_token(tokenizer, model)
    return model.to(device).eval(), tokenizer


def scalar_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear layer that makes the score."""
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.Linear):
            return head
        if head is not None and isinstance(getattr(head, "out_proj", None), torch.nn.Linear):
            return head.out_proj
    raise UsageError(f"{type(model).__name__} has no linear scalar head that preferl knows")


def is_decoder(model: PreTrainedModel) -> bool:
    """Decoders carry a bare ``score`` head on the trunk's last hidden state."""
    return isinstance(getattr(model, "score", None), torch.nn.Linear)


def raw_scores(model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Scores ``score_B`` (float32, mean not subtracted) of right-padded rows; gradients flow."""
    if not is_decoder(model):
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
        raise UsageError(f"reward scores have standard deviation {sd}: nothing to normalise")
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
        >>> rm = RewardModel(*load_reward_model("runs/demo/reward", torch.device("cpu")))
        >>> rm(["What is 2 + 2?"], ["4."], finished=[True])
        [0.83]
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, batch_size: int = 128, max_length: int | None = None
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        limits = [limit for limit in (max_positions(model), max_length) if limit]
        self.max_length = min(limits, default=None)

    def encode(self, prompt: Prompt, completion: str, finished: bool = True) -> list[int]:
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
