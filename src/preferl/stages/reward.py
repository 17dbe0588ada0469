"""reward: a reward model from preferences, by Bradley-Terry through the whole trunk.

Loss -log sigma(r(x, chosen) - r(x, rejected)) (Bradley & Terry 1952; Stiennon et al. 2020, eq. 1), both
responses in one forward pass. The weights with the lowest dev log-loss are kept, scores are normalised to
mean 0 and sd 1 on reference samples, and quality is reported on the eval split.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from preferl.data import sources
from preferl.data.chat import length_buckets, pad
from preferl.data.records import Preference, prompt_key, prompt_text
from preferl.data.sources import Source
from preferl.maths import stats
from preferl.maths.preference import bradley_terry_loss
from preferl.models import load
from preferl.models.optim import adamw, clip_and_step, schedule
from preferl.models.reward import (
    RewardModel,
    fold_normalisation,
    load_reward_model,
    raw_scores,
    reward_mean,
)
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions, OptimOptions, SamplingOptions
from preferl.runs.directory import StageDirectory
from preferl.runs.errors import UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling.cached import CachedEngine
from preferl.sampling.texts import fitting_prompt_ids, generate, sampling_for


@dataclass(kw_only=True)
class RewardConfig(OptimOptions, SamplingOptions, DataOptions, DeviceOptions):
    output_dir: str = "runs/reward"
    """Where the stage is written."""
    model_name_or_path: str = "runs/sft"
    """What it starts from: the SFT stage, or any encoder, decoder or reward model."""
    dataset_name: str = "runs/collect"
    """Preferences: a collect stage, a Hub name (``name`` or ``name:config``), or local files."""
    reference_policy: str | None = None
    """Normalise on samples of this policy; without it on the responses of the training pairs."""
    max_length: int = 512
    """Longest (prompt + response) in tokens; a prompt loses its oldest tokens first."""
    num_train_epochs: float = 1.0
    """Passes over the training pairs."""
    train_batch_size: int = 16
    """Pairs in one update."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW (1e-5 suits a pretrained model)."""
    adam_beta2: float = 0.99
    """Decay of AdamW's second moment."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    weight_average: float = 0.15
    """Share of the updates over which the weights that are evaluated and kept are averaged; 0 for none."""
    train_embeddings: bool = True
    """Train the input embeddings too; without, a small model remembers less of a small data set."""
    num_evals: int = 10
    """How often accuracy and log-loss on dev pairs are measured."""
    patience: int = 4
    """Stop after so many measurements without a lower dev log-loss."""
    max_eval_pairs: int = 10_000
    """Most pairs of the eval split that are scored."""
    normalise_samples: int = 1024
    """Most reference samples for mean and standard deviation."""


@dataclass(frozen=True)
class EncodedPair:
    """A preference as token ids."""

    chosen: list[int]
    rejected: list[int]
    margin: float


def run(config: RewardConfig, fresh: bool = False) -> Path:
    """Trains, normalises, saves ``model/`` and reports; returns the stage's directory."""
    stage = StageDirectory(Path(config.output_dir), "reward")
    options = dataclasses.asdict(config)
    if stage.settled(options, fresh):
        say(f"reward: finished before in {stage.path}")
        return stage.path
    if not 0 <= config.weight_average <= 1:
        raise UsageError(f"weight_average is {config.weight_average}; it must lie between 0 and 1")
    device, dtype = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    train_pairs = source.need("preferences", "train")
    dev_pairs, eval_pairs = source.need("preferences", "dev"), source.need("preferences", "eval")
    stage.begin(options, {"model": config.model_name_or_path, "preferences": config.dataset_name})
    for note in source.notes:
        say(f"reward: {note}")
    model, tokenizer = load_reward_model(config.model_name_or_path, device, new_head_allowed=True)
    scorer = RewardModel(model, tokenizer, max_length=config.max_length)
    say(f"reward: {load.parameter_count(model):,} parameters, {len(train_pairs):,} training pairs")

    best = train(config, stage, scorer, train_pairs, dev_pairs[:1000], dtype)
    mean, sd = normalise(config, scorer, source, device, dtype)
    load.save(model, tokenizer, stage.model)

    eval_pairs = eval_pairs[: config.max_eval_pairs]
    chosen, rejected = scores_of(scorer, eval_pairs)
    quality = report_quality((chosen - rejected) * sd, eval_pairs, config.seed)
    quality["length_baseline_accuracy"] = length_baseline(train_pairs, eval_pairs)
    stage.log_samples(
        {
            "prompt": prompt_text(p.prompt),
            "chosen": p.chosen,
            "rejected": p.rejected,
            "score_chosen": c,
            "score_rejected": r,
        }
        for p, c, r in list(zip(eval_pairs, chosen, rejected, strict=True))[:200]
    )
    say_quality(quality)
    stage.finish(
        parameters=load.parameter_count(model),
        train_pairs=len(train_pairs),
        reference_mean=mean,
        reference_sd=sd,
        peak_memory_mib=devices.peak_memory_mib(device),
        notes=source.notes,
        **best,
        **quality,
    )
    return stage.path


def train(
    config: RewardConfig,
    stage: StageDirectory,
    scorer: RewardModel,
    train_pairs: Sequence[Preference],
    dev_pairs: Sequence[Preference],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Trains in place and leaves the weights of the lowest dev log-loss in the model.

    What is evaluated and kept is an exponential moving average of the weights (Polyak & Juditsky 1992; for
    reward models Rame et al. 2024).
    """
    model, tokenizer = scorer.model, scorer.tokenizer
    model.get_input_embeddings().requires_grad_(config.train_embeddings)
    encoded = [encode(scorer, pair) for pair in train_pairs]
    lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in encoded]
    updates = max(1, round(config.num_train_epochs * len(encoded) / config.train_batch_size))
    optimizer = adamw(model.parameters(), config)
    scheduler = schedule(optimizer, config, updates)
    decay = 1 - 1 / max(1.0, config.weight_average * updates)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged_scorer = RewardModel(average.module, tokenizer, max_length=config.max_length)
    rng = random.Random(devices.derived_seed(config.seed, "reward", "batches"))
    batches: Any = iter(())
    eval_every = max(1, updates // config.num_evals)
    best_loss, best_update, best_weights, misses = math.inf, 0, None, 0
    with Steps("reward", updates) as steps:
        for update in range(1, updates + 1):
            rows = next(batches, None)
            if rows is None:
                batches = length_buckets(lengths, config.train_batch_size, rng)
                rows = next(batches)
            with devices.autocast(model.device, dtype):
                loss, accuracy = pair_loss(model, tokenizer, [encoded[i] for i in rows])
            loss.backward()
            norm = clip_and_step(optimizer, config.max_grad_norm, f"reward update {update}")
            scheduler.step()
            average.update_parameters(model)
            row = {"step": update, "loss": loss, "accuracy": accuracy, "grad_norm": norm}
            if update % eval_every == 0 or update == updates:
                gap = np.subtract(*scores_of(averaged_scorer, dev_pairs))
                dev_loss = float(np.logaddexp(0, -gap).mean())
                row |= {"eval_loss": dev_loss, "eval_accuracy": accuracy_of(gap)}
                misses = 0 if dev_loss < best_loss else misses + 1
                if dev_loss < best_loss:
                    best_loss, best_update = dev_loss, update
                    best_weights = copy.deepcopy(average.module.state_dict())
            stage.log(**row, learning_rate=scheduler.get_last_lr()[0])
            steps.advance(loss=loss.item(), dev_loss=best_loss)
            if misses >= config.patience:
                say(f"reward: dev log-loss rose {misses} times; stopped at update {update}")
                break
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.requires_grad_(True)
    return {"updates": update, "best_update": best_update, "dev_loss": best_loss}


def encode(scorer: RewardModel, pair: Preference) -> EncodedPair:
    """Token ids of both responses; one that was cut off while sampling carries no EOS."""
    done = [pair.columns.get(f"{side}_finished", True) for side in ("chosen", "rejected")]
    return EncodedPair(
        chosen=scorer.encode(pair.prompt, pair.chosen, done[0]),
        rejected=scorer.encode(pair.prompt, pair.rejected, done[1]),
        margin=pair.margin or 0.0,
    )


def pair_loss(
    model: PreTrainedModel, tokenizer: Any, pairs: Sequence[EncodedPair]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean Bradley-Terry loss and accuracy of a batch: 2B rows, chosen first, in one forward pass."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids_BS, mask_BS = pad(rows, tokenizer.pad_token_id, "right")
    score_B = raw_scores(model, ids_BS.to(model.device), mask_BS.to(model.device))
    chosen_B, rejected_B = score_B.chunk(2)
    margin_B = torch.tensor([pair.margin for pair in pairs], device=model.device)
    loss = bradley_terry_loss(chosen_B, rejected_B, margin_B).mean()
    return loss, (chosen_B > rejected_B).float().mean()


def scores_of(scorer: RewardModel, pairs: Sequence[Preference]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected responses; equal responses are scored once."""
    keys = [
        (prompt_key(p.prompt), text, p.columns.get(f"{side}_finished", True))
        for p in pairs
        for side, text in (("chosen", p.chosen), ("rejected", p.rejected))
    ]
    prompt_of = {key: p.prompt for key, p in zip(keys[::2], pairs, strict=True)}
    prompt_of |= {key: p.prompt for key, p in zip(keys[1::2], pairs, strict=True)}
    distinct = list(prompt_of)
    scores = scorer(
        [prompt_of[key] for key in distinct],
        [key[1] for key in distinct],
        [key[2] for key in distinct],
    )
    by_key = dict(zip(distinct, scores, strict=True))
    both = np.array([by_key[key] for key in keys], dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def normalise(
    config: RewardConfig,
    scorer: RewardModel,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Folds mean and sd of the reference samples into the model; returns what they were."""
    count = config.normalise_samples
    if config.reference_policy:
        policy, tokenizer = load.load_policy(config.reference_policy, device)
        prompts = source.need("prompts", "train")[:count]
        engine = CachedEngine(policy, tokenizer.pad_token_id, config.sampling_batch_size, dtype)
        made = generate(
            engine,
            tokenizer,
            prompts,
            fitting_prompt_ids(tokenizer, prompts, policy, config.response_length),
            sampling_for(tokenizer, config),
            devices.generator(config.seed, "reward", "reference"),
        )
        scores = np.array(scorer(made.prompts, made.completions, made.finished))
    else:
        scores = np.concatenate(scores_of(scorer, source.preferences["train"][: count // 2]))
    mean, sd = float(scores.mean()), float(scores.std())
    fold_normalisation(scorer.model, mean + reward_mean(scorer.model), sd)
    return mean, sd


def accuracy_of(gap_N: np.ndarray) -> float:
    """Share of pairs in which the chosen response scores higher; a tie counts half."""
    return float(((gap_N > 0) + 0.5 * (gap_N == 0)).mean())


def report_quality(gap_N: np.ndarray, pairs: Sequence[Preference], seed: int) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out pairs; against r* where the annotator has one.

    ``gap_N`` is score(chosen) - score(rejected) at the scale of the loss, where it is a log-odds. With
    p = P(first is preferred) known, the expected accuracy of the scorer's choice is p where it prefers the
    first and 1 - p elsewhere; the best possible is E[max(p, 1 - p)].
    """
    accuracy = accuracy_of(gap_N)
    low, high = stats.wilson_interval(round(accuracy * len(gap_N)), len(gap_N))
    quality: dict[str, Any] = {
        "eval_pairs": len(gap_N),
        "eval_accuracy": accuracy,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_loss": float(np.logaddexp(0, -gap_N).mean()),
    }
    known = [p.columns.get("p_chosen") for p in pairs]
    if all(isinstance(p, float) for p in known):
        p_N = np.array(known, dtype=np.float64)
        expected = np.where(gap_N > 0, p_N, np.where(gap_N < 0, 1 - p_N, 0.5))
        quality["expected_accuracy"] = float(expected.mean())
        quality["bayes_accuracy"] = stats.bayes_accuracy(p_N)
        quality["fraction_of_bayes"] = quality["expected_accuracy"] / quality["bayes_accuracy"]
    # Each pair is oriented by a coin: with the chosen response always first there is only one label.
    flip_N = np.random.default_rng(seed).random(len(gap_N)) < 0.5
    probability_N = np.exp(-np.logaddexp(0, np.where(flip_N, gap_N, -gap_N)))
    quality["ece"] = stats.expected_calibration_error(probability_N, ~flip_N)
    return quality


def length_baseline(train: Sequence[Preference], held_out: Sequence[Preference]) -> float:
    """Accuracy of always preferring the longer (or always the shorter, as in training) response."""

    def gaps(pairs: Sequence[Preference]) -> np.ndarray:
        return np.array([len(p.chosen) - len(p.rejected) for p in pairs], dtype=np.float64)

    sign = 1 if accuracy_of(gaps(train)) >= 0.5 else -1
    return accuracy_of(sign * gaps(held_out))


def say_quality(quality: dict[str, Any]) -> None:
    line = (
        f"reward: held-out accuracy {quality['eval_accuracy']:.1%} "
        f"[{quality['eval_accuracy_low']:.1%}, {quality['eval_accuracy_high']:.1%}] "
        f"on {quality['eval_pairs']} pairs; length alone {quality['length_baseline_accuracy']:.1%}"
    )
    if "fraction_of_bayes" in quality:
        line += (
            f"; against r* {quality['expected_accuracy']:.1%} = "
            f"{quality['fraction_of_bayes']:.1%} of the best possible {quality['bayes_accuracy']:.1%}"
        )
    say(line)
