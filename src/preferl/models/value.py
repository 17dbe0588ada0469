"""The critic: one value for each response token, from a scalar head on every position."""

import copy
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from preferl.data.chat import positions
from preferl.models.load import load_pretrained
from preferl.models.reward import is_decoder, reward_mean


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
