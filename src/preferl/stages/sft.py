"""sft: supervised fine-tuning on demonstrations; the model everything else starts from.

Loss on the response only (EOS included), batches padded by length bucket, cosine schedule, loss on held-out
(dev) demonstrations. Without ``model_name_or_path`` a byte-level BPE tokenizer and a small Llama are made
first.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from preferl import world
from preferl.data import sources
from preferl.data.records import Demonstration, prompt_text
from preferl.data.sources import Source
from preferl.data.tokens import endless_buckets, pad, prompt_ids, response_ids
from preferl.learning.optim import adamw, clip_and_step, schedule
from preferl.models import load, tiny
from preferl.runs import devices
from preferl.runs.config import DataOptions, DeviceOptions, OptimOptions, SamplingOptions
from preferl.runs.directory import StageDirectory
from preferl.runs.errors import UsageError
from preferl.runs.progress import Steps, say
from preferl.sampling.cached import CachedEngine
from preferl.sampling.policy import fitting_prompt_ids, generate, sampling_for

IGNORED = -100  # label of positions that carry no loss


@dataclass(kw_only=True)
class SftConfig(OptimOptions, SamplingOptions, DataOptions, DeviceOptions):
    """Options of the sft stage."""

    output_dir: str = "runs/sft"
    """Where the stage is written."""
    model_name_or_path: str | None = None
    """Model to fine-tune; without it a small one is made from the sizes below."""
    vocab_size: int = 2048
    """Tokens of the vocabulary of a new tokenizer."""
    hidden_size: int = 160
    """Width of a new model."""
    num_layers: int = 2
    """Layers of a new model."""
    num_heads: int = 8
    """Attention heads of a new model."""
    max_length: int = 512
    """Longest (prompt + response) in tokens; longer responses are cut, and then end without EOS."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW (1e-5 to 5e-5 suits a pretrained model)."""
    lr_end_factor: float = 0.05
    """The learning rate decays to this fraction of its peak."""
    adam_beta2: float = 0.99
    """Decay of AdamW's second moment."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    num_train_epochs: float = 5.0
    """Passes over the training demonstrations."""
    train_batch_size: int = 32
    """Demonstrations in one update."""
    eval_rows: int = 256
    """Held-out demonstrations for the loss."""
    num_evals: int = 10
    """How often the held-out loss is measured."""
    check_samples: int = 256
    """Responses sampled afterwards, to see that they are well-formed and end with EOS."""


def run(config: SftConfig, fresh: bool = False) -> Path:
    """Trains, saves ``model/`` and writes metrics and samples; returns the stage's directory."""
    stage = StageDirectory(Path(config.output_dir), "sft")
    options = dataclasses.asdict(config)
    if stage.settled(options, fresh):
        say(f"sft: finished before in {stage.path}")
        return stage.path
    device, dtype = devices.setup(config.seed, config.device, config.dtype, config.num_threads)
    source = sources.load_source(**config.source())
    stage.begin(options, {"model": config.model_name_or_path})
    for note in source.notes:
        say(f"sft: {note}")

    model, tokenizer = starting_model(config, source, device)
    train = encode(tokenizer, source.need("demonstrations", "train"), config.max_length)
    held_out = encode(tokenizer, source.demonstrations["dev"], config.max_length)
    held_out = held_out[: config.eval_rows]
    say(f"sft: {load.parameter_count(model):,} parameters, {len(train):,} demonstrations")

    updates = max(1, round(config.num_train_epochs * len(train) / config.train_batch_size))
    optimizer = adamw(model.parameters(), config)
    scheduler = schedule(optimizer, config, updates)
    rng = random.Random(devices.derived_seed(config.seed, "sft", "batches"))
    batches = endless_buckets([len(ids) for ids, _ in train], config.train_batch_size, rng)
    eval_every = max(1, updates // config.num_evals)
    tokens = 0
    with Steps("sft", updates) as steps:
        for update in range(1, updates + 1):
            rows = [train[i] for i in next(batches)]
            ids_BS, mask_BS, label_BS = tensors(rows, tokenizer.pad_token_id, device)
            with devices.autocast(device, dtype):
                loss_sum, count = response_loss(model, ids_BS, mask_BS, label_BS)
            loss = loss_sum / count
            loss.backward()
            norm = clip_and_step(optimizer, config.max_grad_norm, f"sft update {update}")
            scheduler.step()
            tokens += int(mask_BS.sum())
            row = {"step": update, "loss": loss, "grad_norm": norm, "tokens": tokens}
            if held_out and (update % eval_every == 0 or update == updates):
                row["eval_loss"] = held_out_loss(model, tokenizer, held_out, config, device, dtype)
            stage.log(**row, learning_rate=scheduler.get_last_lr()[0])
            steps.advance(loss=loss.item())

    load.save(model, tokenizer, stage.model)
    summary = check(model, tokenizer, source, config, stage, device, dtype)
    stage.finish(
        parameters=load.parameter_count(model),
        demonstrations=len(train),
        updates=updates,
        eval_loss=held_out_loss(model, tokenizer, held_out, config, device, dtype),
        peak_memory_mib=devices.peak_memory_mib(device),
        notes=source.notes,
        **summary,
    )
    return stage.path


def starting_model(config: SftConfig, source: Source, device: torch.device) -> tuple[Any, Any]:
    """The model to fine-tune, or a new one with a tokenizer trained on the demonstrations."""
    if config.model_name_or_path:
        return load.load_policy(config.model_name_or_path, device)
    if config.hidden_size % config.num_heads:
        raise UsageError(f"hidden_size {config.hidden_size} is no multiple of num_heads {config.num_heads}")
    rows = source.need("demonstrations", "train")
    texts = [text for row in rows for text in (prompt_text(row.prompt), row.response)]
    tokenizer = tiny.train_tokenizer(texts, config.vocab_size)
    model = tiny.tiny_model(
        tokenizer, config.hidden_size, config.num_layers, config.num_heads, config.max_length
    )
    return model.to(device).eval(), tokenizer


def encode(
    tokenizer: Any, demonstrations: Sequence[Demonstration], max_length: int
) -> list[tuple[list[int], int]]:
    """Each demonstration as (token ids, number of prompt tokens).

    What is too long loses the oldest half of the room from its prompt, then the end of its response.
    """
    rows = []
    for demonstration in demonstrations:
        prompt = prompt_ids(tokenizer, demonstration.prompt)
        response = response_ids(tokenizer, demonstration.response)
        prompt = prompt[-max(max_length - len(response), max_length // 2) :]
        rows.append(((prompt + response)[:max_length], len(prompt)))
    return rows


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
    """Summed cross-entropy of the response tokens in nats, and how many there are."""
    logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    loss = F.cross_entropy(
        logits_BSV[:, :-1].flatten(0, 1).float(),
        label_BS[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return loss, (label_BS[:, 1:] != IGNORED).sum()


@torch.no_grad()
def held_out_loss(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[list[int], int]],
    config: SftConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> float | None:
    """Mean loss per response token on held-out demonstrations; None where there are none."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(ordered), config.train_batch_size):
        part = ordered[start : start + config.train_batch_size]
        with devices.autocast(device, dtype):
            loss, n = response_loss(model, *tensors(part, tokenizer.pad_token_id, device))
        total, count = total + float(loss), count + int(n)
    return total / count if count else None


def check(
    model: Any,
    tokenizer: Any,
    source: Source,
    config: SftConfig,
    stage: StageDirectory,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Samples responses to dev prompts: share with EOS, and in the world share that is well-formed too."""
    prompts = source.prompts["dev"][: config.check_samples]
    if not prompts:
        return {}
    engine = CachedEngine(model, tokenizer.pad_token_id, config.sampling_batch_size, dtype)
    made = generate(
        engine,
        tokenizer,
        prompts,
        fitting_prompt_ids(tokenizer, prompts, model, config.response_length),
        sampling_for(tokenizer, config),
        devices.generator(config.seed, "sft", "check"),
    )
    rows = [
        {"prompt": prompt_text(p), "response": r, "finished": f}
        for p, r, f in zip(made.prompts, made.completions, made.finished, strict=True)
    ]
    summary: dict[str, Any] = {
        "samples": len(rows),
        "eos_rate": made.eos_rate,
        "length": made.mean_length,
    }
    line = f"sft: {len(rows)} sampled responses: {made.eos_rate:.1%} end with EOS"
    if config.dataset_name == "world":
        for row in rows:
            formed = world.well_formed(row["prompt"], row["response"])
            row["well_formed"] = formed and row["finished"]
        share = sum(row["well_formed"] for row in rows) / len(rows)
        summary["well_formed_rate"] = share
        line += f", {share:.1%} parse as well-formed and end with EOS"
    say(line)
    stage.log_samples(rows)
    return summary
