"""sft: supervised fine-tuning on demonstrations; the model everything else starts from.

Loss on the response only (EOS included), batches padded by length bucket, cosine schedule, loss on held-out
(dev) demonstrations. Without ``model_name_or_path`` a byte-level BPE tokenizer and a small Llama are made
first.

preferl sft --model_name_or_path Qwen/Qwen3-0.6B --dataset_name demonstrations.jsonl
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from preferl.data import sources
from preferl.data.records import DataError, Demonstration, prompt_text
from preferl.data.sources import Source
from preferl.data.tokens import Extent, cut_to_fit, example_ids, pad, parts_that_fit, rendering_notes
from preferl.judging.scorers import say_what_was_cut
from preferl.learning import defaults
from preferl.learning.fit import EXTENDABLE, Objective, Sums, fit, plan_batches
from preferl.learning.optim import check_optim
from preferl.models import load, lora, plan, tiny
from preferl.models.output_head import by_parts, head_for, states_before
from preferl.options.sft import SftConfig
from preferl.runs import devices, distributed
from preferl.runs.checkpoint import Checkpoint
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.memory import refuse_too_large
from preferl.runs.stage import Callback, Stage
from preferl.sampling.policy import Policy

IGNORED = -100  # label of positions that carry no loss
LEARNT_BY_HEART = 1.05  # times the lowest loss of held-out rows


def run(config: SftConfig, fresh: bool | str = False, callbacks: Sequence[Callback] = ()) -> Path:
    """Trains, saves ``model/`` and writes metrics and samples; returns the stage's directory."""
    check_options(config)
    config = with_data_set(config)
    with Stage("sft", config, fresh, callbacks, EXTENDABLE) as stage:
        if stage.is_finished:
            return stage.path
        load.refuse_absent(config.model_name_or_path)
        config = plan.settled(config, stage, work_of)
        source = sources.load_source(**config.source()).training_on(config.split)
        policy = starting_policy(config, source, stage)
        source = load.read_by(source, [policy.tokenizer])
        start = defaults.start_of(policy.model, config.model_name_or_path, bool(config.lora_r))
        config = defaults.completed("sft", config, start, stage)
        saved = stage.begin([*source.notes, *policy.notes])
        train(policy, source, config, stage, saved)
    return stage.path


def check_options(config: SftConfig) -> None:
    """Refuses what cannot work, before anything is loaded."""
    lora.check_options(config)
    check_optim(config.optim)
    if config.model_name_or_path:
        return
    if config.lora_r:
        raise UsageError(
            "lora_r trains a little beside a model that is there: give --model_name_or_path, or leave lora_r "
            "out"
        )
    if config.hidden_size % config.num_heads:
        raise UsageError(f"hidden_size {config.hidden_size} is no multiple of num_heads {config.num_heads}")
    least = config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
    refuse_too_large(4 * least, "a model of these vocab_size, hidden_size and num_layers")


def work_of(config: SftConfig) -> plan.Work:
    """What is planned for."""
    config = defaults.with_batches("sft", config)
    checked = min(config.check_samples, config.sampling_batch_size)
    return plan.Work(
        roles=plan.role("policy", config.model_name_or_path, trained=True),
        row_tokens=config.max_length,
        length=config.max_length,
        batch_rows=config.train_batch_size,
        cached_tokens=checked * (plan.PROMPT_TOKENS + config.response_length),
        read={"policy": 3},
        rows=config.rows_read,
        epochs=config.num_train_epochs,
    )


def starting_policy(config: SftConfig, source: Source, stage: Stage) -> Policy:
    """The model to fine-tune, or a new one with a tokenizer trained on the demonstrations."""
    if config.model_name_or_path:
        policy = Policy.load(
            config.model_name_or_path,
            stage.device,
            stage.dtype,
            config.chat_template_kwargs,
            lora.weights_for(config),
        )
        policy.train_lora(config.model_name_or_path, config)
        return policy
    rows = source.need("demonstrations", "train")
    texts = [text for row in rows for text in (prompt_text(row.prompt), row.response)]
    tokenizer = tiny.train_tokenizer(texts, config.vocab_size)
    model = tiny.tiny_model(
        tokenizer, config.hidden_size, config.num_layers, config.num_heads, config.max_length
    )
    return Policy(model.to(stage.device).eval(), tokenizer, stage.dtype)


def train(
    policy: Policy, source: Source, config: SftConfig, stage: Stage, saved: Checkpoint | None = None
) -> None:
    """Fine-tunes the policy in place on the source's demonstrations and finishes the stage."""
    max_length = load.fitting_length(config.max_length, policy.model)
    encoded = encode(policy.tokenizer, source.need("demonstrations", "train"), max_length)
    rows, cuts = encoded.rows, encoded.counts
    held_out = encode(policy.tokenizer, source.dev.demonstrations[: config.eval_rows], max_length).rows
    if not rows:
        raise DataError(
            f"no demonstration of '{source.name}' has a token of its response within "
            f"max_length ({max_length})"
        )
    for note in [*cut_notes(cuts, len(rows), max_length), *rendering_notes(policy.tokenizer)]:
        stage.say(note)
    stage.say(f"{lora.describe(policy.model)}, {len(rows):,} demonstrations")

    def loss_of(part: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        with devices.autocast(policy.device, policy.dtype):
            return response_loss(policy.model, *tensors(part, policy.tokenizer.pad_token_id, policy.device))

    def step(numbers: Sequence[int]) -> tuple[torch.Tensor, Sums]:
        return loss_of([rows[i] for i in numbers])[0], {}

    @torch.no_grad()
    def measure() -> dict[str, float]:
        """Mean loss per response token on held-out demonstrations."""
        total_2 = torch.zeros(2, dtype=torch.float64)
        ordered = distributed.shard(sorted(held_out, key=lambda row: len(row[0])))
        extents = [Extent((len(ids),)) for ids, _ in ordered]
        for part in parts_that_fit(extents, config.train_batch_size, config.micro_batch_tokens):
            loss, count = loss_of(ordered[part])
            total_2 += torch.tensor([float(loss), int(count)], dtype=torch.float64)
        loss, count = distributed.all_reduce(total_2).tolist()
        return {"dev/loss": loss / count} if count else {}

    objective = Objective(
        model=policy.model,
        step=step,
        # The first token of all has nothing before it that could predict it.
        count=lambda numbers: sum(len(rows[i][0]) - max(rows[i][1], 1) for i in numbers),
        measure=measure,
        extent=lambda i: Extent((len(rows[i][0]),)),
    )
    rng = random.Random(devices.derived_seed(config.seed, "sft", "batches"))
    batches = plan_batches([len(ids) for ids, _ in rows], config, rng)
    fitted = fit(objective, batches, config, stage, saved)
    lowest, last = fitted.best_loss, fitted.last.get("dev/loss", 0.0)
    if last > LEARNT_BY_HEART * lowest:
        stage.say(
            f"the loss of held-out demonstrations was lowest after update {fitted.best_step} of "
            f"{fitted.step} ({lowest:.3g}) and ended at {last:.3g}: the model learns its rows by heart; take "
            f"fewer num_train_epochs (now {config.num_train_epochs:g}), or more rows"
        )
    base = config.model_name_or_path or ""  # a new model has no adapter
    policy.model = lora.save_trained(policy.model, policy.tokenizer, stage.path, base)
    checked = check(policy, source, config, stage)
    cut = say_what_was_cut([policy], [], stage.say)
    stage.finish(
        **cut,
        parameters=load.parameter_count(policy.model),
        demonstrations=len(rows),
        **{name: n for name, n in cuts.items() if n},
        updates=fitted.step,
        **fitted.last,
        **checked,
    )


@dataclass(frozen=True)
class Encoded:
    """Demonstrations as (token ids, number of prompt tokens), and how many of them lost something."""

    rows: list[tuple[list[int], int]]
    counts: dict[str, int]


def encode(tokenizer: Any, demonstrations: Sequence[Demonstration], max_length: int) -> Encoded:
    """Each demonstration as (token ids, number of prompt tokens).

    What is too long loses the oldest half of the room from its prompt, then the end of its response.
    """
    rows, counts = [], {"cut_prompts": 0, "cut_responses": 0, "without_response": 0}
    for demonstration in demonstrations:
        prompt, response = example_ids(tokenizer, demonstration.prompt, demonstration.response)
        kept, (learnt,) = cut_to_fit(tokenizer, prompt, [response], max_length)
        if not learnt:
            counts["without_response"] += 1
            continue
        counts["cut_prompts"] += len(kept) < len(prompt)
        counts["cut_responses"] += len(learnt) < len(response)
        rows.append((kept + learnt, len(kept)))
    return Encoded(rows, counts)


def cut_notes(counts: dict[str, int], rows: int, max_length: int) -> list[str]:
    """What did not fit, in sentences."""
    notes = []
    if counts["cut_prompts"]:
        notes.append(
            f"{counts['cut_prompts']:,} of {rows:,} prompts were cut to fit max_length ({max_length}): they "
            f"have lost their beginning, a system message first"
        )
    if counts["cut_responses"]:
        notes.append(
            f"{counts['cut_responses']:,} of {rows:,} responses were cut at max_length ({max_length}): they "
            f"teach no end"
        )
    if counts["without_response"]:
        notes.append(f"left out {counts['without_response']:,} demonstrations without a token to learn")
    return notes


def tensors(
    rows: Sequence[tuple[list[int], int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``ids_BS``, ``mask_BS`` and ``label_BS`` (the response's ids, IGNORED elsewhere), right-padded."""
    ids_BS, mask_BS = pad([ids for ids, _ in rows], pad_id, "right")
    label_BS = ids_BS.masked_fill(mask_BS == 0, IGNORED)
    for i, (_, prompt_length) in enumerate(rows):
        label_BS[i, :prompt_length] = IGNORED
    return ids_BS.to(device), mask_BS.to(device), label_BS.to(device)


def response_loss(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, label_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of the response tokens in nats, and how many there are. Of many tokens only those
    of responses go through the vocabulary, some at a time."""
    head, target_BS = head_for(model, label_BS.numel()), label_BS[:, 1:]
    is_response_BS = target_BS != IGNORED
    if head is None:
        logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
        loss = F.cross_entropy(
            logits_BSV[:, :-1].flatten(0, 1).float(),
            target_BS.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        return loss, is_response_BS.sum()
    with states_before(model) as seen:
        model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)
    target_N = target_BS[is_response_BS]

    def losses(states_nD: torch.Tensor, place_n: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(states_nD), target_N[place_n], reduction="none")

    return by_parts(head, seen[0][:, :-1][is_response_BS], losses).sum(), is_response_BS.sum()


def check(policy: Policy, source: Source, config: SftConfig, stage: Stage) -> dict[str, Any]:
    """Samples responses to dev prompts: share with EOS, and in the world share that is well-formed too."""
    prompts = source.dev.prompts[: config.check_samples]
    if not prompts:
        return {}
    made = policy.respond(prompts, 1, devices.generator(config.seed, "sft", "check"), config)
    rows = [
        {"prompt": prompt_text(p), "response": r, "finished": f}
        for p, r, f in zip(made.prompts, made.completions, made.finished, strict=True)
    ]
    summary: dict[str, Any] = {
        "dev/samples": len(rows),
        "dev/eos_rate": made.eos_rate,
        "dev/length": made.mean_length,
    }
    line = f"{len(rows)} sampled responses: {made.eos_rate:.1%} end with EOS"
    if source.well_formed is not None:
        for row in rows:
            row["well_formed"] = row["finished"] and source.well_formed(row["prompt"], row["response"])
        share = sum(row["well_formed"] for row in rows) / len(rows)
        summary["dev/well_formed_rate"] = share
        line += f", {share:.1%} parse as well-formed and end with EOS"
    stage.say(line)
    stage.log_samples(rows)
    return summary
