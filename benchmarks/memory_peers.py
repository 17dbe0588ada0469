"""Memory and time beside TRL, on one model and the same work: LoRA of rank 16, float32, on the CPU.

    python benchmarks/memory_peers.py --model DIR [--jobs sft dpo …] [--trl112 FOLDER] [--updates 2]

Every side of a job is a process of its own, one after the other; peaks are the kernel's (``ru_maxrss``), with
interpreter and libraries in them. Both sides have the same rows, batch, lengths and number of updates, and
otherwise their own defaults. TRL 1.16 has no PPO: ``--trl112`` is a folder with its last release that has
(``pip install --no-deps --target FOLDER trl==1.12.0``); without it that job shows ours alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GIB = 2**30
LENGTH, BATCH = 512, 8
PROMPTS, GROUP, NEW = 16, 4, 64  # of RLOO; PPO has PROMPTS * GROUP prompts
JOBS = ("sft", "dpo", "reward", "rloo", "ppo")
OURS: dict[str, list[str]] = {
    "sft": ["sft", f"--train_batch_size={BATCH}", f"--max_length={LENGTH}", "--check_samples=0"],
    "dpo": ["dpo", f"--train_batch_size={BATCH}", f"--max_length={LENGTH}", "--check_samples=0"],
    "reward": ["reward", f"--train_batch_size={BATCH}", f"--max_length={LENGTH}", "--audit=false"],
    "rloo": ["rl", "--algorithm=rloo", f"--num_generations={GROUP}"],
    "ppo": ["rl", "--algorithm=ppo", "--value_model=policy"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a causal language model's directory")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS))
    parser.add_argument("--trl112", help="a folder with TRL 1.12")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--child", help="for itself: TRL's side of this job")
    parser.add_argument("--folder", help="for itself: where the rows are")
    options = parser.parse_args()
    if options.child:
        trl_side(options.child, options.model, Path(options.folder), options.updates)
        return 0
    columns = f"{'job':<8}{'preferl GiB':>12}{'TRL GiB':>9}{'ratio':>7}{'preferl CPU s':>15}{'TRL CPU s':>11}"
    print(columns, flush=True)
    for job in options.jobs:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), options.model)
            ours = peak(our_command(job, options, Path(folder)), {}, Path(folder) / "ours.log")
            there = job != "ppo" or options.trl112
            theirs = None
            if there:
                command = [sys.executable, *sys.argv, "--child", job, "--folder", folder]
                path = {"PYTHONPATH": options.trl112} if job == "ppo" else {}
                theirs = peak(command, path, Path(folder) / "trl.log")
        print(line(job, ours, theirs), flush=True)
    return 0


Measured = tuple[float, float]


def line(job: str, ours: Measured, theirs: Measured | None) -> str:
    text = f"{job:<8}{ours[0]:>12.2f}"
    if theirs is None:
        return text + f"{'none':>9}{'':>7}{ours[1]:>15.0f}"
    return text + f"{theirs[0]:>9.2f}{ours[0] / theirs[0]:>7.2f}{ours[1]:>15.0f}{theirs[1]:>11.0f}"


def peak(command: list[str], more: dict[str, str], log: Path) -> Measured:
    """GiB, and seconds of processor time, which other programs disturb less than the clock, of a command."""
    with open(log, "wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | more)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return usage.ru_maxrss * 1024 / GIB, usage.ru_utime + usage.ru_stime


def write_rows(folder: Path, model: str) -> None:
    """Rows that nearly fill the longest length, of every kind: TRL leaves out pairs that exceed it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def cut(text: str, tokens: int) -> str:
        return tokenizer.decode(tokenizer(text)["input_ids"][:tokens], skip_special_tokens=True)

    everything = " ".join(f"word{i} and" for i in range(LENGTH))
    words, question = cut(everything, LENGTH * 3 // 4), cut(f"Say this again: {everything}", LENGTH // 8)
    pairs = [{"prompt": f"{question} {i}", "chosen": words, "rejected": f"No. {words}"} for i in range(32)]
    rows = {
        "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs],
        "pairs": pairs,
        "prompts": [{"prompt": f"{question} {i}"} for i in range(2 * PROMPTS * GROUP)],
    }
    for name, found in rows.items():
        text = "".join(json.dumps(row | {"split": "train"}) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def file_of(job: str) -> str:
    return {"sft": "sft.jsonl", "rloo": "prompts.jsonl", "ppo": "prompts.jsonl"}.get(job, "pairs.jsonl")


def our_command(job: str, options: argparse.Namespace, folder: Path) -> list[str]:
    own = [f"--max_steps={options.updates}", "--num_evals=1"]
    if job in ("rloo", "ppo"):
        own = [f"--num_iterations={options.updates}", "--reward_model=length", "--eval_every=0"]
        own += [f"--batch_size={PROMPTS * GROUP}", f"--response_length={NEW}"]
    return [
        *(
            sys.executable,
            "-m",
            "preferl",
            *OURS[job],
            *own,
            "--lora_r=16",
            "--device=cpu",
            "--dtype=float32",
        ),
        *(f"--model_name_or_path={options.model}", f"--dataset_name={folder / file_of(job)}"),
        *(f"--output_dir={folder / 'stage'}", "--learning_rate=1e-6"),
    ]


# ------------------------------------------------------------------------------------------------- TRL's side


def trl_side(job: str, model: str, folder: Path, updates: int) -> None:
    """Trains what TRL's trainer of a job makes of the rows."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    rows = load_dataset("json", data_files=str(folder / file_of(job)), split="train").remove_columns("split")
    tokenizer = AutoTokenizer.from_pretrained(model)
    kind = "SEQ_CLS" if job == "reward" else "CAUSAL_LM"
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type=kind)
    usual: dict[str, Any] = {
        **{"output_dir": str(folder / "trl"), "learning_rate": 1e-6, "use_cpu": True, "bf16": False},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 0},
    }
    if job == "ppo":
        train_ppo(model, tokenizer, rows, lora, usual, updates)
        return
    import trl

    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    usual |= {"max_steps": updates}
    if job == "rloo":
        own = {"num_generations": GROUP, "max_completion_length": NEW}
        config: Any = trl.RLOOConfig(per_device_train_batch_size=PROMPTS * GROUP, **own, **usual)
        trainer: Any = trl.RLOOTrainer(
            model=causal, reward_funcs=length, args=config, train_dataset=rows, peft_config=lora
        )
    else:
        usual |= {"per_device_train_batch_size": BATCH, "max_length": LENGTH}
        configs = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}
        trainers = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "reward": trl.RewardTrainer}
        if job == "reward":
            causal = AutoModelForSequenceClassification.from_pretrained(
                model, dtype=torch.float32, num_labels=1
            )
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            causal.config.pad_token_id = tokenizer.pad_token_id
        trainer = trainers[job](
            model=causal,
            args=configs[job](**usual),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora,
        )
    trainer.train()


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def train_ppo(model: str, tokenizer: Any, rows: Any, lora: Any, usual: dict[str, Any], updates: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer.padding_side = "left"
    ids = [tokenizer(text)["input_ids"] for text in rows["prompt"]]
    data = type(rows).from_dict({"input_ids": ids})
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, num_labels=1)
        for _ in range(2)
    )
    config = PPOConfig(
        per_device_train_batch_size=PROMPTS * GROUP,
        total_episodes=PROMPTS * GROUP * updates,
        response_length=NEW,
        num_sample_generations=0,
        **usual,
    )
    PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        peft_config=lora,
    ).train()


if __name__ == "__main__":
    raise SystemExit(main())
