"""One GPU, in under four minutes: is it right, does it go on, does the plan hold, how fast is it?

    python benchmarks/gpu.py [--output gpu.json] [--peak_tflops 989] [--device cuda] [--small]

A model of Qwen2.5-0.5B's shape with random weights is made on the spot, and sft, reward and rl run on rows
made to fill their length. What is written and printed: the largest difference between log-probabilities from
the cache and from a plain pass; whether an interrupted sft goes on to the same weights; the plan beside the
peak of each stage; tokens a second, and MFU: 6 N operations for each token of an update (2 N for one that is
sampled or only read), over ``--peak_tflops`` (dense bfloat16 of an H100; on a CPU it means nothing).
``--small`` is a model of a few million parameters, so that the script itself can be tried without a GPU:
``--device cpu --small``.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from preferl.models import load, plan, shapes, tiny
from preferl.runs import devices
from preferl.sampling.policy import Policy
from preferl.stages import reward, rl, sft

SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = SHAPE | {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 100_000,
}  # fmt: skip
TEXT = "The quick brown fox jumps over the lazy dog. "
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="gpu.json")
    parser.add_argument("--peak_tflops", type=float, default=989.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = devices.chosen_device(options.device)
    found: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "small": options.small}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = made_model(folder, SMALL if options.small else SHAPE)
        length, updates, rows = (64, 3, 4) if options.small else (512, 6, 16)
        found["logprobs"] = logprob_error(model, options.device)
        common = {"model_name_or_path": str(model), "device": options.device, "learning_rate": 1e-5}
        fit = common | {
            "max_length": length, "train_batch_size": rows, "num_evals": 1, "save_every": 0,
            "max_steps": updates,
        }  # fmt: skip
        pairs = written(folder / "pairs.jsonl", "chosen", "rejected", length=length)
        texts = written(folder / "texts.jsonl", "completion", length=length)
        trained = sft.SftConfig(**fit, dataset_name=texts, check_samples=0, output_dir=str(folder / "sft"))
        found["resume"] = goes_on(trained, folder)
        scored = reward.RewardConfig(**fit, dataset_name=pairs, audit=False, output_dir=str(folder / "rm"))
        sampled = rl.RlConfig(
            **common, dataset_name=texts, reward_model="length", value_model="policy", eval_every=0,
            save_every=0, num_iterations=updates, batch_size=4 * rows, response_length=length // 2,
            output_dir=str(folder / "rl"),
        )  # fmt: skip
        tokens = {"sft": rows * length, "reward": 2 * rows * length}
        for stage, module, config in (("sft", sft, trained), ("reward", reward, scored), ("rl", rl, sampled)):
            found[stage] = speed(module, config, tokens.get(stage), options.peak_tflops)
            print(stage, json.dumps(found[stage]), flush=True)
    found["seconds"] = round(time.perf_counter() - started, 1)
    Path(options.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def made_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A model with random weights, and a tokenizer of few tokens."""
    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer([TEXT], 300)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **ids, bos_token_id=None, max_position_embeddings=4096))
    load.save(model, tokenizer, folder / "model")
    return folder / "model"


def written(path: Path, *sides: str, length: int) -> str:
    """Rows whose responses fill a length; the sides of a pair differ."""
    rows = []
    for i in range(400):
        row = {"prompt": f"Say it {i} times."}
        for k, side in enumerate(sides):
            row[side] = f"{i + k} " + TEXT * length
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def logprob_error(model: Path, device: str) -> dict[str, float]:
    """Sampled log-probabilities beside those of a plain pass, by dtype."""
    found = {}
    kinds = ("float32", "bfloat16") if device != "cpu" else ("float32",)
    for dtype in kinds:
        policy = Policy.load(str(model), device, dtype)
        made = policy.respond([f"Say {i}." for i in range(16)], n=2, response_length=32)
        error_BT = (policy.logprobs(made.samples) - made.samples.logp_BT) * made.samples.mask_BT
        found[dtype] = float(error_BT.abs().max())
    return found


class Stop(Exception):
    """An interruption."""


def goes_on(config: sft.SftConfig, folder: Path) -> dict[str, Any]:
    """Whether a run that is interrupted after its second update ends at the weights of one that is not."""
    once = dataclasses.replace(config, max_steps=4, save_every=1, output_dir=str(folder / "whole"))
    twice = dataclasses.replace(once, output_dir=str(folder / "interrupted"))

    def stop(step: int | None, row: dict[str, Any]) -> None:
        if step == 3:
            raise Stop

    sft.run(once)
    try:
        sft.run(twice, callbacks=[stop])
    except Stop:
        sft.run(twice)
    hashes = [
        load.weights_hash(load.load_policy(str(folder / name), torch.device("cpu"))[0])
        for name in ("whole", "interrupted")
    ]
    return {"same_weights": hashes[0] == hashes[1]}


def speed(module: Any, config: Any, tokens: int | None, peak_tflops: float) -> dict[str, float]:
    """Runs a stage; GiB of its plan and of its peak, tokens a second, MFU, without the first two updates."""
    device = devices.chosen_device(config.device)
    dtype = devices.chosen_dtype(config.dtype, config.device)
    work, machine = module.work_of(config), plan.Machine.here(device)
    planned = {} if shapes.is_small(work.roles[0].config) else {"plan_gib": round(
        plan.plan(work, plan.Levers.of(config), dtype, machine).total / GIB, 2
    )}  # fmt: skip
    parameters = shapes.shape_of(work.roles[0].config).parameters
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times, rates = [], []

    def note(step: int | None, row: dict[str, Any]) -> None:
        if step:
            times.append(time.perf_counter())
            rates.append((row.get("tokens_per_second"), row.get("seconds")))

    path = module.run(config, callbacks=[note])
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    if tokens is not None:
        each = (times[-1] - times[1]) / max(len(times) - 2, 1)
        per_second, operations = tokens / each, 6.0
    else:
        per_second = sum(rate for rate, _ in rates[2:]) / max(len(rates[2:]), 1)
        # Of each response token: sampled or read, and trained in every epoch, by policy and critic; read by
        # the reference.
        operations = 2.0 * sum(work.read.get(role.name, 1.0) for role in work.roles)
    mfu = operations * parameters * per_second / (peak_tflops * 1e12)
    peak = round(summary["peak_memory_mib"] / 1024, 2)
    return planned | {"peak_gib": peak, "tokens_per_second": round(per_second, 1), "mfu": round(mfu, 4)}


if __name__ == "__main__":
    main()
