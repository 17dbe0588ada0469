"""rl: fine-tunes a policy against a reward, under a KL penalty to the frozen reference.

One iteration: sample a batch, score it, build token-level rewards (``sampling/rollout.py``), turn them into
advantages, and update in epochs of minibatches (``learning/learner.py``) with the losses of ``maths/``. An
algorithm is a row of ``ALGORITHMS``; they share everything else. All of them, except where docs/algorithms.md
says so, have the same optimum: pi_ref(y|x) exp(score / kl_coef), normalised.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preferl.data import sources
from preferl.data.records import Prompt
from preferl.data.types import Scorer
from preferl.judging.scorers import ShardedScorer, load_scorer, reward_models
from preferl.learning import monitor
from preferl.learning.learner import MAX_RATIO_ERROR, Algorithm, Learner, MicroBatch, State, UpdateOptions
from preferl.learning.models import ModelOptions, RlModels, load_models, memory
from preferl.learning.optim import adamw, schedule
from preferl.learning.rollout import Rollout, Shaping, collect
from preferl.maths import kl as kl_maths
from preferl.maths import policy as maths
from preferl.maths import preference
from preferl.models import load
from preferl.runs import checkpoint, devices, distributed
from preferl.runs.config import DataOptions, DeviceOptions, SamplingOptions, require_at_least
from preferl.runs.directory import StageDirectory
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling.cached import CachedEngine
from preferl.sampling.engine import SamplingEngine
from preferl.sampling.policy import Responses, fitting_prompt_ids, generate, sampling_for
from preferl.sampling.samples import Sampling

# The policy against its own copy.
MAX_FIRST_KL = {torch.float32: 1e-3, torch.bfloat16: 0.3}


@dataclass(kw_only=True)
class RlConfig(UpdateOptions, ModelOptions, SamplingOptions, DataOptions, DeviceOptions):
    """Options of the rl stage."""

    output_dir: str = "runs/rl"
    """Where the stage is written."""
    gold: str | None = None
    """An annotator's utility that is only watched, never trained on (``world``, ``sentiment``, …)."""
    num_iterations: int = 50
    """Iterations: one batch of episodes each."""
    batch_size: int = 128
    """Episodes (responses) in one iteration."""
    kl_controller: str = "fixed"
    """``fixed``, or ``adaptive`` (Ziegler et al. 2019) towards ``kl_target``."""
    kl_target: float = 6.0
    """Adaptive KL: nats per response to aim at."""
    kl_horizon: float = 10_000
    """Adaptive KL: episodes over which the coefficient reacts."""
    reward_clip: float = 10.0
    """Scores are clipped to plus and minus this (in standard deviations of a reward model); 0 for none."""
    length_penalty: float = 0.0
    """Subtracted from the score for every token of the response."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end with EOS."""
    replace_missing_eos: bool = False
    """Such a response gets minus the penalty as its score instead, whatever the reward says."""
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
    check_reward_every: int = 10
    """With ``gold``: iterations between checks of the reward's accuracy on fresh pairs; 0 for none."""
    check_reward_pairs: int = 128
    """Pairs of such a check."""
    save_every: int = 10
    """Iterations between checkpoints, from which the same command goes on if interrupted; 0 for none."""


# ------------------------------------------------------------------------------------------- the algorithms


def gae_advantage(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates from the critic's values. A response as one action has no steps to
    discount, so its advantage is return minus the value of the prompt (lambda = 1)."""
    mask_BT, reward_BT = rollout.samples.mask_BT, rollout.reward_BT
    if options.whiten_rewards:
        reward_BT = maths.whiten(reward_BT, mask_BT, shift_mean=False)
    lam = options.lam if options.ratio_level == "token" else 1.0
    return maths.gae(reward_BT, rollout.value_BT, mask_BT, options.gamma, lam)


def baseline_advantage(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE (Williams 1992): reward to go minus the mean return of this batch, or of those before it."""
    mask_BT = rollout.samples.mask_BT
    return_BT = maths.returns_to_go(rollout.reward_BT, mask_BT, options.gamma)
    mean = float(return_BT[:, 0].mean())
    if options.baseline == "batch" or state.baseline is None:
        baseline = mean
    else:
        baseline = state.baseline
    decay = options.baseline_decay
    state.baseline = mean if state.baseline is None else decay * state.baseline + (1 - decay) * mean
    return (return_BT - baseline) * mask_BT, return_BT


def leave_one_out_advantage(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """RLOO: a response's total reward minus the mean of the other responses to its prompt."""
    return over_tokens(maths.rloo_advantage(total_reward(rollout)), rollout)


def group_advantage(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO: a response's total reward against its group's mean, in the group's standard deviations."""
    return over_tokens(maths.grpo_advantage(total_reward(rollout), options.scale_rewards), rollout)


def total_reward(rollout: Rollout) -> torch.Tensor:
    """``reward_PG``: each response's summed token rewards, one row per prompt."""
    return maths.masked_sum(rollout.reward_BT, rollout.samples.mask_BT).reshape(-1, rollout.group_size)


def over_tokens(advantage_PG: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token of a response gets its advantage."""
    mask_BT = rollout.samples.mask_BT
    return advantage_PG.reshape(-1, 1) * mask_BT, total_reward(rollout).reshape(-1, 1) * mask_BT


def policy_gradient_loss(micro: MicroBatch, options: UpdateOptions) -> torch.Tensor:
    """-log pi * advantage of each token."""
    return -micro.logp_BT * micro.advantage_BT


def clipped_loss(micro: MicroBatch, options: UpdateOptions) -> torch.Tensor:
    """PPO's clipped surrogate; before the first update of a batch its gradient is the policy gradient."""
    return maths.clipped_policy_loss(
        micro.logp_BT, micro.old_logp_BT, micro.advantage_BT, options.cliprange, options.dual_clip or None
    )


def reward_as_worth(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """REBEL compares total rewards; they hold the KL, measured where the responses were sampled. In units of
    1 / eta, so that the difference of two is the step of their log-ratios."""
    if state.rebel_eta is None:
        a, b = pairs_of_group(rollout.group_size)
        reward_PG = total_reward(rollout)
        spread = float((reward_PG[:, a] - reward_PG[:, b]).pow(2).mean().sqrt())
        state.rebel_eta = options.rebel_eta or (1 / spread if spread else 1.0)
    advantage_BT, return_BT = over_tokens(total_reward(rollout), rollout)
    return state.rebel_eta * advantage_BT, return_BT


def rebel_loss(micro: MicroBatch, options: UpdateOptions) -> torch.Tensor:
    """REBEL over all pairs of a group, times eta squared: (log-ratio a - log-ratio b - eta (r_a - r_b))^2."""
    a, b = pairs_of_group(micro.group_size)
    logp_PG, old_PG, worth_PG = (
        micro.in_groups(micro.logp_BT),
        micro.in_groups(micro.old_logp_BT),
        micro.worth(),
    )
    return preference.rebel_loss(
        *(x_PG[:, i].flatten() for x_PG in (logp_PG, old_PG, worth_PG) for i in (a, b)), eta=1.0
    )


def annotated_worth(
    rollout: Rollout, options: UpdateOptions, state: State
) -> tuple[torch.Tensor, torch.Tensor]:
    """What an annotator goes by: the score. With Gumbel noise on it the higher one wins as often as
    Bradley and Terry say, in every pair of a group (Yellott 1977)."""
    worth_B = rollout.shaped_B
    if options.preference_labels == "sampled":
        uniform_B = torch.rand(worth_B.shape, generator=state.generator, dtype=torch.float64)
        worth_B = worth_B - uniform_B.clamp(min=1e-300).log().neg().log().float()
    return over_tokens(worth_B.reshape(-1, rollout.group_size), rollout)


def online_dpo_loss(micro: MicroBatch, options: UpdateOptions) -> torch.Tensor:
    """DPO on pairs just sampled, with the reward in the annotator's place (Guo et al. 2024)."""
    log_ratio_PG = micro.in_groups(micro.logp_BT), micro.in_groups(micro.ref_logp_BT)
    a, b = pairs_of_group(micro.group_size)
    (logp_a, logp_b), (ref_a, ref_b) = ((x_PG[:, a], x_PG[:, b]) for x_PG in log_ratio_PG)
    worth_PG = micro.worth()
    gap_PN = worth_PG[:, a] - worth_PG[:, b]
    soft = options.preference_labels == "soft"
    first_PN = torch.sigmoid(gap_PN) if soft else (gap_PN.sign() + 1) / 2
    won_PN = preference.dpo_loss(logp_a, logp_b, ref_a, ref_b, micro.kl_coef)
    lost_PN = preference.dpo_loss(logp_b, logp_a, ref_b, ref_a, micro.kl_coef)
    return (first_PN * won_PN + (1 - first_PN) * lost_PN).flatten()


def pairs_of_group(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of both members of every pair of a group."""
    first, second = torch.triu_indices(size, size, 1)
    return first, second


GROUP = {"generations": 4, "least_generations": 2}
PAIRS = {"generations": 2, "least_generations": 2, "pairs": True}

ALGORITHMS = {
    "ppo": Algorithm(gae_advantage, clipped_loss, critic=True, epochs=2, mini_batches=4, whiten=True),
    "reinforce": Algorithm(baseline_advantage, policy_gradient_loss, several_passes=False),
    "rloo": Algorithm(leave_one_out_advantage, clipped_loss, **GROUP),
    "grpo": Algorithm(group_advantage, clipped_loss, **GROUP, average="responses"),
    "rebel": Algorithm(reward_as_worth, rebel_loss, **PAIRS, epochs=4),
    "online_dpo": Algorithm(annotated_worth, online_dpo_loss, **PAIRS, epochs=2, kl_in_reward=False),
}


# ----------------------------------------------------------------------------------------------- the stage


@distributed.process_group()
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
    models, tokenizer, scorer = load_models(config, ALGORITHMS[config.algorithm].critic, device)
    gold = load_scorer(config.gold, device) if config.gold else None
    train_prompts = source.need("prompts", "rl")
    parents = {
        "policy": config.model_name_or_path,
        "reference": config.ref_model,
        "reward": config.reward_model,
    }
    saved = None if fresh else resumable(stage, options, parents)
    if saved is None:
        stage.begin(options, parents)
    trainer = Trainer(
        config=config,
        learner=learner_for(config, models, train_prompts, dtype),
        engine=CachedEngine(models.policy, tokenizer.pad_token_id, config.sampling_batch_size, dtype),
        tokenizer=tokenizer,
        sampling=sampling_for(tokenizer, config),
        scorer=ShardedScorer(scorer),
        gold=ShardedScorer(gold) if gold else None,
        held_out=source.prompts[config.eval_split][: config.eval_prompts],
    )
    hashes = frozen_hashes(models, scorer)
    check_alike(models)
    say(
        f"rl: {config.algorithm} on {len(train_prompts):,} prompts, {config.num_iterations} iterations of "
        f"{config.batch_size} episodes"
    )
    if saved is None:
        trainer.check_repeatable(train_prompts)
        if trainer.watching:
            stage.log(step=0, **trainer.measure(0))
    else:
        trainer.restore(saved)
        stage.cut(saved.step)
        say(f"rl: goes on after iteration {saved.step}")

    with Steps("rl", config.num_iterations) as steps:
        steps.advance(trainer.state.iteration)
        for iteration in range(trainer.state.iteration + 1, config.num_iterations + 1):
            row, rollout = trainer.iterate(iteration)
            stage.log(step=iteration, **row)
            if iteration in (1, config.num_iterations) or iteration % 10 == 0:
                stage.log_samples(monitor.sample_rows(iteration, rollout))
            if config.save_every and iteration % config.save_every == 0 and iteration < config.num_iterations:
                checkpoint.save(stage.path / "state", iteration, *trainer.snapshot())
            steps.advance(reward=row["reward"], kl=row["kl"], length=row["length"])

    changed = [name for name, value in frozen_hashes(models, scorer).items() if value != hashes[name]]
    if changed:
        raise DivergedError(f"rl: the weights of the frozen {' and '.join(changed)} have changed")
    check_alike(models)
    used = memory(models, scorer)
    models.save(tokenizer, stage.path)
    checkpoint.clear(stage.path / "state")
    stage.finish(
        algorithm=config.algorithm,
        iterations=config.num_iterations,
        episodes=config.num_iterations * config.batch_size,
        forward_passes=trainer.state.forward_passes,
        frozen_hashes=hashes,
        alarms=trainer.state.alarms,
        memory=used,
        checks=[
            "the first rollout drawn twice was equal bit for bit",
            f"ratio before the first update of every iteration within {MAX_RATIO_ERROR[dtype]:.0e} of 1",
            *(
                []
                if config.ref_model
                else [f"KL of the first batch below {MAX_FIRST_KL[dtype]:.0e} nats per response"]
            ),
            "weights of " + " and ".join(hashes) + " unchanged",
        ],
        peak_memory_mib=devices.peak_memory_mib(device),
        processes=distributed.world_size(),
        notes=source.notes,
    )
    return stage.path


NO_PULL = "detached, it has next to no gradient towards the reference"
# Placement -> estimator -> why it is refused.
REFUSED_KL = {
    "reward": {
        "k2": NO_PULL,
        "k2_token": NO_PULL,
        "k3": NO_PULL,
        "exact": "the exact KL of a state does not depend on the token drawn there: as a reward it pushes no "
        "token anywhere",
    },
    "loss": {"k1": "the expected gradient of k1 in the loss is 0: it does not regularise at all"},
}
KL_ESTIMATORS = {"reward": ("auto", "k1"), "loss": ("auto", "k2", "k2_token", "k3", "exact")}


def check_options(config: RlConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    choices = {
        "algorithm": tuple(ALGORITHMS),
        "kl_controller": ("fixed", "adaptive"),
        "kl_in": ("reward", "loss"),
        "ratio_level": ("token", "response"),
        "loss_average": ("auto", "tokens", "responses", "sum"),
        "baseline": ("batch", "running"),
        "preference_labels": ("soft", "sampled", "hard"),
        "eval_split": ("dev", "eval"),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UsageError(f"{name} '{getattr(config, name)}' is unknown; use {', '.join(known)}")
    require_at_least(config, 0, "kl_coef", "num_generations", "num_ppo_epochs", "num_mini_batches")
    require_at_least(config, 0, "dual_clip", "reward_clip", "target_kl", "length_penalty")
    require_at_least(config, 1, "micro_batch_size", "batch_size", "num_iterations")
    if config.dual_clip and config.dual_clip <= 1:
        raise UsageError(f"dual_clip is {config.dual_clip}; it must be above 1, or 0 for none")
    check_kl(config)
    check_batch(config)


def check_kl(config: RlConfig) -> None:
    """Refuses places and estimators of the KL that do not regularise, with the reason."""
    reason = REFUSED_KL[config.kl_in].get(config.kl_estimator)
    usable = KL_ESTIMATORS[config.kl_in]
    if reason:
        raise UsageError(
            f"kl_estimator {config.kl_estimator} with kl_in {config.kl_in} is refused: {reason}; use "
            f"{' or '.join(usable[1:])}, or the other place"
        )
    if config.kl_estimator not in usable:
        raise UsageError(f"kl_estimator '{config.kl_estimator}' is unknown; use {', '.join(usable)}")
    if config.kl_in == "loss" and ALGORITHMS[config.algorithm].pairs:
        raise UsageError(f"{config.algorithm} has the KL in its own objective; leave kl_in at reward")
    if config.algorithm == "online_dpo" and not config.kl_coef > 0:
        raise UsageError("kl_coef is 0, but it is the beta of online_dpo and must be above 0")


def check_batch(config: RlConfig) -> None:
    """Refuses batches that do not divide into groups and minibatches, and passes that a loss cannot make."""
    algorithm = ALGORITHMS[config.algorithm]
    group, (epochs, pieces) = algorithm.group_size(config), algorithm.passes(config)
    if group < algorithm.least_generations:
        raise UsageError(
            f"num_generations is {group}; {config.algorithm} compares the responses to one prompt and needs "
            f"at least {algorithm.least_generations}"
        )
    if config.batch_size % group:
        raise UsageError(
            f"batch_size {config.batch_size} is no multiple of num_generations {group}: the last prompt "
            f"would have fewer responses"
        )
    units = config.batch_size // (group if algorithm.pairs else 1)
    if pieces > units:
        raise UsageError(
            f"num_mini_batches is {pieces}; it must lie between 1 and {units} for this batch_size"
        )
    if not algorithm.several_passes and epochs * pieces > 1:
        raise UsageError(
            f"{config.algorithm} has no ratio that corrects for a policy that has moved: one update per "
            f"batch; leave num_ppo_epochs and num_mini_batches at 1, or use rloo or ppo"
        )


def resumable(
    stage: StageDirectory, options: dict[str, Any], parents: dict[str, str | None]
) -> checkpoint.Checkpoint | None:
    """The checkpoint of an interrupted run of this very configuration on these very parents."""
    return checkpoint.latest(stage.path / "state") if stage.continues(options, parents) else None


def frozen_hashes(models: RlModels, scorer: Scorer) -> dict[str, str]:
    """SHA-256 of everything that must not change."""
    judges = {f"reward model {name}": judge.model for name, judge in reward_models(scorer).items()}
    tensors = models.frozen() | {name: dict(model.named_parameters()) for name, model in judges.items()}
    return {name: load.tensors_hash(found) for name, found in tensors.items()}


def check_alike(models: RlModels) -> None:
    """Several processes hold the same weights bit for bit: they start alike and step alike."""
    if distributed.world_size() > 1:
        trained = {f"{name}/{i}": p for name, ps in models.trained().items() for i, p in enumerate(ps)}
        if len(set(distributed.all_gather(load.tensors_hash(trained)))) > 1:
            raise DivergedError("rl: the processes' weights differ; their machines must be of one kind")


def learner_for(config: RlConfig, models: RlModels, prompts: Sequence[Prompt], dtype: torch.dtype) -> Learner:
    """The learner with optimisers and everything that moves, at iteration 0."""
    optimizers = {
        name: adamw(parameters, config, config.critic_learning_rate if name == "critic" else None)
        for name, parameters in models.trained().items()
    }
    kl = (
        kl_maths.FixedKL(config.kl_coef)
        if config.kl_controller == "fixed"
        else kl_maths.AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    )
    counted = ("policy", "reference", "reward", "critic", "policy_update", "critic_update")
    state = State(
        iteration=0,
        models=models,
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
    return Learner(config, ALGORITHMS[config.algorithm], state, dtype)


def endless(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Every prompt once in random order, then again in another."""
    rng = random.Random(devices.derived_seed(seed, "rl", "prompts"))
    while True:
        order = list(prompts)
        rng.shuffle(order)
        yield from order


# Plain numbers of the learner's state that a checkpoint keeps.
PLAIN_STATE = ("forward_passes", "baseline", "rebel_eta", "alarms", "best", "first_accuracy")


@dataclass
class Trainer:
    """The loop: what a run consists of, and one iteration of it."""

    config: RlConfig
    learner: Learner
    engine: SamplingEngine
    tokenizer: Any
    sampling: Sampling
    scorer: Scorer
    gold: Scorer | None
    held_out: Sequence[Prompt]
    announce: Callable[[str], None] = say

    @property
    def state(self) -> State:
        return self.learner.state

    @property
    def watching(self) -> bool:
        return bool(self.config.eval_every and self.config.eval_prompts and self.held_out)

    def iterate(self, iteration: int) -> tuple[dict[str, Any], Rollout]:
        """A rollout, an update, the metrics of both, and what is measured every few iterations."""
        config, state, started = self.config, self.state, time.perf_counter()
        cpu_started = time.process_time()
        state.iteration = iteration
        rollout = self.collect()
        sampled = time.perf_counter()
        kl_coef = state.kl.coef
        row: dict[str, Any] = monitor.describe(rollout, self.learner, self.gold, kl_coef)
        row |= {
            f"reward/{name}": sum(scores) / len(scores)
            for name, scores in getattr(self.scorer, "last_parts", {}).items()
        }
        if iteration == 1:
            self.check_start(row)
            state.best = monitor.best_possible(rollout.shaped_B, kl_coef)
        found = monitor.alarms(rollout, row, state.best, config.reward_clip or None)
        row |= self.learner.update(rollout)
        self.engine.version += 1
        state.kl.update(row["kl"], len(rollout.prompts))
        seconds = time.perf_counter() - started
        row |= {
            "kl_coef": kl_coef,
            "learning_rate": state.schedulers["policy"].get_last_lr()[0],
            "tokens_per_second": float(rollout.samples.mask_BT.sum()) / seconds,
            "sampling_seconds": sampled - started,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_started,
            "forward_passes": sum(state.forward_passes.values()),
        }
        if self.watching and iteration % config.eval_every == 0:
            row |= self.measure(iteration, found)
        self.raise_alarms(found)
        return row | {"alarms": sorted(found)}, rollout

    def collect(self) -> Rollout:
        """A batch of episodes, each model's forward passes counted."""
        config, state = self.config, self.state
        group = self.learner.group_size
        prompts = list(itertools.islice(state.prompts, config.batch_size // group))
        state.drawn += len(prompts)
        rollout = collect(
            prompts,
            self.tokens(prompts),
            self.engine,
            self.learner,
            self.scorer,
            self.tokenizer,
            self.sampling,
            state.generator,
            self.learner.reward_kl_coef,
            Shaping(
                clip=config.reward_clip or None,
                length_penalty=config.length_penalty,
                missing_eos_penalty=config.missing_eos_penalty,
                replace_missing_eos=config.replace_missing_eos,
            ),
            group,
        )
        n = len(rollout.prompts)
        state.forward_passes["policy"] += n
        state.forward_passes["reference"] += n
        state.forward_passes["reward"] += n * len(reward_models(self.scorer))
        state.forward_passes["critic"] += n * self.learner.models.has_values
        return rollout

    def tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        policy = self.learner.models.policy
        return fitting_prompt_ids(self.tokenizer, prompts, policy, self.config.response_length)

    def check_start(self, row: dict[str, Any]) -> None:
        """The first batch comes from the reference itself, unless another one was given."""
        limit = MAX_FIRST_KL[self.learner.dtype]
        if self.config.ref_model is None and abs(row["kl"]) > limit:
            raise DivergedError(
                f"rl: the KL of the first batch is {row['kl']:.2e} nats per response and must be 0: policy "
                f"and reference are not the same model"
            )

    def check_repeatable(self, prompts: Sequence[Prompt]) -> None:
        """The same seed must give the same tokens and log-probabilities, bit for bit."""
        part = self.tokens(list(prompts[: min(self.config.batch_size, 64)]))
        first, second = (
            self.engine.sample(part, self.sampling, devices.generator(self.config.seed, "rl", "twice"))
            for _ in range(2)
        )
        same = torch.equal(first.tokens_BS, second.tokens_BS)
        if not (same and torch.equal(first.logp_BT, second.logp_BT)):
            raise DivergedError(
                "rl: the same seed drew two different batches: this machine computes the same thing in two "
                "ways; results would not repeat. Set --num_threads, or report this with your hardware"
            )

    def respond(self, prompts: Sequence[Prompt], *purpose: object) -> Responses:
        """One response to each prompt with random numbers of a named purpose's own."""
        generator = devices.generator(self.config.seed, "rl", *purpose)
        tokens = self.tokens(prompts)
        return generate(self.engine, self.tokenizer, prompts, tokens, self.sampling, generator)

    def measure(self, iteration: int, found: dict[str, str] | None = None) -> dict[str, float]:
        """Held-out prompts, always with the same random numbers; and every ``check_reward_every`` iterations
        how often the reward agrees with the annotator on fresh pairs. Watching is no part of the cost."""
        made = self.respond(self.held_out, "held-out")
        row = monitor.held_out(made, self.learner, self.scorer, self.gold)
        every, last = self.config.check_reward_every, self.config.num_iterations
        if self.gold is not None and every and (iteration % every == 0 or iteration == last):
            prompts = list(itertools.islice(itertools.cycle(self.held_out), self.config.check_reward_pairs))
            pairs = (self.respond(prompts, "pairs", iteration, side) for side in ("first", "second"))
            right, total = monitor.reward_accuracy(*pairs, self.scorer, self.gold)
            if total:
                row |= {"reward_accuracy": right / total, "reward_accuracy_pairs": total}
            if self.state.first_accuracy is None:
                self.state.first_accuracy = (right, total)
            elif found is not None:
                found |= monitor.accuracy_alarm(right, total, *self.state.first_accuracy)
        return row

    def raise_alarms(self, found: dict[str, str]) -> None:
        """Says each kind of alarm once, and keeps when it first came and how often."""
        for name, text in found.items():
            if name not in self.state.alarms:
                self.announce(f"rl: ALARM at iteration {self.state.iteration}: {text}")
                self.state.alarms[name] = {"first": self.state.iteration, "count": 0, "text": text}
            self.state.alarms[name]["count"] += 1

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state as tensors and plain values, for a checkpoint."""
        state = self.state
        tensors = {"generator": state.generator.get_state(), "torch": torch.get_rng_state()}
        for name, parameters in state.models.trained().items():
            tensors |= {f"{name}/weights/{i}": p for i, p in enumerate(parameters)}
            moments = checkpoint.optimizer_tensors(state.optimizers[name])
            tensors |= {f"{name}/moments/{key}": tensor for key, tensor in moments.items()}
        values = {
            "drawn": state.drawn,
            "kl": state.kl.state_dict(),
            "schedulers": {name: s.state_dict() for name, s in state.schedulers.items()},
            "version": self.engine.version,
            **{name: getattr(state, name) for name in PLAIN_STATE},
        }
        return tensors, values

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Puts ``snapshot`` back."""
        state, values = self.state, saved.values
        state.iteration = saved.step
        state.generator.set_state(saved.tensors["generator"])
        torch.set_rng_state(saved.tensors["torch"])
        for name, parameters in state.models.trained().items():
            with torch.no_grad():
                for i, parameter in enumerate(parameters):
                    parameter.copy_(saved.tensors[f"{name}/weights/{i}"])
            start = f"{name}/moments/"
            moments = {k.removeprefix(start): t for k, t in saved.tensors.items() if k.startswith(start)}
            checkpoint.restore_optimizer(state.optimizers[name], moments)
            state.schedulers[name].load_state_dict(values["schedulers"][name])
            for group, rate in zip(
                state.optimizers[name].param_groups, state.schedulers[name].get_last_lr(), strict=True
            ):
                group["lr"] = rate
        state.kl.load_state_dict(values["kl"])
        state.drawn = values["drawn"]
        next(itertools.islice(state.prompts, state.drawn, state.drawn), None)
        self.engine.version = values["version"]
        for name in PLAIN_STATE:
            setattr(state, name, values[name])
