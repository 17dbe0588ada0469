"""rl: fine-tunes a policy against a reward, under a KL penalty to the frozen reference.

One iteration: sample a batch, score it, build token-level rewards (``sampling/rollout.py``), turn them into
advantages, and update in epochs of minibatches with the losses of ``maths/policy.py``. PPO is Schulman et
al. 2017 as in Ziegler et al. 2019 and Stiennon et al. 2020; an algorithm is a row of ``ALGORITHMS``.
"""

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.data import sources
from preferl.data.records import Prompt, prompt_text
from preferl.judging.scorers import Scorer, load_scorer, reward_models
from preferl.maths import kl as kl_maths
from preferl.maths import policy as maths
from preferl.models import load
from preferl.models.optim import adamw, clip_and_step, schedule
from preferl.models.value import critic_from_policy, critic_from_reward_model, token_values
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions, OptimOptions, SamplingOptions
from preferl.runs.directory import StageDirectory
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling import rollout as rollouts
from preferl.sampling.cached import CachedEngine
from preferl.sampling.engine import Samples, Sampling
from preferl.sampling.rollout import Rollout
from preferl.sampling.texts import fitting_prompt_ids, generate, sampling_for

# Cached decoding against a full forward pass, and the policy against its own copy.
MAX_RATIO_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.3}
MAX_FIRST_KL = {torch.float32: 1e-3, torch.bfloat16: 0.3}


@dataclass(kw_only=True)
class RlConfig(OptimOptions, SamplingOptions, DataOptions, DeviceOptions):
    """Options of the rl stage."""

    output_dir: str = "runs/rl"
    """Where the stage is written."""
    algorithm: str = "ppo"
    """``ppo`` or ``reinforce``."""
    model_name_or_path: str = "runs/sft"
    """The policy to start from; its frozen copy is the reference."""
    reward_model: str = "runs/reward"
    """The reward: a reward model's directory, or ``module:function``."""
    gold: str | None = None
    """An annotator's utility that is only watched, never trained on (``world``, ``sentiment``, …)."""
    num_iterations: int = 50
    """Iterations: one batch of episodes each."""
    batch_size: int = 128
    """Episodes (responses) in one iteration."""
    num_ppo_epochs: int = 2
    """Passes over each batch (PPO only)."""
    num_mini_batches: int = 4
    """Minibatches, and so updates, in each pass (PPO only)."""
    micro_batch_size: int = 128
    """Sequences in one forward and backward pass; a smaller one saves memory and changes nothing."""
    kl_coef: float = 0.1
    """Weight of the per-token k1 KL to the reference, subtracted from the reward."""
    kl_controller: str = "fixed"
    """``fixed``, or ``adaptive`` (Ziegler et al. 2019) towards ``kl_target``."""
    kl_target: float = 6.0
    """Adaptive KL: nats per response to aim at."""
    kl_horizon: float = 10_000
    """Adaptive KL: episodes over which the coefficient reacts."""
    cliprange: float = 0.2
    """PPO's clip of the probability ratio."""
    cliprange_value: float = 0.2
    """Clip of the value's change."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE's lambda."""
    whiten_rewards: bool = False
    """Scale token rewards to sd 1 over the batch, their mean kept (TRL's meaning)."""
    whiten_advantages: bool = True
    """Normalise advantages over the batch to mean 0, sd 1."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end with EOS."""
    learning_rate: float = 5e-4
    """Peak learning rate of the policy (1e-6 to 1e-5 suits a pretrained model)."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic; by default the policy's."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    warmup_ratio: float = 0.02
    """Fraction of the updates during which the learning rate rises from 0."""
    adam_epsilon: float = 1e-5
    """AdamW's epsilon."""
    eval_every: int = 1
    """Iterations between measurements on held-out prompts; 0 for none."""
    eval_prompts: int = 64
    """Held-out prompts of such a measurement."""
    eval_split: str = "dev"
    """The split they come from: ``dev`` or ``eval``."""


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    ``advantage`` gives (advantage_BT, return_BT) from a rollout, ``loss`` the policy loss of each token from
    (logp_BT, old_logp_BT, advantage_BT, cliprange). ``several_passes``: the loss allows more than one update
    on a batch.
    """

    advantage: Callable[[Rollout, RlConfig], tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    critic: bool
    several_passes: bool


def gae_advantage(rollout: Rollout, config: RlConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates from the critic's values."""
    mask_BT, reward_BT = rollout.samples.mask_BT, rollout.reward_BT
    if config.whiten_rewards:
        reward_BT = maths.whiten(reward_BT, mask_BT, shift_mean=False)
    return maths.gae(reward_BT, rollout.value_BT, mask_BT, config.gamma, config.lam)


def reward_to_go_advantage(rollout: Rollout, config: RlConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE with the batch mean as baseline (Williams 1992)."""
    mask_BT = rollout.samples.mask_BT
    return_BT = maths.returns_to_go(rollout.reward_BT, mask_BT, config.gamma)
    baseline = return_BT[:, 0].mean()
    return (return_BT - baseline) * mask_BT, return_BT


def policy_gradient_loss(
    logp_BT: torch.Tensor, old_logp_BT: torch.Tensor, advantage_BT: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """-log pi * advantage of each token."""
    return -logp_BT * advantage_BT


ALGORITHMS = {
    "ppo": Algorithm(gae_advantage, maths.clipped_policy_loss, critic=True, several_passes=True),
    "reinforce": Algorithm(reward_to_go_advantage, policy_gradient_loss, critic=False, several_passes=False),
}


@dataclass
class State:
    """Everything the next iteration depends on: save and restore this, and the run goes on exactly."""

    iteration: int
    policy: PreTrainedModel
    critic: PreTrainedModel | None
    optimizers: dict[str, torch.optim.Optimizer]
    schedulers: dict[str, torch.optim.lr_scheduler.LambdaLR]
    kl: Any
    generator: torch.Generator
    prompts: Iterator[Prompt]
    forward_passes: dict[str, int]


class Learner:
    """The training side: the state, the frozen reference, and forward passes in micro-batches."""

    def __init__(self, config: RlConfig, state: State, reference: PreTrainedModel, dtype: torch.dtype):
        self.config, self.state, self.reference, self.dtype = config, state, reference, dtype
        self.algorithm = ALGORITHMS[config.algorithm]

    def micro_batches(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        return rows.split(self.config.micro_batch_size)

    @torch.no_grad()
    def fill(self, samples: Samples, compute: Callable[[Samples], torch.Tensor]) -> torch.Tensor:
        """``compute`` over micro-batches, gathered on the CPU as one ``_BT`` tensor, 0 outside the mask."""
        out_BT = torch.zeros(samples.mask_BT.shape)
        for rows in self.micro_batches(samples.mask_BT.sum(-1).argsort()):
            part = rollouts.rows_of(samples, rows)
            with devices.autocast(self.state.policy.device, self.dtype):
                value = compute(part).float().cpu() * part.mask_BT
            out_BT[rows, : value.shape[1]] = value
        return out_BT

    def reference_logprobs(self, samples: Samples) -> torch.Tensor:
        self.state.forward_passes["reference"] += len(samples.mask_BT)
        return self.fill(samples, lambda part: rollouts.policy_logprobs(self.reference, part))

    def policy_logprobs(self, samples: Samples) -> torch.Tensor:
        return self.fill(samples, lambda part: rollouts.policy_logprobs(self.state.policy, part))

    def values(self, samples: Samples) -> torch.Tensor:
        if self.state.critic is None:
            return torch.zeros(samples.mask_BT.shape)
        self.state.forward_passes["critic"] += len(samples.mask_BT)
        return self.fill(samples, self.critic_values)

    def critic_values(self, part: Samples) -> torch.Tensor:
        critic = self.state.critic
        assert critic is not None
        return token_values(
            critic,
            part.tokens_BS.to(critic.device),
            part.attention_BS.to(critic.device),
            part.prompt_width,
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """All epochs and minibatches of one iteration; returns token-weighted means of what was seen."""
        config, state = self.config, self.state
        advantage_BT, return_BT = self.algorithm.advantage(rollout, config)
        mask_BT = rollout.samples.mask_BT
        if config.whiten_advantages:
            advantage_BT = maths.whiten(advantage_BT, mask_BT)
        several = self.algorithm.several_passes
        epochs = config.num_ppo_epochs if several else 1
        pieces = config.num_mini_batches if several else 1
        seen, first_error = Meter(), 0.0
        for epoch in range(epochs):
            order = torch.randperm(len(mask_BT), generator=state.generator)
            for number, rows in enumerate(order.chunk(pieces)):
                where = f"rl iteration {state.iteration}, epoch {epoch}, minibatch {number}"
                tokens = int(mask_BT[rows].sum())
                for micro in self.micro_batches(rows):
                    losses = self.backward(rollout, advantage_BT, return_BT, micro, tokens, seen)
                    check_finite(losses, where)
                if epoch == 0 and number == 0:
                    first_error = seen.maximum["ratio_error"]
                    self.check_first_ratio(first_error)
                for name, optimizer in state.optimizers.items():
                    norm = clip_and_step(optimizer, config.max_grad_norm, f"{where}, {name}")
                    seen.add(f"{name}_grad_norm", norm, 1)
        for scheduler in state.schedulers.values():
            scheduler.step()
        explained = maths.explained_variance(rollout.value_BT, return_BT, mask_BT)
        row = seen.means() | {"first_ratio_error": first_error}
        del row["ratio_error"]
        return row | ({"explained_variance": float(explained)} if state.critic is not None else {})

    def backward(
        self,
        rollout: Rollout,
        advantage_BT: torch.Tensor,
        return_BT: torch.Tensor,
        rows: torch.Tensor,
        tokens: int,
        seen: "Meter",
    ) -> dict[str, float]:
        """Adds the gradient of one micro-batch; losses are sums divided by the minibatch's token count."""
        config, state = self.config, self.state
        part = rollouts.rows_of(rollout.samples, rows)
        device, width = state.policy.device, part.mask_BT.shape[1]
        mask_BT = part.mask_BT.to(device)
        count = int(part.mask_BT.sum())

        with devices.autocast(device, self.dtype):
            logits_BTV = rollouts.response_logits(
                state.policy,
                part.tokens_BS.to(device),
                part.attention_BS.to(device),
                part.prompt_width,
                part.sampling.suppressed,
            )
        temperature = part.sampling.temperature
        logp_BT = maths.response_logprobs(logits_BTV, part.response_BT.to(device), temperature)
        logp_BT = logp_BT.masked_fill(mask_BT == 0, 0.0)
        old_BT = part.logp_BT.to(device)
        loss_BT = self.algorithm.loss(
            logp_BT, old_BT, advantage_BT[rows, :width].to(device), config.cliprange
        )
        policy_loss = (loss_BT * mask_BT).sum() / tokens
        policy_loss.backward()
        state.forward_passes["policy_update"] += 3 * len(rows)
        losses = {"policy_loss": policy_loss.item()}

        with torch.no_grad():
            change_BT = logp_BT - old_BT
            ratio_BT = change_BT.exp()
            seen.add("approx_kl", float(maths.masked_mean(0.5 * change_BT**2, mask_BT)), count)
            outside_BT = ((ratio_BT - 1).abs() > config.cliprange).float()
            seen.add("clip_fraction", float(maths.masked_mean(outside_BT, mask_BT)), count)
            entropy_BT = maths.entropy(logits_BTV, temperature)
            seen.add("entropy", float(maths.masked_mean(entropy_BT, mask_BT)), count)
            seen.add("policy_loss", float(maths.masked_mean(loss_BT, mask_BT)), count)
            seen.add("ratio_error", float(((ratio_BT - 1).abs() * mask_BT).max()), count)

        if state.critic is not None:
            with devices.autocast(device, self.dtype):
                value_BT = self.critic_values(part)
            value_loss_BT = maths.clipped_value_loss(
                value_BT,
                rollout.value_BT[rows, :width].to(device),
                return_BT[rows, :width].to(device),
                config.cliprange_value,
            )
            value_loss = (value_loss_BT * mask_BT).sum() / tokens
            (config.vf_coef * value_loss).backward()
            state.forward_passes["critic_update"] += 3 * len(rows)
            seen.add("value_loss", maths.masked_mean(value_loss_BT.detach(), mask_BT).item(), count)
            losses["value_loss"] = value_loss.item()
        return losses

    def check_first_ratio(self, error: float) -> None:
        """Before any update the policy must give the log-probabilities captured while sampling."""
        if error > MAX_RATIO_ERROR[self.dtype]:
            raise DivergedError(
                f"rl iteration {self.state.iteration}: before the first update the probability ratio is off "
                f"1 by {error:.2e} (allowed {MAX_RATIO_ERROR[self.dtype]:.0e}): sampling and training "
                f"disagree about the policy; please report this with your model's name"
            )


class Meter:
    """Weighted means of named numbers, and their maxima."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.weight: dict[str, float] = {}
        self.maximum: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float) -> None:
        self.total[name] = self.total.get(name, 0.0) + value * weight
        self.weight[name] = self.weight.get(name, 0.0) + weight
        self.maximum[name] = max(self.maximum.get(name, -math.inf), value)

    def means(self) -> dict[str, float]:
        return {name: self.total[name] / self.weight[name] for name in self.total}


def run(config: RlConfig, fresh: bool = False) -> Path:
    """Trains, saves ``model/`` and ``value_model/``, writes metrics; returns the stage's directory."""
    stage = StageDirectory(Path(config.output_dir), "rl")
    options = dataclasses.asdict(config)
    if stage.settled(options, fresh):
        say(f"rl: finished before in {stage.path}")
        return stage.path
    check_options(config)
    device, dtype = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    scorer = load_scorer(config.reward_model, device)
    gold = load_scorer(config.gold, device) if config.gold else None
    policy, tokenizer = load.load_policy(config.model_name_or_path, device)
    reference = load.freeze(load.load_policy(config.model_name_or_path, device)[0])
    train_prompts, held_out = source.need("prompts", "rl"), source.prompts[config.eval_split]
    stage.begin(options, {"policy": config.model_name_or_path, "reward": config.reward_model})

    state = initial_state(config, policy, tokenizer, scorer, train_prompts)
    learner = Learner(config, state, reference, dtype)
    engine = CachedEngine(policy, tokenizer.pad_token_id, config.sampling_batch_size, dtype)
    sampling = sampling_for(tokenizer, config)
    judges = {f"reward model {name}": judge.model for name, judge in reward_models(scorer).items()}
    frozen = {"reference": reference, **judges}
    hashes = {name: load.weights_hash(model) for name, model in frozen.items()}
    say(
        f"rl: {config.algorithm} on {len(train_prompts):,} prompts, {config.num_iterations} iterations of "
        f"{config.batch_size} episodes"
    )
    check_repeatable(config, engine, tokenizer, train_prompts, sampling)

    def measure() -> dict[str, float]:
        prompts = held_out[: config.eval_prompts]
        return measure_held_out(config, learner, engine, tokenizer, sampling, prompts, scorer, gold)

    evaluating = bool(config.eval_every and config.eval_prompts and held_out)
    if evaluating:
        stage.log(step=0, **measure())
    with Steps("rl", config.num_iterations) as steps:
        for iteration in range(1, config.num_iterations + 1):
            state.iteration = iteration
            row, rollout = iterate(config, learner, engine, tokenizer, sampling, scorer, gold, dtype)
            if evaluating and iteration % config.eval_every == 0:
                row |= measure()
            stage.log(step=iteration, **row)
            if iteration in (1, config.num_iterations) or iteration % 10 == 0:
                stage.log_samples(sample_rows(iteration, rollout))
            steps.advance(reward=row["reward"], kl=row["kl"], length=row["length"])

    changed = [name for name, model in frozen.items() if load.weights_hash(model) != hashes[name]]
    if changed:
        raise DivergedError(f"rl: the weights of the frozen {' and '.join(changed)} have changed")
    load.save(policy, tokenizer, stage.model)
    if state.critic is not None:
        load.save(state.critic, tokenizer, stage.path / "value_model")
    stage.finish(
        iterations=config.num_iterations,
        episodes=config.num_iterations * config.batch_size,
        forward_passes=state.forward_passes,
        frozen_hashes=hashes,
        checks=[
            "the first rollout drawn twice was equal bit for bit",
            f"ratio before the first update of every iteration within {MAX_RATIO_ERROR[dtype]:.0e} of 1",
            f"KL of the first batch below {MAX_FIRST_KL[dtype]:.0e} nats per response",
            "weights of " + " and ".join(frozen) + " unchanged",
        ],
        peak_memory_mib=devices.peak_memory_mib(device),
        notes=source.notes,
    )
    return stage.path


def check_options(config: RlConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if config.algorithm not in ALGORITHMS:
        raise UsageError(f"algorithm '{config.algorithm}' is unknown; use {', '.join(ALGORITHMS)}")
    if config.kl_controller not in ("fixed", "adaptive"):
        raise UsageError(f"kl_controller '{config.kl_controller}' is unknown; use fixed or adaptive")
    if config.eval_split not in ("dev", "eval"):
        raise UsageError(f"eval_split '{config.eval_split}' is unknown; use dev or eval")
    if config.kl_coef < 0:
        raise UsageError(f"kl_coef is {config.kl_coef}; it must be 0 or more")
    if not 1 <= config.num_mini_batches <= config.batch_size:
        raise UsageError(
            f"num_mini_batches is {config.num_mini_batches}; it must lie between 1 and the "
            f"batch_size of {config.batch_size}"
        )


def initial_state(
    config: RlConfig,
    policy: PreTrainedModel,
    tokenizer: Any,
    scorer: Scorer,
    prompts: Sequence[Prompt],
) -> State:
    """Policy, critic, optimisers and everything that moves, at iteration 0."""
    critic = None
    if ALGORITHMS[config.algorithm].critic:
        for judge in reward_models(scorer).values():
            critic = critic or critic_from_reward_model(judge.model, judge.tokenizer, tokenizer)
        if critic is None:
            say("rl: the reward is no decoder over the policy's tokens; the critic starts from the policy")
            critic = critic_from_policy(config.model_name_or_path, policy.device)
    optimizers = {"policy": adamw(policy.parameters(), config)}
    if critic is not None:
        optimizers["critic"] = adamw(critic.parameters(), config, config.critic_learning_rate)
    kl = (
        kl_maths.FixedKL(config.kl_coef)
        if config.kl_controller == "fixed"
        else kl_maths.AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    )
    counted = ("policy", "reference", "reward", "critic", "policy_update", "critic_update")
    return State(
        iteration=0,
        policy=policy,
        critic=critic,
        optimizers=optimizers,
        # The rate is constant inside an iteration, so that its passes weigh the same.
        schedulers={
            name: schedule(optimizer, config, config.num_iterations) for name, optimizer in optimizers.items()
        },
        kl=kl,
        generator=devices.generator(config.seed, "rl"),
        prompts=endless(prompts, config.seed),
        forward_passes=dict.fromkeys(counted, 0),
    )


def endless(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Every prompt once in random order, then again in another."""
    rng = random.Random(devices.derived_seed(seed, "rl", "prompts"))
    while True:
        order = list(prompts)
        rng.shuffle(order)
        yield from order


def iterate(
    config: RlConfig,
    learner: Learner,
    engine: CachedEngine,
    tokenizer: Any,
    sampling: Sampling,
    scorer: Scorer,
    gold: Scorer | None,
    dtype: torch.dtype,
) -> tuple[dict[str, float], Rollout]:
    """One iteration: a rollout, an update, the metrics of both."""
    state, started = learner.state, time.perf_counter()
    prompts = list(itertools.islice(state.prompts, config.batch_size))
    tokens = fitting_prompt_ids(tokenizer, prompts, state.policy, config.response_length)
    kl_coef = state.kl.coef
    rollout = rollouts.collect(
        prompts,
        tokens,
        engine,
        learner,
        scorer,
        tokenizer,
        sampling,
        state.generator,
        kl_coef,
        config.missing_eos_penalty,
    )
    sampled = time.perf_counter()
    state.forward_passes["policy"] += len(prompts)
    state.forward_passes["reward"] += len(prompts) * len(reward_models(scorer))
    row = describe(rollout, gold) | {
        f"reward/{name}": sum(scores) / len(scores)
        for name, scores in getattr(scorer, "last_parts", {}).items()
    }
    if state.iteration == 1 and abs(row["kl"]) > MAX_FIRST_KL[dtype]:
        raise DivergedError(
            f"rl: the KL of the first batch is {row['kl']:.2e} nats per response and must be 0: policy and "
            f"reference are not the same model"
        )
    row |= learner.update(rollout)
    engine.version += 1
    state.kl.update(row["kl"], len(prompts))
    seconds = time.perf_counter() - started
    row |= {
        "kl_coef": kl_coef,
        "learning_rate": state.schedulers["policy"].get_last_lr()[0],
        "tokens_per_second": float(rollout.samples.mask_BT.sum()) / seconds,
        "sampling_seconds": sampled - started,
        "seconds": seconds,
    }
    return row, rollout


def describe(rollout: Rollout, gold: Scorer | None) -> dict[str, float]:
    """Reward, KL, length and EOS of a batch. KL in nats per response, with its standard error."""
    samples = rollout.samples
    log_ratio_BT = samples.logp_BT - rollout.ref_logp_BT
    k1_B = maths.masked_sum(kl_maths.kl_estimate(samples.logp_BT, rollout.ref_logp_BT, "k1"), samples.mask_BT)
    k3_B = maths.masked_sum(kl_maths.kl_estimate(samples.logp_BT, rollout.ref_logp_BT, "k3"), samples.mask_BT)
    if not bool(log_ratio_BT.isfinite().all()):
        raise DivergedError("rl: log-probabilities are not finite; stopped before the update")
    n = len(k1_B)
    length_B = samples.mask_BT.sum(-1).float()
    row = {
        "reward": float(rollout.score_B.mean()),
        "reward_sd": float(rollout.score_B.std()),
        "kl": float(k1_B.mean()),
        "kl_se": float(k1_B.std() / n**0.5),
        "kl_k3": float(k3_B.mean()),
        "objective": float(rollout.reward_BT.sum(-1).mean()),
        "length": float(length_B.mean()),
        "eos_rate": float(samples.finished_B.float().mean()),
    }
    if gold is not None:
        values = gold(rollout.prompts, rollout.completions, finished=samples.finished_B.tolist())
        row["gold"] = sum(values) / n
    return row


def measure_held_out(
    config: RlConfig,
    learner: Learner,
    engine: CachedEngine,
    tokenizer: Any,
    sampling: Sampling,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    gold: Scorer | None,
) -> dict[str, float]:
    """Mean reward, gold and KL on held-out prompts, always with the same random numbers."""
    tokens = fitting_prompt_ids(tokenizer, prompts, learner.state.policy, config.response_length)
    generator = devices.generator(config.seed, "rl", "held-out")
    made = generate(engine, tokenizer, prompts, tokens, sampling, generator)
    scores = torch.tensor(scorer(made.prompts, made.completions, finished=made.finished))
    passes = dict(learner.state.forward_passes)
    reference_BT = learner.reference_logprobs(made.samples)
    learner.state.forward_passes = passes  # watching is not part of training's cost
    kl_B = maths.masked_sum(made.samples.logp_BT - reference_BT, made.samples.mask_BT)
    row = {
        "eval_reward": float(scores.mean()),
        "eval_reward_se": float(scores.std() / len(scores) ** 0.5),
        "eval_kl": float(kl_B.mean()),
        "eval_kl_se": float(kl_B.std() / len(kl_B) ** 0.5),
        "eval_length": made.mean_length,
        "eval_eos_rate": made.eos_rate,
    }
    if gold is not None:
        values = torch.tensor(gold(made.prompts, made.completions, finished=made.finished))
        row["eval_gold"] = float(values.mean())
    return row


def check_repeatable(
    config: RlConfig,
    engine: CachedEngine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> None:
    """The same seed must give the same tokens and log-probabilities, bit for bit."""
    part = list(prompts[: min(config.batch_size, 64)])
    tokens = fitting_prompt_ids(tokenizer, part, engine.model, config.response_length)
    first, second = (
        engine.sample(tokens, sampling, devices.generator(config.seed, "rl", "twice")) for _ in range(2)
    )
    same = torch.equal(first.tokens_BS, second.tokens_BS)
    if not (same and torch.equal(first.logp_BT, second.logp_BT)):
        raise DivergedError(
            "rl: the same seed drew two different batches: this machine computes the same thing in two "
            "ways; results would not repeat. Set --num_threads, or report this with your hardware"
        )


def check_finite(losses: dict[str, float], where: str) -> None:
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise DivergedError(
            f"{where}: {', '.join(broken)} is not finite; stopped before the update. "
            f"Lower the learning rate, or look at the rewards of this batch"
        )


def sample_rows(iteration: int, rollout: Rollout, count: int = 8) -> list[dict[str, Any]]:
    """The first responses of a batch, for samples.jsonl."""
    kl_B = (rollout.samples.logp_BT - rollout.ref_logp_BT).sum(-1)
    return [
        {
            "iteration": iteration,
            "prompt": prompt_text(rollout.prompts[i]),
            "response": rollout.completions[i],
            "reward": float(rollout.score_B[i]),
            "kl": float(kl_B[i]),
            "finished": bool(rollout.samples.finished_B[i]),
        }
        for i in range(min(count, len(rollout.prompts)))
    ]
