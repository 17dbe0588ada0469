"""Reward models that read the mean of all real positions instead of the last one.

They are saved under an architecture of their own: another program must not load one as a last-token model by
accident. Importing this module registers it, and ``AutoModelForSequenceClassification`` loads it then.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from preferl.models.passes import state_size
from preferl.models.tiny import ORIGIN


class MeanPooledConfig(PretrainedConfig):
    """The trunk's configuration under ``trunk``, and what scorers need at the top."""

    model_type = "preferl-mean-pooled"

    def __init__(
        self,
        trunk: dict[str, Any] | None = None,
        reward_mean: float = 0.0,
        head_size: int | None = None,
        **kwargs: Any,
    ):
        self.trunk = trunk or {}
        self.head_size = head_size  # where the trunk's last hidden states are of another width than its rest
        self.reward_mean = reward_mean
        self.pad_token_id = kwargs.pop("pad_token_id", self.trunk.get("pad_token_id"))
        for name in ("max_position_embeddings", "n_positions", ORIGIN):
            if name in self.trunk:
                setattr(self, name, kwargs.pop(name, self.trunk[name]))
        if "id2label" not in kwargs:  # else there are as many heads as names
            kwargs.setdefault("num_labels", 1)
        super().__init__(**kwargs)

    def trunk_config(self) -> PretrainedConfig:
        values = {k: v for k, v in self.trunk.items() if k != "model_type"}
        return AutoConfig.for_model(self.trunk["model_type"], **values)


class MeanPooledRewardModel(PreTrainedModel):
    """score = w · mean over real tokens of the trunk's last hidden state (no bias)."""

    config_class = MeanPooledConfig
    base_model_prefix = "model"

    def __init__(self, config: MeanPooledConfig, trunk: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = (
            AutoModel.from_config(config.trunk_config(), trust_remote_code=False) if trunk is None else trunk
        )
        width = config.head_size or self.model.config.get_text_config().hidden_size
        self.score = torch.nn.Linear(width, self.config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """A new head has standard deviation 1/sqrt(d + 1) (Stiennon et al. 2020); trunks are loaded."""
        if module is self.score:
            torch.nn.init.normal_(self.score.weight, std=(self.score.in_features + 1) ** -0.5)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        mask_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden_BSD = self.model(input_ids=input_ids, attention_mask=mask_BS).last_hidden_state
        weight_BS1 = mask_BS.to(hidden_BSD.dtype)[..., None]
        mean_BD = (hidden_BSD * weight_BS1).sum(1) / weight_BS1.sum(1)
        return SequenceClassifierOutput(logits=self.score(mean_BD))


AutoConfig.register(MeanPooledConfig.model_type, MeanPooledConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MeanPooledConfig, MeanPooledRewardModel, exist_ok=True)


def mean_pooled(trunk: PreTrainedModel, num_labels: int = 1) -> MeanPooledRewardModel:
    """A reward model with a new head on a trunk."""
    text = trunk.config.get_text_config()
    width = state_size(trunk)
    config = MeanPooledConfig(
        trunk=trunk.config.to_dict(),
        pad_token_id=text.pad_token_id,
        head_size=None if width == text.hidden_size else width,
        num_labels=num_labels,
    )
    return MeanPooledRewardModel(config, trunk)
