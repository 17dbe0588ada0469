"""rl: fine-tunes a policy against a reward, under a KL penalty to the frozen reference.

One RL step is sample → score → shape → advantages → update → measure. It is read in three files:
``stages/rl.py`` (the loop, and what is measured), ``learning/rollout.py`` (sample, score, shape) and
``learning/learner.py`` (advantages, update).

The losses are those of ``maths/``. An algorithm is a row of ``learning/algorithms.py``; they share everything
else.

preferl rl --model_name_or_path runs/sft --reward_model runs/reward --algorithm rloo
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from preferl.data import sources
from preferl.data.records import PromptRecord
from preferl.data.types import Scorer
from preferl.evaluation.features import sign_functions
from preferl.judging.juries import keep_replies, report_on
from preferl.judging.reward_functions import Progress, RewardLog
from preferl.judging.scorers import (
    ShardedScorer,
    all_reward_models,
    check_prompts,
    judges_in,
    load_scorer,
    reward_models,
    say_what_was_cut,
    tokenizers_of,
)
from preferl.judging.trial import functions_of, refuse_missing_columns
from preferl.learning import defaults, last_good, monitor, rollout
from preferl.learning.algorithms import find_algorithm
from preferl.learning.learner import MAX_RATIO_ERROR, Learner, State
from preferl.learning.models import RlModels, load_models, memory
from preferl.learning.optim import adamw, check_optim, not_longer, other_rates, schedule
from preferl.learning.rollout import Rollout, Shaping
from preferl.maths.kl import AdaptiveKL, FixedKL
from preferl.models import load, lora, plan
from preferl.models.adapters import stands_on
from preferl.models.attributes import split_mixture
from preferl.models.load import model_directory
from preferl.models.reward import saved_pooling
from preferl.options.rl import RlConfig
from preferl.runs import devices, distributed, signals
from preferl.runs.checkpoint import (
    Checkpoint,
    Checkpoints,
    below,
    named_state,
    random_state,
    restore_named_state,
    restore_random_state,
    restore_schedule,
)
from preferl.runs.descent import with_data_set
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.inputs import names_in
from preferl.runs.memory import give_back
from preferl.runs.objects import object_of
from preferl.runs.progress import Pace, Steps, say
from preferl.runs.stage import Callback, Stage
from preferl.sampling.cached import CachedEngine
from preferl.sampling.policy import Policy, Responses

# Of scores and of values' changes in a batch, in standard deviations of a reward model's scores.
CLIPS = {"reward_clip": 10.0, "cliprange_value": 0.2}
# The policy against its own copy.
MAX_FIRST_KL = {torch.float32: 1e-3, torch.bfloat16: 0.3}


class TooFarError(DivergedError):
    """The policy has gone further from the reference than ``max_kl``."""


def config_class(algorithm: str) -> type[RlConfig]:
    """``RlConfig`` with the options of an algorithm, also of one of a person's own (``module:row``).

    Raises:
        UsageError: there is no such algorithm.
    """
    own = find_algorithm(algorithm).options
    if own is None or issubclass(RlConfig, own):
        return RlConfig
    return dataclasses.make_dataclass("RlConfig", [], bases=(own, RlConfig), kw_only=True)


def run(config: RlConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Trains, saves ``model/`` and ``value_model/``, writes metrics; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("rl", config, fresh, callbacks, EXTENDABLE) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path, config.ref_model)
        functions = functions_of(config)
        config = plan.settled(config, stage, work_of)
        source = sources.load_source(**config.source()).training_on(config.split)
        refuse_missing_columns(functions, source)
        critic = find_algorithm(config.algorithm).critic
        how = config.how_judged(config.seed)
        models, tokenizer, scorer = load_models(
            config, critic, stage.device, config.chat_template_kwargs, how
        )
        gold = load_scorer(config.gold, stage.device, how) if config.gold else None
        annotator = gold
        if config.annotator and config.annotator != config.gold and config.check_reward_every:
            annotator = load_scorer(config.annotator, stage.device, how)
        source = load.read_by(source, [tokenizer], tokenizers_of(scorer))
        prompts = source.prompts or source.need("prompts", "train")
        held_out = source[config.eval_split].prompts[: config.eval_prompts]
        config = with_defaults(config, models, scorer, stage)
        check_batch(config)
        check_prompts((scorer, gold, annotator), [record.prompt for record in (*prompts, *held_out)])
        saved = stage.begin([*source.notes, *load.notes_of(models.policy, tokenizer)])
        watched = [other for other in (gold, annotator) if other is not None]
        keep_replies([judge for s in (scorer, *watched) for judge in judges_in(s)], stage.path)
        engine = CachedEngine(models.policy, tokenizer.pad_token_id, config.sampling_batch_size, stage.dtype)
        policy = Policy(models.policy, tokenizer, stage.dtype, engine)
        trainer = Trainer(
            config=config,
            policy=policy,
            learner=learner_for(config, models, prompts, stage.dtype),
            scorer=ShardedScorer(scorer),
            gold=ShardedScorer(gold) if gold else None,
            annotator=ShardedScorer(annotator) if annotator else None,
            held_out=held_out,
        )
        judges = list(reward_models(scorer).values())
        for judge in judges:
            judge.offload = trainer.learner.offload
        frozen = [models.reference, *(judge.model for judge in judges)]
        trainer.learner.offload.rest(
            *frozen, beside=[m for m in (models.policy, models.critic) if m is not None]
        )
        trainer.learner.passes.record = lambda tokens: stage.choose_anew(micro_batch_tokens=tokens)
        train(trainer, prompts, stage, saved)
    return stage.path


def work_of(config: RlConfig) -> plan.Work:
    """What is planned for."""
    config = defaults.with_batches("rl", config)
    algorithm = find_algorithm(config.algorithm)
    name, length, lora = config.model_name_or_path, plan.PROMPT_TOKENS + config.response_length, config.lora_r
    named = [split_mixture(text)[0] for text in names_in(config.reward_model)]
    rewards = [
        text for text in named if not callable(object_of(text)) and Path(model_directory(text)).is_dir()
    ]
    own = bool(config.ref_model) or not lora
    roles = [
        *plan.role("policy", name, trained=True),
        *plan.role("reference", config.ref_model or name, owns_base=own),
    ]
    for number, reward in enumerate(rewards, 1):
        called = "reward" if len(rewards) == 1 else f"reward {number}"
        shared = bool(lora) and stands_on(reward, model_directory(name))
        roles += plan.role(called, reward, logits=False, owns_base=not shared)
    if has_critic_model(config):
        start = name
        # As the critic will begin: models are not loaded yet.
        if rewards and (
            config.value_model == "reward"
            or (config.value_model == "auto" and saved_pooling(Path(rewards[0])) == "mean")
        ):
            start = rewards[0]
        roles += plan.role("critic", start, trained=True, logits=False, owns_base=not lora)
    # Sampled, and read once more in each epoch with a gradient.
    epochs, _ = algorithm.passes(config)
    read = {role.name: 1.0 for role in roles} | {"policy": 1.0 + 3 * epochs, "critic": 1.0 + 3 * epochs}
    unit = algorithm.over.unit(algorithm.group_size(config))
    return plan.Work(
        roles=roles,
        row_tokens=unit * length,
        length=length,
        batch_rows=max(config.batch_size // unit, 1),
        cached_tokens=min(config.batch_size, config.sampling_batch_size) * length,
        read=read,
        rows=config.iterations * config.batch_size // unit,
    )


def has_critic_model(config: RlConfig) -> bool:
    """Whether a critic with a trunk of its own is trained."""
    return find_algorithm(config.algorithm).critic and config.value_model != "head"


def train(
    trainer: "Trainer", prompts: Sequence[PromptRecord], stage: Stage, saved: Checkpoint | None = None
) -> None:
    """The loop: all iterations, then saves the models and finishes the stage."""
    config, models, scorer = trainer.config, trainer.learner.models, trainer.scorer
    # What must be the same at the end: nothing is trained but the policy and the critic.
    hashes = frozen_hashes(models, scorer)
    check_alike(models)
    stage.say(
        f"{config.algorithm} on {len(prompts):,} prompts, {config.iterations} iterations of "
        f"{config.batch_size} episodes"
    )
    # A new run first proves that it can be repeated, and is measured where it starts. One that was
    # interrupted did both before; it goes on with the same random numbers and the same next prompt.
    if saved is None:
        trainer.check_repeatable(prompts)
        if trainer.watching:
            stage.log(step=0, **trainer.measure(0))
    else:
        trainer.restore(saved)

    checkpoints = Checkpoints(stage.state, config.iterations, config.save_every, stage.owner)
    pace = Pace("rl", "iteration")
    with Steps("rl", config.iterations) as steps:
        steps.advance(trainer.state.iteration)
        for iteration in range(trainer.state.iteration + 1, config.iterations + 1):
            with signals.patient():
                try:
                    row, sampled = trainer.iterate(iteration)
                except TooFarError as error:
                    kept = last_good.keep(trainer.learner.state, trainer.policy.tokenizer, stage)
                    raise DivergedError(f"{error}; {kept}") from error
                stage.log(step=iteration, **row)
                # Some texts beside the numbers: a gamed reward shows there first.
                if iteration in (1, config.iterations) or iteration % 10 == 0:
                    stage.log_samples(monitor.sample_rows(iteration, sampled, trainer.extra))
                # After the log: a run that goes on from here finds the rows of this iteration written.
                if checkpoints.due(iteration):
                    checkpoints.save(iteration, *trainer.snapshot())
            sampling = f" ({row['sampling_seconds']:.3g} s of them sampling and scoring)"
            pace.note(iteration, row["seconds"], row["train/length"], sampling)
            steps.advance(**trainer.what_matters(row))
            steps.samples(monitor.to_show(sampled))

    changed = [name for name, value in frozen_hashes(models, scorer).items() if value != hashes[name]]
    if changed:
        raise DivergedError(f"rl: the weights of the frozen {' and '.join(changed)} have changed")
    check_alike(models)
    used = memory(models, scorer)
    give_back()
    models.save(trainer.policy.tokenizer, stage.path, config.model_name_or_path)
    dtype = trainer.learner.dtype
    checks = [
        "the first rollout drawn twice was equal bit for bit",
        f"ratio before the first update of every iteration within {MAX_RATIO_ERROR[dtype]:.0e} of 1",
    ]
    if not config.ref_model:
        checks.append(f"KL of the first batch below {MAX_FIRST_KL[dtype]:.0e} nats per response")
    checks.append("weights of " + " and ".join(hashes) + " unchanged")
    watched = [other for other in (trainer.gold, trainer.annotator) if other is not None]
    cut = say_what_was_cut([trainer.policy], [scorer, *watched], stage.say)
    stage.finish(
        **cut,
        algorithm=config.algorithm,
        iterations=config.iterations,
        episodes=config.iterations * config.batch_size,
        forward_passes=trainer.state.forward_passes,
        frozen_hashes=hashes,
        alarms=trainer.state.alarms,
        memory=used,
        checks=checks,
        **report_on(judges_in(scorer), stage.say),
        processes=distributed.world_size(),
    )


def with_defaults(config: RlConfig, models: RlModels, scorer: Scorer, stage: Stage | None = None) -> RlConfig:
    """Options with nothing left open: by the model at hand, and the clip by what scores. A ``stage`` says and
    records what was chosen."""
    start = defaults.start_of(models.policy, config.model_name_or_path, bool(config.lora_r))
    # A critic of its own learns as fast as the policy where that was said, or where both train LoRA weights.
    critic = models.trained().get("critic", {})
    with_policy = config.learning_rate is not None or not critic or any("lora_" in name for name in critic)
    leave = ("critic_learning_rate",) if with_policy else ()
    config = defaults.completed("rl", config, start, stage, leave)
    # Of what else scores nobody knows how large it is.
    known_scale = all_reward_models(scorer)
    unset = [name for name in CLIPS if getattr(config, name) is None]
    clips = {name: CLIPS[name] if known_scale else 0.0 for name in unset}
    config = dataclasses.replace(config, **(clips if stage is None else stage.choose(clips)))
    if stage is not None and config.reward_clip:
        stage.say(f"scores are clipped to ±{config.reward_clip:g} (reward_clip)")
    return config


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


def why_not_longer(stored: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why more iterations do not extend what was interrupted; None where it goes on to the same bytes as a
    run that had been given so many from the start."""
    before, after = (
        given["num_iterations"] if given["max_steps"] is None else given["max_steps"]
        for given in (stored, options)
    )
    if before == after:
        return None
    why = not_longer(("num_iterations", before), ("num_iterations", after))
    return why or other_rates(options, before, after)


EXTENDABLE = dict.fromkeys(("num_iterations", "max_steps"), why_not_longer)


def check_options(config: RlConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    find_algorithm(config.algorithm)
    sign_functions(config.phrases)
    choices = {
        "kl_controller": ("fixed", "adaptive"),
        "kl_in": ("reward", "loss"),
        "ratio_level": ("token", "response"),
        "loss_average": ("auto", "tokens", "responses", "sum"),
        "eval_split": ("dev", "eval"),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UsageError(f"{name} '{getattr(config, name)}' is unknown; use {', '.join(known)}")
    for own in (base for base in type(config).__mro__ if "check" in vars(base)):
        own.check(config)
    if config.dual_clip and config.dual_clip <= 1:
        raise UsageError(f"dual_clip is {config.dual_clip}; it must be above 1, or 0 for none")
    check_kl(config)
    check_batch(config)
    lora.check_options(config)
    check_optim(config.optim)


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
    algorithm = find_algorithm(config.algorithm)
    if config.kl_in == "loss" and algorithm.over.compares:
        raise UsageError(f"{config.algorithm} has the KL in its own objective; leave kl_in at reward")
    if config.whiten_advantages and algorithm.over.compares:
        raise UsageError(f"{config.algorithm} compares whole responses and has no advantages to whiten")
    if not algorithm.kl_in_reward and config.kl_coef == 0:
        raise UsageError(f"kl_coef is 0, but it is the beta of {config.algorithm} and must be above 0")


def check_batch(config: RlConfig) -> None:
    """Refuses batches that do not divide into groups and minibatches, and passes that a loss cannot make."""
    algorithm = find_algorithm(config.algorithm)
    group = algorithm.group_size(config)
    epochs, minibatches = algorithm.passes(config)
    if group < algorithm.least_generations:
        raise UsageError(
            f"num_generations is {group}; {config.algorithm} compares the responses to one prompt and needs "
            f"at least {algorithm.least_generations}"
        )
    if not algorithm.several_passes and epochs * minibatches > 1:
        raise UsageError(
            f"{config.algorithm} has no ratio that corrects for a policy that has moved: one update per "
            f"batch; leave num_ppo_epochs and num_mini_batches at 1, or use rloo or ppo"
        )
    if config.batch_size is None:  # known when the model is
        return
    if config.batch_size % group:
        raise UsageError(
            f"batch_size {config.batch_size} is no multiple of num_generations {group}: the last prompt "
            f"would have fewer responses"
        )
    units = config.batch_size // algorithm.over.unit(group)
    if minibatches > units:
        raise UsageError(
            f"num_mini_batches is {minibatches}; it must lie between 1 and {units} for this batch_size"
        )


# ----------------------------------------------------------------------------------------------- the trainer


def frozen_hashes(models: RlModels, scorer: Scorer) -> dict[str, str]:
    """SHA-256 of everything that must not change."""
    judges = {f"reward model {name}": judge.model for name, judge in reward_models(scorer).items()}
    tensors = models.frozen() | {name: dict(model.named_parameters()) for name, model in judges.items()}
    return {name: load.tensors_hash(found) for name, found in tensors.items()}


def check_alike(models: RlModels) -> None:
    """Several processes hold the same weights bit for bit: they start alike and step alike."""
    if distributed.world_size() == 1:
        return
    trained = {}
    for role, parameters in models.trained().items():
        trained |= {f"{role}/{name}": parameter for name, parameter in parameters.items()}
    hash_of_each_process = distributed.all_gather(load.tensors_hash(trained))
    if len(set(hash_of_each_process)) > 1:
        raise DivergedError("rl: the processes' weights differ; their machines must be of one kind")


def learner_for(
    config: RlConfig, models: RlModels, prompts: Sequence[PromptRecord], dtype: torch.dtype
) -> Learner:
    """The learner with optimisers and everything that moves, at iteration 0."""
    algorithm = find_algorithm(config.algorithm)
    optimizers = {}
    for name, parameters in models.trained().items():
        learning_rate = config.critic_learning_rate if name == "critic" else None
        optimizers[name] = adamw(parameters.values(), config, learning_rate)
    if config.kl_controller == "fixed":
        kl: FixedKL | AdaptiveKL = FixedKL(config.kl_coef)
    else:
        kl = AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    counted = ("policy", "reference", "reward", "critic", "policy_update", "critic_update")
    state = State(
        iteration=0,
        models=models,
        optimizers=optimizers,
        # The rate is constant inside an iteration, so that its passes weigh the same.
        schedulers={
            name: schedule(optimizer, config, config.iterations) for name, optimizer in optimizers.items()
        },
        kl=kl,
        generator=devices.generator(config.seed, "rl"),
        prompts=endless(prompts, config.seed),
        forward_passes=dict.fromkeys(counted, 0),
        algorithm=algorithm.state(),
    )
    return Learner(config, algorithm, state, dtype)


def endless(prompts: Sequence[PromptRecord], seed: int) -> Iterator[PromptRecord]:
    """Every prompt once in random order, then again in another."""
    rng = random.Random(devices.derived_seed(seed, "rl", "prompts"))
    while True:
        order = list(prompts)
        rng.shuffle(order)
        yield from order


# Plain numbers of the learner's state that a checkpoint keeps.
PLAIN_STATE = ("forward_passes", "alarms", "optimum", "first_accuracy", "first_kl", "last_kl")
# What an update logs that is no measurement of the batch.
UNPREFIXED = ("policy_grad_norm", "critic_grad_norm", "updates")


def of_split(split: str, row: dict[str, float]) -> dict[str, float]:
    """Measurements under the split that they were made on."""
    return {name if name in UNPREFIXED else f"{split}/{name}": value for name, value in row.items()}


@dataclass
class Trainer:
    """What a run consists of, and one iteration of it. ``policy`` samples; ``extra`` are the columns that
    reward functions logged beside the last batch."""

    config: RlConfig
    policy: Policy
    learner: Learner
    scorer: Scorer
    gold: Scorer | None
    held_out: Sequence[PromptRecord]
    annotator: Scorer | None = None
    announce: Callable[[str], None] = say
    extra: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state(self) -> State:
        return self.learner.state

    @property
    def watching(self) -> bool:
        return bool(self.config.eval_every and self.config.eval_prompts and self.held_out)

    def iterate(self, iteration: int) -> tuple[dict[str, Any], Rollout]:
        """A rollout, an update, the metrics of both, and what is measured every few iterations."""
        config, state = self.config, self.state
        started, cpu_started = time.perf_counter(), time.process_time()
        state.iteration = iteration
        # Sample, score, shape.
        log = RewardLog()
        batch = self.collect(log)
        sampled = time.perf_counter()
        # The batch is described before the update, while the policy is still the one that wrote it.
        kl_coef = state.kl.coef
        seen = monitor.describe(batch, self.learner, self.gold, kl_coef)
        seen |= self.means_of_parts() | log.means()
        self.extra = log.rows(len(batch.completions))
        # The first batch is the reference's own, unless another one was given: it shows whether the KL starts
        # at 0, and from its rewards how high reward minus KL can get at this coefficient.
        if iteration == 1:
            self.check_start(seen)
            state.first_kl = seen["kl"]
            if config.ref_model is None and config.kl_controller == "fixed":
                state.optimum = monitor.best_possible(batch.shaped_B, kl_coef)
        alarms = monitor.alarms(batch, seen, state.optimum, config.reward_clip or None)
        alarms |= self.guard(seen["kl"])
        # Advantages, update. The engine shares the policy's weights, so all that it needs is another version.
        # The KL coefficient moves last: all of an iteration has the same one.
        row: dict[str, Any] = of_split("train", seen | self.learner.update(batch))
        assert self.policy.engine is not None
        self.policy.engine.version += 1
        state.kl.update(seen["kl"], len(batch.prompts))
        state.last_kl = seen["kl"]
        seconds = time.perf_counter() - started
        row |= {
            "kl_coef": kl_coef,
            "learning_rate": state.schedulers["policy"].get_last_lr()[0],
            "tokens_per_second": float(batch.samples.mask_BT.sum()) / seconds,
            "sampling_seconds": sampled - started,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_started,
            "forward_passes": sum(state.forward_passes.values()),
        }
        # Measure, outside of the time that the iteration is charged with.
        if self.watching and iteration % config.eval_every == 0:
            row |= self.measure(iteration, alarms)
        self.raise_alarms(alarms)
        return row | {"alarms": sorted(alarms)}, batch

    def guard(self, kl: float) -> dict[str, str]:
        """An alarm where the policy has gone further than ``max_kl``.

        Raises:
            TooFarError: and there is a penalty, which was to prevent that.
        """
        config, first = self.config, self.state.first_kl
        if config.max_kl == "none" or kl - first <= config.max_kl:
            return {}
        where = (
            f"the KL is {kl:.1f} nats per response, {kl - first:.1f} above the first batch's, and max_kl is "
            f"{config.max_kl:g}"
        )
        if not config.kl_coef:
            return {"far": f"{where}: no penalty holds the policy; look at its responses"}
        raise TooFarError(
            f"rl iteration {self.state.iteration}: {where}; stopped before the update. {self.nearer(kl)}, "
            f"and give --fresh or another --output_dir; or give --max_kl none to let it go on"
        )

    def nearer(self, kl: float) -> str:
        """What keeps a policy nearer to its reference: by how it got so far."""
        config = self.config
        # No coefficient prevents what a single update does: it is felt one batch later.
        if kl - self.state.last_kl < config.max_kl / 2:
            return f"Raise kl_coef ({config.kl_coef:g}) or lower learning_rate ({config.learning_rate:g})"
        slower = f"learning_rate {config.learning_rate / 5:.1g} (now {config.learning_rate:g})"
        if self.learner.models.critic is not None and config.value_model == "reward":
            slower += ", or value_model policy, a critic that begins at 0"
        return f"It went there in one iteration: give {slower}"

    def means_of_parts(self) -> dict[str, float]:
        """The mean score of each part of a reward put together; a part may know nothing of a response."""
        means = {}
        for name, scores in getattr(self.scorer, "last_parts", {}).items():
            known = [score for score in scores if score is not None]
            if known:
                means[f"reward/{name}"] = sum(known) / len(known)
        return means

    def collect(self, log: RewardLog | None = None) -> Rollout:
        """A batch of episodes, each model's forward passes counted."""
        config, state, log = self.config, self.state, log or RewardLog()
        group = self.learner.group_size
        prompts = list(itertools.islice(state.prompts, config.batch_size // group))
        state.drawn += len(prompts)
        shaping = Shaping(
            clip=config.reward_clip or None,
            length_penalty=config.length_penalty,
            missing_eos_penalty=config.missing_eos_penalty,
            replace_missing_eos=config.replace_missing_eos,
        )
        batch = rollout.collect(
            self.policy,
            prompts,
            self.scorer,
            self.learner,
            config,
            state.generator,
            self.learner.reward_kl_coef,
            shaping,
            group,
            trainer_state=self.progress,
            log_extra=log.extra,
            log_metric=log.metric,
        )
        n = len(batch.prompts)
        state.forward_passes["policy"] += n
        state.forward_passes["reference"] += n
        state.forward_passes["reward"] += n * len(reward_models(self.scorer))
        state.forward_passes["critic"] += n * self.learner.models.has_values
        return batch

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(self.state.iteration, self.config.iterations)

    def check_start(self, seen: dict[str, float]) -> None:
        """The first batch comes from the reference itself, unless another one was given."""
        limit = MAX_FIRST_KL[self.learner.dtype]
        if self.config.ref_model is None and abs(seen["kl"]) > limit:
            raise DivergedError(
                f"rl: the KL of the first batch is {seen['kl']:.2e} nats per response and must be 0: policy "
                f"and reference are not the same model"
            )

    def check_repeatable(self, prompts: Sequence[PromptRecord]) -> None:
        """The same seed must give the same tokens and log-probabilities, bit for bit."""
        part = list(prompts[: min(self.config.batch_size, 64)])
        first = self.respond(part, "twice").samples
        second = self.respond(part, "twice").samples
        same = torch.equal(first.tokens_BS, second.tokens_BS)
        if not (same and torch.equal(first.logp_BT, second.logp_BT)):
            raise DivergedError(
                "rl: the same seed drew two different batches: this machine computes the same thing in two "
                "ways; results would not repeat. Set --num_threads, or report this with your hardware"
            )

    def respond(self, prompts: Sequence[PromptRecord], *purpose: object) -> Responses:
        """One response to each prompt with random numbers of a named purpose's own."""
        generator = devices.generator(self.config.seed, "rl", *purpose)
        return self.policy.respond(prompts, 1, generator, self.config)

    def measure(self, iteration: int, alarms: dict[str, str] | None = None) -> dict[str, float]:
        """Held-out prompts, always with the same random numbers; and every ``check_reward_every`` iterations
        how often the reward agrees with the annotator on fresh pairs, which may add to ``alarms``. Watching
        is no part of the cost."""
        responses = self.respond(self.held_out, "held-out")
        signs = sign_functions(self.config.phrases)
        row = monitor.held_out(
            responses, self.learner, self.scorer, self.gold, signs, trainer_state=self.progress
        )
        every, last = self.config.check_reward_every, self.config.iterations
        if self.annotator is not None and every and (iteration % every == 0 or iteration == last):
            # Fresh pairs each time: the question is whether the reward still knows what this policy writes.
            prompts = list(itertools.islice(itertools.cycle(self.held_out), self.config.check_reward_pairs))
            first = self.respond(prompts, "pairs", iteration, "first")
            second = self.respond(prompts, "pairs", iteration, "second")
            right, total = monitor.reward_accuracy(first, second, self.scorer, self.annotator)
            if total:
                row |= {"reward_accuracy": right / total, "reward_accuracy_pairs": total}
            # The first check is what later ones are held against.
            if self.state.first_accuracy is None:
                self.state.first_accuracy = (right, total)
            elif alarms is not None:
                alarms |= monitor.accuracy_alarm(right, total, *self.state.first_accuracy)
        return of_split(self.config.eval_split, row)

    def raise_alarms(self, alarms: dict[str, str]) -> None:
        """Says each kind of alarm once, and keeps when it first came and how often."""
        for name, text in alarms.items():
            if name not in self.state.alarms:
                self.announce(f"rl: ALARM at iteration {self.state.iteration}: {text}")
                self.state.alarms[name] = {"first": self.state.iteration, "count": 0, "text": text}
            self.state.alarms[name]["count"] += 1

    def what_matters(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of an iteration that are shown while it runs; how many kinds of alarm there were."""
        names = {"reward": "train/reward", "gold": "train/gold", "kl": "train/kl", "length": "train/length"}
        found = {short: row[name] for short, name in names.items() if name in row}
        return found | ({"alarms": len(self.state.alarms)} if self.state.alarms else {})

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state as tensors and plain values, for a checkpoint."""
        state = self.state
        assert self.policy.engine is not None
        tensors = {"generator": state.generator.get_state(), "torch": torch.get_rng_state()}
        for name, parameters in state.models.trained().items():
            own = named_state(parameters, state.optimizers[name])
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
        values = {
            "random": random_state(),
            "drawn": state.drawn,
            "kl": state.kl.state_dict(),
            "schedulers": {name: s.state_dict() for name, s in state.schedulers.items()},
            "version": self.policy.engine.version,
            "micro_batch_tokens": self.learner.passes.tokens,
            "algorithm": dataclasses.asdict(state.algorithm),
            "judges": [judge.state() for judge in judges_in(self.scorer)],
            **{name: getattr(state, name) for name in PLAIN_STATE},
        }
        return tensors, values

    def restore(self, saved: Checkpoint) -> None:
        """Puts ``snapshot`` back."""
        state, values = self.state, saved.values
        assert self.policy.engine is not None
        state.iteration = saved.step
        state.generator.set_state(saved.tensors["generator"])
        torch.set_rng_state(saved.tensors["torch"])
        restore_random_state(values["random"])
        for name, parameters in state.models.trained().items():
            restore_named_state(parameters, state.optimizers[name], below(f"{name}/", saved.tensors))
            restore_schedule(state.optimizers[name], state.schedulers[name], values["schedulers"][name])
        state.kl.load_state_dict(values["kl"])
        # The order of the prompts follows from the seed: passing over those drawn before leads to the next.
        state.drawn = values["drawn"]
        next(itertools.islice(state.prompts, state.drawn, state.drawn), None)
        self.policy.engine.version = values["version"]
        self.learner.passes.tokens = values.get("micro_batch_tokens", self.learner.passes.tokens)
        state.algorithm = type(state.algorithm)(**values["algorithm"])
        for judge, own in zip(judges_in(self.scorer), values["judges"], strict=True):
            judge.restore(own)
        for name in PLAIN_STATE:
            setattr(state, name, values.get(name, getattr(state, name)))
