"""Who plays which part in RL: policy, reference and critic, each a model, on weights of its own or in common.

separate    policy, frozen copy as reference, critic with a trunk of its own (the default)
value head  the critic is a linear head on the policy's last hidden states
lora        policy and critic train LoRA weights on frozen bases. The reference stands on the policy's base;
            so do reward model and critic where the reward model is LoRA weights on it too

Frozen weights that are equal are in memory once, whichever models they are of.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.data.types import Scorer
from preferl.judging.scorers import load_scorer, reward_models
from preferl.models import load
from preferl.models.critic import critic_from_policy, critic_from_reward_model, token_values
from preferl.models.load import freeze
from preferl.models.lora import has_adapter, merged, save_adapter, save_trained, weights_for, with_lora
from preferl.models.mean_pooling import MeanPooledRewardModel
from preferl.models.passes import base_of, state_size
from preferl.models.storage import is_quantised, share_weights, twin
from preferl.options.judging import JudgeConfig
from preferl.options.learning import ModelOptions
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.sampling.logprobs import Distributions, distributions
from preferl.sampling.samples import Samples

VALUE_MODELS = ("auto", "reward", "policy", "head")


@dataclass
class RlModels:
    """The models of one run.

    At most one of ``critic`` (a scalar head on a trunk of its own) and ``value_head`` (on the policy's trunk)
    is there.
    """

    policy: Any
    reference: PreTrainedModel
    critic: Any = None
    value_head: torch.nn.Linear | None = None

    def __post_init__(self) -> None:
        freeze(self.reference)

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def has_values(self) -> bool:
        return self.critic is not None or self.value_head is not None

    def distributions(self, samples: Samples) -> Distributions:
        """The policy's, at the tokens of responses, with the states that a value head reads; gradients
        flow."""
        return distributions(self.policy, samples, states=self.value_head is not None)

    @torch.no_grad()
    def reference_distributions(self, samples: Samples) -> Distributions:
        """The reference's."""
        return distributions(self.reference, samples)

    def values_of(self, states_BTD: torch.Tensor | None) -> torch.Tensor:
        """``value_BT`` of the policy's last hidden states by the value head; gradients flow."""
        assert self.value_head is not None
        assert states_BTD is not None
        return self.value_head(states_BTD.float())[..., 0]

    def values(self, samples: Samples) -> torch.Tensor:
        """``value_BT``: what the critic expects from each response token on; gradients flow."""
        if self.value_head is not None:
            return self.values_of(self.distributions(samples).states_BTD)
        return token_values(
            self.critic,
            samples.tokens_BS.to(self.device),
            samples.attention_BS.to(self.device),
            samples.prompt_width,
        )

    def trained(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """What is trained, by optimiser and name: a value head goes with the policy, whose trunk it
        shares."""
        policy, critic = (
            {} if model is None else {name: p for name, p in model.named_parameters() if p.requires_grad}
            for model in (self.policy, self.critic)
        )
        if self.value_head is not None:
            policy |= {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        return {"policy": policy} | ({"critic": critic} if critic else {})

    def frozen(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors of the reference, which must not change."""
        return {"reference": dict(self.reference.state_dict())}

    def save(self, tokenizer: Any, path: Path, base: str) -> None:
        """Writes ``model/`` and, where there is a critic of its own, ``value_model/``; adapters beside them.
        ``base``: the name that the policy was loaded by."""
        save_trained(self.policy, tokenizer, path, base)
        if self.critic is not None:
            _save_critic(self.critic, tokenizer, path)


@distributed.main_writes
def _save_critic(critic: Any, tokenizer: Any, path: Path) -> None:
    if not has_adapter(critic):
        load.save(critic, tokenizer, path / "value_model")
    elif is_quantised(base_of(critic)):  # what they could be merged into as a whole is stored nowhere
        save_adapter(critic, path / "value_adapter")
    else:
        load.save(merged(critic), tokenizer, path / "value_model")


def load_models(
    options: ModelOptions,
    critic: bool,
    device: torch.device,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    judges: JudgeConfig | None = None,
) -> tuple[RlModels, Any, Scorer]:
    """Loads everybody: the models, the policy's tokenizer, and the scorer.

    ``judges``: how language models among the rewards are asked.

    Raises:
        UsageError: something cannot be loaded, or options contradict each other.
    """
    name = options.model_name_or_path
    if options.value_model not in VALUE_MODELS:
        raise UsageError(f"value_model '{options.value_model}' is unknown; use {', '.join(VALUE_MODELS)}")
    base, tokenizer = load.load_policy(name, device, chat_template_kwargs, weights_for(options))
    if options.ref_model or not options.lora_r:
        reference = load.load_policy(options.ref_model or name, device)[0]
        share_weights(base, reference)
    else:
        reference = twin(base)
    scorer = load_scorer(options.reward_model, device, judges, beside=reference)
    for judge in reward_models(scorer).values():
        freeze(judge.model)
    policy: Any = with_lora(base, name, options) if options.lora_r else base
    models = RlModels(policy, reference)
    if critic and options.value_model == "head":
        models.value_head = torch.nn.Linear(state_size(policy), 1, device=device)
        torch.nn.init.zeros_(models.value_head.weight)
        torch.nn.init.zeros_(models.value_head.bias)
    elif critic:
        models.critic = _own_critic(options, scorer, tokenizer, reference)
    if options.lora_r:
        say_what_is_shared(models, scorer)
    return models, tokenizer, scorer


def _own_critic(options: ModelOptions, scorer: Scorer, tokenizer: Any, reference: PreTrainedModel) -> Any:
    judges = reward_models(scorer).values()
    for judge in judges if options.value_model in ("auto", "reward") else ():
        # What was trained at the last token alone says anything of the ones before.
        reads_all = isinstance(base_of(judge.model), MeanPooledRewardModel)
        if options.value_model == "auto" and not reads_all:
            continue
        critic = critic_from_reward_model(
            judge.model, judge.tokenizer, tokenizer, options.reward_model, options
        )
        if critic is not None:
            return critic
    if options.value_model == "reward":
        raise UsageError(
            "value_model reward: the reward holds no decoder over the policy's tokens; use policy or head"
        )
    if judges and options.value_model == "auto":
        say(
            "rl: the critic starts from the policy: no reward model here reads all of the policy's tokens "
            "(value_model)"
        )
    return critic_from_policy(options.model_name_or_path, reference.device, options, reference)


def say_what_is_shared(models: RlModels, scorer: Scorer) -> None:
    """Of LoRA runs: what each role adds to the policy's base, which every reward model could stand on too."""
    table = memory(models, scorer)
    added = ", ".join(f"{role} {row['weights_mib']:,.0f}" for role, row in table.items())
    say(f"rl: weights in memory, MiB, what several roles share counted once: {added}")
    if reward_models(scorer) and table["reward"]["weights_mib"] > table["policy"]["weights_mib"] / 2:
        say(
            "rl: the reward model stands on other weights than the policy and is in memory by itself; "
            "trained with lora_r on the policy's own start it would share them"
        )


def memory(models: RlModels, scorer: Scorer) -> dict[str, dict[str, float]]:
    """MiB by role: weights, and gradients and AdamW's two moments of what is trained.

    What several roles share counts once, as that of the first of them.
    """
    value = models.critic if models.critic is not None else models.value_head
    judges = [judge.model for judge in reward_models(scorer).values()]
    roles: dict[str, Iterable[torch.nn.Parameter]] = {
        "policy": models.policy.parameters(),
        "reference": models.reference.parameters(),
        "reward": [p for judge in judges for p in judge.parameters()],
        "value": () if value is None else value.parameters(),
    }
    seen: set[int] = set()
    table = {}
    for role, parameters in roles.items():
        own = [p for p in parameters if id(p) not in seen]
        seen |= set(map(id, own))
        trained = [p for p in own if p.requires_grad]
        table[role] = {"weights_mib": mib(own), "training_mib": 3 * mib(trained)}
    return table


def mib(parameters: Iterable[torch.nn.Parameter]) -> float:
    return sum(p.numel() * p.element_size() for p in parameters) / 2**20
