"""Tasks small enough to enumerate: every response, its probability, and the best possible objective.

The objective is J(pi) = E[r] - coef * KL(pi || pi_ref), averaged over prompts; its optimum is
pi*(y|x) = pi_ref(y|x) exp(r/coef) / Z(x), with J* = E_x coef log Z(x), and J* - J(pi) = coef * KL(pi || pi*).
The fraction reached is F = (J - J_ref) / (J* - J_ref). Everything is computed from the probabilities of all
responses, in float64; what is trained runs through the loop of ``preferl rl``.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from preferl.data.records import PromptRecord
from preferl.data.tokens import pad
from preferl.learning.algorithms import find_algorithm
from preferl.learning.models import RlModels
from preferl.sampling.cached import CachedEngine, draw
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Samples, Sampling
from preferl.stages import rl

PAD, EOS = 0, 1


@dataclass(frozen=True)
class Space:
    """All responses over ``vocabulary`` tokens (EOS is one of them) of at most ``length`` tokens, to each of
    ``prompts`` prompts. 4 and 3 make 40 responses, 8 and 4 make 2,801."""

    vocabulary: int
    length: int
    prompts: int = 1

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """Token ids of every response: it ends with EOS or at the length limit."""
        others = range(2, self.vocabulary + 1)
        ended = [
            (*head, EOS) for length in range(self.length) for head in itertools.product(others, repeat=length)
        ]
        return ended + list(itertools.product(others, repeat=self.length))

    @property
    def words(self) -> list[str]:
        """The word of every id: pad, EOS, the other tokens, the prompts."""
        others = [f"t{i}" for i in range(self.vocabulary - 1)]
        return ["<pad>", "<eos>", *others, *(f"prompt{i}" for i in range(self.prompts))]

    @property
    def sampling(self) -> Sampling:
        forbidden = [PAD, *range(self.vocabulary + 1, len(self.words))]
        return Sampling(1.0, self.length, tuple(forbidden), (EOS,))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.words)}, unk_token="<pad>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")

    def samples(self) -> Samples:
        """Every response to every prompt, prompt by prompt, as an engine would return them."""
        rows = [list(response) for response in self.responses] * self.prompts
        tokens_BT, mask_BT = pad(rows, PAD, "right")
        prompt_B1 = torch.arange(self.prompts).repeat_interleave(len(self.responses))[:, None]
        return Samples(
            tokens_BS=torch.cat([prompt_B1 + self.vocabulary + 1, tokens_BT], 1),
            prompt_mask_BP=torch.ones_like(prompt_B1),
            mask_BT=mask_BT,
            logp_BT=torch.zeros(tokens_BT.shape),
            finished_B=torch.tensor([row[-1] == EOS for row in rows]),
            sampling=self.sampling,
            version=0,
        )


class Task:
    """A space with a reward for every response, standardised under the reference, and a KL coefficient."""

    def __init__(self, space: Space, reference: Any, coef: float, seed: int):
        self.space, self.reference, self.coef = space, reference, coef
        self.all = space.samples()
        self.ref_logp_XN = self.logprobs(reference)
        p_XN = self.ref_logp_XN.exp()
        generator = torch.Generator().manual_seed(seed)
        score_XN = torch.randn(p_XN.shape, generator=generator, dtype=torch.float64)
        mean_X1 = (p_XN * score_XN).sum(-1, keepdim=True)
        sd_X1 = (p_XN * (score_XN - mean_X1) ** 2).sum(-1, keepdim=True).sqrt()
        self.score_XN = (score_XN - mean_X1) / sd_X1
        words = space.words
        texts = [" ".join(words[i] for i in response if i != EOS) for response in space.responses]
        self.lookup = {
            (f"prompt{x}", text, response[-1] == EOS): float(self.score_XN[x, n])
            for x in range(space.prompts)
            for n, (text, response) in enumerate(zip(texts, space.responses, strict=True))
        }
        tilted_XN = self.ref_logp_XN + self.score_XN / coef
        self.best = float(coef * tilted_XN.logsumexp(-1).mean())
        self.optimum_XN = tilted_XN - tilted_XN.logsumexp(-1, keepdim=True)
        self.start = self.objective(self.ref_logp_XN)

    @torch.no_grad()
    def logprobs(self, model: Any) -> torch.Tensor:
        """``logp_XN`` of every response to every prompt, float64."""
        logp_BT = policy_logprobs(model, self.all)
        return logp_BT.double().sum(-1).reshape(self.space.prompts, -1)

    def objective(self, logp_XN: torch.Tensor) -> float:
        """J of a policy."""
        gain_XN = self.score_XN - self.coef * (logp_XN - self.ref_logp_XN)
        return float((logp_XN.exp() * gain_XN).sum(-1).mean())

    def fraction(self, model: Any) -> float:
        """F of a model: 0 is the reference, 1 the optimum, and nothing is above."""
        return (self.objective(self.logprobs(model)) - self.start) / (self.best - self.start)

    def scorer(
        self, prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool], **columns: Any
    ) -> list[float]:
        """The reward as ``preferl rl`` calls it."""
        return [
            self.lookup[x, y.strip(), bool(f)] for x, y, f in zip(prompts, completions, finished, strict=True)
        ]


# ---------------------------------------------------------------------------------------- a table as a policy


def states_of(input_ids: torch.Tensor, space: Space) -> torch.Tensor:
    """``state_BS``: a number for the prompt and the response tokens so far, at every position."""
    prompt_B, V = input_ids[:, 0] - space.vocabulary - 1, space.vocabulary
    state_B = torch.zeros_like(prompt_B)
    columns = [state_B]
    for token_B in input_ids[:, 1:].unbind(1):
        state_B = state_B * V + token_B.clamp(min=1)
        columns.append(state_B)
    per_prompt = state_count(space)
    # Beyond the last state nothing is read.
    return torch.stack(columns, 1).clamp(max=per_prompt - 1) + per_prompt * prompt_B[:, None]


def state_count(space: Space) -> int:
    """Enough numbers for every prefix of fewer than ``length`` tokens."""
    return sum(space.vocabulary**t for t in range(space.length + 1))


class TabularLM(PreTrainedModel):
    """A row of logits for every prompt and prefix."""

    config_class = PretrainedConfig

    def __init__(self, space: Space, table_SV: torch.Tensor):
        super().__init__(PretrainedConfig())
        self.space = space
        self.table = torch.nn.Parameter(table_SV)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: Any) -> Any:
        logits_BSV = self.table[states_of(input_ids, self.space)]
        return SimpleNamespace(logits=logits_BSV[:, -logits_to_keep:])


class TabularCritic(torch.nn.Module):
    """A value for every prompt and prefix, read as a decoder with a ``score`` head is."""

    device = torch.device("cpu")
    config = PretrainedConfig()

    def __init__(self, space: Space):
        super().__init__()
        self.space = space
        self.score = torch.nn.Embedding(state_count(space) * space.prompts, 1)
        torch.nn.init.zeros_(self.score.weight)

    def base_model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=states_of(input_ids, self.space))


class UncachedEngine:
    """Samples by a whole forward pass for every token."""

    def __init__(self, model: Any):
        self.model, self.version = model, 0

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator
    ) -> Samples:
        ids_BP, prompt_mask_BP = pad(prompts, PAD, "left")
        B, T = len(prompts), sampling.response_length
        uniform_BT = torch.rand((B, T), generator=generator, dtype=torch.float64)
        ids_BS, alive_B = ids_BP, torch.ones(B, dtype=torch.bool)
        logp, mask = [], []
        for t in range(T):
            logits_BV = self.model(input_ids=ids_BS, logits_to_keep=1).logits[:, -1].clone()
            token_B, logp_B = draw(
                logits_BV, uniform_BT[:, t], sampling.temperature, list(sampling.suppressed)
            )
            mask.append(alive_B.long())
            logp.append(torch.where(alive_B, logp_B, 0.0))
            ids_BS = torch.cat([ids_BS, torch.where(alive_B, token_B, PAD)[:, None]], 1)
            alive_B = alive_B & (token_B != EOS)
        mask_BT = torch.stack(mask, 1)
        width = int(mask_BT.sum(-1).max())
        return Samples(
            tokens_BS=ids_BS[:, : ids_BP.shape[1] + width],
            prompt_mask_BP=prompt_mask_BP,
            mask_BT=mask_BT[:, :width],
            logp_BT=torch.stack(logp, 1)[:, :width],
            finished_B=~alive_B,
            sampling=sampling,
            version=self.version,
        )


class SpacePolicy(Policy):
    """A policy that never draws what is no token of its space."""

    space: Space

    def sampling(self, options: Any) -> Sampling:
        return self.space.sampling


def tabular_task(seed: int, coef: float = 0.5, space: Space = Space(4, 3)) -> Task:
    """Vocabulary 4, length 3: 40 responses, reference logits and rewards drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (state_count(space) * space.prompts, len(space.words))
    table_SV = 0.5 * torch.randn(shape, generator=generator)
    return Task(space, TabularLM(space, table_SV), coef, seed + 1000)


def transformer_task(seed: int, coef: float = 0.3, space: Space = Space(8, 4)) -> Task:
    """Vocabulary 8, length 4: 2,801 responses, and a small transformer in the place of a table."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(space.words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=16, initializer_range=0.15,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    return Task(space, LlamaForCausalLM(config).eval(), coef, seed + 1000)


# -------------------------------------------------------------------------------------------------- training


def trainer_for(
    task: Task, config: rl.RlConfig, scorer: Callable[..., list[float]] | None = None, checked: bool = True
) -> rl.Trainer:
    """The loop of ``preferl rl`` on a task; ``checked`` False lets through what it refuses, as a control."""
    torch.manual_seed(config.seed)
    config = dataclasses.replace(config, response_length=task.space.length)
    if checked:
        rl.check_options(config)
    policy = copy.deepcopy(task.reference).requires_grad_(True)
    tabular = isinstance(policy, TabularLM)
    critic: Any = None
    if find_algorithm(config.algorithm).critic:
        critic = TabularCritic(task.space) if tabular else critic_like(policy)
    models = RlModels(policy, copy.deepcopy(task.reference), critic)
    prompts = [PromptRecord(f"prompt{x}") for x in range(task.space.prompts)]
    engine = UncachedEngine(policy) if tabular else CachedEngine(policy, PAD)
    sampler = SpacePolicy(policy, task.space.tokenizer(), torch.float32, engine)
    sampler.space = task.space
    return rl.Trainer(
        config=config,
        policy=sampler,
        learner=rl.learner_for(config, models, prompts, torch.float32),
        scorer=scorer or task.scorer,
        gold=None,
        held_out=[],
        announce=lambda text: None,
    )


def critic_like(policy: Any) -> Any:
    """A critic on a copy of the policy's trunk with a zero head."""
    critic = LlamaForSequenceClassification(copy.deepcopy(policy.config))
    critic.model.load_state_dict(policy.model.state_dict())
    critic.score = torch.nn.Linear(policy.config.hidden_size, 1, bias=False)
    torch.nn.init.zeros_(critic.score.weight)
    return critic.eval()


def with_outlier(task: Task, at_call: int, size: float = 1e6) -> Callable[..., list[float]]:
    """The task's reward, with one reward of ``size`` in one batch."""
    calls = []

    def score(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        calls.append(1)
        scores = task.scorer(prompts, completions, **columns)
        if len(calls) == at_call:
            scores[0] = size
        return scores

    return score


@dataclass
class Curve:
    """F after so many samples."""

    samples: list[int]
    fraction: list[float]
    alarms: dict[str, Any]

    @property
    def final(self) -> float:
        return self.fraction[-1]

    def reached(self, level: float) -> int | None:
        """Samples after which F is ``level`` for the first time; None for never."""
        return next((n for n, f in zip(self.samples, self.fraction, strict=True) if f >= level), None)


def train(task: Task, config: rl.RlConfig, every: int = 1, **options: Any) -> Curve:
    """Runs all iterations of ``config`` and measures F every few of them."""
    trainer = trainer_for(task, config, **options)
    curve = Curve([], [], trainer.state.alarms)
    for iteration in range(1, config.num_iterations + 1):
        trainer.iterate(iteration)
        if iteration % every == 0 or iteration == config.num_iterations:
            curve.samples.append(iteration * config.batch_size)
            curve.fraction.append(task.fraction(trainer.learner.models.policy))
    return curve
