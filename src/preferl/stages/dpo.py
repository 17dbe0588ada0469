"""dpo: fine-tunes a policy on the preferences themselves; nothing is sampled and there is no reward model.

Direct preference optimisation (Rafailov et al. 2023) and its relatives, rows of ``LOSSES``: a loss of the
log-ratios log pi(y|x) - log pi_ref(y|x) of the two responses of a pair. Log-ratios are sums over the
response's tokens, EOS included where the response is finished, in every loss (TRL's IPO takes means), and at
the temperature at which the policy will be sampled. The reference reads every pair once, before the
training.

``--loss_type kto`` needs no pairs: it learns from single responses called good or bad
(``learning.unpaired``).

preferl dpo --model_name_or_path runs/demo/sft --dataset_name runs/demo/collect
preferl dpo --model_name_or_path runs/demo/sft --dataset_name feedback.jsonl --loss_type kto
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from preferl.data import sources
from preferl.data.records import DataError, Pair, PromptRecord, prompt_text
from preferl.data.sources import Source
from preferl.data.tokens import Extent, cut_to_fit, example_ids, rendering_notes
from preferl.evaluation.scored import accuracy_of
from preferl.judging.scorers import say_what_was_cut
from preferl.learning import defaults
from preferl.learning.fit import EXTENDABLE, Objective, Sums, fit, plan_batches
from preferl.learning.optim import check_optim
from preferl.learning.unpaired import KtoTask, ResponseSplits, read_responses
from preferl.maths import preference
from preferl.models import load, lora, plan
from preferl.models.offload import Offload
from preferl.models.storage import same_weights, share_weights, twin
from preferl.options.dpo import DpoConfig
from preferl.runs import devices
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.errors import DivergedError, UsageError
from preferl.runs.stage import Callback, Stage
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Samples, Sampling, written_samples
from preferl.statistics import mean_interval, wilson_interval
from preferl.statistics.intervals import Estimate

LOSSES = {"sigmoid": preference.dpo_loss, "ipo": preference.ipo_loss}
KTO = "kto"  # no row of the table: it reads single responses
# The policy against its own copy, nats per response: only the padding of the two batches differs.
MAX_FIRST_LOG_RATIO = {torch.float32: 1e-3, torch.bfloat16: 0.3}


@dataclass(frozen=True)
class EncodedPair:
    """A comparison as token ids; both responses have the same prompt. ``cut``: it did not fit as a whole.

    Example: ``EncodedPair([7, 8], [5, 1], [6, 9, 1], False)`` with EOS 1.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut: bool

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PairSplits:
    """Training pairs, dev pairs, and counts of what was cut or left out of the training pairs; ``held_out``
    where the dev pairs train nothing."""

    train: list[EncodedPair]
    dev: list[EncodedPair]
    counts: dict[str, int]
    held_out: bool = True
    unit: ClassVar[str] = "pairs"


def run(config: DpoConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Trains, saves ``model/``, writes metrics and samples; returns the stage's directory."""
    check_options(config)
    with Stage("dpo", config, fresh, callbacks, EXTENDABLE) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path, config.ref_model)
        config = plan.settled(config, stage, work_of)
        source = sources.load_source(**config.source()).training_on(config.split)
        policy, reference = load_policies(config, stage)
        source = load.read_by(source, [policy.tokenizer])
        start = defaults.start_of(policy.model, config.model_name_or_path, bool(config.lora_r))
        config = defaults.completed("dpo", config, start, stage)
        check_vocabulary(policy, reference, config)
        if config.loss_type == KTO:
            limit = load.fitting_length(config.max_length, policy.model, reference.model)
            data = read_responses(source, policy.tokenizer, limit, config.eval_pairs, config.stop_sequences)
            notes = data.notes
        else:
            data = read_pairs(config, source, policy, reference)
            notes = notes_of(data.counts)
        told = [*policy.notes, *notes, *rendering_notes(policy.tokenizer)]
        saved = stage.begin([*source.notes, *told])
        train(policy, reference, data, source.dev.prompts[: config.check_samples], config, stage, saved)
    return stage.path


def work_of(config: DpoConfig) -> plan.Work:
    """What is planned for."""
    config = defaults.with_batches("dpo", config)
    sequences = 1 if config.loss_type == KTO else 2
    reference = config.ref_model or config.model_name_or_path
    own = bool(config.ref_model) or not config.lora_r
    checked = min(config.check_samples, config.sampling_batch_size)
    return plan.Work(
        roles=[
            *plan.role("policy", config.model_name_or_path, trained=True),
            *plan.role("reference", reference, owns_base=own),
        ],
        row_tokens=sequences * config.max_length,
        length=config.max_length,
        batch_rows=config.train_batch_size,
        cached_tokens=checked * (plan.PROMPT_TOKENS + config.response_length),
        read={"policy": 3, "reference": 1},
        rows=config.rows_read,
        epochs=config.num_train_epochs,
    )


def load_policies(config: DpoConfig, stage: Stage) -> tuple[Policy, Policy]:
    """The policy that is trained, and its reference: frozen, and with LoRA on the weights of the policy's
    base."""
    name, kwargs = config.model_name_or_path, config.chat_template_kwargs
    policy = Policy.load(name, stage.device, stage.dtype, kwargs, lora.weights_for(config))
    if config.ref_model or not config.lora_r:
        reference = Policy.load(config.ref_model or name, stage.device, stage.dtype, kwargs)
        share_weights(policy.model, reference.model)
    else:
        reference = Policy(twin(policy.model), policy.tokenizer, stage.dtype)
    policy.train_lora(name, config)
    return policy, reference


def train(
    policy: Policy,
    reference: Policy,
    data: PairSplits | ResponseSplits,
    prompts: Sequence[PromptRecord],
    config: DpoConfig,
    stage: Stage,
    saved: Checkpoint | None = None,
) -> None:
    """Fine-tunes the policy in place on pairs or on labelled responses, samples responses to ``prompts``, and
    finishes the stage."""
    load.freeze(reference.model)
    reference.offload = Offload(policy.device, config.offload)
    reference.offload.rest(reference.model, beside=[policy.model])
    # The tokens of the prompts are made before the training: what does not fit is found at once.
    policy.prompt_tokens([record.prompt for record in prompts], config.response_length)
    reference_hash = load.weights_hash(reference.model)
    same_start = config.ref_model is None or same_weights(policy.model, reference.model)
    if isinstance(data, ResponseSplits):
        limit = load.fitting_length(config.max_length, policy.model, reference.model)
        task = KtoTask(policy, reference, data, config, limit)
    else:
        task = PairTask(policy, reference, data, config)
    stage.say(f"{lora.describe(policy.model)}, {task.describe()}, loss {config.loss_type}")

    rng = random.Random(devices.derived_seed(config.seed, "dpo", "batches"))
    batches = plan_batches(task.lengths, config, rng)
    read = sorted(set(itertools.chain.from_iterable(batches)))  # part of an epoch reads part of the rows
    task.read_reference(read)
    unchecked = same_start and saved is None

    def step(numbers: Sequence[int]) -> tuple[torch.Tensor, Sums]:
        nonlocal unchecked
        loss, sums, log_ratios = task.step(numbers)
        if unchecked:
            check_first(log_ratios, policy.dtype)
            unchecked = False
        return loss, sums

    objective = Objective(policy.model, step, measure=task.measure, prepare=task.prepare, extent=task.extent)
    fitted = fit(objective, batches, config, stage, saved, measure_first=True)
    seen = sum(map(len, batches[: fitted.step]))

    summary = held_out_summary(fitted.last, len(data.dev))
    summary |= sample_check(config, stage, policy, reference, prompts)
    if load.weights_hash(reference.model) != reference_hash:
        raise DivergedError("dpo: the weights of the frozen reference have changed")
    lora.save_trained(policy.model, policy.tokenizer, stage.path, config.model_name_or_path)
    say_result(summary, stage, data)
    checks = ["weights of reference unchanged"]
    if same_start:
        checks.insert(
            0, f"log-ratios before the first update within {MAX_FIRST_LOG_RATIO[policy.dtype]:.0e} of 0"
        )
    cut = say_what_was_cut([policy], [], stage.say)
    stage.finish(
        **cut,
        **{data.unit: len(data.train)},
        updates=fitted.step,
        **data.counts,
        **summary,
        forward_passes=task.forward_passes(seen, len(read)),
        frozen_hashes={"reference": reference_hash},
        checks=checks,
    )


class PairTask:
    """What ``fit`` trains with a loss of ``LOSSES``: pairs, their reference and their measurements."""

    def __init__(self, policy: Policy, reference: Policy, pairs: PairSplits, config: DpoConfig):
        self.policy, self.reference, self.pairs, self.config = policy, reference, pairs, config
        self.reference_N2 = torch.zeros((len(pairs.train), 2))
        self.reference_dev_N2 = pair_logprobs(reference, pairs.dev, config)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training pair."""
        return [len(pair) for pair in self.pairs.train]

    def extent(self, number: int) -> Extent:
        """What a training pair is in a pass: two sequences."""
        pair = self.pairs.train[number]
        return Extent((len(pair.prompt), max(len(pair.chosen), len(pair.rejected))), 2)

    def describe(self) -> str:
        """The training set in a few words."""
        return f"{len(self.pairs.train):,} pairs"

    def read_reference(self, read: Sequence[int]) -> None:
        """The reference's log-probabilities of the pairs that train, once."""
        pairs = [self.pairs.train[i] for i in read]
        self.reference_N2[list(read)] = pair_logprobs(self.reference, pairs, self.config)

    def prepare(self, numbers: Sequence[int]) -> None:
        """A pair's loss needs nothing of the rest of its batch."""

    def step(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Sums, torch.Tensor]:
        """Summed loss of some pairs with its gradient, what is logged of them, and their log-ratios."""
        reference_B2 = self.reference_N2[list(numbers)]
        logp_B2 = trained_logprobs(self.policy, [self.pairs.train[i] for i in numbers], self.config)
        loss, sums = batch_loss(self.config, logp_B2, reference_B2)
        return loss, sums, logp_B2.detach().cpu() - reference_B2

    def measure(self) -> dict[str, float]:
        """The loss and its parts on the dev pairs."""
        if not self.pairs.dev:
            return {}
        logp_N2 = pair_logprobs(self.policy, self.pairs.dev, self.config)
        found = describe(self.config, logp_N2, self.reference_dev_N2)
        return {f"dev/{name}": value for name, value in found.items()}

    def forward_passes(self, seen: int, read: int) -> dict[str, int]:
        """Of each model, from the pairs that updates saw and the pairs that were read."""
        return {"policy_update": 3 * 2 * seen, "reference": 2 * read}


def check_options(config: DpoConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    lora.check_options(config)
    check_optim(config.optim)
    known = (*LOSSES, KTO)
    if config.loss_type not in known:
        raise UsageError(f"loss_type '{config.loss_type}' is unknown; use {', '.join(known)}")
    if config.loss_type != KTO:
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(config, name) is not None:
                raise UsageError(
                    f"{name} is of loss_type {KTO}; {config.loss_type} weighs pairs, which have both"
                )
        return
    if config.label_smoothing:
        raise UsageError(f"label_smoothing is of the losses of pairs; {KTO} has none, leave it out")
    if config.train_batch_size == 1:
        raise UsageError(
            "train_batch_size is 1: the reference point of kto is a mean over responses to the batch's "
            "other prompts, so a batch needs two rows at least"
        )


def check_vocabulary(policy: Policy, reference: Policy, config: DpoConfig) -> None:
    """Refuses a reference that reads other tokens than the policy.

    Raises:
        UsageError: the vocabularies differ.
    """
    if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UsageError(
            f"ref_model '{config.ref_model}' has another vocabulary than '{config.model_name_or_path}': "
            f"log-ratios need the same tokens; give a reference with the policy's tokenizer"
        )


# -------------------------------------------------------------------------------------------------- pairs


def read_pairs(config: DpoConfig, source: Source, policy: Policy, reference: Policy) -> PairSplits:
    """Training and dev pairs as token ids.

    Rankings come as all their ordered pairs; ties order nothing.

    Raises:
        DataError: no training pair is left.
    """
    if not source.train.pairs and source.train.rated:
        raise DataError(
            f"{source.missing('pairs', 'train')}. Or learn from single responses called good or bad with "
            f"--loss_type {KTO}"
        )
    train_pairs, dev_pairs = source.need("pairs", "train"), source.dev.pairs[: config.eval_pairs]
    sizes = [len(comparison.responses) for comparison in source.train.comparisons]
    ties = sum(K * (K - 1) // 2 for K in sizes) - len(train_pairs)
    max_length = load.fitting_length(config.max_length, policy.model, reference.model)
    train, dev = (
        [pair for row in rows if (pair := encode(policy.tokenizer, row, max_length, config.stop_sequences))]
        for rows in (train_pairs, dev_pairs)
    )
    if not train:
        raise DataError(
            f"'{config.dataset_name}' has no pair whose responses differ in their first tokens; "
            f"raise max_length ({config.max_length}), or look at the data"
        )
    counts = {
        "dev/pairs": len(dev),
        "ties_left_out": ties,
        "same_left_out": len(train_pairs) - len(train),
        "cut": sum(pair.cut for pair in train),
    }
    return PairSplits(train, dev, counts, held_out=source.own("dev") == source.dev)


def encode(tokenizer: Any, row: Pair, max_length: int, stop_texts: Sequence[str] = ()) -> EncodedPair | None:
    """A comparison as token ids; a response that was cut off while sampling, or ended by one of
    ``stop_texts``, carries no EOS: the policy did not write one.

    None where the two responses are the same tokens, as after cutting, or one has none: their log-ratios
    could teach nothing.
    """
    (prompt, chosen), (_, rejected) = (
        example_ids(
            tokenizer,
            row.prompt,
            text,
            row.columns.get(f"finished_{side}", True) and not any(stop in text for stop in stop_texts),
        )
        for side, text in (("chosen", row.chosen), ("rejected", row.rejected))
    )
    kept, (fit_chosen, fit_rejected) = cut_to_fit(tokenizer, prompt, [chosen, rejected], max_length)
    whole = (kept, fit_chosen, fit_rejected) == (prompt, chosen, rejected)
    pair = EncodedPair(kept, fit_chosen, fit_rejected, not whole)
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


def samples_of(pairs: Sequence[EncodedPair], pad_id: int, sampling: Sampling) -> Samples:
    """The chosen responses of all pairs, then the rejected ones, as an engine would have returned them."""
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return written_samples(prompts, responses, pad_id, sampling)


# --------------------------------------------------------------------------------------------------- loss


@torch.no_grad()
def pair_logprobs(policy: Policy, pairs: Sequence[EncodedPair], config: DpoConfig) -> torch.Tensor:
    """``logp_N2`` without gradients, in micro-batches of like length."""
    if not pairs:
        return torch.zeros(0, 2)
    samples = samples_of(pairs, policy.tokenizer.pad_token_id, policy.sampling(config))
    length_B = samples.attention_BS.sum(-1)
    size, tokens = 2 * config.micro_batch_size, config.micro_batch_tokens
    return whole_responses(policy.logprobs(samples, size, length_B, tokens))


def trained_logprobs(policy: Policy, pairs: Sequence[EncodedPair], config: DpoConfig) -> torch.Tensor:
    """``logp_B2`` on the policy's device, with the graph that gradients need."""
    samples = samples_of(pairs, policy.tokenizer.pad_token_id, policy.sampling(config))
    with devices.autocast(policy.device, policy.dtype):
        return whole_responses(policy_logprobs(policy.model, samples))


def whole_responses(logp_BT: torch.Tensor) -> torch.Tensor:
    """``logp_N2``: log-probabilities of the chosen and of the rejected response of each pair, sums over their
    tokens, from rows in the order of ``samples_of``."""
    return logp_BT.float().sum(-1).view(2, -1).T


def batch_loss(
    config: DpoConfig, logp_B2: torch.Tensor, reference_B2: torch.Tensor
) -> tuple[torch.Tensor, Sums]:
    """Summed loss of some pairs, and what is logged of them."""
    n, found = len(logp_B2), describe(config, logp_B2.detach().cpu(), reference_B2)
    sums = {f"train/{name}": (value * n, n) for name, value in found.items()}
    return losses_of(config, logp_B2, reference_B2.to(logp_B2.device)).sum(), sums


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
    return held_out | Estimate(
        held_out["dev/accuracy"], *wilson_interval(held_out["dev/accuracy"] * n, n)
    ).named("dev/accuracy")


def sample_check(
    config: DpoConfig, stage: Stage, policy: Policy, reference: Policy, prompts: Sequence[PromptRecord]
) -> dict[str, Any]:
    """Responses of the trained policy to dev prompts: KL to the reference, length, share with EOS."""
    if not prompts:
        return {}
    made = policy.respond(prompts, 1, devices.generator(config.seed, "dpo", "check"), config)
    size, tokens = 2 * config.micro_batch_size, config.micro_batch_tokens
    reference_BT = reference.logprobs(made.samples, size, tokens=tokens)
    kl_B = (made.samples.logp_BT - reference_BT).sum(-1)
    stage.log_samples(
        {"prompt": prompt_text(p), "response": r, "finished": f, "kl": kl}
        for p, r, f, kl in zip(made.prompts, made.completions, made.finished, kl_B.tolist(), strict=True)
    )
    return {
        "dev/samples": len(prompts),
        **mean_interval(kl_B.double().numpy()).named("dev/kl"),
        "dev/eos_rate": made.eos_rate,
        "dev/length": made.mean_length,
    }


def say_result(summary: dict[str, Any], stage: Stage, data: PairSplits | ResponseSplits) -> None:
    if "dev/accuracy" in summary:
        accuracy = Estimate.read(summary, "dev/accuracy").text(".1%")
        which = f"held-out {data.unit}" if data.held_out else f"{data.unit} that trained"
        ordered = "ordered" if data.unit == "pairs" else "on their side of the reference point"
        stage.say(f"{which} {ordered} as labelled {accuracy}, loss {summary['dev/loss']:.3f}")
    if "dev/kl" in summary:
        stage.say(
            f"KL {summary['dev/kl']:.2f} nats per response, EOS {summary['dev/eos_rate']:.1%}, "
            f"length {summary['dev/length']:.1f}"
        )
