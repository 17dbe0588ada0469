"""A finished run, made by hand, in a home directory full of things that must not leave it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import yaml

from preferl.options.evaluate import EvaluateConfig
from preferl.options.reward import RewardConfig
from preferl.options.rl import RlConfig
from preferl.options.sft import SftConfig
from preferl.runs.environment import environment
from preferl.runs.mark import claim

USER, MACHINE = "adalovelace", "gpu-box-17"
KEY = "sk-test-" + "abcdefgh" * 3
PEOPLE = ("Grace Hopper (night shift)", "alan@example.org")
CLOCK = [1_700_000_000]


def interval(name, value):
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def evaluation():
    """What ``evaluate`` finds: the reward rose, gold too."""
    row = interval("difference", 0.6) | interval("win_rate", 0.64) | {"wins": 30, "ties": 4, "n": 50}
    shared = {"eos_rate": 1.0, "repetition": 0.0, "distinct_2": 0.4, "perplexity": 3.0}
    before = interval("score", 0.0) | interval("gold", -1.0) | interval("length", 12.0) | shared
    after = interval("score", 0.6) | interval("gold", -0.4) | interval("length", 13.0) | shared
    after |= {"kl": 3.46, "kl_se": 0.1, "kl_per_token": 0.3, "drifted": True}
    signs = [{"sign": "hedging", **interval("policy", 0.1), **interval("reference", 0.1)}]
    cost = {"training_total": 3000, "training_cpu_seconds": 60.0, "policy_cpu_seconds_per_response": 0.01}
    return {
        "prompts": 50,
        "num_generations": 1,
        "temperature": 0.7,
        "policies": {"reference": before, "policy": after},
        "comparison": {"score": row, "gold": row},
        "references": {},
        "signs": signs,
        "best_of": [],
        "training": {"kl_coef": 0.05, "kl_controller": "fixed"},
        "cost": cost,
        "seconds": 5.0,
    }


def samples(home: Path):
    """A response that speaks of the home directory, and one that would be markup."""
    texts = [f"Look into {home}/secret.txt on {MACHINE}.", "<script>xss()</script> | [a](http://b)"]
    row = {"reference": "No.", "policy_score": 1.0, "reference_score": 0.0, "policy_gold": 1.0, "kl": 1.0}
    row |= {"reference_gold": 0.0, "policy_finished": True, "reference_finished": True}
    return [row | {"prompt": f"What is {i}?", "policy": text} for i, text in enumerate(texts)]


def training():
    """Rows of rl's metrics."""
    rows = []
    for step in (1, 2, 3):
        row = dict.fromkeys(("reward", "kl", "kl_k3", "kl_exact", "kl_per_token", "entropy"), 0.1 * step)
        row["clip_fraction"] = 0.0
        row |= {f"{key}_se": 0.01 for key in ("kl", "kl_k3", "kl_exact")} | {"length": 12.0, "eos_rate": 1.0}
        rows.append({"step": step, "kl_coef": 0.05} | {f"train/{key}": value for key, value in row.items()})
    return rows


class Run:
    """A run's directory, filled stage by stage."""

    def __init__(self, home: Path, model: Path):
        self.home, self.model = home, model
        self.path = home / "my_runs" / "polite"
        claim(self.path, "run", "polite")
        (self.path / "command.txt").write_text(f"preferl run --key {KEY}\n")
        (self.path / "env.json").write_text(json.dumps({"machine": MACHINE}))

    def stage(self, name, config, summary, reads, model=True, **logs):
        """A finished stage; ``reads`` are paths, or Hub names with their revision, by option."""
        path = self.path / name
        claim(path, "stage", config_kind(config))
        parents = {}
        for option, place in reads.items():
            parents[option] = {"name": str(place), "hash": "0123456789abcdef" * 4}
            if isinstance(place, Path):
                parents[option]["path"] = os.path.relpath(place, path)
        named = {option: str(place) for option, place in reads.items()}
        config = dataclasses.replace(config, output_dir=str(path), **named)
        manifest = {"stage": config_kind(config), "options": {}, "parents": parents}
        manifest |= {"chosen": {"device": "cpu", "dtype": "float32"}, "environment": environment()}
        (path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
        (path / "manifest.json").write_text(json.dumps(manifest))
        (path / "summary.json").write_text(json.dumps(summary))
        for file, rows in logs.items():
            (path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if model:
            shutil.copytree(self.model, path / "model")
            (path / "value_model").mkdir()
            (path / "value_model" / "model.safetensors").write_bytes(b"weights of the critic")
        (path / "DONE").write_text("")
        for file in ("manifest.json", "DONE"):
            CLOCK[0] += 1
            os.utime(path / file, (CLOCK[0], CLOCK[0]))
        return path


def config_kind(config) -> str:
    return type(config).__name__.removesuffix("Config").lower()


def polite_run(home: Path, model: Path) -> Run:
    """sft, reward, rl, evaluate, from a model of the Hub and labels in a file."""
    labels = home / "labels of people.jsonl"
    rows = [
        {
            "prompt": f"Say {i}.",
            "chosen": "Please.",
            "rejected": "No.",
            "annotator": PEOPLE[i % 2],
            "annotator_kind": "human",
            "annotators": ", ".join(PEOPLE),
            "source": f"{home}/my_runs/polite/sft",
            "split": "eval" if i == 3 else "train",
        }
        for i in range(4)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(home, model)
    start = {"model_name_or_path": "org/base", "dataset_name": "org/talk"}
    sft = run.stage(
        "sft",
        SftConfig(),
        {"parameters": 9, "demonstrations": 100, "updates": 7, "seconds": 60.0},
        start,
        metrics=[{"step": 1, "train/loss": 2.0, "dev/loss": 2.0}],
    )
    accuracy = interval("eval/accuracy", 0.8) | {"eval/length_baseline_accuracy": 0.5}
    reward = run.stage(
        "reward",
        RewardConfig(),
        {"train_pairs": 3, "updates": 2, "eval/pairs": 1, "eval/loss": 0.5, "eval/ece": 0.1, "seconds": 9.0}
        | accuracy
        | {"notes": [f"{labels}: 4 of 4 rows used", "read as preference; not used: annotator"]},
        {"model_name_or_path": sft, "dataset_name": labels},
    )
    judge = "judge:http://llm.internal.example:8000/v1#large"
    options = RlConfig(algorithm="rloo", dataset_name="org/talk", kl_coef=0.05, annotator=judge)
    done = {"algorithm": "rloo", "iterations": 3, "episodes": 24, "alarms": {}, "seconds": 100.0}
    reads = {"model_name_or_path": sft, "reward_model": reward}
    rl = run.stage("rl", options, done, reads, metrics=training())
    reads = {"model_name_or_path": rl, "ref_model": sft, "reward_model": reward}
    found = EvaluateConfig(dataset_name="org/talk", temperature=0.7)
    run.stage("evaluate", found, evaluation(), reads, model=False, samples=samples(home))
    given = {
        "output_dir": str(run.path),
        "dataset_name": str(labels),
        "rl": {"algorithm": "rloo", "kl_coef": 0.05},
    }
    (run.path / "config.yaml").write_text(yaml.safe_dump(given))
    return run
