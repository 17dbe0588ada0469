"""Who plays which part in RL: policy, reference and critic, as models of their own or sharing weights.

separate    policy, frozen copy as reference, critic with a trunk of its own (the default)
lora        the policy trains LoRA weights; the reference is the same model with them switched off
value head  the critic is a linear head on the policy's last hidden states
one base    policy, reward model and critic are LoRA weights on one frozen base
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.data.types import Scorer
from preferl.judging.judge_options import JudgeConfig, JudgeOptions
from preferl.judging.scorers import load_scorer, reward_models
from preferl.models import load
from preferl.models import lora as adapters
from preferl.models.load import freeze
from preferl.models.passes import state_size
from preferl.models.reward import RewardModel, critic_from_policy, critic_from_reward_model, token_values
from preferl.runs import distributed
from preferl.runs.errors import UsageError
from preferl.runs.files import whole_directory
from preferl.runs.progress import say
from preferl.runs.ranges import Natural, Positive
from preferl.sampling.logprobs import Distributions, distributions
from preferl.sampling.samples import Samples

VALUE_MODELS = ("auto", "reward", "policy", "head")


@dataclass(kw_only=True)
class ModelOptions(JudgeOptions):
    """Which models play which part."""

    model_name_or_path: str = "runs/sft"
    """The policy to start from."""
    ref_model: str | None = None
    """The reference of the KL; by default the frozen policy as it starts."""
    reward_model: str = "runs/reward"
    """The reward: a reward model's directory, ``module:function``, or a mixture of such (docs/data.md)."""
    value_model: str = "auto"
    """The critic of ppo: a copy of the ``reward`` model, a copy of the ``policy`` with a new head, or a
    ``head`` on the policy's own trunk. ``auto``: the reward model where it can, else the policy."""
    lora_r: Natural = 0
    """Train LoRA weights of this rank instead of the whole policy; the reference is then the policy without
    them, and costs no memory. 0 for none."""
    lora_alpha: Positive = 16.0
    """LoRA's scale is alpha / r."""
    share_base: bool = False
    """Policy, reward model and critic as LoRA weights on one frozen base (a reward model trained with
    ``lora_r`` on the same base)."""


@dataclass
class RlModels:
    """The models of one run.

    ``reference`` None is the policy with its LoRA weights switched off. At most one of ``critic`` (a scalar
    head on a trunk of its own) and ``value_head`` (on the policy's trunk) is there.
    """

    policy: Any
    reference: PreTrainedModel | None
    critic: Any = None
    value_head: torch.nn.Linear | None = None

    def __post_init__(self) -> None:
        if self.reference is not None:
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
        with self.as_reference() as model:
            return distributions(model, samples)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[PreTrainedModel]:
        """The reference, for as long as the context lasts."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapters.without(self.policy):
                yield self.policy

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
        critic: dict[str, torch.nn.Parameter] = {}
        if self.critic is not None:
            critic = {name: p for name, p in self.critic.named_parameters() if p.requires_grad}
        # On one base the critic's LoRA weights are among the policy's; no weight has two optimisers.
        critics = set(map(id, critic.values()))
        named = self.policy.named_parameters()
        policy = {name: p for name, p in named if p.requires_grad and id(p) not in critics}
        if self.value_head is not None:
            policy |= {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        return {"policy": policy} | ({"critic": critic} if critic else {})

    def frozen(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors of the reference, which must not change."""
        if self.reference is not None:
            return {"reference": dict(self.reference.state_dict())}
        return {"reference": {name: p for name, p in self.policy.named_parameters() if not p.requires_grad}}

    @distributed.main_writes
    def save(self, tokenizer: Any, path: Path) -> None:
        """Writes ``model/`` and, where there is a critic of its own, ``value_model/``."""
        policy = self.policy
        if hasattr(policy, "peft_config"):
            with whole_directory(path / "adapter") as directory:
                policy.save_pretrained(
                    str(directory), selected_adapters=[adapters.POLICY], save_embedding_layers=False
                )
            policy = adapters.merged(policy)
        load.save(policy, tokenizer, path / "model")
        if isinstance(self.critic, PreTrainedModel):
            load.save(self.critic, tokenizer, path / "value_model")


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
    policy, tokenizer = load.load_policy(name, device, chat_template_kwargs)
    if options.share_base:
        return _on_one_base(options, policy, tokenizer, critic)
    scorer = load_scorer(options.reward_model, device, judges)
    for judge in reward_models(scorer).values():
        freeze(judge.model)
    adapted: Any = policy
    reference = None
    if options.lora_r:
        adapted = adapters.lora_policy(policy, name, options.lora_r, options.lora_alpha)
    if not options.lora_r or options.ref_model:
        reference = load.load_policy(options.ref_model or name, device)[0]
    models = RlModels(adapted, reference)
    if critic and options.value_model == "head":
        models.value_head = torch.nn.Linear(state_size(policy), 1, device=device)
        torch.nn.init.zeros_(models.value_head.weight)
        torch.nn.init.zeros_(models.value_head.bias)
    elif critic:
        models.critic = _own_critic(options, scorer, tokenizer, device)
    return models, tokenizer, scorer


def _own_critic(options: ModelOptions, scorer: Scorer, tokenizer: Any, device: torch.device) -> Any:
    if options.value_model in ("auto", "reward"):
        for judge in reward_models(scorer).values():
            critic = critic_from_reward_model(judge.model, judge.tokenizer, tokenizer)
            if critic is not None:
                return critic
        if options.value_model == "reward":
            raise UsageError(
                "value_model reward: the reward holds no decoder over the policy's tokens; use policy or head"
            )
        say("rl: the reward is no decoder over the policy's tokens; the critic starts from the policy")
    return critic_from_policy(options.model_name_or_path, device)


def _on_one_base(
    options: ModelOptions, policy: PreTrainedModel, tokenizer: Any, critic: bool
) -> tuple[RlModels, Any, Scorer]:
    if options.ref_model or options.value_model not in ("auto", "reward"):
        raise UsageError("share_base: the reference is the base and the critic starts from the reward model")
    adapted, reward, value = adapters.on_one_base(
        policy,
        options.model_name_or_path,
        options.reward_model,
        options.lora_r or 8,
        options.lora_alpha,
    )
    scorer = RewardModel(reward, tokenizer, max_length=load.max_positions(policy))  # type: ignore[arg-type]
    return RlModels(adapted, None, value if critic else None), tokenizer, scorer


def memory(models: RlModels, scorer: Scorer) -> dict[str, dict[str, float]]:
    """MiB by role: weights, and gradients and AdamW's two moments of what is trained.

    What several roles share counts once, as the policy's.
    """
    value = models.critic if models.critic is not None else models.value_head
    judges = [judge.model for judge in reward_models(scorer).values()]
    roles: dict[str, Iterable[torch.nn.Parameter]] = {
        "value": () if value is None else value.parameters(),
        "reward": [p for judge in judges for p in judge.parameters()],
        "reference": () if models.reference is None else models.reference.parameters(),
        "policy": models.policy.parameters(),
    }
    seen: set[int] = set()
    table = {}
    for role, parameters in roles.items():
        own = [p for p in parameters if id(p) not in seen]
        seen |= set(map(id, own))
        trained = [p for p in own if p.requires_grad]
        table[role] = {"weights_mib": mib(own), "training_mib": 3 * mib(trained)}
    return {role: table[role] for role in ("policy", "reference", "reward", "value")}


def mib(parameters: Iterable[torch.nn.Parameter]) -> float:
    return sum(p.numel() * p.element_size() for p in parameters) / 2**20
