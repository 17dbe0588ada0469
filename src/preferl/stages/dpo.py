"""dpo: fine-tunes a policy on the preferences themselves; nothing is sampled and there is no reward model.

Direct preference optimisation (Rafailov et al. 2023) and its relatives, rows of ``LOSSES``: a loss of the
log-ratios log pi(y|x) - log pi_ref(y|x) of the two responses of a pair. Log-ratios are sums over the
response's tokens, EOS included where the response is finished, in every loss (TRL's IPO takes means), and at
the temperature at which the policy will be sampled. The reference reads every pair once, before training.

preferl dpo --model_name_or_path runs/demo/sft --dataset_name runs/demo/collect
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from preferl.data import sources
from preferl.data.records import DataError, Preference, Prompt, prompt_text
from preferl.data.sources import Source
from preferl.data.tokens import endless_buckets, pad, prompt_ids, response_ids
from preferl.evaluation.scored import accuracy_of
from preferl.learning.optim import adamw, clip_and_step, schedule
from preferl.maths import preference
from preferl.models import load
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions, OptimOptions, SamplingOptions, require_at_least
from preferl.runs.directory import StageDirectory
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling.cached import CachedEngine
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.policy import fitting_prompt_ids, generate, sampling_for
from preferl.sampling.samples import Samples, Sampling, rows_of
from preferl.statistics import mean_interval, wilson_interval

LOSSES = {"sigmoid": preference.dpo_loss, "ipo": preference.ipo_loss}
# The policy against its own copy, nats per response: only the padding of the two batches differs.
MAX_FIRST_LOG_RATIO = {torch.float32: 1e-3, torch.bfloat16: 0.3}


@dataclass(kw_only=True)
class DpoConfig(OptimOptions, SamplingOptions, DataOptions, DeviceOptions):
    """Options of the dpo stage."""

    output_dir: str = "runs/dpo"
    """Where the stage is written."""
    model_name_or_path: str = "runs/sft"
    """The policy to start from."""
    ref_model: str | None = None
    """The reference; by default a frozen copy of the policy at its start."""
    dataset_name: str = "runs/collect"
    """Preferences: a collect stage, a Hub name (``name`` or ``name:config``), or local files."""
    loss_type: str = "sigmoid"
    """``sigmoid`` (DPO) or ``ipo`` (Azar et al. 2023)."""
    beta: float = 0.1
    """Strength of the KL penalty to the reference: the implicit reward is beta times the log-ratio; ``ipo``
    drives log-ratios 1 / (2 beta) nats apart."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong, 0 to 0.5 (with ``sigmoid`` this is cDPO)."""
    max_length: int = 512
    """Longest (prompt + response) in tokens; what is too long loses the oldest half of the room from its
    prompt, then the end of its responses."""
    num_train_epochs: float = 1.0
    """Passes over the training pairs."""
    train_batch_size: int = 32
    """Pairs in one update."""
    micro_batch_size: int = 32
    """Pairs (two sequences each) in one forward and backward pass; a smaller one saves memory and changes
    nothing."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW (5e-7 to 5e-6 suits a pretrained model)."""
    lr_scheduler_type: str = "linear"
    """``cosine``, ``linear`` or ``constant``, after the warm-up."""
    num_evals: int = 10
    """How often loss and accuracy on dev pairs are measured."""
    eval_pairs: int = 512
    """Most dev pairs of such a measurement."""
    check_samples: int = 256
    """Responses sampled afterwards to dev prompts: how far the policy went, and whether they end with EOS."""


@dataclass(frozen=True)
class Pair:
    """A comparison as token ids; both responses have the same prompt. ``cut``: it did not fit as a whole.

    Example: ``Pair([7, 8], [5, 1], [6, 9, 1], False)`` with EOS 1.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut: bool

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Reader:
    """How a model reads pairs: the same for policy and reference."""

    pad_id: int
    sampling: Sampling
    micro_batch_size: int
    dtype: torch.dtype

    def logprobs(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> torch.Tensor:
        """``logp_B2``: log-probabilities of the chosen and the rejected responses, sums over their tokens.

        One forward pass; gradients flow.
        """
        with devices.autocast(model.device, self.dtype):
            logp_BT = policy_logprobs(model, samples_of(pairs, self.pad_id, self.sampling))
        return logp_BT.float().sum(-1).view(2, -1).T

    @torch.no_grad()
    def all_logprobs(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> torch.Tensor:
        """``logp_N2`` of any number of pairs, in micro-batches of like length, gathered on the CPU."""
        logp_N2 = torch.zeros(len(pairs), 2)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
        for start in range(0, len(order), self.micro_batch_size):
            rows = order[start : start + self.micro_batch_size]
            logp_N2[rows] = self.logprobs(model, [pairs[i] for i in rows]).cpu()
        return logp_N2


def run(config: DpoConfig, fresh: bool = False) -> Path:
    """Trains, saves ``model/``, writes metrics and samples; returns the stage's directory."""
    stage = StageDirectory(Path(config.output_dir), "dpo")
    options = dataclasses.asdict(config)
    if stage.settled(options, fresh):
        say(f"dpo: finished before in {stage.path}")
        return stage.path
    check_options(config)
    device, dtype = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    policy, tokenizer = load.load_policy(config.model_name_or_path, device)
    reference = load_reference(config, tokenizer, device)
    train, dev, counts = read_pairs(config, source, tokenizer, (policy, reference))
    prompts = source.prompts["dev"][: config.check_samples]
    prompt_tokens = fitting_prompt_ids(tokenizer, prompts, policy, config.response_length)
    parents = {"policy": config.model_name_or_path, "preferences": config.dataset_name}
    stage.begin(options, parents | {"reference": config.ref_model or config.model_name_or_path})
    notes = [*source.notes, *notes_of(counts)]
    for note in notes:
        say(f"dpo: {note}")
    say(f"dpo: {load.parameter_count(policy):,} parameters, {len(train):,} pairs, loss {config.loss_type}")

    reader = Reader(tokenizer.pad_token_id, sampling_for(tokenizer, config), config.micro_batch_size, dtype)
    reference_hash = load.weights_hash(reference)
    same_start = load.weights_hash(policy) == reference_hash
    updates = max(1, round(config.num_train_epochs * len(train) / config.train_batch_size))
    rng = random.Random(devices.derived_seed(config.seed, "dpo", "batches"))
    endless = endless_buckets([len(pair) for pair in train], config.train_batch_size, rng)
    batches = list(itertools.islice(endless, updates))
    read = sorted(set(itertools.chain.from_iterable(batches)))  # part of an epoch reads part of the pairs
    reference_N2 = torch.zeros((len(train), 2))
    reference_N2[read] = reader.all_logprobs(reference, [train[i] for i in read])
    reference_dev_N2 = reader.all_logprobs(reference, dev)
    if not bool(reference_N2.isfinite().all()):
        raise DivergedError("dpo: the reference's log-probabilities are not finite; look at its weights")

    def measure() -> dict[str, float]:
        found = describe(config, reader.all_logprobs(policy, dev), reference_dev_N2) if dev else {}
        return {f"eval_{name}": value for name, value in found.items()}

    optimizer = adamw(policy.parameters(), config)
    scheduler = schedule(optimizer, config, updates)
    eval_every = max(1, updates // config.num_evals)
    held_out, seen = measure(), 0
    if held_out:
        stage.log(step=0, **held_out)
    with Steps("dpo", updates) as steps:
        for update in range(1, updates + 1):
            rows, where = batches[update - 1], f"dpo update {update}"
            part_B2 = reference_N2[rows]
            logp_B2 = backward(config, reader, policy, [train[i] for i in rows], part_B2, where)
            if update == 1 and same_start:
                check_first(logp_B2 - part_B2, dtype)
            row = {"step": update, **describe(config, logp_B2, part_B2)}
            row["grad_norm"] = clip_and_step(optimizer, config.max_grad_norm, where)
            scheduler.step()
            seen += len(rows)
            if update % eval_every == 0 or update == updates:
                held_out = measure()
                row |= held_out
            stage.log(**row, learning_rate=scheduler.get_last_lr()[0])
            steps.advance(loss=row["loss"], accuracy=row["accuracy"])

    summary = held_out_summary(held_out, len(dev))
    engine = CachedEngine(policy, tokenizer.pad_token_id, config.sampling_batch_size, dtype)
    summary |= sample_check(config, stage, engine, reference, tokenizer, prompts, prompt_tokens)
    if load.weights_hash(reference) != reference_hash:
        raise DivergedError("dpo: the weights of the frozen reference have changed")
    load.save(policy, tokenizer, stage.model)
    say_result(summary)
    checks = ["weights of reference unchanged"]
    if same_start:
        checks.insert(0, f"log-ratios before the first update within {MAX_FIRST_LOG_RATIO[dtype]:.0e} of 0")
    stage.finish(
        pairs=len(train),
        updates=updates,
        **counts,
        **summary,
        forward_passes={"policy_update": 3 * 2 * seen, "reference": 2 * len(read)},
        frozen_hashes={"reference": reference_hash},
        checks=checks,
        peak_memory_mib=devices.peak_memory_mib(device),
        notes=notes,
    )
    return stage.path


def check_options(config: DpoConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if config.loss_type not in LOSSES:
        raise UsageError(f"loss_type '{config.loss_type}' is unknown; use {' or '.join(LOSSES)}")
    if not 0 < config.beta < math.inf:
        raise UsageError(f"beta is {config.beta}; it must be above 0, or the loss says nothing about a pair")
    if not 0 <= config.label_smoothing <= 0.5:
        raise UsageError(f"label_smoothing is {config.label_smoothing}; it must lie between 0 and 0.5")
    if not config.temperature > 0:
        raise UsageError(f"temperature is {config.temperature}; it must be above 0")
    if not 0 < config.num_train_epochs < math.inf:
        raise UsageError(f"num_train_epochs is {config.num_train_epochs}; it must be above 0")
    require_at_least(config, 0, "eval_pairs", "check_samples")
    require_at_least(config, 1, "train_batch_size", "micro_batch_size", "num_evals")
    require_at_least(config, 2, "max_length")


def load_reference(config: DpoConfig, tokenizer: Any, device: torch.device) -> PreTrainedModel:
    """The frozen reference.

    Raises:
        UsageError: it reads other tokens than the policy.
    """
    name = config.ref_model or config.model_name_or_path
    reference, own = load.load_policy(name, device)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"ref_model '{name}' has another vocabulary than '{config.model_name_or_path}': log-ratios need "
            f"the same tokens; give a reference with the policy's tokenizer"
        )
    return load.freeze(reference)


# -------------------------------------------------------------------------------------------------- pairs


def read_pairs(
    config: DpoConfig, source: Source, tokenizer: Any, models: Sequence[PreTrainedModel]
) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """Training pairs, dev pairs, and counts of what was cut or left out of the training pairs.

    Rankings come as all their ordered pairs; ties order nothing.

    Raises:
        DataError: no training pair is left.
    """
    preferences = source.need("preferences", "train")
    sizes = [len(ranking.responses) for ranking in source.rankings["train"]]
    ties = sum(K * (K - 1) // 2 for K in sizes) - len(preferences) if sizes else 0
    limits = [config.max_length, *(load.max_positions(model) for model in models)]
    max_length = min(limit for limit in limits if limit is not None)
    train, dev = (
        [pair for row in rows if (pair := encode(tokenizer, row, max_length, config.stop_sequences))]
        for rows in (preferences, source.preferences["dev"][: config.eval_pairs])
    )
    if not train:
        raise DataError(
            f"'{config.dataset_name}' has no pair whose responses differ in their first tokens; "
            f"raise max_length ({config.max_length}), or look at the data"
        )
    counts = {
        "dev_pairs": len(dev),
        "ties_left_out": ties,
        "same_left_out": len(preferences) - len(train),
        "cut": sum(pair.cut for pair in train),
    }
    return train, dev, counts


def encode(tokenizer: Any, row: Preference, max_length: int, stop_texts: Sequence[str] = ()) -> Pair | None:
    """A comparison as token ids; a response that was cut off while sampling, or ended by one of
    ``stop_texts``, carries no EOS: the policy did not write one.

    None where the two responses are the same tokens, as after cutting, or one has none: their log-ratios
    could teach nothing.
    """
    prompt = prompt_ids(tokenizer, row.prompt)
    chosen, rejected = (
        response_ids(
            tokenizer,
            text,
            row.columns.get(f"finished_{side}", True) and not any(stop in text for stop in stop_texts),
        )
        for side, text in (("chosen", row.chosen), ("rejected", row.rejected))
    )
    longest = max(len(chosen), len(rejected))
    # Both responses must follow the same prompt, or their log-ratios would not be of one question.
    kept = prompt[-max(max_length - longest, max_length // 2) :]
    room = max_length - len(kept)
    pair = Pair(kept, chosen[:room], rejected[:room], len(kept) < len(prompt) or room < longest)
    return pair if pair.chosen and pair.rejected and pair.chosen != pair.rejected else None


def notes_of(counts: dict[str, int]) -> list[str]:
    """What was cut and left out, in sentences."""
    notes = []
    if counts["ties_left_out"]:
        notes.append(f"left out {counts['ties_left_out']} pairs of tied responses: DPO learns from an order")
    if counts["same_left_out"]:
        notes.append(f"left out {counts['same_left_out']} pairs: both responses are the same tokens, or none")
    if counts["cut"]:
        notes.append(f"cut {counts['cut']} pairs to max_length, or to the positions that the model has")
    return notes


def samples_of(pairs: Sequence[Pair], pad_id: int, sampling: Sampling) -> Samples:
    """The chosen responses of all pairs, then the rejected ones, as an engine would have returned them."""
    prompt_BP, prompt_mask_BP = pad([pair.prompt for pair in pairs] * 2, pad_id, "left")
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    response_BT, mask_BT = pad(responses, pad_id, "right")
    return Samples(
        tokens_BS=torch.cat([prompt_BP, response_BT], dim=1),
        prompt_mask_BP=prompt_mask_BP,
        mask_BT=mask_BT,
        # Whatever wrote them did not say how likely they were: nothing may be computed from this.
        logp_BT=torch.full(mask_BT.shape, math.nan),
        finished_B=torch.tensor([response[-1] in sampling.stop for response in responses]),
        sampling=sampling,
        version=0,
    )


# --------------------------------------------------------------------------------------------------- loss


def backward(
    config: DpoConfig,
    reader: Reader,
    policy: PreTrainedModel,
    pairs: Sequence[Pair],
    reference_B2: torch.Tensor,
    where: str,
) -> torch.Tensor:
    """Adds the gradient of a batch and returns the policy's ``logp_B2``.

    Losses of a micro-batch are divided by the number of pairs of the whole batch.

    Raises:
        DivergedError: a loss is not finite.
    """
    found = []
    for rows in torch.arange(len(pairs)).split(reader.micro_batch_size):
        logp_B2 = reader.logprobs(policy, [pairs[i] for i in rows])
        loss = losses_of(config, logp_B2, reference_B2[rows].to(logp_B2.device)).sum() / len(pairs)
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"{where}: the loss is {loss.item()}; stopped before the update. "
                f"Lower the learning rate, or look at the pairs of this batch"
            )
        loss.backward()
        found.append(logp_B2.detach().cpu())
    return torch.cat(found)


def losses_of(config: DpoConfig, logp_B2: torch.Tensor, reference_B2: torch.Tensor) -> torch.Tensor:
    """``loss_B`` from log-probabilities whose columns are chosen and rejected."""
    loss = LOSSES[config.loss_type]
    return loss(*logp_B2.unbind(-1), *reference_B2.unbind(-1), config.beta, config.label_smoothing)


def describe(config: DpoConfig, logp_N2: torch.Tensor, reference_N2: torch.Tensor) -> dict[str, float]:
    """Means over pairs: loss, the share in which the implicit reward prefers the chosen response (a tie is
    half), its margin in units of that reward, and the log-ratios in nats per response."""
    chosen_N, rejected_N = (logp_N2 - reference_N2).unbind(-1)
    gap_N = chosen_N - rejected_N
    return {
        "loss": float(losses_of(config, logp_N2, reference_N2).mean()),
        "accuracy": accuracy_of(gap_N.numpy()),
        "margin": config.beta * float(gap_N.mean()),
        "chosen_log_ratio": float(chosen_N.mean()),
        "rejected_log_ratio": float(rejected_N.mean()),
    }


def check_first(log_ratio_B2: torch.Tensor, dtype: torch.dtype) -> None:
    """Before any update a policy with the reference's weights must give the reference's log-probabilities."""
    error = float(log_ratio_B2.abs().mean())
    if error > MAX_FIRST_LOG_RATIO[dtype]:
        raise DivergedError(
            f"dpo: before the first update policy and reference, the same weights, are {error:.2e} nats per "
            f"response apart (allowed {MAX_FIRST_LOG_RATIO[dtype]:.0e}): the model reads one text in two "
            f"ways; please report this with your model's name"
        )


# ------------------------------------------------------------------------------------------------ outcome


def held_out_summary(held_out: dict[str, float], n: int) -> dict[str, Any]:
    """The last measurement on dev pairs, with Wilson's interval of the accuracy."""
    if not n:
        return {}
    low, high = wilson_interval(held_out["eval_accuracy"] * n, n)
    named = {"dev_" + name.removeprefix("eval_"): value for name, value in held_out.items()}
    return named | {"dev_accuracy_low": low, "dev_accuracy_high": high}


def sample_check(
    config: DpoConfig,
    stage: StageDirectory,
    engine: CachedEngine,
    reference: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Responses of the trained policy to dev prompts: KL to the reference, length, share with EOS."""
    if not prompts:
        return {}
    made = generate(
        engine,
        tokenizer,
        prompts,
        prompt_tokens,
        sampling_for(tokenizer, config),
        devices.generator(config.seed, "dpo", "check"),
    )
    kl_B = torch.zeros(len(prompts))
    with torch.no_grad(), devices.autocast(reference.device, engine.dtype):
        for rows in made.samples.mask_BT.sum(-1).argsort().split(2 * config.micro_batch_size):
            part = rows_of(made.samples, rows)
            kl_B[rows] = (part.logp_BT - policy_logprobs(reference, part).cpu()).sum(-1)
    stage.log_samples(
        {"prompt": prompt_text(p), "response": r, "finished": f, "kl": kl}
        for p, r, f, kl in zip(made.prompts, made.completions, made.finished, kl_B.tolist(), strict=True)
    )
    kl, low, high = mean_interval(kl_B.double().numpy())
    return {
        "samples": len(prompts),
        "kl": kl,
        "kl_low": low,
        "kl_high": high,
        "eos_rate": made.eos_rate,
        "length": made.mean_length,
    }


def say_result(summary: dict[str, Any]) -> None:
    if "dev_accuracy" in summary:
        say(
            f"dpo: held-out pairs ordered as labelled {summary['dev_accuracy']:.1%} "
            f"[{summary['dev_accuracy_low']:.1%}, {summary['dev_accuracy_high']:.1%}], "
            f"loss {summary['dev_loss']:.3f}"
        )
    if "kl" in summary:
        say(
            f"dpo: KL {summary['kl']:.2f} nats per response, EOS {summary['eos_rate']:.1%}, "
            f"length {summary['length']:.1f}"
        )
