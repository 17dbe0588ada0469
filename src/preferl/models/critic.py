"""Critics of ppo: a model with a scalar head that reads the policy's tokens, and says at each of them what it
expects from there on."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from preferl.models.adapters import find_adapter
from preferl.models.load import (
    CPU,
    load_adapted,
    load_pretrained,
    load_tokenizer,
    model_directory,
    refuse_to_quantise,
)
from preferl.models.lora import has_adapter, merged, trained_copy, weights_for
from preferl.models.mean_pooling import mean_pooled
from preferl.models.passes import base_of, hidden_states
from preferl.models.reward import (
    family_without_scores,
    is_decoder,
    load_trunk,
    reward_mean,
    with_new_adapter,
)
from preferl.models.special_tokens import ensure_eos_token, ensure_pad_token
from preferl.models.storage import Weights, as_trained, share_weights, twin
from preferl.options.shared import LoraOptions

NO_LORA = LoraOptions()


def critic_from_reward_model(
    reward_model: Any,
    reward_tokenizer: Any,
    policy_tokenizer: Any,
    name: str = "",
    lora: LoraOptions = NO_LORA,
) -> Any:
    """A trainable model that starts as a reward model and reads the policy's tokens, or None where it cannot.

    The value of a prefix starts out as the reward model's score of it (the published default: a critic from
    scratch costs the policy its first updates). With LoRA it is on the reward model's own base, and takes its
    adapters over where the reward model has such.
    """
    same_tokens = reward_tokenizer.get_vocab() == policy_tokenizer.get_vocab()
    if not (same_tokens and is_decoder(reward_model)):
        return None
    if not lora.lora_r:
        critic = merged(twin(reward_model)) if has_adapter(reward_model) else twin(reward_model)
        as_trained(critic)
        return critic.eval()
    if has_adapter(reward_model):
        return trained_copy(reward_model).eval()
    return with_new_adapter(twin(reward_model), name, lora)


def critic_from_policy(
    name_or_path: str,
    device: torch.device,
    lora: LoraOptions = NO_LORA,
    beside: torch.nn.Module | None = None,
) -> Any:
    """A critic on the SFT model's trunk with a zero head: the first values are 0. With LoRA it shares the
    weights of ``beside``, a model on the same trunk."""
    model, tokenizer = _with_new_head(name_or_path, weights_for(lora), device)
    torch.nn.init.zeros_(model.score.weight)
    ensure_eos_token(tokenizer, model)
    ensure_pad_token(tokenizer, model)
    if not lora.lora_r:
        return model.to(device).eval()
    if beside is not None:
        share_weights(beside, model)
    return with_new_adapter(model.to(device), name_or_path, lora)


def _with_new_head(
    name_or_path: str, weights: Weights = Weights.TRAINED, device: torch.device = CPU
) -> tuple[PreTrainedModel, Any]:
    """A language model's trunk with a head named ``score``, and its tokenizer."""
    adapter = find_adapter(model_directory(name_or_path))
    if adapter is not None:
        refuse_to_quantise(adapter, weights)
        return load_adapted(adapter, _with_new_head)
    tokenizer = load_tokenizer(name_or_path)
    if family_without_scores(name_or_path) is None:
        model, _ = load_pretrained(
            AutoModelForSequenceClassification, name_or_path, True, weights, device, num_labels=1
        )
        if is_decoder(model):
            return model, tokenizer
    # A critic reads every position, whatever a model of this class makes of them.
    return mean_pooled(load_trunk(name_or_path, weights, device)), tokenizer


def token_values(
    critic: PreTrainedModel, tokens_BS: torch.Tensor, mask_BS: torch.Tensor, prompt_width: int
) -> torch.Tensor:
    """``value_BT``: column t is the value of the state in which response token t is chosen.

    That state is prompt and response tokens before t, so it is read at position P - 1 + t.
    """
    whole = base_of(critic)  # adapters of peft are inside it
    hidden_BSD = hidden_states(whole.base_model, tokens_BS, mask_BS)
    states_BTD = hidden_BSD[:, prompt_width - 1 : -1]
    return whole.score(states_BTD)[..., 0].float() - reward_mean(critic)
