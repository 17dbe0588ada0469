"""Memory: what the plan says that a stage takes, beside what it took.

    python benchmarks/memory.py --model DIR [--settings "sft, LoRA" …] [--length 512] [--updates 2]

Each setting is a stage in a process of its own, on rows made to fill ``--length``. Both numbers are GiB
beyond what the process had after its imports: the plan of ``models.plan``, and the peak of its resident
memory; ``in all`` is that peak with the imports. Exits with 1 where a plan is off by more than a fifth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LORA = {"lora_r": 8}
QLORA = LORA | {"load_in_4bit": True}
EIGHT_BIT = {"optim": "adamw_8bit"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft, LoRA": ("sft", LORA),
    "sft, full": ("sft", {}),
    "sft, full, checkpointing": ("sft", {"gradient_checkpointing": True}),
    "sft, full, 8-bit": ("sft", EIGHT_BIT),
    "sft, QLoRA": ("sft", QLORA),
    "dpo, LoRA": ("dpo", LORA),
    "dpo, full": ("dpo", {}),
    "reward, LoRA": ("reward", LORA),
    "reward, full": ("reward", {}),
    "rl, ppo, LoRA": ("rl", LORA | {"algorithm": "ppo"}),
    "rl, rloo, full": ("rl", {"algorithm": "rloo"}),
    "rl, ppo, full, 8-bit": ("rl", EIGHT_BIT | {"algorithm": "ppo"}),
}
TOLERANCE = 0.2
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a causal language model's directory")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--child", help="for itself: run this setting here")
    parser.add_argument("--folder", help="for itself: where rows and stages are written")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options)))
        return 0
    print(f"{'setting':<26}{'plan':>8}{'peak':>8}{'off by':>8}{'in all':>8}", flush=True)
    worst = 0.0
    for setting in options.settings:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *sys.argv, "--child", setting, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{setting:<26} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            worst = float("inf")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        error = found["plan"] / found["peak"] - 1
        worst = max(worst, abs(error))
        print(
            f"{setting:<26}{found['plan']:>8.2f}{found['peak']:>8.2f}{error:>+8.0%}{found['all']:>8.2f}",
            flush=True,
        )
    return int(worst > TOLERANCE)


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Runs a setting in this process; GiB of its plan and of its peak."""
    import importlib

    import torch

    from preferl.models import plan
    from preferl.runs import devices

    stage, changes = SETTINGS[options.child]
    module = importlib.import_module(f"preferl.stages.{stage}")
    if "lora_r" in changes:
        importlib.import_module("peft")
    if changes.get("load_in_4bit") or changes.get("optim") == "adamw_8bit":
        importlib.import_module("bitsandbytes")
    folder = Path(options.folder)
    config = config_of(module, stage, changes, options, folder)
    machine = plan.Machine.here(devices.chosen_device(config.device))
    found = plan.plan(module.work_of(config), plan.Levers.of(config), torch.float32, machine)
    before = resident("VmRSS")
    module.run(config)
    in_all = resident("VmHWM")
    planned = found.total + machine.process - before
    return {"plan": planned / GIB, "peak": (in_all - before) / GIB, "all": in_all / GIB}


def config_of(
    module: Any, stage: str, changes: dict[str, Any], options: argparse.Namespace, folder: Path
) -> Any:
    """A stage's options, with data that fills its rows."""
    words = " ".join(f"word{i} and" for i in range(options.length))
    question = f"Say this again: {' '.join(words.split()[:40])}"
    rows = {
        "sft": [{"prompt": f"{question} {i}", "completion": words} for i in range(24)],
        "rl": [{"prompt": f"{question} {i}"} for i in range(80)],
    }.get(
        stage, [{"prompt": f"{question} {i}", "chosen": words, "rejected": f"No. {words}"} for i in range(24)]
    )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kind = module.config_class("ppo") if stage == "rl" else getattr(module, f"{stage.title()}Config")
    own: dict[str, Any] = {
        "rl": {
            "num_iterations": options.updates,
            "batch_size": 16,
            "num_ppo_epochs": 1,
            "reward_model": "length",
            "value_model": "policy",
            "eval_every": 0,
            "response_length": 64,
            "save_every": 0,
        }
    }.get(
        stage,
        {
            "max_steps": options.updates,
            "train_batch_size": 4,
            "num_evals": 1,
            "max_length": options.length,
            "save_every": 0,
        },
    )
    if stage in ("sft", "dpo"):
        own["check_samples"] = 4
    return kind(
        output_dir=str(folder / stage),
        dataset_name=str(path),
        model_name_or_path=options.model,
        learning_rate=1e-6,
        device="cpu",
        **own | changes,
    )


def resident(name: str) -> int:
    """Bytes of this process in memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not say how much memory a process has")


if __name__ == "__main__":
    raise SystemExit(main())
